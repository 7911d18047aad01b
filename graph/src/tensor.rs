//! Constant tensors: element type, shape and bytes.

use crate::{DataType, Metadata};
use bytes::Bytes;
use half::{bf16, f16};
use std::sync::Arc;

/// A dense tensor, row-major. Cloning is cheap: the bytes are shared, and may be a slice of a mapped file.
#[derive(Clone)]
pub struct Tensor {
    dtype: DataType,
    shape: Arc<[usize]>,
    data: Data,
    pub(crate) origin: Option<Arc<Origin>>,
}

#[derive(Clone, PartialEq)]
enum Data {
    /// Little-endian elements; types under 8 bits are packed from the low bits up, as in `raw_data`.
    Packed(Bytes),
    Strings(Arc<[Bytes]>),
}

/// The storage of a tensor in its file, so that an unchanged tensor is written in the same way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Origin {
    pub storage: Storage,
    /// Name, if it is not the name of a value.
    pub name: Option<String>,
    pub doc: Option<String>,
    pub metadata: Metadata,
    pub segment: Option<(Option<i64>, Option<i64>)>,
    /// `data_location`: whether the tensor is stored as external data.
    pub location: Option<i32>,
    /// The entries of `external_data` (location, offset, length, checksum).
    pub external: Metadata,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Storage {
    #[default]
    Raw,
    /// In the typed field of its element type (`float_data`, `int32_data`, …).
    Typed,
    /// In `int32_data`, as these numbers, which the elements do not determine (such as 255 for the int8 -1).
    Integers(Vec<i32>),
}

/// The reason why a tensor cannot be constructed or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The bytes do not fill the shape.
    #[error("a {dtype} tensor of shape {shape:?} takes {wanted} bytes, not {got}")]
    Length {
        /// Element type.
        dtype: DataType,
        /// Shape.
        shape: Vec<usize>,
        /// Bytes that the shape requires.
        wanted: usize,
        /// Bytes given.
        got: usize,
    },
    /// The shape holds more elements than this machine can address.
    #[error("a tensor of shape {0:?} is too large")]
    TooLarge(Vec<usize>),
    /// The operation is not defined for this element type.
    #[error("{0} elements cannot be read as {1}")]
    Type(DataType, &'static str),
}

/// Rust types that correspond to ONNX element types.
pub trait Element: Copy + 'static {
    /// The element type.
    const DTYPE: DataType;
    /// Reads an element from `size_of::<Self>()` little-endian bytes.
    fn read(bytes: &[u8]) -> Self;
    /// Writes the element as `size_of::<Self>()` little-endian bytes.
    fn store(self, to: &mut [u8]);
    /// Appends the element as little-endian bytes.
    fn write(self, to: &mut Vec<u8>) {
        let end = to.len();
        to.resize(end + size_of::<Self>(), 0);
        self.store(&mut to[end..]);
    }
}

