//! Allocation: the number of units that each group keeps, minimizing the summed loss within a cost budget.

use crate::analysis::groups::cost::CostModel;
use std::collections::BTreeMap;

/// The loss of a group as a function of the number of units it keeps.
#[derive(Clone, Debug)]
pub struct LossCurve {
    /// Index of the group.
    pub group: usize,
    /// Number of units of the group.
    pub width: usize,
    /// Measured losses by number of kept units; 0 at `width`.
    pub losses: BTreeMap<usize, f64>,
    /// Permitted numbers of kept units, ascending: none below the smallest measured one; includes `width`.
    pub choices: Vec<usize>,
}

impl LossCurve {
    /// Returns the loss of keeping `kept` units, interpolated linearly between measurements. (Logarithmic
    /// interpolation would underestimate small losses.)
    pub fn loss(&self, kept: usize) -> f64 {
        let below = self.losses.range(..=kept).next_back();
        let above = self.losses.range(kept..).next();
        match (below, above) {
            (Some((&a, &x)), Some((&b, &y))) if b > a => x + (y - x) * (kept - a) as f64 / (b - a) as f64,
            (Some((_, &x)), _) | (None, Some((_, &x))) => x,
            (None, None) => 0.0,
        }
    }

    /// Returns the smallest permitted number of kept units.
    pub fn least(&self) -> usize {
        self.choices.first().copied().unwrap_or(self.width)
    }

    /// Returns the permitted number nearest to `wanted`.
    fn nearest(&self, wanted: f64) -> usize {
        let distance = |k: &&usize| (**k as f64 - wanted).abs();
        self.choices.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).copied().unwrap_or(self.width)
    }
}

/// Number of kept units by group.
pub type Allocation = BTreeMap<usize, usize>;

/// Returns the cost of an allocation.
pub fn cost_of(model: &CostModel, curves: &[LossCurve], counts: &Allocation) -> f64 {
    let width = |g: usize| curves.iter().find(|c| c.group == g).map_or(0, |c| c.width);
    model.at(&|g| counts.get(&g).map_or(0, |kept| width(g) - kept))
}

/// Returns the summed loss of an allocation.
pub fn loss_of(curves: &[LossCurve], counts: &Allocation) -> f64 {
    curves.iter().map(|c| c.loss(counts.get(&c.group).copied().unwrap_or(c.width))).sum()
}

/// Returns the allocation in which every group keeps the same share of its units, the largest within the
/// budget.
pub fn uniform(model: &CostModel, curves: &[LossCurve], budget: f64) -> Option<Allocation> {
    let at = |share: f64| -> Allocation {
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

/// Returns the allocation of least loss within the budget: by dynamic programming if costs are separable,
/// otherwise the better of greedy descent and dynamic programming on costs linearized around its result.
pub fn global(model: &CostModel, curves: &[LossCurve], budget: f64) -> Option<Allocation> {
    let groups: Vec<_> = curves.iter().map(|c| c.group).collect();
    if model.is_separable(&groups) {
        let full = Allocation::new();
        return knapsack(model, curves, budget, &full);
    }
    let mut best = greedy(model, curves, budget)?;
    // Savings of a group depend on the sizes of the others, so the linearization is repeated at each
    // solution.
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

/// Starts from the full widths and repeatedly takes the step with the least loss per saved cost.
fn greedy(model: &CostModel, curves: &[LossCurve], budget: f64) -> Option<Allocation> {
    let full = curves.iter().map(|c| (c.group, c.width)).collect();
    descend(model, curves, budget, full)
}

fn descend(
    model: &CostModel,
    curves: &[LossCurve],
    budget: f64,
    mut counts: Allocation,
) -> Option<Allocation> {
    let parts: Vec<_> = curves.iter().map(|c| model.of(c.group)).collect();
    while cost_of(model, curves, &counts) > budget {
        let mut best: Option<(f64, usize, usize)> = None;
        for (curve, part) in curves.iter().zip(&parts) {
            let now = counts[&curve.group];
            let before = cost_of(part, curves, &counts);
            let mut candidate = counts.clone();
            for kept in curve.choices.iter().copied().filter(|&k| k < now) {
                candidate.insert(curve.group, kept);
                let saved = before - cost_of(part, curves, &candidate);
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

/// Number of bins that the budget is divided into.
const BINS: usize = 2000;

/// Solves the multiple-choice knapsack over binned costs; the cost of each group is taken with the others at
/// `around`.
fn knapsack(model: &CostModel, curves: &[LossCurve], budget: f64, around: &Allocation) -> Option<Allocation> {
    // Costs of each choice relative to the cheapest choice of its group.
    let mut tables = vec![];
    let mut base = cost_of(model, curves, around);
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
    let available = budget - base;
    if available < 0.0 {
        return None;
    }
    let unit = available / BINS as f64;
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
    let (mut bin, mut counts) = (BINS, Allocation::new());
    for ((curve, table), choice) in curves.iter().zip(&tables).zip(&taken).rev() {
        let (kept, cost, _) = table[choice[bin]];
        counts.insert(curve.group, kept);
        bin -= bins(cost).min(bin);
    }
    Some(counts)
}
