//! Pruning of dependency groups: options, search, and application.

mod curves;
mod latency;
mod multiple;
mod options;
mod search;
mod select;
mod step;
mod target;
#[cfg(test)]
mod tests;

pub use multiple::Multiple;
pub(in crate::transforms::channels) use options::{PruneOptions, prune_pass, with_prune_options};

use super::importance::Importance;
use crate::{
    analysis::{groups::GroupKind, prepare::prepare},
    framework::{Context, PassError},
};
use pare_graph::Model;
use search::PruneSearch;
use serde::{Deserialize, Serialize};
use target::PruneTarget;

/// The repair of the remaining weights after units were removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneRepair {
    /// No repair.
    None,
    /// Removed units are replaced by their mean, in the biases of the readers.
    Mean,
    /// Every output is scaled and shifted to its mean and variance in the original, as re-estimated batch
    /// norm statistics would do.
    Moments,
    /// Removed units are replaced by their best affine estimate from the kept ones.
    Merge,
    /// Each reader is refitted from statistics of the original.
    Patch,
    /// Each reader in topological order is refitted to reproduce the original's activations.
    Readers,
    /// Each operator in topological order is, or only the readers, whichever is better on held-out samples.
    Sequential,
}

/// The allocation of removed units over groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneScope {
    /// By the effect on the outputs.
    Global,
    /// The same share of each group.
    Uniform,
}

prune_pass! {
    /// Remove channels, and refit the remaining weights.
    ///
    /// Channels that depend on each other through any topology are removed together. Block-OBS on unlabelled
    /// samples orders the units of each group, the drift of the outputs when one group alone is pruned
    /// determines how many units each group loses, and sequential least squares refits the remaining weights.
    /// There is no training.
    ///
    /// The target is one of `macs`, `params`, `ratio` and `latency`. Without a target, as many units are
    /// removed as `max_drift`, `min_agreement` and `max_accuracy_drop` allow, measured on held-out samples.
    /// Without samples, the channels with the smallest weights are removed, the same share of each group, and
    /// nothing is refitted.
    #[pass("prune-channels", Lossy)]
    pub struct PruneChannels {
        /// Also prune residual streams: groups that several layers add to.
        pub streams: bool = false,
    }
    kinds: |pass| {
        const KINDS: &[GroupKind] = &[GroupKind::Channels, GroupKind::Heads, GroupKind::Hidden, GroupKind::Stream];
        if pass.streams { KINDS } else { &KINDS[..3] }
    },
    example: "macs=0.5",
}

impl PruneOptions {
    /// Prunes the groups of a model. `example` is the hint for a missing target.
    pub fn prune(&self, model: &mut Model, cx: &mut Context<'_>, example: &str) -> Result<(), PassError> {
        let target = PruneTarget::of(self);
        if target.is_none() && !self.limits().any() {
            return Err(PassError::refused_with("a target is required", example));
        }
        let unprepared = model.clone();
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let mut search = PruneSearch::new(self, &unprepared, model, cx)?;
        let mut pruned = search.find(target, cx);
        if search.is_slower && search.remeasure(cx)? {
            pruned = search.find(target, cx);
        }
        let pruned = pruned?;
        if cx.permit() {
            *model = pruned;
        }
        Ok(())
    }
}
