//! What a pass is and how pipelines of passes run. Knows no single pass.

mod context;
pub mod glob;
mod hint;
pub(crate) mod matching;
pub(crate) mod node_builder;
mod pass;
pub mod pipeline;
mod registry;
mod report;
mod run;
#[cfg(test)]
pub(crate) mod testing;

pub use context::{Context, NoProgress, Progress, Tools};
pub use hint::Hint;
pub(crate) use node_builder::NodeBuilder;
pub use pass::{Declared, Effect, OptionInfo, Pass, PassInfo, pass_support};
pub use pipeline::{Pipeline, PipelineError, Step};
pub use registry::{Preset, Registry};
pub use report::{Counter, Figure, Report, StepReport};
pub use run::{Observer, PassError, RunError, RunOptions, Scratch, run};
