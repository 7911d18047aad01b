//! Fused attention: a unit is a head of keys and values, with all heads of queries that read it.

use super::{
    Slot::{self, In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Attribute, NodeRef};

/// The heads of an operand: from index `from` of an axis on, `each` indices wide, `queries` of them to a
/// unit.
#[derive(Clone, Copy)]
struct Heads {
    slot: Slot,
    axis: usize,
    from: usize,
    each: usize,
    queries: usize,
}

/// Ties each index of an operand to the first index of its unit in the output.
fn tie_heads(t: &mut Tracer<'_>, output: Heads, units: usize, heads: Heads) -> Option<()> {
    let (x, y) = (t.handled_axis(heads.slot, heads.axis)?, t.handled_axis(output.slot, output.axis)?);
    let (unit, wide) = (heads.each * heads.queries, output.each * output.queries);
    let end = heads.from + units * unit;
    if unit == 0 || end > t.axes[x].size || units * wide != t.axes[y].size {
        return None;
    }
    t.map(x, y, (heads.from..end).map(|i| (i, (i - heads.from) / unit * wide)));
    Some(())
}

/// Returns the heads of an operand of rank 3 `[B,S,N·H]`, 4 `[B,N,S,H]` or 5 `[B,S,N,·,H]` (packed).
fn heads_of(t: &Tracer<'_>, slot: Slot, heads: usize, queries: usize) -> Option<Heads> {
    let dims = t.dims(slot)?;
    let (axis, each) = match dims.len() {
        3 => (2, dims[2].size()?.checked_div(heads)?),
        4 => (1, 1),
        5 => (2, 1),
        _ => return None,
    };
    Some(Heads { slot, axis, from: 0, each, queries })
}

/// Standard `Attention`: Q, K, V, mask, past K, past V.
pub fn attention<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let count = |t: &Tracer<'g>, slot, name| match t.dims(slot)? {
        dims if dims.len() == 4 => dims[1].size(),
        _ => usize::try_from(at.int(name, 0)).ok(),
    };
    let (queries, units) = (count(t, In(0), "q_num_heads")?, count(t, In(1), "kv_num_heads")?);
    let slots =
        Slots { keys_values: &[In(1), In(2), In(4), In(5), Out(1), Out(2)], scores_bias: Some(In(3)) };
    tie_slots(t, at, HeadCounts { queries, units }, slots)
}

/// com.microsoft `MultiHeadAttention`: query, key, value, bias, padding, bias of the scores, past key, past
/// value.
pub fn multi_head<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let n = usize::try_from(at.int("num_heads", 0)).ok()?;
    let slots =
        Slots { keys_values: &[In(1), In(2), In(6), In(7), Out(1), Out(2)], scores_bias: Some(In(5)) };
    tie_slots(t, at, HeadCounts { queries: n, units: n }, slots)?;
    if at.optional(3).is_some() {
        // The biases of query, key and value are one vector.
        let output = heads_of(t, Out(0), n, 1)?;
        let widths = [In(0), In(1), In(2)].map(|slot| Some(heads_of(t, slot, n, 1)?.each));
        let mut from = 0;
        for each in widths {
            let each = each?;
            tie_heads(t, output, n, Heads { slot: In(3), axis: 0, from, each, queries: 1 })?;
            from += n * each;
        }
    }
    Some(())
}

/// com.microsoft `GroupQueryAttention`: query (or query, key and value packed), key, value, past key, past
/// value.
pub fn group_query<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let count = |name| usize::try_from(at.int(name, 0)).ok().filter(|&n| n > 0);
    let (n, units) = (count("num_heads")?, count("kv_num_heads")?);
    if at.optional(1).is_some() {
        let slots = Slots { keys_values: &[In(1), In(2), In(3), In(4), Out(1), Out(2)], scores_bias: None };
        tie_slots(t, at, HeadCounts { queries: n, units }, slots)?;
    } else {
        let queries = n / units;
        let each = t.dims(In(0))?.get(2)?.size()? / (n + 2 * units);
        let output = Heads { slot: Out(0), axis: 2, from: 0, each, queries };
        (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
        tie_heads(t, output, units, output)?;
        for (from, queries) in [(0, queries), (n * each, 1), ((n + units) * each, 1)] {
            tie_heads(t, output, units, Heads { slot: In(0), axis: 2, from, each, queries })?;
        }
        for slot in [In(3), In(4), Out(1), Out(2)] {
            if t.rank(slot).is_some() {
                tie_heads(t, output, units, heads_of(t, slot, units, 1)?)?;
            }
        }
        t.mark_heads(Out(0), 2);
    }
    // Sequence lengths and rotation tables are shared by all heads.
    for slot in 5..at.inputs().len() {
        t.handle_all(In(slot));
    }
    Some(())
}

/// The heads of queries, and those of keys and values, which are the units.
#[derive(Clone, Copy)]
struct HeadCounts {
    queries: usize,
    units: usize,
}

/// The slots of an attention operator beside query and output.
struct Slots {
    /// Keys and values: of the inputs, past and present.
    keys_values: &'static [Slot],
    /// The bias of the scores, with a head for each query or one for all.
    scores_bias: Option<Slot>,
}

