//! Composites in the deployment engine, in f32.

use super::{By, FoldLinear, Net, build::Conv, chains::chain, count, folded, reference::Array};
use crate::framework::{Effect, testing};
use ndarray::IxDyn;
use pare_graph::{DataType, Graph, Model, Node, Setting, Tensor};

fn run(graph: &Graph, input: &Array) -> Vec<f64> {
    let engine = testing::tools().engine.unwrap();
    let x = Tensor::from_f64(DataType::Float, input.shape(), &input.iter().copied().collect::<Vec<_>>());
    let mut model = engine.load(&Model::of(graph.clone()), Setting::PLAIN.threads(1)).unwrap();
    model.run(&[("x", &x.unwrap())]).unwrap()[0].to_f64().unwrap()
}

/// The largest difference of the outputs before and after the pass, relative to the largest element.
fn distance(net: &Net, after: &Graph) -> f64 {
    let (before, after) = (run(&net.graph, &net.input), run(after, &net.input));
    let array = |v: Vec<f64>| Array::from_shape_vec(IxDyn(&[v.len()]), v).unwrap();
    super::distance(&array(before), &array(after))
}

#[test]
fn random_chains_match_in_the_engine() {
    let (mut seen, mut tiled, mut worst) = (0, 0, 0.0_f64);
    for seed in 10_000.. {
        let Some((net, _)) = chain(seed, DataType::Float) else { continue };
        let (after, _) = folded(&net.graph, By::Always);
        worst = worst.max(distance(&net, &after));
        tiled += usize::from(count(&after, "Concat") > 0);
        seen += 1;
        if seen == 420 {
            break;
        }
    }
    assert!(worst <= 1e-5 && tiled >= 100, "{worst:e}, {tiled} in tiles");
}

/// The operators of a net after the pass; asserts that both forms agree.
fn operators_after(net: Net) -> Vec<String> {
    let before = net.finish();
    let (after, _) = folded(&before.graph, By::Macs);
    let distance = distance(&before, &after);
    assert!(distance <= 1e-5, "{distance:e}");
    testing::same(&Model::of(before.graph), &Model::of(after.clone()), Effect::Rounding);
    after.nodes().iter().map(|&id| after.node(id).op.clone()).collect()
}

fn net(seed: u64, shape: &[i64]) -> Net {
    Net::new(seed, DataType::Float, shape)
}

fn gemm(net: &mut Net, inputs: usize, outputs: usize) {
    let (w, b) = (net.weight(&[outputs, inputs]), net.weight(&[outputs]));
    net.node(Node::new("Gemm").with("transB", 1), &[net.last, w, b]);
}

fn batch_norm(net: &mut Net, channels: usize) {
    let [gamma, beta, mean] = [(); 3].map(|()| net.weight(&[channels]));
    let variance = net.constant(&[channels], &vec![0.8; channels]);
    net.node(Node::new("BatchNormalization"), &[net.last, gamma, beta, mean, variance]);
}

#[test]
fn composes_typical_pairs() {
    let mut gemms = net(1, &[-3, 16]);
    gemm(&mut gemms, 16, 32);
    gemm(&mut gemms, 32, 8);
    assert_eq!(operators_after(gemms), ["Gemm"]);

    let mut matmuls = net(2, &[-2, 7, 16]);
    for (inputs, outputs) in [(16, 32), (32, 8)] {
        let (w, b) = (matmuls.weight(&[inputs, outputs]), matmuls.weight(&[outputs]));
        matmuls.node(Node::new("MatMul"), &[matmuls.last, w]);
        matmuls.node(Node::new("Add"), &[matmuls.last, b]);
    }
    assert_eq!(operators_after(matmuls), ["MatMul", "Add"]);

    let mut point = net(3, &[-2, 8, 12, 12]);
    point.conv(&Conv { bias: false, ..Conv::square(8, 8, 1, 0) });
    point.conv(&Conv::square(8, 8, 3, 1));
    assert_eq!(operators_after(point), ["Conv"]);

    let mut unpadded = net(4, &[-2, 8, 12, 12]);
    unpadded.conv(&Conv::square(8, 16, 3, 1));
    unpadded.conv(&Conv::square(16, 8, 1, 0));
    assert_eq!(operators_after(unpadded), ["Conv"]);

    let mut normed = net(5, &[-2, 3, 12, 12]);
    batch_norm(&mut normed, 3);
    normed.conv(&Conv::square(3, 8, 3, 1));
    // The shift cannot become a bias: padding is not shifted.
    assert_eq!(operators_after(normed), ["Sub", "Conv"]);

    let mut after = net(6, &[-2, 16]);
    gemm(&mut after, 16, 8);
    batch_norm(&mut after, 8);
    assert_eq!(operators_after(after), ["Gemm"]);
}

#[test]
fn composes_by_measured_latency() {
    // 64 times fewer operations, which is beyond noise.
    let mut wide = net(7, &[1, 16, 48, 48]);
    wide.conv(&Conv::square(16, 128, 1, 0));
    wide.conv(&Conv::square(128, 16, 1, 0));
    let wide = wide.finish();
    let mut model = Model::of(wide.graph.clone());
    testing::run_pass_with(FoldLinear { by: By::Latency }, &mut model, testing::tools());
    assert_eq!(count(&model.graph, "Conv"), 1);
    assert!(distance(&wide, &model.graph) <= 1e-5);
    // Here the composite has 14 times as many.
    let mut narrow = net(8, &[1, 128, 48, 48]);
    narrow.conv(&Conv { bias: false, ..Conv::square(128, 4, 1, 0) });
    narrow.conv(&Conv::square(4, 128, 3, 1));
    let mut model = Model::of(narrow.finish().graph);
    let report = testing::run_pass_with(FoldLinear { by: By::Latency }, &mut model, testing::tools());
    assert_eq!(count(&model.graph, "Conv"), 2);
    let declined = report.steps[0].declined.keys().next().unwrap();
    assert!(declined.starts_with("`v2`∘`v5` would take ") && declined.contains("× the time"), "{declined}");
}

#[test]
fn rejects_latency_without_engine() {
    let mut gemms = net(9, &[3, 4]);
    gemm(&mut gemms, 4, 4);
    let mut pipeline = crate::framework::Pipeline::default();
    pipeline.push(FoldLinear { by: By::Latency });
    let mut model = Model::of(gemms.finish().graph);
    let error =
        crate::framework::run(&pipeline, &mut model, crate::framework::RunOptions::default(), &mut ())
            .unwrap_err();
    assert_eq!(error.to_string(), "`fold-linear`: `by=latency` needs an engine");
}
