//! The pass: what is asked for, and the way there.

mod choose;
mod curves;
mod latency;
mod options;
mod target;
#[cfg(test)]
mod tests;
mod work;

pub(in crate::transforms::channels) use options::{Ask, prune_pass, prune_pass_with, with_options};

use super::order::Criterion;
use crate::{
    analysis::{groups::GroupKind, prepare::prepare},
    framework::{Context, PassError},
};
use pare_graph::Model;
use serde::{Deserialize, Serialize};
use target::Target;
use work::Work;

/// How what is left makes up for what is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// It does not.
    None,
    /// By the mean of what is gone.
    Mean,
    /// By scaling and shifting every output to its mean and variance in the original: as batch norms do when their
    /// statistics are taken anew.
    Moments,
    /// By the best estimate of removed channels from those that stay.
    Merge,
    /// By fitting each reader anew, from statistics of the original.
    Patch,
    /// By fitting operator after operator to the original's activations.
    Sequential,
}

/// How units are shared out over groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// By what they do to the outputs.
    Global,
    /// The same share of each group.
    Uniform,
}

prune_pass! {
    /// Remove channels, and let the others make up for them.
    ///
    /// Channels that depend on each other through any topology go together (see `pare inspect --groups`). Which go is
    /// found out on unlabelled samples: block-OBS orders the units of each group, the drift of the outputs when a group
    /// alone is cut says how many, and sequential least squares repairs what is left. No training.
    ///
    /// Say how far to go by `macs`, `params`, `ratio` or `latency`; or by `max_drift`, `min_agreement` or
    /// `max_accuracy_drop` alone, measured on samples that are held out: then as much goes as they allow. Without
    /// samples the channels with the smallest weights go, the same share of every group, and nothing is repaired.
    #[pass("prune-channels", Lossy)]
    pub struct PruneChannels {
        /// Prune residual streams too: groups that several layers write to.
        pub streams: bool = false,
    }
    kinds: |pass| {
        const KINDS: &[GroupKind] = &[GroupKind::Channels, GroupKind::Heads, GroupKind::Hidden, GroupKind::Stream];
        if pass.streams { KINDS } else { &KINDS[..3] }
    },
    such_as: "macs=0.5",
}

impl Ask {
    /// Prune the groups; `example` is what could be asked for.
    pub fn prune(&self, model: &mut Model, cx: &mut Context<'_>, example: &str) -> Result<(), PassError> {
        let target = Target::of(self);
        if target.is_none() && !self.limits().any() {
            return Err(PassError::refused_with("it needs a target", example));
        }
        let given = model.clone();
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let mut work = Work::new(self, model, cx)?;
        work.order(&given, cx)?;
        let new = match target {
            Some(target) => work.reach(target, &given, cx)?,
            None => work.farthest(cx)?,
        };
        if cx.permit() {
            *model = new;
        }
        Ok(())
    }
}
