//! Search for the merge schedule with the largest speedup within limits.

use super::{
    decline::MergeDecline,
    latency::latencies,
    merge::{MergePlan, UnreadTokens, merged_model},
    schedule::capped,
    token_analysis::TokenAnalysis,
};
use crate::{
    analysis::{
        evaluation::{HeldOut, Quality, QualityLimits},
        samples::HELD_OUT,
    },
    framework::{Hint, PassError, Tools},
};
use pare_graph::Model;

/// Merges of one block alone whose drift is measured, in units of the step.
const LEVELS: [usize; 4] = [1, 2, 4, 8];
/// Number of Lagrange multipliers of the drift that are tried, by bisection.
const MULTIPLIERS: usize = 7;
/// Share of a block's time spent in the attention, before its merge; the MLP runs after the merge.
const ATTENTION_SHARE: f64 = 1.0 / 3.0;

/// A search for the number of tokens that each block merges.
pub(super) struct ScheduleSearch<'a> {
    pub tools: Tools<'a>,
    pub model: &'a Model,
    /// The plan, whose counts are searched.
    pub plan: &'a MergePlan,
    pub analysis: &'a TokenAnalysis,
    /// Number of samples in a timed run.
    pub batch: usize,
}

/// The best schedule.
pub(super) struct FoundSchedule {
    pub counts: Vec<usize>,
    pub measured: Quality,
}

/// The measured drift when one block alone merges `r` tokens.
#[derive(Clone, Copy)]
struct DriftLevel {
    r: usize,
    drift: f64,
}

impl ScheduleSearch<'_> {
    /// Returns the fastest schedule within the limits, which may merge nothing; `None` if no schedule is
    /// within the limits.
    ///
    /// Minimizes `time + λ·drift`, with a linear model of the time and the drift summed over blocks, for the
    /// smallest `λ` whose result is within the limits.
    pub fn run(&self, limits: QualityLimits) -> Result<Option<FoundSchedule>, PassError> {
        let count = self.tools.samples.map_or(0, |s| s.len());
        if count == 0 {
            return Err(PassError::refused_with(
                "`schedule=auto` needs samples",
                Hint::NeedsSamples { otherwise: None },
            ));
        }
        let held_out = HeldOut::new(self.tools, self.model, count.saturating_sub(HELD_OUT)..count)?;
        let all = self.analysis.blocks;
        let step = (self.analysis.tokens[0] / 32).max(1);
        // Merges of the last block have no effect if its other tokens are dropped.
        let drops = self.analysis.unread && self.plan.unread != UnreadTokens::Keep;
        let blocks = all - usize::from(drops);
        let (base, latency) = self.fit_latency(blocks, step)?;
        let drifts = self.drift_levels(&held_out, blocks, step)?;
        let drift = |counts: &[usize]| -> f64 {
            counts.iter().zip(&drifts).map(|(&r, levels)| interpolated(levels, r)).sum()
        };
        let cap = |counts: &[usize]| capped(counts, self.plan, self.analysis);
        let (mut low, mut high) = (-12.0_f64, 12.0_f64);
        let mut best = None;
        for _ in 0..MULTIPLIERS {
            let middle = f64::midpoint(low, high);
            let lambda = middle.exp();
            let value =
                |counts: &[usize]| latency.time(self.analysis, counts) / base + lambda * drift(counts);
            let counts = descend(&cap, &value, blocks, all, step);
            let measured = held_out.measure(&self.build(&counts)?)?;
            if limits.broken(&measured).is_none() {
                high = middle;
                best = Some(FoundSchedule { counts, measured });
            } else {
                low = middle;
            }
        }
        Ok(best)
    }

    /// Returns the model with these counts.
    fn build(&self, counts: &[usize]) -> Result<Model, PassError> {
        let plan = MergePlan { counts: counts.to_vec(), ..self.plan.clone() };
        merged_model(self.model, &plan, self.analysis)
            .map_err(|why: MergeDecline| PassError::refused(why.to_string()))
    }

    /// Fits the latency model to three timed schedules. Also returns the time without merges.
    fn fit_latency(&self, blocks: usize, step: usize) -> Result<(f64, LatencyModel), PassError> {
        let all = self.analysis.blocks;
        let uniform = |r: usize| {
            let counts: Vec<_> = (0..all).map(|b| if b < blocks { r } else { 0 }).collect();
            capped(&counts, self.plan, self.analysis)
        };
        let (few, many) = (uniform(step), uniform(4 * step));
        let models = [self.build(&vec![0; all])?, self.build(&few)?, self.build(&many)?];
        let times = latencies(self.tools, &models.each_ref(), self.batch)?;
        let times =
            times.ok_or_else(|| PassError::refused("`schedule=auto` needs an engine that measures time"))?;
        Ok((times[0], LatencyModel::fit(self.analysis, &times, [&few, &many])))
    }

    /// Measures the drift of merges in each block alone.
    fn drift_levels(
        &self,
        held_out: &HeldOut<'_>,
        blocks: usize,
        step: usize,
    ) -> Result<Vec<Vec<DriftLevel>>, PassError> {
        let level = |block: usize, level: usize| {
            let mut counts = vec![0; self.analysis.blocks];
            counts[block] = level * step;
            let counts = capped(&counts, self.plan, self.analysis);
            let drift = held_out.measure(&self.build(&counts)?)?.drift;
            Ok(DriftLevel { r: counts[block], drift })
        };
        (0..blocks).map(|block| LEVELS.iter().map(|&l| level(block, l)).collect()).collect()
    }
}

