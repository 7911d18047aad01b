//! Conditions and patches shared by several rules.

use pare_graph::{DataType, Decline, Node, NodeRef, Patch, Tensor, ValueRef, expect, ops::Trait};

/// Returns true if both shapes are known and equal for all values of the symbolic dims.
pub(crate) fn same_shape(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    a.shape().is_some() && a.shape() == b.shape()
}

/// The value shared by all elements of a tensor; `None` if they differ, for empty tensors, and for strings.
pub(crate) fn uniform(tensor: &Tensor) -> Option<f64> {
    let width = tensor.dtype().bits() as usize / 8;
    let first = tensor.bytes().get(..width).filter(|_| width > 0)?;
    if !tensor.bytes().chunks(width).all(|c| c == first) {
        return None;
    }
    Tensor::new(tensor.dtype(), &[], first.to_vec()).ok()?.single()
}

/// Returns true if broadcasting `x` with the constant `c` does not change the shape of `x`. `result` is the
/// broadcast value.
pub(crate) fn spans(x: ValueRef<'_>, c: &Tensor, result: ValueRef<'_>) -> bool {
    let ones = c.shape().iter().all(|&d| d == 1);
    let short = c.rank() == 0 || x.shape().is_some_and(|s| s.len() >= c.rank());
    ones && short || same_shape(x, result)
}

/// Returns true if `Clip` takes numbers of this type in an operator set, and f64 holds each of its bounds: floats,
/// and from set 12 on integers of up to 32 bits.
pub(crate) fn has_clip(dtype: DataType, opset: i64) -> bool {
    match dtype {
        DataType::Float => true,
        DataType::Double => opset >= 12,
        _ => opset >= 12 && dtype.is_integer() && matches!(dtype.bits(), 8 | 32),
    }
}

/// A patch that replaces the only used output of a node by `by`.
pub(crate) fn bypass(at: NodeRef<'_>, by: ValueRef<'_>) -> Result<Patch, Decline> {
    let mut patch = Patch::at(at);
    patch.replace(at.output()?, by);
    Ok(patch)
}

/// As [`bypass`], for the second of two nodes that cancel. Where both values belong to the interface, an
/// `Identity` takes the place of the two.
pub(crate) fn cancel(at: NodeRef<'_>, by: ValueRef<'_>) -> Result<Patch, Decline> {
    let y = at.output()?;
    let is_fixed = by.value().is_output() || by.producer().is_none();
    if !(y.value().is_output() && is_fixed) {
        return bypass(at, by);
    }
    let mut patch = Patch::at(at);
    let copy = patch.node(y.name(), Node::new("Identity"), &[by.into()]);
    patch.replace(y, copy);
    Ok(patch)
}

/// Returns true if every output element is a function of the input elements at its index. A random operator is not:
/// its draws follow the order of elements.
pub(crate) fn is_pointwise(at: NodeRef<'_>) -> bool {
    at.has(Trait::Elementwise) && !at.has(Trait::Random)
}

/// Matches operators of the standard domain whose attributes have values (in functions, attributes may refer
/// to the caller's).
pub(crate) fn is_plain(at: NodeRef<'_>) -> Result<(), Decline> {
    expect(at.node().domain().is_empty() && !at.has_references())
}
