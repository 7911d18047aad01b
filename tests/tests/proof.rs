//! The verdicts of the proof: right rewrites of small models are accepted, wrong ones are not, and outputs that
//! cannot be compared are not proven.

use crate::support::{after, bytes, engine, root};
use fastrand::Rng;
use pare_graph::{Model, Patch, Tensor, onnx, text::parse_graph};
use pare_runtime::{ModelSource, Outcome, ProofOptions, SampleSet, prove};

fn read(name: &str) -> Model {
    let path = root().join(format!("fixtures/cases/{name}.onnx"));
    let mut model = onnx::read(path, &onnx::ReadOptions::default()).unwrap();
    model.infer().unwrap();
    model
}

/// A model in textual syntax, in which `float[2,3] %w` is replaced by an initializer of random numbers.
fn model(text: &str) -> Model {
    let mut rng = Rng::with_seed(1);
    let mut parts = text.split('%');
    let mut full = parts.next().unwrap().to_owned();
    for part in parts {
        let name: String = part.chars().take_while(char::is_ascii_alphanumeric).collect();
        let shape = full.rsplit('[').next().unwrap().trim_end().trim_end_matches(']');
        let sizes: Vec<usize> = shape.split(',').map(|n| n.trim().parse().unwrap()).collect();
        let fan_in = sizes[0] as f64;
        let mut draw = || format!("{:.6}", 2.0 * (rng.f64() - 0.5) / fan_in.sqrt());
        let values: Vec<_> = (0..sizes.iter().product()).map(|_| draw()).collect();
        full += &format!("{name} = {{{}}}{}", values.join(","), &part[name.len()..]);
    }
    let mut model = Model::of(parse_graph(&full, 17).unwrap());
    model.infer().unwrap();
    model
}

/// The verdict on two models, on the samples of `pare verify`.
fn verdict(original: &Model, candidate: &Model) -> Outcome {
    let [a, b] = [original, candidate].map(|model| ModelSource::bytes(bytes(model).unwrap()));
    let mut samples = SampleSet::for_model(original, 0);
    prove(&**engine(), &a, &b, samples.batches(32), &ProofOptions::default()).unwrap().outcome
}

/// The verdict on the result of `safe`, which changes the model.
fn of_safe(original: &Model) -> Outcome {
    let (result, report) = after(&"safe".parse().unwrap(), original).unwrap();
    assert!(report.patches() > 0, "nothing was rewritten");
    verdict(original, &result)
}

/// The model with the last floating-point initializer of at least two elements multiplied by `factor`.
fn scaled(model: &Model, factor: f64) -> Model {
    let mut changed = model.clone();
    let id = changed
        .graph
        .initializers()
        .into_iter()
        .rfind(|&id| model.graph.value(id).tensor().is_some_and(|t| t.dtype().is_float() && t.len() > 1))
        .unwrap();
    let tensor = model.graph.value(id).tensor().unwrap();
    let values: Vec<_> = tensor.to_f64().unwrap().iter().map(|v| v * factor).collect();
    let mut patch = Patch::anchored(model.graph.nodes()[0]);
    patch.set_data(id, Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).unwrap());
    changed.graph.apply(patch).unwrap();
    changed
}

/// Ends that amplify rounding errors, or leave one number per run.
const AMPLIFYING: [(&str, &str); 6] = [
    (
        "critic",
        "g (float[N,16] x) => (y) <float[16] %m, float[16] %s, float[16,32] %a, float[32,1] %b> {
            c = Sub(x, m) d = Mul(c, s) h = MatMul(d, a) r = Tanh(h) y = MatMul(r, b) }",
    ),
    (
        "exponential",
        "g (float[N,24] x) => (y) <float[24] %s, float[24,8] %w, float[8] %b, float[1] k = {9}> {
            d = Mul(x, s) h = MatMul(d, w) t = Add(h, b) u = Mul(t, k) y = Exp(u) }",
    ),
    (
        "reciprocal",
        "g (float[N,24] x) => (y) <float[24] %s, float[24,8] %w, float[8] %b> {
            d = Mul(x, s) h = MatMul(d, w) t = Add(h, b) y = Reciprocal(t) }",
    ),
    (
        "softmax of 100 times the similarity",
        "g (float[N,24] x) => (y) <float[24,24] %w, float[24,6] %v, float[1] k = {100}> {
            h = MatMul(x, w) n = ReduceL2<axes = [-1]>(h) u = Div(h, n) s = MatMul(u, v) t = Mul(s, k)
            y = Softmax<axis = -1>(t) }",
    ),
    (
        "image to uint8",
        "g (float[N,3,8,8] x) => (uint8[N,3,6,6] y)
            <float[3,3,3,3] %w, float[3,1,1] %b, float k = {255}, float low = {0}, float high = {255}> {
            h = Conv(x, w) t = Add(h, b) u = Mul(t, k) c = Clip(u, low, high) y = Cast<to = 2>(c) }",
    ),
    (
        "integers behind a scale",
        "g (float[N,16] x) => (int32[N,4] y) <float[16] %s, float[16,4] %w, float[1] k = {1000}> {
            d = Mul(x, s) h = MatMul(d, w) t = Mul(h, k) f = Floor(t) y = Cast<to = 6>(f) }",
    ),
];

