//! Conditions that several rules share.

use pare_graph::{Decline, NodeRef, Patch, Tensor, ValueRef, expect, ops::Trait};

/// Whether both shapes are known and equal for all values of the symbols.
pub(crate) fn same_shape(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    a.shape().is_some() && a.shape() == b.shape()
}

/// The value that every element of a constant has; `None` if they differ, if there are none, or for strings.
pub(crate) fn uniform(tensor: &Tensor) -> Option<f64> {
    let width = tensor.dtype().bits() as usize / 8;
    let first = tensor.bytes().get(..width).filter(|_| width > 0)?;
    if !tensor.bytes().chunks(width).all(|c| c == first) {
        return None;
    }
    Tensor::new(tensor.dtype(), &[], first.to_vec()).ok()?.single()
}

/// Whether broadcasting `x` with the constant `c` leaves the shape of `x`, given the shape of the result.
pub(crate) fn spans(x: ValueRef<'_>, c: &Tensor, result: ValueRef<'_>) -> bool {
    let ones = c.shape().iter().all(|&d| d == 1);
    let short = c.rank() == 0 || x.shape().is_some_and(|s| s.len() >= c.rank());
    ones && short || same_shape(x, result)
}

/// The patch that lets `by` take the place of the node's only used output.
pub(crate) fn bypass(at: NodeRef<'_>, by: ValueRef<'_>) -> Result<Patch, Decline> {
    let mut patch = Patch::at(at);
    patch.replace(at.output()?, by);
    Ok(patch)
}

/// Whether every element of the outputs is a function of the elements at its index in the inputs, which a random
/// generator is not: it sees their order.
pub(crate) fn is_pointwise(at: NodeRef<'_>) -> bool {
    at.has(Trait::Elementwise) && !at.has(Trait::Random)
}

/// A standard operator whose attributes are all known.
pub(crate) fn is_plain(at: NodeRef<'_>) -> Result<(), Decline> {
    expect(at.node().domain().is_empty() && !at.has_references())
}
