//! Matrix products.

use super::{
    cx::{Cx, Facts, Shape, one},
    dims,
};
use crate::{DataType, Dim};

/// The shape of the matrix product of the inputs `a` and `b`: `[…,M,K] × […,K,N]`, and vectors as in NumPy.
pub(super) fn product(cx: &Cx, a: usize, b: usize) -> Shape {
    let (Some(x), Some(y)) = (cx.shape(a), cx.shape(b)) else { return Ok(None) };
    product_shape(x, y).map(Some).ok_or_else(|| cannot_multiply(cx, a, b))
}

fn cannot_multiply(cx: &Cx, a: usize, b: usize) -> String {
    format!("{} and {} cannot be multiplied", cx.name(a), cx.name(b))
}

fn product_shape(x: &[Dim], y: &[Dim]) -> Option<Vec<Dim>> {
    let (rows, inner_x, batch_x) = match x {
        [] => return None,
        [k] => (None, k, &[][..]),
        [batch @ .., m, k] => (Some(m), k, batch),
    };
    let (inner_y, columns, batch_y) = match y {
        [] => return None,
        [k] => (k, None, &[][..]),
        [batch @ .., k, n] => (k, Some(n), batch),
    };
    inner_x.unify(inner_y)?;
    let mut shape = dims::broadcast(batch_x, batch_y).ok()?;
    shape.extend(rows.into_iter().chain(columns).cloned());
    Some(shape)
}

/// `MatMul`.
pub(super) fn mat_mul(cx: &Cx) -> Facts {
    one(cx.same_dtype([0, 1])?, product(cx, 0, 1)?)
}

/// `MatMulInteger`: element type int32.
pub(super) fn mat_mul_integer(cx: &Cx) -> Facts {
    one(Some(DataType::Int32), product(cx, 0, 1)?)
}

/// `DynamicQuantizeMatMul`: element type of the first input.
pub(super) fn dynamic_mat_mul(cx: &Cx) -> Facts {
    one(cx.dtype(0), product(cx, 0, 1)?)
}

/// `MatMulIntegerToFloat`: element type of the scales.
pub(super) fn mat_mul_to_float(cx: &Cx) -> Facts {
    one(cx.dtype(2), product(cx, 0, 1)?)
}

/// `QLinearMatMul`: A, B and the result, each with scale and zero point.
pub(super) fn qlinear_mat_mul(cx: &Cx) -> Facts {
    one(cx.dtype(7), product(cx, 0, 3)?)
}

/// `FusedMatMul`, `TransposeMatMul`: operands may be transposed in the last two axes, or have the batch axes
/// after the rows.
pub(super) fn fused_mat_mul(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1])?;
    let (Some(x), Some(y)) = (cx.shape(0), cx.shape(1)) else { return one(dtype, None) };
    let transposed = |dims: &[Dim], side: &str| {
        let mut dims = dims.to_vec();
        let rank = dims.len();
        if rank >= 2 {
            // `transBatch`: [M,…,K] means […,M,K].
            if cx.at.int(&format!("transBatch{side}"), 0) != 0 {
                dims[..rank - 1].rotate_left(1);
            }
            if cx.at.int(&format!("trans{side}"), 0) != 0 {
                dims.swap(rank - 2, rank - 1);
            }
        }
        dims
    };
    let shape = product_shape(&transposed(x, "A"), &transposed(y, "B"));
    one(dtype, Some(shape.ok_or_else(|| cannot_multiply(cx, 0, 1))?))
}

/// `Gemm`: `[M,K] × [K,N] + C`.
pub(super) fn gemm(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1, 2])?;
    one(dtype, gemm_shape(cx, 0, 1, Some(2))?)
}

/// `QGemm`: A and B, each with scale and zero point, C, and those of the result, which is float without.
pub(super) fn qgemm(cx: &Cx) -> Facts {
    let dtype = if cx.input(8).is_some() { cx.dtype(8) } else { Some(DataType::Float) };
    one(dtype, gemm_shape(cx, 0, 3, Some(6))?)
}

/// `GemmFloat8`: element type from attribute `dtype`.
pub(super) fn gemm_typed(cx: &Cx) -> Facts {
    one(Some(cx.dtype_attr("dtype").unwrap_or(DataType::Float)), gemm_shape(cx, 0, 1, None)?)
}

