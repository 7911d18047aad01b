use super::*;
use crate::{
    analysis::calibration::entropy::entropy,
    framework::{
        Tools,
        testing::{self, check, model, read_fixture, run_pass_with, tools, try_pass},
    },
    transforms::layers::remove_activations::score::batch_norm_ratios,
};
use pare_graph::{EvaluateError, Samples, Tensor};
use std::ops::Range;

/// Random samples of one input.
struct RandomSamples {
    input: &'static str,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl RandomSamples {
    fn new(input: &'static str, shape: &[usize], count: usize, low: f32) -> Self {
        let mut rng = fastrand::Rng::with_seed(7);
        let total = count * shape.iter().product::<usize>();
        Self { input, shape: shape.to_vec(), values: (0..total).map(|_| low + 2.0 * rng.f32()).collect() }
    }
}

impl Samples for RandomSamples {
    fn len(&self) -> usize {
        self.values.len() / self.shape.iter().product::<usize>()
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let each: usize = self.shape.iter().product();
        let shape = [&[range.len()], &self.shape[..]].concat();
        let values = &self.values[range.start * each..range.end * each];
        Ok(vec![(self.input.into(), Tensor::from_slice(&shape, values).unwrap())])
    }
}

fn tools_with(samples: &dyn Samples) -> Tools<'_> {
    Tools { samples: Some(samples), ..tools() }
}

fn refusal(pass: RemoveActivations, source: &str, tools: Tools<'_>) -> String {
    try_pass(pass, &mut model(source), tools).unwrap_err().to_string()
}

/// Values of a model on all samples.
fn values(model: &Model, samples: &dyn Samples, wanted: &[&str]) -> Vec<Tensor> {
    let mut inferred = model.clone();
    inferred.infer().unwrap();
    let graph = &inferred.graph;
    let wanted: Vec<_> = wanted.iter().map(|name| graph.find(name).unwrap()).collect();
    let given = crate::analysis::calibration::open_inputs(graph);
    let mut probe = crate::analysis::calibration::Probe::new(tools(), &inferred, &given, &wanted).unwrap();
    probe.run(&samples.batch(0..samples.len()).unwrap()).unwrap()
}

fn ops(model: &Model) -> Vec<&str> {
    model.graph.nodes().iter().map(|&id| model.graph.node(id).op.as_str()).collect()
}

const CONSTANTS: &str = "float[3,2] w = {1,-2,0.5,1,3,-1}, float[3] b = {0.1,-0.3,0.4}, float[2,3] v = {1,2,-1,0.5,-1,1}, \
    float[2] d = {0.5,-0.5}, float[3] s = {0.1,0.5,-0.3}, float half = {0.5}, float one = {1}, float three = {3}, \
    float six = {6}, float zero = {0}, float root = {1.4142135}, float c = {0.044715}, float p = {0.7978846}, \
    float cube = {3}";

/// `v·f(w·x + b) + d`, with `f` as nodes from `z` to `a`.
fn network(nodes: &str) -> String {
    format!(
        "g (float[N,2] x) => (float[N,2] y) <{CONSTANTS}> {{
            z = Gemm<transB = 1>(x, w, b) {nodes} y = Gemm<transB = 1>(a, v, d) }}"
    )
}

#[test]
fn reports_why_nothing_is_removed() {
    let samples = RandomSamples::new("x", &[2], 200, -1.0);
    let by = |criterion, below| RemoveActivations {
        criterion: Some(criterion),
        below,
        count: Some(1),
        ..RemoveActivations::default()
    };
    for (pass, reason) in [
        (by(ActivationCriterion::Slope, None), "no activation has a score by `slope`"),
        (by(ActivationCriterion::Entropy, Some(1e-9)), "the lowest entropy is "),
    ] {
        let original = model(&network("a = Tanh(z)"));
        let mut changed = original.clone();
        let report = run_pass_with(pass, &mut changed, tools_with(&samples));
        assert_eq!(ops(&changed), ["Gemm", "Tanh", "Gemm"], "{reason}");
        let declined: Vec<_> = report.steps.last().unwrap().declined.keys().collect();
        assert!(declined.iter().any(|why| why.starts_with(reason)), "{declined:?}");
    }
}

