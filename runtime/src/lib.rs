//! Running ONNX models: engines, samples, comparison, timing.
//!
//! * [`resolve()`] returns an [`Engine`]: ONNX Runtime from a library on this machine, or the embedded tract.
//! * A [`SampleSet`] holds the inputs that models run on: read from files, or generated from the types of the
//!   inputs.
//! * A [`Comparison`] collects the deviation between two models' outputs; a [`Tolerance`] judges it by the
//!   noise of the original model.
//! * [`prove`] combines these, and [`bench()`] measures latency.
//!
//! Engines are features: `ort` (ONNX Runtime), `tract`, and `install` (installs ONNX Runtime with pip).
//! Without them the crate still reads and generates samples, compares, and runs any other implementation of
//! [`Engine`].
//!
//! The crate prints nothing and installs no panic hook; no input makes it panic. Errors are one sentence, and
//! their `hint()` is a [`Hint`] that the program puts into words.

#[cfg_attr(not(feature = "ort"), allow(dead_code))]
mod cache;
mod clock;
mod compare;
mod confidence;
mod engine;
mod error;
mod evaluate;
#[cfg(test)]
mod fake;
mod hint;
#[cfg(feature = "install")]
pub mod install;
mod interface;
#[cfg(feature = "ort")]
pub mod locate;
mod message;
#[cfg(feature = "ort")]
mod ort;
mod panic;
mod proof;
mod provider;
mod related;
mod resolve;
mod samples;
mod state;
mod timing;
mod tolerance;
#[cfg(feature = "tract")]
mod tract;

pub use cache::cache_folder;
pub use compare::{Comparison, Deviation, RunMaxima};
pub use confidence::upper_limit;
pub use engine::{
    Engine, Feed, LoadOptions, ModelSource, Optimize, Port, PortDim, PortKind, Prepared, Session, Value,
    check_feeds,
};
pub use error::{EngineError, InstallError};
pub use evaluate::{Evaluator, SharedSamples};
pub use hint::{Hint, Tried};
pub use interface::declared_change;
#[cfg(feature = "ort")]
pub use locate::{Candidate, Located, candidates, locate};
#[cfg(feature = "ort")]
pub use ort::OrtEngine;
pub use panic::is_catching_panics;
pub use pare_graph::{
    Metrics,
    evaluate::{
        quality::{MeasuredOutput, NeighbourOrder, OutputMeasure, QualityMeasures},
        stopwatch::{Spread, Stopwatch, Timings},
    },
};
pub use proof::{Original, Outcome, ProofOptions, ProofReport, prove};
pub use provider::Provider;
pub use related::{FreedPorts, RelatedEngine, Relation};
pub use resolve::{EngineChoice, EngineKind, Resolved, resolve};
pub use samples::{
    Batch, InputSpec, SampleLimits, SampleSet, SamplesError, beyond_generation, generate, input_specs,
    read_test_data, symbol_plans,
};
pub use state::StatePair;
pub use timing::{Contender, bench};
pub use tolerance::{Tolerance, Verdict, epsilon};
#[cfg(feature = "tract")]
pub use tract::TractEngine;
