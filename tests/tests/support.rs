//! Helpers of the integration tests.

use pare_graph::Model;
use pare_passes::{Effect, Pipeline, Report, RunOptions, Tools, run};
use pare_runtime::declared_change;
use pare_tests::fixtures::evaluator;
pub use pare_tests::fixtures::{Reference, bytes, engine, root};

/// Tools with the engine.
pub fn tools() -> Tools<'static> {
    Tools { engine: Some(evaluator()), ..Tools::default() }
}

/// A number from the environment, for heavy runs.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The model after the pipeline.
pub fn after(pipeline: &Pipeline, model: &Model) -> Result<(Model, Report), String> {
    let mut changed = model.clone();
    let report = run(pipeline, &mut changed, RunOptions::new(tools()), &mut ()).map_err(|e| e.to_string())?;
    Ok((changed, report))
}

/// Both models have the same inputs and outputs: names, order, types, symbolic sizes.
pub fn same_interface(a: &Model, b: &Model) -> Result<(), String> {
    declared_change(a, b).map_or(Ok(()), Err)
}

/// Compares the outputs of two models on `samples` generated samples for each assignment of symbolic dims:
/// bitwise if the effect is exact.
pub fn same_outputs(a: &Model, b: &Model, effect: Effect, samples: usize) -> Result<(), String> {
    Reference::new(a, samples)?.check_equal(b, effect == Effect::Exact)
}

/// The model as text for messages.
pub fn brief(model: &Model) -> String {
    pare_tests::fixtures::brief(model, 4)
}