/// Ties the heads of query, keys, values and the bias of the scores to those of the output.
fn tie_slots<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>, counts: HeadCounts, slots: Slots) -> Option<()> {
    let HeadCounts { queries: n, units } = counts;
    if units == 0 || !n.is_multiple_of(units) {
        return None;
    }
    let queries = n / units;
    let output = heads_of(t, Out(0), n, queries)?;
    t.tie((In(0), 0), (Out(0), 0));
    let tokens = |t: &Tracer<'g>, slot| if t.rank(slot) == Some(4) { 2 } else { 1 };
    t.tie((In(0), tokens(t, In(0))), (Out(0), tokens(t, Out(0))));
    tie_heads(t, output, units, output)?;
    tie_heads(t, output, units, heads_of(t, In(0), n, queries)?)?;
    for &slot in slots.keys_values {
        if t.rank(slot).is_some() {
            tie_heads(t, output, units, heads_of(t, slot, units, 1)?)?;
        }
    }
    if let Some((scores, dims)) = slots.scores_bias.and_then(|slot| Some((slot, t.dims(slot)?))) {
        // Broadcast to [B,N,S,T].
        t.handle_all(scores);
        if let Some(axis) = dims.len().checked_sub(3).filter(|&a| dims[a].size() == Some(n) && n > 1) {
            tie_heads(t, output, units, Heads { slot: scores, axis, from: 0, each: 1, queries })?;
        }
    }
    if at.outputs().get(3).copied().flatten().is_some() {
        return None;
    }
    t.mark_heads(Out(0), output.axis);
    Some(())
}

/// com.microsoft `Attention`: input `[B,S,I]`, weights `[I, Q + K + V]`, bias, mask, past, bias of the
/// scores.
pub fn fused<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let n = usize::try_from(at.int("num_heads", 0)).ok().filter(|&n| n > 0)?;
    let sizes = packed_widths(t.dims(In(1))?.get(1)?.size()?, at)?;
    t.tie((In(0), 2), (In(1), 0));
    (0..2).for_each(|axis| t.tie((In(0), axis), (Out(0), axis)));
    let output = Heads { slot: Out(0), axis: 2, from: 0, each: sizes[2] / n, queries: 1 };
    tie_heads(t, output, n, output)?;
    let mut from = 0;
    for size in sizes {
        let heads = Heads { slot: In(1), axis: 1, from, each: size / n, queries: 1 };
        tie_heads(t, output, n, heads)?;
        if at.optional(2).is_some() {
            tie_heads(t, output, n, Heads { slot: In(2), axis: 0, ..heads })?;
        }
        from += size;
    }
    if at.optional(3).is_some() {
        t.handle_all(In(3));
    }
    if let Some(dims) = t.dims(In(5)) {
        t.handle_all(In(5));
        if dims.get(1).and_then(pare_graph::Dim::size) == Some(n) && n > 1 {
            tie_heads(t, output, n, Heads { slot: In(5), axis: 1, from: 0, each: 1, queries: 1 })?;
        }
    }
    t.mark_heads(Out(0), 2);
    Some(())
}

/// The widths of query, key and value.
fn packed_widths(all: usize, at: NodeRef<'_>) -> Option<[usize; 3]> {
    match at.ints("qkv_hidden_sizes") {
        Some(&[q, k, v]) => {
            Some([usize::try_from(q).ok()?, usize::try_from(k).ok()?, usize::try_from(v).ok()?])
        }
        _ => all.is_multiple_of(3).then_some([all / 3; 3]),
    }
}

/// Sets the numbers of heads. The size of a head, and with it the default scale of the scores, does not
/// change.
pub fn recount(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let axis = if at.outputs().first().copied().flatten()?.rank().ok()? == 4 { 1 } else { 2 };
    let Some(kept) = c.kept(at, Out(0), axis) else { return Some(()) };
    let all = at.outputs().first().copied().flatten()?.shape()?.get(axis)?.size()?;
    for name in ["num_heads", "q_num_heads", "kv_num_heads"] {
        if let Some(Attribute::Int(n)) = at.attr(name) {
            let fewer = usize::try_from(*n).ok()? * kept.len() / all;
            c.set_attribute(at, name, Some(Attribute::Int(fewer as i64)));
        }
    }
    if let Some(sizes) = at.ints("qkv_hidden_sizes") {
        let fewer = sizes.iter().map(|s| s * kept.len() as i64 / all as i64).collect();
        c.set_attribute(at, "qkv_hidden_sizes", Some(Attribute::Ints(fewer)));
    }
    Some(())
}

/// `RotaryEmbedding`: rotates each head, `[B,S,N·H]` or `[B,N,S,H]`. Positions and tables are shared by all
/// heads.
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
        let (x, y) = (t.handled_axis(In(0), 2)?, t.handled_axis(Out(0), 2)?);
        if each == 0 || !width.is_multiple_of(each) {
            return None;
        }
        t.tie_axes(Some(x), Some(y));
        t.map(x, x, (0..width).map(|i| (i, i / each * each)));
    }
    for slot in 1..at.inputs().len() {
        t.handle_all(In(slot));
    }
    Some(())
}
