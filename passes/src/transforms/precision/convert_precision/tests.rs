//! Types and casts of converted models, and their outputs in the engine.

use super::*;
use crate::framework::{
    Report, Tools,
    testing::{context, model, model_at, numbers, read_fixture, run_pass_with, tools},
};
use pare_graph::{EvaluateError, Samples, Setting, Tensor, text};
use std::ops::Range;

/// Random inputs of a model: floats from -1 to 1 times `scale`, other numbers are 3, and symbols are 4.
struct Inputs<'m> {
    graph: &'m Graph,
    scale: f32,
}

impl Samples for Inputs<'_> {
    fn len(&self) -> usize {
        100
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let mut rng = fastrand::Rng::with_seed(range.start as u64);
        let input = |&v: &ValueId| {
            let value = self.graph.value(v);
            let mut shape: Vec<usize> =
                value.fact.shape().unwrap().iter().map(|d| d.known().map_or(4, |n| n as usize)).collect();
            if value.fact.shape().unwrap().first().is_some_and(|d| d.known().is_none()) {
                shape[0] = range.len();
            }
            let dtype = value.fact.dtype().unwrap();
            let values: Vec<f64> = (0..shape.iter().product())
                .map(|_| if dtype.is_float() { f64::from((rng.f32() * 2.0 - 1.0) * self.scale) } else { 3.0 })
                .collect();
            (value.name.clone(), Tensor::from_f64(dtype, &shape, &values).unwrap())
        };
        Ok(self.graph.inputs().iter().filter(|v| self.graph.value(**v).data.is_none()).map(input).collect())
    }
}

fn pass(options: &str) -> ConvertPrecision {
    toml::from_str(options).unwrap()
}

/// The least signal-to-noise ratio of the outputs, with and without optimizations of the engine.
fn snr(original: &Model, changed: &Model) -> f64 {
    let feeds = Inputs { graph: &original.graph, scale: 1.0 }.batch(0..4).unwrap();
    let run = |model: &Model, setting| {
        let names: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        tools().engine.unwrap().load(model, setting).unwrap().run(&names).unwrap()
    };
    let wanted = run(original, Setting::PLAIN);
    let mut least = f64::INFINITY;
    for setting in [Setting::PLAIN, Setting::DEPLOYED] {
        for (a, b) in wanted.iter().zip(run(changed, setting)) {
            assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()));
            if !a.dtype().is_float() {
                assert_eq!(a, &b);
                continue;
            }
            let (a, b) = (a.to_f64().unwrap(), b.to_f64().unwrap());
            let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
            least = least.min(10.0 * (a.iter().map(|a| a * a).sum::<f64>() / error).log10());
        }
    }
    least
}

fn inferred(mut model: Model) -> Model {
    model.infer().unwrap();
    model
}

/// The model after the pass, which is valid and runs, with the report.
fn converted(original: Model, options: &str) -> (Model, Report) {
    let original = inferred(original);
    let mut changed = original.clone();
    let report = run_pass_with(pass(options), &mut changed, Tools::default());
    changed.check().unwrap();
    let snr = snr(&original, &changed);
    assert!(snr > if options.contains("bf16") { 25.0 } else { 45.0 }, "{snr}");
    (changed, report)
}

/// The nodes and bodies of the model as text, without the header.
fn nodes(model: &Model) -> String {
    let text = text::print_graph(&model.graph);
    let header = text.find("> {").map_or_else(|| text.find('{'), |at| Some(at + 2)).unwrap();
    text[header..].split_whitespace().collect::<Vec<_>>().join(" ")
}

fn dtype(model: &Model, name: &str) -> DataType {
    model.graph.value(model.graph.find(name).unwrap()).fact.dtype().unwrap()
}

fn casts(model: &Model) -> usize {
    let at = |&id: &pare_graph::NodeId| model.graph.node(id).is("Cast");
    model.graph.nodes().iter().filter(|id| at(id)).count()
}

fn declined(report: &Report) -> Vec<&str> {
    report.steps.last().unwrap().declined().map(|(why, _)| why).collect()
}

