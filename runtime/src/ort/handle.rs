//! Values of ONNX Runtime, through its C interface.
//!
//! The safe wrappers of `ort` support no 4- and 8-bit floats, no absent values and no strings that are not
//! UTF-8, and panic on some of them. All `unsafe` code that runs a model is in this file.
#![allow(unsafe_code)]

use super::dtype;
use crate::{Value, message::one_line};
use bytes::Bytes;
use ort::{AsPointer, session::Session, sys};
use pare_graph::{DataType, Tensor, element_count};
use std::{
    ffi::{CString, c_char, c_void},
    ptr::{self, NonNull},
    slice,
};

/// The alignment of memory that the engine reads in place: that of the system's allocator, as of NumPy's arrays.
const ALIGNMENT: usize = 16;

/// An owned value, released on drop.
pub(super) struct Handle {
    value: NonNull<sys::OrtValue>,
    /// The tensor whose memory the value borrows.
    _borrowed: Option<Tensor>,
}

// SAFETY: a value is not bound to a thread, and is only read after construction.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer is owned and dropped once.
        unsafe { (ort::api().ReleaseValue)(self.ptr()) }
    }
}

/// Calls a function of the interface and converts its status to a result.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: every caller in this file passes pointers to live values of the types that the interface
        // requires; a returned status is owned.
        let result = unsafe { ort::Error::result_from_status((ort::api().$name)($($argument),*)) };
        result.map_err(|error| one_line(error.message()))
    }};
}

fn allocator() -> Result<*mut sys::OrtAllocator, String> {
    let mut allocator = ptr::null_mut();
    call!(GetAllocatorWithDefaultOptions(&raw mut allocator))?;
    Ok(allocator)
}

/// Element type and shape of a tensor. The error names the unsupported type.
fn layout(tensor: &Tensor) -> Result<(sys::ONNXTensorElementDataType, Vec<i64>), String> {
    let dtype = tensor.dtype();
    let element = dtype::to_ort(dtype).ok_or_else(|| format!("{dtype} tensors"))?;
    Ok((element.into(), tensor.shape().iter().map(|&size| size as i64).collect()))
}

impl Handle {
    fn own(pointer: *mut sys::OrtValue) -> Result<Self, String> {
        NonNull::new(pointer).map(Self::of).ok_or_else(|| "value, and returned none".to_owned())
    }

    fn of(value: NonNull<sys::OrtValue>) -> Self {
        Self { value, _borrowed: None }
    }

    fn ptr(&self) -> *mut sys::OrtValue {
        self.value.as_ptr()
    }

    /// `tensor` itself as an input, without a copy of its memory, or else a copy of it. The error names the unsupported
    /// type.
    pub(super) fn input(tensor: &Tensor) -> Result<Self, String> {
        let (bytes, is_packed) = (tensor.bytes(), tensor.dtype().bits() < 8);
        let is_aligned = (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT);
        if tensor.as_strings().is_some() || bytes.is_empty() || is_packed || !is_aligned {
            return Self::tensor(tensor);
        }
        let (element, shape) = layout(tensor)?;
        let (mut info, mut value) = (ptr::null_mut(), ptr::null_mut());
        let (arena, default) = (sys::OrtAllocatorType::OrtArenaAllocator, sys::OrtMemType::OrtMemTypeDefault);
        call!(CreateCpuMemoryInfo(arena, default, &raw mut info))?;
        // The engine does not write to inputs.
        let data = bytes.as_ptr().cast_mut().cast();
        let created = call!(CreateTensorWithDataAsOrtValue(
            info,
            data,
            bytes.len(),
            shape.as_ptr(),
            shape.len(),
            element,
            &raw mut value
        ));
        // SAFETY: `info` is owned and not used again; the value has a copy.
        unsafe { (ort::api().ReleaseMemoryInfo)(info) };
        created.map_err(|reason| format!("{} tensors: {reason}", tensor.dtype()))?;
        let value = NonNull::new(value).ok_or("value, and returned none")?;
        Ok(Self { value, _borrowed: Some(tensor.clone()) })
    }