#[test]
fn accepts_right_rewrites_of_small_models() {
    for name in ["fa_log", "fa_scaler_logreg", "fa_two_linear_one"] {
        assert_eq!(of_safe(&read(name)), Outcome::Equal, "{name}");
    }
    for (name, text) in AMPLIFYING {
        assert_eq!(of_safe(&model(text)), Outcome::Equal, "{name}");
    }
}

#[test]
fn refuses_wrong_rewrites_of_the_same_models() {
    let models = AMPLIFYING.map(|(name, text)| (name, model(text)));
    let cases = ["fa_log", "fa_scaler_logreg", "fa_two_linear_one"].map(|name| (name, read(name)));
    for (name, original) in models.into_iter().chain(cases) {
        let outcome = verdict(&original, &scaled(&original, 1.01));
        assert!(matches!(outcome, Outcome::Differs { .. }), "{name}: {outcome:?}");
    }
}

fn unproven(outcome: Outcome) -> String {
    match outcome {
        Outcome::Unproven { why } => why,
        other => format!("{other:?}"),
    }
}

#[test]
fn random_outputs_are_not_proven() {
    let random = "is random: equal inputs give different outputs";
    assert_eq!(unproven(of_safe(&read("fa_random"))), format!("`add3` {random}"));
    for draw in [
        "r = RandomUniformLike(i) y = Add(i, r)",
        "p = Sigmoid(i) r = Bernoulli(p) y = Mul(i, r)",
        "h, mask = Dropout(i, half, train) y = Add(h, i)",
    ] {
        let text = format!(
            "g (float[N,8] x) => (float[N,8] y) <float half = {{0.5}}, bool train = {{1}}> {{ i = Identity(x) {draw} }}"
        );
        assert_eq!(unproven(of_safe(&model(&text))), format!("`y` {random}"), "{draw}");
    }
}

#[test]
fn other_outputs_of_random_models_are_compared() {
    let text = "g (float[N,8] x) => (float[N,8] y, float[N,4] z) <float[8,4] %w> {
        r = RandomNormalLike(x) y = Add(x, r) z = MatMul(x, w) }";
    let original = model(text);
    let outcome = verdict(&original, &scaled(&original, 1.01));
    assert!(matches!(&outcome, Outcome::Differs { output, .. } if output == "z"), "{outcome:?}");
}

#[test]
fn outputs_without_information_are_not_proven() {
    assert_eq!(unproven(of_safe(&read("vacuous_all_nan"))), "`log6` is NaN or infinite in every run");
    let cases = [
        ("a = Neg(s) y = Sqrt(a)", "`y` is NaN or infinite in every run"),
        ("a = Div(s, zero) y = Abs(a)", "`y` is NaN or infinite in every run"),
        ("y = Slice(s, start, start)", "`y` has no elements in every run"),
    ];
    for (body, why) in cases {
        let text = format!(
            "g (float[N,8] x) => (float[N,k] y) <float one = {{1}}, float zero = {{0}}, int64[1] start = {{0}}> {{
                i = Identity(x) q = Mul(i, i) s = Add(q, one) {body} }}"
        );
        assert_eq!(unproven(of_safe(&model(&text))), why, "{body}");
    }
}

#[test]
fn noise_as_large_as_the_signal_is_not_proven() {
    let original = read("vacuous_bn_training");
    let why = unproven(verdict(&original, &scaled(&original, 1.001)));
    assert!(why.starts_with("rounding changes `batchnormalization3` as much as a difference would"), "{why}");
}

