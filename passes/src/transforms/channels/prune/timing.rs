//! Latency of models in the engine, as deployed: all of its optimizations, one sample.

use crate::{
    analysis::calibration::{open_inputs, size_of},
    framework::{PassError, Tools},
};
use pare_graph::{
    EvaluateError, Fact, Graph, Model, Run, Setting, Tensor, ValueId,
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
        let feed = |&v: &ValueId| {
            let value = model.graph.value(v);
            Ok((value.name.clone(), random_input(&value.fact).ok_or_else(|| unknown_shape(&value.name))?))
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
    PassError::refused(format!("`latency` cannot be measured: the shape of `{name}` is not known"))
}

/// Returns a random tensor of one sample. Zeros and denormals could be faster or slower than other numbers.
fn random_input(fact: &Fact) -> Option<Tensor> {
    let shape = fact.shape()?.iter().map(size_of).collect::<Option<Vec<_>>>()?;
    let dtype = fact.dtype()?;
    let count: usize = shape.iter().product();
    let mut rng = fastrand::Rng::with_seed(count as u64);
    let value = |_| if dtype.is_float() { rng.f64() - 0.5 } else { 0.0 };
    Tensor::from_f64(dtype, &shape, &(0..count).map(value).collect::<Vec<_>>()).ok()
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
