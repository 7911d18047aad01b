//! Files of old and of modern exporters: they are read as the engine reads them, and lose nothing.

use crate::support::{after, bytes, root, same_outputs};
use pare_graph::{Constant, Model, onnx, text};
use pare_passes::{Effect, Pipeline};

fn case(name: &str) -> Model {
    let path = root().join("fixtures/cases").join(name).with_extension("onnx");
    let mut model = onnx::read(path, &onnx::ReadOptions::default()).unwrap();
    model.check().unwrap();
    model.infer().unwrap();
    model
}

fn parsed(source: &str) -> Model {
    let mut model = text::parse_model(source).unwrap();
    model.check().unwrap();
    model.infer().unwrap();
    model
}

/// The model after a pipeline, which keeps the outputs.
fn optimized(model: &Model, pipeline: &str) -> Model {
    let (changed, _) = after(&pipeline.parse::<Pipeline>().unwrap(), model).unwrap();
    changed.check().unwrap();
    same_outputs(model, &changed, Effect::Rounding, 4).unwrap_or_else(|why| panic!("{pipeline}: {why}"));
    changed
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph.nodes().iter().map(|&id| model.graph.node(id).op.as_str()).collect()
}

#[test]
fn bias_of_a_product_without_one_has_factor_1() {
    let changed = optimized(&case("gemm_beta0_reshape_add"), "safe");
    assert_eq!(ops(&changed), ["Gemm", "Reshape"]);
}

#[test]
fn statistics_that_training_updates_stay_separate() {
    let model = case("vacuous_bn_training");
    let (changed, report) = after(&"safe".parse().unwrap(), &model).unwrap();
    assert_eq!(report.patches(), 1, "two equal parameters that nothing updates are merged");
    let graph = &changed.graph;
    let norm = graph.nodes()[1];
    let inputs = graph.inputs_of(norm);
    assert!(inputs[1] == inputs[2] && inputs[3] != inputs[1] && inputs[3] != inputs[4]);
}

#[test]
fn sparse_initializers_are_constants() {
    let model = case("refused_sparse_initializer");
    // An unchanged model keeps its form.
    let same = optimized(&model, "safe");
    let w = same.graph.value(same.graph.find("w").unwrap());
    assert!(matches!(w.data, Some(Constant::Sparse(_))) && w.tensor().is_some());

    let head = "<ir_version: 8, opset_import: [\"\" : 17]>";
    let sparse = "float[2] {2,3}, int64[2] {1,2}";
    let scaled = parsed(&format!(
        "{head} g (float[N,2] x) => (float[N,2] y) <sparse_tensor(float[2,2]) w = {{{sparse}}}, float k = {{2}}> {{
            a = MatMul(x, w) y = Mul(a, k) }}"
    ));
    assert_eq!(ops(&optimized(&scaled, "safe")), ["MatMul"]);
    let folded = parsed(&format!(
        "{head} g (float[N,3] x) => (float[N,3] y) <sparse_tensor(float[3]) w = {{{sparse}}}> {{
            a = Exp(w) y = Add(x, a) }}"
    ));
    assert_eq!(ops(&optimized(&folded, "safe")), ["Add"]);
    let node = parsed(&format!(
        "{head} g (float[N,3] x) => (float[N,3] y) {{
            w = Constant<sparse_value = sparse_tensor(float[3]) {{{sparse}}}>() a = Exp(w) y = Add(x, a) }}"
    ));
    assert_eq!(ops(&optimized(&node, "safe")), ["Add"]);
}

