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
    let removed = |c: &LossCurve| Some((c.group, c.width - counts.get(&c.group)?));
    let removed: BTreeMap<_, _> = curves.iter().filter_map(removed).collect();
    model.at(&|g| removed.get(&g).copied().unwrap_or(0))
}

/// Returns the summed loss of an allocation.
pub fn loss_of(curves: &[LossCurve], counts: &Allocation) -> f64 {
    curves.iter().map(|c| c.loss(counts.get(&c.group).copied().unwrap_or(c.width))).sum()
}

/// Returns the allocation in which every group keeps the same share of its units, the largest within the
/// budget. Choices are coarse, and groups of equal width have the same, so many groups may pass from one choice to
/// the next at the same share; the remaining budget is used as in [`refilled`].
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
    Some(refilled(model, curves, budget, at(low)))
}

/// Spends the remaining budget: of the groups whose next larger choice fits, the one with the greatest loss gets
/// its next choice, until none fits.
fn refilled(model: &CostModel, curves: &[LossCurve], budget: f64, mut counts: Allocation) -> Allocation {
    let next = |curve: &LossCurve, counts: &Allocation| {
        let now = *counts.get(&curve.group)?;
        let larger = curve.choices.iter().copied().find(|&k| k > now)?;
        let mut candidate = counts.clone();
        candidate.insert(curve.group, larger);
        (cost_of(model, curves, &candidate) <= budget).then(|| (curve.loss(now), candidate))
    };
    // The first of equals.
    let greater = |a: (f64, Allocation), b: (f64, Allocation)| if b.0 > a.0 { b } else { a };
    while let Some((_, larger)) = curves.iter().filter_map(|c| next(c, &counts)).reduce(greater) {
        counts = larger;
    }
    counts
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::groups::cost::CostTable;

    /// Groups of the given widths that keep multiples of 16, with costs proportional to their widths.
    fn groups(widths: &[usize], losses: impl Fn(usize) -> f64) -> (CostModel, Vec<LossCurve>) {
        let choices = |width: usize| (1..=width / 16).map(|i| 16 * i).collect::<Vec<_>>();
        let table = |(group, &width): (usize, &usize)| {
            let costs = choices(width).into_iter().map(|k| (k, k as f64)).collect();
            (group, CostTable { width, costs })
        };
        let curve = |(group, &width): (usize, &usize)| LossCurve {
            group,
            width,
            losses: [(16, losses(group)), (width, 0.0)].into(),
            choices: choices(width),
        };
        let total = widths.iter().sum::<usize>() as f64;
        let model = CostModel::tables(total, &widths.iter().enumerate().map(table).collect());
        (model, widths.iter().enumerate().map(curve).collect())
    }

    #[test]
    fn uniform_allocation_uses_the_budget() {
        for widths in [&[64; 6][..], &[32, 64, 64, 128], &[16, 16, 96]] {
            let (model, curves) = groups(widths, |_| 1.0);
            let (total, least) = (model.at(&|_| 0), 16.0 * widths.len() as f64);
            for share in [0.9, 0.8, 0.667, 0.5] {
                let budget = total * share;
                let cost = uniform(&model, &curves, budget).map(|counts| cost_of(&model, &curves, &counts));
                match cost {
                    Some(cost) => {
                        assert!(cost <= budget && cost > budget - 16.0, "{widths:?} {share} {cost}");
                    }
                    None => assert!(budget < least),
                }
            }
        }
    }

    #[test]
    fn groups_with_the_greatest_loss_are_refilled_first() {
        let (model, curves) = groups(&[64; 4], |group| [0.3, 0.1, 0.7, 0.2][group]);
        // All groups at 48 cost 192; two steps of 16 remain.
        let counts = uniform(&model, &curves, 230.0).unwrap();
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [64, 48, 64, 48]);
    }
}
