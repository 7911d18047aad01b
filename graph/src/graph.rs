//! The graph: nodes and values as vertices of one directed graph, uses as its edges.

pub(crate) mod edit;

use crate::{Metadata, Node, Value, extra::GraphExtra, node::standard_domain};
use petgraph::{
    Direction,
    stable_graph::{NodeIndex, StableDiGraph},
    visit::EdgeRef,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

macro_rules! id {
    ($(#[$doc:meta])* $Id:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Id { index: u32, generation: u32 }
        impl $Id {
            pub(crate) fn index(self) -> NodeIndex { NodeIndex::new(self.index as usize) }
        }
    };
}
id! {
    /// A node of a graph. The generation distinguishes it from later nodes with the same, recycled index.
    NodeId
}
id! {
    /// A value of a graph. The generation distinguishes it from later values with the same, recycled index.
    ValueId
}

/// The use of a value by a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// The value is this input of the node.
    Input(u32),
    /// The value is this output of the node.
    Output(u32),
    /// The value is used inside a subgraph of the node.
    Capture,
}

#[derive(Clone, Debug)]
enum Vertex {
    Node(Box<Node>),
    Value(Box<Value>),
}

/// All names in a model, shared by its graphs: new names are unique in nested graphs too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<Mutex<HashSet<String>>>);

impl Names {
    pub(crate) fn take(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into())
    }

    /// Returns true if both are the same pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// An independent copy of the pool.
    pub(crate) fn detached(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())))
    }
}

/// A graph of nodes and values (ONNX `GraphProto`, or the body of a `FunctionProto`).
///
/// ```
/// use pare_graph::text;
///
/// let graph = text::parse_graph(
///     "g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { a = Mul(x, w) y = Relu(a) }",
///     18,
/// )?;
/// let a = graph.find("a").unwrap();
/// let (mul, _) = graph.producer(a).unwrap();
/// assert_eq!(graph.node(mul).op, "Mul");
/// assert_eq!(graph.users(a).len(), 1);
/// assert!(graph.value_ref(graph.find("w").unwrap()).is_constant());
/// # Ok::<(), pare_graph::text::TextError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Graph {
    dag: StableDiGraph<Vertex, Edge>,
    generations: Vec<u32>,
    by_name: HashMap<String, ValueId>,
    pub(crate) names: Names,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    next: u64,
    order: OnceLock<Arc<[NodeId]>>,
    /// Operator set versions by domain (`""` is the standard one), as the model or function imports them.
    pub opsets: Arc<Vec<(String, i64)>>,
    /// Name of the graph.
    pub name: Option<String>,
    /// Doc string.
    pub doc: Option<String>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// True if the graph is the body of a function, whose constants are `Constant` nodes in the file.
    pub is_function: bool,
    pub(crate) extra: GraphExtra,
}

/// The reason why a graph cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Two values have the same name.
    #[error("two values are named `{0}`")]
    DuplicateName(String),
    /// A value has two producers.
    #[error("`{value}` has two producers, {first} and {second}")]
    MultipleProducers {
        /// The value.
        value: String,
        /// The first producer.
        first: String,
        /// The second producer.
        second: String,
    },
    /// Nodes depend on each other.
    #[error("the nodes form a cycle through {0}")]
    Cycle(String),
}

impl Graph {
    /// An empty graph of a model that imports these operator sets.
    pub fn new(opsets: Arc<Vec<(String, i64)>>) -> Self {
        Self { opsets, ..Self::default() }
    }

    /// An empty graph nested in `self`: same operator sets, same pool of names.
    #[must_use]
    pub fn nested(&self) -> Self {
        Self { opsets: self.opsets.clone(), names: self.names.clone(), ..Self::default() }
    }

