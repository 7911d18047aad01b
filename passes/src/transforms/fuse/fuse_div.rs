use crate::{
    analysis::{
        fusions::is_fused,
        patterns::{is_float, reciprocal},
    },
    framework::{Context, Pass, PassError, matching::same_shape},
    pass,
};
use pare_graph::{Decline, Model, Node, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fuse a product with a reciprocal into `Div`.
    ///
    /// `y·(1/x) = y/x`, which rounds once instead of twice.
    ///
    /// Declines types other than `float`, if the reciprocal has other uses, and if it is smaller than the
    /// product: more divisions would be computed.
    #[pass("fuse-div", Rounding, "reciprocal fused", "reciprocals fused")]
    pub struct FuseDiv {}
}

impl Pass for FuseDiv {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Mul"], divided)
    }
}

fn divided(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Mul") && at.opset() >= 7 && !is_fused(at))?;
    let (a, b, product) = (at.input(0)?, at.input(1)?, at.output()?);
    is_float(product)?;
    let divisor = |inverse: ValueRef<'_>| {
        let x = reciprocal(inverse.producer().ok_or(Decline::Mismatch)?)?;
        expect(same_shape(x, product)).map(|()| x.id)
    };
    let (y, inverse) = if divisor(b).is_ok() { (a, b) } else { (b, a) };
    let x = divisor(inverse)?;
    inverse.sole_use()?;
    let mut patch = Patch::at(at);
    let quotient = patch.node(product.name(), Node::new("Div"), &[y.into(), x.into()]);
    patch.replace(product, quotient);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    fn graph(nodes: &str, constants: &str) -> String {
        format!("g (float[N,3] x, float[3] v) => (float[N,3] y) {constants} {{ s = Exp(x) {nodes} }}")
    }

    #[test]
    fn fuses_reciprocals() {
        for nodes in [
            "r = Div(one, s) y = Mul(r, x)",
            "r = Div(one, s) y = Mul(x, r)",
            "r = Reciprocal(s) y = Mul(r, x)",
        ] {
            let one = if nodes.contains("one") { "<float one = {1}>" } else { "" };
            check(FuseDiv::default(), &graph(nodes, one), &graph("y = Div(x, s)", ""));
        }
        check(
            FuseDiv::default(),
            &graph("r = Reciprocal(s) y = Mul(r, two)", "<float two = {2}>"),
            &graph("y = Div(two, s)", "<float two = {2}>"),
        );
        check(FuseDiv::default(), &graph("r = Reciprocal(s) y = Mul(v, r)", ""), &graph("y = Div(v, s)", ""));
    }

    #[test]
    fn keeps_smaller_reciprocals_other_numerators_and_shared_values() {
        no_match(FuseDiv::default(), &graph("e = Exp(v) r = Reciprocal(e) y = Mul(s, r)", ""));
        no_match(FuseDiv::default(), &graph("r = Div(two, s) y = Mul(x, r)", "<float two = {2}>"));
        let shared =
            graph("r = Reciprocal(s) y = Mul(x, r)", "").replace("[N,3] y)", "[N,3] y, float[N,3] r)");
        assert_eq!(declines(FuseDiv::default(), &shared), ["`r` has 2 uses"]);
    }
}
