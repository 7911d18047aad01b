//! Options and report of a proof.

use crate::{Comparison, LoadOptions, Metrics, StatePair, Tolerance, Value, Verdict};
use pare_graph::evaluate::quality::{OutputMeasure, QualityMeasures, TokenMask};
use std::time::Duration;

/// Options of a proof.
#[derive(Clone, Debug, Default)]
pub struct ProofOptions {
    /// Options of loading models; the proof sets the optimization level.
    pub load: LoadOptions,
    /// The differences that count as rounding.
    pub tolerance: Tolerance,
    /// True if inputs and outputs may be in another order.
    pub any_order: bool,
    /// Runs per sample, each with the state of the previous one; 0 counts as 1.
    pub steps: usize,
    /// The model's state; if empty, it is derived from names and types.
    pub state: Vec<StatePair>,
    /// True if the candidate may fix sizes that the original leaves open, and have other inputs and outputs;
    /// the outcome is then [`Outcome::Unproven`].
    pub narrowed: bool,
    /// True if differences are expected and only measured, on both models as deployed: no effort is made to explain them
    /// by rounding.
    pub measures_only: bool,
    /// The measures of the outputs, by their types without. Tokens that its mask switches off are not measured.
    pub quality: QualityMeasures,
    /// Most samples to run; all by default.
    pub max_samples: Option<usize>,
    /// Samples after which only the deployed models run, if both load.
    pub max_written: Option<usize>,
    /// Time after which no further batch runs.
    pub max_time: Option<Duration>,
}

/// Result of a proof.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProofReport {
    /// The outcome.
    pub outcome: Outcome,
    /// Deviation of the candidate from the original, both without the engine's optimizations, or as deployed if
    /// differences are only measured.
    pub deviation: Comparison,
    /// Deviation of the candidate with the engine's optimizations from the original without.
    pub deployed: Comparison,
    /// The model's noise: deviation of the original with the engine's optimizations from itself without; where
    /// the candidate deviates further, also with perturbed operands.
    pub floor: Comparison,
    /// The quality of each output by its measure, except for ignored ones.
    pub metrics: Vec<(String, Metrics)>,
    /// The measures of the outputs, with the evidence for them; set by the caller.
    pub quality: QualityMeasures,
    /// Samples that both models ran on.
    pub samples: usize,
    /// True if the samples are real ones, so that shares of them estimate shares of all inputs; set by the
    /// caller.
    pub given: bool,
    /// Runs that the original rejected, such as those with unsupported sizes.
    pub skipped: usize,
    /// Remarks, one sentence each.
    pub notes: Vec<String>,
}

/// Outcome of a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate agrees with the original within its noise, as written and as deployed.
    Equal,
    /// The candidate differs.
    Differs {
        /// The output with the largest deviation; empty if no single output differs.
        output: String,
        /// The difference, in one sentence.
        why: String,
    },
    /// Neither is known: the engine cannot run the original, there are no samples, or the outputs are not
    /// comparable.
    Unproven {
        /// The reason, in one sentence.
        why: String,
    },
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Equal => Self::Equal,
            Verdict::Differs { output, why } => Self::Differs { output, why },
        }
    }
}

impl Outcome {
    pub(super) fn differs(why: String) -> Self {
        Self::Differs { output: String::new(), why }
    }
}

impl ProofReport {
    pub(super) fn new() -> Self {
        Self {
            outcome: Outcome::Equal,
            deviation: Comparison::new(),
            deployed: Comparison::new(),
            floor: Comparison::new(),
            metrics: Vec::new(),
            quality: QualityMeasures::default(),
            samples: 0,
            given: false,
            skipped: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn with(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// A report without measurements, for models that could not be compared.
    pub fn unproven(why: impl Into<String>) -> Self {
        Self::new().with(Outcome::Unproven { why: why.into() })
    }

    /// The metrics of an output.
    pub fn metrics_of(&self, output: &str) -> Option<&Metrics> {
        self.metrics.iter().find(|(name, _)| name == output).map(|(_, metrics)| metrics)
    }

    /// The share of rows of an output with class scores that keep their class.
    pub fn class_agreement(&self, output: &str) -> Option<f64> {
        self.metrics_of(output)?.class_agreement()
    }

    /// Returns true if the candidate agrees with the original.
    pub fn is_equal(&self) -> bool {
        self.outcome == Outcome::Equal
    }

    /// Adds the outputs of one run to the metrics.
    pub(super) fn measure(
        &mut self,
        reference: &[(String, Value)],
        candidate: &[(String, Value)],
        labels: Option<&[i64]>,
        quality: &QualityMeasures,
        tokens: Option<&TokenMask>,
    ) {
        for (name, value) in reference {
            let other = candidate.iter().find(|(other, _)| other == name);
            let (Some(a), Some(b)) = (value.as_tensor(), other.and_then(|(_, value)| value.as_tensor()))
            else {
                continue;
            };
            let measure = quality.measure(name, a.dtype());
            if measure == OutputMeasure::Ignore {
                continue;
            }
            let mut metrics = Metrics::new(measure);
            let [a, b] = [a, b].map(|tensor| quality.without_padding(name, tensor, tokens));
            metrics.add(&a, &b, labels);
            if metrics.rows() == 0 {
                continue;
            }
            match self.metrics.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.merge(&metrics),
                None => self.metrics.push((name.clone(), metrics)),
            }
        }
    }
}
