use crate::framework::matching::is_plain;
use crate::{
    analysis::interval::Interval,
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Model, NodeRef, Patch, ValueRef, expect,
    ops::{SoftmaxView, axis_of},
};

pass! {
    /// Remove increasing functions before `ArgMax` and `ArgMin`.
    ///
    /// `argmax f(x) = argmax x` for an increasing `f`: `LogSoftmax` and `Softmax` that normalize along the same
    /// axis; `Exp` where it does not overflow, `Log` and `Sqrt` where their arguments are known to be in their
    /// domain. Indices differ where `f` rounds two numbers to the same one.
    ///
    /// Declines if the values of `f` have other uses, a `Softmax` before `ArgMin`, since small numbers become 0,
    /// and one of exponentials that may overflow, since it is NaN.
    #[pass("drop-monotone", Rounding, "increasing function dropped", "increasing functions dropped")]
    pub struct DropMonotone {}
}

/// Exponentials of these numbers are normal half floats.
const EXP: Interval = Interval { low: -9.0, high: 11.0 };

/// Finite in half floats.
const FINITE: Interval = Interval { low: 0.0, high: 65_504.0 };

/// The arguments of `Log` and `Sqrt`.
const DOMAIN: Interval = Interval { low: 0.0, high: f64::INFINITY };

impl Pass for DropMonotone {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["ArgMax", "ArgMin"], without)
    }
}

fn without(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let value = at.input(0)?;
    let function = value.producer().ok_or(Decline::Mismatch)?;
    is_plain(function)?;
    let x = function.input(0)?;
    is_increasing(function, x, at)?;
    value.sole_use()?;
    let mut patch = Patch::at(at);
    patch.set_input(at.id, 0, x);
    Ok(patch)
}

fn is_increasing(function: NodeRef<'_>, x: ValueRef<'_>, at: NodeRef<'_>) -> Result<(), Decline> {
    match function.op() {
        "LogSoftmax" | "Softmax" => {
            // The softmax of an exponential that overflows is NaN.
            expect(x.produced_by("Exp").is_err() || Interval::of(x).is_within(FINITE))?;
            expect(SoftmaxView::of(function)?.axes.contains(&axis_of(at)?))?;
            expect(at.is("ArgMax") || function.is("LogSoftmax"))
        }
        "Exp" => expect(Interval::of(x).is_within(EXP)),
        "Log" | "Sqrt" => expect(Interval::of(x).is_within(DOMAIN)),
        _ => Err(Decline::Mismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn drops_normalizations_along_the_axis() {
        check(
            DropMonotone::default(),
            "g (float[N,3,4] x) => (int64[N,3] i, int64[N,1,4] j) {
                a = Softmax(x) i = ArgMax<axis = 2, keepdims = 0>(a) b = LogSoftmax<axis = 1>(x) j = ArgMin<axis = -2>(b) }",
            "g (float[N,3,4] x) => (int64[N,3] i, int64[N,1,4] j) {
                i = ArgMax<axis = 2, keepdims = 0>(x) j = ArgMin<axis = -2>(x) }",
        );
    }

    #[test]
    fn drops_functions_within_their_domain() {
        check(
            DropMonotone::default(),
            "g (float[N,4] x) => (int64[N,1] i, int64[N,1] j) {
                r = Relu(x) a = Sqrt(r) i = ArgMax<axis = 1>(a) t = Tanh(x) b = Exp(t) c = Log(b) j = ArgMin<axis = 1>(c) }",
            "g (float[N,4] x) => (int64[N,1] i, int64[N,1] j) {
                r = Relu(x) i = ArgMax<axis = 1>(r) t = Tanh(x) j = ArgMin<axis = 1>(t) }",
        );
    }

    #[test]
    fn keeps_what_may_change_the_order() {
        for kept in [
            "a = Softmax<axis = 1>(x) y = ArgMax<axis = 2>(a)",
            "a = Softmax(x) y = ArgMin<axis = 2>(a)",
            "a = Exp(x) y = ArgMax<axis = 2>(a)",
            "a = Log(x) y = ArgMax<axis = 2>(a)",
            "a = Cos(x) y = ArgMax<axis = 2>(a)",
            "e = Exp(x) a = Softmax(e) y = ArgMax<axis = 2>(a)",
        ] {
            no_match(
                DropMonotone::default(),
                &format!("g (float[2,3,4] x) => (int64[2,3,1] y) {{ {kept} }}"),
            );
        }
        let shared = "g (float[2,3,4] x) => (int64[2,3,1] y, float[2,3,4] a) { a = Softmax(x) y = ArgMax<axis = 2>(a) }";
        assert_eq!(declines(DropMonotone::default(), shared), ["`a` has 2 uses"]);
    }

    /// Before operator set 13 a softmax normalizes all axes from its own on.
    #[test]
    fn reads_the_axes_of_old_operator_sets() {
        let graph = |axis| {
            format!(
                "<ir_version: 8, opset_import: [\"\" : 11]> g (float[2,3,4] x) => (int64[N,M,K] y) {{
                    a = Softmax<axis = 1>(x) y = ArgMax<axis = {axis}>(a) }}"
            )
        };
        let without = "<ir_version: 8, opset_import: [\"\" : 11]> g (float[2,3,4] x) => (int64[N,M,K] y) { y = ArgMax<axis = 2>(x) }";
        check(DropMonotone::default(), &graph(2), without);
        no_match(DropMonotone::default(), &graph(0));
    }
}
