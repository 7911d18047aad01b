//! The inverse edits of a patch that is being applied.

use crate::{Attribute, Constant, Fact, Graph, NodeId, Value, ValueId};

/// Restores a graph to its state at the time of [`Journal::new`], but for the names that it has reserved.
pub(crate) struct Journal {
    /// Values that were added later are younger.
    clock: u64,
    edits: Vec<Inverse>,
    /// The entire graph, which replaces the edits.
    graph: Option<Box<Graph>>,
}

enum Inverse {
    SetFacts(Facts),
    SetValue(ValueId, Box<Value>),
    SetAttribute { node: NodeId, name: String, index: usize, value: Option<Attribute> },
    SetInput { node: NodeId, slot: usize, value: Option<ValueId>, count: u32 },
    RemoveNode(NodeId),
}

impl Journal {
    pub fn new(graph: &Graph) -> Self {
        Self { clock: graph.clock(), edits: vec![], graph: None }
    }

    /// Records the entire graph.
    pub fn keep_graph(&mut self, graph: &Graph) {
        self.graph = Some(graph.clone().into());
    }

    /// Records all facts, which inference may change.
    pub fn keep_facts(&mut self, graph: &Graph) {
        self.edits.push(Inverse::SetFacts(Facts::of(graph)));
    }

    pub fn set_value(&mut self, id: ValueId, old: Value) {
        self.edits.push(Inverse::SetValue(id, old.into()));
    }

    /// Records that an attribute, the `index`th of the node, had the value `old`.
    pub fn set_attribute(&mut self, node: NodeId, name: String, index: usize, old: Option<Attribute>) {
        self.edits.push(Inverse::SetAttribute { node, name, index, value: old });
    }

    /// Records that an input of a node with `count` input slots was `old`.
    pub fn set_input(&mut self, node: NodeId, slot: usize, old: Option<ValueId>, count: u32) {
        self.edits.push(Inverse::SetInput { node, slot, value: old, count });
    }

    pub fn add_node(&mut self, node: NodeId) {
        self.edits.push(Inverse::RemoveNode(node));
    }

    /// Restores the graph.
    pub fn undo(self, graph: &mut Graph) {
        if let Some(old) = self.graph {
            *graph = *old;
            return;
        }
        for edit in self.edits.into_iter().rev() {
            match edit {
                Inverse::SetFacts(facts) => facts.restore(graph),
                Inverse::SetValue(id, old) => *graph.value_mut(id) = *old,
                Inverse::SetAttribute { node, name, index, value } => {
                    let attributes = &mut graph.node_mut(node).attributes;
                    match value {
                        Some(old) if attributes.contains_key(&name) => drop(attributes.insert(name, old)),
                        Some(old) => drop(attributes.shift_insert(index, name, old)),
                        None => drop(attributes.shift_remove(&name)),
                    }
                }
                Inverse::SetInput { node, slot, value, count } => {
                    graph.connect_input(node, slot, value);
                    graph.node_mut(node).slots.0 = count;
                }
                Inverse::RemoveNode(node) => graph.remove_node(node),
            }
        }
        graph.rewind(self.clock);
    }
}

/// The facts of a graph and of its subgraphs.
struct Facts {
    values: Vec<ValueFacts>,
    subgraphs: Vec<(NodeId, Vec<Facts>)>,
}

struct ValueFacts {
    id: ValueId,
    fact: Fact,
    computed: Option<Fact>,
    /// Data of a captured value.
    captured: Option<Constant>,
}

impl Facts {
    fn of(graph: &Graph) -> Self {
        let values = graph.values().map(|id| {
            let value = graph.value(id);
            let computed = value.declared.as_ref().and_then(|d| d.computed.clone());
            let captured = value.data.clone().filter(|_| value.is_captured());
            ValueFacts { id, fact: value.fact.clone(), computed, captured }
        });
        let subgraphs = |&id: &NodeId| {
            let facts: Vec<_> = graph.node(id).subgraphs().map(Self::of).collect();
            (!facts.is_empty()).then_some((id, facts))
        };
        Self {
            values: values.collect(),
            subgraphs: graph.node_ids().filter_map(|id| subgraphs(&id)).collect(),
        }
    }

    fn restore(self, graph: &mut Graph) {
        for ValueFacts { id, fact, computed, captured } in self.values {
            let value = graph.value_mut(id);
            value.fact = fact;
            if let Some(declared) = &mut value.declared {
                declared.computed = computed;
            }
            if value.role.captured {
                value.data = captured;
            }
        }
        for (id, facts) in self.subgraphs {
            let subgraphs = graph.node_mut(id).attributes.values_mut().flat_map(Attribute::graphs_mut);
            subgraphs.zip(facts).for_each(|(subgraph, facts)| facts.restore(subgraph));
        }
    }
}
