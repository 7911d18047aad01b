use super::{
    emit::{Emitter, Metric},
    *,
};
use crate::analysis::opset::OpsetPolicy;
use crate::framework::{
    NodeBuilder, Pass, Tools,
    testing::{engine, read_fixture, run_pass_with, tools},
};
use pare_graph::{
    DataType, Declared, Graph, Model, Patch, Ref, Setting, Tensor, Type, ValueId,
    text::{parse_model, print_graph},
};
use pare_runtime::Evaluator;
use std::{collections::BTreeMap, fmt::Write};

/// Inputs and outputs of the numpy ports, by case and name, as written by `fixtures/tokens/port.py`.
fn reference_cases() -> BTreeMap<String, BTreeMap<String, Tensor>> {
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

/// Runs a model without the engine's optimizations.
fn outputs(model: &Model, feeds: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let evaluator = Evaluator::new(engine().clone());
    let evaluator: &dyn pare_graph::Evaluate = &evaluator;
    evaluator.load(model, Setting::PLAIN.threads(1)).unwrap().run(feeds).unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    for (i, (a, b)) in a.to_f64().unwrap().iter().zip(b.to_f64().unwrap()).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}, element {i}: {a} and {b}");
    }
}

/// Adds a value to the outputs of the graph.
fn add_output(graph: &mut Graph, value: ValueId) {
    let mut declared = Declared::default();
    declared.ty = Some(Type::tensor(DataType::Float, None));
    graph.set_declared(value, Some(declared));
    graph.add_output(value);
}

/// A model of a single merge with the inputs of a reference case, and the outputs `y` and the token sizes.
fn single_merge(
    kind: &str,
    case: &BTreeMap<String, Tensor>,
    r: usize,
    protected: usize,
    lowering: Lowering,
) -> Model {
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
    let mut builder = NodeBuilder::new(graph, &mut patch, "merged");
    let mut emitter = Emitter { builder: &mut builder, lowering, protected };
    let summed = emitter.over_heads(k.into(), heads, &[0, -1, dim as i64]);
    let mut metric = Metric::new(summed, 1);
    let rows = emitter.rows(z.into(), Some(size.into()), tokens, channels);
    let rows = match kind {
        "folder" => {
            if let Some(attention) = graph.find("attention") {
                metric.weight = Some(emitter.class_attention(attention.into(), 2, heads, tokens, 1.0));
            }
            emitter.fold(rows, metric, dim, r)
        }
        "ppt" => {
            let merged = emitter.merge(rows, metric, r);
            let [attention, value]: [Ref; 2] = ["attention", "value"].map(|n| id(n).into());
            let (pruned, prune) = emitter.prune(rows, attention, value, r, 7e-5);
            emitter.choose(prune, pruned, merged)
        }
        _ => emitter.merge(rows, metric, r),
    };
    let means = emitter.means(rows);
    patch.reshape(z, means);
    let applied = graph.apply(patch).unwrap();
    let division = *applied.added.iter().rev().find(|&&n| graph.at(n).is("Div")).unwrap();
    let size = graph.at(division).input(1).unwrap().id;
    add_output(graph, size);
    model
}

#[test]
fn merges_like_the_numpy_ports() {
    let cases = reference_cases();
    assert!(cases.len() >= 13, "{:?}", cases.keys());
    for (name, case) in &cases {
        let words: Vec<_> = name.split(':').collect();
        let (kind, r, protected) = (words[0], words[1].parse().unwrap(), words[2].parse().unwrap());
        for lowering in [Lowering::Matmul, Lowering::Scatter] {
            let model = single_merge(kind.split('-').next().unwrap(), case, r, protected, lowering);
            let feeds: Vec<_> = case
                .iter()
                .filter(|(n, _)| !["y", "s"].contains(&n.as_str()))
                .map(|(n, t)| (n.as_str(), t))
                .collect();
            let results = outputs(&model, &feeds);
            assert_close(&results[0], &case["y"], 1e-5, &format!("{name}, {lowering:?}, means"));
            assert_close(&results[1], &case["s"], 1e-6, &format!("{name}, {lowering:?}, sizes"));
            if kind != "ppt" {
                let sum = |t: &Tensor| t.to_f64().unwrap().iter().sum::<f64>();
                assert_eq!(
                    sum(&results[1]),
                    sum(&case["size"]),
                    "{name}: the sum of sizes is the number of tokens"
                );
            }
        }
    }
}

