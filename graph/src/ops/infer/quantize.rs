//! Quantization.

use super::cx::{Cx, Facts, one, tensor};
use crate::{DataType, Dim};

fn like(cx: &Cx, dtype: Option<DataType>) -> Facts {
    one(dtype, cx.dims(0))
}

/// `QuantizeLinear`: type of the zero point, or attribute `output_dtype`, or uint8.
pub(super) fn quantize(cx: &Cx) -> Facts {
    let asked = cx.dtype_attr("output_dtype");
    let dtype = match cx.input(2) {
        Some(_) => cx.dtype(2).or(asked),
        None => Some(asked.unwrap_or(DataType::Uint8)),
    };
    like(cx, dtype)
}

/// `DequantizeLinear`: type from attribute `output_dtype`, or of the scale.
pub(super) fn dequantize(cx: &Cx) -> Facts {
    like(cx, cx.dtype_attr("output_dtype").or(cx.dtype(1)))
}

/// `DynamicQuantizeLinear`: data, scale, zero point.
pub(super) fn dynamic(cx: &Cx) -> Facts {
    let byte = Some(DataType::Uint8);
    let data = tensor(byte, cx.dims(0));
    Ok(vec![data, tensor(Some(DataType::Float), Some(vec![])), tensor(byte, Some(vec![]))])
}

/// Elementwise operators on quantized data, such as `QLinearSigmoid`: shape and type of the first input.
pub(super) fn qlinear_unary(cx: &Cx) -> Facts {
    like(cx, cx.dtype(0))
}

/// `QLinearAdd`, `QLinearMul`: A, B and the result, each with scale and zero point.
pub(super) fn qlinear_binary(cx: &Cx) -> Facts {
    one(cx.dtype(0), super::elementwise::broadcast(cx, [0, 3])?)
}

/// `QLinearWhere`: condition, X and Y, each with scale and zero point.
pub(super) fn qlinear_where(cx: &Cx) -> Facts {
    one(cx.dtype(1), super::elementwise::broadcast(cx, [0, 1, 4])?)
}

/// `QLinearConcat`: scale and zero point of the result, then (tensor, scale, zero point) per part.
pub(super) fn qlinear_concat(cx: &Cx) -> Facts {
    let tensors: Vec<_> = (2..cx.inputs.len()).step_by(3).collect();
    let shapes: Option<Vec<_>> = tensors.iter().map(|&slot| cx.shape(slot)).collect();
    let Some(shapes) = shapes.filter(|s| !s.is_empty()) else { return one(cx.dtype(1), None) };
    let mut shape = shapes[0].to_vec();
    let axis = cx.axis("axis", 0, shape.len())?;
    for next in &shapes[1..] {
        let Some(dim) = next.get(axis) else { return Err("the inputs differ in rank".into()) };
        shape[axis] = &shape[axis] + dim;
    }
    one(cx.dtype(1), Some(shape))
}

/// `QLinearAveragePool` and `QLinearGlobalAveragePool`: as the float operators; only the rank with channels
/// last.
pub(super) fn qlinear_pool(cx: &Cx) -> Facts {
    if cx.at.int("channels_last", 0) != 0 {
        return one(cx.dtype(0), cx.rank(0).and_then(super::dims::unknowns));
    }
    match cx.at.op() {
        "QLinearAveragePool" => super::window::pool(cx).map(|mut facts| {
            facts.truncate(1);
            facts
        }),
        _ => super::window::global_pool(cx),
    }
}

/// `MatMulNBits`, `MatMulBnb4`, `MatMulFpQ4`: `[…,K]` times a packed `[N,K]`.
pub(super) fn mat_mul_bits(cx: &Cx) -> Facts {
    let mut shape = cx.dims(0);
    if let Some(last) = shape.as_mut().and_then(|s| s.last_mut()) {
        let (k, n) = (Dim::from(cx.at.int("K", 0)), Dim::from(cx.at.int("N", 0)));
        if last.unify(&k).is_none() {
            return Err(format!("{} does not have {k} columns", cx.name(0)));
        }
        *last = n;
    }
    one(cx.dtype(0), shape)
}
