//! The steps of the pass: masks, allocation to layers, and refits of the remaining weights.

use super::{
    ComparisonScope, Pattern, Refitting, Sparsify, WeightCriterion, insensitivity,
    masks::Masks,
    select::{Budget, Level, allocate},
    synflow,
};
use crate::{
    analysis::{
        calibration::{NotFinite, Ridge, Sampling, input_sums},
        evaluation::HeldOut,
        linear::AffineMap,
        repair::{Refit, Repair, RepairOptions, dependents, not_finite},
        samples::{POSITIONS, Split},
        weighted_layers::{Kept, WeightedLayer},
    },
    framework::{Context, Counter, PassError},
    statistics::Sums,
};
use faer::Mat;
use pare_graph::{Model, Patch};
use std::collections::HashSet;

/// The ridge of fits with many samples, and the stronger one for few.
const LAMBDA: f64 = 1e-3;
const LAMBDA_STRONG: f64 = 1e-2;
/// The levels of a layer's curve keep 0.6, 0.6², … of its weights.
const LEVEL: f64 = 0.6;
const LEVELS: i32 = 7;

/// A sparsification with its options resolved.
pub struct Sparsification<'p> {
    pub pass: &'p Sparsify,
    pub model: Model,
    pub layers: Vec<WeightedLayer>,
    pub criterion: WeightCriterion,
    pub scope: ComparisonScope,
    pub refit: Refitting,
    /// Sums over the inputs of each group of each layer; empty if they are not needed.
    pub sums: Vec<Vec<Sums>>,
    pub split: Split,
}