#[test]
fn limits_the_number_of_merges() {
    use super::emit::{max_folded, max_merged};
    assert_eq!(
        [(17, 1), (16, 0), (18, 2), (2, 1), (1, 0), (1, 1)]
            .map(|(tokens, protected)| max_merged(tokens, protected)),
        [8, 8, 8, 0, 0, 0]
    );
    // All but one of the unprotected tokens.
    assert_eq!([max_folded(577, 1), max_folded(16, 0), max_folded(18, 2)], [575, 15, 15]);
}

/// Random weights of two blocks and a head, as declarations.
fn transformer_weights(tokens: usize) -> String {
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
    constants
}

/// One block in one of several forms, as nodes.
fn transformer_block(form: &str, b: usize) -> String {
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
    format!(
        "{norm} {attention} {join} f{b} = MatMul(m{b}, w1{b}) g{b} = Relu(f{b}) l{b} = MatMul(g{b}, w2{b})
             y{b} = Add(r{b}, l{b}) "
    )
}

/// Two blocks of two heads over `tokens` tokens of 4 channels, in one of several forms.
fn transformer(form: &str, tokens: usize, stream: &str, head: &str) -> Model {
    let constants = transformer_weights(tokens);
    let window = if form == "windows" { tokens / 3 } else { tokens };
    let nodes: String = (0..2).map(|b| transformer_block(form, b)).collect();
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : 23, \"com.microsoft\" : 1]>
         g ({stream}) => (float[B,3] logits) <{constants} float root = {{0.70710677}}, int64[3] fours = {{4,4,4}},
            int64[3] thirds = {{1,1,1}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 first = {{0}}, int64 third = {{3}},
            int64[1] last = {{2}},
            int64[5] apart = {{-1,{window},3,2,2}}, int64[3] merged = {{-1,{tokens},4}}> {{ {nodes} {head} }}"
    );
    let mut model = parse_model(&source).unwrap();
    model.infer().unwrap();
    model
}

const MEAN: &str = "pool = ReduceMean<keepdims = 0>(y1, one) logits = MatMul(pool, wc)";
const CLASS: &str = "c = Gather<axis = 1>(y1, first) logits = MatMul(c, wc)";

/// Tokens of 4 channels for 3 samples. From `front` on, tokens come in equal pairs.
fn paired_tokens(tokens: usize, front: usize) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut values = vec![];
    for _ in 0..3 {
        let mut token = || (0..4).map(|_| rng.f32() * 4.0 - 2.0).collect::<Vec<_>>();
        let mut sample: Vec<Vec<f32>> = (0..front).map(|_| token()).collect();
        for _ in 0..(tokens - front) / 2 {
            let token = token();
            sample.extend([token.clone(), token]);
        }
        values.extend(sample.concat());
    }
    Tensor::from_slice(&[3, tokens, 4], &values).unwrap()
}

fn merging(r: usize) -> MergeTokens {
    MergeTokens { r: TokenCounts::One(r), emit: Some(Lowering::Matmul), ..MergeTokens::default() }
}

/// Returns the model after the pass, which must not decline.
fn merged(model: &Model, pass: MergeTokens) -> Model {
    let mut changed = model.clone();
    let report = run_pass_with(pass, &mut changed, Tools::default());
    let declined: Vec<_> = report.steps.iter().flat_map(|s| s.declined.keys()).collect();
    assert!(declined.is_empty(), "{declined:?}");
    changed
}

#[test]
fn merges_equal_tokens_exactly_in_all_forms() {
    for form in ["decomposed", "standard", "multi-head", "packed", "skip"] {
        for (tokens, head, front) in [(8, MEAN, 0), (9, CLASS, 1)] {
            let model = transformer(form, tokens, &format!("float[B,{tokens},4] x"), head);
            let x = paired_tokens(tokens, front);
            let before = outputs(&model, &[("x", &x)]);
            // The second block merges no tokens; its attention is weighted by sizes.
            let pass = MergeTokens { r: TokenCounts::Each(vec![4, 0]), drop_unread: false, ..merging(0) };
            let changed = merged(&model, pass);
            assert_close(
                &outputs(&changed, &[("x", &x)])[0],
                &before[0],
                1e-5,
                &format!("{form}, {tokens} tokens"),
            );
            // Without sizes the outputs differ.
            let pass = MergeTokens {
                r: TokenCounts::Each(vec![4, 0]),
                proportional: false,
                drop_unread: false,
                ..merging(0)
            };
            let other = outputs(&merged(&model, pass), &[("x", &x)]);
            // Without a class token all sizes are equal and have no effect.
            if front == 1 {
                let [a, b] = [&other[0], &before[0]].map(|t| t.to_f64().unwrap());
                assert!(a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3), "{form}");
            }
        }
    }
}

