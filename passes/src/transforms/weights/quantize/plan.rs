//! The choice of the values to quantize: those between operators with integer kernels in ONNX Runtime.
//!
//! ONNX Runtime fuses `DequantizeLinear`s, an operator and `QuantizeLinear` into an integer kernel. For a
//! matrix product the last is optional. Elementwise operators and pools are included if all their neighbours
//! compute in integers: between floats an integer kernel saves nothing and loses precision.

use crate::analysis::weighted_layers::WeightedLayer;
use pare_graph::{Graph, NodeId, NodeRef, ValueId, ValueRef, ops::ClipView};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The values to quantize and the nodes that compute in integers.
#[derive(Default)]
pub struct QuantizationPlan {
    /// In topological order of their producers.
    pub values: Vec<QuantizedValue>,
    /// Nodes that compute in integers.
    pub integer: HashSet<NodeId>,
    /// The layers among them, with the value that each reads.
    pub layers: BTreeMap<NodeId, ValueId>,
}

/// A value to quantize.
#[derive(Clone, Copy)]
pub struct QuantizedValue {
    pub value: ValueId,
    /// The value whose range it has: itself, or the input of a view.
    pub range: ValueId,
}

/// Operators whose outputs are among their inputs: scale and zero point do not change.
pub const MOVING: &[&str] = &["MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"];
/// Other operators with integer kernels. Their outputs have their own scale.
const COMPUTING: &[&str] =
    &["Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"];

impl QuantizationPlan {
    /// Plans the quantization of `layers`, of `products` of two activations, and of the operators between them.
    pub fn new(graph: &Graph, layers: &[&WeightedLayer], products: &HashSet<NodeId>) -> Self {
        let linear: HashMap<NodeId, &WeightedLayer> = layers.iter().map(|l| (l.node, *l)).collect();
        let multiplied = products.iter().flat_map(|&node| computed_inputs(graph.at(node)));
        let read: HashSet<ValueId> =
            layers.iter().map(|l| l.linear.input).chain(multiplied.map(|v| v.id)).collect();
        let is_chosen = |node: &NodeId| linear.contains_key(node) || products.contains(node);
        let computes = |at: NodeRef<'_>| {
            let is = |ops: &[&str]| ops.contains(&at.op()) && at.node().domain().is_empty();
            (is(MOVING) || is(COMPUTING)) && computed_inputs(at).iter().all(|v| is_float(*v))
        };
        let mut integer: HashSet<NodeId> =
            graph.nodes().iter().copied().filter(|&n| computes(graph.at(n))).collect();
        integer.extend(linear.keys().chain(products));
        loop {
            let supported = |&n: &NodeId| {
                let at = graph.at(n);
                let quantized = |v: &ValueRef<'_>| {
                    read.contains(&v.id)
                        || before_clip(*v).producer().is_some_and(|m| integer.contains(&m.id))
                };
                is_chosen(&n) || computed_inputs(at).iter().all(quantized) && feeds_integers(at, &integer)
            };
            let remaining: HashSet<_> = integer.iter().copied().filter(supported).collect();
            if remaining.len() == integer.len() {
                break;
            }
            integer = remaining;
        }
        let mut plan = Self { values: vec![], integer: integer.clone(), layers: BTreeMap::new() };
        let mut ranges: HashMap<ValueId, ValueId> = HashMap::new();
        let mut add = |plan: &mut Self, value: ValueId, range: ValueId| {
            if let std::collections::hash_map::Entry::Vacant(free) = ranges.entry(value) {
                free.insert(range);
                plan.values.push(QuantizedValue { value, range });
            }
            ranges[&value]
        };
        for &node in graph.nodes().iter().filter(|n| integer.contains(n)) {
            let at = graph.at(node);
            let mut first = None;
            for value in computed_inputs(at) {
                let range = add(&mut plan, value.id, value.id);
                first.get_or_insert(range);
            }
            if linear.contains_key(&node)
                && let Some(input) = computed_inputs(at).first()
            {
                plan.layers.insert(node, input.id);
            }
            let Ok(output) = at.output() else { continue };
            let result = after_clip(output);
            let moves = MOVING.contains(&at.op()) && result.id == output.id;
            let range = if moves { first.unwrap_or(result.id) } else { result.id };
            // A matrix product without integer users produces floats.
            let quantized = match linear.get(&node) {
                Some(layer) => {
                    layer.linear.is_conv() || layer.linear.output == output.id && feeds_integers(at, &integer)
                }
                None => !products.contains(&node) || feeds_integers(at, &integer),
            };
            if quantized && !output.value().is_output() && !result.value().is_output() {
                add(&mut plan, result.id, range);
            }
        }
        plan
    }
}

/// The inputs of a node that are activations.
fn computed_inputs(at: NodeRef<'_>) -> Vec<ValueRef<'_>> {
    match at.op() {
        "Add" | "Mul" | "Concat" => at.inputs().into_iter().flatten().collect(),
        "MatMul" => at.inputs().into_iter().flatten().filter(|v| !v.is_constant()).collect(),
        _ => at.optional(0).into_iter().collect(),
    }
}

fn is_float(value: ValueRef<'_>) -> bool {
    value.dtype() == Some(pare_graph::DataType::Float) && !value.is_constant()
}

/// Returns true if all users of a node's result compute in integers.
fn feeds_integers(at: NodeRef<'_>, integer: &HashSet<NodeId>) -> bool {
    let Ok(output) = at.output() else { return false };
    let result = after_clip(output);
    let users = result.users();
    !result.value().is_output()
        && !users.is_empty()
        && users.iter().all(|(user, _)| integer.contains(&user.id))
}

/// The output of a clip that is the only user of `value`, else `value`. Quantization clips too, so the clip
/// can be part of its range.
fn after_clip(value: ValueRef<'_>) -> ValueRef<'_> {
    let clip = value.sole_user().ok().filter(|at| ClipView::of(*at).is_ok() && !value.value().is_output());
    clip.and_then(|at| at.output().ok()).unwrap_or(value)
}

/// The inverse of [`after_clip`].
fn before_clip(value: ValueRef<'_>) -> ValueRef<'_> {
    let input = value.producer().filter(|at| ClipView::of(*at).is_ok()).and_then(|at| at.input(0).ok());
    input.filter(|v| after_clip(*v).id == value.id).unwrap_or(value)
}