/// Greedy descent from no merges: applies the change of one block that decreases `value` the most, until none
/// does.
fn descend(
    cap: &dyn Fn(&[usize]) -> Vec<usize>,
    value: &dyn Fn(&[usize]) -> f64,
    blocks: usize,
    all: usize,
    step: usize,
) -> Vec<usize> {
    let mut counts = vec![0; all];
    let mut current = value(&counts);
    loop {
        let mut best: Option<(Vec<usize>, f64)> = None;
        for block in 0..blocks {
            for change in [1, 2, 4, -1] {
                let mut other = counts.clone();
                other[block] = match usize::try_from(change) {
                    Ok(up) => other[block] + up * step,
                    Err(_) => other[block].saturating_sub(step),
                };
                let other = cap(&other);
                let v = value(&other);
                if v < best.as_ref().map_or(current, |b| b.1) - 1e-9 {
                    best = Some((other, v));
                }
            }
        }
        let Some((better, v)) = best else { return counts };
        (counts, current) = (better, v);
    }
}

/// Returns the drift at `r`, interpolated linearly between levels; proportional beyond the last one.
fn interpolated(levels: &[DriftLevel], r: usize) -> f64 {
    let mut before = DriftLevel { r: 0, drift: 0.0 };
    for &level in levels {
        if r <= level.r {
            let span = (level.r - before.r).max(1) as f64;
            return before.drift + (level.drift - before.drift) * (r - before.r) as f64 / span;
        }
        before = level;
    }
    before.drift * r as f64 / before.r.max(1) as f64
}

/// The latency of a model as a linear function of its tokens and merges.
struct LatencyModel {
    /// Seconds without merges.
    base: f64,
    /// Seconds per token and block.
    token: f64,
    /// Seconds per merge.
    merge: f64,
}

impl LatencyModel {
    /// Fits the model to the times without merges, with few, and with many merged tokens.
    fn fit(analysis: &TokenAnalysis, times: &[f64], counts: [&[usize]; 2]) -> Self {
        let savings = counts.map(|c| Savings::of(analysis, c));
        let (tokens, merges) = (savings.map(|s| s.tokens), savings.map(|s| s.merges));
        let saved = [times[0] - times[1], times[0] - times[2]];
        // saved = token·tokens − merge·merges
        let det = tokens[1] * merges[0] - tokens[0] * merges[1];
        let (mut token, mut merge) = (saved[1] / tokens[1].max(1.0), 0.0);
        if det.abs() > 1e-9 {
            let solved = (saved[1] * merges[0] - saved[0] * merges[1]) / det;
            let each = (solved * tokens[0] - saved[0]) / merges[0].max(1.0);
            if solved > 0.0 && each >= 0.0 {
                (token, merge) = (solved, each);
            }
        }
        token = token.max(0.0);
        Self { base: times[0], token, merge }
    }

    fn time(&self, analysis: &TokenAnalysis, counts: &[usize]) -> f64 {
        let Savings { tokens, merges } = Savings::of(analysis, counts);
        self.base - self.token * tokens + self.merge * merges
    }
}

/// The tokens that merges save, summed over all blocks, and the number of merges.
#[derive(Clone, Copy)]
struct Savings {
    tokens: f64,
    merges: f64,
}

impl Savings {
    fn of(analysis: &TokenAnalysis, counts: &[usize]) -> Self {
        let all = analysis.tokens[0];
        let (mut now, mut tokens, mut merges) = (all, 0.0, 0.0);
        for &r in counts {
            tokens += ATTENTION_SHARE * (all - now) as f64;
            now -= r.min(now);
            tokens += (1.0 - ATTENTION_SHARE) * (all - now) as f64;
            merges += f64::from(u8::from(r > 0));
        }
        Self { tokens, merges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analysis(blocks: usize, tokens: usize) -> TokenAnalysis {
        TokenAnalysis { blocks, tokens: vec![tokens; blocks], protected: 1, unread: true }
    }

    #[test]
    fn fits_the_cost_of_a_token_and_a_merge() {
        let analysis = analysis(4, 65);
        let time = |counts: &[usize]| {
            let Savings { tokens, merges } = Savings::of(&analysis, counts);
            3.0 - 0.01 * tokens + 0.05 * merges
        };
        let (few, many) = ([2, 2, 2, 0], [8, 8, 8, 0]);
        let latency = LatencyModel::fit(&analysis, &[time(&[0; 4]), time(&few), time(&many)], [&few, &many]);
        for counts in [[0; 4], few, many, [16, 0, 0, 0], [0, 0, 4, 4]] {
            assert!((latency.time(&analysis, &counts) - time(&counts)).abs() < 1e-9, "{counts:?}");
        }
    }

    #[test]
    fn merges_where_the_saved_time_outweighs_the_drift() {
        let analysis = analysis(3, 65);
        let latency = LatencyModel { base: 3.0, token: 0.01, merge: 0.1 };
        let cap = |counts: &[usize]| counts.iter().map(|&r| r.min(16)).collect::<Vec<_>>();
        // Without drift tokens are merged as early as possible; the last merge saves too little time.
        let free = descend(&cap, &|c| latency.time(&analysis, c), 3, 3, 2);
        assert_eq!((free[0], free[2] < 16), (16, true), "{free:?}");
        // A large drift of the first block prevents its merge.
        let penalized = |c: &[usize]| latency.time(&analysis, c) + c[0] as f64;
        assert_eq!(descend(&cap, &penalized, 3, 3, 2)[0], 0);
        let levels = [DriftLevel { r: 2, drift: 0.1 }, DriftLevel { r: 4, drift: 0.5 }];
        for (r, drift) in [(1, 0.05), (3, 0.3), (8, 1.0)] {
            assert!((interpolated(&levels, r) - drift).abs() < 1e-12, "{r}");
        }
    }
}
