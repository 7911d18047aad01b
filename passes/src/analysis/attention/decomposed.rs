//! Attention composed of products and a `Softmax`.

use super::{
    Attention, Form, Mask, MaskKind, Miss, NoAttention, Operand, Statics, residual,
    walk::{Origin, beside_static, number, origin, rearranges},
};
use pare_graph::{
    Dim, NodeRef, ValueRef, expect,
    ops::{SoftmaxView, Trait},
};
use std::collections::HashSet;

/// The largest number of nodes between a softmax and the products.
const STEPS: usize = 16;

pub(super) fn read(softmax: NodeRef<'_>, statics: &Statics) -> Result<Attention, Miss> {
    let weights = softmax.output()?;
    let (product, value_operand) = weighting(weights, statics).ok_or(Miss::Unrelated)?;
    let named = || softmax.describe();
    let rank = weights.rank().map_err(|_| NoAttention::Ranks(named()))?;
    let entering = softmax.input(0)?;
    let scores = scores(entering, statics).ok_or_else(|| NoAttention::Scores(named()))?;
    if SoftmaxView::of(softmax).ok().map(|view| view.axes) != Some(rank - 1..rank) {
        return Err(NoAttention::Axis(named()).into());
    }
    let ranks = || NoAttention::Ranks(product.describe());
    let (query, of_q) = operand(scores.left, false, statics).ok_or_else(ranks)?;
    let (key, of_k) = operand(scores.right, true, statics).ok_or_else(ranks)?;
    let (value, of_v) = operand(value_operand, false, statics).ok_or_else(ranks)?;

    let scale = [of_q.factor, of_k.factor, scores.factor].into_iter().flatten();
    let scale = (scale.clone().count() == 3).then(|| scale.product());
    let same = of_q.source.id == of_k.source.id && of_k.source.id == of_v.source.id;
    let projected = [&query, &key, &value].iter().all(|o| o.projection.is_some());
    let source = (same && projected).then_some(of_q.source);
    let context = product.output()?;
    let projection = residual::projection(context, statics);
    let shape = scores.left.shape().ok_or_else(ranks)?;
    let keys = scores.right.shape().and_then(<[Dim]>::last).cloned();
    let tokens: Vec<Dim> = keys.into_iter().chain([shape[shape.len() - 2].clone()]).collect();
    let channels = shape.last().and_then(Dim::size);
    let heads = match query.head {
        Some(axis) => shape[axis].size(),
        None => heads_in_batch(&of_q, scores.left, projection, channels),
    };
    Ok(Attention {
        form: Form::Decomposed,
        core: softmax.id,
        scores: Some(entering.id),
        weights: Some(weights.id),
        scale,
        masks: scores.masks.iter().map(|&m| classify(m, statics)).collect(),
        cached: of_k.cached || of_v.cached,
        heads,
        head_size: channels,
        context: context.id,
        projection: projection.map(|at| at.id),
        residual: residual::residual(projection, of_q.source, &tokens, statics),
        source: source.map(|v| v.id),
        query,
        key,
        value,
    })
}

/// Reads an operand `[.., N, d]` of a product, or transposed `[.., d, N]`, and its origin.
fn operand<'g>(value: ValueRef<'g>, transposed: bool, statics: &Statics) -> Option<(Operand, Origin<'g>)> {
    let rank = value.rank().ok().filter(|&r| r >= 3)?;
    let (token, channel) = if transposed { (rank - 1, rank - 2) } else { (rank - 2, rank - 1) };
    let head = (rank == 4).then(|| head_axis(value));
    let origin = origin(value, statics);
    let (projection, source) = (origin.projection, origin.source.id);
    Some((Operand { value: value.id, head, token: Some(token), channel, projection, source }, origin))
}

/// Returns the product of the softmax with an activation, and that activation. A `Where` that guards against
/// rows of NaN is skipped.
fn weighting<'g>(weights: ValueRef<'g>, statics: &Statics) -> Option<(NodeRef<'g>, ValueRef<'g>)> {
    let mut value = weights;
    for _ in 0..STEPS {
        let mut next = None;
        for (at, edge) in value.users() {
            let pare_graph::Edge::Input(slot) = edge else { continue };
            if at.is("MatMul") && slot == 0 {
                let v = at.input(1).ok().filter(|v| !statics.has(*v))?;
                return Some((at, v));
            }
            if rearranges(at) && slot == 0 || at.is("Where") && slot > 0 {
                next = at.output().ok();
            }
        }
        value = next?;
    }
    None
}

/// The product of q and k, and the operations between it and the softmax.
struct Scores<'g> {
    left: ValueRef<'g>,
    right: ValueRef<'g>,
    factor: Option<f64>,
    masks: Vec<ValueRef<'g>>,
}

