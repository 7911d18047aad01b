//! The part of the Python package `onnx_pare` that is written in Rust.
//!
//! Functions take a model as a path or as bytes, and options as JSON; they return models as bytes and reports as JSON.
//! Everything else (the kinds of models and samples, types, drop-in functions) is Python, in `package/onnx_pare`.

mod attend;
mod errors;
mod function_pass;
mod host_runtime;
mod options;
mod outcomes;

use attend::{Interrupts, Line, attend};
use errors::invalid;
use function_pass::Step;
use onnx_pare::{
    Metric, Source,
    passes::{OptionInfo, PASSES, PRESETS, PassInfo, Preset},
};
use outcomes::{Optimized, Report};
use pyo3::{prelude::*, pybacked::PyBackedBytes};
use serde_json::json;
use std::{ffi::OsString, path::PathBuf};

/// A model as an argument: its file, or its bytes, which are not copied.
#[derive(FromPyObject)]
enum ModelArgument {
    Bytes(PyBackedBytes),
    File(PathBuf),
}

impl From<ModelArgument> for Source {
    fn from(model: ModelArgument) -> Self {
        match model {
            ModelArgument::Bytes(bytes) => bytes::Bytes::from_owner(bytes).into(),
            ModelArgument::File(path) => path.into(),
        }
    }
}

#[pymodule]
mod _native {
    #[allow(clippy::wildcard_imports)] // a module because the macro asks for one
    use super::*;

    #[pymodule_export]
    use super::{Optimized, Report};

