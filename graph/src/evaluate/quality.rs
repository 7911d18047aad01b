//! Measures of quality: how close the outputs of a changed model are to the original's, and to the labels.
//!
//! | output | measures |
//! |---|---|
//! | class scores (see [`classes`]) | agreement, accuracy, KL divergence in nats, entropy in nats |
//! | anything else | squared error over the variance of the reference, cosine |
//!
//! [`Metrics`] reads scores as logits. [`Drift`] reads rows that are probability distributions as such.

use crate::Tensor;

/// The least number of columns for a tensor of rank 3 to count as class scores: detectors output boxes of 4
/// columns and up to some hundred classes beside anchors and masks, vocabularies start at thousands.
const VOCABULARY: usize = 1000;

/// Returns the number of classes (the size of the last axis) of a tensor whose shape is that of class scores:
/// a row `[C]`, rows `[N, C]`, or scores over a vocabulary `[N, T, C]`.
pub fn classes(shape: &[usize]) -> Option<usize> {
    let classes = *shape.last()?;
    match shape.len() {
        1 | 2 if classes >= 2 => Some(classes),
        3 if classes >= VOCABULARY => Some(classes),
        _ => None,
    }
}

/// Returns the class with the highest score, the first of several; `None` if a score is NaN.
pub fn top<T: Copy + Into<f64>>(scores: &[T]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (class, &score) in scores.iter().enumerate() {
        let score = score.into();
        if score.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((class, score));
        }
    }
    best.map(|(class, _)| class)
}

/// ln softmax(x), without overflow.
fn log_softmax<T: Copy + Into<f64>>(scores: &[T]) -> Vec<f64> {
    let highest = scores.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let log_sum = highest + scores.iter().map(|&v| (v.into() - highest).exp()).sum::<f64>().ln();
    scores.iter().map(|&v| v.into() - log_sum).collect()
}

/// Returns whether a row is a probability distribution rather than logits.
fn is_distribution<T: Copy + Into<f64>>(row: &[T]) -> bool {
    let sum: f64 = row.iter().map(|&v| v.into()).sum();
    row.iter().all(|&v| v.into() >= 0.0) && (sum - 1.0).abs() < 1e-3
}

/// The logarithms of probabilities; zeros count as 1e-12.
fn logs<T: Copy + Into<f64>>(row: &[T]) -> Vec<f64> {
    row.iter().map(|&v| v.into().max(1e-12).ln()).collect()
}

/// Σ exp(p)·(p − q), for logarithms of probabilities.
fn kl_of_logs(p: &[f64], q: &[f64]) -> f64 {
    let term = |(p, q): (&f64, &f64)| {
        let share = p.exp();
        if share == 0.0 { 0.0 } else { share * (p - q) }
    };
    let sum = p.iter().zip(q).map(term).sum::<f64>();
    // Rounding may give a tiny negative sum where both are equal. NaN stays NaN.
    if sum < 0.0 { 0.0 } else { sum }
}

/// KL(softmax(p) ‖ softmax(q)) in nats, of two rows of logits.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    kl_of_logs(&log_softmax(p), &log_softmax(q)).max(0.0)
}

/// KL(p ‖ q) in nats, of two rows of probabilities or, where `p` is not a distribution, of logits.
pub fn divergence<T: Copy + Into<f64>>(p: &[T], q: &[T]) -> f64 {
    let logs: fn(&[T]) -> Vec<f64> = if is_distribution(p) { logs } else { log_softmax };
    kl_of_logs(&logs(p), &logs(q))
}

/// The entropy in nats of a row of probabilities or logits.
pub fn entropy<T: Copy + Into<f64>>(row: &[T]) -> f64 {
    let logs = if is_distribution(row) { logs(row) } else { log_softmax(row) };
    -logs.iter().map(|l| l.exp() * l).sum::<f64>()
}

