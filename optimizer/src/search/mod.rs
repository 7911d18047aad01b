//! Searches for the pipeline that serves a goal best within limits on the loss of quality.
//!
//! 0. `safe`, which is the result if nothing else is better, and shows how much time a result needs.
//! 1. Each family of lossy passes alone, from mild to strong, until a limit is exceeded: what a step of it saves,
//!    and what it costs in quality. All of them mildly first: time may be up before the strong ones.
//! 2. Combinations, best first: cost and drift of all are predicted from those that were measured ([`predict`]),
//!    and the one with the largest expected improvement in a second is measured next. It is measured entirely, since savings
//!    do not add.
//! 3. The same calibrated on all samples. The trials before use a part of them, which takes a fraction of the time
//!    and orders candidates alike.
//! 4. The same trained towards the original, which takes longest.
//! 5. The best that keeps the limits is made again from its pipeline in text form, from the results of its passes, and
//!    compared with `safe`.
//!
//! Limits are judged on samples that no pass sees ([`limit`]). Trials are recorded ([`journal`]), so that an
//! interrupted search continues.

mod explorer;
mod family;
mod front;
mod journal;
mod judge;
mod limit;
mod options;
mod predict;
mod report;
mod trial;
mod workshop;

pub use options::{Goal, SearchLimits, SearchOptions};
pub use report::{FamilyReport, SearchEnd, SearchReport};
pub use trial::{Measured, Trial, TrialOutcome};

use crate::{
    Error, Event, OptimizeOptions, Optimized, Progress, Source,
    environment::LazyEngine,
    optimize::optimize,
    runner::{Data, Placement},
    samples::{open, split},
    source::LoadedModel,
};
use explorer::{Explorer, Fidelity, deadlines};
use family::TRAINING;
use journal::Journal;
use judge::Judge;
use limit::{Limit, Quantity};
use pare_graph::{Model, onnx};
use pare_passes::Memo;
use pare_runtime::{OutputMeasure, Spread, cache_folder};
use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use workshop::Workshop;

/// The part of the samples that the first trials are calibrated on, and the fewest that it has.
const PART: usize = 4;
const LEAST_PART: usize = 128;
/// The fewest samples that candidates are trained on, unless training is asked for: on less it rarely improves them.
const LEAST_TRAINED: usize = 1000;

/// The result of [`search()`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The model, made by the pipeline that the report names.
    pub optimized: Optimized,
    /// The report.
    pub report: SearchReport,
}