/// Follows the input of a softmax upstream to the product of two activations.
fn scores<'g>(mut value: ValueRef<'g>, statics: &Statics) -> Option<Scores<'g>> {
    let (mut factor, mut masks) = (Some(1.0), vec![]);
    for _ in 0..STEPS {
        let at = value.producer()?;
        if at.is("MatMul") {
            let (left, right) = (at.input(0).ok()?, at.input(1).ok()?);
            let both = !statics.has(left) && !statics.has(right);
            return both.then_some(Scores { left, right, factor, masks });
        }
        if rearranges(at) {
            value = at.input(0).ok()?;
        } else if at.is("Where") {
            let (a, b) = (at.input(1).ok()?, at.input(2).ok()?);
            masks.push(at.input(0).ok()?);
            value = if statics.has(a) || !leads_to_product(a, statics) { b } else { a };
        } else if at.is("Add") {
            let (a, b) = (at.input(0).ok()?, at.input(1).ok()?);
            let first = !statics.has(a) && leads_to_product(a, statics);
            let (on, mask) = if first { (a, b) } else { (b, a) };
            masks.push(mask);
            value = on;
        } else if at.is("Mul") || at.is("Div") {
            let (on, by, right) = beside_static(at, statics)?;
            expect(at.is("Mul") || right).ok()?;
            let by = number(by).map(|by| if at.is("Div") { by.recip() } else { by });
            factor = factor.zip(by).map(|(a, b)| a * b);
            value = on;
        } else {
            return None;
        }
    }
    None
}

/// Returns whether a value is computed from a product of two activations, along one operand of each node.
fn leads_to_product(mut value: ValueRef<'_>, statics: &Statics) -> bool {
    for _ in 0..STEPS {
        let Some(at) = value.producer() else { return false };
        if at.is("MatMul") {
            return [0, 1].iter().all(|&i| at.input(i).is_ok_and(|v| !statics.has(v)));
        }
        let passes = rearranges(at) || ["Mul", "Div", "Add", "Where"].iter().any(|op| at.is(op));
        let operands = at.inputs().into_iter().flatten().skip(usize::from(at.is("Where")));
        match operands.into_iter().find(|v| !statics.has(*v)) {
            Some(next) if passes => value = next,
            _ => return false,
        }
    }
    false
}

/// Returns the axis of heads of an operand of rank 4: of the first two axes the one of fixed size, the second
/// if both are.
fn head_axis(value: ValueRef<'_>) -> usize {
    let size = |axis: usize| value.shape().and_then(|s| s[axis].size());
    usize::from(size(1).is_some() || size(0).is_none())
}

/// Returns the number of heads if samples and heads share an axis: the width of all heads over that of one.
fn heads_in_batch(
    of_q: &Origin<'_>,
    query: ValueRef<'_>,
    projection: Option<NodeRef<'_>>,
    head: Option<usize>,
) -> Option<usize> {
    let width = |at: NodeRef<'_>| at.input(0).ok()?.shape()?.last()?.size();
    let merged = projection.and_then(width);
    let own = || of_q.projection.and_then(|id| query.graph.at(id).output().ok()?.shape()?.last()?.size());
    let (width, head) = (merged.or_else(own)?, head.filter(|&h| h > 0)?);
    (width % head == 0).then_some(width / head)
}

/// Returns the kind of a mask.
pub(super) fn classify(mask: ValueRef<'_>, statics: &Statics) -> Mask {
    let value = Some(mask.id);
    let causal = is_triangular(mask) || is_compared(mask);
    let kind = match (causal, statics.has(mask)) {
        (true, _) => MaskKind::Causal,
        (false, true) => MaskKind::Positional,
        (false, false) => MaskKind::Input,
    };
    Mask { kind, value }
}

/// Returns whether a constant masks all elements above the diagonal of its last two axes, and none on it.
fn is_triangular(mask: ValueRef<'_>) -> bool {
    let Ok(tensor) = mask.constant() else { return false };
    let (&[.., rows, columns], Some(data)) = (tensor.shape(), tensor.to_f64()) else { return false };
    // A selection keeps elements that are not zero; a bias masks by a large negative number.
    let selects = tensor.dtype() == pare_graph::DataType::Bool;
    let masked = |v: f64| if selects { v == 0.0 } else { v <= -1e3 };
    let fits = |(i, &v): (usize, &f64)| match (i / columns % rows, i % columns) {
        (row, column) if row < column => masked(v),
        (row, column) if row == column => !masked(v),
        _ => true,
    };
    rows == columns && rows > 1 && data.iter().enumerate().all(fits)
}

/// Returns whether a mask is computed from `Trilu` or a comparison of positions.
fn is_compared(mask: ValueRef<'_>) -> bool {
    let (mut queue, mut seen) = (vec![mask], HashSet::new());
    while let Some(value) = queue.pop() {
        let Some((id, _)) = value.graph.producer(value.id) else { continue };
        if seen.len() >= 64 || !seen.insert(id) {
            continue;
        }
        let at = value.graph.at(id);
        // Equality compares with padding, not places with each other.
        let compares = at.has(Trait::Comparison) && !at.is("Equal");
        if at.is("Trilu") || compares {
            return true;
        }
        if !at.is("Shape") {
            queue.extend(at.inputs().into_iter().flatten());
        }
    }
    false
}
