//! A view of nodes as linear layers.

use super::{
    axis::{Axis, Border, gcd},
    join::{self, Join},
    kernel::{Kernel, transpose},
    outline::{Offset, Outline},
};
use crate::analysis::fusions::is_fused;
use ndarray::Array3;
use pare_graph::{
    DataType, Decline, Dim, NodeRef, Tensor, ValueRef, expect,
    ops::{AffineView, ConvView, GemmView, PadMode, PadView, PoolView, ReshapeView},
};

/// The position of the channel axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Axis 1, followed by this many spatial axes, as in `Conv`.
    Spatial(usize),
    /// The last axis, as in `MatMul`.
    Rows,
}

/// The layouts of a layer's input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layouts {
    pub input: Layout,
    pub output: Layout,
}

impl Layouts {
    /// The same layout for input and output.
    fn both(layout: Layout) -> Self {
        Self { input: layout, output: layout }
    }
}

/// One or more nodes that compute a linear layer.
#[derive(Clone)]
pub struct LinearLayer<'g> {
    /// The producer of the output.
    pub at: NodeRef<'g>,
    /// The input.
    pub input: ValueRef<'g>,
    /// The layer without its weights. A matrix over a flattened input has one tap per position.
    pub outline: Outline,
    /// The channel axes of input and output.
    pub layouts: Layouts,
    /// The weights.
    pub weights: LayerWeights<'g>,
}

