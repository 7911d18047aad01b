use crate::framework::matching::{bypass, is_plain};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Model, NodeRef, Patch, ValueRef, expect,
    ops::{Trait, operators_with},
};

pass! {
    /// Remove repeated idempotent operators, `f(f(x)) = f(x)`, and pairs of involutions, `f(f(x)) = x`.
    ///
    /// `Not` before the condition of `Where` or `If` is removed by swapping the branches.
    ///
    /// The first holds for idempotent operators (`Relu`, `Abs`, `Floor`, …), the second for involutions
    /// (`Not`, `Neg`, …), bit for bit and for every type. Both nodes must have equal attributes and further
    /// inputs.
    #[pass("drop-idempotent", Exact, "repetition dropped", "repetitions dropped")]
    pub struct DropIdempotent {}
}

/// The branches of an `If`.
const BRANCHES: (&str, &str) = ("then_branch", "else_branch");

impl Pass for DropIdempotent {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let repeatable = [Trait::Idempotent, Trait::Involution].map(operators_with).concat();
        cx.rewrite(model, &repeatable, |at| bypass(at, equal_input(at)?))?;
        cx.rewrite(model, &["Where", "If"], exchanged)
    }
}

fn equal_input(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    is_plain(at)?;
    let once = at.input(0)?;
    let inner = once.produced_by(at.op())?;
    let parameters =
        |at: NodeRef<'_>| at.inputs().into_iter().skip(1).map(|v| v.map(|v| v.id)).collect::<Vec<_>>();
    expect(at.node().attributes == inner.node().attributes && parameters(at) == parameters(inner))?;
    if at.has(Trait::Involution) { inner.input(0) } else { Ok(once) }
}

/// `Where(¬c, a, b) = Where(c, b, a)`; likewise for `If`.
fn exchanged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let not = at.input(0)?.produced_by("Not")?;
    let mut patch = Patch::at(at);
    if at.is("If") {
        let mut node = at.node().clone();
        let places = [BRANCHES.0, BRANCHES.1].map(|name| node.attributes.get_index_of(name));
        let [Some(a), Some(b)] = places else { return Err(Decline::Mismatch) };
        for (place, name) in [(a, "exchanged"), (b, BRANCHES.0), (a, BRANCHES.1)] {
            node.attributes.replace_index(place, name.into()).map_err(|_| Decline::Mismatch)?;
        }
        let outputs = at.outputs();
        let hints: Vec<_> = outputs.iter().map(|o| o.map(ValueRef::name)).collect();
        let made = patch.node_with(node, &[Some(not.input(0)?.into())], &hints);
        for (old, new) in outputs.into_iter().zip(made) {
            if let (Some(old), Some(new)) = (old, new) {
                patch.replace(old, new);
            }
        }
        return Ok(patch);
    }
    let inputs = [not.input(0)?, at.input(2)?, at.input(1)?].map(|v| Some(v.into()));
    let chosen = patch.copy(at, &inputs);
    patch.replace(at.output()?, chosen);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn removes_repetitions_and_cancels_involutions() {
        check(
            DropIdempotent::default(),
            "g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) c = Neg(b) d = Neg(c) y = Exp(d) }",
            "g (float[2] x) => (float[2] y) { a = Relu(x) y = Exp(a) }",
        );
    }

    #[test]
    fn swaps_operands_of_where_with_negated_condition() {
        check(
            DropIdempotent::default(),
            "g (bool[2] c, float[2] a, float[2] b) => (float[2] y) { n = Not(c) y = Where(n, a, b) }",
            "g (bool[2] c, float[2] a, float[2] b) => (float[2] y) { y = Where(c, b, a) }",
        );
    }

    #[test]
    fn swaps_branches_of_if_with_negated_condition() {
        check(
            DropIdempotent::default(),
            "g (bool c, float[2] x) => (float[2] y) {
                n = Not(c) y = If(n) <then_branch = t () => (float[2] a) { a = Neg(x) },
                    else_branch = e () => (float[2] b) { b = Exp(x) }> }",
            "g (bool c, float[2] x) => (float[2] y) {
                y = If(c) <else_branch = t () => (float[2] a) { a = Neg(x) },
                    then_branch = e () => (float[2] b) { b = Exp(x) }> }",
        );
    }

    #[test]
    fn keeps_operators_that_are_not_idempotent() {
        no_match(
            DropIdempotent::default(),
            "g (float[2] x) => (float[2] y) { a = Softmax(x) y = Softmax(a) }",
        );
        no_match(DropIdempotent::default(), "g (float[2] x) => (float[2] y) { a = Floor(x) y = Ceil(a) }");
    }
}
