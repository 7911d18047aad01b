//! The pass: which weights go, and what the others make up for.

mod insensitivity;
mod masks;
mod score;
mod select;
mod synflow;
#[cfg(test)]
mod tests;

pub use select::Pattern;

use crate::analysis::samples::{POSITIONS, Split};
use crate::analysis::weighted_layers::{Kept, NameFilter, WeightedLayer, density, layers};
use crate::{
    analysis::{
        calibration::{NotFinite, Ridge, Sampling, input_sums},
        evaluation::HeldOut,
        linear::AffineMap,
        repair::{Refit, Repair, RepairOptions, dependents, not_finite},
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
    statistics::Sums,
};
use faer::Mat;
use masks::Masks;
use pare_graph::{Model, Patch};
use select::Budget;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What makes a weight matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Its size.
    Magnitude,
    /// Its size times the root of the energy of its input: needs samples.
    Wanda,
    /// What zeroing it alone costs its layer: needs samples.
    Obd,
    /// What zeroing it costs when the rest of its row makes up for it: needs samples.
    Obs,
    /// What is left of it when weights shrink by how little their layer feels them: needs samples.
    Insensitivity,
    /// What flows through it when all weights and inputs are positive.
    Synflow,
    /// Nothing: chance.
    Random,
}

/// Over what weights are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// A layer; its share is what the outputs can do without.
    Drift,
    /// All layers.
    Global,
    /// A layer; all have the same share.
    Layer,
    /// A row, the weights of one output; all have the same share.
    Row,
}

/// How the weights that stay make up for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refitting {
    /// They do not.
    None,
    /// By fitting each layer anew, from statistics of the original.
    Layer,
    /// By fitting layer after layer to the original's activations.
    Sequential,
}

pass! {
    /// Set weights to zero, and let the others make up for them.
    ///
    /// Which go is found out on unlabelled samples; those that stay are fitted by least squares on what is left of their
    /// row, layer after layer, to the activations of the original. Channels that nothing computes or reads any more go too.
    ///
    /// Say how far to go by `ratio`, by `threshold` (Han et al. 2015), or by a `pattern` such as `2:4`. Run it after `safe`,
    /// which folds batch norms. Zeros make the compressed file smaller, and no ordinary engine faster.
    ///
    /// Leaves alone weights that several operators read, and, for `n:m`, layers whose input channels do not divide by m.
    #[pass("sparsify", Lossy)]
    pub struct Sparsify {
        /// Share of the weights to set to zero.
        pub ratio: Option<f64> = None,
        /// Set weights to zero that are smaller than so many standard deviations of their layer.
        pub threshold: Option<f64> = None,
        /// `magnitude`, `wanda`, `obd`, `obs`, `insensitivity`, `synflow` or `random`. By default `obs` with samples.
        pub criterion: Option<Criterion> = None,
        /// Of `obs`: each row with an inverse of its own, which takes time with the cube of the row's length.
        pub exact: bool = false,
        /// Over what weights are compared: `drift`, `global`, `layer` or `row`. By default `drift` with samples.
        pub scope: Option<Scope> = None,
        /// Zeros that go together: `free`, `2:4` or another `n:m` (n of m stay), `block` (16 in a row) or `block8`.
        pub pattern: Pattern = Pattern::Free,
        /// `none`, `layer` or `sequential`. By default `sequential` with samples.
        pub refit: Option<Refitting> = None,
        /// Of `insensitivity` without a ratio: what the cross entropy with the original's answers may grow by, as a share.
        pub tolerance: f64 = 0.1,
        /// Remove channels that are dead then.
        pub cascade: bool = true,
        /// Only layers whose weights have names that match one of these patterns, `*` for anything.
        pub only: Vec<String> = vec![],
        /// No layer whose weights have a name that matches one of these patterns.
        pub except: Vec<String> = vec![],
    }
}

/// Ridge of a fit with many samples, and of the careful one.
const LAMBDA: f64 = 1e-3;
const LAMBDA_CAREFUL: f64 = 1e-2;
/// Each level of a layer's curve keeps this share of what the one before keeps.
const LEVEL: f64 = 0.6;
const LEVELS: i32 = 7;