#[test]
fn merges_all_attention_forms_equally() {
    let x = paired_tokens(9, 9 - 8);
    let noise = fastrand::Rng::with_seed(5).f32();
    let values: Vec<f32> =
        x.to_vec::<f32>().unwrap().iter().enumerate().map(|(i, v)| v + noise * (i % 7) as f32).collect();
    let x = Tensor::from_slice(x.shape(), &values).unwrap();
    for head in [MEAN, CLASS] {
        let run = |form: &str| {
            let model = transformer(form, 9, "float[B,9,4] x", head);
            outputs(&merged(&model, merging(2)), &[("x", &x)]).remove(0)
        };
        let expected = run("decomposed");
        for form in ["standard", "multi-head", "packed", "skip"] {
            assert_close(&run(form), &expected, 1e-5, form);
        }
    }
}

#[test]
fn drops_unread_tokens_with_equal_outputs() {
    let model = transformer("decomposed", 9, "float[B,9,4] x", CLASS);
    let x = paired_tokens(9, 1);
    let kept = MergeTokens { drop_unread: false, ..merging(2) };
    let dropped = merged(&model, merging(2));
    assert_close(
        &outputs(&dropped, &[("x", &x)])[0],
        &outputs(&merged(&model, kept), &[("x", &x)])[0],
        1e-5,
        "dropped",
    );
    // Only the query and the MLP of the class token are computed.
    let shape = |name: &str| dropped.graph.value(dropped.graph.find(name).unwrap()).fact.to_string();
    assert_eq!((shape("s1"), shape("f1")), ("float[B,2,1,7]".into(), "float[B,1,8]".into()));
}

#[test]
fn leaves_the_graph_unchanged_without_merges() {
    let model = transformer("decomposed", 9, "float[B,9,4] x", CLASS);
    assert_eq!(print_graph(&merged(&model, merging(0)).graph), print_graph(&model.graph));
}

/// Returns the reasons why the pass declines.
fn reasons(model: &Model) -> Vec<String> {
    let mut changed = model.clone();
    let report = run_pass_with(merging(2), &mut changed, Tools::default());
    assert_eq!(print_graph(&changed.graph), print_graph(&model.graph));
    report.steps.into_iter().flat_map(|s| s.declined.into_keys()).collect()
}

