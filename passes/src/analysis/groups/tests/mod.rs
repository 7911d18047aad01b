//! Cutting equals zeroing: a cut graph computes the same outputs as the original with the cut channels set to
//! zero wherever they are summed over.

mod models;
mod operators;

use super::{Groups, Keep, Site, Slot, cut::cut, site_of, sums};
use crate::framework::testing::{self, model_at, read_fixture, tools};
use pare_graph::{Graph, Model, Node, Patch, Run, Setting, Tensor, text};

/// Builds the text of a graph.
struct GraphBuilder {
    rng: fastrand::Rng,
    lines: Vec<String>,
    constants: Vec<String>,
    values: Vec<(String, Vec<usize>)>,
    next: usize,
}

impl GraphBuilder {
    fn name(&mut self) -> String {
        self.next += 1;
        format!("v{}", self.next)
    }

    fn node(&mut self, op: &str, inputs: &str, shape: &[usize]) -> String {
        let name = self.name();
        self.lines.push(format!("{name} = {op}({inputs})"));
        self.values.push((name.clone(), shape.to_vec()));
        name
    }

    fn floats(&mut self, shape: &[usize], low: f32, high: f32) -> String {
        let name = self.name();
        let count: usize = shape.iter().product();
        let values: Vec<_> =
            (0..count).map(|_| format!("{:.3}", low + (high - low) * self.rng.f32())).collect();
        let dims: Vec<_> = shape.iter().map(ToString::to_string).collect();
        self.constants.push(format!("float[{}] {name} = {{{}}}", dims.join(","), values.join(",")));
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.name();
        let items: Vec<_> = values.iter().map(ToString::to_string).collect();
        self.constants.push(format!("int64[{}] {name} = {{{}}}", values.len(), items.join(",")));
        name
    }

    fn pick(&mut self, rank: usize) -> Option<(String, Vec<usize>)> {
        let fitting: Vec<_> = self.values.iter().filter(|(_, s)| s.len() == rank).cloned().collect();
        // One of the last three, for deep graphs.
        let from = fitting.len().saturating_sub(3);
        (!fitting.is_empty()).then(|| fitting[self.rng.usize(from..fitting.len())].clone())
    }

    fn conv(
        &mut self,
        x: &str,
        s: &[usize],
        outputs: usize,
        kernel: usize,
        group: usize,
    ) -> (String, Vec<usize>) {
        let w = self.floats(&[outputs, s[0] / group, kernel, kernel], -0.5, 0.5);
        let b =
            if self.rng.bool() { format!(", {}", self.floats(&[outputs], -0.5, 0.5)) } else { String::new() };
        let pad = kernel / 2;
        let shape = vec![outputs, s[1], s[2]];
        let op = format!("Conv<group = {group}, pads = [{pad}, {pad}, {pad}, {pad}]>");
        (self.node(&op, &format!("{x}, {w}{b}"), &shape), shape)
    }

    fn dense(&mut self, x: &str, s: &[usize], outputs: usize) -> (String, Vec<usize>) {
        let inputs = s[s.len() - 1];
        let mut shape = s.to_vec();
        *shape.last_mut().unwrap() = outputs;
        if s.len() == 1 && self.rng.bool() {
            let w = self.floats(&[outputs, inputs], -0.5, 0.5);
            let b = self.floats(&[outputs], -0.5, 0.5);
            return (self.node("Gemm<transB = 1>", &format!("{x}, {w}, {b}"), &shape), shape);
        }
        let (w, b) = (self.floats(&[inputs, outputs], -0.5, 0.5), self.floats(&[outputs], -0.5, 0.5));
        let h = self.node("MatMul", &format!("{x}, {w}"), &shape);
        (self.node("Add", &format!("{b}, {h}"), &shape), shape)
    }

    fn activation(&mut self, x: &str, s: &[usize]) {
        let op = ["Relu", "Sigmoid", "HardSwish", "LeakyRelu<alpha = 0.2>", "Tanh", "Softplus"]
            [self.rng.usize(0..6)];
        self.node(op, x, s);
    }

