//! The nodes that `quantize-weights` writes, and their outputs in the engine.

use super::*;
use crate::framework::{
    Report, Tools,
    testing::{context, model, model_at, numbers, read_fixture, run_pass_with, tools},
};
use pare_graph::{EvaluateError, Samples, Setting, Tensor, onnx};
use std::ops::Range;

/// Correlated samples of `x`, of this shape.
struct Inputs(Vec<usize>);

impl Samples for Inputs {
    fn len(&self) -> usize {
        200
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let size: usize = self.0.iter().product();
        let of = |sample: usize| {
            let mut rng = fastrand::Rng::with_seed(sample as u64);
            let common: Vec<f32> = (0..4).map(|_| rng.f32() - 0.5).collect();
            (0..size).map(|k| common[k % 4] + 0.3 * (rng.f32() - 0.5)).collect::<Vec<_>>()
        };
        let values: Vec<f32> = range.clone().flat_map(of).collect();
        Ok(vec![("x".into(), Tensor::from_slice(&[&[range.len()], &self.0[..]].concat(), &values).unwrap())])
    }
}

fn pass(options: &str) -> QuantizeWeights {
    toml::from_str(options).unwrap()
}

/// Products in all forms: the width 40 is not a multiple of the block.
fn products() -> String {
    format!(
        "g (float[N,3,40] x) => (float[N,3,7] y) <float[40,48] w = {{{}}}, float[48] b = {{{}}}, int64[2] s = {{-1, 48}},
            float[24,48] v = {{{}}}, float[24] c = {{{}}}, float[24,7] u = {{{}}}, int64[3] t = {{-1, 3, 7}}> {{
            m = MatMul(x, w) n = Add(m, b) r = Relu(n) f = Reshape(r, s)
            g = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, v, c) h = Tanh(g) o = Gemm(h, u) y = Reshape(o, t) }}",
        numbers(1920, 1),
        numbers(48, 2),
        numbers(1152, 3),
        numbers(24, 4),
        numbers(168, 5)
    )
}

/// Two tables, of which one is read by a single index.
fn tables() -> String {
    format!(
        "g (int64[N,5] i, int64 j) => (float[N,5,40] y) <float[50,40] e = {{{}}}, float[6,40] p = {{{}}}> {{
            a = Gather(e, i) b = Gather(p, j) y = Add(a, b) }}",
        numbers(2000, 1),
        numbers(240, 2)
    )
}

/// The squared error of the outputs over their squares, the larger of the engine's settings.
fn noise(original: &Model, changed: &Model, feeds: &[(String, Tensor)]) -> f64 {
    // As read from a file.
    let changed = onnx::read_bytes(onnx::to_bytes(changed).unwrap(), None).unwrap();
    let run = |model: &Model, setting| {
        let names: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let outputs = tools().engine.unwrap().load(model, setting).unwrap().run(&names).unwrap();
        outputs[0].to_f64().unwrap()
    };
    let wanted = run(original, Setting::PLAIN);
    let of = |setting| {
        let error: f64 = wanted.iter().zip(run(&changed, setting)).map(|(a, b)| (a - b).powi(2)).sum();
        error / wanted.iter().map(|a| a * a).sum::<f64>()
    };
    of(Setting::PLAIN).max(of(Setting::DEPLOYED))
}

/// The model after the pass with samples of this shape, and the report.
fn quantized(original: &Model, options: &str, shape: &[usize]) -> (Model, Report) {
    let mut original = original.clone();
    original.infer().unwrap();
    let samples = Inputs(shape.to_vec());
    let with = !shape.is_empty();
    let tools = Tools { samples: with.then_some(&samples as &dyn Samples), ..tools() };
    let report = run_pass_with(pass(options), &mut original, tools);
    original.check().unwrap();
    (original, report)
}

fn count(model: &Model, op: &str) -> usize {
    model.graph.nodes().iter().filter(|&&n| model.graph.node(n).op == op).count()
}

