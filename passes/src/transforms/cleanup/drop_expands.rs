use crate::framework::matching::{is_plain, is_pointwise};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, Ref, ValueRef, expect,
    ops::{Trait, operators_with},
};

pass! {
    /// Remove an `Expand` before an elementwise operator that broadcasts anyway.
    ///
    /// `f(Expand(x, s), y) = f(x, y)` if `x` and `y` broadcast to the shape of the result for all values of the
    /// symbols.
    ///
    /// Declines where a size of the result is that of the expanded value only.
    #[pass("drop-expands", Exact, "expansion dropped", "expansions dropped")]
    pub struct DropExpands {}
}

impl Pass for DropExpands {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &operators_with(Trait::Elementwise), unexpanded)
    }
}

fn unexpanded(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    // An activation has the shape of its first input. Operators of all arities broadcast from set 8 on.
    expect(is_pointwise(at) && !at.has(Trait::Activation) && at.opset() >= 8)?;
    let inputs: Vec<_> = at.inputs().into_iter().collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    expect(inputs.len() >= 2)?;
    let y = at.output()?;
    let original = |value: ValueRef<'_>| {
        let expand = value.produced_by("Expand").ok().filter(|expand| is_plain(*expand).is_ok())?;
        expand.input(0).ok().map(|x| x.id)
    };
    for (slot, &input) in inputs.iter().enumerate() {
        let Some(x) = original(input) else { continue };
        let mut new = inputs.clone();
        new[slot] = at.graph.value_ref(x);
        if !broadcasts_to(&new, y) {
            continue;
        }
        let new: Vec<_> = new.into_iter().map(|v| Some(Ref::from(v))).collect();
        let mut patch = Patch::at(at);
        let made = patch.copy(at, &new);
        patch.replace(y, made);
        return Ok(patch);
    }
    Err(Decline::Mismatch)
}

/// Returns true if every axis of `y` has the size of an axis of one of these values. They broadcast with its
/// size, so that all other sizes are the same or 1.
fn broadcasts_to(values: &[ValueRef<'_>], y: ValueRef<'_>) -> bool {
    let shapes: Option<Vec<&[Dim]>> = values.iter().map(|v| v.shape()).collect();
    let (Some(shapes), Some(target)) = (shapes, y.shape()) else { return false };
    (1..=target.len()).all(|from_end| {
        let dim = |shape: &&[Dim]| shape.len().checked_sub(from_end).map(|axis| shape[axis].clone());
        let size = &target[target.len() - from_end];
        shapes.iter().filter_map(dim).any(|dim| dim == *size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn drops_expansion_to_the_shape_of_another_operand() {
        check(
            DropExpands::default(),
            "g (float[N,3,4] x, float[3,1] b) => (float[N,3,4] y) { s = Shape(x) e = Expand(b, s) y = Add(x, e) }",
            "g (float[N,3,4] x, float[3,1] b) => (float[N,3,4] y) { y = Add(x, b) }",
        );
        check(
            DropExpands::default(),
            "g (float[2,3] x, bool[1,3] c, float z) => (float[2,3] y) <int64[2] s = {2,3}> {
                d = Expand(c, s) e = Expand(z, s) y = Where(d, x, e) }",
            "g (float[2,3] x, bool[1,3] c, float z) => (float[2,3] y) { y = Where(c, x, z) }",
        );
    }

    #[test]
    fn drops_one_of_two_expansions_that_need_each_other() {
        check(
            DropExpands::default(),
            "g (float[2,1] a, float[3] b) => (float[2,3] y) <int64[2] s = {2,3}> {
                d = Expand(a, s) e = Expand(b, s) y = Mul(d, e) }",
            "g (float[2,1] a, float[3] b) => (float[2,3] y) { y = Mul(a, b) }",
        );
        check(
            DropExpands::default(),
            "g (float[1,3] a, float[3] b) => (float[2,3] y) <int64[2] s = {2,3}> {
                d = Expand(a, s) e = Expand(b, s) y = Mul(d, e) }",
            "g (float[1,3] a, float[3] b) => (float[2,3] y) <int64[2] s = {2,3}> {
                e = Expand(b, s) y = Mul(a, e) }",
        );
    }

    #[test]
    fn keeps_expansions_that_determine_the_shape() {
        no_match(
            DropExpands::default(),
            "g (float[1,3] x, float[3] b) => (float[2,3] y) <int64[2] s = {2,3}> { e = Expand(b, s) y = Add(x, e) }",
        );
        no_match(
            DropExpands::default(),
            "g (float[N,1] x, float[M,1] b, float[N,4] z) => (float[N,1] y) {
                s = Shape(x) e = Expand(b, s) y = PRelu(e, x) }",
        );
    }
}
