//! NumPy arrays: untrusted headers, elements in NumPy's types.

use crate::{message::one_line, panic::catch_panic};
use bytes::Bytes;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use pare_graph::{DataType, Tensor, element_count};
use std::io::{Chain, Cursor, Read};

/// NumPy's own default limit.
const MAX_HEADER_LENGTH: usize = 10_000;
/// A valid header has three levels; deep ones overflow the parser's stack.
const MAX_HEADER_DEPTH: usize = 8;

/// Header of an array.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub shape: Vec<usize>,
    pub element: Element,
    /// The first axis varies fastest.
    pub fortran: bool,
    /// Bytes before the first element.
    pub length: u64,
}

/// Storage type of an element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Element {
    Plain {
        dtype: DataType,
        big_endian: bool,
    },
    /// Bytes without a type: NumPy's storage of the types of `ml_dtypes`.
    Raw(usize),
    /// Zero-padded bytes.
    Bytes(usize),
    /// Zero-padded code points of four bytes.
    Text {
        chars: usize,
        big_endian: bool,
    },
}

impl Element {
    pub fn width(self) -> usize {
        match self {
            Self::Plain { dtype, .. } => dtype.bits() as usize / 8,
            Self::Raw(width) | Self::Bytes(width) => width,
            Self::Text { chars, .. } => chars * 4,
        }
    }

    /// The tensor type of the element; `None` for raw bytes, which fit several.
    pub fn dtype(self) -> Option<DataType> {
        match self {
            Self::Plain { dtype, .. } => Some(dtype),
            Self::Raw(_) => None,
            Self::Bytes(_) | Self::Text { .. } => Some(DataType::String),
        }
    }

    /// Returns true if it can be read as an element of type `dtype` without a change of its value.
    pub fn becomes(self, dtype: DataType) -> bool {
        match self {
            Self::Raw(1) => dtype.bits() > 0 && dtype.bits() <= 8,
            Self::Raw(width) => dtype.bits() as usize == width * 8,
            _ => self.dtype() == Some(dtype),
        }
    }
}

impl Header {
    /// Bytes of all elements; `None` on overflow.
    pub fn size(&self) -> Option<u64> {
        let size = element_count(&self.shape)?.checked_mul(self.element.width())?;
        u64::try_from(size).ok()
    }

    /// Bytes of one row, the elements that share their first index.
    pub fn row(&self) -> usize {
        self.shape.iter().skip(1).product::<usize>() * self.element.width()
    }

    /// Reads the header at the start of `reader`.
    pub fn read(mut reader: impl Read) -> Result<Self, String> {
        let text = |error: std::io::Error| one_line(&error.to_string());
        let mut start = [0; 12];
        reader.read_exact(&mut start[..10]).map_err(|_| "it is not a NumPy array")?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err("it is not a NumPy array".to_owned());
        }
        let (prefix, length) = if start[6] == 1 {
            (10, usize::from(u16::from_le_bytes([start[8], start[9]])))
        } else {
            reader.read_exact(&mut start[10..]).map_err(text)?;
            (12, u32::from_le_bytes([start[8], start[9], start[10], start[11]]) as usize)
        };
        if length > MAX_HEADER_LENGTH {
            return Err(format!("its header of {length} bytes is longer than NumPy's own"));
        }
        let mut words = vec![0; length];
        reader.read_exact(&mut words).map_err(text)?;
        if depth(&words) > MAX_HEADER_DEPTH {
            return Err("its header is nested deeper than any array's".to_owned());
        }
        let start: Chain<_, _> = Cursor::new(&start[..prefix]).chain(Cursor::new(&words));
        // `npyz` multiplies the dimensions unchecked and panics on a huge shape.
        let header = catch_panic(|| NpyHeader::from_reader(start));
        let header = header.and_then(|header| header.map_err(text))?;
        let shape = header.shape().iter().map(|&size| usize::try_from(size));
        let shape: Vec<usize> = shape.collect::<Result<_, _>>().map_err(|_| "its shape is too large")?;
        let read = Self {
            shape,
            element: element(&header.dtype())?,
            fortran: header.order() == Order::Fortran,
            length: (prefix + length) as u64,
        };
        read.size().map(|_| read).ok_or_else(|| "its shape is too large".to_owned())
    }
}

