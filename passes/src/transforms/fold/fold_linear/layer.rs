//! Nodes read as linear layers.

use super::{
    axis::{Axis, Border, gcd},
    join::{self, Join},
    kernel::{Kernel, turned},
    outline::{Offset, Outline},
};
use crate::analysis::patterns::ends_gelu;
use ndarray::Array3;
use pare_graph::{
    DataType, Decline, Dim, NodeRef, Tensor, ValueRef, expect,
    ops::{AffineView, ConvView, GemmView, PadMode, PadView, PoolView, ReshapeView},
};

/// Where a layer has its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// On axis 1, with so many spatial axes behind it, as `Conv` has them.
    Window(usize),
    /// On the last axis, as `MatMul` has them.
    Rows,
}

/// A node, or several, that compute one linear layer.
#[derive(Clone)]
pub struct Layer<'g> {
    /// The node that makes the output.
    pub at: NodeRef<'g>,
    /// What it is applied to.
    pub input: ValueRef<'g>,
    /// The layer without its weights. A matrix over a flattened input has one tap for each place of it.
    pub outline: Outline,
    /// Where the input has its channels, and where the output.
    pub forms: (Form, Form),
    /// Where its weights come from.
    pub part: Part<'g>,
}

/// Where a layer's weights come from.
#[derive(Clone)]
pub enum Part<'g> {
    /// `Conv`.
    Conv { weight: &'g Tensor, bias: Vec<f64> },
    /// `Gemm` or `MatMul`; `output_first` tells how the matrix is stored.
    Matrix { weight: &'g Tensor, factor: f64, bias: Vec<f64>, output_first: bool },
    /// One factor and summand for each channel; with padding, `Pad`.
    Diagonal { scale: Vec<f64>, shift: Vec<f64> },
    /// `AveragePool`.
    Average,
    /// `Add` or `Concat` of layers over one input.
    Join(Join<'g>),
}

/// How deep joins within joins are read, and how long chains.
pub const DEPTH: usize = 4;
pub const LENGTH: usize = 64;

impl<'g> Layer<'g> {
    /// The layer that makes `value`, if its producer is one.
    pub fn making(value: ValueRef<'g>, depth: usize) -> Result<Self, Decline> {
        Self::of(value.producer().ok_or(Decline::Mismatch)?, depth)
    }

    /// The node as a layer.
    pub fn of(at: NodeRef<'g>, depth: usize) -> Result<Self, Decline> {
        expect(at.node().domain().is_empty() && !ends_gelu(at))?;
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
        expect(layer.outline.axes.iter().all(|a| a.is_sane()) && layer.outline.elements().is_some())?;
        Ok(layer)
    }

    /// Whether nothing but this layer uses its input.
    pub fn owns_input(&self) -> bool {
        let uses = if let Part::Join(join) = &self.part { join.branches.len() } else { 1 };
        self.input.graph.use_count(self.input.id) == uses
    }

    /// Its only output.
    pub fn output(&self) -> ValueRef<'g> {
        self.at.output().expect("a node without output was not read as a layer")
    }

    /// Whether it multiplies channels, as convolutions and matrices do.
    pub fn is_product(&self) -> bool {
        match &self.part {
            Part::Conv { .. } | Part::Matrix { .. } => true,
            Part::Join(join) => join.layers().any(Layer::is_product),
            Part::Diagonal { .. } | Part::Average => false,
        }
    }

    /// Element type of the weights it multiplies with, if it has any.
    pub fn dtype(&self) -> Option<DataType> {
        match &self.part {
            Part::Conv { weight, .. } | Part::Matrix { weight, .. } => Some(weight.dtype()),
            Part::Join(join) => join.layers().find_map(Layer::dtype),
            _ => None,
        }
    }

    /// Sizes of the input's spatial axes, as far as they are known.
    pub fn sizes(&self) -> Vec<Option<usize>> {
        match (self.forms.0, self.input.shape()) {
            (Form::Rows, _) => vec![],
            (Form::Window(n), Some(shape)) if shape.len() == n + 2 => {
                shape[2..].iter().map(Dim::size).collect()
            }
            (Form::Window(n), _) => vec![None; n],
        }
    }

    /// The layer with its weights.
    pub fn kernel(&self) -> Result<Kernel, Decline> {
        let o = &self.outline;
        let taps = o.axes.iter().map(|a| a.taps).product();
        let shape = (o.outputs, o.inputs / o.group, taps);
        let filled = |values: Vec<f64>| Array3::from_shape_vec(shape, values).map_err(|_| Decline::Mismatch);
        let kernel = match &self.part {
            Part::Conv { weight, bias } => {
                let values = weight.to_f64().ok_or(Decline::Mismatch)?;
                Kernel::new(filled(values)?, o.group, o.axes.clone(), bias.clone())
            }
            Part::Matrix { weight, factor, bias, output_first } => {
                let mut values = weight.to_f64().ok_or(Decline::Mismatch)?;
                if !output_first {
                    values = turned(&values, shape.1 * shape.2);
                }
                if *factor != 1.0 {
                    values.iter_mut().for_each(|v| *v *= factor);
                }
                Kernel::new(filled(values)?, 1, o.axes.clone(), bias.clone())
            }
            Part::Diagonal { scale, shift } => Kernel::diagonal(scale, shift.clone(), o.axes.clone()),
            Part::Average => Kernel::uniform(o.outputs, 1.0 / taps as f64, o.axes.clone()),
            Part::Join(join) => join.kernel(self)?,
        };
        Ok(kernel)
    }
}

fn conv(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
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
    let forms = (Form::Window(spatial), Form::Window(spatial));
    Ok(Layer { at, input: at.input(0)?, outline, forms, part: Part::Conv { weight, bias } })
}

fn axis(taps: usize, stride: usize, dilation: usize, pads: (i64, i64)) -> Option<Axis> {
    let (before, after) = (usize::try_from(pads.0).ok()?, usize::try_from(pads.1).ok()?);
    let axis = Axis { taps, stride, dilation, before, after };
    axis.is_sane().then_some(axis)
}

fn offset(bias: &[f64]) -> Offset {
    Offset { bias: bias.iter().any(|&b| b != 0.0), ..Offset::default() }
}

fn matrix(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
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
    let part = |bias| Part::Matrix { weight, factor, bias, output_first };
    let outline = Outline { outputs, inputs, group: 1, axes: vec![], offset: offset(&bias) };
    let rows = Layer { at, input: at.input(0)?, outline, forms: (Form::Rows, Form::Rows), part: part(bias) };
    Ok(over_flattened(&rows).unwrap_or(rows))
}

/// The elements of a tensor that adds one number to each column.
fn row(tensor: &Tensor, columns: usize) -> Result<Vec<f64>, Decline> {
    let values = tensor.to_f64().ok_or(Decline::Mismatch)?;
    let is_row = tensor.shape().iter().rev().skip(1).all(|&d| d == 1);
    match values.len() {
        n if n == columns && is_row => Ok(values),
        1 => Ok(vec![values[0]; columns]),
        _ => Err(Decline::Mismatch),
    }
}

/// A matrix over a flattened image is a convolution whose kernel is as large as the image.
fn over_flattened<'g>(rows: &Layer<'g>) -> Result<Layer<'g>, Decline> {
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
            // All features on the last of two axes leaves the samples on the first.
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
    let forms = (Form::Window(axes.len()), Form::Rows);
    let outline = Outline { inputs: known[0], axes, ..rows.outline.clone() };
    Ok(Layer { input: image, outline, forms, ..rows.clone() })
}