/// The weights of a layer, by kind.
#[derive(Clone)]
pub enum LayerWeights<'g> {
    /// `Conv`.
    Conv { weight: &'g Tensor, bias: Vec<f64> },
    /// `Gemm` or `MatMul`; with `output_first`, the matrix is `[outputs, inputs]`.
    Matrix { weight: &'g Tensor, factor: f64, bias: Vec<f64>, output_first: bool },
    /// `scale·x + shift` per channel; with padding, `Pad`.
    Diagonal { scale: Vec<f64>, shift: Vec<f64> },
    /// `AveragePool`.
    Average,
    /// `Add`, `Sum` or `Concat` of layers over one input.
    Join(Join<'g>),
}

/// The largest nesting of joins.
pub const MAX_DEPTH: usize = 4;
/// The largest length of a chain.
pub const MAX_LENGTH: usize = 64;

impl<'g> LinearLayer<'g> {
    /// The layer that produces `value`.
    pub fn producing(value: ValueRef<'g>, depth: usize) -> Result<Self, Decline> {
        Self::of(value.producer().ok_or(Decline::Mismatch)?, depth)
    }

    /// The node as a layer.
    pub fn of(at: NodeRef<'g>, depth: usize) -> Result<Self, Decline> {
        expect(at.node().domain().is_empty() && !is_fused(at))?;
        let layer = match at.op() {
            "Conv" => conv(at),
            "Gemm" | "MatMul" => matrix(at),
            "BatchNormalization" => batch_norm(at),
            "Add" | "Sub" | "Mul" | "Div" if constant_slot(at).is_some() => elementwise(at),
            "Neg" => elementwise(at),
            "Pad" => pad(at),
            "AveragePool" => average(at),
            "Add" | "Sum" | "Concat" => join::of(at, depth),
            _ => Err(Decline::Mismatch),
        }?;
        expect(layer.outline.axes.iter().all(|a| a.is_valid()) && layer.outline.elements().is_some())?;
        Ok(layer)
    }

    /// Returns true if its input has no other uses.
    pub fn owns_input(&self) -> bool {
        let uses = if let LayerWeights::Join(join) = &self.weights { join.branches.len() } else { 1 };
        self.input.graph.use_count(self.input.id) == uses
    }

    /// The output.
    pub fn output(&self) -> ValueRef<'g> {
        self.at.output().expect("a layer has an output")
    }

    /// Returns true if it is a convolution or matrix product, or a join with one.
    pub fn is_product(&self) -> bool {
        match &self.weights {
            LayerWeights::Conv { .. } | LayerWeights::Matrix { .. } => true,
            LayerWeights::Join(join) => join.layers().any(LinearLayer::is_product),
            LayerWeights::Diagonal { .. } | LayerWeights::Average => false,
        }
    }

    /// The element type of the weights of convolutions and matrix products.
    pub fn dtype(&self) -> Option<DataType> {
        match &self.weights {
            LayerWeights::Conv { weight, .. } | LayerWeights::Matrix { weight, .. } => Some(weight.dtype()),
            LayerWeights::Join(join) => join.layers().find_map(LinearLayer::dtype),
            _ => None,
        }
    }

    /// The sizes of the input's spatial axes, as far as they are known.
    pub fn sizes(&self) -> Vec<Option<usize>> {
        match (self.layouts.input, self.input.shape()) {
            (Layout::Rows, _) => vec![],
            (Layout::Spatial(n), Some(shape)) if shape.len() == n + 2 => {
                shape[2..].iter().map(Dim::size).collect()
            }
            (Layout::Spatial(n), _) => vec![None; n],
        }
    }

    /// The layer with its weights.
    pub fn kernel(&self) -> Result<Kernel, Decline> {
        let o = &self.outline;
        let taps = o.axes.iter().map(|a| a.taps).product();
        let shape = (o.outputs, o.inputs / o.group, taps);
        let filled = |values: Vec<f64>| Array3::from_shape_vec(shape, values).map_err(|_| Decline::Mismatch);
        let kernel = match &self.weights {
            LayerWeights::Conv { weight, bias } => {
                let values = weight.to_f64().ok_or(Decline::Mismatch)?;
                Kernel::new(filled(values)?, o.group, o.axes.clone(), bias.clone())
            }
            LayerWeights::Matrix { weight, factor, bias, output_first } => {
                let mut values = weight.to_f64().ok_or(Decline::Mismatch)?;
                if !output_first {
                    values = transpose(&values, shape.1 * shape.2);
                }
                if *factor != 1.0 {
                    values.iter_mut().for_each(|v| *v *= factor);
                }
                Kernel::new(filled(values)?, 1, o.axes.clone(), bias.clone())
            }
            LayerWeights::Diagonal { scale, shift } => Kernel::diagonal(scale, shift.clone(), o.axes.clone()),
            LayerWeights::Average => Kernel::uniform(o.outputs, 1.0 / taps as f64, o.axes.clone()),
            LayerWeights::Join(join) => join.kernel(self)?,
        };
        Ok(kernel)
    }
}

fn conv(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let view = ConvView::of(at)?;
    let weight = at.input(1)?.constant()?;
    let bias = match at.optional(2) {
        Some(bias) => bias.constant_f64()?,
        None => vec![0.0; view.outputs],
    };
    let spatial = view.kernel.len();
    expect(weight.dtype().is_float() && bias.len() == view.outputs && spatial > 0)?;
    let axes = (0..spatial).map(|i| axis(view.kernel[i], view.strides[i], view.dilations[i], view.pads[i]));
    let outline = Outline {
        outputs: view.outputs,
        inputs: view.inputs.checked_mul(view.group).ok_or(Decline::Mismatch)?,
        group: view.group,
        axes: axes.collect::<Option<_>>().ok_or(Decline::Mismatch)?,
        offset: offset(&bias),
    };
    let layouts = Layouts::both(Layout::Spatial(spatial));
    Ok(LinearLayer {
        at,
        input: at.input(0)?,
        outline,
        layouts,
        weights: LayerWeights::Conv { weight, bias },
    })
}

fn axis(taps: usize, stride: usize, dilation: usize, pads: (i64, i64)) -> Option<Axis> {
    let (before, after) = (usize::try_from(pads.0).ok()?, usize::try_from(pads.1).ok()?);
    let axis = Axis { taps, stride, dilation, before, after };
    axis.is_valid().then_some(axis)
}

fn offset(bias: &[f64]) -> Offset {
    Offset { bias: bias.iter().any(|&b| b != 0.0), ..Offset::default() }
}

fn matrix(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let weight = at.input(1)?.constant()?;
    expect(weight.rank() == 2 && weight.dtype().is_float())?;
    let (mut factor, mut output_first, mut bias) = (1.0, false, None);
    if at.is("Gemm") {
        let view = GemmView::of(at)?;
        expect(!view.trans_a)?;
        (factor, output_first) = (view.alpha, view.trans_b);
        bias = at.optional(2).map(|c| Ok::<_, Decline>((c.constant()?, view.beta))).transpose()?;
    }
    let shape = weight.shape();
    let (outputs, inputs) = if output_first { (shape[0], shape[1]) } else { (shape[1], shape[0]) };
    let bias = match bias {
        Some((c, beta)) => row(c, outputs)?.into_iter().map(|b| b * beta).collect(),
        None => vec![0.0; outputs],
    };
    let outline = Outline { outputs, inputs, group: 1, axes: vec![], offset: offset(&bias) };
    let weights = LayerWeights::Matrix { weight, factor, bias, output_first };
    let layouts = Layouts::both(Layout::Rows);
    let rows = LinearLayer { at, input: at.input(0)?, outline, layouts, weights };
    Ok(over_flattened(&rows).unwrap_or(rows))
}

/// The elements of a tensor that adds one number per column.
fn row(tensor: &Tensor, columns: usize) -> Result<Vec<f64>, Decline> {
    let values = tensor.to_f64().ok_or(Decline::Mismatch)?;
    let is_row = tensor.shape().iter().rev().skip(1).all(|&d| d == 1);
    match values.len() {
        n if n == columns && is_row => Ok(values),
        1 => Ok(vec![values[0]; columns]),
        _ => Err(Decline::Mismatch),
    }
}

/// A matrix over a flattened image, as a convolution whose kernel has the size of the image.
fn over_flattened<'g>(rows: &LinearLayer<'g>) -> Result<LinearLayer<'g>, Decline> {
    rows.input.sole_use()?;
    let flatten = rows.input.producer().ok_or(Decline::Mismatch)?;
    let image = flatten.input(0)?;
    let shape = image.shape().filter(|s| s.len() > 2).ok_or(Decline::Mismatch)?;
    let known: Option<Vec<_>> = shape[1..].iter().map(Dim::size).collect();
    let known = known.ok_or(Decline::Mismatch)?;
    let features = known.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    expect(features == Some(rows.outline.inputs))?;
    match flatten.op() {
        "Flatten" => expect(flatten.is("Flatten") && flatten.int("axis", 1) == 1)?,
        "Reshape" => {
            // If the last of two axes has all features, the first one has the samples.
            let view = ReshapeView::of(flatten)?;
            let features = rows.outline.inputs as i64;
            let kept = match view.target[..] {
                [0, last] => !view.allow_zero && (last == -1 || last == features),
                [_, last] => last == features,
                _ => false,
            };
            expect(kept)?;
        }
        _ => return Err(Decline::Mismatch),
    }
    let axes = known[1..].iter().map(|&taps| Axis { taps, ..Axis::POINT }).collect::<Vec<_>>();
    let layouts = Layouts { input: Layout::Spatial(axes.len()), output: Layout::Rows };
    let outline = Outline { inputs: known[0], axes, ..rows.outline.clone() };
    Ok(LinearLayer { input: image, outline, layouts, ..rows.clone() })
}

