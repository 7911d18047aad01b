//! Latency targets, measured in the engine on this machine.
//!
//! Engines compute channels in blocks, so latency is a step function of the width. The step is measured on
//! the widest group. Then the segment of the model around each group is timed at every step, and the latency
//! of the model is predicted as `t(model, kept) ≈ t(model) + Σ_g (t_g(kept) − t_g(all))`. The result is timed
//! against the original, and the budget is corrected by the error of the prediction.
//!
//! Times are minima over many short runs: other load on the machine only adds time.

use super::{
    PruneScope,
    curves::{Choices, multiples},
    search::{Candidate, PruneSearch, RepairEffort},
};
use crate::{
    analysis::{
        calibration::segment,
        groups::cost::{CostModel, CostTable},
    },
    framework::{Context, PassError, Tools},
    transforms::channels::{allocate::Allocation, local_repair::LocalRepair},
};
use pare_graph::{
    EvaluateError, Fact, Model, Run, Setting, Tensor, ValueId,
    evaluate::stopwatch::{Estimator, Stopwatch},
    ops::Bindings,
};
use std::collections::BTreeMap;

/// Candidate steps: block sizes of engine kernels.
const STEPS: [usize; 5] = [32, 16, 8, 4, 2];
/// Rounding up to a step is free if it increases the time by at most this share on average.
const TOLERANCE: f64 = 0.02;
/// Number of widths that are timed to measure the step, up to a multiple of the largest candidate.
const PROBED: usize = 32;
/// Number of rounds, and seconds of each model in a round.
const ROUNDS: usize = 20;
const TURN: f64 = 2e-3;
/// Maximum number of corrections of the budget.
const CORRECTIONS: usize = 5;
/// Accepted distance below the target, as a share of the original's latency.
const MARGIN: f64 = 0.015;

/// A model that is timed.
struct TimedModel {
    run: Box<dyn Run>,
    feeds: Vec<(String, Tensor)>,
}

impl TimedModel {
    fn new(tools: Tools<'_>, sizes: &Bindings, model: &Model) -> Result<Self, PassError> {
        let engine = tools.engine.ok_or_else(|| PassError::refused("`latency` needs an engine"))?;
        // One thread unless the tools set a number.
        let run = engine.load(model, Setting::DEPLOYED.threads(tools.threads.max(1)))?;
        let given = tools.samples.filter(|s| !s.is_empty()).map(|s| s.batch(0..1)).transpose()?;
        let feed = |&v: &ValueId| {
            let value = model.graph.value(v);
            let shape = value.fact.shape().unwrap_or(&[]).iter();
            let shape: Option<Vec<_>> = shape.map(|dim| usize::try_from(sizes.size(dim)?).ok()).collect();
            let shape =
                shape.filter(|_| value.fact.shape().is_some()).ok_or_else(|| unknown_shape(&value.name))?;
            let sample =
                given.iter().flatten().find(|(name, x)| *name == value.name && *x.shape() == shape[..]);
            let random = || random_input(&value.fact, &shape).ok_or_else(|| unknown_shape(&value.name));
            Ok((value.name.clone(), sample.map_or_else(random, |(_, x)| Ok(x.clone()))?))
        };
        let inputs = model.graph.inputs().iter().filter(|&&v| model.graph.value(v).data.is_none());
        let feeds = inputs.map(feed).collect::<Result<_, PassError>>()?;
        Ok(Self { run, feeds })
    }

    fn time(&mut self, runs: usize) -> Result<Vec<f64>, EvaluateError> {
        let feeds: Vec<_> = self.feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        self.run.time(&feeds, runs)
    }
}

fn unknown_shape(name: &str) -> PassError {
    PassError::refused(format!("`latency` cannot be measured: the shape of `{name}` is not known"))
}

