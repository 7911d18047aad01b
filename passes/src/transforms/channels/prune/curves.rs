//! What each group loses when it alone is cut.

use super::work::Work;
use crate::{
    analysis::{
        evaluation::HeldOut,
        groups::{Site, cost::CostModel},
    },
    framework::{Context, PassError},
    transforms::channels::allocate::Curve,
};
use pare_graph::NodeId;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Levels of a curve: eighths of the width.
const LEVELS: usize = 8;
/// Multiply-accumulates that all curves together may take, and in runs of the model over the samples: more samples are
/// looked at than these allow only up to the least.
const EFFORT: f64 = 4e11;
const EFFORT_RUNS: f64 = 0.5;
const LEAST_SAMPLES: usize = 16;

/// What groups may keep, ascending.
pub type Choices = BTreeMap<usize, Vec<usize>>;

impl Work<'_> {
    /// Curves that know nothing of losses: for sharing out evenly.
    pub fn flat(&self, choices: Option<&Choices>) -> Vec<Curve> {
        let flat = |&group: &usize| {
            let (width, choices) = (self.stage.groups.groups[group].width, self.choices_of(group, choices));
            let least = choices.first().copied().unwrap_or(width);
            Curve { group, width, losses: BTreeMap::from([(least, 1.0), (width, 0.0)]), choices }
        };
        self.stage.chosen.iter().map(flat).collect()
    }

    /// What a group may keep: by default every multiple.
    fn choices_of(&self, group: usize, choices: Option<&Choices>) -> Vec<usize> {
        choices.and_then(|all| all.get(&group).cloned()).unwrap_or_else(|| {
            steps(self.stage.groups.groups[group].width, self.ask.multiple, self.least(group))
        })
    }

    /// The drift when each group alone is cut to each level, beyond what the model has drifted already.
    pub fn curves(&self, choices: Option<&Choices>, cx: &mut Context<'_>) -> Result<Vec<Curve>, PassError> {
        let stage = &self.stage;
        let trial = HeldOut::new(cx.tools, &self.original, self.held_out_for_curves())?;
        let base = if stage.is_first() { 0.0 } else { trial.drift(&stage.model)? };
        let mut curves = vec![];
        for (i, &group) in stage.chosen.iter().enumerate() {
            cx.tools.progress.step("curves", i as u64, stage.chosen.len() as u64);
            let width = stage.groups.groups[group].width;
            let choices = self.choices_of(group, choices);
            let mut curve = Curve { group, width, losses: BTreeMap::from([(width, 0.0)]), choices };
            let start = trial.prefix(&stage.model, &self.touched(group))?;
            for kept in self.levels(group, &curve.choices) {
                let keep = self.keep(&[(group, kept)].into());
                let changed = self.cut(&keep, self.local())?;
                curve.losses.insert(kept, (trial.drift_from(&start, &changed)? - base).max(0.0));
            }
            // Losing more is never better: what a measurement says otherwise is noise.
            let mut least = f64::INFINITY;
            for loss in curve.losses.values_mut() {
                least = least.min(*loss);
                *loss = least;
            }
            // What was not measured is not chosen.
            let measured = curve.losses.keys().next().copied().unwrap_or(width);
            curve.choices.retain(|&kept| kept >= measured);
            curves.push(curve);
        }
        cx.tools.progress.step("curves", curves.len() as u64, curves.len() as u64);
        Ok(curves)
    }

    /// Fewer samples where the model is large.
    fn held_out_for_curves(&self) -> std::ops::Range<usize> {
        let macs = CostModel::macs(&self.stage.model.graph, &self.stage.groups).at(&|_| 0);
        let all = macs * (self.split.fit.len() + self.split.held_out.len()) as f64;
        // Suffixes are half of a model on average.
        let each = macs / 2.0 * (LEVELS * self.stage.chosen.len()) as f64;
        let count = ((EFFORT + EFFORT_RUNS * all) / each.max(1.0)) as usize;
        let count = count.clamp(LEAST_SAMPLES.min(self.split.held_out.len()), self.split.held_out.len());
        self.split.held_out.start..self.split.held_out.start + count
    }

    /// Where a curve is measured: some eight of the choices, evenly.
    pub fn levels(&self, group: usize, choices: &[usize]) -> Vec<usize> {
        let width = self.stage.groups.groups[group].width;
        let nearest = |eighth: usize| {
            let wanted = (width * eighth).div_ceil(LEVELS);
            choices.iter().copied().find(|&kept| kept >= wanted)
        };
        let mut levels: BTreeSet<_> = (1..LEVELS).filter_map(nearest).filter(|&k| k < width).collect();
        // Down to an eighth a curve says little: the last steps cost most.
        if levels.len() > 3 && levels.first().is_some_and(|&k| k * LEVELS <= width) {
            levels.pop_first();
        }
        levels.into_iter().collect()
    }

    /// Nodes whose weights change when the group is cut.
    pub fn touched(&self, group: usize) -> HashSet<NodeId> {
        let graph = &self.stage.model.graph;
        let mut nodes = HashSet::new();
        for member in &self.stage.groups.groups[group].members {
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

/// What a group may keep: multiples of `step` from `least` on, and all.
pub fn steps(width: usize, step: usize, least: usize) -> Vec<usize> {
    let mut choices: Vec<_> = (1..=width / step).map(|i| i * step).filter(|&k| k >= least).collect();
    if choices.last() != Some(&width) {
        choices.push(width);
    }
    choices
}
