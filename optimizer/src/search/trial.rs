//! Candidates that were tried, and what was measured of them.

use super::family::Combination;
use serde::{Deserialize, Serialize};

/// A pipeline that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Trial {
    /// The pipeline in text form.
    pub pipeline: String,
    /// The strength of each family.
    pub(super) strengths: Combination,
    /// Samples that it was calibrated on.
    pub samples: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// Without a result: the part of `strengths` of which a pass makes nothing, and so of stronger combinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) infeasible: Option<Combination>,
    /// The measurements, or the reason why there are none.
    #[serde(flatten)]
    pub outcome: TrialOutcome,
}

impl Trial {
    /// The measurements.
    pub fn measured(&self) -> Option<&Measured> {
        match &self.outcome {
            TrialOutcome::Measured(measured) => Some(measured),
            TrialOutcome::Skipped(_) => None,
        }
    }

    /// The reason why there is no result.
    pub fn skipped(&self) -> Option<&str> {
        match &self.outcome {
            TrialOutcome::Measured(_) => None,
            TrialOutcome::Skipped(why) => Some(why),
        }
    }
}

/// The outcome of a trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialOutcome {
    /// Cost and quality.
    Measured(Measured),
    /// The reason why there is no result.
    Skipped(String),
}

/// Cost and quality of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Measured {
    /// Latency as a share of the original's: median, and quartiles, of interleaved rounds. `None` if the goal is
    /// not latency.
    pub latency: Option<[f64; 3]>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// The quantity that is minimised, as a share of the original's.
    pub cost: f64,
    /// Drift of the outputs.
    pub drift: f64,
    /// Agreement with the original.
    pub agreement: Option<f64>,
    /// Drop of the accuracy.
    pub accuracy_drop: Option<f64>,
    /// Drop of the caller's metric, if it was measured.
    pub metric_drop: Option<f64>,
}

#[cfg(test)]
impl Measured {
    /// A candidate of which only cost and drift are known.
    pub(super) fn of(cost: f64, drift: f64) -> Self {
        Self {
            latency: None,
            bytes: 0,
            macs: 0,
            cost,
            drift,
            agreement: None,
            accuracy_drop: None,
            metric_drop: None,
        }
    }
}
