//! The zeros that a pipeline leaves among the weights.

use crate::{
    Environment, Error, Hint, Source,
    environment::LazyEngine,
    options::{MEMORY, setters},
    output::write_file,
    runner::Data,
};
use pare_passes::{Pipeline, RunOptions, run, transforms::weights::Mask};
use std::path::{Path, PathBuf};

/// Options of [`mask`].
#[non_exhaustive]
pub struct MaskOptions {
    /// The pipeline, such as `sparsify{ratio=0.8,cascade=false}`.
    pub pipeline: Pipeline,
    /// Samples for calibration.
    pub samples: Option<PathBuf>,
    /// Bytes that activations of samples may occupy.
    pub memory: u64,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

setters!(MaskOptions {
    /// Sets the limit of memory for activations in bytes.
    memory: u64,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the samples for calibration.
    samples: PathBuf,
});

impl MaskOptions {
    /// Options for this pipeline.
    pub fn new(pipeline: Pipeline) -> Self {
        Self { pipeline, samples: None, memory: MEMORY, environment: Environment::default() }
    }
}

/// A mask of weights.
#[non_exhaustive]
pub struct Masked {
    mask: Mask,
    /// Tensors in the mask.
    pub tensors: usize,
    /// Weights in the mask.
    pub weights: usize,
    /// Weights that are kept.
    pub kept: usize,
}

impl Masked {
    /// Serialises the mask: a safetensors file of booleans named after the weights, for the pass
    /// `apply-mask`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        self.mask.to_bytes().map_err(Error::invalid)
    }

    /// Writes the mask atomically.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        write_file(path.as_ref(), &self.to_bytes()?)
    }
}

/// Runs a pipeline, and returns a mask of the weights that are not zero after it.
///
/// ```no_run
/// use onnx_pare::{MaskOptions, mask};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = MaskOptions::new("sparsify{ratio=0.8,cascade=false}".parse()?).samples("samples.npz");
/// mask(std::path::Path::new("model.onnx"), &options)?.write("mask.safetensors")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Invalid`] if the pipeline renames or reshapes weights; errors of files, samples, passes and the
/// engine.
pub fn mask(source: impl Into<Source>, options: &MaskOptions) -> Result<Masked, Error> {
    let source = source.into();
    let name = source.name().to_owned();
    let before = source.load()?.model;
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let data = Data::with_samples(options.samples.as_deref(), &before)?;
    let tools = data.tools(&engine, environment, options.memory);
    let mut after = before.clone();
    run(&options.pipeline, &mut after, RunOptions::new(tools), &mut ())
        .map_err(|e| environment.run_error(e))?;
    let mask = Mask::between(&before, &after).map_err(|e| {
        Error::invalid_with(format!("the pipeline leaves no mask of {name}: {e}"), Hint::KeepWeights)
    })?;
    let (weights, kept) = mask.counts();
    Ok(Masked { tensors: mask.tensors.len(), mask, weights, kept })
}
