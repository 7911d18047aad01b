//! Attention in one operator: a unit is a head of keys and values, with all heads that query it.

use super::{
    Slot::{self, In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Attribute, NodeRef};

/// Where the heads of an operand lie: so many from index `from` of the axis, `each` indices wide, `queries` of them to
/// a unit.
#[derive(Clone, Copy)]
struct Heads {
    port: Slot,
    axis: usize,
    from: usize,
    each: usize,
    queries: usize,
}

/// Tie index `i` of an operand to the unit that it belongs to, whose first index along the output stands for it.
fn along(t: &mut Tracer<'_>, output: Heads, units: usize, heads: Heads) -> Option<()> {
    let (x, y) = (t.axis(heads.port, heads.axis)?, t.axis(output.port, output.axis)?);
    let (unit, wide) = (heads.each * heads.queries, output.each * output.queries);
    let end = heads.from + units * unit;
    if unit == 0 || end > t.axes[x].size || units * wide != t.axes[y].size {
        return None;
    }
    t.map(x, y, (heads.from..end).map(|i| (i, (i - heads.from) / unit * wide)));
    Some(())
}

/// An operand of rank 3 `[B,S,N·H]`, 4 `[B,N,S,H]` or 5 `[B,S,N,·,H]` (packed).
fn heads_of(t: &Tracer<'_>, port: Slot, heads: usize, queries: usize) -> Option<Heads> {
    let dims = t.dims(port)?;
    let (axis, each) = match dims.len() {
        3 => (2, dims[2].size()?.checked_div(heads)?),
        4 => (1, 1),
        5 => (2, 1),
        _ => return None,
    };
    Some(Heads { port, axis, from: 0, each, queries })
}

/// Standard `Attention`: Q, K, V, mask, past K, past V.
pub fn attention<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let count = |t: &Tracer<'g>, port, name| match t.dims(port)? {
        dims if dims.len() == 4 => dims[1].size(),
        _ => usize::try_from(at.int(name, 0)).ok(),
    };
    let (n, units) = (count(t, In(0), "q_num_heads")?, count(t, In(1), "kv_num_heads")?);
    dense(t, at, (n, units), &[In(1), In(2), In(4), In(5)], &[Out(1), Out(2)], In(3))
}

/// com.microsoft `MultiHeadAttention`: query, key, value, bias, padding, bias of the scores, past key, past value.
pub fn multi_head<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let n = usize::try_from(at.int("num_heads", 0)).ok()?;
    dense(t, at, (n, n), &[In(1), In(2), In(6), In(7)], &[Out(1), Out(2)], In(5))?;
    if at.optional(3).is_some() {
        // One bias for query, key and value.
        let output = heads_of(t, Out(0), n, 1)?;
        let widths = [In(0), In(1), In(2)].map(|port| Some(heads_of(t, port, n, 1)?.each));
        let mut from = 0;
        for each in widths {
            let each = each?;
            along(t, output, n, Heads { port: In(3), axis: 0, from, each, queries: 1 })?;
            from += n * each;
        }
    }
    Some(())
}

/// com.microsoft `GroupQueryAttention`: query (perhaps with key and value behind it), key, value, past key, past value.
pub fn group_query<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let count = |name| usize::try_from(at.int(name, 0)).ok().filter(|&n| n > 0);
    let (n, units) = (count("num_heads")?, count("kv_num_heads")?);
    if at.optional(1).is_some() {
        dense(t, at, (n, units), &[In(1), In(2), In(3), In(4)], &[Out(1), Out(2)], In(usize::MAX))?;
    } else {
        let queries = n / units;
        let each = t.dims(In(0))?.get(2)?.size()? / (n + 2 * units);
        let output = Heads { port: Out(0), axis: 2, from: 0, each, queries };
        (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
        along(t, output, units, output)?;
        for (from, queries) in [(0, queries), (n * each, 1), ((n + units) * each, 1)] {
            along(t, output, units, Heads { port: In(0), axis: 2, from, each, queries })?;
        }
        for port in [In(3), In(4), Out(1), Out(2)] {
            if t.rank(port).is_some() {
                along(t, output, units, heads_of(t, port, units, 1)?)?;
            }
        }
        t.mark_heads(Out(0), 2);
    }
    // What is one for all heads: lengths, and tables of rotations.
    for slot in 5..at.inputs().len() {
        (0..t.rank(In(slot)).unwrap_or(0)).for_each(|axis| t.mention(In(slot), axis));
    }
    Some(())
}

