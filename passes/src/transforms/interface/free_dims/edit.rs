//! Changes of constants that contain the old size of the freed axis.

use super::follow::{Follow, Followed, Rule, rank, unknown};
use crate::framework::node_builder::reshape_target;
use pare_graph::{Attribute, DataType, Dim, Node, NodeRef, Patch, Tensor, ValueRef, ops::SliceView};

impl Follow {
    /// The size of an axis that had `old` positions, if those are a multiple of the freed axis.
    fn scaled(&self, old: &Dim) -> Option<Dim> {
        Some(&old.exact_div(&Dim::from(self.size))? * &Dim::symbol(self.symbol()))
    }
}

/// `Reshape` and `Flatten`: in row-major order, an axis with `p` elements before it is again one with `p`
/// elements before it, and counts all positions of an output axis that begins there.
pub(super) fn reshape(follow: &mut Follow, at: NodeRef<'_>) -> Followed {
    let why = || unknown(at);
    let (x, y) = (at.input(0).map_err(|_| why())?, at.output().map_err(|_| why())?);
    let (from, to) = (follow.old_dims(x).ok_or_else(why)?, follow.old_dims(y).ok_or_else(why)?);
    let now = y.shape().unwrap_or_default();
    let is_fixed = at.is("Reshape") && at.input(1).is_ok_and(ValueRef::is_constant);
    let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |p, d| &p * d);
    let mut wanted = to.to_vec();
    let mut axes = vec![];
    for axis in follow.input(at, 0) {
        if x.shape().and_then(|s| s.get(axis)) != follow.scaled(&from[axis]).as_ref() {
            return Err(why());
        }
        let begins = |k: &usize| product(&to[..*k]) == product(&from[..axis]);
        let fits = |k: &usize| !axes.contains(k) && follow.scaled(&to[*k]).is_some();
        let candidates: Vec<usize> = (0..to.len()).filter(begins).filter(fits).collect();
        // Axes that begin at the same element are the same in row-major order. A computed target has made the
        // choice; in a constant one, an axis of one position per sample comes first, then one of the same size.
        let is_right = |k: &&usize| !is_fixed && now.get(**k) == follow.scaled(&to[**k]).as_ref();
        let kept = candidates.iter().find(is_right);
        let of_size = |size: &Dim| candidates.iter().find(|&&k| to[k] == *size);
        let one = of_size(&Dim::from(follow.size)).or_else(|| of_size(&from[axis]));
        let Some(&k) = kept.or(one).or(candidates.first()) else {
            // An inferred size joins the axis with others before it.
            if now.iter().any(|d| follow.depends(d)) {
                follow.relate(at)?;
                return Ok(Rule::Inferred);
            }
            return Err(format!("{} divides the freed axis", at.describe()));
        };
        wanted[k] = follow.scaled(&to[k]).ok_or_else(why)?;
        axes.push(k);
    }
    axes.sort_unstable();
    if now == wanted {
        return Ok(Rule::Axes(vec![axes]));
    }
    if !at.is("Reshape") {
        return Err(format!("{} joins the freed axis with another", at.describe()));
    }
    let open = || format!("no constant target of {} expresses the freed axis", at.describe());
    let target = reshape_target(x.shape(), &wanted).ok_or_else(open)?;
    if at.int("allowzero", 0) != 0 && target.contains(&0) {
        return Err(open());
    }
    let mut patch = Patch::at(at);
    if at.attr("shape").is_some() {
        patch.set_attribute(at.id, "shape", Some(Attribute::Ints(target)));
    } else {
        patch.set_constant(at.id, 1, "shape", Tensor::vector(&target));
    }
    Ok(Rule::Edit(patch))
}

/// `Expand`: the size of the freed axis is kept.
pub(super) fn expand(follow: &mut Follow, at: NodeRef<'_>) -> Followed {
    let x = follow.input(at, 0);
    let (from, target) = (rank(at, 0)?, at.input(1).map_err(|_| unknown(at))?);
    let Ok(mut sizes) = target.constant_ints() else {
        let shift =
            rank(at, 0).map(|r| at.output().ok().and_then(|y| y.shape()).map_or(r, <[Dim]>::len) - r)?;
        return Ok(Rule::Axes(vec![x.iter().map(|a| a + shift).collect()]));
    };
    let rank = sizes.len().max(from);
    let mut changed = false;
    for axis in &x {
        let Some(i) = (axis + sizes.len()).checked_sub(from) else { continue };
        if sizes[i] != 1 {
            let old = at.input(0).ok().and_then(|v| follow.old_shape(v)).map(|shape| shape[*axis]);
            if old != Some(sizes[i]) {
                return Err(format!("{} expands the freed axis", at.describe()));
            }
            sizes[i] = 1;
            changed = true;
        }
    }
    if changed {
        let mut patch = Patch::at(at);
        patch.set_constant(at.id, 1, "shape", Tensor::vector(&sizes));
        return Ok(Rule::Edit(patch));
    }
    Ok(Rule::Axes(vec![x.iter().map(|a| a + rank - from).collect()]))
}

