//! Distinction between rounding errors and wrong results.

use crate::{Comparison, Deviation, compare::is_measured};
use pare_graph::DataType;

/// The deviation that counts as rounding of the same function.
///
/// The reference is the model's own noise: with the engine's optimizations off and on, the original computes
/// the same function with sums in another order. The deviation between these two, the *floor*, is the effect
/// of rounding alone for this model and these samples. A candidate is another such reordering. Its largest
/// error is the maximum of as many draws from a similar distribution; `factor` covers the spread of such
/// maxima, and reorderings that the engine does not perform.
///
/// If the engine reorders little, or the model amplifies errors, the original with perturbed operands
/// shows more of its noise; it runs when a candidate exceeds the floor.
///
/// The floor is zero where the engine reorders nothing. Therefore a constant part is allowed too: `roundings`
/// machine epsilons of the output's type, times its largest value. In single and double precision it
/// represents the roundings on the path through the network. Types of at most 16 bits are computed in wider
/// registers and rounded at the end of an operator, so `narrow_roundings` is smaller.
///
/// `measured_roundings` suffice where perturbation measures the noise: a last rounding on either side.
///
/// Both parts are relative to the scale of each run ([`Deviation::scaled`]): a run with large values must not
/// hide errors of others. `tests/tables/mutations.md` shows the detected errors, and that correct rewrites
/// stay within 4 times the floor or 2 epsilons; the factors leave a margin for other models.
///
/// Integers, bools and strings do not round. They must be equal, except for `factor` times the share that
/// differs in the floor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Allowed multiple of the floor.
    pub factor: f64,
    /// Allowed machine epsilons for floats of 32 and 64 bits.
    pub roundings: f64,
    /// Allowed machine epsilons for narrower floats.
    pub narrow_roundings: f64,
    /// Allowed machine epsilons for floats of 32 and 64 bits where perturbation measures the noise.
    pub measured_roundings: f64,
    /// Absolute tolerances that replace these, by output; one with an empty name holds for all other outputs.
    pub given: Vec<(String, f64)>,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            factor: 10.0,
            roundings: 32.0,
            narrow_roundings: 8.0,
            measured_roundings: 4.0,
            given: Vec::new(),
        }
    }
}

/// The deviation that a [`Tolerance`] allows for one output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Allowed {
    /// max |reference - candidate| of floats.
    pub abs: f64,
    /// max |reference - candidate| of floats in a run, relative to the run's scale.
    pub rel: f64,
    /// Share of integers, bools or strings that may differ.
    pub share: f64,
    /// Share of elements that may be NaN or infinite on one side only.
    pub misplaced: f64,
}

impl Tolerance {
    /// The tolerance where the noise is measured by perturbation whenever a candidate exceeds it.
    pub(crate) fn measured(&self) -> Self {
        Self { roundings: self.measured_roundings, ..self.clone() }
    }

    /// The allowed deviation of an output with this `floor`; `reference` is its largest |value|.
    pub(crate) fn allowed(&self, floor: &Deviation, dtype: Option<DataType>, reference: f64) -> Allowed {
        let epsilon = dtype.map_or(0.0, epsilon);
        let wide = dtype.is_some_and(|dtype| dtype.bits() >= 32);
        let roundings = if wide { self.roundings } else { self.narrow_roundings };
        let share =
            |part: u64| if floor.count == 0 { 0.0 } else { self.factor * part as f64 / floor.count as f64 };
        Allowed {
            abs: (self.factor * floor.max_abs).max(roundings * epsilon * reference),
            rel: (self.factor * floor.scaled()).max(roundings * epsilon),
            share: share(floor.differing).min(1.0),
            misplaced: share(floor.misplaced).min(1.0),
        }
    }

