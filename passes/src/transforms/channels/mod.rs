//! Structured pruning: removal of channels, attention heads and hidden units.

pub mod allocate;
mod drop_dead_channels;
pub mod importance;
pub mod local_repair;
mod prune;
mod prune_heads;
mod prune_hidden;

pub use drop_dead_channels::DropDeadChannels;
pub use prune::{PruneChannels, PruneRepair, PruneScope};
pub use prune_heads::PruneHeads;
pub use prune_hidden::PruneHidden;
