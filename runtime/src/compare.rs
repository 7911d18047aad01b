//! Deviation between the outputs of two models.

use crate::{Value, engine::describe};
use pare_graph::{DataType, Tensor, evaluate::quality};
use std::collections::BTreeSet;

/// Deviation of one output of a candidate from the reference, over all runs so far.
///
/// Floats are measured; for integers, bools and strings, unequal elements are counted. Values that are not
/// finite must have the same position and sign in both, or they count as `misplaced`; the other measures
/// ignore them. `-0` equals `0`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Deviation {
    /// Element type of the reference.
    pub dtype: Option<DataType>,
    /// Elements compared.
    pub count: u64,
    /// Elements that are not equal.
    pub differing: u64,
    /// Elements of which only one is NaN or infinite, or both are in different ways.
    pub misplaced: u64,
    /// Finite elements of the reference.
    pub finite: u64,
    /// max |reference - candidate|.
    pub max_abs: f64,
    /// max |reference - candidate| / max |reference| of a run; the largest of all runs.
    pub max_rel: f64,
    /// max |reference|.
    pub max_reference: f64,
    /// The first difference of type, shape or presence, which excludes a measurement.
    pub mismatch: Option<String>,
    /// Maxima of each run.
    pub runs: Vec<RunMaxima>,
    dot: f64,
    reference_squares: f64,
    candidate_squares: f64,
    error_squares: f64,
}

/// Maxima of one output in one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunMaxima {
    /// max |reference - candidate|.
    pub error: f64,
    /// max |reference|.
    pub reference: f64,
}

impl Deviation {
    /// The deviation between two values.
    pub fn between(reference: &Value, candidate: &Value) -> Self {
        let mut deviation = Self::default();
        deviation.add(reference, candidate);
        deviation
    }

    /// Adds the values of another run.
    pub fn add(&mut self, reference: &Value, candidate: &Value) {
        match (reference, candidate) {
            (Value::Tensor(a), Value::Tensor(b)) if (a.dtype(), a.shape()) == (b.dtype(), b.shape()) => {
                self.add_tensor(a, b);
            }
            (Value::Sequence(a), Value::Sequence(b)) if a.len() == b.len() => {
                a.iter().zip(b).for_each(|(a, b)| self.add(a, b));
            }
            (Value::Map { keys: a, values: x }, Value::Map { keys: b, values: y }) => {
                if a != b {
                    self.mismatch.get_or_insert_with(|| "its keys differ".to_owned());
                }
                self.add(&Value::Tensor(x.clone()), &Value::Tensor(y.clone()));
            }
            (Value::Optional(None), Value::Optional(None)) => {}
            (Value::Optional(Some(a)), Value::Optional(Some(b))) => self.add(a, b),
            _ => {
                let text = || format!("it is {} instead of {}", describe(candidate), describe(reference));
                self.mismatch.get_or_insert_with(text);
            }
        }
    }

    fn add_tensor(&mut self, a: &Tensor, b: &Tensor) {
        self.dtype.get_or_insert(a.dtype());
        if let (Some(x), Some(y)) = (parts(a), parts(b)) {
            self.add_numbers(&x, &y);
        } else {
            self.count += a.len() as u64;
            self.finite += a.len() as u64;
        }
        // Bitwise: different integers above 2^53 may be equal in f64.
        if !is_measured(a.dtype()) {
            self.differing += quality::unequal(a, b);
        }
    }

    fn add_numbers(&mut self, reference: &[f64], candidate: &[f64]) {
        let float = self.dtype.is_some_and(is_measured);
        let mut run = RunMaxima { error: 0.0, reference: 0.0 };
        for (&a, &b) in reference.iter().zip(candidate) {
            if a.is_finite() {
                self.finite += 1;
                run.reference = run.reference.max(a.abs());
            }
            if a.is_finite() && b.is_finite() {
                let error = (a - b).abs();
                run.error = run.error.max(error);
                self.dot += a * b;
                self.reference_squares += a * a;
                self.candidate_squares += b * b;
                self.error_squares += error * error;
                self.differing += u64::from(float && a != b);
            } else if !(a == b || (a.is_nan() && b.is_nan())) {
                self.misplaced += 1;
                self.differing += u64::from(float);
            }
        }
        self.count += reference.len() as u64;
        self.max_abs = self.max_abs.max(run.error);
        self.max_reference = self.max_reference.max(run.reference);
        self.max_rel = self.max_rel.max(ratio(run.error, run.reference));
        self.runs.push(run);
    }

    /// Adds the deviation of the same output over other runs.
    pub fn merge(&mut self, other: &Self) {
        self.dtype = self.dtype.or(other.dtype);
        self.mismatch = self.mismatch.take().or_else(|| other.mismatch.clone());
        self.count += other.count;
        self.finite += other.finite;
        self.differing += other.differing;
        self.misplaced += other.misplaced;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
        self.max_reference = self.max_reference.max(other.max_reference);
        self.runs.extend(&other.runs);
        self.dot += other.dot;
        self.reference_squares += other.reference_squares;
        self.candidate_squares += other.candidate_squares;
        self.error_squares += other.error_squares;
    }

