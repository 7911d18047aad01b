use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Parts, beside_scalar, is_float},
    },
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, Node, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fuse patterns into `Softplus`, `LogSoftmax` and `Mish` (operator set 18).
    ///
    /// `log(1 + eˣ)`, `log(softmax(x))`, `x·tanh(softplus(x))`. The first two are more precise as single
    /// operators: they neither overflow nor take the logarithm of 0. `x·sigmoid(x)` is kept, since ONNX
    /// Runtime 1.32 does not run `Swish`.
    ///
    /// Declines types other than `float`, and if intermediate values have other uses.
    #[pass("fuse-softplus", Rounding, "softplus or mish fused", "softplus and mish fused")]
    pub struct FuseSoftplus {
        /// `keep` the operator set of the model, or `raise` it to 18 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseSoftplus {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 18, model, cx)?;
        cx.rewrite(model, &["Log"], logarithm)?;
        cx.rewrite(model, &["Mul"], gated)
    }
}

fn replaced(at: NodeRef<'_>, parts: Parts, node: Node, x: ValueRef<'_>) -> Result<Patch, Decline> {
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let new = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, new);
    Ok(patch)
}

fn logarithm(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Log"))?;
    let argument = at.input(0)?.producer().ok_or(Decline::Mismatch)?;
    if argument.is("Softmax") {
        let mut node = argument.node().clone();
        node.op = "LogSoftmax".into();
        node.name.clone_from(&at.node().name);
        return replaced(at, Parts(vec![at.id, argument.id]), node, argument.input(0)?);
    }
    expect(argument.is("Add") && argument.opset() >= 7)?;
    let (power, one) = beside_scalar(argument)?;
    let exp = power.produced_by("Exp")?;
    expect(one == 1.0)?;
    replaced(at, Parts(vec![at.id, argument.id, exp.id]), Node::new("Softplus"), exp.input(0)?)
}

fn gated(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Mul") && at.opset() >= 18)?;
    let (a, b) = (at.input(0)?, at.input(1)?);
    for (x, gate) in [(a, b), (b, a)] {
        let Some(gate) = gate.producer() else { continue };
        let Ok(plus) = gate.input(0).and_then(|v| v.produced_by("Softplus")) else { continue };
        if gate.is("Tanh") && plus.input(0)?.id == x.id {
            return replaced(at, Parts(vec![at.id, gate.id, plus.id]), Node::new("Mish"), x);
        }
    }
    Err(Decline::Mismatch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn fuses_each_pattern() {
        check(
            FuseSoftplus::default(),
            "g (float[N,3] x) => (float[N,3] y, float[N,3] z) <float one = {1}> {
                e = Exp(x) s = Add(one, e) l = Log(s) t = Tanh(l) y = Mul(x, t)
                f = Softmax<axis = 0>(x) z = Log(f) }",
            "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Mish(x) z = LogSoftmax<axis = 0>(x) }",
        );
    }

    #[test]
    fn declines_other_constants_and_other_uses() {
        let why = declines(
            FuseSoftplus::default(),
            "g (float[N] x) => (float[N] y) <float two = {2}> { e = Exp(x) s = Add(two, e) y = Log(s) }",
        );
        assert!(why.is_empty(), "{why:?}");
        let why = declines(
            FuseSoftplus::default(),
            "g (float[N] x) => (float[N] y, float[N] f) { f = Softmax(x) y = Log(f) }",
        );
        assert_eq!(why, ["`f` is used outside the pattern"]);
    }
}
