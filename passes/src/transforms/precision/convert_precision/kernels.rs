//! Operators that ONNX Runtime's CPU cannot run in floats of 16 bits.
//!
//! ONNX Runtime adds a `Cast` around a node that has a kernel for float only, so most operators run in float16.
//! The operators in the table do not: their kernels accept the type and fail, or are never offered it. It does
//! not do so for bfloat16, for which few operators have kernels.

use pare_graph::{DataType, NodeRef, ops::Trait};

/// Operators that do not run in float16: all of their nodes, or those with one of these values of a string
/// attribute. Measured with ONNX Runtime 1.32 at all optimization levels.
const FLOAT16: &[(&str, Option<(&str, &[&str])>)] = &[
    ("EyeLike", None),
    ("MeanVarianceNormalization", None),
    ("RandomNormal", None),
    ("RandomNormalLike", None),
    ("RandomUniform", None),
    ("RandomUniformLike", None),
    ("Resize", Some(("mode", &["cubic"]))),
    ("ScatterElements", Some(("reduction", &["add", "mul", "min", "max"]))),
    ("ScatterND", Some(("reduction", &["add", "mul", "min", "max"]))),
];

/// Operators that run in bfloat16, beside those that only change shapes. Measured with ONNX Runtime 1.32.
const BFLOAT16: &[&str] = &["Cast", "If", "Loop", "Scan"];

/// Returns true if ONNX Runtime's CPU runs the node in this type.
pub fn runs(at: NodeRef<'_>, dtype: DataType) -> bool {
    match dtype {
        DataType::Float16 => !FLOAT16.iter().any(|(op, attribute)| {
            let matches = |(name, values): (&str, &[&str])| values.contains(&at.string(name, ""));
            at.op() == *op && attribute.is_none_or(matches)
        }),
        _ => BFLOAT16.contains(&at.op()) || at.has(Trait::Reshape),
    }
}
