//! Folding of a per-channel affine map into the weights of the preceding convolution or matrix product.

use crate::framework::NodeBuilder;
use pare_graph::{
    Attribute, DataType, Decline, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{ConvTransposeView, ConvView, GemmView},
};

/// The map `y = scale·x + shift` of each channel.
pub(crate) struct ChannelAffine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl ChannelAffine {
    /// Returns true if any factor differs from 1.
    pub(crate) fn scales(&self) -> bool {
        self.scale.iter().any(|&s| s != 1.0)
    }
}

/// Folds `y = affine(x)`, computed by `at` along axis `axis` of `x`, into the producer of `x`.
pub(crate) fn fold(
    at: NodeRef<'_>,
    x: ValueRef<'_>,
    affine: &ChannelAffine,
    axis: usize,
) -> Result<Patch, Decline> {
    fold_through(at, x, None, affine, axis)
}

/// As [`fold`], for a node `at` that applies the map to a view of `x`. The view then produces `y`.
pub(crate) fn fold_through(
    at: NodeRef<'_>,
    x: ValueRef<'_>,
    view: Option<NodeRef<'_>>,
    affine: &ChannelAffine,
    axis: usize,
) -> Result<Patch, Decline> {
    let producer = x.producer().ok_or(Decline::Mismatch)?;
    let product = Product::of(producer)?;
    expect(axis == CHANNEL_AXIS && product.channels == affine.scale.len())?;
    x.sole_use()?;
    producer.output()?;
    let is_float = |t: &Tensor| {
        matches!(t.dtype(), DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
    };
    let weight = constant(product.weight.value)?;
    expect(is_float(weight))?;
    let mut patch = Patch::at(at);
    let mut inputs: Vec<Option<Ref>> = producer.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    let y = at.output()?;
    if affine.scales() {
        expect_unshared(product.weight.value)?;
        let scaled = product.weight.scaled(&affine.scale)?;
        inputs[1] = Some(replace_constant(at, &mut patch, product.weight.value, scaled));
    }
    let bias = product.bias(affine)?;
    let mut node = product.node;
    if product.bias.is_some() || bias.iter().any(|&b| b != 0.0) {
        let base = view.map_or(x.name(), |_| y.name());
        let hint = product.bias.map_or_else(|| format!("{base}_bias"), |b| b.name().to_owned());
        let tensor = rounded(weight.dtype(), &[product.channels], &bias, &hint)?;
        inputs.resize(3, None);
        inputs[2] = Some(reuse_or_add_constant(at, &mut patch, product.bias, &hint, tensor));
        if product.beta != 1.0 {
            node.attributes.insert("beta".into(), Attribute::Float(1.0));
        }
    } else if node.op == "Gemm" && producer.is("MatMul") {
        node = producer.node().clone();
    }
    // Before a view, the new value differs from `x` and needs a name of its own.
    let name = view.map_or_else(|| y.name().into(), |_| format!("{}_{}", y.name(), node.op.to_lowercase()));
    let mut outputs = patch.node_with(node, &inputs, &[Some(&name)]);
    if let Some(view) = view {
        view.output()?.sole_use()?;
        let mut inputs: Vec<Option<Ref>> = view.inputs().into_iter().map(|i| i.map(Into::into)).collect();
        inputs[0] = outputs[0];
        outputs = patch.node_with(view.node().clone(), &inputs, &[Some(y.name())]);
    }
    patch.replace(y, outputs[0].ok_or(Decline::Mismatch)?);
    Ok(patch)
}

fn constant(value: ValueRef<'_>) -> Result<&Tensor, Decline> {
    value.constant().map_err(|decline| match decline {
        Decline::Mismatch => Decline::because(format!("`{}` is not constant", value.name())),
        reason @ Decline::Because(_) => reason,
    })
}

/// Declines a shared weight: it would be stored beside its changed copy, and the file would grow.
fn expect_unshared(weight: ValueRef<'_>) -> Result<(), Decline> {
    weight.sole_use()?;
    match weight.producer().filter(|at| at.is("Identity")) {
        Some(identity) => expect_unshared(identity.input(0)?),
        None => Ok(()),
    }
}

/// Rounds `values` to `dtype`. Declines, naming the constant, if a value is out of its range.
pub(crate) fn rounded(
    dtype: DataType,
    shape: &[usize],
    values: &[f64],
    name: &str,
) -> Result<Tensor, Decline> {
    finite(Tensor::from_f64(dtype, shape, values).map_err(|_| Decline::Mismatch)?, name)
}

fn finite(tensor: Tensor, name: &str) -> Result<Tensor, Decline> {
    if tensor.is_finite() {
        return Ok(tensor);
    }
    Err(Decline::because(format!("`{name}` exceeds the range of {}", tensor.dtype())))
}

/// Replaces a constant without other uses by `tensor`, under the same name.
fn replace_constant(at: NodeRef<'_>, patch: &mut Patch, old: ValueRef<'_>, tensor: Tensor) -> Ref {
    let new = add_constant(at, patch, old.name(), tensor);
    patch.replace(old, new);
    new
}

/// A new constant, which replaces `old` if that has the same shape and no other use.
pub(crate) fn reuse_or_add_constant(
    at: NodeRef<'_>,
    patch: &mut Patch,
    old: Option<ValueRef<'_>>,
    hint: &str,
    tensor: Tensor,
) -> Ref {
    let replaceable = |old: &ValueRef<'_>| {
        expect_unshared(*old).is_ok() && old.fixed_shape().is_ok_and(|shape| shape == tensor.shape())
    };
    match old.filter(replaceable) {
        Some(old) => replace_constant(at, patch, old, tensor),
        None => add_constant(at, patch, hint, tensor),
    }
}

