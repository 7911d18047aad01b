//! Options of a search.

use super::{
    family::{COUNT, FAMILIES},
    journal::JournalKey,
};
use crate::{
    Environment, Error, Hint, Metric, QualityOptions,
    options::{MEMORY, setters},
};
use pare_graph::onnx::ExternalData;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf, time::Duration};

/// The quantity that is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Options of [`search()`](super::search()).
#[derive(Clone)]
#[non_exhaustive]
pub struct SearchOptions {
    /// The quantity that is minimised.
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
    /// Time for the search and its result.
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
    /// Compare layers, tensors and samples of the result, for a report in HTML.
    pub details: bool,
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
    /// Sets the time for the search and its result.
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
    /// Requests the comparison of layers, tensors and samples.
    details: bool,
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
            details: false,
            front: None,
            environment: Environment::default(),
        }
    }

    /// The selected families.
    pub(super) fn selected(&self) -> Result<Vec<usize>, Error> {
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

    pub(crate) fn check(&self) -> Result<(), Error> {
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

    /// Everything that the outcome of a trial depends on.
    pub(super) fn key(&self, engine: &str, original: &[u8]) -> Result<JournalKey, Error> {
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

/// The canonical form in a lock file. The budget is left out: a longer one does not make a result wrong.
impl fmt::Display for SearchOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { goal, limits, metric, hold_out, confidence, families, batch, environment, .. } = self;
        let threads = environment.threads;
        write!(
            f,
            "{goal:?} {limits:?} {metric:?} hold out {hold_out} confidence {confidence} {families:?} batch {batch} \
             threads {threads}"
        )?;
        if environment.provider.is_cpu() { Ok(()) } else { write!(f, " provider {}", environment.provider) }
    }
}

impl fmt::Debug for SearchOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SearchOptions({self})")
    }
}
