//! Each operator with a rule: the expected units are found, and cutting them equals zeroing.

use super::{GraphBuilder, compare_with_zeroing};
use crate::analysis::groups::{GroupKind, Groups};
use pare_graph::{Graph, Model, Tensor, text};

/// A graph of operator set `opset` with an input `x` of this shape, whose first axis counts samples, and the
/// output that `build` returns with its shape.
fn graph(
    opset: i64,
    shape: &[usize],
    build: impl FnOnce(&mut GraphBuilder) -> (String, Vec<usize>),
) -> Graph {
    let rng = fastrand::Rng::with_seed(opset as u64);
    let mut builder = GraphBuilder { rng, lines: vec![], constants: vec![], values: vec![], next: 0 };
    let (y, out) = build(&mut builder);
    let dims = |s: &[usize]| s.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : {opset}, \"com.microsoft\" : 1]>
        g (float[{}] x) => (float[{}] {y}) <{}> {{\n{}\n}}",
        dims(shape),
        dims(&out),
        builder.constants.join(",\n"),
        builder.lines.join("\n")
    );
    let mut model: Model = text::parse_model(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    model.infer().unwrap_or_else(|e| panic!("{e}\n{source}"));
    model.graph
}

/// The kinds and widths of groups that can lose units. Several random cuts are compared with zeroing.
fn prunable_groups(graph: &Graph, shape: &[usize]) -> Vec<(GroupKind, usize)> {
    let count: usize = shape.iter().product();
    for seed in 0..6 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let x: Vec<f32> = (0..count).map(|_| rng.f32() * 2.0 - 1.0).collect();
        compare_with_zeroing(
            &Model::of(graph.clone()),
            &[("x", &Tensor::from_slice(shape, &x).unwrap())],
            seed,
        );
    }
    let groups = Groups::of(graph);
    let mut found: Vec<_> = groups.prunable().map(|(_, g)| (g.kind, g.width)).collect();
    found.sort_unstable();
    found
}

#[test]
fn cuts_hidden_units_of_recurrent_layers_with_all_gates() {
    for (op, gates, extra) in [("LSTM", 4, ""), ("GRU", 3, ", linear_before_reset = 1"), ("RNN", 1, "")] {
        for (direction, d) in [("forward", 1), ("bidirectional", 2)] {
            let (t, b, i, h) = (5, 2, 3, 4);
            let graph = graph(18, &[t, b, i], |m| {
                let w = m.floats(&[d, gates * h, i], -0.5, 0.5);
                let r = m.floats(&[d, gates * h, h], -0.5, 0.5);
                let bias = m.floats(&[d, 2 * gates * h], -0.5, 0.5);
                let peep = if op == "LSTM" {
                    format!(", , , , {}", m.floats(&[d, 3 * h], -0.5, 0.5))
                } else {
                    String::new()
                };
                let op = format!("{op}<hidden_size = {h}, direction = \"{direction}\"{extra}>");
                let y = m.node(&op, &format!("x, {w}, {r}, {bias}{peep}"), &[]);
                let z = m.node("Transpose<perm = [0, 2, 1, 3]>", &y, &[]);
                let shape = m.ints(&[t as i64, b as i64, (d * h) as i64]);
                let f = m.node("Reshape", &format!("{z}, {shape}"), &[]);
                let v = m.floats(&[d * h, 2], -0.5, 0.5);
                (m.node("MatMul", &format!("{f}, {v}"), &[]), vec![t, b, 2])
            });
            assert_eq!(prunable_groups(&graph, &[t, b, i]), [(GroupKind::Channels, h)], "{op} {direction}");
        }
    }
}

/// `x → W → f → V`, on maps `[2,3,4,4]`.
fn between_convolutions(
    opset: i64,
    c: usize,
    f: impl FnOnce(&mut GraphBuilder, String) -> String,
) -> Vec<(GroupKind, usize)> {
    let graph = graph(opset, &[2, 3, 4, 4], |m| {
        let (h, _) = m.conv("x", &[3, 4, 4], c, 3, 1);
        let y = f(m, h);
        let w = m.floats(&[2, c, 1, 1], -0.5, 0.5);
        (m.node("Conv", &format!("{y}, {w}"), &[]), vec![2, 2, 4, 4])
    });
    prunable_groups(&graph, &[2, 3, 4, 4])
}

#[test]
fn cuts_entire_groups_of_group_norms() {
    let found = between_convolutions(21, 8, |m, h| {
        let [s, b] = [0; 2].map(|_| m.floats(&[8], 0.5, 1.5));
        m.node("GroupNormalization<num_groups = 4>", &format!("{h}, {s}, {b}"), &[])
    });
    assert_eq!(found, [(GroupKind::Channels, 4)]);
    // Decomposed, as exporters write it.
    let found = between_convolutions(18, 8, |m, h| {
        let (split, back) = (m.ints(&[0, 4, -1]), m.ints(&[2, 8, 4, 4]));
        let [s, b] = [m.floats(&[4], 1.0, 1.0), m.floats(&[4], 0.0, 0.0)];
        let p = m.node("Reshape", &format!("{h}, {split}"), &[]);
        let n = m.node("InstanceNormalization", &format!("{p}, {s}, {b}"), &[]);
        m.node("Reshape", &format!("{n}, {back}"), &[])
    });
    assert_eq!(found, [(GroupKind::Channels, 4)]);
}

