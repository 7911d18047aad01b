//! Operators that look at several elements of an axis at once, or have parameters for each channel.

use super::{
    Slot::{In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{
    Attribute, NodeRef,
    ops::{PoolView, ReduceView, SoftmaxView, axis_of},
};

/// One parameter of each kind for each channel (axis 1).
pub fn per_channel<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    // Statistics over the places of a channel need all of them.
    let first = if at.is("InstanceNormalization") { 2 } else { rank };
    (0..first).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    for slot in 1..at.inputs().len() {
        t.tie((In(slot), 0), (Out(0), 1));
    }
    Some(())
}

/// Each group of elements from `axis` on is normalised on its own. Even a zero counts in its mean and variance, so cutting
/// one would change all the others.
pub fn layer_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    (0..axis).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    let rank = t.rank(In(0))?;
    for (port, axis) in [In(0), Out(0)].into_iter().flat_map(|port| (axis..rank).map(move |a| (port, a))) {
        if let Some(id) = t.axis(port, axis) {
            t.pin_because(id, format!("{} takes the mean and variance of all of it", at.describe()));
        }
    }
    Some(())
}

/// Channels of a group are normalised together, so whole groups go.
pub fn group_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let groups = usize::try_from(at.int("num_groups", 0)).ok().filter(|&g| g > 0)?;
    let channels = t.axis(In(0), 1)?;
    let (size, per) = (t.axes[channels].size, t.axes[channels].size / groups);
    if per * groups != size {
        return None;
    }
    t.tie((In(0), 0), (Out(0), 0));
    t.tie((In(0), 1), (Out(0), 1));
    t.map(channels, channels, (0..size).map(|i| (i, i / per * per)));
    for slot in [1, 2] {
        // One parameter for each channel, or (at first) for each group.
        let own = t.axis(In(slot), 0)?;
        let step = size.checked_div(t.axes[own].size)?;
        if step != 1 && step != per {
            return None;
        }
        t.map(own, channels, (0..size / step).map(|i| (i, i * step)));
    }
    Some(())
}

/// As many groups as are left.
pub fn recount_groups(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let Some(left) = c.kept(at, In(0), 1) else { return Some(()) };
    let (size, groups) = (at.optional(0)?.shape()?.get(1)?.size()?, at.int("num_groups", 0));
    let fewer = usize::try_from(groups).ok()? * left.len() / size;
    c.set_attribute(at, "num_groups", Some(Attribute::Int(fewer as i64)));
    Some(())
}

/// The axis that a norm without means works along, if it is the last.
pub fn rms_axis(at: NodeRef<'_>) -> Option<usize> {
    let (rank, axis) = (at.optional(0)?.rank().ok()?, at.int("axis", -1));
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    let plain = at.outputs().iter().skip(1).flatten().all(|o| o.users().is_empty() && !o.value().is_output());
    (axis + 1 == rank && plain).then_some(axis)
}

/// A norm without means can lose elements that are zero: see `rescale_rms`.
pub fn rms_norm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let axis = rms_axis(at)?;
    (0..=axis).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    t.tie((In(1), 0), (Out(0), axis));
    Some(())
}

/// Of `n` elements `s` are left, the others were zero: `γ·x/√(Σx²/n + ε) = γ·√(n/s)·x/√(Σx²/s + ε·n/s)`.
pub fn rescale_rms(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let axis = rms_axis(at)?;
    let Some(left) = c.kept(at, In(0), axis) else { return Some(()) };
    let ratio = at.optional(0)?.shape()?.get(axis)?.size()? as f64 / left.len() as f64;
    c.scale_input(at, 1, ratio.sqrt())?;
    let epsilon = at.float("epsilon", 1e-5) * ratio;
    c.set_attribute(at, "epsilon", Some(Attribute::Float(epsilon as f32)));
    Some(())
}

/// All axes but those it works along are looked at one by one.
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

/// A sum can lose terms that are zero, and so can a mean that is made smaller for it; a maximum cannot.
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
            t.axis(In(0), axis);
        }
        if view.keepdims {
            t.axis(Out(0), out);
            out += 1;
        }
    }
    Some(())
}

/// A mean over `s` of `n` elements, the others of which were zero: `Σx/n = s/n·(Σx/s)`.
pub fn rescale_mean(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    if !at.is("ReduceMean") {
        return Some(());
    }
    let view = ReduceView::of(at).ok()?;
    let shape = at.optional(0)?.shape()?;
    let mut factor = 1.0;
    for axis in view.axes {
        if let Some(left) = c.kept(at, In(0), axis) {
            factor *= left.len() as f64 / shape.get(axis)?.size()? as f64;
        }
    }
    if factor != 1.0 {
        c.scale_output(at, factor);
    }
    Some(())
}

/// Values at places that are computed: channels and samples stay apart.
pub fn grid_sample<'g>(t: &mut Tracer<'g>, _: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    (0..rank.min(2)).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    t.tie((In(1), 0), (Out(0), 0));
    Some(())
}

/// Each channel of each sample on its own.
pub fn pool<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    PoolView::of(at).map_or(at.op().starts_with("Global").then_some(()), |_| Some(()))?;
    // Indices of a maximum count over the whole tensor.
    if at.outputs().len() > 1 && at.outputs()[1].is_some() {
        return None;
    }
    (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    Some(())
}

/// Scale and zero point are one number, or one for each index of `axis`.
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
            (0..t.rank(In(slot))?).for_each(|axis| t.mention(In(slot), axis));
        }
    }
    Some(())
}
