//! The promise of every operator trait, checked by running each operator that has it.

use crate::support::{bytes, engine};
use fastrand::Rng;
use pare_graph::{
    DataType, Model, Tensor,
    ops::{self, Trait},
    text::parse_model,
};
use pare_runtime::{LoadOptions, ModelSource, Optimize, Session};
use std::ops::RangeInclusive;

/// Operators that are not checked, with the reason.
const NOT_RUN: &[(&str, &str)] = &[
    ("ATen", "the engine is built without PyTorch"),
    ("BiasAdd", "the engine has no CPU kernel"),
    ("BiasDropout", "the engine is built without training"),
    ("BitmaskBiasDropout", "the engine is built without training"),
    ("BitmaskDropout", "the engine is built without training"),
    ("CategoryMapper", "the inputs are strings"),
    ("PythonOp", "the engine is built without PyTorch"),
    ("RegexFullMatch", "the inputs are strings"),
    ("Sampling", "it runs a subgraph of a language model"),
    ("StringConcat", "the inputs are strings"),
];

/// The newest operator set with kernels for most operators.
const OPSET: i64 = 21;

/// A node `y = Op…` that reads `x` first, in the text syntax. Inputs of the graph have random values in a
/// range.
struct Example {
    opset: i64,
    inputs: &'static str,
    initializers: &'static str,
    /// Attributes and arguments.
    call: &'static str,
    range: RangeInclusive<f64>,
}

