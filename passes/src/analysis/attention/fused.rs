//! Attention as one operator.

use super::{
    Attention, Form, Mask, MaskKind, Miss, NoAttention, Operand, Statics,
    decomposed::classify,
    residual,
    walk::{before_rearranging, origin},
};
use pare_graph::{Dim, NodeRef, ValueRef};

/// Inputs and outputs of a fused operator.
struct Slots {
    masks: &'static [usize],
    past: &'static [usize],
    present: usize,
}

pub(super) fn read(at: NodeRef<'_>, statics: &Statics) -> Result<Attention, Miss> {
    let microsoft = at.node().domain() == "com.microsoft";
    let (form, slots) = match at.op() {
        "Attention" if at.is("Attention") => {
            (Form::Standard, Slots { masks: &[3], past: &[4, 5], present: 1 })
        }
        "Attention" if microsoft => (Form::Packed, Slots { masks: &[3, 5], past: &[4], present: 1 }),
        "MultiHeadAttention" if microsoft => {
            (Form::MultiHead, Slots { masks: &[4, 5], past: &[6, 7], present: 1 })
        }
        "GroupQueryAttention" if microsoft => {
            (Form::GroupQuery, Slots { masks: &[], past: &[3, 4], present: 1 })
        }
        _ => return Err(Miss::Unrelated),
    };
    let incomplete = || NoAttention::Incomplete(at.describe());
    let outputs = at.outputs();
    let context = outputs.first().copied().flatten().ok_or_else(incomplete)?;
    let used = |slot: usize| {
        let output = outputs.get(slot).copied().flatten();
        output.is_some_and(|v| v.graph.use_count(v.id) > 0)
    };
    let optional = |slot: usize| at.optional(slot);
    let q = at.input(0).map_err(|_| incomplete())?;
    let packed = form == Form::Packed || optional(1).is_none() || optional(2).is_none();
    let operands = [0, 1, 2].map(|slot| {
        let value = if packed { q } else { optional(slot).unwrap_or(q) };
        operand(at, value, form, packed, statics)
    });
    let [query, key, value] = operands;
    let same = query.source == key.source && key.source == value.source;
    let projected = form == Form::Packed || query.projection.is_some();
    let source = at.graph.value_ref(query.source);

    let attribute =
        |name: &str| Some(at.int(name, 0)).filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok());
    let heads = match (form, q.shape()) {
        (Form::Standard, Some([_, heads, _, _])) => heads.size(),
        (Form::Standard, _) => attribute("q_num_heads"),
        _ => attribute("num_heads"),
    };
    let shape = context.shape();
    let width = shape.and_then(<[Dim]>::last).and_then(Dim::size);
    let head_size = match shape.map(<[Dim]>::len) {
        Some(4) => width,
        _ => width.zip(heads).map(|(w, h)| w / h),
    };
    let tokens = match shape {
        Some([_, _, n, _] | [_, n, _]) => std::slice::from_ref(n),
        _ => &[],
    };
    let causal = form == Form::GroupQuery || at.int("is_causal", 0) != 0 || at.int("unidirectional", 0) != 0;
    let mut masks: Vec<_> =
        causal.then_some(Mask { kind: MaskKind::Causal, value: None }).into_iter().collect();
    masks.extend(slots.masks.iter().filter_map(|&slot| optional(slot)).map(|m| classify(m, statics)));
    let default = || head_size.map(|d| 1.0 / (d as f64).sqrt());
    let scale = Some(at.float("scale", 0.0)).filter(|&s| s != 0.0).or_else(default);
    let projection = residual::projection(context, statics);
    Ok(Attention {
        form,
        core: at.id,
        scores: None,
        weights: None,
        scale,
        masks,
        cached: slots.past.iter().any(|&slot| optional(slot).is_some()) || used(slots.present),
        heads,
        head_size,
        context: context.id,
        projection: projection.map(|at| at.id),
        source: (same && projected).then_some(query.source),
        residual: residual::residual(projection, source, tokens, statics),
        query,
        key,
        value,
    })
}

/// Reads an operand of a fused operator: `[B,N,H·d]`, `[B,H,N,d]`, or packed with the others.
fn operand(at: NodeRef<'_>, value: ValueRef<'_>, form: Form, packed: bool, statics: &Statics) -> Operand {
    let rank = value.rank().unwrap_or(3);
    let has_head_axis = rank == 4;
    let (head, token) =
        (has_head_axis.then_some(1), Some(if has_head_axis { 2 } else { 1 }).filter(|_| !packed));
    let (projection, source) = if form == Form::Packed {
        // The operator contains the projection.
        (Some(at.id), before_rearranging(value))
    } else {
        let origin = origin(value, statics);
        (origin.projection, origin.source)
    };
    Operand { value: value.id, head, token, channel: rank - 1, projection, source: source.id }
}
