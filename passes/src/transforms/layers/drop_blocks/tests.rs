//! Removal of blocks from small graphs and fixtures.

use super::*;
use crate::framework::{
    Report, RunError,
    testing::{brief, model, read_fixture, tools, try_pass},
};
use pare_graph::DataType;
use pare_runtime::{Port, PortDim, SampleLimits, SampleSet, SharedSamples};
use std::ops::Range;

fn digits(name: &str) -> (Model, SharedSamples) {
    let model = read_fixture(name);
    let dims = [PortDim::Unknown, PortDim::Fixed(1), PortDim::Fixed(8), PortDim::Fixed(8)];
    let ports = [Port::tensor("image", DataType::Float, &dims)];
    let mut samples = SampleSet::open(
        &pare_tests::fixtures::fixture("digits-calibration.npz"),
        &ports,
        SampleLimits::default(),
    )
    .unwrap();
    samples.truncate(256);
    (model, SharedSamples::from(samples))
}

fn drop_from(
    pass: DropBlocks,
    model: &Model,
    samples: &dyn pare_graph::Samples,
) -> Result<(Model, Report), RunError> {
    let mut changed = model.clone();
    let tools = Tools { samples: Some(samples), threads: 1, ..tools() };
    let report = try_pass(pass, &mut changed, tools)?;
    Ok((changed, report))
}

fn measured(original: &Model, changed: &Model, samples: &dyn pare_graph::Samples) -> Quality {
    let tools = Tools { samples: Some(samples), threads: 1, ..tools() };
    HeldOut::new(tools, original, 0..samples.len()).unwrap().measure(changed).unwrap()
}

#[test]
fn repair_reduces_the_drift_for_every_criterion() {
    let (model, samples) = digits("digits-cnn.onnx");
    let criteria = [
        BlockCriterion::Influence,
        BlockCriterion::Angular,
        BlockCriterion::Entropy,
        BlockCriterion::Tlc,
        BlockCriterion::Wasserstein,
        BlockCriterion::Loss,
    ];
    for criterion in criteria {
        let pass = |repair| DropBlocks { count: Some(1), criterion, repair, ..DropBlocks::default() };
        let (plain, report) = drop_from(pass(BlockRepair::None), &model, &samples).unwrap();
        assert_eq!(blocks(&plain.graph).len(), 3, "{criterion:?} {:?}", report.steps);
        let (repaired, _) = drop_from(pass(BlockRepair::Refit), &model, &samples).unwrap();
        let (plain, repaired) = (measured(&model, &plain, &samples), measured(&model, &repaired, &samples));
        assert!(repaired.drift < plain.drift, "{criterion:?}: {plain:?} {repaired:?}");
    }
}

#[test]
fn more_general_repairs_drift_less() {
    let (model, samples) = digits("digits-vit.onnx");
    let drift = |repair| {
        let pass = DropBlocks {
            count: Some(2),
            criterion: BlockCriterion::Influence,
            repair,
            ..DropBlocks::default()
        };
        let (changed, report) = drop_from(pass, &model, &samples).unwrap();
        assert_eq!(report.steps.last().unwrap().count("blocks dropped"), 2);
        measured(&model, &changed, &samples).drift
    };
    let none = drift(BlockRepair::None);
    let all = [
        BlockRepair::Affine,
        BlockRepair::LeastSquares,
        BlockRepair::Refit,
        BlockRepair::Merge,
        BlockRepair::KeepLast,
    ]
    .map(drift);
    assert!(all.iter().all(|d| *d <= none * 1.02), "{none}: {all:?}");
    assert!(all[0] < none && all[1] < all[0] && all[2] < all[1], "{none}: {all:?}");
}

#[test]
fn stops_before_a_limit_is_exceeded() {
    let (model, samples) = digits("digits-vit.onnx");
    let pass = DropBlocks { min_agreement: Some(0.9), ..DropBlocks::default() };
    let (changed, report) = drop_from(pass, &model, &samples).unwrap();
    let step = report.steps.last().unwrap();
    assert!(step.count("blocks dropped") >= 1 && step.figure("agreement").unwrap() >= 0.9, "{step:?}");
    assert!(step.declined.keys().any(|why| why.contains("is kept: the agreement of ")), "{step:?}");
    assert!(blocks(&changed.graph).len() < 8);
    // A limit that no removal keeps: nothing changes.
    let strict = DropBlocks { max_drift: Some(0.0), ..DropBlocks::default() };
    let (same, report) = drop_from(strict, &model, &samples).unwrap();
    assert_eq!(blocks(&same.graph).len(), 8, "{:?}", report.steps);
}

#[test]
fn removes_spans_and_layers_at_once() {
    let (model, samples) = digits("digits-vit.onnx");
    let span = DropBlocks {
        count: Some(3),
        criterion: BlockCriterion::Angular,
        repair: BlockRepair::None,
        ..DropBlocks::default()
    };
    let (changed, report) = drop_from(span, &model, &samples).unwrap();
    assert_eq!(
        (blocks(&changed.graph).len(), report.steps.last().unwrap().notes.len()),
        (5, 1),
        "{:?}",
        report.steps
    );
    let layer = DropBlocks {
        ratio: Some(0.25),
        unit: Unit::Layer,
        repair: BlockRepair::None,
        criterion: BlockCriterion::Influence,
        one_shot: true,
        ..DropBlocks::default()
    };
    let (changed, _) = drop_from(layer, &model, &samples).unwrap();
    let kept = blocks(&changed.graph);
    assert_eq!((kept.len(), layers(&changed.graph, &kept).len()), (6, 3));
}

