//! Predicts cost and drift of combinations from those that were measured.
//!
//! Families alone give curves, by linear interpolation between the measured strengths, and one level beyond: of the
//! logarithm of the cost, and of the root of the drift. A combination adds the logarithms, and the drifts, as independent
//! disturbances do. What measured combinations deviate from that is added to their neighbours with the weight of
//! a Gaussian kernel: savings do not add, and how far they do not is the same for similar combinations.
//!
//! More samples for calibration lower the drift, and so does training: by factors that candidates measured both ways
//! show.

use super::{
    explorer::Fidelity,
    family::{COUNT, Combination, FAMILIES, Family},
    trial::Measured,
};

/// The width of the kernel, as a share of the strongest measured strength.
const REACH: f64 = 0.35;
/// The weight of the sum of curves among the corrections.
const PRIOR: f64 = 0.3;
/// Standard deviation of the logarithm of cost and drift of a combination without measured neighbours.
const COST_ERROR: f64 = 0.1;
const DRIFT_ERROR: f64 = 0.5;
/// The share of the deviation that remains at a measured combination: a strength nearby may differ.
const REMAINDER: f64 = 0.15;
/// Mean and standard deviation of the logarithm of the drift over that of the fidelity before, until it is measured.
/// Training on 2,000 images leaves about two thirds of the drift, on 50,000 a third. If it were expected to change
/// nothing, candidates that only training brings within the limits would never be trained.
const SHIFTS: [(f64, f64); 3] = [(0.0, 0.0), (0.0, 0.2), (-0.4, 0.4)];
/// The most combinations that are predicted at once.
const MAX_GRID: usize = 60_000;
/// The least drift, whose logarithm is finite.
const LEAST_DRIFT: f64 = 1e-9;

/// Means and standard deviations of logarithms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prediction {
    pub cost: f64,
    pub cost_deviation: f64,
    pub drift: f64,
    pub drift_deviation: f64,
}

pub(super) struct Predictor {
    curves: [Curve; COUNT],
    /// Combinations with their deviation from the curves: logarithms of cost and drift.
    residuals: Vec<(Combination, f64, f64)>,
    /// Mean and standard deviation of the logarithm of the drift over that with a part of the samples, by fidelity.
    shifts: [(f64, f64); 3],
}

/// Log cost and root of the drift by strength, from strength 0 on.
#[derive(Clone, Debug)]
struct Curve {
    points: Vec<(u32, f64, f64)>,
}

impl Curve {
    fn at(&self, strength: u32) -> (f64, f64) {
        let after = self.points.partition_point(|p| p.0 < strength).clamp(1, self.points.len().max(2) - 1);
        let (Some(a), Some(b)) = (self.points.get(after - 1), self.points.get(after)) else {
            return (0.0, 0.0);
        };
        let part = (f64::from(strength) - f64::from(a.0)) / (f64::from(b.0) - f64::from(a.0));
        let between = |a: f64, b: f64| a + part * (b - a);
        (between(a.1, b.1), between(a.2, b.2).max(0.0))
    }

    fn strongest(&self) -> u32 {
        self.points.last().map_or(0, |p| p.0)
    }
}

