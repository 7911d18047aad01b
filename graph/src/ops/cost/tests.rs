use super::*;
use crate::text::parse_model;

/// The cost of a model with `N = 2` and all other symbols 1.
fn cost(body: &str) -> Cost {
    let header = r#"<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1, "other" : 1]>"#;
    let mut model = parse_model(&format!("{header}\n{body}")).unwrap();
    model.infer().unwrap();
    model.check().unwrap();
    model.cost(&Bindings { sizes: HashMap::from([("N".into(), 2)]), ..Bindings::default() })
}

/// The multiply-accumulates of one node with inputs of these types.
fn macs(inputs: &str, node: &str) -> u64 {
    let cost = cost(&format!("g ({inputs}) => (y) {{ y = {node} }}"));
    assert_eq!(cost.uncounted, 0, "{node}");
    cost.macs
}

#[test]
fn counts_convolutions() {
    // 2·8·6·6 outputs of 4·3·3 taps each.
    let conv =
        |attributes, w| macs(&format!("float[N,4,8,8] x, float[{w}] w"), &format!("Conv{attributes}(x, w)"));
    assert_eq!(conv("", "8,4,3,3"), 2 * 8 * 36 * 36);
    assert_eq!(conv("<pads = [1,1,1,1], strides = [2,2]>", "8,4,3,3"), 2 * 8 * 16 * 36);
    assert_eq!(conv("<group = 4>", "8,1,3,3"), 2 * 8 * 36 * 9);
    // Every input element is multiplied with 3·2·2 weights.
    assert_eq!(macs("float[N,4,5,5] x, float[4,3,2,2] w", "ConvTranspose(x, w)"), 2 * 4 * 25 * 12);
    let integer = "uint8[1,4,8,8] x, uint8[8,4,3,3] w";
    assert_eq!(macs(integer, "ConvInteger(x, w)"), 8 * 36 * 36);
    let quantised = "uint8[1,4,8,8] x, float s, uint8 z, uint8[8,4,3,3] w";
    assert_eq!(macs(quantised, "QLinearConv(x, s, z, w, s, z, s, z)"), 8 * 36 * 36);
    let fused = "com.microsoft.FusedConv<activation = \"Relu\">(x, w)";
    assert_eq!(macs("float[1,4,8,8] x, float[8,4,3,3] w", fused), 8 * 36 * 36);
}

#[test]
fn counts_matrix_products() {
    assert_eq!(macs("float[N,3,4] a, float[4,5] b", "MatMul(a, b)"), 2 * 3 * 4 * 5);
    assert_eq!(macs("float[4] a, float[4] b", "MatMul(a, b)"), 4);
    assert_eq!(macs("float[3,4] a, float[N,7,4,5] b", "MatMul(a, b)"), 14 * 3 * 4 * 5);
    assert_eq!(macs("float[4,N] a, float[5,4] b", "Gemm<transA = 1, transB = 1>(a, b)"), 2 * 4 * 5);
    assert_eq!(macs("float[2,4] a, float[4,5] b, float[5] c", "Gemm(a, b, c)"), 2 * 4 * 5);
    let fused = "com.microsoft.FusedMatMul<transA = 1>(a, b)";
    assert_eq!(macs("float[N,4,3] a, float[N,4,5] b", fused), 2 * 3 * 4 * 5);
}

#[test]
fn counts_einsums() {
    let einsum = |inputs: &str, equation: &str, names: &str| {
        macs(inputs, &format!("Einsum<equation = \"{equation}\">({names})"))
    };
    assert_eq!(einsum("float[3,4] a, float[4,5] b", "ij,jk->ik", "a, b"), 60);
    assert_eq!(einsum("float[3,4] a, float[4,5] b", "ij, jk", "a, b"), 60);
    assert_eq!(einsum("float[N,6,3,4] a, float[4,5] b", "...ij,jk->...ik", "a, b"), 12 * 60);
    assert_eq!(einsum("float[3] a, float[5] b", "i,j->ij", "a, b"), 0);
    assert_eq!(einsum("float[3,4] a", "ij->ji", "a"), 0);
}

