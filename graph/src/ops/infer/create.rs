//! Operators that create tensors: `Constant`, `Range`, `ConstantOfShape`, random numbers.

use super::{
    cx::{Cx, Facts, filled, one},
    dims::{self, product, unknowns},
};
use crate::{Attribute, DataType, Dim, Fact};

/// `Constant`, with any of its value attributes.
pub(super) fn constant(cx: &Cx) -> Facts {
    let node = cx.at.node();
    Ok(vec![match (node.literal(), node.attributes.get("sparse_value")) {
        (_, Some(Attribute::SparseTensor(sparse))) => sparse.fact(),
        (Some(tensor), _) => Fact::of_constant(tensor),
        _ => Fact::Unknown,
    }])
}

/// `Range`: `start, start + delta, …` before `limit`.
pub(super) fn range(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1, 2])?;
    let scalar = |slot| cx.content(slot).and_then(|c| c.first().cloned());
    if let (Some(start), Some(limit), Some(delta)) = (scalar(0), scalar(1), scalar(2)) {
        let (n, step) = (&limit - &start, delta.known());
        let count = match step {
            Some(0) => return Err("the step is 0".into()),
            Some(1) if n.at_least(0) => n.clone(),
            Some(s) if s > 0 => n.ceil_div(&delta).maximum(&Dim::from(0_i64)),
            Some(_) => (&start - &limit).ceil_div(&(&Dim::from(0_i64) - &delta)).maximum(&Dim::from(0_i64)),
            None => Dim::unknown(),
        };
        let count = if count.is_of_sizes() { count } else { Dim::unknown() };
        let small = count.size().filter(|&n| n <= dims::MAX_CONTENT);
        let item = |i: usize| &start + &(&Dim::from(i) * &delta);
        let content = small.map(|n| (0..n).map(item).collect());
        return Ok(vec![filled(dtype, Some(vec![count]), content)]);
    }
    let float = |slot| cx.input(slot).and_then(|v| v.scalar().ok());
    let count = match (dtype, float(0), float(1), float(2)) {
        (Some(DataType::Double | DataType::Float), Some(start), Some(limit), Some(delta)) if delta != 0.0 => {
            // Engines divide in different precisions; known only if both agree.
            let wide = ((limit - start) / delta).ceil();
            let narrow = ((limit as f32 - start as f32) / delta as f32).ceil();
            Some(wide).filter(|&n| n == f64::from(narrow))
        }
        _ => None,
    };
    let count = count.filter(|n| n.abs() < 1e9).map(|n| Dim::from(n.max(0.0) as i64));
    one(dtype, Some(vec![count.unwrap_or_else(Dim::unknown)]))
}

/// `ConstantOfShape`.
pub(super) fn constant_of_shape(cx: &Cx) -> Facts {
    let (dtype, item) = match cx.at.attr("value") {
        Some(Attribute::Tensor(t)) => (t.dtype(), t.single_i64()),
        _ => (DataType::Float, None),
    };
    let Some(dims) = cx.content(0) else {
        let rank = cx.length(0);
        return one(Some(dtype), rank.and_then(unknowns));
    };
    if let Some(n) = dims.iter().find_map(|d| d.known().filter(|&n| n < 0)) {
        return Err(format!("size {n} is negative"));
    }
    let count = product(&dims).size().filter(|&n| n <= dims::MAX_CONTENT);
    let content = count.zip(item).map(|(n, item)| vec![Dim::from(item); n]);
    Ok(vec![filled(Some(dtype), Some(dims.into_owned()), content)])
}

/// `EyeLike`.
pub(super) fn eye_like(cx: &Cx) -> Facts {
    cx.expect_rank(0, 2)?;
    one(cx.dtype_attr("dtype").or(cx.dtype(0)), cx.dims(0))
}

/// `RandomNormal`, `RandomUniform`: shape and element type are attributes.
pub(super) fn random(cx: &Cx) -> Facts {
    let shape = cx.at.ints("shape").filter(|s| s.iter().all(|&n| n >= 0));
    let shape = shape.map(|s| s.iter().map(|&n| Dim::from(n)).collect());
    one(Some(cx.dtype_attr("dtype").unwrap_or(DataType::Float)), shape)
}

/// `Multinomial`: `sample_size` draws per batch entry.
pub(super) fn multinomial(cx: &Cx) -> Facts {
    let dtype = cx.dtype_attr("dtype").unwrap_or(DataType::Int32);
    one(Some(dtype), Some(vec![cx.dim(0, 0), Dim::from(cx.at.int("sample_size", 1))]))
}
