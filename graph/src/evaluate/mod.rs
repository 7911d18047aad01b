//! The interface through which passes run models and read samples. Engines implement it elsewhere.

pub mod quality;
pub mod stopwatch;

use crate::{Model, Tensor};
use std::{error::Error, fmt, ops::Range, sync::Arc};

/// An engine that runs models, such as ONNX Runtime.
pub trait Evaluate: Send + Sync {
    /// Name and version, for reports.
    fn name(&self) -> String;

    /// Loads a model.
    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError>;
}

/// Options of loading a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Let the engine transform the graph, as it does in deployment; off when values are compared or traced.
    pub optimized: bool,
    /// Run on the device of the deployment; on the CPU otherwise.
    pub deployed: bool,
    /// Threads within an operator; 0 leaves it to the engine.
    pub threads: usize,
}

impl Setting {
    /// As values are compared: no transformation by the engine.
    pub const PLAIN: Self = Self { optimized: false, deployed: false, threads: 0 };
    /// As many values are computed: transformed by the engine, on the CPU.
    pub const OPTIMIZED: Self = Self { optimized: true, deployed: false, threads: 0 };
    /// As models are deployed.
    pub const DEPLOYED: Self = Self { optimized: true, deployed: true, threads: 0 };

    /// With this many threads.
    #[must_use]
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }
}

/// A loaded model.
pub trait Run: Send {
    /// The outputs, in the order of the model's outputs, for inputs by name.
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EvaluateError>;

    /// Seconds that each of `runs` runs takes, copying of inputs and outputs left out where the engine allows.
    fn time(&mut self, feeds: &[(&str, &Tensor)], runs: usize) -> Result<Vec<f64>, EvaluateError>;
}

/// Inputs of a model, one row a sample.
pub trait Samples: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Returns true if there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Samples `range` as one batch: inputs by name, first axis samples.
    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError>;

    /// These samples as one batch, in this order.
    fn rows(&self, rows: &[usize]) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let batches: Vec<_> = rows.iter().map(|&row| self.batch(row..row + 1)).collect::<Result<_, _>>()?;
        let names = batches.first().into_iter().flatten().map(|(name, _)| name.clone());
        let joined = names.enumerate().map(|(i, name)| {
            let parts = batches.iter().map(|batch| batch.get(i).map(|(_, tensor)| tensor));
            let tensor = parts.collect::<Option<Vec<_>>>().and_then(|parts| Tensor::stacked(&parts));
            let uneven = || EvaluateError::new(format!("the samples of `{name}` have different shapes"));
            Ok((name.clone(), tensor.ok_or_else(uneven)?))
        });
        joined.collect()
    }

    /// The class of each sample, if known.
    fn labels(&self) -> Option<&[i64]> {
        None
    }
}

/// The reason why a model could not be run.
///
/// An error of an engine is kept as the source, so that callers can downcast it. Errors with equal messages are equal.
#[derive(Clone, Debug)]
pub struct EvaluateError {
    message: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl EvaluateError {
    /// An error with a message only.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), source: None }
    }

    /// An error with the message of its source.
    pub fn from_error(source: impl Error + Send + Sync + 'static) -> Self {
        Self { message: source.to_string(), source: Some(Arc::new(source)) }
    }
}

impl fmt::Display for EvaluateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for EvaluateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl PartialEq for EvaluateError {
    fn eq(&self, other: &Self) -> bool {
        self.message == other.message
    }
}

impl Eq for EvaluateError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_can_be_downcast() {
        let error = EvaluateError::from_error(crate::GraphError::Cycle("`a`".into()));
        assert_eq!(error, EvaluateError::new(error.to_string()));
        assert!(error.source().is_some_and(|e| e.is::<crate::GraphError>()));
    }
}
