//! Interpreter for operators whose result is the same in every engine, bit for bit.
//!
//! Data movement (`movement`, `indexed`) computes the source of each element, and `place` copies elements of
//! any type. Arithmetic (`elementwise`, `reduce`, `cast`, `create`) is evaluated where the result is
//! determined: integers, and single floating-point operations, which IEEE 754 rounds correctly. All other
//! operators (`Exp`, `MatMul`, sums of floats, …) and cases in which engines differ (NaN, signed zeros, casts
//! out of range) are [`EvalError::NotHere`].

mod call;
mod cast;
mod create;
mod elementwise;
mod indexed;
mod movement;
mod number;
mod place;
mod reduce;
#[cfg(test)]
mod tests;

use crate::{NodeRef, Tensor};
use call::Call;

/// The reason why a node was not evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// The interpreter does not evaluate this operator, or these elements.
    #[error("{0} needs an engine")]
    NotHere(String),
    /// An output exceeds the limit. It was not allocated.
    #[error("an output of {node} has {bytes} bytes")]
    TooLarge {
        /// The node, in words.
        node: String,
        /// Bytes of one output.
        bytes: u64,
    },
    /// The inputs or attributes are invalid for this operator.
    #[error("{node} is invalid: {why}")]
    Invalid {
        /// The node, in words.
        node: String,
        /// The violated condition.
        why: String,
    },
}

/// Evaluates a node: its outputs by slot, for these inputs by slot, which replace those of its graph. No
/// output may have more than `limit` bytes.
pub fn evaluate(at: NodeRef<'_>, inputs: &[Option<&Tensor>], limit: usize) -> Result<Vec<Tensor>, EvalError> {
    let call = Call { at, inputs, limit, tracing: false };
    let outputs = guard(call).and_then(|()| movement(call).unwrap_or_else(|| compute(call)));
    outputs.map_err(|stop| stop.at(at))
}

/// Traces elements through a node that only moves them.
///
/// The first input (all inputs of `Concat`, the second and third of `Where`) holds an int64 label for each
/// element. The outputs hold the label of the source of each element, and -1 for elements that the node
/// inserts. The remaining inputs, such as shapes and indices, have their values.
///
/// # Errors
///
/// [`EvalError::NotHere`] for operators that compute elements.
pub fn trace(at: NodeRef<'_>, inputs: &[Option<&Tensor>], limit: usize) -> Result<Vec<Tensor>, EvalError> {
    let call = Call { at, inputs, limit, tracing: true };
    let outputs = guard(call).and_then(|()| movement(call).unwrap_or(Err(Stop::NotHere)));
    outputs.map_err(|stop| stop.at(at))
}

/// An [`EvalError`] without the node.
enum Stop {
    NotHere,
    TooLarge(u64),
    Invalid(String),
}

impl Stop {
    fn at(self, at: NodeRef<'_>) -> EvalError {
        let node = at.describe();
        match self {
            Self::NotHere => EvalError::NotHere(node),
            Self::TooLarge(bytes) => EvalError::TooLarge { node, bytes },
            Self::Invalid(why) => EvalError::Invalid { node, why },
        }
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Invalid(why.into()))
}

/// Returns `NotHere` unless the condition holds.
fn here(condition: bool) -> Result<(), Stop> {
    if condition { Ok(()) } else { Err(Stop::NotHere) }
}

type Outputs = Result<Vec<Tensor>, Stop>;

/// Evaluates an operator that computes elements, all of which have one output.
fn compute(call: Call<'_>) -> Outputs {
    let one = match call.at.op() {
        "Constant" => create::constant(call),
        "ConstantOfShape" => create::constant_of_shape(call),
        "EyeLike" => create::eye_like(call),
        "NonZero" => indexed::non_zero(call),
        "OneHot" => indexed::one_hot(call),
        "Range" => create::range(call),
        "Shape" => create::shape(call),
        "Size" => create::size(call),
        "Cast" | "CastLike" => cast::cast(call),
        "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" => reduce::reduce(call),
        _ => elementwise::elementwise(call),
    };
    one.map(|tensor| vec![tensor])
}

/// Checks the preconditions of all operators.
fn guard(call: Call<'_>) -> Result<(), Stop> {
    here(call.at.node().domain().is_empty() && !call.at.has_references())?;
    // Beside an axis of size 0, the other sizes are unbounded; their product must not overflow.
    let bounded = |t: &&Tensor| t.shape().iter().try_fold(1_usize, |n, &d| n.checked_mul(d.max(1))).is_some();
    here(call.inputs.iter().flatten().all(bounded))
}

/// Evaluates an operator that only moves elements; `None` for other operators.
fn movement(call: Call<'_>) -> Option<Outputs> {
    let one: fn(Call<'_>) -> Result<Tensor, Stop> = match call.at.op() {
        "Split" => return Some(movement::split(call)),
        "Compress" => indexed::compress,
        "Concat" => movement::concat,
        "DepthToSpace" => movement::depth_to_space,
        "Expand" => movement::expand,
        "Flatten" => movement::flatten,
        "Gather" => indexed::gather,
        "GatherElements" => indexed::gather_elements,
        "GatherND" => indexed::gather_nd,
        "Identity" => |call| call.input(0).cloned(),
        "Pad" => movement::pad,
        "Reshape" => movement::reshape,
        "Scatter" | "ScatterElements" => indexed::scatter_elements,
        "ScatterND" => indexed::scatter_nd,
        "Slice" => movement::slice,
        "SpaceToDepth" => movement::space_to_depth,
        "Squeeze" => movement::squeeze,
        "Tile" => movement::tile,
        "Transpose" => movement::transpose,
        "Trilu" => indexed::trilu,
        "Unsqueeze" => movement::unsqueeze,
        "Where" => indexed::choose,
        _ => return None,
    };
    Some(one(call).map(|tensor| vec![tensor]))
}