/// The example of an operator; by default, an elementwise operator with one float input.
#[rustfmt::skip]
fn example(op: &str, of: Trait) -> Example {
    const CUBE: &str = "float[3,4,5] x";
    const PAIR: &str = "float[3,4,5] x, float[4,1] b";
    let (inputs, initializers, call) = match op {
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Sum" | "Mean" | "Pow" | "PRelu" | "Less" | "LessOrEqual"
        | "Greater" | "GreaterOrEqual" => (PAIR, "", "(x, b)"),
        "And" | "Or" | "Xor" => ("bool[3,4,5] x, bool[4,1] b", "", "(x, b)"),
        "Mod" | "Equal" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => ("int32[3,4,5] x, int32[4,1] b", "", "(x, b)"),
        "BitShift" => ("uint32[3,4,5] x, uint32[4,1] b", "", "<direction = \"LEFT\">(x, b)"),
        "Not" => ("bool[3,4,5] x", "", "(x)"),
        "BitwiseNot" => ("int32[3,4,5] x", "", "(x)"),
        "Where" => ("bool[3,4,5] x, float[3,4,5] a, float[4,1] b", "", "(x, a, b)"),
        "Cast" | "BitCast" => (CUBE, "", "<to = 6>(x)"),
        "Clip" => (CUBE, "float low = {-1}, float high = {1}", "(x, low, high)"),
        "BiasAdd" => ("float[1,2,320] x, float[320] b, float[1,2,320] s", "", "(x, b, s)"),
        "FastGelu" | "BiasGelu" => ("float[3,4,5] x, float[5] b", "", "(x, b)"),
        "Binarizer" => ("float[3,4] x", "", "<threshold = 0.5>(x)"),
        "Dropout" if of == Trait::Random => (CUBE, "float r = {0.5}, bool t = {1}", "(x, r, t)"),

        "Reshape" => (CUBE, "int64[2] s = {-1,10}", "(x, s)"),
        "Flatten" => (CUBE, "", "<axis = 2>(x)"),
        "Squeeze" => ("float[3,1,5] x", "int64[1] a = {1}", "(x, a)"),
        "Unsqueeze" => (CUBE, "int64[1] a = {1}", "(x, a)"),
        "Transpose" => (CUBE, "", "<perm = [2,0,1]>(x)"),
        "DepthToSpace" => ("float[2,8,3,2] x", "", "<blocksize = 2>(x)"),
        "SpaceToDepth" => ("float[2,3,4,2] x", "", "<blocksize = 2>(x)"),
        "ReverseSequence" => ("float[4,3,2] x", "int64[3] l = {1,4,2}", "(x, l)"),
        "Slice" => (CUBE, "int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {1}", "(x, s, e, a)"),
        "Split" => (CUBE, "int64[1] s = {4}", "<axis = 1>(x, s)"),
        "Gather" => (CUBE, "int64[3] i = {2,0,2}", "(x, i)"),
        "GatherElements" => (CUBE, "int64[1,2,1] i = {1,3}", "<axis = 1>(x, i)"),
        "GatherND" => (CUBE, "int64[2,1] i = {2,0}", "(x, i)"),
        "Expand" => ("float[3,1,5] x", "int64[3] s = {3,4,5}", "(x, s)"),
        "Tile" => (CUBE, "int64[3] r = {1,2,1}", "(x, r)"),
        "Concat" => ("float[3,4,5] x, float[3,2,5] b", "", "<axis = 1>(x, b)"),
        "Compress" => (CUBE, "bool[4] c = {1,0,1,1}", "<axis = 1>(x, c)"),

        "Conv" => ("float[2,3,6,6] x, float[4,3,3,3] w, float[4] b", "", "(x, w, b)"),
        "ConvTranspose" => ("float[2,3,4,4] x, float[3,2,2,2] w", "", "(x, w)"),
        "DeformConv" => ("float[1,2,5,5] x, float[3,2,2,2] w, float[1,8,4,4] o", "", "(x, w, o)"),
        "Gemm" => ("float[3,4] x, float[4,5] b, float[5] c", "", "(x, b, c)"),
        "MatMul" => ("float[2,3,4] x, float[4,5] b", "", "(x, b)"),
        "Einsum" => ("float[2,3,4] x, float[4,5] b", "", "<equation = \"bij,jk->bik\">(x, b)"),
        "BatchNormalization" => {
            ("float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v", "", "(x, s, b, m, v)")
        }
        "AveragePool" => ("float[2,3,5,5] x", "", "<kernel_shape = [2,2], pads = [1,1,0,0]>(x)"),
        "GlobalAveragePool" => ("float[2,3,5,5] x", "", "(x)"),
        "CumSum" => (CUBE, "int64 a = {1}", "(x, a)"),
        "Pad" => (CUBE, "int64[6] p = {0,1,0,0,0,2}", "(x, p)"),
        "CenterCropPad" => (CUBE, "int64[3] s = {3,2,7}", "(x, s)"),
        "Resize" => ("float[1,2,3,3] x", "float[0] r = {}, float[4] s = {1,1,2,2}", "<mode = \"linear\">(x, r, s)"),
        "Upsample" => ("float[1,2,3,3] x", "float[4] s = {1,1,2,2}", "(x, s)"),
        "GridSample" => ("float[1,2,4,4] x, float[1,3,3,2] g", "", "(x, g)"),
        "AffineGrid" => ("float[2,2,3] x", "int64[4] s = {2,3,4,5}", "(x, s)"),
        "Col2Im" => ("float[1,8,4] x", "int64[2] i = {3,3}, int64[2] b = {2,2}", "(x, i, b)"),
        "MaxUnpool" => {
            ("float[1,1,2,2] x", "int64[1,1,2,2] i = {0,3,9,15}", "<kernel_shape = [2,2], strides = [2,2]>(x, i)")
        }
        "RotaryEmbedding" => ("float[1,2,3,4] x, float[1,3,2] c, float[1,3,2] s", "", "(x, c, s)"),
        "DFT" => ("float[1,6,1] x", "", "(x)"),
        "STFT" => ("float[1,16,1] x, float[8] w", "int64 s = {4}, int64 l = {8}", "(x, s, w, l)"),
        "Scatter" => ("float[3,3] x, float[1,2] u", "int64[1,2] i = {0,2}", "<axis = 1>(x, i, u)"),
        "TensorScatter" => ("float[1,2,4,3] x, float[1,2,2,3] u", "int64[1] w = {1}", "(x, u, w)"),
        "Trilu" => ("float[3,4] x", "", "(x)"),
        op if op.starts_with("Reduce") => (CUBE, "int64[1] a = {1}", "(x, a)"),

        "QuantizeLinear" => (CUBE, "float s = {0.1}, uint8 z = {10}", "(x, s, z)"),
        "DequantizeLinear" => ("uint8[3,4,5] x", "float s = {0.1}, uint8 z = {10}", "(x, s, z)"),
        "Multinomial" => ("float[1,3] x", "", "<sample_size = 100>(x)"),
        "RandomNormal" | "RandomUniform" => ("", "", "<shape = [100]>()"),
        _ => (CUBE, "", "(x)"),
    };
    let opset = match op {
        "Upsample" => 9,
        "Scatter" => 10,
        "RotaryEmbedding" => 23,
        "Swish" | "TensorScatter" => 24,
        "BitCast" => 26,
        _ => OPSET,
    };
    let range = match op {
        "Acos" | "Asin" | "Atanh" | "GridSample" => -0.9..=0.9,
        "Acosh" => 1.0..=4.0,
        "Log" | "Sqrt" | "Pow" | "ReduceLogSum" | "BatchNormalization" => 0.1..=3.0,
        "Bernoulli" => 0.0..=1.0,
        _ => -3.0..=3.0,
    };
    Example { opset, inputs, initializers, call, range }
}

