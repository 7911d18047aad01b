//! Operators that reduce axes.

use super::{
    cx::{Cx, Facts, Ints, Shape, filled, one},
    dims::{product, unknowns},
    reshape::flags,
};
use crate::{DataType, Dim};

/// `Reduce…`: the axes are an attribute before opset 18 (`ReduceSum`: 13); none given means all, or none at
/// all with `noop_with_empty_axes`.
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
        // An axis given twice counts once, so even the rank is open.
        Ints::Unknown => return Ok(None),
    };
    if axes.is_empty() && cx.at.int("noop_with_empty_axes", 0) == 1 {
        return Ok(Some(dims.to_vec()));
    }
    let gone = if axes.is_empty() { vec![true; dims.len()] } else { flags(&axes, dims.len())? };
    let one = keep.then(|| Dim::from(1_i64));
    let left = dims.iter().zip(gone).filter_map(|(d, gone)| if gone { one.clone() } else { Some(d.clone()) });
    Ok(Some(left.collect()))
}

/// `ArgMax` and `ArgMin`.
pub(super) fn arg(cx: &Cx) -> Facts {
    let mut shape = cx.shape(0).map(<[Dim]>::to_vec);
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

/// `Det`: of the last two axes.
pub(super) fn det(cx: &Cx) -> Facts {
    let shape = match cx.shape(0) {
        Some([lead @ .., m, n]) => {
            let square = || format!("{} is not square in its last two axes", cx.name(0));
            m.unify(n).ok_or_else(square)?;
            Some(lead.to_vec())
        }
        Some(_) => return Err(format!("{} is no matrix", cx.name(0))),
        None => None,
    };
    one(cx.dtype(0), shape)
}

/// The negative log likelihood and cross entropy losses: one loss per place, or their sum or mean.
pub(super) fn loss(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let shape = if cx.at.string("reduction", "mean") == "none" {
        cx.shape(1).map(<[Dim]>::to_vec)
    } else {
        Some(vec![])
    };
    let scores = cx.shape(0).map(<[Dim]>::to_vec);
    Ok(vec![super::cx::tensor(dtype, shape), super::cx::tensor(dtype, scores)])
}
