use super::*;
use crate::framework::{
    Pipeline, RunOptions, run,
    testing::{read, read_fixture, shared, tools},
};
use pare_graph::{Model, text};

/// A model with 2 heads of 2 channels and a stream `x` of this type.
fn model_of(stream: &str, output: &str, nodes: &str) -> Model {
    let weights = |name: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let values: Vec<_> = (0..count).map(|i| format!("{}", (i * 7 % 5) as f32 / 4.0 - 0.5)).collect();
        let shape: Vec<_> = shape.iter().map(ToString::to_string).collect();
        format!("float[{}] {name} = {{{}}}", shape.join(","), values.join(","))
    };
    let constants = [
        weights("wq", &[4, 4]),
        weights("wk", &[4, 4]),
        weights("wv", &[4, 4]),
        weights("wo", &[4, 4]),
        weights("wqkv", &[4, 12]),
        weights("bias", &[4]),
        weights("bias3", &[12]),
        weights("gain", &[4]),
        weights("positions", &[1, 2, 5, 5]),
        weights("table", &[5, 4]),
        "float half = {0.5}, float root = {0.70710677}, float low = {-10000.0}".into(),
        "int64[4] heads = {0,5,2,2}, int64[3] merged = {0,5,4}, int64[5] packed = {0,5,3,2,2}".into(),
        "int64[2] flat = {-1,4}, int64[3] thirds = {1,1,1}, int64[1] zero = {0}".into(),
        "float[5,5] before = {0,-10000,-10000,-10000,-10000,0,0,-10000,-10000,-10000,0,0,0,-10000,-10000,\
         0,0,0,0,-10000,0,0,0,0,0}"
            .into(),
    ];
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : 23, \"com.microsoft\" : 1]>
         g ({stream}) => ({output}) <{}> {{ {nodes} }}",
        constants.join(", ")
    );
    let mut model = text::parse_model(&source).unwrap();
    model.infer().unwrap();
    model
}

fn vit(nodes: &str) -> Model {
    model_of("float[B,5,4] x", "float[B,5,4] y", nodes)
}

fn only(model: &Model) -> Attention {
    let mut found = attentions(&model.graph);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0).unwrap()
}

fn name(model: &Model, id: ValueId) -> &str {
    &model.graph.value(id).name
}

/// Checks the properties of every self-attention in these tests.
fn check_attention(model: &Model, found: &Attention) {
    let residual = found.residual.as_ref().unwrap();
    assert_eq!((found.heads, found.head_size), (Some(2), Some(2)));
    assert_eq!(found.source.map(|v| name(model, v)), Some("n"));
    assert_eq!(name(model, residual.stream), "x");
    assert_eq!(residual.sum.map(|v| name(model, v)), Some("y"));
    let scale = found.scale.unwrap();
    assert!((scale - 0.5_f64.sqrt()).abs() < 1e-6, "{scale}");
    assert!(found.projection.is_some() && found.masks.is_empty() && !found.cached, "{found:?}");
}

const NORM: &str = "n = LayerNormalization<axis = -1>(x, gain, bias)";

const SEPARATE: &str =
    "q0 = MatMul(n, wq) q1 = Add(q0, bias) q2 = Reshape(q1, heads) q = Transpose<perm = [0,2,1,3]>(q2)
    k0 = MatMul(n, wk) k2 = Reshape(k0, heads) k = Transpose<perm = [0,2,3,1]>(k2)
    v0 = MatMul(n, wv) v2 = Reshape(v0, heads) v = Transpose<perm = [0,2,1,3]>(v2)";

const AFTER: &str = "c = MatMul(p, v) c1 = Transpose<perm = [0,2,1,3]>(c) c2 = Reshape(c1, merged)
    o = MatMul(c2, wo) o1 = Add(bias, o) y = Add(x, o1)";

