//! Operators that ONNX Runtime's CPU cannot run in floats of 16 bits.
//!
//! ONNX Runtime adds a `Cast` around a node that has a kernel for float only, so most operators run in float16.
//! The operators in the table do not: their kernels accept the type and fail, or are never offered it. It does
//! not do so for bfloat16, for which few operators have kernels.

use pare_graph::{DataType, NodeRef, ops::Trait};

/// Operators that do not run in float16. Measured with ONNX Runtime 1.32.
const FLOAT16: &[&str] = &["MeanVarianceNormalization"];
/// Operators that do not run in float16 if they reduce. Measured with ONNX Runtime 1.32.
const FLOAT16_REDUCING: &[&str] = &["ScatterElements", "ScatterND"];

/// Operators that run in bfloat16, beside those that only change shapes. Measured with ONNX Runtime 1.32.
const BFLOAT16: &[&str] = &["Cast", "If", "Loop", "Scan"];

/// Returns true if ONNX Runtime's CPU runs the node in this type.
pub fn runs(at: NodeRef<'_>, dtype: DataType) -> bool {
    let is_one_of = |ops: &[&str]| ops.contains(&at.op());
    match dtype {
        DataType::Float16 => {
            let reduces = is_one_of(FLOAT16_REDUCING) && at.string("reduction", "none") != "none";
            !is_one_of(FLOAT16) && !reduces
        }
        _ => is_one_of(BFLOAT16) || at.has(Trait::Reshape),
    }
}
