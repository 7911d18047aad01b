//! Limits on the loss of quality, and how sure it is that they hold for other samples.
//!
//! A loss that is measured on few samples is noisy, and a search that takes the best of many candidates prefers
//! those whose noise was lucky. The drift has little noise, since every sample adds a number to it, not only those
//! that change class. So the loss is predicted from the drift by a law that is fitted to all candidates,
//!
//! `loss ≈ k·drift^p`,
//!
//! and the measured loss is moved toward the prediction, each weighted by the inverse of its variance (empirical
//! Bayes, as in James and Stein 1961). A candidate is accepted if both the measured and the corrected loss keep
//! the limit.

use super::trial::Measured;
use statrs::distribution::{ContinuousCDF, Normal};

/// The least relative error of the law.
const LEAST_ERROR: f64 = 0.15;
/// The relative error of the law before candidates show it.
const FIRST_ERROR: f64 = 0.5;
/// Iterations of the weighted fit: weights depend on the fit.
const FITS: usize = 4;

/// A quantity that is limited.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantity {
    Drift,
    /// 1 − agreement.
    Disagreement,
    AccuracyDrop,
    MetricDrop,
}

/// A limit on a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limit {
    pub quantity: Quantity,
    pub bound: f64,
    /// The power `p` of the law.
    pub power: f64,
}

/// The law of one loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Law {
    factor: f64,
    power: f64,
    /// Relative error.
    error: f64,
}

/// The loss of a candidate on other samples: mean and standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub mean: f64,
    pub deviation: f64,
}

impl Limit {
    /// The measured loss.
    pub fn loss(&self, measured: &Measured) -> Option<f64> {
        match self.quantity {
            Quantity::Drift => Some(measured.drift),
            Quantity::Disagreement => Some(1.0 - measured.agreement?),
            Quantity::AccuracyDrop => measured.accuracy_drop,
            Quantity::MetricDrop => measured.metric_drop,
        }
    }

    /// The standard error of the loss over `samples`; 0 where it is not known.
    fn noise(&self, measured: &Measured, samples: usize) -> f64 {
        let n = samples.max(1) as f64;
        match (self.quantity, self.loss(measured), measured.agreement) {
            (Quantity::Disagreement, Some(share), _) => (share * (1.0 - share) / n).max(1.0 / (n * n)).sqrt(),
            // Each sample that changes class changes the number of correct ones by −1, 0 or 1.
            (Quantity::AccuracyDrop, Some(drop), Some(agreement)) => {
                ((1.0 - agreement - drop * drop).max(1.0 / n) / n).sqrt()
            }
            _ => 0.0,
        }
    }

    /// Fits the law to candidates.
    pub fn law<'m>(&self, candidates: impl Iterator<Item = &'m Measured>, samples: usize) -> Option<Law> {
        let points: Vec<_> = candidates
            .filter(|m| m.drift > 0.0 && m.drift.is_finite())
            .filter_map(|m| Some((m.drift.powf(self.power), self.loss(m)?, self.noise(m, samples))))
            .collect();
        let (mut factor, mut error) = (0.0_f64, FIRST_ERROR);
        for _ in 0..FITS {
            let weight = |x: f64, noise: f64| 1.0 / (noise.powi(2) + (error * factor * x).powi(2)).max(1e-12);
            let sums = points.iter().fold([0.0; 2], |[xy, xx], &(x, y, noise)| {
                let w = if factor > 0.0 { weight(x, noise) } else { 1.0 };
                [xy + w * x * y, xx + w * x * x]
            });
            factor = sums[0] / sums[1];
            // Candidates without loss show no factor.
            if !(factor > 0.0) {
                return None;
            }
            let excess: f64 = points
                .iter()
                .map(|&(x, y, noise)| (y / (factor * x) - 1.0).powi(2) - (noise / (factor * x)).powi(2))
                .sum();
            // Few candidates do not show how exact the law is.
            let counted = points.len() as f64;
            error = ((excess.max(0.0) + FIRST_ERROR.powi(2)) / (counted + 1.0)).sqrt().max(LEAST_ERROR);
        }
        // All candidates are measured on the same samples, so that their noise does not average out: the factor is
        // as uncertain as the most certain of them shows it.
        let uncertainty =
            points.iter().map(|&(x, _, noise)| noise / (factor * x)).fold(f64::INFINITY, f64::min);
        Some(Law { factor, power: self.power, error: error.hypot(uncertainty) })
    }

    /// Estimates the loss of a measured candidate on other samples.
    pub fn estimate(&self, measured: &Measured, law: Option<Law>, samples: usize) -> Option<Estimate> {
        let (loss, noise) = (self.loss(measured)?, self.noise(measured, samples));
        let Some(law) = law.filter(|_| noise > 0.0) else {
            return Some(Estimate { mean: loss, deviation: noise });
        };
        let predicted = law.loss(measured.drift);
        let (a, b) = (noise.powi(-2), (law.error * predicted).max(1e-9).powi(-2));
        Some(Estimate { mean: (a * loss + b * predicted) / (a + b), deviation: (a + b).sqrt().recip() })
    }

    /// The probability that the loss on other samples keeps the limit; `None` if the noise is not known.
    pub fn confidence(&self, estimate: Estimate) -> Option<f64> {
        (estimate.deviation > 0.0).then(|| below((self.bound - estimate.mean) / estimate.deviation))
    }
}

