//! Matrix products and what is built on them.

use super::{
    cx::{Cx, Facts, Shape, one},
    dims,
};
use crate::{DataType, Dim};

/// The shape of a (batched) matrix product of the inputs `a` and `b`: `[…,M,K] × […,K,N]`, vectors as in NumPy.
pub(super) fn product(cx: &Cx, a: usize, b: usize) -> Shape {
    let (Some(x), Some(y)) = (cx.shape(a), cx.shape(b)) else { return Ok(None) };
    transposed_product(cx, (a, x), (b, y))
}

fn transposed_product(cx: &Cx, (a, x): (usize, &[Dim]), (b, y): (usize, &[Dim])) -> Shape {
    let no = || format!("{} and {} cannot be multiplied", cx.name(a), cx.name(b));
    let (rows, inner, lead_x) = match x {
        [] => return Err(no()),
        [k] => (None, k, &[][..]),
        [lead @ .., m, k] => (Some(m), k, lead),
    };
    let (inner_y, columns, lead_y) = match y {
        [] => return Err(no()),
        [k] => (k, None, &[][..]),
        [lead @ .., k, n] => (k, Some(n), lead),
    };
    inner.unify(inner_y).ok_or_else(no)?;
    let mut shape = dims::broadcast(lead_x, lead_y).map_err(|_| no())?;
    shape.extend(rows.into_iter().chain(columns).cloned());
    Ok(Some(shape))
}

/// `MatMul`.
pub(super) fn mat_mul(cx: &Cx) -> Facts {
    one(cx.same_dtype([0, 1])?, product(cx, 0, 1)?)
}

/// `MatMulInteger`: sums in int32.
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

/// `QLinearMatMul`: A, its scale and zero point, B with its own, then those of the result.
pub(super) fn qlinear_mat_mul(cx: &Cx) -> Facts {
    one(cx.dtype(7), product(cx, 0, 3)?)
}

/// `FusedMatMul`, `TransposeMatMul`: factors may be transposed in the last two axes, or with the batch axes
/// behind the rows.
pub(super) fn fused_mat_mul(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1])?;
    let (Some(x), Some(y)) = (cx.shape(0), cx.shape(1)) else { return one(dtype, None) };
    let turned = |dims: &[Dim], side: &str| {
        let mut dims = dims.to_vec();
        let rank = dims.len();
        if rank >= 2 {
            // Batch axes that stand between: [M,…,K] means […,M,K].
            if cx.at.int(&format!("transBatch{side}"), 0) != 0 {
                dims[..rank - 1].rotate_left(1);
            }
            if cx.at.int(&format!("trans{side}"), 0) != 0 {
                dims.swap(rank - 2, rank - 1);
            }
        }
        dims
    };
    let (x, y) = (turned(x, "A"), turned(y, "B"));
    one(dtype, transposed_product(cx, (0, &x), (1, &y))?)
}

/// `Gemm`: `[M,K] × [K,N] + C`.
pub(super) fn gemm(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1, 2])?;
    one(dtype, gemm_shape(cx, 0, 1, Some(2))?)
}

/// `QGemm`: A, B with their scales and zero points, C, then those of the result (float without).
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
    // (axis of the result, axis of the sum)
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
        // A bias says how wide a product of unknown width is, unless it is repeated.
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

/// One sign of an equation: a letter, or `None` for the axes that `...` stands for.
type Signs = Vec<Option<char>>;

fn signs(term: &str) -> Signs {
    let spread = term.replace("...", ".");
    spread.chars().map(|c| (c != '.').then_some(c)).collect()
}

fn einsum_shape(cx: &Cx, equation: &str) -> Shape {
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(signs(right))),
        None => (equation, None),
    };
    let terms: Vec<Signs> = left.split(',').map(signs).collect();
    if terms.len() != cx.inputs.len() {
        return Err(format!("{} terms in the equation for {} inputs", terms.len(), cx.inputs.len()));
    }
    let mut sizes: Vec<(char, Dim, usize)> = vec![];
    let mut spread: Vec<Dim> = vec![];
    for (slot, term) in terms.iter().enumerate() {
        let Some(shape) = cx.shape(slot) else { return Ok(None) };
        let letters = term.iter().flatten().count();
        let no = || format!("{} does not fit its term of the equation", cx.name(slot));
        let rest = shape.len().checked_sub(letters).ok_or_else(no)?;
        if rest > 0 && letters == term.len() {
            return Err(no());
        }
        let mut dims = shape.iter();
        for sign in term {
            let Some(letter) = *sign else {
                let own: Vec<_> = dims.by_ref().take(rest).cloned().collect();
                spread = dims::broadcast(&spread, &own)?;
                continue;
            };
            let dim = dims.next().ok_or_else(no)?;
            match sizes.iter_mut().find(|s| s.0 == letter) {
                // Size 1 is repeated.
                Some((_, size, uses)) => {
                    *size = dims::broadcast_dim(size, dim).ok_or_else(no)?;
                    *uses += 1;
                }
                None => sizes.push((letter, dim.clone(), 1)),
            }
        }
    }
    // Without a right side: what was spread, then every letter that stands once, in alphabetical order.
    let right = right.unwrap_or_else(|| {
        let mut once: Vec<_> = sizes.iter().filter(|s| s.2 == 1).map(|s| s.0).collect();
        once.sort_unstable();
        std::iter::once(None).chain(once.into_iter().map(Some)).collect()
    });
    let mut shape = vec![];
    for sign in right {
        match sign {
            None => shape.extend(spread.iter().cloned()),
            Some(letter) => {
                let size = sizes.iter().find(|s| s.0 == letter);
                let size =
                    size.ok_or_else(|| format!("`{letter}` stands only on the right of the equation"))?;
                shape.push(size.1.clone());
            }
        }
    }
    Ok(Some(shape))
}
