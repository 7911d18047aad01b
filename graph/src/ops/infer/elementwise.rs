//! Elementwise operators, with broadcasting.

use super::{
    content,
    cx::{Cx, Facts, Shape, filled, one, tensor},
    dims,
};
use crate::{DataType, Dim, Fact};

/// Shape and element type of the first input.
pub(super) fn like(cx: &Cx) -> Facts {
    one(cx.dtype(0), cx.dims(0))
}

/// `CastLike`: shape of the first input, element type of the second.
pub(super) fn cast_like(cx: &Cx) -> Facts {
    cast_to(cx, cx.dtype(1))
}

/// `Cast` and `BitCast`: element type from attribute `to`.
pub(super) fn cast(cx: &Cx) -> Facts {
    cast_to(cx, cx.dtype_attr("to"))
}

fn cast_to(cx: &Cx, dtype: Option<DataType>) -> Facts {
    let content = if dtype == Some(DataType::Bool) || cx.at.is("BitCast") {
        None
    } else {
        cx.content(0).map(std::borrow::Cow::into_owned).or_else(|| content::integral(cx, 0))
    };
    Ok(vec![filled(dtype, cx.dims(0), content)])
}

/// `Identity`.
pub(super) fn identity(cx: &Cx) -> Facts {
    Ok(vec![cx.fact(0).clone()])
}

/// Shape of the first input, element type bool.
pub(super) fn predicate(cx: &Cx) -> Facts {
    one(Some(DataType::Bool), cx.dims(0))
}

/// Shape of the first input; element type from attribute `dtype`, or else from the input.
pub(super) fn like_typed(cx: &Cx) -> Facts {
    one(cx.dtype_attr("dtype").or(cx.dtype(0)), cx.dims(0))
}

/// The common shape of the inputs in `slots`.
pub(super) fn broadcast(cx: &Cx, slots: impl IntoIterator<Item = usize>) -> Shape {
    let mut dims = vec![];
    for slot in slots {
        let Some(shape) = cx.shape(slot) else { return Ok(None) };
        dims = dims::broadcast(&dims, shape)?;
    }
    Ok(Some(dims))
}

/// The broadcast shape of two inputs. Before operator set 7, the second broadcasts to the first, aligned by
/// `axis`.
fn pair(cx: &Cx) -> Shape {
    if cx.at.int("broadcast", 0) != 0 {
        return Ok(cx.dims(0));
    }
    broadcast(cx, [0, 1])
}

/// Two inputs of one element type, such as `Add`.
pub(super) fn binary(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1])?;
    Ok(vec![filled(dtype, pair(cx)?, content::binary(cx))])
}

/// Two inputs, element type of the first: `Pow`, `BitShift`.
pub(super) fn binary_first(cx: &Cx) -> Facts {
    one(cx.dtype(0), pair(cx)?)
}

/// Comparisons and logic, with element type bool.
pub(super) fn compare(cx: &Cx) -> Facts {
    cx.same_dtype([0, 1])?;
    Ok(vec![filled(Some(DataType::Bool), pair(cx)?, content::compare(cx))])
}

/// `Not`.
pub(super) fn not(cx: &Cx) -> Facts {
    let flip = |items: &[Dim]| items.iter().map(|d| d.known().map(|n| Dim::from(1 - n))).collect();
    let content = cx.content(0).and_then(|items| flip(&items));
    Ok(vec![filled(Some(DataType::Bool), cx.dims(0), content)])
}

/// `Neg`, `Abs`, `Sign`, …, with content.
pub(super) fn unary_with_content(cx: &Cx) -> Facts {
    let content = content::unary(cx);
    Ok(vec![filled(cx.dtype(0), cx.dims(0), content)])
}

/// Any number of inputs of one element type, such as `Sum`.
pub(super) fn variadic(cx: &Cx) -> Facts {
    let all = 0..cx.inputs.len();
    let dtype = cx.same_dtype(all.clone())?;
    Ok(vec![filled(dtype, broadcast(cx, all)?, content::extremes(cx))])
}

/// `PRelu`: the slope broadcasts to the data.
pub(super) fn prelu(cx: &Cx) -> Facts {
    one(cx.same_dtype([0, 1])?, cx.dims(0))
}

/// `Where`.
pub(super) fn select(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([1, 2])?;
    Ok(vec![filled(dtype, broadcast(cx, [0, 1, 2])?, content::select(cx))])
}

/// `Dropout`: the data, and the mask of kept elements (bool since operator set 10).
pub(super) fn dropout(cx: &Cx) -> Facts {
    let shape = || cx.dims(0);
    let mask = if cx.at.opset() < 10 { cx.dtype(0) } else { Some(DataType::Bool) };
    let data = match cx.fact(0) {
        Fact::Tensor(_) => tensor(cx.dtype(0), shape()),
        other => other.clone(),
    };
    Ok(vec![data, tensor(mask, shape())])
}

/// Training optimizers, which update the variables and their states.
pub(super) fn optimizer(cx: &Cx) -> Facts {
    // Inputs: rate, step, n variables, n gradients, k·n states. Outputs: n variables, k·n states.
    let states = if cx.at.op() == "Adam" { 2 } else { 1 };
    let n = cx.inputs.len().saturating_sub(2) / (2 + states);
    let slots = (2..2 + n).chain(2 + 2 * n..cx.inputs.len());
    Ok(slots.map(|slot| cx.fact(slot).clone()).collect())
}