/// The function of an example in the engine: tensors by input to the first output.
struct Function {
    model: Model,
    session: Box<dyn Session>,
    range: RangeInclusive<f64>,
}

impl Function {
    fn load(example: &Example, name: &str, call: &str) -> Result<Self, String> {
        let Example { opset, inputs, initializers, range, .. } = example;
        let initializers = if initializers.is_empty() { String::new() } else { format!("<{initializers}>") };
        let outputs = if name == "DynamicQuantizeLinear" { "y, s, z" } else { "y" };
        let imports = format!(r#""" : {opset}, "com.microsoft" : 1, "ai.onnx.ml" : 3"#);
        let source = format!(
            "<ir_version: 10, opset_import: [{imports}]> g ({inputs}) => (y) {initializers} {{ {outputs} = {name}{call} }}"
        );
        let mut model = parse_model(&source).map_err(|e| e.to_string())?;
        model.infer().map_err(|e| e.to_string())?;
        let options = LoadOptions::default().with_optimize(Optimize::Off);
        let session =
            engine().load(&ModelSource::bytes(bytes(&model)?), &options).map_err(|e| e.to_string())?;
        Ok(Self { model, session, range: range.clone() })
    }

    /// Random inputs.
    fn sample(&self, rng: &mut Rng) -> Vec<Tensor> {
        let graph = &self.model.graph;
        let input = |&id: &_| {
            let fact = &graph.value(id).fact;
            let (dtype, shape) = (fact.dtype().unwrap(), fact.fixed_shape().unwrap());
            let mut element = || match dtype {
                DataType::Float => self.range.start() + rng.f64() * (self.range.end() - self.range.start()),
                DataType::Bool => f64::from(u8::from(rng.bool())),
                _ => f64::from(rng.u8(1..9)),
            };
            tensor(dtype, &shape, (0..shape.iter().product()).map(|_| element()).collect())
        };
        graph.inputs().iter().map(input).collect()
    }

    fn apply(&mut self, inputs: &[Tensor]) -> Result<Tensor, String> {
        let graph = &self.model.graph;
        let names = graph.inputs().iter().map(|&id| graph.value(id).name.clone());
        let feed: Vec<_> = names.zip(inputs.iter().cloned().map(Into::into)).collect();
        let outputs = self.session.run(&feed).map_err(|e| e.to_string())?;
        outputs[0].1.as_tensor().cloned().ok_or_else(|| "the output is not a tensor".into())
    }

    /// The function of input 0, with these further inputs.
    fn apply_first(&mut self, x: Tensor, inputs: &[Tensor]) -> Result<Tensor, String> {
        self.apply(&[&[x], &inputs[1..]].concat())
    }
}

fn tensor(dtype: DataType, shape: &[usize], values: Vec<f64>) -> Tensor {
    match dtype {
        DataType::Bool => Tensor::from_slice(shape, &values.iter().map(|v| *v != 0.0).collect::<Vec<_>>()),
        _ => Tensor::from_f64(dtype, shape, &values),
    }
    .unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f64().unwrap()
}

fn with_values(like: &Tensor, values: Vec<f64>) -> Tensor {
    tensor(like.dtype(), like.shape(), values)
}

/// The elements in reverse order, i.e. flipped along every axis.
fn reversed(x: &Tensor) -> Tensor {
    with_values(x, values(x).into_iter().rev().collect())
}

/// The elements of two tensors, combined.
fn zipped(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Tensor {
    with_values(a, values(a).into_iter().zip(values(b)).map(|(a, b)| f(a, b)).collect())
}

fn ensure(holds: bool, why: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.into()) }
}

