//! Dropping blocks of small graphs and fixtures.

use super::*;
use crate::framework::{
    Pipeline, Report, RunError, RunOptions, run,
    testing::{brief, model, tools},
};
use pare_graph::{DataType, onnx};
use pare_runtime::{Port, PortDim, SampleLimits, SampleSet, SharedSamples};
use std::ops::Range;
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

fn digits(name: &str) -> (Model, SharedSamples) {
    let model = onnx::read(fixtures().join(name), &onnx::ReadOptions::default()).unwrap();
    let dims = [PortDim::Unknown, PortDim::Fixed(1), PortDim::Fixed(8), PortDim::Fixed(8)];
    let ports = [Port::tensor("image", DataType::Float, &dims)];
    let mut samples =
        SampleSet::open(&fixtures().join("digits-calibration.npz"), &ports, SampleLimits::default()).unwrap();
    samples.truncate(256);
    (model, SharedSamples::from(samples))
}

fn drop_from(
    pass: DropBlocks,
    model: &Model,
    samples: &dyn pare_graph::Samples,
) -> Result<(Model, Report), RunError> {
    let mut changed = model.clone();
    let mut pipeline = Pipeline::default();
    pipeline.push(pass);
    let tools = Tools { samples: Some(samples), threads: 1, ..tools() };
    let report = run(&pipeline, &mut changed, RunOptions { tools, stop_after: None }, &mut ())?;
    Ok((changed, report))
}

fn measured(original: &Model, changed: &Model, samples: &dyn pare_graph::Samples) -> Quality {
    let tools = Tools { samples: Some(samples), threads: 1, ..tools() };
    HeldOut::new(tools, original, 0..samples.len()).unwrap().measure(changed).unwrap()
}

#[test]
fn every_criterion_drops_a_block_and_healing_brings_the_outputs_back() {
    let (model, samples) = digits("digits-cnn.onnx");
    let criteria = [
        Criterion::Influence,
        Criterion::Angular,
        Criterion::Entropy,
        Criterion::Tlc,
        Criterion::Wasserstein,
        Criterion::Loss,
    ];
    for criterion in criteria {
        let pass = |healing| DropBlocks { count: Some(1), criterion, healing, ..DropBlocks::default() };
        let (plain, report) = drop_from(pass(Healing::None), &model, &samples).unwrap();
        assert_eq!(blocks(&plain.graph).len(), 3, "{criterion:?} {:?}", report.steps);
        let (healed, _) = drop_from(pass(Healing::Refit), &model, &samples).unwrap();
        let (plain, healed) = (measured(&model, &plain, &samples), measured(&model, &healed, &samples));
        assert!(healed.drift < plain.drift, "{criterion:?}: {plain:?} {healed:?}");
    }
}

#[test]
fn each_healing_is_no_worse_than_none_and_the_stronger_is_better() {
    let (model, samples) = digits("digits-vit.onnx");
    let drift = |healing| {
        let pass =
            DropBlocks { count: Some(2), criterion: Criterion::Influence, healing, ..DropBlocks::default() };
        let (changed, report) = drop_from(pass, &model, &samples).unwrap();
        assert_eq!(report.steps[0].count("blocks dropped"), 2);
        measured(&model, &changed, &samples).drift
    };
    let none = drift(Healing::None);
    let all = [Healing::Affine, Healing::LeastSquares, Healing::Refit, Healing::Merge, Healing::KeepLast]
        .map(drift);
    assert!(all.iter().all(|d| *d <= none * 1.02), "{none}: {all:?}");
    assert!(all[0] < none && all[1] < all[0] && all[2] < all[1], "{none}: {all:?}");
}

#[test]
fn it_goes_on_until_a_limit_would_be_broken() {
    let (model, samples) = digits("digits-vit.onnx");
    let pass = DropBlocks { min_agreement: Some(0.9), ..DropBlocks::default() };
    let (changed, report) = drop_from(pass, &model, &samples).unwrap();
    let step = &report.steps[0];
    assert!(step.count("blocks dropped") >= 1 && step.figure("agreement").unwrap() >= 0.9, "{step:?}");
    assert!(step.declined.keys().any(|why| why.contains("keep their class")), "{step:?}");
    assert!(blocks(&changed.graph).len() < 8);
    // Nothing fits a limit that nothing reaches, and nothing changes.
    let strict = DropBlocks { max_drift: Some(0.0), ..DropBlocks::default() };
    let (same, report) = drop_from(strict, &model, &samples).unwrap();
    assert_eq!(blocks(&same.graph).len(), 8, "{:?}", report.steps);
}

