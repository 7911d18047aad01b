use super::{
    emit::{Emitter, Metric},
    *,
};
use crate::framework::{
    NodeBuilder, Tools,
    testing::{engine, run_pass_with, tools},
};
use pare_graph::{
    DataType, Declared, Patch, Ref, Setting, Tensor, Type, ValueId, onnx,
    text::{parse_model, print_graph},
};
use pare_runtime::Evaluator;
use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

/// Inputs and outputs of the numpy ports, by case and name. `fixtures/tokens/port.py` wrote them.
fn frozen() -> BTreeMap<String, BTreeMap<String, Tensor>> {
    let mut cases = BTreeMap::<_, BTreeMap<_, _>>::new();
    for line in include_str!("../../../../fixtures/tokens/frozen.txt").lines() {
        let mut words = line.split(' ');
        let [case, name, shape] = [(); 3].map(|()| words.next().unwrap());
        let shape: Vec<usize> = shape.split(',').map(|n| n.parse().unwrap()).collect();
        let values: Vec<f32> = words.map(|v| v.parse().unwrap()).collect();
        let tensor = Tensor::from_slice(&shape, &values).unwrap();
        cases.entry(case.to_owned()).or_default().insert(name.to_owned(), tensor);
    }
    cases
}

/// The outputs of a model for these inputs, without the engine's own changes.
fn outputs(model: &Model, feeds: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let evaluator = Evaluator::new(engine().clone());
    let evaluator: &dyn pare_graph::Evaluate = &evaluator;
    evaluator.load(model, Setting::PLAIN.threads(1)).unwrap().run(feeds).unwrap()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    for (i, (a, b)) in a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}, element {i}: {a} and {b}");
    }
}

/// Make a value an output.
fn show(graph: &mut Graph, value: ValueId) {
    let mut declared = Declared::default();
    declared.ty = Some(Type::tensor(DataType::Float, None));
    graph.set_declared(value, Some(declared));
    graph.add_output(value);
}

/// The nodes of one merge alone: inputs as frozen, outputs `y` and the sizes.
fn alone(kind: &str, case: &BTreeMap<String, Tensor>, r: usize, protected: usize, emit: Emit) -> Model {
    let dims =
        |name: &str| case[name].shape()[1..].iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut inputs = String::new();
    for name in case.keys().filter(|n| !["y", "s"].contains(&n.as_str())) {
        write!(inputs, "{}float[B,{}] {name}", if inputs.is_empty() { "" } else { ", " }, dims(name))
            .unwrap();
    }
    let source = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g ({inputs}) => (float[B,M,C] y) {{ z = Identity(x) y = Identity(z) }}"
    );
    let mut model = parse_model(&source).unwrap();
    model.infer().unwrap();
    let graph = &mut model.graph;
    let id = |name: &str| graph.find(name).unwrap();
    let (z, k, size) = (graph.value_ref(id("z")), id("k"), id("size"));
    let [_, heads, tokens, dim] = *case["k"].shape() else { panic!("k has four axes") };
    let channels = case["x"].shape()[2];
    let mut patch = Patch::anchored(graph.producer(z.id).unwrap().0);
    let mut spell = NodeBuilder::new(graph, &mut patch, "merged");
    let mut emitter = Emitter { spell: &mut spell, emit, protected };
    let summed = emitter.over_heads(k.into(), heads, &[0, -1, dim as i64]);
    let mut metric = Metric::new(summed, 1);
    let rows = emitter.rows(z.into(), Some(size.into()), tokens, channels);
    let rows = match kind {
        "folder" => {
            if let Some(attention) = graph.find("attention") {
                metric.weight = Some(emitter.attended(attention.into(), 2, heads, tokens, 1.0));
            }
            emitter.fold(rows, metric, dim, r)
        }
        "ppt" => {
            let merged = emitter.merge(rows, metric, r);
            let [attention, value]: [Ref; 2] = ["attention", "value"].map(|n| id(n).into());
            let (pruned, wide) = emitter.prune(rows, attention, value, r, 7e-5);
            emitter.choose(wide, pruned, merged)
        }
        _ => emitter.merge(rows, metric, r),
    };
    let means = emitter.means(rows);
    patch.reshape(z, means);
    let applied = graph.apply(patch).unwrap();
    let division = *applied.added.iter().rev().find(|&&n| graph.at(n).is("Div")).unwrap();
    let size = graph.at(division).input(1).unwrap().id;
    show(graph, size);
    model
}

