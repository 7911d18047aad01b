//! The nodes that `quantize` inserts and the error of its outputs.

use super::*;
use crate::analysis::evaluation::Quality;
use crate::analysis::linear::Linear;
use crate::framework::{
    RunOptions, Tools, run,
    testing::{self, model, numbers, run_pass_with, tools},
};
use pare_graph::{EvaluateError, Patch, Samples, Tensor};
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

/// The result of `method=dynamic` without samples, close to a model of inputs of eight numbers.
fn quantized_while_it_runs(original: &Model) -> Model {
    let mut changed = original.clone();
    run_pass_with(for_size("method = \"dynamic\""), &mut changed, Tools::default());
    let error = distance(original, &changed, &[8]);
    assert!(error < 0.02, "{error}");
    changed
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
fn neighboring_products_fit_into_16_bits() {
    // The codes of each output, neighbors in kernels side by side: `[O, C, taps]` with channels last.
    let pairs = |options: &str| -> Vec<f64> {
        let (_, changed, _) = quantized(&network(), options, &[4, 6, 6]);
        let sizes = [("a_quantized", 4, 9), ("b_quantized", 8, 9), ("c_quantized", 8, 1)];
        let sums = sizes.into_iter().flat_map(|(name, channels, taps)| {
            let codes = codes(&changed, name);
            let rows = codes.chunks(channels * taps).flat_map(move |row| {
                let ordered: Vec<_> =
                    (0..row.len()).map(|k| row[k % channels * taps + k / channels]).collect();
                ordered.chunks(2).map(|pair| pair.iter().sum::<f64>().abs()).collect::<Vec<_>>()
            });
            rows.collect::<Vec<_>>()
        });
        sums.collect()
    };
    let largest = |sums: &[f64]| sums.iter().copied().fold(0.0, f64::max);
    assert!(largest(&pairs("")) <= 128.0, "{:?}", pairs(""));
    assert!(largest(&pairs("full_range = true")) > 160.0);
    assert!(largest(&pairs("method = \"weights\"")) > 160.0);
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

/// Plants outliers in the kernels of some convolutions, in the inputs of channels that their producers do not
/// compute any more: the outputs stay the same, but the scales of the kernels become 1000 times as large. Returns
/// the names of the kernels.
fn plant_outliers(model: &mut Model, blocks: &[usize]) -> Vec<String> {
    let graph = &model.graph;
    let pair = |&node: &NodeId| {
        let second = Linear::owned(graph, node).filter(|linear| linear.is_conv() && linear.groups == 1)?;
        let relu = graph.value_ref(second.input).producer().filter(|at| at.is("Relu"))?;
        let first = relu.input(0).ok()?.producer()?;
        let first = Linear::owned(graph, first.id).filter(|linear| linear.is_conv())?;
        let is_alone = [first.output, second.input].iter().all(|&v| graph.use_count(v) == 1);
        is_alone.then_some((first, second, relu.id))
    };
    let pairs: Vec<_> = graph.nodes().iter().filter_map(pair).collect();
    let mut names = vec![];
    for (first, second, anchor) in blocks.iter().map(|&block| pairs[block].clone()) {
        let (mut weights, mut bias) =
            (first.weight(&model.graph, 0).unwrap(), first.bias(&model.graph).unwrap());
        weights.row_mut(0).fill(0.0);
        bias[0] = 0.0;
        let mut kernel = second.weight(&model.graph, 0).unwrap();
        for j in 0..second.taps() {
            kernel.col_mut(j).iter_mut().for_each(|w| *w *= 1000.0);
        }
        let mut patch = Patch::anchored(anchor);
        first.store(&model.graph, &mut patch, &[weights], &bias).unwrap();
        second.store(&model.graph, &mut patch, &[kernel], &second.bias(&model.graph).unwrap()).unwrap();
        names.push(model.graph.value(second.weight).name.clone());
        model.graph.apply(patch).unwrap();
    }
    model.infer().unwrap();
    names
}

/// The quality of a changed model on held-out samples.
fn quality(original: &Model, changed: &Model, tools: Tools<'_>) -> Quality {
    HeldOut::new(tools, original, Split::of(tools).held_out).unwrap().measure(changed).unwrap()
}

/// Plants outliers in two layers of a model, and checks that a limit leaves exactly these in float.
fn check_planted(mut original: Model, samples: &dyn Samples, blocks: &[usize]) {
    let tools = Tools { samples: Some(samples), ..tools() };
    run(&"safe".parse().unwrap(), &mut original, RunOptions::new(tools), &mut ()).unwrap();
    let names = plant_outliers(&mut original, blocks);
    let mut without = original.clone();
    run_pass_with(for_size(""), &mut without, tools);
    let agreement = quality(&original, &without, tools).agreement.unwrap();
    assert!(agreement < 0.98, "{agreement}");
    let mut with = original.clone();
    let report = run_pass_with(for_size("min_agreement = 0.98"), &mut with, tools);
    let agreement = quality(&original, &with, tools).agreement.unwrap();
    assert!(agreement >= 0.98, "{agreement}");
    let notes = report.steps[0].notes.join("\n");
    assert!(notes.starts_with("2 layers stay in float for the limits (drift alone): "), "{notes}");
    let in_float = |name: &&String| with.graph.find(name).is_some_and(|v| with.graph.value(v).data.is_some());
    let kernels: Vec<_> = original.graph.initializers();
    let kernels = kernels.iter().map(|&v| &original.graph.value(v).name);
    let kernels = kernels.filter(|n| without.graph.find(&format!("{n}_quantized")).is_some());
    let mut left: Vec<_> = kernels.filter(in_float).filter(|n| !n.contains("bias")).cloned().collect();
    left.retain(|name| with.graph.find(&format!("{name}_quantized")).is_none());
    let mut names = names;
    names.sort();
    left.sort();
    assert_eq!(left, names);
}

#[test]
fn limits_leave_planted_outliers_in_float() {
    let original = testing::read_fixture("digits-cnn.onnx");
    let samples = testing::samples("digits-calibration.npz", &original);
    check_planted(original, &samples, &[0, 2]);
}

#[test]
#[ignore = "reads models and images that are not part of the repository"]
fn limits_leave_planted_outliers_of_a_deep_network_in_float() {
    let original = testing::read(testing::shared().join("models/cifar-resnet20.onnx"));
    let file = std::env::var_os("PARE_CIFAR").expect("PARE_CIFAR is a file of samples of `image`");
    let samples = pare_tests::fixtures::open_samples(std::path::Path::new(&file), &original);
    for blocks in [[1, 6], [0, 8], [3, 4]] {
        check_planted(original.clone(), &samples, &blocks);
    }
}

fn refusal(pass: Quantize, original: &Model, samples: Option<&dyn Samples>) -> String {
    let mut cx = testing::context(Tools { samples, ..tools() });
    let mut changed = original.clone();
    changed.infer().unwrap();
    pass.run(&mut changed, &mut cx).unwrap_err().to_string()
}

#[test]
fn refuses_in_one_sentence() {
    struct NotANumber;
    impl Samples for NotANumber {
        fn len(&self) -> usize {
            32
        }

        fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
            let values = vec![f32::NAN; range.len() * 144];
            Ok(vec![("x".into(), Tensor::from_slice(&[range.len(), 4, 6, 6], &values).unwrap())])
        }
    }
    let original = model(&network());
    let inputs = Inputs(vec![4, 6, 6]);
    assert_eq!(refusal(for_size(""), &original, None), "it needs samples, and an engine to run them");
    let dynamic = for_size("method = \"dynamic\"\nmax_drift = 0.1");
    assert_eq!(refusal(dynamic, &original, None), "it needs samples, and an engine to run them");
    assert_eq!(refusal(for_size(""), &original, Some(&NotANumber)), "`x` is not finite on the samples");
    let nothing = model("g (float[N,4,6,6] x) => (float[N,4,6,6] y) { y = Relu(x) }");
    assert_eq!(
        refusal(for_size(""), &nothing, Some(&inputs)),
        "the graph has no linear layer with constant weights"
    );
    let convolution = model(&format!(
        "g (float[N,4,6,6] x) => (float[N,8,6,6] y) <float[8,4,1,1] a = {{{}}}> {{ y = Conv(x, a) }}",
        numbers(32, 1)
    ));
    assert_eq!(
        refusal(for_size("method = \"dynamic\""), &convolution, None),
        "no layer can be quantized: `a` is the kernel of a convolution, which needs ranges from samples"
    );
    let impossible = refusal(for_size("max_drift = 0.0"), &original, Some(&inputs));
    let start = "no layer can be quantized within the limits: with 1 of 3 layers in integers, the drift of ";
    assert!(impossible.starts_with(start) && impossible.ends_with(" is more than 0"), "{impossible}");
    assert_eq!(
        refusal(for_size("min_agreement = 0.9"), &residual_floats(), Some(&Inputs(vec![3, 8]))),
        "no layer can be quantized within the limits: with 1 of 1 layers in integers, no output holds class \
         scores, so agreement cannot be measured"
    );
    let (changed, _, _) = (quantized(&network(), "", &[4, 6, 6]).1, 0, 0);
    assert!(refusal(for_size(""), &changed, Some(&inputs)).starts_with("the model is quantized already: "));
    let invalid = |text: &str| toml::from_str::<Quantize>(text).unwrap().validate().unwrap_err();
    assert_eq!(invalid("min_agreement = 1.5"), "`min_agreement` cannot be 1.5");
    assert_eq!(
        invalid("method = \"dynamic\"\nactivations = false"),
        "`method=dynamic` quantizes activations"
    );
}

/// A product whose output is no scores.
fn residual_floats() -> Model {
    model(&format!(
        "g (float[N,3,8] x) => (float[N,3,8] y) <float[8,8] a = {{{}}}> {{ m = MatMul(x, a) y = Add(m, x) }}",
        numbers(64, 1)
    ))
}

#[test]
fn quantizes_products_while_they_run() {
    let source = format!(
        "g (float[N,3,8] x) => (float[N,3,5] y, float[N,3,8] z)
         <float[8,8] a = {{{}}}, float[8] p = {{{}}}, float[8,5] b = {{{}}}> {{
            m = MatMul(x, a) s = Add(m, p) t = Relu(s) y = MatMul(t, b) z = MatMul(t, a2) }}",
        numbers(64, 1),
        numbers(8, 2),
        numbers(40, 3)
    );
    let source = source.replace("> {", &format!(", float[8,8] a2 = {{{}}}> {{", numbers(64, 4)));
    let (original, changed, report) = quantized(&source, "method = \"dynamic\"", &[3, 8]);
    assert_eq!(report.steps[0].count("layers quantized"), 3);
    // Two layers read `t`.
    assert_eq!((count(&changed, "DynamicQuantizeLinear"), count(&changed, "MatMulInteger")), (2, 3));
    let error = distance(&original, &changed, &[3, 8]);
    assert!(error < 0.01, "{error}");
    // Without samples, and with the matrix, bias and factors of a Gemm.
    for attributes in ["transB = 1", "transB = 1, alpha = 0.5, beta = 2.0"] {
        let original = model(&format!(
            "g (float[N,8] x) => (float[N,5] y) <float[5,8] a = {{{}}}, float[5] b = {{{}}}> {{
                y = Gemm<{attributes}>(x, a, b) }}",
            numbers(40, 1),
            numbers(5, 2)
        ));
        let changed = quantized_while_it_runs(&original);
        assert_eq!((count(&changed, "MatMulInteger"), count(&changed, "Gemm")), (1, 0));
    }
}

