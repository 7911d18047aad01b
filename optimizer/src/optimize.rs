//! Runs a pipeline over a model and proves the result.

use crate::{
    Defect, Details, Environment, Error, Event, Hint, Latency, Proof, Prove, QualityLimits, QualityOptions,
    Reproducer, Source, WeightStatistics, Written, bisect,
    calibrate::read_statistics,
    environment::LazyEngine,
    latency::LatencyMeter,
    options::{MEMORY, PROVE_TIME, setters},
    output::write_model,
    proof::Claim,
    reproducer::FaultKind,
    runner::{Data, Placement, Runner},
    samples::{FeedOptions, open, open_or_generate, split},
    source::LoadedModel,
    stages::Stages,
};
use pare_graph::{
    Model, Samples,
    onnx::{self, ExternalData},
};
use pare_passes::{Effect, Pipeline, Report, Tools};
use pare_runtime::{Outcome, SampleSet};
use serde::Serialize;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The metadata entry that holds the pipeline.
pub const PIPELINE_KEY: &str = "pare.pipeline";

/// Options of [`optimize`]. A pipeline in text form converts into options with defaults.
///
/// ```
/// use onnx_pare::{OptimizeOptions, Prove};
/// let mut options = OptimizeOptions::from("safe,prune-channels{macs=0.5}")
///     .samples("calibration.npz")
///     .prove(Prove::EachPass);
/// assert!(options.pipeline().is_ok());
/// ```
#[non_exhaustive]
pub struct OptimizeOptions {
    pipeline: PipelineOption,
    /// Samples for calibration and comparison: a `.npz` or `.npy` file, or a folder of ONNX test data.
    /// Without, the comparison uses generated samples.
    pub samples: Option<PathBuf>,
    /// Files of statistics written by [`calibrate`](crate::calibrate); their sums are added.
    pub statistics: Vec<PathBuf>,
    /// The model that training aims at; the model itself, as it enters the pipeline, without.
    pub teacher: Option<PathBuf>,
    /// Samples for the comparison only, never used for calibration.
    pub test: Option<PathBuf>,
    /// Share of the samples that is not used for calibration, but for the comparison; of those at their end.
    pub hold_out: Option<f64>,
    /// The comparisons of the proof.
    pub prove: Prove,
    /// Time after which a comparison on `samples` ends. With limits, and on `test`, all samples are compared.
    pub prove_time: Duration,
    /// Limits on the loss of quality.
    pub limits: QualityLimits,
    /// The measures of the outputs, and the mask of padding.
    pub quality: QualityOptions,
    /// True to measure the latency of the original and of the result, if they are compared.
    pub time: bool,
    /// Samples per run that is measured, where the model leaves it open.
    pub batch: usize,
    /// Treat initializers that are also inputs as constants, so that callers cannot override them.
    pub freeze_initializers: bool,
    /// Patches to apply at most.
    pub stop_after: Option<u64>,
    /// True to search for the smallest part of the model that fails in the same way when a pass is at fault.
    pub reproduce: bool,
    /// Bytes that activations of samples may occupy.
    pub memory: u64,
    /// Compare layers, tensors and samples too, for a report in HTML.
    pub details: bool,
    /// The storage of the result's weights, in the model file or beside it.
    pub external_data: ExternalData,
    /// Folder for temporary files of models that exceed the limit of 2 GiB in memory.
    pub scratch: Option<PathBuf>,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

enum PipelineOption {
    Text(String),
    Parsed(Pipeline),
}

setters!(OptimizeOptions {
    /// Sets the files of statistics.
    statistics: Vec<PathBuf>,
    /// Sets the comparisons of the proof.
    prove: Prove,
    /// Sets the time after which a comparison on the samples ends.
    prove_time: Duration,
    /// Sets the limits on the loss of quality.
    limits: QualityLimits,
    /// Sets the measures of the outputs, and the mask of padding.
    quality: QualityOptions,
    /// Requests the measurement of latency.
    time: bool,
    /// Sets the number of samples per run that is measured.
    batch: usize,
    /// Treats initializers that are also inputs as constants.
    freeze_initializers: bool,
    /// Requests a reproducer when a pass is at fault.
    reproduce: bool,
    /// Sets the limit of memory for activations in bytes.
    memory: u64,
    /// Requests the comparison of layers, tensors and samples.
    details: bool,
    /// Sets the storage of the result's weights.
    external_data: ExternalData,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the samples for calibration and comparison.
    samples: PathBuf,
    /// Sets the model that training aims at.
    teacher: PathBuf,
    /// Sets the samples for the comparison only.
    test: PathBuf,
    /// Sets the share of the samples that is held out of calibration.
    hold_out: f64,
    /// Sets the number of patches to apply at most.
    stop_after: u64,
    /// Sets the folder for temporary files.
    scratch: PathBuf,
});

impl Default for OptimizeOptions {
    /// The pipeline `safe`, proven on generated samples.
    fn default() -> Self {
        "safe".into()
    }
}

impl From<&str> for OptimizeOptions {
    /// A pipeline in text form; [`optimize`] reports errors in it.
    fn from(pipeline: &str) -> Self {
        Self::with(PipelineOption::Text(pipeline.to_owned()))
    }
}

impl From<Pipeline> for OptimizeOptions {
    fn from(pipeline: Pipeline) -> Self {
        Self::with(PipelineOption::Parsed(pipeline))
    }
}

impl OptimizeOptions {
    fn with(pipeline: PipelineOption) -> Self {
        Self {
            pipeline,
            samples: None,
            statistics: vec![],
            teacher: None,
            test: None,
            hold_out: None,
            prove: Prove::default(),
            prove_time: PROVE_TIME,
            limits: QualityLimits::default(),
            quality: QualityOptions::default(),
            time: true,
            batch: 1,
            freeze_initializers: false,
            stop_after: None,
            reproduce: false,
            memory: MEMORY,
            details: false,
            external_data: ExternalData::default(),
            scratch: None,
            environment: Environment::default(),
        }
    }

