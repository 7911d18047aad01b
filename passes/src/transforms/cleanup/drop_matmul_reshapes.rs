use super::layout::keeps_order;
use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, ValueRef, expect,
    ops::{Trait, operators_with},
};

pass! {
    /// Remove the reshapes around a product.
    ///
    /// `Reshape(Reshape(x, [-1, k])·W, […, m]) = x·W` for `x` of shape `[…, k]`: `MatMul` multiplies the rows of
    /// any number of leading axes. Reshapes that only add or remove leading axes of size 1, or turn a vector into
    /// a matrix with one row or column, multiply the same matrices, though engines may add up the products of a
    /// vector in another order.
    ///
    /// Declines where the leading axes differ before and after, and where the product has other uses.
    #[pass("drop-matmul-reshapes", Rounding, "product of rows merged", "products of rows merged")]
    pub struct DropMatmulReshapes {}
}

impl Pass for DropMatmulReshapes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &operators_with(Trait::View), |at| match of_rows(at) {
            Err(Decline::Mismatch) => of_matrices(at),
            patch => patch,
        })
    }
}

/// Merges a product of the rows of all leading axes.
fn of_rows(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Reshape"))?;
    is_plain(at)?;
    let (product, y) = (at.input(0)?, at.output()?);
    let matmul = product.produced_by("MatMul")?;
    let (rows, w) = (matmul.input(0)?, matmul.input(1)?);
    let flatten = rows.producer().filter(|f| f.is("Reshape") || f.is("Flatten")).ok_or(Decline::Mismatch)?;
    is_plain(flatten)?;
    let x = flatten.input(0)?;
    expect(w.rank()? == 2 && rows.rank()? == 2)?;
    let (Some(before), Some(after), Some(matrix)) = (x.shape(), y.shape(), w.shape()) else {
        return Err(Decline::Mismatch);
    };
    let ([leading @ .., k], [following @ .., m]) = (before, after) else { return Err(Decline::Mismatch) };
    // With the last axis unchanged, the rows are those of `x`, in order.
    expect(*k == matrix[0] && *m == matrix[1] && leading == following && !leading.is_empty())?;
    product.sole_use()?;
    let mut patch = Patch::at(at);
    let new = patch.node(y.name(), matmul.node().clone(), &[x.into(), w.into()]);
    patch.replace(y, new);
    Ok(patch)
}

/// Merges a product of operands whose matrices are those of values of another shape.
fn of_matrices(at: NodeRef<'_>) -> Result<Patch, Decline> {
    keeps_order(at)?;
    let (product, y) = (at.input(0)?, at.output()?);
    let matmul = product.produced_by("MatMul")?;
    is_plain(matmul)?;
    let operands = [matmul.input(0)?, matmul.input(1)?];
    let [left, right] = [Side::Left, Side::Right].map(|side| original(operands[side as usize], side));
    let options = [(left, right), (left, Some(operands[1])), (Some(operands[0]), right)];
    let fitting = options.into_iter().find_map(|pair| {
        let (a, b) = (pair.0?, pair.1?);
        (product_shape(a.shape()?, b.shape()?)? == y.shape()?).then_some((a, b))
    });
    let (a, b) = fitting.ok_or(Decline::Mismatch)?;
    product.sole_use()?;
    let mut patch = Patch::at(at);
    let new = patch.node(y.name(), matmul.node().clone(), &[a.into(), b.into()]);
    patch.replace(y, new);
    Ok(patch)
}

/// The side of an operand of a product.
#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