#[test]
fn reads_separate_projections_with_scaled_scores() {
    let model = vit(&format!("{NORM} {SEPARATE} s = MatMul(q, k) t = Mul(s, root) p = Softmax(t) {AFTER}"));
    let found = only(&model);
    check_attention(&model, &found);
    assert_eq!(found.form, Form::Decomposed);
    assert_eq!(found.scores.map(|v| name(&model, v)), Some("t"));
    let k = &found.key;
    assert_eq!((name(&model, k.value), k.head, k.token, k.channel), ("k", Some(1), Some(3), 2));
    assert_eq!(found.residual.unwrap().token, 1);
}

#[test]
fn reads_packed_projection_with_scale_on_q_and_k() {
    let packed = "a = MatMul(n, wqkv) b = Add(bias3, a) c0 = Reshape(b, packed) d = Transpose<perm = [2,0,3,1,4]>(c0)
        e, f, g0 = Split<axis = 0>(d, thirds) q0 = Squeeze(e, zero) k0 = Squeeze(f, zero) v = Squeeze(g0, zero)
        r = Sqrt(root) q = Mul(q0, r) k1 = Transpose<perm = [0,1,3,2]>(k0) k = Mul(k1, r)
        s = MatMul(q, k) p = Softmax<axis = -1>(s)";
    let mut model = vit(&format!("{NORM} {packed} {AFTER}"));
    // The scale is computed, and known once constants are folded.
    assert_eq!(only(&model).scale, None);
    let fold: Pipeline = "fold-constants".parse().unwrap();
    run(&fold, &mut model, RunOptions { tools: tools(), stop_after: None }, &mut ()).unwrap();
    check_attention(&model, &only(&model));
}

#[test]
fn reads_batched_products_with_tokens_first() {
    let nodes = format!(
        "apart = Constant<value = int64[3] {{5,-1,2}}>() whole = Constant<value = int64[3] {{5,-1,4}}>()
         {NORM} q0 = MatMul(n, wq) q1 = Mul(q0, root) q2 = Reshape(q1, apart) q = Transpose<perm = [1,0,2]>(q2)
         k0 = MatMul(n, wk) k2 = Reshape(k0, apart) k = Transpose<perm = [1,2,0]>(k2)
         v0 = MatMul(n, wv) v2 = Reshape(v0, apart) v = Transpose<perm = [1,0,2]>(v2)
         s = MatMul(q, k) p = Softmax(s) c = MatMul(p, v) c1 = Transpose<perm = [1,0,2]>(c)
         f = Reshape(c1, flat) o = Gemm(f, wo, bias) o1 = Reshape(o, whole) y = Add(o1, x)"
    );
    let model = model_of("float[5,B,4] x", "float[5,B,4] y", &nodes);
    let found = only(&model);
    check_attention(&model, &found);
    assert_eq!((found.key.head, found.residual.unwrap().token), (None, 0));
}

#[test]
fn reads_dense_layers_on_flattened_tokens() {
    let model = vit(&format!(
        "apart = Constant<value = int64[4] {{-1,5,2,2}}>() whole = Constant<value = int64[3] {{-1,5,4}}>()
         {NORM} n2 = Reshape(n, flat) q0 = MatMul(n2, wq) q2 = Reshape(q0, apart) q = Transpose<perm = [0,2,1,3]>(q2)
         k0 = MatMul(n2, wk) k1 = Add(k0, bias) k2 = Reshape(k1, apart) k3 = Transpose<perm = [0,2,1,3]>(k2)
         v0 = MatMul(n2, wv) v2 = Reshape(v0, apart) v = Transpose<perm = [0,2,1,3]>(v2)
         k = Transpose<perm = [0,1,3,2]>(k3) s = MatMul(q, k) t = Mul(s, root) p = Softmax(t)
         c = MatMul(p, v) c1 = Transpose<perm = [0,2,1,3]>(c) c2 = Reshape(c1, flat) o = MatMul(c2, wo)
         o1 = Reshape(o, whole) y = Add(o1, x)"
    ));
    check_attention(&model, &only(&model));
}