    /// Parses the pipeline, if it is in text form, and returns it.
    ///
    /// # Errors
    ///
    /// [`Error::Pipeline`].
    pub fn pipeline(&mut self) -> Result<&mut Pipeline, Error> {
        if let PipelineOption::Text(text) = &self.pipeline {
            self.pipeline = PipelineOption::Parsed(text.parse().map_err(|e| Error::pipeline(e, text))?);
        }
        match &mut self.pipeline {
            PipelineOption::Parsed(pipeline) => Ok(pipeline),
            PipelineOption::Text(_) => unreachable!("the pipeline was parsed"),
        }
    }
}

/// A model after a pipeline.
#[derive(Debug)]
#[non_exhaustive]
pub struct Optimized {
    /// The model. Its metadata holds the pipeline if it changed ([`PIPELINE_KEY`]).
    pub model: Model,
    /// True if the model differs from the original.
    pub changed: bool,
    /// The report.
    pub report: OptimizeReport,
    /// The files that the model was read from.
    pub(crate) files: Vec<PathBuf>,
    external_data: ExternalData,
    start: Instant,
}

/// A result that does not keep a promise or a limit.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rejected {
    /// The report; its proof lists the failures.
    pub report: OptimizeReport,
    /// The smallest part of the model that fails in the same way, if one was requested and found.
    pub reproducer: Option<Reproducer>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.report.proof.as_ref().map_or(&[][..], |proof| &proof.failures);
        write!(f, "{}", failures.join("; "))
    }
}

