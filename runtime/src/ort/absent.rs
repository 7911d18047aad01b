//! Absent optionals and empty sequences.
//!
//! ONNX Runtime's interface constructs neither, but its operators do: a model with one node returns the
//! value.

use super::{dtype, handle::Handle};
use crate::{PortKind, message::one_line};
use ort::{
    environment::Environment,
    session::builder::{GraphOptimizationLevel, SessionBuilder},
};
use pare_graph::DataType;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Returns the empty sequence of type `kind`, or the absent value of an optional type.
pub(super) fn value(environment: &Environment, kind: &PortKind) -> Result<Handle, String> {
    let text = |error: ort::Error| one_line(error.message());
    let mut builder = SessionBuilder::new(environment).map_err(text)?;
    if let Ok(plain) = builder.clone().with_optimization_level(GraphOptimizationLevel::Disable) {
        builder = plain;
    }
    let model = model(kind).ok_or_else(|| format!("empty value of type {kind}"))?;
    let mut session = builder.commit_from_memory(&model).map_err(text)?;
    let mut outputs = super::handle::run(&mut session, &[], &[c"y".to_owned()])?;
    outputs.pop().flatten().ok_or_else(|| format!("empty value of type {kind}"))
}

/// The model `y = SequenceEmpty()` or `y = Optional()`, serialized.
fn model(kind: &PortKind) -> Option<Vec<u8>> {
    let (operator, attribute) = match kind {
        PortKind::Sequence(inner) => {
            let PortKind::Tensor { dtype, .. } = **inner else { return None };
            ("SequenceEmpty", [text(1, "dtype"), number(3, dtype.number()), number(20, 2)].concat())
        }
        PortKind::Optional(inner) => {
            ("Optional", [text(1, "type"), message(14, &type_proto(inner)?), number(20, 13)].concat())
        }
        _ => return None,
    };
    let node = [text(2, "y"), text(4, operator), message(5, &attribute)].concat();
    let output = [text(1, "y"), message(2, &type_proto(kind)?)].concat();
    let graph = [message(1, &node), text(2, "empty"), message(12, &output)].concat();
    let opset = [text(1, ""), number(2, 15)].concat();
    Some([number(1, 8), message(7, &graph), message(8, &opset)].concat())
}

fn type_proto(kind: &PortKind) -> Option<Vec<u8>> {
    let tensor = |dtype: DataType| message(1, &number(1, dtype.number()));
    Some(match kind {
        PortKind::Tensor { dtype, .. } => {
            dtype::to_ort(*dtype)?;
            tensor(*dtype)
        }
        PortKind::Sequence(inner) => message(4, &message(1, &type_proto(inner)?)),
        PortKind::Optional(inner) => message(9, &message(1, &type_proto(inner)?)),
        PortKind::Map { key, value } => {
            message(5, &[number(1, key.number()), message(2, &tensor(*value))].concat())
        }
        PortKind::Other(_) => return None,
    })
}

/// A length-delimited field.
fn message(field: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 4);
    encode_key(field, WireType::LengthDelimited, &mut out);
    encode_varint(body.len() as u64, &mut out);
    out.extend_from_slice(body);
    out
}

fn text(field: u32, body: &str) -> Vec<u8> {
    message(field, body.as_bytes())
}

fn number(field: u32, value: i32) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(field, WireType::Varint, &mut out);
    encode_varint(value as u64, &mut out);
    out
}
