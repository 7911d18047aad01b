//! Following a value up to where it is made, or down to where it goes, past what only rearranges elements.

use super::Statics;
use pare_graph::{
    Edge, NodeId, NodeRef, ValueRef,
    ops::{Trait, is_deterministic},
};

/// Steps after which a search ends: exporters write no more than a dozen rearrangements in a row.
const STEPS: usize = 32;

/// Whether the node gives the elements of its first input in another shape, order or precision.
pub(super) fn rearranges(at: NodeRef<'_>) -> bool {
    at.has(Trait::View) || at.is("Cast") || at.is("Dropout") && is_deterministic(at)
}

/// The value before everything that only rearranges.
pub(super) fn unarranged(mut value: ValueRef<'_>) -> ValueRef<'_> {
    for _ in 0..STEPS {
        match value.producer().filter(|at| rearranges(*at)).map(|at| at.input(0)) {
            Some(Ok(before)) => value = before,
            _ => break,
        }
    }
    value
}

/// Where an operand comes from.
pub(super) struct Origin<'g> {
    /// The layer with weights that makes it.
    pub projection: Option<NodeId>,
    /// What the layer reads, before it was rearranged; without a layer, where the search ended.
    pub source: ValueRef<'g>,
    /// Constant factors on the way; `None` if one of them is not known as a number.
    pub factor: Option<f64>,
    /// The value came in, or is joined with one that did, instead of being made from activations.
    pub cached: bool,
}

/// Where an operand of a product of activations comes from, past parts of a packed projection, biases, factors and norms
/// of each head.
pub(super) fn origin<'g>(mut value: ValueRef<'g>, statics: &Statics) -> Origin<'g> {
    let mut factor = Some(1.0);
    for _ in 0..STEPS {
        let Some((id, _)) = value.graph.producer(value.id) else { break };
        let at = value.graph.at(id);
        if ["MatMul", "Gemm", "Conv"].iter().any(|op| at.is(op)) {
            let Ok(x) = at.input(0) else { break };
            if at.input(1).is_ok_and(|w| statics.has(w)) && !statics.has(x) {
                return Origin { projection: Some(id), source: unarranged(x), factor, cached: false };
            }
            break;
        }
        if at.is("Concat") {
            let joined = at.inputs().into_iter().flatten().map(unarranged);
            let cached = joined.into_iter().any(|v| v.value().is_input());
            return Origin { projection: None, source: value, factor, cached };
        }
        match above(at, statics) {
            Some((before, by)) => {
                factor = factor.zip(by).map(|(a, b)| a * b);
                value = before;
            }
            None => break,
        }
    }
    let cached = unarranged(value).value().is_input();
    Origin { projection: None, source: value, factor, cached }
}

/// The operand that `at` passes on channel by channel, and the factor on it.
fn above<'g>(at: NodeRef<'g>, statics: &Statics) -> Option<(ValueRef<'g>, Option<f64>)> {
    let first = at.input(0).ok()?;
    let parts = ["Split", "Slice", "Gather", "Expand"];
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

/// The operand beside a static one, the static one, and whether that is on the right.
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

/// The only element of a constant. What a file computes is known where shape inference follows it.
pub(super) fn number(value: ValueRef<'_>) -> Option<f64> {
    value.scalar().ok()
}

/// The nodes that read a value, past what only rearranges, the nearest first; each with the value it reads.
pub(super) fn readers(value: ValueRef<'_>) -> Vec<(NodeRef<'_>, ValueRef<'_>)> {
    let (mut queue, mut found) = (vec![value], vec![]);
    for _ in 0..STEPS {
        if queue.is_empty() {
            break;
        }
        let value = queue.remove(0);
        for (at, wire) in value.users() {
            if wire == Edge::Input(0) && rearranges(at) {
                queue.extend(at.outputs().into_iter().next().flatten());
            } else if matches!(wire, Edge::Input(_)) {
                found.push((at, value));
            }
        }
    }
    found
}
