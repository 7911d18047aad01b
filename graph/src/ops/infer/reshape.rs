//! Operators that only arrange axes anew: `Reshape`, `Transpose`, `Squeeze`, `Expand`, `Tile` and the like.

use super::{
    cx::{Cx, Facts, Ints, Shape, filled, one},
    dims::{self, MAX_RANK, product, show, unknowns},
};
use crate::{DataType, Dim};

/// `Shape`: of the axes from `start` to `end`.
pub(super) fn shape(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(Some(DataType::Int64), unknowns(1)) };
    let clamp = |name, default| {
        let at = cx.at.int(name, default);
        let at = if at < 0 { at.saturating_add(dims.len() as i64) } else { at };
        at.clamp(0, dims.len() as i64) as usize
    };
    let (start, end) = (clamp("start", 0), clamp("end", i64::MAX));
    let part = dims[start..end.max(start)].to_vec();
    Ok(vec![filled(Some(DataType::Int64), Some(vec![Dim::from(part.len())]), Some(part))])
}

/// `Size`: the number of elements.
pub(super) fn size(cx: &Cx) -> Facts {
    let count = cx.shape(0).map(|dims| vec![product(dims)]);
    Ok(vec![filled(Some(DataType::Int64), Some(vec![]), count)])
}

/// `Reshape`: 0 copies an axis, -1 takes what is left.
pub(super) fn reshape(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let wanted: Vec<Dim> = match (cx.at.ints("shape"), cx.content(1)) {
        (Some(ints), _) if ints.len() <= MAX_RANK => ints.iter().map(|&n| Dim::from(n)).collect(),
        (None, Some(content)) => content.into_owned(),
        _ => {
            let rank = cx.shape(1).and_then(|s| s.first()).and_then(Dim::size);
            return one(dtype, rank.and_then(unknowns));
        }
    };
    let shape = reshaped(cx, &wanted)?;
    // A scalar or vector keeps its elements.
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(dtype, Some(shape), content)])
}

fn reshaped(cx: &Cx, wanted: &[Dim]) -> Result<Vec<Dim>, String> {
    let (from, allow_zero) = (cx.shape(0), cx.at.int("allowzero", 0) == 1);
    let (mut dims, mut open) = (vec![], vec![]);
    for (axis, dim) in wanted.iter().enumerate() {
        dims.push(match dim.known() {
            Some(0) if !allow_zero => match from {
                Some(from) => from
                    .get(axis)
                    .cloned()
                    .ok_or_else(|| format!("axis {axis} cannot be copied, {} has none such", cx.name(0)))?,
                None => Dim::unknown(),
            },
            Some(-1) => {
                open.push(axis);
                Dim::unknown()
            }
            Some(n) if n < -1 => return Err(format!("{n} is no size to reshape to")),
            // It may turn out to be 0 or -1.
            None if !dim.is_of_sizes() => {
                open.push(axis);
                Dim::unknown()
            }
            _ => dim.clone(),
        });
    }
    if wanted.iter().filter(|d| d.known() == Some(-1)).count() > 1 {
        return Err(format!("more than one size is left open in {}", show(wanted)));
    }
    let Some(from) = from else { return Ok(dims) };
    let cannot = || format!("{} cannot be reshaped to {}", cx.name(0), show(wanted));
    match open.as_slice() {
        [] => {
            let (a, b) = (product(from).known(), product(&dims).known());
            if a.zip(b).is_some_and(|(a, b)| a != b) {
                return Err(cannot());
            }
        }
        // Whether it is -1 or a number, only one fits.
        &[axis] => {
            let others = dims.iter().enumerate().filter(|d| d.0 != axis).map(|d| d.1);
            dims[axis] = left_over(from, others.cloned().collect()).ok_or_else(cannot)?;
        }
        _ => {}
    }
    Ok(dims)
}

/// The factor by which `dims` hold less than `from`; `None` if there is certainly none.
fn left_over(from: &[Dim], mut dims: Vec<Dim>) -> Option<Dim> {
    let mut from = from.to_vec();
    // Zero sizes leave the factor open. Equal factors go first: they may be no polynomials.
    if dims.iter().chain(&from).any(|d| d.known() == Some(0)) {
        return Some(Dim::unknown());
    }
    dims.retain(|d| match from.iter().position(|f| f == d) {
        Some(i) => {
            from.swap_remove(i);
            false
        }
        None => true,
    });
    let (all, part) = (product(&from), product(&dims));
    match (all.exact_div(&part), all.known().zip(part.known())) {
        (Some(quotient), _) => Some(quotient),
        (None, Some(_)) => None,
        // The model is only valid where nothing remains, so rounding down changes nothing.
        (None, None) => Some(all.floor_div(&part)),
    }
}

