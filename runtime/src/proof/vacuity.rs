//! Comparisons that prove nothing although no difference was found.

use super::report::{Outcome, ProofReport};
use crate::{Deviation, compare::is_measured};
use std::collections::{BTreeMap, BTreeSet};

/// Least signal-to-noise ratio, in dB, of the original with itself. The noise is then a third of the values,
/// and the tolerance is a multiple of the noise.
const MIN_SNR: f64 = 10.0;

/// Largest share of the numbers of an output that rounding may change arbitrarily.
const MAX_UNDETERMINED: f64 = 0.02;

/// The outcome where all comparable outputs agree. `random` are outputs that differ between equal runs,
/// `undetermined` the numbers that rounding changes arbitrarily.
///
/// Without any output that was compared, or with one that is random or noise, nothing is proven. An output
/// without finite elements beside others is noted.
pub(super) fn vacuity(
    report: &mut ProofReport,
    random: &BTreeSet<String>,
    undetermined: &BTreeMap<String, u64>,
) -> Outcome {
    if let Some(name) = random.first() {
        let why = format!("`{name}` is random: equal inputs give different outputs");
        return Outcome::Unproven { why };
    }
    for (name, &part) in undetermined {
        let all = report.deviation.get(name).map_or(0, |deviation| deviation.count);
        let sentence = format!("rounding changes {part} of {all} values of `{name}` arbitrarily");
        if part as f64 > MAX_UNDETERMINED * all as f64 {
            return Outcome::Unproven { why: sentence };
        }
        report.notes.push(sentence);
    }
    for (name, floor) in report.floor.outputs() {
        let is_exact = [&report.deviation, &report.deployed]
            .iter()
            .all(|found| found.get(name).is_none_or(Deviation::is_zero));
        if !is_exact && floor.dtype.is_some_and(is_measured) && floor.snr_db() < MIN_SNR {
            let snr = floor.snr_db();
            let why = format!("rounding changes `{name}` as much as a difference would (SNR {snr:.1} dB)");
            return Outcome::Unproven { why };
        }
    }
    let outputs = report.deviation.outputs();
    let empty: Vec<_> = outputs.iter().filter_map(|(name, d)| Some((name, reason(d)?))).collect();
    let sentences = empty.iter().map(|(name, reason)| format!("`{name}` {reason} in every run"));
    if !empty.is_empty() && empty.len() == outputs.len() {
        return Outcome::Unproven { why: sentences.collect::<Vec<_>>().join(", ") };
    }
    let notes: Vec<_> = sentences.collect();
    report.notes.extend(notes);
    Outcome::Equal
}

/// The reason why an output was not compared, as a predicate.
fn reason(deviation: &Deviation) -> Option<&'static str> {
    match deviation {
        _ if deviation.mismatch.is_some() || deviation.dtype.is_none() => None,
        Deviation { count: 0, .. } => Some("has no elements"),
        Deviation { finite: 0, .. } => Some("is NaN or infinite"),
        _ => None,
    }
}
