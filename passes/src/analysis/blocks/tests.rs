//! Blocks of small graphs, of the fixtures, and of real models.

use super::*;
use crate::framework::testing::{engine, model, model_at, read, read_fixture, shared};
use pare_graph::{Model, Node, Patch, Tensor, onnx};
use pare_runtime::{LoadOptions, ModelSource, Optimize, generate, input_specs, symbol_plans};

/// The name of the exit, the kind, and the number of nodes of each block.
fn found(source: &str) -> Vec<(String, BlockKind, usize)> {
    let mut model = model(source);
    model.infer().unwrap();
    let graph = &model.graph;
    let one = |b: &Block| (graph.value(b.exit).name.clone(), b.kind, b.body.len());
    blocks(graph).iter().map(one).collect()
}

#[test]
fn finds_convolutions_with_identity_and_projection_shortcuts() {
    let weights = "float[4,4,3,3] w1, float[4,4,3,3] w2, float[4,4,1,1] ws";
    let source = format!(
        "g (float[1,4,8,8] x, {weights}) => (float[1,4,8,8] y) <float[4,4,3,3] a = {{{z}}}, float[4,4,1,1] s = {{{t}}}> {{
            c1 = Conv<pads = [1, 1, 1, 1]>(x, a) r1 = Relu(c1) c2 = Conv<pads = [1, 1, 1, 1]>(r1, a)
            v = Add(c2, x) u = Relu(v)
            c3 = Conv<pads = [1, 1, 1, 1]>(u, a) r3 = Relu(c3) c4 = Conv<pads = [1, 1, 1, 1]>(r3, a)
            p = Conv(u, s) v2 = Add(c4, p) y = Relu(v2) }}",
        z = vec!["0.1"; 144].join(", "),
        t = vec!["0.2"; 16].join(", ")
    );
    let source = source.replace(&format!(", {weights}"), "");
    assert_eq!(found(&source), [("v".into(), BlockKind::Conv, 3), ("v2".into(), BlockKind::Conv, 3)]);
}

#[test]
fn finds_parallel_branches_with_a_mask_input() {
    let source = "g (float[1,3,2] x, float[1,3,3] mask) => (float[1,3,2] y) <float[2,2] w = {1, 0, 0, 1}> {
        q = MatMul(x, w) k = MatMul(x, w) v = MatMul(x, w) kt = Transpose<perm = [0, 2, 1]>(k)
        s = MatMul(q, kt) m = Add(s, mask) p = Softmax(m) a = MatMul(p, v) o = MatMul(a, w)
        h = MatMul(x, w) r = Relu(h) d = MatMul(r, w)
        both = Add(o, d) y = Add(x, both) }";
    assert_eq!(found(source), [("y".into(), BlockKind::Attention, 9), ("y".into(), BlockKind::Mlp, 3)]);
}

#[test]
fn ignores_bodies_without_weights_or_with_other_users() {
    let cubic = "g (float[2] x) => (float[2] y) <float c = {0.04}, float three = {3}> {
        p = Pow(x, three) m = Mul(p, c) y = Add(x, m) }";
    assert_eq!(found(cubic), []);
    let leak = "g (float[1,2] x) => (float[1,2] y, float[1,2] z) <float[2,2] w = {1, 0, 0, 1}> {
        h = MatMul(x, w) r = Relu(h) d = MatMul(r, w) y = Add(x, d) z = Neg(r) }";
    assert_eq!(found(leak), []);
    let parallel = "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 0, 0, 1}> {
        a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b) }";
    assert_eq!(found(parallel), []);
    let broadcast =
        "g (float[1,2] x) => (float[3,2] y) <float[2,2] w = {1, 0, 0, 1}, float[3,1] c = {1, 2, 3}> {
        h = MatMul(x, w) d = Mul(h, c) y = Add(x, d) }";
    assert_eq!(found(broadcast), []);
}

fn count(model: &Model) -> (usize, usize) {
    let blocks = blocks(&model.graph);
    (blocks.len(), layers(&model.graph, &blocks).len())
}

#[test]
fn finds_all_blocks_of_the_fixtures() {
    assert_eq!(count(&read_fixture("digits-cnn.onnx")), (4, 4));
    assert_eq!(count(&read_fixture("digits-vit.onnx")), (8, 4));
    assert_eq!(count(&read_fixture("cifar-mbv2.onnx")), (3, 3));
}

#[test]
#[ignore = "needs the models of the shared folder"]
fn finds_all_blocks_of_real_models() {
    for (name, expected) in [("cifar-resnet20.onnx", (9, 9)), ("cifar-vit.onnx", (16, 8))] {
        assert_eq!(count(&read(shared().join("models").join(name))), expected, "{name}");
    }
}

/// The outputs of a model for two generated samples, without optimizations of the engine.
fn outputs(model: &Model) -> Vec<Vec<u8>> {
    let options = LoadOptions { optimize: Optimize::Off, threads: 1, ..LoadOptions::default() };
    let source = ModelSource::bytes(onnx::to_bytes(model).unwrap());
    let mut session = engine().load(&source, &options).unwrap();
    let specs = input_specs(model);
    let plan = symbol_plans(&specs).into_iter().next().unwrap_or_default();
    let run = |i| session.run(&generate(&specs, &plan, 7, i)).unwrap();
    let bytes = |outputs: Vec<(String, pare_runtime::Value)>| {
        let all = outputs.iter().filter_map(|(_, v)| v.as_tensor());
        all.flat_map(|t| t.to_vec::<f32>().unwrap()).flat_map(|v| v.to_bits().to_le_bytes()).collect()
    };
    [0, 1].map(run).into_iter().map(bytes).collect()
}

