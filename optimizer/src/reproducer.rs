//! Faults of passes, and the smallest model on which they show.

use crate::{
    Environment, Error, Event, PIPELINE_KEY, Source, Written,
    bisect::MAX_TIME,
    delta::reduce as reduce_model,
    environment::LazyEngine,
    options::{MEMORY, setters},
    output::write_model,
    runner::{Data, Placement, Runner},
};
use pare_graph::{Model, onnx::ExternalData};
use pare_passes::{Effect, PassError, Pipeline, RunError};
use pare_runtime::Outcome;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The metadata entry of a reproducer that states the fault.
pub const FAULT_KEY: &str = "pare.fault";

/// Candidates that are tried for a reproducer.
const CANDIDATES: usize = 400;

/// A fault of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Faults of the same kind count as the same defect.
    pub kind: FaultKind,
    /// The output that differs, if one does.
    pub output: Option<String>,
    /// One sentence.
    pub why: String,
}

/// The kind of a fault, with the pass where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The pass panicked.
    Panicked(&'static str),
    /// The pass left an invalid model behind.
    Broken(&'static str),
    /// The pass does not converge.
    NotConverging(&'static str),
    /// An output differs though equality is promised.
    Differs,
    /// The engine rejects the result where it runs the original, or their interfaces differ.
    Unusable,
}

impl FaultKind {
    /// The kind of a difference in this output; its name is empty if no single output differs.
    pub(crate) fn of_difference(output: &str) -> Self {
        if output.is_empty() { Self::Unusable } else { Self::Differs }
    }
}

impl Fault {
    /// The fault behind an error; `None` if no pass is at fault.
    pub(crate) fn of(error: &RunError) -> Option<Self> {
        let kind = match error {
            RunError::Panicked { pass, .. } => FaultKind::Panicked(pass),
            RunError::Broken { pass, .. } => FaultKind::Broken(pass),
            RunError::Pass { pass, error: PassError::NotConverging(_) } => FaultKind::NotConverging(pass),
            _ => return None,
        };
        Some(Self { kind, output: None, why: error.to_string() })
    }
}

/// A defect of a pass.
#[derive(Debug)]
#[non_exhaustive]
pub struct Defect {
    /// The error.
    pub error: RunError,
    /// The smallest part of the model with this defect, if one was requested and found.
    pub reproducer: Option<Reproducer>,
    /// Why the engine does not load the original model, if it does not: then the model may be at fault.
    pub model_error: Option<String>,
}

impl Defect {
    /// An error of a run, with a reproducer if a pass is at fault.
    pub(crate) fn of(error: RunError, runner: &Runner<'_>, original: &Model, reproduce: bool) -> Error {
        let Some(fault) = Fault::of(&error) else { return runner.environment.run_error(error) };
        // A pass may be the first to detect that the model contradicts itself.
        let broken = matches!(fault.kind, FaultKind::Broken(_));
        let model_error = if broken { runner.load_error(original) } else { None };
        let reproducer =
            if reproduce { Reproducer::find(runner, original, fault.kind, Some(MAX_TIME)) } else { None };
        Error::Defect(Box::new(Self { error, reproducer, model_error }))
    }
}

/// The smallest part of a model on which a pipeline fails in the same way. Its metadata holds the pipeline
/// ([`PIPELINE_KEY`]) and the fault ([`FAULT_KEY`]).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reproducer {
    /// The model.
    pub model: Model,
    /// The fault.
    pub fault: Fault,
    /// Nodes of the model that was reduced.
    pub nodes_before: usize,
    /// Candidates that were tried at most.
    pub candidates: usize,
}

impl Reproducer {
    /// Reduces `model` while the fault stays of its kind, for at most `max_time`; without, the reproducer is what was
    /// asked for.
    pub(crate) fn find(
        runner: &Runner<'_>,
        model: &Model,
        kind: FaultKind,
        max_time: Option<Duration>,
    ) -> Option<Self> {
        let progress = &runner.environment.progress;
        progress.event(&Event::Reducing);
        let (mut start, nodes_before) = (model.clone(), model.node_count());
        start.infer().ok()?;
        let fault = find_fault(runner, &start).filter(|f| f.kind == kind)?;
        let origins = origins(&start, fault.output.as_deref());
        let is_same = |part: &Fault| {
            part.kind == kind && part.output.as_ref().is_none_or(|output| origins.contains(output))
        };
        let (started, mut tried) = (Instant::now(), 0);
        let is_over = || progress.cancelled() || max_time.is_some_and(|most| started.elapsed() > most);
        let mut model = reduce_model(&start, CANDIDATES, |part| {
            tried += 1;
            progress.step("reducing", tried, CANDIDATES as u64);
            !is_over() && find_fault(runner, part).as_ref().is_some_and(is_same)
        });
        model.infer().ok()?;
        let fault = find_fault(runner, &model).unwrap_or(fault);
        model.set_metadata(PIPELINE_KEY, &runner.pipeline.to_string());
        model.set_metadata(FAULT_KEY, &fault.why);
        Some(Self { model, fault, nodes_before, candidates: CANDIDATES })
    }

    /// Writes the model.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<Written, Error> {
        write_model(&self.model, path.as_ref(), &ExternalData::Keep)
    }

    /// The path beside an output: `out.reproducer.onnx` for `out.onnx`.
    pub fn path_beside(output: &Path) -> PathBuf {
        output.with_extension("reproducer.onnx")
    }
}

