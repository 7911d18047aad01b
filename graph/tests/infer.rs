//! Inference of types and shapes: tables of operators, and interactions of several nodes.

#![allow(clippy::unwrap_used)]

use pare_graph::{Graph, text::parse_graph};

fn graph(opset: i64, text: &str) -> Graph {
    parse_graph(&format!("g {text}"), opset).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The fact of a value, with elements if they are known: `int64[2] {N,3}`.
fn shown(graph: &Graph, name: &str) -> String {
    let fact = &graph.value(graph.find(name).unwrap_or_else(|| panic!("there is no `{name}`"))).fact;
    match fact.content() {
        Some(items) => {
            let items: Vec<_> = items.iter().map(ToString::to_string).collect();
            format!("{fact} {{{}}}", items.join(","))
        }
        None => fact.to_string(),
    }
}

/// Checks the inferred facts against `expected` (`y float[2]; z …`).
fn check(opset: i64, text: &str, expected: &str) {
    let mut graph = graph(opset, text);
    graph.infer_with(&[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    for entry in expected.split("; ") {
        let (name, fact) = entry.split_once(' ').unwrap();
        assert_eq!(shown(&graph, name), fact, "{name} in {text}");
    }
}

fn table(opset: i64, rows: &[(&str, &str)]) {
    rows.iter().for_each(|(text, expected)| check(opset, text, expected));
}

/// Checks that inference fails with this message.
fn rejects(opset: i64, text: &str, message: &str) {
    let error = graph(opset, text).infer_with(&[]).expect_err(text);
    assert_eq!(error.to_string(), message, "{text}");
}

#[test]
fn elementwise_operators_broadcast() {
    table(
        17,
        &[
            ("(float[N,1,3] a, float[4,3] b) => (y) { y = Add(a, b) }", "y float[N,4,3]"),
            ("(float[N] a, float[5] b) => (y) { y = Mul(a, b) }", "y float[5]"),
            ("(float[N] a, float[M] b) => (y) { y = Mul(a, b) }", "y float[?]"),
            ("(float[N,0] a, float[1] b) => (y) { y = Sub(a, b) }", "y float[N,0]"),
            ("(float[2,3] a, float[3] b) => (y) { y = Less(a, b) }", "y bool[2,3]"),
            ("(bool[2,1] c, float[3] a, float b) => (y) { y = Where(c, a, b) }", "y float[2,3]"),
            ("(float[2,3] a, int64[3] b) => (y) { y = Pow(a, b) }", "y float[2,3]"),
            ("(float[2,3] a) => (y) { y = Cast<to = 10>(a) }", "y float16[2,3]"),
            ("(float[2,3] a, float[3] s) => (y) { y = PRelu(a, s) }", "y float[2,3]"),
            ("(float[2] a) => (y, m) { y, m = Dropout(a) }", "y float[2]; m bool[2]"),
            ("(float[2,N] a, float[1] b, float c) => (y) { y = Sum(a, b, c) }", "y float[2,N]"),
        ],
    );
    // Before opset 10 the mask has the type of the data.
    check(9, "(float[2] a) => (y, m) { y, m = Dropout(a) }", "m float[2]");
}

#[test]
fn shapes_are_computed_with_symbols() {
    table(17, &[
        (
            "(float[N,C,8] x) => (y) <int64[1] tail = {-1}, int64 i = {0}, int64[1] z = {0}> {
                s = Shape(x) n = Gather(s, i) n1 = Unsqueeze(n, z) t = Concat<axis = 0>(n1, tail) y = Reshape(x, t)
            }",
            "s int64[3] {N,C,8}; n int64[] {N}; t int64[2] {N,-1}; y float[N,8*C]",
        ),
        (
            "(float[N,S,64] x) => (y, z) <int64[4] t = {0, 0, 8, 8}> { y = Reshape(x, t) z = Transpose<perm = [0, 2, 1, 3]>(y) }",
            "y float[N,S,8,8]; z float[N,8,S,8]",
        ),
        // An integer that is not a size may be -1.
        ("(float[N,6] x, int64[1] k) => (y) <int64[1] a = {3}> { t = Concat<axis = 0>(k, a) y = Reshape(x, t) }", "y float[2*N,3]"),
        ("(float[N,6] x, int64[3] t) => (y) { y = Reshape(x, t) }", "y float[?,?,?]"),
        ("(float[0,6] x) => (y) <int64[2] t = {0, 3}> { y = Reshape<allowzero = 1>(x, t) }", "y float[0,3]"),
        (
            "(float[1,3,H,W] x) => (h, b) <int64[1] a = {2}, int64[1] e = {4}, int64[1] two = {2}, int64 one = {1}> {
                s = Shape(x) p = Slice(s, a, e) h = Mul(p, two) q = Div(p, two) b = Add(q, one)
            }",
            "p int64[2] {H,W}; h int64[2] {2*H,2*W}; b int64[2] {floor((H)/(2))+1,floor((W)/(2))+1}",
        ),
        ("(float[N,4] x) => (e) <int64[2] t = {1, 4}> { s = Shape(x) e = Expand(s, one) one = Shape<start = 2>(x) }", "one int64[0] {}"),
        ("(float[N,4] x, float[1,4] w) => (y) { s = Shape(x) y = Expand(w, s) }", "y float[N,4]"),
        ("(float[N,4] x) => (y) { s = Shape(x) y = ConstantOfShape<value = int64[1] {7}>(s) }", "y int64[N,4]"),
        ("(float[N,4] x) => (y) <int64[1] t = {3}> { y = ConstantOfShape<value = int64[1] {7}>(t) }", "y int64[3] {7,7,7}"),
        ("(float[N,S] x) => (r) <int64 z = {0}, int64 o = {1}> { s = Shape<start = 1>(x) n = Squeeze(s) r = Range(z, n, o) }", "n int64[] {S}; r int64[S]"),
        ("(float[N,S] x) => (r) <int64 z = {2}, int64 l = {11}, int64 d = {3}> { r = Range(z, l, d) }", "r int64[3] {2,5,8}"),
        ("(float[N,S] x) => (p) { s = Shape(x) p = ReduceProd<keepdims = 0>(s) c = Size(x) }", "p int64[] {N*S}; c int64[] {N*S}"),
        // Exporters write -1 in the target of an Expand for an unchanged size.
        (
            "(float[N,1] x) => (y) <int64[2] t = {-1, 5}, int64[1] m = {-1}, int64[2] o = {1, 1}> {
                is = Equal(t, m) u = Where(is, o, t) y = Expand(x, u)
            }",
            "u int64[2] {1,5}; y float[N,5]",
        ),
        // Sizes that are scaled as floats.
        (
            "(float[1,3,H,8] x) => (y) <float[2] k = {1.5, 2.0}, int64[1] a = {2}, int64[1] e = {4}, int64[2] nc = {1, 3}> {
                s = Shape(x) p = Slice(s, a, e) f = Cast<to = 1>(p) g = Mul(f, k) h = Floor(g) i = Cast<to = 7>(h)
                t = Concat<axis = 0>(nc, i) y = Resize(x, , , t)
            }",
            "i int64[2] {floor((H)/(2))+H,16}; y float[1,3,floor((H)/(2))+H,16]",
        ),
        ("(int64 a) => (y) <int64[2] v = {-7, 7}, int64[1] w = {2}> { y = Div(v, w) m = Mod(v, w) }", "y int64[2] {-3,3}; m int64[2] {1,1}"),
        ("(int64 a) => (y) <int32[1] v = {2147483647}> { y = Add(v, v) }", "y int32[1] {?}"),
    ]);
}