    /// max |reference - candidate| / scale of a run, the largest of all runs. The scale is the run's max
    /// |reference|, but at least a thousandth of that of all runs: where values cancel to almost nothing,
    /// only rounding errors remain.
    pub fn scaled(&self) -> f64 {
        let least = MIN_SCALE * self.max_reference;
        self.runs.iter().map(|run| ratio(run.error, run.reference.max(least))).fold(0.0, f64::max)
    }

    /// Cosine similarity of both, all elements of all runs as one vector; 1 if both are zero.
    pub fn cosine(&self) -> f64 {
        let norms = (self.reference_squares * self.candidate_squares).sqrt();
        if norms > 0.0 {
            (self.dot / norms).clamp(-1.0, 1.0)
        } else {
            f64::from(u8::from(self.reference_squares == self.candidate_squares))
        }
    }

    /// Signal-to-noise ratio in dB: the energy of the reference over that of the difference; infinite if
    /// equal.
    pub fn snr_db(&self) -> f64 {
        if self.error_squares == 0.0 {
            return f64::INFINITY;
        }
        10.0 * (self.reference_squares / self.error_squares).log10()
    }

    /// Root mean square of the difference.
    pub fn rmse(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.error_squares / self.count as f64).sqrt() }
    }

    /// Returns true if all elements are equal.
    pub fn is_zero(&self) -> bool {
        self.mismatch.is_none() && self.differing == 0 && self.misplaced == 0
    }
}

/// Least scale of a run, as a share of the largest value of all runs.
const MIN_SCALE: f64 = 1e-3;

/// `error / scale`, and 0 for 0 / 0.
fn ratio(error: f64, scale: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / scale }
}

/// Returns true if values of this type are measured; others are counted.
pub(crate) fn is_measured(dtype: DataType) -> bool {
    dtype.is_float() || matches!(dtype, DataType::Complex64 | DataType::Complex128)
}

/// The elements in f64, each complex one as two; `None` for strings.
fn parts(tensor: &Tensor) -> Option<Vec<f64>> {
    let part = match tensor.dtype() {
        DataType::Complex64 => DataType::Float,
        DataType::Complex128 => DataType::Double,
        _ => return tensor.to_f64(),
    };
    Tensor::new(part, &[tensor.len() * 2], tensor.bytes().clone()).ok()?.to_f64()
}

/// The deviations of all outputs of a model, over many runs.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    outputs: Vec<(String, Deviation)>,
    runs: usize,
}

impl Comparison {
    /// A comparison without runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the outputs of one run, matched by name. An output that only one side has is a mismatch.
    pub fn add(&mut self, reference: &[(String, Value)], candidate: &[(String, Value)]) {
        self.runs += 1;
        for (name, value) in reference {
            match candidate.iter().find(|(other, _)| other == name) {
                Some((_, other)) => self.entry(name).add(value, other),
                None => drop(self.entry(name).mismatch.get_or_insert_with(|| "it is missing".to_owned())),
            }
        }
        for (name, _) in candidate {
            if reference.iter().all(|(other, _)| other != name) {
                self.entry(name).mismatch.get_or_insert_with(|| "it is new".to_owned());
            }
        }
    }

    fn entry(&mut self, name: &str) -> &mut Deviation {
        let index = self.outputs.iter().position(|(known, _)| known == name);
        let index = index.unwrap_or_else(|| {
            self.outputs.push((name.to_owned(), Deviation::default()));
            self.outputs.len() - 1
        });
        &mut self.outputs[index].1
    }

