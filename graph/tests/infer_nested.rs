//! Inference of subgraphs and functions, after patches, and of hostile graphs.

#![allow(clippy::unwrap_used)]

use pare_graph::{
    Dim, Fact, Graph, Node, Patch, Tensor, Value,
    text::{parse_graph, parse_model},
};

fn inferred(text: &str) -> Graph {
    let mut graph = parse_graph(&format!("g {text}"), 17).unwrap_or_else(|e| panic!("{e}\n{text}"));
    graph.infer_with(&[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    graph
}

fn fact(graph: &Graph, name: &str) -> String {
    graph.value(graph.find(name).unwrap_or_else(|| panic!("there is no `{name}`"))).fact.to_string()
}

/// The fact of a value in the first subgraph of the producer of `of`.
fn fact_inside(graph: &Graph, of: &str, name: &str) -> String {
    let (node, _) = graph.producer(graph.find(of).unwrap()).unwrap();
    fact(graph.node(node).subgraphs().next().unwrap(), name)
}

#[test]
fn branches_are_unified() {
    let graph = inferred(
        "(bool c, float[N,4] x, float[M,4] z) => (y, w) <int64[2] t = {4, -1}> {
            y, w = If(c) <then_branch = a () => (p, q) { p = Relu(x) q = Reshape(x, t) },
                          else_branch = b () => (r, s) { r = Neg(z) s = Reshape(z, t) }>
        }",
    );
    assert_eq!(fact(&graph, "y"), "float[?,4]");
    // The captured shape is known in the branch.
    assert_eq!(fact_inside(&graph, "y", "q"), "float[4,N]");
    assert_eq!(fact(&graph, "w"), "float[4,?]");
    // A constant condition selects one branch.
    let graph = inferred(
        "(float[N] x, float[M] z) => (y) <bool c = {0}> {
            y = If(c) <then_branch = a () => (p) { p = Relu(x) }, else_branch = b () => (r) { r = Neg(z) }>
        }",
    );
    assert_eq!(fact(&graph, "y"), "float[M]");
}

#[test]
fn accepts_contradictions_in_branches() {
    let graph = inferred(
        "(bool c, float[2] x) => (y) <float[3] w = {1, 2, 3}> {
            y = If(c) <then_branch = a () => (p) { p = Add(x, w) }, else_branch = b () => (r) { r = Neg(x) }>
        }",
    );
    assert_eq!(fact(&graph, "y"), "unknown");
}

#[test]
fn loops_generalize_over_iterations() {
    let graph = inferred(
        "(int64 n, float[B,4] x, float[B,K] s) => (y, grown, last, all) <bool t = {1}, float[1,4] one = {1, 1, 1, 1}> {
            y, grown, last, all = Loop(n, t, x, x, s) <body = b (int64 i, bool c, v, u, w) => (c, v2, u2, w2, v2) {
                v2 = Relu(v)
                u2 = Concat<axis = 0>(u, one)
                w2 = Concat<axis = 0>(u, v)
            }>
        }",
    );
    assert_eq!(fact(&graph, "y"), "float[B,4]");
    assert_eq!(fact(&graph, "grown"), "float[?,4]");
    assert_eq!(fact(&graph, "last"), "float[?,?]");
    assert_eq!(fact(&graph, "all"), "float[?,B,4]");
    assert_eq!(fact_inside(&graph, "y", "u2"), "float[?+1,4]");
    // The trip count is known if the loop has no early exit.
    let graph = inferred(
        "(float[B] x) => (y, all) <bool t = {1}, int64 n = {6}> {
            y, all = Loop(n, t, x) <body = b (int64 i, bool c, v) => (c2, v2, v2) { c2 = Identity(c) v2 = Relu(v) }>
        }",
    );
    assert_eq!(fact(&graph, "all"), "float[6,B]");
}

