//! Whether a node computes the same whenever its inputs are the same.

use crate::{Graph, NodeRef};

/// Operators of ONNX Runtime that draw random numbers, or call code of which nothing is known.
const RANDOM_CONTRIB: &[&str] =
    &["ATen", "BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "PythonOp", "Sampling"];

/// Whether the same inputs always give the same outputs, so that a node may be computed ahead or shared. Also those
/// that draw from a given seed are not, and of operators that are not known it cannot be said.
pub fn is_deterministic(at: NodeRef<'_>) -> bool {
    let random = match at.node().domain() {
        "com.microsoft" | "com.microsoft.nchwc" => RANDOM_CONTRIB.contains(&at.op()),
        _ => match at.schema() {
            Some(schema) => schema.random && !drops_nothing(at),
            None => return false,
        },
    };
    let all = |graph: &Graph| graph.nodes().iter().all(|&id| is_deterministic(graph.at(id)));
    !random && at.node().subgraphs().all(all)
}

/// Dropout at inference passes its input on. In training it does too, at ratio 0.
fn drops_nothing(at: NodeRef<'_>) -> bool {
    if !at.is("Dropout") || at.has_references() {
        return false;
    }
    if at.opset() < 7 {
        return at.int("is_test", 0) != 0;
    }
    let off = |slot| at.optional(slot).is_some_and(|input| input.scalar() == Ok(0.0));
    at.optional(2).is_none() || off(2) || off(1)
}