/// `x → W → f → V`, on tokens `[2,3,4]`.
fn between_matrices(
    opset: i64,
    c: usize,
    f: impl FnOnce(&mut GraphBuilder, String) -> String,
) -> Vec<(GroupKind, usize)> {
    let graph = graph(opset, &[2, 3, 4], |m| {
        let (h, _) = m.dense("x", &[3, 4], c);
        let y = f(m, h);
        let v = m.floats(&[c, 2], -0.5, 0.5);
        (m.node("MatMul", &format!("{y}, {v}"), &[]), vec![2, 3, 2])
    });
    prunable_groups(&graph, &[2, 3, 4])
}

#[test]
fn rescales_rms_norms() {
    let found = between_matrices(23, 6, |m, h| {
        let s = m.floats(&[6], 0.5, 1.5);
        m.node("RMSNormalization<epsilon = 0.01>", &format!("{h}, {s}"), &[])
    });
    assert_eq!(found, [(GroupKind::Hidden, 6)]);
    let found = between_matrices(18, 6, |m, h| {
        let (axes, s) = (m.ints(&[-1]), m.floats(&[6], 0.5, 1.5));
        let e = m.floats(&[1], 0.01, 0.01);
        let q = m.node("Mul", &format!("{h}, {h}"), &[]);
        let mean = m.node("ReduceMean<keepdims = 1>", &format!("{q}, {axes}"), &[]);
        let safe = m.node("Add", &format!("{mean}, {e}"), &[]);
        let root = m.node("Sqrt", &safe, &[]);
        let n = m.node("Div", &format!("{h}, {root}"), &[]);
        m.node("Mul", &format!("{n}, {s}"), &[])
    });
    assert_eq!(found, [(GroupKind::Hidden, 6)]);
}

#[test]
fn traces_tile_einsum_and_grid_sample() {
    let found = between_convolutions(18, 6, |m, h| {
        let ones = m.ints(&[1, 1, 1, 1]);
        m.node("Tile", &format!("{h}, {ones}"), &[])
    });
    assert_eq!(found, [(GroupKind::Channels, 6)]);
    let found = between_matrices(18, 6, |m, h| {
        let w = m.floats(&[6, 6], -0.5, 0.5);
        m.node("Einsum<equation = \"bti,io->bto\">", &format!("{h}, {w}"), &[])
    });
    assert_eq!(found, [(GroupKind::Channels, 6), (GroupKind::Channels, 6)]);
    let found = between_convolutions(20, 6, |m, h| {
        let grid = m.floats(&[2, 4, 4, 2], -0.9, 0.9);
        m.node("GridSample", &format!("{h}, {grid}"), &[])
    });
    assert_eq!(found, [(GroupKind::Channels, 6)]);
}

/// Query, key and value from `x` `[2,3,4]` by matrices, the output of `f` for them, and a matrix.
fn attention(
    opset: i64,
    widths: [usize; 3],
    out: usize,
    f: impl FnOnce(&mut GraphBuilder, [String; 3]) -> String,
) -> Vec<(GroupKind, usize)> {
    let graph = graph(opset, &[2, 3, 4], |m| {
        let parts = widths.map(|w| m.dense("x", &[3, 4], w).0);
        let o = f(m, parts);
        let v = m.floats(&[out, 2], -0.5, 0.5);
        (m.node("MatMul", &format!("{o}, {v}"), &[]), vec![2, 3, 2])
    });
    prunable_groups(&graph, &[2, 3, 4])
}

#[test]
fn cuts_heads_of_fused_attention() {
    let found = attention(18, [8, 8, 12], 12, |m, [q, k, v]| {
        m.node("com.microsoft.MultiHeadAttention<num_heads = 4>", &format!("{q}, {k}, {v}"), &[])
    });
    assert_eq!(found, [(GroupKind::Heads, 4)]);
    let found = attention(18, [8, 8, 8], 8, |m, [q, k, v]| {
        let bias = m.floats(&[24], -0.5, 0.5);
        m.node("com.microsoft.MultiHeadAttention<num_heads = 4>", &format!("{q}, {k}, {v}, {bias}"), &[])
    });
    assert_eq!(found, [(GroupKind::Heads, 4)]);
    let found = attention(23, [12, 6, 6], 12, |m, [q, k, v]| {
        m.node("Attention<q_num_heads = 6, kv_num_heads = 3>", &format!("{q}, {k}, {v}"), &[])
    });
    assert_eq!(found, [(GroupKind::Heads, 3)]);
    let graph = graph(18, &[2, 3, 4], |m| {
        let (w, b) = (m.floats(&[4, 24], -0.5, 0.5), m.floats(&[24], -0.5, 0.5));
        let o = m.node("com.microsoft.Attention<num_heads = 4>", &format!("x, {w}, {b}"), &[]);
        let v = m.floats(&[8, 2], -0.5, 0.5);
        (m.node("MatMul", &format!("{o}, {v}"), &[]), vec![2, 3, 2])
    });
    assert_eq!(prunable_groups(&graph, &[2, 3, 4]), [(GroupKind::Heads, 4)]);
}

