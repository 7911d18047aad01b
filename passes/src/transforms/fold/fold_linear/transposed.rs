//! Layers at single places before and behind `ConvTranspose`.
//!
//! A transposed convolution spreads each input over the outputs `s·v + d·a − before`, tap by tap through a matrix
//! between channels. What mixes channels place by place multiplies into these matrices from either side, whatever
//! stride, padding and dilation are. A bias before it is another matter: how many taps meet differs from output to
//! output.

use super::{
    axis::Axis,
    emit::{Writer, name},
    kernel::Kernel,
    layer::{Layer, Part},
    work::ratio,
};
use ndarray::Array3;
use pare_graph::{Decline, NodeRef, Patch, expect, ops::ConvTransposeView};

/// `ConvTranspose`, and the layer that uses it or that it uses.
pub fn pair(at: NodeRef<'_>, always: bool) -> Result<Patch, Decline> {
    if at.is("ConvTranspose") {
        let layer = Layer::making(at.input(0)?, 0)?;
        return composed(at, &layer, at, true, always);
    }
    let layer = Layer::of(at, 0)?;
    let transposed = layer.input.produced_by("ConvTranspose")?;
    composed(transposed, &layer, at, false, always)
}

fn composed<'g>(
    transposed: NodeRef<'g>,
    layer: &Layer<'g>,
    last: NodeRef<'g>,
    before: bool,
    always: bool,
) -> Result<Patch, Decline> {
    let view = ConvTransposeView::of(transposed)?;
    let product = matches!(layer.part, Part::Conv { .. });
    expect(product || matches!(layer.part, Part::Diagonal { .. }))?;
    let point = layer.outline.axes.iter().all(|&a| a == Axis::POINT);
    expect(point && layer.outline.axes.len() == view.kernel.len() && !view.kernel.is_empty())?;
    let between = if before { layer.output() } else { transposed.output()? };
    between.sole_use()?;
    let (mut first, mut second) = (layer.kernel()?, spread(transposed, &view)?);
    if !before {
        std::mem::swap(&mut first, &mut second);
    }
    let pair = if before { [layer.at, transposed] } else { [transposed, layer.at] };
    let described = pair.map(name).join("∘");
    if before && first.bias.iter().any(|&b| b != 0.0) {
        return Err(Decline::because(format!("{described}: the bias would differ from place to place")));
    }
    // Multiply-accumulates at each place of the input of `ConvTranspose`: a layer behind works at Π s of them.
    let taps = view.kernel.iter().product::<usize>() as u64;
    let macs = |k: &Kernel| (k.outputs() * k.inputs() / k.group) as u64;
    let spread_over = view.strides.iter().product::<usize>() as u64;
    let (one, two) = if before {
        (macs(&first), macs(&second) * taps)
    } else {
        (macs(&first) * taps, macs(&second) * spread_over)
    };
    let whole = first.within(&second);
    let after = macs(&whole) * taps;
    if product && after > one + two && !always {
        return Err(Decline::because(format!(
            "{described} would cost {}× the MACs",
            ratio(after, one + two)
        )));
    }
    Writer::guard(&whole)?;
    let x = if before { layer.input } else { transposed.input(0)? };
    let weight = transposed.input(1)?;
    let dtype = weight.constant()?.dtype();
    expect(layer.dtype().is_none_or(|d| d == dtype))?;
    let mut writer = Writer::of(last, dtype, weight.name(), transposed);
    let (outputs, inputs, _) = whole.weight.dim();
    let (per, rows) = (outputs / whole.group, inputs);
    // Back to [inputs, outputs of a group, taps].
    let stored = Array3::from_shape_fn((rows * whole.group, per, taps as usize), |(i, o, t)| {
        whole.weight[[i / rows * per + o, i % rows, t]]
    });
    let y = writer.transposed(x.into(), transposed, &view.kernel, &stored, whole.group, &whole.bias)?;
    writer.patch.replace(last.output()?, y);
    Ok(writer.patch)
}

/// The matrices of the taps as a layer whose taps stand for themselves.
fn spread(at: NodeRef<'_>, view: &ConvTransposeView) -> Result<Kernel, Decline> {
    let weight = at.input(1)?.constant()?;
    expect(weight.dtype().is_float())?;
    let taps = view.kernel.iter().product::<usize>();
    let per = view.inputs / view.group;
    let stored = weight.to_f64().ok_or(Decline::Mismatch)?;
    let stored =
        Array3::from_shape_vec((view.inputs, view.outputs, taps), stored).map_err(|_| Decline::Mismatch)?;
    let outputs = view.outputs * view.group;
    let turned = Array3::from_shape_fn((outputs, per, taps), |(o, i, t)| {
        stored[[o / view.outputs * per + i, o % view.outputs, t]]
    });
    let bias = match at.optional(2) {
        Some(bias) => bias.constant_f64()?,
        None => vec![0.0; outputs],
    };
    expect(bias.len() == outputs)?;
    let axes = view.kernel.iter().map(|&taps| Axis { taps, ..Axis::POINT }).collect::<Vec<_>>();
    expect(axes.iter().all(|a| a.is_sane()))?;
    Ok(Kernel::new(turned, view.group, axes, bias))
}
