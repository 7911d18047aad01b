//! ONNX models as graphs: read, change by checked patches, write, with nothing lost.

mod dtype;
mod tensor;

pub use dtype::DataType;
pub use tensor::{Element, Tensor, TensorError, element_count};
