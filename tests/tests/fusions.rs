//! The kernels of the engine that replace patterns of operators: `safe` leaves it no more nodes to run.

use crate::support::{after, bytes, engine, same_outputs};
use pare_graph::{Model, onnx, text};
use pare_passes::{Effect, Pipeline};
use pare_runtime::{LoadOptions, ModelSource};
use std::fmt::Write;

/// A graph in text form with pseudorandom weights.
struct Export {
    opset: i64,
    initializers: Vec<String>,
    nodes: String,
    values: usize,
    state: u32,
}

impl Export {
    fn new(opset: i64) -> Self {
        Self { opset, initializers: vec![], nodes: String::new(), values: 0, state: 1 }
    }

    fn name(&mut self) -> String {
        self.values += 1;
        format!("v{}", self.values)
    }

    fn initializer(&mut self, ty: &str, values: &str) -> String {
        let name = self.name();
        self.initializers.push(format!("{ty} {name} = {{{values}}}"));
        name
    }

    /// Weights between −1/2 and 1/2, plus `around`.
    fn weights(&mut self, shape: &[usize], around: f64) -> String {
        let count = shape.iter().product();
        let mut next = || {
            self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(self.state >> 8) / f64::from(1 << 24) - 0.5 + around
        };
        let values: Vec<_> = (0..count).map(|_| format!("{:.4}", next())).collect();
        let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
        self.initializer(&format!("float[{}]", sizes.join(",")), &values.join(","))
    }

    fn scalar(&mut self, value: f64) -> String {
        self.initializer("float", &format!("{value:?}"))
    }

    fn node(&mut self, call: &str) -> String {
        let name = self.name();
        write!(self.nodes, "{name} = {call}\n    ").unwrap();
        name
    }

    fn linear(&mut self, x: &str, inputs: usize, outputs: usize) -> String {
        let (w, b) = (self.weights(&[inputs, outputs], 0.0), self.weights(&[outputs], 0.0));
        let product = self.node(&format!("MatMul({x}, {w})"));
        self.node(&format!("Add({product}, {b})"))
    }

    fn mean(&mut self, x: &str) -> String {
        self.node(&format!("ReduceMean<axes = [-1]>({x})"))
    }

    /// `(x − μ)/√(σ² + ε)`.
    fn normalized(&mut self, x: &str) -> String {
        let mean = self.mean(x);
        let centered = self.node(&format!("Sub({x}, {mean})"));
        let (two, epsilon) = (self.scalar(2.0), self.scalar(1e-5));
        let square = self.node(&format!("Pow({centered}, {two})"));
        let variance = self.mean(&square);
        let sum = self.node(&format!("Add({variance}, {epsilon})"));
        let root = self.node(&format!("Sqrt({sum})"));
        self.node(&format!("Div({centered}, {root})"))
    }

    fn norm(&mut self, x: &str, channels: usize) -> String {
        let (gamma, beta) = (self.weights(&[channels], 1.0), self.weights(&[channels], 0.0));
        let normalized = self.normalized(x);
        let scaled = self.node(&format!("Mul({normalized}, {gamma})"));
        self.node(&format!("Add({scaled}, {beta})"))
    }

    fn rms_norm(&mut self, x: &str, channels: usize) -> String {
        let (two, epsilon, gamma) = (self.scalar(2.0), self.scalar(1e-5), self.weights(&[channels], 1.0));
        let square = self.node(&format!("Pow({x}, {two})"));
        let mean = self.mean(&square);
        let sum = self.node(&format!("Add({mean}, {epsilon})"));
        let root = self.node(&format!("Sqrt({sum})"));
        let normalized = self.node(&format!("Div({x}, {root})"));
        self.node(&format!("Mul({gamma}, {normalized})"))
    }

    fn gelu(&mut self, x: &str) -> String {
        let (root, one, half) = (self.scalar(std::f64::consts::SQRT_2), self.scalar(1.0), self.scalar(0.5));
        let scaled = self.node(&format!("Div({x}, {root})"));
        let erf = self.node(&format!("Erf({scaled})"));
        let bell = self.node(&format!("Add({erf}, {one})"));
        let product = self.node(&format!("Mul({x}, {bell})"));
        self.node(&format!("Mul({product}, {half})"))
    }

