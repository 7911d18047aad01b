//! Operators that move elements axis by axis.

use super::{
    Outputs, Stop,
    call::{Call, axes, broadcast, sizes},
    cast, here, invalid,
    place::{Places, assemble, placed, rearrange, strides},
};
use crate::{Attribute, Tensor, ops::SliceAxis};

pub(super) fn reshape(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, target) = (call.input(0)?, call.needed_ints("shape", 1)?);
    let allow_zero = call.at.int("allowzero", 0) != 0;
    let size = |(i, &n): (usize, &i64)| match n {
        0 if !allow_zero => data
            .shape()
            .get(i)
            .map(|&n| n as i64)
            .map_or_else(|| invalid("0 is beyond the rank of the input"), Ok),
        n => Ok(n),
    };
    let target: Vec<i64> = target.iter().enumerate().map(size).collect::<Result<_, _>>()?;
    let known = target.iter().filter(|&&n| n != -1).try_fold(1_i64, |all, &n| all.checked_mul(n));
    let Some(known) = known else { return invalid("the shape is too large") };
    let rest = match target.iter().filter(|&&n| n == -1).count() {
        0 => 0,
        1 if known > 0 && data.len() as i64 % known == 0 => data.len() as i64 / known,
        _ => return invalid(format!("{:?} cannot be reshaped to {target:?}", data.shape())),
    };
    let shape: Vec<_> = target.iter().map(|&n| if n == -1 { rest } else { n }).collect();
    Ok(data.reshaped(&sizes(&shape)?)?)
}

pub(super) fn flatten(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    // The rank is a valid axis here, but -1 is the last axis.
    let axis = match call.at.int("axis", 1) {
        last if last == data.rank() as i64 => data.rank(),
        other => super::call::axis(other, data.rank())?,
    };
    let (rows, columns) = data.shape().split_at(axis);
    Ok(data.reshaped(&[rows.iter().product(), columns.iter().product()])?)
}

pub(super) fn squeeze(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let shape = data.shape();
    let squeezed = match call.ints("axes", 1)? {
        Some(given) => axes(&given, shape.len())?,
        None => (0..shape.len()).filter(|&a| shape[a] == 1).collect(),
    };
    if let Some(&axis) = squeezed.iter().find(|&&a| shape[a] != 1) {
        return invalid(format!("axis {axis} has size {}", shape[axis]));
    }
    let kept: Vec<_> = (0..shape.len()).filter(|a| !squeezed.contains(a)).map(|a| shape[a]).collect();
    Ok(data.reshaped(&kept)?)
}

pub(super) fn unsqueeze(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, given) = (call.input(0)?, call.needed_ints("axes", 1)?);
    let rank = data.rank() + given.len();
    let new = axes(&given, rank)?;
    let mut old = data.shape().iter().copied();
    let shape: Vec<_> =
        (0..rank).map(|a| if new.contains(&a) { 1 } else { old.next().unwrap_or(1) }).collect();
    Ok(data.reshaped(&shape)?)
}

pub(super) fn transpose(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let perm = match call.at.ints("perm") {
        Some(perm) if perm.len() == data.rank() => axes(perm, data.rank())?,
        Some(perm) => return invalid(format!("`perm` {perm:?} has another rank than {}", data.rank())),
        None => (0..data.rank()).rev().collect(),
    };
    let (shape, strides): (Vec<_>, _) =
        (perm.iter().map(|&p| data.shape()[p]).collect(), strides(data.shape()));
    rearrange(call, data, None, &shape, |axis, c| Some(c * strides[perm[axis]]))
}

pub(super) fn concat(call: Call<'_>) -> Result<Tensor, Stop> {
    let parts = call.all()?;
    let mut shape = parts[0].shape().to_vec();
    let axis = call.axis(1, shape.len())?;
    let others =
        |s: &[usize]| s.iter().enumerate().filter(|&(i, _)| i != axis).map(|(_, &n)| n).collect::<Vec<_>>();
    if parts.iter().any(|p| p.rank() != shape.len() || others(p.shape()) != others(&shape)) {
        return invalid("its inputs have inconsistent shapes");
    }
    let Some(size) = parts.iter().try_fold(0_usize, |n, p| n.checked_add(p.shape()[axis])) else {
        return Err(Stop::TooLarge(u64::MAX));
    };
    shape[axis] = size;
    call.count(parts[0].dtype(), &shape)?;
    let rows: usize = shape[..axis].iter().product();
    let runs: Vec<usize> = parts.iter().map(|p| p.shape()[axis..].iter().product()).collect();
    let runs = &runs;
    let row = |r: usize| {
        runs.iter().enumerate().flat_map(move |(part, &run)| (r * run..(r + 1) * run).map(move |i| (part, i)))
    };
    assemble(call, &parts, &shape, (0..rows).flat_map(row))
}

