//! Structured pruning: removal of channels, attention heads and hidden units.

mod allocate;
mod drop_dead_channels;
mod importance;
mod local_repair;
mod prune;
mod prune_heads;
mod prune_hidden;

pub use drop_dead_channels::DropDeadChannels;
pub use importance::Importance;
pub use prune::{Multiple, PruneChannels, PruneRepair, PruneScope};
pub use prune_heads::PruneHeads;
pub use prune_hidden::PruneHidden;
