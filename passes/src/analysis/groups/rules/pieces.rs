//! Concatenation, slicing, gathering, padding and resizing.

use super::{
    Slot::{In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{
    Attribute, NodeRef, Tensor,
    ops::{PadView, SliceView, SplitView, axis_of},
};

/// Ties each input to its range of the output.
pub fn concat<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    let rank = t.rank(Out(0))?;
    let mut offset = 0;
    for slot in 0..at.inputs().len() {
        for other in (0..rank).filter(|&a| a != axis) {
            t.tie((In(slot), other), (Out(0), other));
        }
        let (Some(from), Some(to)) = (t.handled_axis(In(slot), axis), t.handled_axis(Out(0), axis)) else {
            (0..at.inputs().len()).for_each(|slot| t.pin(In(slot), axis));
            t.pin(Out(0), axis);
            return Some(());
        };
        let size = t.axes[from].size;
        t.map(from, to, (0..size).map(|i| (i, offset + i)));
        offset += size;
    }
    Some(())
}

/// Ties each output to its range of the input.
pub fn split<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let view = SplitView::of(at).ok()?;
    let rank = t.rank(In(0))?;
    let mut offset = 0;
    for (out, size) in view.sizes.iter().enumerate() {
        if at.outputs().get(out).copied().flatten().is_some() {
            for other in (0..rank).filter(|&a| a != view.axis) {
                t.tie((In(0), other), (Out(out), other));
            }
            let (Some(from), Some(to)) =
                (t.handled_axis(In(0), view.axis), t.handled_axis(Out(out), view.axis))
            else {
                return None;
            };
            if t.axes[to].size != *size || offset + size > t.axes[from].size {
                return None;
            }
            t.map(from, to, (0..*size).map(|i| (offset + i, i)));
        }
        offset += size;
    }
    // The vector of sizes.
    if at.optional(1).is_some() {
        t.handled_axis(In(1), 0);
    }
    Some(())
}

/// Sets the sizes of the parts.
pub fn resplit(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let view = SplitView::of(at).ok()?;
    let Some(kept) = c.kept(at, In(0), view.axis) else { return Some(()) };
    let mut from = 0;
    let sizes = view.sizes.iter().map(|&size| {
        let count = kept.iter().filter(|&&i| (from..from + size).contains(&i)).count() as i64;
        from += size;
        count
    });
    let sizes: Vec<i64> = sizes.collect();
    if at.opset() < 13 {
        c.set_attribute(at, "split", Some(Attribute::Ints(sizes)));
    } else {
        c.set_input(at, 1, "split", Tensor::vector(&sizes));
        c.set_attribute(at, "num_outputs", None);
    }
    Some(())
}

/// Ties index `i` of the output to index `start + i` of the input; steps other than 1 pin both axes.
pub fn slice<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let view = SliceView::of(at).ok()?;
    let rank = t.rank(In(0))?;
    for axis in 0..rank {
        let Some(cut) = view.axes.iter().find(|c| c.axis == axis) else {
            t.tie((In(0), axis), (Out(0), axis));
            continue;
        };
        if let (Some(from), Some(to), 1) =
            (t.handled_axis(In(0), axis), t.handled_axis(Out(0), axis), cut.step)
        {
            let (start, count) = cut.on(t.axes[from].size);
            if count == t.axes[to].size {
                t.map(from, to, (0..count).map(|i| (start + i, i)));
                continue;
            }
        }
        t.pin(In(0), axis);
        t.pin(Out(0), axis);
    }
    for slot in 1..at.inputs().len() {
        if at.optional(slot).is_some() {
            t.handled_axis(In(slot), 0);
        }
    }
    Some(())
}

/// Sets the new starts and ends.
pub fn reslice(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let view = SliceView::of(at).ok()?;
    let shape = at.optional(0)?.shape()?;
    let (mut starts, mut ends, mut changed) = (vec![], vec![], false);
    for cut in &view.axes {
        let (mut start, mut end) = (cut.start, cut.end);
        if let Some(kept) = c.kept(at, In(0), cut.axis) {
            let (first, count) = cut.on(shape.get(cut.axis)?.size()?);
            start = kept.iter().filter(|&&i| i < first).count() as i64;
            end = kept.iter().filter(|&&i| i < first + count).count() as i64;
            changed = true;
        }
        starts.push(start);
        ends.push(end);
    }
    if changed && at.opset() < 10 {
        c.set_attribute(at, "starts", Some(Attribute::Ints(starts)));
        c.set_attribute(at, "ends", Some(Attribute::Ints(ends)));
    } else if changed {
        c.set_indices(at, 1, "starts", &starts)?;
        c.set_indices(at, 2, "ends", &ends)?;
    }
    Some(())
}

