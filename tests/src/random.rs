//! Random valid graphs and models as text; the same seed gives the same text.
//!
//! A graph grows node by node. Each step picks earlier values and an operator that accepts them, so types and
//! shapes always match; nodes whose values are not picked are dead. Weights are small, so that values stay
//! finite. One axis may be symbolic: the batch `N`.

use fastrand::Rng;

/// Element types of values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Float,
    Int,
    Bool,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int => "int64",
            Self::Bool => "bool",
        }
    }
}

/// A shape; `None` is the batch `N`, at most once.
type Shape = Vec<Option<usize>>;

#[derive(Clone)]
struct Var {
    name: String,
    kind: Kind,
    shape: Shape,
}

impl Var {
    fn declaration(&self) -> String {
        format!("{} {}", show_type(self.kind, &self.shape), self.name)
    }
}

fn show_type(kind: Kind, shape: &Shape) -> String {
    if shape.is_empty() {
        return kind.name().into();
    }
    let dims: Vec<_> = shape.iter().map(|d| d.map_or_else(|| "N".into(), |n| n.to_string())).collect();
    format!("{}[{}]", kind.name(), dims.join(","))
}

/// Returns the graph of a seed as text, and its operator set.
pub fn graph(seed: u64) -> (String, i64) {
    let mut rng = Rng::with_seed(seed);
    let opset = rng.i64(11..=21);
    (Random::new(rng, opset, false).graph(), opset)
}

/// Returns the model of a seed as text, in the style of exporters before any optimization: sizes computed from
/// shapes, weights behind `Identity`, `Cast` and `Constant`, and calls of functions.
pub fn exported_model(seed: u64) -> String {
    let mut rng = Rng::with_seed(seed);
    let opset = rng.i64(13..=21);
    let graph = Random::new(rng, opset, true).graph();
    format!(
        "<ir_version: 8, opset_import: [\"\" : {opset}, \"local\" : 1]> {graph}
<domain: \"local\", opset_import: [\"\" : {opset}]> dense (x, w, b) => (y) {{
    p = MatMul(x, w) s = Add(p, b) y = Relu(s) }}
<domain: \"local\", opset_import: [\"\" : {opset}]> gate (x) => (y) {{
    s = Sigmoid(x) y = Mul(x, s) }}
"
    )
}

impl Random {
    fn new(rng: Rng, opset: i64, exported: bool) -> Self {
        Self { rng, opset, exported, lines: vec![], initializers: vec![], vars: vec![], next: 0 }
    }

    fn graph(mut self) -> String {
        let g = &mut self;
        g.inputs();
        let inputs: Vec<_> = g.vars.iter().map(Var::declaration).collect();
        let (steps, first) = (g.rng.usize(4..18), g.vars.len());
        let mut tries = 0;
        while tries < steps || g.vars.len() == first {
            g.step();
            tries += 1;
        }
        let outputs = g.outputs(first);
        let initializers = g.initializers.join(",\n   ");
        let head = format!("main ({}) => ({})", inputs.join(", "), outputs.join(", "));
        format!("{head} <\n   {initializers}\n> {{\n   {}\n}}\n", g.lines.join("\n   "))
    }
}

struct Random {
    rng: Rng,
    opset: i64,
    /// The style of exporters: see [`exported_model`].
    exported: bool,
    lines: Vec<String>,
    initializers: Vec<String>,
    vars: Vec<Var>,
    next: usize,
}

impl Random {
    fn chance(&mut self, one_in: usize) -> bool {
        self.rng.usize(0..one_in) == 0
    }

