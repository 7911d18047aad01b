//! The graph: nodes and values as vertices of one directed graph, uses as its edges.

use crate::{
    Attribute, Fact, SparseTensor, Tensor, Type,
    onnx::{GraphExtra, NodeExtra},
};
use indexmap::IndexMap;
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
    /// A node of a graph. The generation tells it from later nodes in the same, recycled place.
    NodeId
}
id! {
    /// A value of a graph. The generation tells it from later values in the same, recycled place.
    ValueId
}

/// How an edge connects a value and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// The value is this input of the node.
    Input(u32),
    /// The value is this output of the node.
    Output(u32),
    /// The value is used inside a subgraph of the node.
    Capture,
}

/// Key and value of a metadata entry; the file may omit either.
pub type Metadata = Vec<(Option<String>, Option<String>)>;

/// An operator application.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Operator name, such as `Conv`.
    pub op: String,
    /// Domain of the operator as written in the file; standard if absent, empty or `ai.onnx`.
    pub domain: Option<String>,
    /// Overload of a model-local function.
    pub overload: Option<String>,
    /// Name of the node, free text.
    pub name: Option<String>,
    /// Doc string.
    pub doc: Option<String>,
    /// Attributes in file order.
    pub attributes: IndexMap<String, Attribute>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// Place in the file. Along every edge ranks grow, so sorting by rank is a topological order.
    pub(crate) rank: Rank,
    /// How many inputs and outputs the node lists, omitted ones at the end included.
    pub(crate) slots: (u32, u32),
    pub(crate) extra: NodeExtra,
}

/// Position in the file, then order of creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub u64, pub u64);

impl Node {
    /// A node of the standard domain.
    pub fn new(op: &str) -> Self {
        Self { op: op.into(), ..Self::default() }
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Self {
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The domain with its standard spelling: empty for the ONNX operators.
    pub fn domain(&self) -> &str {
        standard_domain(self.domain.as_deref().unwrap_or(""))
    }

    /// Whether it is the standard operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.op == op && self.domain().is_empty()
    }

    /// All subgraphs in its attributes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.values().flat_map(Attribute::graphs)
    }
}

/// A value: an input, an initializer, an output of a node, or captured from an outer graph.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// Its name, unique in the graph.
    pub name: String,
    /// What is known about it.
    pub fact: Fact,
    /// Its entry among the file's inputs, outputs or `value_info`, if it has one.
    pub declared: Option<Declared>,
    /// Its elements, if it is an initializer (or a captured one: then they belong to the outer graph).
    pub data: Option<Constant>,
    pub(crate) role: Role,
    /// Order of creation: initializers are written in this order.
    pub(crate) seq: u64,
}

/// A declaration (ONNX `ValueInfoProto`) apart from the name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// The type, if the entry has one.
    pub ty: Option<Type>,
    /// Doc string.
    pub doc: Option<String>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// Its place in `value_info`; `None` for inputs and outputs that are declared nowhere else.
    pub(crate) order: Option<u64>,
    /// What the nodes compute as this output, as of the first inference.
    pub(crate) computed: Option<Fact>,
}

/// The elements of an initializer.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// A dense tensor.
    Dense(Tensor),
    /// A sparse one (ONNX `sparse_initializer`).
    Sparse(SparseTensor),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Role {
    pub input: bool,
    pub output: bool,
    pub captured: bool,
}

impl Value {
    /// A value of which only the name is known.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// An initializer.
    pub fn constant(name: &str, tensor: Tensor) -> Self {
        let fact = Fact::of_constant(&tensor);
        Self { name: name.into(), fact, data: Some(Constant::Dense(tensor)), ..Self::default() }
    }

    /// Whether it is an input of the graph.
    pub fn is_input(&self) -> bool {
        self.role.input
    }

    /// Whether it is an output of the graph.
    pub fn is_output(&self) -> bool {
        self.role.output
    }

    /// Whether it belongs to an outer graph.
    pub fn is_captured(&self) -> bool {
        self.role.captured
    }

