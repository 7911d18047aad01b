//! Steps of a pipeline that are Python functions.

use crate::{attend::Line, errors::invalid, word};
use onnx_pare::{Effect, Error, OptimizeOptions, Pipeline};
use pare_graph::{Model, onnx};
use pare_passes::{Context, Counter, Declared, Pass, PassError, PassInfo, framework::pass_support::Options};
use pyo3::{prelude::*, pybacked::PyBackedBytes, types::PyBytes};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A step: a pipeline in text form, or a function from bytes of a model to bytes, with its name and effect.
#[derive(FromPyObject)]
pub enum Step {
    Text(String),
    Function(String, String, Py<PyAny>),
}

/// Joins steps to a pipeline.
pub fn pipeline(steps: Vec<Step>, line: &Line) -> Result<Pipeline, Error> {
    let mut joined = Pipeline::default();
    for step in steps {
        match step {
            Step::Text(text) => {
                let mut options = OptimizeOptions::from(&*text);
                joined.append(std::mem::take(options.pipeline()?));
            }
            Step::Function(name, effect, function) => {
                joined.push(FunctionPass::new(&name, &effect, function, line.clone())?);
            }
        }
    }
    if joined.is_empty() {
        return Err(invalid("the pipeline has no steps"));
    }
    Ok(joined)
}

/// A pass that is a Python function.
struct FunctionPass {
    info: &'static PassInfo,
    function: Arc<Py<PyAny>>,
    line: Line,
}

impl FunctionPass {
    fn new(name: &str, effect: &str, function: Py<PyAny>, line: Line) -> Result<Self, Error> {
        let effects = [("exact", Effect::Exact), ("rounding", Effect::Rounding), ("lossy", Effect::Lossy)];
        let effect = word("effect", effect, &effects)?;
        Ok(Self { info: declaration(name, effect), function: Arc::new(function), line })
    }
}

impl Declared for FunctionPass {
    fn info(&self) -> &'static PassInfo {
        self.info
    }
}

impl Pass for FunctionPass {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        let before = onnx::to_bytes(model).map_err(|e| PassError::refused(e.to_string()))?;
        let function = self.function.clone();
        let call = move |py: Python<'_>| {
            let result = function.bind(py).call1((PyBytes::new(py, &before),))?;
            Ok(result.extract::<Option<PyBackedBytes>>()?)
        };
        let Some(after) = self.line.call(call).map_err(PassError::refused)? else { return Ok(()) };
        let after = onnx::read_bytes(bytes::Bytes::from_owner(after), None);
        let after = after.map_err(|e| PassError::refused(format!("it returned an invalid model: {e}")))?;
        if cx.permit() {
            *model = after;
        }
        Ok(())
    }
}

/// The declaration of a function. Declarations are never released, so each exists once.
fn declaration(name: &str, effect: Effect) -> &'static PassInfo {
    static KNOWN: Mutex<Option<HashMap<(String, Effect), &'static PassInfo>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    known.entry((name.to_owned(), effect)).or_insert_with(|| {
        Box::leak(Box::new(PassInfo {
            name: name.to_owned().leak(),
            effect,
            counts: Some(Counter::new("model rewritten", "models rewritten")),
            docs: "A function of the caller.\n",
            options: &[],
            open: None,
            trains: false,
            source: "",
            build: |_: Options| Err("a function has no text form".into()),
        }))
    })
}
