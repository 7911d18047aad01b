use super::*;
use crate::{
    analysis::groups::GroupKind,
    framework::{
        Effect, Report,
        testing::{check, declines, model, read_fixture, run_pass, run_pass_with, same, tools},
    },
};
use pare_graph::{Tensor, text};

/// Runs the pass on a graph and compares the outputs. Returns the result and the number of dropped channels.
fn dropped(source: &str) -> (Model, u64) {
    let original = model(source);
    let mut changed = original.clone();
    let report = run_pass_with(DropDeadChannels {}, &mut changed, tools());
    same(&original, &changed, Effect::Rounding);
    (changed, count(&report))
}

fn count(report: &Report) -> u64 {
    report.steps.last().unwrap().count("channels dropped")
}

#[test]
fn merges_constants_into_the_bias_without_padding() {
    check(
        DropDeadChannels {},
        "g (float[N,2] x) => (float[N,1] y)
            <float[2,2] w = {1, 0, 2, 0}, float[2] b = {0.5, 2}, float[2,1] v = {3, 4}, float[1] c = {1}> {
            h = Gemm(x, w, b) a = Relu(h) y = Gemm(a, v, c) }",
        "g (float[N,2] x) => (float[N,1] y)
            <float[2,1] w = {1, 2}, float[1] b = {0.5}, float[1,1] v = {3}, float[1] c = {9}> {
            h = Gemm(x, w, b) a = Relu(h) y = Gemm(a, v, c) }",
    );
}

/// Three constants and a live channel over padding: the constants are merged into one of them.
#[test]
fn keeps_one_constant_over_padding() {
    let source = "g (float[1,1,4,4] x) => (float[1,1,4,4] y)
        <float[4,1,1,1] w = {1, 0, 0, 0}, float[4] b = {0.5, 2, -1, 4},
         float[1,4,3,3] v = {1,2,3,4,5,6,7,8,9, 1,0,1,0,1,0,1,0,1, 9,9,9,9,9,9,9,9,9, 2,1,2,1,2,1,2,1,2}> {
        h = Conv(x, w, b) a = Relu(h) y = Conv<pads = [1, 1, 1, 1]>(a, v) }";
    let (changed, count) = dropped(source);
    let shape =
        |name: &str| changed.graph.value_ref(changed.graph.find(name).unwrap()).fixed_shape().unwrap();
    // The third constant is zero after the Relu.
    assert_eq!((count, shape("w")), (2, vec![2, 1, 1, 1]));
}

#[test]
fn merges_multiples_into_the_largest() {
    check(
        DropDeadChannels {},
        "g (float[N,2] x) => (float[N,2] y)
            <float[2,3] w = {1, 2, 5, -1, -2, 5}, float[3] b = {0.5, 1, 0}, float[3,2] v = {1, 2, 3, 4, 5, 6}> {
            h = Gemm(x, w, b) a = LeakyRelu(h) y = MatMul(a, v) }",
        "g (float[N,2] x) => (float[N,2] y)
            <float[2,2] w = {2, 5, -2, 5}, float[2] b = {1, 0}, float[2,2] v = {3.5, 5, 5, 6}> {
            h = Gemm(x, w, b) a = LeakyRelu(h) y = MatMul(a, v) }",
    );
}

#[test]
fn merges_only_equal_channels_before_inhomogeneous_functions() {
    let graph = |b: &str| {
        format!(
            "g (float[N,2] x) => (float[N,1] y)
                <float[2,2] w = {{1, {b}, -1, -{b}}}, float[2,1] v = {{1, 2}}> {{
                h = MatMul(x, w) a = Sigmoid(h) y = MatMul(a, v) }}"
        )
    };
    assert_eq!(dropped(&graph("2")).1, 0);
    assert_eq!(dropped(&graph("1")).1, 1);
}

