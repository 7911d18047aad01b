//! A target in time: what each group's layers take at each width, measured in the engine on this machine.
//!
//! Engines compute channels in blocks, so time goes in steps, whatever the multiply-accumulates say. How large the step
//! is gets measured on the widest group; then the piece of the model that each group touches is timed at every
//! step, alone, so that what lies around it cancels out: `t(model, kept) ≈ t(model) + Σ_g (t_g(kept) − t_g(all))`. The
//! result is timed against the original as a whole, and the budget corrected by what the sum did not foresee.
//!
//! The minimum over many short turns is taken: load of the machine only ever adds time.

use super::{
    Scope,
    curves::steps,
    work::{Built, Effort, Work},
};
use crate::{
    analysis::{
        calibration::{segment, size_of},
        groups::cost::{CostModel, CostTable},
    },
    framework::{Context, PassError, Tools},
    transforms::channels::{allocate::Counts, repair::Local},
};
use pare_graph::{
    EvaluateError, Fact, Model, Run, Setting, Tensor, ValueId,
    evaluate::stopwatch::{Estimator, Stopwatch},
};
use std::collections::BTreeMap;

/// Steps that engines may have: the blocks of their kernels.
const STEPS: [usize; 5] = [32, 16, 8, 4, 2];
/// Rounding up to a step is free if it costs no more than this share on average.
const FREE: f64 = 0.02;
/// Widths below a multiple of the largest step that tell how large the step is.
const PROBED: usize = 32;
/// Rounds, and seconds of each contender in a round.
const ROUNDS: usize = 20;
const TURN: f64 = 2e-3;
/// Corrections of the budget.
const CORRECTIONS: usize = 5;
/// A result so much below the target is near enough, as a share of the original's time.
const NEAR: f64 = 0.015;

/// A model that is timed.
struct Contender {
    run: Box<dyn Run>,
    feeds: Vec<(String, Tensor)>,
}