#[test]
fn constants_in_every_form_are_folded() {
    let head = "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>";
    let model = parsed(&format!(
        "{head} g (float[N,4] x) => (float[N,2,2] y) {{
            s = Constant<value_ints = [-1,2,2]>() a = Reshape(x, s)
            f = Constant<value_float = 1.0>() b = Mul(a, f)
            v = Constant<value_floats = [0.0,0.0]>() c = Add(b, v)
            i = Constant<value_int = 2>() d = Constant<value_int = 3>() k = Mul(i, d) l = Cast<to = 1>(k)
            y = Mul(c, l) }}"
    ));
    assert_eq!(ops(&optimized(&model, "safe")), ["Reshape", "Mul"]);
    // Each pass sees them, also before constants are lifted, and in functions.
    assert_eq!(ops(&optimized(&model, "drop-noops")).iter().filter(|&&op| op == "Mul").count(), 2);
    let function = parsed(&format!(
        "{head} g (float[2] x) => (float[2] y) {{ y = local.f(x) }}
         <domain: \"local\", opset_import: [\"\" : 18]>
         f (u) => (w) {{ k = Constant<value_floats = [1.0]>() h = Pow(u, k) w = Neg(h) }}"
    ));
    let changed = optimized(&function, "safe{keep_functions=true}");
    assert_eq!((changed.functions.len(), changed.functions[0].body.node_count()), (1, 1));
}

#[test]
fn functions_are_inlined_unless_they_are_kept() {
    let model = parsed(
        "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>
         g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {1,2}> {
            h = local.linear(x, w) y = Add(h, b) }
         <domain: \"local\", opset_import: [\"\" : 18]> linear (u, v) => (z) { z = MatMul(u, v) }",
    );
    let changed = optimized(&model, "safe");
    assert_eq!((ops(&changed), changed.functions.len()), (vec!["Gemm"], 0));
    let kept = optimized(&model, "safe{keep_functions=true}");
    assert_eq!((ops(&kept), kept.functions.len()), (vec!["linear", "Add"], 1));
}

#[test]
fn operators_that_the_engine_registers_are_accepted() {
    optimized(&case("refused_groupnorm18"), "safe");
    let graph = |opset: i64, node: &str| {
        parsed(&format!(
            "<ir_version: 8, opset_import: [\"\" : {opset}]>
             g (float[N,2] x) => (float[N,2] y) <float[2] s = {{1,2}}, float[2] b = {{0,1}}> {{
                i = Identity(x) h = {node} y = Neg(h) }}"
        ))
    };
    for (opset, node) in [
        (9, "LayerNormalization(i, s, b)"),
        (16, "LayerNormalization<axis = -1>(i, s)"),
        (12, "SimplifiedLayerNormalization<axis = -1>(i, s)"),
        (17, "SimplifiedLayerNormalization(i, s)"),
        (9, "Affine<alpha = 2.0, beta = 1.0>(i)"),
        (9, "ScaledTanh<alpha = 2.0, beta = 1.0>(i)"),
    ] {
        let changed = optimized(&graph(opset, node), "safe");
        assert_eq!(changed.graph.node_count(), 2, "{node}");
    }
}

/// A model as it is read from a file.
fn stored(model: &Model) -> Model {
    let mut model = onnx::read_bytes(bytes(model).unwrap(), None).unwrap();
    model.infer().unwrap();
    model
}

#[test]
fn initializers_of_old_models_are_constants() {
    let model = case("words_ir3_all_inputs");
    assert_eq!((model.graph.inputs().len(), model.graph.overridable()), (1, 0));
    let changed = optimized(&model, "safe");
    assert!(changed.graph.node_count() < model.graph.node_count());
    assert_eq!(stored(&changed).ir_version, Some(3));
    // New constants are inputs of the file too, and constants for whoever reads it.
    let old = stored(&parsed(
        "<ir_version: 3, opset_import: [\"\" : 8]>
         g (float[N,2] x, float[2] w = {1,2}) => (float[N,2] y) {
            k = Constant<value = float[2] {3,4}>() a = Relu(x) b = Add(a, w) c = Relu(b) y = Mul(c, k) }",
    ));
    let changed = stored(&optimized(&old, "safe"));
    assert_eq!((changed.ir_version, changed.graph.inputs().len()), (Some(3), 1));
    assert_eq!(changed.graph.initializers().len(), 2);
    same_outputs(&old, &changed, Effect::Exact, 4).unwrap();
    // Without others that are inputs, they are none, and the version allows that.
    let old = stored(&parsed(
        "<ir_version: 3, opset_import: [\"\" : 8]> g (float[N,2] x) => (float[N,2] y) {
            k = Constant<value = float[2] {3,4}>() a = Relu(x) y = Mul(a, k) }",
    ));
    assert_eq!(stored(&optimized(&old, "safe")).ir_version, Some(4));
    // A request takes them out of the inputs.
    let mut frozen = model.clone();
    frozen.graph.freeze_initializers();
    assert_eq!(stored(&optimized(&frozen, "safe")).ir_version, Some(4));
}