    /// Appends an operator or block on a feature map `[C, H, W]`.
    fn map(&mut self) {
        let Some((x, s)) = self.pick(3) else { return };
        let wide = 2 + 2 * self.rng.usize(1..5);
        match self.rng.usize(0..27) {
            case @ 0..=12 => self.map_layer(case, &x, &s, wide),
            case => self.map_rearrangement(case, &x, &s, wide),
        }
    }

    /// Appends a layer with weights, or a block of several.
    fn map_layer(&mut self, case: usize, x: &str, s: &[usize], wide: usize) {
        let (c, h, w) = (s[0], s[1], s[2]);
        match case {
            0..=3 => {
                let kernel = [1, 3][self.rng.usize(0..2)];
                self.conv(x, s, wide, kernel, 1);
            }
            4 => {
                let outputs = c * self.rng.usize(1..3);
                self.conv(x, s, outputs, 3, c);
            }
            5 if c % 2 == 0 => {
                self.conv(x, s, wide, 3, 2);
            }
            6 => {
                let weight = self.floats(&[c, wide, 2, 2], -0.5, 0.5);
                let bias = self.floats(&[wide], -0.5, 0.5);
                self.node(
                    "ConvTranspose<strides = [2, 2]>",
                    &format!("{x}, {weight}, {bias}"),
                    &[wide, 2 * h, 2 * w],
                );
            }
            7 => {
                let [g, b, m] = [0; 3].map(|_| self.floats(&[c], -0.5, 0.5));
                let v = self.floats(&[c], 0.5, 1.5);
                self.node("BatchNormalization", &format!("{x}, {g}, {b}, {m}, {v}"), s);
            }
            8 if h * w > 1 => {
                let [g, b] = [0; 2].map(|_| self.floats(&[c], -0.5, 0.5));
                self.node("InstanceNormalization", &format!("{x}, {g}, {b}"), s);
            }
            9 => {
                let slope = self.floats(&[c, 1, 1], 0.1, 0.5);
                self.node("PRelu", &format!("{x}, {slope}"), s);
            }
            10 | 11 => {
                let (y, _) = self.conv(x, s, c, 3, 1);
                let op = ["Add", "Mul"][self.rng.usize(0..2)];
                self.node(op, &format!("{x}, {y}"), s);
            }
            12 => {
                let pooled = self.node("GlobalAveragePool", x, &[c, 1, 1]);
                let (y, _) = self.conv(&pooled, &[c, 1, 1], c, 1, 1);
                let gate = self.node("Sigmoid", &y, &[c, 1, 1]);
                self.node("Mul", &format!("{gate}, {x}"), s);
            }
            _ => self.activation(x, s),
        }
    }