#[test]
fn reads_fused_operators() {
    let three = "q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv)";
    let after = "o = MatMul(c, wo) o1 = Add(o, bias) y = Add(x, o1)";
    let apart = SEPARATE.replace("k = Transpose<perm = [0,2,3,1]>", "k = Transpose<perm = [0,2,1,3]>");
    let whole = format!(
        "c0 = Attention(q, k, v) c1 = Transpose<perm = [0,2,1,3]>(c0) c = Reshape(c1, merged) {after}"
    );
    let packed = "c = com.microsoft.Attention<num_heads = 2>(n, wqkv, bias3)";
    let skip = "o = MatMul(c, wo) z, m, i, y = com.microsoft.SkipLayerNormalization(o, x, gain, bias, bias)";
    for (form, nodes) in [
        (
            Form::Standard,
            format!("{three} c = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) {after}"),
        ),
        (Form::Standard, format!("{apart} {whole}")),
        (
            Form::MultiHead,
            format!("{three} c = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v) {after}"),
        ),
        (Form::Packed, format!("{packed} {after}")),
        (Form::Packed, format!("{packed} {skip}")),
    ] {
        let model = vit(&format!("{NORM} {nodes}"));
        let found = only(&model);
        check_attention(&model, &found);
        assert_eq!((found.form, found.residual.unwrap().token), (form, 1));
    }
}

