//! The passes that run before an analysis of layers.

use crate::framework::{Context, PassError};
use pare_graph::Model;

/// Makes weights and shapes constant and folds batch norms, which exposes layers and channel groups.
pub const PREPARATION: &str = "lift-constants,fold-constants,drop-noops,fold-bn,drop-dead";

/// Runs [`PREPARATION`] and infers shapes.
pub(crate) fn prepare(model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
    cx.run_nested(PREPARATION, model)?;
    Ok(model.infer()?)
}
