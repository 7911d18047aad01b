//! The list of all passes and presets.

use crate::{
    framework::{PassInfo, Pipeline, PipelineError, Preset, PresetOption, Registry},
    transforms::{
        channels, cleanup, fold, fuse, interface, layers, opset, precision, tokens, training, weights,
    },
};
use std::str::FromStr;

/// Every pass, in the order in which passes are listed.
pub static PASSES: &[&PassInfo] = &[
    // requested changes of inputs and outputs
    &interface::SetDims::INFO,
    &interface::FreeDims::INFO,
    &interface::Extract::INFO,
    &interface::Rename::INFO,
    &interface::DropOutputs::INFO,
    &interface::AddOutputs::INFO,
    // redundant computation
    &cleanup::DropDead::INFO,
    &cleanup::DropNoops::INFO,
    &cleanup::DropNeutral::INFO,
    &cleanup::DropIdempotent::INFO,
    &cleanup::DropZeroStates::INFO,
    &cleanup::DropExpands::INFO,
    &cleanup::DropMatmulReshapes::INFO,
    &cleanup::DropMonotone::INFO,
    &cleanup::FoldAbsorbing::INFO,
    &cleanup::LiftConstants::INFO,
    &cleanup::ResolveShapes::INFO,
    &cleanup::FuseSizes::INFO,
    &cleanup::InlineBranches::INFO,
    &cleanup::InlineFunctions::INFO,
    &cleanup::Deduplicate::INFO,
    &cleanup::MergeCasts::INFO,
    &cleanup::MergeClips::INFO,
    &cleanup::MergeExtrema::INFO,
    &cleanup::LowerEinsum::INFO,
    &cleanup::LowerSequences::INFO,
    &cleanup::MergeTransposes::INFO,
    &cleanup::MergeReshapes::INFO,
    &cleanup::MergeViews::INFO,
    &cleanup::SliceViews::INFO,
    &cleanup::SplitViews::INFO,
    &cleanup::MergeReductions::INFO,
    &cleanup::MergeNestedReductions::INFO,
    &cleanup::MergeSlices::INFO,
    &cleanup::MergeConcats::INFO,
    &cleanup::MergePads::INFO,
    &cleanup::FlushSubnormals::INFO,
    // exact algebra
    &fold::FoldConstants::INFO,
    &fold::FoldBn::INFO,
    &fold::FoldScale::INFO,
    &fold::FoldLinear::INFO,
    &fold::CropKernels::INFO,
    // fused operators
    &fuse::FuseGemm::INFO,
    &fuse::FuseLayerNorm::INFO,
    &fuse::FuseGelu::INFO,
    &fuse::FuseRotaryEmbedding::INFO,
    &fuse::FuseAttention::INFO,
    &fuse::FuseHardSwish::INFO,
    &fuse::FuseClip::INFO,
    &fuse::FuseSoftplus::INFO,
    &fuse::FuseSpaceToDepth::INFO,
    &fuse::FuseDiv::INFO,
    // other versions of the operator set
    &opset::UpgradeOpset::INFO,
    &opset::DowngradeOpset::INFO,
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
    // sparse and quantized weights
    &weights::Sparsify::INFO,
    &weights::ApplyMask::INFO,
    &weights::SmoothActivations::INFO,
    &weights::Quantize::INFO,
    &weights::QuantizeWeights::INFO,
    // trained weights
    &training::Distill::INFO,
    &training::LearnSlopes::INFO,
    // other number formats
    &precision::ConvertPrecision::INFO,
];

/// Every preset.
pub static PRESETS: &[Preset] = &[Preset {
    name: "safe",
    docs: "All exact and rounding passes that make a model smaller and no slower. The default.",
    text: SAFE,
    options: &[PresetOption {
        name: "keep_functions",
        omits: "inline-functions",
        docs: "Keep model-local functions.",
    }],
}];

// The order:
//  0. Functions once, before everything else: patterns, constants and duplicates are found across their borders.
//  1. Constants first, since every other pass requires them. Resolved branches add their own constants.
//  2. Shapes, which turn targets and indices into constants; then constant folding evaluates what depends on
//     them.
//  3. No-ops and repeats, so that the nodes of a pattern are adjacent.
//     Minima and maxima are merged before they become clips, and these before clips are merged.
//  4. Layout: products that hide transposes first. Transposes before reshapes, since a pair that cancels is
//     better removed than turned into reshapes. Reshapes around a product before other reshapes, since
//     these would otherwise be merged with one of the two.
//  5. Duplicates before patterns, since a value that is computed twice looks like a value with another use.
//  6. Folds into the preceding linear layer. Scales and shifts that exporters write for a batch norm come
//     last, then products into products, which must be adjacent.
//  7. Fused operators, from the nodes that no fold absorbed. Patches remove the nodes that they leave without
//     uses. Divisions last, since reciprocals are parts of other patterns. Nodes that are unused from the start
//     are removed by `drop-dead`.
//  8. Subnormal numbers last and once, since folds compute some, and all weights are read.
const SAFE: &str = "drop-dead,inline-functions,(\
    lift-constants,inline-branches,resolve-shapes,fuse-sizes,fold-absorbing,fold-constants,\
    drop-noops,drop-neutral,drop-idempotent,drop-monotone,drop-zero-states,drop-expands,\
    merge-casts,merge-extrema,fuse-clip,merge-clips,drop-redundant-activations,\
    lower-einsum,lower-sequences,slice-views,split-views,merge-transposes,drop-matmul-reshapes,\
    merge-views,merge-reshapes,merge-reductions,merge-nested-reductions,merge-slices,merge-concats,merge-pads,\
    deduplicate,\
    fold-bn,fold-scale,fold-linear,\
    fuse-layer-norm,fuse-gelu,fuse-rotary-embedding,fuse-hard-swish,fuse-softplus,fuse-space-to-depth,fuse-gemm,fuse-div\
    )*,drop-dead,flush-subnormals";

/// All passes and presets of this crate.
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
    /// Parses the TOML form. Names are looked up in [`REGISTRY`].
    pub fn from_toml(text: &str) -> Result<Self, PipelineError> {
        Self::parse_toml(text, &REGISTRY)
    }
}
