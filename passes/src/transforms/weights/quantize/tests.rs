//! The nodes that `quantize` inserts and the error of its outputs.

use super::*;
use crate::framework::{
    Tools,
    testing::{self, model, numbers, run_pass_with, tools},
};
use pare_graph::{EvaluateError, Samples, Tensor};
use std::ops::Range;

/// Samples of `x` from -1 to 1.
struct Inputs(Vec<usize>);

impl Samples for Inputs {
    fn len(&self) -> usize {
        200
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let size: usize = self.0.iter().product();
        let of = |sample: usize| {
            let mut rng = fastrand::Rng::with_seed(sample as u64);
            (0..size).map(|_| rng.f32() * 2.0 - 1.0).collect::<Vec<_>>()
        };
        let values: Vec<f32> = range.clone().flat_map(of).collect();
        Ok(vec![("x".into(), Tensor::from_slice(&[&[range.len()], &self.0[..]].concat(), &values).unwrap())])
    }
}

/// A residual block, a pool and a classifier.
fn network() -> String {
    let [a, b, c] = [(8 * 4 * 9, 1), (8 * 8 * 9, 2), (5 * 8, 3)].map(|(count, seed)| numbers(count, seed));
    format!(
        "g (float[N,4,6,6] x) => (float[N,5] y)
         <float[8,4,3,3] a = {{{a}}}, float[8,8,3,3] b = {{{b}}}, float[8] q = {{{q}}}, float[5,8] c = {{{c}}},
          float[5] d = {{{d}}}> {{
            s = Conv<pads = [1,1,1,1]>(x, a) t = Relu(s) u = Conv<pads = [1,1,1,1]>(t, b, q) v = Add(u, t)
            r = Relu(v) w = GlobalAveragePool(r) z = Flatten(w) y = Gemm<transB = 1>(z, c, d) }}",
        q = numbers(8, 4),
        d = numbers(5, 5)
    )
}

/// The pass with these options. Layers are quantized even if that is slower, which small ones are.
fn for_size(options: &str) -> Quantize {
    Quantize { r#for: Purpose::Size, ..toml::from_str(options).unwrap() }
}

fn quantized(source: &str, options: &str, shape: &[usize]) -> (Model, Model, crate::framework::Report) {
    let original = model(source);
    let mut changed = original.clone();
    let samples = Inputs(shape.to_vec());
    let tools = Tools { samples: Some(&samples), ..tools() };
    let report = run_pass_with(for_size(options), &mut changed, tools);
    (original, changed, report)
}

/// The mean absolute difference of the outputs, relative to the largest output.
fn distance(original: &Model, changed: &Model, shape: &[usize]) -> f64 {
    let samples = Inputs(shape.to_vec());
    let tools = tools();
    let outputs = |model: &Model| {
        let mut run = tools.engine.unwrap().load(model, pare_graph::Setting::DEPLOYED).unwrap();
        let feeds = samples.batch(0..100).unwrap();
        run.run(&[("x", &feeds[0].1)]).unwrap()[0].to_f64().unwrap()
    };
    let (a, b) = (outputs(original), outputs(changed));
    let largest = a.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64 / largest
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes().iter().filter(|&&n| model.graph.node(n).op == op).count()
}

#[test]
fn quantizes_all_values_of_a_residual_network() {
    for options in ["", "ranges = \"minmax\"", "ranges = \"percentile\"", "correct_bias = false"] {
        let (original, changed, report) = quantized(&network(), options, &[4, 6, 6]);
        assert_eq!(report.steps[0].count("layers quantized"), 3);
        // x, t, u, r, w, z: the input of a ReLU has the range of its output, and the result is in floats.
        assert_eq!(count(&changed, "QuantizeLinear"), 6);
        // The same six, three weights, and their biases.
        assert_eq!(
            count(&changed, "DequantizeLinear"),
            6 + 3 + if options.contains("false") { 2 } else { 3 }
        );
        let distance = distance(&original, &changed, &[4, 6, 6]);
        assert!(distance < 0.02, "{options}: {distance}");
    }
}

#[test]
fn keeps_operators_between_floats() {
    let source = format!(
        "g (float[N,3,8] x) => (float[N,3,8] y) <float[8,8] a = {{{a}}}, float[8] p = {{{p}}}, float[8] one = {{{one}}}> {{
            n = LayerNormalization(x, one) m = MatMul(n, a) s = Add(m, p) t = Add(s, x) y = Softmax(t) }}",
        a = numbers(64, 1),
        p = numbers(8, 2),
        one = ["1"; 8].join(",")
    );
    let (original, changed, _) = quantized(&source, "", &[3, 8]);
    assert_eq!((count(&changed, "QuantizeLinear"), count(&changed, "DequantizeLinear")), (1, 2));
    let distance = distance(&original, &changed, &[3, 8]);
    assert!(distance < 0.01, "{distance}");
}

