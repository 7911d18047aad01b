//! Text of comparisons and proofs.

use crate::format::{percent, table};
use onnx_pare::{Comparison, Effect, Metrics, Outcome, OutputMeasure, Proof, ProofReport, StageProof};

/// The differences per output, and the quality of class scores.
pub fn text(comparison: &Comparison) -> String {
    let report = &comparison.report;
    let outputs = report.deviation.outputs().iter().map(|(name, d)| {
        let floor = report.floor.get(name).map_or_else(String::new, |f| format!("{:.1e}", f.max_abs));
        let snr = if d.snr_db().is_finite() { format!("{:.1}", d.snr_db()) } else { "∞".into() };
        let agreement = report.class_agreement(name).map_or_else(String::new, percent);
        let max = d.mismatch.clone().unwrap_or_else(|| format!("{:.1e}", d.max_abs));
        vec![name.clone(), max, format!("{:.1e}", d.max_rel), floor, snr, agreement]
    });
    let head = ["output", "max |Δ|", "relative", "noise floor", "SNR dB", "same class"];
    let mut text = table(&head, outputs.collect());
    if !report.is_equal() {
        text += &report.metrics.iter().map(|(name, m)| measure(report, name, m)).collect::<String>();
    }
    for (name, m) in &report.metrics {
        if let (Some(a), Some(b)) = (m.reference_accuracy(), m.candidate_accuracy()) {
            text +=
                &format!("accuracy of `{name}` on {} samples: {} → {}\n", m.rows(), percent(a), percent(b));
        }
    }
    for d in comparison.disagreements().filter(|_| report.given) {
        text += &format!(
            "at most {} of all inputs change class in `{}` (95 % confidence)\n",
            percent(d.upper_limit),
            d.output
        );
    }
    for note in &report.notes {
        text += &format!("note: {note}\n");
    }
    text
}

/// The measure of an output, the evidence for it, and the quality that other lines do not show.
fn measure(report: &ProofReport, name: &str, metrics: &Metrics) -> String {
    let why = report.quality.get(name).map_or_else(String::new, |output| format!(": {}", output.why));
    let mut text = format!("`{name}` is compared by {}{why}\n", metrics.measure());
    match metrics.measure() {
        OutputMeasure::Cosine => {
            let cosine = metrics.mean_cosine().unwrap_or(f64::NAN);
            text += &format!("mean cosine of `{name}`: {cosine:.4}");
            if let Some(order) = metrics.neighbours() {
                let (correlation, nearest) = (order.correlation, percent(order.nearest));
                text +=
                    &format!("; rank correlation of pairs {correlation:.4}; {nearest} keep their nearest");
            }
            text.push('\n');
        }
        OutputMeasure::Error => {
            text += &format!("squared error of `{name}`: {} of the variance\n", percent(metrics.drift()));
        }
        OutputMeasure::Exact => {
            let equal = metrics.agreement().map_or_else(String::new, percent);
            text += &format!("{equal} of the elements of `{name}` are equal\n");
        }
        OutputMeasure::Classes { .. } | OutputMeasure::Ignore => {}
    }
    text
}

/// The outcome of a proof, the differences, and the stages.
pub fn proof(proof: &Proof) -> String {
    let (samples, engine) = (proof.overall.report.samples, &proof.overall.engine);
    let mut text = match proof.overall.outcome() {
        Outcome::Unproven { why } if samples == 0 => return format!("not proven: {why}\n"),
        Outcome::Unproven { why } => format!("not proven on {samples} samples in {engine}: {why}\n"),
        Outcome::Equal => format!("proven equal on {samples} samples in {engine}\n"),
        Outcome::Differs { .. } if proof.effect == Effect::Lossy => {
            format!("deviation on {samples} samples in {engine}\n")
        }
        Outcome::Differs { .. } => format!("compared on {samples} samples in {engine}\n"),
    };
    text += &self::text(&proof.overall);
    if !proof.stages.is_empty() {
        text.push('\n');
        let head = ["pass by pass", "promises", "relative", ""];
        text += &table(&head, proof.stages.iter().map(stage).collect());
    }
    text
}

fn stage(stage: &StageProof) -> Vec<String> {
    let outputs = stage.comparison.report.deviation.outputs();
    let largest = outputs.iter().map(|(_, d)| d.max_rel).fold(0.0, f64::max);
    let verdict = match stage.comparison.outcome() {
        Outcome::Equal => "equal",
        Outcome::Differs { .. } if stage.effect == Effect::Lossy => "deviates",
        Outcome::Differs { .. } => "differs",
        Outcome::Unproven { .. } => "not proven",
    };
    vec![stage.passes.clone(), stage.effect.to_string(), format!("{largest:.1e}"), verdict.into()]
}
