//! What a pipeline did.

use super::Effect;
use indexmap::IndexMap;
use serde::Serialize;
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

    /// `n` of it: `1 channel removed`, `2 channels removed`.
    pub fn of(self, n: u64) -> String {
        format!("{n} {}", if n == 1 { self.one } else { self.many })
    }

    /// `n` of a total: `77 of 432 channels removed`.
    pub fn out_of(self, n: u64, total: u64) -> String {
        format!("{n} of {}", self.of(total))
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.many)
    }
}

/// A measured quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its value.
    pub value: f64,
    /// Whether it explains the search rather than the result, and is shown on request only.
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
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.value)
    }
}

/// What one pass did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepReport {
    /// Its name.
    pub pass: &'static str,
    /// The pass that ran it as a nested step, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<&'static str>,
    /// What it promises.
    pub effect: Option<Effect>,
    /// Patches applied.
    pub patches: u64,
    /// What it did, counted.
    pub counts: IndexMap<Counter, u64>,
    /// The totals that counts are parts of, where there are any.
    #[serde(skip)]
    pub totals: IndexMap<Counter, u64>,
    /// What it left alone: reasons, with how many places each holds for.
    pub declined: IndexMap<String, u64>,
    /// What it wants the user to know.
    pub notes: Vec<String>,
    /// How it changed inputs and outputs of the model, as it was asked to; a sentence each.
    pub interface: Vec<String>,
    /// Quantities it measured, by name (targets reached, losses, times).
    pub figures: IndexMap<String, Figure>,
    /// Time it took.
    #[serde(serialize_with = "seconds")]
    pub time: Duration,
}

/// What a pipeline did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Passes in the order of their first run; the runs of a repeated pass are added up.
    pub steps: Vec<StepReport>,
    /// Rounds that repetitions took, the longest one.
    pub rounds: u64,
    /// Whether a repetition was cut off while it still changed something.
    pub unfinished: bool,
}

impl StepReport {
    /// The count of this name (in the plural); 0 if nothing was counted.
    pub fn count(&self, name: &str) -> u64 {
        self.counts.iter().find(|(counter, _)| counter.name() == name).map_or(0, |(_, &n)| n)
    }

    /// The counts as text: `77 of 432 channels removed`, `4 constants lifted`.
    pub fn counted(&self) -> impl Iterator<Item = String> {
        self.counts.iter().map(|(what, &n)| match self.totals.get(what) {
            Some(&total) => what.out_of(n, total),
            None => what.of(n),
        })
    }

    /// The figure of this name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.value)
    }
}

impl Report {
    /// Patches applied by all passes.
    pub fn patches(&self) -> u64 {
        self.steps.iter().map(|s| s.patches).sum()
    }

    /// Add what a pass did; later runs of the same pass in a repetition add up, their declines replace.
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

fn seconds<S: serde::Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(time.as_secs_f64())
}