/// Adds an initializer, or a `Constant` node inside a function.
pub(crate) fn add_constant(at: NodeRef<'_>, patch: &mut Patch, name: &str, tensor: Tensor) -> Ref {
    if at.graph.is_function {
        return NodeBuilder::new(at.graph, patch, name).constant("folded", tensor);
    }
    patch.constant(name, tensor)
}

/// The constant weights of a layer, indexed by output channel.
pub(crate) struct Weight<'g> {
    /// The constant.
    pub value: ValueRef<'g>,
    /// Number of consecutive elements that belong to one channel.
    run: usize,
    /// The output channel of each run; repeats until the end of the tensor.
    run_channels: Vec<usize>,
}

impl<'g> Weight<'g> {
    /// The weights of `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let value = at.input(1)?;
        constant(value)?;
        let (run, run_channels) = match at.op() {
            "Conv" => {
                let view = ConvView::of(at)?;
                (view.inputs * view.kernel.iter().product::<usize>(), (0..view.outputs).collect())
            }
            "ConvTranspose" => {
                // W[i, o, …]: each group of inputs has its own outputs.
                let view = ConvTransposeView::of(at)?;
                let inputs = (view.inputs / view.group).max(1);
                let channels = |i: usize| (0..view.outputs).map(move |o| i / inputs * view.outputs + o);
                (view.kernel.iter().product(), (0..view.inputs).flat_map(channels).collect())
            }
            "Gemm" | "MatMul" => {
                let (rows, columns) = match value.constant()?.shape() {
                    &[rows, columns] if rows > 0 && columns > 0 => (rows, columns),
                    _ => return Err(Decline::Mismatch),
                };
                if at.is("Gemm") && GemmView::of(at)?.trans_b {
                    (columns, (0..rows).collect())
                } else {
                    (1, (0..columns).collect())
                }
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { value, run, run_channels })
    }

    /// The weights times a factor per output channel. Declines, naming the constant, if a product overflows.
    pub fn scaled(&self, scale: &[f64]) -> Result<Tensor, Decline> {
        let factors: Vec<_> = self.run_channels.iter().map(|&channel| scale[channel]).collect();
        let scaled = constant(self.value)?.scaled(self.run, &factors);
        finite(scaled.map_err(|_| Decline::Mismatch)?, self.value.name())
    }
}

/// A node that is linear in its first input, with constant weights.
struct Product<'g> {
    /// The node in a form that accepts a bias.
    node: Node,
    weight: Weight<'g>,
    bias: Option<ValueRef<'g>>,
    /// Factor of the bias, also of one that is added.
    beta: f64,
    channels: usize,
}

/// The channel axis of the outputs.
const CHANNEL_AXIS: usize = 1;

impl<'g> Product<'g> {
    fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let weight = Weight::of(at)?;
        let (mut node, bias) = (at.node().clone(), at.optional(2));
        let (channels, beta) = match at.op() {
            "Conv" => (ConvView::of(at)?.outputs, 1.0),
            "ConvTranspose" => {
                let view = ConvTransposeView::of(at)?;
                (view.outputs * view.group, 1.0)
            }
            "Gemm" => (weight.run_channels.len(), GemmView::of(at)?.beta),
            "MatMul" if at.is("MatMul") => {
                // `Gemm`, which accepts a bias, multiplies matrices only.
                expect(at.input(0)?.rank()? == 2 && at.opset() >= 7)?;
                node.op = "Gemm".into();
                (weight.run_channels.len(), 1.0)
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { node, weight, bias, beta, channels })
    }

    /// The bias after `affine`: `scale·β·b + shift`.
    fn bias(&self, affine: &ChannelAffine) -> Result<Vec<f64>, Decline> {
        let values = match self.bias {
            // The engine does not read a bias with factor 0, which may be infinite.
            Some(bias) if self.beta != 0.0 => {
                let tensor = constant(bias)?;
                let per_channel = tensor.shape().last() == Some(&tensor.len());
                expect(tensor.len() == 1 || tensor.len() == self.channels && per_channel)?;
                tensor.to_f64().ok_or(Decline::Mismatch)?.into_iter().map(|b| self.beta * b).collect()
            }
            _ => vec![0.0],
        };
        let of = |c: usize| affine.scale[c] * values[c % values.len()] + affine.shift[c];
        Ok((0..self.channels).map(of).collect())
    }
}

/// The value of each channel of a constant that broadcasts along `axis` of a tensor of this rank.
pub(crate) fn per_channel(
    c: ValueRef<'_>,
    rank: usize,
    axis: usize,
    channels: usize,
) -> Result<Vec<f64>, Decline> {
    let tensor = c.constant()?;
    expect(tensor.rank() <= rank && !tensor.is_empty())?;
    let missing = rank - tensor.rank();
    let fits =
        tensor.shape().iter().enumerate().all(|(i, &d)| d == 1 || i + missing == axis && d == channels);
    expect(fits)?;
    let elements = tensor.to_f64().ok_or(Decline::Mismatch)?;
    Ok((0..channels).map(|i| elements[i % elements.len()]).collect())
}

/// The number of output channels of the producer of `x`, and their axis.
pub(crate) fn channels_of(x: ValueRef<'_>) -> Result<(usize, usize), Decline> {
    // A product of two activations cannot absorb a scale: nothing to report.
    let producer = x.producer().ok_or(Decline::Mismatch)?;
    expect(producer.input(1)?.is_constant())?;
    Ok((Product::of(producer)?.channels, CHANNEL_AXIS))
}
