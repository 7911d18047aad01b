use super::*;
use crate::{
    analysis::{evaluation::HeldOut, timing::has_known_sizes},
    framework::testing::{model, model_at, tools},
};
use pare_graph::{EvaluateError, Model, Tensor};
use std::ops::Range;

/// The measures of the outputs of a graph, with the reasons.
fn chosen(source: &str, labelled: bool) -> Vec<(OutputMeasure, String)> {
    let mut model = model(source);
    model.infer().unwrap();
    let found = measures(&model.graph, labelled);
    found.outputs.into_iter().map(|output| (output.measure, output.why)).collect()
}

/// The measure of the only output of a graph with input `float[N,4] x`.
fn measure(output: &str, nodes: &str) -> OutputMeasure {
    chosen(&format!("g (float[N,4] x) => ({output}) {{ {nodes} }}"), false)[0].0
}

const LAST: OutputMeasure = OutputMeasure::Classes { axis: 1 };

#[test]
fn class_scores_need_evidence() {
    assert_eq!(measure("float[N,4] y", "y = Relu(x)"), OutputMeasure::Error);
    assert_eq!(measure("float[N,4] y", "y = Softmax(x)"), LAST);
    assert_eq!(measure("float[N,4] y", "z = LogSoftmax(x) y = Identity(z)"), LAST);
    let composed = "e = Exp(x) axes = Constant<value_ints = [1]>() s = ReduceSum(e, axes) y = Div(e, s)";
    assert_eq!(measure("float[N,4] y", composed), LAST);
    assert_eq!(measure("float[N,4] logits", "logits = Relu(x)"), OutputMeasure::CLASSES);
    assert_eq!(measure("float[N,4] out_probs", "out_probs = Relu(x)"), OutputMeasure::CLASSES);
    // One number cannot be the scores of classes.
    let one = "axes = Constant<value_ints = [1]>() score = ReduceSum(x, axes)";
    assert_eq!(measure("float[N,1] score", one), OutputMeasure::Error);
    // Each element of a sigmoid is a score by itself.
    assert_eq!(measure("float[N,4] scores", "scores = Sigmoid(x)"), OutputMeasure::Error);
}

#[test]
fn nodes_that_choose_among_classes_are_evidence() {
    let source = "g (float[N,4] x) => (float[N,4] y, int64[N] label) {
        y = Relu(x) label = ArgMax<axis = 1, keepdims = 0>(y) }";
    let [scores, label] = &chosen(source, false)[..] else { panic!() };
    assert_eq!((scores.0, scores.1.starts_with("ArgMax")), (LAST, true));
    assert_eq!((label.0, label.1.as_str()), (OutputMeasure::Exact, "it holds int64"));
    // Attention weights are read as weights.
    let weights = "g (float[N,4] x, float[4,4] v) => (float[N,4] w, float[N,4] y) {
        w = Softmax(x) y = MatMul(w, v) }";
    assert_eq!(chosen(weights, false)[0].0, OutputMeasure::Error);
}

#[test]
fn labels_belong_to_class_scores() {
    let one = "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }";
    assert_eq!(chosen(one, true)[0], (OutputMeasure::CLASSES, "the samples have labels".to_owned()));
    let sigmoid = "g (float[N,4] x) => (float[N,4] y) { y = Sigmoid(x) }";
    assert_eq!(chosen(sigmoid, true)[0].0, OutputMeasure::CLASSES);
    // Another output holds the scores.
    let two = "g (float[N,4] x) => (float[N,4] y, float[N,4] logits) { y = Relu(x) logits = Neg(x) }";
    let [features, logits] = &chosen(two, true)[..] else { panic!() };
    assert_eq!((features.0, logits.0), (OutputMeasure::Error, OutputMeasure::CLASSES));
}

