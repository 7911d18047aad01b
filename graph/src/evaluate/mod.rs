//! What passes may ask of something that can run models. Engines live elsewhere; here are only the questions.

pub mod quality;
pub mod stopwatch;

use crate::{Model, Tensor};
use std::ops::Range;

/// Something that runs models, such as ONNX Runtime.
pub trait Evaluate: Send + Sync {
    /// Its name and version, for reports.
    fn name(&self) -> String;

    /// Make a model ready to run.
    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError>;
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Let the engine transform the graph, as it does in deployment; off when values are compared or traced.
    pub optimized: bool,
    /// Threads within an operator; 0 leaves it to the engine.
    pub threads: usize,
}

impl Setting {
    /// As values are compared: no transformation by the engine.
    pub const PLAIN: Self = Self { optimized: false, threads: 0 };
    /// As models are deployed.
    pub const DEPLOYED: Self = Self { optimized: true, threads: 0 };

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
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Samples `range` as one batch: inputs by name, first axis samples.
    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError>;

    /// The class of each sample, if known.
    fn labels(&self) -> Option<&[i64]> {
        None
    }
}

/// Why a model could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvaluateError(pub String);