/// A layer that does not mix channels.
fn diagonal<'g>(
    at: NodeRef<'g>,
    input: ValueRef<'g>,
    layout: Layout,
    scale: Vec<f64>,
    shift: Vec<f64>,
    axes: Vec<Axis>,
) -> LinearLayer<'g> {
    let channels = scale.len();
    let outline =
        Outline { outputs: channels, inputs: channels, group: channels, axes, offset: offset(&shift) };
    LinearLayer {
        at,
        input,
        outline,
        layouts: Layouts::both(layout),
        weights: LayerWeights::Diagonal { scale, shift },
    }
}

fn points(layout: Layout) -> Vec<Axis> {
    match layout {
        Layout::Spatial(n) => vec![Axis::POINT; n],
        Layout::Rows => vec![],
    }
}

fn batch_norm(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let AffineView { scale, shift } = AffineView::of(at)?;
    let input = at.input(0)?;
    let layout = match input.rank()? {
        2 => Layout::Rows,
        rank => Layout::Spatial(rank.checked_sub(2).ok_or(Decline::Mismatch)?),
    };
    Ok(diagonal(at, input, layout, scale, shift, points(layout)))
}

/// The slot of the constant operand, if exactly one of two is constant.
fn constant_slot(at: NodeRef<'_>) -> Option<usize> {
    let constant = |slot| at.input(slot).is_ok_and(ValueRef::is_constant);
    match (constant(0), constant(1)) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

fn elementwise(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    if at.is("Neg") {
        let input = at.input(0)?;
        let (layout, channels) = scalar_layout(at, input)?;
        return Ok(diagonal(at, input, layout, vec![-1.0; channels], vec![0.0; channels], points(layout)));
    }
    let slot = constant_slot(at).ok_or(Decline::Mismatch)?;
    let (input, constant) = (at.input(1 - slot)?, at.input(slot)?.constant()?);
    expect(constant.dtype().is_float() && at.opset() >= 7)?;
    let rank = input.rank()?;
    expect(constant.rank() <= rank && rank >= 2)?;
    let wide: Vec<_> = (0..constant.rank()).filter(|&i| constant.shape()[i] != 1).collect();
    let (layout, channels) = match wide[..] {
        [] => scalar_layout(at, input)?,
        [axis] => {
            let (axis, channels) = (axis + rank - constant.rank(), constant.shape()[axis]);
            // The constant must not broadcast the input.
            expect(input.shape().and_then(|s| s[axis].size()) == Some(channels))?;
            match axis {
                _ if axis == rank - 1 && (rank == 2 || axis != 1) => (Layout::Rows, channels),
                1 if rank > 2 => (Layout::Spatial(rank - 2), channels),
                _ => return Err(Decline::Mismatch),
            }
        }
        _ => return Err(Decline::Mismatch),
    };
    let values = constant.to_f64().ok_or(Decline::Mismatch)?;
    let values = if values.len() == 1 { vec![values[0]; channels] } else { values };
    let (one, zero) = (vec![1.0; channels], vec![0.0; channels]);
    let each = |f: fn(f64) -> f64| values.iter().copied().map(f).collect::<Vec<_>>();
    let (scale, shift) = match (at.op(), slot) {
        ("Mul", _) => (values, zero),
        ("Add", _) => (one, values),
        ("Sub", 1) => (one, each(|v| -v)),
        ("Sub", _) => (vec![-1.0; channels], values),
        ("Div", 1) => (each(|v| 1.0 / v), zero),
        _ => return Err(Decline::Mismatch),
    };
    expect(scale.iter().all(|s| s.is_finite()))?;
    Ok(diagonal(at, input, layout, scale, shift, points(layout)))
}

/// The layout and the number of channels of an operation that is the same for all channels, from the layers
/// around it.
fn scalar_layout<'g>(at: NodeRef<'g>, input: ValueRef<'g>) -> Result<(Layout, usize), Decline> {
    let shape = input.shape().ok_or(Decline::Mismatch)?;
    let layout_of = |at: NodeRef<'_>| match at.op() {
        "Gemm" | "MatMul" => Some(Layout::Rows),
        "Conv" | "BatchNormalization" | "AveragePool" => Some(Layout::Spatial(shape.len().checked_sub(2)?)),
        _ => None,
    };
    let mut above = input.producer();
    let mut below = at.output()?.sole_user().ok();
    let mut layout = if shape.len() == 2 { Some(Layout::Rows) } else { None };
    for _ in 0..MAX_DEPTH {
        layout = layout.or_else(|| above.and_then(layout_of)).or_else(|| below.and_then(layout_of));
        above = above.and_then(|at| at.input(constant_slot(at).map_or(0, |slot| 1 - slot)).ok()?.producer());
        below = below.and_then(|at| at.output().ok()?.sole_user().ok());
    }
    let layout = layout.ok_or(Decline::Mismatch)?;
    let axis = match layout {
        Layout::Rows => shape.len() - 1,
        Layout::Spatial(_) => 1,
    };
    Ok((layout, channels(input, axis)?))
}

