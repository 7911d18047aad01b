use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{DataType, Decline, Dim, Model, Node, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fuse a product of two matrices and a bias into `Gemm`.
    ///
    /// `A·B + C` if `A` and `B` have rank 2 and `C` broadcasts to the shape of the product for all values of
    /// the symbols.
    ///
    /// Declines if a rank is unknown or the product has another use, and types other than `float` and
    /// `double`.
    #[pass("fuse-gemm", Rounding, "product with bias fused", "products with bias fused")]
    pub struct FuseGemm {}
}

impl Pass for FuseGemm {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Add"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Add") && at.opset() >= 7)?;
    let (a, b) = (at.input(0)?, at.input(1)?);
    let (product, bias) = match (a.produced_by("MatMul"), b.produced_by("MatMul")) {
        (Ok(_), _) if a.sole_use().is_ok() => (a, b),
        (_, Ok(_)) => (b, a),
        _ => return Err(Decline::Mismatch),
    };
    let matmul = product.produced_by("MatMul")?;
    let (left, right) = (matmul.input(0)?, matmul.input(1)?);
    expect(left.rank()? == 2 && right.rank()? == 2)?;
    expect(matches!(left.dtype(), Some(DataType::Float | DataType::Double)))?;
    let wider = || Decline::because(format!("`{}` may widen `{}`", bias.name(), product.name()));
    fits(bias, product).then_some(()).ok_or_else(wider)?;
    product.sole_use()?;
    let y = at.output()?;
    let mut node = Node::new("Gemm");
    node.name.clone_from(&matmul.node().name);
    let mut patch = Patch::at(at);
    let gemm = patch.node(y.name(), node, &[left.into(), right.into(), bias.into()]);
    patch.replace(y, gemm);
    Ok(patch)
}

/// Returns true if `bias` broadcasts to the shape of `product`.
fn fits(bias: ValueRef<'_>, product: ValueRef<'_>) -> bool {
    let (Some(bias), Some(product)) = (bias.shape(), product.shape()) else { return false };
    let Some(missing) = product.len().checked_sub(bias.len()) else { return false };
    let one = |dim: &Dim| dim.known() == Some(1);
    bias.iter().zip(&product[missing..]).all(|(b, p)| one(b) || b == p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn fuses_matmul_and_add() {
        check(
            FuseGemm::default(),
            "g (float[N,3] a, float[3,4] b, float[4] c) => (float[N,4] y) { p = MatMul(a, b) y = Add(c, p) }",
            "g (float[N,3] a, float[3,4] b, float[4] c) => (float[N,4] y) { y = Gemm(a, b, c) }",
        );
    }

    #[test]
    fn declines_batches_and_wider_biases() {
        let why = declines(
            FuseGemm::default(),
            "g (float[2,N,3] a, float[3,4] b, float[4] c) => (float[2,N,4] y) { p = MatMul(a, b) y = Add(p, c) }",
        );
        assert!(why.is_empty(), "{why:?}");
        let why = declines(
            FuseGemm::default(),
            "g (float[1,3] a, float[3,4] b, float[N,4] c) => (float[N,4] y) { p = MatMul(a, b) y = Add(p, c) }",
        );
        assert_eq!(why, ["`c` may widen `p`"]);
    }
}
