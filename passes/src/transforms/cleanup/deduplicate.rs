use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, DataType, Graph, Model, NodeId, NodeRef, Patch, Tensor, ValueId,
    ops::{Trait, is_deterministic, is_updated},
};
use std::{
    collections::{HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

pass! {
    /// Merge common subexpressions and duplicate initializers.
    ///
    /// Two nodes are merged if operator, inputs and attributes are equal bit for bit; nodes with several
    /// outputs are merged together. Initializers are compared by content.
    ///
    /// Declines for random and unknown operators, for `QuantizeLinear` and `DequantizeLinear`, for nodes with
    /// subgraphs, for initializers that a caller may override, for values that a reader updates in place
    /// (`BatchNormalization` in training), and where two graph outputs would become one value.
    #[pass("deduplicate", Exact)]
    pub struct Deduplicate {}
}

impl Pass for Deduplicate {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| {
            merge_constants(graph, cx);
            merge_nodes(graph, cx);
            Ok(())
        })
    }
}

/// Replaces each duplicate initializer by the first of equal content.
fn merge_constants(graph: &mut Graph, cx: &mut Context<'_>) {
    let mut first = HashMap::<u64, Vec<ValueId>>::new();
    let mut kinds = HashMap::<(DataType, Vec<usize>), usize>::new();
    let kind = |tensor: &Tensor| (tensor.dtype(), tensor.shape().to_vec());
    for tensor in graph.initializers().iter().filter_map(|&id| graph.value(id).tensor()) {
        *kinds.entry(kind(tensor)).or_default() += 1;
    }
    for id in graph.initializers() {
        let value = graph.value(id);
        let shareable = !value.is_output() && !is_updated(graph.value_ref(id));
        let Some(tensor) = value.tensor().filter(|_| shareable) else { continue };
        // Unique type and shape: no need to read its bytes.
        if kinds.get(&kind(tensor)) == Some(&1) {
            continue;
        }
        let candidates = first.entry(fingerprint(tensor)).or_default();
        let Some(&original) = candidates.iter().find(|&&c| graph.value(c).tensor() == Some(tensor)) else {
            candidates.push(id);
            continue;
        };
        let Some(&(anchor, _)) = graph.users(id).first() else { continue };
        let mut patch = Patch::anchored(anchor);
        patch.replace(graph.value_ref(id), original);
        if cx.apply(graph, patch).is_some() {
            cx.count(Counter::new("initializer merged", "initializers merged"), 1);
        }
    }
}

/// A hash of a tensor's type, shape and some of its bytes. Weights of equal shape usually differ everywhere,
/// so a few positions separate them; tensors with equal hashes are compared completely. Reading a mapped
/// weight costs a memory page per position, hence two runs of bytes.
fn fingerprint(tensor: &Tensor) -> u64 {
    const SMALL: usize = 4096;
    const RUN: usize = 256;
    let mut hasher = DefaultHasher::new();
    (tensor.dtype(), tensor.shape()).hash(&mut hasher);
    let bytes = tensor.bytes();
    if bytes.len() <= SMALL {
        bytes.hash(&mut hasher);
    } else {
        for start in [bytes.len() / 3, bytes.len() / 3 * 2] {
            bytes[start..start + RUN].hash(&mut hasher);
        }
    }
    tensor.as_strings().hash(&mut hasher);
    hasher.finish()
}

/// Compares every node, in topological order, with earlier ones, whose inputs are already merged.
fn merge_nodes(graph: &mut Graph, cx: &mut Context<'_>) {
    let mut first = HashMap::<u64, Vec<NodeId>>::new();
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        // A quantized operator is recognised by the quantizations around it, so each keeps its own. Operators
        // share the result of `DynamicQuantizeLinear`.
        if at.has(Trait::Quantization) && !at.is("DynamicQuantizeLinear")
            || is_plain(at).is_err() && at.node().domain().is_empty()
            || at.node().subgraphs().next().is_some()
            || !is_deterministic(at)
            || at.outputs().into_iter().flatten().any(is_updated)
        {
            continue;
        }
        let candidates = first.entry(signature(at)).or_default();
        let Some(&original) = candidates.iter().find(|&&c| is_duplicate(graph.at(c), at)) else {
            candidates.push(id);
            continue;
        };
        let mut patch = Patch::anchored(id);
        for (old, new) in graph.outputs_of(id).into_iter().zip(graph.outputs_of(original)) {
            if let (Some(old), Some(new)) = (old, new) {
                patch.replace(graph.value_ref(old), new);
            }
        }
        if cx.apply(graph, patch).is_some() {
            cx.count(Counter::new("node merged", "nodes merged"), 1);
        }
    }
}

/// A hash that is equal for equal nodes.
fn signature(at: NodeRef<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let node = at.node();
    (&node.op, node.domain(), &node.overload).hash(&mut hasher);
    at.graph.inputs_of(at.id).hash(&mut hasher);
    node.attributes.len().hash(&mut hasher);
    hasher.finish()
}

fn is_duplicate(first: NodeRef<'_>, second: NodeRef<'_>) -> bool {
    let (a, b) = (first.node(), second.node());
    let outputs = |at: NodeRef<'_>| at.graph.outputs_of(at.id);
    // The first node must produce every output that the second one produces.
    let covers = outputs(first).len() == outputs(second).len()
        && outputs(first).iter().zip(outputs(second)).all(|(f, s)| f.is_some() || s.is_none());
    a.op == b.op
        && a.domain() == b.domain()
        && a.overload == b.overload
        && covers
        && same_attributes(first, second)
        && first.graph.inputs_of(first.id) == second.graph.inputs_of(second.id)
}