#[test]
fn axes_are_attributes_or_inputs() {
    check(11, "(float[1,N,1] x) => (y) { y = Squeeze<axes = [0, -1]>(x) }", "y float[N]");
    check(13, "(float[1,N,1] x) => (y) <int64[2] a = {0, -1}> { y = Squeeze(x, a) }", "y float[N]");
    check(11, "(float[N] x) => (y) { y = Unsqueeze<axes = [0, 2]>(x) }", "y float[1,N,1]");
    check(13, "(float[N] x) => (y) <int64[2] a = {0, 2}> { y = Unsqueeze(x, a) }", "y float[1,N,1]");
    check(11, "(float[N,3,4] x) => (y) { y = ReduceMean<axes = [1, 2], keepdims = 0>(x) }", "y float[N]");
    check(18, "(float[N,3,4] x) => (y) <int64[2] a = {1, 2}> { y = ReduceMean(x, a) }", "y float[N,1,1]");
    check(18, "(float[N,3] x) => (y) { y = ReduceMax<noop_with_empty_axes = 1>(x) }", "y float[N,3]");
    check(18, "(float[N,3] x) => (y) { y = ReduceMax<keepdims = 0>(x) }", "y float[]");
    check(9, "(float[N,9] x) => (y) { y = Slice<axes = [1], starts = [1], ends = [-2]>(x) }", "y float[N,6]");
    check(
        13,
        "(float[9] x) => (y) <int64[1] s = {-1}, int64[1] e = {-99}, int64[1] a = {0}, int64[1] t = {-2}> { y = Slice(x, s, e, a, t) }",
        "y float[5]",
    );
    check(7, "(float[N,9] x) => (y) { y = Pad<pads = [0, 1, 0, 2]>(x) }", "y float[N,12]");
    check(
        18,
        "(float[N,9] x) => (y) <int64[2] p = {1, 2}, int64[1] a = {-1}> { y = Pad(x, p, , a) }",
        "y float[N,12]",
    );
    check(
        11,
        "(float[N,9] x) => (a, b) { a, b = Split<axis = 1, split = [4, 5]>(x) }",
        "a float[N,4]; b float[N,5]",
    );
    check(
        13,
        "(float[N,9] x) => (a, b) <int64[2] s = {4, 5}> { a, b = Split<axis = 1>(x, s) }",
        "a float[N,4]; b float[N,5]",
    );
    check(
        18,
        "(float[N,9] x) => (a, b) { a, b = Split<axis = 1, num_outputs = 2>(x) }",
        "a float[N,5]; b float[N,4]",
    );
    check(9, "(float[N,9] x) => (v, i) { v, i = TopK<k = 3>(x) }", "v float[N,3]; i int64[N,3]");
    check(
        11,
        "(float[N,9] x) => (v, i) <int64[1] k = {3}> { v, i = TopK(x, k) }",
        "v float[N,3]; i int64[N,3]",
    );
    check(
        9,
        "(float[1,3,H,4] x) => (y) <float[4] s = {1, 1, 2, 2}> { y = Upsample(x, s) }",
        "y float[1,3,2*H,8]",
    );
    check(
        11,
        "(float[1,3,H,4] x) => (y) <float[4] s = {1, 1, 2, 0.5}> { y = Resize(x, , s) }",
        "y float[1,3,2*H,2]",
    );
}

