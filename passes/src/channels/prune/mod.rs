//! The pass: what is asked for, and the way there.

mod choose;
mod curves;
mod latency;
mod target;
#[cfg(test)]
mod tests;
mod work;

use super::{groups::Kind, order::Criterion};
use crate::{Context, Pass, PassError, pass, prepare::prepare, trial::Limits};
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

pass! {
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
        /// Share of the multiply-accumulates to keep.
        pub macs: Option<f64> = None,
        /// Share of the parameters to keep.
        pub params: Option<f64> = None,
        /// Share of the units of each group to remove; with `scope=global` what the same multiply-accumulates buy.
        pub ratio: Option<f64> = None,
        /// Share of the time to keep that a run of one sample takes: measured in the engine, on this machine.
        pub latency: Option<f64> = None,
        /// The greatest drift: mean KL divergence of class scores, error over variance of other outputs.
        pub max_drift: Option<f64> = None,
        /// The least share of samples that keep their class.
        pub min_agreement: Option<f64> = None,
        /// The greatest loss of accuracy; needs labels.
        pub max_accuracy_drop: Option<f64> = None,
        /// What makes a channel matter. Of weights alone: `l1`, `l2`, `bn-scale`, `fpgm`, `random`. Of activations: `apoz`,
        /// `variance`, `entropy`, `wanda`, `obd`, `energy`, `obs`. Of what happens without it: `skeleton`, `sensitivity`.
        /// By default `obs` with samples, else `l2`.
        pub criterion: Option<Criterion> = None,
        /// How units are shared out over groups: `global` or `uniform`. By default `global` with samples.
        pub scope: Option<Scope> = None,
        /// `none`, `mean`, `moments`, `merge`, `patch` or `sequential`. By default `sequential` with samples.
        pub repair: Option<Repair> = None,
        /// Counts that are kept are multiples of this. With `latency` the step of the machine, if it is larger.
        pub multiple: usize = 1,
        /// Units that every group keeps.
        pub min_kept: usize = 1,
        /// Prune residual streams too: groups that several layers write to.
        pub streams: bool = false,
        /// Only groups whose names match one of these patterns, `*` for anything.
        pub only: Vec<String> = vec![],
        /// No group whose name matches one of these patterns.
        pub except: Vec<String> = vec![],
    }
}

impl Pass for PruneChannels {
    fn validate(&self) -> Result<(), String> {
        let targets = self.targets();
        let limits = [
            ("max_drift", self.max_drift, f64::INFINITY),
            ("min_agreement", self.min_agreement, 1.0),
            ("max_accuracy_drop", self.max_accuracy_drop, 1.0),
        ];
        for (name, value) in &targets {
            if !(*value > 0.0 && *value < 1.0) {
                return Err(format!("`{name}` is a share between 0 and 1, not {value}"));
            }
        }
        for (name, value, most) in limits {
            if let Some(value) = value.filter(|v| !(*v >= 0.0 && *v <= most)) {
                return Err(format!("`{name}` cannot be {value}"));
            }
        }
        if targets.len() > 1 {
            return Err("only one of `macs`, `params`, `ratio`, `latency` can be asked for".into());
        }
        if self.multiple == 0 {
            return Err("`multiple` is at least 1".into());
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let kinds = [Kind::Channels, Kind::Heads, Kind::Hidden, Kind::Stream];
        self.prune(model, cx, if self.streams { &kinds } else { &kinds[..3] })
    }
}

impl PruneChannels {
    /// Prune groups of these kinds.
    pub(super) fn prune(
        &self,
        model: &mut Model,
        cx: &mut Context<'_>,
        kinds: &[Kind],
    ) -> Result<(), PassError> {
        let target = Target::of(self);
        if target.is_none() && !self.limits().any() {
            return Err(PassError::refused_with("it needs a target", "such as `prune-channels{macs=0.5}`"));
        }
        let given = model.clone();
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let mut work = Work::new(self, model, kinds, cx)?;
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

    /// The targets that are given, by name.
    fn targets(&self) -> Vec<(&'static str, f64)> {
        let all =
            [("macs", self.macs), ("params", self.params), ("ratio", self.ratio), ("latency", self.latency)];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn limits(&self) -> Limits {
        Limits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }
}