#[test]
fn keeps_opposite_channels_before_relu() {
    let graph = |op: &str| {
        format!(
            "g (float[N,1] x) => (float[N,1] y) <float[1,2] w = {{1, -1}}, float[2,1] v = {{1, 2}}> {{
                h = MatMul(x, w) a = {op}(h) y = MatMul(a, v) }}"
        )
    };
    assert_eq!(dropped(&graph("Relu")).1, 0);
    assert_eq!(dropped(&graph("Neg")).1, 1);
}

/// The last channel of the second layer is unread; without it, the last channel of the first layer is unread.
#[test]
fn drops_channels_read_only_by_dropped_channels() {
    let (changed, count) = dropped(
        "g (float[N,1] x) => (float[N,1] y)
            <float[1,3] u = {1, 2, 3}, float[3,3] w = {1, 2, 3, 4, -5, 6, 0, 0, 7}, float[3,1] v = {1, 1, 0}> {
            a = MatMul(x, u) b = Sigmoid(a) c = MatMul(b, w) d = Sigmoid(c) y = MatMul(d, v) }",
    );
    let shape =
        |name: &str| changed.graph.value_ref(changed.graph.find(name).unwrap()).fixed_shape().unwrap();
    assert_eq!((count, shape("u"), shape("w")), (2, vec![1, 2], vec![2, 2]));
}

#[test]
fn keeps_stream_channels_that_one_producer_computes() {
    let source = |v: &str| {
        format!(
            "g (float[N,1] x) => (float[N,1] y)
                <float[1,2] u = {{1, 0}}, float[1,2] v = {{2, {v}}}, float[2] b = {{0, 3}}, float[2,1] w = {{1, 5}},
                 float[1] c = {{0}}> {{
                p = MatMul(x, u) q = Gemm(x, v, b) s = Add(p, q) r = Relu(s) y = Gemm(r, w, c) }}"
        )
    };
    assert_eq!(dropped(&source("7")).1, 0);
    assert_eq!(dropped(&source("0")).1, 1);
}

#[test]
fn propagates_constants_through_norms_pools_and_flatten() {
    let (_, count) = dropped(
        "g (float[2,1,4,4] x) => (float[2,1] y)
            <float[4,1,1,1] w = {1, 0, 2, 0}, float[4] b = {0, 1, 0, 2},
             float[4] s = {1, 2, 3, 4}, float[4] t = {0, -1, 1, 3}, float[4] m = {0, 0, 1, 0}, float[4] r = {1, 1, 1, 1},
             int64[5] split = {0, 2, 2, 4, 4}, int64[4] back = {0, 4, 4, 4},
             float[16,1] v = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[1] c = {0}> {
            h = Conv(x, w, b) n = BatchNormalization(h, s, t, m, r) a = HardSwish(n)
            p = MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 0, 0]>(a)
            f = Flatten(p) y = Gemm(f, v, c) }",
    );
    assert_eq!(count, 2);
}

#[test]
fn keeps_shared_weights() {
    let why = declines(
        DropDeadChannels {},
        "g (float[N,2] x) => (float[N,2] y, float[2,2] z)
            <float[2,2] w = {1, 0, 2, 0}, float[2,2] v = {3, 4, 5, 6}, float[2,2] i = {1, 1, 1, 1}> {
            h = MatMul(x, w) a = Sigmoid(h) y = MatMul(a, v) z = Add(v, i) }",
    );
    assert!(why.is_empty(), "{why:?}");
}

/// 30 % of the filters of trained networks are set to zero; batch norms shift them to constants.
#[test]
fn drops_zeroed_filters_of_trained_networks() {
    for (name, least) in [("digits-cnn", 0.9), ("digits-vit", 1.0)] {
        let mut original = read_fixture(&format!("{name}.onnx"));
        let inner = zero_filters(&mut original, 7);
        let mut changed = original.clone();
        let report = run_pass(DropDeadChannels {}, &mut changed);
        same(&original, &changed, Effect::Rounding);
        let dropped = count(&report);
        assert!(dropped as f64 >= least * inner as f64, "{name}: {dropped} of {inner}");
    }
}

