//! The distance of an output from the original's.

use super::{OutputMeasure, divergence, rows::Rows};
use crate::Tensor;

/// The drift of one output, summed over batches: 0 for equal outputs, infinite where values are NaN.
///
/// | measure | drift |
/// |---|---|
/// | classes | the mean over rows of [`divergence`] from the original, in nats |
/// | cosine | `Σ‖x − y‖² / Σ‖x − E x‖²` of rows scaled to length 1: the mean of `2·(1 − cos)`, over the variance of directions |
/// | error | `Σ(x − y)² / Σ(x − E x)²`: the squared error over the variance of the original `x` |
/// | exact | the share of elements that differ |
/// | ignore | 0 |
///
/// An original without variance has no scale; its mean squared error counts. An output of another shape counts
/// like zeros, or as different elements.
///
/// This is the quantity that the option `max_drift` of passes limits, summed over the outputs of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    measure: OutputMeasure,
    divergence: f64,
    rows: f64,
    error: f64,
    square: f64,
    sum: f64,
    count: f64,
    /// The sum of all rows scaled to length 1.
    direction: Vec<f64>,
}

impl Drift {
    /// The drift of an output with this measure, without batches.
    pub fn new(measure: OutputMeasure) -> Self {
        Self {
            measure,
            divergence: 0.0,
            rows: 0.0,
            error: 0.0,
            square: 0.0,
            sum: 0.0,
            count: 0.0,
            direction: vec![],
        }
    }

    /// Adds a batch.
    pub fn add(&mut self, original: &Tensor, changed: &Tensor) {
        match self.measure {
            OutputMeasure::Ignore => {}
            OutputMeasure::Exact => self.add_elements(original, changed),
            OutputMeasure::Classes { axis } => match Rows::of_classes(original, changed, axis) {
                Some(rows) => self.add_classes(&rows),
                None => self.add_error(original, changed),
            },
            OutputMeasure::Cosine => match Rows::of_last_axis(original, changed) {
                Some(rows) => self.add_directions(&rows),
                None => self.add_error(original, changed),
            },
            OutputMeasure::Error => self.add_error(original, changed),
        }
    }

    fn add_elements(&mut self, original: &Tensor, changed: &Tensor) {
        self.rows += original.len() as f64;
        let differing = if original.shape() == changed.shape() {
            super::unequal(original, changed)
        } else {
            original.len() as u64
        };
        self.divergence += differing as f64;
    }

    fn add_classes(&mut self, rows: &Rows) {
        for (p, q) in rows.pairs() {
            self.divergence += divergence(p, q);
            self.rows += 1.0;
        }
    }

    fn add_directions(&mut self, rows: &Rows) {
        self.direction.resize(rows.width, 0.0);
        for (x, y) in rows.pairs() {
            let length = |row: &[f64]| {
                let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                if length == 0.0 { 1.0 } else { length }
            };
            let (long, other) = (length(x), length(y));
            for ((sum, x), y) in self.direction.iter_mut().zip(x).zip(y) {
                let (x, y) = (x / long, y / other);
                *sum += x;
                self.square += x * x;
                self.error += (x - y).powi(2);
            }
            self.count += 1.0;
        }
    }

    fn add_error(&mut self, original: &Tensor, changed: &Tensor) {
        let Some(x) = original.to_f64() else { return };
        let changed = changed.to_f64().filter(|_| original.shape() == changed.shape());
        for (i, &x) in x.iter().enumerate() {
            let y = changed.as_ref().map_or(0.0, |changed| changed[i]);
            self.error += (x - y).powi(2);
            self.square += x * x;
            self.sum += x;
            self.count += 1.0;
        }
    }

    /// Adds the batches of another drift of the same output.
    pub fn merge(&mut self, other: &Self) {
        self.divergence += other.divergence;
        self.rows += other.rows;
        self.error += other.error;
        self.square += other.square;
        self.sum += other.sum;
        self.count += other.count;
        self.direction.resize(self.direction.len().max(other.direction.len()), 0.0);
        self.direction.iter_mut().zip(&other.direction).for_each(|(a, b)| *a += b);
    }

