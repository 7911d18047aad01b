//! Values in files, as the data sets of ONNX's tests hold them.

use super::{
    ReadError,
    proto::{MapProto, OptionalProto, SequenceProto, SparseTensorProto, TensorProto},
    read::decode,
    tensor::{EXTERNAL, sparse_from, tensor_from, tensor_to},
    types::element_type,
    wire,
};
use crate::{DataType, SparseTensor, Tensor, TypeKind};
use bytes::Bytes;
use prost::Message;

/// A value of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A dense tensor.
    Tensor(Tensor),
    /// A sparse one.
    SparseTensor(SparseTensor),
    /// A sequence of values.
    Sequence(Vec<Item>),
    /// Keys (a vector of integers or strings) and as many values.
    Map(Tensor, Vec<Item>),
    /// An optional value, or its absence.
    Optional(Option<Box<Item>>),
}

/// Read a tensor (ONNX `TensorProto`).
pub fn tensor_from_bytes(bytes: &[u8]) -> Result<Tensor, ReadError> {
    tensor(message::<TensorProto>(bytes, "TensorProto")?)
}

/// The bytes of a tensor file, `name` inside.
pub fn tensor_to_bytes(tensor: &Tensor, name: &str) -> Vec<u8> {
    let mut proto = tensor_to(tensor, Some(name));
    if proto.data_location.take_if(|l| *l == EXTERNAL).is_some() {
        proto.external_data.clear();
    }
    proto.encode_to_vec()
}

/// Read a value of the kind that the model declares; the file itself does not tell.
pub fn value_from_bytes(bytes: &[u8], kind: &TypeKind) -> Result<Item, ReadError> {
    match kind {
        TypeKind::Sequence(_) => sequence(message(bytes, "SequenceProto")?).map(Item::Sequence),
        TypeKind::Optional(_) => optional(message(bytes, "OptionalProto")?),
        TypeKind::Map { .. } => map(message(bytes, "MapProto")?),
        TypeKind::SparseTensor { .. } => sparse(message(bytes, "SparseTensorProto")?),
        _ => tensor_from_bytes(bytes).map(Item::Tensor),
    }
}

fn message<M: Message + Default>(bytes: &[u8], name: &str) -> Result<M, ReadError> {
    // A sequence without elements may well be an empty file.
    if bytes.is_empty() && name != "TensorProto" {
        return Ok(M::default());
    }
    wire::check(bytes, name)?;
    decode(Bytes::copy_from_slice(bytes))
}

fn tensor(proto: TensorProto) -> Result<Tensor, ReadError> {
    if proto.data_location == Some(EXTERNAL) {
        return Err(ReadError::invalid("a sample", "has its data in another file"));
    }
    tensor_from(proto)
}

fn sparse(proto: SparseTensorProto) -> Result<Item, ReadError> {
    sparse_from(proto, "a sample").map(Item::SparseTensor)
}

fn sequence(proto: SequenceProto) -> Result<Vec<Item>, ReadError> {
    let tensors = proto.tensor_values.into_iter().map(|t| tensor(t).map(Item::Tensor));
    let sparse = proto.sparse_tensor_values.into_iter().map(sparse);
    let sequences = proto.sequence_values.into_iter().map(|s| sequence(s).map(Item::Sequence));
    let maps = proto.map_values.into_iter().map(map);
    let optionals = proto.optional_values.into_iter().map(optional);
    tensors.chain(sparse).chain(sequences).chain(maps).chain(optionals).collect()
}

fn map(proto: MapProto) -> Result<Item, ReadError> {
    let refuse = |why: &str| ReadError::invalid("a map", why);
    let (ints, strings) = (proto.keys, proto.string_keys);
    let keys = match element_type(proto.key_type, "a map")? {
        Some(DataType::String) if ints.is_empty() => Tensor::strings(&[strings.len()], strings),
        Some(dtype) if strings.is_empty() && dtype.is_integer() && dtype.bits() >= 8 => {
            let width = dtype.bits() as usize / 8;
            let data: Vec<u8> = ints.iter().flat_map(|k| k.to_le_bytes().into_iter().take(width)).collect();
            Tensor::new(dtype, &[ints.len()], data)
        }
        _ => return Err(refuse("has keys that are not of its key type")),
    };
    let keys = keys.map_err(|e| refuse(&e.to_string()))?;
    let values = proto.values.map(sequence).transpose()?.unwrap_or_default();
    if values.len() != keys.len() {
        return Err(refuse("has not as many values as keys"));
    }
    Ok(Item::Map(keys, values))
}

fn optional(proto: OptionalProto) -> Result<Item, ReadError> {
    let items = [
        proto.tensor_value.map(|t| tensor(t).map(Item::Tensor)),
        proto.sparse_tensor_value.map(sparse),
        proto.sequence_value.map(|s| sequence(s).map(Item::Sequence)),
        proto.map_value.map(map),
        proto.optional_value.map(|o| optional(*o)),
    ];
    let mut items = items.into_iter().flatten();
    match (items.next(), items.next()) {
        (first, None) => Ok(Item::Optional(first.transpose()?.map(Box::new))),
        _ => Err(ReadError::invalid("an optional value", "has two values")),
    }
}