/// `log(softmax(x))` is -∞ where single precision underflows; `LogSoftmax` is not. A candidate that is wrong at
/// the finite elements is refused nevertheless.
/// The sine of what `safe` folds, times a factor, and what is selected by it.
fn selection(factor: &str, selected: &str) -> Model {
    model(&format!(
        "g (float[N,16] x) => (y) <float[16,8] %w, float[8] %b, float[1] k = {{{factor}}}, float zero = {{0}}, int64[1] four = {{4}}> {{
            h = MatMul(x, w) a = Add(h, b) u = Mul(a, k) s = Sin(u) {selected} }}"
    ))
}

#[test]
fn selections_that_rounding_decides_are_not_proven() {
    for selected in [
        "c = Greater(s, zero) y = Compress(s, c)",
        "v, i = TopK<axis = -1>(s, four) y = GatherElements<axis = -1>(s, i)",
    ] {
        let smooth = selection("3", selected);
        assert_eq!(of_safe(&smooth), Outcome::Equal, "{selected}");
        let outcome = verdict(&smooth, &scaled(&smooth, 1.01));
        assert!(matches!(outcome, Outcome::Differs { .. }), "{selected}: {outcome:?}");
        // The sine of hundreds of millions of radians in single precision.
        let why = unproven(of_safe(&selection("300000000", selected)));
        assert!(why.starts_with("rounding changes "), "{why}");
        assert!(why.ends_with(" values of `y` arbitrarily"), "{why}");
    }
}

/// Keys that are two epsilons apart: operands off by one rounding hardly change their order, a few more may.
#[test]
fn an_order_that_only_the_candidate_changes_is_examined() {
    let ordered = |first: f64, second: f64| {
        model(&format!(
            "g (float[512,1] x) => (y) <float[2] w = {{{first:.12}, {second:.12}}}, float[2] boxes = {{100, 200}}, int64[1] two = {{2}}, int64[2] shape = {{512, 2}}> {{
                each = Expand(w, shape) keys = Mul(x, each) v, i = TopK<axis = -1>(keys, two) y = Gather(boxes, i) }}"
        ))
    };
    let next = 1.0 + 2.0 * f64::from(f32::EPSILON);
    let why = unproven(verdict(&ordered(1.0, next), &ordered(next, 1.0)));
    assert!(why.ends_with(" values of `y` arbitrarily"), "{why}");
    let outcome = verdict(&ordered(1.0, 1.001), &ordered(1.001, 1.0));
    assert!(matches!(outcome, Outcome::Differs { .. }), "{outcome:?}");
}

#[test]
fn elements_nearer_to_double_precision_than_those_of_the_original_are_right() {
    let original = |text: &str| model(&format!("g (float[5,7,11] x) => (y) {{ {text} }}"));
    for axis in 0..3 {
        let written = format!("p = Softmax<axis = {axis}>(x) y = Log(p)");
        assert_eq!(of_safe(&original(&written)), Outcome::Equal, "{axis}");
        let wrong = original(&format!("y = LogSoftmax<axis = {}>(x)", (axis + 1) % 3));
        assert!(matches!(verdict(&original(&written), &wrong), Outcome::Differs { .. }), "{axis}");
    }
    // A bound of -104 changes only the elements that are -∞ in the original, and is wrong there.
    let clipped = "low = Constant<value_float = -104.0>() l = LogSoftmax<axis = 2>(x) y = Max(l, low)";
    let infinite = original("p = Softmax<axis = 2>(x) y = Log(p)");
    assert!(matches!(verdict(&infinite, &original(clipped)), Outcome::Differs { .. }));
    let chain = original("p = Softmax(x) l = Log(p) e = Exp(l) y = Log(e)");
    assert_eq!(of_safe(&chain), Outcome::Equal);
}

/// Nested softmaxes leave differences that single precision rounds to ties, of which `ArgMax` takes the first.
#[test]
fn integers_equal_to_those_of_double_precision_are_right() {
    let original = |text: &str| model(&format!("g (float[5,7,11] x) => (y) {{ {text} }}"));
    let outer = |inner: usize, outer: usize| {
        original(&format!(
            "p = Softmax<axis = {inner}>(x) q = Softmax<axis = {outer}>(p) y = ArgMax<axis = {outer}>(q)"
        ))
    };
    for (a, b) in [(1, 0), (0, 1), (2, 1), (1, 1)] {
        assert_eq!(of_safe(&outer(a, b)), Outcome::Equal, "{a} {b}");
    }
    let wrong = original("p = Softmax<axis = 1>(x) y = ArgMin<axis = 0>(p)");
    assert!(matches!(verdict(&outer(1, 0), &wrong), Outcome::Differs { .. }));
}
