//! Subnormal numbers, which processors compute up to a hundred times slower than others.

use pare_graph::{DataType, Tensor};

/// Beside weights of at least this size, all subnormal ones together are far below rounding. Where all are smaller, a
/// later scale may undo it.
const LEAST_SCALE: f64 = 1e-20;

/// Returns the smallest normal number of a type whose subnormal numbers are negligible: those of half precision are not.
fn least_normal(dtype: DataType) -> Option<f64> {
    match dtype {
        DataType::Float => Some(f64::from(f32::MIN_POSITIVE)),
        DataType::Double => Some(f64::MIN_POSITIVE),
        _ => None,
    }
}

/// Sets weights that would be subnormal in this type to zero, unless all of them are tiny. Returns their number.
pub fn flush_subnormals(values: &mut [f64], dtype: DataType) -> u64 {
    let Some(least) = least_normal(dtype) else { return 0 };
    if values.iter().all(|v| v.abs() < LEAST_SCALE) {
        return 0;
    }
    values.iter_mut().filter(|v| **v != 0.0 && v.abs() < least).map(|v| *v = 0.0).count() as u64
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