pub(super) fn split(call: Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let axis = call.axis(0, data.rank())?;
    let size = data.shape()[axis];
    let parts = if let Some(given) = call.ints("split", 1)?.filter(|given| !given.is_empty()) {
        sizes(&given)?
    } else {
        let parts = call.at.outputs().len().max(1);
        let part = size.div_ceil(parts);
        (0..parts).map(|i| part.min(size.saturating_sub(i * part))).collect()
    };
    if parts.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n)) != Some(size) {
        return invalid(format!("the parts {parts:?} do not add up to {size}"));
    }
    let strides = strides(data.shape());
    let mut start = 0;
    let cut = |part: usize| {
        let mut shape = data.shape().to_vec();
        shape[axis] = part;
        let first = start;
        start += part;
        rearrange(call, data, None, &shape, |a, c| Some((if a == axis { first + c } else { c }) * strides[a]))
    };
    parts.into_iter().map(cut).collect()
}

pub(super) fn slice(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let (starts, ends) = (call.needed_ints("starts", 1)?, call.needed_ints("ends", 2)?);
    let along = call.ints("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = call.ints("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [&ends, &along, &steps].iter().any(|v| v.len() != starts.len()) || steps.contains(&0) {
        return invalid("its starts, ends, axes or steps are inconsistent");
    }
    let (mut shape, strides) = (data.shape().to_vec(), strides(data.shape()));
    let mut cuts: Vec<_> = vec![(0_i64, 1_i64); shape.len()];
    for (i, axis) in axes(&along, shape.len())?.into_iter().enumerate() {
        let cut = SliceAxis { axis, start: starts[i], end: ends[i], step: steps[i] };
        let (start, length) = cut.on(shape[axis]);
        shape[axis] = length;
        cuts[axis] = (start as i64, steps[i]);
    }
    rearrange(call, data, None, &shape, |axis, c| {
        let (start, step) = cuts[axis];
        Some(usize::try_from(start + c as i64 * step).ok()? * strides[axis])
    })
}

pub(super) fn expand(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let shape = broadcast(data.shape(), &sizes(&call.ints_in(1)?)?)?;
    call.count(data.dtype(), &shape)?;
    placed(call, data, None, &shape, Places::broadcast(data.shape(), &shape))
}

pub(super) fn tile(call: Call<'_>) -> Result<Tensor, Stop> {
    here(call.at.opset() >= 6)?;
    let (data, repeats) = (call.input(0)?, sizes(&call.ints_in(1)?)?);
    if repeats.len() != data.rank() {
        return invalid(format!("`repeats` {repeats:?} has another rank than {}", data.rank()));
    }
    let times = |(&n, &r): (&usize, &usize)| n.checked_mul(r).ok_or(Stop::TooLarge(u64::MAX));
    let shape: Vec<_> = data.shape().iter().zip(&repeats).map(times).collect::<Result<_, _>>()?;
    let strides = strides(data.shape());
    rearrange(call, data, None, &shape, |axis, c| Some(c % data.shape()[axis] * strides[axis]))
}

pub(super) fn pad(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let (sizes, rank) = (data.shape(), data.rank());
    let name = if call.at.opset() < 2 { "paddings" } else { "pads" };
    let given = call.needed_ints(name, 1)?;
    let along = match call.optional(3) {
        Some(_) => axes(&call.ints_in(3)?, rank)?,
        None => (0..rank).collect(),
    };
    if given.len() != 2 * along.len() {
        return invalid(format!("{} pads for {} axes", given.len(), along.len()));
    }
    let mut pads = vec![(0, 0); rank];
    for (i, &axis) in along.iter().enumerate() {
        pads[axis] = (given[i], given[i + along.len()]);
    }
    let grown = |(&n, &(before, after)): (&usize, &(i64, i64))| {
        let size = (n as i64).checked_add(before).and_then(|n| n.checked_add(after));
        size.and_then(|n| usize::try_from(n).ok()).map_or_else(|| invalid("an axis has a negative size"), Ok)
    };
    let shape: Vec<_> = sizes.iter().zip(&pads).map(grown).collect::<Result<_, _>>()?;
    let mode = call.at.string("mode", "constant");
    // With negative pads, engines differ in the mirrored elements.
    here(mode == "constant" || pads.iter().all(|&(a, b)| a >= 0 && b >= 0))?;
    let source = |axis: usize, c: usize| {
        let (n, c) = (sizes[axis] as i64, (c as i64).saturating_sub(pads[axis].0));
        let inside = match mode {
            _ if (0..n).contains(&c) => c,
            "edge" if n > 0 => c.clamp(0, n - 1),
            "reflect" if n > 1 && -n < c && c < 2 * n - 1 => (n - 1) - ((n - 1) - c.abs()).abs(),
            "wrap" if n > 0 => c.rem_euclid(n),
            _ => return None,
        };
        usize::try_from(inside).ok()
    };
    let fill = match mode {
        "constant" => Some(fill_of(call, data)?),
        "edge" | "reflect" | "wrap" => None,
        other => return invalid(format!("mode `{other}` is unknown")),
    };
    let strides = strides(sizes);
    rearrange(call, data, fill.as_ref(), &shape, |axis, c| Some(source(axis, c)? * strides[axis]))
}

/// The scalar that a constant `Pad` inserts.
fn fill_of(call: Call<'_>, data: &Tensor) -> Result<Tensor, Stop> {
    match (call.at.attr("value"), call.optional(2)) {
        _ if call.tracing => call.fill(data.dtype()),
        (Some(Attribute::Float(value)), _) => cast::converted(call, &Tensor::scalar(*value), data.dtype()),
        (_, Some(value)) if value.len() == 1 => Ok(value.clone()),
        (_, Some(_)) => invalid("the pad value is not a scalar"),
        (_, None) => call.fill(data.dtype()),
    }
}

/// Moves blocks of `b × b` channels into space: `[N, C, H, W]` to `[N, C/b², H·b, W·b]`.
pub(super) fn depth_to_space(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, [n, c, h, w], b) = blocks(call)?;
    if c % (b * b) != 0 {
        return invalid(format!("{c} channels are not divisible by {b}²"));
    }
    let d = c / (b * b);
    // The axes of the result are (n, d, h, bh, w, bw).
    let (strides, shape) = match call.at.string("mode", "DCR") {
        "DCR" => ([c * h * w, h * w, w, b * d * h * w, 1, d * h * w], [n, d, h, b, w, b]),
        "CRD" => ([c * h * w, b * b * h * w, w, b * h * w, 1, h * w], [n, d, h, b, w, b]),
        other => return invalid(format!("mode `{other}` is unknown")),
    };
    let result = rearrange(call, data, None, &shape, |axis, c| Some(c * strides[axis]))?;
    Ok(result.reshaped(&[n, d, h * b, w * b])?)
}