#[test]
fn windows_respect_their_attributes() {
    let conv = |attributes: &str, expected: &str| {
        let text = format!(
            "(float[N,4,H,9] x, float[8,2,3,3] w) => (y) {{ y = Conv<group = 2{attributes}>(x, w) }}"
        );
        check(17, &text, &format!("y float[N,8,{expected}]"));
    };
    conv("", "H-2,7");
    conv(", pads = [1, 1, 1, 1]", "H,9");
    conv(", strides = [2, 2], pads = [1, 1, 1, 1]", "floor((H+1)/(2)),5");
    conv(", dilations = [2, 2]", "H-4,5");
    conv(", strides = [2, 2], auto_pad = \"SAME_UPPER\"", "floor((H+1)/(2)),5");
    conv(", strides = [2, 2], auto_pad = \"VALID\"", "floor((H+1)/(2))-1,4");

    let pool = |attributes: &str, expected: &str| {
        let text = format!(
            "(float[N,4,H,9] x) => (y, i) {{ y, i = MaxPool<kernel_shape = [2, 2]{attributes}>(x) }}"
        );
        check(17, &text, &format!("y float[N,4,{expected}]; i int64[N,4,{expected}]"));
    };
    pool(", strides = [2, 2]", "floor((H)/(2)),4");
    pool(", strides = [2, 2], ceil_mode = 1", "floor((H+1)/(2)),5");
    // A last window that would start in the trailing padding is omitted.
    pool(", strides = [3, 3], pads = [0, 0, 1, 1], ceil_mode = 1", "floor((H+2)/(3)),3");

    let transposed = |attributes: &str, expected: &str| {
        let text = format!(
            "(float[N,4,H,9] x, float[4,3,3,3] w) => (y) {{ y = ConvTranspose<group = 2{attributes}>(x, w) }}"
        );
        check(17, &text, &format!("y float[N,6,{expected}]"));
    };
    transposed("", "H+2,11");
    transposed(", strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]", "2*H,18");
    transposed(", strides = [2, 2], auto_pad = \"SAME_LOWER\"", "2*H,18");
    transposed(", strides = [2, 2], output_shape = [20, 20]", "20,20");

    table(17, &[
        ("(float[N,C,H,W] x) => (y) { y = GlobalAveragePool(x) }", "y float[N,C,1,1]"),
        ("(uint8[1,3,8,8] x, float s, uint8 z, uint8[4,3,3,3] w, float a, uint8 b, float c, int8 d) => (y) { y = QLinearConv(x, s, z, w, a, b, c, d) }", "y int8[1,4,6,6]"),
        ("(float[N,8,H,W] x) => (y, z) { y = DepthToSpace<blocksize = 2>(x) z = SpaceToDepth<blocksize = 2>(y) }", "y float[N,2,2*H,2*W]; z float[N,8,H,W]"),
        // Successive strides are combined.
        (
            "(float[1,1,H,8] x, float[1,1,3,3] w) => (y) {
                a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w) y = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(a, w)
            }",
            "y float[1,1,floor((H+3)/(4)),2]",
        ),
    ]);
}

