//! The clean-up that passes over layers run first.

use crate::framework::{Context, PassError};
use pare_graph::Model;

/// Makes weights and shapes constant and folds batch norms, so that layers and channel groups are visible.
pub const PREPARATION: &str = "lift-constants,fold-constants,drop-noops,fold-bn,drop-dead";

/// Runs [`PREPARATION`] and infers shapes again.
pub(crate) fn prepare(model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
    cx.run_nested(PREPARATION, model)?;
    Ok(model.infer()?)
}
