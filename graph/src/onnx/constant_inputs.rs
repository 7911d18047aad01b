//! Initializers that are inputs, in files of IR versions before 4.
//!
//! Those versions require every initializer to be an input, and engines take it as a constant: ONNX Runtime
//! neither lists it among the inputs nor accepts a value for it. From version 4 on, such an input is a default
//! that the caller may override. In a graph they are therefore initializers like all others; their entries are
//! kept, and written while the file keeps its version, so that neither loads differently.

use super::{
    encode::interface,
    types::{declared_from, declared_to},
};
use crate::{Declared, Graph, Type, proto::GraphProto};
use std::collections::HashSet;

/// Removes the initializers from the inputs, and keeps their entries.
pub(super) fn take(graph: &mut Graph) {
    let entries = interface(graph, graph.inputs(), false);
    let is_constant: Vec<_> = graph.inputs().iter().map(|&v| graph.value(v).data.is_some()).collect();
    if !is_constant.contains(&true) {
        return;
    }
    let taken: Vec<_> = graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_some()).collect();
    graph.freeze_initializers();
    for id in taken {
        if let Some(data) = &graph.value(id).data {
            let fact = data.fact();
            graph.set_fact(id, fact);
        }
        // The entry of an input, unlike one of `value_info`, is not written for other values.
        if graph.value(id).declared.as_ref().is_some_and(|declared| declared.order.is_none()) {
            graph.set_declared(id, None);
        }
    }
    // Entries of the other inputs move to the positions that these have now.
    let before = |position: usize| is_constant[..position].iter().filter(|&&c| c).count();
    graph.extra.interface.retain(|kept| kept.output || !is_constant[kept.position]);
    for kept in graph.extra.interface.iter_mut().filter(|kept| !kept.output) {
        kept.position -= before(kept.position);
    }
    let entries = entries.into_iter().enumerate().filter(|(position, _)| is_constant[*position]);
    graph.extra.constant_inputs = entries.collect();
}

/// Adds the initializers to the inputs: those that were inputs, and with `all` the others too.
pub(super) fn declare(proto: &mut GraphProto, graph: &Graph, all: bool) {
    let free = graph.initializers().into_iter().filter(|&id| !graph.value(id).is_input());
    let free: Vec<_> = free.map(|id| graph.value(id)).collect();
    let new = |value: &crate::Value| {
        let ty = value.data.as_ref().and_then(|data| Type::of(&data.fact()));
        declared_to(&value.name, &Declared { ty, ..Declared::default() })
    };
    let mut written = HashSet::new();
    for (position, entry) in &graph.extra.constant_inputs {
        let Some(value) = free.iter().find(|value| value.name == entry.name()) else { continue };
        let fits = declared_from(entry).is_ok_and(|declared| declared.agrees(&value.fact));
        let position = (*position).min(proto.input.len());
        proto.input.insert(position, if fits { entry.clone() } else { new(value) });
        written.insert(value.name.as_str());
    }
    if all {
        let others = free.into_iter().filter(|value| !written.contains(value.name.as_str()));
        proto.input.extend(others.map(new));
    }
}