/// The cosine of the angle between two vectors; 1 if both are zero, 0 if one is.
pub fn cosine<T: Copy + Into<f64>>(x: &[T], y: &[T]) -> f64 {
    let dot = |a: &[T], b: &[T]| a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum::<f64>();
    let (xx, yy) = (dot(x, x), dot(y, y));
    match (xx > 0.0, yy > 0.0) {
        (true, true) => dot(x, y) / (xx * yy).sqrt(),
        (false, false) => 1.0,
        _ => 0.0,
    }
}

/// The drift of one output, summed over batches `[N, …]`: 0 for equal outputs, infinite where values are NaN.
///
/// * Class scores of two or three axes (see [`classes`]): the mean over rows of [`divergence`] from the
///   original, in nats.
/// * Anything else: `Σ(x − y)² / Σ(x − E x)²`, the squared error over the variance of the original `x`. A
///   constant original has no scale; its mean squared error counts.
///
/// This is the quantity that the option `max_drift` of passes limits, summed over the outputs of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Drift {
    divergence: f64,
    rows: f64,
    error: f64,
    square: f64,
    sum: f64,
    count: f64,
}

impl Drift {
    /// Adds a batch of an output of this shape, whose first axis counts samples.
    pub fn add(&mut self, shape: &[usize], original: &[f32], changed: &[f32]) {
        if let Some(classes) = batch_classes(shape) {
            for (p, q) in original.chunks_exact(classes).zip(changed.chunks_exact(classes)) {
                self.divergence += divergence(p, q);
                self.rows += 1.0;
            }
            return;
        }
        for (&x, &y) in original.iter().zip(changed) {
            let (x, y) = (f64::from(x), f64::from(y));
            self.error += (x - y).powi(2);
            self.square += x * x;
            self.sum += x;
            self.count += 1.0;
        }
    }

    /// The drift over all batches.
    pub fn value(&self) -> f64 {
        let mut value = if self.rows > 0.0 { self.divergence / self.rows } else { 0.0 };
        if self.count > 0.0 {
            let variance = self.square - self.sum * self.sum / self.count;
            value += self.error / if variance > 0.0 { variance } else { self.count };
        }
        if value.is_nan() { f64::INFINITY } else { value }
    }
}

/// [`classes`] of a batch. One axis alone counts samples, not classes.
pub fn batch_classes(shape: &[usize]) -> Option<usize> {
    classes(shape).filter(|_| shape.len() > 1)
}

/// Agreement, accuracy, divergence and error of a candidate's class scores against a reference's. Sums over
/// many runs, which merge.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    rows: u64,
    agreeing: u64,
    kl: f64,
    error_squares: f64,
    reference_squares: f64,
    labelled: u64,
    reference_correct: u64,
    candidate_correct: u64,
}

impl Metrics {
    /// Adds the scores of one run, and the labels of its rows. Tensors that are not class scores, or of
    /// different shapes, are ignored, and so are labels that are not among the classes.
    pub fn add(&mut self, reference: &Tensor, candidate: &Tensor, labels: Option<&[i64]>) {
        if reference.shape() != candidate.shape() || !reference.dtype().is_float() {
            return;
        }
        let (Some(classes), Some(a), Some(b)) =
            (classes(reference.shape()), reference.to_f64(), candidate.to_f64())
        else {
            return;
        };
        let rows = a.len() / classes;
        let labels = labels.filter(|labels| labels.len() == rows);
        for (row, (a, b)) in a.chunks_exact(classes).zip(b.chunks_exact(classes)).enumerate() {
            let label = labels.and_then(|labels| usize::try_from(labels[row]).ok());
            self.add_row(a, b, label.filter(|&label| label < classes));
        }
    }

    fn add_row(&mut self, a: &[f64], b: &[f64], label: Option<usize>) {
        let (Some(first), Some(second)) = (top(a), top(b)) else { return };
        self.rows += 1;
        self.agreeing += u64::from(first == second);
        self.kl += kl(a, b);
        self.error_squares += a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        self.reference_squares += a.iter().map(|a| a * a).sum::<f64>();
        if let Some(label) = label {
            self.labelled += 1;
            self.reference_correct += u64::from(label == first);
            self.candidate_correct += u64::from(label == second);
        }
    }

