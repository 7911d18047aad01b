//! The boundary to ONNX files. The protobuf types stay inside.

/// What the file says beyond what the graph understands, kept to be written back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra;