    /// Adds the runs of another comparison of the same models.
    pub fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        for (name, deviation) in &other.outputs {
            self.entry(name).merge(deviation);
        }
    }

    /// The deviation of each output, in the order of the reference.
    pub fn outputs(&self) -> &[(String, Deviation)] {
        &self.outputs
    }

    /// The deviation of one output.
    pub fn get(&self, name: &str) -> Option<&Deviation> {
        self.outputs.iter().find(|(known, _)| known == name).map(|(_, deviation)| deviation)
    }

    /// The comparison of the other outputs.
    #[must_use]
    pub(crate) fn without(&self, names: &BTreeSet<String>) -> Self {
        let kept = self.outputs.iter().filter(|(name, _)| !names.contains(name));
        Self { outputs: kept.cloned().collect(), runs: self.runs }
    }

    /// The comparison as a part of one with further runs: relative to the largest values of both.
    #[must_use]
    pub(crate) fn on_scale_of(mut self, all: &Self) -> Self {
        for (name, deviation) in &mut self.outputs {
            let largest = all.get(name).map_or(0.0, |known| known.max_reference);
            deviation.max_reference = deviation.max_reference.max(largest);
        }
        self
    }

    /// The number of runs.
    pub fn runs(&self) -> usize {
        self.runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::Element;

    fn between<T: Element>(a: &[T], b: &[T]) -> Deviation {
        Deviation::between(&Tensor::vector(a).into(), &Tensor::vector(b).into())
    }

    #[test]
    fn measures_floats() {
        let d = between(&[1.0_f32, -4.0], &[1.5, -4.0]);
        assert_eq!((d.max_abs, d.max_rel, d.max_reference), (0.5, 0.125, 4.0));
        assert_eq!((d.count, d.differing, d.misplaced), (2, 1, 0));
        assert!((d.cosine() - 17.5 / (17.0_f64 * 18.25).sqrt()).abs() < 1e-12);
        assert!((d.snr_db() - 10.0 * (17.0_f64 / 0.25).log10()).abs() < 1e-12);
    }

    #[test]
    fn equal_values_have_no_deviation() {
        let d = between(&[0.0_f32, 1.0], &[-0.0, 1.0]);
        assert!(d.is_zero());
        assert_eq!((d.cosine(), d.snr_db(), d.max_rel), (1.0, f64::INFINITY, 0.0));
        let d = between(&[0.0_f64], &[0.0]);
        assert_eq!((d.cosine(), d.is_zero()), (1.0, true));
        assert!(between::<f32>(&[], &[]).is_zero());
        assert_eq!(between(&[0.0_f64, 0.0], &[0.0, 1e-3]).max_rel, f64::INFINITY);
    }

    #[test]
    fn counts_misplaced_nan_and_infinity() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let same = between(&[nan, inf, -inf, 1.0], &[nan, inf, -inf, 1.0]);
        assert!(same.is_zero() && same.max_reference == 1.0);
        for (a, b) in [(nan, 1.0), (1.0, nan), (inf, -inf), (inf, 1e30), (nan, inf)] {
            let d = between(&[a, 2.0], &[b, 2.0]);
            assert_eq!((d.misplaced, d.differing, d.max_abs), (1, 1, 0.0), "{a} {b}");
        }
    }

    #[test]
    fn counts_unequal_integers_bools_and_strings() {
        let d = between(&[1_i64, 2, 3], &[1, 5, 3]);
        assert_eq!((d.differing, d.max_abs), (1, 3.0));
        let large = between(&[i64::MAX], &[i64::MAX - 1]);
        assert_eq!(large.differing, 1);
        assert_eq!(between(&[true, false], &[true, true]).differing, 1);
        assert_eq!(between(&[u64::MAX], &[0]).differing, 1);
        let strings = |words: &[&'static str]| {
            Value::Tensor(Tensor::strings(&[words.len()], words.iter().map(|&w| w.into()).collect()).unwrap())
        };
        let d = Deviation::between(&strings(&["a", "b"]), &strings(&["a", "c"]));
        assert_eq!((d.count, d.differing), (2, 1));
        let nibbles = |byte: u8| Value::Tensor(Tensor::new(DataType::Int4, &[1], vec![byte]).unwrap());
        assert_eq!(Deviation::between(&nibbles(1), &nibbles(2)).differing, 1);
    }

    #[test]
    fn reports_mismatched_types_and_shapes() {
        let a: Value = Tensor::from_slice(&[1, 2], &[0_f32; 2]).unwrap().into();
        let b: Value = Tensor::from_slice(&[2], &[0_f32; 2]).unwrap().into();
        let d = Deviation::between(&a, &b);
        assert_eq!(d.mismatch.as_deref(), Some("it is float[2] instead of float[1, 2]"));
        assert!(!d.is_zero());
        let list = Value::Sequence(vec![a.clone(), b.clone()]);
        assert!(Deviation::between(&list, &list.clone()).is_zero());
        let shorter = Deviation::between(&list, &Value::Sequence(vec![a]));
        assert_eq!(
            shorter.mismatch.as_deref(),
            Some("it is a sequence of 1 float[1, 2] instead of a sequence of 2 float[1, 2]")
        );
        assert!(
            Deviation::between(&Value::Optional(None), &Value::Optional(Some(Box::new(b))))
                .mismatch
                .is_some()
        );
    }

    #[test]
    fn merging_equals_collecting_together() {
        let feed = |x: f32| vec![("y".to_owned(), Value::Tensor(Tensor::vector(&[x, 1.0])))];
        let (mut all, mut a, mut b) = (Comparison::new(), Comparison::new(), Comparison::new());
        all.add(&feed(1.0), &feed(1.5));
        all.add(&feed(-2.0), &feed(-2.0));
        a.add(&feed(1.0), &feed(1.5));
        b.add(&feed(-2.0), &feed(-2.0));
        a.merge(&b);
        assert_eq!((a.outputs(), a.runs()), (all.outputs(), 2));
        a.add(&feed(0.0), &[("z".to_owned(), feed(0.0)[0].1.clone())]);
        assert_eq!(a.get("y").unwrap().mismatch.as_deref(), Some("it is missing"));
        assert_eq!(a.get("z").unwrap().mismatch.as_deref(), Some("it is new"));
    }

    #[test]
    fn measures_complex_numbers_by_part() {
        let complex = |values: &[f32]| {
            let parts = Tensor::vector(values);
            Value::Tensor(Tensor::new(DataType::Complex64, &[1], parts.bytes().clone()).unwrap())
        };
        let d = Deviation::between(&complex(&[1.0, 2.0]), &complex(&[1.0, 2.5]));
        assert_eq!((d.max_abs, d.max_reference, d.differing), (0.5, 2.0, 1));
    }
}