    /// Runs a pipeline over a model and proves the result.
    #[pyfunction]
    fn optimize(
        py: Python<'_>,
        model: ModelArgument,
        steps: Vec<Step>,
        options: &str,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<Optimized> {
        let options: options::Optimize = options::parse(options)?;
        attend(py, host, Interrupts::End, move |line| {
            let pipeline = function_pass::pipeline(steps, &line)?;
            Ok(Optimized::new(onnx_pare::optimize(model, options.build(pipeline, line)?)?))
        })
    }

    /// Searches for the best model within limits. The first interrupt ends the search with its best result.
    #[pyfunction]
    fn search(
        py: Python<'_>,
        model: ModelArgument,
        options: &str,
        metric: Option<Py<PyAny>>,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<Optimized> {
        let options: options::Search = options::parse(options)?;
        attend(py, host, Interrupts::EndEarly, move |line| {
            let mut search = options.build(line.clone())?;
            search.metric = metric.map(|function| measure_by(function, line));
            Ok(Optimized::found(onnx_pare::search(model, search)?))
        })
    }

    /// Compares two models by running both.
    #[pyfunction]
    fn verify(
        py: Python<'_>,
        reference: ModelArgument,
        candidate: ModelArgument,
        options: &str,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<Report> {
        let options: options::Verify = options::parse(options)?;
        attend(py, host, Interrupts::End, move |line| {
            Ok(Report::new(onnx_pare::verify(reference, candidate, &options.build(line)?)?))
        })
    }

    /// Measures the latency of models in interleaved rounds.
    #[pyfunction]
    fn bench(
        py: Python<'_>,
        models: Vec<ModelArgument>,
        options: &str,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<Report> {
        let options: options::Bench = options::parse(options)?;
        attend(py, host, Interrupts::End, move |line| {
            let models: Vec<Source> = models.into_iter().map(Source::from).collect();
            Ok(Report::new(onnx_pare::bench(&models, &options.build(line)?)?))
        })
    }

    /// Collects statistics of activations, writes them, and returns a report.
    #[pyfunction]
    fn calibrate(
        py: Python<'_>,
        model: ModelArgument,
        output: PathBuf,
        options: &str,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        let options: options::Calibrate = options::parse(options)?;
        attend(py, host, Interrupts::End, move |line| {
            onnx_pare::check_output(&output)?;
            let calibration = onnx_pare::calibrate(model, &options.build(line)?)?;
            let bytes = calibration.write(&output)?;
            let (operators, samples, rows) = (calibration.operators, calibration.samples, calibration.rows);
            Ok(json!({ "operators": operators, "samples": samples, "rows": rows, "bytes": bytes })
                .to_string())
        })
    }

    /// Adds the statistics in files and writes the sum.
    #[pyfunction]
    fn merge_statistics(
        py: Python<'_>,
        files: Vec<PathBuf>,
        output: PathBuf,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        attend(py, host, Interrupts::End, move |_| {
            let sum = onnx_pare::Calibration::merged(&files)?;
            let bytes = sum.write(&output)?;
            Ok(json!({ "operators": sum.operators, "rows": sum.rows, "bytes": bytes }).to_string())
        })
    }

    /// The structure and the cost of a model.
    #[pyfunction]
    fn inspect(
        py: Python<'_>,
        model: ModelArgument,
        options: &str,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        let options: options::Inspect = options::parse(options)?;
        attend(py, host, Interrupts::End, move |line| {
            Ok(onnx_pare_cli::json(&onnx_pare::inspect(model, &options.build(line))?))
        })
    }

    /// The graph of a model in ONNX textual syntax.
    #[pyfunction]
    fn model_text(py: Python<'_>, model: ModelArgument, host: &Bound<'_, PyAny>) -> PyResult<String> {
        attend(py, host, Interrupts::End, move |_| onnx_pare::inspect_text(model))
    }

    /// The differences of structure and weights between two models.
    #[pyfunction]
    fn diff(
        py: Python<'_>,
        before: ModelArgument,
        after: ModelArgument,
        host: &Bound<'_, PyAny>,
    ) -> PyResult<String> {
        attend(py, host, Interrupts::End, move |_| Ok(onnx_pare_cli::json(&onnx_pare::diff(before, after)?)))
    }

    /// All presets and passes, a list. A preset has a text, a pass an effect and options.
    #[pyfunction]
    fn passes() -> String {
        let option = |option: &OptionInfo| {
            let default = (option.default)();
            json!({ "name": option.name, "type": option.ty, "default": default, "docs": option.docs })
        };
        let pass = |pass: &&PassInfo| {
            let options: Vec<_> = pass.options.iter().map(option).collect();
            let (name, effect, docs) = (pass.name, pass.effect, pass.docs);
            json!({ "name": name, "effect": effect, "docs": docs, "options": options, "text": null })
        };
        let preset = |preset: &Preset| {
            let (name, docs, text) = (preset.name, preset.docs, preset.text);
            json!({ "name": name, "effect": null, "docs": docs, "options": [], "text": text })
        };
        let listed: Vec<_> = PRESETS.iter().map(preset).chain(PASSES.iter().map(pass)).collect();
        json!(listed).to_string()
    }

    /// Checks that a file can be created at a path.
    #[pyfunction]
    fn check_output(py: Python<'_>, path: PathBuf) -> PyResult<()> {
        onnx_pare::check_output(&path).map_err(|error| errors::raised(py, &error))
    }

    /// Uses the ONNX Runtime that called the function of custom operators of this library.
    #[pyfunction]
    fn adopt_runtime(py: Python<'_>, owner: &str) -> PyResult<()> {
        host_runtime::adopt(owner).map_err(|error| errors::raised(py, &error))
    }

    /// Runs the command, and returns its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
        py.detach(|| onnx_pare_cli::run(arguments))
    }

    /// Removes the panic hook, which prints: panics are returned as errors.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        std::panic::set_hook(Box::new(|_| {}));
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

/// A metric that a Python function computes from the path of a model.
fn measure_by(function: Py<PyAny>, line: Line) -> Metric {
    let function = std::sync::Arc::new(function);
    Metric::function(move |model| {
        let (function, path) = (function.clone(), model.to_owned());
        line.call(move |py| function.bind(py).call1((path,))?.extract::<f64>())
    })
}

/// The words of an option that has a fixed set of values.
fn word<T>(name: &str, given: &str, known: &[(&str, T)]) -> Result<T, onnx_pare::Error>
where
    T: Clone,
{
    let found = known.iter().find(|(word, _)| *word == given).map(|(_, value)| value.clone());
    found.ok_or_else(|| {
        let known: Vec<_> = known.iter().map(|(word, _)| format!("`{word}`")).collect();
        invalid(format!("`{name}` is {}, not `{given}`", known.join(", ")))
    })
}