/// The report of [`optimize`]; `cli/REPORTS.md` describes its JSON.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct OptimizeReport {
    /// The model file, if the model was read from one.
    pub model: Option<PathBuf>,
    /// The output file.
    pub output: Option<PathBuf>,
    /// True if the output was written.
    pub written: bool,
    /// The pipeline in text form.
    pub pipeline: String,
    /// The size of the original.
    pub before: ModelSize,
    /// The size of the result.
    pub after: ModelSize,
    /// The steps of the pipeline.
    #[serde(flatten)]
    pub run: Report,
    /// The proof; `None` with [`Prove::Nothing`].
    pub proof: Option<Proof>,
    /// Seconds that everything took.
    pub seconds: f64,
    /// Statistics of the weights, if a pass changed their values.
    pub weights: Option<WeightStatistics>,
    /// Layers, tensors and samples, if they were requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
    /// The latency of the original and of the result; `None` if the model did not change, if it was not compared
    /// with the result, or if they do not run on the same inputs.
    pub latency: Option<Latency>,
}

impl OptimizeReport {
    /// Returns true if the model changed and the comparison with the original proved nothing.
    pub fn is_unproven(&self) -> bool {
        let unproven = |proof: &Proof| matches!(proof.overall.outcome(), Outcome::Unproven { .. });
        self.run.patches() > 0 && self.proof.as_ref().is_some_and(unproven)
    }
}

/// The size of a model.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelSize {
    /// Nodes, subgraphs and functions included.
    pub nodes: u64,
    /// Elements of the weights.
    pub parameters: u64,
    /// Multiply-accumulates of one sample; symbolic dimensions have the sizes of the samples, 1 without.
    pub macs: u64,
    /// Bytes of its files; `None` if it was not written.
    pub bytes: Option<u64>,
}

impl ModelSize {
    fn of(model: &Model, tools: Tools<'_>, bytes: Option<u64>) -> Self {
        let mut model = model.clone();
        // The model was inferred before; without shapes, what depends on them counts as zero.
        let _ = model.infer();
        let cost = model.cost(&tools.sizes(&model.graph));
        Self { nodes: model.node_count() as u64, parameters: cost.params, macs: cost.macs, bytes }
    }
}

impl Optimized {
    /// The remedy if nothing was found to improve.
    pub fn hint(&self) -> Option<Hint> {
        let overridable = self.model.graph.overridable();
        (overridable > 0 && !self.changed).then_some(Hint::FreezeInitializers { overridable })
    }

    /// Serialises the model.
    ///
    /// # Errors
    ///
    /// [`Error::Write`] if it exceeds the limit of 2 GiB of one protobuf message; [`Optimized::write`] then
    /// writes the weights into a second file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        Ok(onnx::to_bytes(&self.model)?)
    }

    /// Writes the model atomically, and records the output in the report.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write(&mut self, path: impl AsRef<Path>) -> Result<Written, Error> {
        let written = write_model(&self.model, path.as_ref(), &self.external_data)?;
        self.record(path.as_ref(), written.bytes);
        Ok(written)
    }

    /// Writes the model to a stream, and records the size in the report under the name `-`.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write_to(&mut self, to: impl io::Write) -> Result<(), Error> {
        let bytes = onnx::write_to(&self.model, to)?;
        self.record(Path::new("-"), bytes);
        Ok(())
    }

    fn record(&mut self, output: &Path, bytes: u64) {
        self.report.output = Some(output.to_owned());
        self.report.written = true;
        self.report.after.bytes = Some(bytes);
        self.report.seconds = self.start.elapsed().as_secs_f64();
    }

    /// Returns true if an engine showed that the result equals the original up to rounding.
    pub fn is_proven_equal(&self) -> bool {
        self.report.proof.as_ref().is_some_and(|proof| *proof.overall.outcome() == Outcome::Equal)
    }
}

