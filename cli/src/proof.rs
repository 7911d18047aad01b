//! Running two models and saying how far apart they are.

use crate::{failure::Failure, inputs::Engines, voice};
use pare_runtime::{
    Deviation, Metrics, ModelSource, Outcome, ProofOptions, ProofReport, SampleSet, prove, upper_limit,
};
use serde_json::{Value, json};

/// Samples in a run, where the model leaves that open: enough to use the machine, few enough to fit.
const BATCH: usize = 32;

/// The confidence that limits of disagreement hold with.
const CONFIDENCE: f64 = 0.95;

/// What can be measured of an output, to be held to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    MaxAbs,
    MaxRel,
    Rmse,
    Kl,
    Cosine,
    Snr,
    Agreement,
}

impl Measure {
    const ALL: [(&'static str, Self); 7] = [
        ("max-abs", Self::MaxAbs),
        ("max-rel", Self::MaxRel),
        ("rmse", Self::Rmse),
        ("kl", Self::Kl),
        ("cosine", Self::Cosine),
        ("snr", Self::Snr),
        ("agreement", Self::Agreement),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, m)| *m == self).map_or("", |(name, _)| name)
    }

    /// Whether more is better.
    fn at_least(self) -> bool {
        matches!(self, Self::Cosine | Self::Snr | Self::Agreement)
    }

    /// Of an output; `None` where it says nothing, such as agreement of what is no class scores.
    fn of(self, deviation: &Deviation, metrics: Option<&Metrics>) -> Option<f64> {
        match self {
            Self::MaxAbs => Some(deviation.max_abs),
            Self::MaxRel => Some(deviation.max_rel),
            Self::Rmse => Some(deviation.rmse()),
            Self::Kl => metrics?.mean_kl(),
            Self::Cosine => Some(deviation.cosine()),
            Self::Snr => Some(deviation.snr_db()),
            Self::Agreement => metrics?.agreement(),
        }
    }
}

impl std::str::FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, measure)| *measure);
        found.ok_or_else(|| format!("there is no measure `{text}`; there are {}", names()))
    }
}

/// The share of rows that change class, and what it may be among all inputs at most.
fn disagreement(metrics: &Metrics) -> Option<(f64, f64)> {
    let share = 1.0 - metrics.agreement()?;
    let changed = (share * metrics.rows() as f64).round() as u64;
    Some((share, upper_limit(changed, metrics.rows(), CONFIDENCE)))
}

/// What a drift is held to.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Largest difference, relative to the largest value of the output.
    pub drift: Option<f64>,
    /// Share of samples that keep their class.
    pub agreement: Option<f64>,
    /// Share of labelled samples that may become wrong.
    pub accuracy_drop: Option<f64>,
    /// Share of all inputs that may change class, at the confidence of [`CONFIDENCE`].
    pub disagreement: Option<f64>,
    /// What every output is held to.
    pub measures: Vec<(Measure, f64)>,
}

/// As it stands in a lock: equal limits say the same.
impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "drift {:?} agreement {:?} accuracy drop {:?} disagreement {:?}",
            self.drift, self.agreement, self.accuracy_drop, self.disagreement
        )
    }
}

impl Limits {
    pub fn any(&self) -> bool {
        let shares = [self.drift, self.agreement, self.accuracy_drop, self.disagreement];
        shares.iter().any(Option::is_some) || !self.measures.is_empty()
    }

    /// The limits that a report breaks, a sentence each.
    pub fn broken(&self, report: &ProofReport) -> Vec<String> {
        let mut broken = vec![];
        if let Some(limit) = self.drift {
            for (name, deviation) in report.deviation.outputs() {
                let drift = if deviation.misplaced > 0 { f64::INFINITY } else { deviation.max_rel };
                if let Some(why) = &deviation.mismatch {
                    broken.push(format!("`{name}` {why}"));
                } else if !(drift <= limit) {
                    broken.push(format!(
                        "`{name}` drifts by {drift:.2e} of its largest value, more than {limit}"
                    ));
                }
            }
        }
        let scores = |f: fn(&Metrics) -> Option<f64>| {
            report.metrics.iter().filter_map(move |(name, m)| Some((name, f(m)?)))
        };
        if let Some(limit) = self.agreement {
            let mut seen = false;
            for (name, agreement) in scores(Metrics::agreement) {
                seen = true;
                if !(agreement >= limit) {
                    broken.push(format!(
                        "{} of the samples keep their class in `{name}`, fewer than {limit}",
                        percent(agreement)
                    ));
                }
            }
            if !seen {
                broken.push("no output holds class scores, so agreement cannot be measured".into());
            }
        }
        if let Some(limit) = self.disagreement {
            let mut seen = false;
            for (name, metrics) in &report.metrics {
                let Some((share, most)) = disagreement(metrics) else { continue };
                seen = true;
                if !(most <= limit) {
                    broken.push(format!(
                        "{} of {} samples change class in `{name}`, so up to {} of all inputs may (95 %), more than {limit}",
                        percent(share),
                        metrics.rows(),
                        percent(most)
                    ));
                }
            }
            if !seen {
                broken.push("no output holds class scores, so disagreement cannot be measured".into());
            }
        }
        for &(measure, limit) in &self.measures {
            let mut seen = false;
            for (name, deviation) in report.deviation.outputs() {
                if let Some(why) = &deviation.mismatch {
                    broken.push(format!("`{name}`: {why}"));
                    continue;
                }
                if deviation.misplaced > 0 {
                    let places = deviation.misplaced;
                    broken.push(format!("`{name}`: {places} values are NaN or infinite on one side only"));
                }
                let metrics = report.metrics.iter().find(|(n, _)| n == name).map(|(_, m)| m);
                let Some(value) = measure.of(deviation, metrics) else { continue };
                seen = true;
                let (holds, bound) =
                    if measure.at_least() { (value >= limit, "less") } else { (value <= limit, "more") };
                if !holds {
                    broken.push(format!("`{name}`: {} is {value:.6}, {bound} than {limit}", measure.name()));
                }
            }
            if !seen {
                broken.push(format!("{} says nothing about any output", measure.name()));
            }
        }
        if let Some(limit) = self.accuracy_drop {
            let drops = report
                .metrics
                .iter()
                .filter_map(|(_, m)| Some(m.reference_accuracy()? - m.candidate_accuracy()?));
            match drops.reduce(f64::max) {
                Some(drop) if !(drop <= limit) => {
                    broken.push(format!("accuracy drops by {}, more than {limit}", percent(drop)));
                }
                Some(_) => {}
                None => broken.push("the samples have no `labels`, so accuracy cannot be measured".into()),
            }
        }
        broken
    }
}

