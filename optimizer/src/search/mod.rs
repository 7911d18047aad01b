//! Searches for the pipeline that serves a goal best within limits on the loss of quality.
//!
//! 1. Each family of lossy passes alone, from mild to strong, until a limit is exceeded: what a step of it saves,
//!    and what it costs in quality.
//! 2. Combinations, best first: cost and drift of all are predicted from those that were measured ([`predict`]),
//!    and the one with the largest expected improvement is measured next. It is measured as a whole, since savings
//!    do not add.
//! 3. The best that keeps the limits is made again from its pipeline in text form, and compared with `safe`.
//!
//! Limits are judged on samples that no pass sees ([`limit`]). Trials are recorded ([`journal`]), so that an
//! interrupted search continues.

mod family;
mod front;
mod journal;
mod judge;
mod limit;
mod predict;
mod report;
mod trial;
mod workshop;

pub use report::{FamilyReport, SearchEnd, SearchReport};
pub use trial::{Measured, Trial, TrialOutcome};

use crate::{
    Environment, Error, Hint, Metric, OptimizeOptions, Optimized, Progress, QualityOptions, Source,
    environment::LazyEngine,
    optimize::optimize,
    options::{MEMORY, setters},
    runner::{Data, Placement},
    samples::{open, split},
    source::LoadedModel,
};
use family::{COUNT, Combination, FAMILIES};
use journal::{Journal, JournalKey};
use judge::{Deployed, Judge};
use limit::{Law, Limit, Quantity, below};
use pare_graph::{
    Model,
    onnx::{self, ExternalData},
};
use pare_runtime::{OutputMeasure, SharedSamples, cache_folder};
use predict::{Prediction, Predictor};
use serde::Serialize;
use std::{
    f64::consts::PI,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use workshop::Workshop;

/// Least expected improvement of the logarithm of the cost that is worth a measurement.
const WORTHWHILE: f64 = 2e-3;
/// A family is not made stronger once its loss is this multiple of a limit.
const BEYOND: f64 = 2.0;
/// The most combinations that are predicted at once.
const MAX_GRID: usize = 60_000;
/// The metric is measured of candidates whose predicted drop is at most this multiple of the limit.
const PROMISING: f64 = 1.5;

/// What is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Goal {
    /// Latency in the engine.
    #[default]
    Latency,
    /// Bytes of the file.
    Bytes,
    /// Multiply-accumulates.
    Macs,
}

/// The largest loss of quality that is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SearchLimits {
    /// Largest drop of the share of labelled samples that are classified correctly.
    pub accuracy_drop: Option<f64>,
    /// Smallest share of samples that keep their class; of embeddings, the smallest rank correlation of the
    /// cosines of all pairs.
    pub agreement: Option<f64>,
    /// Largest drift; of outputs that are neither classes nor embeddings the squared error over the variance.
    pub drift: Option<f64>,
    /// Largest drop of the caller's metric.
    pub metric_drop: Option<f64>,
}

/// Options of [`search()`].
#[derive(Clone)]
#[non_exhaustive]
pub struct SearchOptions {
    /// What is minimised.
    pub goal: Goal,
    /// The limits; at least one.
    pub limits: SearchLimits,
    /// The metric of `limits.metric_drop`.
    pub metric: Option<Metric>,
    /// Samples for calibration, and for judging if there are no others.
    pub samples: PathBuf,
    /// Samples that candidates are judged on, never used for calibration.
    pub test: Option<PathBuf>,
    /// Share of the samples that candidates are judged on, where there are no others.
    pub hold_out: f64,
    /// Least probability that a limit holds for other samples.
    pub confidence: f64,
    /// Time after which no further candidate is tried.
    pub budget: Duration,
    /// Names of the families to use; all if empty.
    pub families: Vec<String>,
    /// Samples per run of a latency.
    pub batch: usize,
    /// The measures of the outputs, and the mask of padding.
    pub quality: QualityOptions,
    /// Treat initializers that are also inputs as constants.
    pub freeze_initializers: bool,
    /// Bytes that activations may occupy during calibration, and weights of candidates.
    pub memory: u64,
    /// The storage of the result's weights.
    pub external_data: ExternalData,
    /// Folder for temporary files of models that exceed the limit of 2 GiB in memory.
    pub scratch: Option<PathBuf>,
    /// Keep trials, and use those of earlier searches.
    pub resume: bool,
    /// Folder to write the models of the Pareto front to.
    pub front: Option<PathBuf>,
    /// Engine, threads (of latencies; 0 means one), seed, progress.
    pub environment: Environment,
}