    /// Appends an operator that joins, splits, permutes or resizes feature maps, or an activation.
    fn map_rearrangement(&mut self, case: usize, x: &str, s: &[usize], wide: usize) {
        let (c, h, w) = (s[0], s[1], s[2]);
        match case {
            13 | 14 => {
                let (y, t) = self.conv(x, s, wide, 1, 1);
                self.node("Concat<axis = 1>", &format!("{x}, {y}"), &[c + t[0], h, w]);
            }
            15 if c >= 4 => {
                let cut = self.rng.usize(1..c);
                let (a, b) = (self.name(), self.name());
                let sizes = self.ints(&[cut as i64, (c - cut) as i64]);
                self.lines.push(format!("{a}, {b} = Split<axis = 1>({x}, {sizes})"));
                self.values.push((a, vec![cut, h, w]));
                self.values.push((b, vec![c - cut, h, w]));
            }
            16 if c >= 3 => {
                let (start, end) = (self.rng.usize(0..c - 1), c);
                let [a, b, axis] = [start, end, 1].map(|v| self.ints(&[v as i64]));
                self.node("Slice", &format!("{x}, {a}, {b}, {axis}"), &[end - start, h, w]);
            }
            17 => {
                let mut places: Vec<_> = (0..c as i64).collect();
                self.rng.shuffle(&mut places);
                let indices = self.ints(&places);
                self.node("Gather<axis = 1>", &format!("{x}, {indices}"), s);
            }
            18 if c % 2 == 0 => {
                let (split, back) = (
                    self.ints(&[0, 2, c as i64 / 2, h as i64, w as i64]),
                    self.ints(&[0, c as i64, h as i64, w as i64]),
                );
                let a = self.node("Reshape", &format!("{x}, {split}"), &[2, c / 2, h, w]);
                let b = self.node("Transpose<perm = [0, 2, 1, 3, 4]>", &a, &[c / 2, 2, h, w]);
                self.node("Reshape", &format!("{b}, {back}"), s);
            }
            19 if h % 2 == 0 && w % 2 == 0 => {
                let op = ["MaxPool", "AveragePool"][self.rng.usize(0..2)];
                self.node(&format!("{op}<kernel_shape = [2, 2], strides = [2, 2]>"), x, &[c, h / 2, w / 2]);
            }
            20 if c % 4 == 0 => {
                let mode = ["DCR", "CRD"][self.rng.usize(0..2)];
                let op = format!("DepthToSpace<blocksize = 2, mode = \"{mode}\">");
                self.node(&op, x, &[c / 4, 2 * h, 2 * w]);
            }
            21 if h < 9 => {
                let sizes = self.ints(&[2, c as i64, 2 * h as i64, 2 * w as i64]);
                self.node("Resize<mode = \"nearest\">", &format!("{x}, , , {sizes}"), &[c, 2 * h, 2 * w]);
            }
            23 if c % 4 == 0 => {
                // Group normalisation as exporters decompose it.
                let (split, back) = (self.ints(&[0, 4, -1]), self.ints(&[0, c as i64, h as i64, w as i64]));
                let [scale, shift] = [self.floats(&[4], 0.5, 1.5), self.floats(&[4], -0.5, 0.5)];
                let y = self.node("Reshape", &format!("{x}, {split}"), &[4, c / 4 * h * w]);
                let z =
                    self.node("InstanceNormalization", &format!("{y}, {scale}, {shift}"), &[0, 0, 0, 0, 0]);
                self.values.truncate(self.values.len() - 2);
                self.node("Reshape", &format!("{z}, {back}"), s);
            }
            24 => {
                let grid = self.floats(&[2, h, w, 2], -0.9, 0.9);
                self.node("GridSample", &format!("{x}, {grid}"), s);
            }
            25 if w < 9 => {
                let repeats = self.ints(&[1, 1, 1, 2]);
                self.node("Tile", &format!("{x}, {repeats}"), &[c, h, 2 * w]);
            }
            22 => {
                let pads = self.ints(&[0, 0, 1, 1, 0, 0, 0, 0]);
                self.node("Pad", &format!("{x}, {pads}"), &[c, h + 1, w + 1]);
            }
            _ => self.activation(x, s),
        }
    }

    /// Appends a conversion of a feature map to rows or tokens.
    fn flatten(&mut self) {
        let Some((x, s)) = self.pick(3) else { return };
        let (c, p) = (s[0], s[1] * s[2]);
        match self.rng.usize(0..4) {
            0 => drop(self.node("Flatten", &x, &[c * p])),
            1 => {
                let axes = self.ints(&[2, 3]);
                self.node("ReduceMean<keepdims = 0>", &format!("{x}, {axes}"), &[c]);
            }
            2 => {
                let y = self.node("Transpose<perm = [0, 2, 3, 1]>", &x, &[s[1], s[2], c]);
                self.values.pop();
                self.node("Flatten", &y, &[c * p]);
            }
            _ => {
                let shape = self.ints(&[0, c as i64, -1]);
                let y = self.node("Reshape", &format!("{x}, {shape}"), &[c, p]);
                self.values.pop();
                self.node("Transpose<perm = [0, 2, 1]>", &y, &[p, c]);
            }
        }
    }