/// Compare two models on samples; how they are loaded is set here.
pub fn compare(
    engines: &Engines<'_>,
    reference: &ModelSource,
    candidate: &ModelSource,
    samples: &mut SampleSet,
    options: ProofOptions,
) -> Result<ProofReport, Failure> {
    let options = ProofOptions { load: engines.load_options(), ..options };
    let engine = engines.engine()?;
    let given = !samples.is_generated();
    let mut report = prove(engine.as_ref(), reference, candidate, samples.batches(BATCH), &options)?;
    report.given = given;
    Ok(report)
}

/// A share for people.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// The report for machines.
pub fn to_json(report: &ProofReport, engine: &str) -> Value {
    let (outcome, why) = match &report.outcome {
        Outcome::Equal => ("equal", None),
        Outcome::Differs { why, .. } => ("differs", Some(why)),
        Outcome::Unproven { why } => ("unproven", Some(why)),
    };
    let outputs = report.deviation.outputs().iter().map(|(name, d)| {
        json!({
            "name": name, "max_abs": d.max_abs, "max_rel": d.max_rel, "cosine": d.cosine(), "snr_db": finite(d.snr_db()),
            "top1_agreement": d.top1_agreement(), "differing": d.differing, "misplaced": d.misplaced, "count": d.count,
            "mismatch": d.mismatch, "floor_abs": report.floor.get(name).map(|f| f.max_abs),
            "deployed_max_abs": report.deployed.get(name).map(|f| f.max_abs),
        })
    });
    let metrics = report.metrics.iter().map(|(name, m)| {
        json!({
            "output": name, "samples": m.rows(), "agreement": m.agreement(), "kl": m.mean_kl(), "nmse": m.nmse().and_then(finite),
            "disagreement_limit": disagreement(m).map(|d| d.1), "reference_accuracy": m.reference_accuracy(), "candidate_accuracy": m.candidate_accuracy(),
        })
    });
    json!({
        "outcome": outcome, "why": why, "engine": engine, "samples": report.samples, "skipped": report.skipped,
        "outputs": outputs.collect::<Vec<_>>(), "metrics": metrics.collect::<Vec<_>>(), "notes": report.notes,
    })
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// The report for people.
pub fn to_text(report: &ProofReport) -> String {
    let mut text = String::new();
    let rows: Vec<_> = report
        .deviation
        .outputs()
        .iter()
        .map(|(name, d)| {
            let floor = report.floor.get(name).map_or_else(String::new, |f| format!("{:.1e}", f.max_abs));
            let snr = if d.snr_db().is_finite() { format!("{:.1}", d.snr_db()) } else { "∞".into() };
            let agreement = d.top1_agreement().map_or_else(String::new, percent);
            let max = d.mismatch.clone().unwrap_or_else(|| format!("{:.1e}", d.max_abs));
            vec![name.clone(), max, format!("{:.1e}", d.max_rel), floor, snr, agreement]
        })
        .collect();
    // Models with dozens of outputs show the worst few.
    text += &voice::table(&["output", "max |Δ|", "relative", "noise floor", "SNR dB", "same class"], rows);
    for (name, m) in &report.metrics {
        if let (Some(a), Some(b)) = (m.reference_accuracy(), m.candidate_accuracy()) {
            text +=
                &format!("accuracy of `{name}` on {} samples: {} → {}\n", m.rows(), percent(a), percent(b));
        }
    }
    for (name, m) in report.metrics.iter().filter(|_| report.given) {
        if let Some((_, most)) = disagreement(m) {
            text += &format!(
                "at most {} of all inputs change class in `{name}` (95 % confidence)\n",
                percent(most)
            );
        }
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    text
}
