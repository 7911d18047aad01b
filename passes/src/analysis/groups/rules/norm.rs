//! Normalisation, reductions, pooling, and operators with parameters for each channel.

use super::{
    Slot::{In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{
    Attribute, NodeRef,
    ops::{PoolView, ReduceView, SoftmaxView, axis_of},
};

/// Ties the parameters of each channel to axis 1.
pub fn per_channel<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    // The statistics of an instance are over all positions of a channel.
    let first = if at.is("InstanceNormalization") { 2 } else { rank };
    (0..first).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    for slot in 1..at.inputs().len() {
        t.tie((In(slot), 0), (Out(0), 1));
    }
    Some(())
}

/// Pins the axes from `axis` on: their elements are normalised together, and even a zero counts in the mean
/// and variance.
pub fn layer_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    (0..axis).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    let rank = t.rank(In(0))?;
    for (slot, axis) in [In(0), Out(0)].into_iter().flat_map(|slot| (axis..rank).map(move |a| (slot, a))) {
        if let Some(id) = t.handled_axis(slot, axis) {
            t.pin_because(id, format!("{} normalises over the entire axis", at.describe()));
        }
    }
    Some(())
}

/// Ties the channels of each group, which are normalised together.
pub fn group_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let groups = usize::try_from(at.int("num_groups", 0)).ok().filter(|&g| g > 0)?;
    let channels = t.handled_axis(In(0), 1)?;
    let (size, per) = (t.axes[channels].size, t.axes[channels].size / groups);
    if per * groups != size {
        return None;
    }
    t.tie((In(0), 0), (Out(0), 0));
    t.tie((In(0), 1), (Out(0), 1));
    t.map(channels, channels, (0..size).map(|i| (i, i / per * per)));
    for slot in [1, 2] {
        // One parameter for each channel, or (operator set 18) for each group.
        let own = t.handled_axis(In(slot), 0)?;
        let step = size.checked_div(t.axes[own].size)?;
        if step != 1 && step != per {
            return None;
        }
        t.map(own, channels, (0..size / step).map(|i| (i, i * step)));
    }
    Some(())
}

/// Sets the number of groups.
pub fn recount_groups(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let Some(kept) = c.kept(at, In(0), 1) else { return Some(()) };
    let (size, groups) = (at.optional(0)?.shape()?.get(1)?.size()?, at.int("num_groups", 0));
    let fewer = usize::try_from(groups).ok()? * kept.len() / size;
    c.set_attribute(at, "num_groups", Some(Attribute::Int(fewer as i64)));
    Some(())
}

/// Returns the axis of an RMS norm, if it is the last one and only the first output is used.
pub fn rms_axis(at: NodeRef<'_>) -> Option<usize> {
    let (rank, axis) = (at.optional(0)?.rank().ok()?, at.int("axis", -1));
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    let plain = at.outputs().iter().skip(1).flatten().all(|o| o.users().is_empty() && !o.value().is_output());
    (axis + 1 == rank && plain).then_some(axis)
}

/// An RMS norm can lose elements that are zero: see [`rescale_rms`].
pub fn rms_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = rms_axis(at)?;
    (0..=axis).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    t.tie((In(1), 0), (Out(0), axis));
    Some(())
}

/// Rescales for `s` remaining elements of `n`, the others being zero:
/// `γ·x/√(Σx²/n + ε) = γ·√(n/s)·x/√(Σx²/s + ε·n/s)`.
pub fn rescale_rms(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let axis = rms_axis(at)?;
    let Some(kept) = c.kept(at, In(0), axis) else { return Some(()) };
    let ratio = at.optional(0)?.shape()?.get(axis)?.size()? as f64 / kept.len() as f64;
    c.scale_input(at, 1, ratio.sqrt())?;
    let epsilon = at.float("epsilon", 1e-5) * ratio;
    c.set_attribute(at, "epsilon", Some(Attribute::Float(epsilon as f32)));
    Some(())
}

/// Ties all axes but those that the operator works along.
pub fn along<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    let axes = if let Ok(view) = SoftmaxView::of(at) {
        view.axes
    } else if at.is("CumSum") {
        let axis = at.input(1).ok()?.constant_ints().ok()?.first().copied()?;
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
        axis..axis + 1
    } else {
        let axis = axis_of(at).ok()?;
        axis..axis + 1
    };
    let dropped = at.op().starts_with("Arg") && at.int("keepdims", 1) == 0;
    for axis in (0..rank).filter(|a| !axes.contains(a)) {
        let out = if dropped && axis >= axes.end { axis - 1 } else { axis };
        t.tie((In(0), axis), (Out(0), out));
    }
    Some(())
}

/// Sums can lose terms that are zero, and so can means that are rescaled; maxima cannot.
pub fn reduce<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let view = ReduceView::of(at).ok()?;
    let mut out = 0;
    for axis in 0..t.rank(In(0))? {
        if !view.axes.contains(&axis) {
            t.tie((In(0), axis), (Out(0), out));
            out += 1;
            continue;
        }
        if ["ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMean"].contains(&at.op()) {
            t.handled_axis(In(0), axis);
        }
        if view.keepdims {
            t.handled_axis(Out(0), out);
            out += 1;
        }
    }
    Some(())
}

/// Rescales a mean for `s` remaining elements of `n`, the others being zero: `Σx/n = s/n·(Σx/s)`.
pub fn rescale_mean(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    if !at.is("ReduceMean") {
        return Some(());
    }
    let view = ReduceView::of(at).ok()?;
    let shape = at.optional(0)?.shape()?;
    let mut factor = 1.0;
    for axis in view.axes {
        if let Some(kept) = c.kept(at, In(0), axis) {
            factor *= kept.len() as f64 / shape.get(axis)?.size()? as f64;
        }
    }
    if factor != 1.0 {
        c.scale_output(at, factor);
    }
    Some(())
}

/// Ties samples and channels; positions are computed.
pub fn grid_sample<'g>(t: &mut Tracer<'g>, _: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    (0..rank.min(2)).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    t.tie((In(1), 0), (Out(0), 0));
    Some(())
}

/// Ties samples and channels.
pub fn pool<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    PoolView::of(at).map_or(at.op().starts_with("Global").then_some(()), |_| Some(()))?;
    // The indices of maxima count over the entire tensor.
    if at.outputs().len() > 1 && at.outputs()[1].is_some() {
        return None;
    }
    (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    Some(())
}

/// Ties all axes; scales and zero points are per tensor, or per index of `axis`.
pub fn quantize<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    if at.int("block_size", 0) != 0 {
        return None;
    }
    (0..t.rank(In(0))?).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    for slot in 1..at.inputs().len() {
        if t.dims(In(slot)).is_some_and(|d| d.len() == 1 && d[0].known() != Some(1)) {
            let axis = axis_of(at).ok()?;
            t.tie((In(slot), 0), (Out(0), axis));
        } else if at.optional(slot).is_some() {
            (0..t.rank(In(slot))?).for_each(|axis| t.handle(In(slot), axis));
        }
    }
    Some(())
}