#[test]
fn replaces_each_activation_by_its_least_squares_line() {
    let samples = RandomSamples::new("x", &[2], 200, -1.0);
    for nodes in [
        "a = Relu(z)",
        "a = LeakyRelu<alpha = 0.3>(z)",
        "a = PRelu(z, s)",
        "a = Clip(z, zero, six)",
        "a = HardSwish(z)",
        "u = Add(z, three) q = Clip(u, zero, six) m = Mul(z, q) a = Div(m, six)",
        "u = Sigmoid(z) a = Mul(z, u)",
        "q = Div(z, root) e = Erf(q) u = Add(e, one) m = Mul(z, u) a = Mul(m, half)",
        "e = Pow(z, cube) k = Mul(e, c) q = Add(z, k) r = Mul(q, p) t = Tanh(r) u = Add(t, one) m = Mul(z, u)
            a = Mul(m, half)",
        "a = Elu(z)",
        "a = Tanh(z)",
    ] {
        let original = model(&network(nodes));
        let mut changed = original.clone();
        let pass = RemoveActivations { count: Some(1), refit: Some(false), ..RemoveActivations::default() };
        let report = run_pass_with(pass, &mut changed, tools_with(&samples));
        assert_eq!(ops(&changed), ["Gemm"], "{nodes}");
        let step = report.steps.last().unwrap();
        assert_eq!(step.count("activations removed"), 1);
        // Both matrices become one, and the composition is counted in the nested step.
        assert_eq!(step.count("layers composed"), 1, "{nodes}: {step:?}");

        // Four of five samples are fitted, the others are held out.
        let seen = values(&original, &samples, &["z", "a"]);
        let (z, a) = (seen[0].to_f64().unwrap(), seen[1].to_f64().unwrap());
        let column = |t: &[f64], c: usize| t.iter().skip(c).step_by(3).copied().collect::<Vec<_>>();
        let mean = |t: &[f64]| t[..160].iter().sum::<f64>() / 160.0;
        let line = |c: usize| {
            let (z, a) = (column(&z, c), column(&a, c));
            let (mz, ma) = (mean(&z), mean(&a));
            let product = |p: &[f64], mp: f64| (0..160).map(|i| (z[i] - mz) * (p[i] - mp)).sum::<f64>();
            let slope = product(&a, ma) / product(&z, mz);
            (slope, ma - slope * mz)
        };
        let lines = [line(0), line(1), line(2)];
        let (v, d) = ([[1.0, 2.0, -1.0], [0.5, -1.0, 1.0]], [0.5, -0.5]);
        let got = values(&changed, &samples, &["y"])[0].to_f64().unwrap();
        for i in 0..200 {
            for o in 0..2 {
                let term = |c: usize| v[o][c] * (lines[c].0 * z[i * 3 + c] + lines[c].1);
                let wanted = d[o] + (0..3).map(term).sum::<f64>();
                // f32 sums of numbers up to 10.
                assert!((got[i * 2 + o] - wanted).abs() < 2e-5, "{nodes}: {} {wanted}", got[i * 2 + o]);
            }
        }
    }
}

/// A sum whose first term is not produced by a layer.
const RESIDUAL: &str =
    "g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2,2,1,1] w = {1,-1,0.5,2}, float[2] b = {0.1,0.2},
        float[2,2,1,1] v = {1,2,-1,1}> {
    h = Conv(x, v) k = Sigmoid(h) m = Sin(h) p = Conv(k, w, b) z = Add(m, p) a = Relu(z) y = Abs(a) }";

#[test]
fn distributes_line_over_the_terms_of_a_sum() {
    let samples = RandomSamples::new("x", &[2, 3, 3], 64, -1.0);
    let mut changed = model(RESIDUAL);
    let names = vec!["a".into()];
    let pass = RemoveActivations { names, refit: Some(false), ..RemoveActivations::default() };
    run_pass_with(pass, &mut changed, tools_with(&samples));
    // Only the factor of the other term remains; there is no batch norm and no shift.
    assert_eq!(ops(&changed), ["Conv", "Sigmoid", "Sin", "Conv", "Mul", "Add", "Abs"]);
}

