//! Data flow through a graph: dominators and post-dominators of values.
//!
//! Only values that depend on an input are part of the flow. Reading the shape of a value (`Shape`, `Size`)
//! is not flow, since exporters read the batch size from any earlier activation.

use pare_graph::{Graph, NodeId, ValueId};
use petgraph::{
    algo::dominators::{Dominators, simple_fast},
    graph::{DiGraph, NodeIndex},
    visit::Reversed,
};
use std::collections::{HashMap, HashSet};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vertex {
    /// The predecessor of all inputs.
    Source,
    /// The successor of all outputs.
    Sink,
    Node,
    Value(ValueId),
}

/// The flow of data through a graph, with its dominators and post-dominators.
pub struct Flow {
    dag: DiGraph<Vertex, ()>,
    vertices: HashMap<ValueId, NodeIndex>,
    sink: NodeIndex,
    dominators: Dominators<NodeIndex>,
    postdominators: Dominators<NodeIndex>,
}

/// Returns whether a node reads only the shape of its input.
fn reads_shape(graph: &Graph, node: NodeId) -> bool {
    graph.node(node).is("Shape") || graph.node(node).is("Size")
}

/// Returns the values that flow into a node.
pub(super) fn read_by(graph: &Graph, node: NodeId) -> Vec<ValueId> {
    if reads_shape(graph, node) {
        return vec![];
    }
    graph.operands(node).collect()
}

/// Returns the nodes that a value flows into.
pub(super) fn readers(graph: &Graph, value: ValueId) -> impl Iterator<Item = NodeId> + '_ {
    graph.users(value).into_iter().map(|(node, _)| node).filter(|&node| !reads_shape(graph, node))
}

impl Flow {
    /// The flow through a graph. Subgraphs are part of their node.
    pub fn of(graph: &Graph) -> Self {
        let mut dag = DiGraph::new();
        let (source, sink) = (dag.add_node(Vertex::Source), dag.add_node(Vertex::Sink));
        let mut vertices = HashMap::new();
        let mut vertex = |value, dag: &mut DiGraph<Vertex, ()>| {
            *vertices.entry(value).or_insert_with(|| dag.add_node(Vertex::Value(value)))
        };
        let open = graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_none());
        for value in open.chain(graph.captures()) {
            let value = vertex(value, &mut dag);
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
                let value = vertex(value, &mut dag);
                dag.add_edge(value, node, ());
            }
            for value in graph.outputs_of(id).into_iter().flatten() {
                flowing.insert(value);
                let value = vertex(value, &mut dag);
                dag.add_edge(node, value, ());
            }
        }
        for &output in graph.outputs() {
            if flowing.contains(&output) {
                let output = vertex(output, &mut dag);
                dag.add_edge(output, sink, ());
            }
        }
        let dominators = simple_fast(&dag, source);
        let postdominators = simple_fast(Reversed(&dag), sink);
        Self { dag, vertices, sink, dominators, postdominators }
    }

    /// Returns whether a value depends on an input.
    pub fn flows(&self, value: ValueId) -> bool {
        self.vertices.contains_key(&value)
    }

    fn values<'f>(
        &'f self,
        of: &'f Dominators<NodeIndex>,
        at: NodeIndex,
    ) -> impl Iterator<Item = ValueId> + 'f {
        let value = |v: NodeIndex| if let Vertex::Value(id) = self.dag[v] { Some(id) } else { None };
        of.strict_dominators(at).into_iter().flatten().filter_map(value)
    }

    /// The immediate dominator of a value: the last value on all paths from the inputs to it.
    pub fn dominator(&self, value: ValueId) -> Option<ValueId> {
        self.values(&self.dominators, *self.vertices.get(&value)?).next()
    }

    /// Returns whether `by` post-dominates `value`: it is on all paths from `value` to an output.
    pub fn passes(&self, value: ValueId, by: ValueId) -> bool {
        let Some(&at) = self.vertices.get(&value) else { return false };
        self.values(&self.postdominators, at).any(|v| v == by)
    }

    /// The values on all paths from the inputs to the outputs, in order.
    pub fn cuts(&self) -> Vec<ValueId> {
        let mut cuts: Vec<_> = self.values(&self.dominators, self.sink).collect();
        cuts.reverse();
        cuts
    }
}
