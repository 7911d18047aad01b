//! What follows a convolution or matrix product channel by channel goes into its weights.

use crate::framework::NodeBuilder;
use pare_graph::{
    Attribute, DataType, Decline, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{ConvTransposeView, ConvView, GemmView},
};

/// `y = scale·x + shift`, for each channel.
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Affine {
    pub(crate) fn scales(&self) -> bool {
        self.scale.iter().any(|&s| s != 1.0)
    }
}

/// Fold `y = affine(x)`, which the node `at` computes along axis `axis` of `x`, into the node that makes `x`.
pub(crate) fn fold(at: NodeRef<'_>, x: ValueRef<'_>, affine: &Affine, axis: usize) -> Result<Patch, Decline> {
    fold_before(at, x, None, affine, axis)
}

/// The same where the node `at` does so after a view of `x`, which then makes `y`.
pub(crate) fn fold_before(
    at: NodeRef<'_>,
    x: ValueRef<'_>,
    view: Option<NodeRef<'_>>,
    affine: &Affine,
    axis: usize,
) -> Result<Patch, Decline> {
    let linear = x.producer().ok_or(Decline::Mismatch)?;
    let parts = Linear::of(linear)?;
    expect(axis == CHANNELS && parts.channels == affine.scale.len())?;
    x.sole_use()?;
    linear.output()?;
    let rounds = |t: &Tensor| {
        matches!(t.dtype(), DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
    };
    let weight = constant(parts.weight.value)?;
    expect(rounds(weight))?;
    let mut patch = Patch::at(at);
    let mut inputs: Vec<Option<Ref>> = linear.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    let (y, mut node) = (at.output()?, parts.node);
    if affine.scales() {
        only_here(parts.weight.value)?;
        let scaled = parts.weight.scaled(&affine.scale)?;
        inputs[1] = Some(renewed(at, &mut patch, parts.weight.value, scaled));
    }
    let bias = match parts.bias {
        Some(bias) => {
            let tensor = constant(bias)?;
            let own = tensor.to_f64().ok_or(Decline::Mismatch)?;
            expect(
                tensor.len() == 1
                    || tensor.len() == parts.channels && tensor.shape().last() == Some(&parts.channels),
            )?;
            (0..parts.channels).map(|c| parts.beta * own[c % own.len()]).collect()
        }
        None => vec![0.0; parts.channels],
    };
    let bias: Vec<_> = bias.iter().enumerate().map(|(c, b)| affine.scale[c] * b + affine.shift[c]).collect();
    if parts.bias.is_some() || bias.iter().any(|&b| b != 0.0) {
        let base = view.map_or(x.name(), |_| y.name());
        let hint = parts.bias.map_or_else(|| format!("{base}_bias"), |b| b.name().to_owned());
        let tensor = rounded(weight.dtype(), &[parts.channels], &bias, &hint)?;
        inputs.resize(3, None);
        inputs[2] = Some(instead(at, &mut patch, parts.bias, &hint, tensor));
        if parts.beta != 1.0 {
            node.attributes.insert("beta".into(), Attribute::Float(1.0));
        }
    } else if node.op == "Gemm" && linear.is("MatMul") {
        node = linear.node().clone();
    }
    // In front of a view it makes another value than `x`, which must not be taken for it.
    let last = view.map_or_else(|| y.name().into(), |_| format!("{}_{}", y.name(), node.op.to_lowercase()));
    let mut made = patch.node_with(node, &inputs, &[Some(&last)]);
    if let Some(view) = view {
        view.output()?.sole_use()?;
        let mut inputs: Vec<Option<Ref>> = view.inputs().into_iter().map(|i| i.map(Into::into)).collect();
        inputs[0] = made[0];
        made = patch.node_with(view.node().clone(), &inputs, &[Some(y.name())]);
    }
    patch.replace(y, made[0].ok_or(Decline::Mismatch)?);
    Ok(patch)
}

fn constant(value: ValueRef<'_>) -> Result<&Tensor, Decline> {
    value.constant().map_err(|decline| match decline {
        Decline::Mismatch => Decline::because(format!("`{}` is not constant", value.name())),
        reason @ Decline::Because(_) => reason,
    })
}

/// A weight that others need would have to stay beside its changed copy, and the file would grow.
fn only_here(weight: ValueRef<'_>) -> Result<(), Decline> {
    weight.sole_use()?;
    match weight.producer().filter(|at| at.is("Identity")) {
        Some(identity) => only_here(identity.input(0)?),
        None => Ok(()),
    }
}

/// `values` as elements of `dtype`; declines, naming the constant, where they do not fit into it.
pub(crate) fn rounded(
    dtype: DataType,
    shape: &[usize],
    values: &[f64],
    name: &str,
) -> Result<Tensor, Decline> {
    finite(Tensor::from_f64(dtype, shape, values).map_err(|_| Decline::Mismatch)?, name)
}

fn finite(tensor: Tensor, name: &str) -> Result<Tensor, Decline> {
    let why = |t: &Tensor| Decline::because(format!("`{name}` would hold what {} cannot", t.dtype()));
    if tensor.is_finite() { Ok(tensor) } else { Err(why(&tensor)) }
}

/// A changed constant that takes the place and name of one that nobody else uses.
fn renewed(at: NodeRef<'_>, patch: &mut Patch, old: ValueRef<'_>, tensor: Tensor) -> Ref {
    let new = named(at, patch, old.name(), tensor);
    patch.replace(old, new);
    new
}

/// A new constant, in the place of `old` if nobody else uses that and it has its shape.
pub(crate) fn instead(
    at: NodeRef<'_>,
    patch: &mut Patch,
    old: Option<ValueRef<'_>>,
    hint: &str,
    tensor: Tensor,
) -> Ref {
    let free = |old: &ValueRef<'_>| {
        only_here(*old).is_ok() && old.fixed_shape().is_ok_and(|shape| shape == tensor.shape())
    };
    match old.filter(free) {
        Some(old) => renewed(at, patch, old, tensor),
        None => named(at, patch, hint, tensor),
    }
}

