//! Normalization.

use super::{
    cx::{Cx, Facts, tensor},
    dims,
};
use crate::{DataType, Dim};

/// `BatchNormalization`: the data and statistics per channel.
pub(super) fn batch_norm(cx: &Cx) -> Facts {
    // Before operator set 9, statistics may be per element.
    if cx.at.int("spatial", 1) == 0 {
        return super::elementwise::like(cx);
    }
    let channels = match cx.shape(0) {
        Some([]) => return Err(format!("{} has no channels", cx.name(0))),
        // A vector has one channel.
        Some([_]) => Dim::from(1_i64),
        _ => cx.dim(0, 1),
    };
    let mut n = channels;
    for slot in 1..5 {
        cx.expect_rank(slot, 1)?;
        let differ = || format!("{} does not fit the channels of {}", cx.name(slot), cx.name(0));
        n = n.unify(&cx.dim(slot, 0)).ok_or_else(differ)?;
    }
    let mut shape = cx.dims(0);
    if let Some(c) = shape.as_mut().and_then(|s| s.get_mut(1)) {
        *c = n.clone();
    }
    let statistics = tensor(cx.dtype_of([3, 0]), Some(vec![n]));
    Ok(std::iter::once(tensor(cx.dtype(0), shape)).chain(vec![statistics; 4]).collect())
}

/// `InstanceNormalization`: scale and bias have one element per channel.
pub(super) fn instance_norm(cx: &Cx) -> Facts {
    if cx.rank(0).is_some_and(|r| r >= 2) {
        for slot in [1, 2] {
            if cx.rank(slot) == Some(1) {
                cx.agree((0, 1), (slot, 0))?;
            }
        }
    }
    super::elementwise::like(cx)
}

/// `LayerNormalization`, `RMSNormalization`, `SimplifiedLayerNormalization`: the data, and mean and inverse
/// standard deviation with size 1 along the normalized axes.
pub(super) fn layer_norm(cx: &Cx) -> Facts {
    let shape = cx.dims(0);
    let statistics = match &shape {
        Some(dims) => {
            let axis = cx.axis("axis", -1, dims.len())?;
            let kept = |(i, d): (usize, &Dim)| if i < axis { d.clone() } else { Dim::from(1_i64) };
            let normalized = &dims[axis..];
            for slot in [1, 2] {
                let fits = |s: &[Dim]| {
                    dims::broadcast(normalized, s).is_ok_and(|all| {
                        all.len() == normalized.len()
                            && all.iter().zip(normalized).all(|(a, b)| a.unify(b).is_some())
                    })
                };
                if cx.shape(slot).is_some_and(|s| s.len() <= normalized.len() && !fits(s)) {
                    return Err(format!("{} does not fit {}", cx.name(slot), cx.name(0)));
                }
            }
            Some(dims.iter().enumerate().map(kept).collect())
        }
        None => None,
    };
    let number = i32::try_from(cx.at.int("stash_type", 1)).ok();
    let statistics = tensor(number.and_then(DataType::from_number), statistics);
    // Without a mean, the scale may have another type than the data.
    let dtype = if cx.at.op() == "LayerNormalization" { cx.dtype(0) } else { cx.dtype_of([1, 0]) };
    Ok(vec![tensor(dtype, shape), statistics.clone(), statistics])
}

/// `Skip…LayerNormalization`: the data, mean, inverse standard deviation, and the sum before normalization.
pub(super) fn skip_layer_norm(cx: &Cx) -> Facts {
    let shape = cx.dims(0);
    let mut statistics = shape.clone();
    if let Some(last) = statistics.as_mut().and_then(|s| s.last_mut()) {
        *last = Dim::from(1_i64);
    }
    let (data, statistics) = (tensor(cx.dtype(0), shape), tensor(Some(DataType::Float), statistics));
    Ok(vec![data.clone(), statistics.clone(), statistics, data])
}

/// `EmbedLayerNormalization`: ids `[B,S]` to embeddings `[B,S,H]`, a mask index `[B]`, and the sum.
pub(super) fn embed_layer_norm(cx: &Cx) -> Facts {
    let shape = vec![cx.dim(0, 0), cx.dim(0, 1), cx.dim(2, 1)];
    let embedded = tensor(cx.dtype(2), Some(shape));
    Ok(vec![embedded.clone(), tensor(Some(DataType::Int32), Some(vec![cx.dim(0, 0)])), embedded])
}
