//! Nodes whose outputs depend on nothing but their inputs, and which change nothing else.

use crate::{
    Attribute, Edge, Graph, NodeRef, ValueRef,
    ops::{Trait, is_engine_domain},
};

/// Returns true if equal inputs always give equal outputs, and the inputs keep their values, so that the node
/// may be evaluated ahead of time or shared.
///
/// Random operators are not deterministic even with a fixed seed. Operators of unknown domains are treated as
/// non-deterministic; those of ONNX Runtime that [`Trait::Random`] does not name, as deterministic.
pub fn is_deterministic(at: NodeRef<'_>) -> bool {
    let known = at.schema().is_some() || is_engine_domain(at.node().domain());
    let all = |graph: &Graph| graph.nodes().iter().all(|&id| is_deterministic(graph.at(id)));
    known
        && (!at.has(Trait::Random) || drops_nothing(at))
        && !RUNNING_STATISTICS.iter().any(|&slot| updates(at, slot))
        && at.node().subgraphs().all(all)
}

/// The inputs of `BatchNormalization` that training updates: the running mean and variance.
const RUNNING_STATISTICS: [u32; 2] = [3, 4];

/// Returns true if ONNX Runtime stores a result of the node in its input `slot`, in place.
fn updates(at: NodeRef<'_>, slot: u32) -> bool {
    if !at.is("BatchNormalization") || !RUNNING_STATISTICS.contains(&slot) {
        return false;
    }
    match at.opset() {
        14.. => !matches!(at.attr("training_mode"), None | Some(Attribute::Int(0))),
        // Outputs other than the first one request training.
        _ => at.outputs().iter().skip(1).any(Option::is_some),
    }
}

/// Returns true if a node that reads the value updates it in place, so that nothing else may share its memory.
pub fn is_updated(value: ValueRef<'_>) -> bool {
    value.users().into_iter().any(|(at, edge)| match edge {
        Edge::Input(slot) => updates(at, slot),
        Edge::Capture => at.node().subgraphs().any(|body| {
            let inner = body.find(value.name()).map(|id| body.value_ref(id));
            inner.is_some_and(|inner| inner.value().is_captured() && is_updated(inner))
        }),
        Edge::Output(_) => false,
    })
}

/// `Dropout` is the identity at inference, and in training with ratio 0.
fn drops_nothing(at: NodeRef<'_>) -> bool {
    if !at.is("Dropout") {
        return false;
    }
    if at.opset() < 7 {
        return !at.has_references() && at.int("is_test", 0) != 0;
    }
    let is_zero = |slot| at.optional(slot).is_some_and(|input| input.scalar() == Ok(0.0));
    at.optional(2).is_none() || is_zero(2) || is_zero(1)
}