    /// Appends an operator or block on rows `[F]`.
    fn rows(&mut self) {
        let Some((x, s)) = self.pick(1) else { return };
        let wide = 2 + 2 * self.rng.usize(1..5);
        match self.rng.usize(0..6) {
            0 | 1 => drop(self.dense(&x, &s, wide)),
            2 => {
                let (y, t) = self.dense(&x, &s, wide);
                self.node("Concat<axis = 1>", &format!("{y}, {x}"), &[t[0] + s[0]]);
            }
            3 => {
                let (y, _) = self.dense(&x, &s, s[0]);
                self.node("Mul", &format!("{y}, {x}"), &s);
            }
            4 => {
                let shape = self.ints(&[-1, s[0] as i64, 1, 1]);
                self.node("Reshape", &format!("{x}, {shape}"), &[s[0], 1, 1]);
            }
            _ => self.activation(&x, &s),
        }
    }

    /// Appends an operator or block on tokens `[T, C]`.
    fn tokens(&mut self) {
        let Some((x, s)) = self.pick(2) else { return };
        let (t, c) = (s[0], s[1]);
        let wide = 2 + 2 * self.rng.usize(1..5);
        match self.rng.usize(0..11) {
            6 => {
                // A decomposed RMS norm.
                let (axes, gamma) = (self.ints(&[-1]), self.floats(&[c], 0.5, 1.5));
                let small = self.floats(&[1], 0.01, 0.01);
                let mut last = self.node("Mul", &format!("{x}, {x}"), &s);
                last = self.node("ReduceMean<keepdims = 1>", &format!("{last}, {axes}"), &[0, 0, 0, 0, 0]);
                last = self.node("Add", &format!("{last}, {small}"), &[0, 0, 0, 0, 0]);
                last = self.node("Sqrt", &last, &[0, 0, 0, 0, 0]);
                last = self.node("Div", &format!("{x}, {last}"), &s);
                self.values.truncate(self.values.len() - 5);
                self.node("Mul", &format!("{last}, {gamma}"), &s);
            }
            7 => {
                let w = self.floats(&[c, wide], -0.5, 0.5);
                self.node("Einsum<equation = \"bti,io->bto\">", &format!("{x}, {w}"), &[t, wide]);
            }
            8 => {
                let (op, gates) = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][self.rng.usize(0..3)];
                let w = self.floats(&[1, gates * wide, c], -0.5, 0.5);
                let r = self.floats(&[1, gates * wide, wide], -0.5, 0.5);
                let (b, axes) = (self.floats(&[1, 2 * gates * wide], -0.5, 0.5), self.ints(&[1]));
                let op = format!("{op}<hidden_size = {wide}>");
                let y = self.node(&op, &format!("{x}, {w}, {r}, {b}"), &[0, 0, 0, 0, 0]);
                self.values.pop();
                self.node("Squeeze", &format!("{y}, {axes}"), &[t, wide]);
            }
            9 => self.grouped_attention(&x, t, c),
            0 => {
                let (h, k) = self.dense(&x, &s, wide);
                let a = self.node("Erf", &h, &k);
                let (y, _) = self.dense(&a, &k, c);
                self.node("Add", &format!("{x}, {y}"), &s);
            }
            1 => {
                // A gated MLP: two halves of one product.
                let (h, _) = self.dense(&x, &s, 2 * wide);
                let (a, b) = (self.name(), self.name());
                self.lines.push(format!("{a}, {b} = Split<axis = 2, num_outputs = 2>({h})"));
                let gate = self.node("Sigmoid", &a, &[t, wide]);
                let y = self.node("Mul", &format!("{gate}, {b}"), &[t, wide]);
                self.dense(&y, &[t, wide], c);
            }
            2 | 3 => self.attention(&x, t, c),
            4 => {
                let [g, b] = [0; 2].map(|_| self.floats(&[c], 0.5, 1.0));
                self.node("LayerNormalization", &format!("{x}, {g}, {b}"), &s);
            }
            5 => {
                let axes = self.ints(&[1]);
                self.node("ReduceSum<keepdims = 0>", &format!("{x}, {axes}"), &[c]);
            }
            _ => self.activation(&x, &s),
        }
    }

    /// Appends grouped-query attention: two heads of queries for each of keys and values.
    fn grouped_attention(&mut self, x: &str, t: usize, c: usize) {
        let (units, d, none) = (self.rng.usize(2..4), self.rng.usize(2..4), [0; 5]);
        let (kept, heads) = (self.values.len(), 2 * units);
        let part = |m: &mut Self, n: usize| {
            let (p, _) = m.dense(x, &[t, c], n * d);
            let shape = m.ints(&[0, t as i64, n as i64, d as i64]);
            let y = m.node("Reshape", &format!("{p}, {shape}"), &none);
            m.node("Transpose<perm = [0, 2, 1, 3]>", &y, &none)
        };
        let repeat = |m: &mut Self, x: &str| {
            let (axes, wide) = (m.ints(&[2]), m.ints(&[2, units as i64, 2, t as i64, d as i64]));
            let back = m.ints(&[2, heads as i64, t as i64, d as i64]);
            let y = m.node("Unsqueeze", &format!("{x}, {axes}"), &none);
            let y = m.node("Expand", &format!("{y}, {wide}"), &none);
            m.node("Reshape", &format!("{y}, {back}"), &none)
        };
        let (q, k, v) = (part(self, heads), part(self, units), part(self, units));
        let (k, v) = (repeat(self, &k), repeat(self, &v));
        let k = self.node("Transpose<perm = [0, 1, 3, 2]>", &k, &none);
        let a = self.node("MatMul", &format!("{q}, {k}"), &none);
        let p = self.node("Softmax<axis = -1>", &a, &none);
        let o = self.node("MatMul", &format!("{p}, {v}"), &none);
        let o = self.node("Transpose<perm = [0, 2, 1, 3]>", &o, &none);
        let shape = self.ints(&[0, t as i64, (heads * d) as i64]);
        let o = self.node("Reshape", &format!("{o}, {shape}"), &none);
        self.values.truncate(kept);
        let (y, _) = self.dense(&o, &[t, heads * d], c);
        self.node("Add", &format!("{x}, {y}"), &[t, c]);
    }

    fn attention(&mut self, x: &str, t: usize, c: usize) {
        let (heads, d) = (self.rng.usize(2..5), self.rng.usize(2..4));
        let (scores, wide) = (vec![heads, t, t], heads * d);
        let parts: Vec<String> = if self.rng.bool() {
            let (qkv, _) = self.dense(x, &[t, c], 3 * wide);
            let shape = self.ints(&[0, t as i64, 3, heads as i64, d as i64]);
            let y = self.node("Reshape", &format!("{qkv}, {shape}"), &[t, 3, heads, d]);
            let z = self.node("Transpose<perm = [2, 0, 3, 1, 4]>", &y, &[t, 3, heads, d, 0]);
            self.values.truncate(self.values.len() - 2);
            let part = |m: &mut Self, i: i64| {
                let index = m.name();
                m.constants.push(format!("int64 {index} = {{{i}}}"));
                let p = m.node("Gather<axis = 0>", &format!("{z}, {index}"), &[heads, t, d]);
                m.values.pop();
                p
            };
            (0..3).map(|i| part(self, i)).collect()
        } else {
            let part = |m: &mut Self| {
                let (p, _) = m.dense(x, &[t, c], wide);
                let shape = m.ints(&[0, t as i64, heads as i64, d as i64]);
                let y = m.node("Reshape", &format!("{p}, {shape}"), &[t, heads, d]);
                let z = m.node("Transpose<perm = [0, 2, 1, 3]>", &y, &[heads, t, d]);
                m.values.truncate(m.values.len() - 2);
                z
            };
            (0..3).map(|_| part(self)).collect()
        };
        let k = self.node("Transpose<perm = [0, 1, 3, 2]>", &parts[1], &scores);
        let a = self.node("MatMul", &format!("{}, {k}", parts[0]), &scores);
        let p = self.node("Softmax<axis = -1>", &a, &scores);
        let o = self.node("MatMul", &format!("{p}, {}", parts[2]), &scores);
        let o = self.node("Transpose<perm = [0, 2, 1, 3]>", &o, &scores);
        let shape = self.ints(&[0, t as i64, wide as i64]);
        let o = self.node("Reshape", &format!("{o}, {shape}"), &scores);
        self.values.truncate(self.values.len() - 6);
        let (y, _) = self.dense(&o, &[t, wide], c);
        self.node("Add", &format!("{x}, {y}"), &[t, c]);
    }
}