/// PyTorch's exporter declares the shapes of the first iteration in the body, as in Mask R-CNN.
#[test]
fn sizes_declared_in_loops_hold_only_if_no_carried_value_changes() {
    let text = |second: &str| {
        format!(
            "(int64 n, float[3] x, s) => (y, z) <bool t = {{1}}, float[0,3] none = {{}}, int64[1] a = {{0}}> {{
                y, z = Loop(n, t, none, s) <body = b (int64 i, bool c, float[0,3] v, float[4] u)
                    => (c, float[1,3] v2, u2) {{
                    row = Unsqueeze(x, a)
                    v2 = Concat<axis = 0>(v, row)
                    u2 = {second}
                }}>
            }}"
        )
    };
    let graph = inferred(&text("Relu(u)"));
    assert_eq!(fact_inside(&graph, "y", "v"), "float[?,3]");
    assert_eq!(fact_inside(&graph, "y", "v2"), "float[?+1,3]");
    assert_eq!(fact(&graph, "y"), "float[?,3]");
    // The declared size is that of the value before the loop.
    assert_eq!(fact_inside(&graph, "y", "u"), "float[4]");
    assert_eq!(fact(&graph, "z"), "float[4]");
    let graph = inferred(&text("Concat<axis = 0>(u, x)"));
    assert_eq!(fact_inside(&graph, "y", "u"), "float[?]");
    assert_eq!(fact_inside(&graph, "y", "u2"), "float[?+3]");
}

#[test]
fn scans_slice_and_stack_tensors() {
    let graph = inferred(
        "(float[H] s, float[B,T,H] x) => (y, all) {
            y, all = Scan(s, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
                body = b (v, e) => (w, f) { w = Identity(v) f = Add(e, v) }>
        }",
    );
    assert_eq!(fact(&graph, "y"), "float[H]");
    assert_eq!(fact(&graph, "all"), "float[B,H,T]");
}

#[test]
fn infers_functions_per_call() {
    let mut model = parse_model(
        "<ir_version: 8, opset_import: [\"\" : 17, \"local\" : 1]>
         g (float[N,4] x, float[6,M] z) => (a, b, c) {
            a = local.turn<by = [1, 0]>(x)
            b = local.turn<by = [1, 0]>(z)
            c = local.twice(x)
         }
         <domain: \"local\", opset_import: [\"\" : 17]>
         turn<by>(v) => (w) { h = Relu(v) w = Transpose<perm: ints = @by>(h) }
         <domain: \"local\", opset_import: [\"\" : 17, \"local\" : 1]>
         twice(v) => (w) { h = local.turn<by = [0, 1]>(v) w = local.turn<by = [1, 0]>(h) }",
    )
    .unwrap();
    model.infer().unwrap();
    assert_eq!(["a", "b", "c"].map(|n| fact(&model.graph, n)), ["float[4,N]", "float[M,6]", "float[4,N]"]);
    // Bodies have the facts that all calls have in common: `turn` is called with three shapes, `twice` with
    // one.
    assert_eq!(fact(&model.functions[0].body, "h"), "float[?,?]");
    assert_eq!(fact(&model.functions[1].body, "h"), "float[N,4]");
    // Inference without functions keeps facts that are not affected.
    model.graph.reinfer().unwrap();
    assert_eq!(fact(&model.graph, "c"), "float[4,N]");
}

#[test]
fn recursion_terminates() {
    let mut model = parse_model(
        "<ir_version: 8, opset_import: [\"\" : 17, \"l\" : 1]>
         g (float[N] x) => (y) { y = l.f(x) }
         <domain: \"l\", opset_import: [\"\" : 17, \"l\" : 1]> f(v) => (w) { w = l.h(v) }
         <domain: \"l\", opset_import: [\"\" : 17, \"l\" : 1]> h(v) => (w) { w = l.f(v) }",
    )
    .unwrap();
    model.infer().unwrap();
    assert_eq!(fact(&model.graph, "y"), "unknown");
}

#[test]
fn overridable_initializers_are_not_constant() {
    let graph = inferred("(float[N,4] x, int64[2] t = {2, -1}) => (y) { y = Reshape(x, t) }");
    assert_eq!(fact(&graph, "y"), "float[?,?]");
}