#[test]
fn counts_recurrences_and_attention() {
    // 7 steps of 2 sequences; W is [1,4·5,3], R is [1,4·5,5].
    let lstm = "LSTM<hidden_size = 5>(x, w, r)";
    assert_eq!(macs("float[7,N,3] x, float[1,20,3] w, float[1,20,5] r", lstm), 14 * (60 + 100));
    let gru = "GRU<hidden_size = 5, direction = \"bidirectional\">(x, w, r)";
    assert_eq!(macs("float[7,N,3] x, float[2,15,3] w, float[2,15,5] r", gru), 14 * (90 + 150));
    // Scores: 2·3 heads, 4 queries, 6 keys of 8; values of 5.
    let heads = "float[N,3,4,8] q, float[N,3,6,8] k, float[N,3,6,5] v";
    assert_eq!(macs(heads, "Attention(q, k, v)"), 2 * 3 * 4 * 6 * (8 + 5));
    let flat = "float[N,4,24] q, float[N,6,24] k, float[N,6,15] v";
    let attention = "Attention<q_num_heads = 3, kv_num_heads = 3>(q, k, v)";
    assert_eq!(macs(flat, attention), 2 * 3 * 4 * 6 * (8 + 5));
    let contrib = "com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v)";
    assert_eq!(macs(flat, contrib), 2 * 3 * 4 * 6 * (8 + 5));
    let packed = "com.microsoft.Attention<num_heads = 3>(x, w, b)";
    let projection = 2 * 4 * 6 * 18;
    assert_eq!(macs("float[N,4,6] x, float[6,18] w, float[18] b", packed), projection + 2 * 4 * 4 * (6 + 6));
}

#[test]
fn counts_no_macs_for_elementwise_operators() {
    assert_eq!(macs("float[N,3] x", "Mul(x, x)"), 0);
    assert_eq!(macs("float[N,3] x", "Softmax(x)"), 0);
    assert_eq!(macs("float[N,3] x", "com.microsoft.Gelu(x)"), 0);
    let unknown = cost("g (float[N] x) => (y) { y = other.Thing(x) }");
    assert_eq!((unknown.uncounted, unknown.unsized_values), (1, 1));
    assert_eq!(cost("g (float[N] x) => (y) { y = com.microsoft.QMoE(x) }").uncounted, 1);
}

#[test]
fn counts_constants_once() {
    let cost = cost(
        "g (float[N,4] x) => (y) <float[4] w = {1, 2, 3, 4}, int64[2] s = {0, -1}> {
            a = Mul(x, w)
            b = Add(a, w)
            h = Constant<value = float16[3] {0, 0, 0}>()
            y = Reshape(b, s)
        }",
    );
    assert_eq!((cost.params, cost.bytes), (4 + 3, 16 + 16 + 6));
    let reads: Vec<_> = cost.nodes.iter().map(|n| n.params).collect();
    assert_eq!(reads, [4, 4, 0, 0]);
}

#[test]
fn peaks_at_live_activations() {
    // Live at `b`: x (used by `y`), a, b; at `c`: x, b, c; at `y`: x, c, y. All are 2·4 floats.
    let chain = cost("g (float[N,4] x) => (y) { a = Relu(x) b = Relu(a) c = Relu(b) y = Add(c, x) }");
    assert_eq!(chain.activation_peak, 3 * 32);
    let halves = cost("g (float[N,4] x) => (float16[N,4] y) { y = Cast<to = 10>(x) }");
    assert_eq!(halves.activation_peak, 32 + 16);
    assert_eq!(halves.nodes[0].output_bytes, Some(16));
    let unused = cost("g (float[N,1,4] x) => (y) { a, m = MaxPool<kernel_shape = [1]>(x) y = Relu(x) }");
    assert_eq!(unused.activation_peak, 32 + 32 + 64, "unused outputs are live while their node runs");
}