impl Predictor {
    /// Fits measured candidates, by fidelity; `Combination::default()` is among those of the first.
    pub fn new(measured: [Vec<(Combination, &Measured)>; 3]) -> Self {
        let measured =
            measured.map(|of| of.into_iter().map(|(c, m)| (c.with_training(false), m)).collect::<Vec<_>>());
        let find = |fidelity: usize, combination: Combination| {
            measured[fidelity].iter().find(|(c, _)| *c == combination).map(|(_, m)| *m)
        };
        let base = find(0, Combination::default()).map_or(0.0, |m| m.cost.ln());
        let mut curves = std::array::from_fn(|_| Curve { points: vec![(0, 0.0, 0.0)] });
        for (combination, m) in &measured[0] {
            if let Some((family, strength)) = combination.as_single() {
                curves[family].points.push((strength, m.cost.ln() - base, m.drift.max(0.0).sqrt()));
            }
        }
        curves.iter_mut().for_each(|curve| curve.points.sort_by_key(|p| p.0));
        // Each fidelity is compared with the last before it that measured the same candidate.
        let mut shifts = [(0.0_f64, 0.0_f64); 3];
        for fidelity in 1..shifts.len() {
            let before = |c| (0..fidelity).rev().find_map(|f| Some(log(find(f, c)?.drift) - shifts[f].0));
            let differences: Vec<_> =
                measured[fidelity].iter().filter_map(|(c, m)| Some(log(m.drift) - before(*c)?)).collect();
            let (last, prior) = (shifts[fidelity - 1], SHIFTS[fidelity]);
            let count = differences.len() as f64 + 1.0;
            let mean = (last.0 + prior.0 + differences.iter().sum::<f64>()) / count;
            shifts[fidelity] = (mean, last.1.hypot(prior.1 / count.sqrt()));
        }
        let mut predictor = Self { curves, residuals: vec![], shifts };
        let known =
            measured.iter().zip(shifts).flat_map(|(of, shift)| of.iter().map(move |known| (known, shift.0)));
        let residuals = known.filter(|((c, _), _)| c.parts().count() > 1).map(|((combination, m), shift)| {
            let (cost, drift) = predictor.sum(*combination);
            (*combination, m.cost.ln() - base - cost, log(m.drift) - shift - drift)
        });
        predictor.residuals = residuals.collect();
        predictor
    }

    /// The strengths of a family that are predicted: up to the level after the strongest that was measured.
    fn strengths(&self, family: usize) -> Vec<u32> {
        let (strongest, Family { ladder, resolution, .. }) =
            (self.curves[family].strongest(), &FAMILIES[family]);
        let next = ladder.iter().copied().find(|&s| s > strongest).filter(|_| strongest > 0);
        let strongest = next.unwrap_or(strongest);
        let first = ladder[0].min(*resolution);
        let mut strengths: Vec<_> =
            (first..=strongest).step_by(*resolution as usize).chain(ladder.iter().copied()).collect();
        strengths.retain(|&s| s <= strongest);
        strengths.push(0);
        strengths.sort_unstable();
        strengths.dedup();
        strengths
    }

    /// All combinations with at most one family that narrows, and at most one beyond its measured strengths, at a
    /// resolution at which they are not too many.
    pub fn grid(&self) -> Vec<Combination> {
        let strengths = |family| self.strengths(family).into_iter().map(move |strength| (family, strength));
        let (narrow, others): (Vec<_>, Vec<_>) = (0..COUNT).partition(|&family| FAMILIES[family].narrows);
        let mut axes: Vec<Vec<_>> = others.into_iter().map(|family| strengths(family).collect()).collect();
        let zero = (narrow[0], 0);
        let narrow = narrow.into_iter().flat_map(strengths).filter(|(_, strength)| *strength > 0);
        axes.push(std::iter::once(zero).chain(narrow).collect());
        while axes.iter().map(Vec::len).product::<usize>() > MAX_GRID {
            let Some(longest) = axes.iter_mut().max_by_key(|axis| axis.len()) else { break };
            // Keeps 0 and the strongest.
            let last = longest.len() - 1;
            let mut index = 0;
            longest.retain(|_| {
                index += 1;
                (index - 1) % 2 == 0 || index - 1 == last
            });
        }
        let mut grid = vec![Combination::default()];
        for axis in axes {
            let with = |mut combination: Combination, (family, strength): (usize, u32)| {
                combination.0[family] = strength;
                combination
            };
            grid = grid.iter().flat_map(|&c| axis.iter().map(move |&step| with(c, step))).collect();
        }
        grid.retain(|&combination| self.beyond(combination) <= 1);
        grid
    }

    /// The number of families whose strength is beyond those that were measured.
    fn beyond(&self, combination: Combination) -> usize {
        combination.parts().filter(|&(family, strength)| strength > self.curves[family].strongest()).count()
    }