/// The second layer reads the output of the first, which is replaced before it.
#[test]
fn quantizes_chains_of_products_while_they_run() {
    let original = model(&format!(
        "g (float[N,8] x) => (float[N,8] h, float[N,5] y) <float[8,8] a = {{{}}}, float[8,5] b = {{{}}}> {{
            h = MatMul(x, a) y = MatMul(h, b) }}",
        numbers(64, 1),
        numbers(40, 2)
    ));
    let changed = quantized_while_it_runs(&original);
    assert_eq!((count(&changed, "MatMulInteger"), count(&changed, "MatMul")), (2, 0));
}

/// ONNX Runtime moves a QDQ pair behind the views, and crashes at the body.
#[test]
fn values_that_bodies_read_through_views_stay_in_float() {
    let source = format!(
        "g (float[N,8] x) => (float[N,5] y, float[M] z)
         <float[8,8] a = {{{}}}, float[8] p = {{{}}}, float[8,5] b = {{{}}}, float[5] q = {{{}}}, int64[1] flat = {{-1}}, float zero = {{0}}> {{
            m = ReduceMean<keepdims = 0>(x) c = Greater(m, zero)
            g = Gemm(x, a, p) h = Relu(g) s = Gemm(h, b, q) y = Relu(s) t = Transpose(h) r = Reshape(t, flat)
            z = If(c) <then_branch = yes () => (float[M] u) {{ u = Tanh(r) }},
                       else_branch = no () => (float[M] v) {{ v = Neg(r) }}> }}",
        numbers(64, 1),
        numbers(8, 2),
        numbers(40, 3),
        numbers(5, 4)
    );
    let (_, changed, _) = quantized(&source, "", &[8]);
    assert!(count(&changed, "QuantizeLinear") > 0);
    let graph = &changed.graph;
    let view = graph.nodes().iter().find(|&&id| graph.node(id).is("Transpose")).copied().unwrap();
    assert_eq!(graph.at(view).input(0).unwrap().name(), "h");
    // It loads.
    tools().engine.unwrap().load(&changed, pare_graph::Setting::DEPLOYED).unwrap();
}