/// Two layers of attention with cached keys, inputs `past_i` and outputs `present_i`.
const CACHED: &str = "g (float[1,1,2] x, float[1,3,2] past_0, float[1,3,2] past_1)
    => (float[1,1,2] y, float[1,4,2] present_0, float[1,4,2] present_1)
    <float[2,2] w = {1, 0.5, -0.5, 1}, float[2,2] v = {0.01, 0, 0, 0.01}> {
        q0 = MatMul(x, w) k0 = MatMul(x, w) present_0 = Concat<axis = 1>(past_0, k0)
        t0 = Transpose<perm = [0, 2, 1]>(present_0) s0 = MatMul(q0, t0) p0 = Softmax(s0)
        a0 = MatMul(p0, present_0) o0 = MatMul(a0, v) h = Add(x, o0)
        q1 = MatMul(h, w) k1 = MatMul(h, w) present_1 = Concat<axis = 1>(past_1, k1)
        t1 = Transpose<perm = [0, 2, 1]>(present_1) s1 = MatMul(q1, t1) p1 = Softmax(s1)
        a1 = MatMul(p1, present_1) o1 = MatMul(a1, w) y = Add(h, o1) }";

struct ScaledSamples(Vec<(String, pare_graph::Tensor)>);

impl pare_graph::Samples for ScaledSamples {
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
fn removes_cached_blocks_on_request_and_renumbers_the_rest() {
    let original = model(CACHED);
    let tensor = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        let values: Vec<_> = (0..count).map(|i| 0.1 * i as f32 - 0.2).collect();
        pare_graph::Tensor::from_slice(shape, &values).unwrap()
    };
    let samples = ScaledSamples(vec![
        ("x".into(), tensor(&[1, 1, 2])),
        ("past_0".into(), tensor(&[1, 3, 2])),
        ("past_1".into(), tensor(&[1, 3, 2])),
    ]);
    let pass = DropBlocks { count: Some(1), repair: BlockRepair::None, ..DropBlocks::default() };
    let error = drop_from(pass.clone(), &original, &samples).unwrap_err().to_string();
    assert!(error.contains("no residual block that can be removed"), "{error}");
    let pass = DropBlocks { allow_interface_change: true, ..pass };
    let (changed, report) = drop_from(pass, &original, &samples).unwrap();
    let names = |ids: &[pare_graph::ValueId]| -> Vec<String> {
        ids.iter().map(|&v| changed.graph.value(v).name.clone()).collect()
    };
    // The first block computes almost zero: it is removed, and the second becomes the first.
    assert_eq!(names(changed.graph.inputs()), ["x", "past_0"], "{}", brief(&changed.graph));
    assert_eq!(names(changed.graph.outputs()), ["y", "present_0"]);
    assert_eq!(report.steps.last().unwrap().interface.len(), 1);
    assert_eq!(report.steps.last().unwrap().count("inputs and outputs renumbered"), 2);
}

#[test]
fn removes_blocks_by_name() {
    let (model, samples) = digits("digits-cnn.onnx");
    let named = |name: &str| DropBlocks {
        blocks: vec![name.into()],
        repair: BlockRepair::None,
        ..DropBlocks::default()
    };
    let (changed, _) = drop_from(named("body/body.0"), &model, &samples).unwrap();
    let names: Vec<_> = blocks(&changed.graph).into_iter().map(|b| b.name).collect();
    assert_eq!(names, ["body/body.1", "body/body.2", "body/body.3"]);
    let error = drop_from(named("body/body.9"), &model, &samples).unwrap_err().to_string();
    assert_eq!(error, "`drop-blocks`: there is no removable block `body/body.9`");
}

#[test]
fn refuses_invalid_options_and_models() {
    let (cnn, samples) = digits("digits-cnn.onnx");
    let refused = |pass: DropBlocks, model: &Model| drop_from(pass, model, &samples).unwrap_err().to_string();
    assert_eq!(refused(DropBlocks::default(), &cnn), "`drop-blocks`: it needs a target");
    let chain = model(
        "g (float[N,1,8,8] image) => (float[N,1,8,8] y) <float[1,1,1,1] w = {2}> { y = Conv(image, w) }",
    );
    let one = DropBlocks { count: Some(1), ..DropBlocks::default() };
    assert_eq!(refused(one.clone(), &chain), "`drop-blocks`: `g` has no residual block that can be removed");
    let error = try_pass(one, &mut cnn.clone(), Tools::default()).unwrap_err().to_string();
    assert_eq!(error, "`drop-blocks`: it needs samples, and an engine to run them");
    assert!(DropBlocks { ratio: Some(1.5), ..DropBlocks::default() }.validate().is_err());
    assert!(DropBlocks { count: Some(0), ..DropBlocks::default() }.validate().is_err());
    assert!(DropBlocks { count: Some(1), ratio: Some(0.5), ..DropBlocks::default() }.validate().is_err());
}

/// All blocks, with an activation after the sum, are removed: the layer before the first is fitted to the
/// output of the last.
#[test]
fn repairs_a_gap_towards_its_last_block_in_any_order_of_removal() {
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
    let drift = |names: [&str; 3], repair| {
        let blocks = names.map(String::from).to_vec();
        let pass = DropBlocks { blocks, repair, ..DropBlocks::default() };
        let (changed, _) = drop_from(pass, &original, &samples).unwrap();
        assert_eq!(changed.node_count(), 3, "{}", brief(&changed.graph));
        measured(&original, &changed, &samples).drift
    };
    let none = drift(["v1", "v2", "v3"], BlockRepair::None);
    let orders = [["v1", "v2", "v3"], ["v3", "v2", "v1"], ["v2", "v3", "v1"]];
    let repaired = orders.map(|order| drift(order, BlockRepair::LeastSquares));
    assert!(
        repaired.iter().all(|d| *d < 0.9 * none && (d - repaired[0]).abs() < 1e-6),
        "{none} {repaired:?}"
    );
}
