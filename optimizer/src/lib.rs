//! Makes trained ONNX models smaller and faster, and proves it.
//!
//! [`optimize`] runs a pipeline of passes over a model and then runs both models on the same samples. It
//! returns the result only if it keeps what the passes promise. The simplest use, from a `build.rs`:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bytes = std::fs::read("model.onnx")?;
//! let small: onnx_pare::Optimized = onnx_pare::optimize(&bytes, "safe")?;
//! std::fs::write("small.onnx", small.to_bytes()?)?;
//! # Ok(())
//! # }
//! ```
//!
//! | function | returns |
//! |---|---|
//! | [`optimize`] | the model after a pipeline, with the report and the proof |
//! | [`verify`] | how far the outputs of two models differ |
//! | [`diff()`] | the differences of structure, weights and interface between two models |
//! | [`search()`] | the fastest or smallest model within limits on quality, and its pipeline |
//! | [`reduce`] | the smallest part of a model on which a pipeline still fails |
//! | [`bench()`] | the latency of models, measured in interleaved rounds |
//! | [`inspect`] | operators, weights, multiply-accumulates and memory of a model |
//! | [`calibrate`] | statistics of the activations, for passes that need samples |
//! | [`mask`] | the zeros that a pipeline leaves among the weights |
//! | [`Project::build`] | many models, each rebuilt only if something it depends on changed |
//!
//! All take a [`Source`] (a path, bytes or a [`Model`]) and options with an [`Environment`]: engine, threads,
//! seed, and a [`Progress`] that receives events and can cancel. Reports serialise to the JSON of the `pare`
//! command. Errors are one sentence; [`Error::hint`] returns the remedy as a value.
//!
//! # Engines
//!
//! Models are run by ONNX Runtime (feature `ort`, loaded at run time) or by the embedded tract (feature
//! `tract`); both are on by default. Without engines the crate reads models, runs the passes that need no
//! samples, and writes; the proof then is [`Outcome::Unproven`]. Feature `install` fetches ONNX Runtime where
//! there is none.

mod bench;
mod bisect;
mod calibrate;
mod comparison;
mod config;
mod delta;
mod details;
mod diff;
pub mod engines;
mod environment;
mod error;
mod hash;
mod html;
mod inspect;
mod latency;
mod limits;
mod lock;
mod mask;
mod metric;
mod optimize;
mod options;
mod output;
mod project;
mod proof;
mod quality;
mod related;
mod reproducer;
mod runner;
mod samples;
mod search;
mod source;
mod stages;
mod verify;
mod weight_statistics;

pub use bench::{BenchOptions, BenchReport, Timing, bench};
pub use calibrate::{CalibrateOptions, Calibration, calibrate};
pub use comparison::{Comparison, Disagreement};
pub use config::Config;
pub use details::{Details, LayerChange, SampleDrift};
pub use diff::{ModelDiff, NodeChange, NodeDiff, PropertyChange, WeightChange, WeightDiff, diff};
pub use environment::{Environment, Event, Progress};
pub use error::{Error, Hint, PipelineSyntax};
pub use html::HtmlReport;
pub use inspect::{
    BlockShare, Blocks, ChannelGroup, ChannelGroups, Gradients, GroupMember, InspectOptions, Inspection,
    LayerCost, Quantization, QuantizedLayer, TokenBlock, Tokens, WeightGradient, inspect, inspect_blocks,
    inspect_gradients, inspect_groups, inspect_quantization, inspect_text, inspect_tokens, model_text,
};
pub use latency::{Latency, Quartiles, Slowdown};
pub use limits::{Measure, QualityLimits};
pub use mask::{MaskOptions, Masked, mask};
pub use metric::Metric;
pub use optimize::{ModelSize, OptimizeOptions, OptimizeReport, Optimized, PIPELINE_KEY, Rejected, optimize};
pub use output::{Written, check_output, remove_temporary_files};
pub use pare_graph::{
    Model,
    onnx::{DataFiles, ExternalData},
};
pub use pare_passes::{Effect, Pipeline, analysis::evaluation::TensorDrift};
pub use pare_runtime::{
    EngineKind, MeasuredOutput, Metrics, NeighbourOrder, Optimize as EngineOptimizations, Outcome,
    OutputMeasure, ProofReport, Provider, QualityMeasures,
};
pub use project::{ModelState, ModelStatus, Project, ProjectModel, ProjectOptions, ProjectReport};
pub use proof::{Culprit, Proof, Prove, StageProof};
pub use quality::QualityOptions;
pub use reproducer::{Defect, FAULT_KEY, Fault, FaultKind, ReduceOptions, Reproducer, reduce};
pub use search::{
    FamilyReport, Found, Goal, Measured, SearchEnd, SearchLimits, SearchOptions, SearchReport, Trial,
    TrialOutcome, search,
};
pub use source::Source;
pub use verify::{Verification, VerifyOptions, verify};
pub use weight_statistics::WeightStatistics;

/// The passes and presets that pipelines consist of, and reports about them.
pub mod passes {
    pub use pare_passes::{
        Counter, Figure, FigureUnit, Hint, OptionInfo, PassInfo, Preset, PresetOption, Report, StepReport,
        registry::{PASSES, PRESETS, REGISTRY},
    };
}