    /// Compares every output of `candidate` with its floor. The verdict names the output with the largest
    /// excess.
    pub fn judge(&self, candidate: &Comparison, floor: &Comparison) -> Verdict {
        let none = Deviation::default();
        let faults = candidate.outputs().iter().filter_map(|(name, deviation)| {
            let floor = floor.get(name).unwrap_or(&none);
            let (excess, why) = self.fault(name, deviation, floor)?;
            Some((excess, name.clone(), why))
        });
        match faults.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((_, output, why)) => Verdict::Differs { output, why },
            None => Verdict::Equal,
        }
    }

    /// The factor by which `deviation` exceeds the allowed one, and a sentence about it.
    fn fault(&self, name: &str, deviation: &Deviation, floor: &Deviation) -> Option<(f64, String)> {
        if let Some(mismatch) = &deviation.mismatch {
            return Some((f64::INFINITY, mismatch.clone()));
        }
        let allowed = self.allowed(floor, deviation.dtype, deviation.max_reference);
        let count = deviation.count.max(1) as f64;
        if deviation.misplaced as f64 / count > allowed.misplaced {
            let misplaced = deviation.misplaced;
            let why = format!("{misplaced} of {count} values are NaN or infinite on one side only");
            return Some((f64::INFINITY, why));
        }
        let given = |output: &str| self.given.iter().find(|(n, _)| n == output).map(|(_, limit)| *limit);
        if let Some(limit) = given(name).or_else(|| given("")) {
            let is = deviation.max_abs;
            let why = || format!("it is off by up to {is:.3e}, and {limit:e} is accepted");
            return (!(is <= limit)).then(|| (is / limit, why()));
        }
        if deviation.dtype.is_some_and(is_measured) {
            let (is, may) = (deviation.max_abs, allowed.abs);
            if is > may {
                let why = format!("it is off by up to {is:.3e}, and rounding explains {may:.3e}");
                return Some((is / may, why));
            }
            let (is, may) = (deviation.scaled(), allowed.rel);
            let why =
                || format!("a run is off by {is:.3e} of its largest value, and rounding explains {may:.3e}");
            return (is > may).then(|| (is / may, why()));
        }
        let share = deviation.differing as f64 / count;
        (share > allowed.share).then(|| {
            let why = format!("{} of {count} values differ", deviation.differing);
            (share / allowed.share, why)
        })
    }
}

/// Machine epsilon: the distance from 1 to the next number of this type; 0 for types that do not round.
pub fn epsilon(dtype: DataType) -> f64 {
    use DataType as D;
    match dtype {
        D::Float | D::Complex64 => f64::from(f32::EPSILON),
        D::Double | D::Complex128 => f64::EPSILON,
        D::Float16 => 2_f64.powi(-10),
        D::Bfloat16 => 2_f64.powi(-7),
        D::Float8E4M3Fn | D::Float8E4M3Fnuz | D::Float6E2M3 => 2_f64.powi(-3),
        D::Float8E5M2 | D::Float8E5M2Fnuz | D::Float6E3M2 => 2_f64.powi(-2),
        D::Float4E2M1 => 0.5,
        D::Float8E8M0 => 1.0,
        _ => 0.0,
    }
}

/// True if two models compute the same function on the samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They agree within the tolerance.
    Equal,
    /// They differ.
    Differs {
        /// The output with the largest excess.
        output: String,
        /// The difference, in one sentence.
        why: String,
    },
}

