//! A case, or several, for each rule.

use fastrand::Rng;
use pare_graph::DataType;

/// The numbers that a case is checked in.
#[derive(Clone, Copy)]
pub(super) enum Arithmetic {
    /// Doubles, and central differences of order 4.
    Double,
    /// Floats that are odd multiples of 1/4, and differences over 1/8: for functions that are linear in each parameter
    /// between kinks at multiples of 1/2, differences are exact. For operators that only floats have.
    Float,
    /// As `Float`, and differences over 64, which leave no digits of linear functions to rounding.
    Linear,
}

impl Arithmetic {
    pub(super) fn name(self) -> &'static str {
        self.dtype().name()
    }

    pub(super) fn dtype(self) -> DataType {
        match self {
            Self::Double => DataType::Double,
            Self::Float | Self::Linear => DataType::Float,
        }
    }

    pub(super) fn is_exact(self) -> bool {
        !matches!(self, Self::Double)
    }

    pub(super) fn step(self) -> f64 {
        match self {
            Self::Double => 1e-3,
            Self::Float => 0.125,
            Self::Linear => 64.0,
        }
    }

    pub(super) fn draw(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Double => rng.f64() * 3.0 - 1.5,
            Self::Float | Self::Linear => f64::from(rng.i32(-6..6)) / 2.0 + 0.25,
        }
    }
}

/// A draw of a case: a body in ONNX's textual syntax, where `TYPE` is the element type.
#[derive(Default)]
pub(super) struct Sample {
    pub(super) body: String,
    /// The function that the rule differentiates, where it is not that of the node.
    pub(super) reference: Option<String>,
    pub(super) parameters: Vec<(&'static str, Vec<usize>, Vec<f64>)>,
    /// Other initializers.
    pub(super) constants: Vec<String>,
    pub(super) outputs: Vec<&'static str>,
}

/// A rule's case.
pub(super) struct Case {
    pub(super) domain: &'static str,
    pub(super) op: &'static str,
    pub(super) opset: i64,
    pub(super) arithmetic: Arithmetic,
    pub(super) draw: Box<dyn Fn(&mut Rng) -> Sample>,
}

impl Sample {
    fn of(body: impl Into<String>) -> Self {
        Self { body: body.into(), outputs: vec!["y"], ..Self::default() }
    }

    fn values(mut self, name: &'static str, shape: &[usize], mut draw: impl FnMut() -> f64) -> Self {
        let values = (0..shape.iter().product()).map(|_| draw()).collect();
        self.parameters.push((name, shape.to_vec(), values));
        self
    }

    /// A parameter in doubles between −1.5 and 1.5.
    fn any(self, name: &'static str, shape: &[usize], rng: &mut Rng) -> Self {
        self.values(name, shape, || Arithmetic::Double.draw(rng))
    }

    /// A parameter in floats.
    fn float(self, name: &'static str, shape: &[usize], rng: &mut Rng) -> Self {
        self.values(name, shape, || Arithmetic::Float.draw(rng))
    }

    /// A parameter of positive doubles.
    fn positive(self, name: &'static str, shape: &[usize], rng: &mut Rng) -> Self {
        self.values(name, shape, || 0.4 + rng.f64())
    }

    /// Different numbers, so that maxima are unique.
    fn distinct(self, name: &'static str, shape: &[usize], rng: &mut Rng) -> Self {
        let mut order: Vec<_> = (0..shape.iter().product::<usize>()).collect();
        rng.shuffle(&mut order);
        let mut order = order.into_iter();
        self.values(name, shape, || order.next().unwrap_or(0) as f64 * 0.5 - 2.25)
    }

    fn constant(mut self, text: impl Into<String>) -> Self {
        self.constants.push(text.into());
        self
    }

    fn outputs(mut self, names: &[&'static str]) -> Self {
        self.outputs = names.to_vec();
        self
    }
}

/// A random shape of this rank.
fn shape(rng: &mut Rng, rank: usize) -> Vec<usize> {
    (0..rank).map(|_| rng.usize(1..4)).collect()
}

/// A shape that broadcasts to `full`.
fn part(rng: &mut Rng, full: &[usize]) -> Vec<usize> {
    let kept = &full[rng.usize(0..=full.len().min(2))..];
    kept.iter().map(|&size| if rng.bool() { size } else { 1 }).collect()
}

fn case(op: &'static str, draw: impl Fn(&mut Rng) -> Sample + 'static) -> Case {
    Case { domain: "", op, opset: 18, arithmetic: Arithmetic::Double, draw: Box::new(draw) }
}

impl Case {
    fn opset(self, opset: i64) -> Self {
        Self { opset, ..self }
    }