#[test]
fn quantizes_attention() {
    let source = format!(
        "g (float[N,6,8] x) => (float[N,6,8] y)
         <float[8,8] a = {{{}}}, float[8,8] b = {{{}}}, float[8,8] c = {{{}}}> {{
            q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) t = Transpose<perm = [0,2,1]>(k)
            s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v) }}",
        numbers(64, 1),
        numbers(64, 2),
        numbers(64, 3)
    );
    for (attention, products) in [("\"auto\"", 0), ("true", 2), ("false", 0)] {
        let (original, changed, report) = quantized(&source, &format!("attention = {attention}"), &[6, 8]);
        assert_eq!(report.steps[0].count("products of activations quantized"), products);
        let error = distance(&original, &changed, &[6, 8]);
        assert!(error < 0.02, "{error}");
    }
}

#[test]
fn small_layers_are_not_quantized_for_speed() {
    // One product of 8 × 8 costs less than the conversion of its input.
    let original = residual_floats();
    let mut changed = original.clone();
    let samples = Inputs(vec![3, 8]);
    let tools = Tools { samples: Some(&samples), ..tools() };
    let report = run_pass_with(Quantize::default(), &mut changed, tools);
    let step = &report.steps[0];
    let quantized = count(&changed, "QuantizeLinear");
    // Time decides, so both are right; the report agrees with the model.
    assert_eq!(quantized > 0, step.count("layers quantized") == 1);
    if quantized == 0 {
        let note = &step.notes[0];
        assert!(
            note.starts_with("no layer is quantized: integers are ") && note.ends_with(" on this machine"),
            "{note}"
        );
        assert_eq!(step.patches, 0);
    }
}
