//! Running ONNX models: engines, samples, comparison, timing.
//!
//! * [`resolve`] finds an [`Engine`]: ONNX Runtime from a library on this machine, or the embedded tract.
//! * [`SampleSet`] are what models are run on: given as files, or generated from the types of the inputs.
//! * [`Comparison`] collects how far two models' outputs lie apart; [`Tolerance`] judges it by the noise
//!   that the model shows against itself.
//! * [`prove`] puts these together, and [`bench()`] measures time.
//!
//! Nothing here prints, and no input makes it panic: what goes wrong is an error in one sentence, with
//! the remedy in its `hint()`.

mod barrier;
mod compare;
mod confidence;
mod engine;
mod error;
mod evaluate;
#[cfg(test)]
mod fake;
pub mod install;
pub mod locate;
mod ort;
mod proof;
mod resolve;
mod rounding;
mod samples;
mod state;
mod timing;
mod tolerance;
mod tract;

pub use compare::{Comparison, Deviation};
pub use confidence::upper_limit;
pub use engine::{
    Engine, Feed, LoadOptions, ModelSource, Optimize, Port, PortDim, PortKind, Prepared, Session, Value,
};
pub use error::EngineError;
pub use evaluate::{Evaluator, SharedSamples};
pub use locate::{Candidate, Located, Tried, candidates, locate};
pub use ort::OrtEngine;
pub use pare_graph::{
    Metrics,
    evaluate::stopwatch::{Spread, Stopwatch, Timings},
};
pub use proof::{Original, Outcome, ProofOptions, ProofReport, port_change, prove};
pub use resolve::{EngineChoice, EngineKind, Resolved, resolve};
pub use samples::{
    Batch, InputSpec, SampleLimits, SampleSet, SamplesError, beyond_generation, generate, input_specs,
    read_test_data, summary, symbol_plans,
};
pub use state::state_pairs;
pub use timing::{Contender, bench};
pub use tolerance::{Allowed, Tolerance, Verdict, epsilon};
pub use tract::TractEngine;