/// `Gather` of all positions of the freed axis in order: a `Reshape`.
pub(super) fn gather_all(follow: &Follow, at: NodeRef<'_>, axis: usize) -> Option<Patch> {
    let (x, y) = (at.input(0).ok()?, at.output().ok()?);
    let indices = at.input(1).ok()?.constant_ints().ok()?;
    let size = follow.old_dims(x)?.get(axis)?.known()?;
    if !indices.iter().copied().eq(0..size) {
        return None;
    }
    let target: Vec<i64> = follow.old_dims(y)?.iter().map(Dim::known).collect::<Option<_>>()?;
    let mut patch = Patch::at(at);
    let shape = patch.constant("shape", Tensor::vector(&target));
    let new = patch.node(y.name(), Node::new("Reshape"), &[x.into(), shape]);
    patch.reshape(y, new);
    Some(patch)
}

/// `Slice`: an end that is the old size becomes the end of the axis.
pub(super) fn slice(
    follow: &Follow,
    at: NodeRef<'_>,
    view: &SliceView,
    freed: &[usize],
) -> Result<Option<Patch>, String> {
    let Some(old) = at.input(0).ok().and_then(|x| follow.old_shape(x)) else { return Err(unknown(at)) };
    let mut ends: Vec<i64> = view.axes.iter().map(|s| s.end).collect();
    let end_of_axis = i64::from(i32::MAX);
    let mut changed = false;
    for (slice, end) in view.axes.iter().zip(&mut ends).filter(|(s, _)| freed.contains(&s.axis)) {
        if slice.step > 0 && *end >= old[slice.axis] && *end < end_of_axis {
            *end = end_of_axis;
            changed = true;
        }
    }
    if !changed {
        return Ok(None);
    }
    let mut patch = Patch::at(at);
    match at.optional(2).and_then(ValueRef::dtype) {
        Some(dtype) if at.attr("ends").is_none() => {
            let values: Vec<f64> = ends.iter().map(|&e| e as f64).collect();
            let tensor = match dtype {
                DataType::Int64 => Tensor::vector(&ends),
                _ => Tensor::from_f64(dtype, &[ends.len()], &values).map_err(|e| e.to_string())?,
            };
            patch.set_constant(at.id, 2, "ends", tensor);
        }
        _ => patch.set_attribute(at.id, "ends", Some(Attribute::Ints(ends))),
    }
    Ok(Some(patch))
}

/// `Resize` with sizes: scales, which are the same on every axis that is not freed, and on the freed axis if
/// it is not resized or by an integer.
pub(super) fn resize(follow: &Follow, at: NodeRef<'_>, freed: &[usize]) -> Result<Option<Patch>, String> {
    let why = || format!("{} resizes the freed axis to a fixed size", at.describe());
    let Some(sizes) = at.optional(3) else { return Ok(None) };
    let (x, target) = (at.input(0).map_err(|_| why())?, sizes.constant_ints().map_err(|_| why())?);
    let old = follow.old_shape(x).ok_or_else(why)?;
    let axes: Vec<usize> = match at.ints("axes") {
        Some(axes) => axes.iter().map(|&a| a.rem_euclid(old.len() as i64) as usize).collect(),
        None => (0..old.len()).collect(),
    };
    if !axes.iter().any(|a| freed.contains(a)) {
        return Ok(None);
    }
    if at.string("keep_aspect_ratio_policy", "stretch") != "stretch" || axes.len() != target.len() {
        return Err(why());
    }
    let mut scales = vec![];
    for (&axis, &size) in axes.iter().zip(&target) {
        let scale = size as f32 / old[axis] as f32;
        let is_exact = (old[axis] as f32 * scale).floor() as i64 == size;
        if !is_exact || freed.contains(&axis) && size % old[axis] != 0 {
            return Err(why());
        }
        scales.push(scale);
    }
    let mut patch = Patch::at(at);
    let scales = patch.constant("scales", Tensor::vector(&scales));
    let y = at.output().map_err(|_| why())?;
    let inputs = [Some(x.into()), at.optional(1).map(Into::into), Some(scales)];
    let new = patch.copy(at, &inputs);
    patch.replace(y, new);
    Ok(Some(patch))
}

