//! Activation functions: single operators, and compositions of several nodes.

use crate::{
    analysis::patterns::{Gelu, HardSwish},
    framework::PassError,
};
use pare_graph::{
    Decline, Graph, NodeId, NodeRef, ValueId, ValueRef, expect,
    ops::{ClipView, Trait},
};
use std::collections::{HashSet, VecDeque};

/// An activation function, applied to each element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The name of its last node, or of its output if the node has none.
    pub name: String,
    /// Its nodes; the last one produces the output.
    pub nodes: Vec<NodeId>,
    /// The input.
    pub input: ValueId,
    /// The output.
    pub output: ValueId,
}

/// The error of a pass that selects no activation: `absent` if the graph has none, or `unmatched` if it has some, such as
/// `example`.
pub fn none_selected(example: Option<String>, absent: &str, unmatched: &str) -> PassError {
    match example {
        None => PassError::refused(absent),
        Some(example) => PassError::refused_with(
            unmatched,
            format!("activations are named after their nodes, such as `{example}`"),
        ),
    }
}

/// Activations that produce gates and scales: their range matters, and the identity does not have it.
const GATES: [&str; 3] = ["Sigmoid", "HardSigmoid", "Softplus"];

/// Returns all activations of a graph in topological order. Gates (a `Sigmoid` whose output multiplies
/// another value) are not activations.
pub fn activations(graph: &Graph) -> Vec<Activation> {
    let nodes = graph.nodes();
    let mut taken = HashSet::new();
    let mut found: Vec<_> = nodes.iter().filter_map(|&id| composed(graph.at(id)).ok()).collect();
    found.iter().for_each(|a| taken.extend(a.nodes.iter().copied()));
    let others = nodes.iter().filter(|id| !taken.contains(id));
    found.extend(others.filter_map(|&id| single(graph.at(id)).ok()));
    let position = |a: &Activation| nodes.iter().position(|&id| Some(&id) == a.nodes.last());
    found.sort_by_cached_key(position);
    found
}

fn single(at: NodeRef<'_>) -> Result<Activation, Decline> {
    let op = at.op();
    expect(at.has(Trait::Activation) && !GATES.contains(&op) && !at.has_references())?;
    if op == "Clip" {
        let view = ClipView::of(at)?;
        expect(view.low < view.high && (view.low.is_finite() || view.high.is_finite()))?;
    }
    if op == "PRelu" {
        at.input(1)?.constant()?;
    }
    Activation::of(at, at.input(0)?, vec![])
}

/// Reads SiLU `x·σ(x)`, `HardSwish` (an operator since operator set 14) and `Gelu` (since 20) as
/// compositions.
fn composed(at: NodeRef<'_>) -> Result<Activation, Decline> {
    expect(at.is("Mul") || at.is("Div"))?;
    let (x, parts) = if let Ok(gelu) = Gelu::ending(at) {
        (gelu.x, gelu.parts)
    } else if let Ok(swish) = HardSwish::ending(at) {
        (swish.x, swish.parts)
    } else {
        silu(at)?
    };
    parts.are_alone(at, at.id)?;
    Activation::of(at, x, parts.0)
}

fn silu(at: NodeRef<'_>) -> Result<(ValueRef<'_>, crate::analysis::patterns::Parts), Decline> {
    expect(at.is("Mul"))?;
    let (a, b) = (at.input(0)?, at.input(1)?);
    let (x, gate) = if b.produced_by("Sigmoid").is_ok() { (a, b) } else { (b, a) };
    let sigmoid = gate.produced_by("Sigmoid")?;
    expect(sigmoid.input(0)?.id == x.id)?;
    Ok((x, crate::analysis::patterns::Parts(vec![sigmoid.id, at.id])))
}

impl Activation {
    fn of(end: NodeRef<'_>, x: ValueRef<'_>, mut nodes: Vec<NodeId>) -> Result<Self, Decline> {
        let y = end.output()?;
        expect(x.dtype().is_some_and(|d| d.is_float()) && !x.is_constant())?;
        nodes.retain(|&id| id != end.id);
        nodes.push(end.id);
        let name = end.node().name.as_deref().filter(|n| !n.is_empty()).unwrap_or(y.name());
        Ok(Self { name: name.into(), nodes, input: x.id, output: y.id })
    }

    /// The node that produces the output.
    pub fn end<'g>(&self, graph: &'g Graph) -> Option<NodeRef<'g>> {
        self.nodes.last().map(|&id| graph.at(id))
    }

    /// The slopes below zero of an activation that is the identity above; `None` for other functions.
    pub fn slopes(&self, graph: &Graph) -> Option<Vec<f64>> {
        let at = self.end(graph)?;
        match at.op() {
            "Relu" => Some(vec![0.0]),
            "LeakyRelu" => Some(vec![at.float("alpha", 0.01)]),
            "PRelu" => at.input(1).ok()?.constant_f64().ok(),
            _ => None,
        }
    }
}

/// The number of values, upstream and downstream, that are searched for a layer with a known channel axis.
const REACH: usize = 32;