/// Searches for the pipeline that serves a goal best within limits on the loss of quality.
///
/// It ends within the budget, when no improvement is expected any more, or when
/// [`Progress::cancelled`](crate::Progress::cancelled) returns true; the result is the best so far.
///
/// ```no_run
/// use onnx_pare::{SearchOptions, search};
/// # fn main() -> Result<(), onnx_pare::Error> {
/// let mut options = SearchOptions::new("calibration.npz").test("labelled.npz");
/// options.limits.accuracy_drop = Some(0.01);
/// let mut found = search(std::path::Path::new("model.onnx"), options)?;
/// println!("{}", found.report.pipeline);
/// found.optimized.write("small.onnx")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Invalid`] if options contradict each other or the model, or if a limit cannot be measured; errors of
/// files, samples, the metric and the engine.
pub fn search(source: impl Into<Source>, mut options: SearchOptions) -> Result<Found, Error> {
    let start = Instant::now();
    options.check()?;
    let mut families = options.selected()?;
    let interruptible = Arc::new(Interruptible {
        progress: options.environment.progress.clone(),
        latest: Mutex::new(None),
        finishing: AtomicBool::new(false),
    });
    options.environment.progress = interruptible.clone();
    options.environment.memo = Some(Arc::new(Memo::new(options.memory)));
    let source = source.into();
    let path = source.path().map(Path::to_owned);
    let LoadedModel { model: mut original, source: placed, .. } = source.clone().load()?;
    if options.freeze_initializers {
        original.graph.freeze_initializers();
    }
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);

    // Samples.
    let samples = open(&options.samples, &original)?;
    let (samples, test) = match &options.test {
        Some(test) => (samples, open(test, &original)?),
        None => split(samples, &options.samples, &original, options.hold_out)?,
    };
    if options.families.is_empty() && samples.len() < LEAST_TRAINED {
        families.retain(|&family| family != TRAINING);
    }
    let labelled = samples.labels().is_some() || test.labels().is_some();
    let quality = options.quality.choose(&original, labelled)?;
    let mut part = open(&options.samples, &original)?;
    part.truncate((samples.len() / PART).max(LEAST_PART).min(samples.len()));
    let [test, part, all] = [test, part, samples].map(|samples| Data {
        samples: Some(samples.into()),
        quality: Some(quality.clone()),
        ..Data::default()
    });
    let workshops = [&part, &all].map(|data| {
        Workshop::new(
            environment,
            data.tools(&engine, environment, options.memory),
            &original,
            options.memory,
        )
    });

    // A model beyond the limit of one message has no bytes to be recognised by.
    let bytes = onnx::to_bytes(&original).ok();
    let folder = cache_folder().filter(|_| options.resume && bytes.is_some());
    let key = options.key(&engine.description()?, &bytes.unwrap_or_default())?;
    let placement = Placement::new(&original, &placed, options.scratch.as_deref());
    environment.progress.event(&Event::MeasuringOriginal);
    let judge = Judge::new(&options, &engine, &test, &placement, &original)?;
    let is_classes =
        quality.outputs.iter().any(|output| matches!(output.measure, OutputMeasure::Classes { .. }));
    let deadlines = deadlines(start, options.budget, families.contains(&TRAINING));
    let mut explorer = Explorer {
        options: &options,
        judge,
        workshops,
        fidelity: Fidelity::Part,
        journal: Journal::open(folder, key),
        limits: limits(&options.limits, is_classes),
        families,
        trials: vec![],
        made: HashMap::new(),
        start,
        deadlines,
        reserve: Duration::ZERO,
        interruptible: interruptible.clone(),
        resumed: 0,
        end: SearchEnd::Finished,
    };
    let safe = explorer.make_safe(&source)?;
    explorer.explore()?;
    interruptible.finishing.store(true, Ordering::Relaxed);
    let mut found = explorer.finish(&source, safe)?;
    found.report.model = path;
    found.report.seconds = start.elapsed().as_secs_f64();
    Ok(found)
}

