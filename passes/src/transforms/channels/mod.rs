//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod allocate;
mod drop_dead_channels;
pub mod order;
mod prune;
mod prune_heads;
mod prune_hidden;
pub mod repair;

pub use drop_dead_channels::DropDeadChannels;
pub use prune::{PruneChannels, Repair, Scope};
pub use prune_heads::PruneHeads;
pub use prune_hidden::PruneHidden;
