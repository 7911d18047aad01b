use super::preceding::{ChannelAffine, channels_of, fold_through, per_channel};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Dim, Model, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fold a constant scale or shift of each channel into the preceding convolution or matrix product.
    ///
    /// `s·(W∗x + b) = (s·W)∗x + s·b` and `(W∗x + b) + t = W∗x + (b + t)`, for `Mul`, `Div`, `Add` and `Sub`
    /// with one constant per channel or a scalar, after `Conv`, `ConvTranspose`, `Gemm`, and `MatMul` of
    /// matrices, which becomes a `Gemm`. A `Reshape` in between is kept if the channels are one axis before
    /// and after it.
    ///
    /// Declines if the constant varies along another axis than the channels, if weights are not constant or
    /// are shared, if the product has another use, and if a channel would be scaled beyond `max_scale`.
    #[pass("fold-scale", Rounding, "scale or shift folded", "scales and shifts folded")]
    pub struct FoldScale {
        /// Decline when a channel would be scaled by more than this.
        pub max_scale: f64 = 1e6,
    }
}

impl Pass for FoldScale {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Add", "Sub", "Mul", "Div"], |at| self.folded(at))
    }
}

impl FoldScale {
    fn folded(&self, at: NodeRef<'_>) -> Result<Patch, Decline> {
        expect(at.node().domain().is_empty() && at.opset() >= 7)?;
        let (a, b) = (at.input(0)?, at.input(1)?);
        let (x, c, swapped) = if b.is_constant() { (a, b, false) } else { (b, a, true) };
        // `c − x` and `c / x` are not `s·x + t` with `s` = 1 or `t` = 0.
        expect(c.is_constant() && !(swapped && (at.is("Sub") || at.is("Div"))))?;
        let view = x.producer().filter(|producer| producer.is("Reshape"));
        let product = view.map_or(Ok(x), |view| view.input(0))?;
        let (channels, axis) = channels_of(product)?;
        let (rank, channel_axis) = match view {
            Some(_) => (x.rank()?, axis_after_reshape(product, x, axis)?),
            None => (rank_of(x)?, axis),
        };
        let c = per_channel(c, rank, channel_axis, channels)?;
        let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
        let affine = match at.op() {
            "Add" => ChannelAffine { scale: ones, shift: c },
            "Sub" => ChannelAffine { scale: ones, shift: c.iter().map(|c| -c).collect() },
            "Mul" => ChannelAffine { scale: c, shift: zeros },
            _ => ChannelAffine { scale: c.iter().map(|c| 1.0 / c).collect(), shift: zeros },
        };
        if let Some(s) = affine.scale.iter().find(|s| s.is_nan() || s.abs() > self.max_scale) {
            return Err(Decline::because(format!("{} scales a channel by {s:.3e}", at.describe())));
        }
        expect(affine.shift.iter().all(|s| s.is_finite()))?;
        fold_through(at, product, view, &affine, axis)
    }
}

/// The channel axis after `x` is reshaped to `y`: the axis of the same size and the same number of elements
/// per index.
fn axis_after_reshape(x: ValueRef<'_>, y: ValueRef<'_>, axis: usize) -> Result<usize, Decline> {
    let stride =
        |shape: &[Dim], axis: usize| -> Option<i64> { shape[axis + 1..].iter().map(Dim::known).product() };
    let (before, after) = x.shape().zip(y.shape()).ok_or(Decline::Mismatch)?;
    let count = stride(before, axis).ok_or(Decline::Mismatch)?;
    let same = |&a: &usize| after[a] == before[axis] && stride(after, a) == Some(count);
    (0..after.len()).find(same).ok_or(Decline::Mismatch)
}

