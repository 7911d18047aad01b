//! Every kind of layer and branch, with random weights in f64, compared with the reference.

use super::{By, FoldLinear, Net, build::Conv, count, exact, folded};
use crate::framework::{Effect, testing};
use pare_graph::{Attribute, DataType, Graph, Node, ValueId};

fn net(seed: u64, shape: &[i64]) -> Net {
    Net::new(seed, DataType::Double, shape)
}

/// The operators in topological order.
fn ops(graph: &Graph) -> Vec<String> {
    graph.nodes().iter().map(|&id| graph.node(id).op.clone()).collect()
}

fn batch_norm(net: &mut Net, channels: usize) -> ValueId {
    let [gamma, beta, mean] = [(); 3].map(|()| net.weight(&[channels]));
    let variance: Vec<_> = (0..channels).map(|_| net.rng.f64() + 0.5).collect();
    let variance = net.constant(&[channels], &variance);
    net.node(Node::new("BatchNormalization"), &[net.last, gamma, beta, mean, variance])
}

fn binary(net: &mut Net, op: &str, shape: &[usize]) -> ValueId {
    let constant = net.weight(shape);
    net.node(Node::new(op), &[net.last, constant])
}

fn gemm(net: &mut Net, inputs: usize, outputs: usize) -> ValueId {
    let (w, b) = (net.weight(&[outputs, inputs]), net.weight(&[outputs]));
    net.node(Node::new("Gemm").with("transB", 1), &[net.last, w, b])
}

fn matmul(net: &mut Net, inputs: usize, outputs: usize) -> ValueId {
    let w = net.weight(&[inputs, outputs]);
    net.node(Node::new("MatMul"), &[net.last, w])
}

#[test]
fn composes_gemm_and_matmul() {
    let mut gemms = net(1, &[3, 8]);
    gemm(&mut gemms, 8, 12);
    gemm(&mut gemms, 12, 4);
    assert_eq!(ops(&exact(&gemms.finish(), By::Macs)), ["Gemm"]);

    let mut matmuls = net(2, &[2, 5, 8]);
    matmul(&mut matmuls, 8, 12);
    binary(&mut matmuls, "Add", &[12]);
    matmul(&mut matmuls, 12, 4);
    binary(&mut matmuls, "Add", &[1, 4]);
    binary(&mut matmuls, "Div", &[]);
    assert_eq!(ops(&exact(&matmuls.finish(), By::Macs)), ["MatMul", "Add"]);

    let mut mixed = net(3, &[3, 8]);
    batch_norm(&mut mixed, 8);
    matmul(&mut mixed, 8, 6);
    binary(&mut mixed, "Mul", &[6]);
    gemm(&mut mixed, 6, 4);
    batch_norm(&mut mixed, 4);
    assert_eq!(ops(&exact(&mixed.finish(), By::Macs)), ["Gemm"]);
}

#[test]
fn composes_convolutions_into_a_matrix_over_a_flattened_image() {
    let mut net = net(4, &[2, 3, 9, 8]);
    net.conv(&Conv { pads: vec![1, 0, 2, 1], ..Conv::square(3, 4, 3, 0) }.stride(2));
    net.conv(&Conv::square(4, 4, 1, 0));
    net.node(Node::new("Flatten"), &[net.last]);
    gemm(&mut net, 4 * 5 * 4, 2);
    gemm(&mut net, 2, 2);
    assert_eq!(ops(&exact(&net.finish(), By::Always)), ["Flatten", "Gemm"]);
}

#[test]
fn composes_scales_and_shifts_before_and_after() {
    let mut net = net(5, &[2, 6, 9, 9]);
    batch_norm(&mut net, 6);
    binary(&mut net, "Mul", &[6, 1, 1]);
    net.conv(&Conv::square(6, 4, 3, 0).group(2));
    binary(&mut net, "Add", &[1, 4, 1, 1]);
    binary(&mut net, "Sub", &[]);
    batch_norm(&mut net, 4);
    net.node(Node::new("Neg"), &[net.last]);
    assert_eq!(ops(&exact(&net.finish(), By::Macs)), ["Conv"]);
}