    /// The sum of the curves.
    fn sum(&self, combination: Combination) -> (f64, f64) {
        let parts = combination.parts().map(|(family, strength)| self.curves[family].at(strength));
        let (cost, drift) = parts.fold((0.0, 0.0), |(c, d), (cost, root)| (c + cost, d + root * root));
        (cost, log(drift))
    }

    /// Predicts a combination that is made with this fidelity.
    pub fn predict_with(&self, fidelity: Fidelity, combination: Combination) -> Prediction {
        let p = self.predict(combination);
        let (shift, deviation) = self.shifts[fidelity as usize];
        Prediction { drift: p.drift + shift, drift_deviation: p.drift_deviation.hypot(deviation), ..p }
    }

    /// Predicts a combination that is calibrated on a part of the samples.
    pub fn predict(&self, combination: Combination) -> Prediction {
        let (cost, drift) = self.sum(combination);
        let is_beyond = self.beyond(combination) > 0;
        if combination.parts().count() < 2 {
            // Between two measured strengths, or beyond.
            let doubt = if is_beyond { 1.0 } else { 0.25 };
            let (cost_deviation, drift_deviation) = (COST_ERROR * doubt, DRIFT_ERROR * doubt);
            return Prediction { cost, cost_deviation, drift, drift_deviation };
        }
        let (mut weights, mut cost_sum, mut drift_sum, mut nearest) = (PRIOR, 0.0, 0.0, 0.0_f64);
        for &(other, cost, drift) in &self.residuals {
            let weight = self.similarity(combination, other);
            nearest = nearest.max(weight);
            weights += weight;
            cost_sum += weight * cost;
            drift_sum += weight * drift;
        }
        let doubt = if is_beyond { 1.0 } else { (1.0 - nearest).max(REMAINDER) };
        Prediction {
            cost: cost + cost_sum / weights,
            cost_deviation: COST_ERROR * doubt,
            drift: drift + drift_sum / weights,
            drift_deviation: DRIFT_ERROR * doubt,
        }
    }

    fn similarity(&self, a: Combination, b: Combination) -> f64 {
        let distance = (0..COUNT).map(|family| {
            let scale = REACH * f64::from(self.curves[family].strongest().max(1));
            ((f64::from(a.0[family]) - f64::from(b.0[family])) / scale).powi(2)
        });
        (-distance.sum::<f64>()).exp()
    }
}

