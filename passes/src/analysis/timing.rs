//! Latency of models in the engine, as deployed: all of its optimizations, one sample.

use super::{calibration::open_inputs, timing_inputs::random_tensor};
use crate::framework::{PassError, Tools};
use pare_graph::{
    EvaluateError, Fact, Graph, Model, Run, Setting, Tensor, ValueId,
    evaluate::stopwatch::{Estimator, Spread, Stopwatch, Timings},
    ops::Bindings,
};
use std::time::Duration;

/// Least number of rounds; total seconds of each model; and its seconds in a round, in at least two runs of which the
/// first warms the caches. Many short turns: whatever slows the machine for milliseconds, such as load on the other
/// thread of a core, then slows all models of a round alike, and their ratios stay.
const ROUNDS: usize = 20;
const TOTAL: f64 = 60e-3;
const TURN: f64 = 50e-6;
/// Total seconds of each model that is compared with another.
const COMPARED: f64 = 160e-3;
/// Time after which a measurement ends.
const MAX_TIME: Duration = Duration::from_secs(15);

/// Returns a stopwatch for this number of models.
fn stopwatch(models: usize, total: f64) -> Stopwatch {
    let estimator = Estimator::Minimum;
    let min_time = Duration::from_secs_f64(models as f64 * total);
    let max_time = MAX_TIME;
    Stopwatch { warm_up: 2, estimator, min_time, max_time, ..Stopwatch::rounds(ROUNDS, TURN, 2..=10_000) }
}

/// A model that is timed.
struct TimedModel {
    run: Box<dyn Run>,
    feeds: Vec<(String, Tensor)>,
}

impl TimedModel {
    fn new(tools: Tools<'_>, sizes: &Bindings, model: &Model) -> Result<Self, PassError> {
        let engine = tools.engine.ok_or_else(|| PassError::refused("latency needs an engine"))?;
        // One thread unless the tools set a number.
        let run = engine.load(model, Setting::DEPLOYED.threads(tools.threads.max(1)))?;
        let given = tools.samples.filter(|s| !s.is_empty()).map(|s| s.batch(0..1)).transpose()?;
        let feed = |&v: &ValueId| {
            let value = model.graph.value(v);
            let shape = shape_in(sizes, &value.fact).ok_or_else(|| unknown_shape(&value.name))?;
            let sample =
                given.iter().flatten().find(|(name, x)| *name == value.name && *x.shape() == shape[..]);
            let generate =
                || random(&value.fact, &shape, tools.seed).ok_or_else(|| unknown_shape(&value.name));
            Ok((value.name.clone(), sample.map_or_else(generate, |(_, x)| Ok(x.clone()))?))
        };
        let feeds = open_inputs(&model.graph).iter().map(feed).collect::<Result<_, PassError>>()?;
        Ok(Self { run, feeds })
    }

    fn time(&mut self, runs: usize) -> Result<Vec<f64>, EvaluateError> {
        let feeds: Vec<_> = self.feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        self.run.time(&feeds, runs)
    }
}

fn unknown_shape(name: &str) -> PassError {
    PassError::refused(format!("latency cannot be measured: the shape of `{name}` is not known"))
}

/// Returns the shape of a value at the sizes of the samples.
fn shape_in(sizes: &Bindings, fact: &Fact) -> Option<Vec<usize>> {
    fact.shape()?.iter().map(|dim| usize::try_from(sizes.size(dim)?).ok()).collect()
}

/// Returns a random tensor of this type and shape.
fn random(fact: &Fact, shape: &[usize], seed: u64) -> Option<Tensor> {
    random_tensor(fact.dtype()?, shape, seed)
}

/// Returns whether times of one sample are those of a deployment: beyond the first axes of the inputs, every
/// size is known, from the model or from samples.
pub fn has_known_sizes(graph: &Graph, sizes: &Bindings) -> bool {
    let samples_only = Bindings { default: None, ..sizes.clone() };
    open_inputs(graph).into_iter().all(|v| {
        let shape = graph.value(v).fact.shape();
        shape.is_some_and(|dims| dims.iter().skip(1).all(|dim| samples_only.size(dim).is_some()))
    })
}

/// Returns the latencies of models for one sample, in interleaved rounds.
fn measure(
    tools: Tools<'_>,
    sizes: &Bindings,
    models: &[&Model],
    stopwatch: &Stopwatch,
) -> Result<Timings, PassError> {
    let mut timed = models.iter().map(|m| TimedModel::new(tools, sizes, m)).collect::<Result<Vec<_>, _>>()?;
    Ok(stopwatch.measure(&mut timed, TimedModel::time)?)
}

/// Returns the latency of each model in seconds, measured in interleaved rounds: the minimum of the first, for other
/// load on the machine only adds time, and the medians of the ratios to it.
pub fn latencies(tools: Tools<'_>, sizes: &Bindings, models: &[&Model]) -> Result<Vec<f64>, PassError> {
    let timings = measure(tools, sizes, models, &stopwatch(models.len(), TOTAL))?;
    let first = timings.seconds.first().map_or(f64::NAN, |spread| spread.min);
    Ok(timings.ratios.iter().map(|ratio| first * ratio.median).collect())
}

/// Returns the spread of the reciprocals of ratios.
pub fn inverse(spread: &Spread) -> Spread {
    Spread {
        min: 1.0 / spread.high,
        low: 1.0 / spread.high,
        median: 1.0 / spread.median,
        high: 1.0 / spread.low,
    }
}

/// Returns the latency of each model over that of the first, round by round.
pub fn ratios(tools: Tools<'_>, sizes: &Bindings, models: &[&Model]) -> Result<Vec<Spread>, PassError> {
    Ok(measure(tools, sizes, models, &stopwatch(models.len(), COMPARED))?.ratios)
}