#[test]
fn spans_and_layers_go_as_one() {
    let (model, samples) = digits("digits-vit.onnx");
    let span = DropBlocks {
        count: Some(3),
        criterion: Criterion::Angular,
        healing: Healing::None,
        ..DropBlocks::default()
    };
    let (changed, report) = drop_from(span, &model, &samples).unwrap();
    assert_eq!((blocks(&changed.graph).len(), report.steps[0].notes.len()), (5, 1), "{:?}", report.steps);
    let layer = DropBlocks {
        ratio: Some(0.25),
        unit: Unit::Layer,
        healing: Healing::None,
        criterion: Criterion::Influence,
        one_shot: true,
        ..DropBlocks::default()
    };
    let (changed, _) = drop_from(layer, &model, &samples).unwrap();
    let left = blocks(&changed.graph);
    assert_eq!((left.len(), layers(&changed.graph, &left).len()), (6, 3));
}

/// Two layers of attention with keys of earlier steps: what goes in is `past_i`, what comes out `present_i`.
const CACHED: &str = "g (float[1,1,2] x, float[1,3,2] past_0, float[1,3,2] past_1)
    => (float[1,1,2] y, float[1,4,2] present_0, float[1,4,2] present_1)
    <float[2,2] w = {1, 0.5, -0.5, 1}, float[2,2] v = {0.01, 0, 0, 0.01}> {
        q0 = MatMul(x, w) k0 = MatMul(x, w) present_0 = Concat<axis = 1>(past_0, k0)
        t0 = Transpose<perm = [0, 2, 1]>(present_0) s0 = MatMul(q0, t0) p0 = Softmax(s0)
        a0 = MatMul(p0, present_0) o0 = MatMul(a0, v) h = Add(x, o0)
        q1 = MatMul(h, w) k1 = MatMul(h, w) present_1 = Concat<axis = 1>(past_1, k1)
        t1 = Transpose<perm = [0, 2, 1]>(present_1) s1 = MatMul(q1, t1) p1 = Softmax(s1)
        a1 = MatMul(p1, present_1) o1 = MatMul(a1, w) y = Add(h, o1) }";

struct Given(Vec<(String, pare_graph::Tensor)>);

impl pare_graph::Samples for Given {
    fn len(&self) -> usize {
        32
    }

    fn batch(
        &self,
        range: Range<usize>,
    ) -> Result<Vec<(String, pare_graph::Tensor)>, pare_graph::EvaluateError> {
        let scaled = |(name, tensor): &(String, pare_graph::Tensor)| {
            let values: Vec<_> =
                tensor.to_vec::<f32>().unwrap().iter().map(|v| v * (range.start as f32 + 1.0)).collect();
            (name.clone(), pare_graph::Tensor::from_slice(tensor.shape(), &values).unwrap())
        };
        Ok(self.0.iter().map(scaled).collect())
    }
}

#[test]
fn a_cache_keeps_its_block_unless_it_may_go_and_then_numbers_close_up() {
    let original = model(CACHED);
    let tensor = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<_> = (0..count).map(|i| 0.1 * i as f32 - 0.2).collect();
        pare_graph::Tensor::from_slice(shape, &values).unwrap()
    };
    let samples = Given(vec![
        ("x".into(), tensor(&[1, 1, 2])),
        ("past_0".into(), tensor(&[1, 3, 2])),
        ("past_1".into(), tensor(&[1, 3, 2])),
    ]);
    let pass = DropBlocks { count: Some(1), healing: Healing::None, ..DropBlocks::default() };
    let error = drop_from(pass.clone(), &original, &samples).unwrap_err().to_string();
    assert!(error.contains("no residual block that can go"), "{error}");
    let pass = DropBlocks { allow_interface_change: true, ..pass };
    let (changed, report) = drop_from(pass, &original, &samples).unwrap();
    let names = |ids: &[pare_graph::ValueId]| -> Vec<String> {
        ids.iter().map(|&v| changed.graph.value(v).name.clone()).collect()
    };
    // The first block does almost nothing: it goes, and the second becomes the first.
    assert_eq!(names(changed.graph.inputs()), ["x", "past_0"], "{}", brief(&changed.graph));
    assert_eq!(names(changed.graph.outputs()), ["y", "present_0"]);
    assert_eq!(report.steps[0].interface.len(), 1);
    assert_eq!(report.steps[0].count("inputs and outputs renumbered"), 2);
}

