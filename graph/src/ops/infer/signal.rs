//! Signal processing.

use super::{
    cx::{Cx, Facts, one},
    dims::{self, plus, times},
};
use crate::{DataType, Dim};

fn half(n: &Dim) -> Dim {
    plus(&n.floor_div(&Dim::from(2_i64)), 1)
}

fn scalar(cx: &Cx, slot: usize) -> Option<Dim> {
    cx.content(slot).and_then(|c| c.first().cloned()).filter(Dim::is_of_sizes)
}

/// `DFT`: `[B,…,1 or 2]` to `[B,…,2]`, or to real samples for the inverse of a one-sided spectrum. The axis
/// is an attribute before operator set 20.
pub(super) fn dft(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    let mut shape = dims.to_vec();
    let axis = match (cx.at.opset() < 20, cx.input(2)) {
        (true, _) => Some(cx.at.int("axis", 1)),
        (false, Some(_)) => cx.number(2),
        (false, None) => Some(-2),
    };
    let (one_sided, inverse) = (cx.at.int("onesided", 0) != 0, cx.at.int("inverse", 0) != 0);
    let Some(axis) = axis else { return one(cx.dtype(0), dims::unknowns(dims.len())) };
    let axis = dims::axis(axis, dims.len())?;
    let length = match cx.input(1) {
        Some(_) => scalar(cx, 1).unwrap_or_else(Dim::unknown),
        // A one-sided spectrum of n/2 + 1 bins has n real samples.
        None if one_sided && inverse => times(&plus(&dims[axis], -1), 2),
        None => dims[axis].clone(),
    };
    shape[axis] = if one_sided && !inverse { half(&length) } else { length };
    if let Some(last) = shape.last_mut() {
        *last = Dim::from(if one_sided && inverse { 1_i64 } else { 2 });
    }
    one(cx.dtype(0), Some(shape))
}

/// `STFT`: signal `[B,L,1 or 2]`, frame step, window, frame length, to `[B,frames,bins,2]`.
pub(super) fn stft(cx: &Cx) -> Facts {
    let length = match (cx.input(3), cx.shape(2)) {
        (Some(_), _) => scalar(cx, 3),
        (None, Some([n])) => Some(n.clone()),
        _ => None,
    };
    let length = length.unwrap_or_else(Dim::unknown);
    let frames = match scalar(cx, 1) {
        Some(step) => plus(&(&cx.dim(0, 1) - &length).floor_div(&step), 1),
        None => Dim::unknown(),
    };
    let bins = if cx.at.int("onesided", 1) != 0 { half(&length) } else { length };
    one(cx.dtype(0), Some(vec![cx.dim(0, 0), frames, bins, Dim::from(2_i64)]))
}

fn output_type(cx: &Cx) -> Option<DataType> {
    Some(cx.dtype_attr("output_datatype").unwrap_or(DataType::Float))
}

/// `HannWindow`, `HammingWindow`, `BlackmanWindow`.
pub(super) fn window(cx: &Cx) -> Facts {
    one(output_type(cx), Some(vec![scalar(cx, 0).unwrap_or_else(Dim::unknown)]))
}

/// `MelWeightMatrix`: `[⌊length / 2⌋ + 1, bins]`.
pub(super) fn mel(cx: &Cx) -> Facts {
    let size = |slot| scalar(cx, slot).unwrap_or_else(Dim::unknown);
    one(output_type(cx), Some(vec![half(&size(1)), size(0)]))
}