#[test]
fn products_and_layers() {
    table(
        17,
        &[
            ("(float[N,4] a, float[4,5] b) => (y) { y = MatMul(a, b) }", "y float[N,5]"),
            ("(float[B,1,S,4] a, float[3,4,5] b) => (y) { y = MatMul(a, b) }", "y float[B,3,S,5]"),
            ("(float[4] a, float[2,4,5] b) => (y) { y = MatMul(a, b) }", "y float[2,5]"),
            ("(float[4] a, float[4] b) => (y) { y = MatMul(a, b) }", "y float[]"),
            (
                "(float[4,N] a, float[5,4] b, float[5] c) => (y) { y = Gemm<transA = 1, transB = 1>(a, b, c) }",
                "y float[N,5]",
            ),
            ("(int8[N,4] a, int8[4,5] b) => (y) { y = MatMulInteger(a, b) }", "y int32[N,5]"),
            (
                "(float[B,S,H] a, float[B,H,T] b) => (y) { y = Einsum<equation = \"bsh, bht -> bst\">(a, b) }",
                "y float[B,S,T]",
            ),
            ("(float[2,3,4] a) => (y) { y = Einsum<equation = \"...ij->...ji\">(a) }", "y float[2,4,3]"),
            (
                "(float[T,B,8] x, float[2,64,8] w, float[2,64,16] r) => (y, h, c) {
                y, h, c = LSTM<direction = \"bidirectional\", hidden_size = 16>(x, w, r)
            }",
                "y float[T,2,B,16]; h float[2,B,16]; c float[2,B,16]",
            ),
            (
                "(float[T,B,8] x, int8[1,8,64] w, int8[1,16,64] r, float[1] s, int8[1] z) => (y) {
                y = com.microsoft.DynamicQuantizeLSTM(x, w, r, , , , , , s, z, s, z)
            }",
                "y float[T,1,B,16]",
            ),
            (
                "(float[N,S,8] x, float[8] w) => (y, m) { y, m = LayerNormalization(x, w) }",
                "y float[N,S,8]; m float[N,S,1]",
            ),
            (
                "(float[N,C,9] x, float[6] a, float[6] b, float[6] m, float[6] v) => (y) { y = BatchNormalization(x, a, b, m, v) }",
                "y float[N,6,9]",
            ),
            (
                "(float[N] x, float s, int8 z) => (q, d) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) }",
                "q int8[N]; d float[N]",
            ),
            (
                "(float[B,S,8] x, float[8,24] w, float[24] b) => (y, p) { y, p = com.microsoft.Attention<num_heads = 2>(x, w, b) }",
                "y float[B,S,8]; p float[2,B,2,S,4]",
            ),
            (
                "(float[B,S,12] q, float[B,L,12] k, float[B,L,24] v) => (y, p) { y, p = com.microsoft.MultiHeadAttention<num_heads = 3>(q, k, v) }",
                "y float[B,S,24]; p float[B,3,L,4]",
            ),
            (
                "(float[B,4,S] a, float[B,5,S] b) => (y) { y = com.microsoft.FusedMatMul<transB = 1>(a, b) }",
                "y float[B,4,5]",
            ),
            (
                "(float[B,S,64] a, uint8[32,2,16] b, float[64] s) => (y) { y = com.microsoft.MatMulNBits<K = 64, N = 32>(a, b, s) }",
                "y float[B,S,32]",
            ),
            (
                "(float[B,S,8] a, float[B,S,8] b, float[8] g) => (y, m, v, s) { y, m, v, s = com.microsoft.SkipLayerNormalization(a, b, g) }",
                "y float[B,S,8]; s float[B,S,8]",
            ),
        ],
    );
    check(
        23,
        "(float[B,4,S,8] q, float[B,2,L,8] k, float[B,2,L,6] v, float[B,2,P,8] pk, float[B,2,P,6] pv) => (y, a, b) {
            y, a, b = Attention(q, k, v, , pk, pv)
        }",
        "y float[B,4,S,6]; a float[B,2,P+L,8]; b float[B,2,P+L,6]",
    );
}