    fn in_floats(self) -> Self {
        Self { arithmetic: Arithmetic::Float, ..self }
    }

    fn linear(self) -> Self {
        Self { arithmetic: Arithmetic::Linear, ..self }
    }

    fn microsoft(self) -> Self {
        Self { domain: "com.microsoft", ..self }
    }
}

/// `y = op(x)` with these attributes.
fn unary(op: &'static str, attributes: &'static str) -> Case {
    case(op, move |rng| {
        let shape = shape(rng, 2);
        Sample::of(format!("y = {op}{attributes}(x)")).any("x", &shape, rng)
    })
}

fn unary_float(op: &'static str, attributes: &'static str) -> Case {
    let draw = move |rng: &mut Rng| {
        let shape = shape(rng, 2);
        Sample::of(format!("y = {op}{attributes}(x)")).float("x", &shape, rng)
    };
    case(op, draw).in_floats()
}

fn unary_positive(op: &'static str) -> Case {
    case(op, move |rng| {
        let shape = shape(rng, 2);
        Sample::of(format!("y = {op}(x)")).positive("x", &shape, rng)
    })
}

/// `y = op(a, b)` with broadcasting either way.
fn binary(op: &'static str) -> Case {
    case(op, move |rng| {
        let full = shape(rng, 3);
        let small = part(rng, &full);
        let (a, b) = if rng.bool() { (full, small) } else { (small, full) };
        Sample::of(format!("y = {op}(a, b)")).any("a", &a, rng).positive("b", &b, rng)
    })
}

fn variadic(op: &'static str) -> Case {
    case(op, move |rng| {
        let full = shape(rng, 3);
        let (b, c) = (part(rng, &full), part(rng, &full));
        let sample = Sample::of(format!("y = {op}(a, b, c)"));
        sample.any("a", &full, rng).any("b", &b, rng).any("c", &c, rng)
    })
}

fn list(values: &[usize]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A reduction of random axes.
fn reduction(op: &'static str, positive: bool) -> Case {
    case(op, move |rng| {
        let shape: Vec<_> = (0..3).map(|_| rng.usize(2..4)).collect();
        let axes: Vec<_> = (0..3).filter(|_| rng.bool()).collect();
        let keep = rng.u8(0..2);
        let sample = if axes.is_empty() {
            Sample::of(format!("y = {op} <keepdims = {keep}> (x)"))
        } else {
            let text = format!("int64[{}] axes = {{{}}}", axes.len(), list(&axes));
            Sample::of(format!("y = {op} <keepdims = {keep}> (x, axes)")).constant(text)
        };
        if positive { sample.positive("x", &shape, rng) } else { sample.distinct("x", &shape, rng) }
    })
}

/// Random windows over `sizes`: attributes of a convolution or of pooling.
fn windows(rng: &mut Rng, sizes: &[usize], kernel: &[usize], dilated: bool) -> String {
    let each = |rng: &mut Rng, low: usize, high: usize| {
        list(&sizes.iter().map(|_| rng.usize(low..high)).collect::<Vec<_>>())
    };
    let (strides, dilations) = (each(rng, 1, 3), each(rng, 1, 3));
    // Less than the kernel, as pooling demands.
    let pads: Vec<_> = kernel.iter().chain(kernel).map(|&k| rng.usize(0..k)).collect();
    let dilations = if dilated { format!("dilations = [{dilations}], ") } else { String::new() };
    format!("kernel_shape = [{}], {dilations}pads = [{}], strides = [{strides}]", list(kernel), list(&pads))
}

/// A convolution over `rank` spatial axes.
fn convolution(op: &'static str, rank: usize) -> Case {
    let draw = move |rng: &mut Rng| {
        let (group, inputs, outputs) = (rng.usize(1..4), rng.usize(1..3), rng.usize(1..3));
        let (low, high) = if rank == 1 { (6, 9) } else { (5, 7) };
        let sizes: Vec<_> = (0..rank).map(|_| rng.usize(low..high)).collect();
        let kernel: Vec<_> = (0..rank).map(|_| rng.usize(1..4)).collect();
        let attributes = windows(rng, &sizes, &kernel, true);
        let x: Vec<_> = [rng.usize(1..3), group * inputs].into_iter().chain(sizes).collect();
        let transposed = op == "ConvTranspose";
        let channels = if transposed { [group * inputs, outputs] } else { [group * outputs, inputs] };
        let w: Vec<_> = channels.into_iter().chain(kernel).collect();
        let bias = rng.bool();
        let names = if bias { "x, w, b" } else { "x, w" };
        let sample = Sample::of(format!("y = {op} <group = {group}, {attributes}> ({names})"));
        let sample = sample.float("x", &x, rng).float("w", &w, rng);
        if bias { sample.float("b", &[group * outputs], rng) } else { sample }
    };
    case(op, draw).linear()
}

fn pool(op: &'static str, extra: &'static str) -> Case {
    let is_maximum = op == "MaxPool";
    let draw = move |rng: &mut Rng| {
        let sizes = [rng.usize(5..7), rng.usize(5..7)];
        let kernel = [rng.usize(1..4), rng.usize(1..4)];
        let attributes = windows(rng, &sizes, &kernel, is_maximum);
        let x = [rng.usize(1..3), 2, sizes[0], sizes[1]];
        let sample = Sample::of(format!("y = {op} <{attributes}{extra}> (x)"));
        if is_maximum { sample.distinct("x", &x, rng) } else { sample.float("x", &x, rng) }
    };
    if is_maximum { case(op, draw) } else { case(op, draw).linear() }
}

/// A view with these inputs after `x`.
fn view(
    op: &'static str,
    x: &'static [usize],
    node: &'static str,
    constants: &'static [&'static str],
) -> Case {
    case(op, move |rng| {
        let sample = Sample::of(node).any("x", x, rng);
        constants.iter().fold(sample, |sample, text| sample.constant(*text))
    })
}

/// Different elements far enough apart that no difference changes their order.
fn top_k(attributes: &'static str, k: usize) -> Case {
    case("TopK", move |rng| {
        let sample = Sample::of(format!("y, i = TopK <{attributes}> (x, k)")).distinct("x", &[4, 3], rng);
        sample.constant(format!("int64[1] k = {{{k}}}"))
    })
}

fn resize(
    attributes: &'static str,
    x: &'static [usize],
    input: &'static str,
    constant: &'static str,
) -> Case {
    let draw = move |rng: &mut Rng| {
        Sample::of(format!("y = Resize <{attributes}> (x, {input})")).float("x", x, rng).constant(constant)
    };
    case("Resize", draw).linear()
}

/// `op` over the last axes or over channels, with a scale and, if `shifted`, a shift of this shape.
fn normalized(
    op: &'static str,
    attributes: &'static str,
    x: &'static [usize],
    weight: &'static [usize],
    shifted: bool,
) -> Case {
    case(op, move |rng| {
        let inputs = if shifted { "x, g, b" } else { "x, g" };
        let sample = Sample::of(format!("y = {op}{attributes}({inputs})"));
        let sample = sample.any("x", x, rng).any("g", weight, rng);
        if shifted { sample.any("b", weight, rng) } else { sample }
    })
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        // Elementary functions.
        unary("Abs", ""),
        unary("Cos", ""),
        unary("Cosh", ""),
        unary("Erf", ""),
        unary("Exp", ""),
        unary("Identity", ""),
        unary("Neg", ""),
        unary("Sin", ""),
        unary("Sinh", ""),
        unary("Tan", "").half(),
        unary("Tanh", ""),
        unary("Dropout", ""),
        unary_positive("Log"),
        unary_positive("Reciprocal"),
        unary_positive("Sqrt"),
        case("Cast", |rng| {
            let shape = shape(rng, 2);
            Sample::of("a = Cast <to = 1> (x) y = Cast <to = TYPE> (a)")
                .reference("y = Identity(x)")
                .any("x", &shape, rng)
        }),
        case("CastLike", |rng| {
            let shape = shape(rng, 2);
            Sample::of("y = CastLike(x, k)").any("x", &shape, rng).constant("double k = {1}")
        }),
        binary("Add"),
        binary("Sub"),
        binary("Mul"),
        binary("Div"),
        variadic("Sum"),
        variadic("Max"),
        variadic("Min"),
        case("Mean", |rng| {
            let full = shape(rng, 3);
            let b = part(rng, &full);
            Sample::of("y = Mean(a, b)").float("a", &full, rng).float("b", &b, rng)
        })
        .linear(),
        case("Pow", |rng| {
            let full = shape(rng, 3);
            let b = part(rng, &full);
            Sample::of("y = Pow(a, b)").positive("a", &full, rng).any("b", &b, rng)
        }),
        case("Pow", |rng| {
            let (shape, exponent) = (shape(rng, 2), ["2", "3", "0.5", "-1.5"][rng.usize(0..4)]);
            Sample::of("y = Pow(a, b)")
                .positive("a", &shape, rng)
                .constant(format!("double b = {{{exponent}}}"))
        }),
        case("Where", |rng| {
            let full = shape(rng, 3);
            let (b, size) = (part(rng, &full), full[2]);
            let bits: Vec<_> = (0..size).map(|_| rng.usize(0..2)).collect();
            let sample = Sample::of("y = Where(c, a, b)").any("a", &full, rng).any("b", &b, rng);
            sample.constant(format!("bool[{size}] c = {{{}}}", list(&bits)))
        }),
        // Activations.
        case("Celu", |rng| {
            let shape = shape(rng, 2);
            let body = "f = Cast <to = 1> (x) c = Celu <alpha = 0.5> (f) y = Cast <to = TYPE> (c)";
            let reference =
                "n = Less(x, z) d = Div(x, a) e = Exp(d) f = Sub(e, o) g = Mul(f, a) y = Where(n, g, x)";
            let sample = Sample::of(body).reference(reference).any("x", &shape, rng);
            sample.constant("double a = {0.5}").constant("double o = {1}").constant("double z = {0}")
        }),
        unary("Elu", " <alpha = 0.7> "),
        unary("Selu", ""),
        unary("Gelu", "").opset(20),
        unary("Gelu", " <approximate = \"tanh\"> ").opset(20),
        unary("HardSwish", ""),
        unary("Mish", ""),
        unary("Relu", ""),
        unary_float("Shrink", " <lambd = 0.5, bias = 0.5> "),
        unary("Sigmoid", ""),
        unary("Softplus", ""),
        unary("Softsign", ""),
        unary("Swish", " <alpha = 1.3> ").opset(24),
        unary_float("HardSigmoid", " <alpha = 0.25, beta = 0.5> "),
        unary_float("LeakyRelu", " <alpha = 0.1> "),
        unary_float("ThresholdedRelu", " <alpha = 0.5> "),
        case("Clip", |rng| {
            let shape = shape(rng, 2);
            let inputs = ["x, l, h", "x, l", "x, \"\", h"][rng.usize(0..3)];
            let sample = Sample::of(format!("y = Clip({inputs})")).any("x", &shape, rng);
            sample.constant("double l = {-0.5}").constant("double h = {0.7}")
        }),
        case("PRelu", |rng| {
            let full = shape(rng, 3);
            let slope = part(rng, &full);
            Sample::of("y = PRelu(x, a)").float("x", &full, rng).float("a", &slope, rng)
        })
        .in_floats(),
        microsoft("Gelu"),
        microsoft("FastGelu"),
        microsoft("QuickGelu"),
        // Products.
        case("MatMul", |rng| {
            let (m, k, n) = (rng.usize(1..4), rng.usize(1..4), rng.usize(1..4));
            let (batch, other) = (rng.usize(2..4), rng.usize(1..3));
            let (a, b) = match rng.usize(0..7) {
                0 => (vec![m, k], vec![k, n]),
                1 => (vec![other, batch, m, k], vec![k, n]),
                2 => (vec![batch, m, k], vec![batch, k, n]),
                3 => (vec![batch, m, k], vec![other, 1, k, n]),
                4 => (vec![k], vec![batch, k, n]),
                5 => (vec![batch, m, k], vec![k]),
                _ => (vec![m, k], vec![batch, k, n]),
            };
            Sample::of("y = MatMul(a, b)").any("a", &a, rng).any("b", &b, rng)
        }),
        case("MatMul", |rng| Sample::of("y = MatMul(a, b)").any("a", &[3], rng).any("b", &[3], rng)),
        case("Gemm", |rng| {
            let (m, k, n) = (rng.usize(1..4), rng.usize(1..4), rng.usize(1..4));
            let (ta, tb) = (rng.u8(0..2), rng.u8(0..2));
            let a = if ta == 1 { [k, m] } else { [m, k] };
            let b = if tb == 1 { [n, k] } else { [k, n] };
            let c = part(rng, &[m, n]);
            let body = format!("y = Gemm <alpha = 0.5, beta = 1.5, transA = {ta}, transB = {tb}> (a, b, c)");
            Sample::of(body).any("a", &a, rng).any("b", &b, rng).any("c", &c, rng)
        }),
        case("Einsum", |rng| {
            let (equation, a, b): (_, &[usize], &[usize]) = [
                ("bij,bjk->bik", &[2, 3, 2][..], &[2, 2, 3][..]),
                ("bhid,bhjd->bhij", &[1, 2, 3, 2], &[1, 2, 2, 2]),
                ("ij,jk->ki", &[2, 3], &[3, 2]),
            ][rng.usize(0..3)];
            Sample::of(format!("y = Einsum <equation = \"{equation}\"> (a, b)"))
                .any("a", a, rng)
                .any("b", b, rng)
        }),
        convolution("Conv", 1),
        convolution("Conv", 2),
        convolution("ConvTranspose", 1),
        convolution("ConvTranspose", 2),
        case("Conv", |rng| {
            let body = "y = Conv <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)";
            Sample::of(body).float("x", &[2, 2, 5, 6], rng).float("w", &[3, 2, 3, 3], rng)
        })
        .linear(),
        case("ConvTranspose", |rng| {
            let body =
                "y = ConvTranspose <output_padding = [1, 0], pads = [1, 0, 0, 1], strides = [2, 3]> (x, w)";
            Sample::of(body).float("x", &[2, 2, 3, 3], rng).float("w", &[2, 3, 3, 3], rng)
        })
        .linear(),
        view(
            "RotaryEmbedding",
            &[1, 2, 3, 4],
            "y = RotaryEmbedding (x, c, s)",
            &["float[1,3,2] c = {0.5,1,-0.25,0.5,1,2}", "float[1,3,2] s = {1,0.5,2,-1,0.25,-0.5}"],
        )
        .opset(23)
        .linear(),
        view(
            "RotaryEmbedding",
            &[1, 3, 4],
            "y = RotaryEmbedding <interleaved = 1, num_heads = 2> (x, c, s, p)",
            &["float[3,1] c = {0.5,1,-0.25}", "float[3,1] s = {1,0.5,2}", "int64[1,3] p = {2,0,1}"],
        )
        .opset(23)
        .linear(),
        // Reductions.
        reduction("ReduceL1", false),
        reduction("ReduceL2", false),
        reduction("ReduceLogSum", true),
        reduction("ReduceLogSumExp", false),
        reduction("ReduceMax", false),
        reduction("ReduceMean", false),
        reduction("ReduceMin", false),
        reduction("ReduceProd", true),
        reduction("ReduceSum", false),
        reduction("ReduceSumSquare", false),
        case("CumSum", |rng| {
            let (exclusive, reverse, shape) = (rng.u8(0..2), rng.u8(0..2), shape(rng, 3));
            let body = format!("y = CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, axis)");
            Sample::of(body).any("x", &shape, rng).constant("int64 axis = {1}")
        }),
        // Normalizations.
        case("Softmax", |rng| {
            let (axis, shape) = (rng.i32(-3..3), shape(rng, 3));
            Sample::of(format!("y = Softmax <axis = {axis}> (x)")).any("x", &shape, rng)
        }),
        case("LogSoftmax", |rng| {
            let (axis, shape) = (rng.i32(-3..3), shape(rng, 3));
            Sample::of(format!("y = LogSoftmax <axis = {axis}> (x)")).any("x", &shape, rng)
        }),
        normalized("LayerNormalization", "", &[2, 3, 4], &[4], true),
        normalized("LayerNormalization", " <axis = 1, epsilon = 0.01> ", &[2, 3, 2], &[3, 2], true),
        normalized("RMSNormalization", " <epsilon = 0.01> ", &[2, 3, 4], &[4], false).opset(23),
        normalized("InstanceNormalization", " <epsilon = 0.01> ", &[2, 3, 2, 3], &[3], true),
        normalized("GroupNormalization", " <num_groups = 2, epsilon = 0.01> ", &[2, 4, 2, 2], &[2], true),
        normalized(
            "GroupNormalization",
            " <num_groups = 2, epsilon = 0.01, stash_type = 11> ",
            &[2, 4, 2, 2],
            &[4],
            true,
        )
        .opset(21),
        view(
            "MeanVarianceNormalization",
            &[2, 2, 2, 3],
            "y = MeanVarianceNormalization <axes = [0, 2, 3]> (x)",
            &[],
        ),
        view("LpNormalization", &[2, 3, 2], "y = LpNormalization <axis = 1> (x)", &[]),
        case("BatchNormalization", |rng| {
            let sample = Sample::of("y = BatchNormalization <epsilon = 0.01> (x, g, b, m, v)");
            let sample = sample.any("x", &[2, 3, 2, 2], rng).any("g", &[3], rng).any("b", &[3], rng);
            sample.any("m", &[3], rng).positive("v", &[3], rng)
        }),
        // Pooling and interpolation.
        pool("AveragePool", ""),
        pool("AveragePool", ", count_include_pad = 1"),
        pool("MaxPool", ""),
        pool("MaxPool", ", ceil_mode = 1"),
        case("AveragePool", |rng| {
            Sample::of("y = AveragePool <kernel_shape = [2, 3], strides = [2, 3]> (x)").float(
                "x",
                &[2, 3, 4, 6],
                rng,
            )
        })
        .linear(),
        case("GlobalAveragePool", |rng| {
            Sample::of("y = GlobalAveragePool(x)").float("x", &[2, 3, 2, 4], rng)
        })
        .linear(),
        case("GlobalMaxPool", |rng| Sample::of("y = GlobalMaxPool(x)").distinct("x", &[2, 3, 2, 4], rng))
            .in_floats(),
        resize(
            "mode = \"nearest\", coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\"",
            &[1, 2, 3, 4],
            "\"\", s",
            "float[4] s = {1, 1, 2, 2}",
        ),
        resize("mode = \"linear\"", &[1, 2, 4, 3], "\"\", s", "float[4] s = {1, 1, 2, 2}"),
        resize(
            "mode = \"linear\", coordinate_transformation_mode = \"align_corners\"",
            &[1, 2, 3, 5],
            "\"\", \"\", z",
            "int64[4] z = {1, 2, 5, 9}",
        ),
        resize("mode = \"cubic\"", &[1, 1, 4, 4], "\"\", s", "float[4] s = {1, 1, 2, 0.5}"),
        // Views.
        view("Reshape", &[2, 3, 2], "y = Reshape(x, s)", &["int64[2] s = {0, -1}"]),
        view("Flatten", &[2, 3, 2], "y = Flatten <axis = 2> (x)", &[]),
        view("Squeeze", &[2, 1, 2], "y = Squeeze(x, a)", &["int64[1] a = {1}"]),
        view("Unsqueeze", &[2, 3], "y = Unsqueeze(x, a)", &["int64[2] a = {0, -1}"]),
        view("Transpose", &[2, 3, 4], "y = Transpose <perm = [2, 0, 1]> (x)", &[]),
        view("Expand", &[3, 1], "y = Expand(x, s)", &["int64[3] s = {2, 1, 4}"]),
        view("Tile", &[2, 3], "y = Tile(x, r)", &["int64[2] r = {3, 2}"]),
        view("Trilu", &[3, 4], "y = Trilu <upper = 0> (x, k)", &["int64 k = {1}"]),
        view("Trilu", &[2, 3, 3], "y = Trilu(x)", &[]),
        view(
            "ReverseSequence",
            &[3, 2],
            "y = ReverseSequence <batch_axis = 1, time_axis = 0> (x, n)",
            &["int64[2] n = {2, 3}"],
        ),
        view("DepthToSpace", &[2, 8, 2, 3], "y = DepthToSpace <blocksize = 2> (x)", &[]),
        view("DepthToSpace", &[2, 8, 2, 3], "y = DepthToSpace <blocksize = 2, mode = \"CRD\"> (x)", &[]),
        view("SpaceToDepth", &[2, 2, 4, 6], "y = SpaceToDepth <blocksize = 2> (x)", &[]),
        view(
            "Slice",
            &[4, 5],
            "y = Slice(x, s, e, a)",
            &["int64[2] s = {1, -3}", "int64[2] e = {100, -1}", "int64[2] a = {0, 1}"],
        ),
        view(
            "Slice",
            &[6, 5],
            "y = Slice(x, s, e, a, t)",
            &["int64[2] s = {5, 1}", "int64[2] e = {-100, 5}", "int64[2] a = {0, 1}", "int64[2] t = {-2, 3}"],
        ),
        view("Pad", &[2, 3], "y = Pad(x, p)", &["int64[4] p = {1, 0, 2, 1}"]),
        view("Pad", &[4, 3], "y = Pad(x, p)", &["int64[4] p = {-1, 2, 1, -1}"]),
        case("Concat", |rng| {
            let body = "y = Concat <axis = -1> (a, b, a)";
            Sample::of(body).any("a", &[2, 3], rng).any("b", &[2, 1], rng)
        }),
        case("Split", |rng| {
            let sample = Sample::of("y, z, w = Split <axis = 1> (x, s)").any("x", &[2, 6], rng);
            sample.constant("int64[3] s = {1, 3, 2}").outputs(&["y", "w"])
        }),
        // Selection.
        view("Gather", &[3, 4, 2], "y = Gather <axis = 1> (x, i)", &["int64[2,3] i = {0, 3, 0, -1, 2, 0}"]),
        view("Gather", &[4, 2], "y = Gather(x, i)", &["int32[3] i = {1, 1, -4}"]),
        view("Gather", &[3, 4, 2], "y = Gather <axis = 1> (x, i)", &["int64 i = {-2}"]),
        view(
            "GatherElements",
            &[3, 2],
            "y = GatherElements <axis = 0> (x, i)",
            &["int64[2,2] i = {0, 2, 0, 1}"],
        ),
        top_k("axis = 0", 4),
        top_k("axis = 1, largest = 0", 2),
        view("GatherND", &[3, 2, 2], "y = GatherND(x, i)", &["int64[3,2] i = {0, 1, 2, 0, 0, 1}"]),
        // Rounding, which is passed straight: between the limits the function is the identity.
        quantized("QuantizeLinear"),
        quantized("DequantizeLinear"),
    ];
    cases.shrink_to_fit();
    cases
}

fn microsoft(op: &'static str) -> Case {
    let draw = move |rng: &mut Rng| {
        let shape = shape(rng, 2);
        Sample::of(format!("y = com.microsoft.{op}(x)")).any("x", &shape, rng)
    };
    case(op, draw).microsoft()
}

fn quantized(op: &'static str) -> Case {
    let draw = |rng: &mut Rng| {
        let (inputs, axis) = ("s, z", rng.usize(0..2));
        let size = [3, 4][axis];
        let scales = ["0.015625", "0.03125", "0.0078125", "0.015625"][..size].join(",");
        let zeros = ["32", "0", "0", "-32"][..size].join(",");
        let body = format!(
            "q = QuantizeLinear <axis = {axis}> (x, {inputs}) y = DequantizeLinear <axis = {axis}> (q, {inputs})"
        );
        // The limits are (−128 − z)·s and (127 − z)·s, near multiples of 1/2.
        let reference = "f = Cast <to = 1> (z) l0 = Sub(low, f) l = Mul(l0, s) h0 = Sub(high, f) h = Mul(h0, s) \
             lu = Unsqueeze(l, u) hu = Unsqueeze(h, u) m = Max(x, lu) y = Min(m, hu)";
        let unsqueezed = 1 - axis;
        let sample = Sample::of(body).reference(reference).float("x", &[3, 4], rng);
        sample
            .constant(format!("float[{size}] s = {{{scales}}}"))
            .constant(format!("int8[{size}] z = {{{zeros}}}"))
            .constant("float low = {-128}")
            .constant("float high = {127}")
            .constant(format!("int64[1] u = {{{unsqueezed}}}"))
    };
    case(op, draw).in_floats()
}

impl Sample {
    fn reference(mut self, body: impl Into<String>) -> Self {
        self.reference = Some(body.into());
        self
    }
}

impl Case {
    /// With operands of half the size: for functions with poles.
    fn half(self) -> Self {
        let draw = self.draw;
        let halved = move |rng: &mut Rng| {
            let mut sample = draw(rng);
            sample.parameters.iter_mut().flat_map(|p| &mut p.2).for_each(|v| *v *= 0.5);
            sample
        };
        Self { draw: Box::new(halved), ..self }
    }
}
