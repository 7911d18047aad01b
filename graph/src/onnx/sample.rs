//! Values in files, as in the test data sets of ONNX.

use super::{
    ReadError,
    read::decode,
    tensor::{EXTERNAL, sparse_from, tensor_from, tensor_to},
    types::element_type,
    wire,
};
use crate::{
    DataType, SparseTensor, Tensor, TypeKind,
    proto::{MapProto, OptionalProto, SequenceProto, SparseTensorProto, TensorProto},
};
use bytes::Bytes;
use prost::Message;

/// A value of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A dense tensor.
    Tensor(Tensor),
    /// A sparse tensor.
    SparseTensor(SparseTensor),
    /// A sequence of values.
    Sequence(Vec<Item>),
    /// Keys, a vector of integers or strings, and their values.
    Map(Tensor, Vec<Item>),
    /// An optional value, or its absence.
    Optional(Option<Box<Item>>),
}

/// Reads a tensor (ONNX `TensorProto`).
pub fn tensor_from_bytes(bytes: &[u8]) -> Result<Tensor, ReadError> {
    tensor(message::<TensorProto>(bytes, "TensorProto")?)
}

/// The name in a tensor file, if it has one.
pub fn tensor_name(bytes: &[u8]) -> Option<String> {
    message::<TensorProto>(bytes, "TensorProto").ok()?.name.filter(|name| !name.is_empty())
}

/// The bytes of a file with a tensor named `name`.
pub fn tensor_to_bytes(tensor: &Tensor, name: &str) -> Vec<u8> {
    let mut proto = tensor_to(tensor, Some(name));
    if proto.data_location.take_if(|l| *l == EXTERNAL).is_some() {
        proto.external_data.clear();
    }
    proto.encode_to_vec()
}

/// Reads a value of the kind that the model declares, since the file does not contain it. The message of an
/// optional value may be that of the value itself, as in the tests of ONNX.
pub fn value_from_bytes(bytes: &[u8], kind: &TypeKind) -> Result<Item, ReadError> {
    match kind {
        TypeKind::Sequence(_) => sequence(message(bytes, "SequenceProto")?).map(Item::Sequence),
        TypeKind::Optional(inner) => match (message::<OptionalProto>(bytes, "OptionalProto"), inner) {
            (Ok(proto), inner) if inner.as_ref().is_none_or(|t| holds(&proto, &t.kind)) => optional(proto),
            (_, Some(inner)) => {
                value_from_bytes(bytes, &inner.kind).map(|i| Item::Optional(Some(Box::new(i))))
            }
            (proto, None) => optional(proto?),
        },
        TypeKind::Map { .. } => map(message(bytes, "MapProto")?),
        TypeKind::SparseTensor { .. } => sparse(message(bytes, "SparseTensorProto")?),
        _ => tensor_from_bytes(bytes).map(Item::Tensor),
    }
}

fn message<M: Message + Default>(bytes: &[u8], name: &str) -> Result<M, ReadError> {
    // The message of an empty sequence may have no bytes.
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
        return Err(refuse("has different numbers of keys and values"));
    }
    Ok(Item::Map(keys, values))
}

