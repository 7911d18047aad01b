//! Resources that the caller of a pipeline provides.

use super::Memo;
use crate::statistics::Statistics;
use pare_graph::{Evaluate, Graph, Model, Samples, evaluate::quality::QualityMeasures, ops::Bindings};

/// Resources that the caller provides to the passes of a pipeline.
#[derive(Clone, Copy)]
pub struct Tools<'t> {
    /// Runs models. Passes that require an engine fail without one; constant folding evaluates standard
    /// operators itself.
    pub engine: Option<&'t dyn Evaluate>,
    /// Model inputs for calibration and for comparing outputs.
    pub samples: Option<&'t dyn Samples>,
    /// The model whose outputs training aims at. [`run`](super::run) sets the model it is given, before any pass.
    pub teacher: Option<&'t Model>,
    /// The measures of the outputs; those that the analysis of the model chooses without.
    pub quality: Option<&'t QualityMeasures>,
    /// Sums over activations collected earlier; the samples are run for missing ones.
    pub statistics: Option<&'t Statistics>,
    /// Results of passes that are not computed again.
    pub memo: Option<&'t Memo>,
    /// Receives the progress of long computations.
    pub progress: &'t dyn Progress,
    /// Seed of every random choice.
    pub seed: u64,
    /// Threads for the passes' own arithmetic and for timing; 0 uses all cores.
    pub threads: usize,
    /// Bytes that activations may occupy during calibration.
    pub memory: u64,
}

impl Default for Tools<'_> {
    fn default() -> Self {
        Self {
            engine: None,
            samples: None,
            teacher: None,
            quality: None,
            statistics: None,
            memo: None,
            progress: &NoProgress,
            seed: 0,
            threads: 0,
            memory: 2 << 30,
        }
    }
}

impl Tools<'_> {
    /// The sizes of the symbolic and unnamed dimensions of a graph in the samples, for one sample; 1 without samples.
    pub fn sizes(&self, graph: &Graph) -> Bindings {
        let first =
            self.samples.filter(|s| !s.is_empty()).and_then(|s| s.batch(0..1).ok()).unwrap_or_default();
        Bindings::of_inputs(graph, first.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())))
    }
}

/// Receives progress updates.
pub trait Progress: Sync {
    /// Reports that `done` of `total` units of `what` are complete. Called often.
    fn step(&self, what: &str, done: u64, total: u64);

    /// Returns true if training is to end soon, with the best weights so far.
    fn is_ending(&self) -> bool {
        false
    }
}

/// A no-op progress sink.
pub struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _: &str, _: u64, _: u64) {}
}
