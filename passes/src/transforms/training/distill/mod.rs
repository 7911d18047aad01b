//! The pass: options, the order of the work, and the decision.

mod augment;
mod changed;
mod checkpoint;
mod collapse;
mod data;
mod equilibrium;
mod loss;
mod optimizer;
mod parameters;
mod quantized;
mod rate;
mod schedule;
#[cfg(test)]
mod tests;
mod trainer;

pub use augment::Augmentation;
pub use loss::DistillLoss;
pub use optimizer::Optimizer;
pub(super) use {
    parameters::Weights,
    trainer::{Companion, Training},
};

use crate::{
    analysis::weighted_layers::NameFilter,
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::Model;
use serde::{Deserialize, Serialize};

/// The weights that are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainedWeights {
    /// All.
    All,
    /// Those that passes changed, and those that depend on a change.
    Changed,
}

pass! {
    /// Train the remaining weights towards the outputs of the original, without labels.
    ///
    /// Minimises `L(θ) = Σ_o E‖y_o(x; θ) − y*_o(x)‖² / Var y*_o` over the samples `x`, where `y*` are the outputs of
    /// the model that entered the pipeline, by steps of Adam (Kingma and Ba 2015, decoupled decay by Loshchilov and
    /// Hutter 2019) along gradients that the engine computes. The rate rises linearly, then falls as a cosine.
    ///
    /// A tenth of the samples is held out. The rate is the best of short trials on them, training ends early when
    /// they no longer improve, and the weights are kept only if they improve by more than chance. Zeros of sparse
    /// weights stay zeros.
    ///
    /// With `freeze`, units whose output does not change any more are not trained until it does, and the part of the
    /// backward pass that only they need is left out (Bragagnolo et al. 2022): sixteen times in a training, the
    /// similarity `φ` of a unit's output on some samples to its last one has the velocity `v = Δφ − v'/2`, where `v'`
    /// is the last, and the unit rests while `|v| < freeze`.
    ///
    /// With `collapse`, residual blocks are to leave their stream as it is, so that `drop-blocks` costs less (Quétu et
    /// al. 2024): `λ/B Σ_b max_θ mean (sort(Xθ) − sort(Yθ))² / mean X²` is added to the loss, over `B` blocks with the
    /// outputs `Y`, which are `X` without the block, a row a sample, and 50 random directions `θ` in each step. Weights
    /// are then kept if this sum improves: `distill{collapse=1},drop-blocks{count=2,one_shot=true},distill`.
    ///
    /// Put it after the passes that remove something, as in `prune-channels{macs=0.5},distill`. More samples help
    /// more: some thousand at least, and no labels are needed.
    #[pass("distill", Lossy, trains = true)]
    pub struct Distill {
        /// Passes over the samples. By default as many as show 150,000 samples, between 3 and 12.
        pub epochs: Option<f64> = None,
        /// The number of steps, in place of `epochs`.
        pub steps: Option<u64> = None,
        /// The largest number of minutes: fewer steps are made if they would take longer. The result then depends
        /// on the speed of the machine.
        pub minutes: Option<f64> = None,
        /// `error`, `divergence`, `cosine`, or `labels`: the cross entropy with the labels of the samples. By default
        /// `cosine` for embeddings, else `error`: of class scores the error of the logits.
        pub loss: Option<DistillLoss> = None,
        /// For `divergence`: the temperature by which logits are divided.
        pub temperature: f64 = 2.0,
        /// Inner values that are to become those of the original, too, where both have the same shape: patterns of names,
        /// `*` for any text, or `blocks` for the streams after residual blocks.
        pub features: Vec<String> = vec![],
        /// The factor of the features' mean error beside the loss of the outputs.
        pub feature_weight: f64 = 1.0,
        /// The largest rate. By default it is found by trials.
        pub rate: Option<f64> = None,
        /// Samples in a step.
        pub batch: usize = 64,
        /// `adamw`, or `sgd` with momentum.
        pub optimizer: Optimizer = Optimizer::Adamw,
        /// The decay of weights: each step multiplies them by `1 − rate·decay`.
        pub decay: f64 = 0.0,
        /// Changes of images that the samples do not show: `flip` (left and right), `shift` (by up to an eighth).
        pub augment: Vec<Augmentation> = vec![],
        /// The velocity below which units are not trained. By default all are.
        pub freeze: Option<f64> = None,
        /// The factor `λ` of the distance between the input and the output of residual blocks.
        pub collapse: Option<f64> = None,
        /// `all` weights, or those `changed`: read where a value is computed that the original does not compute, also
        /// after `safe`. That compares inputs by name, constants by content, and nodes by operator, attributes and
        /// inputs, so weights before and beside every change stay.
        pub train: TrainedWeights = TrainedWeights::All,
        /// Only train initializers whose name matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// Do not train initializers whose name matches one of these patterns.
        pub except: Vec<String> = vec![],
        /// The path of a file to which the state is written during training, and from which it resumes.
        pub checkpoint: String = String::new(),
    }
}

/// The number of samples that a training shows, and the fewest and most times that it shows each.
const SHOWN: f64 = 150_000.0;
const EPOCHS: (f64, f64) = (3.0, 12.0);

impl Distill {
    /// The number of times that each of this many samples is shown by default.
    pub fn default_epochs(samples: usize) -> f64 {
        (SHOWN / samples as f64).clamp(EPOCHS.0, EPOCHS.1)
    }
}

impl Pass for Distill {
    fn validate(&self) -> Result<(), String> {
        let (epochs, minutes) = (("epochs", self.epochs), ("minutes", self.minutes));
        let positive =
            [epochs, minutes, ("rate", self.rate), ("freeze", self.freeze), ("collapse", self.collapse)];
        let positive = positive.into_iter().chain([("feature_weight", Some(self.feature_weight))]);
        for (name, value) in positive {
            if let Some(value) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
                return Err(format!("`{name}` is a positive number, not {value}"));
            }
        }
        if self.epochs.is_some() && self.steps.is_some() {
            return Err("`epochs` and `steps` exclude each other".into());
        }
        if self.freeze.is_some() && !self.checkpoint.is_empty() {
            return Err("`freeze` and `checkpoint` exclude each other".into());
        }
        if self.steps == Some(0) || self.batch == 0 {
            return Err("`steps` and `batch` are at least 1".into());
        }
        if !(self.decay >= 0.0 && self.decay.is_finite()) {
            return Err(format!("`decay` is at least 0, not {}", self.decay));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(format!("`temperature` is a positive number, not {}", self.temperature));
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        let (mut student, prepared) = (model.clone(), "inline-functions,lift-constants");
        let is_prepared = cx.scratch().run(prepared, &mut student)?.patches() == 0;
        let teacher = cx.tools.teacher.unwrap_or(&student);
        let Some(mut training) = Training::new(self, teacher, &student, cx)? else { return Ok(()) };
        let Some(trained) = training.run(cx)? else { return Ok(()) };
        if !is_prepared {
            cx.run_nested(prepared, model)?;
        }
        if let Some(patch) = training.patch(&model.graph, &trained)?
            && cx.apply(&mut model.graph, patch).is_some()
        {
            cx.count(Counter::new("weight trained", "weights trained"), training.count());
        }
        Ok(())
    }
}

impl Distill {
    fn filter(&self) -> NameFilter<'_> {
        NameFilter { only: &self.only, except: &self.except }
    }
}
