//! Element types in ONNX Runtime's numbering, which differs from ONNX's from the 2-bit integers on.

use ort::value::TensorElementType as O;
use pare_graph::DataType::{self, self as D};

const TYPES: [(DataType, O); 26] = [
    (D::Float, O::Float32),
    (D::Uint8, O::Uint8),
    (D::Int8, O::Int8),
    (D::Uint16, O::Uint16),
    (D::Int16, O::Int16),
    (D::Int32, O::Int32),
    (D::Int64, O::Int64),
    (D::String, O::String),
    (D::Bool, O::Bool),
    (D::Float16, O::Float16),
    (D::Double, O::Float64),
    (D::Uint32, O::Uint32),
    (D::Uint64, O::Uint64),
    (D::Complex64, O::Complex64),
    (D::Complex128, O::Complex128),
    (D::Bfloat16, O::Bfloat16),
    (D::Float8E4M3Fn, O::Float8E4M3FN),
    (D::Float8E4M3Fnuz, O::Float8E4M3FNUZ),
    (D::Float8E5M2, O::Float8E5M2),
    (D::Float8E5M2Fnuz, O::Float8E5M2FNUZ),
    (D::Uint4, O::Uint4),
    (D::Int4, O::Int4),
    (D::Float4E2M1, O::Float4E2M1),
    (D::Float8E8M0, O::Float8E8M0),
    (D::Uint2, O::Uint2),
    (D::Int2, O::Int2),
];

pub(super) fn to_ort(dtype: DataType) -> Option<O> {
    TYPES.iter().find(|pair| pair.0 == dtype).map(|pair| pair.1)
}

pub(super) fn from_ort(dtype: O) -> Option<DataType> {
    TYPES.iter().find(|pair| pair.1 == dtype).map(|pair| pair.0)
}
