//! How many tokens each block merges: as told, as a method shares them out, or as wins most time within limits.

use super::{
    Method,
    emit::{furthest, most},
    merge::Plan,
    race::race,
    refusal::Refusal,
    survey::Survey,
};
use crate::analysis::samples::HELD_OUT;
use crate::{
    analysis::evaluation::{HeldOut, Quality, QualityLimits},
    framework::{Hint, PassError, Tools},
};
use pare_graph::Model;

/// Numbers of tokens that are tried in a block alone, in steps.
const LEVELS: [usize; 4] = [1, 2, 4, 8];
/// Prices of drift that are tried, by bisection.
const PRICES: usize = 7;
/// Share of a block's time that goes with the tokens before its merge: attention. The MLP goes with those after.
const BEFORE: f64 = 1.0 / 3.0;

/// Tokens that each block merges, of what one number or a list asks for, as the method shares them out.
pub(super) fn share_out(method: Method, r: &[usize], blocks: &[usize], survey: &Survey) -> Vec<usize> {
    let all = survey.blocks;
    let mut counts = vec![0; all];
    let of = |i: usize| if r.len() == 1 { r[0] } else { r.get(i).copied().unwrap_or(0) };
    let chosen: Vec<usize> = match (method, blocks.is_empty()) {
        (_, false) => blocks.to_vec(),
        // A quarter, a half, three quarters through the model.
        (Method::Ppt, true) => [1, 2, 3].iter().map(|q| q * all / 4).collect(),
        _ => (0..all).collect(),
    };
    if method == Method::Folder && blocks.is_empty() && r.len() == 1 {
        // The budget of all blocks, in the last three as 1 : 0 : 10.
        let budget = r[0] * all;
        let late = budget * 10 / 11;
        counts[all - 1] = late;
        if all >= 3 {
            counts[all - 3] = budget - late;
        }
        return counts;
    }
    for (i, block) in chosen.into_iter().enumerate() {
        if let Some(count) = counts.get_mut(block) {
            *count = of(if r.len() == all && blocks.is_empty() { block } else { i });
        }
    }
    counts
}

/// What was found, and the time it was predicted to take.
pub(super) struct Found {
    pub counts: Vec<usize>,
    pub measured: Quality,
}

/// The model after a plan with other counts.
pub(super) type Build<'b> = dyn Fn(&[usize]) -> Result<Model, Refusal> + 'b;