/// The largest number of channels; larger than any vocabulary. Sizes declared in the file are not trusted
/// beyond it.
const MAX_CHANNELS: usize = 1 << 22;

/// The size of the channel axis.
fn channels(value: ValueRef<'_>, axis: usize) -> Result<usize, Decline> {
    let size = value.shape().and_then(|s| s.get(axis)?.size());
    size.filter(|&n| n <= MAX_CHANNELS).ok_or(Decline::Mismatch)
}

fn pad(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let view = PadView::of(at)?;
    let input = at.input(0)?;
    let channels = channels(input, 1)?;
    expect(view.mode == PadMode::Constant(0.0) && view.pads.len() > 2 && view.pads[..2] == [(0, 0), (0, 0)])?;
    let axes: Option<Vec<_>> = view.pads[2..].iter().map(|&pads| axis(1, 1, 1, pads)).collect();
    let axes = axes.ok_or(Decline::Mismatch)?;
    let layout = Layout::Spatial(axes.len());
    Ok(diagonal(at, input, layout, vec![1.0; channels], vec![0.0; channels], axes))
}

fn average(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let view = PoolView::of(at)?;
    let input = at.input(0)?;
    let channels = channels(input, 1)?;
    let spatial = view.kernel.len();
    let axes = (0..spatial).map(|i| axis(view.kernel[i], view.strides[i], view.dilations[i], view.pads[i]));
    let axes: Vec<_> = axes.collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    // An average that does not count padding has other weights at the border.
    let padded = axes.iter().any(|a| a.before + a.after > 0);
    expect(spatial > 0 && (view.counts_padding || !padded))?;
    if view.ceil {
        let sizes: Option<Vec<_>> = input.shape().and_then(|s| s.get(2..)?.iter().map(Dim::size).collect());
        let sizes = sizes.filter(|s| s.len() == spatial).ok_or(Decline::Mismatch)?;
        let divides = |(a, n): (&Axis, &usize)| {
            (n + a.before + a.after).checked_sub(a.extent()).is_some_and(|room| room % a.stride == 0)
        };
        expect(axes.iter().zip(&sizes).all(divides))?;
    }
    let outline =
        Outline { outputs: channels, inputs: channels, group: channels, axes, offset: Offset::default() };
    let layouts = Layouts::both(Layout::Spatial(spatial));
    Ok(LinearLayer { at, input, outline, layouts, weights: LayerWeights::Average })
}