#[test]
fn products_read_integers_in_both_forms() {
    let original = model(&products());
    let feeds = Inputs(vec![3, 40]).batch(0..20).unwrap();
    for form in ["ort", "standard"] {
        for bits in [4, 8] {
            for symmetric in [true, false] {
                for (method, block) in [("round", 16), ("mse", 32), ("hqq", 16), ("gptq", 16)] {
                    let options = format!(
                        "form = \"{form}\"\nbits = {bits}\nsymmetric = {symmetric}\nmethod = \"{method}\"\nblock = {block}"
                    );
                    let (changed, report) = quantized(&original, &options, &[3, 40]);
                    let step = report.steps.last().unwrap();
                    assert_eq!(step.count("matrices quantized"), 3, "{options}");
                    let op = if form == "ort" { "MatMulNBits" } else { "DequantizeLinear" };
                    assert_eq!(count(&changed, op), 3);
                    let noise = noise(&original, &changed, &feeds);
                    // Uniform weights have a noise of 1/(2^bits - 1)² in each of three products.
                    assert!(noise < if bits == 4 { 0.04 } else { 1.4e-4 }, "{options} {noise}");
                    assert!(step.figure("drift").unwrap().is_finite());
                }
            }
        }
    }
}

#[test]
fn tables_are_gathered_as_integers() {
    let original = model(&tables());
    let ints = |shape: &[usize], values: &[i64]| Tensor::from_slice(shape, values).unwrap();
    let feeds = [("i".into(), ints(&[1, 5], &[0, 49, 7, -1, 3])), ("j".into(), ints(&[], &[4]))];
    for form in ["ort", "standard"] {
        for bits in [4, 8] {
            for symmetric in [true, false] {
                let options =
                    format!("form = \"{form}\"\nbits = {bits}\nsymmetric = {symmetric}\nblock = 16");
                let (changed, report) = quantized(&original, &options, &[]);
                assert_eq!(report.steps.last().unwrap().count("tables quantized"), 2);
                let noise = noise(&original, &changed, &feeds);
                assert!(noise < if bits == 4 { 0.02 } else { 1e-4 }, "{options} {noise}");
            }
        }
    }
}

/// Four bits, and a scale of 32 bits for 32 weights: 5 of 32 bits.
#[test]
fn reports_the_bytes_that_remain() {
    let source = format!(
        "g (float[N,64] x) => (float[N,64] y) <float[64,64] w = {{{}}}> {{ y = MatMul(x, w) }}",
        numbers(4096, 1)
    );
    let (changed, report) = quantized(&model(&source), "", &[]);
    let step = report.steps.last().unwrap();
    assert_eq!(step.figure("their bytes"), Some(5.0 / 32.0));
    assert!(step.figure("weight SNR in dB").unwrap() > 18.0);
    let bytes: usize = changed
        .graph
        .initializers()
        .iter()
        .map(|&v| changed.graph.value(v).tensor().unwrap().bytes().len())
        .sum();
    assert_eq!(bytes, 4096 / 2 + 4 * 64 * 2);
}

/// The output error of a fit to samples is less than that of the nearest integers.
#[test]
fn gptq_keeps_the_outputs_of_samples() {
    let source = format!(
        "g (float[N,64] x) => (float[N,32] y) <float[64,32] w = {{{}}}> {{ y = MatMul(x, w) }}",
        numbers(2048, 1)
    );
    let original = model(&source);
    let feeds = Inputs(vec![64]).batch(300..400).unwrap();
    let of = |method: &str| {
        let (changed, _) = quantized(&original, &format!("method = \"{method}\""), &[64]);
        noise(&original, &changed, &feeds)
    };
    let (mse, gptq) = (of("mse"), of("gptq"));
    assert!(gptq < 0.5 * mse, "{gptq} {mse}");
}

