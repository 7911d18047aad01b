//! How far the outputs of a changed model lie from those of the original, as one number.

use crate::analysis::calibration::floats;
use pare_graph::{EvaluateError, Tensor};

/// The outputs of a run: those of each batch, in the order of the model.
pub type Outputs = Vec<Vec<Tensor>>;

/// An axis at least so long of an output with three axes counts as scores of classes (of tokens, say).
const SCORES: usize = 64;

/// The mean over rows of the divergence `KL(p‖q)` where an output is scores or probabilities of classes, and the squared
/// error over the variance of the original's where it is something else; summed over the outputs.
pub fn drift(original: &Outputs, changed: &Outputs) -> Result<f64, EvaluateError> {
    let count = original.first().map_or(0, Vec::len);
    let mut total = 0.0;
    for output in 0..count {
        let mut sum = Sum::default();
        for (a, b) in original.iter().zip(changed) {
            let (Some(a), Some(b)) = (a.get(output), b.get(output)) else { continue };
            if a.dtype().is_float() && a.shape() == b.shape() {
                sum.add(a.shape(), &floats(a)?, &floats(b)?);
            }
        }
        total += sum.value();
    }
    Ok(total)
}

/// The mean entropy of the classes' probabilities over rows, in nats; `None` if no output is scores of classes.
pub fn entropy(outputs: &Outputs) -> Result<Option<f64>, EvaluateError> {
    let (mut sum, mut rows) = (0.0, 0.0);
    for output in outputs.iter().flatten().filter(|o| o.dtype().is_float() && are_scores(o.shape())) {
        for p in floats(output)?.chunks_exact(output.shape()[output.rank() - 1]) {
            let logs = if are_probabilities(p) { logs(p) } else { log_softmax(p) };
            sum -= logs.iter().map(|l| l.exp() * l).sum::<f64>();
            rows += 1.0;
        }
    }
    Ok((rows > 0.0).then_some(sum / rows))
}

fn are_scores(shape: &[usize]) -> bool {
    let last = shape.last().copied().unwrap_or(1);
    shape.len() == 2 && last > 1 || shape.len() == 3 && last >= SCORES
}

#[derive(Default)]
struct Sum {
    divergence: f64,
    rows: f64,
    error: f64,
    square: f64,
    mean: f64,
    count: f64,
}

impl Sum {
    fn add(&mut self, shape: &[usize], a: &[f32], b: &[f32]) {
        let last = shape.last().copied().unwrap_or(1);
        if are_scores(shape) {
            for (p, q) in a.chunks_exact(last).zip(b.chunks_exact(last)) {
                self.divergence += divergence(p, q);
                self.rows += 1.0;
            }
            return;
        }
        for (&x, &y) in a.iter().zip(b) {
            let (x, y) = (f64::from(x), f64::from(y));
            self.error += (x - y).powi(2);
            self.square += x * x;
            self.mean += x;
            self.count += 1.0;
        }
    }

    fn value(&self) -> f64 {
        let mut value = if self.rows > 0.0 { self.divergence / self.rows } else { 0.0 };
        if self.count > 0.0 {
            let variance = self.square - self.mean * self.mean / self.count;
            // A constant output has no scale of its own.
            value += self.error / if variance > 0.0 { variance } else { self.count };
        }
        // What is no number is as far away as can be.
        if value.is_nan() { f64::INFINITY } else { value }
    }
}

/// `KL(p‖q)` of the classes' probabilities; rows that are no probabilities are logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = if are_probabilities(p) { (logs(p), logs(q)) } else { (log_softmax(p), log_softmax(q)) };
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn are_probabilities(p: &[f32]) -> bool {
    let sum: f64 = p.iter().map(|&v| f64::from(v)).sum();
    p.iter().all(|&v| v >= 0.0) && (sum - 1.0).abs() < 1e-3
}

fn logs(p: &[f32]) -> Vec<f64> {
    p.iter().map(|&v| f64::from(v).max(1e-12).ln()).collect()
}

fn log_softmax(scores: &[f32]) -> Vec<f64> {
    let top = scores.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let sum: f64 = scores.iter().map(|&v| (f64::from(v) - top).exp()).sum();
    scores.iter().map(|&v| f64::from(v) - top - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(shape: &[usize], values: &[f32]) -> Vec<Tensor> {
        vec![Tensor::from_slice(shape, values).unwrap()]
    }

    #[test]
    fn logits_and_probabilities_of_the_same_classes_drift_alike() {
        let (p, q) = ([0.7_f32, 0.2, 0.1], [0.5_f32, 0.25, 0.25]);
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| f64::from(*p) * f64::from(p / q).ln()).sum();
        let logits = |v: &[f32; 3]| v.map(|v| v.ln() + 3.0);
        let given = drift(&vec![batch(&[1, 3], &p)], &vec![batch(&[1, 3], &q)]).unwrap();
        let scored = drift(&vec![batch(&[1, 3], &logits(&p))], &vec![batch(&[1, 3], &logits(&q))]).unwrap();
        assert!((given - kl).abs() < 1e-6 && (scored - kl).abs() < 1e-6, "{given} {scored} {kl}");
    }

    #[test]
    fn entropy_is_that_of_the_classes() {
        let p = [0.7_f32, 0.2, 0.1];
        let wanted: f64 = p.iter().map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        let logits = p.map(|v| v.ln() - 2.0);
        for scores in [p, logits] {
            let got = entropy(&vec![batch(&[1, 3], &scores)]).unwrap().unwrap();
            assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
        }
        assert_eq!(entropy(&vec![batch(&[3, 1], &p)]).unwrap(), None);
    }

    #[test]
    fn other_outputs_drift_by_their_share_of_the_variance_over_all_batches() {
        let a = vec![batch(&[2, 1], &[1.0, 3.0]), batch(&[2, 1], &[5.0, 7.0])];
        let b = vec![batch(&[2, 1], &[1.0, 3.0]), batch(&[2, 1], &[5.0, 6.0])];
        assert!((drift(&a, &b).unwrap() - 1.0 / 20.0).abs() < 1e-12);
        let nan = vec![batch(&[2, 1], &[1.0, f32::NAN]), batch(&[2, 1], &[5.0, 6.0])];
        assert_eq!(drift(&a, &nan).unwrap(), f64::INFINITY);
    }
}
