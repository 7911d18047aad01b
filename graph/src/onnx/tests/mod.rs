//! Tests that construct protobuf messages.

mod changed;
mod external;
mod lossless;
mod refused;

use super::{proto::*, read_bytes, to_bytes};
use crate::Model;
use bytes::Bytes;
use prost::Message;

#[allow(clippy::unnecessary_wraps)] // Most fields are optional.
fn text(s: &str) -> Option<String> {
    Some(s.into())
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: text(key), value: text(value) }
}

fn tensor(name: &str, values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        dims: vec![values.len() as i64],
        data_type: Some(1),
        name: text(name),
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    NodeProto { op_type: text(op), input: names(inputs), output: names(outputs), ..Default::default() }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: text(name), r#type: Some(kind), ..Default::default() }
}

/// A float tensor of this shape.
fn info(name: &str, shape: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&d| Dimension { value: Some(Value::DimValue(d)), denotation: None };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let value = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape: Some(shape) });
    let r#type = Some(TypeProto { value: Some(value), denotation: None });
    ValueInfoProto { name: text(name), r#type, ..Default::default() }
}

/// A graph with an input `x` and an output `y` of two floats.
fn graph(nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        node: nodes,
        name: text("g"),
        input: vec![info("x", &[2])],
        output: vec![info("y", &[2])],
        ..Default::default()
    }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: text(""), version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

fn load(proto: &ModelProto) -> Model {
    read_bytes(proto.encode_to_vec(), None).unwrap()
}

/// The message written for `model`.
fn saved(model: &Model) -> ModelProto {
    ModelProto::decode(Bytes::from(to_bytes(model).unwrap())).unwrap()
}

/// Checks that reading and writing changes no byte.
fn assert_round_trip(proto: &ModelProto) {
    let back = to_bytes(&load(proto)).unwrap();
    if back != proto.encode_to_vec() {
        assert_eq!(ModelProto::decode(Bytes::from(back)).unwrap(), *proto);
        panic!("the messages are equal, but not their bytes");
    }
}

/// The error for a model.
fn error(proto: &ModelProto) -> String {
    read_bytes(proto.encode_to_vec(), None).unwrap_err().to_string()
}
