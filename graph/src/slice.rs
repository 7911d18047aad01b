//! Reachability in a graph, and extraction of subgraphs.

use crate::{Declared, Fact, Graph, GraphError, Model, NodeId, Type, Value, ValueId};
use std::collections::{HashMap, HashSet};

/// The values that cross the boundary of a set of nodes, each list without duplicates and sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Values that the nodes read and none of them computes, except initializers.
    pub inputs: Vec<ValueId>,
    /// Values that the nodes compute and that other nodes read or the graph returns.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// The values a node reads: its inputs by slot, then the values its subgraphs capture.
    pub fn operands(&self, id: NodeId) -> impl Iterator<Item = ValueId> + use<> {
        self.inputs_of(id).into_iter().flatten().chain(self.captured_by(id))
    }

    /// The values a node computes, by slot.
    pub fn results(&self, id: NodeId) -> impl Iterator<Item = ValueId> + use<> {
        self.outputs_of(id).into_iter().flatten()
    }

    /// The nodes that `values` are computed by, directly or indirectly. The search does not continue above
    /// values for which `boundary` holds.
    pub fn upstream(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        boundary: impl Fn(ValueId) -> bool,
    ) -> HashSet<NodeId> {
        let mut nodes = HashSet::new();
        let mut queue: Vec<_> = values.into_iter().collect();
        while let Some(value) = queue.pop() {
            let producer = self.producer(value).filter(|_| !boundary(value));
            if let Some((node, _)) = producer.filter(|&(node, _)| nodes.insert(node)) {
                queue.extend(self.operands(node));
            }
        }
        nodes
    }

    /// `nodes` and all nodes that depend on them.
    pub fn downstream(&self, nodes: impl IntoIterator<Item = NodeId>) -> HashSet<NodeId> {
        let mut queue: Vec<_> = nodes.into_iter().collect();
        let mut found: HashSet<_> = queue.iter().copied().collect();
        while let Some(node) = queue.pop() {
            for value in self.results(node) {
                let users = self.users(value).into_iter().map(|(user, _)| user);
                queue.extend(users.filter(|&user| found.insert(user)));
            }
        }
        found
    }

    /// The values that cross the boundary of `nodes`.
    pub fn boundary(&self, nodes: &HashSet<NodeId>) -> Boundary {
        let mut boundary = Boundary::default();
        for &node in nodes {
            let is_external = |&v: &ValueId| self.value(v).data.is_none() && !self.computes(nodes, v);
            boundary.inputs.extend(self.operands(node).filter(is_external));
            let is_used = |&v: &ValueId| {
                self.value(v).is_output() || self.users(v).iter().any(|(user, _)| !nodes.contains(user))
            };
            boundary.outputs.extend(self.results(node).filter(is_used));
        }
        for values in [&mut boundary.inputs, &mut boundary.outputs] {
            values.sort_unstable();
            values.dedup();
        }
        boundary
    }

    /// Returns true if one of `nodes` computes the value.
    fn computes(&self, nodes: &HashSet<NodeId>, value: ValueId) -> bool {
        self.producer(value).is_some_and(|(node, _)| nodes.contains(&node))
    }

    /// Copies `nodes` to `target` in topological order, with the values they read and compute.
    ///
    /// `copies` maps values of `self` to values of `target`. Values that it does not contain are created by
    /// `copy` and added to it. A node output that it contains already, since readers use another value in its
    /// place, becomes an unused output.
    pub fn copy_nodes(
        &self,
        nodes: &HashSet<NodeId>,
        target: &mut Self,
        copies: &mut HashMap<ValueId, ValueId>,
        mut copy: impl FnMut(&mut Self, ValueId) -> Result<ValueId, GraphError>,
    ) -> Result<(), GraphError> {
        for &node in self.nodes().iter().filter(|n| nodes.contains(n)) {
            for value in self.operands(node) {
                if let std::collections::hash_map::Entry::Vacant(e) = copies.entry(value) {
                    e.insert(copy(target, value)?);
                }
            }
            let inputs: Vec<_> = self.inputs_of(node).into_iter().map(|v| v.map(|v| copies[&v])).collect();
            let mut outputs = vec![];
            for output in self.outputs_of(node) {
                let copied = |value| {
                    if copies.get(&value).is_some() {
                        target.add_value(Value::named(&self.fresh_name(&self.value(value).name)))
                    } else {
                        let copied = copy(target, value)?;
                        copies.insert(value, copied);
                        Ok(copied)
                    }
                };
                outputs.push(output.map(copied).transpose()?);
            }
            target.add_node(self.node(node).clone(), &inputs, &outputs)?;
        }
        Ok(())
    }

    /// The graph that computes `outputs` from `inputs`.
    ///
    /// Its inputs are those of `inputs` that it reads, in this order, then all other values that it reads and
    /// does not compute, except initializers. Values keep their names and facts; only the interface is
    /// declared. An output that is also an input, or that no node computes, is omitted.
    pub fn extract(&self, inputs: &[ValueId], outputs: &[ValueId]) -> Result<Self, GraphError> {
        let nodes = self.upstream(outputs.iter().copied(), |v| inputs.contains(&v));
        let mut part = Self::new(self.opsets.clone());
        part.name.clone_from(&self.name);
        let mut copies = HashMap::new();
        for &input in inputs {
            let is_read = self.users(input).iter().any(|(user, _)| nodes.contains(user));
            if is_read && !copies.contains_key(&input) {
                let fact = self.value(input).fact.clone();
                let copy = part.add_value(Value { fact, ..Value::named(&self.value(input).name) })?;
                part.add_input(copy);
                copies.insert(input, copy);
            }
        }
        self.copy_nodes(&nodes, &mut part, &mut copies, |part, id| {
            let value = self.value(id);
            let (fact, data) = (value.fact.clone(), value.data.clone());
            let copy = part.add_value(Value { fact, data, ..Value::named(&value.name) })?;
            if value.data.is_none() && !self.computes(&nodes, id) {
                part.add_input(copy);
            }
            Ok(copy)
        })?;
        for output in outputs.iter().filter(|&&v| self.computes(&nodes, v) && !inputs.contains(&v)) {
            part.add_output(copies[output]);
        }
        for id in [part.inputs(), part.outputs()].concat() {
            // Outputs without a type are legal.
            part.declare(id);
        }
        Ok(part)
    }

    /// Declares a value of the interface by what is known about it; returns whether its type is declared now.
    fn declare(&mut self, id: ValueId) -> bool {
        if self.value(id).declared.as_ref().is_some_and(|d| d.ty.is_some()) {
            return true;
        }
        let Fact::Tensor(tensor) = &self.value(id).fact else { return false };
        let Some(dtype) = tensor.dtype else { return false };
        let ty = Type::tensor(dtype, tensor.shape.as_deref());
        self.set_declared(id, Some(Declared { ty: Some(ty), ..Declared::default() }));
        true
    }

    /// The graph of `nodes`; `None` if an input would be of unknown type, or if there is no output.
    fn extract_nodes(&self, nodes: &HashSet<NodeId>) -> Option<Self> {
        let mut part = Self::new(self.opsets.clone());
        part.name.clone_from(&self.name);
        let (mut copies, mut has_types) = (HashMap::new(), true);
        let result = self.copy_nodes(nodes, &mut part, &mut copies, |part, id| {
            let value = self.value(id);
            let declared = value.declared.clone().map(|d| Declared { order: None, ..d });
            let (fact, data) = (value.fact.clone(), value.data.clone());
            let copy = part.add_value(Value { fact, declared, data, ..Value::named(&value.name) })?;
            if !self.computes(nodes, id) && (value.data.is_none() || value.is_input()) {
                has_types &= part.declare(copy);
                part.add_input(copy);
            }
            Ok(copy)
        });
        result.ok().filter(|()| has_types)?;
        let returned = self.outputs().iter().copied().filter(|&v| self.computes(nodes, v));
        let order = self.nodes();
        let results = order.iter().filter(|n| nodes.contains(n)).flat_map(|&n| self.results(n));
        let is_used = |&v: &ValueId| {
            let users = self.users(v);
            !self.value(v).is_output()
                && (users.is_empty() || users.iter().any(|(user, _)| !nodes.contains(user)))
        };
        for value in returned.chain(results.filter(is_used)) {
            part.declare(copies[&value]);
            part.add_output(copies[&value]);
        }
        (!part.outputs().is_empty()).then_some(part)
    }
}