    /// Adds the sums of other runs.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.agreeing += other.agreeing;
        self.kl += other.kl;
        self.error_squares += other.error_squares;
        self.reference_squares += other.reference_squares;
        self.labelled += other.labelled;
        self.reference_correct += other.reference_correct;
        self.candidate_correct += other.candidate_correct;
    }

    /// The number of rows of scores.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The share of rows in which both have the same highest class.
    pub fn agreement(&self) -> Option<f64> {
        share(self.agreeing as f64, self.rows)
    }

    /// The mean over rows of KL(softmax(reference) ‖ softmax(candidate)) in nats.
    pub fn mean_kl(&self) -> Option<f64> {
        share(self.kl, self.rows)
    }

    /// Σ (reference − candidate)² / Σ reference².
    pub fn nmse(&self) -> Option<f64> {
        (self.reference_squares > 0.0).then(|| self.error_squares / self.reference_squares)
    }

    /// The share of labelled rows that the reference classifies correctly.
    pub fn reference_accuracy(&self) -> Option<f64> {
        share(self.reference_correct as f64, self.labelled)
    }

    /// The share of labelled rows that the candidate classifies correctly.
    pub fn candidate_accuracy(&self) -> Option<f64> {
        share(self.candidate_correct as f64, self.labelled)
    }
}

fn share(part: f64, total: u64) -> Option<f64> {
    (total > 0).then(|| part / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(&[rows.len(), 2], rows.as_flattened()).unwrap()
    }

    #[test]
    fn computes_agreement_and_accuracy_per_row() {
        let mut metrics = Metrics::default();
        let reference = scores(&[[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]);
        let candidate = scores(&[[1.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]);
        metrics.add(&reference, &candidate, Some(&[0, 1, 1, 1]));
        assert_eq!((metrics.rows(), metrics.agreement()), (4, Some(0.75)));
        assert_eq!(metrics.reference_accuracy(), Some(0.75));
        assert_eq!(metrics.candidate_accuracy(), Some(0.5));
        assert_eq!(metrics.nmse(), Some(2.0 / 16.0));
        let mut twice = metrics;
        twice.merge(&metrics);
        assert_eq!((twice.rows(), twice.agreement()), (8, Some(0.75)));
    }

    #[test]
    fn computes_kl_of_softmax() {
        assert_eq!(kl(&[1.0, 2.0], &[11.0, 12.0]), 0.0);
        let (p, q) = (1.0 / (1.0 + 1_f64.exp()), 0.5);
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / q).ln();
        assert!((kl(&[0.0, 1.0], &[0.0, 0.0]) - expected).abs() < 1e-12);
        assert_eq!(kl(&[1e4, 0.0], &[1e4, 0.0]), 0.0);
        assert!(kl(&[1e4, 0.0], &[0.0, 1e4]) > 9e3);
    }

    #[test]
    fn computes_cosine() {
        assert_eq!(cosine(&[3.0_f32, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
    }

    #[test]
    fn recognises_class_scores_by_shape() {
        assert_eq!(classes(&[4, 10]), Some(10));
        assert_eq!(classes(&[10]), Some(10));
        assert_eq!(classes(&[1, 100, 4]), None);
        assert_eq!(classes(&[1, 7, 32000]), Some(32000));
        assert_eq!((batch_classes(&[10]), batch_classes(&[4, 10])), (None, Some(10)));
        assert_eq!((classes(&[4, 1]), classes(&[]), classes(&[1, 3, 8, 8])), (None, None, None));
        assert_eq!((top(&[1.0, 3.0, 3.0]), top(&[f64::NAN, 1.0])), (Some(1), None));
        let mut metrics = Metrics::default();
        metrics.add(&Tensor::vector(&[1_i64, 2]), &Tensor::vector(&[1_i64, 2]), None);
        metrics.add(&Tensor::vector(&[1_f32]), &Tensor::vector(&[1_f32, 2.0]), None);
        assert_eq!((metrics.agreement(), metrics.reference_accuracy(), metrics.nmse()), (None, None, None));
    }
}