impl Criterion {
    /// Whether it looks at activations.
    fn needs_samples(self) -> bool {
        matches!(self, Self::Wanda | Self::Obd | Self::Obs | Self::Insensitivity)
    }
}

impl Pass for Sparsify {
    fn validate(&self) -> Result<(), String> {
        let magnitude = matches!(self.criterion, None | Some(Criterion::Magnitude));
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
            return Err("a `threshold` of magnitudes needs no `ratio`, `scope` or `criterion`".into());
        }
        if let Pattern::Of(n, m) = self.pattern
            && (self.ratio.is_some() || self.threshold.is_some() || self.scope.is_some())
        {
            return Err(format!("`{n}:{m}` says itself how many weights go, and where"));
        }
        if self.exact && (!matches!(self.criterion, None | Some(Criterion::Obs))) {
            return Err("`exact` belongs to `criterion=obs`".into());
        }
        if self.exact && matches!(self.pattern, Pattern::Block(_)) {
            return Err("`exact` knows no blocks".into());
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let by_loss = self.criterion == Some(Criterion::Insensitivity);
        let aimless = self.ratio.is_none() && self.threshold.is_none();
        if aimless && !by_loss && !matches!(self.pattern, Pattern::Of(..)) {
            return Err(PassError::refused_with("it needs a target", "such as `sparsify{ratio=0.5}`"));
        }
        if cx.stopped() {
            return Ok(());
        }
        let mut layers = layers(&model.graph, NameFilter { only: &self.only, except: &self.except }, cx)?;
        if let Pattern::Of(n, m) = self.pattern {
            layers.retain(|layer| {
                let even = layer.linear.channels % m == 0;
                if !even {
                    let channels = layer.linear.channels;
                    cx.decline(format!("`{}` stays whole: {n}:{m} of {channels} channels", layer.name));
                }
                even
            });
        }
        let work = Work::new(self, model, layers, cx)?;
        let masks = work.masks(cx)?;
        let new = work.build(&masks, cx)?;
        if cx.permit() {
            let of = |m: &Model| density(&m.graph, &work.layers);
            let (before, after) = (of(model), of(&new));
            cx.figure("density before", before);
            cx.figure("density", after);
            *model = new;
            if self.cascade {
                cx.run_nested("drop-dead-channels", model)?;
            }
            cx.report.notes.push(pays(self.pattern).into());
        }
        Ok(())
    }
}

/// What zeros buy, in words.
fn pays(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::Free | Pattern::Block(_) => {
            "zeros among the weights make the compressed file smaller; ONNX Runtime multiplies by them like by any other \
             number and is no faster"
        }
        Pattern::Of(..) => {
            "zeros in this pattern pay on hardware with units for it; ONNX Runtime on a CPU multiplies by them like by any \
             other number and is no faster"
        }
    }
}

struct Work<'p> {
    pass: &'p Sparsify,
    model: Model,
    layers: Vec<WeightedLayer>,
    criterion: Criterion,
    scope: Scope,
    refit: Refitting,
    /// Sums over the inputs of each group of each layer; none if nothing asks.
    sums: Vec<Vec<Sums>>,
    split: Split,
}

impl<'p> Work<'p> {
    fn new(
        pass: &'p Sparsify,
        model: &Model,
        layers: Vec<WeightedLayer>,
        cx: &Context<'_>,
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let by_size = !sampled || pass.threshold.is_some();
        let criterion = pass.criterion.unwrap_or(if by_size { Criterion::Magnitude } else { Criterion::Obs });
        let scope = pass.scope.unwrap_or(if sampled { Scope::Drift } else { Scope::Global });
        let refit = pass.refit.unwrap_or(if sampled { Refitting::Sequential } else { Refitting::None });
        let shared_out = scope == Scope::Drift && pass.ratio.is_some();
        let needs = criterion.needs_samples() || refit != Refitting::None || shared_out;
        let split = Split::when(needs, cx.tools, "criterion=magnitude,scope=global,refit=none")?;
        let sums = if criterion.needs_samples() || refit != Refitting::None {
            let operators: Vec<_> = layers.iter().map(|l| &l.linear).collect();
            let sampling = Sampling { positions: POSITIONS, seed: cx.tools.seed };
            input_sums(cx.tools, model, &operators, split.statistics(), sampling)?
        } else {
            vec![]
        };
        Ok(Self { pass, model: model.clone(), layers, criterion, scope, refit, sums, split })
    }