#[test]
fn converts_weights_and_values_between_two_casts() {
    let source = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {0.5, 1}> {
        a = MatMul(x, w) c = Add(a, b) r = Relu(c) y = Softmax(r) }";
    let (changed, report) = converted(model(source), "");
    assert_eq!(
        nodes(&changed),
        "{ x_float16 = Cast<to = 10>(x) a = MatMul(x_float16, w) c = Add(a, b) r = Relu(c) y_float16 = Softmax(r) \
         y = Cast<to = 1>(y_float16) }"
    );
    assert_eq!(["w", "b", "r"].map(|name| dtype(&changed, name)), [DataType::Float16; 3]);
    let step = &report.steps[0];
    assert_eq!((step.count("nodes converted"), step.count("constants converted")), (4, 2));
    // A second run has nothing to do.
    let again = run_pass_with(pass(""), &mut changed.clone(), Tools::default());
    assert_eq!((again.patches(), declined(&again)), (0, vec!["no node and no constant can be float16"]));
}

#[test]
fn scales_of_resize_stay_float() {
    let resize = |mode: &str| {
        format!(
            "g (float[N,2,4,4] x) => (float[N,2,8,8] y) <float[2,2,1,1] w = {{1, 2, 3, 4}}, float[4] s = {{1,1,2,2}}> {{
                a = Conv(x, w) y = Resize<mode = \"{mode}\">(a, , s) }}"
        )
    };
    for opset in [11, 13, 19] {
        let source = resize("linear").replace("a, , s", if opset == 11 { "a, r, s" } else { "a, , s" });
        let source = source.replace("float[4] s", "float[8] r = {0,0,0,0,1,1,1,1}, float[4] s");
        let (changed, _) = converted(model_at(&source, opset), "");
        assert_eq!((dtype(&changed, "s"), casts(&changed)), (DataType::Float, 2));
    }
    let (changed, report) = converted(model(&resize("cubic")), "");
    assert_eq!((dtype(&changed, "w"), casts(&changed)), (DataType::Float16, 2));
    assert_eq!(declined(&report), ["ONNX Runtime's CPU does not run Resize in float16"]);
}

#[test]
fn casts_of_the_model_change_their_type_or_vanish() {
    // A float16 part, integers, and a chain.
    let source =
        "g (float[N,4] x, int64[4] i) => (float[N,4] y, int64[N,4] k) <float16[4] h = {1, 2, 3, 4}> {
        a = Exp(x) b = Cast<to = 10>(a) c = Mul(b, h) d = Cast<to = 1>(c) e = Tanh(d) f = Cast<to = 1>(i)
        g = Mul(e, f) m = Cast<to = 11>(g) n = Cast<to = 1>(m) y = Sigmoid(n) k = Cast<to = 7>(n) }";
    let (changed, _) = converted(model(source), "");
    assert_eq!(
        nodes(&changed),
        "{ x_float16 = Cast<to = 10>(x) a = Exp(x_float16) c = Mul(a, h) e = Tanh(c) f = Cast<to = 10>(i) \
         g = Mul(e, f) m = Cast<to = 11>(g) n = Cast<to = 10>(m) y_float16 = Sigmoid(n) \
         k = Cast<to = 7>(n) y = Cast<to = 1>(y_float16) }"
    );
    // Between floats a cast does not become a detour.
    let source = "g (int64[4] i) => (float[4] y) <float z = {1e-7}> { a = Cast<to = 1>(i) y = Add(a, z) }";
    let mut changed = inferred(model(source));
    run_pass_with(pass(""), &mut changed, Tools::default());
    assert_eq!(nodes(&changed), "{ a = Cast<to = 1>(i) y = Add(a, z) }");
}

