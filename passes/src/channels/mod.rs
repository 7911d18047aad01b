//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod allocate;
pub mod cost;
pub mod cut;
pub mod drift;
pub mod groups;
pub mod repair;
pub mod roles;
pub mod trial;
