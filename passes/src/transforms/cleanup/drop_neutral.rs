use crate::analysis::fusions::is_fused;
use crate::framework::matching::{bypass, is_plain, spans, uniform};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, NodeRef, ValueRef, expect, ops::ClipView};

pass! {
    /// Remove `x + 0` and unbounded `Clip`.
    ///
    /// Both are the identity on real numbers but not on floats, so they are not part of `drop-noops`:
    /// `-0 + 0 = +0`, and engines clip infinities to the largest finite number.
    ///
    /// Declines where the constant may broadcast `x` to another shape.
    #[pass("drop-neutral", Rounding, "neutral operator dropped", "neutral operators dropped")]
    pub struct DropNeutral {}
}

impl Pass for DropNeutral {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Add", "Sub", "Clip"], |at| {
            let x = equal_input(at)?;
            expect(!is_fused(at))?;
            bypass(at, x)
        })
    }
}

fn equal_input(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    is_plain(at)?;
    if at.is("Clip") {
        let view = ClipView::of(at)?;
        // Integers are bounded by their type, which no element exceeds.
        expect(view.low == f64::NEG_INFINITY && view.high == f64::INFINITY)?;
        return at.input(0);
    }
    let (a, b, y) = (at.input(0)?, at.input(1)?, at.output()?);
    let zero = |c: ValueRef<'_>, x: ValueRef<'_>| {
        c.constant().is_ok_and(|tensor| spans(x, tensor, y) && uniform(tensor) == Some(0.0))
    };
    if zero(b, a) {
        return Ok(a);
    }
    expect(at.is("Add") && zero(a, b))?;
    Ok(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn removes_addition_of_zero() {
        check(
            DropNeutral::default(),
            "g (float[N,2] x) => (float[N,2] y) <float[2] z = {0,0}, float o = {0}> {
                a = Add(x, z) b = Add(o, a) c = Sub(b, z) d = Clip(c) y = Relu(d) }",
            "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn keeps_zero_that_broadcasts() {
        no_match(
            DropNeutral::default(),
            "g (float[2] x) => (float[3,2] y) <float[3,1] z = {0,0,0}> { a = Add(x, z) y = Relu(a) }",
        );
        no_match(
            DropNeutral::default(),
            "g (float[2] x) => (float[2] y) <float z = {0}> { a = Sub(z, x) y = Relu(a) }",
        );
    }
}
