//! Limits on the loss of quality.

use crate::Comparison;
use pare_runtime::{Deviation, Metrics, OutputMeasure, ProofReport};
use std::{fmt, str::FromStr};

/// The largest loss of quality that is accepted; a limit that is not given holds always.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct QualityLimits {
    /// Largest difference of an output, relative to its largest absolute value.
    pub deviation: Option<f64>,
    /// Smallest share of samples that keep their class; of embeddings, the smallest rank correlation of the
    /// cosines of all pairs.
    pub agreement: Option<f64>,
    /// Largest drop of the share of labelled samples that are classified correctly.
    pub accuracy_drop: Option<f64>,
    /// Largest share of all inputs that may change class, with 95 % confidence.
    pub disagreement: Option<f64>,
    /// Limits of measures that hold for every output.
    pub measures: Vec<(Measure, f64)>,
}

/// The canonical form in a lock file; it omits `measures`, which projects cannot set.
impl fmt::Display for QualityLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deviation, agreement, accuracy_drop, disagreement, .. } = self;
        write!(
            f,
            "deviation {deviation:?} agreement {agreement:?} accuracy drop {accuracy_drop:?} disagreement \
             {disagreement:?}"
        )
    }
}

/// A measure of one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Measure {
    /// Largest absolute difference.
    MaxAbs,
    /// Largest difference, relative to the largest absolute value.
    MaxRel,
    /// Root of the mean squared difference.
    Rmse,
    /// Mean Kullback–Leibler divergence of the class probabilities in nats.
    Kl,
    /// Cosine of the angle between the outputs.
    Cosine,
    /// Signal-to-noise ratio in decibels.
    Snr,
    /// Share of rows with the same class.
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

    fn higher_is_better(self) -> bool {
        matches!(self, Self::Cosine | Self::Snr | Self::Agreement)
    }

    /// The value for an output; `None` if it is not defined, such as agreement without class scores.
    fn value(self, deviation: &Deviation, metrics: Option<&Metrics>) -> Option<f64> {
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

impl FromStr for Measure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, measure)| *measure);
        found.ok_or_else(|| format!("there is no measure `{text}`; there are {}", names()))
    }
}

impl QualityLimits {
    /// Returns true if no limit is given.
    pub fn is_empty(&self) -> bool {
        let shares = [self.deviation, self.agreement, self.accuracy_drop, self.disagreement];
        shares.iter().all(Option::is_none) && self.measures.is_empty()
    }

    /// The limits that a comparison exceeds, one sentence each.
    pub fn exceeded(&self, comparison: &Comparison) -> Vec<String> {
        let report = &comparison.report;
        let mut exceeded = vec![];
        if let Some(limit) = self.deviation {
            exceeded.extend(deviation(report, limit));
        }
        if let Some(limit) = self.agreement {
            exceeded.extend(agreement(report, limit));
        }
        if let Some(limit) = self.disagreement {
            exceeded.extend(disagreement(comparison, limit));
        }
        for &(measure, limit) in &self.measures {
            exceeded.extend(measured(report, measure, limit));
        }
        if let Some(limit) = self.accuracy_drop {
            exceeded.extend(accuracy_drop(report, limit));
        }
        exceeded
    }
}

fn deviation(report: &ProofReport, limit: f64) -> Vec<String> {
    let check = |(name, output): &(String, Deviation)| {
        if is_ignored(report, name) {
            return None;
        }
        let relative = if output.misplaced > 0 { f64::INFINITY } else { output.max_rel };
        match &output.mismatch {
            Some(why) => Some(format!("`{name}` {why}")),
            // Holds for NaN too.
            None if !(relative <= limit) => {
                Some(format!("`{name}` deviates by {relative:.2e} of its largest value, more than {limit}"))
            }
            None => None,
        }
    };
    report.deviation.outputs().iter().filter_map(check).collect()
}

/// Returns whether an output is not measured.
fn is_ignored(report: &ProofReport, output: &str) -> bool {
    report.quality.get(output).is_some_and(|output| output.measure == OutputMeasure::Ignore)
}

