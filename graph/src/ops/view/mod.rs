//! Typed views of operators: the parameters of a node, independent of their form in its operator set.
//!
//! `of` reads a view from a node. It declines with [`Decline::Mismatch`] for other operators, and with a
//! reason when a rank, a constant input or an attribute is unknown.

mod axes;
mod determinism;
mod linear;
mod pieces;
mod window;

pub use axes::{ReduceView, SoftmaxView, SqueezeView, TransposeView, UnsqueezeView, axis_of, is_identity};
pub use determinism::{is_deterministic, is_updated};
pub use linear::{AffineView, ClipView, GemmView, LayerNormView};
pub use pieces::{PadMode, PadView, ReshapeView, SliceAxis, SliceView, SplitView};
pub use window::{ConvTransposeView, ConvView, PoolView, conv_pads, same_pads};

use crate::{Attribute, Decline, NodeRef, ValueRef, expect};

/// Declines unless the node is the standard operator `op` with known attributes.
fn standard(at: NodeRef<'_>, op: &str) -> Result<(), Decline> {
    expect(at.is(op))?;
    known(at)
}

/// Declines if an attribute refers to one of the calling node.
fn known(at: NodeRef<'_>) -> Result<(), Decline> {
    if at.has_references() {
        return Err(Decline::because(format!("attributes of {} are set by the caller", at.describe())));
    }
    Ok(())
}

/// A parameter that is an attribute in older operator sets and an input of the same name in newer ones.
enum Argument<'g> {
    Missing,
    Attribute(&'g Attribute),
    Input(ValueRef<'g>),
}

fn argument<'g>(at: NodeRef<'g>, name: &str) -> Result<Argument<'g>, Decline> {
    let schema = at.schema().ok_or(Decline::Mismatch)?;
    let input = schema.inputs.iter().position(|i| i.name == name).and_then(|slot| at.optional(slot));
    Ok(match (input, at.attr(name)) {
        (Some(input), _) => Argument::Input(input),
        (None, Some(attribute)) if schema.attribute(name).is_some() => Argument::Attribute(attribute),
        _ => Argument::Missing,
    })
}

/// An argument that is a list of integers; `None` if it is omitted.
fn ints(at: NodeRef<'_>, name: &str) -> Result<Option<Vec<i64>>, Decline> {
    match argument(at, name)? {
        Argument::Missing => Ok(None),
        Argument::Attribute(Attribute::Ints(items)) => Ok(Some(items.clone())),
        Argument::Attribute(_) => Err(Decline::Mismatch),
        Argument::Input(input) => constant(at, name, input.constant_ints()).map(Some),
    }
}

/// An argument that is one number; `None` if it is omitted.
fn number(at: NodeRef<'_>, name: &str) -> Result<Option<f64>, Decline> {
    match argument(at, name)? {
        Argument::Missing => Ok(None),
        Argument::Attribute(Attribute::Float(value)) => Ok(Some(f64::from(*value))),
        Argument::Attribute(_) => Err(Decline::Mismatch),
        Argument::Input(input) => constant(at, name, input.scalar()).map(Some),
    }
}

/// Adds the reason "not constant" to a mismatch.
fn constant<T>(at: NodeRef<'_>, name: &str, value: Result<T, Decline>) -> Result<T, Decline> {
    value.map_err(|decline| match decline {
        Decline::Mismatch => Decline::because(format!("`{name}` of {} is not constant", at.describe())),
        reason @ Decline::Because(_) => reason,
    })
}

/// An axis counted from the front; a negative `axis` counts from the end.
fn normal_axis(at: NodeRef<'_>, axis: i64, rank: usize) -> Result<usize, Decline> {
    let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let fits = usize::try_from(counted).ok().filter(|&a| a < rank);
    fits.ok_or_else(|| Decline::because(format!("{} has axis {axis} at rank {rank}", at.describe())))
}

/// Axes counted from the front, sorted.
fn normal_axes(at: NodeRef<'_>, axes: &[i64], rank: usize) -> Result<Vec<usize>, Decline> {
    let mut axes: Vec<_> = axes.iter().map(|&a| normal_axis(at, a, rank)).collect::<Result<_, _>>()?;
    axes.sort_unstable();
    if axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Decline::because(format!("{} has a duplicate axis", at.describe())));
    }
    Ok(axes)
}

#[cfg(test)]
mod tests;