/// Returns true if the optional contains a value of this kind or nothing. The bytes of a sequence may decode
/// as an optional of another kind.
fn holds(proto: &OptionalProto, kind: &TypeKind) -> bool {
    let [tensor, sparse, sequence, map, optional] = [
        proto.tensor_value.is_some(),
        proto.sparse_tensor_value.is_some(),
        proto.sequence_value.is_some(),
        proto.map_value.is_some(),
        proto.optional_value.is_some(),
    ];
    let is_of_kind = match kind {
        TypeKind::Tensor { .. } => tensor,
        TypeKind::SparseTensor { .. } => sparse,
        TypeKind::Sequence(_) => sequence,
        TypeKind::Map { .. } => map,
        TypeKind::Optional(_) => optional,
        TypeKind::Unset | TypeKind::Opaque { .. } => true,
    };
    is_of_kind || ![tensor, sparse, sequence, map, optional].contains(&true)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(values: &[i64]) -> TensorProto {
        tensor_to(&Tensor::vector(values), None)
    }

    #[test]
    fn tensors_round_trip() {
        let t = Tensor::from_slice(&[2, 1], &[1.5_f32, -2.0]).unwrap();
        let file = tensor_to_bytes(&t, "input");
        assert_eq!((tensor_from_bytes(&file).unwrap(), tensor_name(&file)), (t, Some("input".into())));
        assert_eq!((tensor_name(b""), tensor_name(b"\xff\xff")), (None, None));
        assert_eq!(tensor_from_bytes(b"").unwrap_err().to_string(), "the file is empty");
        let external = TensorProto { raw_data: None, data_location: Some(EXTERNAL), ..plain(&[1]) };
        let why = tensor_from_bytes(&external.encode_to_vec()).unwrap_err().to_string();
        assert_eq!(why, "a sample has its data in another file");
    }

    #[test]
    fn reads_sequences_maps_and_optionals() {
        let sequence = TypeKind::Sequence(None);
        let item = |values: &[i64]| Item::Tensor(Tensor::vector(values));
        let two = SequenceProto { tensor_values: vec![plain(&[1]), plain(&[2, 3])], ..Default::default() };
        let read = value_from_bytes(&two.encode_to_vec(), &sequence).unwrap();
        assert_eq!(read, Item::Sequence(vec![item(&[1]), item(&[2, 3])]));
        assert_eq!(value_from_bytes(b"", &sequence).unwrap(), Item::Sequence(vec![]));

        let optional = TypeKind::Optional(None);
        let none = OptionalProto { name: Some("o".into()), elem_type: Some(1), ..Default::default() };
        let some = OptionalProto { sequence_value: Some(two.clone()), ..none.clone() };
        assert_eq!(value_from_bytes(&none.encode_to_vec(), &optional).unwrap(), Item::Optional(None));
        let read = value_from_bytes(&some.encode_to_vec(), &optional).unwrap();
        assert_eq!(read, Item::Optional(Some(Box::new(Item::Sequence(vec![item(&[1]), item(&[2, 3])])))));
        let both = OptionalProto { tensor_value: Some(plain(&[1])), ..some };
        assert!(value_from_bytes(&both.encode_to_vec(), &optional).is_err());

        // A sequence without the message of the optional.
        let inner = crate::Type { kind: TypeKind::Sequence(None), denotation: None };
        let wrapped = TypeKind::Optional(Some(Box::new(inner)));
        assert_eq!(value_from_bytes(&two.encode_to_vec(), &wrapped).unwrap(), read);
        assert_eq!(value_from_bytes(&none.encode_to_vec(), &wrapped).unwrap(), Item::Optional(None));

        let kind = TypeKind::Map { key: None, value: None };
        let map = MapProto { key_type: Some(6), keys: vec![-1, 7], values: Some(two), ..Default::default() };
        let read = value_from_bytes(&map.encode_to_vec(), &kind).unwrap();
        assert_eq!(read, Item::Map(Tensor::vector(&[-1_i32, 7]), vec![item(&[1]), item(&[2, 3])]));
        let short = MapProto { keys: vec![1], ..map };
        let why = value_from_bytes(&short.encode_to_vec(), &kind).unwrap_err().to_string();
        assert_eq!(why, "a map has different numbers of keys and values");
    }

    #[test]
    fn rejects_deep_sequences() {
        let mut bytes = vec![];
        for _ in 0..10_000 {
            let mut outer = vec![0x2a];
            prost::encode_length_delimiter(bytes.len(), &mut outer).unwrap();
            outer.extend(&bytes);
            bytes = outer;
        }
        let why = value_from_bytes(&bytes, &TypeKind::Sequence(None)).unwrap_err().to_string();
        assert_eq!(why, "messages are nested deeper than 100 levels");
    }
}