    /// One vector of the size of axis `axis`.
    fn size(&mut self, x: &str, axis: usize) -> String {
        let (shape, index) =
            (self.node(&format!("Shape({x})")), self.initializer("int64", &axis.to_string()));
        let size = self.node(&format!("Gather({shape}, {index})"));
        self.unsqueeze(&size, 0)
    }

    fn unsqueeze(&mut self, x: &str, axis: i64) -> String {
        if self.opset < 13 {
            return self.node(&format!("Unsqueeze<axes = [{axis}]>({x})"));
        }
        let axes = self.initializer("int64[1]", &axis.to_string());
        self.node(&format!("Unsqueeze({x}, {axes})"))
    }

    fn split_heads(&mut self, x: &str, channels: usize, perm: &str) -> String {
        let (batch, length) = (self.size(x, 0), self.size(x, 1));
        let heads = self.initializer("int64[1]", "2");
        let of_head = self.initializer("int64[1]", &(channels / 2).to_string());
        let shape = self.node(&format!("Concat<axis = 0>({batch}, {length}, {heads}, {of_head})"));
        let view = self.node(&format!("Reshape({x}, {shape})"));
        self.node(&format!("Transpose<perm = [{perm}]>({view})"))
    }

    fn attention(&mut self, x: &str, channels: usize, mask: Option<&str>) -> String {
        let [q, k, v] = [(); 3].map(|()| self.linear(x, channels, channels));
        let q = self.split_heads(&q, channels, "0,2,1,3");
        let k = self.split_heads(&k, channels, "0,2,3,1");
        let v = self.split_heads(&v, channels, "0,2,1,3");
        let scale = self.scalar(((channels / 2) as f64).sqrt());
        let product = self.node(&format!("MatMul({q}, {k})"));
        let mut scores = self.node(&format!("Div({product}, {scale})"));
        if let Some(mask) = mask {
            scores = self.node(&format!("Add({scores}, {mask})"));
        }
        let weights = self.node(&format!("Softmax<axis = 3>({scores})"));
        let context = self.node(&format!("MatMul({weights}, {v})"));
        let context = self.node(&format!("Transpose<perm = [0,2,1,3]>({context})"));
        let (batch, length) = (self.size(&context, 0), self.size(&context, 1));
        let all = self.initializer("int64[1]", &channels.to_string());
        let shape = self.node(&format!("Concat<axis = 0>({batch}, {length}, {all})"));
        let context = self.node(&format!("Reshape({context}, {shape})"));
        self.linear(&context, channels, channels)
    }

    fn skip(&mut self, x: &str, branch: &str) -> String {
        self.node(&format!("Add({branch}, {x})"))
    }

    fn model(self, inputs: &str, output: &str, y: &str) -> Model {
        let source = format!(
            "<ir_version: 6, opset_import: [\"\" : {}]> g ({inputs}) => ({output} y) <{}> {{
                {} y = Identity({y}) }}",
            self.opset,
            self.initializers.join(", "),
            self.nodes
        );
        let mut model = text::parse_model(&source).unwrap();
        model.check().unwrap();
        model.infer().unwrap();
        model
    }
}

/// A text encoder as BERT is exported, with the norm behind (`post`) or before each part.
fn bert(opset: i64, channels: usize, post: bool) -> Model {
    const LAYERS: usize = 3;
    let mut g = Export::new(opset);
    let words = g.weights(&[10, channels], 0.0);
    let embedded = g.node(&format!("Gather({words}, ids)"));
    let mut x = if post { g.norm(&embedded, channels) } else { embedded };
    let kept = g.node("Cast<to = 7>(mask)");
    let (inner, one, large) = (g.unsqueeze(&kept, 1), g.scalar(1.0), g.scalar(-10_000.0));
    let outer = g.unsqueeze(&inner, 2);
    let cast = g.node(&format!("Cast<to = 1>({outer})"));
    let rest = g.node(&format!("Sub({one}, {cast})"));
    let mask = g.node(&format!("Mul({rest}, {large})"));
    for _ in 0..LAYERS {
        let read = if post { x.clone() } else { g.norm(&x, channels) };
        let attended = g.attention(&read, channels, Some(&mask));
        x = g.skip(&x, &attended);
        if post {
            x = g.norm(&x, channels);
        }
        let read = if post { x.clone() } else { g.norm(&x, channels) };
        let hidden = g.linear(&read, channels, 2 * channels);
        let hidden = g.gelu(&hidden);
        let hidden = g.linear(&hidden, 2 * channels, channels);
        x = g.skip(&x, &hidden);
        if post {
            x = g.norm(&x, channels);
        }
    }
    if !post {
        x = g.norm(&x, channels);
    }
    let ty = format!("float[B,T,{channels}]");
    g.model("int64[B,T] ids, bool[B,T] mask", &ty, &x)
}

