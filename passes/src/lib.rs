//! Passes over ONNX graphs and the pipelines they run in.
//!
//! A [`Pass`] is declared by [`pass!`], listed in [`registry::PASSES`], named in a [`Pipeline`] and run by [`run`].
//! The folders are named after what is taken away: overhead (`cleanup`), composition (`fold`), channels, layers,
//! tokens, weights. How to add a pass stands in this crate's README.

pub mod blocks;
pub mod channels;
pub mod cleanup;
mod context;
pub mod fold;
pub mod fuse;
pub mod layers;
mod pass;
pub mod pipeline;
mod prepare;
pub mod presets;
pub mod registry;
pub mod repair;
pub mod report;
mod run;
mod spell;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod trial;
pub mod weights;

pub use context::{Context, Progress, Silent, Tools};
pub use pass::{Declared, Effect, OptionInfo, Pass, PassInfo, pass_support};
pub use pipeline::{Pipeline, PipelineError, Step};
pub use report::{Report, StepReport};
pub use run::{Observer, PassError, RunError, RunOptions, run};

/// The README's code is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