fn agreement(report: &ProofReport, limit: f64) -> Vec<String> {
    let shares: Vec<_> = report
        .metrics
        .iter()
        .filter_map(|(name, metrics)| Some((name, metrics.measure(), metrics.agreement()?)))
        .collect();
    if shares.is_empty() {
        return vec!["no output holds class scores, so agreement cannot be measured".into()];
    }
    let exceeded = shares.into_iter().filter(|(_, _, share)| !(*share >= limit));
    let sentence = |(name, measure, share): (&String, OutputMeasure, f64)| match measure {
        OutputMeasure::Cosine => {
            format!(
                "the cosines of pairs in `{name}` have a rank correlation of {share:.4}, less than {limit}"
            )
        }
        OutputMeasure::Exact => {
            format!("{} of the elements of `{name}` are equal, fewer than {limit}", percent(share))
        }
        _ => format!("{} of the samples keep their class in `{name}`, fewer than {limit}", percent(share)),
    };
    exceeded.map(sentence).collect()
}

fn disagreement(comparison: &Comparison, limit: f64) -> Vec<String> {
    let shares: Vec<_> = comparison.disagreements().collect();
    if shares.is_empty() {
        return vec!["no output holds class scores, so disagreement cannot be measured".into()];
    }
    let exceeded = shares.into_iter().filter(|d| !(d.upper_limit <= limit));
    let sentence = |d: crate::Disagreement<'_>| {
        format!(
            "{} of {} samples change class in `{}`, so up to {} of all inputs may (95 %), more than {limit}",
            percent(d.share),
            d.rows,
            d.output,
            percent(d.upper_limit)
        )
    };
    exceeded.map(sentence).collect()
}

fn measured(report: &ProofReport, measure: Measure, limit: f64) -> Vec<String> {
    let (mut exceeded, mut defined) = (vec![], false);
    for (name, deviation) in report.deviation.outputs().iter().filter(|(name, _)| !is_ignored(report, name)) {
        if let Some(why) = &deviation.mismatch {
            exceeded.push(format!("`{name}`: {why}"));
            continue;
        }
        if deviation.misplaced > 0 {
            let count = deviation.misplaced;
            exceeded.push(format!("`{name}`: {count} values are NaN or infinite on one side only"));
        }
        let metrics = report.metrics_of(name);
        let Some(value) = measure.value(deviation, metrics) else { continue };
        defined = true;
        let (holds, relation) =
            if measure.higher_is_better() { (value >= limit, "less") } else { (value <= limit, "more") };
        if !holds {
            exceeded.push(format!("`{name}`: {} is {value:.6}, {relation} than {limit}", measure.name()));
        }
    }
    if !defined {
        exceeded.push(format!("{} is not defined for any output", measure.name()));
    }
    exceeded
}

fn accuracy_drop(report: &ProofReport, limit: f64) -> Option<String> {
    let drop = |metrics: &Metrics| Some(metrics.reference_accuracy()? - metrics.candidate_accuracy()?);
    match report.metrics.iter().filter_map(|(_, metrics)| drop(metrics)).reduce(f64::max) {
        Some(drop) if !(drop <= limit) => {
            Some(format!("accuracy drops by {}, more than {limit}", percent(drop)))
        }
        Some(_) => None,
        None => Some("the samples have no `labels`, so accuracy cannot be measured".into()),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_measures() {
        assert_eq!("cosine".parse(), Ok(Measure::Cosine));
        assert!("cosinus".parse::<Measure>().unwrap_err().starts_with("there is no measure `cosinus`"));
    }

    #[test]
    fn displays_the_limits_of_a_project() {
        let limits = QualityLimits { agreement: Some(0.9), ..QualityLimits::default() };
        assert!(QualityLimits::default().is_empty() && !limits.is_empty());
        let text = "deviation None agreement Some(0.9) accuracy drop None disagreement None";
        assert_eq!(limits.to_string(), text);
    }
}
