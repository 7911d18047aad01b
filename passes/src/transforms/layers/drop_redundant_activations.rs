use crate::analysis::interval::Interval;
use crate::{
    framework::{
        Context, Pass, PassError,
        matching::{bypass, is_plain, uniform},
    },
    pass,
};
use pare_graph::{
    Decline, Model, NodeRef, ValueRef, expect,
    ops::{ClipView, Trait, operators_with},
};

pass! {
    /// Remove activations that are the identity on their inputs.
    ///
    /// `PRelu` and `LeakyRelu` with slopes of exactly 1; `Relu`, `PRelu`, `LeakyRelu`, `Elu`, `Celu`,
    /// `ThresholdedRelu` and `Abs` of values that are never negative; `Clip` of values within its bounds.
    /// Bounds are derived from the producers: `Relu`, `Sigmoid`, `Softmax`, `Exp`, squares, and sums,
    /// products, means, maxima and selections of them.
    ///
    /// Declines if the input may exceed these bounds.
    #[pass("drop-redundant-activations", Exact, "activation dropped", "activations dropped")]
    pub struct DropRedundantActivations {}
}

impl Pass for DropRedundantActivations {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let activations = [operators_with(Trait::Rectifier), vec!["Clip", "ThresholdedRelu"]].concat();
        cx.rewrite(model, &activations, |at| {
            is_plain(at)?;
            let x = at.input(0)?;
            expect(x.dtype().is_some_and(|d| d.is_float()) && is_identity(at, x)?)?;
            bypass(at, x)
        })
    }
}

fn is_identity(at: NodeRef<'_>, x: ValueRef<'_>) -> Result<bool, Decline> {
    let slope_is_one = match at.op() {
        "PRelu" => at.input(1)?.constant().is_ok_and(|slope| uniform(slope) == Some(1.0)),
        "LeakyRelu" => at.float("alpha", 0.01) == 1.0,
        _ => false,
    };
    if slope_is_one {
        return Ok(true);
    }
    let unchanged = match at.op() {
        "Clip" => {
            let view = ClipView::of(at)?;
            Interval { low: view.low, high: view.high }
        }
        // `x` if `x > α`, else 0. For α = 0, `x` may be 0.
        "ThresholdedRelu" => {
            let alpha = at.float("alpha", 1.0);
            let low = Interval::of(x).low;
            return Ok(low > alpha || low == 0.0 && alpha == 0.0);
        }
        _ => Interval { low: 0.0, ..Interval::ALL },
    };
    // An unbounded `Clip` still bounds infinities in some engines.
    let bounded = (unchanged.low, unchanged.high) != (f64::NEG_INFINITY, f64::INFINITY);
    Ok(bounded && Interval::of(x).is_within(unchanged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    /// The pass changes nothing, and has nothing to report.
    fn kept(source: &str) {
        let why = declines(DropRedundantActivations::default(), source);
        assert!(why.is_empty(), "{why:?}");
    }

    #[test]
    fn removes_prelu_with_slopes_of_one() {
        check(
            DropRedundantActivations::default(),
            "g (float[N,2,3] x) => (float[N,2,3] y) <float[2,1] a = {1,1}> {
                b = Identity(a)
                p = PRelu(x, b)
                q = LeakyRelu<alpha = 1.0>(p)
                y = Neg(q)
            }",
            "g (float[N,2,3] x) => (float[N,2,3] y) { y = Neg(x) }",
        );
        kept(
            "g (float[N,2,3] x) => (float[N,2,3] y) <float[2,1] a = {1,0.999}> { p = PRelu(x, a) y = Neg(p) }",
        );
    }

    #[test]
    fn removes_relu_of_non_negative_values() {
        check(
            DropRedundantActivations::default(),
            "g (float[N,4,6] x, float[N,4,6] z) => (float[N,4,3] y) {
                a = Sigmoid(x)
                b = Relu(z)
                c = Mul(z, z)
                d = Sum(a, b, c)
                e = MaxPool<kernel_shape = [2], strides = [2]>(d)
                f = Relu(e)
                g = Abs(f)
                h = LeakyRelu(g)
                y = Neg(h)
            }",
            "g (float[N,4,6] x, float[N,4,6] z) => (float[N,4,3] y) {
                a = Sigmoid(x)
                b = Relu(z)
                c = Mul(z, z)
                d = Sum(a, b, c)
                e = MaxPool<kernel_shape = [2], strides = [2]>(d)
                y = Neg(e)
            }",
        );
    }

    #[test]
    fn keeps_relu_of_possibly_negative_values() {
        for inner in ["Tanh(x)", "Neg(x)", "Elu(x)", "Sub(x, x)"] {
            kept(&format!("g (float[N] x) => (float[N] y) {{ a = {inner} y = Relu(a) }}"));
        }
    }

    #[test]
    fn removes_clip_of_values_within_its_bounds() {
        check(
            DropRedundantActivations::default(),
            "g (float[N] x) => (float[N] y) <float zero = {0}, float six = {6}, float half = {0.5}> {
                s = Softmax(x)
                a = Mul(s, half)
                b = Clip(a, zero, six)
                y = Neg(b)
            }",
            "g (float[N] x) => (float[N] y) <float half = {0.5}> { s = Softmax(x) a = Mul(s, half) y = Neg(a) }",
        );
        // Rounding may lift the largest product above the bound.
        kept(
            "g (float[N] x) => (float[N] y) <float zero = {0}, float half = {0.5}> {
                s = Softmax(x) a = Mul(s, half) b = Clip(a, zero, half) y = Neg(b)
            }",
        );
    }

    #[test]
    fn limits_the_length_of_followed_chains() {
        let chain: String = (0..10_000).map(|i| format!("v{} = Add(v{i}, v{i}) ", i + 1)).collect();
        let text = format!("g (float[2] x) => (float[2] y) {{ v0 = Relu(x) {chain} y = Relu(v10000) }}");
        kept(&text);
    }
}
