//! Engines and samples behind the traits that passes use: `pare_graph::Evaluate` and `pare_graph::Samples`.

use crate::{
    Engine, EngineError, Feed, LoadOptions, ModelSource, Optimize, Provider, SampleSet, Session, Value,
    clock::Clock,
};
use pare_graph::{Evaluate, EvaluateError, Model, Run, Setting, Tensor, onnx};
use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// An engine that loads models from memory.
#[derive(Clone)]
pub struct Evaluator {
    engine: Arc<dyn Engine>,
    custom_op_libraries: Vec<PathBuf>,
    provider: Provider,
}

impl Evaluator {
    /// An evaluator with this engine.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine, custom_op_libraries: Vec::new(), provider: Provider::default() }
    }

    /// Adds libraries of custom operators.
    #[must_use]
    pub fn with_custom_ops(mut self, libraries: &[PathBuf]) -> Self {
        self.custom_op_libraries = libraries.to_vec();
        self
    }

    /// Sets the execution provider of deployed models.
    #[must_use]
    pub fn with_provider(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }
}

impl Evaluate for Evaluator {
    fn name(&self) -> String {
        format!("{} {}", self.engine.name(), self.engine.version())
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        let bytes = onnx::to_bytes(model).map_err(EvaluateError::from_error)?;
        let options = LoadOptions {
            threads: setting.threads,
            optimize: if setting.optimized { Optimize::All } else { Optimize::Off },
            custom_op_libraries: self.custom_op_libraries.clone(),
            provider: if setting.deployed { self.provider.clone() } else { Provider::default() },
            ..LoadOptions::default()
        };
        let source = ModelSource::bytes(bytes);
        let on_this_thread = options.threads == 1 && options.provider.is_cpu();
        let clock = if on_this_thread { Clock::Thread } else { Clock::Wall };
        let loaded = self.engine.load(&source, &options);
        if !setting.optimized || setting.deployed {
            return Ok(Box::new(Loaded { session: loaded.map_err(failed)?, clock, as_written: None }));
        }
        let as_written = AsWritten { engine: self.engine.clone(), source, options: options.as_written() };
        let (session, as_written) = match loaded {
            Ok(session) => (session, Some(as_written)),
            Err(error) => (as_written.load().ok_or(error).map_err(failed)?, None),
        };
        Ok(Box::new(Loaded { session, clock, as_written }))
    }
}

/// A model to be loaded without optimizations if the engine fails with them. In part of a model, values are outputs
/// that the engine otherwise folds away, and its optimizations of what remains may be wrong.
struct AsWritten {
    engine: Arc<dyn Engine>,
    source: ModelSource,
    options: LoadOptions,
}

impl AsWritten {
    fn load(&self) -> Option<Box<dyn Session>> {
        self.engine.load(&self.source, &self.options).ok()
    }
}

fn failed(error: EngineError) -> EvaluateError {
    EvaluateError::from_error(error)
}

/// Shorter runs contain no turn of another process. Of these the time that passes is exact, while reading the clock of
/// a thread takes part of a microsecond.
const SHORT: Duration = Duration::from_micros(100);

struct Loaded {
    session: Box<dyn Session>,
    clock: Clock,
    /// Until the first run succeeds.
    as_written: Option<AsWritten>,
}

impl Loaded {
    fn outputs(&mut self, feed: &Feed) -> Result<Feed, EngineError> {
        let result = self.session.run(feed);
        let Some(as_written) = self.as_written.take().filter(|_| result.is_err()) else { return result };
        let Some(mut session) = as_written.load() else { return result };
        let Ok(outputs) = session.run(feed) else { return result };
        self.session = session;
        Ok(outputs)
    }
}

fn feed(feeds: &[(&str, &Tensor)]) -> Vec<(String, Value)> {
    feeds.iter().map(|&(name, tensor)| (name.to_owned(), Value::Tensor(tensor.clone()))).collect()
}

impl Run for Loaded {
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
        let outputs = self.outputs(&feed(feeds)).map_err(failed)?;
        let tensor = |(name, value): (String, Value)| match value {
            Value::Tensor(tensor) => Ok(tensor),
            _ => Err(EvaluateError::new(format!("output `{name}` is not a tensor"))),
        };
        outputs.into_iter().map(tensor).collect()
    }

    fn time(&mut self, feeds: &[(&str, &Tensor)], runs: usize) -> Result<Vec<f64>, EvaluateError> {
        let prepared = self.session.prepare(&feed(feeds)).map_err(failed)?;
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs {
            let (start, wall) = (self.clock.now(), Clock::Wall.now());
            self.session.run_prepared(&prepared).map_err(failed)?;
            let passed = Clock::Wall.since(wall);
            let spent = if passed < SHORT { passed } else { self.clock.since(start) };
            seconds.push(spent.as_secs_f64());
        }
        Ok(seconds)
    }
}

/// Samples that threads can share.
pub struct SharedSamples {
    samples: Mutex<SampleSet>,
    count: usize,
    labels: Option<Vec<i64>>,
}

impl From<SampleSet> for SharedSamples {
    fn from(samples: SampleSet) -> Self {
        let (count, labels) = (samples.len(), samples.labels().map(<[i64]>::to_vec));
        Self { samples: Mutex::new(samples), count, labels }
    }
}

impl pare_graph::Samples for SharedSamples {
    fn len(&self) -> usize {
        self.count
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let feed = samples.batch(range).map_err(EvaluateError::from_error)?;
        let tensor = |(name, value): (String, Value)| match value {
            Value::Tensor(tensor) => Ok((name, tensor)),
            _ => Err(EvaluateError::new(format!("the samples of `{name}` are not tensors"))),
        };
        feed.into_iter().map(tensor).collect()
    }

    fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, FakeEngine};
    use std::sync::atomic::Ordering;

    #[test]
    fn runs_as_written_what_fails_with_optimizations() {
        let model = pare_graph::text::parse_model("g (float x) => (float y) { y = Neg(x) }").unwrap();
        let bytes: &'static [u8] = onnx::to_bytes(&model).unwrap().leak();
        let fake = Fake { noise: 1.0, fails_optimized: true, ..Fake::adding(0.5) };
        let runs = fake.runs.clone();
        let evaluator = Evaluator::new(Arc::new(FakeEngine::of_bytes([(bytes, fake)])));
        let x = Tensor::vector(&[2.0_f32]);
        let mut run = evaluator.load(&model, Setting::OPTIMIZED).unwrap();
        for total in [2, 3] {
            assert_eq!(run.run(&[("x", &x)]).unwrap(), [Tensor::vector(&[2.5_f32])]);
            assert_eq!(runs.load(Ordering::Relaxed), total);
        }
        // A deployed model must run with optimizations.
        assert!(evaluator.load(&model, Setting::DEPLOYED).unwrap().run(&[("x", &x)]).is_err());
    }
}