/// A random graph of two samples.
pub(crate) fn random_graph(seed: u64) -> Model {
    let rng = fastrand::Rng::with_seed(seed);
    let values = vec![("x".to_owned(), vec![3, 4, 4])];
    let mut builder = GraphBuilder { rng, lines: vec![], constants: vec![], values, next: 0 };
    builder.conv("x", &[3, 4, 4], 6, 3, 1);
    let (maps, others) = (builder.rng.usize(2..9), builder.rng.usize(1..6));
    (0..maps).for_each(|_| builder.map());
    (0..2).for_each(|_| builder.flatten());
    for _ in 0..others {
        builder.rows();
        builder.tokens();
    }
    // A layer that produces an output for each rank.
    let mut outputs = vec![];
    for rank in 1..=3 {
        let Some((v, s)) = builder.pick(rank) else { continue };
        let (y, _) = if rank == 3 { builder.conv(&v, &s, 3, 1, 1) } else { builder.dense(&v, &s, 3) };
        let dims = if rank == 3 {
            format!("2,3,{},{}", s[1], s[2])
        } else if rank == 2 {
            format!("2,{},3", s[0])
        } else {
            "2,3".into()
        };
        outputs.push(format!("float[{dims}] {y}"));
    }
    let source = format!(
        "g (float[2,3,4,4] x) => ({}) <{}> {{\n{}\n}}",
        outputs.join(", "),
        builder.constants.join(",\n"),
        builder.lines.join("\n")
    );
    let mut model = model_at(&source, 18);
    model.infer().unwrap_or_else(|e| panic!("seed {seed}: {e}\n{source}"));
    model
}

