//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod allocate;
pub mod cost;
pub mod cut;
pub mod groups;
pub mod order;
mod prune;
pub mod repair;
pub mod roles;
#[cfg(test)]
mod tests;

pub(crate) use prune::matches;
pub use prune::{PruneChannels, Repair, Scope};
