//! Confidence limits: from samples to all inputs.

use statrs::distribution::{Beta, ContinuousCDF};

/// Returns the one-sided upper confidence limit of a share, from `hits` among `of` samples.
///
/// Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial"
/// (1934): the largest share for which at most `hits` hits have a probability of at least `1 - confidence`.
/// This is the `confidence` quantile of Beta(hits + 1, of - hits). It holds for any number of samples drawn
/// from the distribution of the inputs.
pub fn upper_limit(hits: u64, of: u64, confidence: f64) -> f64 {
    if hits >= of {
        return 1.0;
    }
    let beta = Beta::new(hits as f64 + 1.0, (of - hits) as f64);
    beta.map_or(1.0, |beta| beta.inverse_cdf(confidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P(at most `hits` of `of`) for this share, by summation.
    fn at_most(hits: u64, of: u64, share: f64) -> f64 {
        let mut term = (1.0 - share).powi(of as i32);
        let mut sum = term;
        for k in 0..hits {
            term *= (of - k) as f64 / (k + 1) as f64 * share / (1.0 - share);
            sum += term;
        }
        sum
    }

    #[test]
    fn limit_is_the_quantile_of_the_binomial() {
        for (hits, of) in [(0, 100), (1, 100), (3, 500), (5, 48), (40, 50)] {
            let limit = upper_limit(hits, of, 0.95);
            assert!((at_most(hits, of, limit) - 0.05).abs() < 1e-6, "{hits} of {of}: {limit}");
        }
        // The rule of three, exactly.
        assert!((upper_limit(0, 100, 0.95) - (1.0 - 0.05_f64.powf(0.01))).abs() < 1e-9);
        assert_eq!((upper_limit(0, 0, 0.95), upper_limit(7, 7, 0.95)), (1.0, 1.0));
    }
}