fn gemm_shape(cx: &Cx, a: usize, b: usize, c: Option<usize>) -> Shape {
    cx.expect_rank(a, 2)?;
    cx.expect_rank(b, 2)?;
    // (axis of the result, reduced axis)
    let (m, ka) = if cx.at.int("transA", 0) != 0 { (1, 0) } else { (0, 1) };
    let (n, kb) = if cx.at.int("transB", 0) != 0 { (0, 1) } else { (1, 0) };
    cx.agree((a, ka), (b, kb))?;
    let mut shape = vec![cx.dim(a, m), cx.dim(b, n)];
    if let Some(c) = c
        && let Some(bias) = cx.shape(c)
    {
        let sum = dims::broadcast(&shape, bias)?;
        let fits = |(sum, own): (&Dim, &Dim)| sum.unify(own).is_some();
        if sum.len() != 2 || !sum.iter().zip(&shape).all(fits) {
            return Err(format!("{} does not broadcast to {}", cx.name(c), dims::show(&shape)));
        }
        // An unknown size is that of the bias, unless the bias is broadcast.
        for (dim, sum) in shape.iter_mut().zip(sum) {
            if dim.is_unknown() && sum.known().is_some_and(|n| n > 1) {
                *dim = sum;
            }
        }
    }
    Ok(Some(shape))
}

/// `Einsum`.
pub(super) fn einsum(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype(0..cx.inputs.len())?;
    let equation: String = cx.at.string("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    one(dtype, einsum_shape(cx, &equation)?)
}

/// A term of an equation: letters, and `None` for an ellipsis.
type Term = Vec<Option<char>>;

fn parse_term(term: &str) -> Term {
    let ellipsis = term.replace("...", ".");
    ellipsis.chars().map(|c| (c != '.').then_some(c)).collect()
}

fn einsum_shape(cx: &Cx, equation: &str) -> Shape {
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(parse_term(right))),
        None => (equation, None),
    };
    let terms: Vec<Term> = left.split(',').map(parse_term).collect();
    if terms.len() != cx.inputs.len() {
        return Err(format!("{} terms in the equation for {} inputs", terms.len(), cx.inputs.len()));
    }
    let mut sizes: Vec<(char, Dim, usize)> = vec![];
    let mut ellipsis: Vec<Dim> = vec![];
    for (slot, term) in terms.iter().enumerate() {
        let Some(shape) = cx.shape(slot) else { return Ok(None) };
        let letters = term.iter().flatten().count();
        let mismatch = || format!("{} does not fit its term of the equation", cx.name(slot));
        let rest = shape.len().checked_sub(letters).ok_or_else(mismatch)?;
        if rest > 0 && letters == term.len() {
            return Err(mismatch());
        }
        let mut dims = shape.iter();
        for label in term {
            let Some(letter) = *label else {
                let own: Vec<_> = dims.by_ref().take(rest).cloned().collect();
                ellipsis = dims::broadcast(&ellipsis, &own)?;
                continue;
            };
            let dim = dims.next().ok_or_else(mismatch)?;
            match sizes.iter_mut().find(|s| s.0 == letter) {
                // Size 1 broadcasts.
                Some((_, size, uses)) => {
                    *size = dims::broadcast_dim(size, dim).ok_or_else(mismatch)?;
                    *uses += 1;
                }
                None => sizes.push((letter, dim.clone(), 1)),
            }
        }
    }
    // Without a right side: the ellipsis, then the letters that occur once, in alphabetical order.
    let right = right.unwrap_or_else(|| {
        let mut once: Vec<_> = sizes.iter().filter(|s| s.2 == 1).map(|s| s.0).collect();
        once.sort_unstable();
        std::iter::once(None).chain(once.into_iter().map(Some)).collect()
    });
    let mut shape = vec![];
    for label in right {
        match label {
            None => shape.extend(ellipsis.iter().cloned()),
            Some(letter) => {
                let size = sizes.iter().find(|s| s.0 == letter);
                let size =
                    size.ok_or_else(|| format!("`{letter}` is only on the right side of the equation"))?;
                shape.push(size.1.clone());
            }
        }
    }
    Ok(Some(shape))
}