fn depth(words: &[u8]) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for byte in words {
        match byte {
            b'(' | b'[' | b'{' => now += 1,
            b')' | b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
        most = most.max(now);
    }
    most
}

fn element(dtype: &DType) -> Result<Element, String> {
    let unknown = || format!("elements of NumPy type {} are not known", dtype.descr());
    let DType::Plain(plain) = dtype else { return Err(unknown()) };
    let size = usize::try_from(plain.size_field()).map_err(|_| unknown())?;
    let big_endian = plain.endianness() == Endianness::Big;
    use DataType as D;
    let dtype = match (plain.type_char(), size) {
        (TypeChar::Bool, 1) => D::Bool,
        (TypeChar::Int, 1) => D::Int8,
        (TypeChar::Int, 2) => D::Int16,
        (TypeChar::Int, 4) => D::Int32,
        (TypeChar::Int, 8) => D::Int64,
        (TypeChar::Uint, 1) => D::Uint8,
        (TypeChar::Uint, 2) => D::Uint16,
        (TypeChar::Uint, 4) => D::Uint32,
        (TypeChar::Uint, 8) => D::Uint64,
        (TypeChar::Float, 2) => D::Float16,
        (TypeChar::Float, 4) => D::Float,
        (TypeChar::Float, 8) => D::Double,
        (TypeChar::Complex, 8) => D::Complex64,
        (TypeChar::Complex, 16) => D::Complex128,
        (TypeChar::RawData, 1..) => return Ok(Element::Raw(size)),
        (TypeChar::ByteStr, _) => return Ok(Element::Bytes(size)),
        (TypeChar::UnicodeStr, _) => {
            size.checked_mul(4).ok_or_else(unknown)?;
            return Ok(Element::Text { chars: size, big_endian });
        }
        _ => return Err(unknown()),
    };
    Ok(Element::Plain { dtype, big_endian })
}

/// A tensor of type `dtype` from elements in C order, which [`Element::becomes`] must allow.
pub(super) fn tensor(
    element: Element,
    dtype: DataType,
    shape: &[usize],
    mut bytes: Vec<u8>,
) -> Result<Tensor, String> {
    let tensor = match element {
        Element::Plain { dtype, big_endian } => {
            if big_endian {
                let complex = matches!(dtype, DataType::Complex64 | DataType::Complex128);
                let width = element.width() / if complex { 2 } else { 1 };
                bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
            }
            if dtype == DataType::Bool {
                bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
            }
            Tensor::new(dtype, shape, bytes)
        }
        // `ml_dtypes` stores an element of fewer than 8 bits in one byte.
        Element::Raw(1) => Tensor::new(dtype, shape, pare_graph::pack_bits(dtype.bits(), &bytes)),
        Element::Raw(_) => Tensor::new(dtype, shape, bytes),
        Element::Bytes(width) => Tensor::strings(shape, split(&bytes, width, shape, trim)),
        Element::Text { big_endian, .. } => {
            let text = |bytes: &[u8]| decode(bytes, big_endian);
            Tensor::strings(shape, split(&bytes, element.width(), shape, text))
        }
    };
    tensor.map_err(|error| error.to_string())
}

fn split(bytes: &[u8], width: usize, shape: &[usize], one: impl Fn(&[u8]) -> Bytes) -> Vec<Bytes> {
    if width == 0 {
        return vec![Bytes::new(); shape.iter().product()];
    }
    bytes.chunks_exact(width).map(one).collect()
}

fn trim(bytes: &[u8]) -> Bytes {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    Bytes::copy_from_slice(&bytes[..end])
}

fn decode(bytes: &[u8], big_endian: bool) -> Bytes {
    let code = |four: &[u8]| {
        let four = [four[0], four[1], four[2], four[3]];
        let code = if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    };
    let text: String = bytes.chunks_exact(4).map(code).collect();
    Bytes::from(text.trim_end_matches('\0').to_owned())
}