#[test]
fn refit_compensates_for_the_removed_activation_before_a_sum() {
    let samples = RandomSamples::new("x", &[2, 3, 3], 64, -1.0);
    let original = model(RESIDUAL);
    let wanted = values(&original, &samples, &["y"])[0].to_f64().unwrap();
    let error = |replacement, refit| {
        let mut changed = original.clone();
        let names = vec!["a".into()];
        let pass =
            RemoveActivations { names, replacement, refit: Some(refit), ..RemoveActivations::default() };
        run_pass_with(pass, &mut changed, tools_with(&samples));
        let got = values(&changed, &samples, &["y"])[0].to_f64().unwrap();
        wanted.iter().zip(&got).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
    };
    let identity = Some(Replacement::Identity);
    let (bare, fitted) = (error(identity, false), error(identity, true));
    let (line, both) = (error(None, false), error(None, true));
    assert!(fitted < 0.9 * bare && line < 0.9 * bare && both <= line, "{bare} {fitted} {line} {both}");
}

/// Units that are always active are already linear, so the composed layers compute the same.
#[test]
fn preserves_outputs_of_always_active_units() {
    let samples = RandomSamples::new("x", &[2, 5, 5], 64, 0.0);
    // The second convolution is padded and the first has a bias: the bias of the composite is a map.
    let source = "g (float[N,2,5,5] x) => (float[N,2,5,5] y) <float[6,2,1,1] w = {1,1,2,1,1,3,1,2,2,2,3,1},
            float[6] b = {1,1,1,1,1,1}, float[6,1,3,3] k = {1,1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1,1,
            1,1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1,1}, float[6] c = {1,1,1,1,1,1},
            float[2,6,1,1] v = {1,-1,1,0.5,-1,1,2,-1,0.5,1,1,-2}> {
        z = Conv(x, w, b) a = Relu(z) h = Conv<group = 6, pads = [1,1,1,1]>(a, k, c) e = Relu(h) y = Conv(e, v) }";
    let original = model(source);
    let wanted = values(&original, &samples, &["y"])[0].to_f64().unwrap();
    for refit in [false, true] {
        for criterion in [
            ActivationCriterion::Loss,
            ActivationCriterion::Entropy,
            ActivationCriterion::Tlc,
            ActivationCriterion::TlcAblation,
        ] {
            let mut changed = original.clone();
            let pass = RemoveActivations {
                max_drift: Some(1e-9),
                refit: Some(refit),
                criterion: Some(criterion),
                ..RemoveActivations::default()
            };
            let report = run_pass_with(pass, &mut changed, tools_with(&samples));
            assert_eq!(
                report.steps.last().unwrap().count("activations removed"),
                2,
                "{criterion:?}: {report:?}"
            );
            assert_eq!(ops(&changed).iter().filter(|&&op| op == "Conv").count(), 1, "{:?}", ops(&changed));
            let got = values(&changed, &samples, &["y"])[0].to_f64().unwrap();
            let most = wanted.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert!(wanted.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-5 * most));
        }
    }
}

#[test]
fn crops_composites_that_cost_more_than_both_layers() {
    let samples = RandomSamples::new("x", &[1, 9, 9], 64, -1.0);
    let mut changed = model(
        "g (float[N,1,9,9] x) => (float[N,1,9,9] y) <float[1,1,3,3] w = {1,2,3,2,4,6,3,6,9},
            float[1,1,3,3] v = {1,-1,1,-1,2,-1,1,-1,1}> {
            z = Conv<pads = [1,1,1,1]>(x, w) a = Tanh(z) y = Conv<pads = [1,1,1,1]>(a, v) }",
    );
    let pass = RemoveActivations { names: vec!["a".into()], crop: true, ..RemoveActivations::default() };
    let report = run_pass_with(pass, &mut changed, tools_with(&samples));
    assert_eq!(ops(&changed), ["Conv"]);
    let conv = changed.graph.at(changed.graph.nodes()[0]);
    assert_eq!(conv.input(1).unwrap().fixed_shape().unwrap(), [1, 1, 3, 3]);
    assert_eq!(report.steps.last().unwrap().count("layers composed"), 1, "{report:?}");
}

