//! Passes over ONNX graphs, and pipelines of passes.
//!
//! A [`Pass`] is declared with [`pass!`], listed in [`registry::PASSES`], named in a [`Pipeline`] and
//! executed by [`run`].
//!
//! * [`framework`]: passes, pipelines, the runner and its reports.
//! * [`analysis`]: the questions that passes ask about models, such as which channels form a group.
//! * [`transforms`]: the passes, in folders named after what they remove.
//! * [`statistics`]: sums over activations, which merge and are stored in files.
//!
//! The README of this crate explains how to add a pass.

pub mod analysis;
pub mod framework;
pub mod registry;
pub mod statistics;
pub mod transforms;

pub use framework::{
    Context, Counter, Declared, Effect, Figure, FigureUnit, FreedAxis, Hint, InterfaceChange, Memo,
    NoProgress, Observer, OptionInfo, Pass, PassError, PassInfo, Pipeline, PipelineError, Preset,
    PresetOption, Progress, Registry, Report, RunError, RunOptions, StepReport, Tools, run,
};

/// Tests the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