#[test]
fn merges_equal_the_numpy_ports() {
    let cases = frozen();
    assert!(cases.len() >= 13, "{:?}", cases.keys());
    for (name, case) in &cases {
        let words: Vec<_> = name.split(':').collect();
        let (kind, r, protected) = (words[0], words[1].parse().unwrap(), words[2].parse().unwrap());
        for emit in [Emit::Matmul, Emit::Scatter] {
            let model = alone(kind.split('-').next().unwrap(), case, r, protected, emit);
            let feeds: Vec<_> = case
                .iter()
                .filter(|(n, _)| !["y", "s"].contains(&n.as_str()))
                .map(|(n, t)| (n.as_str(), t))
                .collect();
            let made = outputs(&model, &feeds);
            close(&made[0], &case["y"], 1e-5, &format!("{name}, {emit:?}, means"));
            close(&made[1], &case["s"], 1e-6, &format!("{name}, {emit:?}, sizes"));
            if kind != "ppt" {
                let sum = |t: &Tensor| t.to_f64().unwrap().iter().sum::<f64>();
                assert_eq!(sum(&made[1]), sum(&case["size"]), "{name}: sizes add up to the tokens");
            }
        }
    }
}

#[test]
fn what_can_be_taken_away() {
    use super::emit::{furthest, most};
    assert_eq!(
        [most(17, 1), most(16, 0), most(18, 2), most(2, 1), most(1, 0), most(1, 1)],
        [8, 8, 8, 0, 0, 0]
    );
    // A class token and one other, one token, two tokens and one other are left.
    assert_eq!([furthest(577, 1), furthest(16, 0), furthest(18, 2)], [575, 15, 15]);
}

/// Two blocks of two heads over `tokens` tokens of 4 channels, written in one of several ways.
fn transformer(form: &str, tokens: usize, stream: &str, head: &str) -> Model {
    let mut constants = String::new();
    let mut add = |name: &str, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        let seed = name.bytes().fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let mut rng = fastrand::Rng::with_seed(seed);
        let values: Vec<_> = (0..count).map(|_| format!("{:.4}", rng.f32() * 1.6 - 0.8)).collect();
        let shape: Vec<_> = shape.iter().map(ToString::to_string).collect();
        write!(constants, "float[{}] {name} = {{{}}}, ", shape.join(","), values.join(",")).unwrap();
    };
    for b in 0..2 {
        for (name, shape) in [
            ("gain", &[4][..]),
            ("shift", &[4]),
            ("wqkv", &[4, 12]),
            ("bqkv", &[12]),
            ("wo", &[4, 4]),
            ("bo", &[4]),
            ("gain2", &[4]),
            ("shift2", &[4]),
            ("w1", &[4, 8]),
            ("w2", &[8, 4]),
        ] {
            add(&format!("{name}{b}"), shape);
        }
    }
    add("wc", &[4, 3]);
    add("bias", &[1, 2, tokens, tokens]);
    let seen = if form == "windows" { tokens / 3 } else { tokens };
    let mut nodes = String::new();
    for b in 0..2 {
        let x = if b == 0 { "x" } else { "y0" };
        let packed = format!("a{b} = MatMul(n{b}, wqkv{b}) p{b} = Add(a{b}, bqkv{b})");
        let three = format!("q{b}, k{b}, v{b} = Split<axis = 2>(p{b}, fours)");
        let norm = format!("n{b} = LayerNormalization<axis = -1, epsilon = 0.00001>({x}, gain{b}, shift{b})");
        let scores = match form {
            "biased" => format!("Add(s{b}, bias)"),
            _ => format!("Mul(s{b}, root)"),
        };
        let attention = match form {
            "decomposed" | "biased" | "windows" => format!(
                "{packed} h{b} = Reshape(p{b}, apart) t{b} = Transpose<perm = [2,0,3,1,4]>(h{b})
                 qs{b}, ks{b}, vs{b} = Split<axis = 0>(t{b}, thirds) q{b} = Squeeze(qs{b}, zero) k{b} = Squeeze(ks{b}, zero)
                 v{b} = Squeeze(vs{b}, zero) kt{b} = Transpose<perm = [0,1,3,2]>(k{b}) s{b} = MatMul(q{b}, kt{b})
                 sc{b} = {scores} w{b} = Softmax<axis = -1>(sc{b}) c4{b} = MatMul(w{b}, v{b})
                 ct{b} = Transpose<perm = [0,2,1,3]>(c4{b}) c{b} = Reshape(ct{b}, merged)"
            ),
            "standard" => format!("{packed} {three} c{b} = Attention<q_num_heads = 2, kv_num_heads = 2>(q{b}, k{b}, v{b})"),
            "multi-head" => {
                format!("{packed} {three} c{b} = com.microsoft.MultiHeadAttention<num_heads = 2>(q{b}, k{b}, v{b})")
            }
            _ => format!("c{b} = com.microsoft.Attention<num_heads = 2>(n{b}, wqkv{b}, bqkv{b})"),
        };
        let join = if form == "skip" {
            format!(
                "o{b} = MatMul(c{b}, wo{b})
                 m{b}, u{b}, i{b}, r{b} = com.microsoft.SkipLayerNormalization<epsilon = 0.00001>({x}, o{b}, gain2{b}, shift2{b}, bo{b})"
            )
        } else {
            format!(
                "o{b} = MatMul(c{b}, wo{b}) ob{b} = Add(o{b}, bo{b}) r{b} = Add({x}, ob{b})
                 m{b} = LayerNormalization<axis = -1, epsilon = 0.00001>(r{b}, gain2{b}, shift2{b})"
            )
        };
        write!(
            nodes,
            "{norm} {attention} {join} f{b} = MatMul(m{b}, w1{b}) g{b} = Relu(f{b}) l{b} = MatMul(g{b}, w2{b})
             y{b} = Add(r{b}, l{b}) "
        )
        .unwrap();
    }
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : 23, \"com.microsoft\" : 1]>
         g ({stream}) => (float[B,3] logits) <{constants} float root = {{0.70710677}}, int64[3] fours = {{4,4,4}},
            int64[3] thirds = {{1,1,1}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 first = {{0}}, int64 third = {{3}},
            int64[1] last = {{2}},
            int64[5] apart = {{-1,{seen},3,2,2}}, int64[3] merged = {{-1,{tokens},4}}> {{ {nodes} {head} }}"
    );
    let mut model = parse_model(&source).unwrap();
    model.infer().unwrap();
    model
}