/// The counts that win most time within the limits, perhaps none at all; `None` if even these break the limits.
pub(super) fn search(
    tools: Tools<'_>,
    model: &Model,
    plan: &Plan,
    survey: &Survey,
    limits: &QualityLimits,
    batch: usize,
    build: &Build<'_>,
) -> Result<Option<Found>, PassError> {
    let refused = |e: Refusal| PassError::refused(e.to_string());
    let count = tools.samples.map_or(0, |s| s.len());
    if count == 0 {
        return Err(PassError::refused_with(
            "`schedule=auto` needs samples",
            Hint::NeedsSamples { otherwise: None },
        ));
    }
    let trial = HeldOut::new(tools, model, count.saturating_sub(HELD_OUT)..count)?;
    let step = (survey.tokens[0] / 32).max(1);
    let cap = |counts: &[usize]| capped(counts, plan, survey);
    // Blocks whose merges matter: behind the last one nobody may read.
    let blocks = survey.blocks - usize::from(survey.unread && plan.drop_unread);

    // Three times say what a token and what a merge cost.
    let uniform =
        |r: usize| cap(&(0..survey.blocks).map(|b| if b < blocks { r } else { 0 }).collect::<Vec<_>>());
    let (few, many) = (uniform(step), uniform(4 * step));
    let (none, few_model, many_model) = (
        build(&vec![0; survey.blocks]).map_err(refused)?,
        build(&few).map_err(refused)?,
        build(&many).map_err(refused)?,
    );
    let times = race(tools, &[&none, &few_model, &many_model], batch)?;
    let times =
        times.ok_or_else(|| PassError::refused("`schedule=auto` needs an engine that measures time"))?;
    let clock = Clock::fit(survey, &times, [&few, &many]);

    // What each block costs alone.
    let mut drifts = vec![vec![]; blocks];
    for (block, drifts) in drifts.iter_mut().enumerate() {
        for level in LEVELS {
            let mut counts = vec![0; survey.blocks];
            counts[block] = level * step;
            let counts = cap(&counts);
            let candidate = build(&counts).map_err(refused)?;
            drifts.push((counts[block], trial.measure(&candidate)?.drift));
        }
    }
    let drift = |counts: &[usize]| -> f64 {
        counts.iter().zip(&drifts).map(|(&r, levels)| interpolated(levels, r)).sum()
    };

    // The cheapest price of drift that keeps the limits.
    let (mut low, mut high) = (-12.0_f64, 12.0_f64);
    let mut best: Option<Found> = None;
    for _ in 0..PRICES {
        let price = f64::midpoint(low, high).exp();
        let value = |counts: &[usize]| clock.time(survey, counts) / times[0] + price * drift(counts);
        let counts = descend(&cap, &value, blocks, survey.blocks, step);
        let measured = trial.measure(&build(&counts).map_err(refused)?)?;
        if limits.broken(&measured).is_none() {
            high = f64::midpoint(low, high);
            best = Some(Found { counts, measured });
        } else {
            low = f64::midpoint(low, high);
        }
    }
    Ok(best)
}

/// Counts that tokens allow.
pub(super) fn capped(counts: &[usize], plan: &Plan, survey: &Survey) -> Vec<usize> {
    let mut now = survey.tokens[0];
    let limit = |now: usize| match plan.method {
        Method::Folder => furthest(now, survey.protected),
        _ => most(now, survey.protected),
    };
    let mut take = |&r: &usize| {
        let r = r.min(limit(now));
        now -= r;
        r
    };
    counts.iter().map(&mut take).collect()
}

/// From no merges on, the change of one block that helps most, until none helps.
fn descend(
    cap: &dyn Fn(&[usize]) -> Vec<usize>,
    value: &dyn Fn(&[usize]) -> f64,
    blocks: usize,
    all: usize,
    step: usize,
) -> Vec<usize> {
    let mut counts = vec![0; all];
    let mut now = value(&counts);
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
                if v < best.as_ref().map_or(now, |b| b.1) - 1e-9 {
                    best = Some((other, v));
                }
            }
        }
        let Some((better, v)) = best else { return counts };
        (counts, now) = (better, v);
    }
}

/// A drift between those that were measured; beyond the last one in proportion.
fn interpolated(levels: &[(usize, f64)], r: usize) -> f64 {
    let mut before = (0, 0.0);
    for &level in levels {
        if r <= level.0 {
            let span = (level.0 - before.0).max(1) as f64;
            return before.1 + (level.1 - before.1) * (r - before.0) as f64 / span;
        }
        before = level;
    }
    before.1 * r as f64 / before.0.max(1) as f64
}

/// The time of a model by its tokens and merges.
struct Clock {
    none: f64,
    token: f64,
    merge: f64,
}

impl Clock {
    /// From the times without merges, with few and with many tokens merged in each block.
    fn fit(survey: &Survey, times: &[f64], counts: [&[usize]; 2]) -> Self {
        let work: Vec<_> = counts.iter().map(|c| work(survey, c)).collect();
        let saved: Vec<_> = work.iter().map(|w| w.0).collect();
        let merges: Vec<_> = work.iter().map(|w| w.1).collect();
        let won = [times[0] - times[1], times[0] - times[2]];
        // won = token·saved − merge·merges
        let det = saved[1] * merges[0] - saved[0] * merges[1];
        let (mut token, mut merge) = (won[1] / saved[1].max(1.0), 0.0);
        if det.abs() > 1e-9 {
            let solved = (won[1] * merges[0] - won[0] * merges[1]) / det;
            let each = (solved * saved[0] - won[0]) / merges[0].max(1.0);
            if solved > 0.0 && each >= 0.0 {
                (token, merge) = (solved, each);
            }
        }
        token = token.max(0.0);
        Self { none: times[0], token, merge }
    }

