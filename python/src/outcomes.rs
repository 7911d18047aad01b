//! Results, as Python sees them.

use crate::errors::{raised, remedy};
use onnx_pare::{Found, HtmlReport, SearchReport};
use onnx_pare_cli::json;
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyBytes};
use serde::Serialize;
use std::{
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard},
};

/// A report of a comparison or a measurement.
#[pyclass(frozen, module = "onnx_pare._native")]
pub struct Report {
    json: String,
    page: Box<dyn HtmlReport + Send + Sync>,
}

impl Report {
    pub fn new(report: impl HtmlReport + Serialize + Send + Sync + 'static) -> Self {
        Self { json: json(&report), page: Box::new(report) }
    }
}

#[pymethods]
impl Report {
    /// The report as JSON.
    fn json(&self) -> &str {
        &self.json
    }

    /// The report as a page.
    fn html(&self, py: Python<'_>) -> String {
        py.detach(|| self.page.to_html())
    }
}

/// A model after a pipeline or a search.
#[pyclass(frozen, module = "onnx_pare._native")]
pub struct Optimized {
    inner: Mutex<(onnx_pare::Optimized, Option<SearchReport>)>,
}

impl Optimized {
    pub fn new(optimized: onnx_pare::Optimized) -> Self {
        Self { inner: Mutex::new((optimized, None)) }
    }

    pub fn found(found: Found) -> Self {
        Self { inner: Mutex::new((found.optimized, Some(found.report))) }
    }

    fn lock(&self) -> PyResult<MutexGuard<'_, (onnx_pare::Optimized, Option<SearchReport>)>> {
        self.inner.lock().map_err(|_| PyRuntimeError::new_err("an earlier call failed"))
    }
}

#[pymethods]
impl Optimized {
    /// True if the model differs from the original.
    #[getter]
    fn changed(&self) -> PyResult<bool> {
        Ok(self.lock()?.0.changed)
    }

    /// The remedies of a result that is slower than the original or equal to it.
    #[getter]
    fn hints(&self) -> PyResult<Vec<String>> {
        let inner = self.lock()?;
        let slower = inner.0.report.latency.as_ref().filter(|latency| latency.slower);
        let hints = [inner.0.hint(), slower.and_then(|latency| latency.hint())];
        Ok(hints.into_iter().filter_map(remedy).collect())
    }

    /// The bytes of the model file. They are encoded into the Python object: no second copy of the weights exists.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let mut inner = self.lock()?;
        let optimized = &mut inner.0;
        let length = py.detach(|| pare_graph::onnx::write_to(&optimized.model, io::sink()));
        let length = length.map_err(|error| raised(py, &error.into()))?;
        optimized.report.after.bytes = Some(length);
        PyBytes::new_with(py, usize::try_from(length)?, |buffer| {
            let written = py.detach(|| pare_graph::onnx::write_to(&optimized.model, io::Cursor::new(buffer)));
            written.map(drop).map_err(|error| raised(py, &error.into()))
        })
    }

    /// Writes the model file atomically.
    fn write(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let mut inner = self.lock()?;
        let optimized = &mut inner.0;
        py.detach(move || optimized.write(path).map(drop)).map_err(|error| raised(py, &error))
    }

    /// The report as JSON.
    fn json(&self, py: Python<'_>) -> PyResult<String> {
        let inner = &mut *self.lock()?;
        Ok(py.detach(|| match inner {
            (optimized, None) => json(&optimized.report),
            (optimized, Some(report)) => {
                report.result = optimized.report.clone();
                json(report)
            }
        }))
    }

    /// The report as a page.
    fn html(&self, py: Python<'_>) -> PyResult<String> {
        let inner = &*self.lock()?;
        Ok(py.detach(|| match inner {
            (optimized, None) => optimized.report.to_html(),
            (_, Some(report)) => report.to_html(),
        }))
    }
}
