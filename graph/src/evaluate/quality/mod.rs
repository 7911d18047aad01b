//! Measures of quality: how close the outputs of a changed model are to the original's, and to the labels.
//!
//! [`OutputMeasure`] names the measures, [`QualityMeasures`] chooses one for each output; what shows that an
//! output holds class scores or embeddings is known to the analyses of models. [`Drift`] is the distance that
//! passes minimise and limit, [`Metrics`] what reports show.
//!
//! | output | drift | agreement |
//! |---|---|---|
//! | class scores | KL divergence in nats | rows with the same highest class |
//! | embeddings | squared error over variance, of directions | rank correlation of the cosines of all pairs |
//! | other floats | squared error over variance | |
//! | integers, booleans, strings | elements that differ | elements that are equal |
//!
//! Rows of class scores that are probability distributions are read as such, others as logits.

mod drift;
mod measure;
mod metrics;
mod neighbours;
mod rows;
mod tokens;

pub use drift::Drift;
pub use measure::{MeasuredOutput, OutputMeasure, QualityMeasures};
pub use metrics::Metrics;
pub use neighbours::{NeighbourOrder, Neighbours};
pub use rows::class_rows;
pub use tokens::TokenMask;

use crate::Tensor;

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

/// The logarithms of the probabilities of a row, which holds them or, if it is not a distribution, logits.
pub fn log_probabilities<T: Copy + Into<f64>>(row: &[T]) -> Vec<f64> {
    if is_distribution(row) { logs(row) } else { log_softmax(row) }
}

/// KL(p ‖ q) in nats, of two rows of probabilities or, where `p` is not a distribution, of logits.
pub fn divergence<T: Copy + Into<f64>>(p: &[T], q: &[T]) -> f64 {
    let logs: fn(&[T]) -> Vec<f64> = if is_distribution(p) { logs } else { log_softmax };
    kl_of_logs(&logs(p), &logs(q))
}

/// The entropy in nats of a row of probabilities or logits.
pub fn entropy<T: Copy + Into<f64>>(row: &[T]) -> f64 {
    -log_probabilities(row).iter().map(|l| l.exp() * l).sum::<f64>()
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

/// The number of unequal elements of two tensors of the same type and shape.
pub fn unequal(a: &Tensor, b: &Tensor) -> u64 {
    if let (Some(a), Some(b)) = (a.as_strings(), b.as_strings()) {
        return a.iter().zip(b).filter(|(a, b)| a != b).count() as u64;
    }
    if a.dtype().bits() < 8 {
        let pairs = a.to_i64().unwrap_or_default().into_iter().zip(b.to_i64().unwrap_or_default());
        return pairs.filter(|(a, b)| a != b).count() as u64;
    }
    let width = a.dtype().bits() as usize / 8;
    let pairs = a.bytes().chunks_exact(width).zip(b.bytes().chunks_exact(width));
    pairs.filter(|(a, b)| a != b).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computes_divergence_of_logits() {
        assert_eq!(divergence(&[1.0, 2.0], &[11.0, 12.0]), 0.0);
        let (p, q) = (1.0 / (1.0 + 1_f64.exp()), 0.5);
        let expected = p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / q).ln();
        assert!((divergence(&[1.0, 2.0], &[0.0, 0.0]) - expected).abs() < 1e-12);
        assert_eq!(divergence(&[1e4, 0.0], &[1e4, 0.0]), 0.0);
        assert!(divergence(&[1e4, 0.0], &[0.0, 1e4]) > 9e3);
    }

    #[test]
    fn entropy_of_logits_equals_entropy_of_probabilities() {
        let p = [0.7_f32, 0.2, 0.1];
        let expected: f64 = p.iter().map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        for scores in [p, p.map(|v| v.ln() - 2.0)] {
            assert!((entropy(&scores) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn computes_cosine() {
        assert_eq!(cosine(&[3.0_f32, 0.0], &[2.0, 0.0]), 1.0);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
    }

    #[test]
    fn the_first_of_several_highest_classes_is_the_top() {
        assert_eq!((top(&[1.0, 3.0, 3.0]), top(&[f64::NAN, 1.0])), (Some(1), None));
    }
}