    /// The dense elements of an initializer that nobody may override.
    pub fn tensor(&self) -> Option<&Tensor> {
        match &self.data {
            Some(Constant::Dense(tensor)) if !self.role.input => Some(tensor),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
enum Vertex {
    Node(Box<Node>),
    Value(Box<Value>),
}

/// Names taken anywhere in a model, so that a new one is new in every nested graph too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Arc<Mutex<HashSet<String>>>);

impl Names {
    pub(crate) fn take(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into())
    }

    /// Whether both are one pool.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A pool of the same names, from which others can be taken.
    pub(crate) fn detached(&self) -> Self {
        Self(Arc::new(Mutex::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())))
    }
}

/// A graph of nodes and values (ONNX `GraphProto`, or the body of a `FunctionProto`).
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
    /// Whether it is the body of a function: it has no initializers in the file, constants are nodes.
    pub is_function: bool,
    pub(crate) extra: GraphExtra,
}

/// A graph that cannot be built or changed this way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Two values of one name.
    #[error("the name `{0}` is given to two values")]
    DuplicateName(String),
    /// A node makes a value that something else makes too.
    #[error("`{value}` has two producers, {first} and by {second}")]
    MultipleProducers {
        /// The value.
        value: String,
        /// What made it first.
        first: String,
        /// What makes it again.
        second: String,
    },
    /// Nodes that need each other.
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
        let wanted = standard_domain(domain);
        self.opsets.iter().find(|(d, _)| standard_domain(d) == wanted).map(|(_, version)| *version)
    }

    // ---- looking

    /// The node. Panics if it is no longer there: ids do not outlive the node they name.
    pub fn node(&self, id: NodeId) -> &Node {
        match self.dag.node_weight(id.index()) {
            Some(Vertex::Node(node)) if self.is_current(id.index, id.generation) => node,
            _ => unreachable!("a node id outlived its node"),
        }
    }

    /// The value. Panics if it is no longer there: ids do not outlive the value they name.
    pub fn value(&self, id: ValueId) -> &Value {
        match self.dag.node_weight(id.index()) {
            Some(Vertex::Value(value)) if self.is_current(id.index, id.generation) => value,
            _ => unreachable!("a value id outlived its value"),
        }
    }

    fn is_current(&self, index: u32, generation: u32) -> bool {
        self.generations.get(index as usize) == Some(&generation)
    }

    /// Whether the node is still there.
    pub fn has_node(&self, id: NodeId) -> bool {
        self.is_current(id.index, id.generation)
            && matches!(self.dag.node_weight(id.index()), Some(Vertex::Node(_)))
    }

    /// Whether the value is still there.
    pub fn has_value(&self, id: ValueId) -> bool {
        self.is_current(id.index, id.generation)
            && matches!(self.dag.node_weight(id.index()), Some(Vertex::Value(_)))
    }

    /// Inputs of the graph, in order. An initializer among them may be overridden by the caller.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Outputs of the graph, in order; a value may stand there twice.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The value of this name.
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

    /// All values, in no particular order.
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

    /// Values of outer graphs that are used here.
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

    /// Inputs of a node by slot; an omitted one is `None`.
    pub fn inputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).slots.0 as usize];
        for edge in self.dag.edges_directed(id.index(), Direction::Incoming) {
            if let Edge::Input(slot) = *edge.weight() {
                slots[slot as usize] = Some(self.value_id(edge.source()));
            }
        }
        slots
    }

    /// Outputs of a node by slot; an omitted one is `None`.
    pub fn outputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).slots.1 as usize];
        for edge in self.dag.edges(id.index()) {
            if let Edge::Output(slot) = *edge.weight() {
                slots[slot as usize] = Some(self.value_id(edge.target()));
            }
        }
        slots
    }

    /// The values that the subgraphs of a node take from this graph.
    pub fn captured_by(&self, id: NodeId) -> Vec<ValueId> {
        let incoming = self.dag.edges_directed(id.index(), Direction::Incoming);
        let mut ids: Vec<_> =
            incoming.filter(|e| *e.weight() == Edge::Capture).map(|e| self.value_id(e.source())).collect();
        ids.sort_by_key(|&v| self.value(v).seq);
        ids
    }

    /// The node that makes a value, and as which output.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        let edge = self.dag.edges_directed(id.index(), Direction::Incoming).next()?;
        match *edge.weight() {
            Edge::Output(slot) => Some((self.node_id(edge.source()), slot as usize)),
            Edge::Input(_) | Edge::Capture => None,
        }
    }

    /// The uses of a value by nodes, in a fixed order; being a graph output is none of them.
    pub fn users(&self, id: ValueId) -> Vec<(NodeId, Edge)> {
        let mut uses: Vec<_> =
            self.dag.edges(id.index()).map(|e| (self.node_id(e.target()), *e.weight())).collect();
        uses.sort_by_key(|&(node, wire)| (self.node(node).rank, wire));
        uses
    }

    /// How often a value is used: by nodes, in subgraphs, and as a graph output.
    pub fn use_count(&self, id: ValueId) -> usize {
        let as_output =
            if self.value(id).role.output { self.outputs.iter().filter(|&&o| o == id).count() } else { 0 };
        self.dag.edges(id.index()).count() + as_output
    }

    /// The nodes in topological order, ties in the order of the file. If there is a cycle, the nodes on it
    /// and behind it are missing; `check` tells.
    pub fn nodes(&self) -> Arc<[NodeId]> {
        self.order.get_or_init(|| self.topological_order().into()).clone()
    }

    /// Kahn's algorithm with a heap over the ranks, so that an order that was valid stays.
    fn topological_order(&self) -> Vec<NodeId> {
        let mut missing = HashMap::<NodeId, usize>::new();
        let mut ready = BinaryHeap::new();
        for id in self.node_ids() {
            let incoming = self.dag.edges_directed(id.index(), Direction::Incoming);
            let made = incoming.filter(|e| self.producer(self.value_id(e.source())).is_some()).count();
            match made {
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

    /// Give every node the rank of its topological position, so that ranks grow along every edge.
    pub(crate) fn renumber(&mut self) {
        for (place, &id) in self.nodes().iter().enumerate() {
            self.node_mut(id).rank = Rank((place as u64 + 1) << 20, 0);
        }
        self.next = self.next.max(self.node_count() as u64 + 1);
    }

    /// The nodes on a cycle or behind one; empty for a sound graph.
    pub fn unordered_nodes(&self) -> Vec<NodeId> {
        let ordered: HashSet<_> = self.nodes().iter().copied().collect();
        let mut rest: Vec<_> = self.node_ids().filter(|id| !ordered.contains(id)).collect();
        rest.sort_by_key(|&id| self.node(id).rank);
        rest
    }

    // ---- building: what a reader needs; passes change graphs by patches

    fn insert(&mut self, vertex: Vertex) -> NodeIndex {
        self.order.take();
        let index = self.dag.add_node(vertex);
        if self.generations.len() <= index.index() {
            self.generations.resize(index.index() + 1, 0);
        }
        index
    }

    /// Grows with everything that is added.
    pub(crate) fn clock(&self) -> u64 {
        self.next
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Add a value; its name must be new in this graph.
    pub fn add_value(&mut self, mut value: Value) -> Result<ValueId, GraphError> {
        if self.by_name.contains_key(&value.name) {
            return Err(GraphError::DuplicateName(value.name));
        }
        value.seq = self.tick();
        value.role = Role { captured: value.role.captured, ..Role::default() };
        self.names.take(&value.name);
        let name = value.name.clone();
        let index = self.insert(Vertex::Value(Box::new(value)));
        let id = self.value_id(index);
        self.by_name.insert(name, id);
        Ok(id)
    }

    /// The value of this name; if this graph has none, one captured from an outer graph.
    pub fn find_or_capture(&mut self, name: &str) -> ValueId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let role = Role { captured: true, ..Role::default() };
        let added = self.add_value(Value { name: name.into(), role, ..Value::default() });
        added.expect("the name was looked up just now")
    }

    /// Add a node behind all others. Values that its subgraphs capture become uses of this graph's values,
    /// and where this graph has none of that name, captures of its own.
    pub fn add_node(
        &mut self,
        node: Node,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
    ) -> Result<NodeId, GraphError> {
        let place = self.tick();
        self.add_node_at(node, Rank(place << 20, 0), inputs, outputs)
    }

    pub(crate) fn add_node_at(
        &mut self,
        mut node: Node,
        rank: Rank,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
    ) -> Result<NodeId, GraphError> {
        for &output in outputs.iter().flatten() {
            let first = match self.producer(output) {
                Some((producer, _)) => self.describe(producer),
                None if self.value(output).role.input => "the graph's inputs".into(),
                None if self.value(output).data.is_some() => "an initializer".into(),
                None => continue,
            };
            let value = self.value(output).name.clone();
            return Err(GraphError::MultipleProducers { value, first, second: describe(&node) });
        }
        node.rank = rank;
        node.slots = (inputs.len() as u32, outputs.len() as u32);
        let index = self.insert(Vertex::Node(Box::new(node)));
        let id = self.node_id(index);
        for (slot, value) in inputs.iter().enumerate() {
            if let Some(value) = value {
                self.dag.add_edge(value.index(), index, Edge::Input(slot as u32));
            }
        }
        for (slot, value) in outputs.iter().enumerate() {
            if let Some(value) = value {
                self.dag.add_edge(index, value.index(), Edge::Output(slot as u32));
            }
        }
        self.connect_captures(id);
        Ok(id)
    }

    /// Make the capture edges of a node equal to what its subgraphs capture.
    pub(crate) fn connect_captures(&mut self, id: NodeId) {
        self.order.take();
        let old: Vec<_> = self
            .dag
            .edges_directed(id.index(), Direction::Incoming)
            .filter(|e| *e.weight() == Edge::Capture)
            .map(|e| e.id())
            .collect();
        for edge in old {
            self.dag.remove_edge(edge);
        }
        let mut wanted = vec![];
        for graph in self.node(id).subgraphs() {
            wanted.extend(graph.captures().iter().map(|&v| graph.value(v).name.clone()));
        }
        let mut seen = HashSet::new();
        for name in wanted {
            if seen.insert(name.clone()) {
                let value = self.find_or_capture(&name);
                self.dag.add_edge(value.index(), id.index(), Edge::Capture);
            }
        }
    }

    /// Make `value` the next input of the graph.
    pub fn add_input(&mut self, value: ValueId) {
        self.value_mut(value).role.input = true;
        self.inputs.push(value);
    }

    /// Make `value` the next output of the graph.
    pub fn add_output(&mut self, value: ValueId) {
        self.value_mut(value).role.output = true;
        self.outputs.push(value);
    }

    /// Take values out of the outputs. What only these needed stays until [`Graph::sweep`].
    pub fn remove_outputs(&mut self, gone: &[ValueId]) {
        self.outputs.retain(|v| !gone.contains(v));
        gone.iter().for_each(|&v| self.value_mut(v).role.output = false);
    }

    /// Take values out of the inputs that nothing uses; others stay.
    pub fn remove_inputs(&mut self, gone: &[ValueId]) {
        let idle: Vec<_> = gone.iter().copied().filter(|&v| self.use_count(v) == 0).collect();
        self.inputs.retain(|v| !idle.contains(v));
        idle.iter().for_each(|&v| self.value_mut(v).role.input = false);
        self.remove_unused(idle);
    }

    /// Give a value, an input or output too, another name; an error if that is taken.
    pub fn rename_value(&mut self, id: ValueId, name: &str) -> Result<(), GraphError> {
        if self.by_name.contains_key(name) {
            return Err(GraphError::DuplicateName(name.into()));
        }
        self.names.take(name);
        self.rename(id, name.into());
        Ok(())
    }

    /// Drop initializers from the inputs, so that a caller can no longer override them.
    pub fn freeze_initializers(&mut self) {
        let (frozen, kept) = self.inputs.iter().partition(|&&v| self.value(v).data.is_some());
        self.inputs = kept;
        let frozen: Vec<ValueId> = frozen;
        frozen.into_iter().for_each(|v| self.value_mut(v).role.input = false);
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match self.dag.node_weight_mut(id.index()) {
            Some(Vertex::Node(node)) => node,
            _ => unreachable!("a node id outlived its node"),
        }
    }

    /// The value, to be described: its fact, declaration or data. Its name and role stay.
    pub(crate) fn value_mut(&mut self, id: ValueId) -> &mut Value {
        match self.dag.node_weight_mut(id.index()) {
            Some(Vertex::Value(value)) => value,
            _ => unreachable!("a value id outlived its value"),
        }
    }

    /// Set what is known about a value.
    pub fn set_fact(&mut self, id: ValueId, fact: Fact) {
        self.value_mut(id).fact = fact;
    }

    /// Set how a value is declared in the file.
    pub fn set_declared(&mut self, id: ValueId, declared: Option<Declared>) {
        self.value_mut(id).declared = declared;
    }

    /// Take names from this pool, in nested graphs too.
    pub(crate) fn set_names(&mut self, names: &Names) {
        self.names = names.clone();
        for vertex in self.dag.node_weights_mut() {
            if let Vertex::Node(node) = vertex {
                let nested = node.attributes.values_mut().flat_map(Attribute::graphs_mut);
                nested.for_each(|graph| graph.set_names(names));
            }
        }
    }

    /// A name that no value in the model has, made from `hint`.
    pub fn fresh_name(&self, hint: &str) -> String {
        let hint = if hint.is_empty() { "value" } else { hint };
        if self.names.take(hint) {
            return hint.into();
        }
        let tries = (1_u64..).map(|i| format!("{hint}_{i}"));
        tries.into_iter().find(|name| self.names.take(name)).expect("there are more numbers than names")
    }

    /// Take out the subgraphs of a node, change them, and put them back; captures follow.
    pub fn with_subgraphs<R>(&mut self, id: NodeId, change: impl FnOnce(&mut [&mut Graph], &Self) -> R) -> R {
        let mut attributes = std::mem::take(&mut self.node_mut(id).attributes);
        let mut graphs: Vec<&mut Graph> = attributes.values_mut().flat_map(Attribute::graphs_mut).collect();
        let result = change(&mut graphs, self);
        self.node_mut(id).attributes = attributes;
        self.connect_captures(id);
        result
    }

    // ---- changing: what `apply` is made of

    pub(crate) fn rename(&mut self, id: ValueId, name: String) {
        let old = std::mem::replace(&mut self.value_mut(id).name, name.clone());
        self.by_name.remove(&old);
        self.by_name.insert(name.clone(), id);
        for (user, wire) in self.users(id) {
            if wire == Edge::Capture {
                self.rename_captures(user, &old, &name);
            }
        }
    }

    pub(crate) fn rename_captures(&mut self, node: NodeId, old: &str, new: &str) {
        rename_captures(self.node_mut(node), old, new);
    }

    /// Every use of `old`, by nodes other than `except` and as output of the graph, becomes one of `new`.
    pub(crate) fn redirect(&mut self, old: ValueId, new: ValueId, except: &[NodeId]) {
        self.order.take();
        let (from, to) = (self.value(old).name.clone(), self.value(new).name.clone());
        let edges: Vec<_> = self.dag.edges(old.index()).map(|e| (e.id(), e.target(), *e.weight())).collect();
        for (edge, target, wire) in edges {
            let user = self.node_id(target);
            if except.contains(&user) {
                continue;
            }
            if wire == Edge::Capture {
                self.rename_captures(user, &from, &to);
            }
            self.dag.remove_edge(edge);
            let both = wire == Edge::Capture
                && self.dag.edges_connecting(new.index(), target).any(|e| *e.weight() == wire);
            if !both {
                self.dag.add_edge(new.index(), target, wire);
            }
        }
        for slot in &mut self.outputs {
            if *slot == old {
                *slot = new;
            }
        }
        let as_output = std::mem::take(&mut self.value_mut(old).role.output);
        self.value_mut(new).role.output |= as_output;
    }

    /// Connects input `slot` of a node to `value`; returns the previous value, which may be unused now.
    pub(crate) fn connect_input(
        &mut self,
        node: NodeId,
        slot: usize,
        value: Option<ValueId>,
    ) -> Option<ValueId> {
        self.order.take();
        let edge = Edge::Input(slot as u32);
        let mut incoming = self.dag.edges_directed(node.index(), Direction::Incoming);
        let old = incoming.find(|e| *e.weight() == edge).map(|e| (e.id(), e.source()));
        if let Some((old, _)) = old {
            self.dag.remove_edge(old);
        }
        if let Some(value) = value {
            self.dag.add_edge(value.index(), node.index(), edge);
        }
        let slots = &mut self.node_mut(node).slots.0;
        *slots = (*slots).max(slot as u32 + 1);
        old.map(|(_, source)| self.value_id(source))
    }

    pub(crate) fn remove_node(&mut self, id: NodeId) {
        self.remove_vertex(id.index());
    }

    /// Removes the values that were added after the clock was `clock`, and sets it back.
    pub(crate) fn rewind(&mut self, clock: u64) {
        if self.next > clock {
            let younger: Vec<_> = self.values().filter(|&v| self.value(v).seq > clock).collect();
            younger.into_iter().for_each(|v| self.remove_vertex(v.index()));
            self.next = clock;
        }
    }

    fn remove_vertex(&mut self, index: NodeIndex) {
        self.order.take();
        if let Some(Vertex::Value(value)) = self.dag.remove_node(index) {
            self.by_name.remove(&value.name);
        }
        self.generations[index.index()] += 1;
    }

    /// Remove values nobody uses, the nodes that only made such, and what only those used, from `start` up.
    /// Inputs and outputs of the graph stay. Returns the nodes whose outputs lost a use.
    pub(crate) fn remove_unused(&mut self, start: impl IntoIterator<Item = ValueId>) -> Vec<NodeId> {
        let mut affected = vec![];
        let mut queue: Vec<_> = start.into_iter().collect();
        while let Some(value) = queue.pop() {
            if !self.has_value(value) {
                continue;
            }
            let role = self.value(value).role;
            if role.input || role.output || self.dag.edges(value.index()).next().is_some() {
                affected.extend(self.producer(value).map(|(node, _)| node));
                continue;
            }
            let Some((node, _)) = self.producer(value) else {
                self.remove_vertex(value.index());
                continue;
            };
            let outputs: Vec<_> = self.outputs_of(node).into_iter().flatten().collect();
            if outputs.iter().any(|&o| self.use_count(o) > 0) {
                affected.push(node);
                continue;
            }
            queue.extend(self.inputs_of(node).into_iter().flatten());
            queue.extend(self.captured_by(node));
            self.remove_vertex(node.index());
            outputs.into_iter().for_each(|o| self.remove_vertex(o.index()));
        }
        affected.retain(|&n| self.has_node(n));
        affected
    }

    /// Whether `to` depends on the node `from`.
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

    /// Remove everything that no output needs: nodes, initializers, captures. Returns how many nodes and how
    /// many initializers went.
    pub fn sweep(&mut self) -> (usize, usize) {
        let count = |graph: &Self| (graph.node_count(), graph.initializers().len());
        let before = count(self);
        let values: Vec<_> = self.values().collect();
        self.remove_unused(values);
        let idle = |&id: &NodeId| self.outputs_of(id).iter().flatten().next().is_none();
        for id in self.node_ids().filter(idle).collect::<Vec<_>>() {
            let inputs: Vec<_> =
                self.inputs_of(id).into_iter().flatten().chain(self.captured_by(id)).collect();
            self.remove_vertex(id.index());
            self.remove_unused(inputs);
        }
        let after = count(self);
        (before.0 - after.0, before.1 - after.1)
    }

    /// A node in words, for messages.
    pub fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        match (&node.name, self.outputs_of(id).iter().flatten().next()) {
            (Some(name), _) if !name.is_empty() => format!("{} `{name}`", node.op),
            (_, Some(&output)) => format!("{} producing `{}`", node.op, self.value(output).name),
            _ => node.op.clone(),
        }
    }
}

/// The domain, with the standard domain (`ai.onnx`) spelled as the empty string.
pub fn standard_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn describe(node: &Node) -> String {
    match &node.name {
        Some(name) if !name.is_empty() => format!("{} `{name}`", node.op),
        _ => node.op.clone(),
    }
}

/// What the subgraphs of a node capture as `old` they capture as `new` from now on.
pub(crate) fn rename_captures(node: &mut Node, old: &str, new: &str) {
    for attribute in node.attributes.values_mut() {
        for graph in attribute.graphs_mut() {
            if let Some(id) = graph.find(old).filter(|&v| graph.value(v).role.captured) {
                match graph.find(new) {
                    // Both were captured: the two become one.
                    Some(same) if graph.value(same).role.captured => {
                        graph.redirect(id, same, &[]);
                        graph.remove_unused([id]);
                    }
                    // An input of a loop's body may hide an outer value of its name: it gives the name up.
                    Some(hides) => {
                        let name = graph.fresh_name(new);
                        graph.rename(hides, name);
                        graph.rename(id, new.into());
                    }
                    None => graph.rename(id, new.into()),
                }
            }
        }
    }
}