/// The graph with the cut channels multiplied by zero wherever they are summed over.
fn zeroed(graph: &Graph, groups: &Groups, keep: &Keep) -> Graph {
    let mut masks = vec![];
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        for (slot, axis) in sums(at) {
            let Some(site) = site_of(at, Slot::In(slot)).filter(|_| !at.input(slot).unwrap().is_constant())
            else {
                continue;
            };
            if let Some(kept) = groups.kept(keep, site, axis) {
                let dims = at.input(slot).unwrap().shape().unwrap();
                let size = dims[axis].size().unwrap();
                let mask: Vec<f32> = (0..size).map(|i| if kept.contains(&i) { 1.0 } else { 0.0 }).collect();
                let mut shape = vec![1; dims.len()];
                shape[axis] = size;
                let output = at.output().unwrap().name().to_owned();
                masks.push((output, slot, Tensor::from_slice(&shape, &mask).unwrap()));
            }
        }
    }
    let mut graph = graph.clone();
    zero_hidden_units(&mut graph, groups, keep);
    for (output, slot, mask) in masks {
        let value = graph.find(&output).unwrap();
        let at = graph.value_ref(value).producer().unwrap();
        let mut patch = Patch::at(at);
        let mask = patch.constant("mask", mask);
        let masked = patch.node("masked", Node::new("Mul"), &[at.input(slot).unwrap().into(), mask]);
        let mut inputs: Vec<_> = at.inputs().into_iter().map(|v| v.map(Into::into)).collect();
        inputs[slot] = Some(masked);
        let new = patch.copy(at, &inputs);
        patch.replace(graph.value_ref(value), new);
        graph.apply(patch).unwrap();
    }
    graph
}

/// Sets weights of recurrent layers to zero, since these sum over their hidden units themselves.
fn zero_hidden_units(graph: &mut Graph, groups: &Groups, keep: &Keep) {
    let mut patch: Option<Patch> = None;
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if !["LSTM", "GRU", "RNN"].contains(&at.op()) {
            continue;
        }
        let weight = at.input(2).unwrap();
        let Some(kept) = groups.kept(keep, Site::Value(weight.id), 2) else { continue };
        let tensor = weight.constant().unwrap();
        let hidden = tensor.shape()[2];
        let zeroed = |(k, v): (usize, f64)| if kept.contains(&(k % hidden)) { v } else { 0.0 };
        let values: Vec<_> = tensor.to_f64().unwrap().into_iter().enumerate().map(zeroed).collect();
        let tensor = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).unwrap();
        patch.get_or_insert_with(|| Patch::at(at)).set_data(weight.id, tensor);
    }
    if let Some(patch) = patch {
        graph.apply(patch).unwrap();
    }
}

