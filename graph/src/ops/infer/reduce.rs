//! Operators that reduce axes.

use super::{
    cx::{Cx, Facts, Ints, Shape, filled, one},
    dims::{product, unknowns},
    reshape::flags,
};
use crate::{DataType, Dim};

/// `Reduce…`: the axes are an attribute before operator set 18 (`ReduceSum`: 13). No axes means all, or none
/// with `noop_with_empty_axes`.
pub(super) fn reduce(cx: &Cx) -> Facts {
    let content = match (cx.at.op(), cx.rank(0), cx.content(0)) {
        ("ReduceProd", Some(1), Some(items)) => Some(vec![product(&items)]),
        ("ReduceSum", Some(1), Some(items)) => {
            Some(vec![items.iter().fold(Dim::from(0_i64), |sum, d| &sum + d)])
        }
        ("ReduceMax", Some(1), Some(items)) => {
            items.iter().cloned().reduce(|a, b| a.maximum(&b)).map(|m| vec![m])
        }
        ("ReduceMin", Some(1), Some(items)) => {
            items.iter().cloned().reduce(|a, b| a.minimum(&b)).map(|m| vec![m])
        }
        _ => None,
    };
    let shape = reduced(cx)?;
    let content = content.filter(|_| shape.as_ref().is_none_or(|s| s.iter().all(|d| d.known() == Some(1))));
    Ok(vec![filled(cx.dtype(0), shape, content)])
}

fn reduced(cx: &Cx) -> Shape {
    let keep = cx.at.int("keepdims", 1) == 1;
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    let axes = match cx.ints_or_input("axes", 1) {
        Ints::Known(axes) => axes,
        Ints::Absent => vec![],
        Ints::Unknown if keep => return Ok(unknowns(dims.len())),
        // Duplicate axes count once, so the rank is unknown.
        Ints::Unknown => return Ok(None),
    };
    if axes.is_empty() && cx.at.int("noop_with_empty_axes", 0) == 1 {
        return Ok(Some(dims.to_vec()));
    }
    let reduced = if axes.is_empty() { vec![true; dims.len()] } else { flags(&axes, dims.len())? };
    let one = keep.then(|| Dim::from(1_i64));
    let kept = dims.iter().zip(reduced).filter_map(|(d, r)| if r { one.clone() } else { Some(d.clone()) });
    Ok(Some(kept.collect()))
}

/// `ArgMax` and `ArgMin`.
pub(super) fn arg(cx: &Cx) -> Facts {
    let mut shape = cx.dims(0);
    if let Some(shape) = &mut shape {
        let axis = cx.axis("axis", 0, shape.len())?;
        if cx.at.int("keepdims", 1) == 1 {
            shape[axis] = Dim::from(1_i64);
        } else {
            shape.remove(axis);
        }
    }
    one(Some(DataType::Int64), shape)
}

/// `Det`: determinants of the last two axes.
pub(super) fn det(cx: &Cx) -> Facts {
    let shape = match cx.shape(0) {
        Some([lead @ .., m, n]) => {
            let square = || format!("{} is not square in its last two axes", cx.name(0));
            m.unify(n).ok_or_else(square)?;
            Some(lead.to_vec())
        }
        Some(_) => return Err(format!("{} has no two axes", cx.name(0))),
        None => None,
    };
    one(cx.dtype(0), shape)
}

/// `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`: losses per label, or their sum or mean.
pub(super) fn loss(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let shape = if cx.at.string("reduction", "mean") == "none" { cx.dims(1) } else { Some(vec![]) };
    let scores = cx.dims(0);
    Ok(vec![super::cx::tensor(dtype, shape), super::cx::tensor(dtype, scores)])
}
