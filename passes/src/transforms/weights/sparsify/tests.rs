//! Budgets, patterns and refits of `sparsify`.

use super::*;
use crate::analysis::weighted_layers::{NameFilter, density};
use crate::{
    analysis::evaluation::HeldOut,
    framework::{
        Tools,
        testing::{check, model, numbers, run_pass, run_pass_with, tools},
    },
};
use pare_graph::{EvaluateError, Graph, Samples, Tensor};
use std::ops::Range;

/// Correlated samples of `x`: their number and shape.
struct Inputs(usize, Vec<usize>);

impl Samples for Inputs {
    fn len(&self) -> usize {
        self.0
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let size: usize = self.1.iter().product();
        let mut values = vec![];
        for sample in range.clone() {
            let mut rng = fastrand::Rng::with_seed(sample as u64);
            let common: Vec<f32> = (0..4).map(|_| rng.f32()).collect();
            values.extend((0..size).map(|k| common[k % 4] + common[(k / 2) % 4] + 0.3 * rng.f32() - 0.5));
        }
        let shape = [&[range.len()], &self.1[..]].concat();
        Ok(vec![("x".into(), Tensor::from_slice(&shape, &values).unwrap())])
    }
}

/// Two convolutions with a ReLU between them, and a classifier.
fn network() -> String {
    let [a, b, c] = [(8 * 4 * 9, 1), (8 * 8 * 9, 2), (8 * 5, 3)].map(|(count, seed)| numbers(count, seed));
    format!(
        "g (float[N,4,6,6] x) => (float[N,5] y)
         <float[8,4,3,3] a = {{{a}}}, float[8] p = {{{p}}}, float[8,8,3,3] b = {{{b}}}, float[8] q = {{{p}}},
          float[8,5] c = {{{c}}}> {{
            s = Conv<pads = [1,1,1,1]>(x, a, p) t = Relu(s) u = Conv(t, b, q) v = Relu(u)
            w = GlobalAveragePool(v) z = Flatten(w) y = MatMul(z, c) }}",
        p = numbers(8, 4)
    )
}

fn pass(options: &str) -> Sparsify {
    toml::from_str(options).unwrap()
}

fn kept(graph: &Graph, name: &str) -> Vec<bool> {
    let tensor = graph.value(graph.find(name).unwrap()).tensor().unwrap();
    tensor.to_f64().unwrap().into_iter().map(|v| v != 0.0).collect()
}

/// The network after the pass, and its drift on samples outside the fit.
fn after(options: &str) -> (Model, f64) {
    let original = model(&network());
    let mut inferred = original.clone();
    inferred.infer().unwrap();
    let samples = Inputs(400, vec![4, 6, 6]);
    let tools = Tools { samples: Some(&samples), ..tools() };
    let mut changed = original.clone();
    run_pass_with(pass(&format!("{options}\ncascade = false")), &mut changed, tools);
    changed.infer().unwrap();
    let more = Inputs(600, vec![4, 6, 6]);
    let held_out = HeldOut::new(Tools { samples: Some(&more), ..tools }, &inferred, 400..600).unwrap();
    let drift = held_out.drift(&changed).unwrap();
    (changed, drift)
}

fn share(model: &Model) -> f64 {
    let mut cx = crate::framework::testing::context(Tools::default());
    density(&model.graph, &layers(model, NameFilter::default(), &mut cx).unwrap())
}

#[test]
fn removes_the_smallest_weights_without_changing_others() {
    check(
        pass("ratio = 0.5"),
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {0.1, -0.3, 0.2, -0.01}, float[2] b = {1, 2}> {
            y = Gemm<alpha = 3.0>(x, w, b) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {0, -0.3, 0.2, 0}, float[2] b = {1, 2}> {
            y = Gemm<alpha = 3.0>(x, w, b) }",
    );
}

#[test]
fn removes_neurons_without_inputs() {
    check(
        pass("ratio = 0.34"),
        "g (float[N,2] x) => (float[N,1] y)
            <float[2,2] w = {1, 0.01, 2, 0.02}, float[2] b = {0.5, 2}, float[2,1] v = {3, 4}, float[1] c = {1}> {
            h = Gemm(x, w, b) a = Relu(h) y = Gemm(a, v, c) }",
        "g (float[N,2] x) => (float[N,1] y)
            <float[2,1] w = {1, 2}, float[1] b = {0.5}, float[1,1] v = {3}, float[1] c = {9}> {
            h = Gemm(x, w, b) a = Relu(h) y = Gemm(a, v, c) }",
    );
}

#[test]
fn threshold_is_in_standard_deviations_of_each_layer() {
    // Standard deviations of 2 and of 0.2.
    check(
        pass("threshold = 0.9"),
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] v = {2, -2, 1.7, -2.3}, float[2,2] w = {0.2, -0.2, 0.1, -0.3}> {
            h = MatMul(x, v) y = MatMul(h, w) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] v = {2, -2, 0, -2.3}, float[2,2] w = {0.2, -0.2, 0, -0.3}> {
            h = MatMul(x, v) y = MatMul(h, w) }",
    );
}

