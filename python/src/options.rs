//! Options, which Python passes as JSON. Python holds the defaults.

use crate::{attend::Line, errors::invalid, word};
use onnx_pare::{
    BenchOptions, CalibrateOptions, DataFiles, EngineOptimizations, Environment, Error, ExternalData, Goal,
    InspectOptions, Measure, OptimizeOptions, OutputMeasure, Pipeline, Prove, QualityLimits, QualityOptions,
    SearchOptions, VerifyOptions,
};
use pyo3::{PyResult, exceptions::PyTypeError};
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Reads options.
pub fn parse<T: DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| PyTypeError::new_err(error.to_string()))
}

/// An error of an option's text.
fn invalid_text(why: String) -> Error {
    invalid(why)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    engine: String,
    library: Option<PathBuf>,
    custom_ops: Vec<PathBuf>,
    provider: String,
    threads: usize,
    seed: u64,
}

impl Surroundings {
    fn build(self, line: Line) -> Result<Environment, Error> {
        let mut environment = Environment::default()
            .engine(self.engine.parse::<onnx_pare::EngineKind>().map_err(invalid_text)?)
            .offline(true)
            .custom_ops(self.custom_ops)
            .provider(self.provider.parse::<onnx_pare::Provider>().map_err(invalid_text)?)
            .threads(self.threads)
            .seed(self.seed)
            .progress(line);
        environment.library = self.library;
        Ok(environment)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    max_deviation: Option<f64>,
    min_agreement: Option<f64>,
    max_accuracy_drop: Option<f64>,
    max_disagreement: Option<f64>,
}

impl Limits {
    fn build(&self) -> QualityLimits {
        let mut limits = QualityLimits::default();
        limits.deviation = self.max_deviation;
        limits.agreement = self.min_agreement;
        limits.accuracy_drop = self.max_accuracy_drop;
        limits.disagreement = self.max_disagreement;
        limits
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quality {
    measures: BTreeMap<String, String>,
    mask: Option<String>,
}

impl Quality {
    fn build(self) -> Result<QualityOptions, Error> {
        let measure = |(name, text): (String, String)| {
            let measure: OutputMeasure = text.parse().map_err(invalid_text)?;
            Ok((name, measure))
        };
        let measures = self.measures.into_iter().map(measure).collect::<Result<_, Error>>()?;
        Ok(QualityOptions::new(measures, self.mask))
    }
}

/// A duration in seconds.
fn seconds(name: &str, given: f64) -> Result<Duration, Error> {
    Duration::try_from_secs_f64(given).map_err(|e| invalid(format!("`{name}`: {e}")))
}

/// The storage of weights: a word, and the threshold of `one` and `each`.
fn external_data(word_given: &str) -> Result<ExternalData, Error> {
    let words = [
        ("keep", ExternalData::Keep),
        ("embed", ExternalData::Embed),
        ("one", ExternalData::One(DataFiles::default())),
        ("each", ExternalData::Each(DataFiles::default())),
    ];
    word("external_data", word_given, &words)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimize {
    samples: Option<PathBuf>,
    teacher: Option<PathBuf>,
    test: Option<PathBuf>,
    hold_out: Option<f64>,
    statistics: Vec<PathBuf>,
    prove: String,
    prove_time: f64,
    limits: Limits,
    quality: Quality,
    time: bool,
    batch: usize,
    freeze_initializers: bool,
    stop_after: Option<u64>,
    memory: u64,
    details: bool,
    external_data: String,
    scratch: Option<PathBuf>,
    environment: Surroundings,
}

impl Optimize {
    pub fn build(self, pipeline: Pipeline, line: Line) -> Result<OptimizeOptions, Error> {
        let proofs = [("result", Prove::Result), ("each", Prove::EachPass), ("nothing", Prove::Nothing)];
        let mut options = OptimizeOptions::from(pipeline)
            .statistics(self.statistics)
            .prove(word("prove", &self.prove, &proofs)?)
            .prove_time(seconds("prove_time", self.prove_time)?)
            .limits(self.limits.build())
            .quality(self.quality.build()?)
            .time(self.time)
            .batch(self.batch)
            .freeze_initializers(self.freeze_initializers)
            .reproduce(true)
            .memory(self.memory)
            .details(self.details)
            .external_data(external_data(&self.external_data)?)
            .environment(self.environment.build(line)?);
        options.samples = self.samples;
        options.teacher = self.teacher;
        options.test = self.test;
        options.hold_out = self.hold_out;
        options.stop_after = self.stop_after;
        options.scratch = self.scratch;
        Ok(options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    goal: Goal,
    samples: PathBuf,
    test: Option<PathBuf>,
    hold_out: f64,
    max_accuracy_drop: Option<f64>,
    min_agreement: Option<f64>,
    max_drift: Option<f64>,
    max_metric_drop: Option<f64>,
    confidence: f64,
    /// Seconds.
    budget: f64,
    families: Vec<String>,
    batch: usize,
    quality: Quality,
    freeze_initializers: bool,
    memory: u64,
    details: bool,
    external_data: String,
    front: Option<PathBuf>,
    resume: bool,
    scratch: Option<PathBuf>,
    environment: Surroundings,
}

impl Search {
    pub fn build(self, line: Line) -> Result<SearchOptions, Error> {
        let budget = seconds("budget", self.budget)?;
        let mut options = SearchOptions::new(self.samples)
            .goal(self.goal)
            .hold_out(self.hold_out)
            .confidence(self.confidence)
            .budget(budget)
            .families(self.families)
            .batch(self.batch)
            .quality(self.quality.build()?)
            .freeze_initializers(self.freeze_initializers)
            .memory(self.memory)
            .resume(self.resume)
            .details(self.details)
            .external_data(external_data(&self.external_data)?)
            .environment(self.environment.build(line)?);
        options.limits.accuracy_drop = self.max_accuracy_drop;
        options.limits.agreement = self.min_agreement;
        options.limits.drift = self.max_drift;
        options.limits.metric_drop = self.max_metric_drop;
        options.test = self.test;
        options.front = self.front;
        options.scratch = self.scratch;
        Ok(options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    samples: Option<PathBuf>,
    limits: Limits,
    measures: BTreeMap<String, f64>,
    quality: Quality,
    tolerance: BTreeMap<String, f64>,
    steps: usize,
    state: BTreeMap<String, String>,
    layers: bool,
    memory: u64,
    environment: Surroundings,
}

impl Verify {
    pub fn build(self, line: Line) -> Result<VerifyOptions, Error> {
        let mut limits = self.limits.build();
        for (name, limit) in self.measures {
            limits.measures.push((name.parse::<Measure>().map_err(invalid_text)?, limit));
        }
        let mut options = VerifyOptions::default()
            .limits(limits)
            .quality(self.quality.build()?)
            .tolerance(self.tolerance.into_iter().collect::<Vec<_>>())
            .steps(self.steps)
            .state(self.state.into_iter().collect::<Vec<_>>())
            .layers(self.layers)
            .memory(self.memory)
            .environment(self.environment.build(line)?);
        options.samples = self.samples;
        Ok(options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bench {
    samples: Option<PathBuf>,
    batch: usize,
    dims: BTreeMap<String, i64>,
    rounds: usize,
    /// Seconds.
    min_time: f64,
    optimizations: String,
    environment: Surroundings,
}

impl Bench {
    pub fn build(self, line: Line) -> Result<BenchOptions, Error> {
        let levels = [
            ("off", EngineOptimizations::Off),
            ("basic", EngineOptimizations::Basic),
            ("extended", EngineOptimizations::Extended),
            ("all", EngineOptimizations::All),
        ];
        let time = Duration::try_from_secs_f64(self.min_time);
        let mut options = BenchOptions::default()
            .batch(self.batch)
            .dims(self.dims.into_iter().collect::<Vec<_>>())
            .rounds(self.rounds)
            .min_time(time.map_err(|e| invalid(format!("`min_time`: {e}")))?)
            .optimizations(word("optimizations", &self.optimizations, &levels)?)
            .environment(self.environment.build(line)?);
        options.samples = self.samples;
        Ok(options)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrate {
    samples: PathBuf,
    passes: String,
    merge: Vec<PathBuf>,
    positions: usize,
    memory: u64,
    environment: Surroundings,
}

impl Calibrate {
    pub fn build(self, line: Line) -> Result<CalibrateOptions, Error> {
        let pipeline = std::mem::take(OptimizeOptions::from(&*self.passes).pipeline()?);
        Ok(CalibrateOptions::new(self.samples)
            .pipeline(pipeline)
            .merge(self.merge)
            .positions(self.positions)
            .memory(self.memory)
            .environment(self.environment.build(line)?))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    dims: BTreeMap<String, i64>,
    samples: Option<PathBuf>,
    layers: bool,
}

impl Inspect {
    pub fn build(self, line: Line) -> InspectOptions {
        let mut options = InspectOptions::default()
            .dims(self.dims.into_iter().collect::<Vec<_>>())
            .layers(self.layers)
            .environment(Environment::default().progress(line));
        options.samples = self.samples;
        options
    }
}
