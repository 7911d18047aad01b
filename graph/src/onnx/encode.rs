//! Encoding of a [`Model`] as protobuf messages. Tensors share their bytes with the model.

use super::{
    WriteError, constant_inputs, metadata_to, opsets_to,
    tensor::{EXTERNAL, sparse_to, tensor_to},
    types::{declared_from, declared_to},
};
use crate::{
    Attribute, Constant, Declared, Function, Graph, GraphError, Model, NodeId, Tensor, Type, Value, ValueId,
    extra::{AttributeExtra, InfoEntry, InterfaceEntry, Known},
    proto::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        TensorAnnotation, TensorProto, ValueInfoProto,
    },
};
use std::collections::HashMap;

/// The first IR version in which initializers need not be inputs.
pub(super) const FREE_INITIALIZERS: i64 = 4;

/// Smaller tensors are stored in the model file, as by the writer of the onnx package.
pub(super) const SMALL: usize = 1024;

/// The readable depth of subgraphs: a subgraph in `k` others has message depth `3k + 4`.
const MAX_SUBGRAPHS: usize = (super::wire::MAX_DEPTH - 2) / 3;

/// Encodes messages at some depth of subgraphs.
#[derive(Clone, Copy)]
pub(super) struct Encoder {
    /// Large new tensors are stored in the data file.
    external: bool,
    depth: usize,
}

/// The message of a model. Tensors for the data file are marked `EXTERNAL`, with their bytes in `raw_data`.
pub(super) fn model(model: &Model) -> Result<ModelProto, WriteError> {
    let encoder = Encoder { external: model.extra.external, depth: 0 };
    let mut proto = ModelProto {
        ir_version: ir_version(model),
        opset_import: opsets_to(&model.opsets, &model.extra.opset_import),
        producer_name: model.producer_name.clone(),
        producer_version: model.producer_version.clone(),
        domain: model.domain.clone(),
        model_version: model.model_version,
        doc_string: model.doc.clone(),
        graph: Some(encoder.graph(&model.graph)?),
        metadata_props: metadata_to(&model.metadata),
        training_info: model.extra.training_info.clone(),
        functions: model.functions.iter().map(|f| encoder.function(f)).collect::<Result<_, _>>()?,
        configuration: model.extra.configuration.clone(),
    };
    if proto.ir_version != model.ir_version && proto.opset_import.is_empty() {
        // The default before IR version 3, which has no imports.
        proto.opset_import.push(OperatorSetIdProto { domain: Some(String::new()), version: Some(1) });
    } else if proto.ir_version == model.ir_version && is_old(model) {
        let strict = is_strict(model);
        proto.graph.iter_mut().for_each(|graph| constant_inputs::declare(graph, &model.graph, strict));
    }
    Ok(proto)
}

/// The IR version of the file. Passes add initializers that are not inputs, which older versions do not allow.
fn ir_version(model: &Model) -> Option<i64> {
    if is_strict(model) && has_free_initializers(&model.graph) && !keeps_ir_version(&model.graph) {
        return Some(FREE_INITIALIZERS);
    }
    model.ir_version
}

/// Returns true if the IR version requires initializers to be inputs.
fn is_old(model: &Model) -> bool {
    model.ir_version.is_some_and(|version| version < FREE_INITIALIZERS)
}

/// Returns true if the IR version requires initializers to be inputs, and the file that was read obeyed.
fn is_strict(model: &Model) -> bool {
    is_old(model) && !model.extra.loose
}

/// Returns true if a model of an older IR version keeps it, with its new initializers as inputs beside those
/// that are: no reader of the file finds another interface. The inputs of a subgraph are given by its node, so
/// that initializers of subgraphs cannot become inputs.
fn keeps_ir_version(graph: &Graph) -> bool {
    !graph.extra.constant_inputs.is_empty()
        && !graph.nodes().iter().any(|&n| graph.node(n).subgraphs().any(has_free_initializers))
}

