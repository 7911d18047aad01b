//! Convolutions, matrix products and `Einsum`.

use super::{
    Slot::{In, Out},
    Tracer,
    elementwise::align,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Attribute, NodeRef};
use std::collections::HashMap;

/// `W` `[O, I/g, …]`: ties `O` to the channels of the output and `I` to those of the input. Depthwise
/// convolutions, and others with many groups, lose entire groups; those with few groups lose equally many
/// channels of each.
pub fn conv<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let sizes = |t: &Tracer<'g>| Some((t.dims(In(1))?.first()?.size()?, t.dims(In(1))?.get(1)?.size()?));
    let (outputs, inputs) = sizes(t)?;
    let group = usize::try_from(at.int("group", 1)).ok().filter(|&g| g > 0)?;
    t.tie((In(0), 0), (Out(0), 0));
    let bias = at.optional(2).is_some();
    grouped(
        t,
        group,
        GroupedAxes {
            input: (In(0), 1),
            inputs: (In(1), 1),
            outputs: (In(1), 0),
            per: GroupSize { inputs, outputs: outputs / group },
        },
    )?;
    t.tie((In(1), 0), (Out(0), 1));
    if bias {
        t.tie((In(2), 0), (Out(0), 1));
    }
    Some(())
}

/// `W` `[I, O/g, …]`: like [`conv`].
pub fn conv_transpose<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let dims = t.dims(In(1))?;
    let (inputs, outputs) = (dims.first()?.size()?, dims.get(1)?.size()?);
    let group = usize::try_from(at.int("group", 1)).ok().filter(|&g| g > 0)?;
    t.tie((In(0), 0), (Out(0), 0));
    t.tie((In(0), 1), (In(1), 0));
    grouped(
        t,
        group,
        GroupedAxes {
            input: (Out(0), 1),
            inputs: (In(1), 1),
            outputs: (In(1), 0),
            per: GroupSize { inputs: outputs, outputs: inputs / group },
        },
    )?;
    if at.optional(2).is_some() {
        t.tie((In(2), 0), (Out(0), 1));
    }
    Some(())
}

/// The axes of grouped weights: `inputs` counts channels within a group, `outputs` all channels, group by
/// group; `input` is the axis of the activation whose channels `inputs` counts.
struct GroupedAxes {
    input: (super::Slot, usize),
    inputs: (super::Slot, usize),
    outputs: (super::Slot, usize),
    per: GroupSize,
}

/// The number of channels of a group on either side.
#[derive(Clone, Copy)]
struct GroupSize {
    inputs: usize,
    outputs: usize,
}

fn grouped(t: &mut Tracer<'_>, group: usize, axes: GroupedAxes) -> Option<()> {
    let [x, w, o] = [axes.input, axes.inputs, axes.outputs].map(|(slot, axis)| t.handled_axis(slot, axis));
    let (Some(x), Some(w), Some(o)) = (x, w, o) else {
        x.into_iter().chain(w).chain(o).for_each(|axis| t.pin_axis(axis));
        return Some(());
    };
    let GroupSize { inputs: a, outputs: b } = axes.per;
    if t.axes[x].size != group * a || t.axes[o].size != group * b {
        return None;
    }
    if group == 1 {
        t.tie_axes(Some(x), Some(w));
    } else if loses_groups(group, axes.per) {
        // Entire groups: all channels of a group on both sides are one unit.
        t.pin_axis(w);
        t.map(x, o, (0..group * a).map(|i| (i, i / a * b)));
        t.map(o, o, (0..group * b).map(|i| (i, i / b * b)));
    } else {
        // Equally many of each group: channel i of all groups is one unit, on either side.
        t.map(x, w, (0..group * a).map(|i| (i, i % a)));
        t.map(o, o, (0..group * b).map(|i| (i, i % b)));
    }
    Some(())
}

/// Returns whether a convolution loses entire groups.
fn loses_groups(group: usize, per: GroupSize) -> bool {
    group > 1 && group >= per.inputs.max(per.outputs)
}

