//! Pruning to a target, or as far as limits allow.

use super::{
    PruneOptions, PruneRepair, PruneScope,
    curves::Choices,
    search::{Candidate, CostOf, PruneSearch, RepairEffort},
    select::IN_FUNCTIONS,
};
use crate::{
    analysis::{
        evaluation::{HeldOut, QualityLimits},
        groups::cost::CostModel,
    },
    framework::{Context, PassError},
    transforms::channels::{
        allocate::{Allocation, LossCurve, cost_of, global, loss_of, uniform},
        local_repair::LocalRepair,
    },
};
use pare_graph::Model;

/// The target of a pruning pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PruneTarget {
    /// Share of the multiply-accumulates to keep.
    Macs(f64),
    /// Share of the parameters to keep.
    Params(f64),
    /// Share of the units to remove.
    Ratio(f64),
    /// Share of the latency to keep.
    Latency(f64),
}

/// MAC budget, of one run over all samples, below which the search runs in two stages.
const TWO_STAGE_BUDGET: f64 = 3e11;
/// Share of the cost above which one stage suffices: the units and curves of the original hold for a model that is near.
const NEAR: f64 = 0.7;
/// Number of bisections towards a limit, to 2⁻⁶ of the removable cost.
const BISECTIONS: usize = 6;

impl PruneTarget {
    /// Returns the target of the options, if one is given.
    pub fn of(options: &PruneOptions) -> Option<Self> {
        let targets = [
            options.macs.map(Self::Macs),
            options.params.map(Self::Params),
            options.ratio.map(Self::Ratio),
            options.latency.map(Self::Latency),
        ];
        targets.into_iter().flatten().next()
    }
}

