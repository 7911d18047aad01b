//! Removal of activations, blocks and layers, and early exits.

mod add_early_exit;
mod drop_blocks;
mod drop_redundant_activations;
mod remove_activations;

pub use add_early_exit::AddEarlyExit;
pub use drop_blocks::DropBlocks;
pub use drop_redundant_activations::DropRedundantActivations;
pub use remove_activations::{ActivationCriterion, RemoveActivations, Replacement};
