//! Fewer channels: which of them belong together, which matter least, and how the others make up for them.

pub mod groups;

pub mod cut;
