use super::{
    DowngradeOpset, UpgradeOpset,
    table::{ADAPTERS, adapter},
};
use crate::{
    analysis::opset::OpsetPolicy,
    framework::{
        Effect, Pass, Tools,
        testing::{context, model, model_at, run_pass, same},
    },
    transforms::fuse::{FuseGelu, FuseLayerNorm},
};
use pare_graph::{
    Model,
    ops::{newest_opset, operators, schema},
    text::{parse_model, print_graph, print_model},
};

/// Rows for changes that schemas do not show.
const NOT_IN_SCHEMAS: &[(&str, i64)] = &[
    // It is replaced where `Resize` has its coordinates.
    ("Upsample", 11),
    // A coordinate transformation is removed.
    ("Resize", 13),
    // Windows in the padding are dropped.
    ("MaxPool", 22),
    ("AveragePool", 22),
    // A case that was undefined is defined.
    ("Mod", 28),
];

/// Experimental operators of the engine that operator set 10 removed: their nodes are declined by name.
const REMOVED: &[(&str, i64)] = &[
    ("Affine", 10),
    ("Crop", 10),
    ("ImageScaler", 10),
    ("ParametricSoftplus", 10),
    ("Scale", 10),
    ("ScaledTanh", 10),
];

#[test]
fn removed_operators_have_no_adapter() {
    for &(op, version) in REMOVED {
        let removed = schema("", op, version).is_some_and(|s| s.deprecated);
        assert!(removed && adapter(op, version).is_none(), "{op}");
    }
    let mut old = model_at("g (float[N,2] x) => (float[N,2] y) { y = Affine <alpha = 2.0> (x) }", 9);
    let mut cx = context(Tools::default());
    UpgradeOpset { to: 13 }.run(&mut old, &mut cx).unwrap();
    let declined: Vec<_> = cx.report.declined.keys().cloned().collect();
    assert_eq!(declined, ["Affine producing `y` has no known form in operator set 10"]);
    assert_eq!(old.graph.opset(""), Some(9));
}

#[test]
fn layer_norms_of_the_engine_become_standard() {
    let text = |scale: &str| {
        format!("g (float[N,2] x, {scale}[2] s) => (float[N,2] y) {{ y = LayerNormalization(x, s) }}")
    };
    let mut plain = model_at(&text("float"), 12);
    UpgradeOpset { to: 17 }.run(&mut plain, &mut context(Tools::default())).unwrap();
    assert_eq!(plain.graph.opset(""), Some(17));
    let mut mixed = model_at(&text("float16"), 12);
    let mut cx = context(Tools::default());
    UpgradeOpset { to: 17 }.run(&mut mixed, &mut cx).unwrap();
    let declined: Vec<_> = cx.report.declined.keys().cloned().collect();
    let why = "`s` has another type than `x`, which LayerNormalization producing `y` does not allow in operator set 17";
    assert_eq!(declined, [why]);
}

/// The versions of an operator that change something in an operator set after the oldest that is converted.
fn changes(op: &str) -> impl Iterator<Item = i64> {
    let newest = newest_opset("").unwrap();
    (8..=newest).filter(move |&version| {
        let (old, new) = (schema("", op, version - 1), schema("", op, version));
        old.zip(new).is_some_and(|(old, new)| new.since == version && !new.extends(old))
    })
}

