//! Subnormal numbers, which processors compute up to a hundred times slower than others.

use pare_graph::{DataType, Tensor};

/// Returns the smallest normal number of a type whose subnormal numbers are negligible: those of half precision are not.
fn least_normal(dtype: DataType) -> Option<f64> {
    match dtype {
        DataType::Float => Some(f64::from(f32::MIN_POSITIVE)),
        DataType::Double => Some(f64::MIN_POSITIVE),
        _ => None,
    }
}

/// Sets values that would be subnormal in this type to zero. Returns their number.
pub fn flush_subnormals(values: &mut [f64], dtype: DataType) -> usize {
    let Some(least) = least_normal(dtype) else { return 0 };
    values.iter_mut().filter(|v| **v != 0.0 && v.abs() < least).map(|v| *v = 0.0).count()
}

/// Returns true if a tensor of floats or doubles holds a subnormal number.
pub fn has_subnormals(tensor: &Tensor) -> bool {
    let bytes = tensor.bytes();
    match tensor.dtype() {
        DataType::Float => bytes.as_chunks().0.iter().any(|&b| f32::from_le_bytes(b).is_subnormal()),
        DataType::Double => bytes.as_chunks().0.iter().any(|&b| f64::from_le_bytes(b).is_subnormal()),
        _ => false,
    }
}
