//! Cutting a part out of a model.

use crate::{Declared, Fact, Graph, Model, NodeId, Type, Value, ValueId};
use std::collections::{HashMap, HashSet};

impl Model {
    /// The model of these `nodes` of the main graph alone. What they read and none of them makes becomes an input;
    /// what the caller or other nodes read of what they make, and what nobody reads, becomes an output. Constants and
    /// functions come along.
    ///
    /// `None` if a new input would be of unknown type, or if nothing is left.
    pub fn part(&self, nodes: &HashSet<NodeId>) -> Option<Self> {
        let graph = part(&self.graph, nodes)?;
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
        Some(model)
    }

    /// The model with those of its outputs that `keep` wants, and what they need. `None` if there is none.
    pub fn with_outputs(&self, keep: impl Fn(&str) -> bool) -> Option<Self> {
        let mut model = self.clone();
        let (kept, gone): (Vec<ValueId>, Vec<ValueId>) =
            self.graph.outputs().iter().copied().partition(|&o| keep(&self.graph.value(o).name));
        if kept.is_empty() {
            return None;
        }
        model.graph.remove_outputs(&gone);
        model.graph.sweep();
        Some(model)
    }
}

fn part(whole: &Graph, nodes: &HashSet<NodeId>) -> Option<Graph> {
    let mut new = Graph::new(whole.opsets.clone());
    new.name.clone_from(&whole.name);
    let mut places = HashMap::<ValueId, ValueId>::new();
    let order: Vec<_> = whole.nodes().iter().copied().filter(|n| nodes.contains(n)).collect();
    for &id in &order {
        let read: Vec<_> = whole.inputs_of(id).into_iter().flatten().chain(whole.captured_by(id)).collect();
        for value in read {
            if places.contains_key(&value) {
                continue;
            }
            let made = new.add_value(copy(whole.value(value))).ok()?;
            places.insert(value, made);
            let from = whole.value(value);
            if from.data.is_none() || from.is_input() {
                declare(&mut new, made)?;
                new.add_input(made);
            }
        }
        let mut outputs = vec![];
        for output in whole.outputs_of(id) {
            outputs.push(match output {
                Some(value) => {
                    let made = new.add_value(copy(whole.value(value))).ok()?;
                    places.insert(value, made);
                    Some(made)
                }
                None => None,
            });
        }
        let inputs: Vec<_> = whole.inputs_of(id).into_iter().map(|v| v.map(|v| places[&v])).collect();
        new.add_node(whole.node(id).clone(), &inputs, &outputs).ok()?;
    }
    let made = |v: &ValueId| whole.producer(*v).is_some_and(|(n, _)| nodes.contains(&n));
    let declared = whole.outputs().iter().copied().filter(made);
    let others = order.iter().flat_map(|&id| whole.outputs_of(id)).flatten().filter(|&v| {
        let users = whole.users(v);
        !whole.value(v).is_output() && (users.is_empty() || users.iter().any(|(n, _)| !nodes.contains(n)))
    });
    for value in declared.chain(others.collect::<Vec<_>>()) {
        let made = places[&value];
        // An output without a type is legal; its name says enough.
        let _ = declare(&mut new, made);
        new.add_output(made);
    }
    (!new.outputs().is_empty()).then_some(new)
}

fn copy(value: &Value) -> Value {
    let declared = value.declared.clone().map(|d| Declared { order: None, ..d });
    Value { declared, fact: value.fact.clone(), data: value.data.clone(), ..Value::named(&value.name) }
}

/// Write down what is known of a value that becomes part of the interface.
fn declare(graph: &mut Graph, id: ValueId) -> Option<()> {
    if graph.value(id).declared.as_ref().is_some_and(|d| d.ty.is_some()) {
        return Some(());
    }
    let Fact::Tensor(tensor) = &graph.value(id).fact else { return None };
    let ty = Type::tensor(tensor.dtype?, tensor.shape.as_deref());
    graph.set_declared(id, Some(Declared { ty: Some(ty), ..Declared::default() }));
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::{Model, text};

    fn model() -> Model {
        let text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float[2] w = {1, 2}> {
            a = Add(x, w) b = Relu(a) c = Mul(b, w) y = Neg(c) z = Abs(b) }";
        let mut model = Model::of(text::parse_graph(text, 18).unwrap());
        model.infer().unwrap();
        model
    }

    #[test]
    fn what_is_cut_becomes_the_interface() {
        let model = model();
        let nodes = model.graph.nodes()[1..3].iter().copied().collect();
        let part = model.part(&nodes).unwrap();
        let text = text::print_graph(&part.graph);
        let wanted = "g (float[N,2] a) => (float[N,2] b, float[N,2] c) <float[2] w = {1, 2}> {
            b = Relu(a) c = Mul(b, w) }";
        assert_eq!(text, text::print_graph(&text::parse_graph(wanted, 18).unwrap()));
        part.check().unwrap();
    }

    #[test]
    fn outputs_go_with_what_only_they_need() {
        let part = model().with_outputs(|name| name == "z").unwrap();
        assert_eq!((part.graph.node_count(), part.graph.outputs().len()), (3, 1));
        part.check().unwrap();
        assert!(model().with_outputs(|_| false).is_none());
    }
}
