//! Decoding and encoding of tensors. Elements are in `raw_data`, in one of six typed lists, or in another
//! file.

use super::{ReadError, metadata_from, metadata_to};
use crate::{
    DataType, SparseTensor, Tensor, element_count, pack_bits,
    proto::{SparseTensorProto, TensorProto, tensor_proto},
    tensor::{Origin, Storage},
};
use bytes::Bytes;
use std::sync::Arc;

/// `data_location` of a tensor with external data.
pub(super) const EXTERNAL: i32 = tensor_proto::DataLocation::External as i32;

/// Description of a tensor for messages.
pub(super) fn describe(proto: &TensorProto) -> String {
    match proto.name() {
        "" => "a tensor without name".into(),
        name => format!("the tensor `{name}`"),
    }
}

/// Element type and shape of a tensor.
pub(super) fn layout(proto: &TensorProto) -> Result<(DataType, Vec<usize>), ReadError> {
    let refuse = |why: String| ReadError::invalid(describe(proto), why);
    let dtype = match proto.data_type {
        None | Some(0) => return Err(refuse("has no element type".into())),
        Some(n) => {
            DataType::from_number(n).ok_or_else(|| refuse(format!("has the unknown element type {n}")))?
        }
    };
    let size = |&d: &i64| usize::try_from(d).map_err(|_| refuse(format!("has a dimension of size {d}")));
    Ok((dtype, proto.dims.iter().map(size).collect::<Result<_, _>>()?))
}

/// A tensor. External data must have been loaded to `raw_data`.
pub(super) fn tensor_from(mut proto: TensorProto) -> Result<Tensor, ReadError> {
    let object = describe(&proto);
    let refuse = |why: String| ReadError::invalid(object.clone(), why);
    let (dtype, shape) = layout(&proto)?;
    if let Some(location) = proto.data_location.filter(|l| ![0, EXTERNAL].contains(l)) {
        return Err(refuse(format!("has the unknown data location {location}")));
    }
    let filled = filled_lists(&proto);
    let raw = proto.raw_data.take();
    if let (Some(_), [list, ..]) = (&raw, &filled[..]) {
        return Err(refuse(format!("has both raw_data and {list}")));
    }
    if let Some(list) = filled.iter().find(|&&l| l != list_of(dtype)) {
        return Err(refuse(format!("of {dtype} elements has {list}")));
    }
    let misfit = |e: crate::TensorError| refuse(format!("does not fill its shape: {e}"));
    let (tensor, storage) = match raw {
        Some(_) if dtype == DataType::String => {
            return Err(refuse("has strings in raw_data".into()));
        }
        Some(raw) => (Tensor::new(dtype, &shape, raw).map_err(misfit)?, Storage::Raw),
        None if dtype == DataType::String => {
            let items = std::mem::take(&mut proto.string_data);
            (Tensor::strings(&shape, items).map_err(misfit)?, Storage::Typed)
        }
        None => {
            // Three and four 6-bit elements have the same number of bytes, so elements are counted before
            // packing.
            if dtype.bits() == 6 && Some(proto.int32_data.len()) != element_count(&shape) {
                let (got, want) = (proto.int32_data.len(), element_count(&shape).unwrap_or(usize::MAX));
                return Err(refuse(format!("does not fill its shape: {got} elements for {want}")));
            }
            let data = pack(dtype, &mut proto).ok_or_else(|| refuse("has a number too large".into()))?;
            let tensor = Tensor::new(dtype, &shape, data).map_err(misfit)?;
            let integers = std::mem::take(&mut proto.int32_data);
            let same = integers.is_empty() || integers == unpack_int32(&tensor);
            (tensor, if same { Storage::Typed } else { Storage::Integers(integers) })
        }
    };
    Ok(tensor.with_origin(Origin {
        storage,
        name: proto.name,
        doc: proto.doc_string,
        metadata: metadata_from(proto.metadata_props),
        segment: proto.segment.map(|s| (s.begin, s.end)),
        location: proto.data_location,
        external: metadata_from(proto.external_data),
    }))
}

fn filled_lists(proto: &TensorProto) -> Vec<&'static str> {
    let lists = [
        ("float_data", proto.float_data.len()),
        ("int32_data", proto.int32_data.len()),
        ("string_data", proto.string_data.len()),
        ("int64_data", proto.int64_data.len()),
        ("double_data", proto.double_data.len()),
        ("uint64_data", proto.uint64_data.len()),
    ];
    lists.iter().filter(|l| l.1 > 0).map(|l| l.0).collect()
}

/// The typed list for elements of this type.
fn list_of(dtype: DataType) -> &'static str {
    match dtype {
        DataType::Float | DataType::Complex64 => "float_data",
        DataType::Double | DataType::Complex128 => "double_data",
        DataType::Int64 => "int64_data",
        DataType::Uint32 | DataType::Uint64 => "uint64_data",
        DataType::String => "string_data",
        _ => "int32_data",
    }
}