impl Verdict {
    /// Returns true if they agree.
    pub fn is_equal(&self) -> bool {
        *self == Self::Equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;
    use pare_graph::{Element, Tensor};

    fn compare<T: Element>(a: &[T], b: &[T]) -> Comparison {
        let feed = |values: &[T]| vec![("y".to_owned(), Value::Tensor(Tensor::vector(values)))];
        let mut comparison = Comparison::new();
        comparison.add(&feed(a), &feed(b));
        comparison
    }

    fn why(verdict: Verdict) -> String {
        match verdict {
            Verdict::Equal => "equal".to_owned(),
            Verdict::Differs { output, why } => format!("`{output}`: {why}"),
        }
    }

    #[test]
    fn judges_by_the_noise_of_the_model() {
        let tolerance = Tolerance::default();
        let quiet = compare(&[1.0_f32, -8.0], &[1.0, -8.0]);
        let noisy = compare(&[1.0_f32, -8.0], &[1.001, -8.0]);
        let off = compare(&[1.0_f32, -8.0], &[1.005, -8.0]);
        assert!(tolerance.judge(&off, &noisy).is_equal());
        let text = why(tolerance.judge(&off, &quiet));
        assert_eq!(text, "`y`: it is off by up to 5.000e-3, and rounding explains 3.052e-5");
        // Without noise, some roundings of the largest value are allowed.
        let close = compare(&[1.0_f32, -8.0], &[1.0, -8.00002]);
        assert!(tolerance.judge(&close, &quiet).is_equal());
    }

    #[test]
    fn judges_runs_by_their_own_scale() {
        let runs = |first: f32, second: f32| {
            let mut all = compare(&[1000.0_f32], &[first]);
            all.merge(&compare(&[1.0_f32], &[second]));
            all
        };
        let floor = runs(1000.001, 1.000_001);
        let tolerance = Tolerance::default();
        assert!(tolerance.judge(&runs(1000.005, 1.000_005), &floor).is_equal());
        let text = why(tolerance.judge(&runs(1000.0, 1.005), &floor));
        assert_eq!(
            text,
            "`y`: a run is off by 5.000e-3 of its largest value, and rounding explains 9.766e-6"
        );
        // Values that cancel to nothing are relative to the scale of the others.
        let mut cancelled = compare(&[1000.0_f32, 1.0], &[1000.0, 1.0]);
        cancelled.merge(&compare(&[0.0_f32, 0.0], &[1e-6, 0.0]));
        assert!(tolerance.judge(&cancelled, &runs(1000.0, 1.0)).is_equal());
    }

    #[test]
    fn given_tolerances_replace_rounding() {
        let (off, none) = (compare(&[1.0_f32, -8.0], &[1.0, -8.5]), Comparison::new());
        let with = |given: &[(&str, f64)]| {
            let given = given.iter().map(|&(n, x)| (n.to_owned(), x)).collect();
            why(Tolerance { given, ..Tolerance::default() }.judge(&off, &none))
        };
        assert_eq!(with(&[("y", 0.5)]), "equal");
        assert_eq!(with(&[("", 0.6)]), "equal");
        assert_eq!(with(&[("", 0.6), ("y", 0.1)]), "`y`: it is off by up to 5.000e-1, and 1e-1 is accepted");
        assert!(with(&[("other", 1.0)]).starts_with("`y`: it is off by up to 5.000e-1, and rounding"));
    }

    #[test]
    fn allows_flipped_integers_in_proportion_to_the_floor() {
        let tolerance = Tolerance::default();
        let quiet = compare(&[1_i64, 2, 3, 4], &[1, 2, 3, 4]);
        let flipped = compare(&[1_i64, 2, 3, 4], &[1, 2, 3, 5]);
        assert_eq!(why(tolerance.judge(&flipped, &quiet)), "`y`: 1 of 4 values differ");
        assert!(tolerance.judge(&flipped, &flipped).is_equal());
    }

    #[test]
    fn rejects_misplaced_nan_and_mismatched_shapes() {
        let tolerance = Tolerance::default();
        let nan = compare(&[1.0_f32, 2.0], &[1.0, f32::NAN]);
        let none = Comparison::new();
        let text = why(tolerance.judge(&nan, &none));
        assert_eq!(text, "`y`: 1 of 2 values are NaN or infinite on one side only");
        let shape = compare(&[1.0_f32], &[1.0, 2.0]);
        assert_eq!(why(tolerance.judge(&shape, &none)), "`y`: it is float[2] instead of float[1]");
    }

    #[test]
    fn allowance_scales_with_type_and_size() {
        let floor = Deviation::default();
        let allowed = |dtype, size| Tolerance::default().allowed(&floor, Some(dtype), size).abs;
        assert_eq!(allowed(DataType::Float, 2.0), 64.0 * f64::from(f32::EPSILON));
        assert_eq!(allowed(DataType::Float16, 1.0), 8.0 / 1024.0);
        assert_eq!(allowed(DataType::Int64, 1e9), 0.0);
    }
}
