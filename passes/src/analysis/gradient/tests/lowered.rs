//! Operators without a kernel for doubles in ONNX Runtime, as functions of those that have one.

use pare_graph::{Model, text};
use std::fmt::Write;

/// Definitions: name, attributes, inputs, body. `k(v)` is the constant `v`, and `@a` is an attribute.
const DEFINITIONS: &[(&str, &str, &str, &str)] = &[
    (
        "Gelu",
        "",
        "x",
        "h = k(0.5) c = k(0.7071067811865476) o = k(1) s = Mul(x, c) e = test.Erf(s) f = Add(e, o) g = Mul(f, h) y = Mul(x, g)",
    ),
    (
        "TanhGelu",
        "",
        "x",
        "h = k(0.5) c = k(0.7978845608028654) q = k(0.044715) o = k(1) a = Mul(x, x) b = Mul(a, x) d = Mul(b, q) e = Add(x, d) f = Mul(e, c) t = Tanh(f) g = Add(t, o) i = Mul(g, h) y = Mul(x, i)",
    ),
    ("QuickGelu", "alpha: float = 1.702", "x", "a = @alpha b = Mul(x, a) c = Sigmoid(b) y = Mul(x, c)"),
    ("Swish", "alpha: float = 1.0", "x", "a = @alpha b = Mul(x, a) c = Sigmoid(b) y = Mul(x, c)"),
    (
        "Elu",
        "alpha: float = 1.0",
        "x",
        "a = @alpha z = k(0) o = k(1) n = Less(x, z) e = Exp(x) f = Sub(e, o) g = Mul(f, a) y = Where(n, g, x)",
    ),
    (
        "Selu",
        "alpha: float = 1.6732632, gamma: float = 1.050701",
        "x",
        "a = @alpha c = @gamma z = k(0) o = k(1) n = Less(x, z) e = Exp(x) f = Sub(e, o) g = Mul(f, a) w = Where(n, g, x) y = Mul(w, c)",
    ),
    (
        "HardSwish",
        "",
        "x",
        "i = k(0.16666666666666666) h = k(0.5) z = k(0) o = k(1) a = Mul(x, i) b = Add(a, h) c = Max(b, z) d = Min(c, o) y = Mul(x, d)",
    ),
    ("Softplus", "", "x", "o = k(1) e = Exp(x) f = Add(e, o) y = Log(f)"),
    ("Mish", "", "x", "o = k(1) e = Exp(x) f = Add(e, o) l = Log(f) t = Tanh(l) y = Mul(x, t)"),
    ("Softsign", "", "x", "o = k(1) a = Abs(x) b = Add(a, o) y = Div(x, b)"),
    ("Tan", "", "x", "s = Sin(x) c = Cos(x) y = Div(s, c)"),
    ("Sinh", "", "x", "h = k(0.5) n = Neg(x) a = Exp(x) b = Exp(n) c = Sub(a, b) y = Mul(c, h)"),
    ("Cosh", "", "x", "h = k(0.5) n = Neg(x) a = Exp(x) b = Exp(n) c = Add(a, b) y = Mul(c, h)"),
    (
        "InstanceNormalization",
        "epsilon: float = 1e-5",
        "x, g, b",
        "a = Constant <value_ints = [2, 3]> () i = Constant <value_ints = [1, 2]> () e = @epsilon m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, a) w = Add(v, e) r = Sqrt(w) n = Div(d, r) gu = Unsqueeze(g, i) bu = Unsqueeze(b, i) s = Mul(n, gu) y = Add(s, bu)",
    ),
    (
        "MeanVarianceNormalization",
        "axes: ints = [0, 2, 3]",
        "x",
        "a = Constant <value_ints: ints = @axes> () e = k(1e-9) m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, a) w = Add(v, e) r = Sqrt(w) y = Div(d, r)",
    ),
];