#[test]
fn moves_shift_before_padding_to_the_cheaper_side() {
    // One input channel for four output channels: the input is shifted.
    let mut few = net(6, &[2, 2, 9, 9]);
    batch_norm(&mut few, 2);
    few.conv(&Conv::square(2, 8, 3, 1));
    assert_eq!(ops(&exact(&few.finish(), By::Macs)), ["Sub", "Conv"]);
    // A smaller output: the response to the shift is added there.
    let mut many = net(7, &[2, 8, 9, 9]);
    batch_norm(&mut many, 8);
    many.conv(&Conv::square(8, 2, 3, 1).stride(2));
    assert_eq!(ops(&exact(&many.finish(), By::Macs)), ["Conv", "Add"]);
    // Sizes are not fixed, and no input shift is equivalent to the bias.
    let mut open = net(8, &[-2, 2, -9, -9]);
    open.conv(&Conv::square(2, 8, 1, 0));
    open.conv(&Conv::square(8, 8, 3, 1));
    assert_eq!(ops(&exact(&open.finish(), By::Macs)), ["Pad", "Conv"]);
    // Here an input shift is equivalent: the bias is in the range of the weights.
    let mut range = net(9, &[-2, 8, -9, -9]);
    range.conv(&Conv::square(8, 4, 1, 0));
    range.conv(&Conv::square(4, 12, 3, 1));
    assert_eq!(ops(&exact(&range.finish(), By::Always)), ["Sub", "Conv"]);
}

#[test]
fn composes_zero_pad() {
    let mut net = net(10, &[1, 3, 7, 7]);
    let pads = net.ints(&[0, 0, 1, 2, 0, 0, 3, 0]);
    net.node(Node::new("Pad"), &[net.last, pads]);
    net.conv(&Conv::square(3, 4, 3, 1));
    assert_eq!(ops(&exact(&net.finish(), By::Macs)), ["Conv"]);
}

fn average(net: &mut Net, kernel: i64, stride: i64) -> ValueId {
    let list = |n: i64| Attribute::Ints(vec![n; 2]);
    let node = Node::new("AveragePool").with("kernel_shape", list(kernel)).with("strides", list(stride));
    net.node(node, &[net.last])
}

#[test]
fn composes_pools_or_moves_them_before_pointwise_convolutions() {
    let mut wide = net(11, &[1, 3, 12, 12]);
    wide.conv(&Conv::square(3, 16, 3, 1));
    average(&mut wide, 2, 2);
    assert_eq!(ops(&exact(&wide.finish(), By::Macs)), ["Conv"]);
    let mut point = net(12, &[1, 16, 12, 12]);
    point.conv(&Conv::square(16, 16, 1, 0));
    average(&mut point, 2, 2);
    assert_eq!(ops(&exact(&point.finish(), By::Macs)), ["AveragePool", "Conv"]);
    let mut global = net(13, &[1, 16, 12, 12]);
    global.conv(&Conv::square(16, 16, 1, 0));
    global.node(Node::new("GlobalAveragePool"), &[global.last]);
    global.node(Node::new("Flatten"), &[global.last]);
    gemm(&mut global, 16, 4);
    assert_eq!(ops(&exact(&global.finish(), By::Macs)), ["GlobalAveragePool", "Flatten", "Gemm"]);
}

#[test]
fn composes_branches_over_one_input() {
    // RepVGG: 3×3, 1×1 and the input itself, each with a batch norm.
    let mut net = net(14, &[1, 6, 9, 9]);
    let x = net.last;
    let branch = |net: &mut Net, conv: Option<Conv>| {
        net.last = x;
        conv.map(|c| net.conv(&c));
        batch_norm(net, 6)
    };
    let wide = branch(&mut net, Some(Conv::square(6, 6, 3, 1)));
    let point = branch(&mut net, Some(Conv::square(6, 6, 1, 0)));
    let identity = branch(&mut net, None);
    let two = net.node(Node::new("Add"), &[wide, point]);
    net.node(Node::new("Add"), &[two, identity]);
    let after = exact(&net.finish(), By::Macs);
    assert_eq!(ops(&after), ["Conv"]);
}