/// Sets 30 % of the outputs of each linear operator to zero. Returns the number of removable units among
/// them.
fn zero_filters(model: &mut Model, seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let groups = Groups::of(&model.graph);
    let mut inner = 0;
    let mut patch = None;
    for role in roles(&model.graph) {
        let (graph, axis) = (&model.graph, role.linear.weight_axes().0);
        let Ok(tensor) = graph.value_ref(role.linear.weight).constant() else { continue };
        let (mut values, size) = (tensor.to_f64().unwrap(), tensor.shape()[axis]);
        let after: usize = tensor.shape()[axis + 1..].iter().product();
        let prunable = role.produces(&groups).iter().all(|&g| {
            let group = &groups.groups[g];
            // A row of a head is not a unit.
            group.pinned.is_none() && !matches!(group.kind, GroupKind::Stream | GroupKind::Heads)
        });
        for o in (0..size).filter(|_| rng.f64() < 0.3) {
            let of_o = |k: usize| k / after % size == o;
            (0..values.len()).filter(|&k| of_o(k)).for_each(|k| values[k] = 0.0);
            inner += usize::from(prunable && !role.produces(&groups).is_empty());
        }
        let new = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).unwrap();
        patch.get_or_insert_with(|| Patch::anchored(role.node)).set_data(role.linear.weight, new);
    }
    model.graph.apply(patch.unwrap()).unwrap();
    inner
}

#[test]
fn preserves_the_outputs_of_random_graphs() {
    let mut dropped = 0;
    for seed in 0..80 {
        let mut original = crate::analysis::groups::tests::random_graph(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        kill_channels(&mut original.graph, &mut rng);
        let mut changed = original.clone();
        let report = run_pass(DropDeadChannels {}, &mut changed);
        dropped += count(&report);
        if count(&report) > 0 {
            crate::analysis::groups::tests::equal(&original.graph, &changed.graph, seed);
        }
    }
    assert!(dropped > 200, "{dropped}");
}

/// Sets some rows and columns of weights to zero, and some rows to multiples of others.
fn kill_channels(graph: &mut Graph, rng: &mut fastrand::Rng) {
    let mut patch: Option<Patch> = None;
    for role in roles(graph).iter().filter(|r| r.linear.owns_weight(graph)) {
        let Some(mut maps) = role.linear.maps(graph) else { continue };
        for AffineMap { weight, bias } in &mut maps {
            for o in 0..weight.nrows() {
                let factor = [0.0, 0.0, 1.0, 0.5][rng.usize(0..4)];
                let from = rng.usize(0..weight.nrows());
                if rng.u8(0..3) > 0 {
                    continue;
                }
                (0..weight.ncols()).for_each(|i| weight[(o, i)] = factor * weight[(from, i)]);
                bias[o] = if factor == 0.0 { bias[o] } else { factor * bias[from] };
            }
            if rng.u8(0..4) == 0 {
                let column = rng.usize(0..weight.ncols());
                (0..weight.nrows()).for_each(|o| weight[(o, column)] = 0.0);
            }
        }
        let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
        let weights: Vec<_> = maps.into_iter().map(|m| m.weight).collect();
        role.linear.store(graph, patch.get_or_insert_with(|| Patch::anchored(role.node)), &weights, &bias);
    }
    if let Some(patch) = patch {
        graph.apply(patch).unwrap();
    }
}

#[test]
fn leaves_graphs_without_dead_channels_unchanged() {
    let source = "g (float[N,1] x) => (float[N,1] y) <float[1,2] w = {1, 2}, float[2,1] v = {1, 2}> {
        h = MatMul(x, w) a = Sigmoid(h) y = MatMul(a, v) }";
    let (changed, count) = dropped(source);
    assert_eq!((text::print_graph(&changed.graph), count), (text::print_graph(&model(source).graph), 0));
}