#[test]
fn pieces() {
    table(
        17,
        &[
            ("(float[N,4] a, float[N,M] b) => (y) { y = Concat<axis = 1>(a, b) }", "y float[N,M+4]"),
            ("(float[V,D] t, int64[B,S] i) => (y) { y = Gather(t, i) }", "y float[B,S,D]"),
            ("(float[A,B,C] t, int64[K,2] i) => (y) { y = GatherND(t, i) }", "y float[K,C]"),
            ("(float[N,3] x) => (y) <int64[2] r = {2, 1}> { y = Tile(x, r) }", "y float[2*N,3]"),
            (
                "(float[1,512,D] t, float[B,S,D] x) => (y) <int64[1] z = {0}, int64[1] a = {1}> { n = Shape<start = 1, end = 2>(x) p = Slice(t, z, n, a) y = Add(x, p) }",
                "p float[1,min(512, S),D]; y float[B,S,D]",
            ),
            (
                "(float[N,S] x) => (y) <int64[1] z = {1}, int64[1] e = {9223372036854775807}, int64[1] a = {1}> { y = Slice(x, z, e, a) }",
                "y float[N,S-1]",
            ),
            ("(float[N,S] x) => (y) { y = NonZero(x) }", "y int64[2,?]"),
            ("(int64[N] x, float[2] v) => (y) <int64 d = {10}> { y = OneHot(x, d, v) }", "y float[N,10]"),
            ("(float[N,3,4] x) => (y) { y = Flatten<axis = 2>(x) }", "y float[3*N,4]"),
            ("(float[N,3,4] x) => (y) { y = ArgMax<axis = 1, keepdims = 0>(x) }", "y int64[N,4]"),
        ],
    );
}

