//! `Resize` and `Upsample`.

use super::{
    content::dyadic,
    cx::{Cx, Facts, Shape, one},
    dims,
};
use crate::{Attribute, Dim};

/// `Resize` and `Upsample`, by sizes or by scales.
pub(super) fn resize(cx: &Cx) -> Facts {
    one(cx.dtype(0), resized(cx)?)
}

fn resized(cx: &Cx) -> Shape {
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    // Inputs: (x, scales) in `Upsample` and operator set 10, else (x, roi, scales, sizes).
    let short = cx.at.op() == "Upsample" || cx.at.opset() < 11;
    let scales_slot = if short { 1 } else { 2 };
    let axes = match cx.at.ints("axes") {
        Some(axes) => axes.iter().map(|&a| dims::axis(a, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..dims.len()).collect(),
    };
    let mut shape = dims.to_vec();
    if !short && cx.input(3).is_some() {
        let Some(sizes) = cx.content(3) else { return Ok(with_unknown(dims, &axes)) };
        if sizes.len() != axes.len() {
            return Err(format!("{} sizes for {} axes", sizes.len(), axes.len()));
        }
        let sizes = kept_ratio(cx, dims, &axes, &sizes);
        axes.iter().zip(sizes).for_each(|(&axis, size)| shape[axis] = size);
        return Ok(Some(shape));
    }
    let scales: Option<Vec<f64>> = match cx.at.attr("scales") {
        Some(Attribute::Floats(v)) => Some(v.iter().map(|&f| f64::from(f)).collect()),
        // `Upsample` of operator set 1 has two attributes.
        _ if cx.at.attr("height_scale").is_some() && dims.len() == 4 => {
            Some(vec![1.0, 1.0, cx.at.float("height_scale", 1.0), cx.at.float("width_scale", 1.0)])
        }
        _ => cx.floats(scales_slot),
    };
    let cropped = cx.at.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize";
    let Some(scales) = scales.filter(|_| !cropped) else { return Ok(with_unknown(dims, &axes)) };
    // In operator set 11, an empty list means that scales are omitted.
    if scales.len() != axes.len() {
        return if scales.is_empty() {
            Ok(with_unknown(dims, &axes))
        } else {
            Err(format!("{} scales for {} axes", scales.len(), axes.len()))
        };
    }
    for (&axis, scale) in axes.iter().zip(scales) {
        shape[axis] = scaled(&dims[axis], scale);
    }
    Ok(Some(shape))
}

fn with_unknown(dims: &[Dim], axes: &[usize]) -> Option<Vec<Dim>> {
    let mut shape = dims.to_vec();
    for &axis in axes {
        shape[axis] = Dim::unknown();
    }
    Some(shape)
}

/// `⌊scale · size⌋`, computed in f32 as by the operator.
fn scaled(size: &Dim, scale: f64) -> Dim {
    match (size.known(), dyadic(scale)) {
        (_, Some((1, 1))) => size.clone(),
        (Some(n), _) => {
            let scaled = (scale as f32 * n as f32).floor();
            // Integers are exact in f32 below 2²⁴.
            if (0.0..16_777_216.0).contains(&scaled) { Dim::from(scaled as i64) } else { Dim::unknown() }
        }
        (None, Some((n, d))) => (size * &Dim::from(n)).floor_div(&Dim::from(d)),
        (None, None) => Dim::unknown(),
    }
}

/// The sizes after `keep_aspect_ratio_policy`, which applies the smallest or largest scale to all axes.
fn kept_ratio(cx: &Cx, dims: &[Dim], axes: &[usize], sizes: &[Dim]) -> Vec<Dim> {
    let policy = cx.at.string("keep_aspect_ratio_policy", "stretch");
    if policy == "stretch" {
        return sizes.to_vec();
    }
    let known = |d: &Dim| d.known().filter(|&n| n > 0 && n < 1 << 24).map(|n| n as f32);
    let pairs: Option<Vec<_>> =
        axes.iter().zip(sizes).map(|(&axis, size)| Some((known(&dims[axis])?, known(size)?))).collect();
    let Some(pairs) = pairs else { return sizes.iter().map(|_| Dim::unknown()).collect() };
    let ratios = pairs.iter().map(|(from, to)| to / from);
    let scale = if policy == "not_larger" { ratios.reduce(f32::min) } else { ratios.reduce(f32::max) };
    let scale = scale.unwrap_or(1.0);
    pairs.iter().map(|(from, _)| Dim::from((from * scale).round() as i64)).collect()
}