macro_rules! elements {
    ($($rust:ty: $dtype:ident),*) => {$(
        impl Element for $rust {
            const DTYPE: DataType = DataType::$dtype;
            #[inline]
            fn read(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<Self>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }
            fn store(self, to: &mut [u8]) {
                to.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
elements!(f32: Float, f64: Double, f16: Float16, bf16: Bfloat16, u8: Uint8, i8: Int8, u16: Uint16,
          i16: Int16, u32: Uint32, i32: Int32, u64: Uint64, i64: Int64);

impl Element for bool {
    const DTYPE: DataType = DataType::Bool;
    fn read(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
    fn store(self, to: &mut [u8]) {
        to[0] = u8::from(self);
    }
}

/// The elements as little-endian bytes.
fn packed<T: Element>(values: impl ExactSizeIterator<Item = T>) -> Vec<u8> {
    let mut data = vec![0; values.len() * size_of::<T>()];
    data.chunks_exact_mut(size_of::<T>()).zip(values).for_each(|(to, value)| value.store(to));
    data
}

/// Packs elements of `bits` bits, each given as a byte, from the low bits up as in `raw_data`. Elements of 8
/// bits are returned as they are.
pub fn pack_bits(bits: u32, codes: &[u8]) -> Vec<u8> {
    if bits >= 8 {
        return codes.to_vec();
    }
    let bits = bits as usize;
    let mut data = vec![0; (codes.len() * bits).div_ceil(8)];
    for (i, &code) in codes.iter().enumerate() {
        let (byte, shift) = (i * bits / 8, i * bits % 8);
        let window = u16::from(code & ((1 << bits) - 1)) << shift;
        data[byte] |= window as u8;
        if let Some(next) = data.get_mut(byte + 1) {
            *next |= (window >> 8) as u8;
        }
    }
    data
}

/// The number of elements of `shape`; `None` on overflow.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))
}

impl Tensor {
    /// A tensor of packed little-endian `data`.
    ///
    /// # Errors
    ///
    /// `data` does not have the size that type and shape require.
    pub fn new(dtype: DataType, shape: &[usize], data: impl Into<Bytes>) -> Result<Self, TensorError> {
        let data = data.into();
        let too_large = || TensorError::TooLarge(shape.to_vec());
        let count = element_count(shape).ok_or_else(too_large)?;
        let wanted = match dtype {
            DataType::String => return Err(TensorError::Type(dtype, "bytes")),
            _ => dtype.bytes_for(count).ok_or_else(too_large)?,
        };
        if data.len() != wanted {
            let (shape, got) = (shape.to_vec(), data.len());
            return Err(TensorError::Length { dtype, shape, wanted, got });
        }
        Ok(Self { dtype, shape: shape.into(), data: Data::Packed(data), origin: None })
    }

    /// A tensor of strings, which may be any bytes.
    pub fn strings(shape: &[usize], items: Vec<Bytes>) -> Result<Self, TensorError> {
        let (dtype, got) = (DataType::String, items.len());
        match element_count(shape) {
            Some(wanted) if wanted == got => {}
            Some(wanted) => {
                let shape = shape.to_vec();
                return Err(TensorError::Length { dtype, shape, wanted, got });
            }
            None => return Err(TensorError::TooLarge(shape.to_vec())),
        }
        Ok(Self { dtype, shape: shape.into(), data: Data::Strings(items.into()), origin: None })
    }

    /// A tensor of `values` in row-major order.
    pub fn from_slice<T: Element>(shape: &[usize], values: &[T]) -> Result<Self, TensorError> {
        Self::new(T::DTYPE, shape, packed(values.iter().copied()))
    }

    /// A tensor of rank 1.
    pub fn vector<T: Element>(values: &[T]) -> Self {
        Self::from_slice(&[values.len()], values).expect("the shape matches the values")
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::from_slice(&[], &[value]).expect("a scalar holds one value")
    }

    /// A tensor of `values` rounded to `dtype`: a float type of at least 16 bits, an integer type of at least
    /// 8 bits, or bool. Integers are rounded half to even and saturate.
    pub fn from_f64(dtype: DataType, shape: &[usize], values: &[f64]) -> Result<Self, TensorError> {
        macro_rules! write {
            ($($d:ident => |$v:ident| $e:expr),* $(,)?) => {
                match dtype {
                    $(DataType::$d => packed(values.iter().map(|&$v| $e)),)*
                    _ => return Err(TensorError::Type(DataType::Double, dtype.name())),
                }
            };
        }
        let data = write! {
            Float => |v| v as f32, Double => |v| v,
            Float16 => |v| f16::from_f64(v), Bfloat16 => |v| bf16::from_f64(v),
            Int8 => |v| v.round_ties_even() as i8, Uint8 => |v| v.round_ties_even() as u8,
            Int16 => |v| v.round_ties_even() as i16, Uint16 => |v| v.round_ties_even() as u16,
            Int32 => |v| v.round_ties_even() as i32, Uint32 => |v| v.round_ties_even() as u32,
            Int64 => |v| v.round_ties_even() as i64, Uint64 => |v| v.round_ties_even() as u64,
            Bool => |v| v != 0.0,
        };
        Self::new(dtype, shape, data)
    }

    /// The elements multiplied by factors in f64 and rounded once, for float types of at least 16 bits. Each
    /// factor is applied to `run` consecutive elements; the factors are repeated cyclically.
    pub fn scaled(&self, run: usize, factors: &[f64]) -> Result<Self, TensorError> {
        let data = match self.dtype {
            DataType::Float => self.scaled_as(run, factors, f64::from, |v| v as f32),
            DataType::Double => self.scaled_as(run, factors, |v: f64| v, |v| v),
            DataType::Float16 => self.scaled_as(run, factors, f64::from, f16::from_f64),
            DataType::Bfloat16 => self.scaled_as(run, factors, f64::from, bf16::from_f64),
            dtype => return Err(TensorError::Type(DataType::Double, dtype.name())),
        };
        Self::new(self.dtype, &self.shape, data)
    }

    fn scaled_as<T: Element>(
        &self,
        run: usize,
        factors: &[f64],
        exact: impl Fn(T) -> f64,
        round: impl Fn(f64) -> T,
    ) -> Vec<u8> {
        let (width, run) = (size_of::<T>(), run.max(1));
        let mut data = vec![0; self.bytes().len()];
        let scale = |from: &[u8], to: &mut [u8], f: f64| round(exact(T::read(from)) * f).store(to);
        let period = (run * width * factors.len()).max(1);
        for (from, to) in self.bytes().chunks(period).zip(data.chunks_mut(period)) {
            if run == 1 {
                let pairs = from.chunks_exact(width).zip(to.chunks_exact_mut(width));
                pairs.zip(factors).for_each(|((from, to), &f)| scale(from, to, f));
                continue;
            }
            for ((from, to), &f) in from.chunks(run * width).zip(to.chunks_mut(run * width)).zip(factors) {
                let pairs = from.chunks_exact(width).zip(to.chunks_exact_mut(width));
                pairs.for_each(|(from, to)| scale(from, to, f));
            }
        }
        data
    }

    /// Tensors of one type, concatenated along the first axis. `None` if there are none, if they are scalars or
    /// strings, or if they differ in type or in another axis. Types below 8 bits are not supported.
    pub fn stacked(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.first().and_then(|first| Some((first, first.shape.get(1..)?)))?;
        let fits = |part: &&Self| part.dtype == first.dtype && part.shape.get(1..) == Some(rest);
        if first.dtype == DataType::String || first.dtype.bits() < 8 || !parts.iter().all(fits) {
            return None;
        }
        let mut data = Vec::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
        parts.iter().for_each(|part| data.extend_from_slice(part.bytes()));
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        let shape: Vec<_> = std::iter::once(rows).chain(rest.iter().copied()).collect();
        Self::new(first.dtype, &shape, data).ok()
    }

    /// These rows, the first axis, in this order. `None` as in [`stacked`](Self::stacked), or for a row that does
    /// not exist.
    pub fn rows(&self, rows: &[usize]) -> Option<Self> {
        let (&count, rest) = self.shape.split_first()?;
        if self.dtype == DataType::String || self.dtype.bits() < 8 {
            return None;
        }
        let size = self.bytes().len() / count.max(1);
        let mut data = Vec::with_capacity(rows.len() * size);
        for &row in rows {
            data.extend_from_slice(self.bytes().get(row * size..(row + 1) * size)?);
        }
        let shape: Vec<_> = std::iter::once(rows.len()).chain(rest.iter().copied()).collect();
        Self::new(self.dtype, &shape, data).ok()
    }

    /// Returns true if no element is infinite or NaN. True for strings and complex numbers.
    pub fn is_finite(&self) -> bool {
        // `fold` does not exit early, so the loop is vectorized.
        match self.dtype {
            DataType::Float => self.elements::<f32>().fold(true, |all, v| all & v.is_finite()),
            DataType::Double => self.elements::<f64>().fold(true, |all, v| all & v.is_finite()),
            _ => self.to_f64().is_none_or(|values| values.iter().all(|v| v.is_finite())),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// The size of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns true if the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The packed little-endian elements; empty for strings.
    pub fn bytes(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match &self.data {
            Data::Packed(bytes) => bytes,
            Data::Strings(_) => &NONE,
        }
    }

    /// The strings of a string tensor.
    pub fn as_strings(&self) -> Option<&[Bytes]> {
        match &self.data {
            Data::Strings(items) => Some(items),
            Data::Packed(_) => None,
        }
    }

    /// Bytes that the elements occupy.
    pub fn size_in_bytes(&self) -> usize {
        match &self.data {
            Data::Packed(bytes) => bytes.len(),
            Data::Strings(items) => items.iter().map(Bytes::len).sum(),
        }
    }

    /// The elements, if they are of type `T`.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::Type(self.dtype, T::DTYPE.name()));
        }
        Ok(self.elements().collect())
    }

    /// The elements of a float tensor without a copy, if alignment and byte order permit.
    pub fn as_f32(&self) -> Option<&[f32]> {
        let is_native = cfg!(target_endian = "little") && self.dtype == DataType::Float;
        is_native.then(|| bytemuck::try_cast_slice(self.bytes()).ok()).flatten()
    }

    fn elements<T: Element>(&self) -> impl Iterator<Item = T> + '_ {
        self.bytes().chunks_exact(size_of::<T>()).map(T::read)
    }

    /// The elements in f64; `None` for strings and complex numbers. 64-bit integers above 2^53 are rounded.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        use DataType as D;
        Some(match self.dtype {
            D::Float => self.elements::<f32>().map(f64::from).collect(),
            D::Double => self.elements::<f64>().collect(),
            D::Float16 => self.elements::<f16>().map(f64::from).collect(),
            D::Bfloat16 => self.elements::<bf16>().map(f64::from).collect(),
            D::Uint64 => self.elements::<u64>().map(|v| v as f64).collect(),
            D::String | D::Complex64 | D::Complex128 => return None,
            dtype if dtype.is_float() => self.codes().map(|c| minifloat(dtype, c)).collect(),
            _ => self.to_i64()?.into_iter().map(|v| v as f64).collect(),
        })
    }

    /// The elements of an integer or bool tensor; `None` for other types and if a `uint64` exceeds
    /// `i64::MAX`.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        use DataType as D;
        let signed = |bits: u32| {
            self.codes().map(move |c| (i64::from(c) ^ (1 << (bits - 1))) - (1 << (bits - 1))).collect()
        };
        Some(match self.dtype {
            D::Int64 => self.elements::<i64>().collect(),
            D::Int32 => self.elements::<i32>().map(i64::from).collect(),
            D::Uint32 => self.elements::<u32>().map(i64::from).collect(),
            D::Int16 => self.elements::<i16>().map(i64::from).collect(),
            D::Uint16 => self.elements::<u16>().map(i64::from).collect(),
            D::Uint64 => self.elements::<u64>().map(|v| i64::try_from(v).ok()).collect::<Option<_>>()?,
            D::Bool => self.elements::<bool>().map(i64::from).collect(),
            D::Int8 | D::Int4 | D::Int2 => signed(self.dtype.bits()),
            D::Uint8 | D::Uint4 | D::Uint2 => self.codes().map(i64::from).collect(),
            _ => return None,
        })
    }

    /// The element of a tensor with one element, in f64.
    pub fn single(&self) -> Option<f64> {
        if self.len() == 1 { self.to_f64()?.first().copied() } else { None }
    }

    /// The element of an integer tensor with one element.
    pub fn single_i64(&self) -> Option<i64> {
        if self.len() == 1 { self.to_i64()?.first().copied() } else { None }
    }

    /// Bit patterns of elements of at most 8 bits.
    pub(crate) fn codes(&self) -> impl Iterator<Item = u8> + '_ {
        let (bits, bytes) = (self.dtype.bits() as usize, self.bytes());
        (0..self.len()).map(move |i| {
            let (byte, shift) = (i * bits / 8, i * bits % 8);
            let next = bytes.get(byte + 1).copied().unwrap_or(0);
            let window = u16::from_le_bytes([bytes[byte], next]) >> shift;
            (window & ((1 << bits) - 1)) as u8
        })
    }

    /// The same elements with another shape of the same size.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self, TensorError> {
        match &self.data {
            Data::Packed(bytes) => Self::new(self.dtype, shape, bytes.clone()),
            Data::Strings(items) => Self::strings(shape, items.to_vec()),
        }
    }
}