#[test]
fn quantizes_weights_without_samples() {
    let original = model(&network());
    let mut changed = original.clone();
    let pass = Quantize { method: Method::Weights, ..Quantize::default() };
    run_pass_with(pass, &mut changed, Tools::default());
    assert_eq!((count(&changed, "QuantizeLinear"), count(&changed, "DequantizeLinear")), (0, 3));
    assert!(distance(&original, &changed, &[4, 6, 6]) < 0.01);
    // Every weight changes by half a step at most, unless it is clipped.
    let values = |model: &Model, name: &str| {
        model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().to_f64().unwrap()
    };
    let (w, q, s) = (values(&original, "b"), values(&changed, "b_quantized"), values(&changed, "b_scale"));
    for (k, w) in w.iter().enumerate() {
        let scale = s[k / 72];
        let clipped = (w / scale).abs() > 127.0;
        assert!(clipped || (w - q[k] * scale).abs() <= 0.5 * scale * (1.0 + 1e-6));
    }
}

#[test]
fn rejects_quantized_models_and_old_operator_sets() {
    let (_, changed, _) = quantized(&network(), "", &[4, 6, 6]);
    assert!(
        check_unquantized(&changed.graph)
            .unwrap_err()
            .to_string()
            .starts_with("the model is quantized already")
    );
    let old = |nodes: &str| {
        let source = format!("g (float[N,2] x) => (float[N,2] y) {{ {nodes} }}");
        testing::model_at(&source, 10)
    };
    let refused = |opset, mut model: Model| {
        let pass = Quantize { activations: false, opset, ..Quantize::default() };
        let mut cx = testing::context(Tools::default());
        pass.run(&mut model, &mut cx).unwrap_err().to_string()
    };
    assert_eq!(refused(OpsetPolicy::Keep, old("y = Relu(x)")), "operator set 10 has no scales per output");
    assert_eq!(
        refused(OpsetPolicy::Raise, old("a, m = Dropout(x) n = Cast <to = 1>(m) y = Add(a, n)")),
        "operator set 10 has no scales per output, and cannot be raised: `m` is the mask of Dropout producing \
         `a`, which is undefined before operator set 12"
    );
}

/// The reasons why a model is not quantized, and the error, if it is refused.
fn reasons(original: &Model, shape: &[usize], prepare: &str) -> (Vec<String>, Option<String>) {
    let samples = Inputs(shape.to_vec());
    let mut cx = testing::context(Tools { samples: Some(&samples), ..tools() });
    let mut changed = original.clone();
    changed.infer().unwrap();
    cx.run_nested(prepare, &mut changed).unwrap();
    let result = for_size("").run(&mut changed, &mut cx);
    (cx.report.declined.keys().cloned().collect(), result.err().map(|e| e.to_string()))
}

/// The codes of an int32 constant.
fn codes(model: &Model, name: &str) -> Vec<f64> {
    model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().to_f64().unwrap()
}

/// Weights that are small or zero beside the bias have a small scale, in which the bias has a large code.
#[test]
fn large_biases_fit_their_codes() {
    let case = testing::read_fixture("cases/int8_bias_saturates.onnx");
    let row = |scale: f32, seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..8).map(|_| format!("{:e}", (rng.f32() - 0.5) * scale)).collect::<Vec<_>>().join(",")
    };
    let layer = |op: &str, small: f32| {
        let weights = format!("{},{},{}", row(1.0, 1), row(small, 2), row(1.0, 3));
        format!(
            "g (float[N,8,1,1] x) => (float[N,3] y) <float[3,8,1,1] w = {{{weights}}},
                float[3,8] v = {{{weights}}}, float[3] b = {{0.5, 900, -0.25}}, float[3,3] k = {{1,0,0,0,1,0,0,0,1}}> {{
                f = Flatten(x) {op} r = Relu(h) y = MatMul(r, k) }}"
        )
    };
    let (gemm, conv) = ("h = Gemm<transB = 1>(f, v, b)", "c = Conv(x, w, b) h = Flatten(c)");
    let mut cases = vec![(case, vec![16], "c3_quantized")];
    for source in [layer(gemm, 1e-9), layer(gemm, 0.0), layer(conv, 1e-9), layer(conv, 1e-30)] {
        cases.push((model(&source), vec![8, 1, 1], "b_quantized"));
    }
    for (original, shape, bias) in cases {
        let mut changed = original.clone();
        let samples = Inputs(shape.clone());
        run_pass_with(for_size(""), &mut changed, Tools { samples: Some(&samples), ..tools() });
        let codes = codes(&changed, bias);
        assert!(codes.iter().all(|c| c.abs() < f64::from(i32::MAX)), "{codes:?}");
        let distance = distance(&original, &changed, &shape);
        assert!(distance < 0.01, "{bias}: {distance}");
    }
}