    fn fresh(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    fn inputs(&mut self) {
        let batch = if self.chance(2) { None } else { Some(self.rng.usize(1..3)) };
        let shapes: [Shape; 4] = [
            vec![batch, Some(3), Some(6), Some(6)],
            vec![batch, Some(4)],
            vec![batch, Some(3), Some(4)],
            vec![Some(2), Some(4), Some(1)],
        ];
        for _ in 0..self.rng.usize(1..4) {
            let shape = shapes[self.rng.usize(0..shapes.len())].clone();
            let name = self.fresh("x");
            self.vars.push(Var { name, kind: Kind::Float, shape });
        }
        if self.chance(4) {
            let name = self.fresh("c");
            self.vars.push(Var { name, kind: Kind::Bool, shape: vec![] });
        }
    }

    /// Marks a few values as outputs, among them one that is also used inside, and the last one.
    fn outputs(&mut self, first: usize) -> Vec<String> {
        let mut chosen = vec![self.vars.len() - 1];
        for _ in 0..self.rng.usize(0..3) {
            let at = self.rng.usize(first..self.vars.len());
            if !chosen.contains(&at) {
                chosen.push(at);
            }
        }
        chosen.into_iter().map(|at| self.vars[at].declaration()).collect()
    }

    /// Picks a value that meets the condition, mostly a late one.
    fn pick(&mut self, kind: Kind, fits: impl Fn(&Shape) -> bool) -> Option<Var> {
        let all: Vec<_> = self.vars.iter().filter(|v| v.kind == kind && fits(&v.shape)).collect();
        let late = all.len().saturating_sub(3);
        let from = if self.rng.bool() { late } else { 0 };
        (!all.is_empty()).then(|| all[self.rng.usize(from..all.len())].clone())
    }

    /// Adds a constant, as an initializer or a `Constant` node.
    fn literal(&mut self, ty: &str, elements: &[String]) -> String {
        let (name, elements) = (self.fresh("w"), elements.join(","));
        if self.chance(3) {
            self.lines.push(format!("{name} = Constant<value = {ty} {{{elements}}}>()"));
        } else {
            self.initializers.push(format!("{ty} {name} = {{{elements}}}"));
        }
        name
    }

    fn floats(&mut self, shape: &[usize], low: f32, high: f32) -> String {
        let special = self.chance(6).then(|| ["0.0", "1.0"][self.rng.usize(0..2)]);
        let special = special.filter(|s| s.parse::<f32>().is_ok_and(|x| low <= x && x <= high));
        let mut element = || match special {
            Some(x) => x.to_owned(),
            None => format!("{:.3}", low + (high - low) * self.rng.f32()),
        };
        let elements: Vec<_> = (0..shape.iter().product()).map(|_| element()).collect();
        let dims: Shape = shape.iter().map(|&d| Some(d)).collect();
        if !self.exported || !self.chance(3) {
            return self.literal(&show_type(Kind::Float, &dims), &elements);
        }
        let (ty, call) = if self.rng.bool() { ("float", "Identity") } else { ("double", "Cast<to = 1>") };
        let ty = show_type(Kind::Float, &dims).replacen("float", ty, 1);
        let (source, name) = (self.literal(&ty, &elements), self.fresh("w"));
        self.lines.push(format!("{name} = {call}({source})"));
        name
    }

    /// Adds the sizes of a value as exporters compute them: `Shape`, then `Gather` or `Slice`, and `Concat`
    /// with the known ones.
    fn computed_sizes(&mut self, x: &Var) -> String {
        let (shape, sizes) = (self.fresh("s"), self.fresh("s"));
        self.lines.push(format!("{shape} = Shape({})", x.name));
        let mut parts = vec![];
        for (axis, dim) in x.shape.iter().enumerate() {
            let part = match dim {
                Some(size) if self.rng.bool() => self.ints(&[*size as i64]),
                _ => {
                    let (part, from) = (self.fresh("s"), self.ints(&[axis as i64]));
                    if self.rng.bool() {
                        self.lines.push(format!("{part} = Gather<axis = 0>({shape}, {from})"));
                    } else {
                        let end = self.ints(&[axis as i64 + 1]);
                        self.lines.push(format!("{part} = Slice({shape}, {from}, {end})"));
                    }
                    part
                }
            };
            parts.push(part);
        }
        self.lines.push(format!("{sizes} = Concat<axis = 0>({})", parts.join(", ")));
        sizes
    }

    /// Adds a call of a function.
    fn call(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.len() >= 2 && s.last().is_some_and(Option::is_some))?;
        if self.chance(3) {
            return self.emit(&format!("local.gate({})", x.name), Kind::Float, x.shape);
        }
        let (k, n) = ((*x.shape.last()?)?, self.rng.usize(1..6));
        let (weight, bias) = (self.floats(&[k, n], -0.5, 0.5), self.floats(&[n], -1.0, 1.0));
        let mut shape = x.shape.clone();
        *shape.last_mut()? = Some(n);
        self.emit(&format!("local.dense({}, {weight}, {bias})", x.name), Kind::Float, shape)
    }

