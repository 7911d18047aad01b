//! Operators that keep the elements and change the axes.

use super::{
    Slot::{self, In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Dim, Edge, NodeRef, Tensor, ops::TransposeView};
use std::ops::Range;

/// Splits the axes of the input and of the output into the shortest segments of equal size. The elements of
/// two segments correspond one by one, since row-major order is kept.
fn segments(from: &[Dim], to: &[Dim]) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let one = Dim::from(1_i64);
    let (mut i, mut j, mut found) = (0, 0, vec![]);
    while i < from.len() || j < to.len() {
        // Axes of size 1 between segments correspond to each other, or to no axis.
        match (from.get(i).map(|d| *d == one), to.get(j).map(|d| *d == one)) {
            (Some(true), Some(true)) => {
                found.push((i..i + 1, j..j + 1));
                (i, j) = (i + 1, j + 1);
                continue;
            }
            (Some(true), _) => {
                found.push((i..i + 1, j..j));
                i += 1;
                continue;
            }
            (_, Some(true)) => {
                found.push((i..i, j..j + 1));
                j += 1;
                continue;
            }
            (None, _) | (_, None) => return None,
            _ => {}
        }
        let (a, b) = (i, j);
        let (mut p, mut q) = (from[i].clone(), to[j].clone());
        (i, j) = (i + 1, j + 1);
        while p != q {
            // The smaller side takes its next axis; with symbols, the side that divides the other.
            let extend_input = match (p.known(), q.known()) {
                (Some(p), Some(q)) => p < q,
                _ => q.exact_div(&p).is_some(),
            };
            if extend_input {
                p = &p * from.get(i)?;
                i += 1;
            } else {
                q = &q * to.get(j)?;
                j += 1;
            }
        }
        found.push((a..i, b..j));
    }
    Some(found)
}

/// Ties one axis on either side of each segment: the axis of heads if there is one, else the widest that can
/// lose indices. The other axes of the segment are pinned.
pub fn reshape<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let (from, to) = (t.dims(In(0))?, t.dims(Out(0))?);
    for (a, b) in segments(from, to)? {
        if a.len() == 1 && b.len() == 1 {
            t.tie((In(0), a.start), (Out(0), b.start));
            continue;
        }
        a.clone().for_each(|axis| t.handle(In(0), axis));
        b.clone().for_each(|axis| t.handle(Out(0), axis));
        if a.is_empty() || b.is_empty() {
            continue;
        }
        let sizes = |dims: &[Dim]| dims.iter().map(Dim::size).collect::<Option<Vec<_>>>();
        let tied = match (sizes(&from[a.clone()]), sizes(&to[b.clone()])) {
            (Some(p), Some(q)) if !t.is_coarse() => {
                let (u, v) = (tied_axis(t, In(0), &a, &p), tied_axis(t, Out(0), &b, &q));
                u.zip(v).map(|(u, v)| (u, v, p, q))
            }
            _ => None,
        };
        let Some((u, v, p, q)) = tied else {
            t.add_segment(&a, &b);
            if !t.is_coarse() {
                a.for_each(|axis| t.pin(In(0), axis));
                b.for_each(|axis| t.pin(Out(0), axis));
            }
            continue;
        };
        let (x, y) = (t.handled_axis(In(0), u)?, t.handled_axis(Out(0), v)?);
        let total: usize = p.iter().product();
        if total > 1 << 20 {
            return None;
        }
        let (stride_x, size_x) = (p[u - a.start + 1..].iter().product::<usize>(), p[u - a.start]);
        let (stride_y, size_y) = (q[v - b.start + 1..].iter().product::<usize>(), q[v - b.start]);
        t.map(x, y, (0..total).map(|i| (i / stride_x % size_x, i / stride_y % size_y)));
        a.filter(|&axis| axis != u).for_each(|axis| t.pin(In(0), axis));
        b.filter(|&axis| axis != v).for_each(|axis| t.pin(Out(0), axis));
    }
    for slot in 1..at.inputs().len() {
        t.handle_all(In(slot));
    }
    Some(())
}

/// The axis of a segment that is tied to the other side.
fn tied_axis(t: &Tracer<'_>, slot: Slot, axes: &Range<usize>, sizes: &[usize]) -> Option<usize> {
    if axes.len() == 1 {
        return Some(axes.start);
    }
    let wide = axes.clone().zip(sizes).filter(|&(axis, &size)| size > 1 && !t.axis_use(slot, axis).pinned);
    // The first of equally wide axes.
    wide.max_by_key(|&(axis, &size)| (t.axis_use(slot, axis).heads, size, std::cmp::Reverse(axis)))
        .map(|(axis, _)| axis)
}