/// The value of an 8-, 6- or 4-bit float (ONNX `float8`, OCP microscaling formats).
fn minifloat(dtype: DataType, code: u8) -> f64 {
    use DataType as D;
    if dtype == D::Float8E8M0 {
        return if code == 0xff { f64::NAN } else { 2_f64.powi(i32::from(code) - 127) };
    }
    let (exponent_bits, mantissa_bits, bias) = match dtype {
        D::Float8E4M3Fn => (4, 3, 7),
        D::Float8E4M3Fnuz => (4, 3, 8),
        D::Float8E5M2 => (5, 2, 15),
        D::Float8E5M2Fnuz => (5, 2, 16),
        D::Float6E2M3 => (2, 3, 1),
        D::Float6E3M2 => (3, 2, 3),
        _ => (2, 1, 1),
    };
    let magnitude = code & ((1 << (exponent_bits + mantissa_bits)) - 1);
    let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    match dtype {
        D::Float8E4M3Fn if magnitude == 0x7f => return f64::NAN,
        D::Float8E4M3Fnuz | D::Float8E5M2Fnuz if code == 0x80 => return f64::NAN,
        D::Float8E5M2 if magnitude == 0x7c => return sign * f64::INFINITY,
        D::Float8E5M2 if magnitude > 0x7c => return f64::NAN,
        _ => {}
    }
    let exponent = i32::from(magnitude >> mantissa_bits);
    let mantissa = f64::from(magnitude & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    // Subnormals have no leading one and the exponent of the smallest normal number.
    let (lead, power) = if exponent == 0 { (0.0, 1 - bias) } else { (1.0, exponent - bias) };
    sign * (lead + mantissa) * 2_f64.powi(power)
}

/// Equal element type, shape and bits; the storage in the file is ignored.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        (self.dtype, &self.shape, &self.data) == (other.dtype, &other.shape, &other.data)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        match self.to_f64() {
            Some(values) if values.len() <= 8 => write!(f, " {values:?}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_data_of_wrong_length() {
        assert!(Tensor::new(DataType::Float, &[2, 2], vec![0; 16]).is_ok());
        assert!(Tensor::new(DataType::Float, &[2, 2], vec![0; 15]).is_err());
        assert!(Tensor::new(DataType::Float, &[1 << 40, 1 << 40], vec![]).is_err());
    }

    #[test]
    fn unpacks_small_integers_with_sign() {
        let t = Tensor::new(DataType::Int4, &[3], vec![0xf1, 0x08]).unwrap();
        assert_eq!(t.to_i64().unwrap(), [1, -1, -8]);
        let t = Tensor::new(DataType::Uint2, &[5], vec![0b11_10_01_00, 0b10]).unwrap();
        assert_eq!(t.to_i64().unwrap(), [0, 1, 2, 3, 2]);
        let t = Tensor::vector(&[-1_i8, 127]);
        assert_eq!(t.to_i64().unwrap(), [-1, 127]);
    }

    #[test]
    fn small_floats_match_their_tables() {
        let value = |d, c| minifloat(d, c);
        assert_eq!(value(DataType::Float8E4M3Fn, 0x7e), 448.0);
        assert_eq!(value(DataType::Float8E4M3Fn, 0x01), 2_f64.powi(-9));
        assert_eq!(value(DataType::Float8E5M2, 0x7b), 57344.0);
        assert_eq!(value(DataType::Float8E5M2, 0xfc), f64::NEG_INFINITY);
        assert_eq!(value(DataType::Float8E4M3Fnuz, 0x7f), 240.0);
        assert!(value(DataType::Float8E5M2Fnuz, 0x80).is_nan());
        assert_eq!(value(DataType::Float4E2M1, 0x7), 6.0);
        assert_eq!(value(DataType::Float6E2M3, 0x1f), 7.5);
        assert_eq!(value(DataType::Float6E3M2, 0x3f), -28.0);
    }

    #[test]
    fn scales_runs_cyclically() {
        let t = Tensor::from_slice(&[2, 2, 2], &[1_f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
        let scaled = |run, factors: &[f64]| t.scaled(run, factors).unwrap().to_f64().unwrap();
        assert_eq!(scaled(4, &[1.0, 2.0]), [1.0, 2.0, 3.0, 4.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!(scaled(1, &[1.0, -1.0]), [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0]);
        assert_eq!(scaled(2, &[1.0, 0.0]), [1.0, 2.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0]);
        let third = Tensor::vector(&[1_f32]).scaled(1, &[1.0 / 3.0]).unwrap();
        assert_eq!(third.to_vec::<f32>().unwrap(), [(1.0 / 3.0_f64) as f32]);
        assert!(Tensor::vector(&[1_i32]).scaled(1, &[2.0]).is_err());
        assert!(t.is_finite() && !t.scaled(8, &[1e40]).unwrap().is_finite());
    }

    #[test]
    fn rounds_once() {
        let t = Tensor::from_f64(DataType::Float16, &[2], &[1.0 / 3.0, 65520.0]).unwrap();
        assert_eq!(t.to_f64().unwrap(), [0.333_251_953_125, f64::INFINITY]);
        let t = Tensor::from_f64(DataType::Int8, &[3], &[0.5, 1.5, 300.0]).unwrap();
        assert_eq!(t.to_i64().unwrap(), [0, 2, 127]);
    }

    #[test]
    fn packs_elements_from_the_low_bits_up() {
        assert_eq!(pack_bits(4, &[1, 0xff, 2]), [0xf1, 0x02]);
        assert_eq!(pack_bits(2, &[0, 1, 2, 3, 2]), [0b11_10_01_00, 0b10]);
        assert_eq!(pack_bits(6, &[0x3f, 0, 1]), [0x3f, 0x10, 0]);
        assert_eq!(pack_bits(8, &[7]), [7]);
    }
}