/// The chain of layers that produces `value`, whose other values have no other uses.
pub fn chain_producing(value: ValueRef<'_>, depth: usize) -> Vec<LinearLayer<'_>> {
    let mut layers = vec![];
    let mut above = value;
    while layers.len() < MAX_LENGTH {
        let owned = layers.last().is_none_or(LinearLayer::owns_input);
        let Some(layer) = owned.then(|| LinearLayer::producing(above, depth).ok()).flatten() else { break };
        if layers.last().is_some_and(|below: &LinearLayer<'_>| below.layouts.input != layer.layouts.output) {
            break;
        }
        above = layer.input;
        layers.push(layer);
    }
    layers.reverse();
    layers
}

/// The outline with `axes` axes. After a flattened image it has none, which is equivalent to one position on
/// each.
pub fn lifted(outline: &Outline, axes: usize) -> Outline {
    let mut outline = outline.clone();
    if outline.axes.is_empty() {
        outline.axes = vec![Axis::POINT; axes];
    }
    outline
}

/// The outline of the composite of a chain, and its border.
pub fn composite(layers: &[LinearLayer<'_>]) -> Option<(Outline, Border)> {
    let (first, rest) = layers.split_first()?;
    let sizes = first.sizes();
    let start = (first.outline.clone(), Border::Clear);
    rest.iter().try_fold(start, |(composite, border), layer| {
        let next = lifted(&layer.outline, composite.axes.len());
        (border != Border::Seam).then(|| composite.then(&next, &sizes).ok()).flatten()
    })
}

/// The composite of a chain without seams.
pub fn composite_kernel(layers: &[LinearLayer<'_>]) -> Result<Kernel, Decline> {
    let (first, rest) = layers.split_first().ok_or(Decline::Mismatch)?;
    let sizes = first.sizes();
    rest.iter().try_fold(first.kernel()?, |composite, layer| {
        let next = lifted_kernel(layer.kernel()?, composite.axes.len());
        composite.then(&next, &sizes).map_err(|_| Decline::Mismatch)
    })
}

/// As [`lifted`], with weights.
pub fn lifted_kernel(mut kernel: Kernel, axes: usize) -> Kernel {
    if kernel.axes.is_empty() {
        kernel.axes = vec![Axis::POINT; axes];
    }
    kernel
}

/// The greatest common divisor of the numbers of groups.
pub fn common_group<'o>(outlines: impl IntoIterator<Item = &'o Outline>) -> usize {
    outlines.into_iter().map(|o| o.group).fold(0, gcd)
}
