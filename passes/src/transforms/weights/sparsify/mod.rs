//! The pass: criteria, allocation, and refits of the remaining weights.

mod insensitivity;
mod masks;
mod score;
mod select;
mod sparsification;
mod synflow;
#[cfg(test)]
mod tests;

pub use select::Pattern;

use crate::{
    analysis::weighted_layers::{NameFilter, density, layers},
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::Model;
use serde::{Deserialize, Serialize};
use sparsification::Sparsification;

/// The importance of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightCriterion {
    /// Its magnitude.
    Magnitude,
    /// Its magnitude times the root of the energy of its input. Needs samples.
    Wanda,
    /// The layer's squared error without it. Needs samples.
    Obd,
    /// The layer's squared error without it after an optimal update of its row. Needs samples.
    Obs,
    /// Its magnitude after a decay proportional to the layer's insensitivity to it. Needs samples.
    Insensitivity,
    /// The flow through it with positive weights and inputs.
    Synflow,
    /// A random number.
    Random,
}

/// The set of weights within which scores are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComparisonScope {
    /// A layer. The shares of the layers minimise the drift of the outputs.
    Drift,
    /// All layers.
    Global,
    /// A layer. All layers have the same share.
    Layer,
    /// A row, the weights of one output. All rows have the same share.
    Row,
}

/// The refit of the remaining weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refitting {
    /// No refit.
    None,
    /// Each layer is fitted from statistics of the original.
    Layer,
    /// Layer after layer is fitted to the activations of the original.
    Sequential,
}

pass! {
    /// Set weights to zero and refit the remaining ones.
    ///
    /// The criterion is evaluated on unlabelled samples. The remaining weights of each row are fitted by
    /// least squares, layer after layer, to the activations of the original. Channels that became constant or
    /// unused are removed.
    ///
    /// The target is a `ratio`, a `threshold` (Han et al. 2015), or a `pattern` such as `2:4`. Run it after
    /// `safe`, which folds batch norms. Zeros make the compressed file smaller, but ordinary engines not
    /// faster.
    ///
    /// Skips weights with several users, and, for `n:m`, layers whose input channels `m` does not divide.
    #[pass("sparsify", Lossy)]
    pub struct Sparsify {
        /// The share of the weights to set to zero.
        pub ratio: Option<f64> = None,
        /// Set weights to zero whose magnitude is below this many standard deviations of their layer.
        pub threshold: Option<f64> = None,
        /// `magnitude`, `wanda`, `obd`, `obs`, `insensitivity`, `synflow` or `random`. By default `obs` with
        /// samples.
        pub criterion: Option<WeightCriterion> = None,
        /// For `obs`: use an inverse per row, which takes time cubic in the length of the row.
        pub exact: bool = false,
        /// The set within which weights are compared: `drift`, `global`, `layer` or `row`. By default `drift`
        /// with samples.
        pub scope: Option<ComparisonScope> = None,
        /// The positions of zeros: `free`, `2:4` or another `n:m` (n of m remain), `block` (16 in a row) or
        /// `block8`.
        pub pattern: Pattern = Pattern::Free,
        /// The refit: `none`, `layer` or `sequential`. By default `sequential` with samples.
        pub refit: Option<Refitting> = None,
        /// For `insensitivity` without a ratio: the largest relative increase of the cross entropy with the
        /// original's outputs.
        pub tolerance: f64 = 0.1,
        /// Remove dead channels afterwards.
        pub cascade: bool = true,
        /// Only layers whose weights have a name that matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// Skip layers whose weights have a name that matches one of these patterns.
        pub except: Vec<String> = vec![],
    }
}

impl WeightCriterion {
    /// Returns true if it depends on activations.
    fn needs_samples(self) -> bool {
        matches!(self, Self::Wanda | Self::Obd | Self::Obs | Self::Insensitivity)
    }
}

impl Pass for Sparsify {
    fn validate(&self) -> Result<(), String> {
        let magnitude = matches!(self.criterion, None | Some(WeightCriterion::Magnitude));
        if let Some(ratio) = self.ratio.filter(|r| !(*r > 0.0 && *r < 1.0)) {
            return Err(format!("`ratio` is a share between 0 and 1, not {ratio}"));
        }
        if self.threshold.is_some_and(|q| !(q > 0.0 && q.is_finite())) {
            return Err("`threshold` is a number of standard deviations above 0".into());
        }
        if self.tolerance < 0.0 {
            return Err("`tolerance` is at least 0".into());
        }
        if self.threshold.is_some() && (self.ratio.is_some() || self.scope.is_some() || !magnitude) {
            return Err("a `threshold` of magnitudes excludes `ratio`, `scope` and `criterion`".into());
        }
        if let Pattern::Of(n, m) = self.pattern
            && (self.ratio.is_some() || self.threshold.is_some() || self.scope.is_some())
        {
            return Err(format!("`{n}:{m}` excludes `ratio`, `threshold` and `scope`"));
        }
        if self.exact && (!matches!(self.criterion, None | Some(WeightCriterion::Obs))) {
            return Err("`exact` needs `criterion=obs`".into());
        }
        if self.exact && matches!(self.pattern, Pattern::Block(_)) {
            return Err("`exact` does not support blocks".into());
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let by_cross_entropy = self.criterion == Some(WeightCriterion::Insensitivity);
        let no_target = self.ratio.is_none() && self.threshold.is_none();
        if no_target && !by_cross_entropy && !matches!(self.pattern, Pattern::Of(..)) {
            return Err(PassError::refused_with("it needs a target", "such as `sparsify{ratio=0.5}`"));
        }
        if cx.stopped() {
            return Ok(());
        }
        let mut layers = layers(model, NameFilter { only: &self.only, except: &self.except }, cx)?;
        if let Pattern::Of(_, m) = self.pattern {
            layers.retain(|layer| {
                let channels = layer.linear.channels;
                let divides = channels % m == 0;
                if !divides {
                    cx.decline(format!(
                        "`{}` has {channels} input channels, which {m} does not divide",
                        layer.name
                    ));
                }
                divides
            });
        }
        let work = Sparsification::new(self, model, layers, cx)?;
        let masks = work.masks(cx)?;
        let new = work.build(&masks, cx)?;
        if cx.permit() {
            let density = |m: &Model| density(&m.graph, &work.layers);
            let (before, after) = (density(model), density(&new));
            cx.figure("density before", before);
            cx.figure("density after", after);
            *model = new;
            if self.cascade {
                cx.run_nested("drop-dead-channels", model)?;
            }
            cx.report.notes.push(benefit(self.pattern).into());
        }
        Ok(())
    }
}

/// A remark on the effect of zeros on size and latency.
fn benefit(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::Free | Pattern::Block(_) => {
            "zero weights make the compressed file smaller; ONNX Runtime multiplies by them like by any other number and is \
             not faster"
        }
        Pattern::Of(..) => {
            "zeros in this pattern are faster on hardware that supports it; ONNX Runtime on a CPU multiplies by them like by \
             any other number and is not faster"
        }
    }
}