#[test]
fn cuts_grouped_queries_with_keys_and_values() {
    // The engine needs heads of 8 channels.
    let found = attention(18, [48, 24, 24], 48, |m, [q, k, v]| {
        for (name, values) in [("last", "{2, 2}"), ("all", "{3}")] {
            let shape = if name == "last" { "int32[2]" } else { "int32[1]" };
            m.constants.push(format!("{shape} {name} = {values}"));
        }
        m.node(
            "com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3>",
            &format!("{q}, {k}, {v}, , , last, all"),
            &[],
        )
    });
    assert_eq!(found, [(GroupKind::Heads, 3)]);
    // Decomposed: keys and values are repeated for all heads of queries.
    let found = attention(18, [12, 6, 6], 12, |m, [q, k, v]| {
        let split = |m: &mut GraphBuilder, x: &str, n: i64| {
            let shape = m.ints(&[0, 3, n, 2]);
            let y = m.node("Reshape", &format!("{x}, {shape}"), &[]);
            m.node("Transpose<perm = [0, 2, 1, 3]>", &y, &[])
        };
        let repeat = |m: &mut GraphBuilder, x: &str| {
            let axes = m.ints(&[2]);
            let (wide, back) = (m.ints(&[2, 3, 2, 3, 2]), m.ints(&[2, 6, 3, 2]));
            let y = m.node("Unsqueeze", &format!("{x}, {axes}"), &[]);
            let y = m.node("Expand", &format!("{y}, {wide}"), &[]);
            m.node("Reshape", &format!("{y}, {back}"), &[])
        };
        let (q, k, v) = (split(m, &q, 6), split(m, &k, 3), split(m, &v, 3));
        let (k, v) = (repeat(m, &k), repeat(m, &v));
        let k = m.node("Transpose<perm = [0, 1, 3, 2]>", &k, &[]);
        let s = m.node("MatMul", &format!("{q}, {k}"), &[]);
        let p = m.node("Softmax<axis = -1>", &s, &[]);
        let o = m.node("MatMul", &format!("{p}, {v}"), &[]);
        let o = m.node("Transpose<perm = [0, 2, 1, 3]>", &o, &[]);
        let shape = m.ints(&[0, 3, 12]);
        m.node("Reshape", &format!("{o}, {shape}"), &[])
    });
    assert_eq!(found, [(GroupKind::Heads, 3)]);
}

#[test]
fn cuts_heads_of_rotary_embeddings() {
    let found = attention(23, [12, 12, 12], 12, |m, [q, k, v]| {
        let [cos, sin] = [0; 2].map(|_| m.floats(&[2, 3, 2], -1.0, 1.0));
        let rotated = |m: &mut GraphBuilder, x: &str| {
            m.node("RotaryEmbedding<num_heads = 3>", &format!("{x}, {cos}, {sin}"), &[])
        };
        let (q, k) = (rotated(m, &q), rotated(m, &k));
        m.node("Attention<q_num_heads = 3, kv_num_heads = 3>", &format!("{q}, {k}, {v}"), &[])
    });
    assert_eq!(found, [(GroupKind::Heads, 3)]);
}

#[test]
fn cuts_quantized_weights_with_scales_and_zero_points() {
    let graph = graph(18, &[2, 3, 4, 4], |m| {
        let quantized = |m: &mut GraphBuilder, x: &str| {
            let s0 = m.name();
            m.constants.push(format!("float {s0} = {{0.02}}, uint8 {s0}_z = {{128}}"));
            let q = m.node("QuantizeLinear", &format!("{x}, {s0}, {s0}_z"), &[]);
            m.node("DequantizeLinear", &format!("{q}, {s0}, {s0}_z"), &[])
        };
        let weight = |m: &mut GraphBuilder, o: usize, i: usize| {
            let (w, s) = (m.name(), m.floats(&[o], 0.005, 0.01));
            let values: Vec<_> = (0..o * i).map(|_| m.rng.i8(-100..100).to_string()).collect();
            m.constants.push(format!("int8[{o},{i},1,1] {w} = {{{}}}", values.join(",")));
            let zeros = vec!["0"; o].join(",");
            m.constants.push(format!("int8[{o}] {w}_z = {{{zeros}}}"));
            m.node("DequantizeLinear<axis = 0>", &format!("{w}, {s}, {w}_z"), &[])
        };
        let x = quantized(m, "x");
        let w = weight(m, 6, 3);
        let h = m.node("Conv", &format!("{x}, {w}"), &[]);
        let a = m.node("Relu", &h, &[]);
        let q = quantized(m, &a);
        let v = weight(m, 2, 6);
        (m.node("Conv", &format!("{q}, {v}"), &[]), vec![2, 2, 4, 4])
    });
    assert_eq!(prunable_groups(&graph, &[2, 3, 4, 4]), [(GroupKind::Channels, 6)]);
}