impl Model {
    /// The model that computes `outputs` from `inputs`, both values of the main graph; see
    /// [`Graph::extract`]. Functions are copied.
    pub fn extract(&self, inputs: &[ValueId], outputs: &[ValueId]) -> Result<Self, GraphError> {
        Ok(self.with_graph(self.graph.extract(inputs, outputs)?))
    }

    /// The model of these `nodes` of the main graph.
    ///
    /// Its inputs are the values that the nodes read and none of them computes. Its outputs are the outputs
    /// of the model, the values that other nodes read, and unused values among those the nodes compute.
    /// Initializers and functions are copied. `None` if an input would be of unknown type, or if there is no
    /// output.
    pub fn extract_nodes(&self, nodes: &HashSet<NodeId>) -> Option<Self> {
        Some(self.with_graph(self.graph.extract_nodes(nodes)?))
    }

    /// The model with only the outputs for which `keep` holds, and what they depend on. `None` if there is
    /// none.
    pub fn with_outputs(&self, keep: impl Fn(&str) -> bool) -> Option<Self> {
        let (kept, removed): (Vec<_>, Vec<_>) =
            self.graph.outputs().iter().copied().partition(|&o| keep(&self.graph.value(o).name));
        if kept.is_empty() {
            return None;
        }
        let mut model = self.clone();
        model.graph.remove_outputs(&removed);
        model.graph.sweep();
        Some(model)
    }