    fn time(&self, survey: &Survey, counts: &[usize]) -> f64 {
        let (saved, merges) = work(survey, counts);
        self.none - self.token * saved + self.merge * merges
    }
}

/// Tokens saved over all blocks, and merges.
fn work(survey: &Survey, counts: &[usize]) -> (f64, f64) {
    let all = survey.tokens[0];
    let (mut now, mut saved, mut merges) = (all, 0.0, 0.0);
    for &r in counts {
        saved += BEFORE * (all - now) as f64;
        now -= r.min(now);
        saved += (1.0 - BEFORE) * (all - now) as f64;
        merges += f64::from(u8::from(r > 0));
    }
    (saved, merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(blocks: usize, tokens: usize) -> Survey {
        Survey { blocks, tokens: vec![tokens; blocks], protected: 1, unread: true }
    }

    #[test]
    fn each_method_shares_tokens_out_in_its_own_way() {
        let counts =
            |method, r: &[usize], blocks: &[usize], all| share_out(method, r, blocks, &survey(all, 65));
        assert_eq!(counts(Method::Tome, &[8], &[], 4), [8, 8, 8, 8]);
        assert_eq!(counts(Method::Tome, &[4, 3, 2, 1], &[], 4), [4, 3, 2, 1]);
        assert_eq!(counts(Method::Tome, &[4, 3], &[1, 3], 4), [0, 4, 0, 3]);
        // Of 8 tokens 10 in 11 in the last block, the others two blocks before.
        assert_eq!(counts(Method::Folder, &[2], &[], 4), [0, 1, 0, 7]);
        let ppt = counts(Method::Ppt, &[50], &[], 12);
        assert_eq!((ppt[3], ppt[6], ppt[9], ppt.iter().sum::<usize>()), (50, 50, 50, 150));
    }

    #[test]
    fn the_clock_recovers_what_a_token_and_a_merge_cost() {
        let survey = survey(4, 65);
        let time = |counts: &[usize]| {
            let (saved, merges) = work(&survey, counts);
            3.0 - 0.01 * saved + 0.05 * merges
        };
        let (few, many) = ([2, 2, 2, 0], [8, 8, 8, 0]);
        let clock = Clock::fit(&survey, &[time(&[0; 4]), time(&few), time(&many)], [&few, &many]);
        for counts in [[0; 4], few, many, [16, 0, 0, 0], [0, 0, 4, 4]] {
            assert!((clock.time(&survey, &counts) - time(&counts)).abs() < 1e-9, "{counts:?}");
        }
    }

    #[test]
    fn a_block_merges_where_it_wins_more_time_than_drift_costs() {
        let survey = survey(3, 65);
        let clock = Clock { none: 3.0, token: 0.01, merge: 0.1 };
        let cap = |counts: &[usize]| counts.iter().map(|&r| r.min(16)).collect::<Vec<_>>();
        // Free of drift all merge as early as they can; the last merge wins too little.
        let free = descend(&cap, &|c| clock.time(&survey, c), 3, 3, 2);
        assert_eq!((free[0], free[2] < 16), (16, true), "{free:?}");
        // Early merges that cost too much stay away.
        let dear = |c: &[usize]| clock.time(&survey, c) + c[0] as f64;
        assert_eq!(descend(&cap, &dear, 3, 3, 2)[0], 0);
        for (r, drift) in [(1, 0.05), (3, 0.3), (8, 1.0)] {
            assert!((interpolated(&[(2, 0.1), (4, 0.5)], r) - drift).abs() < 1e-12, "{r}");
        }
    }
}
