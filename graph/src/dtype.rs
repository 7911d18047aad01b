//! Element types of tensors (ONNX `TensorProto.DataType`).

use std::{fmt, str::FromStr};

/// The element type of a tensor, numbered as in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4M3Fn = 17,
    Float8E4M3Fnuz = 18,
    Float8E5M2 = 19,
    Float8E5M2Fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2M1 = 23,
    Float8E8M0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2M3 = 27,
    Float6E3M2 = 28,
}

use DataType as T;

/// Every element type with its name in ONNX textual syntax and its width in bits (0: no fixed width).
const TABLE: &[(T, &str, u32)] = &[
    (T::Float, "float", 32),
    (T::Uint8, "uint8", 8),
    (T::Int8, "int8", 8),
    (T::Uint16, "uint16", 16),
    (T::Int16, "int16", 16),
    (T::Int32, "int32", 32),
    (T::Int64, "int64", 64),
    (T::String, "string", 0),
    (T::Bool, "bool", 8),
    (T::Float16, "float16", 16),
    (T::Double, "double", 64),
    (T::Uint32, "uint32", 32),
    (T::Uint64, "uint64", 64),
    (T::Complex64, "complex64", 64),
    (T::Complex128, "complex128", 128),
    (T::Bfloat16, "bfloat16", 16),
    (T::Float8E4M3Fn, "float8e4m3fn", 8),
    (T::Float8E4M3Fnuz, "float8e4m3fnuz", 8),
    (T::Float8E5M2, "float8e5m2", 8),
    (T::Float8E5M2Fnuz, "float8e5m2fnuz", 8),
    (T::Uint4, "uint4", 4),
    (T::Int4, "int4", 4),
    (T::Float4E2M1, "float4e2m1", 4),
    (T::Float8E8M0, "float8e8m0", 8),
    (T::Uint2, "uint2", 2),
    (T::Int2, "int2", 2),
    (T::Float6E2M3, "float6e2m3", 6),
    (T::Float6E3M2, "float6e3m2", 6),
];

impl DataType {
    /// The type with this number in `TensorProto.DataType`.
    pub fn from_number(number: i32) -> Option<Self> {
        let (dtype, ..) = *TABLE.get(usize::try_from(number.checked_sub(1)?).ok()?)?;
        Some(dtype)
    }

    /// The number in `TensorProto.DataType`.
    pub fn number(self) -> i32 {
        self as i32
    }

    /// The name in ONNX textual syntax.
    pub fn name(self) -> &'static str {
        TABLE[self as usize - 1].1
    }

    /// Bits per element; 0 for strings.
    pub fn bits(self) -> u32 {
        TABLE[self as usize - 1].2
    }

    /// Bytes that `count` packed elements occupy; `None` for strings and on overflow.
    pub fn bytes_for(self, count: usize) -> Option<usize> {
        match self.bits() as usize {
            0 => None,
            bits if bits < 8 => Some(count.checked_mul(bits)?.div_ceil(8)),
            bits => count.checked_mul(bits / 8),
        }
    }

    /// Returns true if the type is a real floating-point type of any width.
    pub fn is_float(self) -> bool {
        use T::{
            Bfloat16, Double, Float, Float4E2M1, Float6E2M3, Float6E3M2, Float8E4M3Fn, Float8E4M3Fnuz,
            Float8E5M2, Float8E5M2Fnuz, Float8E8M0, Float16,
        };
        matches!(
            self,
            Float
                | Double
                | Float16
                | Bfloat16
                | Float8E4M3Fn
                | Float8E4M3Fnuz
                | Float8E5M2
                | Float8E5M2Fnuz
                | Float8E8M0
                | Float6E2M3
                | Float6E3M2
                | Float4E2M1
        )
    }

    /// Returns true if the type is a signed or unsigned integer type, which `Bool` is not.
    pub fn is_integer(self) -> bool {
        !self.is_float() && !matches!(self, T::String | T::Bool | T::Complex64 | T::Complex128)
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataType {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        TABLE.iter().find(|t| t.1 == name).map(|t| t.0).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_ordered_by_number() {
        for (i, &(dtype, name, _)) in TABLE.iter().enumerate() {
            assert_eq!(dtype.number() as usize, i + 1);
            assert_eq!(DataType::from_number(dtype.number()), Some(dtype));
            assert_eq!(name.parse(), Ok(dtype));
        }
        assert_eq!(DataType::from_number(0), None);
        assert_eq!(DataType::from_number(29), None);
        assert_eq!(DataType::Int4.bytes_for(3), Some(2));
        assert_eq!(DataType::Float6E2M3.bytes_for(3), Some(3));
    }
}
