//! Fewer layers: activations that do nothing, and activations done without.

mod drop_idle_activations;
mod interval;
mod remove_activations;

pub use drop_idle_activations::DropIdleActivations;
pub use remove_activations::{Criterion, RemoveActivations, Replacement};
