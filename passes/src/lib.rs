//! Passes over ONNX graphs and the pipelines they run in.
//!
//! A [`Pass`] is declared by [`pass!`], listed in [`registry::PASSES`], named in a [`Pipeline`] and run by [`run`].
//! The folders are named after what is taken away: overhead (`cleanup`), composition (`fold`), channels, layers,
//! tokens, weights. How to add a pass stands in this crate's README.

pub mod analysis;
pub mod framework;
pub mod registry;
pub mod statistics;
pub mod transforms;

pub use framework::{
    Context, Counter, Declared, Effect, Figure, NoProgress, Observer, OptionInfo, Pass, PassError, PassInfo,
    Pipeline, PipelineError, Preset, Progress, Registry, Report, RunError, RunOptions, Step, StepReport,
    Tools, run,
};

/// The README's code is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
