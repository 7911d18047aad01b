//! How undecided activations are: the entropy of the sign of what goes into them.

use super::JointMoments;
use statrs::function::erf::erf;

/// The entropy of a coin that shows one side with this probability, in bits.
pub fn entropy(p: f64) -> f64 {
    let term = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    term(p) + term(1.0 - p)
}

/// Probability that a Gaussian of variance 1 around `mean` is positive.
pub fn above_zero(mean: f64) -> f64 {
    0.5 * (1.0 + erf(mean / std::f64::consts::SQRT_2))
}

/// The mean over channels of the entropy of `x ≥ 0`, each over all samples and places (EASIER).
pub fn of_signs(pairs: &JointMoments) -> f64 {
    mean(pairs.channels.iter().map(|c| entropy(c.positive())))
}

/// The same as if `x` were Gaussian with the mean and deviation it has (TLC). A channel that never changes is decided.
pub fn of_gaussians(pairs: &JointMoments) -> f64 {
    let ratio = |mean: f64, deviation: f64| mean / deviation.max(f64::MIN_POSITIVE);
    mean(pairs.channels.iter().map(|c| entropy(above_zero(ratio(c.x_mean, c.deviation())))))
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_agree_on_gaussians() {
        assert_eq!((entropy(0.5), entropy(0.0), entropy(1.0)), (1.0, 0.0, 0.0));
        let mut rng = fastrand::Rng::with_seed(4);
        let mut normal =
            || (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos();
        let moments: Vec<_> = (0..20).map(|_| (normal(), normal().abs() + 0.1)).collect();
        let mut pairs = JointMoments::new(20);
        let row = |_| moments.iter().map(|(b, g)| (b + g * normal()) as f32).collect::<Vec<_>>();
        let x: Vec<f32> = (0..4000).flat_map(row).collect();
        pairs.add(&x, &x, &[4000, 20], 1);
        let exact = mean(moments.iter().map(|(b, g)| entropy(above_zero(b / g))));
        // Shares of 4000 draws are off by a hundredth.
        assert!((of_signs(&pairs) - exact).abs() < 0.01, "{} {exact}", of_signs(&pairs));
        assert!((of_gaussians(&pairs) - exact).abs() < 0.01, "{} {exact}", of_gaussians(&pairs));
        let mut still = JointMoments::new(1);
        still.add(&[-1.0, -1.0], &[0.0, 0.0], &[2, 1], 1);
        assert_eq!((of_signs(&still), of_gaussians(&still)), (0.0, 0.0));
    }
}