    /// A copy of `tensor`. The error names the unsupported type.
    pub(super) fn tensor(tensor: &Tensor) -> Result<Self, String> {
        let (element, shape) = layout(tensor)?;
        let mut value = ptr::null_mut();
        let created =
            call!(CreateTensorAsOrtValue(allocator()?, shape.as_ptr(), shape.len(), element, &raw mut value));
        created.map_err(|reason| format!("{} tensors: {reason}", tensor.dtype()))?;
        let handle = Self::own(value)?;
        match tensor.as_strings() {
            Some(items) => handle.fill_strings(items)?,
            None => handle.fill(tensor.bytes())?,
        }
        Ok(handle)
    }

    fn fill(&self, bytes: &[u8]) -> Result<(), String> {
        if bytes.is_empty() {
            return Ok(());
        }
        let data = self.data()?;
        // SAFETY: the tensor was created with this type and shape, which `bytes` fills exactly; both are
        // packed alike.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data.cast(), bytes.len()) };
        Ok(())
    }

    fn fill_strings(&self, items: &[Bytes]) -> Result<(), String> {
        for (index, item) in items.iter().enumerate() {
            let mut buffer: *mut c_char = ptr::null_mut();
            call!(GetResizedStringTensorElementBuffer(self.ptr(), index, item.len(), &raw mut buffer))?;
            if !item.is_empty() && !buffer.is_null() {
                // SAFETY: the buffer was created with the length of the string.
                unsafe { ptr::copy_nonoverlapping(item.as_ptr(), buffer.cast(), item.len()) };
            }
        }
        Ok(())
    }

    fn data(&self) -> Result<*mut c_void, String> {
        let mut data = ptr::null_mut();
        call!(GetTensorMutableData(self.ptr(), &raw mut data))?;
        if data.is_null() { Err("tensor without data".to_owned()) } else { Ok(data) }
    }

    /// A sequence of copies of `items`, which is not empty.
    pub(super) fn sequence(items: &[Self]) -> Result<Self, String> {
        Self::compose(items, sys::ONNXType::ONNX_TYPE_SEQUENCE)
    }

    /// A map.
    pub(super) fn map(keys: Self, values: Self) -> Result<Self, String> {
        Self::compose(&[keys, values], sys::ONNXType::ONNX_TYPE_MAP)
    }

    fn compose(parts: &[Self], kind: sys::ONNXType) -> Result<Self, String> {
        let parts: Vec<*const sys::OrtValue> = parts.iter().map(|part| part.ptr().cast_const()).collect();
        let mut value = ptr::null_mut();
        let created = call!(CreateValue(parts.as_ptr(), parts.len(), kind, &raw mut value));
        created.map_err(|reason| format!("sequence or map like this: {reason}"))?;
        Self::own(value)
    }

    /// A copy of the value, or `None` if it is absent.
    pub(super) fn read(&self) -> Result<Option<Value>, String> {
        let mut present = 0;
        call!(HasValue(self.ptr(), &raw mut present))?;
        if present == 0 {
            return Ok(None);
        }
        let mut kind = sys::ONNXType::ONNX_TYPE_UNKNOWN;
        call!(GetValueType(self.ptr(), &raw mut kind))?;
        Ok(Some(match kind {
            sys::ONNXType::ONNX_TYPE_TENSOR => Value::Tensor(self.read_tensor()?),
            sys::ONNXType::ONNX_TYPE_SEQUENCE => {
                let mut count = 0;
                call!(GetValueCount(self.ptr(), &raw mut count))?;
                let item = |index| self.part(index)?.read()?.ok_or_else(|| "absent items".to_owned());
                Value::Sequence((0..count).map(item).collect::<Result<_, _>>()?)
            }
            sys::ONNXType::ONNX_TYPE_MAP => {
                let (keys, values) = (self.part(0)?.read_tensor()?, self.part(1)?.read_tensor()?);
                Value::Map { keys, values }
            }
            sys::ONNXType::ONNX_TYPE_SPARSETENSOR => return Err("sparse tensors".to_owned()),
            _ => return Err("opaque values".to_owned()),
        }))
    }