#[test]
fn blocks_go_by_name() {
    let (model, samples) = digits("digits-cnn.onnx");
    let named = |name: &str| DropBlocks {
        blocks: vec![name.into()],
        healing: Healing::None,
        ..DropBlocks::default()
    };
    let (changed, _) = drop_from(named("body/body.0"), &model, &samples).unwrap();
    let names: Vec<_> = blocks(&changed.graph).into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["body/body.1", "body/body.2", "body/body.3"]);
    let error = drop_from(named("body/body.9"), &model, &samples).unwrap_err().to_string();
    assert_eq!(error, "`drop-blocks`: no block that can go is called `body/body.9`");
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let (cnn, samples) = digits("digits-cnn.onnx");
    let refused = |pass: DropBlocks, model: &Model| drop_from(pass, model, &samples).unwrap_err().to_string();
    assert_eq!(refused(DropBlocks::default(), &cnn), "`drop-blocks`: it needs to know how far to go");
    let chain = model(
        "g (float[N,1,8,8] image) => (float[N,1,8,8] y) <float[1,1,1,1] w = {2}> { y = Conv(image, w) }",
    );
    let one = DropBlocks { count: Some(1), ..DropBlocks::default() };
    assert_eq!(refused(one.clone(), &chain), "`drop-blocks`: `g` has no residual block that can go");
    let mut model = cnn.clone();
    let mut pipeline = Pipeline::default();
    pipeline.push(one);
    let error = run(&pipeline, &mut model, RunOptions::default(), &mut ()).unwrap_err().to_string();
    assert_eq!(error, "`drop-blocks`: it needs samples, and an engine to run them");
    assert!(DropBlocks { ratio: Some(1.5), ..DropBlocks::default() }.validate().is_err());
    assert!(DropBlocks { count: Some(0), ..DropBlocks::default() }.validate().is_err());
    assert!(DropBlocks { count: Some(1), ratio: Some(0.5), ..DropBlocks::default() }.validate().is_err());
}

/// Blocks with an activation behind the sum, all gone: what stands before the first is fitted to what the last gave.
#[test]
fn a_gap_is_healed_to_its_far_end_in_whatever_order_blocks_went() {
    let conv = "Conv<pads = [1, 1, 1, 1]>";
    let mut body = format!("s = {conv}(image, w0) u0 = Relu(s) ");
    for i in 1..4 {
        let u = i - 1;
        body += &format!(
            "a{i} = {conv}(u{u}, w{i}) b{i} = Relu(a{i}) t{i} = {conv}(b{i}, w{i}) v{i} = Add(t{i}, u{u}) u{i} = Relu(v{i}) "
        );
    }
    let mut rng = fastrand::Rng::with_seed(3);
    let mut weights = |n: usize, scale: f32| {
        (0..n).map(|_| format!("{:.3}", (rng.f32() - 0.45) * scale)).collect::<Vec<_>>().join(", ")
    };
    let mut constants = format!("float[4,1,3,3] w0 = {{{}}}", weights(36, 1.0));
    for i in 1..4 {
        constants += &format!(", float[4,4,3,3] w{i} = {{{}}}", weights(144, 0.3));
    }
    let source =
        format!("g (float[N,1,8,8] image) => (float[N,4,8,8] y) <{constants}> {{ {body} y = Tanh(u3) }}");
    let (original, samples) = (model(&source), digits("digits-cnn.onnx").1);
    let drift = |names: [&str; 3], healing| {
        let blocks = names.map(String::from).to_vec();
        let pass = DropBlocks { blocks, healing, ..DropBlocks::default() };
        let (changed, _) = drop_from(pass, &original, &samples).unwrap();
        assert_eq!(changed.node_count(), 3, "{}", brief(&changed.graph));
        measured(&original, &changed, &samples).drift
    };
    let none = drift(["v1", "v2", "v3"], Healing::None);
    let orders = [["v1", "v2", "v3"], ["v3", "v2", "v1"], ["v2", "v3", "v1"]];
    let healed = orders.map(|order| drift(order, Healing::LeastSquares));
    assert!(healed.iter().all(|d| *d < 0.9 * none && (d - healed[0]).abs() < 1e-6), "{none} {healed:?}");
}
