//! The environment of every operation: engine, threads, seed, progress.

use crate::{Error, Trial, options::setters};
use pare_graph::{Evaluate, EvaluateError, Model, Run, Setting};
use pare_passes::{Memo, RunError};
use pare_runtime::{
    Engine, EngineChoice, EngineError, EngineKind, Evaluator, LoadOptions, Provider, Resolved, resolve,
};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// The engine, the resources and the observer that an operation uses.
#[derive(Clone)]
#[non_exhaustive]
pub struct Environment {
    /// The engine that runs models.
    pub engine: EngineKind,
    /// The ONNX Runtime library, or its folder; it is searched for by default.
    pub library: Option<PathBuf>,
    /// Never use the network.
    pub offline: bool,
    /// Libraries of custom operators to load into ONNX Runtime. They run with the rights of this process.
    pub custom_ops: Vec<PathBuf>,
    /// The execution provider that deployed models run on, in verification and in measurements of latency.
    pub provider: Provider,
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// Receives events and can cancel.
    pub progress: Arc<dyn Progress>,
    /// Results that a second run of a pipeline does not compute again.
    pub(crate) memo: Option<Arc<Memo>>,
}

setters!(Environment {
    /// Sets the engine.
    engine: EngineKind,
    /// Forbids the network.
    offline: bool,
    /// Sets the libraries of custom operators.
    custom_ops: Vec<PathBuf>,
    /// Sets the execution provider.
    provider: Provider,
    /// Sets the number of threads; 0 means one per core.
    threads: usize,
    /// Sets the seed.
    seed: u64,
    ;
    /// Sets the ONNX Runtime library, or its folder.
    library: PathBuf,
});

impl Environment {
    /// Sets the receiver of events.
    #[must_use]
    pub fn progress(mut self, progress: impl Progress + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            engine: EngineKind::Auto,
            library: None,
            offline: false,
            custom_ops: vec![],
            provider: Provider::default(),
            threads: 0,
            seed: 0,
            progress: Arc::new(Silent),
            memo: None,
        }
    }
}

/// Receives the progress of an operation; every method has a default that does nothing.
pub trait Progress: Send + Sync {
    /// Reports that `done` of `total` units of `stage` are done; called often.
    fn step(&self, _stage: &str, _done: u64, _total: u64) {}

    /// Reports an event.
    fn event(&self, _event: &Event<'_>) {}

    /// Observes the model after each pass of the pipeline.
    fn after_pass(&self, _pass: &str, _model: &Model) {}

    /// Returns true to cancel the operation with [`Error::Cancelled`]. It is asked before each use of the
    /// engine, each candidate of a search and each stage of an operation.
    fn cancelled(&self) -> bool {
        false
    }

    /// Returns true to end training early, with the best weights so far. It is asked before each step.
    fn is_ending(&self) -> bool {
        false
    }
}

/// An event during an operation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'e> {
    /// The engine is being fetched.
    Fetching(&'e str),
    /// Models are run in the embedded engine, as ONNX Runtime is not available.
    Fallback {
        /// Its name and version, and the reason.
        engine: &'e str,
    },
    /// A lossy pipeline starts to use samples.
    Calibrating {
        /// Number of samples.
        samples: usize,
        /// Bytes of activations of one sample.
        bytes_per_sample: u64,
        /// Bytes that activations may occupy.
        memory: u64,
    },
    /// The patch at fault is being searched for.
    Bisecting,
    /// The smallest part of the model that fails is being searched for.
    Reducing,
    /// A search starts to measure the original, as its metric.
    MeasuringOriginal,
    /// A search makes and compares `safe`.
    MakingSafe,
    /// A search tried a candidate.
    Tried {
        /// The candidate, with its measurements.
        trial: &'e Trial,
        /// Its number.
        number: usize,
        /// The cost of the best so far, as a share of the original's.
        best: Option<f64>,
    },
    /// A search makes its result.
    Finishing,
}

struct Silent;

impl Progress for Silent {}

impl Environment {
    /// An error if the operation was cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), Error> {
        if self.progress.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// The number of threads of measurements: one unless given, since models are compared, not schedulers.
    pub(crate) fn single_thread(&self) -> usize {
        if self.threads == 0 { 1 } else { self.threads }
    }

    /// The error of a run. A cancelled engine fails in the pass that uses it.
    pub(crate) fn run_error(&self, error: RunError) -> Error {
        self.check_cancelled().err().unwrap_or(Error::Run(error))
    }
}

/// The progress of passes.
impl pare_passes::Progress for Environment {
    fn step(&self, stage: &str, done: u64, total: u64) {
        self.progress.step(stage, done, total);
    }

    fn is_ending(&self) -> bool {
        self.progress.is_ending()
    }
}

/// The engine, resolved on first use.
pub(crate) struct LazyEngine<'e> {
    environment: &'e Environment,
    resolved: OnceLock<Result<Resolved, Arc<EngineError>>>,
}

impl<'e> LazyEngine<'e> {
    pub fn new(environment: &'e Environment) -> Self {
        Self { environment, resolved: OnceLock::new() }
    }

    /// Checks that the libraries of custom operators and the execution provider can be used, if any are requested.
    pub fn check_requests(&self) -> Result<(), Error> {
        let Environment { custom_ops, provider, .. } = self.environment;
        if custom_ops.is_empty() && provider.is_cpu() { Ok(()) } else { self.resolve().map(drop) }
    }

    fn resolve(&self) -> Result<&Resolved, Error> {
        self.environment.check_cancelled()?;
        let Environment { engine, library, offline, provider, progress, .. } = self.environment;
        let resolved = self.resolved.get_or_init(|| {
            let (library, provider) = (library.clone(), provider.clone());
            let choice = EngineChoice { engine: *engine, library, offline: *offline, provider };
            let resolved = resolve(&choice, &mut |line| progress.event(&Event::Fetching(line)))?;
            resolved.engine.check(&self.load_options())?;
            if resolved.fallback {
                progress.event(&Event::Fallback { engine: &resolved.note });
            }
            Ok(resolved)
        });
        resolved.as_ref().map_err(|error| error.clone().into())
    }

    pub fn engine(&self) -> Result<&Arc<dyn Engine>, Error> {
        Ok(&self.resolve()?.engine)
    }

    /// The name of the engine, its version and why it was chosen.
    pub fn description(&self) -> Result<String, Error> {
        Ok(self.resolve()?.note.clone())
    }

    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            threads: self.environment.threads,
            custom_op_libraries: self.environment.custom_ops.clone(),
            provider: self.environment.provider.clone(),
            ..LoadOptions::default()
        }
    }
}

/// Passes resolve the engine only if they need one.
impl Evaluate for LazyEngine<'_> {
    fn name(&self) -> String {
        self.resolve().map_or_else(|e| e.to_string(), |r| r.note.clone())
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        let engine = self.engine().map_err(|e| EvaluateError::new(e.to_string()))?;
        let evaluator = Evaluator::new(engine.clone()).with_custom_ops(&self.environment.custom_ops);
        evaluator.with_provider(self.environment.provider.clone()).load(model, setting)
    }
}