#[test]
fn folds_alpha_and_beta_of_gemm() {
    let case = testing::read_fixture("cases/words_quantize_gemm_alpha.onnx");
    let gemm = |attributes: &str, bias: &str| {
        model(&format!(
            "g (float[N,6] x) => (float[N,4] y) <float[6,8] a = {{{}}}, float[8] b = {{{}}}, float[8,4] c = {{{}}}> {{
                h = Gemm<{attributes}>(x, a{bias}) r = Relu(h) y = Gemm<alpha = 3.0, beta = 0.0>(r, c) }}",
            numbers(48, 1),
            numbers(8, 2),
            numbers(32, 3)
        ))
    };
    for original in
        [case, gemm("alpha = 0.5", ""), gemm("beta = -2.0", ", b"), gemm("alpha = 4.0, beta = 0.0", ", b")]
    {
        let mut changed = original.clone();
        let samples = Inputs(vec![6]);
        let tools = Tools { samples: Some(&samples), ..tools() };
        let report = run_pass_with(for_size(""), &mut changed, tools);
        assert_eq!(report.steps[0].count("layers quantized"), 2);
        assert!(report.steps[0].figure("weight SNR in dB").unwrap() > 30.0);
        let distance = distance(&original, &changed, &[6]);
        assert!(distance < 0.02, "{distance}");
    }
}

#[test]
fn quantizes_matrices_behind_axes_of_size_one() {
    let case = testing::read_fixture("cases/refused_quantize_matmul.onnx");
    let product = |shape: &str, rank: &str| {
        model(&format!(
            "g (float[N,{rank}6,8] x) => (float[N,{rank}6,7] y) <float[{shape}8,7] a = {{{}}}, float[7] b = {{{}}}> {{
                m = MatMul(x, a) y = Add(m, b) }}",
            numbers(56, 1),
            numbers(7, 2)
        ))
    };
    let cases = [
        (case.clone(), vec![6, 8]),
        (product("1,", ""), vec![6, 8]),
        (product("1,1,", "3,"), vec![3, 6, 8]),
        (product("1,", "2,"), vec![2, 6, 8]),
    ];
    for (original, shape) in cases {
        let mut changed = original.clone();
        let samples = Inputs(shape.clone());
        let tools = Tools { samples: Some(&samples), ..tools() };
        let report = run_pass_with(for_size(""), &mut changed, tools);
        assert_eq!(report.steps[0].count("layers quantized"), 1);
        let distance = distance(&original, &changed, &shape);
        assert!(distance < 0.01, "{distance}");
    }
    let left = "`c2` is the left operand of MatMul `MatMul_0`, and only right ones are quantized";
    assert_eq!(reasons(&case, &[6, 8], ""), (vec![left.to_owned()], None));
}

#[test]
fn names_what_stays_in_float() {
    let fp16 = testing::read_fixture("cases/words_quantize_fp16.onnx");
    let (_, error) = reasons(&fp16, &[6], "");
    let why = "no layer can be quantized: `c2` is of type float16, and only float is quantized";
    assert_eq!(error.as_deref(), Some(why));
    let behind = |call: &str| {
        model(&format!(
            "g (float[N,6] x) => (float[N,4] y) <float[6,4] w = {{{}}}> {{ v = {call}(w) y = MatMul(x, v) }}",
            numbers(24, 1)
        ))
    };
    let (declined, error) = reasons(&behind("Identity"), &[6], "");
    let shared = "`v` has other users, or is not an initializer".to_owned();
    assert_eq!(error, Some(format!("no layer has weights of its own: {shared}")));
    assert_eq!(declined, [shared]);
    assert_eq!(reasons(&behind("Identity"), &[6], "safe"), (vec![], None));
    let branches = model(&format!(
        "g (float[N,6] x, bool c) => (float[N,4] y) <float[6,6] w = {{{}}}, float[6,4] v = {{{}}}> {{
            m = MatMul(x, w) y = If(c) <then_branch = a () => (float[N,4] p) {{ p = MatMul(m, v) }},
                else_branch = b () => (float[N,4] q) {{ n = Neg(m) q = MatMul(n, v) }}> }}",
        numbers(36, 1),
        numbers(24, 2)
    ));
    let mut cx = testing::context(Tools::default());
    decline_inner_layers(&branches.graph, &mut cx);
    let why = "2 layers stay in float: the bodies of If producing `y` are not quantized";
    assert_eq!(cx.report.declined.keys().collect::<Vec<_>>(), [why]);
}