/// A vision transformer with the norms before each part.
fn vit(opset: i64, channels: usize) -> Model {
    let mut g = Export::new(opset);
    let (w, positions) = (g.weights(&[channels, 3, 4, 4], 0.0), g.weights(&[1, 4, channels], 0.0));
    let patches = g.node(&format!("Conv<kernel_shape = [4,4], strides = [4,4]>(image, {w})"));
    let batch = g.size(&patches, 0);
    let (all, rest) = (g.initializer("int64[1]", &channels.to_string()), g.initializer("int64[1]", "-1"));
    let shape = g.node(&format!("Concat<axis = 0>({batch}, {all}, {rest})"));
    let tokens = g.node(&format!("Reshape({patches}, {shape})"));
    let tokens = g.node(&format!("Transpose<perm = [0,2,1]>({tokens})"));
    let mut x = g.node(&format!("Add({tokens}, {positions})"));
    for _ in 0..3 {
        let read = g.norm(&x, channels);
        let attended = g.attention(&read, channels, None);
        x = g.skip(&x, &attended);
        let read = g.norm(&x, channels);
        let hidden = g.linear(&read, channels, 2 * channels);
        let hidden = g.gelu(&hidden);
        let hidden = g.linear(&hidden, 2 * channels, channels);
        x = g.skip(&x, &hidden);
    }
    let x = g.norm(&x, channels);
    let pooled = g.node(&format!("ReduceMean<axes = [1], keepdims = 0>({x})"));
    let logits = g.linear(&pooled, channels, 3);
    g.model("float[B,3,8,8] image", "float[B,3]", &logits)
}

/// One part between two layers.
fn between_layers(opset: i64, part: impl Fn(&mut Export, &str) -> String) -> Model {
    let mut g = Export::new(opset);
    let x = g.linear("x", 4, 4);
    let y = part(&mut g, &x);
    let y = g.linear(&y, 4, 4);
    g.model("float[B,3,4] x", "float[B,3,4]", &y)
}

/// The operators of the graph that the engine runs; `None` for an engine that does not write it.
fn executed(model: &Model) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("executed.onnx");
    let options = LoadOptions { optimized_model: Some(path.clone()), ..LoadOptions::default() };
    engine().load(&ModelSource::bytes(bytes(model).unwrap()), &options).unwrap();
    let executed = onnx::read(&path, &onnx::ReadOptions::default()).ok()?;
    Some(executed.graph.nodes().iter().map(|&id| executed.graph.node(id).op.clone()).collect())
}

/// Kernels that replace patterns; `SkipLayerNormalization` and `BiasGelu` are forms of the last two.
const KERNELS: &[&str] = &["Attention", "Gelu", "LayerNormalization"];

fn count(ops: &[String], kernel: &str) -> usize {
    ops.iter().filter(|op| op.ends_with(kernel)).count()
}

/// Runs `safe`, and asserts that the engine runs no more nodes afterwards, and no fewer fused ones; `least` are
/// the numbers of those that it finds in the original.
fn keeps_fusions(name: &str, model: &Model, least: &[(&str, usize)]) {
    let (changed, _) = after(&"safe".parse::<Pipeline>().unwrap(), model).unwrap();
    same_outputs(model, &changed, Effect::Rounding, 4).unwrap_or_else(|why| panic!("{name}: {why}"));
    let (Some(before), Some(after)) = (executed(model), executed(&changed)) else { return };
    let counts = [before.len(), after.len()];
    assert!(counts[1] <= counts[0], "{name}: {counts:?} nodes, {before:?}, {after:?}");
    for kernel in KERNELS {
        let counts = [&before, &after].map(|ops| count(ops, kernel));
        assert!(counts[1] >= counts[0], "{name}: {counts:?} {kernel}, {before:?}, {after:?}");
    }
    for &(kernel, least) in least {
        assert!(count(&before, kernel) >= least, "{name}: {kernel} in {before:?}");
    }
}