#[test]
fn bodies_change_with_their_nodes() {
    let w = numbers(16, 1);
    let branches = format!(
        "g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {{{w}}}> {{
            a = MatMul(x, w)
            b = If(c) <then_branch = t () => (float[N,4] p) <float[4] k = {{1,2,3,4}}> {{ o = Mul(a, k) p = Add(o, o) }},
                       else_branch = e () => (float[N,4] q) {{ q = MatMul(a, w) }}>
            y = Softmax(b) }}"
    );
    let (changed, report) = converted(model(&branches), "");
    assert_eq!(casts(&changed), 2);
    assert_eq!(report.steps[0].count("nodes converted"), 6);
    assert!(!nodes(&changed).contains("float["), "{}", nodes(&changed));

    let repeated = format!(
        "g (float[N,4] x, int64 n) => (float[N,4] y, float[S,N,4] all) <float[4,4] w = {{{w}}}, bool t = {{1}}> {{
            y, all = Loop(n, t, x) <body = b (int64 i, bool c, float[N,4] s) => (bool d, float[N,4] u, float[N,4] v) {{
                d = Identity(c) m = MatMul(s, w) j = Cast<to = 1>(i) o = Add(m, j) u = Tanh(o) v = Neg(u) }}> }}"
    );
    let (changed, _) = converted(model(&repeated), "");
    assert_eq!(casts(&changed), 3);
    assert_eq!(dtype(&changed, "w"), DataType::Float16);

    let scanned = "g (float[4] x, float[5,4] z) => (float[4] y, float[5,4] all) <float k = {0.5}> {
        y, all = Scan(x, z) <body = b (float[4] s, float[4] e) => (float[4] u, float[4] v) {
            m = Mul(s, k) u = Add(m, e) v = Tanh(u) }, num_scan_inputs = 1> }";
    let (changed, _) = converted(model(scanned), "");
    assert_eq!((casts(&changed), dtype(&changed, "k")), (4, DataType::Float16));
}

/// A body that stays in float inside of a body of the new type, and a state that is too large.
#[test]
fn bodies_keep_their_types_at_nodes_in_float() {
    let source = "g (float[4] x, int64 n) => (float[4] y) <bool t = {1}> {
        a = Tanh(x)
        b = Loop(n, t, a) <body = b (int64 i, bool c, float[4] s) => (bool d, float[4] u) <float big = {1e6}> {
            d = Identity(c) m = Mul(s, big) u = Div(m, big) }>
        y = Sigmoid(b) }";
    let (changed, report) = converted(model(source), "");
    assert_eq!(casts(&changed), 2);
    assert!(
        nodes(&changed).contains("m = Mul(s_float, big) u_1 = Div(m, big)")
            || nodes(&changed).contains("s_float")
    );
    assert_eq!(
        declined(&report),
        [
            "`big` would become infinite in float16, so Div producing `u` stays in float",
            "`big` would become infinite in float16, so Mul producing `m` stays in float"
        ]
    );
    // The body is in float, the rest is not.
    let (changed, _) = converted(model(source), "except = [\"b\"]");
    assert_eq!(dtype(&changed, "b"), DataType::Float);
    assert_eq!(dtype(&changed, "a"), DataType::Float16);
}

#[test]
fn random_numbers_and_ranges_have_the_type_of_their_operator() {
    // The standard has no half Range before operator set 27, and the shape of `a` is all that is random about it.
    let source = "g (float[N,4] x) => (float[N,4] y) <float z = {0}, float n = {4}, float d = {1}> {
        r = Range(z, n, d) a = Tanh(x) o = RandomNormalLike<seed = 1.0>(a) p = Mul(o, z) q = Add(a, p) y = Add(q, r) }";
    let (changed, report) = converted(model(source), "");
    assert_eq!(
        declined(&report),
        [
            "ONNX Runtime's CPU does not run RandomNormalLike in float16",
            "Range has no float16 form in operator set 18"
        ]
    );
    assert_eq!(dtype(&changed, "r"), DataType::Float);
    let typed = "g (float[N,4] x) => (float[N,4] y) <float z = {0}> {
        a = Tanh(x) o = RandomUniform<shape = [4], seed = 1.0>() e = EyeLike<dtype = 1>(a) p = Mul(o, z)
        q = Add(a, p) y = Add(q, e) }";
    let (changed, _) = converted(model(typed), "");
    assert_eq!((dtype(&changed, "o"), dtype(&changed, "e")), (DataType::Float, DataType::Float));
    // A size and a comparison read the type that is there.
    let read = "g (float[N,4] x) => (bool[N,4] y, int64[2] s) { a = Tanh(x) s = Shape(x) y = Greater(x, a) }";
    let mut changed = inferred(model(read));
    run_pass_with(pass(""), &mut changed, Tools::default());
    assert_eq!(
        nodes(&changed),
        "{ x_float16 = Cast<to = 10>(x) a = Tanh(x_float16) s = Shape(x) y = Greater(x_float16, a) }"
    );
    let filled = "g (float[N,4] x) => (float[N,4] y) {
        a = Tanh(x) s = Shape(a) o = ConstantOfShape(s) e = ConstantOfShape<value = float[1] {2}>(s)
        q = Add(a, o) y = Mul(q, e) }";
    assert_eq!(casts(&converted(model(filled), "").0), 2);
}