#[test]
fn patches_update_shapes() {
    // Pruning: weights shrink, and declarations of intermediate values become invalid.
    let mut graph = inferred(
        "(float[N,2] x) => (float[N,2] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3,2] u = {1, 2, 3, 4, 5, 6}, float[N,3] h> {
            h = MatMul(x, w)
            y = MatMul(h, u)
        }",
    );
    let cut = |shape: &[usize]| Tensor::from_slice(shape, &[1_f32; 4]).unwrap();
    let find = |graph: &Graph, name: &str| graph.find(name).unwrap();
    let (w, u) = (find(&graph, "w"), find(&graph, "u"));
    let anchor = graph.nodes()[0];
    // One weight alone is inconsistent.
    let mut patch = Patch::anchored(anchor);
    patch.set_data(w, cut(&[2, 2]));
    let error = graph.apply(patch).unwrap_err().to_string();
    assert_eq!(
        error,
        "shape inference fails after the patch: MatMul producing `y`: `h` float[N,2] and `u` float[3,2] cannot be multiplied"
    );
    assert_eq!(fact(&graph, "h"), "float[N,3]");
    let mut patch = Patch::anchored(anchor);
    patch.set_data(w, cut(&[2, 2]));
    patch.set_data(u, cut(&[2, 2]));
    graph.apply(patch).unwrap();
    assert_eq!(fact(&graph, "h"), "float[N,2]");
    // The facts of new nodes are inferred immediately.
    let node = graph.nodes()[0];
    let (h, x) = (find(&graph, "h"), find(&graph, "x"));
    let mut patch = Patch::anchored(node);
    let new = patch.node("t", Node::new("Relu"), &[x.into()]);
    let new = patch.node("h", Node::new("Identity"), &[new]);
    patch.replace(graph.value_ref(h), new);
    graph.apply(patch).unwrap();
    assert_eq!(fact(&graph, "t"), "float[N,2]");
    assert_eq!(fact(&graph, "h"), "float[N,2]");
}

/// A chain of nodes, each of which reads the previous value.
fn chain(length: usize, first: Fact, node: impl Fn(usize) -> Node, inputs: usize) -> Graph {
    let mut graph = parse_graph("g () => () {}", 17).unwrap();
    let mut last = graph.add_value(Value::named("x")).unwrap();
    graph.set_fact(last, first);
    graph.add_input(last);
    for i in 0..length {
        let next = graph.add_value(Value::named(&format!("v{i}"))).unwrap();
        graph.add_node(node(i), &vec![Some(last); inputs], &[Some(next)]).unwrap();
        last = next;
    }
    graph.add_output(last);
    graph
}

#[test]
fn infers_long_chains() {
    let fact = Fact::tensor(pare_graph::DataType::Float, vec![Dim::symbol("N"), Dim::from(4)]);
    for (op, inputs) in [("Relu", 1), ("Identity", 1), ("Add", 2), ("Mul", 2)] {
        let mut graph = chain(20_000, fact.clone(), |_| Node::new(op), inputs);
        graph.reinfer().unwrap();
        assert_eq!(graph.value(graph.find("v19999").unwrap()).fact, fact, "{op}");
    }
}

#[test]
fn hostile_sizes_do_not_overflow() {
    // Elements of a shape tensor that are squared, added and divided.
    for op in ["Mul", "Add", "Sub", "Div", "Max"] {
        let content = Some(vec![&Dim::symbol("N") + &Dim::from(3), Dim::from(i64::MAX)]);
        let known = pare_graph::TensorFact {
            dtype: Some(pare_graph::DataType::Int64),
            shape: Some(vec![Dim::from(2)]),
            content,
        };
        // Expressions of unbounded size would double with every node.
        chain(2000, Fact::Tensor(known), |_| Node::new(op), 2).reinfer().unwrap();
    }
    let graph = inferred(
        "(float[9223372036854775807,9223372036854775807] x) => (y, z, p) <int64[1] t = {-1}, int64[4] pads = {9223372036854775807, 1, 1, 1}> {
            y = Reshape(x, t)
            z = Concat<axis = 0>(x, x)
            p = Flatten<axis = 0>(x)
        }",
    );
    assert_eq!(fact(&graph, "y"), "float[?]");
    assert_eq!(fact(&graph, "z"), "float[?,9223372036854775807]");
    let graph = inferred(
        "() => (y) <int64[3] t = {4000000000, 4000000000, 4000000000}> { y = ConstantOfShape(t) s = Size(y) }",
    );
    assert_eq!(fact(&graph, "y"), "float[4000000000,4000000000,4000000000]");
}
