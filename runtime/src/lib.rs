//! Running ONNX models: engines, samples, comparison, timing.
//!
//! * [`resolve`] finds an [`Engine`]: ONNX Runtime from a library on this machine, or the embedded tract.
//! * [`Samples`] are what models are run on: given as files, or generated from the types of the inputs.
//! * [`Comparison`] collects how far two models' outputs lie apart; [`Tolerance`] judges it by the noise
//!   that the model shows against itself.
//! * [`prove`] puts these together, and [`bench`] measures time.
//!
//! Nothing here prints, and no input makes it panic: what goes wrong is an error in one sentence, with
//! the remedy in its `hint()`.

mod barrier;
mod engine;
mod error;
pub mod install;
pub mod locate;
mod ort;
mod resolve;
mod tract;

pub use engine::{
    Engine, Feed, Kind, LoadOptions, ModelSource, Optimize, Port, PortDim, Prepared, Session, Value,
};
pub use error::EngineError;
pub use locate::{Candidate, Located, Tried, candidates, locate};
pub use ort::OrtEngine;
pub use resolve::{EngineChoice, EngineKind, Resolved, resolve};
pub use tract::TractEngine;
