//! The layers that stay in float so that the outputs keep their quality.
//!
//! ```text
//! parts ← adjacent units
//! measure the drift of each part, when it alone is in integers
//! while measurements remain: split the part with the most drift, and measure both halves
//! sort the parts by their drift per unit
//! find by bisection the fewest of the first parts without which the others together keep the limits
//! ```
//!
//! The drift that orders the parts is measured on samples of the statistics, and the limits on held-out ones.

use super::candidates::{Candidates, Choice};
use crate::{
    analysis::evaluation::{HeldOut, Quality, QualityLimits},
    framework::{Context, PassError},
};

/// Measurements of parts, each of which loads and runs the model, and the number of the first parts.
const MEASUREMENTS: usize = 64;
const PARTS: usize = 32;
/// Layers that a note names.
const NAMED: usize = 8;

pub struct QualitySearch<'s> {
    pub candidates: &'s Candidates<'s>,
    pub limits: QualityLimits,
    pub held_out: &'s HeldOut<'s>,
    /// Samples of the statistics.
    pub ranking: &'s HeldOut<'s>,
}

/// Adjacent units, with the drift of the model if they alone are in integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub units: Vec<usize>,
    pub drift: f64,
}

impl QualitySearch<'_> {
    /// Returns the choice without the units that the limits do not permit.
    ///
    /// # Errors
    /// Refuses if no unit is left.
    pub fn hold(&self, choice: Choice, cx: &mut Context<'_>) -> Result<Choice, PassError> {
        let Some(mut broken) = self.broken(&choice)? else { return Ok(choice) };
        let parts = ranked(self.candidates, &choice, self.ranking, MEASUREMENTS, cx)?;
        let without = |count: usize| {
            let mut choice = choice.clone();
            parts[..count].iter().flat_map(|part| &part.units).for_each(|&unit| choice[unit] = false);
            choice
        };
        // Everything in integers breaks a limit, and nothing does not.
        let (mut breaks, mut holds) = (0, parts.len());
        while holds - breaks > 1 {
            let middle = breaks.midpoint(holds);
            match self.broken(&without(middle))? {
                None => holds = middle,
                Some(why) => (breaks, broken) = (middle, why),
            }
        }
        let chosen = |choice: &Choice| choice.iter().filter(|chosen| **chosen).count();
        if holds == parts.len() {
            let (least, all) = (chosen(&without(breaks)), choice.len());
            return Err(PassError::refused(format!(
                "no layer can be quantized within the limits: with {least} of {all} layers in integers, {broken}"
            )));
        }
        self.report(&parts[..holds], cx);
        Ok(without(holds))
    }

    /// Returns a sentence about the limit that a choice breaks.
    pub fn broken(&self, choice: &Choice) -> Result<Option<String>, PassError> {
        let quality: Quality = self.held_out.measure(&self.candidates.build(choice)?)?;
        Ok(self.limits.broken(&quality))
    }

    fn report(&self, parts: &[Part], cx: &mut Context<'_>) {
        let name = |part: &Part| {
            let names: Vec<_> =
                part.units.iter().map(|&unit| format!("`{}`", self.candidates.name(unit))).collect();
            format!("{} ({:.2e})", names.join(", "), part.drift)
        };
        let count: usize = parts.iter().map(|part| part.units.len()).sum();
        let mut names: Vec<_> = parts.iter().take(NAMED).map(name).collect();
        let named: usize = parts.iter().take(NAMED).map(|part| part.units.len()).sum();
        if named < count {
            names.push(format!("{} more", count - named));
        }
        let layers = if count == 1 { "1 layer stays" } else { &format!("{count} layers stay") };
        cx.report.notes.push(format!("{layers} in float for the limits (drift alone): {}", names.join(", ")));
    }
}

/// Returns the chosen units in parts, those with the most drift per unit first.
pub fn ranked(
    candidates: &Candidates<'_>,
    choice: &Choice,
    samples: &HeldOut<'_>,
    measurements: usize,
    cx: &Context<'_>,
) -> Result<Vec<Part>, PassError> {
    let mut measured = 0;
    let mut measure = |units: &[usize]| {
        let mut alone = vec![false; choice.len()];
        units.iter().for_each(|&unit| alone[unit] = true);
        let drift = samples.drift(&candidates.build(&alone)?)?;
        measured += 1;
        cx.tools.progress.step("rounding", measured as u64, measurements as u64);
        let drift = if drift.is_nan() { f64::INFINITY } else { drift };
        Ok::<_, PassError>(Part { units: units.to_vec(), drift })
    };
    let units: Vec<_> = (0..choice.len()).filter(|&unit| choice[unit]).collect();
    let first = units.chunks(units.len().div_ceil(PARTS.min(measurements)).max(1));
    let mut parts = first.map(&mut measure).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..measurements.saturating_sub(parts.len()) / 2 {
        let worst = (0..parts.len()).filter(|&i| parts[i].units.len() > 1);
        let worst = worst.max_by(|&a, &b| parts[a].drift.total_cmp(&parts[b].drift));
        let Some(worst) = worst else { break };
        let part = parts.swap_remove(worst);
        let (low, high) = part.units.split_at(part.units.len() / 2);
        parts.extend([measure(low)?, measure(high)?]);
    }
    let density = |part: &Part| part.drift / part.units.len() as f64;
    parts.sort_by(|a, b| density(b).total_cmp(&density(a)).then_with(|| a.units.cmp(&b.units)));
    Ok(parts)
}