setters!(SearchOptions {
    /// Sets the goal.
    goal: Goal,
    /// Sets the limits.
    limits: SearchLimits,
    /// Sets the share of the samples that candidates are judged on.
    hold_out: f64,
    /// Sets the least probability that a limit holds for other samples.
    confidence: f64,
    /// Sets the time after which no further candidate is tried.
    budget: Duration,
    /// Sets the families.
    families: Vec<String>,
    /// Sets the number of samples per run.
    batch: usize,
    /// Sets the measures of the outputs, and the mask of padding.
    quality: QualityOptions,
    /// Treats initializers that are also inputs as constants.
    freeze_initializers: bool,
    /// Sets the limit of memory.
    memory: u64,
    /// Sets the storage of the result's weights.
    external_data: ExternalData,
    /// Sets whether trials are kept.
    resume: bool,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the metric.
    metric: Metric,
    /// Sets the samples that candidates are judged on.
    test: PathBuf,
    /// Sets the folder for temporary files.
    scratch: PathBuf,
    /// Sets the folder of the Pareto front.
    front: PathBuf,
});

impl SearchOptions {
    /// A search for the lowest latency within 20 minutes, calibrated on `samples`.
    pub fn new(samples: impl Into<PathBuf>) -> Self {
        Self {
            goal: Goal::default(),
            limits: SearchLimits::default(),
            metric: None,
            samples: samples.into(),
            test: None,
            hold_out: 0.25,
            confidence: 0.5,
            budget: Duration::from_mins(20),
            families: vec![],
            batch: 1,
            quality: QualityOptions::default(),
            freeze_initializers: false,
            memory: MEMORY,
            external_data: ExternalData::default(),
            scratch: None,
            resume: true,
            front: None,
            environment: Environment::default(),
        }
    }

    /// The selected families.
    fn selected(&self) -> Result<Vec<usize>, Error> {
        if self.families.is_empty() {
            return Ok((0..COUNT).collect());
        }
        let find = |name: &String| {
            FAMILIES.iter().position(|family| family.name == name).ok_or_else(|| {
                let message = format!("there is no family of passes `{name}`");
                Error::invalid_with(message, Hint::Families(FAMILIES.map(|family| family.name).to_vec()))
            })
        };
        self.families.iter().map(find).collect()
    }

    fn check(&self) -> Result<(), Error> {
        let SearchLimits { accuracy_drop, agreement, drift, metric_drop } = self.limits;
        let limits = [
            ("accuracy drop", accuracy_drop, 1.0),
            ("agreement", agreement, 1.0),
            ("drift", drift, f64::INFINITY),
            ("metric drop", metric_drop, f64::INFINITY),
        ];
        for (name, limit, most) in limits {
            if let Some(value) = limit.filter(|value| !(0.0..=most).contains(value)) {
                return Err(Error::invalid(format!("the limit of the {name} cannot be {value}")));
            }
        }
        if limits.iter().all(|(_, limit, _)| limit.is_none()) {
            let message = "a search needs a limit on the loss of quality";
            return Err(Error::invalid_with(message, Hint::NeedsLimit));
        }
        if metric_drop.is_some() != self.metric.is_some() {
            return Err(Error::invalid("a metric and the limit of its drop belong together"));
        }
        if !(self.hold_out > 0.0 && self.hold_out < 1.0) {
            return Err(Error::invalid(format!(
                "the share {} of held-out samples is not between 0 and 1",
                self.hold_out
            )));
        }
        if !(0.0..1.0).contains(&self.confidence) {
            return Err(Error::invalid(format!("the confidence {} is not between 0 and 1", self.confidence)));
        }
        Ok(())
    }

