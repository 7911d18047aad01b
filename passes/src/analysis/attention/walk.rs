//! Following a value upstream or downstream, past operators that only rearrange elements.

use super::Statics;
use pare_graph::{
    Edge, NodeId, NodeRef, ValueRef,
    ops::{Trait, is_deterministic},
};

/// The largest number of steps of a search: exporters write at most a dozen rearranging operators in a row.
const STEPS: usize = 32;

/// Returns whether a node only changes the shape, the order or the precision of the elements of its first
/// input.
pub(super) fn rearranges(at: NodeRef<'_>) -> bool {
    at.has(Trait::View) || at.is("Cast") || at.is("Dropout") && is_deterministic(at)
}

/// Returns the value upstream of all rearranging operators.
pub(crate) fn before_rearranging(mut value: ValueRef<'_>) -> ValueRef<'_> {
    for _ in 0..STEPS {
        match value.producer().filter(|at| rearranges(*at)).map(|at| at.input(0)) {
            Some(Ok(before)) => value = before,
            _ => break,
        }
    }
    value
}

/// The origin of an operand.
pub(super) struct Origin<'g> {
    /// The layer with weights that computes it.
    pub projection: Option<NodeId>,
    /// The input of the layer, before rearranging operators; without a layer, the value where the search
    /// ended.
    pub source: ValueRef<'g>,
    /// The product of the constant factors on the path; `None` if one is not known.
    pub factor: Option<f64>,
    /// `true` if the value is an input of the model, or concatenated with one, as a cache is.
    pub cached: bool,
}

/// Returns the origin of an operand of attention: upstream of slices of a packed projection, biases, factors
/// and norms of each head.
pub(super) fn origin<'g>(mut value: ValueRef<'g>, statics: &Statics) -> Origin<'g> {
    let mut factor = Some(1.0);
    for _ in 0..STEPS {
        let Some((id, _)) = value.graph.producer(value.id) else { break };
        let at = value.graph.at(id);
        if ["MatMul", "Gemm", "Conv"].iter().any(|op| at.is(op)) {
            let Ok(x) = at.input(0) else { break };
            if at.input(1).is_ok_and(|w| statics.has(w)) && !statics.has(x) {
                return Origin { projection: Some(id), source: before_rearranging(x), factor, cached: false };
            }
            break;
        }
        if at.is("Concat") {
            let joined = at.inputs().into_iter().flatten().map(before_rearranging);
            let cached = joined.into_iter().any(|v| v.value().is_input());
            return Origin { projection: None, source: value, factor, cached };
        }
        match passed_on(at, statics) {
            Some((before, by)) => {
                factor = factor.zip(by).map(|(a, b)| a * b);
                value = before;
            }
            None => break,
        }
    }
    let cached = before_rearranging(value).value().is_input();
    Origin { projection: None, source: value, factor, cached }
}

/// Returns the operand that `at` passes on channel by channel, and the factor on it.
fn passed_on<'g>(at: NodeRef<'g>, statics: &Statics) -> Option<(ValueRef<'g>, Option<f64>)> {
    let first = at.input(0).ok()?;
    let parts = ["Split", "Slice", "Gather", "Expand", "RotaryEmbedding"];
    let norms = ["LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"];
    if rearranges(at) || parts.iter().chain(&norms).any(|op| at.is(op)) {
        return Some((first, Some(1.0)));
    }
    let (value, other, right) = beside_static(at, statics)?;
    if !statics.is_per_channel(other) {
        return None;
    }
    match at.op() {
        "Add" => Some((value, Some(1.0))),
        "Mul" => Some((value, number(other))),
        "Div" if right => Some((value, number(other).map(f64::recip))),
        _ => None,
    }
}

/// Returns the operand beside a static one, the static one, and whether that is on the right.
pub(super) fn beside_static<'g>(
    at: NodeRef<'g>,
    statics: &Statics,
) -> Option<(ValueRef<'g>, ValueRef<'g>, bool)> {
    if !at.node().domain().is_empty() {
        return None;
    }
    let (a, b) = (at.input(0).ok()?, at.input(1).ok()?);
    match (statics.has(a), statics.has(b)) {
        (false, true) => Some((a, b, true)),
        (true, false) => Some((b, a, false)),
        _ => None,
    }
}

/// Returns the element of a scalar, if it is constant or shape inference evaluates it.
pub(super) fn number(value: ValueRef<'_>) -> Option<f64> {
    value.scalar().ok()
}

/// Returns the users of a value downstream of rearranging operators, the nearest first, each with the value
/// that it reads.
pub(super) fn readers(value: ValueRef<'_>) -> Vec<(NodeRef<'_>, ValueRef<'_>)> {
    let (mut queue, mut found) = (vec![value], vec![]);
    for _ in 0..STEPS {
        if queue.is_empty() {
            break;
        }
        let value = queue.remove(0);
        for (at, edge) in value.users() {
            if edge == Edge::Input(0) && rearranges(at) {
                queue.extend(at.outputs().into_iter().next().flatten());
            } else if matches!(edge, Edge::Input(_)) {
                found.push((at, value));
            }
        }
    }
    found
}
