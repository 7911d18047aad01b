//! What computes nothing, or computes twice.

mod drop_dead;
mod drop_noops;
mod lift_constants;
mod merge_twins;

pub use drop_dead::DropDead;
pub use drop_noops::DropNoops;
pub use lift_constants::LiftConstants;
pub use merge_twins::MergeTwins;
