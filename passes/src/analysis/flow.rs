//! How data flows through a graph: what every way to an output passes, and what every way from a value passes.
//!
//! Only what depends on an input counts. A value whose shape alone is asked for (`Shape`, `Size`) does not flow there:
//! exporters ask any earlier activation for the batch size.

use pare_graph::{Graph, NodeId, ValueId};
use petgraph::{
    algo::dominators::{Dominators, simple_fast},
    graph::{DiGraph, NodeIndex},
    visit::Reversed,
};
use std::collections::{HashMap, HashSet};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vertex {
    /// All open inputs hang on this one.
    Source,
    /// All outputs lead here.
    Sink,
    Node,
    Value(ValueId),
}

/// The flow of data through a graph, with its dominators and post-dominators.
pub struct Flow {
    dag: DiGraph<Vertex, ()>,
    places: HashMap<ValueId, NodeIndex>,
    sink: NodeIndex,
    dominators: Dominators<NodeIndex>,
    postdominators: Dominators<NodeIndex>,
}

/// Whether a node looks at no more than the shape of what it reads.
fn asks_for_shape(graph: &Graph, node: NodeId) -> bool {
    graph.node(node).is("Shape") || graph.node(node).is("Size")
}

/// What flows into a node.
pub(super) fn read_by(graph: &Graph, node: NodeId) -> Vec<ValueId> {
    if asks_for_shape(graph, node) {
        return vec![];
    }
    graph.operands(node).collect()
}

/// The nodes that a value flows into.
pub(super) fn readers(graph: &Graph, value: ValueId) -> impl Iterator<Item = NodeId> + '_ {
    graph.users(value).into_iter().map(|(node, _)| node).filter(|&node| !asks_for_shape(graph, node))
}

impl Flow {
    /// The flow through a graph, subgraphs being part of their node.
    pub fn of(graph: &Graph) -> Self {
        let mut dag = DiGraph::new();
        let (source, sink) = (dag.add_node(Vertex::Source), dag.add_node(Vertex::Sink));
        let mut places = HashMap::new();
        let mut place = |value, dag: &mut DiGraph<Vertex, ()>| {
            *places.entry(value).or_insert_with(|| dag.add_node(Vertex::Value(value)))
        };
        let open = graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_none());
        for value in open.chain(graph.captures()) {
            let value = place(value, &mut dag);
            dag.add_edge(source, value, ());
        }
        let mut flowing: HashSet<ValueId> = graph.inputs().iter().copied().chain(graph.captures()).collect();
        flowing.retain(|&v| graph.value(v).data.is_none());
        for &id in graph.nodes().iter() {
            let read: Vec<_> = read_by(graph, id).into_iter().filter(|v| flowing.contains(v)).collect();
            if read.is_empty() {
                continue;
            }
            let node = dag.add_node(Vertex::Node);
            for value in read {
                let value = place(value, &mut dag);
                dag.add_edge(value, node, ());
            }
            for value in graph.outputs_of(id).into_iter().flatten() {
                flowing.insert(value);
                let value = place(value, &mut dag);
                dag.add_edge(node, value, ());
            }
        }
        for &output in graph.outputs() {
            if flowing.contains(&output) {
                let output = place(output, &mut dag);
                dag.add_edge(output, sink, ());
            }
        }
        let dominators = simple_fast(&dag, source);
        let postdominators = simple_fast(Reversed(&dag), sink);
        Self { dag, places, sink, dominators, postdominators }
    }

    /// Whether a value depends on an input.
    pub fn flows(&self, value: ValueId) -> bool {
        self.places.contains_key(&value)
    }

    fn values<'f>(
        &'f self,
        of: &'f Dominators<NodeIndex>,
        at: NodeIndex,
    ) -> impl Iterator<Item = ValueId> + 'f {
        let value = |v: NodeIndex| if let Vertex::Value(id) = self.dag[v] { Some(id) } else { None };
        of.strict_dominators(at).into_iter().flatten().filter_map(value)
    }

    /// The last value that all data passes on its way to this one.
    pub fn dominator(&self, value: ValueId) -> Option<ValueId> {
        self.values(&self.dominators, *self.places.get(&value)?).next()
    }

    /// Whether all that depends on `value` and reaches an output passes `by`.
    pub fn passes(&self, value: ValueId, by: ValueId) -> bool {
        let Some(&at) = self.places.get(&value) else { return false };
        self.values(&self.postdominators, at).any(|v| v == by)
    }

    /// The articulation tensors: values that all data passes on its way to the outputs, in order.
    pub fn cuts(&self) -> Vec<ValueId> {
        let mut cuts: Vec<_> = self.values(&self.dominators, self.sink).collect();
        cuts.reverse();
        cuts
    }
}