    fn part(&self, index: usize) -> Result<Self, String> {
        let mut value = ptr::null_mut();
        call!(GetValue(self.ptr(), index as i32, allocator()?, &raw mut value))?;
        Self::own(value)
    }

    fn read_tensor(&self) -> Result<Tensor, String> {
        let (dtype, shape) = self.type_and_shape()?;
        let count = element_count(&shape).ok_or("tensor of this size")?;
        let tensor = if dtype == DataType::String {
            Tensor::strings(&shape, self.read_strings(count)?)
        } else {
            let size = dtype.bytes_for(count).ok_or("tensor of this size")?;
            let bytes = if size == 0 {
                Vec::new()
            } else {
                // SAFETY: the tensor is in this process's memory and has `size` packed bytes.
                unsafe { slice::from_raw_parts(self.data()?.cast::<u8>(), size) }.to_vec()
            };
            Tensor::new(dtype, &shape, bytes)
        };
        tensor.map_err(|error| error.to_string())
    }

    fn type_and_shape(&self) -> Result<(DataType, Vec<usize>), String> {
        let mut info = ptr::null_mut();
        call!(GetTensorTypeAndShape(self.ptr(), &raw mut info))?;
        let read = || {
            let mut element = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
            call!(GetTensorElementType(info, &raw mut element))?;
            let mut rank = 0;
            call!(GetDimensionsCount(info, &raw mut rank))?;
            let mut shape = vec![0_i64; rank];
            call!(GetDimensions(info, shape.as_mut_ptr(), rank))?;
            let dtype = dtype::from_ort(element.into()).ok_or("tensors of this type")?;
            Ok((dtype, shape.into_iter().map(|size| usize::try_from(size).unwrap_or(0)).collect()))
        };
        let result = read();
        // SAFETY: `info` is owned and not used again.
        unsafe { (ort::api().ReleaseTensorTypeAndShapeInfo)(info) };
        result
    }

    fn read_strings(&self, count: usize) -> Result<Vec<Bytes>, String> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut length = 0;
        call!(GetStringTensorDataLength(self.ptr(), &raw mut length))?;
        let (mut text, mut starts) = (vec![0_u8; length], vec![0_usize; count]);
        call!(GetStringTensorContent(
            self.ptr(),
            text.as_mut_ptr().cast(),
            length,
            starts.as_mut_ptr(),
            count
        ))?;
        starts.push(length);
        let text = Bytes::from(text);
        if !starts.is_sorted() {
            return Err("strings in this layout".to_owned());
        }
        Ok(starts.windows(2).map(|ends| text.slice(ends[0]..ends[1])).collect())
    }
}

/// Runs the model and returns the value of each name in `outputs`; `None` if the value is absent.
pub(super) fn run(
    session: &mut Session,
    feeds: &[(CString, Handle)],
    outputs: &[CString],
) -> Result<Vec<Option<Handle>>, String> {
    let names: Vec<*const c_char> = feeds.iter().map(|(name, _)| name.as_ptr()).collect();
    let values: Vec<*const sys::OrtValue> =
        feeds.iter().map(|(_, handle)| handle.ptr().cast_const()).collect();
    let names_out: Vec<*const c_char> = outputs.iter().map(|name| name.as_ptr()).collect();
    let mut results: Vec<*mut sys::OrtValue> = vec![ptr::null_mut(); outputs.len()];
    let status = call!(Run(
        session.ptr_mut(),
        ptr::null(),
        names.as_ptr(),
        values.as_ptr(),
        values.len(),
        names_out.as_ptr(),
        names_out.len(),
        results.as_mut_ptr(),
    ));
    let results = results.into_iter().map(|pointer| NonNull::new(pointer).map(Handle::of)).collect();
    status.map(|()| results)
}