/// The limits in the order in which they are reported. The share of changed classes grows with the root of the
/// drift, which is quadratic in a small change of the scores; everything else in proportion.
fn limits(limits: &SearchLimits, is_classes: bool) -> Vec<Limit> {
    let limit = |quantity, bound: Option<f64>, power| bound.map(|bound| Limit { quantity, bound, power });
    let disagreement = limits.agreement.map(|share| 1.0 - share);
    [
        limit(Quantity::AccuracyDrop, limits.accuracy_drop, 1.0),
        limit(Quantity::Disagreement, disagreement, if is_classes { 0.5 } else { 1.0 }),
        limit(Quantity::MetricDrop, limits.metric_drop, 1.0),
        limit(Quantity::Drift, limits.drift, 1.0),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Explorer<'_> {
    /// Makes and compares the result without lossy passes. It shows how long the last comparison and measurement will
    /// take.
    fn make_safe(&mut self, source: &Source) -> Result<Optimized, Error> {
        self.options.environment.progress.event(&Event::MakingSafe);
        let start = Instant::now();
        let safe = optimize(source.clone(), self.optimize_options("safe"))?;
        self.reserve = 2 * start.elapsed() + self.result_latencies(&[&safe.model, &safe.model])?.1;
        Ok(safe)
    }

    /// Makes the result from the best pipeline; it is `safe` if no other is better.
    fn finish(self, source: &Source, safe: Optimized) -> Result<Found, Error> {
        let progress = &self.options.environment.progress;
        progress.event(&Event::Finishing);
        let make = |pipeline: &str| optimize(source.clone(), self.optimize_options(pipeline));
        let (mut optimized, mut best, mut latency) = (safe, None, None);
        for trial in self.finalists() {
            let made = match make(&trial.pipeline) {
                // A broken promise is a defect of a pass, and no result.
                Err(Error::Rejected(_)) => continue,
                made => made?,
            };
            let measured = self.judge(&made.model)?;
            let Some(confidence) = self.accepted(&measured) else { continue };
            let ratios = self.result_latencies(&[&optimized.model, &made.model])?.0;
            let is_better = ratios.first().is_none_or(|safe| ratios[1].median < safe.median);
            latency = if is_better { ratios.last() } else { ratios.first() }.copied();
            if is_better {
                optimized = made;
                best =
                    Some((Trial { outcome: TrialOutcome::Measured(measured), ..trial.clone() }, confidence));
                break;
            }
        }
        if latency.is_none() {
            latency = self.result_latencies(&[&optimized.model])?.0.first().copied();
        }
        let front = front::front(&self.trials);
        if let Some(folder) = &self.options.front {
            front::write(folder, &front, &self.trials, &make)?;
        }
        let report = SearchReport::new(&self, &optimized, best, latency, front);
        Ok(Found { optimized, report })
    }

    /// The latencies of results, measured at once, as shares of the original's, and the time that this took; none if the
    /// goal is another one.
    fn result_latencies(&self, results: &[&Model]) -> Result<(Vec<Spread>, Duration), Error> {
        if self.options.goal != Goal::Latency {
            return Ok((vec![], Duration::ZERO));
        }
        let start = Instant::now();
        Ok((self.judge.result_latencies(results)?, start.elapsed()))
    }

    fn optimize_options(&self, pipeline: &str) -> OptimizeOptions {
        let options = self.options;
        let mut made = OptimizeOptions::from(pipeline)
            .samples(options.samples.clone())
            .quality(options.quality.clone())
            .freeze_initializers(options.freeze_initializers)
            .memory(options.memory)
            .details(options.details)
            .time(false)
            .external_data(options.external_data.clone())
            .environment(options.environment.clone());
        made.test.clone_from(&options.test);
        made.hold_out = options.test.is_none().then_some(options.hold_out);
        made.scratch.clone_from(&options.scratch);
        made
    }
}

/// Progress that cancels the trials, but not the making of the result.
struct Interruptible {
    progress: Arc<dyn Progress>,
    /// The time at which the trial in progress is given up.
    latest: Mutex<Option<Instant>>,
    finishing: AtomicBool,
}

impl Interruptible {
    /// Gives the next trial until `latest`, or as long as it takes.
    fn allow(&self, latest: Option<Instant>) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = latest;
    }

    /// Returns whether the time of the trial is up and the caller did not cancel.
    fn is_late(&self) -> bool {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.is_some_and(|latest| Instant::now() >= latest) && !self.progress.cancelled()
    }
}

impl Progress for Interruptible {
    fn step(&self, stage: &str, done: u64, total: u64) {
        self.progress.step(stage, done, total);
    }

    fn event(&self, event: &Event<'_>) {
        self.progress.event(event);
    }

    fn after_pass(&self, pass: &str, model: &Model) {
        self.progress.after_pass(pass, model);
    }

    fn cancelled(&self) -> bool {
        !self.finishing.load(Ordering::Relaxed) && (self.progress.cancelled() || self.is_late())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Progress that somebody cancelled, or not.
    struct Cancelled(bool);

    impl Progress for Cancelled {
        fn cancelled(&self) -> bool {
            self.0
        }
    }

    fn interruptible(cancelled: bool) -> Interruptible {
        Interruptible {
            progress: Arc::new(Cancelled(cancelled)),
            latest: Mutex::new(None),
            finishing: AtomicBool::new(false),
        }
    }

    #[test]
    fn trials_end_when_their_time_is_up() {
        let trial = interruptible(false);
        assert!(!trial.cancelled());
        trial.allow(Some(Instant::now()));
        assert!(trial.cancelled() && trial.is_late());
        trial.allow(Some(Instant::now() + Duration::from_mins(1)));
        assert!(!trial.cancelled() && !trial.is_late());
    }

    #[test]
    fn the_result_is_made_after_all_trials_were_cancelled() {
        let trial = interruptible(true);
        trial.allow(Some(Instant::now()));
        assert!(trial.cancelled() && !trial.is_late(), "a user who cancels ends the search, not one trial");
        trial.finishing.store(true, Ordering::Relaxed);
        assert!(!trial.cancelled());
    }
}
