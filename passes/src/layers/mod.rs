//! Fewer layers: activations that do nothing, and activations done without.

mod drop_idle_activations;
mod interval;

pub use drop_idle_activations::DropIdleActivations;
