//! Quality of one output over many runs.

use super::{Drift, NeighbourOrder, Neighbours, OutputMeasure, cosine, divergence, rows::Rows, top, unequal};
use crate::Tensor;

/// The quality of an output of a candidate relative to a reference's, by its measure. Sums over many runs,
/// which merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    measure: OutputMeasure,
    drift: Drift,
    rows: u64,
    agreeing: u64,
    kl: f64,
    cosine: f64,
    error_squares: f64,
    reference_squares: f64,
    neighbours: Neighbours,
    labelled: u64,
    reference_correct: u64,
    candidate_correct: u64,
}

impl Metrics {
    /// The quality of an output with this measure, without runs.
    pub fn new(measure: OutputMeasure) -> Self {
        Self {
            measure,
            drift: Drift::new(measure),
            rows: 0,
            agreeing: 0,
            kl: 0.0,
            cosine: 0.0,
            error_squares: 0.0,
            reference_squares: 0.0,
            neighbours: Neighbours::default(),
            labelled: 0,
            reference_correct: 0,
            candidate_correct: 0,
        }
    }

    /// Adds an output of one run, and the labels of its rows, if it holds class scores. Labels that are not among
    /// the classes are ignored.
    pub fn add(&mut self, reference: &Tensor, candidate: &Tensor, labels: Option<&[i64]>) {
        self.drift.add(reference, candidate);
        match self.measure {
            OutputMeasure::Classes { axis } => {
                let Some(rows) = Rows::of_classes(reference, candidate, axis) else { return };
                let labels = labels.filter(|labels| labels.len() == rows.pairs().count());
                for (row, (a, b)) in rows.pairs().enumerate() {
                    let label = labels.and_then(|labels| usize::try_from(labels[row]).ok());
                    self.add_classes(a, b, label.filter(|&label| label < rows.width));
                }
            }
            OutputMeasure::Cosine => {
                let Some(rows) = Rows::of_last_axis(reference, candidate) else { return };
                for (a, b) in rows.pairs() {
                    self.rows += 1;
                    self.cosine += cosine(a, b);
                    self.add_squares(a, b);
                    self.neighbours.add(a, b);
                }
            }
            OutputMeasure::Error => {
                let Some(rows) = Rows::of_last_axis(reference, candidate) else { return };
                for (a, b) in rows.pairs() {
                    self.rows += 1;
                    self.add_squares(a, b);
                }
            }
            OutputMeasure::Exact => {
                let count = reference.len() as u64;
                self.rows += count;
                if reference.shape() == candidate.shape() {
                    self.agreeing += count - unequal(reference, candidate);
                }
            }
            OutputMeasure::Ignore => {}
        }
    }

    fn add_classes(&mut self, a: &[f64], b: &[f64], label: Option<usize>) {
        let (Some(first), Some(second)) = (top(a), top(b)) else { return };
        self.rows += 1;
        self.agreeing += u64::from(first == second);
        self.kl += divergence(a, b);
        self.add_squares(a, b);
        if let Some(label) = label {
            self.labelled += 1;
            self.reference_correct += u64::from(label == first);
            self.candidate_correct += u64::from(label == second);
        }
    }

    fn add_squares(&mut self, a: &[f64], b: &[f64]) {
        self.error_squares += a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        self.reference_squares += a.iter().map(|a| a * a).sum::<f64>();
    }

    /// Adds the sums of other runs.
    pub fn merge(&mut self, other: &Self) {
        self.drift.merge(&other.drift);
        self.rows += other.rows;
        self.agreeing += other.agreeing;
        self.kl += other.kl;
        self.cosine += other.cosine;
        self.error_squares += other.error_squares;
        self.reference_squares += other.reference_squares;
        self.neighbours.merge(&other.neighbours);
        self.labelled += other.labelled;
        self.reference_correct += other.reference_correct;
        self.candidate_correct += other.candidate_correct;
    }

    /// The measure.
    pub fn measure(&self) -> OutputMeasure {
        self.measure
    }