#[test]
fn declines_where_merged_tokens_are_undefined() {
    let with_head = |head: &str| transformer("decomposed", 9, "float[B,9,4] x", head);
    for (model, why) in [
        (with_head("c = Gather<axis = 1>(y1, third) logits = MatMul(c, wc)"), "Gather producing `c` selects token 3 by its position"),
        (
            with_head(
                "grid = Constant<value = int64[4] {0,3,3,4}>() g = Reshape(y1, grid) rows = ReduceMean<keepdims = 0>(g, one)
                 cells = ReduceMean<keepdims = 0>(rows, one) logits = MatMul(cells, wc)",
            ),
            "Reshape producing `g` changes the layout of the tokens",
        ),
        (
            with_head(
                "five = Constant<value = float[9,4] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}>()
                 z = Add(y1, five) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)",
            ),
            "`five` has a value for each position and is used after the first merge",
        ),
        (
            with_head("z = Add(y1, x) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "`x` has the tokens from before a merge and is combined with merged ones",
        ),
        (
            with_head("z = Concat<axis = 1>(y1, x) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "Concat producing `z` concatenates tokens with others",
        ),
        (
            with_head("a = ReduceSum(y1, last) b = Softmax<axis = 1>(a) z = Mul(y1, b) c = ReduceSum<keepdims = 0>(z, one)
                logits = MatMul(c, wc)"),
            "the effect of Softmax producing `b` on tokens is not known",
        ),
        (
            with_head("z = CumSum(y1, first) c = Gather<axis = 1>(z, first) logits = MatMul(c, wc)"),
            "the effect of CumSum producing `z` on tokens is not known",
        ),
    ] {
        assert_eq!(reasons(&model), [why]);
    }
    assert_eq!(
        reasons(&transformer("biased", 9, "float[B,9,4] x", CLASS)),
        ["Softmax producing `w0` has a bias for each pair of positions, which merged tokens do not have"]
    );
    assert_eq!(
        reasons(&transformer("windows", 9, "float[B,9,4] x", CLASS)),
        ["Softmax producing `w0`: attention is within windows of 3 of the 9 tokens of the stream"]
    );
    // Tokens in an output.
    let text = pare_graph::text::print_model(&with_head(CLASS));
    let source = text.replacen("(float[B,3] logits)", "(float[B,3] logits, float[B,9,4] y0)", 1);
    let mut exposed = parse_model(&source).unwrap();
    exposed.infer().unwrap();
    assert_eq!(reasons(&exposed), ["the output `y0` has a token axis"]);
    // A symbolic number of tokens.
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
fn rejects_old_operator_sets_and_invalid_options() {
    let source = "<ir_version: 8, opset_import: [\"\" : 12]> g (float[2] x) => (float[2] y) { y = Relu(x) }";
    let mut model = parse_model(source).unwrap();
    let mut cx = crate::framework::testing::context(Tools::default());
    let keeping = MergeTokens { opset: OpsetPolicy::Keep, ..merging(2) };
    let error = keeping.run(&mut model, &mut cx).unwrap_err();
    assert_eq!(error.to_string(), "merging tokens needs operator set 13, the model has 12");
    assert!(merging(2).validate().is_ok());
    assert!(
        MergeTokens { r: TokenCounts::Each(vec![1]), blocks: vec![0, 1], ..merging(1) }.validate().is_err()
    );
}

fn digits() -> Model {
    read_fixture("digits-vit.onnx")
}

/// `n` random images of the shape of the fixtures.
fn images(n: usize) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(1);
    let values: Vec<f32> = (0..n * 64).map(|_| rng.f32() * 2.0 - 0.8).collect();
    Tensor::from_slice(&[n, 1, 8, 8], &values).unwrap()
}

#[test]
fn preserves_total_size_and_independence_of_samples() {
    for method in [MergeMethod::Tome, MergeMethod::Folder, MergeMethod::Ppt] {
        let pass = MergeTokens { method, drop_unread: false, ..merging(3) };
        let mut model = merged(&digits(), pass);
        let divisions: Vec<_> =
            model.graph.nodes().iter().copied().filter(|&n| model.graph.at(n).is("Div")).collect();
        let is_size =
            |v: pare_graph::ValueRef<'_>| v.shape().is_some_and(|s| s.len() == 3 && s[2].known() == Some(1));
        let sizes: Vec<_> = divisions
            .into_iter()
            .filter_map(|n| model.graph.at(n).input(1).ok().filter(|v| is_size(*v)).map(|v| v.id))
            .collect();
        let merges = match method {
            MergeMethod::Tome => 4,
            MergeMethod::Folder => 2,
            MergeMethod::Ppt => 3,
        };
        assert_eq!(sizes.len(), merges, "{method:?}");
        sizes.into_iter().for_each(|v| add_output(&mut model.graph, v));
        let all = images(8);
        let together = outputs(&model, &[("image", &all)]);
        for size in together.iter().skip(1).filter(|_| method != MergeMethod::Ppt) {
            let count = size.shape()[1];
            for sample in size.to_f64().unwrap().chunks(count) {
                assert_eq!(sample.iter().sum::<f64>(), 17.0);
            }
        }
        // The batch size has no effect.
        for batch in [1, 3] {
            let part =
                Tensor::from_slice(&[batch, 1, 8, 8], &all.to_vec::<f32>().unwrap()[..batch * 64]).unwrap();
            let logits = outputs(&model, &[("image", &part)]).remove(0);
            let expected = &together[0].to_vec::<f32>().unwrap()[..batch * 10];
            assert_close(&logits, &Tensor::from_slice(&[batch, 10], expected).unwrap(), 1e-5, "logits");
        }
    }
}

#[test]
fn reports_the_latency_of_the_faster_lowering() {
    let mut model = digits();
    let pass = MergeTokens { r: TokenCounts::One(2), ..MergeTokens::default() };
    let report = run_pass_with(pass, &mut model, tools());
    let step = &report.steps[0];
    assert!(step.figure("latency").is_some_and(|latency| latency > 0.0), "{step:?}");
    assert!(step.count("tokens merged") > 0 && step.count("blocks with merges") > 0, "{step:?}");
}
