//! What follows a convolution or matrix product channel by channel goes into its weights.

use crate::spell::Spell;
use pare_graph::{
    At, Attribute, DataType, Decline, Node, Patch, Ref, Tensor, Wired, expect,
    ops::{ConvTransposeView, ConvView, GemmView},
};

/// `y = scale·x + shift`, for each channel.
pub(crate) struct Affine {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Affine {
    fn scales(&self) -> bool {
        self.scale.iter().any(|&s| s != 1.0)
    }
}

/// Fold `y = affine(x)`, which the node `at` computes along axis `axis` of `x`, into the node that makes `x`.
pub(crate) fn fold(at: At<'_>, x: Wired<'_>, affine: &Affine, axis: usize) -> Result<Patch, Decline> {
    fold_before(at, x, None, affine, axis)
}

/// The same where the node `at` does so after a view of `x`, which then makes `y`.
pub(crate) fn fold_before(
    at: At<'_>,
    x: Wired<'_>,
    view: Option<At<'_>>,
    affine: &Affine,
    axis: usize,
) -> Result<Patch, Decline> {
    let linear = x.maker().ok_or(Decline::Mismatch)?;
    let parts = Linear::of(linear)?;
    expect(parts.axis == axis && parts.channels == affine.scale.len())?;
    x.sole_use()?;
    linear.output()?;
    let rounds = |t: &Tensor| {
        matches!(t.dtype(), DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
    };
    let weight = constant(parts.weight)?;
    expect(rounds(weight))?;
    let mut patch = Patch::at(at);
    let mut inputs: Vec<Option<Ref>> = linear.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    let (y, mut node) = (at.output()?, parts.node);
    if affine.scales() {
        only_here(parts.weight)?;
        let mut elements = weight.to_f64().ok_or(Decline::Mismatch)?;
        let channel = &parts.channel_of;
        elements.iter_mut().enumerate().for_each(|(i, w)| *w *= affine.scale[channel(i)]);
        let scaled = rounded(weight.dtype(), weight.shape(), &elements, parts.weight.name())?;
        inputs[1] = Some(renewed(at, &mut patch, parts.weight, scaled));
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
        let hint = parts.bias.map_or_else(|| format!("{}_bias", x.name()), |b| b.name().to_owned());
        let tensor = rounded(weight.dtype(), &[parts.channels], &bias, &hint)?;
        inputs.resize(3, None);
        inputs[2] = Some(
            match parts
                .bias
                .filter(|b| b.sole_use().is_ok() && b.fixed_shape().is_ok_and(|s| s == tensor.shape()))
            {
                Some(bias) => renewed(at, &mut patch, bias, tensor),
                None => named(at, &mut patch, &hint, tensor),
            },
        );
        if parts.beta != 1.0 {
            node.attributes.insert("beta".into(), Attribute::Float(1.0));
        }
    } else if node.op == "Gemm" && linear.is("MatMul") {
        node = linear.node().clone();
    }
    let last = view.map_or(y.name(), |_| x.name());
    let mut made = patch.node_with(node, &inputs, &[Some(last)]);
    if let Some(view) = view {
        view.output()?.sole_use()?;
        let mut inputs: Vec<Option<Ref>> = view.inputs().into_iter().map(|i| i.map(Into::into)).collect();
        inputs[0] = made[0];
        made = patch.node_with(view.node().clone(), &inputs, &[Some(y.name())]);
    }
    patch.replace(y, made[0].ok_or(Decline::Mismatch)?);
    Ok(patch)
}

fn constant(value: Wired<'_>) -> Result<&Tensor, Decline> {
    value.constant().map_err(|decline| match decline {
        Decline::Mismatch => Decline::because(format!("`{}` is not constant", value.name())),
        reason @ Decline::Because(_) => reason,
    })
}

/// A weight that others need would have to stay beside its changed copy, and the file would grow.
fn only_here(weight: Wired<'_>) -> Result<(), Decline> {
    weight.sole_use()?;
    match weight.maker().filter(|at| at.is("Identity")) {
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
    let tensor = Tensor::from_f64(dtype, shape, values).map_err(|_| Decline::Mismatch)?;
    let finite = tensor.to_f64().is_some_and(|v| v.iter().all(|x| x.is_finite()));
    let why = || Decline::because(format!("`{name}` would hold what {dtype} cannot"));
    finite.then_some(tensor).ok_or_else(why)
}

/// A changed constant that takes the place and name of one that nobody else uses.
fn renewed(at: At<'_>, patch: &mut Patch, old: Wired<'_>, tensor: Tensor) -> Ref {
    let new = named(at, patch, old.name(), tensor);
    patch.replace(old, new);
    new
}

/// A new constant.
pub(crate) fn named(at: At<'_>, patch: &mut Patch, name: &str, tensor: Tensor) -> Ref {
    if at.graph.is_function {
        return Spell::new(at.graph, patch, name).constant("folded", tensor);
    }
    patch.constant(name, tensor)
}

/// A node that is linear in its first input, with constant weights.
struct Linear<'g> {
    /// The node as it can take a bias.
    node: Node,
    weight: Wired<'g>,
    bias: Option<Wired<'g>>,
    /// Factor of the bias.
    beta: f64,
    channels: usize,
    /// Axis of the output along which the channels lie.
    axis: usize,
    /// The output channel that an element of the weight belongs to.
    channel_of: Box<dyn Fn(usize) -> usize>,
}

impl<'g> Linear<'g> {
    fn of(at: At<'g>) -> Result<Self, Decline> {
        let weight = at.input(1)?;
        constant(weight)?;
        let new = |channels, axis, channel_of| Self {
            node: at.node().clone(),
            weight,
            bias: at.optional(2),
            beta: 1.0,
            channels,
            axis,
            channel_of,
        };
        match at.op() {
            "Conv" => {
                let view = ConvView::of(at)?;
                let each = view.inputs * view.kernel.iter().product::<usize>();
                Ok(new(view.outputs, 1, Box::new(move |i| i / each.max(1))))
            }
            "ConvTranspose" => {
                // W[i, o, …]: inputs come in groups, each with its own outputs.
                let view = ConvTransposeView::of(at)?;
                let (taps, outputs) = (view.kernel.iter().product::<usize>().max(1), view.outputs.max(1));
                let inputs = (view.inputs / view.group).max(1);
                let channel = move |i| {
                    let (input, output) = (i / taps / outputs, i / taps % outputs);
                    input / inputs * outputs + output
                };
                Ok(new(view.outputs * view.group, 1, Box::new(channel)))
            }
            "Gemm" => {
                let view = GemmView::of(at)?;
                let (rows, columns) = matrix(weight)?;
                let beta = if at.optional(2).is_some() { view.beta } else { 1.0 };
                let along: Box<dyn Fn(usize) -> usize> = if view.trans_b {
                    Box::new(move |i| i / columns)
                } else {
                    Box::new(move |i| i % columns)
                };
                Ok(Self { beta, ..new(if view.trans_b { rows } else { columns }, 1, along) })
            }
            "MatMul" if at.is("MatMul") => {
                let (_, columns) = matrix(weight)?;
                // Only of two matrices it is a product that takes a bias.
                expect(at.input(0)?.rank()? == 2 && at.opset() >= 7)?;
                let mut node = at.node().clone();
                node.op = "Gemm".into();
                Ok(Self { node, ..new(columns, 1, Box::new(move |i| i % columns)) })
            }
            _ => Err(Decline::Mismatch),
        }
    }
}

fn matrix(weight: Wired<'_>) -> Result<(usize, usize), Decline> {
    match weight.constant()?.shape() {
        &[rows, columns] if rows > 0 && columns > 0 => Ok((rows, columns)),
        _ => Err(Decline::Mismatch),
    }
}

/// The elements of a constant that broadcasts over `channels` along axis `axis` of a tensor of rank `rank`.
pub(crate) fn per_channel(
    c: Wired<'_>,
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

/// The number of channels that the maker of `x` puts out, with their axis.
pub(crate) fn channels_of(x: Wired<'_>) -> Result<(usize, usize), Decline> {
    // A product of two activations is no place for a scale: nothing to report.
    let maker = x.maker().ok_or(Decline::Mismatch)?;
    expect(maker.input(1)?.is_constant())?;
    let linear = Linear::of(maker)?;
    Ok((linear.channels, linear.axis))
}
