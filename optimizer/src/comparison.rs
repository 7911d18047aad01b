//! The comparison of two models on samples.

use crate::{Error, environment::LazyEngine};
use pare_runtime::{
    Metrics, ModelSource, Outcome, ProofOptions, ProofReport, RelatedEngine, Relation, SampleSet, prove,
    upper_limit,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// Samples per run, where the model leaves it open: enough to use the machine, few enough for its memory.
const BATCH: usize = 32;

/// The confidence of the upper limit of disagreement (Clopper–Pearson).
const CONFIDENCE: f64 = 0.95;

/// Two models compared on the same samples.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Comparison {
    /// The outcome and the measurements.
    pub report: ProofReport,
    /// Name and version of the engine.
    pub engine: String,
}

/// The share of rows that change class in an output.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Disagreement<'r> {
    /// The output.
    pub output: &'r str,
    /// Rows compared.
    pub rows: u64,
    /// Share of them that change class.
    pub share: f64,
    /// Upper limit of the share among all inputs, with 95 % confidence.
    pub upper_limit: f64,
}

impl Comparison {
    /// The outcome.
    pub fn outcome(&self) -> &Outcome {
        &self.report.outcome
    }

    /// The disagreement of each output that holds class scores.
    pub fn disagreements(&self) -> impl Iterator<Item = Disagreement<'_>> {
        self.report.metrics.iter().filter_map(|(output, metrics)| disagreement(output, metrics))
    }

    /// The difference and its output as a sentence, if the models differ.
    pub(crate) fn difference(&self) -> Option<String> {
        match &self.report.outcome {
            Outcome::Differs { output, why } if output.is_empty() => Some(why.clone()),
            Outcome::Differs { output, why } => Some(format!("`{output}`: {why}")),
            _ => None,
        }
    }

    fn json(&self) -> Value {
        let Self { report, engine } = self;
        let (outcome, why) = match &report.outcome {
            Outcome::Equal => ("equal", None),
            Outcome::Differs { why, .. } => ("differs", Some(why)),
            Outcome::Unproven { why } => ("unproven", Some(why)),
        };
        let outputs = report.deviation.outputs().iter().map(|(name, d)| {
            json!({
                "name": name, "max_abs": d.max_abs, "max_rel": d.max_rel, "cosine": d.cosine(),
                "snr_db": finite(d.snr_db()), "top1_agreement": report.class_agreement(name), "differing": d.differing,
                "misplaced": d.misplaced, "count": d.count, "mismatch": d.mismatch,
                "floor_abs": report.floor.get(name).map(|f| f.max_abs),
                "deployed_max_abs": report.deployed.get(name).map(|f| f.max_abs),
            })
        });
        let metrics = report.metrics.iter().map(|(name, m)| {
            let neighbours = m.neighbours();
            json!({
                "output": name, "measure": m.measure().name(), "why": report.quality.get(name).map(|q| &q.why),
                "samples": m.rows(), "drift": finite(m.drift()), "agreement": m.agreement(), "kl": m.mean_kl(),
                "cosine": m.mean_cosine(), "same_nearest": neighbours.map(|n| n.nearest),
                "nmse": m.nmse().and_then(finite),
                "disagreement_limit": disagreement(name, m).map(|d| d.upper_limit),
                "reference_accuracy": m.reference_accuracy(), "candidate_accuracy": m.candidate_accuracy(),
            })
        });
        json!({
            "outcome": outcome, "why": why, "engine": engine, "samples": report.samples,
            "skipped": report.skipped, "outputs": outputs.collect::<Vec<_>>(),
            "metrics": metrics.collect::<Vec<_>>(), "notes": report.notes,
        })
    }
}

impl Serialize for Comparison {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

fn disagreement<'r>(output: &'r str, metrics: &Metrics) -> Option<Disagreement<'r>> {
    let (share, rows) = (1.0 - metrics.class_agreement()?, metrics.rows());
    let changed = (share * rows as f64).round() as u64;
    Some(Disagreement { output, rows, share, upper_limit: upper_limit(changed, rows, CONFIDENCE) })
}

/// Infinite ratios are `null` in JSON.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// Compares two models on samples.
pub(crate) fn compare(
    engine: &LazyEngine<'_>,
    reference: &ModelSource,
    candidate: &ModelSource,
    samples: &mut SampleSet,
    options: ProofOptions,
) -> Result<Comparison, Error> {
    compare_related(engine, reference, candidate, None, samples, options)
}

/// Compares two models on samples for the reference, whose interface `candidate` has in this relation.
pub(crate) fn compare_related(
    engine: &LazyEngine<'_>,
    reference: &ModelSource,
    candidate: &ModelSource,
    relation: Option<Relation>,
    samples: &mut SampleSet,
    options: ProofOptions,
) -> Result<Comparison, Error> {
    let options = ProofOptions { load: engine.load_options(), ..options };
    let quality = options.quality.clone();
    let given = !samples.is_generated();
    let plain = engine.engine()?.as_ref();
    let prove_on = |samples: &mut SampleSet| match &relation {
        None => prove(plain, reference, candidate, samples.batches(BATCH), &options),
        Some(relation) => {
            let related = RelatedEngine::new(plain, candidate, relation.clone());
            prove(&related, reference, candidate, samples.batches(BATCH), &options)
        }
    };
    let mut report = prove_on(samples)?;
    let runs_on_none = report.samples == 0 && matches!(report.outcome, Outcome::Unproven { .. });
    if runs_on_none
        && let Ok(mut session) = plain.load(reference, &options.load.as_written())
        && samples.adapt(&mut *session)
    {
        report = prove_on(samples)?;
    }
    report.given = given;
    report.quality = quality;
    Ok(Comparison { report, engine: engine.description()? })
}
