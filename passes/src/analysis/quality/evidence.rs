//! Evidence about an output in the nodes around it.

use crate::analysis::attention::before_rearranging;
use pare_graph::{
    Edge, NodeRef, ValueRef,
    ops::{ReduceView, SoftmaxView, Trait, axis_of},
};

/// The largest number of nodes between an output and the evidence.
const STEPS: usize = 12;

pub(super) enum Evidence {
    /// Rows of length 1.
    Normalized,
    /// Scores of the classes along an axis; negative axes count from the last.
    Scores { axis: i64, why: String },
    /// A sigmoid of each element.
    Sigmoid,
}

pub(super) fn evidence(output: ValueRef<'_>) -> Option<Evidence> {
    let source = before_rearranging(output);
    // Rearranging operators keep the classes last, as far as is known.
    let moved = source.id != output.id && source.shape() != output.shape();
    if let Some(at) = source.producer() {
        if is_normalization(at) {
            return Some(Evidence::Normalized);
        }
        if let Some(axis) = softmax_axis(at).filter(|_| !is_attention(source)) {
            let axis = if moved { -1 } else { axis };
            return Some(Evidence::Scores { axis, why: "a softmax computes it".into() });
        }
        if at.is("Sigmoid") {
            return Some(Evidence::Sigmoid);
        }
    }
    read_as_scores(output)
}

/// Returns whether a softmax weighs other values, as attention does.
fn is_attention(weights: ValueRef<'_>) -> bool {
    weights.users().iter().any(|(user, _)| user.is("MatMul"))
}

/// The axis that a softmax, or one composed of `Exp`, `ReduceSum` and `Div`, normalises.
fn softmax_axis(at: NodeRef<'_>) -> Option<i64> {
    if ["Softmax", "LogSoftmax", "Hardmax"].iter().any(|op| at.is(op)) {
        let axes = SoftmaxView::of(at).ok()?.axes;
        return (axes.len() == 1).then_some(axes.start as i64);
    }
    let (powers, sum) = (at.input(0).ok()?, at.input(1).ok()?.producer()?);
    let is_share = at.is("Div") && powers.produced_by("Exp").is_ok() && sum.is("ReduceSum");
    let same = is_share && sum.input(0).ok()?.id == powers.id;
    same.then(|| reduced_axis(sum)).flatten().map(|axis| axis as i64)
}

/// The only axis that a node reduces.
fn reduced_axis(at: NodeRef<'_>) -> Option<usize> {
    match ReduceView::of(at).ok()?.axes[..] {
        [axis] => Some(axis),
        _ => None,
    }
}

/// Returns whether a node divides rows along the last axis by their lengths.
fn is_normalization(at: NodeRef<'_>) -> bool {
    if at.is("LpNormalization") {
        let is_last = at.input(0).ok().and_then(|x| x.rank().ok()).zip(axis_of(at).ok());
        return at.int("p", 2) == 2 && is_last.is_some_and(|(rank, axis)| axis + 1 == rank);
    }
    let (Ok(a), Ok(b)) = (at.input(0), at.input(1)) else { return false };
    match at.op() {
        "Div" => is_length(b, a),
        "Mul" => is_length(b, a) || is_length(a, b),
        _ => false,
    }
}

/// Returns whether a value is computed from the squares of `rows` summed along their last axis, by operators that
/// are applied to the sums: roots, limits, reciprocals, and broadcasting.
fn is_length(mut value: ValueRef<'_>, rows: ValueRef<'_>) -> bool {
    let rows = before_rearranging(rows);
    let is_rows = |value: ValueRef<'_>| before_rearranging(value).id == rows.id;
    let is_last =
        |at: NodeRef<'_>| rows.rank().ok().zip(reduced_axis(at)).is_some_and(|(r, axis)| axis + 1 == r);
    for _ in 0..STEPS {
        let Some(at) = value.producer() else { return false };
        let Ok(first) = at.input(0) else { return false };
        if at.is("ReduceL2") || at.is("ReduceSumSquare") {
            return is_rows(first) && is_last(at);
        }
        if at.is("ReduceSum") {
            let squares = first.producer().filter(|square| match square.op() {
                "Mul" => square.input(1).is_ok_and(is_rows),
                "Pow" => square.input(1).is_ok_and(|p| p.scalar() == Ok(2.0)),
                _ => false,
            });
            return squares.and_then(|square| square.input(0).ok()).is_some_and(is_rows) && is_last(at);
        }
        // Only one operand is not constant: the other is a limit, an exponent or a numerator.
        let second = at.optional(1).filter(|v| !v.is_constant());
        let is_number = at.has(Trait::Elementwise) || at.is("Expand") || at.has(Trait::View);
        value = match second {
            Some(second) if first.is_constant() && is_number => second,
            Some(_) if at.has(Trait::Elementwise) => return false,
            _ if is_number => first,
            _ => return false,
        };
    }
    false
}

/// Returns whether nodes that read an output choose among classes.
fn read_as_scores(output: ValueRef<'_>) -> Option<Evidence> {
    let mut queue = vec![output];
    for _ in 0..STEPS {
        let value = queue.pop()?;
        for (user, edge) in value.users() {
            if edge != Edge::Input(0) {
                continue;
            }
            let axis = match user.op() {
                // The first axis counts samples.
                "ArgMax" | "TopK" => axis_of(user).ok().filter(|&axis| axis > 0).map(|axis| axis as i64),
                _ => softmax_axis(user).filter(|_| !user.output().is_ok_and(is_attention)),
            };
            // Axes of values that were rearranged are not those of the output.
            let same = value.shape() == output.shape();
            if let Some(axis) = axis {
                let axis = if same { axis } else { -1 };
                return Some(Evidence::Scores { axis, why: format!("{} reads it", user.describe()) });
            }
            if user.has(Trait::View) || user.is("Cast") {
                queue.extend(user.output().ok());
            }
        }
    }
    None
}
