//! Pruning of models in the style of exporters: sizes computed from shapes, one group that cannot be cut, groups
//! that one cut exhausts, and functions.

use super::{
    super::{Multiple, PruneChannels},
    run_on_generated, untimed,
};
use crate::{
    framework::{
        Pass, PassError,
        testing::{self, model, numbers, read_fixture, tools},
    },
    transforms::channels::PruneHeads,
};
use pare_graph::{Model, ops::Bindings};

/// Runs a pass after the pipeline `prepare`; also returns why it skipped something.
fn run(pass: &dyn Pass, original: &Model, prepare: &str) -> Result<(Model, Vec<String>), PassError> {
    let (changed, report) = run_on_generated(pass, original, prepare, tools())?;
    Ok((changed, report.declined.keys().cloned().collect()))
}

fn macs(model: &Model) -> f64 {
    let mut model = model.clone();
    model.infer().unwrap();
    model.cost(&Bindings::default()).macs as f64
}

fn share(macs: f64) -> PruneChannels {
    PruneChannels { macs: Some(macs), ..untimed() }
}

#[test]
fn prunes_channels_whose_sizes_are_computed() {
    for (file, prepare, target) in [
        ("cases/panic_shared_size.onnx", "", 0.6),
        ("cases/refused_aspp_resize.onnx", "safe", 0.5),
        ("cases/refused_aspp_resize.onnx", "", 0.5),
    ] {
        let original = read_fixture(file);
        let (changed, declined) = run(&share(target), &original, prepare).unwrap();
        assert!(macs(&changed) <= target * macs(&original), "{file}");
        let first = changed.graph.nodes()[0];
        let fewer = changed.graph.at(first).input(1).unwrap().shape().unwrap()[0].size().unwrap();
        assert!(fewer < 16, "{file}: {fewer} channels, {declined:?}");
    }
}

/// The size of the batch is read once and used by a `Reshape` before and one after the pruned channels.
#[test]
fn prunes_between_targets_of_one_size() {
    let original = model(&format!(
        "g (float[N,6] x) => (float[N,4] y) <float[6,8] a = {{{}}}, float[8,4] b = {{{}}}, int64[1] o = {{0}},
            int64[1] i = {{1}}, int64[2] s = {{2,4}}, int64[1] f = {{8}}> {{
            h = MatMul(x, a) shape = Shape(x) n = Slice(shape, o, i) t = Concat<axis = 0>(n, s)
            r = Reshape(h, t) p = Relu(r) u = Concat<axis = 0>(n, f) q = Reshape(p, u) y = MatMul(q, b) }}",
        numbers(48, 1),
        numbers(32, 2)
    ));
    let (changed, _) = run(&share(0.6), &original, "").unwrap();
    assert!(macs(&changed) <= 0.6 * macs(&original));
}

/// After the first of two cuts each group of heads has a single unit, and nothing is left to cut.
#[test]
fn a_first_cut_may_exhaust_all_groups() {
    let original = read_fixture("cases/refused_two_heads.onnx");
    for only in [vec![], vec!["MatMul_0".to_owned()]] {
        let group = crate::analysis::groups::Groups::of(&original.graph);
        let heads =
            group.groups.iter().find(|g| g.kind == crate::analysis::groups::GroupKind::Heads).unwrap();
        let only = only.iter().map(|_| heads.name.clone()).collect();
        let pass = PruneHeads { ratio: Some(0.5), only, multiple: Multiple::Of(1), ..PruneHeads::default() };
        let (changed, _) = run(&pass, &original, "").unwrap();
        assert!(macs(&changed) < 0.6 * macs(&original));
    }
    // Two channels, of which one is removed.
    let narrow = model(&format!(
        "g (float[N,6] x) => (float[N,4] y) <float[6,2] a = {{{}}}, float[2,4] b = {{{}}}> {{
            h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }}",
        numbers(12, 3),
        numbers(8, 4)
    ));
    let (changed, _) = run(&PruneChannels { ratio: Some(0.5), ..untimed() }, &narrow, "").unwrap();
    assert_eq!(macs(&changed), 0.5 * macs(&narrow));
}

#[test]
fn a_group_that_cannot_be_cut_stays_whole() {
    // Elements of half a byte are not sliced.
    let nibbles = (0..48).map(|i| (i % 15 - 7).to_string()).collect::<Vec<_>>().join(",");
    let original = testing::model_at(
        &format!(
            "g (float[N,6] x) => (float[N,4] y) <int4[6,8] q = {{{nibbles}}}, float s = {{0.1}},
                float[8,8] b = {{{}}}, float[8,4] c = {{{}}}> {{
                a = DequantizeLinear(q, s) h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) p = Relu(k)
                y = MatMul(p, c) }}",
            numbers(64, 5),
            numbers(32, 6)
        ),
        21,
    );
    let (changed, declined) = run(&share(0.7), &original, "").unwrap();
    assert!(macs(&changed) <= 0.7 * macs(&original));
    let why = "`h` is skipped: `q` cannot be made to fit fewer channels";
    assert!(declined.iter().any(|d| d == why), "{declined:?}");
}

#[test]
fn refusals_over_functions_name_the_remedy() {
    let original = read_fixture("cases/words_function_macs.onnx");
    let Err(PassError::Refused { why, hint: Some(hint) }) = run(&share(0.6), &original, "") else {
        panic!("it is not refused with a hint")
    };
    assert!(why.contains("block `block_1` reads the entire axis"), "{why}");
    assert_eq!(hint.to_string(), "channels are traced through functions after `inline-functions`");
    let (changed, _) = run(&share(0.6), &original, "inline-functions").unwrap();
    assert!(macs(&changed) <= 0.6 * macs(&original));
}

/// Each group of densely concatenated layers is read by all later layers.
#[test]
fn ranks_the_groups_of_dense_concatenation() {
    let layers = 12;
    let (mut lines, mut weights, mut values) = (String::new(), vec![], vec!["x".to_owned()]);
    for layer in 0..layers {
        let (joined, width) = (values.join(","), 6 + 4 * layer);
        weights.push(format!("float[{width},4] w{layer} = {{{}}}", numbers(4 * width, layer as u64)));
        lines += &format!("c{layer} = Concat<axis = 1>({joined}) m{layer} = MatMul(c{layer}, w{layer}) ");
        lines += &format!("r{layer} = Relu(m{layer}) ");
        values.push(format!("r{layer}"));
    }
    let width = 6 + 4 * layers;
    let original = model(&format!(
        "g (float[N,6] x) => (float[N,3] y) <{}, float[{width},3] v = {{{}}}> {{
            {lines} c = Concat<axis = 1>({}) y = MatMul(c, v) }}",
        weights.join(","),
        numbers(3 * width, 99),
        values.join(",")
    ));
    let (changed, _) = run(&share(0.7), &original, "").unwrap();
    assert!(macs(&changed) <= 0.7 * macs(&original));
}