    /// What the outcome of a trial depends on.
    fn key(&self, engine: &str, original: &[u8]) -> Result<JournalKey, Error> {
        let Self { goal, batch, quality, freeze_initializers, hold_out, metric, environment, .. } = self;
        let threads = environment.threads;
        let seed = environment.seed;
        let options = format!(
            "{engine} {goal:?} {batch} {quality} {freeze_initializers} {hold_out} {metric:?} {threads} {seed}"
        );
        let key = JournalKey::new().text(&options).text("model").bytes(original).file(&self.samples)?;
        self.test.as_ref().map_or(Ok(key.clone()), |test| key.file(test))
    }
}

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
/// It ends at the budget, when no improvement is expected any more, or when
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
pub fn search(source: impl Into<Source>, options: SearchOptions) -> Result<Found, Error> {
    let start = Instant::now();
    options.check()?;
    let families = options.selected()?;
    let source = source.into();
    let path = source.path().map(std::path::Path::to_owned);
    let LoadedModel { model: mut original, source: placed, .. } = source.clone().load()?;
    if options.freeze_initializers {
        original.graph.freeze_initializers();
    }
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let deployed = Deployed(&engine);

    // Samples.
    let samples = open(&options.samples, &original)?;
    let (samples, test) = match &options.test {
        Some(test) => (samples, open(test, &original)?),
        None => split(samples, &options.samples, &original, options.hold_out)?,
    };
    let labelled = samples.labels().is_some() || test.labels().is_some();
    let quality = options.quality.choose(&original, labelled)?;
    let (samples, test) = (SharedSamples::from(samples), SharedSamples::from(test));
    let data = Data { samples: Some(samples), quality: Some(quality.clone()), ..Data::default() };
    let tools = data.tools(&engine, environment, options.memory);

    let key = options.key(&engine.description()?, &onnx::to_bytes(&original).unwrap_or_default())?;
    let folder = cache_folder().filter(|_| options.resume);
    let placement = Placement::new(&original, &placed, options.scratch.as_deref());
    let judge = Judge::new(&options, &engine, &deployed, &test, &quality, &placement, &original)?;
    let is_classes =
        quality.outputs.iter().any(|output| matches!(output.measure, OutputMeasure::Classes { .. }));
    let mut explorer = Explorer {
        options: &options,
        judge,
        workshop: Workshop::new(environment, tools, &original, options.memory),
        journal: Journal::open(folder, key),
        limits: limits(&options.limits, is_classes),
        families,
        refused: vec![None; COUNT],
        trials: vec![],
        deadline: start + options.budget,
        resumed: 0,
        end: SearchEnd::Finished,
    };
    explorer.explore()?;
    let mut found = explorer.finish(&source)?;
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

/// A search in progress.
struct Explorer<'e> {
    options: &'e SearchOptions,
    judge: Judge<'e>,
    workshop: Workshop<'e>,
    journal: Journal,
    limits: Vec<Limit>,
    families: Vec<usize>,
    /// Why a family makes nothing.
    refused: Vec<Option<String>>,
    trials: Vec<Trial>,
    deadline: Instant,
    /// Trials of earlier searches.
    resumed: usize,
    end: SearchEnd,
}

