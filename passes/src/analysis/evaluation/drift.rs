//! The drift and the entropy of a model's outputs, over batches.

use pare_graph::{
    Tensor,
    evaluate::quality::{self, Drift, OutputMeasure},
};

/// The outputs of a run: for each batch, the tensors in the order of the model's outputs. Tokens that are switched
/// off are removed.
pub type Outputs = Vec<Vec<Tensor>>;

/// Returns the drift of `changed` from `original` (see [`Drift`]), summed over outputs with these measures.
pub(super) fn drift(measures: &[OutputMeasure], original: &Outputs, changed: &Outputs) -> f64 {
    let mut total = 0.0;
    for (output, &measure) in measures.iter().enumerate() {
        let mut drift = Drift::new(measure);
        for (a, b) in original.iter().zip(changed) {
            if let (Some(a), Some(b)) = (a.get(output), b.get(output)) {
                drift.add(a, b);
            }
        }
        total += drift.value();
    }
    total
}

/// Returns the squared error of `changed` over the square of `original`, of the float output where it is
/// largest. Elements that are not finite in the original are skipped.
pub(super) fn noise(original: &Outputs, changed: &Outputs) -> f64 {
    let count = original.first().map_or(0, Vec::len);
    let mut largest = 0.0_f64;
    for output in 0..count {
        let (mut error, mut square) = (0.0, 0.0);
        for (a, b) in original.iter().zip(changed) {
            let (Some(a), Some(b)) = (a.get(output), b.get(output)) else { continue };
            if !a.dtype().is_float() {
                continue;
            }
            let values = a.to_f64().unwrap_or_default().into_iter().zip(b.to_f64().unwrap_or_default());
            for (x, y) in values.filter(|(x, _)| x.is_finite()) {
                error += (x - y).powi(2);
                square += x * x;
            }
        }
        let ratio = if error == 0.0 { 0.0 } else { error / square };
        largest = largest.max(if ratio.is_nan() { f64::INFINITY } else { ratio });
    }
    largest
}

/// Returns the mean entropy of the predicted classes over rows, in nats; `None` if no output is class scores.
pub(super) fn entropy(measures: &[OutputMeasure], outputs: &Outputs) -> Option<f64> {
    let (mut sum, mut rows) = (0.0, 0.0);
    for (output, measure) in outputs.iter().flat_map(|batch| batch.iter().zip(measures)) {
        let OutputMeasure::Classes { axis } = *measure else { continue };
        let Some((classes, scores)) = quality::class_rows(output, axis) else { continue };
        for row in scores.chunks_exact(classes) {
            sum += quality::entropy(row);
            rows += 1.0;
        }
    }
    (rows > 0.0).then_some(sum / rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_the_sum_over_outputs() {
        let batch = |x: f32, y: i64| vec![vec![Tensor::vector(&[x, 1.0]), Tensor::vector(&[y])]];
        let measures = [OutputMeasure::Error, OutputMeasure::Exact];
        assert_eq!(drift(&measures, &batch(0.0, 1), &batch(1.0, 1)), 2.0);
        assert_eq!(drift(&measures, &batch(0.0, 1), &batch(0.0, 2)), 1.0);
        assert_eq!(drift(&[OutputMeasure::Ignore; 2], &batch(0.0, 1), &batch(1.0, 2)), 0.0);
    }

    #[test]
    fn entropy_is_that_of_class_scores() {
        let scores = vec![vec![Tensor::from_slice(&[1, 2], &[0.5_f32, 0.5]).unwrap()]];
        let got = entropy(&[OutputMeasure::CLASSES], &scores).unwrap();
        assert!((got - 2_f64.ln()).abs() < 1e-9);
        assert_eq!(entropy(&[OutputMeasure::Error], &scores), None);
    }
}