/// Equality up to the rounding of single precision.
fn close(a: &Tensor, b: &Tensor) -> bool {
    let near = |(a, b): (f64, f64)| (a - b).abs() <= 1e-5 * (1.0 + a.abs()) || a.is_nan() && b.is_nan();
    a.shape() == b.shape() && values(a).into_iter().zip(values(b)).all(near)
}

/// The position in the inputs, one after another, of the source of each output element.
fn sources(f: &mut Function, rng: &mut Rng) -> Result<Vec<usize>, String> {
    let mut inputs = f.sample(rng);
    let mut labels: Vec<usize> = (0..inputs.iter().map(Tensor::len).sum()).collect();
    rng.shuffle(&mut labels);
    let mut rest = labels.iter().map(|&l| l as f64);
    for input in &mut inputs {
        *input = with_values(input, rest.by_ref().take(input.len()).collect());
    }
    let source = |v: f64| labels.iter().position(|&l| l as f64 == v).ok_or("an output element is not a copy");
    Ok(values(&f.apply(&inputs)?).into_iter().map(source).collect::<Result<_, _>>()?)
}

/// Checks the promise of a trait on random inputs.
fn check(of: Trait, f: &mut Function, rng: &mut Rng) -> Result<(), String> {
    let inputs = f.sample(rng);
    let y = f.apply(&inputs)?;
    if of == Trait::Random {
        return ensure(f.apply(&inputs)? != y, "two runs have equal outputs");
    }
    let (x, other) = (&inputs[0], f.sample(rng).swap_remove(0));
    match of {
        Trait::Elementwise => {
            let flipped = f.apply(&inputs.iter().map(reversed).collect::<Vec<_>>())?;
            ensure(close(&reversed(&y), &flipped), "the function depends on the index")?;
            let k = rng.usize(0..x.len());
            let mut changed = values(x);
            changed[k] = values(&other)[k];
            let changed = f.apply_first(with_values(x, changed), &inputs)?;
            let same = values(&y).into_iter().zip(values(&changed)).map(|(a, b)| a == b || a.is_nan());
            ensure(same.enumerate().all(|(i, same)| i == k || same), "an element depends on another index")
        }
        Trait::Activation => {
            ensure((y.shape(), y.dtype()) == (x.shape(), x.dtype()), "the output is not like input 0")
        }
        Trait::Rectifier => {
            let x = with_values(x, values(x).into_iter().map(f64::abs).collect());
            ensure(f.apply_first(x.clone(), &inputs)? == x, "f(x) ≠ x for x ≥ 0")
        }
        Trait::Monotone => {
            let low = f.apply_first(zipped(x, &other, f64::min), &inputs)?;
            let high = f.apply_first(zipped(x, &other, f64::max), &inputs)?;
            let ordered = values(&low).into_iter().zip(values(&high)).all(|(a, b)| a <= b + 1e-6);
            ensure(ordered, "the function decreases")
        }
        Trait::Comparison => ensure(y.dtype() == DataType::Bool, "the output is not boolean"),
        Trait::Idempotent => ensure(f.apply_first(y.clone(), &inputs)? == y, "f(f(x)) ≠ f(x)"),
        Trait::Involution => ensure(f.apply_first(y, &inputs)? == *x, "f(f(x)) ≠ x"),
        Trait::NonNegative => ensure(values(&y).iter().all(|&v| v >= 0.0), "an element is negative"),
        Trait::UnitInterval => {
            ensure(values(&y).iter().all(|v| (0.0..=1.0).contains(v)), "an element is outside of [0, 1]")
        }
        Trait::Linear => {
            let mixed = f.apply_first(zipped(x, &other, |x, y| 0.25 * x + 0.75 * y), &inputs)?;
            let y_other = f.apply_first(other, &inputs)?;
            ensure(
                close(&zipped(&y, &y_other, |x, y| 0.25 * x + 0.75 * y), &mixed),
                "the function is not affine",
            )
        }
        Trait::DataMovement => {
            ensure(sources(f, rng)? == sources(f, rng)?, "the selection depends on the elements")
        }
        Trait::View => {
            let mut sources = sources(f, rng)?;
            sources.sort_unstable();
            ensure(sources.into_iter().eq(0..x.len()), "an element is not used exactly once")
        }
        Trait::Reshape => {
            ensure(sources(f, rng)?.into_iter().eq(0..x.len()), "the order of the elements changes")
        }
        Trait::Reduction => {
            ensure(y.shape() == [3, 1, 5], "axis 1 is not reduced to size 1")?;
            let (from, mut turned) = (values(x), values(x));
            for (i, v) in turned.iter_mut().enumerate() {
                let (row, k, column) = (i / 20, i / 5 % 4, i % 5);
                *v = from[row * 20 + (3 - k) * 5 + column];
            }
            ensure(
                close(&f.apply_first(with_values(x, turned), &inputs)?, &y),
                "the order along the axis matters",
            )
        }
        Trait::Quantization => ensure(
            x.dtype().is_float() != y.dtype().is_float(),
            "the operator does not convert between floats and integers",
        ),
        of => Err(format!("{of:?} has no check")),
    }
}

