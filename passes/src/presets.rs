//! Named pipelines.

/// A named pipeline.
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub docs: &'static str,
    /// The pipeline.
    pub text: &'static str,
}

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
    drop-noops,drop-neutral,drop-repeats,merge-casts,merge-clips,drop-idle-activations,\
    lower-einsum,slice-views,merge-transposes,merge-views,merge-reshapes,merge-reductions,merge-slices,merge-concats,merge-pads,\
    merge-twins,\
    fold-bn,fold-scale,fold-linear,\
    fuse-layer-norm,fuse-gelu,fuse-hard-swish,fuse-softplus,fuse-space-to-depth,fuse-gemm\
    )*,drop-dead";

/// The preset of this name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}