#[test]
fn keeps_two_of_four_channels_at_every_tap() {
    for options in ["pattern = \"2:4\"\nrefit = \"layer\"", "pattern = \"2:4\"\nexact = true"] {
        let (changed, _) = after(options);
        for (name, channels) in [("a", 4), ("b", 8)] {
            let kept = kept(&changed.graph, name);
            for row in kept.chunks(channels * 9) {
                for tap in 0..9 {
                    for group in 0..channels / 4 {
                        let remaining = (0..4).filter(|c| row[(group * 4 + c) * 9 + tap]).count();
                        assert_eq!(remaining, 2, "{name}");
                    }
                }
            }
        }
        assert_eq!(share(&changed), 0.5);
    }
}

#[test]
fn removes_entire_blocks() {
    let (changed, _) = after("pattern = \"block4\"\nratio = 0.5\nscope = \"layer\"");
    for row in kept(&changed.graph, "b").chunks(72) {
        assert!(row.chunks(4).all(|b| b.iter().all(|k| *k) || b.iter().all(|k| !*k)));
    }
    assert!((share(&changed) - 0.5).abs() < 0.02);
}

#[test]
fn refits_reduce_the_drift() {
    let drift = |options: &str| after(options).1;
    let none = drift("ratio = 0.6\ncriterion = \"magnitude\"\nrefit = \"none\"\nscope = \"layer\"");
    let layer = drift("ratio = 0.6\ncriterion = \"magnitude\"\nrefit = \"layer\"\nscope = \"layer\"");
    let obs = drift("ratio = 0.6\nrefit = \"layer\"\nscope = \"layer\"");
    let sequential = drift("ratio = 0.6");
    assert!(layer < none && obs < layer && sequential < obs, "{none} {layer} {obs} {sequential}");
}

#[test]
fn every_criterion_and_scope_meets_the_ratio() {
    for criterion in ["magnitude", "wanda", "obd", "obs", "insensitivity", "synflow", "random"] {
        for scope in ["drift", "global", "layer", "row"] {
            let (changed, drift) = after(&format!(
                "ratio = 0.5\ncriterion = \"{criterion}\"\nscope = \"{scope}\"\nrefit = \"layer\""
            ));
            assert!((share(&changed) - 0.5).abs() < 0.02, "{criterion} {scope}: {}", share(&changed));
            assert!(drift.is_finite());
        }
    }
}

#[test]
fn insensitivity_removes_more_with_a_larger_tolerance() {
    let (strict, _) = after("criterion = \"insensitivity\"\ntolerance = 0.001\nrefit = \"none\"");
    let (lax, _) = after("criterion = \"insensitivity\"\ntolerance = 0.2\nrefit = \"none\"");
    assert!(share(&lax) < share(&strict) && share(&strict) < 1.0, "{} {}", share(&lax), share(&strict));
}

/// `R = 1ᵀ|W₂||W₁|1`; the score of a weight is the part of `R` that flows through it.
#[test]
fn synflow_scores_the_flow_through_a_weight() {
    let source =
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] v = {1, -2, 3, 4}, float[2,2] w = {1, 0.5, -1, 2}> {
        h = MatMul(x, v) r = Relu(h) y = MatMul(r, w) }";
    let mut changed = model(source);
    // Scores of v: 1·1.5, 2·3, 3·1.5, 4·3; of w: 1·4, 0.5·4, 1·6, 2·6. After the smallest is removed, the
    // next score is 1.5.
    let pass = pass("ratio = 0.25\ncriterion = \"synflow\"\nscope = \"global\"\nrefit = \"none\"");
    run_pass_with(pass, &mut changed, tools());
    assert_eq!(kept(&changed.graph, "v"), [false, true, true, true]);
    assert_eq!(kept(&changed.graph, "w"), [true, false, true, true]);
}

#[test]
fn rejects_inconsistent_options() {
    for (options, why) in [
        ("ratio = 1.5", "`ratio` is a share between 0 and 1, not 1.5"),
        (
            "ratio = 0.5\nthreshold = 1.0",
            "a `threshold` of magnitudes excludes `ratio`, `scope` and `criterion`",
        ),
        ("pattern = \"2:4\"\nratio = 0.5", "`2:4` excludes `ratio`, `threshold` and `scope`"),
        ("exact = true\ncriterion = \"wanda\"\nratio = 0.5", "`exact` needs `criterion=obs`"),
    ] {
        assert_eq!(pass(options).validate(), Err(why.to_owned()));
    }
    assert!(toml::from_str::<Sparsify>("pattern = \"4:2\"").is_err());
}

#[test]
fn skips_shared_weights_and_indivisible_channels() {
    let source =
        "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}> {
        a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, v) }";
    let mut changed = model(source);
    let report = run_pass(pass("ratio = 0.5"), &mut changed);
    assert_eq!(report.steps.last().unwrap().declined.keys().collect::<Vec<_>>().len(), 1);
    assert_eq!(kept(&changed.graph, "w"), [true; 4]);
    assert_eq!(kept(&changed.graph, "v"), [false, false, true, true]);
    let report = run_pass(pass("pattern = \"2:4\""), &mut model(source));
    assert!(
        report
            .steps
            .last()
            .unwrap()
            .declined
            .keys()
            .any(|why| why == "`v` has 2 input channels, which 4 does not divide")
    );
}