/// `y = A·x + B·h(x) + c`, where only layers follow.
#[test]
fn collapses_linear_end_into_one_matrix_per_start() {
    let numbers = |n: usize| {
        (0..n).map(|i| format!("{}", (i * 7 % 11) as f64 / 8.0 - 0.6)).collect::<Vec<_>>().join(",")
    };
    let source = format!(
        "g (float[N,4,6,6] x) => (float[N,2] y) <float[4,4,3,3] w = {{{}}}, float[4] b = {{1,2,-1,0.5}},
            float[4,4,3,3] v = {{{}}}, float[4,4,3,3] u = {{{}}}, float[4,2] g0 = {{{}}}> {{
            h = Conv<pads = [1,1,1,1]>(x, w, b) k = Sigmoid(h) p = Conv<pads = [1,1,1,1]>(k, v) a = Relu(p)
            q = Conv<pads = [1,1,1,1]>(a, u) z = Add(q, k) e = GlobalAveragePool(z) f = Flatten(e) y = MatMul(f, g0) }}",
        numbers(144),
        numbers(144),
        numbers(144),
        numbers(8)
    );
    let samples = RandomSamples::new("x", &[4, 6, 6], 64, -1.0);
    let original = model(&source);
    let mut changed = original.clone();
    let pass = RemoveActivations {
        names: vec!["a".into()],
        replacement: Some(Replacement::Identity),
        refit: Some(false),
        ..RemoveActivations::default()
    };
    run_pass_with(pass, &mut changed, tools_with(&samples));
    assert_eq!(ops(&changed), ["Conv", "Sigmoid", "Flatten", "Gemm"]);
    // The same model written without the activation.
    let wanted = model(&source.replace("a = Relu(p)", "a = Identity(p)"));
    let (wanted, got) = (values(&wanted, &samples, &["y"]), values(&changed, &samples, &["y"]));
    let (wanted, got) = (wanted[0].to_f64().unwrap(), got[0].to_f64().unwrap());
    let most = wanted.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert!(wanted.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-5 * most));
}

#[test]
fn removes_by_slope_without_samples() {
    check(
        RemoveActivations { below: Some(0.1), ..RemoveActivations::default() },
        "g (float[N,2,3,3] x) => (float[N,2,2,2] y) <float[2,1,1] a = {0.95,0.97}, float[2,1,1] b = {0.2,1}> {
            p = PRelu(x, a) h = MaxPool<kernel_shape = [2,2]>(p) q = PRelu(h, b) y = Neg(q) }",
        "g (float[N,2,3,3] x) => (float[N,2,2,2] y) <float[2,1,1] b = {0.2,1}> {
            h = MaxPool<kernel_shape = [2,2]>(x) q = PRelu(h, b) y = Neg(q) }",
    );
}

#[test]
fn computes_entropies_of_the_papers() {
    assert_eq!((entropy(0.0), entropy(0.5), entropy(1.0)), (0.0, 1.0, 0.0));
    assert!((entropy(0.25) - 0.811_278_124_459_132_8).abs() < 1e-15);
    let normed = model(
        "g (float[N,3,2] x) => (float[N,3,2] y) <float[3] g0 = {2,-0.5,0}, float[3] b = {1,1,-1}, float[3] m = {0,0,0},
            float[3] v = {1,1,1}> { z = BatchNormalization(x, g0, b, m, v) y = Relu(z) }",
    );
    assert_eq!(batch_norm_ratios(&normed.graph)["z"], [0.5, 2.0, f64::NEG_INFINITY]);
}

/// `tlc` uses the parameters of batch norms, which are folded before the search.
#[test]
fn reads_batch_norms_before_folding_them() {
    let source = |beta: &str| {
        format!(
            "g (float[N,2,3] x) => (float[N,2,3] y) <float[2,2,1] w = {{1,-1,0.5,2}}, float[2] g0 = {{1,1}},
                float[2] b = {{{beta}}}, float[2] m = {{0,0}}, float[2] v = {{1,1}}> {{
                h = Conv(x, w) z = BatchNormalization(h, g0, b, m, v) a = Relu(z) y = Conv(a, w) }}"
        )
    };
    let samples = RandomSamples::new("x", &[2, 3], 64, -1.0);
    let criterion = Some(ActivationCriterion::Tlc);
    let score = |beta: &str| {
        let pass = RemoveActivations { count: Some(1), criterion, ..RemoveActivations::default() };
        run_pass_with(pass, &mut model(&source(beta)), tools_with(&samples))
            .steps
            .last()
            .unwrap()
            .figure("tlc of `a`")
            .unwrap()
    };
    assert!((score("0,0") - 1.0).abs() < 1e-12);
    // Φ(1) = 0.8413…
    assert!((score("1,-1") - entropy(0.841_344_746_068_542_9)).abs() < 1e-6);
}