/// The typed list as packed little-endian elements; `None` if a number exceeds its type.
fn pack(dtype: DataType, proto: &mut TensorProto) -> Option<Bytes> {
    let mut data = vec![];
    match dtype {
        DataType::Float | DataType::Complex64 => {
            let list = std::mem::take(&mut proto.float_data);
            data.reserve_exact(list.len() * 4);
            list.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes()));
        }
        DataType::Double | DataType::Complex128 => {
            proto.double_data.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes()));
        }
        DataType::Int64 => proto.int64_data.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes())),
        DataType::Uint64 => proto.uint64_data.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes())),
        DataType::Uint32 => {
            for &v in &proto.uint64_data {
                data.extend_from_slice(&u32::try_from(v).ok()?.to_le_bytes());
            }
        }
        DataType::Bool => data.extend(proto.int32_data.iter().map(|&v| u8::from(v != 0))),
        _ if dtype.bits() == 6 => {
            let codes: Vec<_> = proto.int32_data.iter().map(|&code| code as u8).collect();
            data = pack_bits(6, &codes);
        }
        // Below 8 bits each number is a byte that holds several elements.
        _ => {
            let width = dtype.bits().div_ceil(8) as usize;
            proto.int32_data.iter().for_each(|v| data.extend_from_slice(&v.to_le_bytes()[..width]));
        }
    }
    Some(data.into())
}

/// The elements as `int32_data`.
fn unpack_int32(tensor: &Tensor) -> Vec<i32> {
    let bytes = tensor.bytes();
    match tensor.dtype() {
        DataType::Int32 => {
            bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
        }
        DataType::Int16 => bytes.chunks_exact(2).map(|c| i16::from_le_bytes([c[0], c[1]]).into()).collect(),
        DataType::Int8 => bytes.iter().map(|&b| i32::from(b as i8)).collect(),
        dtype if dtype.bits() == 16 => {
            bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]).into()).collect()
        }
        dtype if dtype.bits() == 6 => tensor.codes().map(i32::from).collect(),
        _ => bytes.iter().map(|&b| b.into()).collect(),
    }
}

/// The message of a tensor. `name` is the name of its value; by default the name in its file. External data
/// is in `raw_data`; the writer moves it to the data file.
pub(super) fn tensor_to(tensor: &Tensor, name: Option<&str>) -> TensorProto {
    let fresh = Origin::default();
    let origin = tensor.origin.as_deref().unwrap_or(&fresh);
    let mut proto = TensorProto {
        dims: tensor.shape().iter().map(|&d| d as i64).collect(),
        data_type: Some(tensor.dtype().number()),
        name: name.map(str::to_owned).or_else(|| origin.name.clone()),
        doc_string: origin.doc.clone(),
        metadata_props: metadata_to(&origin.metadata),
        segment: origin.segment.map(|(begin, end)| tensor_proto::Segment { begin, end }),
        data_location: origin.location,
        external_data: metadata_to(&origin.external),
        ..TensorProto::default()
    };
    match &origin.storage {
        Storage::Integers(numbers) => proto.int32_data.clone_from(numbers),
        Storage::Raw if tensor.as_strings().is_none() => proto.raw_data = Some(tensor.bytes().clone()),
        Storage::Raw | Storage::Typed => fill_list(tensor, &mut proto),
    }
    proto
}

/// Stores the elements in the typed list of their type.
fn fill_list(tensor: &Tensor, proto: &mut TensorProto) {
    let bytes = tensor.bytes();
    let fours = || bytes.chunks_exact(4).map(|c| [c[0], c[1], c[2], c[3]]);
    let eights = || bytes.chunks_exact(8).map(|c| [c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
    match list_of(tensor.dtype()) {
        "float_data" => proto.float_data = fours().map(f32::from_le_bytes).collect(),
        "double_data" => proto.double_data = eights().map(f64::from_le_bytes).collect(),
        "int64_data" => proto.int64_data = eights().map(i64::from_le_bytes).collect(),
        "uint64_data" if tensor.dtype() == DataType::Uint32 => {
            proto.uint64_data = fours().map(|c| u32::from_le_bytes(c).into()).collect();
        }
        "uint64_data" => proto.uint64_data = eights().map(u64::from_le_bytes).collect(),
        "string_data" => proto.string_data = tensor.as_strings().unwrap_or_default().to_vec(),
        _ => proto.int32_data = unpack_int32(tensor),
    }
}

/// A sparse tensor.
pub(super) fn sparse_from(proto: SparseTensorProto, of: &str) -> Result<SparseTensor, ReadError> {
    let missing = |what| ReadError::invalid(of, format!("has a sparse tensor without {what}"));
    let values = tensor_from(proto.values.ok_or_else(|| missing("values"))?)?;
    let indices = tensor_from(proto.indices.ok_or_else(|| missing("indices"))?)?;
    Ok(SparseTensor::new(values, indices, proto.dims))
}

pub(super) fn sparse_to(sparse: &SparseTensor, name: Option<&str>) -> SparseTensorProto {
    let values = Some(tensor_to(&sparse.values, name));
    let indices = Some(tensor_to(&sparse.indices, None));
    SparseTensorProto { values, indices, dims: sparse.dims.clone() }
}

impl Tensor {
    pub(crate) fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = Some(Arc::new(origin));
        self
    }
}