const MEAN: &str = "pool = ReduceMean<keepdims = 0>(y1, one) logits = MatMul(pool, wc)";
const CLASS: &str = "c = Gather<axis = 1>(y1, first) logits = MatMul(c, wc)";

/// Tokens of 4 channels for 3 samples. From `front` on tokens come in pairs of twins.
fn twins(tokens: usize, front: usize) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut values = vec![];
    for _ in 0..3 {
        let mut token = || (0..4).map(|_| rng.f32() * 4.0 - 2.0).collect::<Vec<_>>();
        let mut sample: Vec<Vec<f32>> = (0..front).map(|_| token()).collect();
        for _ in 0..(tokens - front) / 2 {
            let twin = token();
            sample.extend([twin.clone(), twin]);
        }
        values.extend(sample.concat());
    }
    Tensor::from_slice(&[3, tokens, 4], &values).unwrap()
}

fn merging(r: usize) -> MergeTokens {
    MergeTokens { r: Counts::One(r), emit: Some(Emit::Matmul), ..MergeTokens::default() }
}

/// The model after the pass, which must not decline.
fn after(model: &Model, pass: MergeTokens) -> Model {
    let mut changed = model.clone();
    let report = run_pass_with(pass, &mut changed, Tools::default());
    let declined: Vec<_> = report.steps.iter().flat_map(|s| s.declined.keys()).collect();
    assert!(declined.is_empty(), "{declined:?}");
    changed
}

#[test]
fn twins_are_one_token_that_counts_twice_in_every_form() {
    for form in ["decomposed", "standard", "multi-head", "packed", "skip"] {
        for (tokens, head, front) in [(8, MEAN, 0), (9, CLASS, 1)] {
            let model = transformer(form, tokens, &format!("float[B,{tokens},4] x"), head);
            let x = twins(tokens, front);
            let before = outputs(&model, &[("x", &x)]);
            // The second block merges none: its attention sees sizes.
            let pass = MergeTokens { r: Counts::Each(vec![4, 0]), drop_unread: false, ..merging(0) };
            let changed = after(&model, pass);
            close(&outputs(&changed, &[("x", &x)])[0], &before[0], 1e-5, &format!("{form}, {tokens} tokens"));
            // Without sizes it is not the same: the test can fail.
            let pass = MergeTokens {
                r: Counts::Each(vec![4, 0]),
                proportional: false,
                drop_unread: false,
                ..merging(0)
            };
            let other = outputs(&after(&model, pass), &[("x", &x)]);
            // All tokens count twice, but for the class token: only there sizes matter.
            if front == 1 {
                let [a, b] = [&other[0], &before[0]].map(|t| t.to_f64().unwrap());
                assert!(a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3), "{form}");
            }
        }
    }
}

