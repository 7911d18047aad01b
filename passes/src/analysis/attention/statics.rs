//! Values that do not depend on the data of the inputs: weights, and values computed from weights and shapes.

use pare_graph::{Graph, ValueId, ValueRef, ops::is_deterministic};
use std::collections::HashSet;

/// The values of a graph that are the same for all inputs of the same shape.
pub struct Statics(HashSet<ValueId>);

impl Statics {
    /// Finds the static values of a graph. Nodes with subgraphs are not static.
    pub fn of(graph: &Graph) -> Self {
        let constant = |&v: &ValueId| graph.value(v).data.is_some() && !graph.value(v).is_input();
        let mut known: HashSet<ValueId> = graph.values().filter(constant).collect();
        for &id in graph.nodes().iter() {
            let at = graph.at(id);
            let mut inputs = graph.inputs_of(id).into_iter().flatten();
            let of_shape = at.is("Shape") || at.is("Size");
            let plain = at.node().subgraphs().next().is_none() && is_deterministic(at);
            if plain && (of_shape || inputs.all(|v| known.contains(&v))) {
                known.extend(graph.outputs_of(id).into_iter().flatten());
            }
        }
        Self(known)
    }

    /// Returns whether a value is static.
    pub fn has(&self, value: ValueRef<'_>) -> bool {
        self.0.contains(&value.id)
    }

    /// Returns whether a value is static and equal for all tokens and samples: a scalar, or one number for
    /// each channel (of each head).
    pub(super) fn is_per_channel(&self, value: ValueRef<'_>) -> bool {
        let Some(shape) = value.shape().filter(|_| self.has(value)) else { return false };
        match shape {
            [] | [_] => true,
            [.., token, _] => token.known() == Some(1),
        }
    }
}
