//! Changes of single operators.

use super::{
    form::Form,
    moves::{Move, MoveKind, to_attributes, to_inputs},
};
use pare_graph::{
    Attribute, DataType, Decline, Node, NodeRef, Patch, expect,
    ops::{PoolView, axis_of},
};

const RATIO: &[Move] = &[Move { name: "ratio", slot: 1, kind: MoveKind::Float }];

/// At inference, the standard defines the mask from operator set 12 on, and engines differ before.
fn expect_no_mask(at: NodeRef<'_>) -> Result<(), Decline> {
    match at.outputs().get(1).copied().flatten() {
        Some(mask) if at.graph.use_count(mask.id) > 0 => Err(Decline::because(format!(
            "`{}` is the mask of {}, which is undefined before operator set 12",
            mask.name(),
            at.describe()
        ))),
        _ => Ok(()),
    }
}

pub(super) fn dropout_10(mut form: Form<'_>) -> Result<Patch, Decline> {
    expect_no_mask(form.at)?;
    form.keep_outputs(1);
    form.finish_if_changed()
}

pub(super) fn dropout_12(mut form: Form<'_>) -> Result<Patch, Decline> {
    expect_no_mask(form.at)?;
    form.keep_outputs(1);
    to_inputs(form, RATIO)
}

pub(super) fn before_dropout_12(form: &mut Form<'_>) -> Result<(), Decline> {
    expect_no_mask(form.at)?;
    form.keep_outputs(1);
    if let Some(training) = form.at.optional(2) {
        if training.scalar() != Ok(0.0) {
            return Err(Decline::because(format!("{} may be in training mode", form.at.describe())));
        }
        form.connect(2, None);
    }
    to_attributes(form, RATIO)
}

/// Declines if a window may start in the padding at the end, which happens only if their number is rounded up.
pub(super) fn before_pool_22(form: &mut Form<'_>) -> Result<(), Decline> {
    let (at, view) = (form.at, PoolView::of(form.at)?);
    let sizes = at.input(0)?.shape().and_then(|shape| shape.get(2..));
    for (i, &(before, after)) in view.pads.iter().enumerate().filter(|_| view.ceil) {
        let stride = view.strides[i] as i64;
        let window = (view.kernel[i] as i64 - 1) * view.dilations[i] as i64 + 1;
        let last_starts_early = match sizes.and_then(|sizes| sizes.get(i)?.known()) {
            Some(size) => {
                let steps =
                    (size + before + after - window).max(0).unsigned_abs().div_ceil(stride.unsigned_abs());
                (steps as i64).saturating_mul(stride) < size + before
            }
            None => window >= stride + after,
        };
        if !last_starts_early {
            return Err(Decline::because(format!(
                "{} may have a window that starts in the padding, which operator set 22 drops",
                at.describe()
            )));
        }
    }
    Ok(())
}

pub(super) fn pool_22(mut form: Form<'_>) -> Result<Patch, Decline> {
    before_pool_22(&mut form)?;
    Err(Decline::Mismatch)
}

pub(super) fn mod_28(_: Form<'_>) -> Result<Patch, Decline> {
    Err(Decline::Mismatch)
}

pub(super) fn before_mod_28(form: &mut Form<'_>) -> Result<(), Decline> {
    let at = form.at;
    let may_be_float = at.input(0)?.dtype().is_none_or(DataType::is_float);
    if may_be_float && at.int("fmod", 0) == 0 {
        return Err(Decline::because(format!("{} rounds the quotient of floats down", at.describe())));
    }
    Ok(())
}

pub(super) fn scatter_11(mut form: Form<'_>) -> Result<Patch, Decline> {
    form.rename("ScatterElements");
    Ok(form.finish())
}

pub(super) fn split_18(mut form: Form<'_>) -> Result<Patch, Decline> {
    expect(form.at.optional(1).is_none())?;
    form.set("num_outputs", form.at.outputs().len() as i64);
    Ok(form.finish())
}

/// Before operator set 18, all parts have the same size.
pub(super) fn before_split_18(form: &mut Form<'_>) -> Result<(), Decline> {
    let at = form.at;
    if let Some(Attribute::Int(count)) = form.take("num_outputs")? {
        let axis = axis_of(at)?;
        let size = at.input(0)?.shape().and_then(|shape| shape.get(axis)?.known());
        if count < 1 || size.is_none_or(|size| size % count != 0) {
            return Err(Decline::because(format!("{} may have a smaller last part", at.describe())));
        }
    }
    Ok(())
}

pub(super) fn roi_align_16(mut form: Form<'_>) -> Result<Patch, Decline> {
    form.set("coordinate_transformation_mode", "output_half_pixel");
    Ok(form.finish())
}

pub(super) fn before_roi_align_16(form: &mut Form<'_>) -> Result<(), Decline> {
    if form.at.string("coordinate_transformation_mode", "half_pixel") != "output_half_pixel" {
        return Err(Decline::because(format!(
            "{} shifts the input by half a pixel, operator set 15 does not",
            form.at.describe()
        )));
    }
    form.take("coordinate_transformation_mode").map(drop)
}

pub(super) fn grid_sample_20(mut form: Form<'_>) -> Result<Patch, Decline> {
    rename_mode(&mut form, |mode| match mode {
        "bilinear" => "linear",
        "bicubic" => "cubic",
        other => other,
    });
    Ok(form.finish())
}

pub(super) fn before_grid_sample_20(form: &mut Form<'_>) -> Result<(), Decline> {
    if form.at.input(0)?.rank()? != 4 {
        return Err(Decline::because(format!("{} samples no image", form.at.describe())));
    }
    rename_mode(form, |mode| match mode {
        "linear" => "bilinear",
        "cubic" => "bicubic",
        other => other,
    });
    Ok(())
}

/// Renames the mode if the node has one: both defaults are linear.
fn rename_mode(form: &mut Form<'_>, rename: fn(&str) -> &str) {
    if form.at.attr("mode").is_some() {
        form.set("mode", rename(form.at.string("mode", "nearest")));
    }
}

pub(super) fn quantize_19(mut form: Form<'_>) -> Result<Patch, Decline> {
    let x = form.at.input(0)?;
    expect(x.dtype() == Some(DataType::Int32))?;
    let cast = Node::new("Cast").with("to", i64::from(DataType::Float.number()));
    let float = form.builder().node(cast, &[x.into()]);
    form.connect(0, Some(float));
    Ok(form.finish())
}

pub(super) fn cast_24(form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    let to = at.output()?.dtype();
    let has_no_infinity = matches!(to, Some(DataType::Float8E4M3Fnuz | DataType::Float8E5M2Fnuz));
    let from_float = at.input(0)?.dtype().is_none_or(DataType::is_float);
    if has_no_infinity && from_float && at.int("saturate", 1) != 0 {
        return Err(Decline::because(format!(
            "{} turns infinities into NaN, operator set 24 into the largest number",
            at.describe()
        )));
    }
    Err(Decline::Mismatch)
}
