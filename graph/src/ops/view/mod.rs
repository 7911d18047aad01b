//! Typed views of operators: what a node means, whatever the operator set spells it like.
//!
//! A view is read from a node by `of`. It declines when the node is another operator ([`Decline::Mismatch`]), and with
//! a reason when what it needs is not known: a rank, a constant input, an attribute that refers to a caller's.

mod axes;
mod determinism;
mod linear;
mod pieces;
mod window;

pub use axes::{ReduceView, SoftmaxView, SqueezeView, TransposeView, UnsqueezeView, axis_of, is_identity};
pub use determinism::is_deterministic;
pub use linear::{AffineView, ClipView, GemmView, LayerNormView};
pub use pieces::{PadMode, PadView, ReshapeView, SliceAxis, SliceView, SplitView};
pub use window::{ConvTransposeView, ConvView, PoolView, same_pads};

use crate::{Attribute, Decline, NodeRef, ValueRef, expect};

/// The standard operator `op`, none of whose attributes refers to a caller's.
fn standard(at: NodeRef<'_>, op: &str) -> Result<(), Decline> {
    expect(at.is(op))?;
    known(at)
}

fn known(at: NodeRef<'_>) -> Result<(), Decline> {
    if at.has_references() {
        return Err(Decline::because(format!("attributes of {} are set by the caller", at.describe())));
    }
    Ok(())
}

/// What older operator sets have as an attribute and newer ones as an input of the same name.
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

/// An argument that is a list of integers; `None` if it is left out.
fn ints(at: NodeRef<'_>, name: &str) -> Result<Option<Vec<i64>>, Decline> {
    match argument(at, name)? {
        Argument::Missing => Ok(None),
        Argument::Attribute(Attribute::Ints(items)) => Ok(Some(items.clone())),
        Argument::Attribute(_) => Err(Decline::Mismatch),
        Argument::Input(input) => constant(at, name, input.constant_ints()).map(Some),
    }
}

/// An argument that is one number; `None` if it is left out.
fn number(at: NodeRef<'_>, name: &str) -> Result<Option<f64>, Decline> {
    match argument(at, name)? {
        Argument::Missing => Ok(None),
        Argument::Attribute(Attribute::Float(value)) => Ok(Some(f64::from(*value))),
        Argument::Attribute(_) => Err(Decline::Mismatch),
        Argument::Input(input) => constant(at, name, input.scalar()).map(Some),
    }
}

/// The reason why an argument cannot be told, if there is no better one.
fn constant<T>(at: NodeRef<'_>, name: &str, value: Result<T, Decline>) -> Result<T, Decline> {
    value.map_err(|decline| match decline {
        Decline::Mismatch => Decline::because(format!("`{name}` of {} is not constant", at.describe())),
        reason @ Decline::Because(_) => reason,
    })
}

/// An axis counted from the front; negative ones count from the end.
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
        return Err(Decline::because(format!("{} names an axis twice", at.describe())));
    }
    Ok(axes)
}

#[cfg(test)]
mod tests;