/// Ties index `k` of the output to index `indices[k]` of the input. With computed indices, the axis of the
/// input is pinned.
pub fn gather<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    let (rank, depth) = (t.rank(In(0))?, t.rank(In(1))?);
    for other in (0..rank).filter(|&a| a != axis) {
        let out = if other < axis { other } else { other + depth - 1 };
        t.tie((In(0), other), (Out(0), out));
    }
    let indices = at.input(1).ok()?.constant_ints().ok();
    match (indices, t.handled_axis(In(0), axis)) {
        (Some(indices), Some(from)) if depth == 1 => {
            t.handled_axis(In(1), 0);
            let to = t.handled_axis(Out(0), axis)?;
            let size = t.axes[from].size as i64;
            let places = indices.iter().map(|&i| usize::try_from(if i < 0 { i + size } else { i }).ok());
            let places: Vec<usize> = places.collect::<Option<_>>()?;
            if places.iter().any(|&i| i as i64 >= size) || places.len() != t.axes[to].size {
                return None;
            }
            t.map(from, to, places.into_iter().enumerate().map(|(k, i)| (i, k)));
        }
        (None, from) => {
            from.into_iter().for_each(|axis| t.pin_axis(axis));
            (0..depth).for_each(|i| t.tie((In(1), i), (Out(0), axis + i)));
        }
        _ => t.pin(In(0), axis),
    }
    Some(())
}

/// Sets the new indices of the remaining elements.
pub fn regather(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    let from = c.kept(at, In(0), axis);
    let to = c.kept(at, Out(0), axis);
    if from.is_none() && to.is_none() || at.optional(1)?.rank().ok()? != 1 {
        return Some(());
    }
    let Ok(indices) = at.optional(1)?.constant_ints() else { return Some(()) };
    let size = at.optional(0)?.shape()?.get(axis)?.size()?;
    let from = from.unwrap_or_else(|| (0..size).collect());
    let to = to.unwrap_or_else(|| (0..indices.len()).collect());
    let place = |&k: &usize| {
        let i = if indices[k] < 0 { indices[k] + size as i64 } else { indices[k] };
        from.binary_search(&usize::try_from(i).ok()?).ok().map(|i| i as i64)
    };
    let indices: Vec<i64> = to.iter().map(place).collect::<Option<_>>()?;
    c.set_indices(at, 1, "indices", &indices)
}

/// Ties the axes that are not padded.
pub fn pad<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let view = PadView::of(at).ok()?;
    for (axis, pads) in view.pads.iter().enumerate() {
        if *pads == (0, 0) {
            t.tie((In(0), axis), (Out(0), axis));
        }
    }
    for slot in 1..at.inputs().len() {
        t.handle_all(In(slot));
    }
    Some(())
}

/// Ties samples and channels if their size does not change.
pub fn resize<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    if at.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize" {
        return None;
    }
    let (dims, out) = (t.dims(In(0))?, t.dims(Out(0))?);
    for axis in 0..dims.len().min(out.len()) {
        if dims[axis] == out[axis] && axis < 2 {
            t.tie((In(0), axis), (Out(0), axis));
        }
    }
    for slot in 1..at.inputs().len() {
        t.handle_all(In(slot));
    }
    Some(())
}

/// Sets the size of the channel axis among the requested sizes, which may be computed.
pub fn rescale(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    // Channels are not among the resized axes if these are given, and keep the scale 1 if scales are.
    if c.kept(at, In(0), 1).is_none() || at.optional(3).is_none() || at.ints("axes").is_some() {
        return Some(());
    }
    let new = c.dims(at, Out(0))?;
    let Ok(mut sizes) = at.optional(3)?.constant_ints() else {
        let old = at.output().ok()?.shape()?;
        return c.shift_sizes(at, 3, old, &new);
    };
    if !sizes.is_empty() {
        *sizes.get_mut(1)? = new.get(1)?.known()?;
        c.set_indices(at, 3, "sizes", &sizes)?;
    }
    Some(())
}

/// Ties the `b·b` channels that become one channel of `b·b` positions, or the reverse.
pub fn depth_to_space<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    t.tie((In(0), 0), (Out(0), 0));
    let block = usize::try_from(at.int("blocksize", 1)).ok().filter(|&b| b > 0)?;
    let (deep, flat, last) = match at.op() {
        "DepthToSpace" => {
            (t.handled_axis(In(0), 1)?, t.handled_axis(Out(0), 1)?, at.string("mode", "DCR") == "CRD")
        }
        _ => (t.handled_axis(Out(0), 1)?, t.handled_axis(In(0), 1)?, false),
    };
    let (channels, positions) = (t.axes[flat].size, block.checked_mul(block)?);
    if Some(t.axes[deep].size) != channels.checked_mul(positions) {
        return None;
    }
    // DCR: channel t·C + c is position t of channel c. CRD: channel c·b² + t.
    let channel = |i: usize| if last { i / positions } else { i % channels };
    t.map(deep, flat, (0..channels * positions).map(|i| (i, channel(i))));
    Some(())
}