#[test]
fn accepts_unknown_operators() {
    check(17, "(float[N] x) => (y) { y = some.domain.Odd(x) }", "y unknown");
    check(17, "(x) => (y) { y = Relu(x) }", "y ?[...]");
    // Declarations provide the types of custom operators and missing facts of others.
    check(
        17,
        "(float[N] x) => (float[3] y) <float[3] a> { a = some.domain.Odd(x) y = Relu(a) }",
        "a float[3]; y float[3]",
    );
    check(
        17,
        "(float[N,4] x) => (y) <int64[2,K] i> { i = NonZero(x) y = Neg(i) }",
        "i int64[2,K]; y int64[2,K]",
    );
    // Declarations that became wrong are ignored.
    check(
        17,
        "(float[N,4] x) => (y) <float[N,9] a> { a = Relu(x) y = Neg(a) }",
        "a float[N,4]; y float[N,4]",
    );
}

#[test]
fn contradictions_name_the_node() {
    rejects(
        17,
        "(float[2] a, float[3] b) => (y) { [plus] y = Add(a, b) }",
        "Add `plus`: [2] and [3] cannot be broadcast together",
    );
    rejects(
        17,
        "(float[2] a, int64[2] b) => (y) { y = Add(a, b) }",
        "Add producing `y`: `a` float[2] and `b` int64[2] differ in element type",
    );
    rejects(
        17,
        "(float[N,4] a, float[5,6] b) => (y) { y = MatMul(a, b) }",
        "MatMul producing `y`: `a` float[N,4] and `b` float[5,6] cannot be multiplied",
    );
    rejects(
        17,
        "(float[N,4] a, float[5,6] b) => (y) { y = Gemm(a, b) }",
        "Gemm producing `y`: axis 1 of `a` float[N,4] and axis 0 of `b` float[5,6] differ",
    );
    rejects(
        17,
        "(float[2,4] a, float[3,4] b) => (y) { y = Concat<axis = 1>(a, b) }",
        "Concat producing `y`: `a` float[2,4] and `b` float[3,4] differ along axis 0",
    );
    rejects(
        17,
        "(float[2,4] a) => (y) { y = Softmax(a) z = ArgMax<axis = 2>(a) }",
        "ArgMax producing `z`: axis 2 is out of range for rank 2",
    );
    rejects(
        17,
        "(float[2,4] a) => (y) <int64[1] t = {7}> { y = Reshape(a, t) }",
        "Reshape producing `y`: `a` float[2,4] cannot be reshaped to [7]",
    );
    rejects(
        17,
        "(float[2,4] a) => (double[2,4] y) { y = Relu(a) }",
        "Relu producing `y`: `y` is float[2,4], but declared as double[2,4]",
    );
    rejects(
        17,
        "(float[N,5,8,8] x, float[8,4,3,3] w) => (y) { y = Conv(x, w) }",
        "Conv producing `y`: `x` float[N,5,8,8] does not have the 4 input channels of `w` float[8,4,3,3]",
    );
    // Symbols do not contradict each other.
    check(17, "(float[N,K] a, float[5,6] b) => (float[M,6] y) { y = MatMul(a, b) }", "y float[N,6]");
}

/// A wrong declared shape of an output is replaced by the inferred one; a correct one must stay correct.
#[test]
fn declared_shapes_of_outputs() {
    check(17, "(float[2,4] a) => (float[3,4,1] y) { y = Relu(a) }", "y float[2,4]");
    let text = "(float[2,4] a) => (float[2,4] y, float[7] z) { y = Relu(a) z = Relu(a) }";
    let mut graph = graph(17, text);
    graph.infer_with(&[]).unwrap();
    graph.infer_with(&[]).unwrap();
    let taller = parse_graph("g (float[3,4] a) => (y) { y = Relu(a) }", 17).unwrap();
    let a = graph.find("a").unwrap();
    let declared = taller.value(taller.find("a").unwrap()).declared.clone();
    graph.set_declared(a, declared);
    let error = graph.infer_with(&[]).unwrap_err().to_string();
    assert_eq!(error, "Relu producing `y`: `y` is float[3,4], but declared as float[2,4]");
}