#[test]
fn stops_at_limits_and_reports_them() {
    let samples = RandomSamples::new("x", &[2], 200, -1.0);
    let mut changed = model(&network("a = Relu(z)"));
    let before = changed.clone();
    let pass = RemoveActivations { max_drift: Some(1e-6), ..RemoveActivations::default() };
    let report = run_pass_with(pass, &mut changed, tools_with(&samples));
    assert_eq!(changed.graph.node_count(), before.graph.node_count());
    let notes = &report.steps.last().unwrap().notes;
    assert!(notes.len() == 1 && notes[0].starts_with("`a` is kept: the drift of "), "{notes:?}");
}

#[test]
fn refusals_name_the_missing_prerequisite() {
    let samples = RandomSamples::new("x", &[2], 200, -1.0);
    let few = RandomSamples::new("x", &[2], 9, -1.0);
    let source = &network("a = Relu(z)");
    let one = || RemoveActivations { count: Some(1), ..RemoveActivations::default() };
    assert_eq!(
        refusal(RemoveActivations::default(), source, tools_with(&samples)),
        "`remove-activations`: it needs a target"
    );
    let pass = RemoveActivations { criterion: Some(ActivationCriterion::Entropy), ..one() };
    assert_eq!(
        refusal(pass, source, tools()),
        "`remove-activations`: it needs samples, and an engine to run them"
    );
    assert_eq!(refusal(one(), source, tools_with(&few)), "`remove-activations`: 9 samples are too few");
    let pass = RemoveActivations { names: vec!["relu*".into()], ..RemoveActivations::default() };
    assert_eq!(
        refusal(pass, source, tools_with(&samples)),
        "`remove-activations`: no activation can be removed or has a matching name"
    );
    assert_eq!(
        refusal(one(), &network("a = Neg(z)"), tools_with(&samples)),
        "`remove-activations`: there is no activation"
    );
    assert!(RemoveActivations { count: Some(0), ..one() }.validate().is_err());
}

#[test]
fn lines_with_refit_drift_less_than_identities_on_a_trained_network() {
    let original = read_fixture("digits-cnn.onnx");
    let samples = testing::samples("digits-calibration.npz", &original);
    let measured = |names: &[&str], replacement, refit| {
        let mut changed = original.clone();
        let names = names.iter().map(ToString::to_string).collect();
        let pass =
            RemoveActivations { names, replacement, refit: Some(refit), ..RemoveActivations::default() };
        run_pass_with(pass, &mut changed, tools_with(&samples)).steps.last().unwrap().figure("drift").unwrap()
    };
    for names in [&["*body.0/Relu", "*tail.2*"][..], &["*Relu_1"], &["*"]] {
        let identity = measured(names, Some(Replacement::Identity), false);
        let fitted = measured(names, None, true);
        assert!(fitted < 0.5 * identity, "{names:?}: {fitted} {identity}");
    }
}

#[test]
fn counts_the_layers_that_fold_linear_composed() {
    let mut changed = model(
        "g (float[N,2] x) => (float[N,2] y)
         <float[2,2] a = {1, 2, -3, 4}, float[2,2] b = {2, -1, 5, 3}, float[2,2] c = {-2, 1, 1, 3}> {
            h = MatMul(x, a) r = Relu(h) i = MatMul(r, b) s = Relu(i) y = MatMul(s, c) }",
    );
    let pass = RemoveActivations {
        names: vec!["*".into()],
        replacement: Some(Replacement::Identity),
        refit: Some(false),
        ..RemoveActivations::default()
    };
    let report = run_pass_with(pass, &mut changed, Tools::default());
    assert_eq!(changed.graph.node_count(), 1);
    // One composition replaces the chain of three.
    assert_eq!(report.steps.last().unwrap().count("layers composed"), 1);
}
