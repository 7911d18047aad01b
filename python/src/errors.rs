//! Errors as exceptions.

use onnx_pare::{Error, Hint};
use onnx_pare_cli::{Interface, hint, json};
use pyo3::{prelude::*, types::PyBytes};
use std::any::Any;

/// An error of options.
pub fn invalid(message: impl Into<String>) -> Error {
    Error::Invalid { message: message.into(), hint: None }
}

/// The error of a panic.
pub fn defect(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    invalid(format!("this is a defect of pare: {text}"))
}

/// A remedy in the names of Python.
pub fn remedy(found: Option<Hint>) -> Option<String> {
    found.map(|found| hint(&found, Interface::Python))
}

/// The exception of an error: `PareError`, or `Rejected` with the report.
pub fn raised(py: Python<'_>, error: &Error) -> PyErr {
    exception(py, error).unwrap_or_else(|failure| failure)
}

fn exception(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let module = py.import("onnx_pare._errors")?;
    let (message, remedy) = (error.to_string(), remedy(error.hint()));
    let instance = match error.root() {
        Error::Rejected(rejected) => {
            let proof = rejected.report.proof.as_ref();
            let culprit = proof.and_then(|proof| proof.culprit.as_ref()).map(ToString::to_string);
            let smallest = rejected.reproducer.as_ref().map(|found| pare_graph::onnx::to_bytes(&found.model));
            let smallest = smallest.and_then(Result::ok).map(|bytes| PyBytes::new(py, &bytes));
            let class = module.getattr("Rejected")?;
            class.call1((message, remedy.or(culprit), json(&rejected.report), smallest))?
        }
        root => {
            let detail = match root {
                Error::Pipeline(syntax) => Some(syntax.underline()),
                _ => None,
            };
            module.getattr("PareError")?.call1((message, remedy, detail))?
        }
    };
    Ok(PyErr::from_value(instance))
}
