//! Finds the patch at fault.

use crate::{Culprit, Error, Event, runner::Runner};
use pare_graph::Model;
use pare_passes::{Report, StepReport};
use pare_runtime::{Outcome, ProofOptions};
use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// Time after which the search ends with the patches that remain, as does that for a reproducer. Each of its steps runs
/// the pipeline and both models.
pub(crate) const MAX_TIME: Duration = Duration::from_mins(2);

/// The result of the search.
pub(crate) enum Suspect {
    /// The first patch after which the models differ.
    One(Culprit),
    /// It is one of these: the time was over.
    OneOf(RangeInclusive<u64>),
    /// No step of the pipeline contains it, as when the models differ without any patch.
    Unknown,
}

/// The first patch after which the result differs from `original`, found by bisection. One sample suffices if the
/// final result differs on it.
pub(crate) fn bisect(runner: &Runner<'_>, original: &Model) -> Result<Suspect, Error> {
    runner.environment.progress.event(&Event::Bisecting);
    let start = Instant::now();
    let run_to = |n: u64| -> Result<(Model, Report), Error> {
        let mut model = original.clone();
        let report = runner.run(&mut model, Some(n), &mut ()).map_err(|e| runner.environment.run_error(e))?;
        Ok((model, report))
    };
    let differs = |model: &Model, report: &Report, max_samples| -> Result<bool, Error> {
        let interface: Vec<_> = report.interface().cloned().collect();
        let options = ProofOptions { max_samples, ..ProofOptions::default() };
        let comparison = runner.compare_changed(original, model, &interface, options)?;
        Ok(matches!(comparison.outcome(), Outcome::Differs { .. }))
    };
    let (result, all) = run_to(u64::MAX)?;
    let max_samples = differs(&result, &all, Some(1))?.then_some(1);
    let (mut good, mut bad) = (0, all.patches());
    while bad > good + 1 {
        if start.elapsed() > MAX_TIME {
            return Ok(Suspect::OneOf(good + 1..=bad));
        }
        let middle = good + (bad - good) / 2;
        let (model, report) = run_to(middle)?;
        if differs(&model, &report, max_samples)? { bad = middle } else { good = middle }
    }
    let (before, after) = (run_to(bad.saturating_sub(1))?.1, run_to(bad)?.1);
    let earlier = |step: &StepReport| {
        let same = before.steps.iter().find(|s| (s.pass, s.within) == (step.pass, step.within));
        same.map_or(0, |s| s.patches)
    };
    let step = after.steps.iter().find(|step| step.patches > earlier(step));
    let culprit = step.map(|step| Culprit { patch: bad, pass: step.pass.to_owned() });
    Ok(culprit.map_or(Suspect::Unknown, Suspect::One))
}
