//! Operators of com.microsoft without a standard counterpart.

use super::{
    cx::{Cx, Facts, one, tensor},
    dims::{self, times},
    pieces, window,
};
use crate::{DataType, Dim};

/// `BiasSplitGelu`: half of the last axis.
pub(super) fn half_last(cx: &Cx) -> Facts {
    let mut shape = cx.dims(0);
    if let Some(last) = shape.as_mut().and_then(|s| s.last_mut()) {
        *last = last.floor_div(&Dim::from(2_i64));
    }
    one(cx.dtype(0), shape)
}

/// `BiasDropout`, `BitmaskDropout`: the data and the mask.
pub(super) fn bias_dropout(cx: &Cx) -> Facts {
    let shape = || cx.dims(0);
    Ok(vec![tensor(cx.dtype(0), shape()), tensor(Some(DataType::Bool), shape())])
}

/// `CDist`: distances between the rows of two matrices.
pub(super) fn cdist(cx: &Cx) -> Facts {
    cx.agree((0, 1), (1, 1))?;
    one(cx.same_dtype([0, 1])?, Some(vec![cx.dim(0, 0), cx.dim(1, 0)]))
}

/// `ExpandDims`: a new axis of size 1 at the position of the second input.
pub(super) fn expand_dims(cx: &Cx) -> Facts {
    let shape = match (cx.shape(0), cx.number(1)) {
        (Some(dims), Some(axis)) => {
            let mut shape = dims.to_vec();
            shape.insert(dims::axis(axis, dims.len() + 1)?, Dim::from(1_i64));
            Some(shape)
        }
        _ => None,
    };
    one(cx.dtype(0), shape)
}

/// `GatherBlockQuantized`: gathered rows, dequantized to the type of the scales.
pub(super) fn gather_quantized(cx: &Cx) -> Facts {
    let Ok(mut facts) = pieces::gather(cx) else { return Ok(vec![]) };
    let mut shape = facts.pop().and_then(|f| f.shape().map(<[Dim]>::to_vec));
    // A byte packs several elements.
    if cx.dtype(0) == Some(DataType::Uint8)
        && let Some(last) = shape.as_mut().and_then(|s| s.last_mut())
    {
        *last = times(last, 8 / cx.at.int("bits", 4).clamp(1, 8));
    }
    one(cx.dtype(2), shape)
}

/// `FusedConv`: the shape of the convolution.
pub(super) fn fused_conv(cx: &Cx) -> Facts {
    window::conv(cx)
}

/// `NhwcMaxPool`, `NhwcConv`: only the rank is inferred with channels last.
pub(super) fn channels_last(cx: &Cx) -> Facts {
    one(cx.dtype(0), cx.rank(0).and_then(dims::unknowns))
}

/// `Rfft`: a new last axis with the real and imaginary part.
pub(super) fn rfft(cx: &Cx) -> Facts {
    let one_sided = cx.at.int("onesided", 1) != 0;
    let shape = cx.shape(0).and_then(<[Dim]>::split_last).map(|(last, lead)| {
        let half = dims::plus(&last.floor_div(&Dim::from(2_i64)), 1);
        let bins = if one_sided { half } else { last.clone() };
        [lead, &[bins, Dim::from(2_i64)]].concat()
    });
    one(cx.dtype(0), shape)
}

/// `MurmurHash3`: 32-bit hashes.
pub(super) fn hash(cx: &Cx) -> Facts {
    let dtype = if cx.at.int("positive", 1) != 0 { DataType::Uint32 } else { DataType::Int32 };
    one(Some(dtype), cx.dims(0))
}

/// `QLinearReduceMean`: the axes are an attribute.
pub(super) fn qlinear_reduce(cx: &Cx) -> Facts {
    let Some(axes) = cx.at.ints("axes") else { return one(cx.dtype(0), None) };
    let keep = cx.at.int("keepdims", 1) == 1;
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    let reduced = super::reshape::flags(axes, dims.len())?;
    let kept = dims.iter().zip(reduced).filter_map(|(d, reduced)| match (reduced, keep) {
        (true, true) => Some(Dim::from(1_i64)),
        (true, false) => None,
        (false, _) => Some(d.clone()),
    });
    one(cx.dtype(0), Some(kept.collect()))
}