#[test]
fn counts_most_expensive_branch_and_one_loop_iteration() {
    let branches = cost(
        "g (bool c, float[N,4] x, float[4,4] w) => (y) { y = If (c) <
            then_branch = t () => (float[N,4] p) { a = MatMul(x, w) p = MatMul(a, w) },
            else_branch = e () => (float[N,4] q) { q = MatMul(x, w) }> }",
    );
    assert_eq!(branches.macs, 2 * 2 * 16);
    // c, x, w and the output; inside `a` and `p`.
    assert_eq!(branches.activation_peak, 1 + 32 + 64 + 32 + 64);
    assert_eq!(branches.nodes[0].subgraphs[1].1.macs, 2 * 16);

    let repeated = cost(
        "g (int64 n, bool c, float[4,4] w) => (y) { y = Loop (n, c, w) <
            body = b (int64 i, bool d, float[4,4] v) => (bool e, float[4,4] u) { e = Identity(d) u = MatMul(v, v) }> }",
    );
    assert_eq!((repeated.macs, repeated.loops_counted_once), (64, 1));

    let steps = cost(
        "g (float[4] s, float[5,4] x) => (y, z) { y, z = Scan<num_scan_inputs = 1,
            body = b (float[4] t, float[4] v) => (float[4] u, float r) { u = Add(t, v) r = MatMul(t, v) }>(s, x) }",
    );
    assert_eq!((steps.macs, steps.loops_counted_once), (5 * 4, 0));
}

#[test]
fn counts_called_functions() {
    let called = cost(
        r#"g (float[N,4] x, float[4,4] w) => (y) { a = other.twice(x, w) y = other.twice(a, w) }
        <domain: "other", opset_import: ["" : 23, "other" : 1]> twice (a, w) => (b) {
            k = Constant<value = float[4] {1, 2, 3, 4}>() h = other.once(a, w) s = Add(h, k) b = MatMul(s, w) }
        <domain: "other", opset_import: ["" : 23]> once (a, w) => (b) { b = MatMul(a, w) }"#,
    );
    assert_eq!((called.macs, called.uncounted, called.params), (2 * 2 * 2 * 16, 0, 4));

    // Calls with other shapes and attributes cost as much as their inlined bodies.
    let different = cost(
        r#"g (float[N,4] x, float[4,6] w, float[6,3] v, float[3,6] t) => (y, z) {
            a = other.dense(x, w) y = other.dense(a, v) z = other.dense<t = 1>(a, t) }
        <domain: "other", opset_import: ["" : 23]> dense <t: int = 0> (a, w) => (b) {
            b = Gemm<transB: int = @t>(a, w) }"#,
    );
    assert_eq!((different.macs, different.uncounted), (2 * (4 * 6 + 6 * 3 + 6 * 3), 0));
}

#[test]
fn reports_data_dependent_sizes() {
    let found =
        cost("g (float[N,4] x, float[?,4] b) => (y) { i = NonZero(x) t = Cast<to = 1>(i) y = MatMul(t, b) }");
    // b, i and t have unknown sizes: the rows of b, and the number of non-zero elements; y is [2,4].
    assert_eq!((found.guessed_values, found.unsized_values, found.macs), (3, 0, 2 * 4));
}

#[test]
fn reports_unknown_sizes() {
    let mut model = parse_model(
        r#"<ir_version: 8, opset_import: ["" : 17]> g (float[K,4] x, float[4,3] w) => (y) { y = MatMul(x, w) }"#,
    )
    .unwrap();
    model.infer().unwrap();
    let none = model.cost(&Bindings { sizes: HashMap::new(), default: None, ..Bindings::default() });
    assert_eq!((none.macs, none.uncounted, none.unsized_values), (0, 1, 2));
    let seven = model.cost(&Bindings {
        sizes: HashMap::from([("K".into(), 7)]),
        default: None,
        ..Bindings::default()
    });
    assert_eq!((seven.macs, seven.uncounted, seven.unsized_values), (84, 0, 0));
    let most = model.cost(&Bindings {
        sizes: HashMap::from([("K".into(), i64::MAX)]),
        default: None,
        ..Bindings::default()
    });
    assert_eq!(most.macs, 0, "an overflow is unknown");
}
