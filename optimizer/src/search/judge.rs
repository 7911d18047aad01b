//! Measures candidates: cost and quality, as deployed.

use super::{Goal, SearchOptions, trial::Measured};
use crate::{
    Error, Metric,
    bench::contenders,
    environment::LazyEngine,
    runner::{Data, Placement},
    samples::FeedOptions,
};
use pare_graph::{
    Model, Samples,
    onnx::{self, WriteOptions},
};
use pare_passes::{Tools, analysis::evaluation::HeldOut};
use pare_runtime::{Contender, Feed, LoadOptions, Spread, Stopwatch, bench};
use std::{
    cell::{OnceCell, RefCell},
    path::PathBuf,
    time::{Duration, Instant},
};

/// The measurement of a candidate's latency.
const CANDIDATE: (usize, Duration) = (15, Duration::from_secs(1));
/// That of the result's, which decides.
const RESULT: (usize, Duration) = (41, Duration::from_secs(4));
/// The most time of both, as a multiple of the least.
const MOST: u32 = 8;

/// Measures candidates relative to the original.
pub(super) struct Judge<'j> {
    engine: &'j LazyEngine<'j>,
    tools: Tools<'j>,
    goal: Goal,
    metric: Option<(&'j Metric, f64)>,
    held_out: HeldOut<'j>,
    /// The number of samples that quality is measured on.
    pub samples: usize,
    /// The time that these took in the first candidate.
    running: OnceCell<Duration>,
    /// The original, kept loaded.
    original: RefCell<Vec<Contender>>,
    feeds: Vec<Feed>,
    load: LoadOptions,
    placement: &'j Placement<'j>,
    original_cost: (u64, u64),
    scratch: tempfile::TempDir,
}

impl<'j> Judge<'j> {
    /// Runs the original on the samples of `test`, and measures it by the metric.
    pub fn new(
        options: &'j SearchOptions,
        engine: &'j LazyEngine<'j>,
        test: &'j Data,
        placement: &'j Placement<'j>,
        original: &Model,
    ) -> Result<Self, Error> {
        let environment = &options.environment;
        let tools = test.tools(engine, environment, options.memory);
        let samples = tools.samples.map_or(0, Samples::len);
        let mut original = original.clone();
        original.infer().map_err(Error::invalid)?;
        let held_out = HeldOut::new(tools, &original, 0..samples).map_err(Error::invalid)?;
        let load = LoadOptions { threads: environment.single_thread(), ..engine.load_options() };
        let feeds = FeedOptions {
            samples: Some(options.test.as_deref().unwrap_or(&options.samples)),
            batch: options.batch,
            dims: &[],
            seed: environment.seed,
        };
        let scratch = tempfile::tempdir().map_err(|error| Error::File {
            action: "create",
            path: std::env::temp_dir(),
            error,
        })?;
        let mut judge = Self {
            engine,
            tools,
            goal: options.goal,
            metric: None,
            held_out,
            samples,
            running: OnceCell::new(),
            original: RefCell::default(),
            feeds: feeds.feeds(&original)?,
            load,
            placement,
            original_cost: (0, 0),
            scratch,
        };
        judge.original_cost = judge.size(&original);
        if judge.goal == Goal::Latency {
            judge.original = RefCell::new(judge.contenders(&[&original])?);
        }
        if let Some(metric) = &options.metric {
            judge.metric = Some((metric, metric.measure(&judge.written(&original)?)?));
        }
        Ok(judge)
    }

    /// The value of the metric for the original.
    pub fn original_metric(&self) -> Option<f64> {
        self.metric.map(|(_, value)| value)
    }

    /// The time that the first candidate took for a sample, many at once.
    pub fn time_per_sample(&self) -> Duration {
        self.running.get().copied().unwrap_or_default().div_f64(self.samples.max(1) as f64)
    }

    /// Measures everything but the metric.
    pub fn measure(&self, candidate: &Model) -> Result<Measured, Error> {
        let start = Instant::now();
        let quality = self.held_out.measure(candidate).map_err(Error::invalid)?;
        self.running.get_or_init(|| start.elapsed());
        let latency = match self.goal {
            Goal::Latency => Some(self.latencies(&[candidate], CANDIDATE)?[0]),
            _ => None,
        };
        let (bytes, macs) = self.size(candidate);
        let share = |own: u64, original: u64| own as f64 / original.max(1) as f64;
        let cost = match self.goal {
            Goal::Latency => latency.map_or(1.0, |spread| spread.median),
            Goal::Bytes => share(bytes, self.original_cost.0),
            Goal::Macs => share(macs, self.original_cost.1),
        };
        Ok(Measured {
            latency: latency.map(|spread| [spread.low, spread.median, spread.high]),
            bytes,
            macs,
            cost,
            drift: quality.drift,
            agreement: quality.agreement,
            accuracy_drop: quality.accuracy_drop,
            metric_drop: None,
        })
    }

    /// Measures the drop of the metric.
    pub fn metric_drop(&self, candidate: &Model) -> Result<Option<f64>, Error> {
        let Some((metric, original)) = self.metric else { return Ok(None) };
        Ok(Some(original - metric.measure(&self.written(candidate)?)?))
    }

    /// The latencies of results as shares of the original's.
    pub fn result_latencies(&self, results: &[&Model]) -> Result<Vec<Spread>, Error> {
        self.latencies(results, RESULT)
    }

    fn latencies(
        &self,
        models: &[&Model],
        (rounds, min_time): (usize, Duration),
    ) -> Result<Vec<Spread>, Error> {
        let others = self.contenders(models)?;
        let mut contenders = self.original.borrow_mut();
        contenders.extend(others);
        let stopwatch = Stopwatch { rounds, min_time, max_time: min_time * MOST, ..Stopwatch::default() };
        let timings = bench(&mut contenders, &stopwatch);
        contenders.truncate(1);
        Ok(timings?.ratios[1..].to_vec())
    }

    fn contenders(&self, models: &[&Model]) -> Result<Vec<Contender>, Error> {
        let placed = models.iter().map(|model| Ok(("the model", self.placement.place(model)?)));
        contenders(self.engine, &self.load, placed.collect::<Result<_, Error>>()?, &self.feeds)
    }

    /// Bytes of the file, and multiply-accumulates of one sample.
    fn size(&self, model: &Model) -> (u64, u64) {
        let cost = model.cost(&self.tools.sizes(&model.graph));
        let bytes = onnx::write_to(model, std::io::sink()).unwrap_or(cost.bytes);
        (bytes, cost.macs)
    }

    fn written(&self, model: &Model) -> Result<PathBuf, Error> {
        let path = self.scratch.path().join("candidate.onnx");
        onnx::write(model, &path, &WriteOptions { sync: false, ..Default::default() })?;
        Ok(path)
    }
}
