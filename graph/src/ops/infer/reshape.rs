//! Operators that rearrange axes: `Reshape`, `Transpose`, `Squeeze`, `Expand`, `Tile`, ….

use super::{
    cx::{Cx, Facts, Ints, Shape, filled, one},
    dims::{self, MAX_RANK, product, show, unknowns},
};
use crate::{DataType, Dim};

/// `Shape`: the sizes of the axes from `start` to `end`.
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

/// `Reshape`: 0 copies a size, -1 is inferred.
pub(super) fn reshape(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let target: Vec<Dim> = match (cx.at.ints("shape"), cx.content(1)) {
        (Some(ints), _) if ints.len() <= MAX_RANK => ints.iter().map(|&n| Dim::from(n)).collect(),
        (None, Some(content)) => content.into_owned(),
        _ => {
            let rank = cx.length(1);
            return one(dtype, rank.and_then(unknowns));
        }
    };
    let shape = reshaped(cx, &target)?;
    // Scalars and vectors keep their content.
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(dtype, Some(shape), content)])
}

fn reshaped(cx: &Cx, target: &[Dim]) -> Result<Vec<Dim>, String> {
    let (from, allow_zero) = (cx.shape(0), cx.at.int("allowzero", 0) == 1);
    let (mut dims, mut open) = (vec![], vec![]);
    for (axis, dim) in target.iter().enumerate() {
        dims.push(match dim.known() {
            Some(0) if !allow_zero => match from {
                Some(from) => from.get(axis).cloned().ok_or_else(|| {
                    format!("size 0 copies axis {axis}, which {} does not have", cx.name(0))
                })?,
                None => Dim::unknown(),
            },
            Some(-1) => {
                open.push(axis);
                Dim::unknown()
            }
            Some(n) if n < -1 => return Err(format!("size {n} is negative")),
            // The value may be 0 or -1.
            None if !dim.is_of_sizes() => {
                open.push(axis);
                Dim::unknown()
            }
            _ => dim.clone(),
        });
    }
    if target.iter().filter(|d| d.known() == Some(-1)).count() > 1 {
        return Err(format!("{} has more than one -1", show(target)));
    }
    let Some(from) = from else { return Ok(dims) };
    let cannot = || format!("{} cannot be reshaped to {}", cx.name(0), show(target));
    match open.as_slice() {
        [] => {
            let (a, b) = (product(from).known(), product(&dims).known());
            if a.zip(b).is_some_and(|(a, b)| a != b) {
                return Err(cannot());
            }
        }
        // For -1 and for a number, the remaining factor is the only valid size.
        &[axis] => {
            let others = dims.iter().enumerate().filter(|d| d.0 != axis).map(|d| d.1);
            dims[axis] = remaining_factor(from, others.cloned().collect()).ok_or_else(cannot)?;
        }
        _ => {}
    }
    Ok(dims)
}

/// The quotient of the element counts of `from` and `dims`; `None` if it is certainly not an integer.
fn remaining_factor(from: &[Dim], mut dims: Vec<Dim>) -> Option<Dim> {
    let mut from = from.to_vec();
    // With a size of 0, the factor is unknown. Equal sizes are cancelled first: they may not be polynomials.
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
        // In a valid model the division is exact.
        (None, None) => Some(all.floor_div(&part)),
    }
}

/// `Flatten`: a matrix.
pub(super) fn flatten(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), unknowns(2)) };
    let at = cx.at.int("axis", 1);
    // The rank is a valid axis.
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
    let invalid = || format!("{perm:?} is not a permutation of the axes of {}", cx.name(0));
    let mut unused: Vec<_> = dims.iter().map(Some).collect();
    if perm.len() != dims.len() {
        return Err(invalid());
    }
    let mut take = |&p: &i64| unused.get_mut(usize::try_from(p).ok()?)?.take().cloned();
    perm.iter().map(|p| take(p).ok_or_else(invalid)).collect()
}

/// A flag for every axis that is in `axes`.
pub(super) fn flags(axes: &[i64], rank: usize) -> Result<Vec<bool>, String> {
    let mut set = vec![false; rank];
    for &axis in axes {
        set[dims::axis(axis, rank)?] = true;
    }
    Ok(set)
}