impl Law {
    /// The predicted loss at a drift.
    pub fn loss(&self, drift: f64) -> f64 {
        self.factor * drift.powf(self.power)
    }

    /// The drift at which the loss is `bound`, and the relative error of it.
    pub fn drift(&self, bound: f64) -> (f64, f64) {
        ((bound / self.factor).powf(self.power.recip()), self.error / self.power)
    }
}

/// The probability that a standard normal variable is below `z`.
pub(super) fn below(z: f64) -> f64 {
    Normal::standard().cdf(z)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(drift: f64, agreement: f64, drop: f64) -> Measured {
        Measured { agreement: Some(agreement), accuracy_drop: Some(drop), ..Measured::of(1.0, drift) }
    }

    const DROP: Limit = Limit { quantity: Quantity::AccuracyDrop, bound: 0.01, power: 1.0 };

    #[test]
    fn fits_the_law_of_noisy_losses() {
        let mut rng = fastrand::Rng::with_seed(3);
        let candidates: Vec<_> = (1..=30)
            .map(|i| {
                let drift = 0.01 * f64::from(i);
                candidate(drift, 1.0 - 0.3 * drift.sqrt(), 0.2 * drift + 0.01 * (rng.f64() - 0.5))
            })
            .collect();
        let law = DROP.law(candidates.iter(), 1000).unwrap();
        assert!((law.factor - 0.2).abs() < 0.02 && law.error < 0.3, "{law:?}");
        // Fewer samples say less.
        assert!(DROP.law(candidates.iter(), 100).unwrap().error > law.error);
        assert!((law.drift(0.02).0 - 0.1).abs() < 0.01);
    }

    #[test]
    fn lucky_candidates_are_moved_toward_the_law() {
        let law = Law { factor: 0.2, power: 1.0, error: 0.2 };
        // The law predicts 2 points; the samples show none.
        let lucky = candidate(0.1, 0.92, 0.0);
        let estimate = DROP.estimate(&lucky, Some(law), 1000).unwrap();
        assert!(estimate.mean > 0.01 && estimate.mean < 0.02, "{estimate:?}");
        assert!(DROP.confidence(estimate).unwrap() < 0.5);
        // With many samples the measurement counts.
        let sure = DROP.estimate(&lucky, Some(law), 1_000_000).unwrap();
        assert!(sure.mean < 0.001 && DROP.confidence(sure).unwrap() > 0.99);
    }

    #[test]
    fn losses_without_noise_are_exact() {
        let limit = Limit { quantity: Quantity::Drift, bound: 0.1, power: 1.0 };
        let m = candidate(0.05, 0.9, 0.0);
        let estimate = limit.estimate(&m, None, 10).unwrap();
        assert_eq!((estimate.mean, estimate.deviation), (0.05, 0.0));
        assert_eq!(limit.confidence(estimate), None);
    }
}
