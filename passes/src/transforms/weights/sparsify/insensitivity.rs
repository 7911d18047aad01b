//! How far `criterion=insensitivity` goes without a ratio: LOBSTER's bisection of one threshold for all layers.

use super::{Pattern, Refitting, Work, masks::Masks};
use crate::{
    analysis::{evaluation::HeldOut, weighted_layers::Kept},
    framework::{Context, PassError},
};

/// Halvings of the threshold.
const STEPS: usize = 12;

/// The largest threshold `T` at which the cross entropy with the original's answers, `H(p) + KL(p‖q)`, is no more than
/// `1 + tolerance` times what the original has itself, `H(p)`. It starts at the mean of the scores.
pub fn masks(work: &Work<'_>, masks: &Masks<'_>, cx: &Context<'_>) -> Result<Vec<Kept>, PassError> {
    if work.pass.pattern != Pattern::Free {
        return Err(PassError::refused_with("a threshold knows no blocks", "give a `ratio`"));
    }
    let trial = HeldOut::new(cx.tools, &work.model, work.split.held_out.clone())?;
    let entropy = trial.entropy()?.ok_or_else(|| {
        PassError::refused_with("no output holds class scores, whose loss it would watch", "give a `ratio`")
    })?;
    let scores: Vec<Vec<f64>> =
        masks.fixed().into_iter().map(|s| s.into_iter().map(f64::sqrt).collect()).collect();
    let all: Vec<_> = (0..scores.len()).collect();
    let at = |threshold: f64| -> Vec<Kept> {
        scores.iter().map(|s| s.iter().map(|&s| s >= threshold).collect()).collect()
    };
    let (mut low, mut high) = (0.0, scores.iter().flatten().copied().fold(0.0, f64::max));
    let count = scores.iter().map(Vec::len).sum::<usize>().max(1);
    let mut threshold = scores.iter().flatten().sum::<f64>() / count as f64;
    for step in 0..STEPS {
        cx.tools.progress.step("threshold", step as u64, STEPS as u64);
        let drift = trial.drift(&work.changed(&all, &at(threshold), Refitting::None)?)?;
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