impl PruneSearch<'_> {
    /// Returns the model that meets the target, or without one the smallest within the limits.
    pub fn find(&mut self, target: Option<PruneTarget>, cx: &mut Context<'_>) -> Result<Model, PassError> {
        match target {
            Some(target) => self.reach(target, cx),
            None => self.reach_limits(cx),
        }
    }

    /// Returns the model that meets the target, and the limits if there are any.
    fn reach(&mut self, target: PruneTarget, cx: &mut Context<'_>) -> Result<Model, PassError> {
        let result = match target {
            PruneTarget::Latency(share) => self.reach_latency(share, cx)?,
            PruneTarget::Macs(share) => self.reach_cost(CostModel::macs, share, cx)?,
            PruneTarget::Params(share) => self.reach_cost(CostModel::params, share, cx)?,
            PruneTarget::Ratio(ratio) if self.scope == PruneScope::Uniform => self.reach_ratio(ratio, cx)?,
            PruneTarget::Ratio(ratio) => {
                let macs = self.macs();
                let removed = |g: usize| {
                    let selected = self.subject.selection.groups.contains(&g);
                    if selected { (self.width(g) as f64 * ratio) as usize } else { 0 }
                };
                let share = macs.at(&removed) * (1.0 + 1e-9) / macs.at(&|_| 0);
                self.reach_cost(CostModel::macs, share, cx)?
            }
        };
        let limits = self.options.limits();
        if limits.any()
            && let Some(why) = self.broken_limit(&result.model, limits, cx)?
        {
            return Err(PassError::refused_with(why, "use a larger share, or a looser limit"));
        }
        self.report(&result, cx);
        if matches!(target, PruneTarget::Params(_)) {
            cx.share("parameters", self.remaining_cost(CostModel::params, &result.keep));
        }
        Ok(result.model)
    }

    pub fn macs(&self) -> CostModel {
        self.cost_of_subject(CostModel::macs)
    }

    /// Builds the candidate that keeps a share of a cost.
    fn reach_cost(&mut self, cost: CostOf, share: f64, cx: &mut Context<'_>) -> Result<Candidate, PassError> {
        let mut model = self.cost_of_subject(cost);
        let total = model.at(&|_| 0);
        let budget = share * total;
        let mut curves = self.curves_within(&model, budget, cx)?;
        let mut allocation = self.allocate(&model, &curves, budget)?;
        if share < NEAR && self.may_run_in_two_stages() {
            // Prune half-way first; units and curves are then measured again on the result.
            let halfway = self.allocate(&model, &curves, (total * budget).sqrt())?;
            let candidate = self.build(&halfway, RepairEffort::Draft, cx)?;
            self.advance(candidate, cx)?;
            model = self.cost_of_subject(cost);
            curves = self.curves_within(&model, budget, cx)?;
            allocation = self.allocate(&model, &curves, budget)?;
        }
        if self.scope == PruneScope::Global {
            cx.detail("drift expected", loss_of(&curves, &allocation));
        }
        self.build_checked(&allocation, cx)
    }

    /// Builds a result; refuses one that is slower than the original.
    fn build_checked(
        &mut self,
        allocation: &Allocation,
        cx: &mut Context<'_>,
    ) -> Result<Candidate, PassError> {
        self.check_speed(&self.cut(&self.keep(allocation), LocalRepair::None)?, cx)?;
        self.build(allocation, RepairEffort::Full, cx)
    }

    /// Builds the candidate in which every group loses the same share of its units, up to the step.
    fn reach_ratio(&mut self, ratio: f64, cx: &mut Context<'_>) -> Result<Candidate, PassError> {
        let kept = |width: usize, choices: &[usize]| {
            let wanted = width - (width as f64 * ratio) as usize;
            choices.iter().copied().find(|&kept| kept >= wanted).unwrap_or(width)
        };
        let removes = |search: &Self, choices: &Choices| {
            choices.iter().any(|(&g, c)| kept(search.width(g), c) < search.width(g))
        };
        let choices = self.choices_that(removes, cx)?;
        let allocation = choices.iter().map(|(&g, c)| (g, kept(self.width(g), c))).collect();
        self.build_checked(&allocation, cx)
    }

    /// Returns whether the search may run in two stages: candidates are compared by their outputs, and the
    /// samples run within the MAC budget.
    fn may_run_in_two_stages(&self) -> bool {
        let runs = self.macs().at(&|_| 0) * (self.split.fit.len() + self.split.held_out.len()) as f64;
        self.scope == PruneScope::Global && self.repair == PruneRepair::Sequential && runs <= TWO_STAGE_BUDGET
    }

    /// Returns the curves over the choices with which a cost is within the budget.
    fn curves_within(
        &mut self,
        cost: &CostModel,
        budget: f64,
        cx: &mut Context<'_>,
    ) -> Result<Vec<LossCurve>, PassError> {
        let choices = self.choices_within(cost, budget, cx)?;
        match self.scope {
            PruneScope::Uniform => Ok(self.estimated_curves(&choices)),
            PruneScope::Global => self.measured_curves(&choices, cx),
        }
    }

    /// Returns the allocation whose cost is within the budget.
    pub fn allocate(
        &self,
        cost: &CostModel,
        curves: &[LossCurve],
        budget: f64,
    ) -> Result<Allocation, PassError> {
        let allocation = match self.scope {
            PruneScope::Uniform => uniform(cost, curves, budget),
            PruneScope::Global => global(cost, curves, budget),
        };
        allocation.ok_or_else(|| self.unreachable(cost, curves))
    }

    /// Returns the error for a budget that cannot be met, which names the group with the largest remaining
    /// cost.
    fn unreachable(&self, cost: &CostModel, curves: &[LossCurve]) -> PassError {
        let least: Allocation = curves.iter().map(|c| (c.group, c.least())).collect();
        let share = cost_of(cost, curves, &least) / cost.at(&|_| 0);
        let removed = |g: usize| curves.iter().find(|c| c.group == g).map_or(0, |c| c.width - c.least());
        let groups = &self.subject.groups.groups;
        let remaining = |g: &usize| cost.of(*g).at(&removed);
        let limiting = (0..groups.len())
            .filter(|g| groups[*g].width > 1)
            .max_by(|a, b| remaining(a).total_cmp(&remaining(b)));
        let because = limiting.map_or_else(String::new, |g| {
            let (name, kept) = (&groups[g].name, groups[g].width - removed(g));
            match &groups[g].pinned {
                Some(why) => format!(", most of it in `{name}`, which is skipped: {why}"),
                None if removed(g) == 0 => format!(", most of it in `{name}`, which is not selected"),
                None => format!(", most of it in `{name}`, which keeps {kept} channels"),
            }
        });
        let why = format!("the target cannot be reached: at least {share:.3} of the cost remains{because}");
        let functions = !self.original.functions.is_empty();
        PassError::refused_with(why, if functions { IN_FUNCTIONS } else { self.options.hint() })
    }

    /// Returns the model with the fewest multiply-accumulates within the limits, by bisection.
    fn reach_limits(&mut self, cx: &mut Context<'_>) -> Result<Model, PassError> {
        let limits = self.options.limits();
        let cost = self.macs();
        let curves = self.curves_within(&cost, f64::INFINITY, cx)?;
        let least: Allocation = curves.iter().map(|c| (c.group, c.least())).collect();
        let total = cost.at(&|_| 0);
        let (mut low, mut high) = (cost_of(&cost, &curves, &least) / total, 1.0);
        let mut best: Option<Allocation> = None;
        let mut why = String::new();
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            let allocation = self.allocate(&cost, &curves, middle * total)?;
            let candidate = self.build(&allocation, RepairEffort::Quick, cx)?;
            match self.broken_limit(&candidate.model, limits, cx)? {
                None => (high, best) = (middle, Some(allocation)),
                Some(broken) => (low, why) = (middle, broken),
            }
        }
        let Some(allocation) = best else {
            return Err(PassError::refused_with(
                format!(
                    "nothing can be removed within the limits: at {:.1} % of the MACs {why}",
                    100.0 * low
                ),
                "use a looser limit, or more samples",
            ));
        };
        // The full repair is rarely worse on the held-out samples than the quick one.
        let mut result = self.build(&allocation, RepairEffort::Full, cx)?;
        if self.broken_limit(&result.model, limits, cx)?.is_some() {
            result = self.build(&allocation, RepairEffort::Quick, cx)?;
        }
        self.check_speed(&result.model, cx)?;
        self.report(&result, cx);
        Ok(result.model)
    }

    /// Returns the first limit that a candidate breaks on the held-out samples.
    fn broken_limit(
        &self,
        model: &Model,
        limits: QualityLimits,
        cx: &Context<'_>,
    ) -> Result<Option<String>, PassError> {
        let held_out = HeldOut::new(cx.tools, &self.original, self.split.held_out.clone())?;
        Ok(limits.broken(&held_out.measure(model)?))
    }
}