/// Points and weights of the Gauss–Legendre quadrature with `n` points on [0, 1].
fn quadrature(n: usize) -> Vec<(f64, f64)> {
    let legendre = |x: f64| {
        let (mut before, mut now) = (1.0, x);
        for k in 2..=n {
            let k = k as f64;
            (before, now) = (now, ((2.0 * k - 1.0) * x * now - (k - 1.0) * before) / k);
        }
        (now, n as f64 * (x * now - before) / (x * x - 1.0))
    };
    let root = |i: usize| {
        let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
        for _ in 0..50 {
            let (value, slope) = legendre(x);
            x -= value / slope;
        }
        let slope = legendre(x).1;
        (f64::midpoint(x, 1.0), 1.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..n).map(root).collect()
}

/// `erf(x) = 2x/√π·∫₀¹ exp(−(xt)²) dt`.
fn erf() -> String {
    let join = |of: fn(&(f64, f64)) -> f64| {
        quadrature(24).iter().map(|p| format!("{:?}", of(p))).collect::<Vec<_>>().join(",")
    };
    let (points, weights) = (join(|p| p.0), join(|p| p.1));
    format!(
        "t = Constant <value = double[24] {{{points}}}> () w = Constant <value = double[24] {{{weights}}}> () \
         a = Constant <value_ints = [-1]> () c = k({:?}) u = Unsqueeze(x, a) p = Mul(u, t) q = Mul(p, p) n = Neg(q) \
         e = Exp(n) m = Mul(e, w) s = ReduceSum <keepdims = 0> (m, a) v = Mul(x, s) y = Mul(v, c)",
        2.0 / std::f64::consts::PI.sqrt()
    )
}

/// Replaces `k(v)` and `@a` of a definition by nodes.
fn expanded(body: &str) -> String {
    let mut text = String::new();
    for word in body.split_inclusive(' ') {
        let trimmed = word.trim_end();
        if let Some(value) = trimmed.strip_prefix("k(").and_then(|rest| rest.strip_suffix(')')) {
            write!(text, "Constant <value = double[1] {{{value}}}> () ").unwrap();
        } else if let Some(name) = trimmed.strip_prefix('@').filter(|name| !name.ends_with('>')) {
            write!(text, "test.Parameter <value: float = @{name}> (x) ").unwrap();
        } else {
            text += word;
        }
    }
    text
}

/// The model with definitions in place of the operators. Models in floats are returned as they are.
pub(super) fn lowered(model: &Model) -> Model {
    let source = text::print_model(model);
    if !source.contains("double") {
        return model.clone();
    }
    let mut source = source
        .replace("Gelu<approximate = \"tanh\">", "TanhGelu")
        .replace("com.microsoft.FastGelu", "TanhGelu");
    source = source.replace("opset_import: [", "opset_import: [\"test\" : 1, ");
    let erf = erf();
    let definitions: Vec<_> = DEFINITIONS.iter().copied().chain([("Erf", "", "x", erf.as_str())]).collect();
    for (name, ..) in &definitions {
        for domain in ["", "com.microsoft."] {
            for end in ["(", "<"] {
                source = source.replace(&format!("= {domain}{name}{end}"), &format!("= test.{name}{end}"));
            }
        }
    }
    let head = "<domain: \"test\", opset_import: [\"\" : 18, \"test\" : 1]>";
    for (name, attributes, inputs, body) in &definitions {
        let attributes = if attributes.is_empty() { String::new() } else { format!("<{attributes}> ") };
        write!(source, "\n{head} {name} {attributes}({inputs}) => (y) {{ {} }}", expanded(body)).unwrap();
    }
    write!(
        source,
        "\n{head} Parameter <value> (x) => (y) {{ a = Constant <value_float: float = @value> () y = CastLike (a, x) }}"
    )
    .unwrap();
    text::parse_model(&source).unwrap_or_else(|e| panic!("{e}\n{source}"))
}