#[test]
fn every_version_that_changes_more_than_types_has_a_row() {
    let newest = newest_opset("").unwrap();
    let mut names: Vec<_> = (7..=newest).flat_map(|version| operators("", version)).collect();
    names.sort_unstable();
    names.dedup();
    let mut missing = vec![];
    for op in &names {
        let is_missing = |v: &i64| adapter(op, *v).is_none() && !REMOVED.contains(&(*op, *v));
        missing.extend(changes(op).filter(is_missing).map(|v| format!("{op} {v}")));
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_row_belongs_to_a_version() {
    for row in ADAPTERS {
        for op in row.ops {
            let rows = ADAPTERS.iter().filter(|a| a.since == row.since && a.ops.contains(op)).count();
            assert_eq!(rows, 1, "{op} {}", row.since);
            let known = changes(op).any(|version| version == row.since);
            assert!(known || NOT_IN_SCHEMAS.contains(&(op, row.since)), "{op} {}", row.since);
        }
    }
}

/// Runs a pass without the checks around it, which reject deprecated operators.
fn converted(pass: &impl Pass, original: &Model) -> (Model, Vec<String>) {
    let (mut changed, mut cx) = (original.clone(), context(Tools::default()));
    changed.infer().unwrap();
    pass.run(&mut changed, &mut cx).unwrap();
    (changed, cx.report.declined.keys().cloned().collect())
}

/// Asserts that `pass` turns the graph `before` of operator set `from` into `after` of set `to`, and that both
/// compute the same.
fn converts(pass: &impl Pass, from: i64, before: &str, to: i64, after: &str) {
    let original = model_at(before, from);
    let (changed, reasons) = converted(pass, &original);
    assert_eq!(reasons, [""; 0], "{before}");
    assert_eq!(changed.graph.opset(""), Some(to));
    assert_eq!(changed.opsets, changed.graph.opsets);
    assert_eq!(print_graph(&changed.graph), print_graph(&model_at(after, to).graph));
    same(&original, &changed, Effect::Rounding);
}

fn upgrades(from: i64, before: &str, to: i64, after: &str) {
    converts(&UpgradeOpset { to }, from, before, to, after);
}

fn downgrades(from: i64, before: &str, to: i64, after: &str) {
    converts(&DowngradeOpset { to }, from, before, to, after);
}

/// Both directions.
fn converts_both_ways(old: i64, before: &str, new: i64, after: &str) {
    upgrades(old, before, new, after);
    downgrades(new, after, old, before);
}

/// Asserts that nothing changes, and returns the reasons.
fn declines(pass: impl Pass, from: i64, before: &str) -> Vec<String> {
    let original = model_at(before, from);
    let (changed, reasons) = converted(&pass, &original);
    assert_eq!(print_model(&changed), print_model(&original));
    reasons
}

#[test]
fn attributes_become_inputs_and_attributes_again() {
    for (old, before, new, after) in [
        (
            9,
            "g (float[2,6] x) => (float[2,3] y) { y = Slice <starts = [2], ends = [-1], axes = [1]>(x) }",
            10,
            "g (float[2,6] x) => (float[2,3] y)
            <int64[1] y_starts = {2}, int64[1] y_ends = {-1}, int64[1] y_axes = {1}>
            { y = Slice(x, y_starts, y_ends, y_axes) }",
        ),
        (
            9,
            "g (float[2,6] x) => (float[2,3] v, int64[2,3] i) { v, i = TopK <k = 3>(x) }",
            10,
            "g (float[2,6] x) => (float[2,3] v, int64[2,3] i) <int64[1] v_k = {3}> { v, i = TopK(x, v_k) }",
        ),
        (
            10,
            "g (float[3] x) => (float[3] y) { y = Clip <max = 0.5>(x) }",
            11,
            "g (float[3] x) => (float[3] y) <float y_max = {0.5}> { y = Clip(x, \"\", y_max) }",
        ),
        (
            10,
            "g (float[2,3] x) => (float[3,5] y) { y = Pad <pads = [1,0,0,2], value = 1.5>(x) }",
            11,
            "g (float[2,3] x) => (float[3,5] y) <int64[4] y_pads = {1,0,0,2}, float y_value = {1.5}>
            { y = Pad(x, y_pads, y_value) }",
        ),
        (
            12,
            "g (float[2,1,3] x) => (float[2,3] y) { y = Squeeze <axes = [1]>(x) }",
            13,
            "g (float[2,1,3] x) => (float[2,3] y) <int64[1] y_axes = {1}> { y = Squeeze(x, y_axes) }",
        ),
        (
            12,
            "g (float[N,3] x) => (float[N,1,3] y) { y = Unsqueeze <axes = [1]>(x) }",
            13,
            "g (float[N,3] x) => (float[N,1,3] y) <int64[1] y_axes = {1}> { y = Unsqueeze(x, y_axes) }",
        ),
        (
            12,
            "g (float[N,3] x) => (float[N] y) { y = ReduceSum <keepdims = 0, axes = [1]>(x) }",
            13,
            "g (float[N,3] x) => (float[N] y) <int64[1] y_axes = {1}>
            { y = ReduceSum <keepdims = 0>(x, y_axes) }",
        ),
        (
            17,
            "g (float[N,3] x) => (float[N,1] y) { y = ReduceMax <axes = [-1]>(x) }",
            18,
            "g (float[N,3] x) => (float[N,1] y) <int64[1] y_axes = {-1}> { y = ReduceMax(x, y_axes) }",
        ),
        (
            12,
            "g (float[2,6] x) => (float[2,2] y, float[2,4] z) { y, z = Split <axis = 1, split = [2,4]>(x) }",
            13,
            "g (float[2,6] x) => (float[2,2] y, float[2,4] z) <int64[2] y_split = {2,4}>
            { y, z = Split <axis = 1>(x, y_split) }",
        ),
        (
            17,
            "g (float[2,6] x) => (float[2,3] y, float[2,3] z) { y, z = Split <axis = 1>(x) }",
            18,
            "g (float[2,6] x) => (float[2,3] y, float[2,3] z)
            { y, z = Split <axis = 1, num_outputs = 2>(x) }",
        ),
        (
            19,
            "g (float[1,5,4,2] x) => (float[1,5,4,2] y) { y = DFT <axis = 2>(x) }",
            20,
            "g (float[1,5,4,2] x) => (float[1,5,4,2] y) <int64 y_axis = {2}> { y = DFT(x, \"\", y_axis) }",
        ),
        (
            19,
            "g (float[1,1,4,4] x, float[1,3,3,2] grid) => (float[1,1,3,3] y)
            { y = GridSample <mode = \"bicubic\">(x, grid) }",
            20,
            "g (float[1,1,4,4] x, float[1,3,3,2] grid) => (float[1,1,3,3] y)
            { y = GridSample <mode = \"cubic\">(x, grid) }",
        ),
    ] {
        converts_both_ways(old, before, new, after);
    }
}

#[test]
fn softmax_of_several_axes_is_flattened() {
    // The last axis, and axes of size 1.
    upgrades(
        12,
        "g (float[N,3] x) => (float[N,3] y) { y = Softmax(x) }",
        13,
        "g (float[N,3] x) => (float[N,3] y) { y = Softmax <axis = 1>(x) }",
    );
    upgrades(
        9,
        "g (float[N,3,1,1] x) => (float[N,3,1,1] y) { y = LogSoftmax <axis = 1>(x) }",
        13,
        "g (float[N,3,1,1] x) => (float[N,3,1,1] y) { y = LogSoftmax <axis = 1>(x) }",
    );
    upgrades(
        12,
        "g (float[2,1,3] x) => (float[2,1,3] y) { y = Hardmax(x) }",
        13,
        "g (float[2,1,3] x) => (float[2,1,3] y) { y = Hardmax <axis = 2>(x) }",
    );
    // Two axes, of known and of unknown sizes.
    upgrades(
        12,
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }",
        13,
        "g (float[2,3,4] x) => (float[2,3,4] y) <int64[3] y_shape = {2,3,4}>
        { y_1 = Flatten <axis = 1>(x) y_2 = Softmax <axis = -1>(y_1) y = Reshape(y_2, y_shape) }",
    );
    upgrades(
        9,
        "g (float[2,H,W] x) => (float[2,H,W] y) { y = Hardmax(x) }",
        13,
        "g (float[2,H,W] x) => (float[2,H,W] y)
        { y_1 = Flatten <axis = 1>(x) y_2 = Hardmax <axis = -1>(y_1) y_3 = Shape(x) y = Reshape(y_2, y_3) }",
    );
    let why = declines(
        DowngradeOpset { to: 12 },
        13,
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax <axis = 1>(x) }",
    );
    assert_eq!(why, ["Softmax producing `y` normalizes axis 1 only, operator set 12 all axes from it on"]);
}

#[test]
fn upsample_becomes_resize() {
    let (x, y) = ("float[1,1,3,3] x", "float[1,1,6,6] y");
    let old = format!("g ({x}) => ({y}) {{ y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]>(x) }}");
    let scales = "float[4] y_scales = {1, 1, 2, 2}";
    upgrades(7, &old, 9, &format!("g ({x}) => ({y}) <{scales}> {{ y = Upsample(x, y_scales) }}"));
    upgrades(7, &old, 10, &format!("g ({x}) => ({y}) <{scales}> {{ y = Resize(x, y_scales) }}"));
    let resize = "Resize <coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\">";
    upgrades(
        7,
        &old,
        11,
        &format!("g ({x}) => ({y}) <{scales}, float[0] y_roi = {{}}> {{ y = {resize}(x, y_roi, y_scales) }}"),
    );
    let newest = format!("g ({x}) => ({y}) <{scales}> {{ y = {resize}(x, \"\", y_scales) }}");
    upgrades(7, &old, 21, &newest);
    downgrades(21, &newest, 10, &format!("g ({x}) => ({y}) <{scales}> {{ y = Resize(x, y_scales) }}"));
    // Scales that are computed are at least 1.
    upgrades(
        9,
        "g (float[1,1,3,3] x) => (float[1,1,H,W] y) <float[4] s = {1, 1, 2, 2}> { t = Max(s) y = Upsample(x, t) }",
        21,
        &format!(
            "g (float[1,1,3,3] x) => (float[1,1,H,W] y) <float[4] s = {{1, 1, 2, 2}}>
            {{ t = Max(s) y = {resize}(x, \"\", t) }}"
        ),
    );
}

#[test]
fn resize_rounds_by_direction() {
    let grow = "coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\"";
    let shrink = "coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"ceil\"";
    upgrades(
        10,
        "g (float[1,1,5,4] x) => (float[1,1,3,2] y) <float[4] s = {1, 1, 0.6, 0.6}> { y = Resize(x, s) }",
        18,
        &format!(
            "g (float[1,1,5,4] x) => (float[1,1,3,2] y) <float[4] s = {{1, 1, 0.6, 0.6}}>
            {{ y = Resize <{shrink}>(x, \"\", s) }}"
        ),
    );
    upgrades(
        10,
        "g (float[1,1,2,4] x) => (float[1,1,4,2] y) <float[4] s = {1, 1, 2, 0.6}> { y = Resize(x, s) }",
        18,
        &format!(
            "g (float[1,1,2,4] x) => (float[1,1,4,2] y)
            <float[4] y_scales = {{1, 1, 2, 1}}, float[4] y_scales_1 = {{1, 1, 1, 0.6}}>
            {{ y_1 = Resize <{grow}>(x, \"\", y_scales) y = Resize <{shrink}>(y_1, \"\", y_scales_1) }}"
        ),
    );
    upgrades(
        10,
        "g (float[1,1,5,4] x) => (float[1,1,3,2] y) <float[4] s = {1, 1, 0.6, 0.6}>
        { y = Resize <mode = \"linear\">(x, s) }",
        13,
        "g (float[1,1,5,4] x) => (float[1,1,3,2] y) <float[4] s = {1, 1, 0.6, 0.6}>
        { y = Resize <mode = \"linear\", coordinate_transformation_mode = \"asymmetric\">(x, \"\", s) }",
    );
    let why = declines(
        UpgradeOpset { to: 11 },
        10,
        "g (float[1,1,H,W] x, float[4] s) => (float[1,1,A,B] y) { y = Resize(x, s) }",
    );
    assert_eq!(
        why,
        ["the scales of Resize producing `y` are computed, and its rounding depends on their direction"]
    );
}

#[test]
fn half_pixels_of_nearest_neighbours_are_rounded_up() {
    for (old, new) in [("floor", "round_prefer_ceil"), ("round_prefer_floor", "ceil")] {
        let graph = |coordinates: &str, rounding: &str, roi: &str, constants: &str| {
            format!(
                "g (float[1,1,4,4] x) => (float[1,1,7,2] y) <float[4] s = {{1, 1, 1.75, 0.5}}{constants}>
                {{ y = Resize <coordinate_transformation_mode = \"{coordinates}\",
                nearest_mode = \"{rounding}\">(x, {roi}, s) }}"
            )
        };
        upgrades(
            11,
            &graph("tf_half_pixel_for_nn", old, "roi", ", float[0] roi = {}"),
            13,
            &graph("half_pixel", new, "\"\"", ""),
        );
    }
}

#[test]
fn normalizations_keep_their_parameters() {
    let five =
        "float[3] s = {1, 2, 3}, float[3] b = {1, 0, 1}, float[3] m = {0, 1, 0}, float[3] v = {1, 2, 1}";
    let norm = |attributes: &str| {
        format!(
            "g (float[N,3,2] x) => (float[N,3,2] y) <{five}> {{ y = BatchNormalization{attributes}(x, s, b, m, v) }}"
        )
    };
    upgrades(7, &norm(" <epsilon = 0.1, spatial = 1>"), 21, &norm(" <epsilon = 0.1>"));
    downgrades(21, &norm(" <epsilon = 0.1>"), 7, &norm(" <epsilon = 0.1>"));
    let why = declines(
        UpgradeOpset { to: 14 },
        9,
        "g (float[2,3] x, float[3] s, float[3] m) => (float[2,3] y, float[3] a) {
        y, a, c, d, e = BatchNormalization(x, s, s, m, s) }",
    );
    assert_eq!(why, ["BatchNormalization producing `y` is in training mode"]);
    // One scale for every element.
    let elements = "float[2,2] s = {1, 2, 3, 4}, float[2,2] b = {1, 0, 1, 0}, float[2,2] m = {0, 1, 0, 1}, \
        float[2,2] v = {1, 2, 1, 2}";
    upgrades(
        8,
        &format!(
            "g (float[N,2,2] x) => (float[N,2,2] y) <{elements}>
            {{ y = BatchNormalization <spatial = 0, epsilon = 0.5>(x, s, b, m, v) }}"
        ),
        9,
        &format!(
            "g (float[N,2,2] x) => (float[N,2,2] y) <{elements}, float y_epsilon = {{0.5}}>
            {{ y_1 = Sub(x, m) y_2 = Add(v, y_epsilon) y_3 = Sqrt(y_2) y_4 = Div(y_1, y_3) y_5 = Mul(y_4, s)
            y = Add(y_5, b) }}"
        ),
    );
    // One scale for each channel instead of each group.
    let groups = "GroupNormalization <epsilon = 0.001, num_groups = 2>";
    upgrades(
        18,
        &format!(
            "g (float[N,4,3] x) => (float[N,4,3] y) <float[2] s = {{1, 2}}, float[2] b = {{3, 4}}>
            {{ y = {groups}(x, s, b) }}"
        ),
        21,
        &format!(
            "g (float[N,4,3] x) => (float[N,4,3] y) <float[4] y_scale = {{1, 1, 2, 2}}, float[4] y_bias = {{3, 3, 4, 4}}>
            {{ y = {groups}(x, y_scale, y_bias) }}"
        ),
    );
    let computed = |s: &str, b: &str, constants: &str, nodes: &str| {
        format!(
            "g (float[N,4,3] x, float[2] s) => (float[N,4,3] y) {constants} {{ {nodes} y = {groups}(x, {s}, {b}) }}"
        )
    };
    upgrades(
        18,
        &computed("s", "s", "", ""),
        21,
        &computed(
            "y_3",
            "y_6",
            "<int64[2] y_shape = {2, 1}, int64[2] y_shape_1 = {2, 2}, int64[1] y_shape_2 = {-1},
            int64[2] y_shape_3 = {2, 1}, int64[2] y_shape_4 = {2, 2}, int64[1] y_shape_5 = {-1}>",
            "y_1 = Reshape(s, y_shape) y_2 = Expand(y_1, y_shape_1) y_3 = Reshape(y_2, y_shape_2)
            y_4 = Reshape(s, y_shape_3) y_5 = Expand(y_4, y_shape_4) y_6 = Reshape(y_5, y_shape_5)",
        ),
    );
}

#[test]
fn windows_in_the_padding_are_dropped_since_set_22() {
    let pool = |size: &str, kernel: u8, end: u8| {
        format!(
            "g (float[1,1,{size}] x) => (float[1,1,M] y)
            {{ y = MaxPool <ceil_mode = 1, kernel_shape = [{kernel}], pads = [0, {end}], strides = [2]>(x) }}"
        )
    };
    // The window spans the stride and the padding, or the last one starts in time.
    for graph in [pool("L", 3, 1), pool("L", 2, 0), pool("5", 2, 1)] {
        converts_both_ways(12, &graph, 22, &graph);
    }
    let why =
        "MaxPool producing `y` may have a window that starts in the padding, which operator set 22 drops";
    for graph in [pool("L", 2, 1), pool("4", 2, 1)] {
        assert_eq!(declines(UpgradeOpset { to: 22 }, 12, &graph), [why]);
        assert_eq!(declines(DowngradeOpset { to: 12 }, 22, &graph), [why]);
    }
    let mods = "g (float[3] x, float[3] z) => (float[3] y) { y = Mod(x, z) }";
    let why = declines(DowngradeOpset { to: 27 }, 28, mods);
    assert_eq!(why, ["Mod producing `y` rounds the quotient of floats down"]);
}

#[test]
fn dropout_keeps_its_ratio() {
    let new = "g (float[3] x) => (float[3] y) <float y_ratio = {0.25}> { y = Dropout(x, y_ratio) }";
    let old = "g (float[3] x) => (float[3] y) { y = Dropout <ratio = 0.25>(x) }";
    converts_both_ways(7, old, 22, new);
    upgrades(
        10,
        "g (float[3] x) => (float[3] y) { y, mask = Dropout(x) }",
        12,
        "g (float[3] x) => (float[3] y) { y = Dropout(x) }",
    );
    let why = declines(
        DowngradeOpset { to: 11 },
        13,
        "g (float[3] x, bool t) => (float[3] y) { y = Dropout(x, \"\", t) }",
    );
    assert_eq!(why, ["Dropout producing `y` may be in training mode"]);
}

#[test]
fn scan_loses_its_batch() {
    let body =
        "body = b (float[2] s, float[2] e) => (float[2] t, float[2] o) { t = Add(s, e) o = Identity(t) }";
    upgrades(
        8,
        &format!(
            "g (float[1,2] i, float[1,3,2] x) => (float[1,2] f, float[1,3,2] y)
            {{ f, y = Scan <{body}, num_scan_inputs = 1, directions = [1]>(\"\", i, x) }}"
        ),
        9,
        &format!(
            "g (float[1,2] i, float[1,3,2] x) => (float[1,2] f, float[1,3,2] y)
            {{ f_1 = Squeeze <axes = [0]>(i) f_2 = Squeeze <axes = [0]>(x)
            f_3, y_1 = Scan <{body}, num_scan_inputs = 1, scan_input_directions = [1]>(f_1, f_2)
            f = Unsqueeze <axes = [0]>(f_3) y = Unsqueeze <axes = [0]>(y_1) }}"
        ),
    );
    let why = declines(
        UpgradeOpset { to: 21 },
        8,
        &format!(
            "g (float[2,2] i, float[2,3,2] x) => (float[2,2] f, float[2,3,2] y)
            {{ f, y = Scan <{body}, num_scan_inputs = 1>(\"\", i, x) }}"
        ),
    );
    assert_eq!(
        why,
        ["Scan producing `f` has a batch of several sequences, which operator set 9 does not have"]
    );
}

#[test]
fn regions_and_scatters_keep_their_meaning() {
    let head = "g (float[1,1,6,6] x, float[2,4] r) => (float[2,1,2,2] y)
        <int64[2] i = {0, 0}, float[2,4] low = {0, 0, 3, 3, 1, 1, 4, 5}>";
    let align = |mode: &str| {
        format!(
            "{head} {{ t = Sub(r, r) u = Add(t, low) y = RoiAlign <{mode}output_height = 2, output_width = 2>(x, u, i) }}"
        )
    };
    let after = align("").replace(
        "output_width = 2>",
        "output_width = 2, coordinate_transformation_mode = \"output_half_pixel\">",
    );
    converts_both_ways(15, &align(""), 16, &after);
    let scatter = |op: &str| {
        format!(
            "g (float[3] x, float[2] u) => (float[3] y) <int64[2] i = {{2, 0}}> {{ y = {op} <axis = 0>(x, i, u) }}"
        )
    };
    upgrades(9, &scatter("Scatter"), 21, &scatter("ScatterElements"));
}

#[test]
fn bodies_and_functions_are_converted() {
    let old = |name: &str| {
        format!("{name} = {name}_g () => (float[2] {name}_y) {{ {name}_y = Squeeze <axes = [0]>(x) }}")
    };
    let new = |name: &str| {
        format!(
            "{name} = {name}_g () => (float[2] {name}_y) <int64[1] {name}_y_axes = {{0}}>
            {{ {name}_y = Squeeze(x, {name}_y_axes) }}"
        )
    };
    let branches = |branch: &dyn Fn(&str) -> String| {
        let (yes, no) = (branch("then_branch"), branch("else_branch"));
        format!("g (float[1,2] x, bool b) => (float[2] y) {{ y = If <{yes}, {no}>(b) }}")
    };
    upgrades(11, &branches(&old), 13, &branches(&new));
    let calling = |attribute: &str, value: &str, function: &str| {
        model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 12, \"local\" : 1]>
            g (float[2,3] x) => (float[2,3] y) {{ y = local.f <{attribute} = {value}>(x) }}
            <domain: \"local\", opset_import: [\"\" : 12]> f <{attribute}> (u) => (w) {{ {function} }}"
        ))
    };
    let original = calling(
        "a",
        "0.5",
        "l = LeakyRelu <alpha: float = @a>(u) s = ReduceSum <axes = [1]>(l) w = Add(l, s)",
    );
    let mut changed = original.clone();
    run_pass(UpgradeOpset { to: 17 }, &mut changed);
    let text = print_model(&changed).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("s_axes = Constant<value = int64[1] {1}>() s = ReduceSum(l, s_axes)"), "{text}");
    assert!(!text.contains(": 12]"), "{text}");
    same(&original, &changed, Effect::Rounding);
    // The value is that of the call.
    let mut unknown = calling("axis", "1", "l = LeakyRelu(u) w = Softmax <axis: int = @axis>(l)");
    let report = run_pass(UpgradeOpset { to: 13 }, &mut unknown);
    assert_eq!(
        report.steps[0].declined.keys().collect::<Vec<_>>(),
        [
            "Softmax producing `w` has attributes of a call of its function, so its form in operator set 13 is \
          unknown; inline the function first"
        ]
    );
}

#[test]
fn the_file_format_and_other_domains_follow() {
    let mut old = parse_model(
        "<ir_version: 3, opset_import: [\"\" : 7, \"ai.onnx.ml\" : 1]>
        g (float[2] x) => (float[2] y) { y = Relu(x) }",
    )
    .unwrap();
    run_pass(UpgradeOpset { to: 26 }, &mut old);
    assert_eq!(old.ir_version, Some(13));
    assert_eq!((old.graph.opset(""), old.graph.opset("ai.onnx.ml")), (Some(26), Some(1)));
    // A newer model is skipped.
    let report = run_pass(UpgradeOpset { to: 21 }, &mut old);
    assert_eq!((report.patches(), old.graph.opset("")), (0, Some(26)));
    assert!(UpgradeOpset { to: 6 }.validate().is_err() && UpgradeOpset { to: 99 }.validate().is_err());
}

#[test]
fn downgrades_where_it_is_exact_only() {
    let why = |to, from, graph: &str| declines(DowngradeOpset { to }, from, graph);
    assert_eq!(
        why(19, 20, "g (float[2] x) => (float[2] y) { y = Gelu(x) }"),
        ["Gelu producing `y` exists since operator set 20"]
    );
    assert_eq!(
        why(12, 13, "g (float[2,1] x, int64[1] a) => (y) { y = Squeeze(x, a) }"),
        ["`axes` of Squeeze producing `y` is computed, and an attribute before"]
    );
    assert_eq!(
        why(11, 12, "g (float[2,3] x) => (int64[1,3] y) { y = ArgMax <select_last_index = 1>(x) }"),
        ["`select_last_index` of ArgMax producing `y` exists since operator set 12"]
    );
    assert_eq!(
        why(
            9,
            10,
            "g (float[4] x) => (float[2] y) <int64[1] o = {0}, int64[1] e = {4}, int64[1] s = {2}>
            { y = Slice(x, o, e, o, s) }"
        ),
        ["`steps` of Slice producing `y` is no attribute of the old version"]
    );
}

#[test]
fn passes_raise_the_operator_set_on_request() {
    let gelu = "g (float[N,3] x) => (float[N,3] y)
        <float r = {1.4142135}, float one = {1}, float half = {0.5}>
        { a = Div(x, r) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }";
    for (opset, version, ops) in [(OpsetPolicy::Keep, 13, "Erf"), (OpsetPolicy::Raise, 20, "Gelu")] {
        let original = model_at(gelu, 13);
        let mut changed = original.clone();
        run_pass(FuseGelu { opset }, &mut changed);
        assert_eq!(changed.graph.opset(""), Some(version));
        assert!(print_graph(&changed.graph).contains(ops));
        same(&original, &changed, Effect::Rounding);
    }
    // There is nothing to fuse, so the operator set is kept.
    let mut plain = model_at("g (float[2] x) => (float[2] y) { y = Relu(x) }", 13);
    let report = run_pass(FuseLayerNorm { opset: OpsetPolicy::Raise }, &mut plain);
    assert_eq!((report.patches(), plain.graph.opset("")), (0, Some(13)));
}

/// Every operator with tests of its own in all versions: upgraded step by step and at once, the text is the same.
#[test]
fn steps_compose() {
    let source = "g (float[2,6] x) => (float[2,1] y, float[2,3] z)
        { a = Clip <min = 0.0>(x) b = Softmax(a) y = ReduceMean <axes = [1]>(b)
        p, q = Split <axis = 1>(b) r = Pad <pads = [0, 1, 0, 0]>(q) z = Slice <axes = [1], ends = [4], starts = [1]>(r) }";
    let mut at_once: Model = model_at(source, 7);
    let mut stepwise = at_once.clone();
    run_pass(UpgradeOpset { to: 26 }, &mut at_once);
    for to in 8..=26 {
        run_pass(UpgradeOpset { to }, &mut stepwise);
        assert_eq!(stepwise.graph.opset(""), Some(to));
    }
    assert_eq!(print_model(&stepwise), print_model(&at_once));
    same(&model_at(source, 7), &at_once, Effect::Rounding);
    let mut back = at_once.clone();
    run_pass(DowngradeOpset { to: 7 }, &mut back);
    same(&at_once, &back, Effect::Rounding);
}
