//! Operators that look at several elements of an axis at once, or have parameters for each channel.

use super::{
    Port::{In, Out},
    Tracer,
};
use pare_graph::{
    At,
    ops::{PoolView, ReduceView, SoftmaxView, axis_of},
};

/// One parameter of each kind for each channel (axis 1).
pub fn per_channel<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    // Statistics over the places of a channel need all of them.
    let first = if at.is("InstanceNormalization") { 2 } else { rank };
    (0..first).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    for slot in 1..at.inputs().len() {
        t.tie((In(slot), 0), (Out(0), 1));
    }
    Some(())
}

/// Each group of elements from `axis` on is normalised on its own, so they are needed whole.
pub fn layer_norm<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
    let axis = axis_of(at).ok()?;
    (0..axis).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    Some(())
}

/// All axes but those it works along are looked at one by one.
pub fn along<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
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

/// A sum can lose terms that are zero; a mean or maximum cannot.
pub fn reduce<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
    let view = ReduceView::of(at).ok()?;
    let mut out = 0;
    for axis in 0..t.rank(In(0))? {
        if !view.axes.contains(&axis) {
            t.tie((In(0), axis), (Out(0), out));
            out += 1;
            continue;
        }
        if ["ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"].contains(&at.op()) {
            t.axis(In(0), axis);
        }
        if view.keepdims {
            t.axis(Out(0), out);
            out += 1;
        }
    }
    Some(())
}

/// Each channel of each sample on its own.
pub fn pool<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
    PoolView::of(at).map_or(at.op().starts_with("Global").then_some(()), |_| Some(()))?;
    // Indices of a maximum count over the whole tensor.
    if at.outputs().len() > 1 && at.outputs()[1].is_some() {
        return None;
    }
    (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    Some(())
}

/// Scale and zero point are one number, or one for each index of `axis`.
pub fn quantize<'g>(t: &mut Tracer<'g>, at: At<'g>) -> Option<()> {
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
