//! Reports of passes and of pipelines.

use super::{Effect, InterfaceChange};
use indexmap::IndexMap;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// A counted quantity, named in the singular and in the plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counter {
    one: &'static str,
    many: &'static str,
}

impl Counter {
    /// A quantity such as `"channel removed"`, `"channels removed"`.
    pub const fn new(one: &'static str, many: &'static str) -> Self {
        Self { one, many }
    }

    /// Its name in the plural, which is its key in JSON.
    pub fn name(self) -> &'static str {
        self.many
    }

    /// The count `n` with its name: `1 channel removed`, `2 channels removed`.
    pub fn of(self, n: u64) -> String {
        format!("{n} {}", if n == 1 { self.one } else { self.many })
    }

    /// `n` of a total: `77 of 432 channels removed`.
    pub fn out_of(self, n: u64, total: u64) -> String {
        format!("{n} of {}", self.of(total))
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.many)
    }
}

/// A measured quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Figure {
    /// Its value.
    pub value: f64,
    /// Set if it explains the search rather than the result.
    pub detail: bool,
    /// The unit it is shown in; `value` is unscaled.
    pub unit: FigureUnit,
}

/// The unit that a figure is shown in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FigureUnit {
    /// A plain number.
    #[default]
    None,
    /// A share, shown as a percentage.
    Percent,
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.value)
    }
}

/// The report of one pass.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// The name of the pass.
    pub pass: &'static str,
    /// The pass that ran it as a nested step, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<&'static str>,
    /// The effect of the pass.
    pub effect: Option<Effect>,
    /// Patches applied.
    pub patches: u64,
    pub(crate) counts: IndexMap<Counter, u64>,
    /// The totals that counts are parts of.
    #[serde(skip)]
    pub(crate) totals: IndexMap<Counter, u64>,
    pub(crate) declined: IndexMap<String, u64>,
    /// Remarks for the user.
    pub notes: Vec<String>,
    /// Requested changes of the model's inputs and outputs.
    pub interface: Vec<InterfaceChange>,
    pub(crate) figures: IndexMap<String, Figure>,
    /// Time taken, in seconds in JSON.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
}

/// The report of a pipeline.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Passes in the order of their first completion. The runs of a repeated pass are merged.
    pub steps: Vec<StepReport>,
    /// Rounds of the longest repetition.
    pub rounds: u64,
    /// Set if a repetition was cut off while it still changed the model.
    pub unfinished: bool,
}

impl StepReport {
    /// The counted quantities, in the order in which they were first counted.
    pub fn counts(&self) -> impl Iterator<Item = (Counter, u64)> {
        self.counts.iter().map(|(&counter, &n)| (counter, n))
    }

    /// The counts as text: `77 of 432 channels removed`, `4 constants lifted`.
    pub fn counted(&self) -> impl Iterator<Item = String> {
        self.counts.iter().map(|(what, &n)| match self.totals.get(what) {
            Some(&total) => what.out_of(n, total),
            None => what.of(n),
        })
    }

    /// The count of this name (in the plural); 0 if nothing was counted.
    pub fn count(&self, name: &str) -> u64 {
        self.counts().find(|(counter, _)| counter.name() == name).map_or(0, |(_, n)| n)
    }

    /// The reasons for which candidates were skipped, each with the number of candidates.
    pub fn declined(&self) -> impl Iterator<Item = (&str, u64)> {
        self.declined.iter().map(|(why, &n)| (why.as_str(), n))
    }

    /// The measured quantities (targets reached, losses, times) by name.
    pub fn figures(&self) -> impl Iterator<Item = (&str, Figure)> {
        self.figures.iter().map(|(name, &figure)| (name.as_str(), figure))
    }

    /// The value of the figure of this name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.value)
    }
}

impl Report {
    /// Patches applied by all passes.
    pub fn patches(&self) -> u64 {
        self.steps.iter().map(|s| s.patches).sum()
    }

    /// The weakest promise among the passes that changed something.
    pub fn effect(&self) -> Effect {
        let changed = self.steps.iter().filter(|s| s.patches > 0);
        changed.filter_map(|s| s.effect).max().unwrap_or(Effect::Exact)
    }

    /// The requested changes of inputs and outputs, in order.
    pub fn interface(&self) -> impl Iterator<Item = &InterfaceChange> {
        self.steps.iter().flat_map(|s| &s.interface)
    }

    /// Adds the report of one run of a pass. Counts of several runs add up; declines are those of the last
    /// run.
    pub(crate) fn add(&mut self, step: StepReport) {
        let Some(known) = self.steps.iter_mut().find(|s| (s.pass, s.within) == (step.pass, step.within))
        else {
            self.steps.push(step);
            return;
        };
        known.patches += step.patches;
        known.time += step.time;
        for (what, n) in step.counts {
            *known.counts.entry(what).or_default() += n;
        }
        for (what, total) in step.totals {
            known.totals.entry(what).or_insert(total);
        }
        known.declined = step.declined;
        known.notes.extend(step.notes);
        known.notes.dedup();
        known.interface.extend(step.interface);
        known.figures.extend(step.figures);
    }
}

fn seconds<S: Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(time.as_secs_f64())
}
