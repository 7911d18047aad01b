//! Construction and mutation of graphs. Passes change graphs by patches only.

use super::{Edge, Graph, GraphError, Names, NodeId, ValueId, Vertex, describe};
use crate::{
    Attribute, Constant, Declared, Fact, Node, TensorFact, Type, Value,
    node::{Rank, Role, standard_domain},
};
use petgraph::{Direction, stable_graph::NodeIndex, visit::EdgeRef};
use std::{collections::HashSet, sync::Arc};

impl Graph {
    fn insert(&mut self, vertex: Vertex) -> NodeIndex {
        self.order.take();
        let index = self.dag.add_node(vertex);
        if self.generations.len() <= index.index() {
            self.generations.resize(index.index() + 1, 0);
        }
        index
    }

    /// The number of values and nodes added so far.
    pub(crate) fn clock(&self) -> u64 {
        self.next
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Adds a value, whose name must be new in this graph.
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

    /// The value with this name; if there is none, a new value captured from the outer graph.
    pub fn find_or_capture(&mut self, name: &str) -> ValueId {
        if let Some(id) = self.find(name) {
            return id;
        }
        let role = Role { captured: true, ..Role::default() };
        let added = self.add_value(Value { name: name.into(), role, ..Value::default() });
        added.expect("the name was looked up just now")
    }

    /// Adds a node after all others. The captures of its subgraphs refer to the values with these names, or
    /// are captured from the outer graph if there are none.
    pub fn add_node(
        &mut self,
        node: Node,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
    ) -> Result<NodeId, GraphError> {
        let clock = self.tick();
        self.add_node_at(node, Rank(clock << 20, 0), inputs, outputs)
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

    /// Updates the capture edges of a node to the captures of its subgraphs.
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

    /// Appends `value` to the inputs of the graph.
    pub fn add_input(&mut self, value: ValueId) {
        self.value_mut(value).role.input = true;
        self.inputs.push(value);
    }

    /// Appends `value` to the outputs of the graph.
    pub fn add_output(&mut self, value: ValueId) {
        self.value_mut(value).role.output = true;
        self.outputs.push(value);
    }

    /// Replaces `old` by `new` among the outputs only.
    pub(crate) fn set_output(&mut self, old: ValueId, new: ValueId) {
        self.outputs.iter_mut().filter(|v| **v == old).for_each(|v| *v = new);
        self.value_mut(old).role.output = false;
        self.value_mut(new).role.output = true;
    }

    /// Removes values from the outputs. Nodes that become unused stay until [`Graph::sweep`].
    pub fn remove_outputs(&mut self, values: &[ValueId]) {
        self.outputs.retain(|v| !values.contains(v));
        values.iter().for_each(|&v| self.value_mut(v).role.output = false);
    }

    /// Removes the unused ones of `values` from the inputs.
    pub fn remove_inputs(&mut self, values: &[ValueId]) {
        let unused: Vec<_> = values.iter().copied().filter(|&v| self.use_count(v) == 0).collect();
        self.inputs.retain(|v| !unused.contains(v));
        unused.iter().for_each(|&v| self.value_mut(v).role.input = false);
        self.remove_unused(unused);
    }

    /// Renames a value, which may be an input or output; fails if the name is taken.
    pub fn rename_value(&mut self, id: ValueId, name: &str) -> Result<(), GraphError> {
        if self.by_name.contains_key(name) {
            return Err(GraphError::DuplicateName(name.into()));
        }
        self.names.take(name);
        self.rename(id, name.into());
        Ok(())
    }

    /// Makes an initializer an input without default, of the type that its elements have: the last input, unless it
    /// is one already. Returns the elements; `None` if the value is no initializer of this graph.
    pub fn free_initializer(&mut self, id: ValueId) -> Option<Constant> {
        if self.value(id).is_captured() {
            return None;
        }
        let data = self.value_mut(id).data.take()?;
        let fact = match data.fact() {
            // The caller determines the elements.
            Fact::Tensor(tensor) => Fact::Tensor(TensorFact { content: None, ..tensor }),
            other => other,
        };
        let ty = Type::of(&fact);
        let value = self.value_mut(id);
        value.declared = Some(Declared { ty, ..Declared::default() });
        value.fact = fact;
        if !value.is_input() {
            self.add_input(id);
        }
        Some(data)
    }

    /// The number of initializers that are inputs, so that the caller may override them.
    pub fn overridable(&self) -> usize {
        self.inputs.iter().filter(|&&v| self.value(v).data.is_some()).count()
    }

    /// Removes the initializers from the inputs, so that the caller cannot override them.
    pub fn freeze_initializers(&mut self) {
        self.extra.constant_inputs.clear();
        let (frozen, kept) = self.inputs.iter().partition(|&&v| self.value(v).data.is_some());
        self.inputs = kept;
        let frozen: Vec<ValueId> = frozen;
        frozen.into_iter().for_each(|v| self.value_mut(v).role.input = false);
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match self.dag.node_weight_mut(id.index()) {
            Some(Vertex::Node(node)) => {
                // Its attributes may change.
                node.literal.take();
                node
            }
            _ => unreachable!("a node id outlived its node"),
        }
    }

    /// A value whose fact, declaration or data is to be set. Name and role must not be changed.
    pub(crate) fn value_mut(&mut self, id: ValueId) -> &mut Value {
        match self.dag.node_weight_mut(id.index()) {
            Some(Vertex::Value(value)) => value,
            _ => unreachable!("a value id outlived its value"),
        }
    }

    /// Sets the fact of a value.
    pub fn set_fact(&mut self, id: ValueId, fact: Fact) {
        self.value_mut(id).fact = fact;
    }

    /// Sets the declaration of a value.
    pub fn set_declared(&mut self, id: ValueId, declared: Option<Declared>) {
        self.value_mut(id).declared = declared;
    }

    /// Uses another pool of names, also in nested graphs.
    pub(crate) fn set_names(&mut self, names: &Names) {
        self.names = names.clone();
        for vertex in self.dag.node_weights_mut() {
            if let Vertex::Node(node) = vertex {
                let nested = node.attributes.values_mut().flat_map(Attribute::graphs_mut);
                nested.for_each(|graph| graph.set_names(names));
            }
        }
    }

    /// Sets the version of the standard operator set, also for nested graphs. Nodes are kept as they are: the
    /// caller rewrites those that this version defines otherwise.
    pub fn set_opset(&mut self, version: i64) {
        let versions = self.opsets.iter().map(|(domain, old)| {
            let is_standard = standard_domain(domain).is_empty();
            (domain.clone(), if is_standard { version } else { *old })
        });
        let opsets = Arc::new(versions.collect());
        self.share_opsets(&opsets);
    }

    /// Imports these operator sets, also for nested graphs.
    pub(crate) fn share_opsets(&mut self, opsets: &Arc<Vec<(String, i64)>>) {
        self.opsets = Arc::clone(opsets);
        for vertex in self.dag.node_weights_mut() {
            if let Vertex::Node(node) = vertex {
                let nested = node.attributes.values_mut().flat_map(Attribute::graphs_mut);
                nested.for_each(|graph| graph.share_opsets(opsets));
            }
        }
    }

    /// A name that is unique in the model, derived from `hint`.
    pub fn fresh_name(&self, hint: &str) -> String {
        let hint = if hint.is_empty() { "value" } else { hint };
        if self.names.take(hint) {
            return hint.into();
        }
        let tries = (1_u64..).map(|i| format!("{hint}_{i}"));
        tries.into_iter().find(|name| self.names.take(name)).expect("there are more numbers than names")
    }

    /// Changes the subgraphs of a node and updates its captures.
    pub fn with_subgraphs<R>(&mut self, id: NodeId, change: impl FnOnce(&mut [&mut Graph], &Self) -> R) -> R {
        let mut attributes = std::mem::take(&mut self.node_mut(id).attributes);
        let mut graphs: Vec<&mut Graph> = attributes.values_mut().flat_map(Attribute::graphs_mut).collect();
        let result = change(&mut graphs, self);
        self.node_mut(id).attributes = attributes;
        self.connect_captures(id);
        result
    }

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

    /// Replaces all uses of `old` by nodes other than `except`, and as an output of the graph, by `new`.
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
            let is_duplicate = wire == Edge::Capture
                && self.dag.edges_connecting(new.index(), target).any(|e| *e.weight() == wire);
            if !is_duplicate {
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

    /// Removes the unused values among `start`, their producers if all outputs are unused, and values that
    /// become unused thereby. Inputs and outputs of the graph are kept. Returns the nodes whose outputs lost
    /// a use.
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
            let outputs: Vec<_> = self.results(node).collect();
            if outputs.iter().any(|&o| self.use_count(o) > 0) {
                affected.push(node);
                continue;
            }
            queue.extend(self.operands(node));
            self.remove_vertex(node.index());
            outputs.into_iter().for_each(|o| self.remove_vertex(o.index()));
        }
        affected.retain(|&n| self.has_node(n));
        affected
    }

    /// Removes all nodes, initializers and captures that no output depends on. Returns the numbers of removed
    /// nodes and initializers.
    pub fn sweep(&mut self) -> (usize, usize) {
        let count = |graph: &Self| (graph.node_count(), graph.initializers().len());
        let before = count(self);
        let values: Vec<_> = self.values().collect();
        self.remove_unused(values);
        let has_no_output = |&id: &NodeId| self.results(id).next().is_none();
        for id in self.node_ids().filter(has_no_output).collect::<Vec<_>>() {
            let operands = self.operands(id);
            self.remove_vertex(id.index());
            self.remove_unused(operands);
        }
        let after = count(self);
        (before.0 - after.0, before.1 - after.1)
    }

    /// Sets the rank of every node to its topological position, so that ranks increase along every edge.
    pub(crate) fn renumber(&mut self) {
        for (position, &id) in self.nodes().iter().enumerate() {
            self.node_mut(id).rank = Rank((position as u64 + 1) << 20, 0);
        }
        self.next = self.next.max(self.node_count() as u64 + 1);
    }
}

/// Renames the captures `old` in the subgraphs of a node to `new`.
pub(crate) fn rename_captures(node: &mut Node, old: &str, new: &str) {
    for attribute in node.attributes.values_mut() {
        for graph in attribute.graphs_mut() {
            if let Some(id) = graph.find(old).filter(|&v| graph.value(v).role.captured) {
                match graph.find(new) {
                    // Both are captured: merge them.
                    Some(same) if graph.value(same).role.captured => {
                        graph.redirect(id, same, &[]);
                        graph.remove_unused([id]);
                    }
                    // A value of the subgraph, such as an input of a loop body, may shadow the outer value:
                    // rename it.
                    Some(shadowing) => {
                        let name = graph.fresh_name(new);
                        graph.rename(shadowing, name);
                        graph.rename(id, new.into());
                    }
                    None => graph.rename(id, new.into()),
                }
            }
        }
    }
}
