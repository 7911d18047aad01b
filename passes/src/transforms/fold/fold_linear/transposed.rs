//! Pointwise layers before and after `ConvTranspose`.
//!
//! A transposed convolution adds each input to the outputs `s·v + d·a − before`, through one matrix between
//! channels per tap. A pointwise layer on either side multiplies into these matrices, for any stride, padding
//! and dilation. A bias before it does not compose: the number of taps that contribute differs between
//! outputs.

use super::{
    axis::Axis,
    cost::ratio,
    emit::{Writer, display_name},
    kernel::Kernel,
    layer::{LayerWeights, LinearLayer},
};
use ndarray::Array3;
use pare_graph::{Decline, NodeRef, Patch, expect, ops::ConvTransposeView};

/// Composes a `ConvTranspose` with the pointwise layer before it, or the one that ends with `at` after it.
pub fn pair(at: NodeRef<'_>, always: bool) -> Result<Patch, Decline> {
    if at.is("ConvTranspose") {
        let layer = LinearLayer::producing(at.input(0)?, 0)?;
        return compose(at, &layer, Order::LayerFirst, always);
    }
    let layer = LinearLayer::of(at, 0)?;
    let transposed = layer.input.produced_by("ConvTranspose")?;
    compose(transposed, &layer, Order::LayerLast, always)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    LayerFirst,
    LayerLast,
}

fn compose<'g>(
    transposed: NodeRef<'g>,
    layer: &LinearLayer<'g>,
    order: Order,
    always: bool,
) -> Result<Patch, Decline> {
    let view = ConvTransposeView::of(transposed)?;
    let product = matches!(layer.weights, LayerWeights::Conv { .. });
    expect(product || matches!(layer.weights, LayerWeights::Diagonal { .. }))?;
    let point = layer.outline.axes.iter().all(|&a| a == Axis::POINT);
    expect(point && layer.outline.axes.len() == view.kernel.len() && !view.kernel.is_empty())?;
    let before = order == Order::LayerFirst;
    let last = if before { transposed } else { layer.at };
    let between = if before { layer.output() } else { transposed.output()? };
    between.sole_use()?;
    let (mut first, mut second) = (layer.kernel()?, transposed_kernel(transposed, &view)?);
    if !before {
        std::mem::swap(&mut first, &mut second);
    }
    let pair = if before { [layer.at, transposed] } else { [transposed, layer.at] };
    let described = pair.map(display_name).join("∘");
    if before && first.bias.iter().any(|&b| b != 0.0) {
        return Err(Decline::because(format!("{described}: the bias would differ between positions")));
    }
    // MACs per input position of `ConvTranspose`: a layer after it is applied at Π s positions.
    let taps = view.kernel.iter().product::<usize>() as u64;
    let macs = |k: &Kernel| (k.outputs() * k.inputs() / k.group) as u64;
    let upsampling = view.strides.iter().product::<usize>() as u64;
    let (one, two) = if before {
        (macs(&first), macs(&second) * taps)
    } else {
        (macs(&first) * taps, macs(&second) * upsampling)
    };
    let composite = first.compose_interior(&second);
    let after = macs(&composite) * taps;
    if product && after > one + two && !always {
        return Err(Decline::because(format!(
            "{described} would cost {}× the MACs",
            ratio(after, one + two)
        )));
    }
    Writer::expect_accurate(&composite)?;
    let x = if before { layer.input } else { transposed.input(0)? };
    let weight = transposed.input(1)?;
    let dtype = weight.constant()?.dtype();
    expect(layer.dtype().is_none_or(|d| d == dtype))?;
    let mut writer = Writer::of(last, dtype, weight.name(), transposed);
    let y = writer.transposed(x.into(), transposed, &composite)?;
    writer.patch.replace(last.output()?, y);
    Ok(writer.patch)
}

/// The weights of a `ConvTranspose` as a kernel `[outputs, inputs of a group, taps]`, for compositions with
/// pointwise layers only.
fn transposed_kernel(at: NodeRef<'_>, view: &ConvTransposeView) -> Result<Kernel, Decline> {
    let weight = at.input(1)?.constant()?;
    expect(weight.dtype().is_float())?;
    let taps = view.kernel.iter().product::<usize>();
    let per_group = view.inputs / view.group;
    let stored = weight.to_f64().ok_or(Decline::Mismatch)?;
    let stored =
        Array3::from_shape_vec((view.inputs, view.outputs, taps), stored).map_err(|_| Decline::Mismatch)?;
    let outputs = view.outputs * view.group;
    let weight = Array3::from_shape_fn((outputs, per_group, taps), |(o, i, t)| {
        stored[[o / view.outputs * per_group + i, o % view.outputs, t]]
    });
    let bias = match at.optional(2) {
        Some(bias) => bias.constant_f64()?,
        None => vec![0.0; outputs],
    };
    expect(bias.len() == outputs)?;
    let axes = view.kernel.iter().map(|&taps| Axis { taps, ..Axis::POINT }).collect::<Vec<_>>();
    expect(axes.iter().all(|a| a.is_valid()))?;
    Ok(Kernel::new(weight, view.group, axes, bias))
}