impl Explorer<'_> {
    /// Tries candidates until time is up, or none is promising.
    fn explore(&mut self) -> Result<(), Error> {
        let done = self.try_families().and_then(|()| self.try_combinations());
        match done {
            // The best so far is the result.
            Err(Error::Cancelled) if !self.trials.is_empty() => {
                self.end = SearchEnd::Cancelled;
                Ok(())
            }
            other => other,
        }
    }

    fn is_over(&mut self) -> bool {
        let over = Instant::now() >= self.deadline;
        if over {
            self.end = SearchEnd::Budget;
        }
        over
    }

    /// Returns whether the noise of a limit is known.
    fn has_known_noise(&self) -> bool {
        self.limits.iter().any(|l| matches!(l.quantity, Quantity::AccuracyDrop | Quantity::Disagreement))
    }

    /// Each family alone. The first trial is `safe`.
    fn try_families(&mut self) -> Result<(), Error> {
        self.attempt(Combination::default())?;
        self.check_limits_are_measured()?;
        for family in self.families.clone() {
            for &strength in FAMILIES[family].ladder {
                if self.is_over() {
                    return Ok(());
                }
                match self.attempt(Combination::single(family, strength))? {
                    TrialOutcome::Measured(measured) if self.is_far_beyond(&measured) => break,
                    TrialOutcome::Measured(_) => {}
                    TrialOutcome::Skipped(why) => {
                        self.refused[family] = Some(why);
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The combination with the largest expected improvement, again and again.
    fn try_combinations(&mut self) -> Result<(), Error> {
        while !self.is_over() {
            let Some(next) = self.most_promising() else { break };
            self.attempt(next)?;
        }
        Ok(())
    }

    /// An error if a limit is on a quantity that cannot be measured of this model on these samples.
    fn check_limits_are_measured(&self) -> Result<(), Error> {
        let Some(measured) = self.trials.first().and_then(Trial::measured) else {
            let why = match self.trials.first().map(|trial| &trial.outcome) {
                Some(TrialOutcome::Skipped(why)) => why.clone(),
                _ => "nothing was tried".into(),
            };
            return Err(Error::invalid(format!("`safe` makes no candidate: {why}")));
        };
        for limit in &self.limits {
            let message = match limit.quantity {
                Quantity::AccuracyDrop => "the samples have no `labels`, so accuracy cannot be measured",
                Quantity::Disagreement => "no output holds class scores, so agreement cannot be measured",
                _ => continue,
            };
            if limit.loss(measured).is_none() {
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    fn is_far_beyond(&self, measured: &Measured) -> bool {
        let beyond = |limit: &Limit| limit.loss(measured).is_some_and(|loss| !(loss <= BEYOND * limit.bound));
        !measured.drift.is_finite() || self.limits.iter().any(beyond)
    }

    /// Makes and measures a candidate, or finds it in the journal.
    fn attempt(&mut self, combination: Combination) -> Result<TrialOutcome, Error> {
        self.options.environment.check_cancelled()?;
        let pipeline = combination.to_string();
        let known = self.journal.find(&pipeline).filter(|trial| self.is_complete(trial)).cloned();
        let trial = match known {
            Some(trial) => {
                self.resumed += 1;
                trial
            }
            None => {
                let start = Instant::now();
                let outcome = self.measure(combination)?;
                let seconds = start.elapsed().as_secs_f64();
                let trial = Trial { pipeline, strengths: combination, seconds, outcome };
                self.journal.add(&trial);
                trial
            }
        };
        let outcome = trial.outcome.clone();
        self.trials.push(trial);
        self.announce();
        Ok(outcome)
    }

    /// A metric may not have been measured under other limits.
    fn is_complete(&self, trial: &Trial) -> bool {
        let Some(measured) = trial.measured().filter(|_| self.options.metric.is_some()) else { return true };
        measured.metric_drop.is_some() || !self.is_promising(measured)
    }

    fn measure(&mut self, combination: Combination) -> Result<TrialOutcome, Error> {
        let candidate = match self.workshop.make(combination)? {
            Ok(candidate) => candidate,
            Err(why) => return Ok(TrialOutcome::Skipped(why)),
        };
        let measured = self.judge.measure(&candidate).and_then(|mut measured| {
            if self.is_promising(&measured) {
                measured.metric_drop = self.judge.metric_drop(&candidate)?;
            }
            Ok(measured)
        });
        self.options.environment.check_cancelled()?;
        match measured {
            Ok(measured) => Ok(TrialOutcome::Measured(measured)),
            // The original runs, so the engine refuses this candidate alone.
            Err(Error::Engine(error)) => Ok(TrialOutcome::Skipped(error.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Returns whether the metric of a candidate is worth a measurement.
    fn is_promising(&self, measured: &Measured) -> bool {
        let Some(limit) = self.limits.iter().find(|limit| limit.quantity == Quantity::MetricDrop) else {
            return false;
        };
        let others = self.limits.iter().filter(|limit| limit.quantity != Quantity::MetricDrop);
        let holds =
            others.clone().all(|limit| limit.loss(measured).is_none_or(|loss| loss <= BEYOND * limit.bound));
        holds
            && self
                .law(limit)
                .is_none_or(|law| law.loss(measured.drift) <= PROMISING * limit.bound.max(1e-12))
    }

    fn measured(&self) -> impl Iterator<Item = (Combination, &Measured)> + Clone {
        self.trials.iter().filter_map(|trial| Some((trial.strengths, trial.measured()?)))
    }

    fn law(&self, limit: &Limit) -> Option<Law> {
        limit.law(self.measured().map(|(_, m)| m), self.judge.samples)
    }

    /// The probability that the limits hold for other samples, if all hold for these with the confidence that is
    /// asked for; 1 if the noise of no limit is known.
    fn accepted(&self, measured: &Measured) -> Option<f64> {
        let mut least = 1.0_f64;
        for limit in &self.limits {
            let estimate = limit.estimate(measured, self.law(limit), self.judge.samples)?;
            let holds = limit.loss(measured)? <= limit.bound;
            let confidence = limit.confidence(estimate).unwrap_or(1.0);
            if !holds || confidence < self.options.confidence {
                return None;
            }
            least = least.min(confidence);
        }
        Some(least)
    }

    /// The cheapest trial that keeps the limits, with its confidence.
    fn best(&self) -> Option<(&Trial, f64)> {
        let kept = self.trials.iter().filter_map(|trial| {
            let measured = trial.measured()?;
            Some((trial, measured.cost, self.accepted(measured)?))
        });
        kept.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(trial, _, confidence)| (trial, confidence))
    }

    /// The combination with the largest expected improvement, if it is worthwhile.
    fn most_promising(&self) -> Option<Combination> {
        let predictor = Predictor::new(self.measured());
        let base = self.trials.first()?.measured()?.cost.ln();
        let best = self.best().map_or(0.0, |(trial, _)| trial.measured().map_or(0.0, |m| m.cost.ln() - base));
        // The drift at which each limit is reached.
        let bounds: Vec<_> = self
            .limits
            .iter()
            .filter_map(|limit| match limit.quantity {
                Quantity::Drift => Some((limit.bound, 0.0)),
                _ => self.law(limit).map(|law| law.drift(limit.bound)),
            })
            .collect();
        let probability = |p: &Prediction| {
            let kept = bounds.iter().map(|(drift, error)| {
                below((drift.ln() - p.drift) / p.drift_deviation.hypot(*error).max(1e-6))
            });
            kept.fold(1.0, f64::min)
        };
        let score = |combination: Combination| {
            let p = predictor.predict(combination);
            expected_improvement(best - p.cost, p.cost_deviation) * probability(&p)
        };
        let mut best_score = (WORTHWHILE, None);
        for combination in self.grid(&predictor) {
            let score = score(combination);
            if score > best_score.0 && !self.trials.iter().any(|trial| trial.strengths == combination) {
                best_score = (score, Some(combination));
            }
        }
        best_score.1
    }

    /// All combinations, at a resolution at which they are not too many.
    fn grid(&self, predictor: &Predictor) -> Vec<Combination> {
        let mut axes: Vec<_> = (0..COUNT).map(|family| predictor.strengths(family)).collect();
        while axes.iter().map(Vec::len).product::<usize>() > MAX_GRID {
            let Some(longest) = axes.iter_mut().max_by_key(|axis| axis.len()) else { break };
            // Keeps 0 and the strongest.
            let last = longest.len() - 1;
            let mut index = 0;
            longest.retain(|_| {
                index += 1;
                (index - 1) % 2 == 0 || index - 1 == last
            });
        }
        let mut grid = vec![Combination::default()];
        for (family, axis) in axes.iter().enumerate() {
            let with = |&strength: &u32, mut combination: Combination| {
                combination.0[family] = strength;
                combination
            };
            grid = grid.iter().flat_map(|&c| axis.iter().map(move |s| with(s, c))).collect();
        }
        grid
    }

    /// Reports the progress.
    fn announce(&self) {
        let Some(trial) = self.trials.last() else { return };
        let best = self.best().and_then(|(trial, _)| trial.measured()).map(|m| m.cost);
        self.options.environment.progress.event(&crate::Event::Tried {
            trial,
            number: self.trials.len(),
            best,
        });
    }

    /// Makes the result from the best pipeline, or from `safe`.
    fn finish(self, source: &Source) -> Result<Found, Error> {
        let environment = finishing(&self.options.environment);
        environment.progress.event(&crate::Event::Finishing);
        let make = |pipeline: &str| optimize(source.clone(), self.optimize_options(pipeline, &environment));
        let safe = make("safe")?;
        let mut kept: Vec<_> = self
            .trials
            .iter()
            .filter(|trial| trial.strengths != Combination::default())
            .filter_map(|trial| Some((trial, trial.measured()?.cost, self.accepted(trial.measured()?)?)))
            .collect();
        kept.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (mut optimized, mut best) = (safe, None);
        for (trial, _, confidence) in kept {
            let made = make(&trial.pipeline)?;
            if self.is_better(&made.model, &optimized.model)? {
                (optimized, best) = (made, Some((trial.clone(), confidence)));
                break;
            }
        }
        let latency = match self.options.goal {
            Goal::Latency => self.judge.result_latencies(&[&optimized.model])?.first().copied(),
            _ => None,
        };
        let front = front::front(&self.trials);
        if let Some(folder) = &self.options.front {
            front::write(folder, &front, &self.trials, &make)?;
        }
        let report = SearchReport::new(&self, &optimized, best, latency, front);
        Ok(Found { optimized, report })
    }

    /// Returns whether a result is better than `safe`, by a measurement of both at once.
    fn is_better(&self, result: &Model, safe: &Model) -> Result<bool, Error> {
        if self.options.goal != Goal::Latency {
            return Ok(true);
        }
        let ratios = self.judge.result_latencies(&[safe, result])?;
        Ok(ratios[1].median < ratios[0].median)
    }

    fn optimize_options(&self, pipeline: &str, environment: &Environment) -> OptimizeOptions {
        let options = self.options;
        let mut made = OptimizeOptions::from(pipeline)
            .samples(options.samples.clone())
            .quality(options.quality.clone())
            .freeze_initializers(options.freeze_initializers)
            .memory(options.memory)
            .external_data(options.external_data.clone())
            .environment(environment.clone());
        made.test.clone_from(&options.test);
        made.hold_out = options.test.is_none().then_some(options.hold_out);
        made.scratch.clone_from(&options.scratch);
        made
    }
}

/// The mean of `max(0, x)` for a normal variable.
fn expected_improvement(mean: f64, deviation: f64) -> f64 {
    let z = mean / deviation;
    mean * below(z) + deviation * (-z * z / 2.0).exp() / (2.0 * PI).sqrt()
}

/// The environment in which a cancelled search makes its result.
fn finishing(environment: &Environment) -> Environment {
    struct Finishing(Arc<dyn Progress>);
    impl Progress for Finishing {
        fn step(&self, stage: &str, done: u64, total: u64) {
            self.0.step(stage, done, total);
        }
        fn event(&self, event: &crate::Event<'_>) {
            self.0.event(event);
        }
    }
    let progress = Finishing(environment.progress.clone());
    environment.clone().progress(progress)
}