/// The output rank of a convolution or matrix product, derived from the weight where possible.
fn rank_of(x: ValueRef<'_>) -> Result<usize, Decline> {
    let producer = x.producer().ok_or(Decline::Mismatch)?;
    match producer.op() {
        "Gemm" => Ok(2),
        "Conv" | "ConvTranspose" => Ok(producer.input(1)?.constant()?.rank()),
        _ => x.rank(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn folds_scales_and_shifts_into_conv() {
        check(
            FoldScale::default(),
            "g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {1,2},
                float[2,1,1] s = {2,3}, float t = {1}, float[1,2,1,1] d = {4,2}> {
                a = Conv(x, w) b = Mul(s, a) c = Add(b, t) y = Div(c, d) }",
            "g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {0.5,3}, float[2] b_bias = {0.25,0.5}> {
                y = Conv(x, w, b_bias) }",
        );
    }

    #[test]
    fn turns_matmul_into_gemm() {
        check(
            FoldScale::default(),
            "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] t = {5,6}> {
                a = MatMul(x, w) y = Sub(a, t) }",
            "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] a_bias = {-5,-6}> {
                y = Gemm(x, w, a_bias) }",
        );
    }

    #[test]
    fn adds_the_bias_with_factor_one() {
        // The factor of a bias that is not there, of one that is not read, and of one that is.
        let graph = |attributes: &str, c: &str, data: &str, last: &str| {
            format!(
                "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, {data}> {{
                a = Gemm<{attributes}>(x, w{c}) {last} }}"
            )
        };
        let after = |bias: &str| {
            format!(
                "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] {bias}> {{
                y = Gemm<beta = 1.0>(x, w, {}) }}",
                bias.split(' ').next().unwrap()
            )
        };
        let add = "y = Add(a, t)";
        let t = "float[2] t = {5,6}";
        for beta in ["0.0", "3.0"] {
            let before = graph(&format!("beta = {beta}"), "", t, add);
            check(FoldScale::default(), &before, &after("a_bias = {5,6}"));
        }
        let with_bias = format!("float[2] c = {{1,2}}, {t}");
        check(FoldScale::default(), &graph("beta = 0.0", ", c", &with_bias, add), &after("c = {5,6}"));
        check(FoldScale::default(), &graph("beta = -2.0", ", c", &with_bias, add), &after("c = {3,2}"));
    }

    #[test]
    fn keeps_the_factor_of_an_absent_bias() {
        check(
            FoldScale::default(),
            "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float k = {2}> {
                a = Gemm<beta = 0.0>(x, w) y = Mul(a, k) }",
            "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {2,4,6,8}> { y = Gemm<beta = 0.0>(x, w) }",
        );
    }

    #[test]
    fn declines_other_axes_and_reversed_operands() {
        let graph = |c: &str, op: &str| {
            format!(
                "g (float[N,1,4,2] x) => (float[N,2,4,2] y) <float[2,1,1,1] w = {{1,2}}, {c}> {{
                a = Conv(x, w) y = {op} }}"
            )
        };
        let why = |source: &str| declines(FoldScale::default(), source);
        let none: [&str; 0] = [];
        assert_eq!(why(&graph("float[2] c = {1,2}", "Mul(a, c)")), none);
        let wider = graph("float[1,1,2,1,1] c = {1,2}", "Mul(a, c)");
        assert_eq!(why(&wider.replace("=> (float[N,2,4,2] y)", "=> (float[1,N,2,4,2] y)")), none);
        assert_eq!(why(&graph("float c = {2}", "Div(c, a)")), none);
        assert_eq!(why(&graph("float c = {2}", "Sub(c, a)")), none);
        assert_eq!(why(&graph("float c = {0}", "Div(a, c)")), ["Div producing `y` scales a channel by inf"]);
    }

    #[test]
    fn folds_through_reshape() {
        check(
            FoldScale::default(),
            "g (float[6,2] x) => (float[2,3,2] y)
                <float[2,2] w = {1,2,3,4}, int64[3] s = {2,3,2}, float[2] k = {2,3}, float[1,1,2] t = {4,5}> {
                a = Gemm<transB = 1>(x, w) b = Reshape(a, s) c = Mul(b, k) y = Add(c, t) }",
            "g (float[6,2] x) => (float[2,3,2] y)
                <int64[3] s = {2,3,2}, float[2,2] w = {2,4,9,12}, float[2] y_bias = {4,5}> {
                y_gemm = Gemm<transB = 1>(x, w, y_bias) y = Reshape(y_gemm, s) }",
        );
        // The constant varies along another axis, and the channels become two axes.
        let graph = |s: &str, k: &str| {
            format!(
                "g (float[2,2] x) => (float[2,2,2] y) <float[2,4] w = {{1,2,3,4,5,6,7,8}}, int64[3] s = {{{s}}},
                {k} k = {{2,3}}> {{ a = MatMul(x, w) b = Reshape(a, s) y = Mul(b, k) }}"
            )
        };
        let none: [&str; 0] = [];
        assert_eq!(declines(FoldScale::default(), &graph("2,2,2", "float[2]")), none);
        assert_eq!(declines(FoldScale::default(), &graph("2,2,2", "float[2,1,1]")), none);
    }

    #[test]
    fn declines_batched_matmul() {
        let why = declines(
            FoldScale::default(),
            "g (float[N,3,2] x) => (float[N,3,2] y) <float[2,2] w = {1,2,3,4}, float[2] t = {5,6}> {
                a = MatMul(x, w) y = Add(a, t) }",
        );
        assert!(why.is_empty(), "{why:?}");
    }
}