    /// Adds a `Reshape`, `Expand` or `Resize` to the sizes that a value has, which are computed from a value
    /// of the same shape.
    fn change_to_computed_sizes(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| !s.is_empty())?;
        let shape = x.shape.clone();
        let like = self.pick(Kind::Float, |s| *s == shape)?;
        let sizes = self.computed_sizes(&like);
        let call = match self.rng.usize(0..3) {
            0 if shape.len() == 4 => format!("Resize<mode = \"nearest\">({}, \"\", \"\", {sizes})", x.name),
            0 | 1 => format!("Expand({}, {sizes})", x.name),
            _ => format!("Reshape({}, {sizes})", x.name),
        };
        self.emit(&call, Kind::Float, shape)
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let elements: Vec<_> = values.iter().map(ToString::to_string).collect();
        self.literal(&format!("int64[{}]", values.len()), &elements)
    }

    /// Adds a node with one output, and occasionally a duplicate of it.
    #[allow(clippy::unnecessary_wraps)] // as every other step, which may find nothing to do
    fn emit(&mut self, call: &str, kind: Kind, shape: Shape) -> Option<()> {
        for _ in 0..=usize::from(self.chance(8)) {
            let name = self.fresh("v");
            let label = if self.chance(5) { format!("[\"/{name}\"] ") } else { String::new() };
            self.lines.push(format!("{label}{name} = {call}"));
            self.vars.push(Var { name, kind, shape: shape.clone() });
        }
        Some(())
    }

    fn step(&mut self) -> Option<()> {
        if self.exported && self.chance(4) {
            return if self.rng.bool() { self.call() } else { self.change_to_computed_sizes() };
        }
        match self.rng.usize(0..26) {
            0 | 1 => self.unary(),
            2..=4 => self.binary(),
            5 | 6 => self.conv(),
            7 => self.pool(),
            8 => self.pad(),
            9 | 10 => self.matmul(),
            11 | 12 => self.transpose(),
            13 | 14 => self.reshape(),
            15 => self.squeeze(),
            16 => self.concat(),
            17 => self.split(),
            18 => self.slice(),
            19 => self.gather(),
            20 => self.reduce(),
            21 => self.softmax(),
            22 => self.cast(),
            23 => self.choose(),
            24 => self.branch(),
            _ => self.repeat(),
        }
    }

    fn unary(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let call = |op: &str| format!("{op}({})", x.name);
        let call = match self.rng.usize(0..13) {
            0 => call("Relu"),
            1 => call("Sigmoid"),
            2 => call("Tanh"),
            3 => call("Neg"),
            4 => call("Abs"),
            5 | 6 => call("Identity"),
            7 => format!("LeakyRelu<alpha = 0.1>({})", x.name),
            8 => format!("HardSigmoid<alpha = 0.1666667, beta = 0.5>({})", x.name),
            9 if self.opset >= 12 => {
                let ratio = self.literal("float", &["0.5".into()]);
                format!("Dropout({}, {ratio})", x.name)
            }
            9 => call("Dropout"),
            _ => {
                let low = self.literal("float", &["-0.5".into()]);
                let high = self.literal("float", &["1.5".into()]);
                let (low, high) = match self.rng.usize(0..3) {
                    0 => ("\"\"".into(), high),
                    1 => (low, "\"\"".into()),
                    _ => (low, high),
                };
                format!("Clip({}, {low}, {high})", x.name)
            }
        };
        self.emit(&call, Kind::Float, x.shape)
    }

    /// Combines a value with a constant that broadcasts, or with another value of its shape.
    fn binary(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let op = ["Add", "Mul", "Sub", "Div", "Max", "Min"][self.rng.usize(0..6)];
        let shape = x.shape.clone();
        let same = self.pick(Kind::Float, |s| *s == shape && op != "Mul" && op != "Div");
        let y = if let Some(y) = same.filter(|_| self.rng.bool()) {
            y.name
        } else {
            let rank = self.rng.usize(0..=x.shape.len());
            let dims = x.shape[x.shape.len() - rank..].to_vec();
            let dims: Vec<_> =
                dims.iter().map(|d| if self.rng.bool() { d.unwrap_or(1) } else { 1 }).collect();
            if op == "Div" { self.floats(&dims, 0.5, 2.0) } else { self.floats(&dims, -1.0, 1.0) }
        };
        let swap = op != "Div" && self.rng.bool();
        let (a, b) = if swap { (y, x.name) } else { (x.name, y) };
        self.emit(&format!("{op}({a}, {b})"), Kind::Float, x.shape)
    }

    /// Adds a convolution or a batch norm, mostly one after the other.
    fn conv(&mut self) -> Option<()> {
        let fits = |s: &Shape| s.len() == 4 && s[1..].iter().all(|d| d.is_some_and(|n| n >= 2));
        let x = self.pick(Kind::Float, fits)?;
        let (c, h, w) = (x.shape[1]?, x.shape[2]?, x.shape[3]?);
        if self.chance(3) {
            return self.norm(&x.name, c, x.shape.clone());
        }
        let depthwise = self.chance(4);
        let out = if depthwise { c } else { self.rng.usize(1..5) };
        let (k, pad, stride) =
            (self.rng.usize(1..=2.min(h).min(w)), self.rng.usize(0..2), self.rng.usize(1..3));
        let weight = self.floats(&[out, if depthwise { 1 } else { c }, k, k], -0.5, 0.5);
        let bias =
            if self.rng.bool() { format!(", {}", self.floats(&[out], -1.0, 1.0)) } else { String::new() };
        let group = if depthwise { c } else { 1 };
        let attributes = format!(
            "group = {group}, kernel_shape = [{k}, {k}], pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}]"
        );
        let size = |n: usize| Some((n + 2 * pad - k) / stride + 1);
        let shape = vec![x.shape[0], Some(out), size(h), size(w)];
        self.emit(&format!("Conv<{attributes}>({}, {weight}{bias})", x.name), Kind::Float, shape.clone())?;
        if self.rng.bool() {
            let last = self.vars.last()?.name.clone();
            self.norm(&last, out, shape)?;
        }
        Some(())
    }

    fn norm(&mut self, x: &str, channels: usize, shape: Shape) -> Option<()> {
        let (scale, bias) = (self.floats(&[channels], -1.0, 1.0), self.floats(&[channels], -1.0, 1.0));
        let (mean, var) = (self.floats(&[channels], -1.0, 1.0), self.floats(&[channels], 0.5, 2.0));
        self.emit(&format!("BatchNormalization({x}, {scale}, {bias}, {mean}, {var})"), Kind::Float, shape)
    }

    fn pool(&mut self) -> Option<()> {
        let fits = |s: &Shape| s.len() == 4 && s[1..].iter().all(|d| d.is_some_and(|n| n >= 2));
        let x = self.pick(Kind::Float, fits)?;
        let (h, w) = (x.shape[2]?, x.shape[3]?);
        if self.chance(3) {
            let shape = vec![x.shape[0], x.shape[1], Some(1), Some(1)];
            return self.emit(&format!("GlobalAveragePool({})", x.name), Kind::Float, shape);
        }
        let op = ["MaxPool", "AveragePool"][self.rng.usize(0..2)];
        let shape = vec![x.shape[0], x.shape[1], Some(h / 2), Some(w / 2)];
        let call = format!("{op}<kernel_shape = [2, 2], strides = [2, 2]>({})", x.name);
        self.emit(&call, Kind::Float, shape)
    }

    fn pad(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| (2..=4).contains(&s.len()))?;
        let rank = x.shape.len();
        let mut pads = vec![0; 2 * rank];
        let mut shape = x.shape.clone();
        for axis in rank.saturating_sub(2)..rank {
            if let Some(size) = &mut shape[axis] {
                (pads[axis], pads[rank + axis]) = (self.rng.i64(0..2), self.rng.i64(0..2));
                *size += (pads[axis] + pads[rank + axis]) as usize;
            }
        }
        let pads = self.ints(&pads);
        let value = if self.chance(3) {
            format!(", {}", self.literal("float", &["0.25".into()]))
        } else {
            String::new()
        };
        self.emit(&format!("Pad({}, {pads}{value})", x.name), Kind::Float, shape)
    }

    /// Adds a MatMul with a constant, mostly with a bias, or a Gemm.
    fn matmul(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.len() >= 2 && s.last().is_some_and(Option::is_some))?;
        let (k, n) = ((*x.shape.last()?)?, self.rng.usize(1..6));
        let mut shape = x.shape.clone();
        *shape.last_mut()? = Some(n);
        if x.shape.len() == 2 && self.rng.bool() {
            let transposed = self.rng.bool();
            let weight = self.floats(&if transposed { [n, k] } else { [k, n] }, -0.5, 0.5);
            let bias =
                if self.rng.bool() { format!(", {}", self.floats(&[n], -1.0, 1.0)) } else { String::new() };
            let alpha = ["", ", alpha = 0.5", ", beta = 2.0"][self.rng.usize(0..3)];
            let attributes = format!("transB = {}{alpha}", i64::from(transposed));
            return self.emit(&format!("Gemm<{attributes}>({}, {weight}{bias})", x.name), Kind::Float, shape);
        }
        let weight = self.floats(&[k, n], -0.5, 0.5);
        self.emit(&format!("MatMul({}, {weight})", x.name), Kind::Float, shape.clone())?;
        if self.rng.bool() {
            let product = self.vars.last()?.name.clone();
            let bias = self.floats(&[n], -1.0, 1.0);
            self.emit(&format!("Add({product}, {bias})"), Kind::Float, shape)?;
        }
        Some(())
    }

    fn transpose(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.len() >= 2)?;
        let mut perm: Vec<usize> = (0..x.shape.len()).collect();
        if !self.chance(6) {
            self.rng.shuffle(&mut perm);
        }
        let shape = perm.iter().map(|&p| x.shape[p]).collect();
        self.emit(&format!("Transpose<perm = {perm:?}>({})", x.name), Kind::Float, shape)
    }

    fn reshape(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| !s.is_empty() && s[1..].iter().all(Option::is_some))?;
        let rest: usize = x.shape[1..].iter().map(|d| d.unwrap_or(1)).product();
        let flat = vec![x.shape[0], Some(rest)];
        if self.chance(3) {
            return self.emit(&format!("Flatten({})", x.name), Kind::Float, flat);
        }
        if self.chance(3) {
            // The batch size as exporters read it: Shape, Gather, Unsqueeze, Concat.
            let (s, n, u, t) = (self.fresh("s"), self.fresh("s"), self.fresh("s"), self.fresh("s"));
            let (zero, rest_name) = (self.literal("int64", &["0".into()]), self.ints(&[rest as i64]));
            let axes = if self.opset >= 13 { format!("{n}, {}", self.ints(&[0])) } else { n.clone() };
            let unsqueeze = if self.opset >= 13 { "Unsqueeze" } else { "Unsqueeze<axes = [0]>" };
            self.lines.push(format!("{s} = Shape({})", x.name));
            self.lines.push(format!("{n} = Gather<axis = 0>({s}, {zero})"));
            self.lines.push(format!("{u} = {unsqueeze}({axes})"));
            self.lines.push(format!("{t} = Concat<axis = 0>({u}, {rest_name})"));
            return self.emit(&format!("Reshape({}, {t})", x.name), Kind::Float, flat);
        }
        let factor = (2..=rest).find(|f| rest.is_multiple_of(*f)).unwrap_or(1);
        let first = match x.shape[0] {
            Some(n) if self.rng.bool() => n as i64,
            _ => self.rng.i64(-1..=0),
        };
        let target = self.ints(&[first, factor as i64, (rest / factor) as i64]);
        let shape = vec![x.shape[0], Some(factor), Some(rest / factor)];
        self.emit(&format!("Reshape({}, {target})", x.name), Kind::Float, shape)
    }

    fn squeeze(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.len() < 5)?;
        let one = x.shape.iter().position(|d| *d == Some(1)).filter(|_| self.rng.bool());
        let (op, axis) = match one {
            Some(axis) => ("Squeeze", axis),
            None => ("Unsqueeze", self.rng.usize(0..=x.shape.len())),
        };
        let mut shape = x.shape.clone();
        if one.is_some() {
            shape.remove(axis);
        } else {
            shape.insert(axis, Some(1));
        }
        let call = if self.opset >= 13 {
            format!("{op}({}, {})", x.name, self.ints(&[axis as i64]))
        } else {
            format!("{op}<axes = [{axis}]>({})", x.name)
        };
        self.emit(&call, Kind::Float, shape)
    }

    fn concat(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.iter().any(Option::is_some))?;
        let axis = x.shape.iter().rposition(Option::is_some)?;
        let like = |s: &Shape| {
            s.len() == x.shape.len()
                && (0..s.len()).all(|a| s[a] == x.shape[a] || (a == axis && s[a].is_some()))
        };
        let y = self.pick(Kind::Float, like)?;
        let mut shape = x.shape.clone();
        shape[axis] = Some(x.shape[axis]? + y.shape[axis]?);
        self.emit(&format!("Concat<axis = {axis}>({}, {})", x.name, y.name), Kind::Float, shape)
    }

    /// Splits a value into two parts, which are often joined again.
    fn split(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.iter().any(|d| d.is_some_and(|n| n >= 2)))?;
        let axis = x.shape.iter().position(|d| d.is_some_and(|n| n >= 2))?;
        let size = x.shape[axis]?;
        let first = self.rng.usize(1..size);
        let call = if self.opset >= 13 {
            let parts = self.ints(&[first as i64, (size - first) as i64]);
            format!("Split<axis = {axis}>({}, {parts})", x.name)
        } else {
            format!("Split<axis = {axis}, split = [{first}, {}]>({})", size - first, x.name)
        };
        let (a, b) = (self.fresh("v"), self.fresh("v"));
        self.lines.push(format!("{a}, {b} = {call}"));
        for (name, part) in [(&a, first), (&b, size - first)] {
            let mut shape = x.shape.clone();
            shape[axis] = Some(part);
            self.vars.push(Var { name: name.clone(), kind: Kind::Float, shape });
        }
        if self.rng.bool() {
            self.emit(&format!("Concat<axis = {axis}>({a}, {b})"), Kind::Float, x.shape)?;
        }
        Some(())
    }

    fn slice(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.iter().any(Option::is_some))?;
        let axis = x.shape.iter().rposition(Option::is_some)?;
        let size = x.shape[axis]?;
        let start = self.rng.usize(0..size);
        let end = self.rng.usize(start + 1..=size);
        let step = self.rng.usize(1..3);
        let mut shape = x.shape.clone();
        shape[axis] = Some((end - start).div_ceil(step));
        let end = if end == size && self.rng.bool() { i64::MAX } else { end as i64 };
        let (starts, ends) = (self.ints(&[start as i64]), self.ints(&[end]));
        let axis = if self.rng.bool() { axis as i64 } else { axis as i64 - x.shape.len() as i64 };
        let (axes, steps) = (self.ints(&[axis]), self.ints(&[step as i64]));
        self.emit(&format!("Slice({}, {starts}, {ends}, {axes}, {steps})", x.name), Kind::Float, shape)
    }

    fn gather(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| s.iter().any(Option::is_some))?;
        let axis = x.shape.iter().position(Option::is_some)?;
        let size = x.shape[axis]? as i64;
        let mut shape = x.shape.clone();
        let indices = if self.rng.bool() {
            shape.remove(axis);
            let index = self.rng.i64(-size..size);
            self.literal("int64", &[index.to_string()])
        } else {
            shape[axis] = Some(2);
            let (a, b) = (self.rng.i64(0..size), self.rng.i64(0..size));
            self.ints(&[a, b])
        };
        self.emit(&format!("Gather<axis = {axis}>({}, {indices})", x.name), Kind::Float, shape)
    }

    fn reduce(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| !s.is_empty())?;
        let op = ["ReduceMean", "ReduceSum", "ReduceMax"][self.rng.usize(0..3)];
        let (axis, keep) = (self.rng.usize(0..x.shape.len()), self.rng.usize(0..2));
        let mut shape = x.shape.clone();
        if keep == 1 {
            shape[axis] = Some(1);
        } else {
            shape.remove(axis);
        }
        let as_input = self.opset >= if op == "ReduceSum" { 13 } else { 18 };
        let call = if as_input {
            format!("{op}<keepdims = {keep}>({}, {})", x.name, self.ints(&[axis as i64]))
        } else {
            format!("{op}<axes = [{axis}], keepdims = {keep}>({})", x.name)
        };
        self.emit(&call, Kind::Float, shape)
    }

    fn softmax(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |s| !s.is_empty())?;
        let axis = self.rng.usize(0..x.shape.len());
        self.emit(&format!("Softmax<axis = {axis}>({})", x.name), Kind::Float, x.shape)
    }

    /// Casts a value to another type and back: double, its own, or integers.
    fn cast(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let to = [1, 11, 7, 6][self.rng.usize(0..4)];
        let between = self.fresh("t");
        self.lines.push(format!("{between} = Cast<to = {to}>({})", x.name));
        if to == 7 {
            self.vars.push(Var { name: between.clone(), kind: Kind::Int, shape: x.shape.clone() });
        }
        self.emit(&format!("Cast<to = 1>({between})"), Kind::Float, x.shape)
    }

    fn choose(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let shape = x.shape.clone();
        let y = self.pick(Kind::Float, |s| *s == shape)?;
        let condition = if self.chance(4) {
            self.literal("bool", &[u8::from(self.opset % 2 == 0).to_string()])
        } else {
            let edge = self.floats(&[], 0.1, 0.9);
            let name = self.fresh("b");
            self.lines.push(format!("{name} = Greater({}, {edge})", x.name));
            name
        };
        self.emit(&format!("Where({condition}, {}, {})", x.name, y.name), Kind::Float, x.shape)
    }

    /// Adds an `If` with a condition that is constant, given, or computed; its branches capture outer values.
    fn branch(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let condition = match self.pick(Kind::Bool, Vec::is_empty).filter(|_| self.rng.bool()) {
            Some(c) => c.name,
            None => self.literal("bool", &[self.next.rem_euclid(2).to_string()]),
        };
        let ty = show_type(Kind::Float, &x.shape);
        let ops = ["Relu", "Neg", "Identity", "Tanh"];
        let mut body = |name: &str, twice: bool| {
            let (a, b) = (self.fresh("i"), self.fresh("i"));
            let (first, second) = (ops[self.rng.usize(0..4)], ops[self.rng.usize(0..4)]);
            let from = if twice { &a } else { &x.name };
            format!("{name} () => ({ty} {b}) {{ {a} = {first}({}) {b} = {second}({from}) }}", x.name)
        };
        let (yes, no) = (body("yes", true), body("no", false));
        let call = format!("If({condition})<then_branch = {yes}, else_branch = {no}>");
        self.emit(&call, Kind::Float, x.shape)
    }

    /// Adds a `Loop` of two iterations that carries one value and captures one.
    fn repeat(&mut self) -> Option<()> {
        let x = self.pick(Kind::Float, |_| true)?;
        let trips = self.literal("int64", &["2".into()]);
        let go = self.literal("bool", &["1".into()]);
        let ty = show_type(Kind::Float, &x.shape);
        // ONNX Runtime loses a value that is both carried and captured and has no other use.
        let other = self.pick(Kind::Float, |s| *s == x.shape).filter(|v| v.name != x.name);
        let outside = match other {
            Some(v) => v.name,
            None => self.floats(&[], -1.0, 1.0),
        };
        let [i, c, s, d, h, t] = ["i", "c", "s", "d", "h", "t"].map(|p| self.fresh(p));
        let body = format!(
            "body (int64 {i}, bool {c}, {ty} {s}) => (bool {d}, {ty} {t}) {{ {d} = Identity({c}) {h} = Tanh({s}) {t} = Add({h}, {outside}) }}"
        );
        self.emit(&format!("Loop({trips}, {go}, {})<body = {body}>", x.name), Kind::Float, x.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_graph() {
        assert_eq!(graph(7), graph(7));
        assert_ne!(graph(7), graph(8));
        let all: String = (0..500).map(|seed| graph(seed).0).collect();
        let exported: String = (0..500).map(exported_model).collect();
        for op in ["= local.dense(", "Resize<", "Expand(", "= Cast<to = 1>(w", "= Identity(w"] {
            assert!(exported.contains(op), "no model has {op}");
        }
        for op in
            ["Conv<", "BatchNormalization(", "If(", "Loop(", "Split<", "Where(", "Gemm<", "Pad(", "Dropout("]
        {
            assert!(all.contains(op), "no graph has {op}");
        }
    }
}