#[test]
fn composes_linear_inverted_residual() {
    // 1×1 to 6 times the channels, depthwise 3×3, 1×1 back, and the input: composing no pair of them would
    // pay.
    let mut net = net(15, &[1, 32, 14, 14]);
    let x = net.last;
    net.conv(&Conv::square(32, 192, 1, 0));
    net.conv(&Conv::square(192, 192, 3, 1).group(192));
    let y = net.conv(&Conv::square(192, 32, 1, 0));
    net.node(Node::new("Add"), &[y, x]);
    assert_eq!(ops(&exact(&net.finish(), By::Macs)), ["Conv", "Add"]);
}

#[test]
fn composes_concatenated_branches() {
    let mut net = net(16, &[1, 4, 8, 8]);
    let x = net.last;
    let a = net.conv(&Conv::square(4, 6, 3, 1));
    net.last = x;
    let b = net.conv(&Conv::square(4, 2, 1, 0));
    net.node(Node::new("Concat").with("axis", 1), &[a, b]);
    net.conv(&Conv::square(8, 3, 1, 0));
    assert_eq!(ops(&exact(&net.finish(), By::Macs)), ["Conv"]);
}

#[test]
fn splits_into_tiles_where_that_pays() {
    let pair = |seed, size: i64, stride| {
        let mut net = net(seed, &[1, 16, size, size]);
        net.conv(&Conv::square(16, 16, 3, 1));
        net.conv(&Conv::square(16, 16, 3, 1).stride(stride));
        net.finish()
    };
    let after = exact(&pair(17, 32, 2), By::Macs);
    assert_eq!((count(&after, "Conv"), count(&after, "Concat")), (4, 3));
    let (after, report) = folded(&pair(18, 32, 1).graph, By::Macs);
    assert_eq!(ops(&after), ["Conv", "Conv"]);
    let declined: Vec<_> = report.steps[0].declined.keys().collect();
    assert_eq!(declined, ["`v3`∘`v6` would cost 1.32× the MACs"]);
    // Nine tiles with a border of one pixel cost more calls than they save.
    let (after, _) = folded(&pair(19, 4, 2).graph, By::Macs);
    assert_eq!(ops(&after), ["Conv", "Conv"]);
}

#[test]
fn declines_weights_that_cancel() {
    let mut net = net(20, &[2, 2]);
    let a = net.constant(&[2, 2], &[1.0, 1.0, 1.0, 1.0 + 1e-6]);
    net.node(Node::new("MatMul"), &[net.last, a]);
    let b = net.constant(&[2, 2], &[1.0, 1.0, -1.0, -1.0]);
    net.node(Node::new("MatMul"), &[net.last, b]);
    let (after, report) = folded(&net.finish().graph, By::Macs);
    assert_eq!(ops(&after), ["MatMul", "MatMul"]);
    let declined: Vec<_> = report.steps[0].declined.keys().collect();
    assert_eq!(declined, ["`v2`∘`v4`: all but 1/4000001 of the composed weights would cancel"]);
}

#[test]
fn keeps_layers_with_other_uses() {
    let mut net = net(21, &[2, 4]);
    gemm(&mut net, 4, 4);
    net.graph.add_output(net.last);
    gemm(&mut net, 4, 4);
    let (after, _) = folded(&net.finish().graph, By::Always);
    assert_eq!(ops(&after), ["Gemm", "Gemm"]);
}

#[test]
fn keeps_the_factor_of_gelu() {
    let layer = |root: f64| {
        let mut net = net(9, &[2, 5, 8]);
        let x = net.last;
        let [root, one, half] = [root, 1.0, 0.5].map(|c| net.constant(&[], &[c]));
        let scaled = net.node(Node::new("Div"), &[x, root]);
        let erf = net.node(Node::new("Erf"), &[scaled]);
        let bell = net.node(Node::new("Add"), &[erf, one]);
        let product = net.node(Node::new("Mul"), &[x, bell]);
        net.node(Node::new("Mul"), &[product, half]);
        matmul(&mut net, 8, 4);
        ops(&folded(&net.finish().graph, By::Macs).0)
    };
    assert_eq!(layer(std::f64::consts::SQRT_2), ["Div", "Erf", "Add", "Mul", "Mul", "MatMul"]);
    // Not a GELU, so no engine fuses it.
    assert_eq!(layer(2.0), ["Div", "Erf", "Add", "Mul", "MatMul"]);
}