#[test]
fn classifies_masks() {
    let kinds = |mask: &str| {
        let scores = "s = MatMul(q, k) t = Mul(s, root)";
        let model = vit(&format!("{NORM} {SEPARATE} {scores} {mask} p = Softmax(m) {AFTER}"));
        only(&model).masks.iter().map(|m| m.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds("m = Add(t, before)"), [MaskKind::Causal]);
    assert_eq!(kinds("m = Add(positions, t)"), [MaskKind::Positional]);
    let computed = "z = Shape(before) o0 = ConstantOfShape(z) l = Trilu<upper = 0>(o0) g = Cast<to = 9>(l)";
    assert_eq!(kinds(&format!("{computed} m = Where(g, t, low)")), [MaskKind::Causal]);
    assert_eq!(kinds("a = ReduceMax(x) m = Add(t, a)"), [MaskKind::Input]);
    let packed = "c = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(n, wqkv, bias3)";
    let model = vit(&format!("{NORM} {packed} o = MatMul(c, wo) y = Add(x, o)"));
    assert_eq!(only(&model).masks, [Mask { kind: MaskKind::Causal, value: None }]);
}

#[test]
fn rejects_windows_and_other_normalisations_with_reasons() {
    // Windows of 5 tokens in a stream of 10.
    let nodes = format!(
        "in = Constant<value = int64[3] {{-1,5,4}}>() all = Constant<value = int64[3] {{-1,10,4}}>() {} n = Reshape(n0, in)
         {SEPARATE} s = MatMul(q, k) p = Softmax(s) {}",
        NORM.replace("n =", "n0 ="),
        AFTER.replace("y = Add(x, o1)", "o2 = Reshape(o1, all) y = Add(x, o2)")
    );
    let model = model_of("float[B,10,4] x", "float[B,10,4] y", &nodes);
    assert_eq!(only(&model).residual, Err(NoResidual::Window(5, 10)));

    // Keys of another value.
    let other = SEPARATE.replace("MatMul(n, wk)", "MatMul(x, wk)");
    let nodes = format!("{NORM} {other} s = MatMul(q, k) p = Softmax(s) {AFTER}");
    assert!(!only(&vit(&nodes)).is_self_attention());

    // A past.
    let past =
        "k9 = Concat<axis = 3>(past_k, k) v9 = Concat<axis = 2>(past_v, v) s = MatMul(q, k9) p = Softmax(s)";
    let nodes = format!("{NORM} {SEPARATE} {past} {}", AFTER.replace("(p, v)", "(p, v9)"));
    let inputs = "float[B,5,4] x, float[B,2,2,P] past_k, float[B,2,P,2] past_v";
    assert!(only(&model_of(inputs, "float[B,5,4] y", &nodes)).cached);

    // A softmax over columns instead of rows.
    let model = vit(&format!("{NORM} {SEPARATE} s = MatMul(q, k) p = Softmax<axis = 1>(s) {AFTER}"));
    assert_eq!(attentions(&model.graph), [Err(NoAttention::Axis("Softmax producing `p`".into()))]);

    // A softmax over classes.
    assert!(attentions(&vit("y = Softmax(x)").graph).is_empty());
}

/// Checks the number and size of heads of every attention of a model, as exported and after `safe`. Returns
/// the latter.
fn check_model(raw: Model, count: usize, heads: usize, head_size: usize) -> Vec<Attention> {
    let mut cleaned = raw.clone();
    let safe: Pipeline = "safe".parse().unwrap();
    run(&safe, &mut cleaned, RunOptions { tools: tools(), stop_after: None }, &mut ()).unwrap();
    let [_, cleaned] = [raw, cleaned].map(|model| {
        let found: Vec<_> = attentions(&model.graph).into_iter().map(Result::unwrap).collect();
        assert_eq!(found.len(), count);
        for attention in &found {
            assert_eq!(
                (attention.heads, attention.head_size),
                (Some(heads), Some(head_size)),
                "{attention:?}"
            );
            assert!(attention.is_self_attention(), "{attention:?}");
            let residual = attention.residual.as_ref().unwrap();
            assert!(residual.sum.is_some() && residual.token == 1, "{residual:?}");
        }
        found
    });
    let wanted = 1.0 / (head_size as f64).sqrt();
    assert!(cleaned.iter().all(|a| a.scale.is_some_and(|scale| (scale - wanted).abs() < 1e-6)));
    cleaned
}

#[test]
fn reads_the_fixture_as_exported_and_cleaned() {
    let found = check_model(read_fixture("digits-vit.onnx"), 4, 3, 16);
    assert!(found.iter().all(|a| a.mask(MaskKind::Causal).is_none()));
}

#[test]
#[ignore = "needs the models of the shared folder"]
fn reads_real_transformers_as_exported_and_cleaned() {
    for (path, count, heads, head_size, causal) in [
        ("models/cifar-vit.onnx", 8, 4, 32, false),
        ("models/syn_vit_tiny.onnx", 12, 3, 64, false),
        ("models/syn_gpt_small.onnx", 4, 4, 64, true),
    ] {
        let found = check_model(read(shared().join(path)), count, heads, head_size);
        assert!(found.iter().all(|a| a.mask(MaskKind::Causal).is_some() == causal), "{path}");
    }
}

#[test]
fn reads_lowered_einsums() {
    let einsums = "q0 = MatMul(n, wq) q = Reshape(q0, heads) k0 = MatMul(n, wk) k = Reshape(k0, heads)
        v0 = MatMul(n, wv) v = Reshape(v0, heads) s = Einsum<equation = \"bqhd,bkhd->bhqk\">(q, k) t = Mul(s, root)
        p = Softmax(t) c = Einsum<equation = \"bhqk,bkhd->bqhd\">(p, v) c2 = Reshape(c, merged)
        o = MatMul(c2, wo) o1 = Add(bias, o) y = Add(x, o1)";
    let mut model = vit(&format!("{NORM} {einsums}"));
    assert_eq!(attentions(&model.graph), []);
    let lower: Pipeline = "lower-einsum".parse().unwrap();
    run(&lower, &mut model, RunOptions { tools: tools(), stop_after: None }, &mut ()).unwrap();
    check_attention(&model, &only(&model));
}