fn loaded(model: &Model) -> Box<dyn Run> {
    let text = || text::print_graph_with(&model.graph, text::PrintOptions { max_elements: Some(8) });
    tools().engine.unwrap().load(model, Setting::PLAIN).unwrap_or_else(|e| panic!("{e}\n{}", text()))
}

/// Cuts random units of random groups, and compares the outputs with those of zeroing. Returns the number of
/// groups, and of those that lost units.
fn compare_with_zeroing(model: &Model, feeds: &[(&str, &Tensor)], seed: u64) -> (usize, usize) {
    let graph = &model.graph;
    let groups = Groups::of(graph);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut keep = Keep::new();
    for (id, group) in groups.prunable() {
        if rng.u8(0..4) > 0 {
            let mut units: Vec<_> = (0..group.width).map(|_| rng.bool()).collect();
            units[rng.usize(0..group.width)] = true;
            keep.insert(id, units);
        }
    }
    let smaller = cut(graph, &groups, &keep).unwrap_or_else(|e| {
        panic!(
            "seed {seed}: {e}\n{}",
            text::print_graph_with(graph, text::PrintOptions { max_elements: Some(8) })
        )
    });
    let with = |graph| {
        let mut changed = model.clone();
        changed.graph = graph;
        changed
    };
    let (reference, smaller) = (with(zeroed(graph, &groups, &keep)), with(smaller));
    smaller.check().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    compare(&reference, &smaller, feeds, seed);
    let lost = keep.values().filter(|units| units.contains(&false)).count();
    (groups.prunable().count(), lost)
}

/// Checks that both models compute the same outputs up to rounding.
fn compare(reference: &Model, other: &Model, feeds: &[(&str, &Tensor)], seed: u64) {
    let (a, b) = (loaded(reference).run(feeds).unwrap(), loaded(other).run(feeds).unwrap());
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        let (x, y) = (a.to_f64().unwrap(), b.to_f64().unwrap());
        let scale = x.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        let far = x.iter().zip(&y).map(|(p, q)| (p - q).abs()).fold(0.0, f64::max);
        // The order of summation differs: about 1e-7 of the largest term for each of a dozen layers.
        let text = || text::print_graph_with(&reference.graph, text::PrintOptions { max_elements: Some(8) });
        assert!(
            x.len() == y.len() && far <= 1e-4 * scale,
            "seed {seed}, output {i}: {far} of {scale}\n{}",
            text()
        );
    }
}

/// The input of a random graph.
fn feed(seed: u64) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(seed);
    let x: Vec<f32> = (0..96).map(|_| rng.f32() * 2.0 - 1.0).collect();
    Tensor::from_slice(&[2, 3, 4, 4], &x).unwrap()
}

/// Checks that two graphs that are derived from one random graph compute the same outputs.
pub(crate) fn equal(a: &Graph, b: &Graph, seed: u64) {
    let of = |graph: &Graph| Model::of(graph.clone());
    compare(&of(a), &of(b), &[("x", &feed(seed))], seed);
}

#[test]
fn cutting_equals_zeroing_on_random_graphs() {
    let (mut found, mut cut) = (0, 0);
    for seed in 0..500 {
        let model = random_graph(seed);
        let (groups, lost) = compare_with_zeroing(&model, &[("x", &feed(seed))], seed);
        (found, cut) = (found + groups, cut + lost);
    }
    // The test is only significant if there is enough to cut.
    assert!(found > 1500 && cut > 1000, "{found} groups, {cut} cut");
}

