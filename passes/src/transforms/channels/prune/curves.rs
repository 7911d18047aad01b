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
/// The levels of a curve that are measured.
const MEASURED: usize = 3;
/// Multiply-accumulates spent on all curves together, in addition to `BUDGET_RUNS` runs of the model over all
/// samples.
const BUDGET: f64 = 1e11;
const BUDGET_RUNS: f64 = 0.2;
/// Number of samples that are run even beyond the budget.
const MIN_SAMPLES: usize = 32;

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

    /// Measures the drift when each group alone is pruned to some levels, less the drift of the current model. Between
    /// them it is proportional to the squared error of the group's readers: both are quadratic in a small change.
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
            let levels = levels(width, &curve.choices);
            for kept in measured(&levels) {
                let keep = self.keep(&[(group, kept)].into());
                let changed = self.cut_sharing(Some(&inverses), &keep, self.local_repair())?;
                curve.losses.insert(kept, (held_out.drift_from(&start, &changed)? - base).max(0.0));
            }
            let errors = subject.orders.get(&group).map_or(&[][..], |order| &order.loss);
            for kept in levels {
                if let Some(loss) = between(&curve.losses, kept, &|kept| errors.get(width - kept).copied()) {
                    curve.losses.insert(kept, loss);
                }
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
        let each = macs / 2.0 * (MEASURED * self.subject.selection.groups.len()) as f64;
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

/// Returns the levels that are measured: the first, the last, and those at equal distances between them.
fn measured(levels: &[usize]) -> Vec<usize> {
    let Some(last) = levels.len().checked_sub(1) else { return vec![] };
    let mut at: Vec<_> = (0..MEASURED).map(|i| i * last / (MEASURED - 1)).collect();
    at.dedup();
    at.into_iter().map(|i| levels[i]).collect()
}

/// Returns the loss at `kept` units between two measured ones, linear in the error there. `None` without an error, and
/// for a measured number.
fn between(
    measured: &BTreeMap<usize, f64>,
    kept: usize,
    error: &dyn Fn(usize) -> Option<f64>,
) -> Option<f64> {
    let (&less, &high) = measured.range(..kept).next_back()?;
    let (&more, &low) = measured.range(kept..).next().filter(|(more, _)| **more > kept)?;
    let share = (error(kept)? - error(more)?) / (error(less)? - error(more)?);
    (0.0..=1.0).contains(&share).then_some(low + share * (high - low))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_the_ends_and_the_middle() {
        let choices = multiples(64, 8, 8);
        assert_eq!(levels(64, &choices), [16, 24, 32, 40, 48, 56]);
        assert_eq!(measured(&levels(64, &choices)), [16, 32, 56]);
        assert_eq!((measured(&[8, 16]), measured(&[8]), measured(&[])), (vec![8, 16], vec![8], vec![]));
    }

    #[test]
    fn losses_between_measurements_follow_the_error() {
        let losses = BTreeMap::from([(16, 0.9), (32, 0.1), (64, 0.0)]);
        // The error of keeping 24 is three quarters of the way from that of 32 to that of 16.
        let errors = |kept: usize| {
            Some(match kept {
                64 => 0.0,
                48 => 1.0,
                32 => 4.0,
                24 => 10.0,
                _ => 12.0,
            })
        };
        assert_eq!(between(&losses, 24, &errors), Some(0.1 + 0.75 * 0.8));
        assert_eq!(between(&losses, 48, &errors), Some(0.025));
        assert_eq!(between(&losses, 32, &errors), None, "it is measured");
        assert_eq!(between(&losses, 8, &errors), None, "nothing is measured below");
        assert_eq!(between(&losses, 48, &|_| None), None);
        assert_eq!(between(&losses, 48, &|_| Some(1.0)), None, "the errors do not differ");
    }
}
