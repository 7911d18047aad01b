//! A small interpreter, for the operators whose result needs no engine to be the right one to the last bit.
//!
//! What only moves elements (`movement`, `indexed`) says for each element of the result where it comes from;
//! one routine in `place` copies them, whatever their type. Arithmetic (`elementwise`, `reduce`, `cast`,
//! `create`) is done where a single operation, rounded once, leaves no choice: integers, and floats one operation at
//! a time. Everything else (`Exp`, `MatMul`, sums of floats, …) is [`EvalError::NotHere`]: left to an engine, as are
//! corners in which engines differ (not-a-numbers, zeros of both signs, casts out of range).

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

/// Why a node was not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The interpreter leaves this operator, or these elements, to an engine.
    #[error("{0} needs an engine")]
    NotHere(String),
    /// The result would take more bytes than allowed; nothing of that size was allocated.
    #[error("{node} would make {bytes} bytes")]
    TooLarge {
        /// The node, in words.
        node: String,
        /// Bytes of one output.
        bytes: u64,
    },
    /// The inputs or attributes make no sense for this operator.
    #[error("{node} is invalid: {why}")]
    Invalid {
        /// The node, in words.
        node: String,
        /// What does not fit.
        why: String,
    },
}

/// The outputs of a node by slot, for inputs by slot; the inputs of the graph that the node stands in do not count.
/// No output may take more than `limit` bytes.
pub fn evaluate(at: NodeRef<'_>, inputs: &[Option<&Tensor>], limit: usize) -> Result<Vec<Tensor>, EvalError> {
    let call = Call { at, inputs, limit, tracing: false };
    let outputs = guard(call).and_then(|()| movement(call).unwrap_or_else(|| compute(call)));
    outputs.map_err(|stop| stop.at(at))
}

/// Follow elements through a node that only moves them: the first input (of `Concat` all, of `Where` the second and
/// third) is given as int64 tensors of coordinates, of whatever meaning, in the shape of the real ones; the outputs
/// hold the coordinates of the elements that they would consist of, and -1 where the node itself puts one in.
/// Shapes, indices and the like are given as they are.
///
/// Of other operators: [`EvalError::NotHere`].
pub fn trace(at: NodeRef<'_>, inputs: &[Option<&Tensor>], limit: usize) -> Result<Vec<Tensor>, EvalError> {
    let call = Call { at, inputs, limit, tracing: true };
    let outputs = guard(call).and_then(|()| movement(call).unwrap_or(Err(Stop::NotHere)));
    outputs.map_err(|stop| stop.at(at))
}

/// Why a computation stopped, before the node is named.
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

/// `NotHere` unless the condition holds.
fn here(condition: bool) -> Result<(), Stop> {
    if condition { Ok(()) } else { Err(Stop::NotHere) }
}

type Outputs = Result<Vec<Tensor>, Stop>;

/// All other operators, which compute one output.
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

/// What holds for every operator here.
fn guard(call: Call<'_>) -> Result<(), Stop> {
    here(call.at.node().domain().is_empty() && !call.at.has_references())?;
    // Sizes beside an axis of size 0 are not bounded by any elements; their products shall not overflow.
    let bounded = |t: &&Tensor| t.shape().iter().try_fold(1_usize, |n, &d| n.checked_mul(d.max(1))).is_some();
    here(call.inputs.iter().flatten().all(bounded))
}

/// Operators whose results consist of elements of their inputs; `None` for others.
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
