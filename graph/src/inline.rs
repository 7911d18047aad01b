//! Inlining of subgraphs and functions.

use crate::{Attribute, Decline, Fact, Function, Graph, Node, Patch, Ref, Value, ValueId, expect};
use indexmap::IndexMap;
use std::{collections::HashMap, sync::Arc};

impl Patch {
    /// Adds the nodes and initializers of `body`. `given` maps the names of its inputs and captures to values
    /// (`None`: an omitted optional input). Returns the values that correspond to its outputs.
    pub fn inline(&mut self, body: &Graph, given: impl Fn(&str) -> Option<Ref>) -> Result<Vec<Ref>, Decline> {
        let mut refs = HashMap::<ValueId, Option<Ref>>::new();
        for &id in body.inputs() {
            refs.insert(id, given(&body.value(id).name));
        }
        for id in body.captures() {
            refs.insert(id, given(&body.value(id).name));
        }
        for id in body.initializers() {
            let value = body.value(id);
            expect(!value.is_input())?;
            refs.insert(id, Some(self.value(value.clone())));
        }
        for &id in body.nodes().iter() {
            let mut inputs = vec![];
            for input in body.inputs_of(id) {
                inputs.push(match input {
                    None => None,
                    // A value without a producer is an error of the model, which must be reported.
                    Some(input) => *refs.get(&input).ok_or(Decline::Mismatch)?,
                });
            }
            let mut captures = vec![];
            for captured in body.captured_by(id) {
                let value = refs.get(&captured).copied().flatten().ok_or(Decline::Mismatch)?;
                captures.push((body.value(captured).name.clone(), value));
            }
            let outputs = body.outputs_of(id);
            let values = outputs.iter().map(|output| output.map(|id| body.value(id).clone())).collect();
            let new = self.add_node(body.node(id).clone(), inputs, values, captures);
            refs.extend(outputs.into_iter().zip(new).filter_map(|(output, new)| Some((output?, new))));
        }
        let outputs = body.outputs().iter().map(|id| refs.get(id).copied().flatten());
        outputs.collect::<Option<_>>().ok_or(Decline::Mismatch)
    }
}

impl Function {
    /// The body specialized for one call in `graph`: references to attributes of the caller are replaced by
    /// their values, and the names in its subgraphs are unique in `graph`.
    pub fn instance(&self, call: &Node, graph: &Graph) -> Graph {
        let mut body = self.body.clone();
        body.bind_attributes(&call.attributes, &self.defaults);
        adopt(&mut body, graph, true);
        body
    }
}

impl Graph {
    /// Replaces references to attributes of the calling node by their values, or by the defaults of the
    /// function. An attribute that has neither is removed.
    pub(crate) fn bind_attributes(
        &mut self,
        given: &IndexMap<String, Attribute>,
        defaults: &IndexMap<String, Attribute>,
    ) {
        for &id in self.nodes().iter() {
            let is_bound = |a: &Attribute| !matches!(a, Attribute::Reference { .. }) && a.graphs().is_empty();
            if self.node(id).attributes.values().all(is_bound) {
                continue;
            }
            let attributes = &mut self.node_mut(id).attributes;
            let bound = std::mem::take(attributes).into_iter().filter_map(|(name, mut attribute)| {
                if let Attribute::Reference { name: of, .. } = &attribute {
                    let value = given.get(of).or_else(|| defaults.get(of))?;
                    return Some((name, value.clone()));
                }
                attribute.graphs_mut().iter_mut().for_each(|graph| graph.bind_attributes(given, defaults));
                Some((name, attribute))
            });
            *attributes = bound.collect();
        }
    }
}

/// Makes a graph and its subgraphs nested graphs of `outer`: with its operator sets and unique names.
fn adopt(graph: &mut Graph, outer: &Graph, is_top: bool) {
    graph.names = outer.names.clone();
    graph.opsets = Arc::clone(&outer.opsets);
    for id in graph.values().collect::<Vec<_>>() {
        // Facts and declarations hold for all calls, and may be less specific than those of this call.
        if is_top {
            let value = graph.value_mut(id);
            *value = Value { declared: None, ..value.clone() };
            if value.data.is_none() {
                value.fact = Fact::Unknown;
            }
        } else if !graph.value(id).is_captured() {
            let name = graph.fresh_name(&graph.value(id).name);
            graph.rename(id, name);
        }
    }
    for &id in graph.nodes().iter() {
        for attribute in graph.node_mut(id).attributes.values_mut() {
            attribute.graphs_mut().iter_mut().for_each(|inner| adopt(inner, outer, false));
        }
    }
}
