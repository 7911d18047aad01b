//! Measures the latency of models.

use crate::{Environment, Error, Source, environment::LazyEngine, options::setters, samples::FeedOptions};
use pare_runtime::{Contender, Feed, LoadOptions, ModelSource, Optimize, Stopwatch, bench as measure};
use serde::Serialize;
use std::{fmt::Display, path::PathBuf, time::Duration};

/// Options of [`bench()`].
#[derive(Clone)]
#[non_exhaustive]
pub struct BenchOptions {
    /// Inputs to run on; generated without.
    pub samples: Option<PathBuf>,
    /// Samples per run, where the models leave it open.
    pub batch: usize,
    /// Sizes of symbolic dimensions of generated inputs.
    pub dims: Vec<(String, i64)>,
    /// Rounds at least; each round runs every model.
    pub rounds: usize,
    /// Time to measure at least.
    pub min_time: Duration,
    /// The optimizations of the engine.
    pub optimizations: Optimize,
    /// Engine, threads (0 means one), seed, progress.
    pub environment: Environment,
}

setters!(BenchOptions {
    /// Sets the number of samples per run.
    batch: usize,
    /// Sets the sizes of symbolic dimensions.
    dims: Vec<(String, i64)>,
    /// Sets the least number of rounds.
    rounds: usize,
    /// Sets the least time.
    min_time: Duration,
    /// Sets the optimizations of the engine.
    optimizations: Optimize,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the inputs.
    samples: PathBuf,
});

impl Default for BenchOptions {
    /// 30 rounds of one sample and 3 s at least, with all optimizations.
    fn default() -> Self {
        Self {
            samples: None,
            batch: 1,
            dims: vec![],
            rounds: 30,
            min_time: Duration::from_secs(3),
            optimizations: Optimize::All,
            environment: Environment::default(),
        }
    }
}

/// The result of [`bench()`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BenchReport {
    /// Name and version of the engine.
    pub engine: String,
    /// Threads within one operator.
    pub threads: usize,
    /// The execution provider.
    pub provider: String,
    /// Samples per run.
    pub batch: usize,
    /// Rounds that were measured.
    pub rounds: usize,
    /// The latency of each model.
    pub models: Vec<Timing>,
}

/// The latency of one model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Timing {
    /// The model file.
    pub model: Option<PathBuf>,
    /// Median in seconds.
    pub median_s: f64,
    /// Lower quartile in seconds.
    pub low_s: f64,
    /// Upper quartile in seconds.
    pub high_s: f64,
    /// Median of the ratio to the time of the first model in the same round.
    pub ratio: f64,
    /// Lower quartile of the ratio.
    pub ratio_low: f64,
    /// Upper quartile of the ratio.
    pub ratio_high: f64,
}

/// Measures the latency of models in interleaved rounds.
///
/// ```no_run
/// use onnx_pare::{BenchOptions, Source, bench};
/// # fn main() -> Result<(), onnx_pare::Error> {
/// let models = ["model.onnx", "small.onnx"].map(|path| Source::from(std::path::Path::new(path)));
/// let report = bench(&models, &BenchOptions::default())?;
/// println!("{:.2} times the speed", 1.0 / report.models[1].ratio);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Invalid`] without models; errors of files, samples and the engine.
pub fn bench(models: &[Source], options: &BenchOptions) -> Result<BenchReport, Error> {
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let threads = environment.single_thread();
    let load = LoadOptions { threads, ..engine.load_options() }.with_optimize(options.optimizations);
    let first = models.first().ok_or_else(|| Error::invalid("there is no model to measure"))?;
    let feeds = FeedOptions {
        samples: options.samples.as_deref(),
        batch: options.batch,
        dims: &options.dims,
        seed: environment.seed,
    }
    .feeds(&first.clone().load()?.model)?;
    let mut sources = vec![];
    for source in models {
        sources.push((source.name(), source.clone().load()?.source));
    }
    let mut contenders = contenders(&engine, &load, sources, &feeds)?;
    let defaults = Stopwatch::default();
    let stopwatch = Stopwatch {
        rounds: options.rounds,
        min_time: options.min_time,
        max_time: defaults.max_time.max(options.min_time * 2),
        ..defaults
    };
    let report = measure(&mut contenders, &stopwatch)?;
    let timing = |((source, s), r): ((&Source, &pare_runtime::Spread), &pare_runtime::Spread)| Timing {
        model: source.path().map(Into::into),
        median_s: s.median,
        low_s: s.low,
        high_s: s.high,
        ratio: r.median,
        ratio_low: r.low,
        ratio_high: r.high,
    };
    let timings = models.iter().zip(&report.seconds).zip(&report.ratios).map(timing);
    Ok(BenchReport {
        engine: engine.description()?,
        threads,
        provider: environment.provider.to_string(),
        batch: options.batch,
        rounds: report.rounds,
        models: timings.collect(),
    })
}

/// Loads models, which names of errors concern, to be measured on `feeds`.
pub(crate) fn contenders(
    engine: &LazyEngine<'_>,
    options: &LoadOptions,
    models: Vec<(impl Display, ModelSource)>,
    feeds: &[Feed],
) -> Result<Vec<Contender>, Error> {
    let contender = |(name, source): (_, ModelSource)| {
        let about = |e| Error::from(e).about(&name);
        let session = engine.engine()?.load(&source, options).map_err(about)?;
        Contender::new(session, feeds).map_err(about)
    };
    models.into_iter().map(contender).collect()
}
