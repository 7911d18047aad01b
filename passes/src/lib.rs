//! Passes over ONNX graphs and the pipelines they run in.