/// Returns a random tensor of one sample. Zeros and denormals could be faster or slower than other numbers.
fn random_input(fact: &Fact, shape: &[usize]) -> Option<Tensor> {
    let dtype = fact.dtype()?;
    let count: usize = shape.iter().product();
    let mut rng = fastrand::Rng::with_seed(count as u64);
    let value = |_| if dtype.is_float() { rng.f64() - 0.5 } else { 0.0 };
    Tensor::from_f64(dtype, shape, &(0..count).map(value).collect::<Vec<_>>()).ok()
}

/// Returns the minimum latency of each model in seconds, measured in interleaved rounds.
fn latencies(tools: Tools<'_>, sizes: &Bindings, models: &[Model]) -> Result<Vec<f64>, PassError> {
    let mut timed = models.iter().map(|m| TimedModel::new(tools, sizes, m)).collect::<Result<Vec<_>, _>>()?;
    let estimator = Estimator::Minimum;
    let stopwatch = Stopwatch { warm_up: 2, estimator, ..Stopwatch::rounds(ROUNDS, TURN, 1..=10_000) };
    let timings = stopwatch.measure(&mut timed, TimedModel::time)?;
    Ok(timings.seconds.iter().map(|spread| spread.min).collect())
}

/// Measured latency by width.
struct Timetable {
    cost: CostModel,
    choices: Choices,
}

impl PruneSearch<'_> {
    /// Builds the candidate that keeps a share of the original's latency.
    pub fn reach_latency(&mut self, share: f64, cx: &mut Context<'_>) -> Result<Candidate, PassError> {
        let step = self.channel_step(cx)?;
        cx.detail("channel step", step as f64);
        let Timetable { cost, choices } = self.timetable(step, cx)?;
        let total = cost.at(&|_| 0);
        let curves = match self.scope {
            PruneScope::Global => self.measured_curves(Some(&choices), cx)?,
            PruneScope::Uniform => self.flat_curves(Some(&choices)),
        };
        let mut budget = share * total;
        let mut reached: Option<(f64, Allocation)> = None;
        let mut least = f64::INFINITY;
        for i in 0..CORRECTIONS {
            cx.tools.progress.step("latency", i as u64, CORRECTIONS as u64);
            let allocation = match self.allocate(&cost, &curves, budget) {
                Ok(allocation) => allocation,
                // A corrected budget may be below the least predicted latency; an earlier result may still
                // do.
                Err(error) if i == 0 => return Err(error),
                Err(_) => break,
            };
            let candidate = self.cut(&self.keep(&allocation), LocalRepair::None)?;
            let times = latencies(cx.tools, &self.sizes, &[self.unprepared.clone(), candidate])?;
            let ratio = times[1] / times[0];
            least = least.min(ratio);
            if ratio <= share {
                if reached.as_ref().is_none_or(|(best, _)| ratio > *best) {
                    reached = Some((ratio, allocation));
                }
                if ratio >= share - MARGIN {
                    break;
                }
            }
            budget += (share - MARGIN / 2.0 - ratio) * total;
        }
        cx.tools.progress.step("latency", CORRECTIONS as u64, CORRECTIONS as u64);
        let Some((ratio, allocation)) = reached else {
            return Err(PassError::refused_with(
                format!("`latency={share}` was not reached: at least {least:.3} of the latency remains"),
                self.options.hint(),
            ));
        };
        cx.share("latency", ratio);
        self.build(&allocation, RepairEffort::Full, cx)
    }

    /// Returns the segment of the model around a group that keeps `kept` units.
    fn segment(&self, group: usize, kept: usize) -> Result<Model, PassError> {
        let boundary = self.subject.model.graph.boundary(&self.changed_nodes(group));
        let mut model = self.cut(&self.keep(&[(group, kept)].into()), LocalRepair::None)?;
        model.infer()?;
        // The inputs of the segment keep their inferred types: declared types may lack symbolic sizes.
        Ok(segment(&model, &boundary.inputs, &boundary.outputs).map_err(EvaluateError::from_error)?)
    }

    /// Measures the channel step: the largest step to which the widths of the widest group can be rounded up
    /// for free.
    fn channel_step(&self, cx: &Context<'_>) -> Result<usize, PassError> {
        let Some(&widest) = self.subject.selected.iter().max_by_key(|g| self.width(**g)) else {
            return Ok(1);
        };
        let top = self.width(widest) / PROBED * PROBED;
        if top == 0 {
            return Ok(1);
        }
        let widths: Vec<_> = (top - PROBED + 1..=top).collect();
        let segments = widths.iter().map(|&k| self.segment(widest, k)).collect::<Result<Vec<_>, _>>()?;
        let times = latencies(cx.tools, &self.sizes, &segments)?;
        Ok(step_of(&widths, &times))
    }

    /// Measures the latency of each group at its useful widths.
    fn timetable(&self, step: usize, cx: &mut Context<'_>) -> Result<Timetable, PassError> {
        let (mut tables, mut choices) = (BTreeMap::new(), BTreeMap::new());
        let total = self.subject.selected.len() as u64;
        for (i, &group) in self.subject.selected.iter().enumerate() {
            cx.tools.progress.step("timing", i as u64, total);
            let (width, least) = (self.width(group), self.min_kept(group));
            let multiple = self.options.multiple;
            let every = step.max(1).div_ceil(multiple) * multiple;
            let mut widths = multiples(width, every, least);
            // Within the first step the time may still decrease: partial blocks can be cheaper.
            let fine = multiples(width.min(every), (every / 4).max(1).div_ceil(multiple) * multiple, least);
            widths.extend(fine);
            widths.sort_unstable();
            widths.dedup();
            // At most 24 widths of each group are timed.
            let stride = widths.len().div_ceil(24);
            let mut widths: Vec<_> = widths.into_iter().rev().step_by(stride).collect();
            widths.reverse();
            let segments = widths.iter().map(|&k| self.segment(group, k)).collect::<Result<Vec<_>, _>>()?;
            let times = latencies(cx.tools, &self.sizes, &segments)?;
            let table = worthwhile(&widths, &times);
            choices.insert(group, table.keys().copied().collect());
            tables.insert(group, CostTable { width, costs: table });
        }
        cx.tools.progress.step("timing", total, total);
        let original = latencies(cx.tools, &self.sizes, std::slice::from_ref(self.unprepared))?;
        Ok(Timetable { cost: CostModel::tables(original[0], &tables), choices })
    }
}

