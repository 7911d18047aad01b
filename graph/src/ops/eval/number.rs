//! Conversion of elements to numbers: integers of all types to `i128`, floats of all types to `f64`.
//!
//! Sums, products, quotients and square roots of floats of at most 32 bits may be computed in f64 and rounded
//! to their type: since 53 ≥ 2·24 + 2, double rounding equals single rounding (Figueroa 1995). The same holds
//! for 16 bits, which engines compute in 32 bits.

use super::{Stop, here};
use crate::{DataType, Element, Tensor, pack_bits};
use half::{bf16, f16};

/// Reads one element.
pub(super) type Read<T> = fn(&[u8], usize) -> T;

fn element<T: Element>(bytes: &[u8], i: usize) -> T {
    T::read(&bytes[i * size_of::<T>()..][..size_of::<T>()])
}

/// Returns the reader for floats of this type.
pub(super) fn float_reader(dtype: DataType) -> Result<Read<f64>, Stop> {
    Ok(match dtype {
        DataType::Float => |b, i| f64::from(element::<f32>(b, i)),
        DataType::Double => element::<f64>,
        DataType::Float16 => |b, i| f64::from(element::<f16>(b, i).to_f32()),
        DataType::Bfloat16 => |b, i| f64::from(element::<bf16>(b, i).to_f32()),
        _ => return Err(Stop::NotHere),
    })
}

/// Returns the reader for integers of this type; booleans are read as 0 and 1.
pub(super) fn integer_reader(dtype: DataType) -> Result<Read<i128>, Stop> {
    fn signed<const BITS: usize>(bytes: &[u8], i: usize) -> i128 {
        let (code, sign) = (unsigned::<BITS>(bytes, i), 1 << (BITS - 1));
        (code ^ sign) - sign
    }
    fn unsigned<const BITS: usize>(bytes: &[u8], i: usize) -> i128 {
        i128::from(bytes[i * BITS / 8] >> (i * BITS % 8)) & ((1 << BITS) - 1)
    }
    Ok(match dtype {
        DataType::Bool => |b, i| i128::from(element::<bool>(b, i)),
        DataType::Int64 => |b, i| i128::from(element::<i64>(b, i)),
        DataType::Int32 => |b, i| i128::from(element::<i32>(b, i)),
        DataType::Int16 => |b, i| i128::from(element::<i16>(b, i)),
        DataType::Int8 => |b, i| i128::from(element::<i8>(b, i)),
        DataType::Uint64 => |b, i| i128::from(element::<u64>(b, i)),
        DataType::Uint32 => |b, i| i128::from(element::<u32>(b, i)),
        DataType::Uint16 => |b, i| i128::from(element::<u16>(b, i)),
        DataType::Uint8 => |b, i| i128::from(element::<u8>(b, i)),
        DataType::Int4 => signed::<4>,
        DataType::Uint4 => unsigned::<4>,
        DataType::Int2 => signed::<2>,
        DataType::Uint2 => unsigned::<2>,
        _ => return Err(Stop::NotHere),
    })
}

/// A tensor of floats, each rounded to its type.
pub(super) fn from_floats(
    dtype: DataType,
    shape: &[usize],
    values: impl Iterator<Item = Result<f64, Stop>>,
) -> Result<Tensor, Stop> {
    let write: fn(f64, &mut Vec<u8>) = match dtype {
        DataType::Float => |v, to| (v as f32).write(to),
        DataType::Double => |v, to| v.write(to),
        DataType::Float16 => |v, to| f16::from_f32(v as f32).write(to),
        DataType::Bfloat16 => |v, to| bf16::from_f32(v as f32).write(to),
        _ => return Err(Stop::NotHere),
    };
    let mut data = vec![];
    for value in values {
        write(value?, &mut data);
    }
    Ok(Tensor::new(dtype, shape, data)?)
}

/// A tensor of integers or booleans. Values out of range wrap if `wrapping` is set, else they are `NotHere`.
pub(super) fn from_integers(
    dtype: DataType,
    shape: &[usize],
    wrapping: bool,
    values: impl Iterator<Item = Result<i128, Stop>>,
) -> Result<Tensor, Stop> {
    let (bits, range) = (dtype.bits(), range(dtype)?);
    let mut data = vec![];
    for value in values {
        let value = value?;
        here(wrapping || range.contains(&value))?;
        let bytes = value.to_le_bytes();
        match bits {
            0..8 => data.push(bytes[0] & ((1 << bits) - 1)),
            _ => data.extend_from_slice(&bytes[..bits as usize / 8]),
        }
    }
    let data = if bits < 8 { pack_bits(bits, &data) } else { data };
    Ok(Tensor::new(dtype, shape, data)?)
}

/// The range of an integer type; 0 and 1 for booleans.
pub(super) fn range(dtype: DataType) -> Result<std::ops::RangeInclusive<i128>, Stop> {
    use DataType as D;
    let bits = dtype.bits();
    Ok(match dtype {
        D::Bool => 0..=1,
        D::Int64 | D::Int32 | D::Int16 | D::Int8 | D::Int4 | D::Int2 => {
            -(1 << (bits - 1))..=(1 << (bits - 1)) - 1
        }
        D::Uint64 | D::Uint32 | D::Uint16 | D::Uint8 | D::Uint4 | D::Uint2 => 0..=(1 << bits) - 1,
        _ => return Err(Stop::NotHere),
    })
}

/// Returns true if this is an unsigned integer type, whose arithmetic wraps.
pub(super) fn is_unsigned(dtype: DataType) -> bool {
    use DataType as D;
    matches!(dtype, D::Uint64 | D::Uint32 | D::Uint16 | D::Uint8 | D::Uint4 | D::Uint2)
}
