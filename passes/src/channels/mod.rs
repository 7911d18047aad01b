//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod allocate;
pub mod cost;
pub mod cut;
mod drop_dead_channels;
pub mod groups;
pub mod order;
mod prune;
mod prune_heads;
mod prune_hidden;
pub mod repair;
pub mod roles;
#[cfg(test)]
mod tests;

pub use drop_dead_channels::DropDeadChannels;
pub use prune::{PruneChannels, Repair, Scope};
pub use prune_heads::PruneHeads;
pub use prune_hidden::PruneHidden;

/// What channel passes do to a model first: groups are those of what it leaves.
pub const PREPARATION: &str = "lift-constants,fold-constants,drop-noops,fold-bn,drop-dead";