/// Returns true if an initializer of the graph or of a subgraph is not an input.
pub(super) fn has_free_initializers(graph: &Graph) -> bool {
    graph.initializers().iter().any(|&v| !graph.value(v).is_input())
        || graph.nodes().iter().any(|&n| graph.node(n).subgraphs().any(has_free_initializers))
}

impl Encoder {
    /// The message of a subgraph.
    pub(super) fn deeper(self, graph: &Graph) -> Result<GraphProto, WriteError> {
        if self.depth == MAX_SUBGRAPHS {
            return Err(WriteError::TooDeep(format!("`{}`", graph.name.as_deref().unwrap_or_default())));
        }
        Self { depth: self.depth + 1, ..self }.graph(graph)
    }

    /// The message of a tensor, marked if it belongs in the data file.
    pub(super) fn tensor(self, mut proto: TensorProto, tensor: &Tensor) -> TensorProto {
        let large = proto.raw_data.as_ref().is_some_and(|raw| raw.len() >= SMALL);
        if self.external && large && tensor.origin.is_none() {
            proto.data_location = Some(EXTERNAL);
        }
        proto
    }

    fn graph(self, graph: &Graph) -> Result<GraphProto, WriteError> {
        let mut proto = GraphProto {
            node: self.nodes(graph)?,
            name: graph.name.clone(),
            doc_string: graph.doc.clone(),
            input: interface(graph, graph.inputs(), false),
            output: interface(graph, graph.outputs(), true),
            value_info: value_info(graph),
            metadata_props: metadata_to(&graph.metadata),
            ..GraphProto::default()
        };
        for id in graph.initializers() {
            let name = Some(graph.value(id).name.as_str());
            match &graph.value(id).data {
                Some(Constant::Dense(t)) => proto.initializer.push(self.tensor(tensor_to(t, name), t)),
                Some(Constant::Sparse(s)) => proto.sparse_initializer.push(sparse_to(s, name)),
                None => {}
            }
        }
        let is_current = |(known, a): &&(Known, TensorAnnotation)| {
            !known || a.names().all(|name| graph.find(name).is_some())
        };
        let kept = graph.extra.annotations.iter().filter(is_current);
        proto.quantization_annotation = kept.map(|(_, a)| a.clone()).collect();
        Ok(proto)
    }

    fn function(self, function: &Function) -> Result<FunctionProto, WriteError> {
        let (body, extra) = (&function.body, &function.extra);
        let names = |ids: &[ValueId]| ids.iter().map(|&v| body.value(v).name.clone()).collect();
        // A function has no initializers in the file.
        let mut node: Vec<_> = body.initializers().iter().map(|&v| self.constant(body.value(v))).collect();
        node.extend(self.nodes(body)?);
        Ok(FunctionProto {
            name: Some(function.name.clone()),
            input: names(body.inputs()),
            output: names(body.outputs()),
            attribute: function.attributes.clone(),
            attribute_proto: self.attributes(&function.defaults, Some(&extra.defaults))?,
            node,
            doc_string: body.doc.clone(),
            opset_import: opsets_to(&body.opsets, &extra.opset_import),
            domain: (!extra.no_domain || !function.domain.is_empty()).then(|| function.domain.clone()),
            overload: function.overload.clone(),
            value_info: value_info(body),
            metadata_props: metadata_to(&body.metadata),
        })
    }

    /// The `Constant` node of an initializer of a function.
    fn constant(self, value: &Value) -> NodeProto {
        let (name, attribute) = match &value.data {
            Some(Constant::Sparse(s)) => ("sparse_value", Attribute::SparseTensor(Box::new(s.clone()))),
            Some(Constant::Dense(t)) => ("value", Attribute::Tensor(t.clone())),
            None => ("value", Attribute::Undefined),
        };
        NodeProto {
            output: vec![value.name.clone()],
            op_type: Some("Constant".into()),
            attribute: self.attribute(name, &attribute, None).into_iter().collect(),
            ..NodeProto::default()
        }
    }