/// Elements of `width` bytes, converted from Fortran order to C order.
pub(super) fn to_c_order(bytes: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let strides: Vec<usize> = shape
        .iter()
        .scan(1, |stride, &size| {
            let now = *stride;
            *stride *= size;
            Some(now)
        })
        .collect();
    let mut index = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        let at: usize = index.iter().zip(&strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&bytes[at * width..(at + 1) * width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A `.npy` file with this header dictionary and data.
    pub(in crate::samples) fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let fortran = if fortran { "True" } else { "False" };
        let words = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((words.len() as u16).to_le_bytes());
        file.extend(words.as_bytes());
        file.extend(data);
        file
    }

    fn header(file: &[u8]) -> Result<Header, String> {
        Header::read(file)
    }

    #[test]
    fn parses_headers() {
        let file = npy("<f2", false, "(3, 4)", &[]);
        let read = header(&file).unwrap();
        assert_eq!((read.shape.as_slice(), read.row(), read.size()), (&[3, 4][..], 8, Some(24)));
        assert_eq!(read.element.dtype(), Some(DataType::Float16));
        assert_eq!(read.length, file.len() as u64);
        assert_eq!(header(&npy("|b1", true, "()", &[])).unwrap().size(), Some(1));
    }

    #[test]
    fn rejects_hostile_headers() {
        let text = |file: &[u8]| header(file).unwrap_err();
        assert_eq!(text(b"PK"), "it is not a NumPy array");
        assert_eq!(text(b"no array at all"), "it is not a NumPy array");
        let huge = "(9223372036854775807, 9223372036854775807)";
        header(&npy("<f4", false, huge, &[])).unwrap_err();
        header(&npy("<f8", false, "(4611686018427387904,)", &[])).unwrap_err();
        header(&npy("<f4", false, "(-1,)", &[])).unwrap_err();
        assert!(text(&npy("|O", false, "(1,)", &[])).contains("not known"));
        let deep = format!("({}1{},)", "(".repeat(4000), ")".repeat(4000));
        assert!(text(&npy("<f4", false, &deep, &[])).contains("nested deeper"));
        let mut long = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
        long.extend([b' '; 64]);
        assert!(text(&long).contains("longer than NumPy's own"));
    }

    #[test]
    fn keeps_the_values_of_elements() {
        let big = Element::Plain { dtype: DataType::Int16, big_endian: true };
        let read = tensor(big, DataType::Int16, &[2], vec![0, 1, 255, 254]).unwrap();
        assert_eq!(read.to_i64().unwrap(), [1, -2]);
        assert!(Element::Raw(2).becomes(DataType::Bfloat16) && !Element::Raw(2).becomes(DataType::Float));
        let read = tensor(Element::Raw(2), DataType::Bfloat16, &[1], vec![0x80, 0x3f]).unwrap();
        assert_eq!(read.to_f64().unwrap(), [1.0]);
        let read = tensor(Element::Raw(1), DataType::Int4, &[3], vec![0xff, 7, 0xf8]).unwrap();
        assert_eq!(read.to_i64().unwrap(), [-1, 7, -8]);
        let text = Element::Text { chars: 2, big_endian: false };
        let read =
            tensor(text, DataType::String, &[2], [&b"a\0\0\0b\0\0\0"[..], &b"c\0\0\0\0\0\0\0"[..]].concat());
        assert_eq!(read.unwrap().as_strings().unwrap(), ["ab", "c"]);
        let read = tensor(Element::Bytes(3), DataType::String, &[2], b"ab\0c\0\0".to_vec()).unwrap();
        assert_eq!(read.as_strings().unwrap(), ["ab", "c"]);
    }

    #[test]
    fn converts_fortran_order() {
        assert_eq!(to_c_order(&[1, 3, 5, 2, 4, 6], &[3, 2], 1), [1, 2, 3, 4, 5, 6]);
        assert_eq!(to_c_order(&[], &[0, 2], 4), [0_u8; 0]);
    }
}