/// Compares attributes regardless of order.
fn same_attributes(first: NodeRef<'_>, second: NodeRef<'_>) -> bool {
    let (a, b) = (&first.node().attributes, &second.node().attributes);
    let graphs = |a: &Attribute| !a.graphs().is_empty();
    a.len() == b.len() && a.iter().all(|(name, value)| !graphs(value) && b.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, model, no_match, run_pass};
    use pare_graph::text::print_graph;

    #[test]
    fn merges_equal_nodes() {
        check(
            Deduplicate::default(),
            "g (float[4] x) => (float[4] y) {
                a = LeakyRelu<alpha = 0.1>(x) b = LeakyRelu<alpha = 0.1>(x) c = LeakyRelu<alpha = 0.2>(x)
                d = Add(a, b) e = Neg(a) f = Neg(b) y = Sum(c, d, e, f) }",
            "g (float[4] x) => (float[4] y) {
                a = LeakyRelu<alpha = 0.1>(x) c = LeakyRelu<alpha = 0.2>(x)
                d = Add(a, a) e = Neg(a) y = Sum(c, d, e, e) }",
        );
    }

    #[test]
    fn merges_nodes_with_several_outputs_together() {
        check(
            Deduplicate::default(),
            "g (float[4] x) => (float[2] y) {
                a, b = Split<num_outputs = 2>(x) c, d = Split<num_outputs = 2>(x) y = Sum(a, b, c, d) }",
            "g (float[4] x) => (float[2] y) { a, b = Split<num_outputs = 2>(x) y = Sum(a, b, a, b) }",
        );
    }

    #[test]
    fn merges_equal_initializers() {
        check(
            Deduplicate::default(),
            "g (float[2] x, float[2] o = {1,2}) => (float[1,2] y) <
                float[2] a = {1,2}, float[2] b = {1,2}, float[1,2] c = {1,2}, float[2] n = {0,0}, float[2] z = {-0.0,0}> {
                y = Sum(x, a, b, c, n, z, o) }",
            "g (float[2] x, float[2] o = {1,2}) => (float[1,2] y) <
                float[2] a = {1,2}, float[1,2] c = {1,2}, float[2] n = {0,0}, float[2] z = {-0.0,0}> {
                y = Sum(x, a, a, c, n, z, o) }",
        );
    }

    #[test]
    fn keeps_values_that_are_updated_in_place() {
        let norm = "BatchNormalization<training_mode = 1>";
        no_match(
            Deduplicate::default(),
            &format!(
                "g (float[N,2] x) => (float[N,2] y, float[2] p, float[2] q) <
                    float[2] s = {{1,2}}, float[2] b = {{0,1}}, float[2] m = {{1,2}}, float[2] v = {{0,1}}> {{
                    y, p, q = {norm}(x, s, b, m, v) }}"
            ),
        );
        // Another reader keeps its own copy; copies that nothing updates are merged.
        let graph = |b: &str, k: &str, data: &str| {
            model(&format!(
                "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <
                    float[2] s = {{1,2}}, {data} float[2] m = {{1,2}}, float[2] v = {{1,2}}> {{
                    y, p, q = {norm}(x, s, {b}, m, v) z = Add(x, {k}) }}"
            ))
        };
        let mut changed = graph("b", "k", "float[2] b = {1,2}, float[2] k = {1,2},");
        run_pass(Deduplicate::default(), &mut changed);
        assert_eq!(print_graph(&changed.graph), print_graph(&graph("s", "s", "").graph));
        // Nor are computed statistics merged, the nodes that update them, and statistics updated in a branch.
        no_match(
            Deduplicate::default(),
            &format!(
                "g (float[N,2] x, float[2] w) => (float[N,2] y, float[N,2] z) <
                    float[2] s = {{1,2}}, float[2] b = {{0,1}}> {{
                    m = Abs(w) v = Abs(w)
                    y, p, q = {norm}(x, s, b, m, v) z, t, u = {norm}(x, s, b, m, v) }}"
            ),
        );
        no_match(
            Deduplicate::default(),
            &format!(
                "g (float[N,2] x, bool c) => (float[N,2] y) <float[2] m = {{1,2}}, float[2] v = {{1,2}}> {{
                    y = If(c) <
                        then_branch = t () => (float[N,2] p) <float[2] s = {{3,2}}, float[2] b = {{0,1}}> {{
                            p, t, u = {norm}(x, s, b, m, v) }},
                        else_branch = e () => (float[N,2] q) {{ q = Abs(x) }}> }}"
            ),
        );
    }

    #[test]
    fn keeps_random_and_unknown_operators_and_outputs() {
        no_match(
            Deduplicate::default(),
            "g () => (float[2] y) {
                a = RandomNormal<shape = [2], seed = 1.0>() b = RandomNormal<shape = [2], seed = 1.0>() y = Add(a, b) }",
        );
        no_match(
            Deduplicate::default(),
            "<ir_version: 8, opset_import: [\"\" : 18, \"acme\" : 1]>
             g (float[2] x) => (float[2] y) { a = acme.Odd(x) b = acme.Odd(x) y = Add(a, b) }",
        );
        let why = declines(
            Deduplicate::default(),
            "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Neg(x) }",
        );
        assert_eq!(why.len(), 1, "{why:?}");
    }
}
