//! Interpolation.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{Decline, Node};

/// `y = Rₖ·…·x`, a matrix along each axis whose size changes; `dx` multiplies by their transposes.
///
/// The matrix of an axis is the interpolation of the unit vectors along it, which the node itself computes.
pub(super) fn resize(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    if s.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize" {
        return s.because("crops its input");
    }
    let node = s.read(|at| at.node().clone());
    let listed = node.attributes.get("axes").is_some();
    if listed || s.string("keep_aspect_ratio_policy", "stretch") != "stretch" {
        return s.because("resizes listed axes or keeps the aspect ratio");
    }
    let scales = match s.optional(2) {
        Some(scales) => s.tape.read(|graph| graph.value_ref(scales.id).constant_f64()).ok(),
        None => None,
    };
    s.give_with(0, || {
        let mut dx = dy;
        for axis in 0..x.rank()? {
            if x.dims()?[axis] == dy.dims()?[axis] {
                continue;
            }
            let (size, resized) = (x.size(axis)?, dy.size(axis)?);
            let scale = scales.as_ref().and_then(|scales| scales.get(axis)).copied();
            let matrix =
                interpolation(x, node.clone(), size, resized, scale.unwrap_or(resized as f64 / size as f64));
            dx = along(dx, matrix, axis)?;
        }
        Ok(dx)
    });
    Ok(())
}

/// The transposed matrix that maps an axis of one size to another: row `i` is the resized unit vector `i`.
fn interpolation(x: Term<'_>, node: Node, size: usize, resized: usize, scale: f64) -> Term<'_> {
    let mut unit = vec![0.0; size * size];
    (0..size).for_each(|i| unit[i * size + i] = 1.0);
    let (tape, unit) = (x.tape(), x.numbers(&[1, 1, size, size], &unit));
    let scales = tape.constant(pare_graph::Tensor::vector(&[1.0_f32, 1.0, 1.0, scale as f32]));
    let matrix = tape.nodes(node, &[Some(unit), None, Some(scales)], 1)[0];
    matrix.reshape(&[size as i64, resized as i64])
}

/// Multiplies by a matrix `[n, m]` along an axis of size `m`.
fn along<'t>(x: Term<'t>, matrix: Term<'t>, axis: usize) -> Result<Term<'t>, Decline> {
    let rank = x.rank()?;
    if axis + 2 == rank {
        return Ok(matrix.matmul(x));
    }
    let mut perm: Vec<_> = (0..rank).collect();
    perm.swap(axis, rank - 1);
    let last = x.transpose(&perm);
    Ok(last.matmul(matrix.transposed()?).transpose(&perm))
}
