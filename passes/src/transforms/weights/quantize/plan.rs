//! Which values are quantized: those between operators that ONNX Runtime computes in integers.
//!
//! ONNX Runtime joins `DequantizeLinear`s, an operator and `QuantizeLinear` to an integer kernel. A convolution needs all of
//! them; a matrix product goes without the last. Elementwise operators and pools join in where everything around them does:
//! in between floats a kernel in integers saves nothing, and costs digits.

use crate::analysis::weighted_layers::WeightedLayer;
use pare_graph::{Graph, NodeId, NodeRef, ValueId, ValueRef, ops::ClipView};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What to quantize.
#[derive(Default)]
pub struct Plan {
    /// Values to quantize in topological order of their makers, with the value whose range they have.
    pub values: Vec<(ValueId, ValueId)>,
    /// Nodes that compute in integers.
    pub integer: HashSet<NodeId>,
    /// The layers among them, with the value that each reads.
    pub layers: BTreeMap<NodeId, ValueId>,
}

/// What gives the values that it takes: scale and zero point stay.
const MOVING: &[&str] = &["MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"];
/// What has kernels in integers, with a scale of its own.
const COMPUTING: &[&str] =
    &["Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"];

impl Plan {
    /// For layers whose weights become integers.
    pub fn of(graph: &Graph, layers: &[WeightedLayer]) -> Self {
        let linear: HashMap<NodeId, &WeightedLayer> = layers.iter().map(|l| (l.node, l)).collect();
        let read: HashSet<ValueId> = layers.iter().map(|l| l.linear.input).collect();
        let computes = |at: NodeRef<'_>| {
            let of = |ops: &[&str]| ops.contains(&at.op()) && at.node().domain().is_empty();
            (of(MOVING) || of(COMPUTING)) && data(at).iter().all(|v| is_float(*v))
        };
        let mut integer: HashSet<NodeId> =
            graph.nodes().iter().copied().filter(|&n| computes(graph.at(n))).collect();
        integer.extend(linear.keys());
        loop {
            let fits = |&n: &NodeId| {
                let at = graph.at(n);
                let made = |v: &ValueRef<'_>| {
                    read.contains(&v.id)
                        || before_clip(*v).producer().is_some_and(|m| integer.contains(&m.id))
                };
                linear.contains_key(&n) || data(at).iter().all(made) && taken(at, &integer)
            };
            let left: HashSet<_> = integer.iter().copied().filter(fits).collect();
            if left.len() == integer.len() {
                break;
            }
            integer = left;
        }
        let mut plan = Self { values: vec![], integer: integer.clone(), layers: BTreeMap::new() };
        let mut ranges: HashMap<ValueId, ValueId> = HashMap::new();
        let mut add = |plan: &mut Self, value: ValueId, range: ValueId| {
            if let std::collections::hash_map::Entry::Vacant(free) = ranges.entry(value) {
                free.insert(range);
                plan.values.push((value, range));
            }
            ranges[&value]
        };
        for &node in graph.nodes().iter().filter(|n| integer.contains(n)) {
            let at = graph.at(node);
            let mut first = None;
            for value in data(at) {
                let range = add(&mut plan, value.id, value.id);
                first.get_or_insert(range);
            }
            if linear.contains_key(&node)
                && let Some(input) = data(at).first()
            {
                plan.layers.insert(node, input.id);
            }
            let Ok(output) = at.output() else { continue };
            let result = after_clip(output);
            let moves = MOVING.contains(&at.op()) && result.id == output.id;
            let range = if moves { first.unwrap_or(result.id) } else { result.id };
            // A product that nothing in integers reads gives floats.
            let wanted = match linear.get(&node) {
                Some(layer) => {
                    layer.linear.is_conv() || layer.linear.output == output.id && taken(at, &integer)
                }
                None => true,
            };
            if wanted && !output.value().is_output() && !result.value().is_output() {
                add(&mut plan, result.id, range);
            }
        }
        plan
    }
}

/// The inputs of a node that are computed.
fn data(at: NodeRef<'_>) -> Vec<ValueRef<'_>> {
    match at.op() {
        "Add" | "Mul" | "Concat" => at.inputs().into_iter().flatten().collect(),
        _ => at.optional(0).into_iter().collect(),
    }
}

fn is_float(value: ValueRef<'_>) -> bool {
    value.dtype() == Some(pare_graph::DataType::Float) && !value.is_constant()
}

/// Whether everything that reads a node's result computes in integers.
fn taken(at: NodeRef<'_>, integer: &HashSet<NodeId>) -> bool {
    let Ok(output) = at.output() else { return false };
    let result = after_clip(output);
    let users = result.users();
    !result.value().is_output()
        && !users.is_empty()
        && users.iter().all(|(user, _)| integer.contains(&user.id))
}

/// What comes out of the activation behind a value that does nothing but clip, which quantizing does too; else the value.
fn after_clip(value: ValueRef<'_>) -> ValueRef<'_> {
    let clip = value.sole_user().ok().filter(|at| ClipView::of(*at).is_ok() && !value.value().is_output());
    clip.and_then(|at| at.output().ok()).unwrap_or(value)
}

/// The value before such an activation.
fn before_clip(value: ValueRef<'_>) -> ValueRef<'_> {
    let input = value.producer().filter(|at| ClipView::of(*at).is_ok()).and_then(|at| at.input(0).ok());
    input.filter(|v| after_clip(*v).id == value.id).unwrap_or(value)
}