/// Moves blocks of `b × b` pixels into channels: `[N, C, H, W]` to `[N, b²·C, H/b, W/b]`.
pub(super) fn space_to_depth(call: Call<'_>) -> Result<Tensor, Stop> {
    // Newer operator sets have a second order of channels.
    here(call.at.string("mode", "DCR") == "DCR")?;
    let (data, [n, c, h, w], b) = blocks(call)?;
    if h % b != 0 || w % b != 0 {
        return invalid(format!("{h} × {w} pixels are not divisible by {b}"));
    }
    // The axes of the result are (n, bh, bw, c, h, w).
    let strides = [c * h * w, w, 1, h * w, b * w, b];
    let shape = [n, b, b, c, h / b, w / b];
    let result = rearrange(call, data, None, &shape, |axis, c| Some(c * strides[axis]))?;
    Ok(result.reshaped(&[n, c * b * b, h / b, w / b])?)
}

fn blocks(call: Call<'_>) -> Result<(&Tensor, [usize; 4], usize), Stop> {
    let data = call.input(0)?;
    let Ok(shape) = <[usize; 4]>::try_from(data.shape()) else {
        return invalid("its input does not have rank 4");
    };
    match usize::try_from(call.at.int("blocksize", 0)) {
        // Larger blocks than the tensor would overflow.
        Ok(b) if b > 0 && b <= data.len().max(1) && b < 1 << 31 => Ok((data, shape, b)),
        _ => invalid("`blocksize` is out of range"),
    }
}