    /// The nodes in topological order, ties in file order; in file order while an unsorted file is unchanged.
    fn nodes(self, graph: &Graph) -> Result<Vec<NodeProto>, WriteError> {
        let mut order = graph.nodes().to_vec();
        if let Some(&node) = graph.unordered_nodes().first() {
            return Err(GraphError::Cycle(graph.describe(node)).into());
        }
        if graph.extra.unsorted == Some((graph.clock(), order.len())) {
            order.sort_by_key(|&n| graph.node(n).rank);
        }
        order.into_iter().map(|id| self.node(graph, id)).collect()
    }

    fn node(self, graph: &Graph, id: NodeId) -> Result<NodeProto, WriteError> {
        let (node, bag) = (graph.node(id), graph.node(id).extra.bag());
        let name = |v: Option<ValueId>| v.map_or_else(String::new, |v| graph.value(v).name.clone());
        Ok(NodeProto {
            input: graph.inputs_of(id).into_iter().map(name).collect(),
            output: graph.outputs_of(id).into_iter().map(name).collect(),
            name: node.name.clone(),
            op_type: Some(node.op.clone()),
            domain: node.domain.clone(),
            overload: node.overload.clone(),
            attribute: self.attributes(&node.attributes, bag.map(|b| &b.attributes))?,
            doc_string: node.doc.clone(),
            metadata_props: metadata_to(&node.metadata),
            device_configurations: bag.map(|b| b.devices.clone()).unwrap_or_default(),
        })
    }

    fn attributes(
        self,
        attributes: &indexmap::IndexMap<String, Attribute>,
        extra: Option<&HashMap<String, AttributeExtra>>,
    ) -> Result<Vec<AttributeProto>, WriteError> {
        let encode =
            |(name, value): (&String, _)| self.attribute(name, value, extra.and_then(|e| e.get(name)));
        attributes.iter().map(encode).collect()
    }
}

/// The entries of inputs or outputs.
pub(super) fn interface(graph: &Graph, ids: &[ValueId], output: bool) -> Vec<ValueInfoProto> {
    let kept = graph.extra.interface.iter().filter(|k| k.output == output);
    let kept: HashMap<_, _> = kept.map(|k| (k.position, k)).collect();
    let entry = |(position, &id): (usize, &ValueId)| {
        let value = graph.value(id);
        let as_read = |k: &&&InterfaceEntry| k.entry.name() == value.name && k.declared == value.declared;
        match (kept.get(&position).filter(as_read), &value.declared) {
            (Some(kept), _) => kept.entry.clone(),
            (None, Some(declared)) => declared_to(&value.name, declared),
            (None, None) => {
                let ty = Type::of(&value.fact);
                declared_to(&value.name, &Declared { ty, ..Declared::default() })
            }
        }
    };
    ids.iter().enumerate().map(entry).collect()
}

/// The entries of `value_info` in file order. An entry that contradicts the fact of its value is omitted.
fn value_info(graph: &Graph) -> Vec<ValueInfoProto> {
    let mut entries = vec![];
    for id in graph.values() {
        let value = graph.value(id);
        let Some(declared @ Declared { order: Some(order), .. }) = &value.declared else { continue };
        if !value.is_input() && !value.is_output() && declared.agrees(&value.fact) {
            entries.push((*order, value.seq, declared_to(&value.name, declared)));
        }
    }
    for InfoEntry { position, known, wrong, entry } in &graph.extra.value_info {
        let keep = match graph.find(entry.name()) {
            None => !known,
            Some(id) => *wrong || declared_from(entry).is_ok_and(|d| d.agrees(&graph.value(id).fact)),
        };
        if keep {
            entries.push((*position, 0, entry.clone()));
        }
    }
    entries.sort_by_key(|e| (e.0, e.1));
    entries.into_iter().map(|e| e.2).collect()
}
