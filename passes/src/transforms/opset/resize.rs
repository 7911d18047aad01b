//! `Upsample` and `Resize`.

use super::form::Form;
use pare_graph::{Attribute, Decline, NodeRef, Patch, Tensor, expect};

/// Until operator set 10, index `i` of the result is read at `i/s`.
const OLD_COORDINATES: &str = "asymmetric";

/// Kept until operator set 11, which has the rounding of its indices, unless the conversion ends here.
pub(super) fn upsample_10(mut form: Form<'_>) -> Result<Patch, Decline> {
    expect(form.to == 10)?;
    form.rename("Resize");
    Ok(form.finish())
}

/// The scales of `Upsample` are at least 1.
pub(super) fn upsample_11(mut form: Form<'_>) -> Result<Patch, Decline> {
    form.rename("Resize");
    with_coordinates(&mut form, "floor");
    Ok(form.finish())
}

/// Indices are rounded down along axes that grow, and up along axes that shrink; if there are both, they are
/// resized one after the other.
pub(super) fn resize_11(mut form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    if at.string("mode", "nearest") != "nearest" {
        with_coordinates(&mut form, "");
        return Ok(form.finish());
    }
    match directions(at)? {
        Directions { grows: true, shrinks: false } => with_coordinates(&mut form, "floor"),
        Directions { grows: false, .. } => with_coordinates(&mut form, "ceil"),
        Directions { grows: true, shrinks: true } => return resize_twice(form),
    }
    Ok(form.finish())
}

fn resize_twice(mut form: Form<'_>) -> Result<Patch, Decline> {
    let scales = form.at.input(1)?.constant_f64()?;
    let part = |keep: &dyn Fn(f64) -> bool| {
        let of = |&s: &f64| if keep(s) { s as f32 } else { 1.0 };
        Tensor::vector(&scales.iter().map(of).collect::<Vec<_>>())
    };
    form.connect_constant(1, "scales", part(&|s| s > 1.0));
    with_coordinates(&mut form, "floor");
    let grown = form.add()[0];
    form.connect(0, grown);
    form.connect_constant(2, "scales", part(&|s| s < 1.0));
    form.set("nearest_mode", "ceil");
    Ok(form.finish())
}

/// Moves the scales behind the (empty) region, and sets the attributes that give the old coordinates.
fn with_coordinates(form: &mut Form<'_>, rounding: &str) {
    let scales = form.input(1);
    form.connect(2, scales);
    form.connect_constant(1, "roi", Tensor::vector::<f32>(&[]));
    form.set("coordinate_transformation_mode", OLD_COORDINATES);
    if !rounding.is_empty() && form.at.string("mode", "nearest") == "nearest" {
        form.set("nearest_mode", rounding);
    }
}

struct Directions {
    grows: bool,
    shrinks: bool,
}

/// The directions of a `Resize` before operator set 11: from its scales, otherwise from the shapes.
fn directions(at: NodeRef<'_>) -> Result<Directions, Decline> {
    if let Ok(scales) = at.input(1)?.constant_f64() {
        return Ok(Directions {
            grows: scales.iter().any(|&s| s > 1.0),
            shrinks: scales.iter().any(|&s| s < 1.0),
        });
    }
    let sizes = |value: Option<&[pare_graph::Dim]>| {
        value.and_then(|dims| dims.iter().map(pare_graph::Dim::known).collect::<Option<Vec<_>>>())
    };
    let unknown = || {
        Decline::because(format!(
            "the scales of {} are computed, and its rounding depends on their direction",
            at.describe()
        ))
    };
    let (x, y) = sizes(at.input(0)?.shape()).zip(sizes(at.output()?.shape())).ok_or_else(unknown)?;
    let directions = Directions {
        grows: x.iter().zip(&y).any(|(x, y)| x < y),
        shrinks: x.iter().zip(&y).any(|(x, y)| x > y),
    };
    // A scale near 1 may leave the size as it is.
    let decided = directions.grows != directions.shrinks && x.iter().zip(&y).all(|(x, y)| x != y || *x == 1);
    if decided { Ok(directions) } else { Err(unknown()) }
}

/// `tf_half_pixel_for_nn` is expressed by half pixels. Empty inputs are omitted.
pub(super) fn resize_13(mut form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    for slot in [1, 2] {
        if let Some(value) = at.optional(slot)
            && value.constant().is_ok_and(Tensor::is_empty)
        {
            form.connect(slot, None);
        }
    }
    if at.string("coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn" {
        let rounding = match (at.string("mode", "nearest"), at.string("nearest_mode", "round_prefer_floor")) {
            ("nearest", "floor") => "round_prefer_ceil",
            ("nearest", "round_prefer_floor") => "ceil",
            _ => {
                let why = "reads at tf_half_pixel_for_nn, which operator set 13 does not have";
                return Err(Decline::because(format!("{} {why}", at.describe())));
            }
        };
        form.set("coordinate_transformation_mode", "half_pixel");
        form.set("nearest_mode", rounding);
    }
    form.finish_if_changed()
}

/// Omitted inputs are empty ones.
pub(super) fn before_resize_13(form: &mut Form<'_>) -> Result<(), Decline> {
    for (slot, name) in [(1, "roi"), (2, "scales")] {
        if form.at.optional(slot).is_none() {
            form.connect_constant(slot, name, Tensor::vector::<f32>(&[]));
        }
    }
    Ok(())
}

/// The coordinates of operator set 10, with constant scales.
pub(super) fn before_resize_11(form: &mut Form<'_>) -> Result<(), Decline> {
    let at = form.at;
    let other = || Decline::because(format!("{} has no form in operator set 10", at.describe()));
    let scales = at.input(2)?.constant_f64().map_err(|_| other())?;
    let rounding = at.string("nearest_mode", "round_prefer_floor");
    let same = match at.string("mode", "nearest") {
        "nearest" if rounding == "floor" => scales.iter().all(|&s| s >= 1.0),
        "nearest" if rounding == "ceil" => scales.iter().all(|&s| s <= 1.0),
        mode => mode == "linear",
    };
    let coordinates = at.string("coordinate_transformation_mode", "half_pixel") == OLD_COORDINATES;
    if !(same && coordinates && at.optional(3).is_none() && !scales.is_empty()) {
        return Err(other());
    }
    let scales = form.input(2);
    form.connect(1, scales);
    form.connect(2, None);
    for name in [
        "coordinate_transformation_mode",
        "nearest_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
    ] {
        form.take(name)?;
    }
    if let Some(Attribute::String(_)) = at.attr("mode") {
        form.set("mode", at.string("mode", "nearest"));
    }
    Ok(())
}