/// `Flatten`: to a matrix.
pub(super) fn flatten(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), unknowns(2)) };
    let at = cx.at.int("axis", 1);
    // The axis may be one past the last.
    let at = if at == dims.len() as i64 { dims.len() } else { dims::axis(at, dims.len())? };
    one(cx.dtype(0), Some(vec![product(&dims[..at]), product(&dims[at..])]))
}

/// `Transpose`.
pub(super) fn transpose(cx: &Cx) -> Facts {
    let shape = match (cx.shape(0), cx.at.ints("perm")) {
        (Some(dims), None) => Some(dims.iter().rev().cloned().collect()),
        (Some(dims), Some(perm)) => Some(permuted(cx, dims, perm)?),
        (None, Some(perm)) => unknowns(perm.len()),
        (None, None) => None,
    };
    one(cx.dtype(0), shape)
}

fn permuted(cx: &Cx, dims: &[Dim], perm: &[i64]) -> Result<Vec<Dim>, String> {
    let no = || format!("{perm:?} is no permutation of the axes of {}", cx.name(0));
    let mut left: Vec<_> = dims.iter().map(Some).collect();
    if perm.len() != dims.len() {
        return Err(no());
    }
    let mut take = |&p: &i64| left.get_mut(usize::try_from(p).ok()?)?.take().cloned();
    perm.iter().map(|p| take(p).ok_or_else(no)).collect()
}

/// The axes as a set of flags; each must lie inside.
pub(super) fn flags(axes: &[i64], rank: usize) -> Result<Vec<bool>, String> {
    let mut set = vec![false; rank];
    for &axis in axes {
        set[dims::axis(axis, rank)?] = true;
    }
    Ok(set)
}

/// `Squeeze`: axes of size 1 away.
pub(super) fn squeeze(cx: &Cx) -> Facts {
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(cx.dtype(0), squeezed(cx)?, content)])
}

fn squeezed(cx: &Cx) -> Shape {
    let axes = cx.ints_or_input("axes", 1);
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    let gone = match axes {
        Ints::Known(axes) => flags(&axes, dims.len())?,
        Ints::Unknown => {
            let count = cx.shape(1).and_then(|s| s.first()).and_then(Dim::size);
            return Ok(count.and_then(|n| dims.len().checked_sub(n)).and_then(unknowns));
        }
        // Without axes all of size 1 go: every size must be known.
        Ints::Absent if dims.iter().all(|d| d.known().is_some() || d.at_least(2)) => {
            dims.iter().map(|d| d.known() == Some(1)).collect()
        }
        Ints::Absent => return Ok(None),
    };
    let mut kept = vec![];
    for (axis, (dim, gone)) in dims.iter().zip(gone).enumerate() {
        match dim.known() {
            _ if !gone => kept.push(dim.clone()),
            Some(n) if n != 1 => {
                return Err(format!("axis {axis} of {} has not size 1", cx.name(0)));
            }
            _ => {}
        }
    }
    Ok(Some(kept))
}

/// `Unsqueeze`: axes of size 1 put in.
pub(super) fn unsqueeze(cx: &Cx) -> Facts {
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(cx.dtype(0), unsqueezed(cx)?, content)])
}

fn unsqueezed(cx: &Cx) -> Shape {
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    let Ints::Known(axes) = cx.ints_or_input("axes", 1) else {
        let count = cx.shape(1).and_then(|s| s.first()).and_then(Dim::size);
        return Ok(count.and_then(|n| n.checked_add(dims.len())).and_then(unknowns));
    };
    let rank = dims.len() + axes.len();
    if rank > MAX_RANK {
        return Ok(None);
    }
    let new = flags(&axes, rank)?;
    if new.iter().filter(|&&n| n).count() != axes.len() {
        return Err(format!("an axis is given twice in {axes:?}"));
    }
    let mut old = dims.iter().cloned();
    let size = |new| if new { Some(Dim::from(1_i64)) } else { old.next() };
    Ok(new.into_iter().map(size).collect())
}