#[test]
fn all_forms_merge_alike() {
    let x = twins(9, 9 - 8);
    let noise = fastrand::Rng::with_seed(5).f32();
    let values: Vec<f32> =
        x.to_vec::<f32>().unwrap().iter().enumerate().map(|(i, v)| v + noise * (i % 7) as f32).collect();
    let x = Tensor::from_slice(x.shape(), &values).unwrap();
    for head in [MEAN, CLASS] {
        let run = |form: &str| {
            let model = transformer(form, 9, "float[B,9,4] x", head);
            outputs(&after(&model, merging(2)), &[("x", &x)]).remove(0)
        };
        let wanted = run("decomposed");
        for form in ["standard", "multi-head", "packed", "skip"] {
            close(&run(form), &wanted, 1e-5, form);
        }
    }
}

#[test]
fn tokens_that_nobody_reads_are_dropped_with_the_same_result() {
    let model = transformer("decomposed", 9, "float[B,9,4] x", CLASS);
    let x = twins(9, 1);
    let kept = MergeTokens { drop_unread: false, ..merging(2) };
    let dropped = after(&model, merging(2));
    close(
        &outputs(&dropped, &[("x", &x)])[0],
        &outputs(&after(&model, kept), &[("x", &x)])[0],
        1e-5,
        "dropped",
    );
    // The query of the class token alone, and its MLP.
    let shape = |name: &str| dropped.graph.value(dropped.graph.find(name).unwrap()).fact.to_string();
    assert_eq!((shape("s1"), shape("f1")), ("float[B,2,1,7]".into(), "float[B,1,8]".into()));
}

#[test]
fn merging_nothing_changes_nothing() {
    let model = transformer("decomposed", 9, "float[B,9,4] x", CLASS);
    assert_eq!(print_graph(&after(&model, merging(0)).graph), print_graph(&model.graph));
}

/// Why the pass leaves a model alone.
fn reasons(model: &Model) -> Vec<String> {
    let mut changed = model.clone();
    let report = run_pass_with(merging(2), &mut changed, Tools::default());
    assert_eq!(print_graph(&changed.graph), print_graph(&model.graph));
    report.steps.into_iter().flat_map(|s| s.declined.into_keys()).collect()
}