/// Query and output with `n` heads, other operands with as many as there are units; a bias of the scores may have either
/// one for all.
fn dense<'g>(
    t: &mut Tracer<'g>,
    at: NodeRef<'g>,
    (n, units): (usize, usize),
    others: &[Slot],
    presents: &[Slot],
    scores: Slot,
) -> Option<()> {
    if units == 0 || !n.is_multiple_of(units) {
        return None;
    }
    let queries = n / units;
    let output = heads_of(t, Out(0), n, queries)?;
    t.tie((In(0), 0), (Out(0), 0));
    let places = if t.rank(In(0)) == Some(4) { 2 } else { 1 };
    let out_places = if t.rank(Out(0)) == Some(4) { 2 } else { 1 };
    t.tie((In(0), places), (Out(0), out_places));
    along(t, output, units, output)?;
    along(t, output, units, heads_of(t, In(0), n, queries)?)?;
    for &port in others.iter().chain(presents) {
        if t.rank(port).is_some() {
            along(t, output, units, heads_of(t, port, units, 1)?)?;
        }
    }
    if let Some(dims) = t.dims(scores) {
        // Aligned with [B,N,S,T] at the right.
        (0..dims.len()).for_each(|axis| t.mention(scores, axis));
        if let Some(axis) = dims.len().checked_sub(3).filter(|&a| dims[a].size() == Some(n) && n > 1) {
            along(t, output, units, Heads { port: scores, axis, from: 0, each: 1, queries })?;
        }
    }
    if at.outputs().get(3).copied().flatten().is_some() {
        return None;
    }
    t.mark_heads(Out(0), output.axis);
    Some(())
}

/// com.microsoft `Attention`: input `[B,S,I]`, weights `[I, Q + K + V]`, bias, mask, past, bias of the scores.
pub fn fused<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let n = usize::try_from(at.int("num_heads", 0)).ok().filter(|&n| n > 0)?;
    let sizes = parts(t.dims(In(1))?.get(1)?.size()?, at)?;
    t.tie((In(0), 2), (In(1), 0));
    (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    let output = Heads { port: Out(0), axis: 2, from: 0, each: sizes[2] / n, queries: 1 };
    along(t, output, n, output)?;
    let mut from = 0;
    for size in sizes {
        let heads = Heads { port: In(1), axis: 1, from, each: size / n, queries: 1 };
        along(t, output, n, heads)?;
        if at.optional(2).is_some() {
            along(t, output, n, Heads { port: In(2), axis: 0, ..heads })?;
        }
        from += size;
    }
    if at.optional(3).is_some() {
        (0..t.rank(In(3))?).for_each(|axis| t.mention(In(3), axis));
    }
    if let Some(dims) = t.dims(In(5)) {
        (0..dims.len()).for_each(|axis| t.mention(In(5), axis));
        if dims.get(1).and_then(pare_graph::Dim::size) == Some(n) && n > 1 {
            along(t, output, n, Heads { port: In(5), axis: 1, from: 0, each: 1, queries: 1 })?;
        }
    }
    t.mark_heads(Out(0), 2);
    Some(())
}

/// Widths of query, key and value.
fn parts(all: usize, at: NodeRef<'_>) -> Option<[usize; 3]> {
    match at.ints("qkv_hidden_sizes") {
        Some(&[q, k, v]) => {
            Some([usize::try_from(q).ok()?, usize::try_from(k).ok()?, usize::try_from(v).ok()?])
        }
        _ => all.is_multiple_of(3).then_some([all / 3; 3]),
    }
}

/// As many heads as are left. (The size of a head, and with it the default scale of the scores, stays.)
pub fn recount(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let axis = if at.outputs().first().copied().flatten()?.rank().ok()? == 4 { 1 } else { 2 };
    let Some(left) = c.kept(at, Out(0), axis) else { return Some(()) };
    let all = at.outputs().first().copied().flatten()?.shape()?.get(axis)?.size()?;
    for name in ["num_heads", "q_num_heads", "kv_num_heads"] {
        if let Some(Attribute::Int(n)) = at.attr(name) {
            let fewer = usize::try_from(*n).ok()? * left.len() / all;
            c.set_attribute(at, name, Some(Attribute::Int(fewer as i64)));
        }
    }
    if let Some(sizes) = at.ints("qkv_hidden_sizes") {
        let fewer = sizes.iter().map(|s| s * left.len() as i64 / all as i64).collect();
        c.set_attribute(at, "qkv_hidden_sizes", Some(Attribute::Ints(fewer)));
    }
    Some(())
}

/// `RotaryEmbedding`: each head is turned by itself, `[B,S,N·H]` or `[B,N,S,H]`; positions and tables are one for all.
pub fn rotary<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let microsoft = at.node().domain() == "com.microsoft";
    let rank = t.rank(In(0))?;
    (0..if rank == 4 { 3 } else { 2 }).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    if rank == 3 {
        let width = t.dims(In(0))?[2].size()?;
        let tables = if microsoft { In(2) } else { In(1) };
        let each = match usize::try_from(at.int("num_heads", 0)).ok()? {
            0 => 2 * t.dims(tables)?.last()?.size()?,
            n => width / n,
        };
        let (x, y) = (t.axis(In(0), 2)?, t.axis(Out(0), 2)?);
        if each == 0 || !width.is_multiple_of(each) {
            return None;
        }
        t.tie_axes(Some(x), Some(y));
        t.map(x, x, (0..width).map(|i| (i, i / each * each)));
    }
    for slot in 1..at.inputs().len() {
        (0..t.rank(In(slot)).unwrap_or(0)).for_each(|axis| t.mention(In(slot), axis));
    }
    Some(())
}
