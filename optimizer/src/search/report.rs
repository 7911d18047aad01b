//! The report of a search.

use super::{Explorer, Goal, SearchLimits, family::FAMILIES, trial::Trial};
use crate::{OptimizeReport, Optimized};
use pare_runtime::Spread;
use serde::Serialize;
use std::path::PathBuf;

/// The report of [`search`](super::search()); `cli/REPORTS.md` describes its JSON.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SearchReport {
    /// The model file, if the model was read from one.
    pub model: Option<PathBuf>,
    /// The quantity that was minimised.
    pub goal: Goal,
    /// The limits on the loss of quality.
    pub limits: SearchLimits,
    /// The pipeline of the result; `safe` if nothing keeps the limits and helps.
    pub pipeline: String,
    /// The trial of the result; `None` if it is `safe`.
    pub best: Option<Trial>,
    /// Probability that the limits hold for other samples; `None` if the noise of no limit is known.
    pub confidence: Option<f64>,
    /// Latency of the result as a share of the original's, if the goal is latency: quartiles and median, measured
    /// at the end.
    pub latency: Option<[f64; 3]>,
    /// Samples that quality was measured on.
    pub samples: usize,
    /// The value of the caller's metric for the original.
    pub metric: Option<f64>,
    /// All trials, in order.
    pub trials: Vec<Trial>,
    /// Positions in `trials` of those that no other is better than in both cost and drift.
    pub front: Vec<usize>,
    /// The families of passes.
    pub families: Vec<FamilyReport>,
    /// Trials taken from an earlier search.
    pub resumed: usize,
    /// Why it ended.
    pub end: SearchEnd,
    /// Samples per run of a latency.
    pub batch: usize,
    /// Threads of a latency.
    pub threads: usize,
    /// The execution provider of a latency.
    pub provider: String,
    /// The report of the result.
    pub result: OptimizeReport,
    /// Seconds that everything took.
    pub seconds: f64,
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchEnd {
    /// No improvement was expected any more.
    Finished,
    /// The time was up.
    Budget,
    /// It was cancelled.
    Cancelled,
}

/// A family of lossy passes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FamilyReport {
    /// Its name.
    pub name: &'static str,
    /// Trials that it takes part in.
    pub trials: usize,
    /// Why it makes nothing, or nothing stronger.
    pub skipped: Option<String>,
}

impl SearchReport {
    pub(super) fn new(
        explorer: &Explorer<'_>,
        optimized: &Optimized,
        best: Option<(Trial, f64)>,
        latency: Option<Spread>,
        front: Vec<usize>,
    ) -> Self {
        let Explorer { options, trials, .. } = explorer;
        let is_noisy = explorer.has_known_noise();
        let families = explorer.families.iter().map(|&family| FamilyReport {
            name: FAMILIES[family].name,
            trials: trials.iter().filter(|trial| trial.strengths.0[family] > 0).count(),
            skipped: explorer.refusal(family).map(str::to_owned),
        });
        Self {
            model: None,
            goal: options.goal,
            limits: options.limits,
            pipeline: optimized.report.pipeline.clone(),
            confidence: best.as_ref().map(|(_, confidence)| *confidence).filter(|_| is_noisy),
            best: best.map(|(trial, _)| trial),
            latency: latency.map(|spread| [spread.low, spread.median, spread.high]),
            samples: explorer.judge.samples,
            metric: explorer.judge.original_metric(),
            trials: trials.clone(),
            front,
            families: families.collect(),
            resumed: explorer.resumed,
            end: explorer.end,
            batch: options.batch,
            threads: options.environment.single_thread(),
            provider: options.environment.provider.to_string(),
            result: optimized.report.clone(),
            seconds: 0.0,
        }
    }
}