/// A layer without products between channels.
fn diagonal<'g>(
    at: NodeRef<'g>,
    input: ValueRef<'g>,
    form: Form,
    scale: Vec<f64>,
    shift: Vec<f64>,
    axes: Vec<Axis>,
) -> Layer<'g> {
    let channels = scale.len();
    let outline =
        Outline { outputs: channels, inputs: channels, group: channels, axes, offset: offset(&shift) };
    Layer { at, input, outline, forms: (form, form), part: Part::Diagonal { scale, shift } }
}

fn points(form: Form) -> Vec<Axis> {
    match form {
        Form::Window(n) => vec![Axis::POINT; n],
        Form::Rows => vec![],
    }
}

fn batch_norm(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
    let AffineView { scale, shift } = AffineView::of(at)?;
    let input = at.input(0)?;
    let form = match input.rank()? {
        2 => Form::Rows,
        rank => Form::Window(rank.checked_sub(2).ok_or(Decline::Mismatch)?),
    };
    Ok(diagonal(at, input, form, scale, shift, points(form)))
}

/// The operand that is constant, if exactly one of two is.
fn constant_slot(at: NodeRef<'_>) -> Option<usize> {
    let constant = |slot| at.input(slot).is_ok_and(ValueRef::is_constant);
    match (constant(0), constant(1)) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

fn elementwise(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
    if at.is("Neg") {
        let input = at.input(0)?;
        let (form, channels) = scalar_form(at, input)?;
        return Ok(diagonal(at, input, form, vec![-1.0; channels], vec![0.0; channels], points(form)));
    }
    let slot = constant_slot(at).ok_or(Decline::Mismatch)?;
    let (input, constant) = (at.input(1 - slot)?, at.input(slot)?.constant()?);
    expect(constant.dtype().is_float() && at.opset() >= 7)?;
    let rank = input.rank()?;
    expect(constant.rank() <= rank && rank >= 2)?;
    let wide: Vec<_> = (0..constant.rank()).filter(|&i| constant.shape()[i] != 1).collect();
    let (form, channels) = match wide[..] {
        [] => scalar_form(at, input)?,
        [axis] => {
            let (place, channels) = (axis + rank - constant.rank(), constant.shape()[axis]);
            // The data must not be what is stretched.
            expect(input.shape().and_then(|s| s[place].size()) == Some(channels))?;
            match place {
                _ if place == rank - 1 && (rank == 2 || place != 1) => (Form::Rows, channels),
                1 if rank > 2 => (Form::Window(rank - 2), channels),
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
    Ok(diagonal(at, input, form, scale, shift, points(form)))
}

/// One number for all elements does not tell where the channels are: the layers around it do.
fn scalar_form<'g>(at: NodeRef<'g>, input: ValueRef<'g>) -> Result<(Form, usize), Decline> {
    let shape = input.shape().ok_or(Decline::Mismatch)?;
    let form_of = |at: NodeRef<'_>| match at.op() {
        "Gemm" | "MatMul" => Some(Form::Rows),
        "Conv" | "BatchNormalization" | "AveragePool" => Some(Form::Window(shape.len().checked_sub(2)?)),
        _ => None,
    };
    let mut above = input.producer();
    let mut below = at.output()?.sole_user().ok();
    let mut form = if shape.len() == 2 { Some(Form::Rows) } else { None };
    for _ in 0..DEPTH {
        form = form.or_else(|| above.and_then(form_of)).or_else(|| below.and_then(form_of));
        above = above.and_then(|at| at.input(constant_slot(at).map_or(0, |slot| 1 - slot)).ok()?.producer());
        below = below.and_then(|at| at.output().ok()?.sole_user().ok());
    }
    let place = match form.ok_or(Decline::Mismatch)? {
        Form::Rows => shape.len() - 1,
        Form::Window(_) => 1,
    };
    Ok((form.ok_or(Decline::Mismatch)?, channels(input, place)?))
}

/// More than vocabularies have: a number for each is made here on the word of the file alone.
const MAX_CHANNELS: usize = 1 << 22;

/// The size of this axis, where the channels are.
fn channels(value: ValueRef<'_>, place: usize) -> Result<usize, Decline> {
    let size = value.shape().and_then(|s| s.get(place)?.size());
    size.filter(|&n| n <= MAX_CHANNELS).ok_or(Decline::Mismatch)
}

fn pad(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
    let view = PadView::of(at)?;
    let input = at.input(0)?;
    let channels = channels(input, 1)?;
    expect(view.mode == PadMode::Constant(0.0) && view.pads.len() > 2 && view.pads[..2] == [(0, 0), (0, 0)])?;
    let axes: Option<Vec<_>> = view.pads[2..].iter().map(|&pads| axis(1, 1, 1, pads)).collect();
    let axes = axes.ok_or(Decline::Mismatch)?;
    let form = Form::Window(axes.len());
    Ok(diagonal(at, input, form, vec![1.0; channels], vec![0.0; channels], axes))
}

fn average(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
    let view = PoolView::of(at)?;
    let input = at.input(0)?;
    let channels = channels(input, 1)?;
    let spatial = view.kernel.len();
    let axes = (0..spatial).map(|i| axis(view.kernel[i], view.strides[i], view.dilations[i], view.pads[i]));
    let axes: Vec<_> = axes.collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    // Without its padding an average has other weights at the border.
    let padded = axes.iter().any(|a| a.before + a.after > 0);
    expect(spatial > 0 && (view.counts_padding || !padded))?;
    if view.ceil {
        let sizes: Option<Vec<_>> = input.shape().and_then(|s| s.get(2..)?.iter().map(Dim::size).collect());
        let sizes = sizes.filter(|s| s.len() == spatial).ok_or(Decline::Mismatch)?;
        let whole = |(a, n): (&Axis, &usize)| {
            (n + a.before + a.after).checked_sub(a.extent()).is_some_and(|room| room % a.stride == 0)
        };
        expect(axes.iter().zip(&sizes).all(whole))?;
    }
    let outline =
        Outline { outputs: channels, inputs: channels, group: channels, axes, offset: Offset::default() };
    let forms = (Form::Window(spatial), Form::Window(spatial));
    Ok(Layer { at, input, outline, forms, part: Part::Average })
}

/// The chain of layers that makes `value` and nothing else.
pub fn chain_making(value: ValueRef<'_>, depth: usize) -> Vec<Layer<'_>> {
    let mut layers = vec![];
    let mut above = value;
    while layers.len() < LENGTH {
        let owned = layers.last().is_none_or(Layer::owns_input);
        let Some(layer) = owned.then(|| Layer::making(above, depth).ok()).flatten() else { break };
        if layers.last().is_some_and(|below: &Layer<'_>| below.forms.0 != layer.forms.1) {
            break;
        }
        above = layer.input;
        layers.push(layer);
    }
    layers.reverse();
    layers
}

/// The outline with as many axes as are wanted: behind a flattened image there are none, which is one place on each.
pub fn lifted(outline: &Outline, axes: usize) -> Outline {
    let mut outline = outline.clone();
    if outline.axes.is_empty() {
        outline.axes = vec![Axis::POINT; axes];
    }
    outline
}

/// The composite of a chain of layers, without its weights; with what is met at the border of the last one.
pub fn composite(layers: &[Layer<'_>]) -> Option<(Outline, Border)> {
    let (first, rest) = layers.split_first()?;
    let sizes = first.sizes();
    let start = (first.outline.clone(), Border::Clear);
    rest.iter().try_fold(start, |(whole, border), layer| {
        let next = lifted(&layer.outline, whole.axes.len());
        (border != Border::Seam).then(|| whole.then(&next, &sizes).ok()).flatten()
    })
}

/// The composite of a chain of layers without seams.
pub fn composite_kernel(layers: &[Layer<'_>]) -> Result<Kernel, Decline> {
    let (first, rest) = layers.split_first().ok_or(Decline::Mismatch)?;
    let sizes = first.sizes();
    rest.iter().try_fold(first.kernel()?, |whole, layer| {
        whole.then(&lifted_kernel(layer.kernel()?, whole.axes.len()), &sizes).map_err(|_| Decline::Mismatch)
    })
}

/// [`lifted`] for a layer with its weights.
pub fn lifted_kernel(mut kernel: Kernel, axes: usize) -> Kernel {
    if kernel.axes.is_empty() {
        kernel.axes = vec![Axis::POINT; axes];
    }
    kernel
}

/// The greatest divisor of all numbers of groups.
pub fn common_group<'o>(outlines: impl IntoIterator<Item = &'o Outline>) -> usize {
    outlines.into_iter().map(|o| o.group).fold(0, gcd)
}