/// The logarithm of a drift, which may be 0.
fn log(drift: f64) -> f64 {
    drift.max(LEAST_DRIFT).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs(known: &[(Combination, Measured)]) -> Vec<(Combination, &Measured)> {
        known.iter().map(|(c, m)| (*c, m)).collect()
    }

    fn pair(a: (usize, u32), b: (usize, u32)) -> Combination {
        let mut combination = Combination::single(a.0, a.1);
        combination.0[b.0] = b.1;
        combination
    }

    #[test]
    fn adds_curves_and_learns_from_combinations() {
        let mut known = vec![
            (Combination::default(), Measured::of(0.9, 0.0)),
            (Combination::single(0, 2), Measured::of(0.9 * 0.8, 0.04)),
            (Combination::single(3, 50), Measured::of(0.9 * 0.5, 0.09)),
        ];
        let at =
            |known: &[(Combination, Measured)], c| Predictor::new([refs(known), vec![], vec![]]).predict(c);
        let both = pair((0, 2), (3, 50));
        let first = at(&known, both);
        assert!((first.cost - 0.4_f64.ln()).abs() < 1e-9 && (first.drift - 0.13_f64.ln()).abs() < 1e-9);
        // Half of a strength has a quarter of the drift.
        let half = at(&known, Combination::single(3, 25));
        assert!((half.drift - (0.09_f64 / 4.0).ln()).abs() < 1e-9 && half.cost < 0.0);
        // A measured combination corrects its neighbours, and itself most.
        known.push((both, Measured::of(0.9 * 0.5, 0.3)));
        let (same, near) = (at(&known, both), at(&known, pair((0, 2), (3, 25))));
        assert!(
            same.cost > first.cost && same.drift > first.drift && same.cost_deviation < first.cost_deviation
        );
        assert!(near.cost_deviation > same.cost_deviation && near.cost_deviation < first.cost_deviation);
    }

    #[test]
    fn strengths_end_one_level_beyond_the_strongest_measured() {
        let known = [
            (Combination::default(), Measured::of(1.0, 0.0)),
            (Combination::single(4, 30), Measured::of(0.7, 0.1)),
        ];
        let predictor = Predictor::new([refs(&known), vec![], vec![]]);
        assert_eq!(predictor.strengths(4), [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]);
        assert_eq!(predictor.strengths(5), [0]);
        // The root of the drift grows in proportion.
        let [within, beyond] = [30, 45].map(|s| predictor.predict(Combination::single(4, s)));
        assert!((beyond.drift - (0.1_f64 * 2.25).ln()).abs() < 1e-9);
        assert!(beyond.drift_deviation > within.drift_deviation);
    }

    #[test]
    fn one_family_narrows_at_a_time() {
        let single = |family, strength| (Combination::single(family, strength), Measured::of(0.8, 0.1));
        let known =
            [(Combination::default(), Measured::of(1.0, 0.0)), single(3, 25), single(5, 15), single(6, 2)];
        let grid = Predictor::new([refs(&known), vec![], vec![]]).grid();
        let narrows = |c: &Combination| c.parts().filter(|(family, _)| FAMILIES[*family].narrows).count();
        assert!(grid.iter().all(|c| narrows(c) <= 1));
        assert!(grid.contains(&pair((3, 25), (6, 2))) && grid.contains(&pair((5, 30), (6, 2))));
        assert!(!grid.contains(&pair((5, 30), (6, 4))), "both are beyond what was measured");
        let mut unique = grid.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), grid.len());
    }

    #[test]
    fn more_samples_lower_the_drift() {
        let single = Combination::single(4, 30);
        let part = [(Combination::default(), Measured::of(1.0, 0.0)), (single, Measured::of(0.7, 0.1))];
        let all = [(single, Measured::of(0.7, 0.05))];
        let predictor = Predictor::new([refs(&part), refs(&all), vec![]]);
        let predict = |fidelity| predictor.predict_with(fidelity, single);
        let (before, after) = (predict(Fidelity::Part), predict(Fidelity::All));
        // One pair of candidates shows half of the factor.
        assert!((after.drift - before.drift - 0.5_f64.ln() / 2.0).abs() < 1e-9);
        assert!(after.drift_deviation > before.drift_deviation);
    }

    #[test]
    fn training_is_compared_with_the_same_candidate_before() {
        let (a, b) = (Combination::single(4, 30), Combination::single(4, 60));
        let part = [
            (Combination::default(), Measured::of(1.0, 0.0)),
            (a, Measured::of(0.7, 0.1)),
            (b, Measured::of(0.5, 0.4)),
        ];
        let all = [(a, Measured::of(0.7, 0.05))];
        let trained = [
            (b.with_training(true), Measured::of(0.5, 0.1)),
            (a.with_training(true), Measured::of(0.7, 0.02)),
        ];
        let predictor = Predictor::new([refs(&part), refs(&all), refs(&trained)]);
        let drift = |fidelity| predictor.predict_with(fidelity, a).drift;
        // `b` was measured with a part of the samples before, which gives ln ¼. `a` was measured with all of them,
        // which gives ln 0.4 and the factor of all samples, ln ½ / 2. The prior has that factor as well.
        let all_shift = 0.5_f64.ln() / 2.0;
        let prior = all_shift + SHIFTS[2].0;
        let expected = (prior + 0.25_f64.ln() + (all_shift + 0.4_f64.ln())) / 3.0;
        assert!((drift(Fidelity::Trained) - drift(Fidelity::Part) - expected).abs() < 1e-9);
        // The grid has no axis of training.
        assert!(predictor.grid().iter().all(|combination| !combination.is_trained()));
    }
}
