//! The entropy of the signs of pre-activations: 0 for a channel that is always, or never, switched on.

use super::JointMoments;
use statrs::function::erf::erf;

/// The entropy of a Bernoulli variable with probability `p`, in bits.
pub fn entropy(p: f64) -> f64 {
    let term = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    term(p) + term(1.0 - p)
}

/// The probability that a Gaussian of variance 1 around `mean` is positive.
pub fn above_zero(mean: f64) -> f64 {
    0.5 * (1.0 + erf(mean / std::f64::consts::SQRT_2))
}

/// The mean over channels of the entropy of `x ≥ 0` over all samples and positions (EASIER).
pub fn of_signs(moments: &JointMoments) -> f64 {
    mean(moments.channels.iter().map(|c| entropy(c.positive())))
}

/// Like [`of_signs`], for Gaussians with the mean and deviation of `x` (TLC). A constant channel has entropy
/// 0.
pub fn of_gaussians(moments: &JointMoments) -> f64 {
    let ratio = |mean: f64, deviation: f64| mean / deviation.max(f64::MIN_POSITIVE);
    mean(moments.channels.iter().map(|c| entropy(above_zero(ratio(c.x_mean, c.deviation())))))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::random::normal;

    #[test]
    fn entropies_agree_on_gaussians() {
        assert_eq!((entropy(0.5), entropy(0.0), entropy(1.0)), (1.0, 0.0, 0.0));
        let mut rng = fastrand::Rng::with_seed(4);
        let mut normal = || normal(&mut rng);
        let parameters: Vec<_> = (0..20).map(|_| (normal(), normal().abs() + 0.1)).collect();
        let mut moments = JointMoments::new(20);
        let row = |_| parameters.iter().map(|(b, g)| (b + g * normal()) as f32).collect::<Vec<_>>();
        let x: Vec<f32> = (0..4000).flat_map(row).collect();
        moments.add(&x, &x, &[4000, 20], 1);
        let exact = mean(parameters.iter().map(|(b, g)| entropy(above_zero(b / g))));
        // Shares of 4000 draws have an error of about 0.01.
        assert!((of_signs(&moments) - exact).abs() < 0.01, "{} {exact}", of_signs(&moments));
        assert!((of_gaussians(&moments) - exact).abs() < 0.01, "{} {exact}", of_gaussians(&moments));
        let mut constant = JointMoments::new(1);
        constant.add(&[-1.0, -1.0], &[0.0, 0.0], &[2, 1], 1);
        assert_eq!((of_signs(&constant), of_gaussians(&constant)), (0.0, 0.0));
    }
}
