//! Operators that ONNX Runtime's CPU cannot run in floats of 16 bits.
//!
//! ONNX Runtime adds a `Cast` around a node that has a kernel for float only, so most operators run in float16.
//! The operators in the table do not: their kernels accept the type and fail, or are never offered it. It does
//! not do so for bfloat16, for which few operators have kernels.

use pare_graph::{DataType, NodeRef, ValueRef, ops::Trait};

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
        DataType::Float16 => {
            !FLOAT16.iter().any(|(op, attribute)| {
                let matches = |(name, values): (&str, &[&str])| values.contains(&at.string(name, ""));
                at.op() == *op && attribute.is_none_or(matches)
            }) && !is_product_over_batches(at)
        }
        _ => BFLOAT16.contains(&at.op()) || at.has(Trait::Reshape),
    }
}

/// Returns true if the node is a `MatMul` of a matrix with a `Transpose` that moves the first axis to one of the last
/// two, or such a `Transpose`: ONNX Runtime fuses both, also through a `Cast`, and the fused operator crashes in float16.
fn is_product_over_batches(at: NodeRef<'_>) -> bool {
    let moves_batches = |value: ValueRef<'_>| {
        let perm = value.produced_by("Transpose").ok().and_then(|transpose| transpose.ints("perm"));
        perm.is_some_and(|perm| {
            let others = perm.iter().filter(|&&axis| axis != 0);
            perm.len() > 2 && perm[..perm.len() - 2].iter().all(|&axis| axis != 0) && others.is_sorted()
        })
    };
    let is_product = |at: NodeRef<'_>| {
        let (Ok(a), Ok(b)) = (at.input(0), at.input(1)) else { return false };
        let fuses =
            |x: ValueRef<'_>, w: ValueRef<'_>| moves_batches(x) && w.rank().is_ok_and(|rank| rank == 2);
        at.is("MatMul") && (fuses(a, b) || fuses(b, a))
    };
    let feeds_product = || at.output().is_ok_and(|y| y.users().into_iter().any(|(user, _)| is_product(user)));
    is_product(at) || at.is("Transpose") && feeds_product()
}
