//! The operators whose versions differ in more than the types that they accept.
//!
//! Versions that only accept more types, or more inputs, have no row: they are recognised by their schemas.
//! Every other version has a row with the equation between its form and the form before; a test compares the
//! table with the schemas.

use super::{
    adapters,
    form::Form,
    moves::{Move, MoveKind},
    normalization, resize, scan, softmax,
};
use pare_graph::{Decline, Patch};

/// The change of an operator from one version to the next.
pub(super) struct Adapter {
    pub(super) ops: &'static [&'static str],
    /// The operator set that introduced the next version.
    pub(super) since: i64,
    pub(super) change: Change,
}

#[derive(Clone, Copy)]
pub(super) enum Change {
    /// A node of the version before has the same meaning: new attributes have defaults that give it.
    Unchanged,
    /// Attributes became inputs.
    Moved(&'static [Move]),
    /// Any other change: the patch upwards, and the way back. [`Decline::Mismatch`] keeps the node.
    Rewritten(fn(Form<'_>) -> Result<Patch, Decline>, Downwards),
}

/// The way from a version to the one before.
#[derive(Clone, Copy)]
pub(super) enum Downwards {
    /// The nodes are the same, without new attributes.
    Defaults,
    /// Changes the form.
    By(fn(&mut Form<'_>) -> Result<(), Decline>),
    /// There is none.
    Never,
}

/// The row of an operator for a version.
pub(super) fn adapter(op: &str, version: i64) -> Option<&'static Adapter> {
    ADAPTERS.iter().find(|adapter| adapter.since == version && adapter.ops.contains(&op))
}

const fn same(ops: &'static [&'static str], since: i64) -> Adapter {
    Adapter { ops, since, change: Change::Unchanged }
}

const fn moved(ops: &'static [&'static str], since: i64, moves: &'static [Move]) -> Adapter {
    Adapter { ops, since, change: Change::Moved(moves) }
}

const fn rewritten(
    ops: &'static [&'static str],
    since: i64,
    up: fn(Form<'_>) -> Result<Patch, Decline>,
    down: Downwards,
) -> Adapter {
    Adapter { ops, since, change: Change::Rewritten(up, down) }
}

const fn input(name: &'static str, slot: usize, kind: MoveKind) -> Move {
    Move { name, slot, kind }
}

use Downwards::{By, Defaults, Never};
use MoveKind::{FloatOfInput, Floats, IntScalar, IntVector, Ints, Ones};

#[rustfmt::skip]
pub(super) static ADAPTERS: &[Adapter] = &[
    // x[i] = x[i]<dilations = 1, ceil_mode = 0, storage_order = 0>: one dense window, rounded down.
    same(&["MaxPool"], 8),
    same(&["MaxPool", "AveragePool"], 10),
    same(&["LpPool"], 18),
    same(&["AveragePool"], 19),
    // Windows that start in the padding at the end are dropped: the same where there are none.
    rewritten(&["MaxPool", "AveragePool"], 22, adapters::pool_22, By(adapters::before_pool_22)),

    // BatchNormalization<spatial = 0> = (x - mean) / sqrt(var + epsilon) · scale + B, element by element.
    rewritten(&["BatchNormalization"], 9, normalization::batch_norm_9, Defaults),
    // Without further outputs: BatchNormalization = BatchNormalization<training_mode = 0>.
    rewritten(&["BatchNormalization"], 14, normalization::batch_norm_14, Defaults),
    // y = LayerNormalization(x, γ, β), which engines accept before it is standard, if γ has the type of x.
    rewritten(&["LayerNormalization"], 17, normalization::layer_norm_17, Never),
    // scale'[c] = scale[c·G/C]: one number per channel instead of one per group.
    rewritten(&["GroupNormalization"], 21, normalization::group_norm_21, Never),

    // Upsample<scales>(x) = Upsample(x, scales).
    moved(&["Upsample"], 9, &[input("scales", 1, Floats)]),
    // Upsample(x, s) = Resize(x, s).
    rewritten(&["Upsample"], 10, resize::upsample_10, Never),
    // Upsample(x, s) = Resize<asymmetric, floor>(x, s); s ≥ 1.
    rewritten(&["Upsample"], 11, resize::upsample_11, Never),
    // Resize(x, s) = Resize<asymmetric, floor>(x, s) if s ≥ 1, Resize<asymmetric, ceil>(x, s) if s ≤ 1.
    rewritten(&["Resize"], 11, resize::resize_11, By(resize::before_resize_11)),
    // floor((i + ½)/s) = round_half_up((i + ½)/s - ½): half pixels instead of tf_half_pixel_for_nn.
    rewritten(&["Resize"], 13, resize::resize_13, By(resize::before_resize_13)),
    // Resize = Resize<antialias = 0, keep_aspect_ratio_policy = stretch>, along all axes.
    same(&["Resize"], 18),

    // Softmax<axis>(x) = reshape(Softmax<axis = -1>(flatten<axis>(x))).
    rewritten(&["Softmax", "LogSoftmax", "Hardmax"], 13, softmax::softmax_13, By(softmax::before_softmax_13)),

    // Slice<starts, ends, axes>(x) = Slice(x, starts, ends, axes).
    moved(&["Slice"], 10, &[
        input("starts", 1, Ints), input("ends", 2, Ints), input("axes", 3, Ints), input("steps", 4, Ones),
    ]),
    // TopK<k>(x) = TopK(x, [k]).
    moved(&["TopK"], 10, &[input("k", 1, IntVector)]),
    // TopK = TopK<largest = 1, sorted = 1>.
    same(&["TopK"], 11),
    // Clip<min, max>(x) = Clip(x, min, max).
    moved(&["Clip"], 11, &[input("min", 1, FloatOfInput), input("max", 2, FloatOfInput)]),
    // Pad<pads, value>(x) = Pad(x, pads, value).
    moved(&["Pad"], 11, &[input("pads", 1, Ints), input("value", 2, FloatOfInput)]),
    // Squeeze<axes>(x) = Squeeze(x, axes).
    moved(&["Squeeze", "Unsqueeze", "ReduceSum"], 13, &[input("axes", 1, Ints)]),
    // Split<split>(x) = Split(x, split).
    moved(&["Split"], 13, &[input("split", 1, Ints)]),
    // Split(x) = Split<num_outputs = number of outputs>(x).
    rewritten(&["Split"], 18, adapters::split_18, By(adapters::before_split_18)),
    // ReduceMax<axes>(x) = ReduceMax<noop_with_empty_axes = 0>(x, axes).
    moved(&[
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare",
    ], 18, &[input("axes", 1, Ints)]),
    // DFT<axis>(x, n) = DFT(x, n, axis); the default was axis 1, and is the last before the pairs.
    moved(&["DFT"], 20, &[input("axis", 2, IntScalar(1, -2))]),

    // Without mask: Dropout<ratio>(x) = x = Dropout(x, ratio, training_mode = false).
    rewritten(&["Dropout"], 10, adapters::dropout_10, Defaults),
    rewritten(&["Dropout"], 12, adapters::dropout_12, By(adapters::before_dropout_12)),

    // Scan<directions>(s, x) = unsqueeze(Scan<scan_input_directions>(squeeze(s), squeeze(x))) of one sequence.
    rewritten(&["Scan"], 9, scan::scan_9, Never),

    // Scatter = ScatterElements = ScatterElements<reduction = none>.
    rewritten(&["Scatter"], 11, adapters::scatter_11, Never),
    same(&["ScatterElements", "ScatterND"], 16),

    // RoiAlign = RoiAlign<output_half_pixel>: the input is not shifted by half a pixel.
    rewritten(&["RoiAlign"], 16, adapters::roi_align_16, By(adapters::before_roi_align_16)),
    // GridSample<bilinear> = GridSample<linear>, GridSample<bicubic> = GridSample<cubic>.
    rewritten(&["GridSample"], 20, adapters::grid_sample_20, By(adapters::before_grid_sample_20)),

    // QuantizeLinear(x, s, z) = QuantizeLinear<axis = 1>(x, s, z): s is a scalar, which has no axis.
    same(&["QuantizeLinear", "DequantizeLinear"], 13),
    // QuantizeLinear(x, s, z) = QuantizeLinear(cast(x), s, z) of integers x: x and s have one type.
    rewritten(&["QuantizeLinear"], 19, adapters::quantize_19, Defaults),
    // One scale per index of the axis, not per block; the types of x, s and z give that of the result.
    same(&["QuantizeLinear", "DequantizeLinear"], 21),
    same(&["QuantizeLinear", "DequantizeLinear"], 23),
    // Conversions to eight-bit floats saturate.
    same(&["Cast", "CastLike"], 19),
    // Infinities become the largest number in the formats that have no infinity, where they became NaN.
    rewritten(&["Cast", "CastLike"], 24, adapters::cast_24, Defaults),

    // The first of equal elements is returned.
    same(&["ArgMax", "ArgMin"], 12),
    // No batch axes.
    same(&["GatherND"], 12),
    // The constant has one more notation.
    same(&["Constant"], 11),
    same(&["Constant"], 12),
    // Floats as before; integers are not accepted any more.
    same(&["Erf"], 13),
    same(&["ReduceLogSum", "ReduceLogSumExp"], 28),
    // A size of 0 in the target is copied from the input.
    same(&["Reshape"], 14),
    // The first axis of sequences is time.
    same(&["RNN", "GRU", "LSTM"], 14),
    // The shape of all axes.
    same(&["Shape"], 15),
    // Blocks are split depth first, then columns, then rows.
    same(&["DepthToSpace"], 11),
    same(&["SpaceToDepth"], 28),
    // Queries attend to all keys that the mask allows.
    same(&["Attention"], 25),
    // Mod<fmod = 0> of floats is a - floor(a/b)·b, and was undefined; all else is the same.
    rewritten(&["Mod"], 28, adapters::mod_28, By(adapters::before_mod_28)),
    // The precision of sums is that of the type, for the types before.
    same(&["Range"], 27),
];