    /// The drift over all batches.
    pub fn value(&self) -> f64 {
        let mut value = if self.rows > 0.0 { self.divergence / self.rows } else { 0.0 };
        if self.count > 0.0 {
            let mean: f64 = self.sum * self.sum + self.direction.iter().map(|s| s * s).sum::<f64>();
            let variance = self.square - mean / self.count;
            value += self.error / if variance > 0.0 { variance } else { self.count };
        }
        if value.is_nan() { f64::INFINITY } else { value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(measure: OutputMeasure, shape: &[usize], batches: &[(&[f32], &[f32])]) -> f64 {
        let mut drift = Drift::new(measure);
        let tensor = |values: &[f32]| Tensor::from_slice(shape, values).unwrap();
        batches.iter().for_each(|(a, b)| drift.add(&tensor(a), &tensor(b)));
        drift.value()
    }

    #[test]
    fn drift_of_logits_equals_drift_of_probabilities() {
        let (p, q) = ([0.7_f32, 0.2, 0.1], [0.5_f32, 0.25, 0.25]);
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| f64::from(*p) * f64::from(p / q).ln()).sum();
        let logits = |v: &[f32; 3]| v.map(|v| v.ln() + 3.0);
        let of_probabilities = drift(OutputMeasure::CLASSES, &[1, 3], &[(&p, &q)]);
        let of_logits = drift(OutputMeasure::CLASSES, &[1, 3], &[(&logits(&p), &logits(&q))]);
        let close = |drift: f64| (drift - kl).abs() < 1e-6;
        assert!(close(of_probabilities) && close(of_logits), "{of_probabilities} {of_logits} {kl}");
        // The same row along the second of three axes, at two positions.
        let maps = |v: &[f32; 3]| logits(v).iter().flat_map(|&v| [v, v + 1.0]).collect::<Vec<_>>();
        assert!(close(drift(OutputMeasure::Classes { axis: 1 }, &[1, 3, 2], &[(&maps(&p), &maps(&q))])));
    }

    #[test]
    fn drift_of_other_outputs_is_error_over_variance_of_all_batches() {
        let batches: [(&[f32], &[f32]); 2] = [(&[1.0, 3.0], &[1.0, 3.0]), (&[5.0, 7.0], &[5.0, 6.0])];
        assert!((drift(OutputMeasure::Error, &[2, 1], &batches) - 1.0 / 20.0).abs() < 1e-12);
        // One class has no distribution.
        assert!((drift(OutputMeasure::CLASSES, &[2, 1], &batches) - 1.0 / 20.0).abs() < 1e-12);
        assert_eq!(drift(OutputMeasure::Ignore, &[2, 1], &batches), 0.0);
        assert_eq!(drift(OutputMeasure::Exact, &[2, 1], &batches), 0.25);
    }

    #[test]
    fn drift_of_embeddings_is_relative_to_the_variance_of_directions() {
        // Longer rows have the same direction.
        let same = drift(OutputMeasure::Cosine, &[2, 2], &[(&[1.0, 0.0, 0.0, 2.0], &[3.0, 0.0, 0.0, 0.5])]);
        assert!(same.abs() < 1e-12, "{same}");
        // Of two orthogonal rows one turns by 90 degrees: 2 / (2 − ‖(1, 1)‖²/2).
        let turned = drift(OutputMeasure::Cosine, &[2, 2], &[(&[1.0, 0.0, 0.0, 2.0], &[1.0, 0.0, 1.0, 0.0])]);
        assert!((turned - 2.0).abs() < 1e-12, "{turned}");
    }

    #[test]
    fn drift_of_nan_is_infinite() {
        for measure in [OutputMeasure::Error, OutputMeasure::CLASSES, OutputMeasure::Cosine] {
            assert_eq!(drift(measure, &[1, 2], &[(&[1.0, 3.0], &[1.0, f32::NAN])]), f64::INFINITY);
        }
    }

    #[test]
    fn drift_of_another_shape_is_that_of_zeros() {
        let mut drift = Drift::new(OutputMeasure::Error);
        drift.add(&Tensor::vector(&[1_f32, -1.0]), &Tensor::vector(&[1_f32]));
        assert_eq!(drift.value(), 1.0);
        let mut drift = Drift::new(OutputMeasure::Exact);
        drift.add(&Tensor::vector(&[1_i64, 2]), &Tensor::vector(&[1_i64]));
        assert_eq!(drift.value(), 1.0);
    }
}