#[test]
fn text_encoders_keep_norms_and_attention() {
    for opset in [11, 13, 17] {
        let parts = &[("LayerNormalization", 7), ("BiasGelu", 3)][..];
        // Axes of `Unsqueeze` are inputs from operator set 13 on, for which the engine does not look.
        let attention = if opset < 13 { &[("Attention", 3), ("SkipLayerNormalization", 6)][..] } else { &[] };
        let post = bert(opset, 8, true);
        keeps_fusions(&format!("post-norm, {opset}"), &post, &[parts, attention].concat());
        keeps_fusions(&format!("pre-norm, {opset}"), &bert(opset, 8, false), parts);
    }
}

#[test]
fn vision_transformers_keep_norms() {
    for opset in [9, 13, 17] {
        let parts = [("LayerNormalization", 7), ("BiasGelu", 3)];
        keeps_fusions(&format!("operator set {opset}"), &vit(opset, 8), &parts);
    }
}

/// A name, and a part that reads and returns values with 4 channels.
type Part = (&'static str, fn(&mut Export, &str) -> String);

const PARTS: &[Part] = &[
    ("norm", |g, x| g.norm(x, 4)),
    ("RMS norm", |g, x| g.rms_norm(x, 4)),
    ("norm of a sum", |g, x| {
        let sum = g.skip(x, "x");
        g.norm(&sum, 4)
    }),
    ("neutral scale and bias", |g, x| {
        let (ones, zeros) = (g.initializer("float[4]", "1,1,1,1"), g.initializer("float[4]", "0,0,0,0"));
        let normalized = g.normalized(x);
        let scaled = g.node(&format!("Mul({normalized}, {ones})"));
        g.node(&format!("Add({scaled}, {zeros})"))
    }),
    ("scale without bias", |g, x| {
        let gamma = g.weights(&[4], 1.0);
        let normalized = g.normalized(x);
        g.node(&format!("Mul({normalized}, {gamma})"))
    }),
    ("bias without scale", |g, x| {
        let beta = g.weights(&[4], 0.0);
        let normalized = g.normalized(x);
        g.node(&format!("Add({normalized}, {beta})"))
    }),
    ("Gelu of erf", |g, x| g.gelu(x)),
    ("Gelu of tanh", |g, x| {
        let (three, factor, root) = (g.scalar(3.0), g.scalar(0.044_715), g.scalar(0.797_884_6));
        let (one, half) = (g.scalar(1.0), g.scalar(0.5));
        let cube = g.node(&format!("Pow({x}, {three})"));
        let small = g.node(&format!("Mul({cube}, {factor})"));
        let sum = g.node(&format!("Add({x}, {small})"));
        let scaled = g.node(&format!("Mul({sum}, {root})"));
        let tanh = g.node(&format!("Tanh({scaled})"));
        let bell = g.node(&format!("Add({tanh}, {one})"));
        let product = g.node(&format!("Mul({x}, {bell})"));
        g.node(&format!("Mul({product}, {half})"))
    }),
    ("Gelu of a sigmoid", |g, x| {
        let factor = g.scalar(1.702);
        let scaled = g.node(&format!("Mul({x}, {factor})"));
        let gate = g.node(&format!("Sigmoid({scaled})"));
        g.node(&format!("Mul({x}, {gate})"))
    }),
    ("softmax of a sum", |g, x| {
        let bias = g.weights(&[1, 4], 0.0);
        let sum = g.node(&format!("Add({x}, {bias})"));
        g.node(&format!("Softmax<axis = 2>({sum})"))
    }),
];

#[test]
fn single_parts_stay_fused() {
    for opset in [9, 13, 17] {
        for (name, part) in PARTS {
            keeps_fusions(&format!("{name}, {opset}"), &between_layers(opset, part), &[]);
        }
    }
}
