//! The list of all passes and presets.

use crate::{
    framework::{PassInfo, Pipeline, PipelineError, Preset, Registry},
    transforms::{channels, cleanup, fold, fuse, layers, tokens, weights},
};
use std::str::FromStr;

/// Every pass, in the order in which `pare passes` lists them. A new pass is a new file and one line here.
pub static PASSES: &[&PassInfo] = &[
    // what computes nothing
    &cleanup::DropDead::INFO,
    &cleanup::DropNoops::INFO,
    &cleanup::DropNeutral::INFO,
    &cleanup::DropIdempotent::INFO,
    &cleanup::FoldAbsorbing::INFO,
    &cleanup::LiftConstants::INFO,
    &cleanup::ResolveShapes::INFO,
    &cleanup::FuseSizes::INFO,
    &cleanup::InlineBranches::INFO,
    &cleanup::InlineFunctions::INFO,
    &cleanup::Deduplicate::INFO,
    &cleanup::MergeCasts::INFO,
    &cleanup::MergeClips::INFO,
    &cleanup::LowerEinsum::INFO,
    &cleanup::MergeTransposes::INFO,
    &cleanup::MergeReshapes::INFO,
    &cleanup::MergeViews::INFO,
    &cleanup::SliceViews::INFO,
    &cleanup::SplitViews::INFO,
    &cleanup::MergeReductions::INFO,
    &cleanup::MergeSlices::INFO,
    &cleanup::MergeConcats::INFO,
    &cleanup::MergePads::INFO,
    // exact algebra
    &fold::FoldConstants::INFO,
    &fold::FoldBn::INFO,
    &fold::FoldScale::INFO,
    &fold::FoldLinear::INFO,
    &fold::CropKernels::INFO,
    // operators recognised
    &fuse::FuseGemm::INFO,
    &fuse::FuseLayerNorm::INFO,
    &fuse::FuseGelu::INFO,
    &fuse::FuseHardSwish::INFO,
    &fuse::FuseSoftplus::INFO,
    &fuse::FuseSpaceToDepth::INFO,
    // fewer layers
    &layers::DropRedundantActivations::INFO,
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

/// Every preset.
pub static PRESETS: &[Preset] = &[Preset {
    name: "safe",
    docs: "Everything exact or rounding that makes a model smaller or no slower; the default.",
    text: SAFE,
}];

// Why in this order:
//  1. Constants first, since every other pass asks for them. A branch that is known brings its own.
//  2. Shapes, which make targets and places constant; then what depends on them can be computed.
//  3. No-ops and repeats, so that patterns lie side by side.
//  4. What rearranges: products first that hide transposes. Transposes before reshapes: two that cancel are better gone than turned into reshapes.
//  5. Twins, before patterns: what is computed twice looks like a value in use elsewhere.
//  6. Folds into the product before them. Scales and shifts that exporters write out of a batch norm come last, then
//     products into products, for which no activation may stand in between.
//  7. Operators recognised, from what no fold took.
// Dead nodes go with whatever made them dead; what nobody needed from the start, at the beginning.
const SAFE: &str = "drop-dead,(\
    lift-constants,inline-branches,resolve-shapes,fuse-sizes,fold-absorbing,fold-constants,\
    drop-noops,drop-neutral,drop-idempotent,merge-casts,merge-clips,drop-redundant-activations,\
    lower-einsum,slice-views,split-views,merge-transposes,merge-views,merge-reshapes,merge-reductions,merge-slices,merge-concats,merge-pads,\
    deduplicate,\
    fold-bn,fold-scale,fold-linear,\
    fuse-layer-norm,fuse-gelu,fuse-hard-swish,fuse-softplus,fuse-space-to-depth,fuse-gemm\
    )*,drop-dead";

/// Every pass and preset of this crate.
pub static REGISTRY: Registry = Registry { passes: PASSES, presets: PRESETS };

impl Default for Pipeline {
    /// The empty pipeline.
    fn default() -> Self {
        Self::empty(&REGISTRY)
    }
}

impl FromStr for Pipeline {
    type Err = PipelineError;

    fn from_str(text: &str) -> Result<Self, PipelineError> {
        Self::parse(text, &REGISTRY)
    }
}

impl Pipeline {
    /// Parses the TOML form with the passes of this crate.
    pub fn from_toml(text: &str) -> Result<Self, PipelineError> {
        Self::parse_toml(text, &REGISTRY)
    }
}