#[test]
fn initializers_are_shared_by_nodes_of_both_types() {
    let source = format!(
        "g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {{{}}}> {{
            a = MatMul(x, w) b = MatMul(a, w) y = Neg(b) }}",
        numbers(16, 1)
    );
    let (changed, _) = converted(model(&source), "except = [\"b\"]");
    assert_eq!(
        nodes(&changed),
        "{ x_float16 = Cast<to = 10>(x) a = MatMul(x_float16, w) a_float = Cast<to = 1>(a) \
         w_float = Cast<to = 1>(w) b = MatMul(a_float, w_float) b_float16 = Cast<to = 10>(b) \
         y_float16 = Neg(b_float16) y = Cast<to = 1>(y_float16) }"
    );
}

#[test]
fn sequences_calls_and_unknown_operators_stay_float() {
    let source = "g (float[2,4] x) => (float[2,4] y) <int64 z = {0}> {
        a = Tanh(x) s = SequenceConstruct(a, a) b = SequenceAt(s, z) y = Exp(b) }";
    let (changed, report) = converted(model(source), "");
    assert_eq!(casts(&changed), 4);
    assert_eq!(
        declined(&report),
        [
            "`s` is no tensor, so SequenceAt producing `b` stays in float",
            "`s` is no tensor, so SequenceConstruct producing `s` stays in float"
        ]
    );
    let function = "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>
        g (float[N,4] x) => (float[N,4] y) { a = Tanh(x) y = local.Twice(a) }
        <domain: \"local\", opset_import: [\"\" : 18]> Twice (u) => (v) { k = Constant<value = float {2}>() v = Mul(u, k) }";
    let (changed, _) = converted(model(function), "");
    assert_eq!((casts(&changed), changed.functions.len()), (2, 0));
    let engine = "<ir_version: 8, opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
        g (float[N,4] x) => (float[N,4] y) { a = Tanh(x) b = com.microsoft.QuickGelu(a) y = Exp(b) }";
    let (changed, report) = converted(model(engine), "");
    assert_eq!(casts(&changed), 4);
    let why = "QuickGelu producing `b` is no operator of the standard, so its types are unknown";
    assert_eq!(declined(&report), [why]);
}

#[test]
fn names_constants_that_do_not_fit() {
    let source =
        "g (float[N,4] x) => (float[N,4] y) <float low = {-3.4e38}, float e = {1e-12}, float k = {0.1}> {
        a = Mul(x, k) b = Max(a, low) c = Mul(b, b) d = Add(c, e) f = Sqrt(d) y = Div(b, f) }";
    let (_, report) = converted(model(source), "");
    assert_eq!(
        declined(&report),
        [
            "`e` would vanish in float16, so Add producing `d` stays in float",
            "`low` would become infinite in float16, so Max producing `b` stays in float"
        ]
    );
    let (_, report) = converted(model(source), "to = \"bf16\"");
    assert!(!declined(&report).iter().any(|why| why.contains("vanish")));
}

#[test]
fn weights_of_overridable_inputs_keep_their_type() {
    let source = "g (float[N,2] x, float[2,2] w = {1, 2, 3, 4}) => (float[N,2] y) { y = MatMul(x, w) }";
    let (changed, report) = converted(model(source), "");
    assert_eq!((dtype(&changed, "w"), casts(&changed)), (DataType::Float, 3));
    assert_eq!(
        declined(&report),
        ["1 weight is an input that the caller may override, so it stays in float"]
    );
}

