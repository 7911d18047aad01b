//! The path from the weighted values to the stream of tokens.

use super::{
    NoResidual, Residual, Statics,
    walk::{before_rearranging, beside_static, readers},
};
use pare_graph::{Dim, NodeId, NodeRef, ValueRef};
use std::collections::HashSet;

/// The largest number of additions after a projection: with parallel attention and MLP, three values are
/// added.
const SUMS: usize = 3;

/// The largest number of nodes between the stream and the source of q, k and v: a decomposed norm has nine.
const NORM: usize = 32;

/// Returns the linear layer that mixes the heads.
pub(super) fn projection<'g>(context: ValueRef<'g>, statics: &Statics) -> Option<NodeRef<'g>> {
    let layer = |(at, value): (NodeRef<'g>, ValueRef<'g>)| {
        let is_linear = ["MatMul", "Gemm", "Conv"].iter().any(|op| at.is(op));
        let reads = at.input(0).is_ok_and(|x| x.id == value.id) && at.input(1).is_ok_and(|w| statics.has(w));
        (is_linear && reads).then_some(at)
    };
    readers(context).into_iter().find_map(layer)
}

/// Returns the addition of the projection, after biases and factors, to a stream that `source` depends on.
/// `tokens` are the number of tokens that are attended to, and the number that attend, if known.
pub(super) fn residual(
    projection: Option<NodeRef<'_>>,
    source: ValueRef<'_>,
    tokens: &[Dim],
    statics: &Statics,
) -> Result<Residual, NoResidual> {
    let mut value = projection.and_then(|at| at.output().ok()).ok_or(NoResidual::Projection)?;
    let before = ancestors(source);
    let mut sums = 0;
    while sums < SUMS {
        let next = readers(value).into_iter().find_map(|(at, read)| {
            let next = classify(at, read, statics)?;
            Some((at, next))
        });
        let Some((at, next)) = next else { break };
        match next {
            Next::Value(next) => value = next,
            Next::Sum { skip, sum } => {
                if before.contains(&before_rearranging(skip).id) || before.contains(&skip.id) {
                    let token = token_axis(skip, tokens)?;
                    return Ok(Residual { node: at.id, stream: skip.id, sum: sum.map(|v| v.id), token });
                }
                sums += 1;
                value = sum.ok_or(NoResidual::Sum)?;
            }
        }
    }
    Err(NoResidual::Sum)
}

/// A node on the path from a projection to the stream.
enum Next<'g> {
    /// The output of a bias or a factor.
    Value(ValueRef<'g>),
    /// An addition of two activations.
    Sum { skip: ValueRef<'g>, sum: Option<ValueRef<'g>> },
}

fn classify<'g>(at: NodeRef<'g>, read: ValueRef<'g>, statics: &Statics) -> Option<Next<'g>> {
    let output = |slot: usize| at.outputs().get(slot).copied().flatten();
    if at.node().domain() == "com.microsoft" && at.op().starts_with("Skip") {
        let (x, skip) = (at.input(0).ok()?, at.input(1).ok()?);
        let skip = if x.id == read.id { skip } else { x };
        return Some(Next::Sum { skip, sum: output(3) });
    }
    if let Some((_, other, _)) = beside_static(at, statics) {
        let passes = (at.is("Add") || at.is("Mul")) && statics.is_per_channel(other);
        return passes.then(|| output(0)).flatten().map(Next::Value);
    }
    if !at.is("Add") {
        return None;
    }
    let (a, b) = (at.input(0).ok()?, at.input(1).ok()?);
    Some(Next::Sum { skip: if a.id == read.id { b } else { a }, sum: output(0) })
}

/// Returns `value` and the values that it depends on, breadth first, within the size of a norm.
fn ancestors(value: ValueRef<'_>) -> HashSet<pare_graph::ValueId> {
    let (mut queue, mut seen, mut nodes) = (vec![value], HashSet::from([value.id]), HashSet::<NodeId>::new());
    while let Some(value) = (!queue.is_empty()).then(|| queue.remove(0)) {
        let Some((id, _)) = value.graph.producer(value.id) else { continue };
        if nodes.len() >= NORM || !nodes.insert(id) {
            continue;
        }
        for input in value.graph.at(id).inputs().into_iter().flatten() {
            if seen.insert(input.id) {
                queue.push(input);
            }
        }
    }
    seen
}

/// Returns the axis of a stream `[B,N,C]` or `[N,B,C]` that counts tokens.
fn token_axis(stream: ValueRef<'_>, tokens: &[Dim]) -> Result<usize, NoResidual> {
    let shape = stream.shape().filter(|s| s.len() == 3).ok_or(NoResidual::TokenAxis)?;
    // The numbers differ if few tokens attend, or if keys are cached.
    let found = tokens.iter().map(|tokens| axis_of(shape, tokens));
    found
        .reduce(|first, next| first.or_else(|why| next.map_err(|_| why)))
        .unwrap_or(Err(NoResidual::TokenAxis))
}

fn axis_of(shape: &[Dim], tokens: &Dim) -> Result<usize, NoResidual> {
    match (shape[0] == *tokens, shape[1] == *tokens) {
        (false, true) => Ok(1),
        (true, false) => Ok(0),
        (true, true) => Err(NoResidual::TokenAxis),
        (false, false) => match (tokens.size(), shape[1].size()) {
            (Some(window), Some(all)) if window < all => Err(NoResidual::Window(window, all)),
            _ => Err(NoResidual::TokenAxis),
        },
    }
}