/// Returns the largest step for which rounding widths up to a multiple is free.
fn step_of(widths: &[usize], times: &[f64]) -> usize {
    let time = |w: usize| widths.iter().position(|k| *k == w).map(|i| times[i]);
    let free = |step: &usize| {
        let ratios: Vec<_> =
            widths.iter().zip(times).filter_map(|(w, t)| Some(time(w.div_ceil(*step) * step)? / t)).collect();
        !ratios.is_empty() && ratios.iter().sum::<f64>() / ratios.len() as f64 <= 1.0 + TOLERANCE
    };
    STEPS.into_iter().find(free).unwrap_or(1)
}

/// Returns the widths that are faster than all larger ones, with their times.
fn worthwhile(widths: &[usize], times: &[f64]) -> BTreeMap<usize, f64> {
    let mut table = BTreeMap::new();
    let mut best = f64::INFINITY;
    for (&w, &t) in widths.iter().zip(times).rev() {
        if t < best * (1.0 - TOLERANCE / 2.0) {
            table.insert(w, t);
            best = t;
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_step_at_which_time_increases() {
        for step in [4, 8, 16] {
            let widths: Vec<_> = (33..=64).collect();
            let times: Vec<_> =
                widths.iter().map(|w: &usize| (w.div_ceil(step) * step) as f64 + 20.0).collect();
            assert_eq!(step_of(&widths, &times), step);
        }
    }

    #[test]
    fn drops_widths_that_save_no_time() {
        let table = worthwhile(&[8, 12, 16, 24, 32], &[0.9, 1.2, 1.0, 1.5, 1.4]);
        assert_eq!(table.keys().copied().collect::<Vec<_>>(), [8, 16, 32]);
    }
}