    /// Which weights stay, of each layer.
    fn masks(&self, cx: &mut Context<'_>) -> Result<Vec<Kept>, PassError> {
        if let Some(q) = self.pass.threshold {
            return Ok(self.layers.iter().map(|l| above(l, q)).collect());
        }
        if let (Criterion::Synflow, Some(ratio)) = (self.criterion, self.pass.ratio) {
            return synflow::masks(cx.tools, &self.model, &self.layers, self.pass.pattern, ratio);
        }
        let masks = Masks::new(self, cx)?;
        let all: Vec<_> = (0..self.layers.len()).collect();
        let Some(ratio) = self.pass.ratio else {
            // A pattern says itself how many go; `Criterion::Insensitivity` asks the loss.
            return if matches!(self.pass.pattern, Pattern::Of(..)) {
                masks.of(&all, &Budget::All(0.0))
            } else {
                insensitivity::masks(self, &masks, cx)
            };
        };
        let budget = match self.scope {
            Scope::Global => Budget::All(ratio),
            Scope::Layer => Budget::Each(vec![ratio; all.len()]),
            Scope::Row => Budget::Row(ratio),
            Scope::Drift => Budget::Each(self.shares(&masks, ratio, cx)?),
        };
        masks.of(&all, &budget)
    }

    /// The share of each layer that goes: the least summed drift of the outputs, by curves of each layer alone.
    fn shares(&self, masks: &Masks<'_>, ratio: f64, cx: &mut Context<'_>) -> Result<Vec<f64>, PassError> {
        let trial = HeldOut::new(cx.tools, &self.model, self.split.held_out.clone())?;
        let how = if self.refit == Refitting::None { Refitting::None } else { Refitting::Layer };
        let mut curves = vec![];
        for (l, layer) in self.layers.iter().enumerate() {
            cx.tools.progress.step("curves", l as u64, self.layers.len() as u64);
            let start = trial.prefix(&self.model, &HashSet::from([layer.node]))?;
            let (mut curve, mut most) = (vec![(1.0, 0.0)], 0.0_f64);
            for level in 1..=LEVELS {
                let share = LEVEL.powi(level);
                let mask = masks.of(&[l], &Budget::Each(vec![1.0 - share]))?;
                let changed = self.changed(&[l], &mask, how)?;
                // Losing more is never better: what a measurement says otherwise is noise.
                most = most.max(trial.drift_from(&start, &changed)?);
                curve.push((share, most));
            }
            curves.push(curve);
        }
        cx.tools.progress.step("curves", curves.len() as u64, curves.len() as u64);
        let counts: Vec<_> = self.layers.iter().map(WeightedLayer::count).collect();
        let budget = (1.0 - ratio) * counts.iter().sum::<usize>() as f64;
        let least: f64 = counts.iter().zip(&curves).map(|(&n, c)| n as f64 * c[c.len() - 1].0).sum();
        if budget < least {
            // Beyond the curves all layers thin out alike.
            return Ok(vec![ratio; counts.len()]);
        }
        Ok(select::share_out(&counts, &curves, budget).into_iter().map(|share| 1.0 - share).collect())
    }

    /// The model with these masks on these layers, each fitted for itself or not at all.
    fn changed(&self, which: &[usize], masks: &[Kept], how: Refitting) -> Result<Model, PassError> {
        let graph = &self.model.graph;
        let mut changed = self.model.clone();
        let Some(&first) = which.first() else { return Ok(changed) };
        let mut patch = Patch::anchored(self.layers[first].node);
        for (&l, kept) in which.iter().zip(masks) {
            let layer = &self.layers[l];
            let stored = if how == Refitting::None {
                layer.zero(graph, kept, &mut patch).map(drop)
            } else {
                let maps = self.fitted(l, kept).map_err(|e| not_finite(graph, layer.node, e))?;
                let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
                let weights: Vec<_> = maps.into_iter().map(|m| m.weight).collect();
                layer.linear.store(graph, &mut patch, &weights, &bias)
            };
            stored.ok_or_else(|| PassError::refused(format!("`{}` cannot be changed", layer.name)))?;
        }
        changed.graph.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
        Ok(changed)
    }

