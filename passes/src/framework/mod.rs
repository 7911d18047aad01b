//! Passes, pipelines and the runner. The framework knows no individual pass.

mod context;
mod error;
pub(crate) mod glob;
mod hint;
mod interface;
pub(crate) mod matching;
mod memo;
mod nested;
pub(crate) mod node_builder;
mod pass;
pub mod pipeline;
mod registry;
mod report;
mod rewrite;
mod run;
#[cfg(test)]
pub(crate) mod testing;
mod tools;

pub use context::Context;
pub use error::{PassError, RunError};
pub use hint::Hint;
pub use interface::{FreedAxis, InterfaceChange};
pub use memo::Memo;
pub use nested::Scratch;
pub(crate) use node_builder::NodeBuilder;
pub use pass::{Declared, Effect, OptionInfo, Pass, PassInfo, pass_support};
pub(crate) use pipeline::Step;
pub use pipeline::{Pipeline, PipelineError};
pub use registry::{Preset, PresetOption, Registry};
pub use report::{Counter, Figure, FigureUnit, Report, StepReport};
pub use run::{Observer, RunOptions, run};
pub use tools::{NoProgress, Progress, Tools};