#[test]
fn normalized_rows_are_embeddings() {
    let cosine = |nodes: &str| measure("float[N,4] y", nodes) == OutputMeasure::Cosine;
    assert!(cosine("y = LpNormalization<axis = -1, p = 2>(x)"));
    assert!(!cosine("y = LpNormalization<axis = -1, p = 1>(x)"));
    let axes = "axes = Constant<value_ints = [1]>()";
    // F.normalize: limited from below and expanded.
    assert!(cosine(&format!(
        "{axes} n = ReduceL2(x, axes) eps = Constant<value_float = 1e-12>() c = Clip(n, eps) s = Shape(x)
         e = Expand(c, s) y = Div(x, e)"
    )));
    assert!(cosine(&format!("{axes} q = Mul(x, x) s = ReduceSum(q, axes) r = Sqrt(s) y = Div(x, r)")));
    assert!(cosine(&format!(
        "{axes} two = Constant<value_float = 2.0>() q = Pow(x, two) s = ReduceSum(q, axes)
         eps = Constant<value_float = 1e-6>() a = Add(s, eps) r = Sqrt(a) i = Reciprocal(r) y = Mul(x, i)"
    )));
    // The length of other rows, and the mean of squares along another axis.
    assert!(!cosine(&format!("{axes} t = Relu(x) n = ReduceL2(t, axes) y = Div(x, n)")));
    assert!(!cosine("axes = Constant<value_ints = [0]>() n = ReduceL2(x, axes) y = Div(x, n)"));
    let named = measure("float[N,4] sentence_embedding", "sentence_embedding = Relu(x)");
    assert_eq!(named, OutputMeasure::Cosine);
}

#[test]
fn positions_of_detectors_are_no_samples() {
    let source = "g (float[1,90,4] x, float[1,90,2] z) => (float[1,90,2] scores, float[1,90,4] boxes) {
        scores = Softmax(z) boxes = Relu(x) }";
    let [scores, boxes] = &chosen(source, false)[..] else { panic!() };
    assert_eq!((scores.0, boxes.0), (OutputMeasure::Error, OutputMeasure::Error));
    assert_eq!(scores.1, "its rows are the positions of a detector, as those of `boxes`");
    // Without boxes they are class scores, such as those of tokens.
    let tokens = "g (float[N,T,9] x) => (float[N,T,9] y) { y = Softmax(x) }";
    assert_eq!(chosen(tokens, false)[0].0, OutputMeasure::Classes { axis: 2 });
    let maps = "g (float[N,3,H,W] x) => (float[N,3,H,W] logits) { logits = Relu(x) }";
    assert_eq!(chosen(maps, false)[0].0, OutputMeasure::Classes { axis: 1 });
}

/// Attention over `x` with these masks, as exporters write it.
fn attention(inputs: &str, nodes: &str) -> Model {
    let mut model = model_at(
        &format!(
            "g (float[N,T,4] x, {inputs}) => (float[N,T,4] y)
             <float[4,4] w = {{1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,9}}, float one = {{1}}, float low = {{-1000000000}},
              int64[2] axes = {{1,2}}> {{
                q = MatMul(x, w) k = MatMul(x, w) v = MatMul(x, w) t = Transpose<perm = [0,2,1]>(k)
                s = MatMul(q, t) {nodes} p = Softmax<axis = -1>(masked) c = MatMul(p, v) o = MatMul(c, w)
                y = Add(x, o) }}"
        ),
        17,
    );
    model.infer().unwrap();
    model
}

const HIDDEN: &str =
    "f = Cast<to = 1>(mask) i = Sub(one, f) b = Mul(i, low) ax = Constant<value_ints = [1]>()
    u = Unsqueeze(b, ax) masked = Add(s, u)";

#[test]
fn masks_are_recognised_by_their_way_into_attention() {
    let name = |model: &Model| measures(&model.graph, false).mask;
    assert_eq!(name(&attention("int64[N,T] mask", HIDDEN)).as_deref(), Some("mask"));
    let selected = "f = Cast<to = 9>(mask) ax = Constant<value_ints = [1]>() u = Unsqueeze(f, ax)
        masked = Where(u, s, low)";
    assert_eq!(name(&attention("int64[N,T] mask", selected)).as_deref(), Some("mask"));
    assert_eq!(name(&attention("float[N,T] z", "masked = Identity(s)")), None);
    // Padding may be marked by ones.
    let padding = HIDDEN.replace("mask)", "padding)");
    assert_eq!(name(&attention("int64[N,T] padding", &padding)), None);
    // A bias of both tokens is no mask.
    assert_eq!(name(&attention("float[1,T,T] bias", "masked = Add(s, bias)")), None);
    let found = measures(&attention("int64[N,T] mask", HIDDEN).graph, false);
    assert!(found.outputs[0].per_token);
}

