//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod allocate;
pub mod cost;
pub mod cut;
pub mod drift;
mod frontier;
pub mod groups;
pub mod order;
mod prune;
pub mod repair;
pub mod roles;
pub mod sequential;
pub mod trial;

pub use prune::{PruneChannels, Repair, Scope};
