//! The runner: passes in order, the graph checked after each.

use super::{Context, Effect, Hint, Pass, Pipeline, Registry, Report, Step, Tools, context::MAX_ROUNDS};
use pare_graph::{EvaluateError, InferError, Model};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

/// Why a pass, or a pipeline, could not do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// The pass cannot do what it was asked to: options, samples or model do not allow it.
    #[error("{why}")]
    Refused {
        /// One sentence.
        why: String,
        /// The remedy, if one is known.
        hint: Option<Hint>,
    },
    /// A rewrite fires without end.
    #[error("it does not converge at {0}")]
    NotConverging(String),
    /// Running the model failed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Types or shapes contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
}

impl PassError {
    /// A refusal.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), hint: None }
    }

    /// A refusal with what may help.
    pub fn refused_with(why: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self::Refused { why: why.into(), hint: Some(hint.into()) }
    }
}

/// Why a pipeline stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The model was invalid before any pass ran.
    #[error("the model is invalid: {why}")]
    Input {
        /// One sentence.
        why: String,
        /// The remedy, if one is known.
        hint: Option<Hint>,
    },
    /// A pass could not do its work.
    #[error("`{pass}`: {error}")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// Why.
        error: PassError,
    },
    /// A pass left an invalid model behind: a defect of the pass.
    #[error("`{pass}` left an invalid model behind: {why}")]
    Broken {
        /// Its name.
        pass: &'static str,
        /// What is invalid.
        why: String,
    },
    /// A pass panicked: a defect of the pass.
    #[error("`{pass}` panicked: {message}")]
    Panicked {
        /// Its name.
        pass: &'static str,
        /// The panic's message.
        message: String,
    },
}

impl RunError {
    /// The remedy, if one is known.
    pub fn hint(&self) -> Option<&Hint> {
        match self {
            Self::Input { hint, .. } | Self::Pass { error: PassError::Refused { hint, .. }, .. } => {
                hint.as_ref()
            }
            _ => None,
        }
    }
}

/// Watches a pipeline run.
pub trait Observer {
    /// Called after each run of a pass, with the number of patches applied so far.
    fn after(&mut self, _pass: &dyn Pass, _model: &Model, _patches: u64) {}
}

/// Watches nothing.
impl Observer for () {}

/// How a pipeline is run.
#[derive(Clone, Copy, Default)]
pub struct RunOptions<'t> {
    /// What passes may use.
    pub tools: Tools<'t>,
    /// Apply no more than this many patches.
    pub stop_after: Option<u64>,
}

/// Run a pipeline over a model. On an error the model is in the state the failing pass left it in.
pub fn run(
    pipeline: &Pipeline,
    model: &mut Model,
    options: RunOptions<'_>,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    let input = |why, hint: Option<String>| RunError::Input { why, hint: hint.map(Hint::Text) };
    if model.graph.outputs().is_empty() {
        return Err(input("it has no outputs, so nothing that it computes is used".to_owned(), None));
    }
    model.check().map_err(|e| input(e.to_string(), e.hint()))?;
    model.infer().map_err(|e| input(e.to_string(), None))?;
    // Again, now that the types of what stands between nodes are known.
    model.check().map_err(|e| input(e.to_string(), e.hint()))?;
    let mut cx = Context::new(options.tools, pipeline.registry());
    cx.stop_after = options.stop_after;
    let mut runner = Runner { cx, report: Report::default(), observer };
    runner.steps(pipeline, model)?;
    Ok(runner.report)
}

struct Runner<'r, 't> {
    cx: Context<'t>,
    report: Report,
    observer: &'r mut dyn Observer,
}

impl Runner<'_, '_> {
    fn steps(&mut self, pipeline: &Pipeline, model: &mut Model) -> Result<(), RunError> {
        for step in pipeline.steps() {
            if self.cx.stopped() {
                break;
            }
            match step {
                Step::Pass { pass, .. } => self.pass(pass.as_ref(), model)?,
                Step::Preset { steps, .. } => self.steps(steps, model)?,
                Step::Repeat(steps) => self.repeat(steps, model)?,
            }
        }
        Ok(())
    }

    fn repeat(&mut self, steps: &Pipeline, model: &mut Model) -> Result<(), RunError> {
        for round in 1..=MAX_ROUNDS {
            let before = self.cx.patches;
            self.steps(steps, model)?;
            self.report.rounds = self.report.rounds.max(round);
            if self.cx.patches == before || self.cx.stopped() {
                return Ok(());
            }
        }
        self.report.unfinished = true;
        Ok(())
    }

    fn pass(&mut self, pass: &dyn Pass, model: &mut Model) -> Result<(), RunError> {
        let (name, start, before) = (pass.info().name, Instant::now(), self.cx.patches);
        let ran = catch_unwind(AssertUnwindSafe(|| pass.run(model, &mut self.cx)));
        let panicked = |payload: Box<dyn std::any::Any + Send>| {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            let message = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            RunError::Panicked { pass: name, message }
        };
        ran.map_err(panicked)?.map_err(|error| RunError::Pass { pass: name, error })?;
        if self.cx.patches > before {
            let broken = |why: String| RunError::Broken { pass: name, why };
            model.check().map_err(|e| broken(e.to_string()))?;
            model.infer().map_err(|e| broken(e.to_string()))?;
        }
        for report in self.cx.finish(pass.info(), start.elapsed()) {
            self.report.add(report);
        }
        self.observer.after(pass, model, self.cx.patches);
        Ok(())
    }
}

/// Runs pipelines on models that a pass builds for itself, such as candidates of a search: the caller's patch numbers
/// and reports are not touched.
#[derive(Clone, Copy)]
pub struct Scratch<'t> {
    pub(super) tools: Tools<'t>,
    pub(super) registry: &'static Registry,
}

impl<'t> Scratch<'t> {
    /// Runs a pipeline in text form over `model`.
    pub fn run(self, pipeline: &str, model: &mut Model) -> Result<Report, PassError> {
        let mut cx = self.context();
        cx.run_nested(pipeline, model)?;
        let mut report = Report::default();
        cx.take_nested().into_iter().for_each(|step| report.add(step));
        Ok(report)
    }

    /// A context of its own, for rules that are no pass.
    pub fn context(self) -> Context<'t> {
        Context::new(self.tools, self.registry)
    }
}

/// The weakest promise among the passes that changed something.
impl Report {
    /// What the passes that changed something promise together.
    pub fn effect(&self) -> Effect {
        let changed = self.steps.iter().filter(|s| s.patches > 0);
        changed.filter_map(|s| s.effect).max().unwrap_or(Effect::Exact)
    }
}
