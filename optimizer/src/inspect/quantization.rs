//! The cost of rounding of each layer.

use super::{Checked, InspectOptions};
use crate::{Error, Source, environment::LazyEngine, runner::Data};
use pare_passes::{
    Context, Pipeline, RunOptions, Tools, registry::REGISTRY, run, transforms::weights::rounding_costs,
};
use serde::Serialize;
use std::path::PathBuf;

/// The layers of a model, with the cost of their rounding to eight bits.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Quantization {
    /// The model file.
    pub model: Option<PathBuf>,
    /// The layers, the one with the most drift first.
    pub layers: Vec<QuantizedLayer>,
    /// The engine.
    pub engine: String,
}

/// A layer, or a product of two activations.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QuantizedLayer {
    /// The name of its weights; of a product, that of its output.
    pub name: String,
    /// The operator.
    pub operator: String,
    /// The signal of the weights over the noise of their rounding, in dB.
    pub weight_snr: Option<f64>,
    /// The drift of the outputs, if only this layer is in integers.
    pub drift: f64,
    /// The part of the latency of float that integers save here, beside all other layers in integers.
    pub saved: f64,
}

/// The preparation of models for which the costs are those of `quantize`.
const PREPARATION: &str = "safe";

/// Measures what the rounding of each layer costs on the samples, after the passes of `safe`.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model; errors of the samples, of `quantize` and of the
/// engine.
pub fn inspect_quantization(
    source: impl Into<Source>,
    options: &InspectOptions,
) -> Result<Quantization, Error> {
    let Checked { mut model, path, .. } = Checked::load(source.into())?;
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let data = Data::with_samples(options.samples.as_deref(), &model)?;
    let tools = data.tools(&engine, environment, Tools::default().memory);
    let pipeline: Pipeline = PREPARATION.parse().map_err(|e| Error::pipeline(e, PREPARATION))?;
    run(&pipeline, &mut model, RunOptions::new(tools), &mut ()).map_err(|e| environment.run_error(e))?;
    model.infer().map_err(Error::invalid)?;
    let mut cx = Context::new(tools, &REGISTRY);
    let costs = rounding_costs(&model, &mut cx)
        .map_err(|error| environment.run_error(pare_passes::RunError::Pass { pass: "quantize", error }))?;
    let layer = |cost: pare_passes::transforms::weights::RoundingCost| QuantizedLayer {
        name: cost.name,
        operator: cost.operator,
        weight_snr: cost.weight_snr,
        drift: cost.drift,
        saved: cost.saved,
    };
    Ok(Quantization {
        model: path,
        layers: costs.into_iter().map(layer).collect(),
        engine: engine.description()?,
    })
}