    /// The version of the operator set that `domain` is imported with.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let domain = standard_domain(domain);
        self.opsets.iter().find(|(d, _)| standard_domain(d) == domain).map(|(_, version)| *version)
    }

    /// Returns a node.
    ///
    /// # Panics
    ///
    /// If the node has been removed.
    pub fn node(&self, id: NodeId) -> &Node {
        match self.dag.node_weight(id.index()) {
            Some(Vertex::Node(node)) if self.is_current(id.index, id.generation) => node,
            _ => unreachable!("a node id outlived its node"),
        }
    }

    /// Returns a value.
    ///
    /// # Panics
    ///
    /// If the value has been removed.
    pub fn value(&self, id: ValueId) -> &Value {
        match self.dag.node_weight(id.index()) {
            Some(Vertex::Value(value)) if self.is_current(id.index, id.generation) => value,
            _ => unreachable!("a value id outlived its value"),
        }
    }

    fn is_current(&self, index: u32, generation: u32) -> bool {
        self.generations.get(index as usize) == Some(&generation)
    }

    /// Returns true if the node exists and has not been removed.
    pub fn has_node(&self, id: NodeId) -> bool {
        self.is_current(id.index, id.generation)
            && matches!(self.dag.node_weight(id.index()), Some(Vertex::Node(_)))
    }

    /// Returns true if the value exists and has not been removed.
    pub fn has_value(&self, id: ValueId) -> bool {
        self.is_current(id.index, id.generation)
            && matches!(self.dag.node_weight(id.index()), Some(Vertex::Value(_)))
    }

    /// The inputs of the graph, in order. The caller may override an initializer among them.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The outputs of the graph, in order; may contain duplicates.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The value with this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// The number of nodes, without those in subgraphs.
    pub fn node_count(&self) -> usize {
        self.node_ids().count()
    }

    pub(crate) fn node_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dag.node_indices().filter(|&i| matches!(self.dag[i], Vertex::Node(_))).map(|i| self.node_id(i))
    }

    /// All values, in unspecified order.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.dag.node_indices().filter(|&i| matches!(self.dag[i], Vertex::Value(_))).map(|i| self.value_id(i))
    }

    /// The initializers, in the order in which they are written.
    pub fn initializers(&self) -> Vec<ValueId> {
        let mut ids: Vec<_> =
            self.values().filter(|&v| self.value(v).data.is_some() && !self.value(v).role.captured).collect();
        ids.sort_by_key(|&v| self.value(v).seq);
        ids
    }

    /// The values of outer graphs that this graph uses.
    pub fn captures(&self) -> Vec<ValueId> {
        let mut ids: Vec<_> = self.values().filter(|&v| self.value(v).role.captured).collect();
        ids.sort_by_key(|&v| self.value(v).seq);
        ids
    }

    fn node_id(&self, index: NodeIndex) -> NodeId {
        NodeId { index: index.index() as u32, generation: self.generations[index.index()] }
    }

    fn value_id(&self, index: NodeIndex) -> ValueId {
        ValueId { index: index.index() as u32, generation: self.generations[index.index()] }
    }

    /// Input `slot` of a node, unless it is omitted.
    pub fn input(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        let mut edges = self.dag.edges_directed(id.index(), Direction::Incoming);
        let is_slot = |e: &Edge| matches!(e, Edge::Input(s) if *s as usize == slot);
        edges.find(|e| is_slot(e.weight())).map(|e| self.value_id(e.source()))
    }

    /// Output `slot` of a node, unless it is omitted.
    pub fn output(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        let is_slot = |e: &Edge| matches!(e, Edge::Output(s) if *s as usize == slot);
        self.dag.edges(id.index()).find(|e| is_slot(e.weight())).map(|e| self.value_id(e.target()))
    }

    /// The inputs of a node by slot; an omitted one is `None`.
    pub fn inputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).slots.0 as usize];
        for edge in self.dag.edges_directed(id.index(), Direction::Incoming) {
            if let Edge::Input(slot) = *edge.weight() {
                slots[slot as usize] = Some(self.value_id(edge.source()));
            }
        }
        slots
    }

    /// The outputs of a node by slot; an omitted one is `None`.
    pub fn outputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).slots.1 as usize];
        for edge in self.dag.edges(id.index()) {
            if let Edge::Output(slot) = *edge.weight() {
                slots[slot as usize] = Some(self.value_id(edge.target()));
            }
        }
        slots
    }

    /// The values that the subgraphs of a node capture from this graph.
    pub fn captured_by(&self, id: NodeId) -> Vec<ValueId> {
        let incoming = self.dag.edges_directed(id.index(), Direction::Incoming);
        let mut ids: Vec<_> =
            incoming.filter(|e| *e.weight() == Edge::Capture).map(|e| self.value_id(e.source())).collect();
        ids.sort_by_key(|&v| self.value(v).seq);
        ids
    }

    /// The producer of a value, with the output slot.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        let edge = self.dag.edges_directed(id.index(), Direction::Incoming).next()?;
        match *edge.weight() {
            Edge::Output(slot) => Some((self.node_id(edge.source()), slot as usize)),
            Edge::Input(_) | Edge::Capture => None,
        }
    }

    /// The uses of a value by nodes, in a fixed order. Outputs of the graph are not included.
    pub fn users(&self, id: ValueId) -> Vec<(NodeId, Edge)> {
        let mut uses: Vec<_> =
            self.dag.edges(id.index()).map(|e| (self.node_id(e.target()), *e.weight())).collect();
        uses.sort_by_key(|&(node, edge)| (self.node(node).rank, edge));
        uses
    }

    /// The number of uses of a value by nodes, subgraphs and outputs of the graph.
    pub fn use_count(&self, id: ValueId) -> usize {
        let as_output =
            if self.value(id).role.output { self.outputs.iter().filter(|&&o| o == id).count() } else { 0 };
        self.dag.edges(id.index()).count() + as_output
    }

    /// The nodes in topological order, ties in file order. Nodes that are on a cycle or depend on one are
    /// missing; see [`Graph::unordered_nodes`].
    pub fn nodes(&self) -> Arc<[NodeId]> {
        self.order.get_or_init(|| self.topological_order().into()).clone()
    }

    /// Kahn's algorithm with a heap ordered by rank, which preserves a valid order.
    fn topological_order(&self) -> Vec<NodeId> {
        let mut missing = HashMap::<NodeId, usize>::new();
        let mut ready = BinaryHeap::new();
        for id in self.node_ids() {
            let incoming = self.dag.edges_directed(id.index(), Direction::Incoming);
            let computed = incoming.filter(|e| self.producer(self.value_id(e.source())).is_some()).count();
            match computed {
                0 => ready.push(Reverse((self.node(id).rank, id))),
                n => drop(missing.insert(id, n)),
            }
        }
        let mut order = Vec::with_capacity(ready.len() + missing.len());
        while let Some(Reverse((_, id))) = ready.pop() {
            order.push(id);
            for output in self.dag.neighbors(id.index()) {
                for edge in self.dag.edges(output) {
                    let user = self.node_id(edge.target());
                    let Some(n) = missing.get_mut(&user) else { continue };
                    *n -= 1;
                    if *n == 0 {
                        ready.push(Reverse((self.node(user).rank, user)));
                    }
                }
            }
        }
        order
    }

    /// The nodes that are on a cycle or depend on one; empty for a valid graph.
    pub fn unordered_nodes(&self) -> Vec<NodeId> {
        let ordered: HashSet<_> = self.nodes().iter().copied().collect();
        let mut unordered: Vec<_> = self.node_ids().filter(|id| !ordered.contains(id)).collect();
        unordered.sort_by_key(|&id| self.node(id).rank);
        unordered
    }

    /// Returns true if `to` depends on the node `from`.
    pub(crate) fn reaches(&self, from: NodeId, to: ValueId) -> bool {
        let (mut queue, mut seen) = (vec![from.index()], HashSet::new());
        while let Some(index) = queue.pop() {
            if index == to.index() {
                return true;
            }
            if seen.insert(index) {
                queue.extend(self.dag.neighbors(index));
            }
        }
        false
    }

    /// Operator and name of a node for messages; its first output if it has no name.
    pub fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        match (&node.name, self.outputs_of(id).iter().flatten().next()) {
            (Some(name), _) if !name.is_empty() => format!("{} `{name}`", node.op),
            (_, Some(&output)) => format!("{} producing `{}`", node.op, self.value(output).name),
            _ => node.op.clone(),
        }
    }
}

fn describe(node: &Node) -> String {
    match &node.name {
        Some(name) if !name.is_empty() => format!("{} `{name}`", node.op),
        _ => node.op.clone(),
    }
}