/// Sets `group` where entire groups were removed.
pub fn regroup(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let group = usize::try_from(at.int("group", 1)).ok().filter(|&g| g > 0)?;
    let weight = at.optional(1)?.shape()?;
    let per = GroupSize { inputs: weight.get(1)?.size()?, outputs: weight.first()?.size()? / group };
    if let Some(kept) = c.kept(at, In(0), 1).filter(|_| loses_groups(group, per)) {
        let inputs = at.optional(0)?.shape()?.get(1)?.size()? / group;
        c.set_attribute(at, "group", Some(Attribute::Int(kept.len().checked_div(inputs)? as i64)));
    }
    Some(())
}

/// `Y = A'·B' + C`.
pub fn gemm<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let (a, b) = (at.int("transA", 0) != 0, at.int("transB", 0) != 0);
    let (m, ka) = if a { (1, 0) } else { (0, 1) };
    let (kb, n) = if b { (1, 0) } else { (0, 1) };
    t.tie((In(0), ka), (In(1), kb));
    t.tie((In(0), m), (Out(0), 0));
    t.tie((In(1), n), (Out(0), 1));
    if at.optional(2).is_some() {
        let (dims, out) = (t.dims(In(2))?, t.dims(Out(0))?);
        align(t, In(2), dims, Out(0), out)?;
    }
    Some(())
}

/// `Y[…, m, n] = Σ_k A[…, m, k]·B[…, k, n]`; the leading axes broadcast. Of two activations, they count
/// heads.
pub fn matmul<'g>(t: &mut Tracer<'g>, _: NodeRef<'g>) -> Option<()> {
    let (a, b, y) = (t.dims(In(0))?, t.dims(In(1))?, t.dims(Out(0))?);
    let (p, q, r) = (a.len(), b.len(), y.len());
    if p < 2 || q < 2 || r != p.max(q) {
        return None;
    }
    t.tie((In(0), p - 1), (In(1), q - 2));
    t.tie((In(0), p - 2), (Out(0), r - 2));
    t.tie((In(1), q - 1), (Out(0), r - 1));
    align(t, In(0), &a[..p - 2], Out(0), &y[..r - 2])?;
    align(t, In(1), &b[..q - 2], Out(0), &y[..r - 2])?;
    if !t.is_constant(0) && !t.is_constant(1) {
        (0..r - 2).for_each(|axis| t.mark_heads(Out(0), axis));
    }
    Some(())
}

/// Returns the letters of the axes of each operand and of the result; `None` if the equation does not name
/// all of them once.
pub fn einsum_axes(at: NodeRef<'_>) -> Option<(Vec<Vec<char>>, Vec<char>)> {
    let equation = at.string("equation", "");
    let (terms, result) = equation.split_once("->")?;
    let letters = |term: &str| -> Option<Vec<char>> {
        let letters: Vec<_> = term.chars().filter(|c| !c.is_whitespace()).collect();
        let once = |(i, c): (usize, &char)| c.is_ascii_alphabetic() && !letters[..i].contains(c);
        letters.iter().enumerate().all(once).then(|| letters.clone())
    };
    Some((terms.split(',').map(letters).collect::<Option<_>>()?, letters(result)?))
}

/// Ties axes of the same letter. Axes of all operands that are not summed over count heads if no operand is
/// constant.
pub fn einsum<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let (terms, result) = einsum_axes(at)?;
    let mut first = HashMap::<char, (super::Slot, usize)>::new();
    let operands = terms.iter().enumerate().map(|(slot, letters)| (In(slot), letters));
    for (slot, letters) in operands.chain([(Out(0), &result)]) {
        for (axis, &letter) in letters.iter().enumerate() {
            if let Some(&known) = first.get(&letter) {
                t.tie(known, (slot, axis));
            } else {
                t.handled_axis(slot, axis);
                first.insert(letter, (slot, axis));
            }
        }
    }
    if (0..terms.len()).all(|slot| !t.is_constant(slot)) {
        for (axis, letter) in result.iter().enumerate() {
            if terms.len() > 1 && terms.iter().all(|term| term.contains(letter)) {
                t.mark_heads(Out(0), axis);
            }
        }
    }
    Some(())
}
