//! Latency of models, measured in interleaved rounds with all engine optimizations.

use crate::{
    analysis::{calibration::open_inputs, timing_inputs::random_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{EvaluateError, Graph, Model, Setting, Tensor, ValueId, evaluate::stopwatch::Stopwatch};

/// Rounds in which each model is timed.
const ROUNDS: usize = 15;
/// Seconds that a model is run in each round, and how often at most.
const TURN: f64 = 0.02;
const MOST_RUNS: usize = 50;

/// Returns the median latency of each model for `batch` samples, in seconds; `None` without an engine. Rounds
/// are interleaved: other load on the machine affects all models alike.
pub(super) fn latencies(
    tools: Tools<'_>,
    models: &[&Model],
    batch: usize,
) -> Result<Option<Vec<f64>>, PassError> {
    let (Some(engine), Some(first)) = (tools.engine, models.first()) else { return Ok(None) };
    let feeds = feeds(tools, &first.graph, batch)?;
    let named: Vec<_> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let setting = Setting::DEPLOYED.threads(tools.threads);
    let mut loaded = models.iter().map(|m| engine.load(m, setting)).collect::<Result<Vec<_>, _>>()?;
    let stopwatch = Stopwatch::rounds(ROUNDS, TURN, 1..=MOST_RUNS);
    let timings = stopwatch.measure(&mut loaded, |model, runs| model.time(&named, runs))?;
    Ok(Some(timings.seconds.iter().map(|spread| spread.median).collect()))
}

/// Returns samples, or random inputs if there are too few.
fn feeds(tools: Tools<'_>, graph: &Graph, batch: usize) -> Result<Vec<(String, Tensor)>, PassError> {
    // A model may have a fixed batch size.
    let fixed = |&v: &ValueId| graph.value(v).fact.shape()?.first()?.size();
    let batch = open_inputs(graph).iter().find_map(fixed).unwrap_or(batch);
    if let Some(samples) = tools.samples.filter(|s| s.len() >= batch) {
        return Ok(samples.batch(0..batch)?);
    }
    let unknown = |name| EvaluateError::new(format!("inputs for `{name}` cannot be generated"));
    Ok(random_inputs(graph, batch, tools.seed).map_err(unknown)?)
}
