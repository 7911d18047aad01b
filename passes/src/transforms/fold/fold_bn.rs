use super::preceding::{ChannelAffine, fold};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, ops::AffineView};

pass! {
    /// Fold `BatchNormalization` into the preceding convolution or matrix product.
    ///
    /// At inference a batch norm is one multiplication and one addition per channel, `y = s·x + t` with
    /// `s = γ/√(σ²+ε)` and `t = β − s·μ`, so it moves into the weights: `W' = s·W`, `b' = s·b + t`. Applies
    /// to `Conv`, `ConvTranspose`, `Gemm`, and `MatMul` of matrices, which becomes a `Gemm`.
    ///
    /// Declines in training mode, if weights or statistics are not constant or are shared, if the product has
    /// another use, and if a channel would be scaled beyond `max_scale`.
    #[pass("fold-bn", Rounding, "batch norm folded", "batch norms folded")]
    pub struct FoldBn {
        /// Decline when a channel would be scaled by more than this.
        pub max_scale: f64 = 1e6,
    }
}

impl Pass for FoldBn {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["BatchNormalization"], |at| {
            let AffineView { scale, shift } = AffineView::of(at)?;
            if let Some(s) = scale.iter().find(|s| s.abs() > self.max_scale) {
                return Err(Decline::because(format!("{} scales a channel by {s:.3e}", at.describe())));
            }
            fold(at, at.input(0)?, &ChannelAffine { scale, shift }, 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    /// s = (2, 0.5), t = (1, -1) with ε = 0.
    const NORM: &str = "float[2] g = {2,1}, float[2] b = {1,0}, float[2] m = {0,2}, float[2] v = {1,4}";
    const BN: &str = "BatchNormalization<epsilon = 0.0>(h, g, b, m, v)";

    #[test]
    fn folds_scale_and_shift_into_conv() {
        check(
            FoldBn::default(),
            &format!(
                "g (float[N,2,4,4] x) => (float[N,2,4,4] y) <
                float[2,1,1,1] w = {{1,2}}, float[2] c = {{3,4}}, {NORM}> {{
                h = Conv<group = 2>(x, w, c) y = {BN} }}"
            ),
            "g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {2,1}, float[2] c = {7,1}> {
                y = Conv<group = 2>(x, w, c) }",
        );
    }

    #[test]
    fn folds_into_conv_transpose_group_by_group() {
        check(
            FoldBn::default(),
            &format!("g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {{1,2}}, {NORM}> {{
                h = ConvTranspose<group = 2>(x, w) y = {BN} }}"),
            "g (float[N,2,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {2,1}, float[2] h_bias = {1,-1}> {
                y = ConvTranspose<group = 2>(x, w, h_bias) }",
        );
        check(
            FoldBn::default(),
            &format!("g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[1,2,1,1] w = {{1,2}}, {NORM}> {{
                h = ConvTranspose(x, w) y = {BN} }}"),
            "g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[1,2,1,1] w = {2,1}, float[2] h_bias = {1,-1}> {
                y = ConvTranspose(x, w, h_bias) }",
        );
    }

    #[test]
    fn folds_into_output_channels_of_matrix_products() {
        check(
            FoldBn::default(),
            &format!(
                "g (float[N,3] x) => (float[N,2] y) <
                float[2,3] w = {{1,2,3,4,5,6}}, float[2] c = {{1,1}}, {NORM}> {{
                h = Gemm<alpha = 2.0, beta = 3.0, transB = 1>(x, w, c) y = {BN} }}"
            ),
            "g (float[N,3] x) => (float[N,2] y) <float[2,3] w = {2,4,6,2,2.5,3}, float[2] c = {7,0.5}> {
                y = Gemm<alpha = 2.0, beta = 1.0, transB = 1>(x, w, c) }",
        );
        check(
            FoldBn::default(),
            &format!(
                "g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {{1,2,3,4,5,6}}, {NORM}> {{
                h = MatMul(x, w) y = {BN} }}"
            ),
            "g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {2,1,6,2,10,3}, float[2] h_bias = {1,-1}> {
                y = Gemm(x, w, h_bias) }",
        );
    }

    #[test]
    fn adds_the_bias_of_a_matrix_product_with_factor_one() {
        check(
            FoldBn::default(),
            &format!(
                "g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {{1,2,3,4,5,6}}, {NORM}> {{
                h = Gemm<beta = 0.0>(x, w) y = {BN} }}"
            ),
            "g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {2,1,6,2,10,3}, float[2] h_bias = {1,-1}> {
                y = Gemm<beta = 1.0>(x, w, h_bias) }",
        );
    }

    #[test]
    fn declines_shared_weights_other_uses_and_large_scales() {
        let graph = |out: &str, more: &str, conv: &str| {
            format!(
                "g (float[N,2,4,4] x{more}) => (float[N,2,4,4] y{out}) <{NORM}> {{
                {conv} y = {BN} }}"
            )
        };
        let constant = "k = Constant<value = float[2,1,1,1] {1,2}>() h = Conv<group = 2>(x, k)";
        assert_eq!(
            declines(FoldBn::default(), &graph(", float[N,2,4,4] h", "", constant)),
            ["`h` has 2 uses"]
        );
        assert_eq!(
            declines(FoldBn::default(), &graph("", ", float[2,1,1,1] k", "h = Conv<group = 2>(x, k)")),
            ["`k` is not constant"]
        );
        assert_eq!(
            declines(
                FoldBn::default(),
                &graph("", "", &format!("{constant} z = Conv<group = 2>(h, k)")).replace("(h, g", "(z, g")
            ),
            ["`k` has 2 uses"]
        );
        let wild = graph("", "", constant).replace("g = {2,1}", "g = {2e7,1}");
        assert_eq!(
            declines(FoldBn::default(), &wild),
            ["BatchNormalization producing `y` scales a channel by 2.000e7"]
        );
    }
}
