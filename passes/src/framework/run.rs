//! The runner: executes the passes of a pipeline in order and checks the model after each.

use super::{
    Context, Effect, InterfaceChange, Memo, Pass, Pipeline, Report, RunError, Step, StepReport, Tools,
    memo::PassResult,
};
use pare_graph::{Model, Samples};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};
use toml::Table;

/// Receives the model after each pass.
pub trait Observer {
    /// Called after each run of a pass, with the number of patches applied so far by all passes, and the
    /// changes of the interface that the pass was asked for.
    fn after(&mut self, _pass: &dyn Pass, _model: &Model, _patches: u64, _interface: &[InterfaceChange]) {}
}

/// The no-op observer.
impl Observer for () {}

/// Options of [`run`].
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct RunOptions<'t> {
    /// Resources for the passes.
    pub tools: Tools<'t>,
    /// The largest number of patches to apply; unlimited if `None`.
    pub stop_after: Option<u64>,
}

impl<'t> RunOptions<'t> {
    /// Runs with these resources and without a limit.
    pub fn new(tools: Tools<'t>) -> Self {
        Self { tools, stop_after: None }
    }

    /// Sets the largest number of patches to apply.
    #[must_use]
    pub fn stop_after(self, stop_after: Option<u64>) -> Self {
        Self { stop_after, ..self }
    }
}

/// Runs a pipeline over a model. After an error the model is in the state in which the failing pass left it.
///
/// ```
/// use pare_graph::{Model, text::parse_graph};
/// use pare_passes::{Pipeline, RunOptions, run};
///
/// let graph = parse_graph("g (float[N] x) => (float[N] y) { a = Identity(x) y = Relu(a) }", 18)?;
/// let mut model = Model::of(graph);
/// let pipeline: Pipeline = "drop-noops".parse()?;
/// let report = run(&pipeline, &mut model, RunOptions::default(), &mut ())?;
/// assert_eq!(report.patches(), 1);
/// assert_eq!(model.graph.node_count(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`RunError::Input`] if the model is invalid, otherwise the error of the first pass that fails.
pub fn run(
    pipeline: &Pipeline,
    model: &mut Model,
    options: RunOptions<'_>,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    check_input(model)?;
    // Weights share their bytes; only lossy passes train.
    let original =
        (pipeline.effect() == Effect::Lossy && options.tools.teacher.is_none()).then(|| model.clone());
    let tools = Tools { teacher: options.tools.teacher.or(original.as_ref()), ..options.tools };
    let mut cx = Context::new(tools, pipeline.registry());
    cx.stop_after = options.stop_after;
    let (mut report, mut rounds) = (Report::default(), Rounds::default());
    run_steps(pipeline, model, &mut cx, &mut rounds, &mut |pass, options, model, cx| {
        let steps = run_remembered(pass, options, model, cx)?;
        let interface: Vec<_> = steps.iter().flat_map(|s| s.interface.clone()).collect();
        observer.after(pass, model, cx.patches, &interface);
        steps.into_iter().for_each(|step| report.add(step));
        Ok(())
    })?;
    Ok(Report { rounds: rounds.longest, unfinished: rounds.cut_off, ..report })
}

/// Checks the model and infers its types. The second check sees the inferred types too.
fn check_input(model: &mut Model) -> Result<(), RunError> {
    let invalid = |why, hint: Option<String>| RunError::Input { why, hint: hint.map(Into::into) };
    if model.graph.outputs().is_empty() {
        return Err(invalid("it has no outputs, so no computed value is used".to_owned(), None));
    }
    model.check().map_err(|e| invalid(e.to_string(), e.hint()))?;
    model.infer().map_err(|e| invalid(e.to_string(), None))?;
    model.check().map_err(|e| invalid(e.to_string(), e.hint()))
}

/// Runs one pass, or takes its result from the memo.
fn run_remembered(
    pass: &dyn Pass,
    options: &Table,
    model: &mut Model,
    cx: &mut Context<'_>,
) -> Result<Vec<StepReport>, RunError> {
    let is_kept = pass.info().effect == Effect::Lossy && cx.stop_after.is_none();
    let key = |_: &&Memo| {
        let samples = cx.tools.samples.map_or(0, Samples::len);
        Memo::key(&format!("{} {options}", pass.info().name), model, samples)
    };
    let memo = cx.tools.memo.filter(|_| is_kept).and_then(|memo| Some((memo, key(&memo)?)));
    if let Some(known) = memo.and_then(|(memo, key)| memo.get(key)) {
        *model = known.model.clone();
        cx.patches += known.patches;
        return Ok(known.reports.clone());
    }
    let before = cx.patches;
    let reports = run_checked(pass, model, cx)?;
    // Training that was ended early is not what the pipeline means.
    if let Some((memo, key)) = memo.filter(|_| !cx.tools.progress.is_ending()) {
        let patches = cx.patches - before;
        memo.put(key, PassResult { model: model.clone(), reports: reports.clone(), patches });
    }
    Ok(reports)
}

/// Runs one pass, catches its panics, and checks the model if it changed.
fn run_checked(
    pass: &dyn Pass,
    model: &mut Model,
    cx: &mut Context<'_>,
) -> Result<Vec<StepReport>, RunError> {
    let (name, start, before) = (pass.info().name, Instant::now(), cx.patches);
    let result = catch_unwind(AssertUnwindSafe(|| pass.run(model, cx)));
    result
        .map_err(|payload| RunError::Panicked { pass: name, message: panic_message(payload) })?
        .map_err(|error| RunError::Pass { pass: name, error })?;
    if cx.patches > before {
        let broken = |why: String| RunError::Broken { pass: name, why };
        model.check().map_err(|e| broken(e.to_string()))?;
        model.infer().map_err(|e| broken(e.to_string()))?;
    }
    Ok(cx.take_reports(pass.info(), start.elapsed()))
}

fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Rounds after which a repetition is cut off; pipelines converge in two or three.
const MAX_ROUNDS: u64 = 20;

/// Rounds that the repetitions of a pipeline took.
#[derive(Default)]
pub(super) struct Rounds {
    longest: u64,
    /// A repetition reached [`MAX_ROUNDS`] while it still changed the model.
    cut_off: bool,
}

/// Runs a pass as one step of a pipeline.
type RunPass<'r, 't, E> = dyn FnMut(&dyn Pass, &Table, &mut Model, &mut Context<'t>) -> Result<(), E> + 'r;

/// Runs the steps of a pipeline in order, each pass through `run_pass`, until the context is stopped.
pub(super) fn run_steps<'t, E>(
    pipeline: &Pipeline,
    model: &mut Model,
    cx: &mut Context<'t>,
    rounds: &mut Rounds,
    run_pass: &mut RunPass<'_, 't, E>,
) -> Result<(), E> {
    for step in pipeline.steps() {
        if cx.stopped() {
            break;
        }
        match step {
            Step::Pass { pass, options } => run_pass(pass.as_ref(), options, model, cx)?,
            Step::Preset { steps, .. } => run_steps(steps, model, cx, rounds, run_pass)?,
            Step::Repeat(steps) => {
                for round in 1.. {
                    let before = cx.patches;
                    run_steps(steps, model, cx, rounds, run_pass)?;
                    rounds.longest = rounds.longest.max(round);
                    if cx.patches == before || cx.stopped() {
                        break;
                    }
                    if round == MAX_ROUNDS {
                        rounds.cut_off = true;
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}
