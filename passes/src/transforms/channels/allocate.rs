//! How many units each group keeps: the least summed loss that meets a budget.

use crate::analysis::groups::cost::CostModel;
use std::collections::BTreeMap;

/// What a group may keep, and the loss of each choice.
#[derive(Clone, Debug)]
pub struct Curve {
    /// The group.
    pub group: usize,
    /// Units it has.
    pub width: usize,
    /// Losses by units kept, measured ones; all units cost nothing.
    pub losses: BTreeMap<usize, f64>,
    /// What may be kept, ascending: none below the least that was measured, and all.
    pub choices: Vec<usize>,
}

impl Curve {
    /// The loss of keeping so many units: linear between what was measured. (In the logarithm small losses would look
    /// smaller than they are.)
    pub fn loss(&self, kept: usize) -> f64 {
        let below = self.losses.range(..=kept).next_back();
        let above = self.losses.range(kept..).next();
        match (below, above) {
            (Some((&a, &x)), Some((&b, &y))) if b > a => x + (y - x) * (kept - a) as f64 / (b - a) as f64,
            (Some((_, &x)), _) | (None, Some((_, &x))) => x,
            (None, None) => 0.0,
        }
    }

    /// The least it may keep.
    pub fn least(&self) -> usize {
        self.choices.first().copied().unwrap_or(self.width)
    }

    /// The choice nearest to a count.
    fn nearest(&self, wanted: f64) -> usize {
        let far = |k: &&usize| (**k as f64 - wanted).abs();
        self.choices.iter().min_by(|a, b| far(a).total_cmp(&far(b))).copied().unwrap_or(self.width)
    }
}

/// Units kept, by group.
pub type Counts = BTreeMap<usize, usize>;

/// The cost when groups keep so many units.
pub fn cost_of(model: &CostModel, curves: &[Curve], counts: &Counts) -> f64 {
    let width = |g: usize| curves.iter().find(|c| c.group == g).map_or(0, |c| c.width);
    model.at(&|g| counts.get(&g).map_or(0, |kept| width(g) - kept))
}

/// The summed loss.
pub fn loss_of(curves: &[Curve], counts: &Counts) -> f64 {
    curves.iter().map(|c| c.loss(counts.get(&c.group).copied().unwrap_or(c.width))).sum()
}

/// Every group keeps the same share, the largest that meets the budget.
pub fn uniform(model: &CostModel, curves: &[Curve], budget: f64) -> Option<Counts> {
    let at = |share: f64| -> Counts {
        curves.iter().map(|c| (c.group, c.nearest(c.width as f64 * share))).collect()
    };
    let fits = |share: f64| cost_of(model, curves, &at(share)) <= budget;
    if !fits(0.0) {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if fits(middle) { low = middle } else { high = middle }
    }
    Some(at(low))
}

/// The least loss within the budget: by dynamic programming if costs add up over groups, else by the better of
/// the greedy walk and a programme on costs taken at its result.
pub fn global(model: &CostModel, curves: &[Curve], budget: f64) -> Option<Counts> {
    let groups: Vec<_> = curves.iter().map(|c| c.group).collect();
    if model.is_separable(&groups) {
        let full = Counts::new();
        return knapsack(model, curves, budget, &full);
    }
    let mut best = greedy(model, curves, budget)?;
    // The others' sizes weigh on what a group saves, so the programme is solved again where the last one led.
    for _ in 0..4 {
        let Some(next) = knapsack(model, curves, budget, &best) else { break };
        let next = descend(model, curves, budget, next);
        let Some(next) = next.filter(|n| loss_of(curves, n) < loss_of(curves, &best) * (1.0 - 1e-9)) else {
            break;
        };
        best = next;
    }
    Some(best)
}

/// Repeatedly the step that loses least for what it saves.
fn greedy(model: &CostModel, curves: &[Curve], budget: f64) -> Option<Counts> {
    let full = curves.iter().map(|c| (c.group, c.width)).collect();
    descend(model, curves, budget, full)
}

fn descend(model: &CostModel, curves: &[Curve], budget: f64, mut counts: Counts) -> Option<Counts> {
    let parts: Vec<_> = curves.iter().map(|c| model.of(c.group)).collect();
    while cost_of(model, curves, &counts) > budget {
        let mut best: Option<(f64, usize, usize)> = None;
        for (curve, part) in curves.iter().zip(&parts) {
            let now = counts[&curve.group];
            let before = cost_of(part, curves, &counts);
            let mut trial = counts.clone();
            for kept in curve.choices.iter().copied().filter(|&k| k < now) {
                trial.insert(curve.group, kept);
                let saved = before - cost_of(part, curves, &trial);
                let lost = (curve.loss(kept) - curve.loss(now)).max(1e-12);
                if saved > 0.0 && best.is_none_or(|(rate, ..)| lost / saved < rate) {
                    best = Some((lost / saved, curve.group, kept));
                }
            }
        }
        let (_, group, kept) = best?;
        counts.insert(group, kept);
    }
    Some(counts)
}

/// Bins of the budget.
const BINS: usize = 2000;

/// Dynamic programming over binned savings; what a group saves is taken with the others at `around`.
fn knapsack(model: &CostModel, curves: &[Curve], budget: f64, around: &Counts) -> Option<Counts> {
    let whole = cost_of(model, curves, around);
    // Costs of each choice relative to all of this group's units, with the others as they are.
    let mut tables = vec![];
    let mut base = whole;
    for curve in curves {
        let part = model.of(curve.group);
        let at = |kept: usize| {
            let mut counts = around.clone();
            counts.insert(curve.group, kept);
            cost_of(&part, curves, &counts)
        };
        let (now, least) = (at(around.get(&curve.group).copied().unwrap_or(curve.width)), at(curve.least()));
        base -= now - least;
        let choices = curve.choices.iter().copied().map(|k| (k, at(k) - least, curve.loss(k)));
        tables.push(choices.collect::<Vec<_>>());
    }
    let room = budget - base;
    if room < 0.0 {
        return None;
    }
    let unit = room / BINS as f64;
    let bins = |cost: f64| {
        if unit > 0.0 {
            (cost / unit - 1e-9).ceil().max(0.0) as usize
        } else if cost > 0.0 {
            BINS + 1
        } else {
            0
        }
    };
    let mut loss = vec![0.0_f64; BINS + 1];
    let mut taken: Vec<Vec<usize>> = vec![];
    for table in &tables {
        let mut next = vec![f64::INFINITY; BINS + 1];
        let mut choice = vec![0; BINS + 1];
        for (i, &(_, cost, lost)) in table.iter().enumerate() {
            let need = bins(cost);
            for bin in need..=BINS {
                let total = loss[bin - need] + lost;
                if total < next[bin] {
                    (next[bin], choice[bin]) = (total, i);
                }
            }
        }
        loss = next;
        taken.push(choice);
    }
    if loss[BINS].is_infinite() && loss[BINS] > 0.0 {
        return None;
    }
    let (mut bin, mut counts) = (BINS, Counts::new());
    for ((curve, table), choice) in curves.iter().zip(&tables).zip(&taken).rev() {
        let (kept, cost, _) = table[choice[bin]];
        counts.insert(curve.group, kept);
        bin -= bins(cost).min(bin);
    }
    Some(counts)
}