/// Checks the promise of a trait for an operator; the outer error means that the operator does not run.
fn check_operator(domain: &str, op: &str, of: Trait, rng: &mut Rng) -> Result<Result<(), String>, String> {
    let example = example(op, of);
    let name = if domain.is_empty() { op.to_owned() } else { format!("{domain}.{op}") };
    let mut f = Function::load(&example, &name, example.call)?;
    if of == Trait::Commutative {
        let inputs = f.sample(rng);
        let mut swapped = Function::load(&example, &name, &example.call.replace("(x, b", "(b, x"))?;
        return Ok(ensure(f.apply(&inputs)? == swapped.apply(&inputs)?, "f(a, b) ≠ f(b, a)"));
    }
    f.apply(&f.sample(rng))?;
    Ok((0..3).try_for_each(|_| check(of, &mut f, rng)))
}

#[test]
fn operators_keep_the_promises_of_their_traits() {
    let mut rng = Rng::with_seed(0);
    let (mut broken, mut not_run, mut count) = (vec![], vec![], 0);
    for of in Trait::all() {
        for op in ops::operators_with(of) {
            for domain in ["", "ai.onnx.ml", "com.microsoft"] {
                let opset = if domain.is_empty() { OPSET } else { 1 };
                if !ops::traits(domain, op, opset).is_some_and(|traits| traits.contains(&of)) {
                    continue;
                }
                count += 1;
                match check_operator(domain, op, of, &mut rng) {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => broken.push(format!("{op} is not {of:?}: {why}")),
                    Err(why) => not_run.push((op, why)),
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    not_run.sort_unstable();
    not_run.dedup_by_key(|(op, _)| *op);
    let expected: Vec<_> = NOT_RUN.iter().map(|(op, _)| *op).collect();
    assert_eq!(not_run.iter().map(|(op, _)| *op).collect::<Vec<_>>(), expected, "{not_run:#?}");
    assert!(count > 250, "{count} promises");
}