/// A new constant.
pub(crate) fn named(at: NodeRef<'_>, patch: &mut Patch, name: &str, tensor: Tensor) -> Ref {
    if at.graph.is_function {
        return NodeBuilder::new(at.graph, patch, name).constant("folded", tensor);
    }
    patch.constant(name, tensor)
}

/// The constant weights of a layer, by the output channels that they belong to.
pub(crate) struct Weight<'g> {
    /// The constant.
    pub value: ValueRef<'g>,
    /// So many neighbours belong to one channel.
    run: usize,
    /// The channels of the runs, over and over.
    lanes: Vec<usize>,
}

impl<'g> Weight<'g> {
    /// The weights of `Conv`, `ConvTranspose`, `Gemm` or `MatMul`.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let value = at.input(1)?;
        constant(value)?;
        let (run, lanes) = match at.op() {
            "Conv" => {
                let view = ConvView::of(at)?;
                (view.inputs * view.kernel.iter().product::<usize>(), (0..view.outputs).collect())
            }
            "ConvTranspose" => {
                // W[i, o, …]: inputs come in groups, each with its own outputs.
                let view = ConvTransposeView::of(at)?;
                let inputs = (view.inputs / view.group).max(1);
                let channels = |i: usize| (0..view.outputs).map(move |o| i / inputs * view.outputs + o);
                (view.kernel.iter().product(), (0..view.inputs).flat_map(channels).collect())
            }
            "Gemm" | "MatMul" => {
                let (rows, columns) = matrix(value)?;
                if at.is("Gemm") && GemmView::of(at)?.trans_b {
                    (columns, (0..rows).collect())
                } else {
                    (1, (0..columns).collect())
                }
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { value, run, lanes })
    }

    /// With a factor for each output channel; declines, naming the constant, where they do not fit into its type.
    pub fn scaled(&self, scale: &[f64]) -> Result<Tensor, Decline> {
        let factors: Vec<_> = self.lanes.iter().map(|&channel| scale[channel]).collect();
        let scaled = constant(self.value)?.scaled(self.run, &factors);
        finite(scaled.map_err(|_| Decline::Mismatch)?, self.value.name())
    }
}

/// A node that is linear in its first input, with constant weights.
struct Linear<'g> {
    /// The node as it can take a bias.
    node: Node,
    weight: Weight<'g>,
    bias: Option<ValueRef<'g>>,
    /// Factor of the bias.
    beta: f64,
    channels: usize,
}

/// Axis of the output along which the channels lie.
const CHANNELS: usize = 1;

impl<'g> Linear<'g> {
    fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let weight = Weight::of(at)?;
        let (mut node, bias) = (at.node().clone(), at.optional(2));
        let (channels, beta) = match at.op() {
            "Conv" => (ConvView::of(at)?.outputs, 1.0),
            "ConvTranspose" => {
                let view = ConvTransposeView::of(at)?;
                (view.outputs * view.group, 1.0)
            }
            "Gemm" => (weight.lanes.len(), if bias.is_some() { GemmView::of(at)?.beta } else { 1.0 }),
            "MatMul" if at.is("MatMul") => {
                // Only of two matrices it is a product that takes a bias.
                expect(at.input(0)?.rank()? == 2 && at.opset() >= 7)?;
                node.op = "Gemm".into();
                (weight.lanes.len(), 1.0)
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { node, weight, bias, beta, channels })
    }
}

fn matrix(weight: ValueRef<'_>) -> Result<(usize, usize), Decline> {
    match weight.constant()?.shape() {
        &[rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(Decline::Mismatch),
    }
}

/// The elements of a constant that broadcasts over `channels` along axis `axis` of a tensor of rank `rank`.
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

/// The number of channels that the producer of `x` puts out, with their axis.
pub(crate) fn channels_of(x: ValueRef<'_>) -> Result<(usize, usize), Decline> {
    // A product of two activations is no place for a scale: nothing to report.
    let producer = x.producer().ok_or(Decline::Mismatch)?;
    expect(producer.input(1)?.is_constant())?;
    let linear = Linear::of(producer)?;
    Ok((linear.channels, CHANNELS))
}
