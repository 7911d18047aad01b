use super::bodies::same_attributes;
use crate::framework::matching::{is_plain, is_pointwise};
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{
    DataType, Graph, Model, Node, NodeId, NodeRef, Patch, Tensor, ValueId,
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
    /// outputs are merged together. Bodies are equal if they differ only in the names of their values.
    /// Initializers are compared by content.
    ///
    /// Declines for random and unknown operators, for `QuantizeLinear` and `DequantizeLinear`, for initializers
    /// that a caller may override, and for values that a reader updates in place (`BatchNormalization` in
    /// training). Of two graph outputs the second becomes an `Identity` of the first if the node does more than
    /// copying; otherwise both are kept.
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
            let (Some(old), Some(new)) = (old, new) else { continue };
            let old = graph.value_ref(old);
            let are_outputs = old.value().is_output() && graph.value(new).is_output();
            if are_outputs && computes_more_than_a_copy(at) {
                let copy = patch.node(old.name(), Node::new("Identity"), &[new.into()]);
                patch.replace(old, copy);
            } else {
                patch.replace(old, new);
            }
        }
        if cx.apply(graph, patch).is_some() {
            cx.count(Counter::new("node merged", "nodes merged"), 1);
        }
    }
}

/// Returns true if an `Identity` in place of the node saves time.
fn computes_more_than_a_copy(at: NodeRef<'_>) -> bool {
    !is_pointwise(at) && !at.has(Trait::View)
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

    /// A loop with these names of values, which adds `c` to its state.
    fn looped(names: [&str; 5], c: &str, more: &str) -> String {
        let [i, k, s, t, o] = names;
        format!(
            "Loop(n, yes, x) <body = b (int64 {i}, bool {k}, float[2] {s}) => (bool {t}, float[2] {o}) <float c_{o} = {{{c}}}> {{
                {t} = Identity({k}) a_{o} = Add({s}, c_{o}) {o} = {more} }}>"
        )
    }

    #[test]
    fn merges_equal_loops_and_branches() {
        let graph = |nodes: &str| {
            format!(
                "g (float[2] x, float[2] w, bool p) => (float[2] y) <int64 n = {{3}}, bool yes = {{1}}> {{ {nodes} }}"
            )
        };
        let loops = |names, c: &str, more: &str| {
            let first = looped(["i", "k", "s", "t", "o"], "1", "Mul(a_o, w)");
            graph(&format!("u = {first} v = {} y = Sum(u, v, v)", looped(names, c, more)))
        };
        let alone =
            graph(&format!("u = {} y = Sum(u, u, u)", looped(["i", "k", "s", "t", "o"], "1", "Mul(a_o, w)")));
        check(Deduplicate::default(), &loops(["j", "l", "r", "q", "e"], "1", "Mul(a_e, w)"), &alone);
        for (c, more) in
            [("2", "Mul(a_e, w)"), ("1", "Mul(a_e, x)"), ("1", "Add(a_e, w)"), ("1", "Mul(r, w)")]
        {
            no_match(Deduplicate::default(), &loops(["j", "l", "r", "q", "e"], c, more));
        }
        let branches = |a: &str, b: &str, inner: &str| {
            format!(
                "If(p) <then_branch = t () => (float[2] {a}) {{ h_{a} = Neg(w) {a} = If(yes) <
                        then_branch = d () => (float[2] {a}_1) {{ {a}_1 = Mul({inner}, x) }},
                        else_branch = f () => (float[2] {a}_2) {{ {a}_2 = Abs(x) }}> }},
                    else_branch = e () => (float[2] {b}) {{ {b} = Exp(x) }}>"
            )
        };
        let (first, second) = (branches("a", "b", "h_a"), branches("c", "d", "h_c"));
        check(
            Deduplicate::default(),
            &graph(&format!("u = {first} v = {second} y = Add(u, v)")),
            &graph(&format!("u = {first} y = Add(u, u)")),
        );
        let other = branches("c", "d", "w");
        no_match(Deduplicate::default(), &graph(&format!("u = {first} v = {other} y = Add(u, v)")));
        // Random numbers are drawn twice.
        let random = |o: &str| {
            format!(
                "If(p) <then_branch = t () => (float[2] {o}) {{ {o} = RandomNormal<shape = [2]>() }},
                    else_branch = e () => (float[2] e{o}) {{ e{o} = Neg(x) }}>"
            )
        };
        no_match(
            Deduplicate::default(),
            &graph(&format!("u = {} v = {} y = Add(u, v)", random("a"), random("b"))),
        );
    }

    #[test]
    fn copies_equal_outputs() {
        check(
            Deduplicate::default(),
            "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Softmax(x) z = Softmax(x) }",
            "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Softmax(x) z = Identity(y) }",
        );
        check(
            Deduplicate::default(),
            "g (float[N,3] x, float[3,2] w) => (float[N,2] y, float[N,2] z, float[N,2] r) {
                y = MatMul(x, w) z = MatMul(x, w) r = Relu(z) }",
            "g (float[N,3] x, float[3,2] w) => (float[N,2] y, float[N,2] z, float[N,2] r) {
                y = MatMul(x, w) z = Identity(y) r = Relu(z) }",
        );
        check(
            Deduplicate::default(),
            "g (float[N,3] x) => (float[N,1] y, int64[N,1] i, float[N,1] z) <int64[1] k = {1}> {
                y, i = TopK(x, k) z, j = TopK(x, k) }",
            "g (float[N,3] x) => (float[N,1] y, int64[N,1] i, float[N,1] z) <int64[1] k = {1}> {
                y, i = TopK(x, k) z = Identity(y) }",
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
