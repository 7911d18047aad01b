//! Compares two models.

use crate::{
    Comparison, Environment, Error, Hint, QualityLimits, QualityOptions, Source,
    comparison::compare,
    environment::LazyEngine,
    options::{MEMORY, setters},
    runner::Data,
    samples::{fit_batches, open_or_generate},
};
use pare_graph::Model;
use pare_passes::analysis::evaluation::{TensorDrift, tensor_drifts};
use pare_runtime::{Outcome, ProofOptions, SampleSet, StatePair, Tolerance};
use serde::Serialize;
use std::path::PathBuf;

/// Options of [`verify`].
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Samples to compare on; generated from the types of the inputs without.
    pub samples: Option<PathBuf>,
    /// Limits that replace equality up to rounding.
    pub limits: QualityLimits,
    /// The measures of the outputs, and the mask of padding.
    pub quality: QualityOptions,
    /// Absolute differences that are accepted, by output; the empty name means all outputs.
    pub tolerance: Vec<(String, f64)>,
    /// Runs of each sample, each with the state that the previous one computed; 0 and 1 mean one.
    pub steps: usize,
    /// Inputs that receive the state, with the outputs that compute it; found by names and types if empty.
    pub state: Vec<(String, String)>,
    /// Compare all tensors that both models compute under the same name, not only the outputs.
    pub layers: bool,
    /// Bytes that activations may occupy; 0 means 2 GiB.
    pub memory: u64,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

setters!(VerifyOptions {
    /// Sets the limits.
    limits: QualityLimits,
    /// Sets the measures of the outputs, and the mask of padding.
    quality: QualityOptions,
    /// Sets the differences that are accepted.
    tolerance: Vec<(String, f64)>,
    /// Sets the number of runs of each sample.
    steps: usize,
    /// Sets the inputs and outputs that hold the state.
    state: Vec<(String, String)>,
    /// Compares all tensors that both models compute under the same name.
    layers: bool,
    /// Sets the limit of memory for tensors.
    memory: u64,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the samples.
    samples: PathBuf,
});

/// The result of [`verify`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The comparison.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// `agree` or `differ`.
    pub verdict: &'static str,
    /// The drift of each tensor along the depth, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<TensorDrift>>,
    /// The differences that are not accepted, one sentence each.
    pub failures: Vec<String>,
}

impl Verification {
    /// Returns true if the models agree.
    pub fn agrees(&self) -> bool {
        self.failures.is_empty()
    }
}

/// Runs two models on the same samples and compares their outputs.
///
/// Without limits the outputs must be equal up to the rounding noise of the reference: the change that the
/// engine's own optimizations cause in it.
///
/// ```
/// # #[cfg(feature = "tract")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use onnx_pare::{EngineKind, Environment, VerifyOptions, verify};
/// let model = std::path::Path::new("../fixtures/digits-fold.onnx");
/// let environment = Environment::default().engine(EngineKind::Tract);
/// let result = verify(model, model, &VerifyOptions::default().environment(environment))?;
/// assert!(result.agrees());
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "tract"))]
/// # fn main() {}
/// ```
///
/// # Errors
///
/// Errors of files, samples and the engine; models that differ are not an error.
pub fn verify(
    reference: impl Into<Source>,
    candidate: impl Into<Source>,
    options: &VerifyOptions,
) -> Result<Verification, Error> {
    let (reference, candidate) = (reference.into(), candidate.into());
    let name = reference.name().to_owned();
    let (reference, candidate) = (reference.load()?, candidate.load()?);
    let mut model = reference.model;
    model.infer().map_err(|e| Error::invalid(e).about(name))?;
    let mut samples = open_or_generate(options.samples.as_deref(), &model, options.environment.seed)?;
    let outputs: Vec<_> = model.graph.outputs().iter().map(|&o| model.graph.value(o).name.clone()).collect();
    let unknown = options.tolerance.iter().find(|(name, _)| !name.is_empty() && !outputs.contains(name));
    if let Some((name, _)) = unknown {
        return Err(Error::invalid_with(format!("there is no output `{name}`"), Hint::Outputs(outputs)));
    }
    let proof = ProofOptions {
        tolerance: Tolerance { given: options.tolerance.clone(), ..Tolerance::default() },
        any_order: true,
        // Limits take the place of equality up to rounding.
        measures_only: !options.limits.is_empty(),
        quality: options.quality.choose(&model, samples.labels().is_some())?,
        steps: options.steps,
        state: options.state.iter().cloned().map(|(input, output)| StatePair { input, output }).collect(),
        ..ProofOptions::default()
    };
    let memory = if options.memory == 0 { MEMORY } else { options.memory };
    fit_batches(&mut samples, &model, memory);
    let engine = LazyEngine::new(&options.environment);
    let comparison = compare(&engine, &reference.source, &candidate.source, &mut samples, proof)?;
    let failures = match comparison.outcome() {
        Outcome::Unproven { why } => {
            return Err(Error::invalid(format!("the models could not be compared: {why}")));
        }
        // A different interface, or a model that does not run, is beyond the limits.
        Outcome::Differs { output, .. } if output.is_empty() || options.limits.is_empty() => {
            comparison.difference().into_iter().collect()
        }
        _ => options.limits.exceeded(&comparison),
    };
    let verdict = if failures.is_empty() { "agree" } else { "differ" };
    let layers = options
        .layers
        .then(|| layers(options, memory, &engine, &model, &candidate.model, samples))
        .transpose()?;
    Ok(Verification { comparison, verdict, layers, failures })
}

/// The drift of each tensor, on the samples of a comparison.
fn layers(
    options: &VerifyOptions,
    memory: u64,
    engine: &LazyEngine<'_>,
    reference: &Model,
    candidate: &Model,
    samples: SampleSet,
) -> Result<Vec<TensorDrift>, Error> {
    let data = Data { samples: Some(samples.into()), ..Data::default() };
    let tools = data.tools(engine, &options.environment, memory);
    tensor_drifts(tools, reference, candidate).map_err(Error::invalid)
}