    /// True if the output holds class scores.
    pub fn is_classes(&self) -> bool {
        matches!(self.measure, OutputMeasure::Classes { .. })
    }

    /// The drift: see [`Drift`].
    pub fn drift(&self) -> f64 {
        self.drift.value()
    }

    /// The number of rows; of an exact measure, that of elements.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The share of rows with the same highest class, or of elements that are equal; of embeddings, the rank
    /// correlation of the cosines of all pairs ([`NeighbourOrder::correlation`]).
    pub fn agreement(&self) -> Option<f64> {
        match self.measure {
            OutputMeasure::Classes { .. } | OutputMeasure::Exact => share(self.agreeing as f64, self.rows),
            OutputMeasure::Cosine => Some(self.neighbours()?.correlation),
            OutputMeasure::Error | OutputMeasure::Ignore => None,
        }
    }

    /// The share of rows of class scores with the same highest class.
    pub fn class_agreement(&self) -> Option<f64> {
        self.agreement().filter(|_| self.is_classes())
    }

    /// The order of neighbours among embeddings.
    pub fn neighbours(&self) -> Option<NeighbourOrder> {
        self.neighbours.order()
    }

    /// The mean cosine of the rows of embeddings.
    pub fn mean_cosine(&self) -> Option<f64> {
        share(self.cosine, self.rows).filter(|_| self.measure == OutputMeasure::Cosine)
    }

    /// The mean over rows of class scores of [`divergence`] in nats.
    pub fn mean_kl(&self) -> Option<f64> {
        share(self.kl, self.rows).filter(|_| self.is_classes())
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
        let mut metrics = Metrics::new(OutputMeasure::CLASSES);
        let reference = scores(&[[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]);
        let candidate = scores(&[[1.0, 0.0], [1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]);
        metrics.add(&reference, &candidate, Some(&[0, 1, 1, 1]));
        assert_eq!((metrics.rows(), metrics.agreement()), (4, Some(0.75)));
        assert_eq!(metrics.reference_accuracy(), Some(0.75));
        assert_eq!(metrics.candidate_accuracy(), Some(0.5));
        assert_eq!(metrics.nmse(), Some(2.0 / 16.0));
        let mut twice = metrics.clone();
        twice.merge(&metrics);
        assert_eq!((twice.rows(), twice.agreement()), (8, Some(0.75)));
        assert_eq!(twice.drift(), metrics.drift());
    }

    #[test]
    fn embeddings_agree_in_the_order_of_neighbours() {
        let mut metrics = Metrics::new(OutputMeasure::Cosine);
        let rows = [[1.0, 0.0], [2.0, 1.0], [0.0, 1.0]];
        metrics.add(&scores(&rows), &scores(&rows.map(|row| row.map(|v| 2.0 * v))), None);
        assert_eq!((metrics.rows(), metrics.mean_cosine()), (3, Some(1.0)));
        assert_eq!((metrics.agreement(), metrics.drift()), (Some(1.0), 0.0));
        assert_eq!((metrics.mean_kl(), metrics.reference_accuracy()), (None, None));
    }

    #[test]
    fn integers_agree_by_equality() {
        let mut metrics = Metrics::new(OutputMeasure::Exact);
        metrics.add(&Tensor::vector(&[1_i64, 2]), &Tensor::vector(&[1_i64, 3]), None);
        assert_eq!((metrics.agreement(), metrics.drift(), metrics.nmse()), (Some(0.5), 0.5, None));
        metrics.add(&Tensor::vector(&[1_i64, 2]), &Tensor::vector(&[1_i64]), None);
        assert_eq!(metrics.agreement(), Some(0.25));
    }

    #[test]
    fn different_shapes_have_no_agreement() {
        let mut metrics = Metrics::new(OutputMeasure::CLASSES);
        metrics.add(&Tensor::vector(&[1_f32, 3.0]), &Tensor::vector(&[1_f32]), None);
        assert_eq!((metrics.agreement(), metrics.reference_accuracy(), metrics.nmse()), (None, None, None));
        assert!(metrics.drift() > 0.0);
    }
}