    /// A model around another main graph, with a pool of names of its own.
    fn with_graph(&self, graph: Graph) -> Self {
        let mut model = Self {
            ir_version: self.ir_version,
            opsets: self.opsets.clone(),
            domain: self.domain.clone(),
            metadata: self.metadata.clone(),
            functions: self.functions.clone(),
            ..Self::of(graph)
        };
        model.extra.mappings.clone_from(&self.extra.mappings);
        let names = model.graph.names.detached();
        model.graph.set_names(&names);
        model
    }
}

#[cfg(test)]
mod tests {
    use crate::{Graph, Model, NodeId, ValueId, text};
    use std::collections::HashSet;

    fn model() -> Model {
        let text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float[2] w = {1, 2}> {
            a = Add(x, w) b = Relu(a) c = Mul(b, w) y = Neg(c) z = Abs(b) }";
        let mut model = Model::of(text::parse_graph(text, 18).unwrap());
        model.infer().unwrap();
        model
    }

    fn values<const N: usize>(graph: &Graph, names: [&str; N]) -> [ValueId; N] {
        names.map(|name| graph.find(name).unwrap())
    }

    fn operators(graph: &Graph, nodes: &HashSet<NodeId>) -> Vec<String> {
        graph.nodes().iter().filter(|n| nodes.contains(n)).map(|&n| graph.node(n).op.clone()).collect()
    }

    #[track_caller]
    fn assert_prints(graph: &Graph, expected: &str) {
        assert_eq!(text::print_graph(graph), text::print_graph(&text::parse_graph(expected, 18).unwrap()));
    }

    #[test]
    fn upstream_stops_at_the_boundary() {
        let graph = model().graph;
        let [a, y, z] = values(&graph, ["a", "y", "z"]);
        assert_eq!(operators(&graph, &graph.upstream([z], |_| false)), ["Add", "Relu", "Abs"]);
        assert_eq!(operators(&graph, &graph.upstream([a, y], |v| v == a)), ["Relu", "Mul", "Neg"]);
    }

    #[test]
    fn downstream_includes_the_start() {
        let graph = model().graph;
        let [c] = values(&graph, ["c"]);
        assert_eq!(operators(&graph, &graph.downstream([graph.producer(c).unwrap().0])), ["Mul", "Neg"]);
    }

    #[test]
    fn boundary_excludes_initializers() {
        let graph = model().graph;
        let nodes = graph.nodes()[1..3].iter().copied().collect();
        let [a, b, c] = values(&graph, ["a", "b", "c"]);
        let boundary = graph.boundary(&nodes);
        assert_eq!((boundary.inputs, boundary.outputs), (vec![a], vec![b, c]));
    }

    #[test]
    fn extracts_between_values() {
        let model = model();
        let [a, c, z] = values(&model.graph, ["a", "c", "z"]);
        let part = model.extract(&[a], &[c, a, z]).unwrap();
        let expected = "g (float[N,2] a) => (float[N,2] c, float[N,2] z) <float[2] w = {1, 2}> {
            b = Relu(a) c = Mul(b, w) z = Abs(b) }";
        assert_prints(&part.graph, expected);
        part.check().unwrap();
    }

    #[test]
    fn outputs_that_are_given_are_not_computed() {
        let text =
            "g (float[4] x) => (float[2] p, float[2] r) { p, q = Split <num_outputs = 2> (x) r = Neg(q) }";
        let mut model = Model::of(text::parse_graph(text, 18).unwrap());
        model.infer().unwrap();
        let [p, q, r] = values(&model.graph, ["p", "q", "r"]);
        let part = model.extract(&[q], &[p, r]).unwrap();
        let expected = "g (float[2] q, float[4] x) => (float[2] p, float[2] r) {
            p, q_1 = Split <num_outputs = 2> (x) r = Neg(q) }";
        assert_prints(&part.graph, expected);
        part.check().unwrap();
    }

    #[test]
    fn extracted_nodes_expose_what_crosses_their_boundary() {
        let model = model();
        let nodes = model.graph.nodes()[1..3].iter().copied().collect();
        let part = model.extract_nodes(&nodes).unwrap();
        let expected = "g (float[N,2] a) => (float[N,2] b, float[N,2] c) <float[2] w = {1, 2}> {
            b = Relu(a) c = Mul(b, w) }";
        assert_prints(&part.graph, expected);
        part.check().unwrap();
    }

    #[test]
    fn removing_outputs_removes_what_only_they_depend_on() {
        let part = model().with_outputs(|name| name == "z").unwrap();
        assert_eq!((part.graph.node_count(), part.graph.outputs().len()), (3, 1));
        part.check().unwrap();
        assert!(model().with_outputs(|_| false).is_none());
    }
}
