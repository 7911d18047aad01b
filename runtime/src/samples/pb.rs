//! Values as ONNX's test data stores them: one serialised `TensorProto`, `SequenceProto` or
//! `OptionalProto` a file.

use crate::{PortKind, Value};
use bytes::Bytes;
use pare_graph::{DataType, Element, Tensor};
use prost::Message;

/// The messages hold the fields of `onnx.proto` that carry values; others are skipped.
#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    int32_data: Vec<i32>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    string_data: Vec<Bytes>,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "bytes", optional, tag = "9")]
    raw_data: Option<Bytes>,
    #[prost(double, repeated, tag = "10")]
    double_data: Vec<f64>,
    #[prost(uint64, repeated, tag = "11")]
    uint64_data: Vec<u64>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SequenceProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    elem_type: i32,
    #[prost(message, repeated, tag = "3")]
    tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "5")]
    sequences: Vec<SequenceProto>,
    #[prost(message, repeated, tag = "6")]
    maps: Vec<MapProto>,
    #[prost(message, repeated, tag = "7")]
    optionals: Vec<OptionalProto>,
}

#[derive(Clone, PartialEq, Message)]
struct MapProto {
    #[prost(int64, repeated, tag = "3")]
    keys: Vec<i64>,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    string_keys: Vec<Bytes>,
    #[prost(message, optional, tag = "5")]
    values: Option<SequenceProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionalProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    elem_type: i32,
    #[prost(message, optional, tag = "3")]
    tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "5")]
    sequence: Option<SequenceProto>,
    #[prost(message, optional, tag = "6")]
    map: Option<MapProto>,
    #[prost(message, optional, boxed, tag = "7")]
    optional: Option<Box<OptionalProto>>,
}

/// The value of type `kind` in `bytes`, and its name (empty if it has none).
pub(super) fn decode(bytes: Bytes, kind: &PortKind) -> Result<(String, Value), String> {
    let broken = |error: prost::DecodeError| error.to_string();
    match kind {
        PortKind::Sequence(_) => {
            let proto = SequenceProto::decode(bytes).map_err(broken)?;
            Ok((proto.name.clone(), sequence(proto)?))
        }
        PortKind::Optional(inner) => decode_optional(bytes, kind, inner),
        PortKind::Map { .. } => Ok((String::new(), map(MapProto::decode(bytes).map_err(broken)?)?)),
        PortKind::Tensor { .. } | PortKind::Other(_) => {
            let proto = TensorProto::decode(bytes).map_err(broken)?;
            Ok((proto.name.clone(), Value::Tensor(tensor(proto)?)))
        }
    }
}

/// Some writers leave the `OptionalProto` around a present value out. A bare sequence happens to parse as
/// one that holds a tensor, so the type decides.
fn decode_optional(bytes: Bytes, kind: &PortKind, inner: &PortKind) -> Result<(String, Value), String> {
    if let Ok(proto) = OptionalProto::decode(bytes.clone()) {
        let name = proto.name.clone();
        if let Ok(value) = optional(proto)
            && kind.accepts(&value).is_ok()
        {
            return Ok((name, value));
        }
    }
    let (name, value) = decode(bytes, inner)?;
    Ok((name, Value::Optional(Some(Box::new(value)))))
}

/// The name that a serialised tensor, sequence or optional value carries. Only a tensor's is looked for
/// without knowing which of them it is: the field has another number there.
pub(super) fn name(bytes: &Bytes) -> Option<String> {
    TensorProto::decode(bytes.clone()).ok().map(|proto| proto.name).filter(|name| !name.is_empty())
}

fn optional(proto: OptionalProto) -> Result<Value, String> {
    let inner = match proto {
        OptionalProto { tensor: Some(inner), .. } => Value::Tensor(tensor(inner)?),
        OptionalProto { sequence: Some(inner), .. } => sequence(inner)?,
        OptionalProto { map: Some(inner), .. } => map(inner)?,
        OptionalProto { optional: Some(inner), .. } => optional(*inner)?,
        _ => return Ok(Value::Optional(None)),
    };
    Ok(Value::Optional(Some(Box::new(inner))))
}

fn sequence(proto: SequenceProto) -> Result<Value, String> {
    let tensors = proto.tensors.into_iter().map(|item| tensor(item).map(Value::Tensor));
    let sequences = proto.sequences.into_iter().map(sequence);
    let maps = proto.maps.into_iter().map(map);
    let optionals = proto.optionals.into_iter().map(optional);
    // Only one of the lists is filled: a sequence holds values of one type.
    let items = tensors.chain(sequences).chain(maps).chain(optionals);
    items.collect::<Result<_, _>>().map(Value::Sequence)
}

fn map(proto: MapProto) -> Result<Value, String> {
    let keys = if proto.string_keys.is_empty() {
        Tensor::vector(&proto.keys)
    } else {
        Tensor::strings(&[proto.string_keys.len()], proto.string_keys).map_err(|e| e.to_string())?
    };
    let values = proto.values.unwrap_or_default().tensors.into_iter().map(tensor);
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let dtype = values.first().map_or(DataType::Float, Tensor::dtype);
    if values.iter().any(|value| value.dtype() != dtype || value.len() != 1) {
        return Err("only maps to single numbers of one type are known".to_owned());
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.bytes().iter().copied()).collect();
    let values = Tensor::new(dtype, &[values.len()], bytes).map_err(|error| error.to_string())?;
    if keys.len() != values.len() {
        return Err(format!("a map has {} keys and {} values", keys.len(), values.len()));
    }
    Ok(Value::Map { keys, values })
}