#[test]
fn what_would_not_mean_the_same_is_refused_with_the_reason() {
    let headed = |head: &str| transformer("decomposed", 9, "float[B,9,4] x", head);
    for (model, why) in [
        (headed("c = Gather<axis = 1>(y1, third) logits = MatMul(c, wc)"), "Gather making `c` picks token 3 by its place"),
        (
            headed(
                "grid = Constant<value = int64[4] {0,3,3,4}>() g = Reshape(y1, grid) rows = ReduceMean<keepdims = 0>(g, one)
                 cells = ReduceMean<keepdims = 0>(rows, one) logits = MatMul(cells, wc)",
            ),
            "Reshape making `g` lays tokens out in another shape",
        ),
        (
            headed(
                "five = Constant<value = float[9,4] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}>()
                 z = Add(y1, five) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)",
            ),
            "`five` holds a value for each place and is used after the first merge",
        ),
        (
            headed("z = Add(y1, x) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "`x` holds the tokens as they were before a merge and meets merged ones",
        ),
        (
            headed("z = Concat<axis = 1>(y1, x) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "Concat making `z` joins tokens with others",
        ),
        (
            headed("a = ReduceSum(y1, last) b = Softmax<axis = 1>(a) z = Mul(y1, b) c = ReduceSum<keepdims = 0>(z, one)
                logits = MatMul(c, wc)"),
            "of Softmax making `b` it is not known what it does to tokens",
        ),
        (
            headed("z = CumSum(y1, first) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "of CumSum making `z` it is not known what it does to tokens",
        ),
    ] {
        assert_eq!(reasons(&model), [why]);
    }
    assert_eq!(
        reasons(&transformer("biased", 9, "float[B,9,4] x", CLASS)),
        ["Softmax making `w0` has a bias for each pair of places, which merged tokens do not have"]
    );
    assert_eq!(
        reasons(&transformer("windows", 9, "float[B,9,4] x", CLASS)),
        ["Softmax making `w0`: attention is within windows of 3 of the 9 tokens of the stream"]
    );
    // Tokens as an output.
    let usual = pare_graph::text::print_model(&headed(CLASS));
    let source = usual.replacen("(float[B,3] logits)", "(float[B,3] logits, float[B,9,4] y0)", 1);
    let mut shown = parse_model(&source).unwrap();
    shown.infer().unwrap();
    assert_eq!(reasons(&shown), ["the output `y0` has an axis of tokens"]);
    // An open number of tokens.
    let open = transformer("standard", 9, "float[B,T,4] x", CLASS);
    assert_eq!(reasons(&open), ["the number of tokens in `x` is not fixed"]);
    assert_eq!(
        reasons(
            &parse_model(
                "<ir_version: 8, opset_import: [\"\" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }"
            )
            .unwrap()
        ),
        ["no attention was found"]
    );
}

#[test]
fn an_old_operator_set_is_named() {
    let source = "<ir_version: 8, opset_import: [\"\" : 12]> g (float[2] x) => (float[2] y) { y = Relu(x) }";
    let mut model = parse_model(source).unwrap();
    let mut cx = crate::framework::testing::context(Tools::default());
    let error = merging(2).run(&mut model, &mut cx).unwrap_err();
    assert_eq!(error.to_string(), "merging tokens needs operator set 13, the model has 12");
    assert!(merging(2).validate().is_ok());
    assert!(MergeTokens { r: Counts::Each(vec![1]), blocks: vec![0, 1], ..merging(1) }.validate().is_err());
}

fn digits() -> Model {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/digits-vit.onnx");
    let mut model = onnx::read(&path, &onnx::ReadOptions::default()).unwrap();
    model.infer().unwrap();
    model
}

/// Images like those of the fixtures in shape, for `n` samples.
fn images(n: usize) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(1);
    let values: Vec<f32> = (0..n * 64).map(|_| rng.f32() * 2.0 - 0.8).collect();
    Tensor::from_slice(&[n, 1, 8, 8], &values).unwrap()
}

#[test]
fn sizes_add_up_in_every_block_and_samples_do_not_meet() {
    for method in [Method::Tome, Method::Folder, Method::Ppt] {
        let pass = MergeTokens { method, drop_unread: false, ..merging(3) };
        let mut model = after(&digits(), pass);
        let divisions: Vec<_> =
            model.graph.nodes().iter().copied().filter(|&n| model.graph.at(n).is("Div")).collect();
        let is_size =
            |v: pare_graph::ValueRef<'_>| v.shape().is_some_and(|s| s.len() == 3 && s[2].known() == Some(1));
        let sizes: Vec<_> = divisions
            .into_iter()
            .filter_map(|n| model.graph.at(n).input(1).ok().filter(|v| is_size(*v)).map(|v| v.id))
            .collect();
        let merges = match method {
            Method::Tome => 4,
            Method::Folder => 2,
            Method::Ppt => 3,
        };
        assert_eq!(sizes.len(), merges, "{method:?}");
        sizes.into_iter().for_each(|v| show(&mut model.graph, v));
        let all = images(8);
        let together = outputs(&model, &[("image", &all)]);
        for size in together.iter().skip(1).filter(|_| method != Method::Ppt) {
            let count = size.shape()[1];
            for sample in size.to_f64().unwrap().chunks(count) {
                assert_eq!(sample.iter().sum::<f64>(), 17.0);
            }
        }
        // One by one, three at once and eight at once give the same.
        for batch in [1, 3] {
            let part =
                Tensor::from_slice(&[batch, 1, 8, 8], &all.to_vec::<f32>().unwrap()[..batch * 64]).unwrap();
            let logits = outputs(&model, &[("image", &part)]).remove(0);
            let same = &together[0].to_vec::<f32>().unwrap()[..batch * 10];
            close(&logits, &Tensor::from_slice(&[batch, 10], same).unwrap(), 1e-5, "logits");
        }
    }
}

#[test]
fn the_faster_way_to_write_it_is_measured_and_the_speed_told() {
    let mut model = digits();
    let pass = MergeTokens { r: Counts::One(2), ..MergeTokens::default() };
    let report = run_pass_with(pass, &mut model, tools());
    let notes = &report.steps[0].notes;
    assert!(notes.iter().any(|n| n.contains("on this machine: ")), "{notes:?}");
}