/// Sizes that no constant can express follow a cut where their computation has a known element.
#[test]
fn computed_sizes_follow_a_cut() {
    let numbers = |n: usize, seed: u64| {
        let mut rng = fastrand::Rng::with_seed(seed);
        (0..n).map(|_| format!("{:.3}", rng.f32() - 0.5)).collect::<Vec<_>>().join(",")
    };
    let (w, token, v, k, u) = (numbers(48, 1), numbers(6, 2), numbers(18, 3), numbers(12, 4), numbers(12, 5));
    let constants = format!(
        "<float[8,6] w = {{{w}}}, float[1,6] token = {{{token}}}, float[6,3] v = {{{v}}},
          float[6,2,1,1] k = {{{k}}}, float[2,6,1,1] u = {{{u}}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
          int64[1] two = {{2}}, int64[1] four = {{4}}, int64[1] six = {{6}},
          int64[3] ones = {{1, 1, 6}}>"
    );
    // The last reads the size of the channels themselves.
    let sources = [
        "g (float[N,8] x) => (float[N,3] y) {constants} {
            h = MatMul(x, w) shape = Shape(x) n = Slice(shape, zero, one) sizes = Concat<axis = 0>(n, six)
            t = Expand(token, sizes) s = Add(h, t) y = MatMul(s, v) }",
        "g (float[N,8] x) => (float[1,N,3] y) {constants} {
            h = MatMul(x, w) shape = Shape(x) n = Slice(shape, zero, one) sizes = Concat<axis = 0>(n, six)
            c = Reshape(token, ones) t = Expand(c, sizes) s = Add(h, t) y = MatMul(s, v) }",
        "g (float[N,T,8] x) => (float[T,N,3] y) {constants} {
            h = MatMul(x, w) shape = Shape(x) n = Slice(shape, zero, one) t = Slice(shape, one, two)
            sizes = Concat<axis = 0>(t, n, six) r = Reshape(h, sizes) y = MatMul(r, v) }",
        "g (float[N,2,H,W] x) => (float[N,2,H,W] y) {constants} {
            p = GlobalAveragePool(x) h = Conv(p, k) shape = Shape(x) n = Slice(shape, zero, one)
            hw = Slice(shape, two, four) sizes = Concat<axis = 0>(n, six, hw)
            r = Resize<mode = \"nearest\">(h, \"\", \"\", sizes) a = Relu(r) y = Conv(a, u) }",
        "g (float[N,2,H,W] x) => (float[N,2,H,W] y) {constants} {
            h = Conv(x, k) shape = Shape(x) n = Slice(shape, zero, one) hw = Slice(shape, two, four)
            sizes = Concat<axis = 0>(n, six, hw) a = Relu(h) r = Reshape(a, sizes) y = Conv(r, u) }",
    ];
    for (place, source) in sources.into_iter().enumerate() {
        let mut model = testing::model(&source.replace("{constants}", &constants));
        model.infer().unwrap();
        let mut rng = fastrand::Rng::with_seed(9);
        let shape: &[usize] = [&[5, 8][..], &[5, 8], &[2, 3, 8], &[2, 2, 3, 5], &[2, 2, 3, 5]][place];
        let x: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32()).collect();
        let x = Tensor::from_slice(shape, &x).unwrap();
        for seed in 0..4 {
            let (groups, _) = compare_with_zeroing(&model, &[("x", &x)], seed);
            assert_eq!(groups, 1, "{source}");
        }
    }
}

#[test]
fn cutting_equals_zeroing_on_a_trained_network() {
    // Groups of the second: inside of 7 blocks, 5 streams and linear bottlenecks, the head.
    for (fixture, shape, wanted) in [("digits-cnn", [3, 1, 8, 8], 8), ("cifar-mbv2", [3, 3, 32, 32], 13)] {
        let model = read_fixture(&format!("{fixture}.onnx"));
        let mut rng = fastrand::Rng::with_seed(1);
        let x: Vec<f32> = (0..shape.iter().product()).map(|_| rng.f32()).collect();
        let x = Tensor::from_slice(&shape, &x).unwrap();
        for seed in 0..4 {
            let (groups, lost) = compare_with_zeroing(&model, &[("image", &x)], seed);
            assert!(groups == wanted && lost > 3, "{fixture}: {groups} groups, {lost} cut");
        }
    }
}
