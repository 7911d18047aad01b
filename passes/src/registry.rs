//! Every pass there is.

use crate::{PassInfo, channels, cleanup, fold, fuse, layers, tokens, weights};

/// Every pass, in the order in which `pare passes` lists them. A new pass is a new file and one line here.
pub static PASSES: &[&PassInfo] = &[
    // what computes nothing
    &cleanup::DropDead::INFO,
    &cleanup::DropNoops::INFO,
    &cleanup::DropNeutral::INFO,
    &cleanup::DropRepeats::INFO,
    &cleanup::FoldAbsorbing::INFO,
    &cleanup::LiftConstants::INFO,
    &cleanup::ResolveShapes::INFO,
    &cleanup::FuseSizes::INFO,
    &cleanup::InlineBranches::INFO,
    &cleanup::InlineFunctions::INFO,
    &cleanup::MergeTwins::INFO,
    &cleanup::MergeCasts::INFO,
    &cleanup::MergeClips::INFO,
    &cleanup::LowerEinsum::INFO,
    &cleanup::MergeTransposes::INFO,
    &cleanup::MergeReshapes::INFO,
    &cleanup::MergeViews::INFO,
    &cleanup::SliceViews::INFO,
    &cleanup::MergeReductions::INFO,
    &cleanup::MergeSlices::INFO,
    &cleanup::MergeConcats::INFO,
    &cleanup::MergePads::INFO,
    // exact algebra
    &fold::FoldConstants::INFO,
    &fold::FoldBn::INFO,
    &fold::FoldScale::INFO,
    &fold::FoldLinear::INFO,
    // operators recognised
    &fuse::FuseGemm::INFO,
    &fuse::FuseLayerNorm::INFO,
    &fuse::FuseGelu::INFO,
    &fuse::FuseHardSwish::INFO,
    &fuse::FuseSoftplus::INFO,
    &fuse::FuseSpaceToDepth::INFO,
    // fewer layers
    &layers::DropIdleActivations::INFO,
    &layers::RemoveActivations::INFO,
    &layers::DropBlocks::INFO,
    &layers::AddEarlyExit::INFO,
    // fewer channels
    &channels::DropDeadChannels::INFO,
    &channels::PruneChannels::INFO,
    &channels::PruneHidden::INFO,
    &channels::PruneHeads::INFO,
    // fewer tokens
    &tokens::MergeTokens::INFO,
    // fewer bits of weights
    &weights::Sparsify::INFO,
    &weights::ApplyMask::INFO,
    &weights::Quantize::INFO,
];

/// The pass of this name.
pub fn find(name: &str) -> Option<&'static PassInfo> {
    PASSES.iter().find(|p| p.name == name).copied()
}

/// The names of all passes and presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PASSES.iter().map(|p| p.name).chain(crate::presets::PRESETS.iter().map(|p| p.name))
}
