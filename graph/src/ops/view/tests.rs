use super::*;
use crate::{DataType, Dim, Fact, Graph, Node, NodeId, Tensor, Value};
use std::sync::Arc;

/// A graph of one node with an output.
fn one(opset: i64, node: Node, inputs: &[Value]) -> (Graph, NodeId) {
    let mut graph = Graph::new(Arc::new(vec![(String::new(), opset)]));
    let ids: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let id = graph.add_value(Value { name: format!("x{i}"), ..v.clone() }).unwrap();
            (v.name != "none").then_some(id)
        })
        .collect();
    let y = graph.add_value(Value::named("y")).unwrap();
    graph.add_output(y);
    let id = graph.add_node(node, &ids, &[Some(y)]).unwrap();
    (graph, id)
}

fn floats(shape: &[i64]) -> Value {
    let shape = shape.iter().map(|&d| if d < 0 { Dim::symbol("N") } else { Dim::from(d) }).collect();
    Value { fact: Fact::tensor(DataType::Float, shape), ..Value::default() }
}

fn ints(items: &[i64]) -> Value {
    Value::constant("", Tensor::vector(items))
}

fn reals(items: &[f32]) -> Value {
    Value::constant("", Tensor::vector(items))
}

fn none() -> Value {
    Value::named("none")
}

