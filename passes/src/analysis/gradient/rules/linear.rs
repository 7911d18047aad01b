//! Matrix products.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{Attribute, Decline, Node, ops::GemmView};

/// `Y = A·B`, `dA = dY·Bᵀ`, `dB = Aᵀ·dY`.
pub(super) fn matmul(s: &Step<'_>) -> Done {
    let (a, b, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let (m, n) = (a.rank()?, b.rank()?);
    if m == 1 || n == 1 {
        return vectors(s, a, b, dy);
    }
    if n == 2 {
        // The rows of all batches together: one product instead of many, and no sum of many.
        if let (Ok(rows), Ok(dy)) = (rows(a), rows(dy)) {
            s.give_with(0, || dy.gemm(false, b, true, 1.0).reshape_like(a));
            s.give_weight(1, dy, 1, |dy| Ok(rows.gemm(true, dy, false, 1.0)));
            return Ok(());
        }
    }
    s.give_with(0, || Ok(dy.matmul(b.transposed()?)));
    s.give_with(1, || Ok(a.transposed()?.matmul(dy)));
    Ok(())
}

/// The rows of all batches as one matrix.
fn rows(x: Term<'_>) -> Result<Term<'_>, Decline> {
    let last = x.rank()?.saturating_sub(1);
    let size = x.size(last)? as i64;
    Ok(if last == 1 { x } else { x.reshape(&[-1, size]) })
}

/// The rule where a vector takes the place of a matrix: `A` with one row, or `B` with one column.
fn vectors<'t>(s: &Step<'t>, a: Term<'t>, b: Term<'t>, dy: Term<'t>) -> Done {
    let (m, n) = (a.rank()?, b.rank()?);
    let (row, column) = (m == 1, n == 1);
    let full_a = if row { a.unsqueeze(&[0]) } else { a };
    let full_b = if column { b.unsqueeze(&[1]) } else { b };
    let batch = m.max(n).saturating_sub(2);
    let dy = if row { dy.unsqueeze(&[batch.min(dy.rank()?)]) } else { dy };
    let dy = if column { dy.unsqueeze(&[dy.rank()?]) } else { dy };
    s.give_with(0, || {
        let da = dy.matmul(full_b.transposed()?).sum_to(full_a)?;
        Ok(if row { da.squeeze(&[0]) } else { da })
    });
    s.give_with(1, || {
        let db = full_a.transposed()?.matmul(dy).sum_to(full_b)?;
        Ok(if column { db.squeeze(&[1]) } else { db })
    });
    Ok(())
}

/// `Y = α·A'·B' + β·C`: `dA' = α·dY·B'ᵀ`, `dB' = α·A'ᵀ·dY`, `dC = β·dY`, where `'` transposes if the flag is set.
pub(super) fn gemm(s: &Step<'_>) -> Done {
    let (a, b, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let GemmView { alpha, beta, trans_a, trans_b } = s.read(GemmView::of)?;
    s.give_with(0, || {
        Ok(if trans_a { b.gemm(trans_b, dy, true, alpha) } else { dy.gemm(false, b, !trans_b, alpha) })
    });
    s.give_weight(1, dy, 1, |dy| {
        Ok(if trans_b { dy.gemm(true, a, trans_a, alpha) } else { a.gemm(!trans_a, dy, false, alpha) })
    });
    s.give_with(2, || {
        let dc = dy.sum_to(s.x(2)?)?;
        Ok(if beta == 1.0 { dc } else { dc * beta })
    });
    Ok(())
}

/// `Y = Einsum(…, Xᵢ, …)` with the labels `oᵢ` and `y`: `dXᵢ = Einsum(dY, others)` with the labels of `y` and the
/// others, `→ oᵢ`. Declines for repeated labels of one operand, labels of one operand only, and ellipses.
pub(super) fn einsum(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    let equation = s.read(|at| match at.attr("equation") {
        Some(Attribute::String(text)) => String::from_utf8_lossy(text).replace(' ', ""),
        _ => String::new(),
    });
    let Some((left, right)) = equation.split_once("->") else { return s.because("has no explicit output") };
    let labels: Vec<_> = left.split(',').collect();
    let repeats = |labels: &&str| {
        let mut seen = std::collections::HashSet::new();
        !labels.chars().all(|label| label.is_alphabetic() && seen.insert(label))
    };
    if labels.len() != s.arity() || labels.iter().chain([&right]).any(repeats) {
        return s.because("has an ellipsis or repeated labels");
    }
    for slot in 0..labels.len() {
        s.give_with(slot, || {
            let others: Vec<_> = (0..labels.len()).filter(|&i| i != slot).collect();
            let mut terms = vec![dy];
            let mut left = right.to_owned();
            for &other in &others {
                terms.push(s.x(other)?);
                left += &format!(",{}", labels[other]);
            }
            if let Some(alone) = labels[slot].chars().find(|&label| !left.contains(label)) {
                return Err(Decline::because(format!("the label {alone} is in one operand only")));
            }
            let equation = format!("{left}->{}", labels[slot]);
            Ok(s.tape.node(Node::new("Einsum").with("equation", equation.as_str()), &terms))
        });
    }
    Ok(())
}

/// `y = R·x` for the rotations `R` by angles with these cosines and sines: `dx = Rᵀ·dy`, the rotations by the negative
/// angles. The tables have no gradient.
pub(super) fn rotary(s: &Step<'_>) -> Done {
    let (cos, sin, dy) = (s.x(1)?, s.x(2)?, s.dy()?);
    if s.wants(1) || s.wants(2) {
        return s.because("has a table that depends on a parameter");
    }
    let inputs = [Some(dy), Some(cos), Some(sin.op("Neg")), s.optional(3)];
    let given = if inputs[3].is_some() { 4 } else { 3 };
    s.give(0, s.tape.nodes(s.read(|at| at.node().clone()), &inputs[..given], 1)[0]);
    Ok(())
}