#[test]
fn stores_weights_in_bfloat16_where_no_kernel_reads_it() {
    let source = format!(
        "g (float[N,16] x) => (float[N,16] y) <float[16,16] w = {{{}}}, float[16] b = {{{}}}> {{
            a = MatMul(x, w) y = Add(a, b) }}",
        numbers(256, 1),
        numbers(16, 2)
    );
    for opset in [11, 18] {
        let (changed, _) = converted(model_at(&source, opset), "to = \"bf16\"");
        assert_eq!((dtype(&changed, "w"), dtype(&changed, "b")), (DataType::Bfloat16, DataType::Float));
        assert_eq!(nodes(&changed), "{ w_float = Cast<to = 1>(w) a = MatMul(x, w_float) y = Add(a, b) }");
    }
    // `Conv` has no form in bfloat16 before operator set 22.
    let source = format!(
        "g (float[N,8,4,4] x) => (float[N,8,2,2] y) <float[8,8,3,3] w = {{{}}}> {{ y = Conv(x, w) }}",
        numbers(576, 1)
    );
    let (changed, report) = converted(model(&source), "to = \"bf16\"");
    assert_eq!(dtype(&changed, "w"), DataType::Bfloat16);
    assert_eq!(declined(&report), ["Conv has no bfloat16 form in operator set 18"]);
    let mut cx = context(Tools::default());
    let keep = pass("to = \"bf16\"\nopset = \"keep\"");
    let why = keep.run(&mut inferred(model_at(&source, 11)), &mut cx).unwrap_err().to_string();
    assert_eq!(why, "operator set 11 has no bfloat16");
}

/// Samples that exceed the range, and some that vanish in it.
#[test]
fn values_out_of_range_on_samples_stay_float() {
    let source = "g (float[N,4] x) => (float[N,4] y) <float k = {300}, float m = {0.02}> {
        a = Mul(x, k) b = Mul(a, a) c = Mul(b, m) y = Sqrt(c) }";
    let original = inferred(model(source));
    let run = |scale: f32, margin: f64| {
        let samples = Inputs { graph: &original.graph, scale };
        let mut changed = original.clone();
        let tools = Tools { samples: Some(&samples), ..tools() };
        run_pass_with(ConvertPrecision { margin, ..pass("") }, &mut changed, tools);
        ["a", "b", "c"].map(|name| dtype(&changed, name) == DataType::Float16)
    };
    // |b| is at most 90000·scale².
    assert_eq!(run(1.0, 2.0), [true, false, false]);
    assert_eq!(run(0.5, 1.0), [true, true, true]);
    assert_eq!(run(0.7, 2.0), [true, false, false]);
    assert_eq!(run(1e-7, 1.0), [false, false, false]);
}

#[test]
fn refuses_samples_that_are_not_numbers() {
    let original = inferred(model("g (float[N,4] x) => (float[N,4] y) { y = Exp(x) }"));
    let samples = Inputs { graph: &original.graph, scale: f32::NAN };
    let mut cx = context(Tools { samples: Some(&samples), ..tools() });
    let why = pass("").run(&mut original.clone(), &mut cx).unwrap_err().to_string();
    assert_eq!(why, "`x` is NaN on the samples");
    let mut cx = context(tools());
    let why = pass("to = \"mixed\"").run(&mut original.clone(), &mut cx).unwrap_err().to_string();
    assert_eq!(why, "it needs samples, and an engine to run them");
}

/// The steps of two chains, between which a difference of almost equal numbers loses the signal.
#[test]
fn mixed_finds_the_nodes_that_lose_the_signal() {
    let chain = |from: &str, to: &str| {
        let step = |i: usize| {
            let (a, b) =
                (format!("{to}{i}"), if i == 0 { from.to_owned() } else { format!("{to}{}", i - 1) });
            format!("{a} = {}({b})", ["Tanh", "Neg", "Abs", "Sin"][i % 4])
        };
        (0..16).map(step).collect::<Vec<_>>().join(" ")
    };
    let plain = |from: &str| {
        let (a, b) = (chain("x", "a"), chain("q", "b"));
        format!("{a} p = Add(a15, big) q = Sub(p, big) {b} y = Neg({from})")
    };
    let graph = |nodes: String| {
        format!("g (float[N,4] x, bool c) => (float[N,4] y) <float big = {{20000}}> {{ {nodes} }}")
    };
    let in_body = format!(
        "{} y = If(c) <then_branch = t () => (float[N,4] r) {{ p = Add(a15, big) q = Sub(p, big) {} r = Neg(b15) }},
             else_branch = e () => (float[N,4] s) {{ s = Neg(a15) }}>",
        chain("x", "a"),
        chain("q", "b")
    );
    for source in [graph(plain("b15")), graph(in_body)] {
        let original = inferred(model(&source));
        let samples = Inputs { graph: &original.graph, scale: 1.0 };
        let tools = Tools { samples: Some(&samples), ..tools() };
        let run = |options: &str| {
            let mut changed = original.clone();
            let report = run_pass_with(pass(options), &mut changed, tools);
            let step = &report.steps[0];
            (step.figure("SNR in dB").unwrap(), step.count("nodes converted"), changed)
        };
        let (lost, all, _) = run("");
        assert!(lost < 10.0, "{lost}");
        let (kept, most, changed) = run("to = \"mixed\"\nmin_snr = 50.0");
        assert!(kept >= 50.0 && (2..=4).contains(&(all - most)), "{kept} {most} {all}");
        assert!(snr(&original, &changed) > 45.0);
        assert_eq!(dtype(&changed, "a3"), DataType::Float16);
    }
}