fn view<V>(opset: i64, node: Node, inputs: &[Value], of: impl Fn(NodeRef<'_>) -> Result<V, Decline>) -> V {
    let (graph, id) = one(opset, node, inputs);
    of(graph.at(id)).unwrap_or_else(|d| panic!("{d:?}"))
}

fn reason<V>(
    opset: i64,
    node: Node,
    inputs: &[Value],
    of: impl Fn(NodeRef<'_>) -> Result<V, Decline>,
) -> String {
    let (graph, id) = one(opset, node, inputs);
    match of(graph.at(id)) {
        Err(Decline::Because(why)) => why,
        Err(Decline::Mismatch) => "mismatch".into(),
        Ok(_) => "fits".into(),
    }
}

fn list(items: &[i64]) -> Vec<i64> {
    items.to_vec()
}

#[test]
fn reads_axes_from_attribute_or_input() {
    let x = || floats(&[2, 3, 4]);
    let reduce = |opset, node, inputs: &[Value]| view(opset, node, inputs, ReduceView::of);
    let wanted = ReduceView { axes: vec![1, 2], keepdims: false };
    let plain = || Node::new("ReduceMean").with("keepdims", 0);
    assert_eq!(reduce(13, plain().with("axes", list(&[-1, 1])), &[x()]), wanted);
    assert_eq!(reduce(18, plain(), &[x(), ints(&[2, -2])]), wanted);
    assert_eq!(reduce(18, Node::new("ReduceMax"), &[x()]).axes, [0, 1, 2]);
    let noop = Node::new("ReduceMax").with("noop_with_empty_axes", 1);
    assert_eq!(reduce(18, noop, &[x(), ints(&[])]).axes, [0; 0]);
    assert_eq!(
        reason(18, Node::new("ReduceMax"), &[x(), ints(&[3])], ReduceView::of),
        "ReduceMax producing `y` has axis 3 at rank 3"
    );
    let unknown = reason(18, Node::new("ReduceMax"), &[x(), floats(&[1])], ReduceView::of);
    assert_eq!(unknown, "`axes` of ReduceMax producing `y` is not constant");

    let squeeze = |opset, node, inputs: &[Value]| view(opset, node, inputs, SqueezeView::of).axes;
    assert_eq!(squeeze(11, Node::new("Squeeze"), &[floats(&[1, 3, 1])]), [0, 2]);
    assert_eq!(squeeze(13, Node::new("Squeeze"), &[floats(&[1, 3, 1]), ints(&[-1])]), [2]);
    let unsqueeze = view(13, Node::new("Unsqueeze"), &[x(), ints(&[-1, 0])], UnsqueezeView::of);
    assert_eq!(unsqueeze.axes, [0, 4]);
    assert_eq!(
        reason(13, Node::new("Unsqueeze"), &[x(), ints(&[0, -5])], UnsqueezeView::of),
        "Unsqueeze producing `y` has a duplicate axis"
    );
}

#[test]
fn reads_softmax_axes_by_operator_set() {
    let softmax = |opset, node| view(opset, node, &[floats(&[2, 3, 4])], SoftmaxView::of).axes;
    assert_eq!(softmax(12, Node::new("Softmax")), 1..3);
    assert_eq!(softmax(13, Node::new("Softmax")), 2..3);
    assert_eq!(softmax(13, Node::new("LogSoftmax").with("axis", -3)), 0..1);
    let unknown = reason(13, Node::new("Softmax"), &[Value::default()], SoftmaxView::of);
    assert_eq!(unknown, "the rank of `x0` is unknown");
}

#[test]
fn composes_and_inverts_permutations() {
    let of = |node, shape: &[i64]| view(13, node, &[floats(shape)], TransposeView::of);
    assert_eq!(of(Node::new("Transpose"), &[1, 2, 3]).perm, [2, 1, 0]);
    let p = of(Node::new("Transpose").with("perm", list(&[2, 0, 1])), &[5, 6, 7]);
    assert_eq!(p.inverse().perm, [1, 2, 0]);
    assert!(p.then(&p.inverse()).unwrap().is_identity() && !p.is_identity());
    // x[p[q]]: sizes 5, 6, 7 become 7, 5, 6 and then 6, 7, 5.
    assert_eq!(p.then(&p).unwrap().perm, [1, 2, 0]);
    let twice = Node::new("Transpose").with("perm", list(&[0, 0]));
    assert_eq!(
        reason(13, twice, &[floats(&[1, 2])], TransposeView::of),
        "`perm` of Transpose producing `y` is not a permutation"
    );
}

#[test]
fn resolves_padding_of_convolutions() {
    let conv = |node, x: &[i64], w: &[i64]| view(17, node, &[floats(x), floats(w)], ConvView::of);
    let plain = conv(Node::new("Conv"), &[-1, 8, 16, 16], &[4, 8, 1, 1]);
    let (kernel, strides, dilations, pads) = (vec![1, 1], vec![1, 1], vec![1, 1], vec![(0, 0); 2]);
    let wanted = ConvView { kernel, strides, dilations, pads, group: 1, outputs: 4, inputs: 8 };
    assert_eq!(plain, wanted);
    assert!(plain.is_pointwise() && !plain.is_depthwise());
    let padded = Node::new("Conv").with("pads", list(&[1, 2, 3, 4])).with("group", 8);
    let padded = conv(padded, &[-1, 8, 16, 16], &[8, 1, 3, 3]);
    assert_eq!(padded.pads, [(1, 3), (2, 4)]);
    assert!(padded.is_depthwise());
    let same = |kind: &str| Node::new("Conv").with("auto_pad", kind).with("strides", list(&[2]));
    // out = ⌈7/2⌉ = 4 windows of size 4 cover (4 − 1)·2 + 4 = 10 elements.
    assert_eq!(conv(same("SAME_UPPER"), &[1, 1, 7], &[1, 1, 4]).pads, [(1, 2)]);
    assert_eq!(conv(same("SAME_LOWER"), &[1, 1, 7], &[1, 1, 4]).pads, [(2, 1)]);
    assert_eq!(conv(same("VALID"), &[1, 1, 7], &[1, 1, 4]).pads, [(0, 0)]);
    let unknown = reason(17, same("SAME_UPPER"), &[floats(&[1, 1, -1]), floats(&[1, 1, 4])], ConvView::of);
    assert_eq!(unknown, "padding depends on the unknown size of `x0`");
    let unit = Node::new("Conv").with("auto_pad", "SAME_UPPER").with("dilations", list(&[2]));
    assert_eq!(conv(unit, &[1, 1, -1], &[1, 1, 4]).pads, [(3, 3)]);
    let groups = Node::new("Conv").with("group", 3);
    assert_eq!(
        reason(17, groups, &[floats(&[1, 4, 5]), floats(&[4, 1, 1])], ConvView::of),
        "Conv producing `y` has groups that do not divide its channels"
    );
    assert_eq!(same_pads(10, usize::MAX, 1, 2, true), None);
}

#[test]
fn reads_transposed_convolutions_and_pools() {
    let node = Node::new("ConvTranspose").with("strides", list(&[2])).with("output_padding", list(&[1]));
    let up = view(11, node, &[floats(&[1, 4, 5]), floats(&[4, 2, 3])], ConvTransposeView::of);
    assert_eq!((up.inputs, up.outputs, up.strides, up.output_padding), (4, 2, vec![2], vec![1]));
    let pool = Node::new("AveragePool").with("kernel_shape", list(&[3, 2])).with("ceil_mode", 1);
    let pool = view(19, pool.with("pads", list(&[1, 0, 1, 1])), &[floats(&[1, 4, 5, 5])], PoolView::of);
    let (kernel, strides, dilations, pads) = (vec![3, 2], vec![1, 1], vec![1, 1], vec![(1, 1), (0, 1)]);
    assert_eq!(pool, PoolView { kernel, strides, dilations, pads, ceil: true, counts_padding: false });
    let strides = Node::new("MaxPool").with("kernel_shape", list(&[2])).with("strides", list(&[0]));
    let zero = reason(12, strides, &[floats(&[1, 1, 4])], PoolView::of);
    assert_eq!(zero, "`strides` of MaxPool producing `y` is not positive");
}

#[test]
fn reads_gemm() {
    let gemm = Node::new("Gemm").with("alpha", 0.5_f32).with("transB", 1);
    let gemm = view(13, gemm, &[floats(&[2, 3]), floats(&[4, 3])], GemmView::of);
    assert_eq!(gemm, GemmView { alpha: 0.5, beta: 1.0, trans_a: false, trans_b: true });
    assert!(!gemm.is_linear());
    let old = reason(6, Node::new("Gemm"), &[floats(&[2, 3]), floats(&[3, 4])], GemmView::of);
    assert_eq!(old, "Gemm producing `y` has an operator set before 7");
}

#[test]
fn reads_batch_norm_as_affine_map() {
    let inputs = |variance| {
        [floats(&[1, 2, 3]), reals(&[2.0, -1.0]), reals(&[0.5, 0.0]), reals(&[1.0, 3.0]), reals(variance)]
    };
    let node = || Node::new("BatchNormalization").with("epsilon", 0.0_f32);
    let affine = view(15, node(), &inputs(&[4.0, 0.25]), AffineView::of);
    // s = 2/√4, −1/√¼; t = ½ − 1·1, 0 + 2·3
    assert_eq!(affine, AffineView { scale: vec![1.0, -2.0], shift: vec![-0.5, 6.0] });
    let zero = reason(15, node(), &inputs(&[0.0, 1.0]), AffineView::of);
    assert_eq!(zero, "BatchNormalization producing `y` has a variance that is not positive");
    let training = reason(15, node().with("training_mode", 1), &inputs(&[1.0, 1.0]), AffineView::of);
    assert_eq!(training, "BatchNormalization producing `y` is in training mode");
    let short = reason(15, node(), &inputs(&[1.0]), AffineView::of);
    assert_eq!(short, "BatchNormalization producing `y` has statistics of different lengths");
    assert_eq!(reason(15, Node::new("Relu"), &[floats(&[1])], AffineView::of), "mismatch");
}

#[test]
fn reads_clips_and_layer_norms() {
    let scalar = |v: f32| Value::constant("", Tensor::scalar(v));
    let clip = |opset, node, inputs: &[Value]| view(opset, node, inputs, ClipView::of);
    let six = ClipView { low: 0.0, high: 6.0 };
    assert_eq!(clip(13, Node::new("Clip"), &[floats(&[2]), scalar(0.0), scalar(6.0)]), six);
    assert_eq!(clip(6, Node::new("Clip").with("min", 0.0_f32).with("max", 6.0_f32), &[floats(&[2])]), six);
    let open = clip(13, Node::new("Clip"), &[floats(&[2]), none(), scalar(6.0)]);
    assert_eq!(open, ClipView { low: f64::NEG_INFINITY, high: 6.0 });
    assert_eq!(clip(13, Node::new("Relu"), &[floats(&[2])]), ClipView { low: 0.0, high: f64::INFINITY });
    let norm = view(17, Node::new("LayerNormalization"), &[floats(&[2, 3]), floats(&[3])], LayerNormView::of);
    assert_eq!(norm.axis, 1);
    assert!((norm.epsilon - 1e-5).abs() < 1e-12, "the default is a float");
}

#[test]
fn reads_slices_from_attributes_and_inputs() {
    let node = Node::new("Slice").with("starts", list(&[1, -3])).with("ends", list(&[9, i64::MAX]));
    let old = view(9, node, &[floats(&[4, 5])], SliceView::of);
    let new =
        view(13, Node::new("Slice"), &[floats(&[4, 5]), ints(&[1, -3]), ints(&[9, i64::MAX])], SliceView::of);
    assert_eq!(old, new);
    assert_eq!((new.axes[0].on(4), new.axes[1].on(5)), ((1, 3), (2, 3)));
    let back = [floats(&[4, 5]), ints(&[-1]), ints(&[i64::MIN]), ints(&[-1]), ints(&[-2])];
    let back = view(13, Node::new("Slice"), &back, SliceView::of).axes[0];
    assert_eq!(back, SliceAxis { axis: 1, start: -1, end: i64::MIN, step: -2 });
    assert_eq!(back.on(5), (4, 3));
    assert_eq!(back.on(0), (0, 0));
    let bad = reason(13, Node::new("Slice"), &[floats(&[4]), ints(&[0]), ints(&[1, 2])], SliceView::of);
    assert_eq!(bad, "Slice producing `y` has inconsistent starts, ends, axes or steps");
}

#[test]
fn slices_like_enumeration() {
    for (size, step) in (0..5_i64).flat_map(|n| [-3, -2, -1, 1, 2, 3].map(|s| (n, s))) {
        for (start, end) in (-7..7).flat_map(|a| (-7..7).map(move |b| (a, b))) {
            let counted = |place: i64| if place < 0 { place + size } else { place };
            let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
            let end_at = counted(end).max(low).min(high);
            let first = counted(start).max(0).min(high.max(0));
            let inside = |&place: &i64| if step > 0 { place < end_at } else { place > end_at };
            let places = std::iter::successors(Some(first), |p| Some(p + step)).take_while(inside);
            let length = if size == 0 { 0 } else { places.count() };
            let cut = SliceAxis { axis: 0, start, end, step }.on(size as usize);
            assert_eq!(cut, (first as usize, length), "{start}:{end}:{step} of {size}");
        }
    }
}

#[test]
fn reads_pads_splits_and_shapes() {
    let pad = |opset, node, inputs: &[Value]| view(opset, node, inputs, PadView::of);
    let old = Node::new("Pad").with("pads", list(&[0, 1, 0, 2])).with("value", 3.0_f32);
    let wanted = PadView { pads: vec![(0, 0), (1, 2)], mode: PadMode::Constant(3.0) };
    assert_eq!(pad(10, old, &[floats(&[4, 5])]), wanted);
    let three = Value::constant("", Tensor::scalar(3.0_f32));
    assert_eq!(pad(18, Node::new("Pad"), &[floats(&[4, 5]), ints(&[1, 2]), three, ints(&[-1])]), wanted);
    let edge = pad(13, Node::new("Pad").with("mode", "edge"), &[floats(&[4]), ints(&[1, 0])]);
    assert_eq!(edge, PadView { pads: vec![(1, 0)], mode: PadMode::Edge });

    let split = |opset, node, inputs: &[Value]| view(opset, node, inputs, SplitView::of);
    let wanted = SplitView { axis: 1, sizes: vec![2, 3] };
    let node = Node::new("Split").with("axis", -1);
    assert_eq!(split(11, node.clone().with("split", list(&[2, 3])), &[floats(&[4, 5])]), wanted);
    assert_eq!(split(13, node.clone(), &[floats(&[4, 5]), ints(&[2, 3])]), wanted);
    assert_eq!(split(13, node.clone(), &[floats(&[4, 5])]).sizes, [5]);
    let unknown = reason(13, node, &[floats(&[4, -1])], SplitView::of);
    assert_eq!(unknown, "Split producing `y` splits an axis of unknown size");

    let shape = view(14, Node::new("Reshape"), &[floats(&[4]), ints(&[0, -1])], ReshapeView::of);
    assert_eq!(shape, ReshapeView { target: vec![0, -1], allow_zero: false });
}

#[test]
fn treats_random_operators_as_non_deterministic() {
    let is = |opset, node, inputs: &[Value]| {
        let (graph, id) = one(opset, node, inputs);
        is_deterministic(graph.at(id))
    };
    let x = || floats(&[2]);
    assert!(is(13, Node::new("Relu"), &[x()]));
    assert!(!is(13, Node::new("RandomNormalLike").with("seed", 1.0_f32), &[x()]));
    assert!(!is(15, Node::new("Bernoulli"), &[x()]) && !is(13, Node::new("Multinomial"), &[x()]));
    assert!(!is(6, Node::new("Dropout"), &[x()]) && is(6, Node::new("Dropout").with("is_test", 1), &[x()]));
    assert!(is(11, Node::new("Dropout"), &[x()]) && is(13, Node::new("Dropout"), &[x()]));
    let flag = |on: bool| Value::constant("", Tensor::scalar(on));
    assert!(!is(13, Node::new("Dropout"), &[x(), none(), flag(true)]));
    assert!(is(13, Node::new("Dropout"), &[x(), none(), flag(false)]));
    assert!(!is(13, Node::new("Dropout"), &[x(), none(), x()]), "the training flag is unknown");
    assert!(!is(13, Node::new("Unknown"), &[x()]));

    let (noise, _) = one(13, Node::new("RandomNormal").with("shape", list(&[2])), &[]);
    let (still, _) = one(13, Node::new("Relu"), &[x()]);
    let branches = |then: &Graph| {
        let body = |graph: &Graph| Attribute::Graph(Box::new(graph.clone()));
        Node::new("If").with("then_branch", body(then)).with("else_branch", body(&still))
    };
    assert!(is(13, branches(&still), &[x()]));
    assert!(!is(13, branches(&noise), &[x()]));
}

#[test]
fn declines_attributes_of_the_caller() {
    let reference = Attribute::Reference { name: "axis".into(), kind: 2 };
    let softmax = Node::new("Softmax").with("axis", reference);
    let why = reason(13, softmax, &[floats(&[1, 2])], SoftmaxView::of);
    assert_eq!(why, "attributes of Softmax producing `y` are set by the caller");
}
