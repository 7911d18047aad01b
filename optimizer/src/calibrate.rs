//! Collects statistics of activations.

use crate::{
    Environment, Error, Source,
    environment::LazyEngine,
    options::{MEMORY, setters},
    runner::Data,
};
use pare_passes::{
    Pipeline, RunOptions,
    analysis::calibration::{Sampling, collect_statistics},
    run,
    statistics::Statistics,
};
use std::path::{Path, PathBuf};

/// Options of [`calibrate`].
#[non_exhaustive]
pub struct CalibrateOptions {
    /// Samples to run: a `.npz` or `.npy` file, or a folder of ONNX test data.
    pub samples: PathBuf,
    /// The pipeline that runs first: the passes before the one that uses the statistics.
    pub pipeline: Pipeline,
    /// Files of statistics to add, such as those of other parts of the samples.
    pub merge: Vec<PathBuf>,
    /// Positions of each sample that are used.
    pub positions: usize,
    /// Bytes that activations and sums may occupy.
    pub memory: u64,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

setters!(CalibrateOptions {
    /// Sets the pipeline that runs first.
    pipeline: Pipeline,
    /// Sets the files of statistics to add.
    merge: Vec<PathBuf>,
    /// Sets the number of positions of each sample.
    positions: usize,
    /// Sets the limit of memory in bytes.
    memory: u64,
    /// Sets the environment.
    environment: Environment,
});

impl CalibrateOptions {
    /// Options for these samples, after the pipeline `safe`.
    pub fn new(samples: impl Into<PathBuf>) -> Self {
        Self {
            samples: samples.into(),
            pipeline: "safe".parse().unwrap_or_default(),
            merge: vec![],
            positions: 32,
            memory: MEMORY,
            environment: Environment::default(),
        }
    }
}

/// Statistics of activations.
#[non_exhaustive]
pub struct Calibration {
    statistics: Statistics,
    /// Linear operators.
    pub operators: usize,
    /// Samples that were run.
    pub samples: usize,
    /// Rows that the statistics cover.
    pub rows: u64,
}

impl Calibration {
    /// The sum of the statistics in these files, such as those of parts of the samples; no samples are run.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] without files, if one cannot be read, and if they are of different models.
    pub fn merged(paths: &[PathBuf]) -> Result<Self, Error> {
        let statistics = read_statistics(paths)?;
        let statistics = statistics.ok_or_else(|| Error::invalid("there are no statistics to merge"))?;
        let (operators, rows) = (statistics.len(), statistics.rows());
        Ok(Self { statistics, operators, samples: 0, rows })
    }

    /// Writes the statistics in the safetensors format; returns the size in bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<u64, Error> {
        self.statistics.write(path.as_ref()).map_err(Error::invalid)
    }
}

/// Runs a model on samples and collects the statistics that passes need for calibration.
///
/// ```no_run
/// use onnx_pare::{CalibrateOptions, calibrate};
/// # fn main() -> Result<(), onnx_pare::Error> {
/// let model = std::path::Path::new("model.onnx");
/// calibrate(model, &CalibrateOptions::new("samples.npz"))?.write("statistics.safetensors")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Invalid`] if the model has no linear operator with constant weights; errors of files, samples,
/// passes and the engine.
pub fn calibrate(source: impl Into<Source>, options: &CalibrateOptions) -> Result<Calibration, Error> {
    let source = source.into();
    let name = source.name().to_owned();
    let earlier = read_statistics(&options.merge)?;
    let mut model = source.load()?.model;
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let data = Data::with_samples(Some(&options.samples), &model)?;
    let tools = data.tools(&engine, environment, options.memory);
    run(&options.pipeline, &mut model, RunOptions::new(tools), &mut ())
        .map_err(|e| environment.run_error(e))?;
    model.infer().map_err(Error::invalid)?;
    let samples = tools.samples.map_or(0, pare_graph::Samples::len);
    let sampling = Sampling { positions: options.positions, seed: environment.seed };
    let mut statistics = collect_statistics(tools, &model, 0..samples, sampling)
        .map_err(|e| Error::invalid(e).about(&name))?;
    if statistics.is_empty() {
        return Err(Error::invalid(format!("{name} has no linear operator with constant weights")));
    }
    if let Some(earlier) = earlier {
        statistics.merge(earlier).map_err(Error::invalid)?;
    }
    let (operators, rows) = (statistics.len(), statistics.rows());
    Ok(Calibration { statistics, operators, samples, rows })
}

/// The sum of the statistics in these files; `None` without files.
pub(crate) fn read_statistics(paths: &[PathBuf]) -> Result<Option<Statistics>, Error> {
    let mut sum: Option<Statistics> = None;
    for path in paths {
        let next = Statistics::read(path)?;
        match &mut sum {
            Some(sum) => sum.merge(next).map_err(Error::invalid)?,
            None => sum = Some(next),
        }
    }
    Ok(sum)
}