/// `Squeeze`: removes axes of size 1.
pub(super) fn squeeze(cx: &Cx) -> Facts {
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(cx.dtype(0), squeezed(cx)?, content)])
}

fn squeezed(cx: &Cx) -> Shape {
    let axes = cx.ints_or_input("axes", 1);
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    let removed = match axes {
        Ints::Known(axes) => flags(&axes, dims.len())?,
        Ints::Unknown => {
            let count = cx.length(1);
            return Ok(count.and_then(|n| dims.len().checked_sub(n)).and_then(unknowns));
        }
        // Without axes, all of size 1 are removed, so every size must be known.
        Ints::Absent if dims.iter().all(|d| d.known().is_some() || d.at_least(2)) => {
            dims.iter().map(|d| d.known() == Some(1)).collect()
        }
        Ints::Absent => return Ok(None),
    };
    let mut kept = vec![];
    for (axis, (dim, removed)) in dims.iter().zip(removed).enumerate() {
        match dim.known() {
            _ if !removed => kept.push(dim.clone()),
            Some(n) if n != 1 => {
                return Err(format!("axis {axis} of {} does not have size 1", cx.name(0)));
            }
            _ => {}
        }
    }
    Ok(Some(kept))
}

/// `Unsqueeze`: inserts axes of size 1.
pub(super) fn unsqueeze(cx: &Cx) -> Facts {
    let content = cx.content(0).map(std::borrow::Cow::into_owned);
    Ok(vec![filled(cx.dtype(0), unsqueezed(cx)?, content)])
}

fn unsqueezed(cx: &Cx) -> Shape {
    let Some(dims) = cx.shape(0) else { return Ok(None) };
    let Ints::Known(axes) = cx.ints_or_input("axes", 1) else {
        let count = cx.length(1);
        return Ok(count.and_then(|n| n.checked_add(dims.len())).and_then(unknowns));
    };
    let rank = dims.len() + axes.len();
    if rank > MAX_RANK {
        return Ok(None);
    }
    let new = flags(&axes, rank)?;
    if new.iter().filter(|&&n| n).count() != axes.len() {
        return Err(format!("{axes:?} has a duplicate axis"));
    }
    let mut old = dims.iter().cloned();
    let size = |new| if new { Some(Dim::from(1_i64)) } else { old.next() };
    Ok(new.into_iter().map(size).collect())
}

/// `Expand`: broadcasts to the shape in the second input.
pub(super) fn expand(cx: &Cx) -> Facts {
    let (dtype, dims) = (cx.dtype(0), cx.shape(0));
    let Some(to) = cx.content(1) else {
        let to = cx.length(1);
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

/// `Tile`: repeats each axis.
pub(super) fn tile(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    // Operator set 1 has inputs `tiles` and `axis` instead of a list.
    if cx.inputs.len() == 3 {
        return one(cx.dtype(0), unknowns(dims.len()));
    }
    let Some(repeats) = cx.content(1) else { return one(cx.dtype(0), unknowns(dims.len())) };
    if repeats.len() != dims.len() {
        return Err(format!("{} repeats do not fit {}", repeats.len(), cx.name(0)));
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
        return Err(format!("the block size {block} is not positive"));
    }
    let part = |dim: &Dim, by: &Dim| match dim.exact_div(by) {
        None if dim.known().is_some() => {
            Err(format!("{} is not divisible into blocks of {block}", cx.name(0)))
        }
        quotient => Ok(quotient.unwrap_or_else(|| dim.floor_div(by))),
    };
    let shape = if to_space {
        vec![n.clone(), part(c, &area)?, h * &b, w * &b]
    } else {
        vec![n.clone(), c * &area, part(h, &b)?, part(w, &b)?]
    };
    one(cx.dtype(0), Some(shape))
}

/// `Pad`: `pads` holds all begins, then all ends, of all axes or of `axes`.
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
            return Err(format!("the padded size of axis {axis} of {} is negative", cx.name(0)));
        }
    }
    one(cx.dtype(0), Some(shape))
}

/// `CenterCropPad`: the sizes of the second input, of all axes or of `axes`.
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
