//! Latency of models in the engine, as deployed: all of its optimizations, one sample.

use crate::{
    analysis::{calibration::open_inputs, timing_inputs::random_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{
    EvaluateError, Graph, Model, Run, Setting, Tensor,
    evaluate::stopwatch::{Estimator, Spread, Stopwatch, Timings},
};

/// Number of rounds, and seconds of each model in a round.
const ROUNDS: usize = 20;
const TURN: f64 = 2e-3;
/// Rounds of a comparison of two models.
const COMPARED: usize = 40;

/// A model that is timed.
struct TimedModel {
    run: Box<dyn Run>,
    feeds: Vec<(String, Tensor)>,
}

impl TimedModel {
    fn new(tools: Tools<'_>, model: &Model) -> Result<Self, PassError> {
        let engine = tools.engine.ok_or_else(|| PassError::refused("`latency` needs an engine"))?;
        // One thread unless the tools set a number.
        let run = engine.load(model, Setting::DEPLOYED.threads(tools.threads.max(1)))?;
        let unknown = |name| format!("`latency` cannot be measured: the shape of `{name}` is not known");
        let feeds = random_inputs(&model.graph, 1, tools.seed);
        Ok(Self { run, feeds: feeds.map_err(|name| PassError::refused(unknown(name)))? })
    }

    fn time(&mut self, runs: usize) -> Result<Vec<f64>, EvaluateError> {
        let feeds: Vec<_> = self.feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        self.run.time(&feeds, runs)
    }
}

/// Returns whether times of one sample are those of a deployment: only the first axes of the inputs are
/// symbolic.
pub fn has_known_sizes(graph: &Graph) -> bool {
    open_inputs(graph).into_iter().all(|v| {
        let shape = graph.value(v).fact.shape();
        shape.is_some_and(|dims| dims.iter().skip(1).all(|dim| dim.size().is_some()))
    })
}

fn measure(tools: Tools<'_>, models: &[&Model], stopwatch: &Stopwatch) -> Result<Timings, PassError> {
    let mut timed = models.iter().map(|m| TimedModel::new(tools, m)).collect::<Result<Vec<_>, _>>()?;
    Ok(stopwatch.measure(&mut timed, TimedModel::time)?)
}

/// Returns the minimum latency of each model in seconds, measured in interleaved rounds: other load on the
/// machine only adds time.
pub fn latencies(tools: Tools<'_>, models: &[&Model]) -> Result<Vec<f64>, PassError> {
    let estimator = Estimator::Minimum;
    let stopwatch = Stopwatch { warm_up: 2, estimator, ..Stopwatch::rounds(ROUNDS, TURN, 1..=10_000) };
    Ok(measure(tools, models, &stopwatch)?.seconds.iter().map(|spread| spread.min).collect())
}

/// Returns the latency of `after` over that of `before`, round by round.
pub fn ratio(tools: Tools<'_>, before: &Model, after: &Model) -> Result<Spread, PassError> {
    let stopwatch = Stopwatch { warm_up: 2, ..Stopwatch::rounds(COMPARED, TURN, 1..=10_000) };
    Ok(measure(tools, &[before, after], &stopwatch)?.ratios[1])
}
