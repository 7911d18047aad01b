//! The drift and the entropy of a model's outputs, over batches.

use crate::analysis::calibration::floats;
use pare_graph::{
    EvaluateError, Tensor,
    evaluate::quality::{self, Drift, batch_classes},
};

/// The outputs of a run: for each batch, the tensors in the order of the model's outputs.
pub type Outputs = Vec<Vec<Tensor>>;

/// Returns the drift of `changed` from `original` (see [`Drift`]), summed over the float outputs.
pub fn drift(original: &Outputs, changed: &Outputs) -> Result<f64, EvaluateError> {
    let count = original.first().map_or(0, Vec::len);
    let mut total = 0.0;
    for output in 0..count {
        let mut drift = Drift::default();
        for (a, b) in original.iter().zip(changed) {
            let (Some(a), Some(b)) = (a.get(output), b.get(output)) else { continue };
            if a.dtype().is_float() && a.shape() == b.shape() {
                drift.add(a.shape(), &floats(a)?, &floats(b)?);
            }
        }
        total += drift.value();
    }
    Ok(total)
}

/// Returns the squared error of `changed` over the square of `original`, of the float output where it is
/// largest. Elements that are not finite in the original are skipped.
pub fn noise(original: &Outputs, changed: &Outputs) -> Result<f64, EvaluateError> {
    let count = original.first().map_or(0, Vec::len);
    let mut largest = 0.0_f64;
    for output in 0..count {
        let (mut error, mut square) = (0.0, 0.0);
        for (a, b) in original.iter().zip(changed) {
            let (Some(a), Some(b)) = (a.get(output), b.get(output)) else { continue };
            if !a.dtype().is_float() {
                continue;
            }
            for (&x, &y) in floats(a)?.iter().zip(floats(b)?.iter()).filter(|(x, _)| x.is_finite()) {
                let (x, y) = (f64::from(x), f64::from(y));
                error += (x - y).powi(2);
                square += x * x;
            }
        }
        let ratio = if error == 0.0 { 0.0 } else { error / square };
        largest = largest.max(if ratio.is_nan() { f64::INFINITY } else { ratio });
    }
    Ok(largest)
}

/// Returns the mean entropy of the predicted classes over rows, in nats; `None` if no output is class scores.
pub fn entropy(outputs: &Outputs) -> Result<Option<f64>, EvaluateError> {
    let (mut sum, mut rows) = (0.0, 0.0);
    for output in outputs.iter().flatten().filter(|o| o.dtype().is_float()) {
        let Some(classes) = batch_classes(output.shape()) else { continue };
        for row in floats(output)?.chunks_exact(classes) {
            sum += quality::entropy(row);
            rows += 1.0;
        }
    }
    Ok((rows > 0.0).then_some(sum / rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(shape: &[usize], values: &[f32]) -> Vec<Tensor> {
        vec![Tensor::from_slice(shape, values).unwrap()]
    }

    #[test]
    fn drift_of_logits_equals_drift_of_probabilities() {
        let (p, q) = ([0.7_f32, 0.2, 0.1], [0.5_f32, 0.25, 0.25]);
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| f64::from(*p) * f64::from(p / q).ln()).sum();
        let logits = |v: &[f32; 3]| v.map(|v| v.ln() + 3.0);
        let of_probabilities = drift(&vec![batch(&[1, 3], &p)], &vec![batch(&[1, 3], &q)]).unwrap();
        let of_logits =
            drift(&vec![batch(&[1, 3], &logits(&p))], &vec![batch(&[1, 3], &logits(&q))]).unwrap();
        let close = |drift: f64| (drift - kl).abs() < 1e-6;
        assert!(close(of_probabilities) && close(of_logits), "{of_probabilities} {of_logits} {kl}");
    }

    #[test]
    fn entropy_of_logits_equals_entropy_of_probabilities() {
        let p = [0.7_f32, 0.2, 0.1];
        let expected: f64 = p.iter().map(|&p| -f64::from(p) * f64::from(p).ln()).sum();
        let logits = p.map(|v| v.ln() - 2.0);
        for scores in [p, logits] {
            let got = entropy(&vec![batch(&[1, 3], &scores)]).unwrap().unwrap();
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
        assert_eq!(entropy(&vec![batch(&[3, 1], &p)]).unwrap(), None);
    }

    #[test]
    fn drift_of_other_outputs_is_error_over_variance_of_all_batches() {
        let a = vec![batch(&[2, 1], &[1.0, 3.0]), batch(&[2, 1], &[5.0, 7.0])];
        let b = vec![batch(&[2, 1], &[1.0, 3.0]), batch(&[2, 1], &[5.0, 6.0])];
        assert!((drift(&a, &b).unwrap() - 1.0 / 20.0).abs() < 1e-12);
    }

    #[test]
    fn drift_of_nan_is_infinite() {
        let a = vec![batch(&[2, 1], &[1.0, 3.0])];
        let nan = vec![batch(&[2, 1], &[1.0, f32::NAN])];
        assert_eq!(drift(&a, &nan).unwrap(), f64::INFINITY);
        let (scores, nan) = (vec![batch(&[1, 2], &[1.0, 3.0])], vec![batch(&[1, 2], &[1.0, f32::NAN])]);
        assert_eq!(drift(&scores, &nan).unwrap(), f64::INFINITY);
    }
}