#[test]
fn folds_of_old_models_are_those_of_new_ones() {
    let nodes = "a = Conv(x, w) b = Add(a, t) y = Relu(b)";
    let weights = ["float[2,1,1,1] w = {1,2}", "float[1,2,1,1] t = {3,4}"];
    let old = stored(&parsed(&format!(
        "<ir_version: 3, opset_import: [\"\" : 8]> g (float[N,1,2,2] x, {}) => (float[N,2,2,2] y) {{ {nodes} }}",
        weights.join(", ")
    )));
    assert_eq!(ops(&optimized(&old, "safe")), ["Conv", "Relu"]);
    // Later versions let the caller override them.
    let new = stored(&parsed(&format!(
        "<ir_version: 4, opset_import: [\"\" : 8]> g (float[N,1,2,2] x, {}) => (float[N,2,2,2] y) {{ {nodes} }}",
        weights.join(", ")
    )));
    assert_eq!(ops(&optimized(&new, "safe")), ["Conv", "Add", "Relu"]);
    assert_eq!(new.graph.overridable(), 2);
}

/// Attention of a decoder: rotated queries and keys, keys and values of two heads for four queries, sizes computed.
#[test]
fn rotations_and_attention_of_decoders_are_single_nodes() {
    let rotated = |x: &str| {
        format!(
            "{x}1 = Slice({x}, zero, two, last) {x}2 = Slice({x}, two, four, last) {x}n = Neg({x}2)
            {x}t = Concat<axis = -1>({x}n, {x}1) {x}a = Mul({x}, cos) {x}b = Mul({x}t, sin) {x}r = Add({x}a, {x}b)"
        )
    };
    let repeated = |x: &str, y: &str| {
        format!("{y}u = Unsqueeze({x}, two) {y}e = Expand({y}u, expanded) {y}g = Reshape({y}e, joined)")
    };
    let model = parsed(&format!(
        "<ir_version: 10, opset_import: [\"\" : 23]>
        g (float[B,4,S,4] q, float[B,2,S,4] k, float[B,2,S,4] v, int64[B,S] p, float[B,1,S,S] m)
        => (float[B,4,S,4] y) <
            float[1,1,2] frequencies = {{1,0.01}}, float scale = {{0.5}}, int64 first = {{0}}, int64 third = {{2}},
            int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}},
            int64[1] last = {{-1}}> {{
            pf = Cast<to = 1>(p) pu = Unsqueeze(pf, last) angles = Mul(pu, frequencies)
            both = Concat<axis = -1>(angles, angles) c = Cos(both) s = Sin(both)
            cos = Unsqueeze(c, one) sin = Unsqueeze(s, one) {} {}
            shape = Shape(kr) b0 = Gather(shape, first) s0 = Gather(shape, third)
            b = Unsqueeze(b0, zero) t = Unsqueeze(s0, zero)
            expanded = Concat<axis = 0>(b, two, two, t, four) joined = Concat<axis = 0>(b, four, t, four) {} {}
            keys = Transpose<perm = [0,1,3,2]>(kg) scores = MatMul(qr, keys) scaled = Mul(scores, scale)
            masked = Add(scaled, m) weights = Softmax<axis = -1>(masked) y = MatMul(weights, vg) }}",
        rotated("q"),
        rotated("k"),
        repeated("kr", "k"),
        repeated("v", "v"),
    ));
    let safe = optimized(&model, "safe");
    assert_eq!(ops(&safe).iter().filter(|op| **op == "RotaryEmbedding").count(), 2);
    let fused = optimized(&model, "safe,fuse-attention,safe");
    let tables = ["Cast", "Unsqueeze", "Mul", "Cos", "Sin"];
    let rest = ["RotaryEmbedding", "RotaryEmbedding", "Attention"];
    assert_eq!(ops(&fused), [&tables[..], &rest[..]].concat());
}