/// Sets the target shape to a new constant; sizes that are not known remain `-1` or `0`.
pub fn retarget(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let (new, old) = (c.dims(at, Out(0))?, at.outputs().first().copied().flatten()?.shape()?);
    if new == old && c.dims(at, In(0))? == at.optional(0)?.shape()? {
        return Some(());
    }
    let given = if at.attr("shape").is_some() {
        at.ints("shape").map(<[i64]>::to_vec)
    } else {
        at.optional(1)?.constant_ints().ok()
    };
    let mut target: Vec<i64> = match given {
        // Only entries of sizes that change are replaced.
        Some(given) if given.len() == new.len() => {
            let entry = |i: usize| match (given[i], new[i].known(), old[i] == new[i]) {
                (entry, _, true) => Some(entry),
                (entry @ (0 | -1), ..) => Some(entry),
                (_, Some(size), false) => Some(size),
                _ => None,
            };
            (0..new.len()).map(entry).collect::<Option<_>>()?
        }
        Some(given) if at.is("Expand") && given.len() < new.len() => {
            // Leading axes that are not given are those of the input.
            let tail = &new[new.len() - given.len()..];
            let entry = |(g, d): (&i64, &Dim)| if *g == 1 { Some(1) } else { d.known() };
            given.iter().zip(tail).map(entry).collect::<Option<_>>()?
        }
        _ => new.iter().map(|d| d.known().unwrap_or(-1)).collect(),
    };
    if at.is("Expand") {
        // The input has the sizes that are not known; 1 keeps them.
        target.iter_mut().filter(|t| **t < 0).for_each(|t| *t = 1);
        if repeats_unknown(&c.dims(at, In(0))?, &new)? {
            return c.shift_sizes(at, 1, old, &new);
        }
    } else if target.iter().filter(|t| **t == -1).count() > 1 {
        // 0 copies the size of the same axis of the input.
        let input = c.dims(at, In(0))?;
        for i in 0..target.len() {
            if target[i] == -1 && input.get(i) == Some(&new[i]) {
                target[i] = 0;
            }
        }
        if at.int("allowzero", 0) != 0 || target.iter().filter(|t| **t == -1).count() > 1 {
            return c.shift_sizes(at, 1, old, &new);
        }
    }
    if at.attr("shape").is_some() {
        c.set_attribute(at, "shape", Some(target.into()));
    } else {
        c.set_input(at, 1, "shape", Tensor::vector(&target));
    }
    Some(())
}

/// Ties the permuted axes.
pub fn transpose<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let view = TransposeView::of(at).ok()?;
    view.perm.iter().enumerate().for_each(|(out, &axis)| t.tie((In(0), axis), (Out(0), out)));
    Some(())
}

/// Returns whether `Expand` repeats along an axis of unknown size, for which no constant shape exists.
fn repeats_unknown(input: &[Dim], output: &[Dim]) -> Option<bool> {
    let offset = output.len().checked_sub(input.len())?;
    let repeats = |i: usize| i < offset || input[i - offset] != output[i];
    Some((0..output.len()).any(|i| output[i].known().is_none() && repeats(i)))
}

/// Returns whether the shape that `Expand` computes has a known element for an axis of its output.
fn requests_known(at: NodeRef<'_>, axis: usize, rank: usize) -> bool {
    let content = at.optional(1).and_then(|shape| shape.value().fact.content());
    content.is_some_and(|sizes| {
        let place = (axis + sizes.len()).checked_sub(rank);
        place.is_none_or(|place| sizes.get(place).is_some_and(|size| size.known().is_some()))
    })
}

/// Ties the axes that keep their size; they are pinned if the shape cannot be changed for them.
pub fn expand<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let (dims, out) = (t.dims(In(0))?, t.dims(Out(0))?);
    let offset = out.len().checked_sub(dims.len())?;
    let computed = repeats_unknown(dims, out)?;
    for axis in 0..dims.len() {
        if dims[axis] == out[axis + offset] {
            t.tie((In(0), axis), (Out(0), axis + offset));
            if computed && !requests_known(at, axis + offset, out.len()) {
                let why = format!("{} computes its shape, which `safe` may resolve", at.describe());
                let kept = t.handled_axis(In(0), axis)?;
                t.pin_because(kept, why);
            }
        } else {
            t.handled_axis(In(0), axis);
        }
    }
    t.handled_axis(In(1), 0);
    Some(())
}

/// Ties index `i` of a repeated axis to `i`, `i + n`, …
pub fn tile<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let repeats = at.optional(1)?.constant_ints().ok()?;
    for (axis, &count) in repeats.iter().enumerate() {
        if count == 1 {
            t.tie((In(0), axis), (Out(0), axis));
        } else {
            let (x, y) = (t.handled_axis(In(0), axis)?, t.handled_axis(Out(0), axis)?);
            let (n, all) = (t.axes[x].size, t.axes[y].size);
            if n == 0 || !all.is_multiple_of(n) {
                return None;
            }
            t.map(x, y, (0..all).map(|i| (i % n, i)));
        }
    }
    t.handled_axis(In(1), 0);
    Some(())
}

/// Pins the axes whose sizes are read: the values may be used for anything.
pub fn shape<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let rank = t.rank(In(0))?;
    let read = read_axes(at, rank).unwrap_or_else(|| (0..rank).collect());
    for axis in 0..rank {
        if read.contains(&axis) {
            t.pin(In(0), axis);
        } else {
            t.handled_axis(In(0), axis);
        }
    }
    t.handled_axis(Out(0), 0);
    Some(())
}

/// Returns the axes whose sizes are read, if all users select some.
fn read_axes(at: NodeRef<'_>, rank: usize) -> Option<Vec<usize>> {
    let start = at.int("start", 0);
    let start = usize::try_from(if start < 0 { start + rank as i64 } else { start }).ok()?;
    let output = at.output().ok()?;
    if output.value().is_output() {
        return None;
    }
    let count = output.shape()?.first()?.size()?;
    let mut axes = vec![];
    for (user, edge) in output.users() {
        if edge != Edge::Input(0) || !(user.is("Gather") || user.is("Slice")) {
            return None;
        }
        let indices = if user.is("Gather") {
            user.input(1).ok()?.constant_ints().ok()?
        } else {
            let view = pare_graph::ops::SliceView::of(user).ok()?;
            let [cut] = view.axes[..] else { return None };
            let (first, n) = cut.on(count);
            (0..n as i64).map(|i| first as i64 + i * cut.step).collect()
        };
        for i in indices {
            axes.push(start + usize::try_from(if i < 0 { i + count as i64 } else { i }).ok()?);
        }
    }
    Some(axes)
}