    /// The weights that stay of a layer, fitted to what it gave with all of them.
    fn fitted(&self, l: usize, kept: &[bool]) -> Result<Vec<AffineMap>, NotFinite> {
        let layer = &self.layers[l];
        let o = layer.linear.outputs;
        let group = |q: usize| {
            let (weight, sums) = (&layer.weights[q], &self.sums[l][q]);
            let kept = layer.of_group(kept, q);
            let d = weight.ncols();
            let all: Vec<_> = (0..d).collect();
            let through = if layer.linear.takes_bias() {
                sums.through(weight.as_ref(), &layer.bias[q * o..(q + 1) * o], &all)
            } else {
                sums.about_zero().through(weight.as_ref(), &[], &all)
            };
            let prior = Mat::from_fn(o, d, |i, j| if kept[i * d + j] { weight[(i, j)] } else { 0.0 });
            let cross = through.xy.as_ref() * faer::Scale(1.0 / through.count.max(1) as f64);
            let ridge = Ridge::new(&through, LAMBDA)?;
            ridge.solve_free(cross.as_ref(), &through.y_mean, prior.as_ref(), kept)
        };
        (0..layer.linear.groups).map(group).collect()
    }

    /// The model with all masks, repaired as asked.
    fn build(&self, masks: &[Kept], cx: &mut Context<'_>) -> Result<Model, PassError> {
        let all: Vec<_> = (0..self.layers.len()).collect();
        let how = if self.refit == Refitting::None { Refitting::None } else { Refitting::Layer };
        let local = self.changed(&all, masks, how)?;
        let zeros: usize = masks.iter().flatten().filter(|stays| !**stays).count();
        cx.count(Counter::new("weight zeroed", "weights zeroed"), zeros as u64);
        if self.refit != Refitting::Sequential {
            return Ok(local);
        }
        let trial = HeldOut::new(cx.tools, &self.model, self.split.held_out.clone())?;
        let refits = &self.refits(masks);
        let samples = self.split.fit.clone();
        let repair = Repair { tools: cx.tools, original: &self.model, refits, samples };
        let mut best = (trial.drift(&local)?, local.clone());
        cx.figure("drift of single fits", best.0);
        for lambda in [LAMBDA, LAMBDA_CAREFUL] {
            let mut candidate = local.clone();
            repair.refit(&mut candidate, RepairOptions::new(lambda))?;
            let drift = trial.drift(&candidate)?;
            cx.detail(format!("drift at λ={lambda}"), drift);
            if drift < best.0 {
                best = (drift, candidate);
                // Samples enough: a stronger pull toward the single fits is of no use.
                break;
            }
        }
        cx.figure("drift", best.0);
        Ok(best.1)
    }

    /// Every layer that lost weights or lies behind one that did, on what stays of it.
    fn refits(&self, masks: &[Kept]) -> Vec<Refit> {
        let graph = &self.model.graph;
        let lost = |kept: &Kept| kept.iter().any(|stays| !stays);
        let changed = self.layers.iter().zip(masks).filter(|(_, kept)| lost(kept)).map(|(l, _)| l.node);
        let dirty = dependents(graph, &changed.collect());
        let refit = |(layer, kept): (&WeightedLayer, &Kept)| {
            let last = graph.value(layer.linear.output).is_output();
            let useful =
                lost(kept) || dirty.contains(&layer.linear.output) && (layer.linear.takes_bias() || !last);
            let free = lost(kept).then(|| kept.clone());
            useful.then_some(Refit {
                node: layer.node,
                target: layer.linear.output,
                sum: None,
                output_transform: false,
                kept: None,
                free,
            })
        };
        self.layers.iter().zip(masks).filter_map(refit).collect()
    }
}

/// What is at least `q` standard deviations of its layer away from zero.
fn above(layer: &WeightedLayer, q: f64) -> Kept {
    let values: Vec<_> = (0..layer.rows()).flat_map(|r| layer.row(r)).collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n;
    let least = q * variance.sqrt();
    values.iter().map(|w| w.abs() >= least).collect()
}
