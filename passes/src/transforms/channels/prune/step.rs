//! Channel steps: the numbers of units that the engine's kernels compute without waste.
//!
//! Engines compute channels in blocks, so latency is a step function of the width; beside the blocks a slower
//! kernel may be chosen. The step of each kind of operator is measured on the group of that kind with the most
//! multiply-accumulates, as the largest number to which widths of few blocks can be rounded up for free. Groups
//! of only a few steps may keep other numbers where those are measured to be faster. Groups of equal shape are
//! timed once.
//!
//! A target that these numbers cannot reach is met with numbers that are at least not slower, then with half of the
//! step, a quarter, and so on. A result that is slower than the original is searched for once more, with more
//! measurements, and then refused.

use super::{
    Multiple,
    curves::{Choices, least_measured, multiples},
    search::PruneSearch,
};
use crate::{
    analysis::{
        calibration::segment,
        groups::cost::{CostModel, CostTable},
        timing::{has_known_sizes, inverse, latencies, ratios},
    },
    framework::{Context, PassError, Tools},
    transforms::channels::local_repair::LocalRepair,
};
use pare_graph::{EvaluateError, Model, NodeId, evaluate::stopwatch::Spread, ops::Trait};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

/// Candidate steps: block sizes of engine kernels.
const STEPS: [usize; 5] = [32, 16, 8, 4, 2];
/// Rounding up to a step is free if it increases the time by at most this share on average.
const TOLERANCE: f64 = 0.02;
/// A width is faster than larger ones if it saves this share of their time, and not slower if it takes at most this
/// share longer: what measurements under load vary by, and far below what a slower kernel costs.
const FASTER: f64 = -0.01;
const NOT_SLOWER: f64 = 0.05;
/// Widest group part that is timed to measure the step, and the least width: rounding up matters less the more
/// steps there are, and of one step nothing can be kept.
const PROBED: usize = 64;
const LEAST_PROBED: usize = 32;
/// Measurements of a segment after a slower result, each loaded again: the same segment may differ by its place in
/// memory, by more than widths differ.
const LOADS: usize = 4;
/// Number of steps below which a group has few choices.
const FEW: usize = 4;
/// Most widths of a group that are timed.
const MAX_TIMED: usize = 24;
/// The figure of a target that whole steps do not reach.
const SHARE_OF_STEP: &str = "share of the step";

/// The operators whose kernels compute the units of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelKind {
    kernel: Kernel,
    quantized: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kernel {
    MatrixProduct,
    Convolution,
    DepthwiseConvolution,
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.quantized { "quantized " } else { "" })?;
        f.write_str(match self.kernel {
            Kernel::MatrixProduct => "matrix products",
            Kernel::Convolution => "dense convolutions",
            Kernel::DepthwiseConvolution => "depthwise convolutions",
        })
    }
}

impl KernelKind {
    /// Returns the step where it cannot be measured: the block of common kernels on x86-64.
    fn default_step(self) -> usize {
        match self.kernel {
            Kernel::Convolution => 16,
            Kernel::DepthwiseConvolution | Kernel::MatrixProduct => 8,
        }
    }
}

/// The channel step of each kind of operator.
pub type ChannelSteps = BTreeMap<KernelKind, usize>;

/// Measured latencies of groups.
pub struct GroupTimes {
    /// Times that each segment is measured.
    loads: usize,
    /// By shape and numbers of kept units.
    known: RefCell<HashMap<(String, Vec<usize>), Vec<f64>>>,
}

impl GroupTimes {
    pub fn new() -> Self {
        Self { loads: 1, known: RefCell::default() }
    }
}