/// Models that run in ways which the engine or their declaration do not promise.
#[test]
fn converts_models_that_do_not_run_as_they_are_observed() {
    let table = numbers(36, 1);
    for (io, nodes) in [
        // ONNX Runtime folds the table, unless its values are observed. Then it moves the transpose below the cubic
        // resize, which it cannot run.
        (
            format!(
                "(float[N,4,2,2] x) => (float[N,4,2,2] y) <float[1,3,3,4] table = {{{table}}}, int64[4] sizes = {{1,4,2,2}}>"
            ),
            "t = Transpose<perm = [0,3,1,2]>(table)
             r = Resize<mode = \"cubic\", coordinate_transformation_mode = \"half_pixel\">(t, , , sizes)
             y = Add(x, r)",
        ),
        // The batch is fixed, although its size is declared as open.
        (
            "(float[N,4] x) => (float[1,4] y) <int64[2] one = {1,4}>".to_owned(),
            "h = Reshape(x, one) y = Exp(h)",
        ),
    ] {
        let mut changed = inferred(model(&format!("g {io} {{ {nodes} }}")));
        let samples = Inputs { graph: &changed.graph.clone(), scale: 1.0 };
        let report =
            run_pass_with(pass("to = \"mixed\""), &mut changed, Tools { samples: Some(&samples), ..tools() });
        let snr = report.steps[0].figure("SNR in dB").unwrap();
        assert!((50.0..100.0).contains(&snr), "{snr}");
    }
}

/// `float16` counts up to 2048.
#[test]
fn sizes_and_constants_stay_in_float() {
    let original = inferred(model(
        "g (float[N,2051] x) => (float[2051,N] y, float[N,2051] z)
            <int64[1] k = {1}, float[1] half = {0.5}, int64[1] open = {-1}, float[1] c = {3}> {
            s = Shape<start = 1>(x) f = Cast<to = 1>(s) h = Mul(f, half) g = Add(h, h) i = Cast<to = 7>(g)
            t = Concat<axis = 0>(i, open) y = Reshape(x, t) r = Sqrt(c) m = Mul(x, r) z = Neg(m) }",
    ));
    let mut changed = original.clone();
    run_pass_with(pass(""), &mut changed, tools());
    assert!(snr(&original, &changed) > 60.0);
    let types = ["f", "h", "g", "r", "m"].map(|name| dtype(&changed, name));
    assert_eq!(types, [[DataType::Float; 4].as_slice(), &[DataType::Float16]].concat()[..]);
}

#[test]
fn dequantized_weights_have_the_type_of_their_reader() {
    let weights = ["1"; 16].join(",");
    let original = inferred(model_at(
        &format!(
            "g (float[N,4] x) => (float[N,4] y) <int8[4,4] q = {{{weights}}}, float s = {{0.5}}> {{
                w = DequantizeLinear(q, s) m = MatMul(x, w) y = Neg(m) }}"
        ),
        21,
    ));
    let mut changed = original.clone();
    run_pass_with(pass(""), &mut changed, tools());
    assert_eq!([dtype(&changed, "w"), dtype(&changed, "m")], [DataType::Float16; 2]);
    // The engine fuses both forms, and rounds activations to eight bits there.
    let feeds = Inputs { graph: &original.graph, scale: 1.0 }.batch(0..4).unwrap();
    let run = |model: &Model| {
        let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let outputs = tools().engine.unwrap().load(model, Setting::DEPLOYED).unwrap().run(&feeds).unwrap();
        outputs[0].to_f64().unwrap()
    };
    // Inputs and outputs of at most 2 are rounded to 11 bits; a rounded input may move its number of eight bits.
    let limit = 2.0 * (0.5_f64.powi(11) + 0.5_f64.powi(8));
    assert!(run(&original).iter().zip(run(&changed)).all(|(a, b)| (a - b).abs() <= limit));
}

