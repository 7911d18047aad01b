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

/// Returns outputs that do not depend on the inputs: the mean of each float output over all samples, which are along
/// its first axis. An output whose shape changes between batches stays as it is.
pub(super) fn constants(original: &Outputs) -> Outputs {
    let mut changed = original.clone();
    for output in 0..original.first().map_or(0, Vec::len) {
        let (mut sum, mut rows) = (vec![], 0);
        for tensor in original.iter().filter_map(|batch| batch.get(output)) {
            let Some(values) = tensor.to_f64().filter(|_| tensor.dtype().is_float()) else { continue };
            let count = tensor.shape().first().copied().unwrap_or(0).max(1);
            sum.resize(values.len() / count, 0.0);
            for row in values.chunks_exact(sum.len().max(1)) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            rows += count;
        }
        let mean: Vec<f64> = sum.iter().map(|sum| sum / rows as f64).collect();
        for tensor in changed.iter_mut().filter_map(|batch| batch.get_mut(output)) {
            let count = tensor.shape().first().copied().unwrap_or(0);
            if let Ok(constant) = Tensor::from_f64(tensor.dtype(), tensor.shape(), &mean.repeat(count)) {
                *tensor = constant;
            }
        }
    }
    changed
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
    fn constants_are_the_mean_of_all_samples() {
        let rows = |values: &[f32]| Tensor::from_slice(&[values.len() / 2, 2], values).unwrap();
        let ids = Tensor::vector(&[7_i64]);
        let original =
            vec![vec![rows(&[1.0, 2.0, 3.0, 4.0]), ids.clone()], vec![rows(&[5.0, 9.0]), ids.clone()]];
        let expected = vec![vec![rows(&[3.0, 5.0, 3.0, 5.0]), ids.clone()], vec![rows(&[3.0, 5.0]), ids]];
        assert_eq!(constants(&original), expected);
        assert!((drift(&[OutputMeasure::Error; 1], &original, &expected) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn entropy_is_that_of_class_scores() {
        let scores = vec![vec![Tensor::from_slice(&[1, 2], &[0.5_f32, 0.5]).unwrap()]];
        let got = entropy(&[OutputMeasure::CLASSES], &scores).unwrap();
        assert!((got - 2_f64.ln()).abs() < 1e-9);
        assert_eq!(entropy(&[OutputMeasure::Error], &scores), None);
    }
}