#[test]
fn finds_the_axis_of_tokens() {
    let [n, t] = ["N", "T"].map(Dim::symbol);
    let axis = |shape: &[Dim]| token_axis(&[n.clone(), t.clone()], shape);
    assert_eq!(axis(&[n.clone(), t.clone(), Dim::from(4)]), Some(1));
    assert_eq!(axis(&[n.clone(), Dim::from(2), t.clone(), Dim::from(4)]), Some(2));
    assert_eq!(axis(&[&n * &t, Dim::from(4)]), Some(0));
    assert_eq!(axis(&[n.clone(), t.clone()]), Some(1));
    assert_eq!((axis(&[n.clone(), Dim::from(4)]), axis(&[t.clone(), n.clone()])), (None, None));
    // Classes may be as many as tokens.
    assert_eq!(token_axis(&[n.clone(), Dim::from(8)], &[n, Dim::from(8)]), None);
}

/// Sequences of 2 and 3 of 4 tokens; padding has this value.
struct Sequences(f32);

impl Samples for Sequences {
    fn len(&self) -> usize {
        2
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let on = |i: usize| u8::from(i % 4 < 2 + i / 4);
        let x = |i: usize| if on(i / 4) == 1 { (i % 7) as f32 - 2.0 } else { self.0 };
        let count = range.len();
        let x: Vec<_> = (range.start * 16..range.end * 16).map(x).collect();
        let mask: Vec<_> = (range.start * 4..range.end * 4).map(|i| i64::from(on(i))).collect();
        let tensor = |t: Result<Tensor, _>| t.map_err(EvaluateError::from_error);
        Ok(vec![
            ("x".into(), tensor(Tensor::from_slice(&[count, 4, 4], &x))?),
            ("mask".into(), tensor(Tensor::from_slice(&[count, 4], &mask))?),
        ])
    }
}

#[test]
fn padding_changes_no_comparison_and_no_statistic() {
    use crate::analysis::calibration::{Sampling, collect_statistics};
    let original = attention("int64[N,T] mask", HIDDEN);
    let mut changed = original.clone();
    let w = changed.graph.find("w").unwrap();
    let bytes: Vec<_> = (1..17).map(|i| i as f32 / 2.0).collect();
    let mut patch = pare_graph::Patch::anchored(changed.graph.nodes()[0]);
    patch.set_data(w, Tensor::from_slice(&[4, 4], &bytes).unwrap());
    changed.graph.apply(patch).unwrap();
    let of = |padding: f32| {
        let samples = Sequences(padding);
        let tools = Tools { samples: Some(&samples), ..tools() };
        let drift = HeldOut::new(tools, &original, 0..2).unwrap().drift(&changed).unwrap();
        let sampling = Sampling { positions: 4, seed: 0 };
        let statistics = collect_statistics(tools, &original, 0..2, sampling).unwrap();
        let sums = statistics.find("q", 1, 4).unwrap()[0].clone();
        (drift, sums.x_mean, sums.xx[(0, 1)])
    };
    let (drift, mean, covariance) = of(0.0);
    assert!(drift > 0.0);
    let (other, other_mean, other_covariance) = of(100.0);
    assert!((drift / other - 1.0).abs() < 1e-5, "{drift} {other}");
    assert_eq!((mean, covariance), (other_mean, other_covariance));
}

#[test]
fn samples_bind_symbolic_sizes() {
    let model = attention("int64[N,T] mask", HIDDEN);
    let samples = Sequences(0.0);
    let bound = Tools { samples: Some(&samples), ..tools() }.sizes(&model.graph);
    assert_eq!((bound.sizes["N"], bound.sizes["T"]), (1, 4));
    assert_eq!(tools().sizes(&model.graph), pare_graph::ops::Bindings::default());
    // Four products with weights of 4·4, and two of 4 by 4 tokens.
    assert_eq!(model.cost(&bound).macs, 4 * 4 * 16 + 2 * 4 * 4 * 4);
}

#[test]
fn samples_bind_sizes_without_a_name() {
    let source =
        "g (float[?,?,4] x) => (float[?,?,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }";
    let mut model = model_at(source, 17);
    model.infer().unwrap();
    let samples = Sequences(0.0);
    let bound = Tools { samples: Some(&samples), ..tools() }.sizes(&model.graph);
    assert_eq!(model.cost(&bound).macs, 4 * 4 * 2);
    assert!(has_known_sizes(&model.graph, &bound));
    assert!(!has_known_sizes(&model.graph, &tools().sizes(&model.graph)));
}
