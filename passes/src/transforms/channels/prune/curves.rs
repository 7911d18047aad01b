//! Loss curves: the drift of the outputs when one group alone is pruned.

use super::search::PruneSearch;
use crate::{
    analysis::{evaluation::HeldOut, groups::Site},
    framework::{Context, PassError},
    transforms::channels::{allocate::LossCurve, local_repair::DampedInverses},
};
use pare_graph::NodeId;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::Range,
};

/// Levels of a curve: eighths of the width.
const LEVELS: usize = 8;
/// Multiply-accumulates spent on all curves together, in addition to `BUDGET_RUNS` runs of the model over all
/// samples.
const BUDGET: f64 = 4e11;
const BUDGET_RUNS: f64 = 0.5;
/// Number of samples that are run even beyond the budget.
const MIN_SAMPLES: usize = 16;

/// The permitted numbers of kept units of each group, ascending.
pub type Choices = BTreeMap<usize, Vec<usize>>;

impl PruneSearch<'_> {
    /// Returns curves without measurement, for uniform allocation: the share of the importance of all units that
    /// the removed units have.
    pub fn estimated_curves(&self, choices: &Choices) -> Vec<LossCurve> {
        let curve = |&group: &usize| {
            let (width, choices) = (self.width(group), choices.get(&group).cloned().unwrap_or_default());
            let sums = self.subject.orders.get(&group).map_or(&[][..], |order| &order.loss);
            let total = sums.last().copied().filter(|t| t.is_finite() && *t > 0.0);
            let share = |kept: usize| match (sums.get(width - kept), total) {
                (Some(removed), Some(total)) => removed / total,
                _ => 1.0 - kept as f64 / width as f64,
            };
            let losses = choices.iter().map(|&kept| (kept, share(kept))).collect();
            LossCurve { group, width, losses, choices }
        };
        self.subject.selection.groups.iter().map(curve).collect()
    }

    /// Measures the drift when each group alone is pruned to each level, less the drift of the current model.
    pub fn measured_curves(
        &self,
        choices: &Choices,
        cx: &mut Context<'_>,
    ) -> Result<Vec<LossCurve>, PassError> {
        let subject = &self.subject;
        let held_out = HeldOut::new(cx.tools, &self.original, self.samples_for_curves())?;
        let base = if subject.is_original() { 0.0 } else { held_out.drift(&subject.model)? };
        let (mut curves, inverses) = (vec![], DampedInverses::default());
        for (i, &group) in subject.selection.groups.iter().enumerate() {
            cx.tools.progress.step("curves", i as u64, subject.selection.groups.len() as u64);
            let width = self.width(group);
            let choices = choices.get(&group).cloned().unwrap_or_default();
            let mut curve = LossCurve { group, width, losses: BTreeMap::from([(width, 0.0)]), choices };
            let start = held_out.prefix(&subject.model, &self.changed_nodes(group))?;
            for kept in levels(width, &curve.choices) {
                let keep = self.keep(&[(group, kept)].into());
                let changed = self.cut_sharing(Some(&inverses), &keep, self.local_repair())?;
                curve.losses.insert(kept, (held_out.drift_from(&start, &changed)? - base).max(0.0));
            }
            // The loss cannot increase with the number of kept units; where it does in a measurement, that is
            // noise.
            let mut least = f64::INFINITY;
            for loss in curve.losses.values_mut() {
                least = least.min(*loss);
                *loss = least;
            }
            // Only measured widths and those above are permitted.
            let measured = curve.losses.keys().next().copied().unwrap_or(width);
            curve.choices.retain(|&kept| kept >= measured);
            curves.push(curve);
        }
        cx.tools.progress.step("curves", curves.len() as u64, curves.len() as u64);
        Ok(curves)
    }

    /// Returns the held-out samples for curves; fewer for large models.
    fn samples_for_curves(&self) -> Range<usize> {
        let macs = self.macs().at(&|_| 0);
        let all = macs * (self.split.fit.len() + self.split.held_out.len()) as f64;
        // Runs start at the pruned group, so they take half of the model on average.
        let each = macs / 2.0 * (LEVELS * self.subject.selection.groups.len()) as f64;
        let count = ((BUDGET + BUDGET_RUNS * all) / each.max(1.0)) as usize;
        let count = count.clamp(MIN_SAMPLES.min(self.split.held_out.len()), self.split.held_out.len());
        self.split.held_out.start..self.split.held_out.start + count
    }

    /// Returns the nodes whose weights change when the group is pruned.
    pub fn changed_nodes(&self, group: usize) -> HashSet<NodeId> {
        let graph = &self.subject.model.graph;
        let mut nodes = HashSet::new();
        for member in &self.subject.groups.groups[group].members {
            match member.site {
                Site::Use(node, _) => drop(nodes.insert(node)),
                Site::Value(value) => {
                    nodes.extend(graph.producer(value).map(|(node, _)| node));
                    nodes.extend(graph.users(value).into_iter().map(|(node, _)| node));
                }
            }
        }
        nodes
    }
}

/// Returns the choices at which a curve is measured: about eight, evenly spaced.
fn levels(width: usize, choices: &[usize]) -> Vec<usize> {
    let nearest = |eighth: usize| {
        let wanted = (width * eighth).div_ceil(LEVELS);
        choices.iter().copied().find(|&kept| kept >= wanted)
    };
    let mut levels: BTreeSet<_> = (1..LEVELS).filter_map(nearest).filter(|&k| k < width).collect();
    // An allocation rarely keeps only an eighth of a group: the last steps lose the most.
    if levels.len() > 3 && levels.first().is_some_and(|&k| k * LEVELS <= width) {
        levels.pop_first();
    }
    levels.into_iter().collect()
}

/// Returns the smallest choice at which a curve is measured.
pub fn least_measured(width: usize, choices: &[usize]) -> usize {
    levels(width, choices).first().copied().unwrap_or(width)
}

/// Returns the multiples of `step` that are at least `least`, and `width`.
pub fn multiples(width: usize, step: usize, least: usize) -> Vec<usize> {
    let mut choices: Vec<_> = (1..=width / step).map(|i| i * step).filter(|&k| k >= least).collect();
    if choices.last() != Some(&width) {
        choices.push(width);
    }
    choices
}