impl<'p> Sparsification<'p> {
    pub fn new(
        pass: &'p Sparsify,
        model: &Model,
        layers: Vec<WeightedLayer>,
        cx: &Context<'_>,
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let by_magnitude = !sampled || pass.threshold.is_some();
        let default = if by_magnitude { WeightCriterion::Magnitude } else { WeightCriterion::Obs };
        let criterion = pass.criterion.unwrap_or(default);
        let scope =
            pass.scope.unwrap_or(if sampled { ComparisonScope::Drift } else { ComparisonScope::Global });
        let refit = pass.refit.unwrap_or(if sampled { Refitting::Sequential } else { Refitting::None });
        let allocated = scope == ComparisonScope::Drift && pass.ratio.is_some();
        let needs = criterion.needs_samples() || refit != Refitting::None || allocated;
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

    /// Returns the mask of each layer.
    pub fn masks(&self, cx: &mut Context<'_>) -> Result<Vec<Kept>, PassError> {
        if let Some(q) = self.pass.threshold {
            return Ok(self.layers.iter().map(|l| above_threshold(l, q)).collect());
        }
        if let (WeightCriterion::Synflow, Some(ratio)) = (self.criterion, self.pass.ratio) {
            return synflow::masks(cx.tools, &self.model, &self.layers, self.pass.pattern, ratio);
        }
        let masks = Masks::new(self, cx)?;
        let all: Vec<_> = (0..self.layers.len()).collect();
        let Some(ratio) = self.pass.ratio else {
            // An `n:m` pattern determines the ratio; `insensitivity` is limited by the cross entropy.
            return if matches!(self.pass.pattern, Pattern::Of(..)) {
                masks.of(&all, &Budget::All(0.0))
            } else {
                insensitivity::masks(self, &masks, cx)
            };
        };
        let budget = match self.scope {
            ComparisonScope::Global => Budget::All(ratio),
            ComparisonScope::Layer => Budget::Each(vec![ratio; all.len()]),
            ComparisonScope::Row => Budget::Row(ratio),
            ComparisonScope::Drift => Budget::Each(self.shares(&masks, ratio, cx)?),
        };
        masks.of(&all, &budget)
    }

    /// The share to remove of each layer that minimises the sum of the drifts measured for each layer alone.
    fn shares(&self, masks: &Masks<'_>, ratio: f64, cx: &mut Context<'_>) -> Result<Vec<f64>, PassError> {
        let held_out = HeldOut::new(cx.tools, &self.model, self.split.held_out.clone())?;
        let how = if self.refit == Refitting::None { Refitting::None } else { Refitting::Layer };
        let mut curves = vec![];
        for (l, layer) in self.layers.iter().enumerate() {
            cx.tools.progress.step("curves", l as u64, self.layers.len() as u64);
            let start = held_out.prefix(&self.model, &HashSet::from([layer.node]))?;
            let (mut curve, mut worst) = (vec![Level { share: 1.0, loss: 0.0 }], 0.0_f64);
            for level in 1..=LEVELS {
                let share = LEVEL.powi(level);
                let mask = masks.of(&[l], &Budget::Each(vec![1.0 - share]))?;
                let changed = self.changed(&[l], &mask, how)?;
                // Removing more is never better; a measured decrease is noise.
                worst = worst.max(held_out.drift_from(&start, &changed)?);
                curve.push(Level { share, loss: worst });
            }
            curves.push(curve);
        }
        cx.tools.progress.step("curves", curves.len() as u64, curves.len() as u64);
        let counts: Vec<_> = self.layers.iter().map(WeightedLayer::count).collect();
        let budget = (1.0 - ratio) * counts.iter().sum::<usize>() as f64;
        let least: f64 = counts.iter().zip(&curves).map(|(&n, c)| n as f64 * c[c.len() - 1].share).sum();
        if budget < least {
            // Below the measured levels all layers have the same share.
            return Ok(vec![ratio; counts.len()]);
        }
        Ok(allocate(&counts, &curves, budget).into_iter().map(|share| 1.0 - share).collect())
    }

    /// Returns the model with masks on the layers `which`, each layer fitted alone or not at all.
    pub fn changed(&self, which: &[usize], masks: &[Kept], how: Refitting) -> Result<Model, PassError> {
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
        changed.graph.apply(patch).map_err(PassError::from_error)?;
        Ok(changed)
    }

    /// Fits the remaining weights of a layer to its original outputs.
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

    /// Returns the model with all masks and the requested refit.
    pub fn build(&self, masks: &[Kept], cx: &mut Context<'_>) -> Result<Model, PassError> {
        let all: Vec<_> = (0..self.layers.len()).collect();
        let how = if self.refit == Refitting::None { Refitting::None } else { Refitting::Layer };
        let local = self.changed(&all, masks, how)?;
        let zeros: usize = masks.iter().flatten().filter(|kept| !**kept).count();
        cx.count(Counter::new("weight zeroed", "weights zeroed"), zeros as u64);
        if self.refit != Refitting::Sequential {
            return Ok(local);
        }
        let held_out = HeldOut::new(cx.tools, &self.model, self.split.held_out.clone())?;
        let refits = &self.refits(masks);
        let samples = self.split.fit.clone();
        let repair = Repair { tools: cx.tools, original: &self.model, refits, samples };
        let mut best = (held_out.drift(&local)?, local.clone());
        cx.detail("drift of single fits", best.0);
        for lambda in [LAMBDA, LAMBDA_STRONG] {
            let mut candidate = local.clone();
            repair.refit(&mut candidate, RepairOptions::new(lambda))?;
            let drift = held_out.drift(&candidate)?;
            cx.detail(format!("drift at λ={lambda}"), drift);
            if drift < best.0 {
                best = (drift, candidate);
                // The samples suffice, so a stronger ridge does not help.
                break;
            }
        }
        cx.figure("drift", best.0);
        Ok(best.1)
    }

    /// The refits of every layer that lost weights or depends on one that did.
    fn refits(&self, masks: &[Kept]) -> Vec<Refit> {
        let graph = &self.model.graph;
        let lost = |kept: &Kept| kept.iter().any(|kept| !kept);
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

/// The mask of the weights whose magnitude is at least `q` standard deviations of the layer.
fn above_threshold(layer: &WeightedLayer, q: f64) -> Kept {
    let values: Vec<_> = (0..layer.rows()).flat_map(|r| layer.row(r)).collect();
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n;
    let least = q * variance.sqrt();
    values.iter().map(|w| w.abs() >= least).collect()
}