/// The names of an output and of all values that it is computed from. A part of the model that lacks the
/// last nodes returns one of them instead; in other values it shows another fault.
fn origins(model: &Model, output: Option<&str>) -> HashSet<String> {
    let graph = &model.graph;
    let Some(output) = output.and_then(|name| graph.find(name)) else { return HashSet::new() };
    let nodes = graph.upstream([output], |_| false);
    nodes.iter().flat_map(|&node| graph.results(node)).map(|v| graph.value(v).name.clone()).collect()
}

/// The fault on this model, compared on generated samples: a part of a model has other inputs than the model.
fn find_fault(runner: &Runner<'_>, model: &Model) -> Option<Fault> {
    let mut changed = model.clone();
    let report = match runner.run(&mut changed, runner.stop_after, &mut ()) {
        Ok(report) => report,
        Err(error) => return Fault::of(&error),
    };
    // Nothing is promised by lossy passes, nor about an interface that was to change.
    let no_promise = runner.pipeline.effect() == Effect::Lossy || report.interface().next().is_some();
    if no_promise {
        return None;
    }
    let comparison = runner.compare_generated(model, &changed).ok()?;
    let Outcome::Differs { output, .. } = comparison.outcome() else { return None };
    let (kind, why) = (FaultKind::of_difference(output), comparison.difference()?);
    Some(Fault { kind, output: Some(output.clone()).filter(|name| !name.is_empty()), why })
}

/// Options of [`reduce`].
#[non_exhaustive]
pub struct ReduceOptions {
    /// The pipeline that fails.
    pub pipeline: Pipeline,
    /// Patches to apply at most.
    pub stop_after: Option<u64>,
    /// Bytes that activations of samples may occupy.
    pub memory: u64,
    /// Folder for models too large for memory.
    pub scratch: Option<PathBuf>,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

setters!(ReduceOptions {
    /// Sets the limit of memory for activations in bytes.
    memory: u64,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the number of patches to apply at most.
    stop_after: u64,
    /// Sets the folder for models too large for memory.
    scratch: PathBuf,
});

impl ReduceOptions {
    /// Options for this pipeline.
    pub fn new(pipeline: Pipeline) -> Self {
        let environment = Environment::default();
        Self { pipeline, stop_after: None, memory: MEMORY, scratch: None, environment }
    }
}

/// Finds the smallest part of a model on which a pipeline fails: a pass panics, leaves an invalid model
/// behind, does not converge, or changes the result though it promises equality. Returns `None` if the
/// pipeline does not fail.
///
/// ```no_run
/// use onnx_pare::{ReduceOptions, reduce};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = ReduceOptions::new("safe".parse()?);
/// if let Some(reproducer) = reduce(std::path::Path::new("model.onnx"), &options)? {
///     reproducer.write("small.onnx")?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] if the fault does not repeat.
pub fn reduce(source: impl Into<Source>, options: &ReduceOptions) -> Result<Option<Reproducer>, Error> {
    let loaded = source.into().load()?;
    let environment = &options.environment;
    let (engine, data) = (LazyEngine::new(environment), Data::default());
    let runner = Runner {
        environment,
        engine: &engine,
        pipeline: &options.pipeline,
        tools: data.tools(&engine, environment, options.memory),
        stop_after: options.stop_after,
        samples: None,
        test: None,
        prove_time: None,
        placement: Placement::new(&loaded.model, &loaded.source, options.scratch.as_deref()),
    };
    let Some(fault) = find_fault(&runner, &loaded.model) else {
        environment.check_cancelled()?;
        return Ok(None);
    };
    let found = Reproducer::find(&runner, &loaded.model, fault.kind, None);
    environment.check_cancelled()?;
    found.map(Some).ok_or_else(|| Error::invalid(format!("the fault does not repeat: {}", fault.why)))
}
