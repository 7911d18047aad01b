//! Equality of bodies up to the names of their values.

use pare_graph::{Attribute, Graph, NodeRef, Value, ValueId};
use std::collections::HashMap;

/// Compares attributes regardless of order. Bodies are equal if they compute the same from the same values of this
/// graph.
pub(super) fn same_attributes(first: NodeRef<'_>, second: NodeRef<'_>) -> bool {
    attributes_agree(first, second, &|a, b| a == b)
}

/// `outer` returns true if two names in the graph around the nodes are those of one value.
fn attributes_agree(first: NodeRef<'_>, second: NodeRef<'_>, outer: &dyn Fn(&str, &str) -> bool) -> bool {
    let (a, b) = (&first.node().attributes, &second.node().attributes);
    let agree = |a: &Attribute, b: &Attribute| {
        let (bodies, others) = (a.graphs(), b.graphs());
        if bodies.is_empty() {
            return a == b;
        }
        bodies.len() == others.len() && bodies.iter().zip(others).all(|(a, b)| bodies_agree(a, b, outer))
    };
    a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| agree(value, other)))
}

fn bodies_agree(a: &Graph, b: &Graph, outer: &dyn Fn(&str, &str) -> bool) -> bool {
    let mut pairs = HashMap::new();
    let sizes = |graph: &Graph| (graph.inputs().len(), graph.outputs().len(), graph.node_count());
    if sizes(a) != sizes(b) {
        return false;
    }
    for (&x, &y) in a.inputs().iter().zip(b.inputs()) {
        if a.value(x).fact != b.value(y).fact {
            return false;
        }
        pairs.insert(x, y);
    }
    for (&n, &m) in a.nodes().iter().zip(b.nodes().iter()) {
        let (first, second) = (a.at(n), b.at(m));
        let (p, q) = (first.node(), second.node());
        let is_same = p.op == q.op && p.domain() == q.domain() && p.overload == q.overload;
        let inner = |x: &str, y: &str| {
            a.find(x).zip(b.find(y)).is_some_and(|(x, y)| values_agree((a, x), (b, y), &pairs, outer))
        };
        let slots = |x: Option<ValueId>, y: Option<ValueId>| match (x, y) {
            (Some(x), Some(y)) => values_agree((a, x), (b, y), &pairs, outer),
            (x, y) => x == y,
        };
        let (inputs, others) = (a.inputs_of(n), b.inputs_of(m));
        let read_same =
            inputs.len() == others.len() && inputs.into_iter().zip(others).all(|(x, y)| slots(x, y));
        if !is_same || !read_same || !attributes_agree(first, second, &inner) {
            return false;
        }
        let (outputs, others) = (a.outputs_of(n), b.outputs_of(m));
        if outputs.len() != others.len() {
            return false;
        }
        for pair in outputs.into_iter().zip(others) {
            match pair {
                (Some(x), Some(y)) => drop(pairs.insert(x, y)),
                (None, None) => {}
                _ => return false,
            }
        }
    }
    a.outputs().iter().zip(b.outputs()).all(|(&x, &y)| values_agree((a, x), (b, y), &pairs, outer))
}

/// Returns true for two values that are paired, captured from one value, or equal constants.
fn values_agree(
    (a, x): (&Graph, ValueId),
    (b, y): (&Graph, ValueId),
    pairs: &HashMap<ValueId, ValueId>,
    outer: &dyn Fn(&str, &str) -> bool,
) -> bool {
    if let Some(paired) = pairs.get(&x) {
        return *paired == y;
    }
    let (x, y): (&Value, &Value) = (a.value(x), b.value(y));
    match (x.is_captured(), y.is_captured()) {
        (true, true) => outer(&x.name, &y.name),
        (false, false) => x.data.is_some() && x.data == y.data,
        _ => false,
    }
}