/// The signal is that of an engine that computes in the new type.
#[test]
fn rounds_every_value_of_the_new_type() {
    let source =
        "g (float[N,4] x) => (float[N,4] y) <float[4] k = {0.1, 0.2, 0.3, 0.4}> { a = Mul(x, k) y = Neg(a) }";
    let original = inferred(model(source));
    let plan = Plan::new(&original.graph, Format::of(Precision::Fp16), &[]);
    let types = plan.types(&original.graph, &plan.eligible(), true);
    let rounded = search::rounded(&original, &types, DataType::Float16).unwrap();
    let x = [0.1_f32, 0.7, -3.3, 1e-3];
    let feed = Tensor::from_slice(&[1, 4], &x).unwrap();
    let y = tools().engine.unwrap().load(&rounded, Setting::DEPLOYED).unwrap().run(&[("x", &feed)]).unwrap();
    let round = |v: f64| Tensor::from_f64(DataType::Float16, &[], &[v]).unwrap().single().unwrap();
    let expected = [0.1, 0.2, 0.3, 0.4].iter().zip(x).map(|(k, x)| {
        // Products of two halves are exact in float.
        -round(round(*k) * round(f64::from(x)))
    });
    assert_eq!(y[0].to_f64().unwrap(), expected.collect::<Vec<_>>());
}

#[test]
fn changes_the_types_of_inputs_and_outputs_on_request() {
    let mut changed = inferred(read_fixture("digits-cnn.onnx"));
    let report = run_pass_with(pass("keep_io = false"), &mut changed, Tools::default());
    assert_eq!(casts(&changed), 0);
    let changes: Vec<_> = report.interface().map(ToString::to_string).collect();
    let names: Vec<_> = changed.graph.inputs().iter().chain(changed.graph.outputs()).collect();
    assert!(names.iter().all(|&&v| changed.graph.value(v).fact.dtype() == Some(DataType::Float16)));
    assert!(changes.len() == 1 && changes[0].ends_with("became float16"), "{changes:?}");
}

#[test]
fn rejects_options_out_of_range() {
    for (options, why) in [
        ("margin = 0.5", "`margin` is a factor from 1 to 10000, not 0.5"),
        ("min_snr = -3.0", "`min_snr` is a positive number of dB, not -3"),
    ] {
        assert_eq!(pass(options).validate(), Err(why.to_owned()));
    }
}

#[test]
fn products_over_batches_stay_in_float() {
    // The engine crashes on the first four of these in float16.
    for (perm, is_float) in [
        ("1,0,2", true),
        ("1,2,0", true),
        ("1,2,0,3", true),
        ("1,2,3,0", true),
        ("0,2,1", false),
        ("2,0,1", false),
    ] {
        let rank = perm.split(',').count();
        let shape = &["8", "8", "8", "8"][..rank].join(",");
        let source = format!(
            "g (float[{shape}] x) => (float[{shape}] y) <float[8,8] w = {{{}}}> {{
                r = Tanh(x) t = Transpose<perm = [{perm}]>(r) y = MatMul(t, w) }}",
            numbers(64, 1)
        );
        let original = model(&source);
        let (changed, report) = converted(original.clone(), "");
        assert_eq!(dtype(&changed, "w") == DataType::Float, is_float, "{perm}");
        let both = [
            "ONNX Runtime's CPU does not run MatMul in float16",
            "ONNX Runtime's CPU does not run Transpose in float16",
        ];
        assert_eq!(declined(&report) == both, is_float, "{perm}");
        assert!(snr(&original, &changed) > 40.0, "{perm}");
    }
    // The engine folds the cast of a matrix into it.
    let source = format!(
        "g (float[8,8,8] x) => (float[8,8,8] y) <double[8,8] w = {{{}}}> {{
            c = Cast<to = 1>(w) t = Transpose<perm = [1,0,2]>(x) y = MatMul(t, c) }}",
        numbers(64, 1)
    );
    let original = model(&source);
    let (changed, _) = converted(original.clone(), "");
    assert_eq!(dtype(&changed, "t"), DataType::Float);
    assert!(snr(&original, &changed) > 40.0);
}
