//! Nodes whose outputs depend on nothing but their inputs.

use crate::{Graph, NodeRef, ops::Trait};

/// Returns true if equal inputs always give equal outputs, so that the node may be evaluated ahead of time or
/// shared.
///
/// Random operators are not deterministic even with a fixed seed. Operators of unknown domains are treated as
/// non-deterministic; those of ONNX Runtime that [`Trait::Random`] does not name, as deterministic.
pub fn is_deterministic(at: NodeRef<'_>) -> bool {
    let known =
        at.schema().is_some() || matches!(at.node().domain(), "com.microsoft" | "com.microsoft.nchwc");
    let all = |graph: &Graph| graph.nodes().iter().all(|&id| is_deterministic(graph.at(id)));
    known && (!at.has(Trait::Random) || drops_nothing(at)) && at.node().subgraphs().all(all)
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
