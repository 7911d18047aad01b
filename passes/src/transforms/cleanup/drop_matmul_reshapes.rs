use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, NodeRef, Patch, expect};

pass! {
    /// Remove the reshapes around a product with a matrix.
    ///
    /// `Reshape(Reshape(x, [-1, k])·W, […, m]) = x·W` for `x` of shape `[…, k]`: `MatMul` multiplies the rows of
    /// any number of leading axes.
    ///
    /// Declines where the leading axes differ before and after, and where the product has other uses.
    #[pass("drop-matmul-reshapes", Exact, "product of rows merged", "products of rows merged")]
    pub struct DropMatmulReshapes {}
}

impl Pass for DropMatmulReshapes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Reshape"], merged)
    }
}

fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
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