impl Contender {
    fn new(tools: Tools<'_>, model: &Model) -> Result<Self, PassError> {
        let engine = tools.engine.ok_or_else(|| PassError::refused("`latency` needs an engine"))?;
        // One thread unless told otherwise, as `pare bench` has it.
        let run = engine.load(model, Setting::DEPLOYED.threads(tools.threads.max(1)))?;
        let feed = |&v: &ValueId| {
            let value = model.graph.value(v);
            Ok((value.name.clone(), made_up(&value.fact).ok_or_else(|| untimed(&value.name))?))
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

fn untimed(name: &str) -> PassError {
    PassError::refused(format!("`latency` cannot be measured: the shape of `{name}` is not known"))
}

/// A tensor of one sample: neither zeros nor denormals, which may be faster or slower than numbers are.
fn made_up(fact: &Fact) -> Option<Tensor> {
    let shape = fact.shape()?.iter().map(size_of).collect::<Option<Vec<_>>>()?;
    let dtype = fact.dtype()?;
    let count: usize = shape.iter().product();
    let mut rng = fastrand::Rng::with_seed(count as u64);
    let value = |_| if dtype.is_float() { rng.f64() - 0.5 } else { 0.0 };
    Tensor::from_f64(dtype, &shape, &(0..count).map(value).collect::<Vec<_>>()).ok()
}

/// The least seconds that each model takes, in turns.
fn race(tools: Tools<'_>, models: &[Model]) -> Result<Vec<f64>, PassError> {
    let mut contenders = models.iter().map(|m| Contender::new(tools, m)).collect::<Result<Vec<_>, _>>()?;
    let estimator = Estimator::Minimum;
    let stopwatch = Stopwatch { warm_up: 2, estimator, ..Stopwatch::rounds(ROUNDS, TURN, 1..=10_000) };
    let timings = stopwatch.measure(&mut contenders, Contender::time)?;
    Ok(timings.seconds.iter().map(|spread| spread.min).collect())
}

impl Work<'_> {
    /// The model in this share of the original's time.
    pub fn reach_latency(
        &mut self,
        share: f64,
        given: &Model,
        cx: &mut Context<'_>,
    ) -> Result<Built, PassError> {
        let step = self.step(cx)?;
        cx.figure("channel step", step as f64);
        let (cost, choices) = self.timetable(step, given, cx)?;
        let whole = cost.at(&|_| 0);
        let curves = match self.scope {
            Scope::Global => self.curves(Some(&choices), cx)?,
            Scope::Uniform => self.flat(Some(&choices)),
        };
        let mut budget = share * whole;
        let mut reached: Option<(f64, Counts)> = None;
        let mut least = f64::INFINITY;
        for i in 0..CORRECTIONS {
            cx.tools.progress.step("latency", i as u64, CORRECTIONS as u64);
            let counts = match self.share_out(&cost, &curves, budget) {
                Ok(counts) => counts,
                // The measured results are what counts: below the sums' least there may be nothing to share out.
                Err(error) if i == 0 => return Err(error),
                Err(_) => break,
            };
            let candidate = self.cut(&self.keep(&counts), Local::None)?;
            let times = race(cx.tools, &[given.clone(), candidate])?;
            let ratio = times[1] / times[0];
            least = least.min(ratio);
            if ratio <= share {
                let nearer = reached.as_ref().is_none_or(|(best, _)| ratio > *best);
                if nearer {
                    reached = Some((ratio, counts));
                }
                if ratio >= share - NEAR {
                    break;
                }
            }
            // Aim at the middle of what is near enough.
            budget += (share - NEAR / 2.0 - ratio) * whole;
        }
        cx.tools.progress.step("latency", CORRECTIONS as u64, CORRECTIONS as u64);
        let Some((ratio, counts)) = reached else {
            return Err(PassError::refused_with(
                format!("`latency={share}` was not reached: {least:.3} of the time is left at least"),
                self.ask.hint(),
            ));
        };
        cx.figure("latency", ratio);
        let macs = self.macs();
        let kept = crate::transforms::channels::allocate::cost_of(&macs, &curves, &counts) / macs.at(&|_| 0);
        cx.figure("kept", kept);
        let built = self.build(&counts, Effort::Full, cx)?;
        built.drift.into_iter().for_each(|drift| cx.figure("drift", drift));
        Ok(built)
    }

    /// The piece of the model around a group when it keeps so many units.
    fn piece(&self, group: usize, kept: usize) -> Result<Model, PassError> {
        let boundary = self.stage.model.graph.boundary(&self.touched(group));
        let mut model = self.cut(&self.keep(&[(group, kept)].into()), Local::None)?;
        model.infer()?;
        // Its inputs keep what is known of them here; their own declarations know no symbols.
        Ok(segment(&model, &boundary.inputs, &boundary.outputs).map_err(EvaluateError::from_error)?)
    }

    /// The largest step to which rounding up the widths of the widest group costs no time.
    fn step(&self, cx: &Context<'_>) -> Result<usize, PassError> {
        let groups = &self.stage.groups.groups;
        let Some(&widest) = self.stage.chosen.iter().max_by_key(|g| groups[**g].width) else { return Ok(1) };
        let top = groups[widest].width / PROBED * PROBED;
        if top == 0 {
            return Ok(1);
        }
        let widths: Vec<_> = (top - PROBED + 1..=top).collect();
        let pieces = widths.iter().map(|&k| self.piece(widest, k)).collect::<Result<Vec<_>, _>>()?;
        let times = race(cx.tools, &pieces)?;
        Ok(step_of(&widths, &times))
    }

    /// What each group may keep, and the seconds that follow.
    fn timetable(
        &self,
        step: usize,
        given: &Model,
        cx: &mut Context<'_>,
    ) -> Result<(CostModel, BTreeMap<usize, Vec<usize>>), PassError> {
        let (mut tables, mut choices) = (BTreeMap::new(), BTreeMap::new());
        let total = self.stage.chosen.len() as u64;
        for (i, &group) in self.stage.chosen.iter().enumerate() {
            cx.tools.progress.step("timing", i as u64, total);
            let (width, least) = (self.stage.groups.groups[group].width, self.least(group));
            let multiple = self.ask.multiple;
            let every = step.max(1).div_ceil(multiple) * multiple;
            let mut widths = steps(width, every, least);
            // Within the first step time may still fall: blocks that are not full can be cheaper.
            let fine = steps(width.min(every), (every / 4).max(1).div_ceil(multiple) * multiple, least);
            widths.extend(fine);
            widths.sort_unstable();
            widths.dedup();
            // Of very wide groups some dozens will do.
            let stride = widths.len().div_ceil(24);
            let mut widths: Vec<_> = widths.into_iter().rev().step_by(stride).collect();
            widths.reverse();
            let pieces = widths.iter().map(|&k| self.piece(group, k)).collect::<Result<Vec<_>, _>>()?;
            let times = race(cx.tools, &pieces)?;
            let table = worthwhile(&widths, &times);
            choices.insert(group, table.keys().copied().collect());
            tables.insert(group, CostTable { width, costs: table });
        }
        cx.tools.progress.step("timing", total, total);
        let whole = race(cx.tools, std::slice::from_ref(given))?;
        Ok((CostModel::tables(whole[0], &tables), choices))
    }
}

/// The largest step for which the next multiple takes no more time than each width, on average.
fn step_of(widths: &[usize], times: &[f64]) -> usize {
    let time = |w: usize| widths.iter().position(|k| *k == w).map(|i| times[i]);
    let free = |step: &usize| {
        let ratios: Vec<_> =
            widths.iter().zip(times).filter_map(|(w, t)| Some(time(w.div_ceil(*step) * step)? / t)).collect();
        !ratios.is_empty() && ratios.iter().sum::<f64>() / ratios.len() as f64 <= 1.0 + FREE
    };
    STEPS.into_iter().find(free).unwrap_or(1)
}

/// Widths that no larger one is as fast as, with their times.
fn worthwhile(widths: &[usize], times: &[f64]) -> BTreeMap<usize, f64> {
    let mut table = BTreeMap::new();
    let mut best = f64::INFINITY;
    for (&w, &t) in widths.iter().zip(times).rev() {
        if t < best * (1.0 - FREE / 2.0) {
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
    fn the_step_is_where_time_rises() {
        for step in [4, 8, 16] {
            let widths: Vec<_> = (33..=64).collect();
            let times: Vec<_> =
                widths.iter().map(|w: &usize| (w.div_ceil(step) * step) as f64 + 20.0).collect();
            assert_eq!(step_of(&widths, &times), step);
        }
    }

    #[test]
    fn a_width_that_saves_nothing_is_no_choice() {
        let table = worthwhile(&[8, 12, 16, 24, 32], &[0.9, 1.2, 1.0, 1.5, 1.4]);
        assert_eq!(table.keys().copied().collect::<Vec<_>>(), [8, 16, 32]);
    }
}