/// The model with the branch of a block multiplied by zero.
fn zeroed(original: &Model, block: &Block) -> Model {
    let graph = &original.graph;
    let add = graph.at(block.add);
    let mut patch = Patch::at(add);
    let zero = patch.constant("zero", Tensor::from_slice(&[], &[0.0_f32]).unwrap());
    let removed = patch.node("removed", Node::new("Mul"), &[block.branch.into(), zero]);
    let sum = patch.node("sum", Node::new("Add"), &[block.rest.into(), removed]);
    patch.replace(add.output().unwrap(), sum);
    let mut model = original.clone();
    model.graph.apply(patch).unwrap();
    model
}

/// Checks that a dropped block equals one multiplied by zero, bit by bit: `x + y·0 = x` for finite `y` and
/// `x` other than -0.
fn check_dropped(original: &Model, block: &Block) {
    let mut dropped = original.clone();
    dropped.graph.apply(block.dropped(&original.graph).unwrap()).unwrap();
    assert!(dropped.node_count() < original.node_count());
    let kept = dropped.graph.nodes().iter().filter(|n| block.body.contains(n)).count();
    assert_eq!(kept, 0, "{} is not removed", block.name);
    assert_eq!(outputs(&dropped), outputs(&zeroed(original, block)), "{}", block.name);
}

#[test]
fn dropping_a_block_equals_adding_zero() {
    for name in ["digits-cnn.onnx", "digits-vit.onnx", "cifar-mbv2.onnx"] {
        let original = read_fixture(name);
        blocks(&original.graph).iter().for_each(|block| check_dropped(&original, block));
    }
}

/// A random stack of blocks and of similar subgraphs, and the number of blocks.
fn stack(seed: u64) -> (String, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut numbers =
        |n: usize| (0..n).map(|_| format!("{:.3}", rng.f32() * 0.4 - 0.2)).collect::<Vec<_>>().join(", ");
    let weights = format!(
        "float[4,4,3,3] w = {{{}}}, float[4,4,1,1] p = {{{}}}, float c = {{0.04}}, float three = {{3}}",
        numbers(144),
        numbers(16)
    );
    let (mut body, mut x, mut count) = (String::new(), "x".to_owned(), 0);
    for i in 0..rng.usize(1..6) {
        let conv = "Conv<pads = [1, 1, 1, 1]>";
        let branch = |from: &str, to: &str| {
            format!("{to}a = {conv}({from}, w) {to}b = Relu({to}a) {to} = {conv}({to}b, w) ")
        };
        let (text, blocks) = match rng.usize(0..8) {
            0 => (format!("{}y{i}s = Add({x}, t{i}) y{i} = Relu(y{i}s) ", branch(&x, &format!("t{i}"))), 1),
            1 => (format!("{}y{i} = Add(t{i}, {x}) ", branch(&x, &format!("t{i}"))), 1),
            2 => (format!("{}s{i} = Conv({x}, p) y{i} = Add(t{i}, s{i}) ", branch(&x, &format!("t{i}"))), 1),
            3 => {
                let (t, r) = (branch(&x, &format!("t{i}")), branch(&x, &format!("r{i}")));
                (format!("{t}{r}u{i} = Add(t{i}, r{i}) y{i} = Add({x}, u{i}) "), 2)
            }
            4 => (format!("y{i} = {conv}({x}, w) "), 0),
            5 => (format!("q{i} = Pow({x}, three) m{i} = Mul(q{i}, c) y{i} = Add({x}, m{i}) "), 0),
            6 => (format!("g{i} = {conv}({x}, w) h{i} = Sigmoid(g{i}) y{i} = Mul({x}, h{i}) "), 0),
            _ => (format!("a{i} = {conv}({x}, w) b{i} = Conv({x}, p) y{i} = Add(a{i}, b{i}) "), 0),
        };
        body += &text;
        count += blocks;
        x = format!("y{i}");
    }
    (format!("g (float[1,4,5,5] x) => (float[1,4,5,5] y) <{weights}> {{ {body} y = Tanh({x}) }}"), count)
}

#[test]
fn finds_exactly_the_blocks_of_random_stacks() {
    for seed in 0..40 {
        let (source, count) = stack(seed);
        let mut original = model(&source);
        original.infer().unwrap();
        let found = blocks(&original.graph);
        assert_eq!(found.len(), count, "seed {seed}: {source}");
        found.iter().for_each(|block| check_dropped(&original, block));
    }
}

#[test]
fn chains_blocks_of_one_stream() {
    let model = read_fixture("digits-vit.onnx");
    let blocks = blocks(&model.graph);
    assert_eq!(chains(&model.graph, &blocks), [(0..8).map(|i| vec![i]).collect::<Vec<_>>()]);
    let cuts = Flow::of(&model.graph).cuts();
    // Every half of a layer ends in a value on all paths.
    assert!(blocks.iter().all(|b| cuts.contains(&b.exit)), "{}", cuts.len());
}

#[test]
fn reads_models_of_operator_set_7() {
    let mut model = model_at(
        "g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 0, 0, 1}> {
            h = MatMul(x, w) r = Relu(h) d = MatMul(r, w) y = Add(d, x) }",
        7,
    );
    model.infer().unwrap();
    assert_eq!(blocks(&model.graph).len(), 1);
}