/// Runs a pipeline over a model, and returns the result if it keeps what the passes promise.
///
/// The original and the result are run on the same samples. Passes whose effect is [`Effect::Exact`] or
/// [`Effect::Rounding`] must keep every output, up to the rounding noise of the original itself; lossy passes
/// must keep the limits of the options.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use onnx_pare::{Environment, OptimizeOptions, optimize};
/// # let environment = Environment::default();
/// # #[cfg(feature = "tract")]
/// # let environment = environment.engine(onnx_pare::EngineKind::Tract);
/// let options = OptimizeOptions::from("safe").environment(environment);
/// let small = optimize(std::path::Path::new("../fixtures/digits-fold.onnx"), options)?;
/// assert!(small.report.after.nodes < small.report.before.nodes);
/// # #[cfg(feature = "tract")]
/// assert!(small.is_proven_equal());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Rejected`] if the result does not keep a promise or a limit, [`Error::Defect`] if a pass is
/// defective, and other errors if options, files or the engine do not allow the run.
pub fn optimize(source: impl Into<Source>, options: impl Into<OptimizeOptions>) -> Result<Optimized, Error> {
    let start = Instant::now();
    let mut options = options.into();
    let pipeline = std::mem::take(options.pipeline()?);
    check_limits(&options)?;

    // Read.
    let source = source.into();
    let path = source.path().map(Path::to_owned);
    let LoadedModel { model, source, bytes } = source.load()?;
    let files = model.files().map(Path::to_owned).collect();
    let mut original = model;
    if options.freeze_initializers {
        original.graph.freeze_initializers();
    }
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    engine.check_requests()?;
    let mut data = read_data(&options, &original)?;
    let test = data.test.take();

    // Run.
    let runner = Runner {
        environment,
        engine: &engine,
        pipeline: &pipeline,
        tools: data.tools(&engine, environment, options.memory),
        stop_after: options.stop_after,
        samples: options.samples.as_deref(),
        test: options.test.as_deref(),
        prove_time: options.limits.is_empty().then_some(options.prove_time),
        placement: Placement::new(&original, &source, options.scratch.as_deref()),
    };
    announce_calibration(&runner, &original);
    let mut model = original.clone();
    let mut stages = Stages::new(&pipeline, options.prove, environment.progress.clone(), &original);
    let run = runner
        .run(&mut model, options.stop_after, &mut stages)
        .map_err(|error| Defect::of(error, &runner, &original, options.reproduce))?;
    let changed = run.patches() > 0 || options.freeze_initializers;
    if changed {
        model.set_metadata(PIPELINE_KEY, &pipeline.to_string());
    }

    // Prove.
    let claim = Claim {
        original: &original,
        result: &model,
        stages: &stages.finish(),
        mode: options.prove,
        limits: &options.limits,
        interface: run.interface().cloned().collect(),
    };
    let proof = match options.prove {
        Prove::Nothing => None,
        _ => Some(claim.prove(&runner, test)?),
    };

    // Report.
    let mut report = OptimizeReport {
        model: path,
        output: None,
        written: false,
        pipeline: pipeline.to_string(),
        before: ModelSize::of(&original, runner.tools, Some(bytes)),
        after: ModelSize::of(&model, runner.tools, None),
        run,
        proof,
        seconds: start.elapsed().as_secs_f64(),
        weights: None,
        details: None,
        latency: None,
    };
    if report.proof.as_ref().is_some_and(|proof| !proof.failures.is_empty()) {
        let reproducer = reproduce(&runner, &original, &report, options.reproduce);
        environment.check_cancelled()?;
        return Err(Error::Rejected(Box::new(Rejected { report, reproducer })));
    }
    report.weights = WeightStatistics::of(&report.run, &original, &model)?;
    if changed && options.time && options.prove != Prove::Nothing {
        report.latency = latency(&runner, &options, &original, &model, &report.run)?;
    }
    if options.details && cfg!(feature = "engine") {
        report.details = Some(details(&options, &engine, &data, &original, &model)?);
    }
    report.seconds = start.elapsed().as_secs_f64();
    let external_data = options.external_data;
    Ok(Optimized { model, changed, report, files, external_data, start })
}