/// `Expand`: broadcast to a shape that is computed.
pub(super) fn expand(cx: &Cx) -> Facts {
    let (dtype, dims) = (cx.dtype(0), cx.shape(0));
    let Some(to) = cx.content(1) else {
        let to = cx.shape(1).and_then(|s| s.first()).and_then(Dim::size);
        let shape = match (dims, to.and_then(unknowns)) {
            (Some(dims), Some(to)) => Some(dims::broadcast(dims, &to)?),
            _ => None,
        };
        return one(dtype, shape);
    };
    let Some(dims) = dims else { return one(dtype, None) };
    let shape = dims::broadcast(dims, &to)?;
    let content = match (shape.as_slice(), cx.content(0)) {
        ([n], Some(items)) if items.len() == 1 => {
            n.size().filter(|&n| n <= dims::MAX_CONTENT).map(|n| vec![items[0].clone(); n])
        }
        (_, items) => items.map(std::borrow::Cow::into_owned),
    };
    Ok(vec![filled(dtype, Some(shape), content)])
}

/// `Tile`: repeated along each axis.
pub(super) fn tile(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    // In opset 1 there were `tiles` and `axis` instead of a list.
    if cx.inputs.len() == 3 {
        return one(cx.dtype(0), unknowns(dims.len()));
    }
    let Some(repeats) = cx.content(1) else { return one(cx.dtype(0), unknowns(dims.len())) };
    if repeats.len() != dims.len() {
        return Err(format!("{} repeats for {}", repeats.len(), cx.name(0)));
    }
    let shape: Vec<_> = dims.iter().zip(repeats.iter()).map(|(d, r)| d * r).collect();
    let content = match (shape.as_slice(), cx.content(0)) {
        ([n], Some(items)) => {
            let n = n.size().filter(|&n| n <= dims::MAX_CONTENT);
            n.map(|n| items.iter().cycle().take(n).cloned().collect())
        }
        _ => None,
    };
    Ok(vec![filled(cx.dtype(0), Some(shape), content)])
}

/// `DepthToSpace` and `SpaceToDepth`, `[N,C,H,W]`.
pub(super) fn blocks(cx: &Cx) -> Facts {
    cx.expect_rank(0, 4)?;
    let (block, to_space) = (cx.at.int("blocksize", 1), cx.at.op() == "DepthToSpace");
    let Some([n, c, h, w]) = cx.shape(0) else { return one(cx.dtype(0), unknowns(4)) };
    let b = Dim::from(block);
    let area = &b * &b;
    if block < 1 {
        return Err(format!("blocks of size {block}"));
    }
    let part = |dim: &Dim, by: &Dim| match dim.exact_div(by) {
        None if dim.known().is_some() => Err(format!("{} does not split into blocks of {block}", cx.name(0))),
        quotient => Ok(quotient.unwrap_or_else(|| dim.floor_div(by))),
    };
    let shape = if to_space {
        vec![n.clone(), part(c, &area)?, h * &b, w * &b]
    } else {
        vec![n.clone(), c * &area, part(h, &b)?, part(w, &b)?]
    };
    one(cx.dtype(0), Some(shape))
}

/// `Pad`: `pads` hold begins, then ends, of all axes or of `axes`.
pub(super) fn pad(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    let ints = cx.at.ints("pads").or_else(|| cx.at.ints("paddings"));
    let pads = match ints {
        Some(ints) => Some(ints.iter().map(|&n| Dim::from(n)).collect()),
        None => cx.content(1).map(std::borrow::Cow::into_owned),
    };
    let axes = match cx.input(3) {
        Some(_) => cx.numbers(3),
        None => Some((0..dims.len() as i64).collect()),
    };
    let (Some(pads), Some(axes)) = (pads, axes) else { return one(cx.dtype(0), unknowns(dims.len())) };
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes of {}", pads.len(), axes.len(), cx.name(0)));
    }
    let mut shape = dims.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let axis = dims::axis(axis, dims.len())?;
        shape[axis] = &(&shape[axis] + &pads[i]) + &pads[i + axes.len()];
        if shape[axis].known().is_some_and(|n| n < 0) {
            return Err(format!("axis {axis} of {} would be cut below zero", cx.name(0)));
        }
    }
    one(cx.dtype(0), Some(shape))
}

/// `CenterCropPad`: the axes get the sizes asked for.
pub(super) fn center_crop_pad(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    let axes = cx.at.ints("axes").map_or_else(|| (0..dims.len() as i64).collect(), <[i64]>::to_vec);
    let sizes = cx.content(1);
    if sizes.as_ref().is_some_and(|s| s.len() != axes.len()) {
        return Err(format!("{} sizes for {} axes", sizes.map_or(0, |s| s.len()), axes.len()));
    }
    let mut shape = dims.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let axis = dims::axis(axis, dims.len())?;
        shape[axis] = sizes.as_ref().map_or_else(Dim::unknown, |s| s[i].clone());
    }
    one(cx.dtype(0), Some(shape))
}