/// The value from which the operand `x` is reshaped, if both have the same matrices in the same order.
fn original(x: ValueRef<'_>, side: Side) -> Option<ValueRef<'_>> {
    let view = x.producer().filter(|&at| keeps_order(at).is_ok())?;
    let before = view.input(0).ok()?;
    (Matrices::of(before.shape()?, side)? == Matrices::of(x.shape()?, side)?).then_some(before)
}

/// The matrices that `MatMul` multiplies.
#[derive(PartialEq)]
struct Matrices {
    /// The axes before the last two, from the first one on that is not of size 1. Sizes broadcast from the last
    /// axis on, so those before have no effect.
    batch: Vec<Dim>,
    rows: Dim,
    columns: Dim,
}

impl Matrices {
    fn of(shape: &[Dim], side: Side) -> Option<Self> {
        let one = Dim::from(1_i64);
        let (batch, rows, columns) = match (shape, side) {
            ([], _) => return None,
            ([k], Side::Left) => (&[][..], one, k.clone()),
            ([k], Side::Right) => (&[][..], k.clone(), one),
            ([batch @ .., rows, columns], _) => (batch, rows.clone(), columns.clone()),
        };
        let batch = batch.iter().skip_while(|d| d.known() == Some(1)).cloned().collect();
        Some(Self { batch, rows, columns })
    }
}

/// The shape of a product; `None` if it depends on unknown sizes.
fn product_shape(a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
    let batch = |shape: &[Dim]| shape[..shape.len().saturating_sub(2)].to_vec();
    let (first, second) = (batch(a), batch(b));
    let rank = first.len().max(second.len());
    let size = |shape: &[Dim], i: usize| {
        (i + shape.len()).checked_sub(rank).map_or(Dim::from(1_i64), |axis| shape[axis].clone())
    };
    let broadcast = |i: usize| match (size(&first, i), size(&second, i)) {
        (m, n) if m == n || n.known() == Some(1) => Some(m),
        (m, n) if m.known() == Some(1) => Some(n),
        _ => None,
    };
    let mut shape: Vec<_> = (0..rank).map(broadcast).collect::<Option<_>>()?;
    shape.extend(a.len().checked_sub(2).map(|rows| a[rows].clone()));
    shape.extend(b.last().filter(|_| b.len() > 1).cloned());
    Some(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn multiplies_rows_of_all_leading_axes() {
        check(
            DropMatmulReshapes::default(),
            "g (float[2,N,3] x) => (float[2,N,2] y) <float[3,2] w = {1,2,3,4,5,6}, int64[2] s = {-1,3}, int64[3] t = {2,-1,2}> {
                a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t) }",
            "g (float[2,N,3] x) => (float[2,N,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }",
        );
        check(
            DropMatmulReshapes::default(),
            "g (float[2,4,3] x, float[3,1] w) => (float[2,4,1] y) <int64[3] t = {2,4,1}> {
                a = Flatten<axis = 2>(x) b = MatMul(a, w) y = Reshape(b, t) }",
            "g (float[2,4,3] x, float[3,1] w) => (float[2,4,1] y) { y = MatMul(x, w) }",
        );
    }

    #[test]
    fn multiplies_vectors() {
        for (x, w, y, nodes, data) in [
            (
                "4",
                "2,3,4,5",
                "2,3,5",
                "a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t)",
                "int64[2] s = {1,4}, int64[3] t = {2,3,5}",
            ),
            (
                "2,3,4,5",
                "5",
                "2,3,4",
                "a = Reshape(w, s) b = MatMul(x, a) y = Reshape(b, t)",
                "int64[2] s = {5,1}, int64[3] t = {2,3,4}",
            ),
            (
                "5",
                "5,1",
                "1",
                "a = Reshape(x, s) b = MatMul(a, w) y = Reshape(b, t)",
                "int64[2] s = {1,5}, int64[1] t = {1}",
            ),
            ("N,3", "3", "N", "a = Unsqueeze(w, s) b = MatMul(x, a) y = Squeeze(b, s)", "int64[1] s = {1}"),
        ] {
            check(
                DropMatmulReshapes::default(),
                &format!("g (float[{x}] x, float[{w}] w) => (float[{y}] y) <{data}> {{ {nodes} }}"),
                &format!("g (float[{x}] x, float[{w}] w) => (float[{y}] y) {{ y = MatMul(x, w) }}"),
            );
        }
    }

    #[test]
    fn multiplies_under_leading_axes_of_size_1() {
        for (x, w, y, nodes, data) in [
            (
                "1,4,5,6",
                "1,4,6,2",
                "1,4,5,2",
                "a = Reshape(x, s) c = Reshape(w, u) b = MatMul(a, c) y = Reshape(b, t)",
                "int64[3] s = {4,5,6}, int64[3] u = {4,6,2}, int64[4] t = {1,4,5,2}",
            ),
            (
                "1,N,5,6",
                "1,N,6,2",
                "1,N,5,2",
                "a = Squeeze(x, z) c = Squeeze(w, z) b = MatMul(a, c) y = Unsqueeze(b, z)",
                "int64[1] z = {0}",
            ),
            (
                "N,5,6",
                "6,2",
                "N,5,2",
                "a = Unsqueeze(x, z) b = MatMul(a, w) y = Squeeze(b, z)",
                "int64[1] z = {0}",
            ),
        ] {
            check(
                DropMatmulReshapes::default(),
                &format!("g (float[{x}] x, float[{w}] w) => (float[{y}] y) <{data}> {{ {nodes} }}"),
                &format!("g (float[{x}] x, float[{w}] w) => (float[{y}] y) {{ y = MatMul(x, w) }}"),
            );
        }
        // The axis of size 1 broadcasts.
        no_match(
            DropMatmulReshapes::default(),
            "g (float[4,1,5,6] x, float[4,6,2] w) => (float[4,1,5,2] y) <int64[1] z = {1}> {
                a = Squeeze(x, z) b = MatMul(a, w) y = Unsqueeze(b, z) }",
        );
    }

    #[test]
    fn keeps_reshapes_of_other_axes() {
        let graph = |outputs: &str, s: &str, t: &str| {
            format!(
                "g (float[2,4,3] x, float[3,3] w) => ({outputs}) <int64[2] s = {{-1,3}}, {t}> {{
                    a = Reshape(x, {s}) b = MatMul(a, w) y = Reshape(b, t) }}"
            )
        };
        no_match(DropMatmulReshapes::default(), &graph("float[4,2,3] y", "s", "int64[3] t = {4,2,3}"));
        no_match(DropMatmulReshapes::default(), &graph("float[2,12] y", "s", "int64[2] t = {2,12}"));
        let shared = graph("float[2,4,3] y, float[8,3] b", "s", "int64[3] t = {2,4,3}");
        assert_eq!(declines(DropMatmulReshapes::default(), &shared), ["`b` has 2 uses"]);
    }
}