/// Returns the channel axis of a value, as the nearest layer has it: axis 1 for convolutions and pools, the
/// last axis for matrices and layer norms.
pub fn channel_axis(value: ValueRef<'_>) -> Option<usize> {
    let rank = value.rank().ok()?;
    let last = rank.checked_sub(1)?;
    if rank == 2 {
        return Some(1);
    }
    let channel_axis = |at: NodeRef<'_>| match at.op() {
        "Conv"
        | "ConvTranspose"
        | "BatchNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "MaxPool"
        | "AveragePool"
        | "GlobalAveragePool"
        | "GlobalMaxPool" => Some(1),
        "MatMul" | "Gemm" | "LayerNormalization" => Some(last),
        _ => None,
    };
    let keeps_axes = |at: NodeRef<'_>| !at.has(Trait::View) || at.is("Identity");
    let is_similar = |v: &ValueRef<'_>| v.rank() == Ok(rank) && !v.is_constant();
    // Breadth first, upstream and downstream in turn.
    let mut queue = VecDeque::from([(value, true), (value, false)]);
    for _ in 0..REACH {
        let (value, up) = queue.pop_front()?;
        let next: Vec<_> = if up {
            value.producer().into_iter().collect()
        } else {
            value.users().into_iter().map(|u| u.0).collect()
        };
        if let Some(axis) = next.iter().find_map(|&at| channel_axis(at)) {
            return Some(axis);
        }
        for at in next.into_iter().filter(|&at| keeps_axes(at)) {
            let next = if up { at.inputs() } else { at.outputs() };
            queue.extend(next.into_iter().flatten().filter(is_similar).map(|v| (v, up)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, model_at};

    fn found(nodes: &str) -> Vec<String> {
        let constants = "float half = {0.5}, float one = {1}, float three = {3}, float six = {6}, float zero = {0}, \
                         float root = {1.4142135}, float c = {0.044715}, float p = {0.7978846}, float[3] s = {1,2,3}";
        let mut model =
            model_at(&format!("g (float[N,3] x) => (float[N,3] y) <{constants}> {{ {nodes} }}"), 18);
        model.infer().unwrap();
        let graph = &model.graph;
        let show = |a: Activation| {
            let value = |v| graph.value(v).name.as_str();
            format!("{}: {} nodes, {} to {}", a.name, a.nodes.len(), value(a.input), value(a.output))
        };
        activations(graph).into_iter().map(show).collect()
    }

    #[test]
    fn finds_operators_and_compositions() {
        assert_eq!(found("a = Relu(x) b = LeakyRelu(a) c0 = PRelu(b, s) y = Tanh(c0)").len(), 4);
        assert_eq!(found("a = Clip(x, zero, six) b = HardSwish(a) y = Elu(b)").len(), 3);
        assert_eq!(found("s0 = Sigmoid(x) y = Mul(s0, x)"), ["y: 2 nodes, x to y"]);
        let gelu = "a = Div(x, root) e = Erf(a) b = Add(e, one) m = Mul(x, b) y = Mul(m, half)";
        assert_eq!(found(gelu), ["y: 5 nodes, x to y"]);
        let tanh = "q = Pow(x, three) k = Mul(q, c) a = Add(x, k) b = Mul(a, p) t = Tanh(b) u = Add(t, one)
            m = Mul(x, u) y = Mul(m, half)";
        assert_eq!(found(tanh), ["y: 8 nodes, x to y"]);
        for swish in [
            "a = Add(x, three) b = Clip(a, zero, six) m = Mul(x, b) y = Div(m, six)",
            "a = Add(x, three) b = Clip(a, zero, six) m = Div(b, six) y = Mul(m, x)",
        ] {
            assert_eq!(found(swish), ["y: 4 nodes, x to y"]);
        }
        let gate = "g0 = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(g0, x)";
        assert_eq!(found(gate), ["y: 2 nodes, x to y"]);
    }

    #[test]
    fn ignores_gates() {
        assert_eq!(found("n = Neg(x) s0 = Sigmoid(n) y = Mul(s0, x)"), Vec::<String>::new());
        assert_eq!(found("y = Clip(x)"), Vec::<String>::new());
        // The sigmoid has another user.
        let used = "s0 = Sigmoid(x) m = Mul(s0, x) y = Add(m, s0)";
        assert_eq!(found(used), Vec::<String>::new());
    }

    #[test]
    fn channel_axis_is_that_of_the_nearest_layer() {
        let axis = |text: &str| {
            let mut model = model(text);
            model.infer().unwrap();
            channel_axis(model.graph.value_ref(model.graph.find("z").unwrap()))
        };
        let conv = "g (float[N,2,4,4] x, float[N,3,4,4] k) => (float[N,3,4,4] y) <float[3,2,1,1] w = {1,2,3,4,5,6}> {
            c = Conv(x, w) z = Add(k, c) y = Relu(z) }";
        assert_eq!(axis(conv), Some(1));
        let matrix = "g (float[N,7,2] x) => (float[N,7,3] y) <float[2,3] w = {1,2,3,4,5,6}> {
            z = MatMul(x, w) y = Relu(z) }";
        assert_eq!(axis(matrix), Some(2));
        let transposed =
            "g (float[N,7,2] x) => (float[N,2,7] y) { z = Transpose<perm = [0,2,1]>(x) y = Relu(z) }";
        assert_eq!(axis(transposed), None);
    }
}
