//! Measures of task quality: agreement, accuracy, divergence of class scores.

use crate::Tensor;

/// Rows of rank 3 are taken for class scores only from this many columns on: boxes have 4, vocabularies
/// thousands.
const VOCABULARY: usize = 1000;

/// The number of classes, if a tensor of this shape looks like class scores: a row, rows, or words'
/// scores over a vocabulary. The last axis counts classes.
pub fn classes(shape: &[usize]) -> Option<usize> {
    let classes = *shape.last()?;
    match shape.len() {
        1 | 2 if classes >= 2 => Some(classes),
        3 if classes >= VOCABULARY => Some(classes),
        _ => None,
    }
}

/// The class with the highest score, the first of equals; `None` if a score is NaN.
pub fn top(scores: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (class, score) in scores.iter().enumerate() {
        if score.is_nan() {
            return None;
        }
        if best.is_none_or(|best| *score > scores[best]) {
            best = Some(class);
        }
    }
    best
}

/// ln Σ exp(x), without overflow.
fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// KL(softmax(p) ‖ softmax(q)) in nats, of two rows of scores.
pub fn kl(p: &[f64], q: &[f64]) -> f64 {
    let (p_all, q_all) = (log_sum_exp(p), log_sum_exp(q));
    let term = |(p, q): (&f64, &f64)| {
        let log_p = p - p_all;
        let share = log_p.exp();
        if share == 0.0 { 0.0 } else { share * (log_p - (q - q_all)) }
    };
    // Rounding may leave a tiny negative number where both are equal.
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

/// Measures of two models' class scores, over many runs. Sums only, so that parts merge.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    rows: u64,
    agreeing: u64,
    kl: f64,
    error_squares: f64,
    reference_squares: f64,
    labelled: u64,
    reference_right: u64,
    candidate_right: u64,
}

impl Metrics {
    /// Take in the scores of one run, and the labels of its rows. Nothing happens if they do not look
    /// like class scores or their shapes differ.
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
            self.add_row(a, b, labels.map(|labels| labels[row]));
        }
    }

    fn add_row(&mut self, a: &[f64], b: &[f64], label: Option<i64>) {
        let (Some(first), Some(second)) = (top(a), top(b)) else { return };
        self.rows += 1;
        self.agreeing += u64::from(first == second);
        self.kl += kl(a, b);
        self.error_squares += a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        self.reference_squares += a.iter().map(|a| a * a).sum::<f64>();
        if let Some(label) = label {
            self.labelled += 1;
            self.reference_right += u64::from(usize::try_from(label) == Ok(first));
            self.candidate_right += u64::from(usize::try_from(label) == Ok(second));
        }
    }

    /// Take in what was collected elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.agreeing += other.agreeing;
        self.kl += other.kl;
        self.error_squares += other.error_squares;
        self.reference_squares += other.reference_squares;
        self.labelled += other.labelled;
        self.reference_right += other.reference_right;
        self.candidate_right += other.candidate_right;
    }

    /// Rows of scores.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The share of rows in which both name the same class.
    pub fn agreement(&self) -> Option<f64> {
        share(self.agreeing as f64, self.rows)
    }

    /// Mean KL(softmax(reference) ‖ softmax(candidate)) in nats: what the candidate's scores lose of the
    /// reference's.
    pub fn mean_kl(&self) -> Option<f64> {
        share(self.kl, self.rows)
    }

    /// Σ (reference - candidate)² / Σ reference².
    pub fn nmse(&self) -> Option<f64> {
        (self.reference_squares > 0.0).then(|| self.error_squares / self.reference_squares)
    }

    /// The share of labelled rows that the reference gets right.
    pub fn reference_accuracy(&self) -> Option<f64> {
        share(self.reference_right as f64, self.labelled)
    }

    /// The share of labelled rows that the candidate gets right.
    pub fn candidate_accuracy(&self) -> Option<f64> {
        share(self.candidate_right as f64, self.labelled)
    }
}

fn share(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(rows: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(&[rows.len(), 2], rows.as_flattened()).unwrap()
    }

    #[test]
    fn accuracy_and_agreement_are_shares_of_rows() {
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
    fn divergence_is_that_of_the_distributions() {
        assert_eq!(kl(&[1.0, 2.0], &[11.0, 12.0]), 0.0);
        let (p, q) = (1.0 / (1.0 + 1_f64.exp()), 0.5);
        let wanted = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / q).ln();
        assert!((kl(&[0.0, 1.0], &[0.0, 0.0]) - wanted).abs() < 1e-12);
        assert_eq!(kl(&[1e4, 0.0], &[1e4, 0.0]), 0.0);
        assert!(kl(&[1e4, 0.0], &[0.0, 1e4]) > 9e3);
    }

    #[test]
    fn only_what_looks_like_scores_counts() {
        assert_eq!(classes(&[4, 10]), Some(10));
        assert_eq!(classes(&[10]), Some(10));
        assert_eq!(classes(&[1, 100, 4]), None);
        assert_eq!(classes(&[1, 7, 32000]), Some(32000));
        assert_eq!((classes(&[4, 1]), classes(&[]), classes(&[1, 3, 8, 8])), (None, None, None));
        assert_eq!((top(&[1.0, 3.0, 3.0]), top(&[f64::NAN, 1.0])), (Some(1), None));
        let mut metrics = Metrics::default();
        metrics.add(&Tensor::vector(&[1_i64, 2]), &Tensor::vector(&[1_i64, 2]), None);
        metrics.add(&Tensor::vector(&[1_f32]), &Tensor::vector(&[1_f32, 2.0]), None);
        assert_eq!((metrics.agreement(), metrics.reference_accuracy(), metrics.nmse()), (None, None, None));
    }
}