#[test]
fn skips_shared_small_and_other_weights() {
    let source = format!(
        "g (float[N,4,8,8] x, float[N,40] z) => (float[N,4,8,8] a, float[N,40] y, float[40] r) <float[4,4,1,1] k = {{{}}},
            float[40,40] w = {{{}}}, float[40,1] v = {{{}}}, int64 i = {{0}}, float[1,40] t = {{{}}}> {{
            a = Conv(x, k) b = MatMul(z, w) c = MatMul(b, w) d = MatMul(c, v) e = MatMul(d, t) y = Neg(e)
            r = Gather(w, i) }}",
        numbers(16, 1),
        numbers(1600, 2),
        numbers(40, 3),
        numbers(40, 4)
    );
    let mut cx = context(Tools::default());
    let mut changed = model(&source);
    changed.infer().unwrap();
    pass("block = 32").run(&mut changed, &mut cx).unwrap();
    let why: Vec<_> = cx.report.declined.keys().map(String::as_str).collect();
    assert_eq!(
        why,
        [
            "`w` has other users, or is not an initializer",
            "`k` is the kernel of a convolution",
            "`w` has other users",
            "`t` would not become smaller"
        ]
    );
    assert_eq!(count(&changed, "MatMulNBits"), 1);
    let (changed, _) = quantized(&model(&products()), "only = [\"w\", \"v\"]\nexcept = [\"v\"]", &[]);
    assert_eq!((count(&changed, "MatMulNBits"), count(&changed, "Gemm")), (1, 2));
}

/// The table of a model whose products are in integers: `quantize` leaves it in float.
#[test]
fn tables_of_quantized_models_become_integers_too() {
    let codes: Vec<_> = (0..1024).map(|i| (i * 37 % 255 - 127).to_string()).collect();
    let source = format!(
        "g (int64[N] i) => (float[N,32] y) <float[64,32] t = {{{}}}, int8[32,32] w = {{{}}}, float s = {{0.01}},
            float r = {{0.05}}, uint8 z = {{128}}, int8 o = {{0}}> {{
            x = Gather(t, i) q = QuantizeLinear(x, r, z) h = DequantizeLinear(q, r, z)
            v = DequantizeLinear(w, s, o) y = MatMul(h, v) }}",
        numbers(2048, 1),
        codes.join(", ")
    );
    let mut changed = model(&source);
    changed.infer().unwrap();
    let mut cx = context(Tools::default());
    pass("bits = 8").run(&mut changed, &mut cx).unwrap();
    assert_eq!((count(&changed, "GatherBlockQuantized"), count(&changed, "DequantizeLinear")), (1, 2));
    let again = pass("bits = 8").run(&mut changed, &mut context(Tools::default())).unwrap_err().to_string();
    assert!(again.starts_with("the model is quantized already: "), "{again}");
}

#[test]
fn refuses_what_it_cannot_do_in_one_sentence() {
    let refused = |model: &Model, options: &str| {
        let mut model = model.clone();
        model.infer().unwrap();
        pass(options).run(&mut model, &mut context(Tools::default())).unwrap_err().to_string()
    };
    let original = model(&products());
    let (changed, _) = quantized(&original, "", &[]);
    assert_eq!(refused(&changed, ""), "the model is quantized already: MatMulNBits producing `m`");
    let none = model("g (float[2] x) => (float[2] y) { y = Relu(x) }");
    assert_eq!(refused(&none, ""), "the graph has no product with a constant matrix, and no table");
    let half = read_fixture("cases/words_quantize_fp16.onnx");
    assert_eq!(refused(&half, ""), "no weights can be quantized: `c2` is not of type float");
    assert_eq!(refused(&original, "method = \"gptq\""), "it needs samples, and an engine to run them");
    let keep = "form = \"standard\"\nopset = \"keep\"";
    assert_eq!(refused(&original, keep), "operator set 18 has no scales of blocks");
    let old = model_at(
        "g (float[N,2] x) => (float[N,2] y) { a, m = Dropout(x) n = Cast <to = 1>(m) y = Add(a, n) }",
        10,
    );
    assert!(
        refused(&old, "form = \"standard\"")
            .starts_with("operator set 10 has no scales of blocks, and cannot be raised")
    );
    for (options, why) in [
        ("bits = 3", "`bits` is 4 or 8, not 3"),
        ("block = 48", "`block` is a power of two from 16 to 256, not 48"),
        ("accuracy_level = 5", "`accuracy_level` is from 0 to 4, not 5"),
    ] {
        assert_eq!(pass(options).validate(), Err(why.to_owned()));
    }
}
