//! Every pass there is.

use crate::{PassInfo, cleanup, fold};

/// Every pass, in the order in which `pare passes` lists them. A new pass is a new file and one line here.
pub static PASSES: &[&PassInfo] = &[
    // what computes nothing
    &cleanup::DropDead::INFO,
    &cleanup::DropNoops::INFO,
    &cleanup::LiftConstants::INFO,
    &cleanup::MergeTwins::INFO,
    // exact algebra
    &fold::FoldConstants::INFO,
    &fold::FoldBn::INFO,
    &fold::FoldLinear::INFO,
];

/// The pass of this name.
pub fn find(name: &str) -> Option<&'static PassInfo> {
    PASSES.iter().find(|p| p.name == name).copied()
}

/// The names of all passes and presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PASSES.iter().map(|p| p.name).chain(crate::presets::PRESETS.iter().map(|p| p.name))
}