fn transposed(net: &mut Net, inputs: usize, outputs: usize, group: usize) -> ValueId {
    let (w, b) = (net.weight(&[inputs, outputs / group, 3, 2]), net.weight(&[outputs]));
    let node = Node::new("ConvTranspose")
        .with("strides", vec![2, 3])
        .with("dilations", vec![1, 2])
        .with("pads", vec![1, 0, 2, 1])
        .with("group", group as i64);
    net.node(node, &[net.last, w, b])
}

#[test]
fn composes_pointwise_layers_with_conv_transpose() {
    let mut after = net(22, &[1, 6, 5, 4]);
    transposed(&mut after, 6, 8, 2);
    after.conv(&Conv::square(8, 3, 1, 0));
    batch_norm(&mut after, 3);
    assert_eq!(ops(&exact(&after.finish(), By::Macs)), ["ConvTranspose"]);
    let mut before = net(23, &[1, 4, 5, 4]);
    before.conv(&Conv { bias: false, ..Conv::square(4, 6, 1, 0) });
    transposed(&mut before, 6, 4, 2);
    assert_eq!(ops(&exact(&before.finish(), By::Always)), ["ConvTranspose"]);
    let mut biased = net(24, &[1, 4, 5, 4]);
    biased.conv(&Conv::square(4, 6, 1, 0));
    transposed(&mut biased, 6, 4, 1);
    let (after, report) = folded(&biased.finish().graph, By::Macs);
    assert_eq!(ops(&after), ["Conv", "ConvTranspose"]);
    let declined: Vec<_> = report.steps[0].declined.keys().collect();
    assert_eq!(declined, ["`v3`∘`v6`: the bias would differ between positions"]);
}

#[test]
fn merges_siblings_into_one_layer_and_a_split() {
    let mut attention = net(25, &[2, 5, 8]);
    let x = attention.last;
    for outputs in [8, 8, 4] {
        attention.last = x;
        matmul(&mut attention, 8, outputs);
        binary(&mut attention, "Add", &[outputs]);
        attention.node(Node::new("Relu"), &[attention.last]);
        attention.graph.add_output(attention.last);
    }
    attention.graph.reinfer().unwrap();
    let outputs = ["MatMul", "Add", "Split", "Relu", "Relu", "Relu"];
    assert_eq!(ops(&exact(&attention, By::Always)), outputs);

    let mut convs = net(26, &[1, 3, 6, 6]);
    let x = convs.last;
    for outputs in [2, 5] {
        convs.last = x;
        convs.conv(&Conv::square(3, outputs, 3, 1).stride(2));
        convs.node(Node::new("Relu"), &[convs.last]);
        convs.graph.add_output(convs.last);
    }
    convs.graph.reinfer().unwrap();
    assert_eq!(ops(&exact(&convs, By::Always)), ["Conv", "Split", "Relu", "Relu"]);
}

/// The cost of a composite over a flattened input is that of a `Gemm`: a product and a sum would be composed
/// again and again.
#[test]
fn composes_flattened_products_once() {
    let constants = "float[4,3] w = {1,2,3,4,5,6,7,8,9,8,7,6}, float[3] b = {1,2,3}, float[3] k = {2,-1,3}";
    for (nodes, expected) in [
        ("y = Add(p, b)", ["Flatten", "Gemm"]),
        ("s = Mul(p, k) y = Add(s, b)", ["Flatten", "Gemm"]),
        ("s = Sub(p, b) y = Div(s, k)", ["Flatten", "Gemm"]),
        ("y = Mul(p, k)", ["Flatten", "MatMul"]),
    ] {
        let source = format!(
            "g (float[2,4,1] x) => (float[2,3] y) <{constants}> {{ f = Flatten(x) p = MatMul(f, w) {nodes} }}"
        );
        let original = testing::model(&source);
        let mut changed = original.clone();
        testing::run_pass(FoldLinear { by: By::Macs }, &mut changed);
        assert_eq!(ops(&changed.graph), expected, "{nodes}");
        testing::same(&original, &changed, Effect::Rounding);
        assert_eq!(testing::run_pass(FoldLinear { by: By::Macs }, &mut changed).patches(), 0);
    }
}