/// Inputs that are joined with the freed axis elementwise, or along axis `along` by `Concat`, and do not have
/// it. They must be the same for all positions: one row broadcasts, and is expanded for `Concat`.
pub(super) fn joined(
    follow: &Follow,
    at: NodeRef<'_>,
    along: Option<usize>,
) -> Result<Option<Patch>, String> {
    let inputs: Vec<_> = at.inputs();
    let ranks: Vec<_> = (0..inputs.len()).map(|slot| rank(at, slot).unwrap_or(0)).collect();
    let most = ranks.iter().copied().max().unwrap_or(0);
    let front = |slot: usize| most - ranks[slot];
    for (slot, &input) in inputs.iter().enumerate() {
        for axis in input.map(|_| follow.input(at, slot)).unwrap_or_default() {
            if along == Some(axis) {
                continue;
            }
            for (other, &value) in inputs.iter().enumerate() {
                let (Some(value), Some(own)) = (value, (axis + front(slot)).checked_sub(front(other))) else {
                    continue;
                };
                let Some(dim) = value.shape().and_then(|s| s.get(own)) else { continue };
                if follow.depends(dim) || (along.is_none() && dim.known() == Some(1)) {
                    continue;
                }
                if along.is_some() {
                    let like = input.ok_or_else(|| unknown(at))?;
                    return expanded(follow, at, (other, own), (like, axis), value).map(Some);
                }
                let mut patch = Patch::at(at);
                patch.set_constant(at.id, other, value.name(), single_row(value, own)?);
                return Ok(Some(patch));
            }
        }
    }
    Ok(None)
}

/// The leading axes of matrix products broadcast too.
pub(super) fn batched(follow: &Follow, at: NodeRef<'_>) -> Result<Option<Patch>, String> {
    let ranks = [rank(at, 0)?, rank(at, 1)?];
    let most = ranks[0].max(ranks[1]);
    for slot in [0, 1] {
        let other = 1 - slot;
        for axis in follow.input(at, slot).into_iter().filter(|&a| a + 2 < ranks[slot]) {
            let Some(own) = (axis + ranks[other]).checked_sub(ranks[slot]) else { continue };
            debug_assert!(own < most);
            let value = at.input(other).map_err(|_| unknown(at))?;
            let Some(dim) = value.shape().and_then(|s| s.get(own)) else { continue };
            if !follow.depends(dim) && dim.known() != Some(1) {
                let mut patch = Patch::at(at);
                patch.set_constant(at.id, other, value.name(), single_row(value, own)?);
                return Ok(Some(patch));
            }
        }
    }
    Ok(None)
}

/// The first row of a constant along `axis`, if all rows are equal.
fn single_row(value: ValueRef<'_>, axis: usize) -> Result<Tensor, String> {
    let fixed = || format!("`{}` has a fixed size along the freed axis", value.name());
    let tensor = value.constant().map_err(|_| fixed())?;
    let (size, bits) = (tensor.shape()[axis], tensor.dtype().bits() as usize);
    if bits == 0 || bits % 8 != 0 || size == 0 || tensor.as_strings().is_some() {
        return Err(fixed());
    }
    let row = tensor.shape()[axis + 1..].iter().product::<usize>() * bits / 8;
    let bytes = tensor.bytes();
    let mut kept = vec![];
    for block in bytes.chunks(row.max(1) * size) {
        if block.chunks(row.max(1)).any(|r| r != &block[..row.max(1)]) {
            return Err(fixed());
        }
        kept.extend_from_slice(&block[..row.max(1)]);
    }
    let mut shape = tensor.shape().to_vec();
    shape[axis] = 1;
    Tensor::new(tensor.dtype(), &shape, kept).map_err(|e| e.to_string())
}

/// Expands input `(slot, axis)` of a node, which is the same for all positions, to the size of the freed axis
/// of `like`.
pub(super) fn expanded(
    follow: &Follow,
    at: NodeRef<'_>,
    (slot, axis): (usize, usize),
    (like, like_axis): (ValueRef<'_>, usize),
    value: ValueRef<'_>,
) -> Result<Patch, String> {
    let shape = value.value().fact.fixed_shape().ok_or_else(|| unknown(at))?;
    let fixed = || format!("`{}` has a fixed size along the freed axis", value.name());
    if at.graph.opset("").unwrap_or(1) < 13
        || shape[axis] as i64 != follow.size
        || like.shape().map(|s| &s[like_axis]) != Some(&Dim::symbol(follow.symbol()))
    {
        return Err(fixed());
    }
    let mut patch = Patch::at(at);
    let row = match shape[axis] {
        1 => value.into(),
        _ => patch.constant(value.name(), single_row(value, axis)?),
    };
    let sizes = patch.node("sizes", Node::new("Shape"), &[like.into()]);
    let index = patch.constant("axis", Tensor::vector(&[like_axis as i64]));
    let size = patch.node("size", Node::new("Gather"), &[sizes, index]);
    let number = |d: &usize| *d as i64;
    let mut parts = vec![size];
    if axis > 0 {
        parts.insert(
            0,
            patch.constant("front", Tensor::vector(&shape[..axis].iter().map(number).collect::<Vec<_>>())),
        );
    }
    if axis + 1 < shape.len() {
        parts.push(
            patch.constant("back", Tensor::vector(&shape[axis + 1..].iter().map(number).collect::<Vec<_>>())),
        );
    }
    let target = patch.node("shape", Node::new("Concat").with("axis", Attribute::Int(0)), &parts);
    let expanded = patch.node(value.name(), Node::new("Expand"), &[row, target]);
    patch.set_input(at.id, slot, expanded);
    Ok(patch)
}
