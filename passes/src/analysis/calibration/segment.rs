//! Extraction of parts of a model.

use pare_graph::{
    Axis, AxisSize, DataType, Declared, Dim, Fact, Graph, GraphError, Model, NodeId, Type, TypeKind, ValueId,
};
use std::collections::{HashMap, HashSet};

/// Returns the model that computes `wanted` from `given`, values of the main graph of `model`, with the same
/// names. Values that are both wanted and given are not outputs. Values that are neither given nor computed from
/// given ones, such as inputs of the graph, become inputs.
pub fn segment(model: &Model, given: &[ValueId], wanted: &[ValueId]) -> Result<Model, GraphError> {
    let graph = &model.graph;
    let needed = needed(graph, given, wanted);
    let mut part = Graph::new(graph.opsets.clone());
    part.name = Some("segment".into());
    let mut ids = HashMap::new();
    let mut outputs = vec![];
    for &node in graph.nodes().iter().filter(|n| needed.contains(n)) {
        let mut place = |value: ValueId, part: &mut Graph| -> Result<ValueId, GraphError> {
            if let Some(&id) = ids.get(&value) {
                return Ok(id);
            }
            let made = graph.producer(value).is_some_and(|(producer, _)| needed.contains(&producer));
            let made = made && !given.contains(&value);
            let old = graph.value(value);
            let mut new = pare_graph::Value::named(&old.name);
            new.fact = old.fact.clone();
            new.data = old.data.clone();
            if !made && old.data.is_none() {
                new.declared = Some(declared(&old.fact, true));
            }
            let id = part.add_value(new)?;
            if !made && old.data.is_none() {
                part.add_input(id);
            }
            ids.insert(value, id);
            Ok(id)
        };
        for captured in graph.captured_by(node) {
            place(captured, &mut part)?;
        }
        let inputs = graph.inputs_of(node);
        let inputs = inputs.into_iter().map(|v| v.map(|v| place(v, &mut part)).transpose());
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let mut made = vec![];
        for output in graph.outputs_of(node) {
            made.push(match output {
                // The node computes another value; the given one replaces this output.
                Some(v) if given.contains(&v) => {
                    let spare = part.fresh_name(&graph.value(v).name);
                    Some(part.add_value(pare_graph::Value::named(&spare))?)
                }
                Some(v) => Some(place(v, &mut part)?),
                None => None,
            });
        }
        part.add_node(graph.node(node).clone(), &inputs, &made)?;
        outputs.extend(made.into_iter().flatten());
    }
    for &value in wanted {
        if let Some(&id) = ids.get(&value).filter(|id| outputs.contains(id)) {
            part.set_declared(id, Some(declared(&graph.value(value).fact, false)));
            part.add_output(id);
        }
    }
    let mut segment = Model::of(part);
    segment.ir_version = model.ir_version;
    segment.opsets = model.opsets.clone();
    segment.functions.clone_from(&model.functions);
    Ok(segment)
}

/// Returns the nodes that compute `wanted` from `given`.
fn needed(graph: &Graph, given: &[ValueId], wanted: &[ValueId]) -> HashSet<NodeId> {
    let mut needed = HashSet::new();
    let mut queue: Vec<_> = wanted.iter().copied().filter(|v| !given.contains(v)).collect();
    while let Some(value) = queue.pop() {
        let Some((node, _)) = graph.producer(value) else { continue };
        if needed.insert(node) {
            let inputs = graph.inputs_of(node).into_iter().flatten().chain(graph.captured_by(node));
            queue.extend(inputs.filter(|v| !given.contains(v)));
        }
    }
    needed
}

/// The declared type of a value; without sizes, the engine infers the shape.
fn declared(fact: &Fact, sizes: bool) -> Declared {
    let dtype = fact.dtype();
    let axis =
        |dim: &Dim| Axis { size: dim.known().map_or(AxisSize::Unknown, AxisSize::Fixed), denotation: None };
    let shape = fact.shape().filter(|_| sizes).map(|dims| dims.iter().map(axis).collect());
    let kind = TypeKind::Tensor { dtype: dtype.or(Some(DataType::Float)), shape };
    let mut declared = Declared::default();
    declared.ty = Some(Type { kind, denotation: None });
    declared
}