/// Limits need a proof.
fn check_limits(options: &OptimizeOptions) -> Result<(), Error> {
    if options.prove == Prove::Nothing && !options.limits.is_empty() {
        return Err(Error::invalid_with("limits cannot be checked without a proof", Hint::NeedsProof));
    }
    Ok(())
}

fn read_data(options: &OptimizeOptions, model: &Model) -> Result<Data, Error> {
    let mut data = Data { statistics: read_statistics(&options.statistics)?, ..Data::default() };
    data.test = options.test.as_ref().map(|path| open(path, model)).transpose()?;
    data.teacher = options.teacher.as_deref().map(read_teacher).transpose()?;
    match (&options.samples, options.hold_out) {
        (Some(path), Some(share)) if data.test.is_none() => {
            let (samples, held_out) = split(open(path, model)?, path, model, share)?;
            (data.samples, data.test) = (Some(samples.into()), Some(held_out));
        }
        (Some(path), _) => data.samples = Some(open(path, model)?.into()),
        (None, _) => {}
    }
    let labels = [
        data.samples.as_ref().and_then(|samples| samples.labels()),
        data.test.as_ref().and_then(SampleSet::labels),
    ];
    data.quality = Some(options.quality.choose(model, labels.iter().any(Option::is_some))?);
    Ok(data)
}

/// Reads the model that training aims at, with its types.
fn read_teacher(path: &Path) -> Result<Model, Error> {
    let mut teacher = Source::from(path).load()?.model;
    // If inference fails, the engine fails too, with an error that names the node.
    let _ = teacher.infer();
    Ok(teacher)
}

/// The differences in detail, on the samples that the models are compared on.
fn details(
    options: &OptimizeOptions,
    engine: &LazyEngine<'_>,
    data: &Data,
    original: &Model,
    result: &Model,
) -> Result<Details, Error> {
    let path = options.test.as_deref().or(options.samples.as_deref());
    let samples = open_or_generate(path, original, options.environment.seed)?;
    let data = Data { samples: Some(samples.into()), quality: data.quality.clone(), ..Data::default() };
    Details::measure(data.tools(engine, &options.environment, options.memory), original, result)
}

/// Reports the memory that calibration takes, before it starts.
fn announce_calibration(runner: &Runner<'_>, model: &Model) {
    let Some(samples) = runner.tools.samples.filter(|_| runner.pipeline.effect() == Effect::Lossy) else {
        return;
    };
    let mut model = model.clone();
    let _ = model.infer();
    runner.environment.progress.event(&Event::Calibrating {
        samples: samples.len(),
        bytes_per_sample: model.cost(&runner.tools.sizes(&model.graph)).activation_peak,
        memory: runner.tools.memory,
    });
}

/// The latency of both models; `None` without an engine, or if they do not run on the same inputs.
fn latency(
    runner: &Runner<'_>,
    options: &OptimizeOptions,
    original: &Model,
    result: &Model,
    run: &Report,
) -> Result<Option<Latency>, Error> {
    let environment = runner.environment;
    let measured = || {
        let samples = runner.samples.or(runner.test);
        let feeds = FeedOptions { samples, batch: options.batch, dims: &[], seed: environment.seed };
        let meter = LatencyMeter {
            engine: runner.engine,
            placement: &runner.placement,
            threads: environment.single_thread(),
            batch: options.batch,
        };
        meter.report(original, result, &feeds.feeds(original)?, run)
    };
    let latency = if cfg!(feature = "engine") { measured().ok() } else { None };
    environment.check_cancelled()?;
    Ok(latency)
}

/// The reproducer of a broken promise of equality.
fn reproduce(
    runner: &Runner<'_>,
    original: &Model,
    report: &OptimizeReport,
    requested: bool,
) -> Option<Reproducer> {
    let proof = report.proof.as_ref().filter(|_| requested)?;
    match proof.overall.outcome() {
        Outcome::Differs { output, .. } if proof.effect < Effect::Lossy => {
            Reproducer::find(runner, original, FaultKind::of_difference(output), Some(bisect::MAX_TIME))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
