//! `criterion=insensitivity` without a ratio: LOBSTER's bisection of a threshold for all layers.

use super::{Pattern, Refitting, masks::Masks, sparsification::Sparsification};
use crate::{
    analysis::{evaluation::HeldOut, weighted_layers::Kept},
    framework::{Context, PassError},
};

/// Bisection steps.
const STEPS: usize = 12;

/// Returns the masks of the largest threshold at which the cross entropy with the original's outputs, `H(p) +
/// KL(p‖q)`, is at most `1 + tolerance` times the entropy of the original, `H(p)`. Bisection starts at the
/// mean score.
pub fn masks(work: &Sparsification<'_>, masks: &Masks<'_>, cx: &Context<'_>) -> Result<Vec<Kept>, PassError> {
    if work.pass.pattern != Pattern::Free {
        return Err(PassError::refused_with(
            "a threshold selects single weights, not blocks",
            "give a `ratio`",
        ));
    }
    let held_out = HeldOut::new(cx.tools, &work.model, work.split.held_out.clone())?;
    let entropy = held_out.entropy().ok_or_else(|| {
        PassError::refused_with(
            "no output holds class scores, whose cross entropy is limited",
            "give a `ratio`",
        )
    })?;
    let scores: Vec<Vec<f64>> =
        masks.independent_scores().into_iter().map(|s| s.into_iter().map(f64::sqrt).collect()).collect();
    let all: Vec<_> = (0..scores.len()).collect();
    let at = |threshold: f64| -> Vec<Kept> {
        scores.iter().map(|s| s.iter().map(|&s| s >= threshold).collect()).collect()
    };
    let (mut low, mut high) = (0.0, scores.iter().flatten().copied().fold(0.0, f64::max));
    let count = scores.iter().map(Vec::len).sum::<usize>().max(1);
    let mut threshold = scores.iter().flatten().sum::<f64>() / count as f64;
    for step in 0..STEPS {
        cx.tools.progress.step("threshold", step as u64, STEPS as u64);
        let drift = held_out.drift(&work.changed(&all, &at(threshold), Refitting::None)?)?;
        if drift <= work.pass.tolerance * entropy {
            low = threshold;
        } else {
            high = threshold;
        }
        threshold = f64::midpoint(low, high);
    }
    cx.tools.progress.step("threshold", STEPS as u64, STEPS as u64);
    Ok(at(low))
}
