//! The distance of an output from the original's.

use super::{OutputMeasure, divergence, rows::Rows};
use crate::Tensor;

/// The drift of one output, summed over batches: 0 for equal outputs, infinite where values are NaN.
///
/// | measure | drift |
/// |---|---|
/// | classes | the mean over rows of [`divergence`] from the original, in nats |
/// | cosine | the squared error over the variance of rows scaled to length 1, `2·(1 − cos)` |
/// | error | the squared error over the variance, `Σ(x − y)² / Σ(x − E x)²` |
/// | exact | the share of elements that differ |
/// | ignore | 0 |
///
/// `E x` is the mean of each element over the samples: the same answer to all of them, such as the coordinates of
/// anchors, is no information. Where that leaves no variance it is the mean of all elements, and of a constant
/// original, which has no scale, the mean squared error counts. An output of another shape counts like zeros, or as
/// different elements.
///
/// This is the quantity that the option `max_drift` of passes limits, summed over the outputs of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Drift {
    measure: OutputMeasure,
    /// The divergence of rows, or the number of differing elements.
    divergence: f64,
    rows: f64,
    error: ErrorSums,
}

impl Drift {
    /// The drift of an output with this measure, without batches.
    pub fn new(measure: OutputMeasure) -> Self {
        Self { measure, divergence: 0.0, rows: 0.0, error: ErrorSums::default() }
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
        let scaled = |row: &[f64]| {
            let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            let length = if length == 0.0 { 1.0 } else { length };
            row.iter().map(|v| v / length).collect::<Vec<_>>()
        };
        for (x, y) in rows.pairs() {
            self.error.add(&scaled(x), &scaled(y), rows.width);
        }
    }

    fn add_error(&mut self, original: &Tensor, changed: &Tensor) {
        let Some(x) = original.to_f64() else { return };
        let changed = changed.to_f64().filter(|_| original.shape() == changed.shape());
        let y = changed.unwrap_or_else(|| vec![0.0; x.len()]);
        let samples = original.shape().first().copied().unwrap_or(1);
        self.error.add(&x, &y, x.len() / samples.max(1));
    }

    /// Adds the batches of another drift of the same output.
    pub fn merge(&mut self, other: &Self) {
        self.divergence += other.divergence;
        self.rows += other.rows;
        self.error.merge(&other.error);
    }

    /// The drift over all batches.
    pub fn value(&self) -> f64 {
        let mean = if self.rows > 0.0 { self.divergence / self.rows } else { 0.0 };
        let value = mean + self.error.relative();
        if value.is_nan() { f64::INFINITY } else { value }
    }
}

/// The least variance over samples that is not rounding, as a share of the mean square.
const LEAST_VARIANCE: f64 = 1e-12;

/// Sums over samples of the same number of elements, or over single elements where the number differs.
#[derive(Clone, Debug, Default, PartialEq)]
struct ErrorSums {
    error: f64,
    square: f64,
    samples: f64,
    /// The sum of each element.
    sums: Vec<f64>,
}

impl ErrorSums {
    fn add(&mut self, x: &[f64], y: &[f64], width: usize) {
        if x.is_empty() {
            return;
        }
        let width = self.fit(width);
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
            for ((sum, x), y) in self.sums.iter_mut().zip(x).zip(y) {
                self.error += (x - y).powi(2);
                self.square += x * x;
                *sum += x;
            }
            self.samples += 1.0;
        }
    }

    /// Prepares for samples of `width` elements. Returns 1 if the samples before had another number.
    fn fit(&mut self, width: usize) -> usize {
        if self.sums.is_empty() {
            self.sums.resize(width, 0.0);
        } else if self.sums.len() != width {
            self.samples *= self.sums.len() as f64;
            self.sums = vec![self.sums.iter().sum()];
        }
        self.sums.len()
    }

    fn merge(&mut self, other: &Self) {
        if other.sums.is_empty() {
            return;
        }
        let width = self.fit(other.sums.len());
        self.error += other.error;
        self.square += other.square;
        self.samples += other.samples * (other.sums.len() / width) as f64;
        for (k, sum) in other.sums.iter().enumerate() {
            self.sums[k % width] += sum;
        }
    }

    /// The error over the variance.
    fn relative(&self) -> f64 {
        if self.samples == 0.0 {
            return 0.0;
        }
        let count = self.samples * self.sums.len() as f64;
        let of_elements = self.sums.iter().map(|sum| sum * sum).sum::<f64>() / self.samples;
        let of_all = self.sums.iter().sum::<f64>().powi(2) / count;
        let variances = [of_elements, of_all].map(|mean| self.square - mean);
        let variance = variances.into_iter().find(|&variance| variance > LEAST_VARIANCE * self.square);
        self.error / variance.unwrap_or(count)
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
    fn answers_that_are_the_same_for_all_samples_are_no_variance() {
        let of = |shape: &[usize], batches: &[(&[f32], &[f32])]| drift(OutputMeasure::Error, shape, batches);
        let one: (&[f32], &[f32]) = (&[100.0, 1.0], &[100.0, 0.0]);
        let two: (&[f32], &[f32]) = (&[100.0, -1.0], &[100.0, -1.0]);
        assert!((of(&[1, 2], &[one, two]) - 0.5).abs() < 1e-12);
        // One sample has only the variance among its elements.
        assert!((of(&[1, 2], &[one]) - 2.0 / 99.0_f64.powi(2)).abs() < 1e-9);
    }

    #[test]
    fn samples_of_different_sizes_share_one_mean() {
        let mut drift = Drift::new(OutputMeasure::Error);
        let tensor = |values: &[f32]| Tensor::from_slice(&[1, values.len()], values).unwrap();
        drift.add(&tensor(&[1.0, 3.0]), &tensor(&[1.0, 3.0]));
        let mut other = Drift::new(OutputMeasure::Error);
        other.add(&tensor(&[5.0]), &tensor(&[6.0]));
        drift.merge(&other);
        assert!((drift.value() - 1.0 / 8.0).abs() < 1e-12);
        drift.add(&tensor(&[3.0, 3.0, 3.0]), &tensor(&[3.0, 3.0, 3.0]));
        assert!((drift.value() - 1.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn drift_of_embeddings_is_relative_to_the_variance_of_directions() {
        // Longer rows have the same direction.
        let same = drift(OutputMeasure::Cosine, &[2, 2], &[(&[1.0, 0.0, 0.0, 2.0], &[3.0, 0.0, 0.0, 0.5])]);
        assert!(same.abs() < 1e-12, "{same}");
        // One of two orthogonal rows turns by 90 degrees: 2 / (2 − ‖(1, 1)‖²/2).
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