impl PruneSearch<'_> {
    /// Returns the kind of the operators that produce, pass on or read the units of a group.
    fn kernel_kind(&self, group: usize) -> KernelKind {
        let groups = &self.subject.groups;
        let mut kind = KernelKind { kernel: Kernel::MatrixProduct, quantized: false };
        for role in &self.subject.roles {
            let (outputs, inputs) = role.linear.weight_axes();
            let touches = |axis| groups.groups_along(role.site, axis).contains(&group);
            if !(touches(outputs) || touches(inputs)) {
                continue;
            }
            kind.quantized |= role.linear.is_quantized();
            let kernel = match &*self.subject.model.graph.node(role.node).op {
                "Conv" if role.passes_on(groups) => Kernel::DepthwiseConvolution,
                "Conv" => Kernel::Convolution,
                _ => Kernel::MatrixProduct,
            };
            kind.kernel = kind.kernel.max(kernel);
        }
        kind
    }

    /// Returns the number of channels of each unit.
    fn channels_per_unit(&self, group: usize) -> usize {
        let members = &self.subject.groups.groups[group].members;
        members.iter().map(|m| m.per_unit).min().unwrap_or(1).max(1)
    }

    /// Returns the step of a group in units.
    pub fn step(&self, group: usize) -> usize {
        let channels = self.steps.get(&self.kernel_kind(group)).copied().unwrap_or(1);
        channels / gcd(channels, self.channels_per_unit(group))
    }

    /// Determines and reports the step of each kind of operator that has none yet.
    ///
    /// # Errors
    /// If a step `must` be measured and cannot be.
    pub fn determine_steps(&mut self, must: bool, cx: &mut Context<'_>) -> Result<(), PassError> {
        let macs = self.macs();
        let cost = |group| if self.width(group) < LEAST_PROBED { 0.0 } else { macs.of(group).at(&|_| 0) };
        let mut largest = BTreeMap::new();
        for &group in &self.subject.selection.groups {
            let best = largest.entry(self.kernel_kind(group)).or_insert(group);
            if cost(group) > cost(*best) {
                *best = group;
            }
        }
        for (kind, group) in largest {
            if self.steps.contains_key(&kind) {
                continue;
            }
            let (measured, fallback) = if must {
                (self.measured_step(group, cx)?, 1)
            } else if self.is_timed(cx.tools) {
                // A segment that the engine does not run has the step of common kernels.
                (self.measured_step(group, cx).unwrap_or(None), kind.default_step())
            } else {
                (None, kind.default_step())
            };
            let measured = measured.map(|units| units * self.channels_per_unit(group));
            // Noise makes steps look smaller. Where that led to a slower result, kernels have at least common blocks.
            let least = if self.times.loads > 1 { kind.default_step() } else { 1 };
            let channels = measured.map_or(fallback, |channels| channels.max(least));
            cx.figure(format!("step of {kind}"), channels as f64);
            self.steps.insert(kind, channels);
        }
        Ok(())
    }

    /// Returns whether latency can be measured.
    fn is_timed(&self, tools: Tools<'_>) -> bool {
        tools.engine.is_some() && has_known_sizes(&self.original.graph, &self.sizes)
    }

    /// Measures the step of a group in units; `None` if it is too narrow.
    fn measured_step(&self, group: usize, cx: &Context<'_>) -> Result<Option<usize>, PassError> {
        let top = self.width(group).min(PROBED) / LEAST_PROBED * LEAST_PROBED;
        if top == 0 {
            return Ok(None);
        }
        // Each candidate step up to half of the width divides both ends.
        let widths: Vec<_> = (top / 2 + 1..=top).collect();
        let segments = self.segments(group, &widths)?;
        let measure = || latencies(cx.tools, &self.sizes, &segments.iter().collect::<Vec<_>>());
        Ok(Some(step_of(&widths, &[measure()?, measure()?])))
    }

    /// Returns the latencies of the segment of the model around a group that keeps these numbers of units.
    fn times(&self, group: usize, widths: &[usize], tools: Tools<'_>) -> Result<Vec<f64>, PassError> {
        let key = (self.shape(group), widths.to_vec());
        if let Some(known) = self.times.known.borrow().get(&key) {
            return Ok(known.clone());
        }
        let segments = self.segments(group, widths)?;
        let segments: Vec<_> = segments.iter().collect();
        let mut times = latencies(tools, &self.sizes, &segments)?;
        for _ in 1..self.times.loads {
            let again = latencies(tools, &self.sizes, &segments)?;
            times.iter_mut().zip(again).for_each(|(time, again)| *time = time.min(again));
        }
        self.times.known.borrow_mut().insert(key, times.clone());
        Ok(times)
    }

    /// Returns the nodes that change when the group is pruned, with the linear operators before and after them and
    /// elementwise operators between. Kernels of blocks and others store activations in different layouts, and alone
    /// a kernel would pay for conversions that its neighbors in the model make needless.
    fn timed_nodes(&self, group: usize) -> HashSet<NodeId> {
        let graph = &self.subject.model.graph;
        let linear: HashSet<_> = self.subject.roles.iter().map(|role| role.node).collect();
        let changed = self.changed_nodes(group);
        let producers = |id| graph.operands(id).filter_map(|v| Some(graph.producer(v)?.0)).collect();
        let users = |id| graph.results(id).flat_map(|v| graph.users(v)).map(|(user, _)| user).collect();
        let mut timed = changed.clone();
        for next in [&producers as &dyn Fn(NodeId) -> Vec<NodeId>, &users] {
            let mut pending: Vec<_> = changed.iter().copied().collect();
            while let Some(id) = pending.pop() {
                for id in next(id) {
                    let elementwise = graph.at(id).has(Trait::Elementwise);
                    let is_timed = elementwise || linear.contains(&id);
                    if is_timed && timed.insert(id) && elementwise {
                        pending.push(id);
                    }
                }
            }
        }
        timed
    }

    /// Returns the timed operators around a group: which of them change, and the types and shapes of what they read
    /// and compute.
    fn shape(&self, group: usize) -> String {
        let graph = &self.subject.model.graph;
        let (timed, changed) = (self.timed_nodes(group), self.changed_nodes(group));
        let describe = |&id: &NodeId| {
            let values = graph.operands(id).chain(graph.results(id));
            let facts: Vec<_> = values.map(|v| &graph.value(v).fact).collect();
            format!("{} {} {facts:?}", graph.node(id).op, changed.contains(&id))
        };
        let order = graph.nodes();
        order.iter().filter(|id| timed.contains(id)).map(describe).collect::<Vec<_>>().join("; ")
    }

    /// Returns the segment of the model around a group for each number of kept units.
    fn segments(&self, group: usize, widths: &[usize]) -> Result<Vec<Model>, PassError> {
        widths.iter().map(|&kept| self.segment(group, kept)).collect()
    }

    /// Returns the segment of the model around a group that keeps `kept` units.
    fn segment(&self, group: usize, kept: usize) -> Result<Model, PassError> {
        let boundary = self.subject.model.graph.boundary(&self.timed_nodes(group));
        let mut model = self.cut(&self.keep(&[(group, kept)].into()), LocalRepair::None)?;
        model.infer()?;
        // The inputs of the segment keep their inferred types: declared types may lack symbolic sizes.
        Ok(segment(&model, &boundary.inputs, &boundary.outputs).map_err(EvaluateError::from_error)?)
    }

    /// Returns the measured latencies of a group at the multiples of `step`, and at quarters of the first
    /// step, where the time may still decrease: partial blocks can be cheaper.
    pub fn timetable_of(&self, group: usize, step: usize, tools: Tools<'_>) -> Result<CostTable, PassError> {
        let (width, least) = (self.width(group), self.min_kept(group));
        let mut widths = multiples(width, step, least);
        widths.extend(multiples(width.min(step), step.div_ceil(4), least));
        widths.sort_unstable();
        widths.dedup();
        let stride = widths.len().div_ceil(MAX_TIMED);
        let mut widths: Vec<_> = widths.into_iter().rev().step_by(stride).collect();
        widths.reverse();
        let times = self.times(group, &widths, tools)?;
        Ok(CostTable { width, costs: worthwhile(&widths, &times, FASTER) })
    }

    /// Returns the permitted numbers of kept units of each selected group: multiples of `multiple`, or of the
    /// engine's step over `divisor`; of a group of few steps also others that take up to `slack` longer than larger
    /// ones.
    fn choices(&self, divisor: usize, slack: f64, tools: Tools<'_>) -> Choices {
        let of_group = |&group: &usize| {
            let (width, least) = (self.width(group), self.min_kept(group));
            let choices = match self.options.multiple {
                Multiple::Of(units) => multiples(width, units, least),
                Multiple::Auto => {
                    let step = self.step(group);
                    let mut choices = multiples(width, (step / divisor).max(1), least);
                    if width < FEW * step {
                        choices.extend(self.finer(group, step, slack, tools));
                        choices.sort_unstable();
                        choices.dedup();
                    }
                    choices
                }
            };
            (group, choices)
        };
        self.subject.selection.groups.iter().map(of_group).collect()
    }

    /// Returns further numbers of units that a group of few steps may keep: those that are measured to take up to
    /// `slack` longer than all larger ones, or multiples of a step that divides the group.
    fn finer(&self, group: usize, step: usize, slack: f64, tools: Tools<'_>) -> Vec<usize> {
        let (width, least) = (self.width(group), self.min_kept(group));
        if self.is_timed(tools) {
            let widths = multiples(width, step.div_ceil(FEW), least);
            // A segment that cannot be timed has no faster widths.
            let times = self.times(group, &widths, tools);
            return times.map_or_else(|_| vec![], |t| worthwhile(&widths, &t, slack).into_keys().collect());
        }
        let mut finer = step;
        while finer > 1 && width < 2 * finer {
            finer /= 2;
        }
        multiples(width, finer, least)
    }

    /// Returns the choices of the largest step with which `reaches` accepts the smallest numbers of units that
    /// groups can keep.
    pub fn choices_that(
        &mut self,
        reaches: impl Fn(&Self, &Choices) -> bool,
        cx: &mut Context<'_>,
    ) -> Result<Choices, PassError> {
        if self.options.multiple != Multiple::Auto {
            return Ok(self.choices(1, FASTER, cx.tools));
        }
        self.determine_steps(false, cx)?;
        let largest = self.subject.selection.groups.iter().map(|&g| self.step(g)).max().unwrap_or(1);
        // The whole step, numbers that are not slower, and the step over 2, 4, and so on, down to single units.
        let halved = (1..=largest.ilog2()).map(|i| (1 << i, NOT_SLOWER, Some(1 << i)));
        let attempts = [(1, FASTER, None), (1, NOT_SLOWER, Some(FEW))].into_iter().chain(halved);
        let mut choices = Choices::new();
        for (divisor, slack, parts) in attempts {
            choices = self.choices(divisor, slack, cx.tools);
            match parts {
                None => cx.retract(SHARE_OF_STEP),
                Some(parts) => cx.figure(SHARE_OF_STEP, 1.0 / parts as f64),
            }
            if reaches(self, &choices) {
                break;
            }
        }
        Ok(choices)
    }

    /// Returns the choices with which a cost is within the budget.
    pub fn choices_within(
        &mut self,
        cost: &CostModel,
        budget: f64,
        cx: &mut Context<'_>,
    ) -> Result<Choices, PassError> {
        let reaches = |search: &Self, choices: &Choices| {
            let least =
                |g| choices.get(&g).map_or(0, |c| search.width(g) - least_measured(search.width(g), c));
            cost.at(&least) <= budget
        };
        self.choices_that(reaches, cx)
    }

    /// Starts over from the original, with more measurements of each segment. Returns whether there are more.
    pub fn remeasure(&mut self, cx: &mut Context<'_>) -> Result<bool, PassError> {
        if self.times.loads == LOADS {
            return Ok(false);
        }
        self.times = GroupTimes { loads: LOADS, ..GroupTimes::new() };
        self.steps.clear();
        self.restart(cx)?;
        Ok(true)
    }

    /// Checks that a candidate is not slower than the original. Without an engine, or with a given `multiple`,
    /// any candidate passes.
    ///
    /// # Errors
    /// If the candidate is slower beyond noise, with the ratio of the times.
    pub fn check_speed(&mut self, candidate: &Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.options.multiple != Multiple::Auto || !self.is_timed(cx.tools) {
            return Ok(());
        }
        let is_slower = |latency: &Spread| latency.low > 1.0 && latency.median > 1.0 + TOLERANCE;
        let mut latency = ratios(cx.tools, &self.sizes, &[self.unprepared, candidate])?[1];
        if is_slower(&latency) {
            // The same model, loaded twice, may differ by its place in memory. These are loaded in the other order.
            let again = inverse(&ratios(cx.tools, &self.sizes, &[candidate, self.unprepared])?[1]);
            if again.median < latency.median {
                latency = again;
            }
        }
        cx.detail("latency", latency.median);
        self.is_slower = is_slower(&latency);
        if self.is_slower {
            return Err(PassError::refused_with(
                format!("the result takes {:.2} times as long as the original", latency.median),
                "use a target of `latency`, or `multiple=1` if fewer multiply-accumulates are the aim",
            ));
        }
        Ok(())
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Returns the largest step for which rounding widths up to a multiple is free, beside the fastest width that
/// is not smaller. The widths are consecutive and end at a multiple of every step that is considered: those of at
/// most their number.
///
/// The width that is the fastest by one measurement is judged by the other: the minimum of noisy times is less than
/// the time of any width, and beside it every step would cost something.
fn step_of(widths: &[usize], measurements: &[Vec<f64>; 2]) -> usize {
    let [a, b] = measurements;
    let ratio_of = |w: usize, i: usize, chosen_by: &[f64], judged_by: &[f64]| {
        let fastest = (i..widths.len()).min_by(|&i, &j| chosen_by[i].total_cmp(&chosen_by[j]))?;
        Some(judged_by[widths.iter().position(|k| *k == w)?] / judged_by[fastest])
    };
    let free = |step: &usize| {
        let ratio = |(i, w): (usize, &usize)| {
            let rounded = w.div_ceil(*step) * step;
            Some(f64::midpoint(ratio_of(rounded, i, a, b)?, ratio_of(rounded, i, b, a)?))
        };
        let ratios: Vec<_> = widths.iter().enumerate().filter_map(ratio).collect();
        !ratios.is_empty() && ratios.iter().sum::<f64>() / ratios.len() as f64 <= 1.0 + TOLERANCE
    };
    STEPS.into_iter().filter(|step| *step <= widths.len()).find(free).unwrap_or(1)
}

/// Returns the widths that take up to `slack` longer than all larger ones, with their times.
fn worthwhile(widths: &[usize], times: &[f64], slack: f64) -> BTreeMap<usize, f64> {
    let mut table = BTreeMap::new();
    let mut best = f64::INFINITY;
    for (&w, &t) in widths.iter().zip(times).rev() {
        if t < best * (1.0 + slack) {
            table.insert(w, t);
            best = best.min(t);
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
            assert_eq!(step_of(&widths, &[times.clone(), times.clone()]), step);
            // Partial blocks that are slower than the next larger block do not count.
            let slow = |(w, t): (&usize, &f64)| if w % step == 0 { *t } else { 5.0 * t };
            let times: Vec<_> = widths.iter().zip(&times).map(slow).collect();
            assert_eq!(step_of(&widths, &[times.clone(), times]), step);
        }
    }

    /// Times of blocks of 16 that other load changes by up to 2 %.
    #[test]
    fn noise_does_not_make_the_step_smaller() {
        let widths: Vec<_> = (33..=64).collect();
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut measure = || -> Vec<f64> {
                let noisy = |w: &usize| (w.div_ceil(16) * 16) as f64 * (0.98 + 0.04 * random.f64());
                widths.iter().map(noisy).collect()
            };
            let step = step_of(&widths, &[measure(), measure()]);
            assert!(step >= 16, "{step} with seed {seed}");
        }
    }

    #[test]
    fn drops_widths_that_save_no_time() {
        let kept = |slack| {
            let table = worthwhile(&[4, 8, 12, 16, 24, 32], &[0.9, 0.9, 1.2, 1.0, 1.5, 1.4], slack);
            table.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(kept(FASTER), [8, 16, 32]);
        assert_eq!(kept(NOT_SLOWER), [4, 8, 16, 32]);
    }
}
