//! Running ONNX models: engines, samples, comparison, timing.