fn tensor(proto: TensorProto) -> Result<Tensor, String> {
    let dtype = DataType::from_number(proto.data_type)
        .ok_or_else(|| format!("no element type has the number {}", proto.data_type))?;
    let shape = proto.dims.iter().map(|&size| usize::try_from(size));
    let shape: Vec<usize> = shape.collect::<Result<_, _>>().map_err(|_| "a dimension is negative")?;
    // 1: EXTERNAL.
    if proto.data_location == 1 {
        return Err("test data lies in one file, and this points to another".to_owned());
    }
    if dtype == DataType::String {
        return Tensor::strings(&shape, proto.string_data).map_err(|error| error.to_string());
    }
    let bytes = match proto.raw_data {
        Some(raw) => raw,
        None => typed(dtype, &proto).into(),
    };
    Tensor::new(dtype, &shape, bytes).map_err(|error| error.to_string())
}

/// The elements from the field that `onnx.proto` gives their type.
fn typed(dtype: DataType, proto: &TensorProto) -> Vec<u8> {
    fn all<T: Element>(values: impl Iterator<Item = T>) -> Vec<u8> {
        let mut bytes = Vec::new();
        values.for_each(|value| value.write(&mut bytes));
        bytes
    }
    let ints = proto.int32_data.iter();
    match dtype {
        DataType::Float | DataType::Complex64 => all(proto.float_data.iter().copied()),
        DataType::Double | DataType::Complex128 => all(proto.double_data.iter().copied()),
        DataType::Int64 => all(proto.int64_data.iter().copied()),
        DataType::Uint64 => all(proto.uint64_data.iter().copied()),
        DataType::Uint32 => all(proto.uint64_data.iter().map(|&v| v as u32)),
        DataType::Int32 => all(ints.copied()),
        DataType::Int16 | DataType::Uint16 | DataType::Float16 | DataType::Bfloat16 => {
            all(ints.map(|&v| v as u16))
        }
        // 8-bit types have an entry an element, narrower ones an entry a packed byte.
        _ => all(ints.map(|&v| v as u8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> PortKind {
        PortKind::Tensor { dtype: DataType::Float, dims: None }
    }

    fn tensor_value(proto: &TensorProto) -> Result<Tensor, String> {
        decode(proto.encode_to_vec().into(), &kind()).map(|(_, value)| value.as_tensor().unwrap().clone())
    }

    #[test]
    fn typed_and_raw_fields_give_the_same_tensor() {
        let typed = TensorProto {
            dims: vec![2],
            data_type: 10,
            int32_data: vec![0x3c00, 0xc000],
            name: "x".into(),
            ..TensorProto::default()
        };
        let raw = TensorProto {
            int32_data: vec![],
            raw_data: Some(Bytes::from_static(&[0, 0x3c, 0, 0xc0])),
            ..typed.clone()
        };
        assert_eq!(tensor_value(&typed).unwrap().to_f64().unwrap(), [1.0, -2.0]);
        assert_eq!(tensor_value(&typed), tensor_value(&raw));
        assert_eq!(name(&typed.encode_to_vec().into()).as_deref(), Some("x"));
    }

    #[test]
    fn hostile_tensors_are_refused() {
        let base = TensorProto { dims: vec![2], data_type: 1, ..TensorProto::default() };
        let text = |proto: TensorProto| tensor_value(&proto).unwrap_err();
        assert_eq!(text(base.clone()), "a float tensor of shape [2] takes 8 bytes, not 0");
        assert_eq!(text(TensorProto { dims: vec![-1], ..base.clone() }), "a dimension is negative");
        assert!(text(TensorProto { dims: vec![i64::MAX, 4], ..base.clone() }).contains("too large"));
        assert_eq!(text(TensorProto { data_type: 99, ..base.clone() }), "no element type has the number 99");
        assert!(text(TensorProto { data_location: 1, ..base }).contains("another"));
        assert!(decode(Bytes::from_static(b"\xff\xff"), &kind()).is_err());
    }

    #[test]
    fn sequences_and_optionals_nest() {
        let one = TensorProto { data_type: 7, int64_data: vec![5], ..TensorProto::default() };
        let list = vec![one.clone(), one];
        let sequence = SequenceProto { tensors: list.clone(), ..SequenceProto::default() };
        let proto = OptionalProto { sequence: Some(sequence), ..OptionalProto::default() };
        let longs = PortKind::Tensor { dtype: DataType::Int64, dims: None };
        let kind = PortKind::Optional(Box::new(PortKind::Sequence(Box::new(longs))));
        let (_, value) = decode(proto.encode_to_vec().into(), &kind).unwrap();
        let five = Value::Tensor(Tensor::scalar(5_i64));
        let wanted = Value::Optional(Some(Box::new(Value::Sequence(vec![five.clone(), five]))));
        assert_eq!(value, wanted);
        // The same without the message around it.
        let bare = SequenceProto { elem_type: 1, tensors: list, ..SequenceProto::default() };
        let bare = decode(bare.encode_to_vec().into(), &kind).unwrap();
        assert_eq!(bare.1, value);
        let (_, value) = decode(OptionalProto::default().encode_to_vec().into(), &kind).unwrap();
        assert_eq!(value, Value::Optional(None));
    }
}
