//! How far to go: to a target, or as far as limits allow.

use super::{
    Ask, Repair, Scope,
    work::{Built, Effort, Work},
};
use crate::{
    analysis::{
        evaluation::{HeldOut, QualityLimits},
        groups::cost::CostModel,
    },
    framework::{Context, PassError},
    transforms::channels::allocate::{Counts, Curve, cost_of, global, loss_of, uniform},
};
use pare_graph::Model;

/// What is to be kept of what: a share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    Macs(f64),
    Params(f64),
    /// A share of the units that goes.
    Ratio(f64),
    Latency(f64),
}

/// Multiply-accumulates of a run over all samples up to which a target is gone to in two stages.
const TWICE: f64 = 3e11;
/// How finely the way to a limit is halved: 2⁻⁶ of what can go.
const HALVINGS: usize = 6;

impl Target {
    pub fn of(ask: &Ask) -> Option<Self> {
        let any = [
            ask.macs.map(Self::Macs),
            ask.params.map(Self::Params),
            ask.ratio.map(Self::Ratio),
            ask.latency.map(Self::Latency),
        ];
        any.into_iter().flatten().next()
    }
}

impl Work<'_> {
    /// The model that meets the target, and the limits if there are any.
    pub fn reach(&mut self, target: Target, given: &Model, cx: &mut Context<'_>) -> Result<Model, PassError> {
        let built = match target {
            Target::Latency(share) => self.reach_latency(share, given, cx)?,
            Target::Macs(share) => self.reach_share(CostModel::macs, share, given, cx)?,
            Target::Params(share) => self.reach_share(CostModel::params, share, given, cx)?,
            Target::Ratio(ratio) if self.scope == Scope::Uniform => self.reach_ratio(ratio, cx)?,
            Target::Ratio(ratio) => {
                let macs = self.macs();
                let lost = |g: usize| {
                    let chosen = self.stage.chosen.contains(&g);
                    if chosen { (self.stage.groups.groups[g].width as f64 * ratio) as usize } else { 0 }
                };
                let share = macs.at(&lost) * (1.0 + 1e-9) / macs.at(&|_| 0);
                self.reach_share(CostModel::macs, share, given, cx)?
            }
        };
        let limits = self.ask.limits();
        if limits.any()
            && let Some(why) = self.broken(&built.model, limits, cx)?
        {
            return Err(PassError::refused_with(why, "ask for less, or loosen the limit"));
        }
        self.report(&built.model, cx);
        Ok(built.model)
    }

    pub fn macs(&self) -> CostModel {
        CostModel::macs(&self.stage.model.graph, &self.stage.groups)
    }

    /// The share of a cost is kept that is asked for.
    fn reach_share(
        &mut self,
        cost: fn(&pare_graph::Graph, &crate::analysis::groups::Groups) -> CostModel,
        share: f64,
        given: &Model,
        cx: &mut Context<'_>,
    ) -> Result<Built, PassError> {
        let mut model = cost(&self.stage.model.graph, &self.stage.groups);
        let whole = model.at(&|_| 0);
        let budget = share * whole;
        let mut curves = self.all_curves(cx)?;
        let mut counts = self.share_out(&model, &curves, budget)?;
        if self.goes_twice() {
            // Half of the way first: what remains there is ordered and judged anew.
            let halfway = self.share_out(&model, &curves, (whole * budget).sqrt())?;
            let built = self.build(&halfway, Effort::Quick, cx)?;
            self.advance(built, given, cx)?;
            model = cost(&self.stage.model.graph, &self.stage.groups);
            curves = self.all_curves(cx)?;
            counts = self.share_out(&model, &curves, budget)?;
        }
        cx.figure("kept", cost_of(&model, &curves, &counts) / whole);
        cx.figure("drift expected", loss_of(&curves, &counts));
        let built = self.build(&counts, Effort::Full, cx)?;
        built.drift.into_iter().for_each(|drift| cx.figure("drift", drift));
        Ok(built)
    }

    /// Every group loses the same share of its units.
    fn reach_ratio(&self, ratio: f64, cx: &mut Context<'_>) -> Result<Built, PassError> {
        let step = self.ask.multiple;
        let keep = |c: Curve| {
            let kept = c.width - (c.width as f64 * ratio) as usize;
            (c.group, kept.div_ceil(step).saturating_mul(step).clamp(c.least(), c.width))
        };
        let counts = self.flat(None).into_iter().map(keep).collect();
        self.build(&counts, Effort::Full, cx)
    }

    /// Whether halving the way pays: where candidates are judged by their outputs, and running them is not the work of
    /// minutes.
    fn goes_twice(&self) -> bool {
        let runs = self.macs().at(&|_| 0) * (self.split.fit.len() + self.split.held_out.len()) as f64;
        self.scope == Scope::Global && self.repair == Repair::Sequential && runs <= TWICE
    }

    fn all_curves(&self, cx: &mut Context<'_>) -> Result<Vec<Curve>, PassError> {
        match self.scope {
            Scope::Uniform => Ok(self.flat(None)),
            Scope::Global => self.curves(None, cx),
        }
    }

    /// How many units each group keeps so that the cost is within the budget.
    pub fn share_out(&self, cost: &CostModel, curves: &[Curve], budget: f64) -> Result<Counts, PassError> {
        let counts = match self.scope {
            Scope::Uniform => uniform(cost, curves, budget),
            Scope::Global => global(cost, curves, budget),
        };
        counts.ok_or_else(|| self.unreachable(cost, curves))
    }

    /// Why a budget cannot be met.
    pub fn unreachable(&self, cost: &CostModel, curves: &[Curve]) -> PassError {
        let least: Counts = curves.iter().map(|c| (c.group, c.least())).collect();
        let share = cost_of(cost, curves, &least) / cost.at(&|_| 0);
        let lost = |g: usize| curves.iter().find(|c| c.group == g).map_or(0, |c| c.width - c.least());
        let groups = &self.stage.groups.groups;
        let left = |g: &usize| cost.of(*g).at(&lost);
        let limiting =
            (0..groups.len()).filter(|g| groups[*g].width > 1).max_by(|a, b| left(a).total_cmp(&left(b)));
        let because = limiting.map_or_else(String::new, |g| {
            let (name, kept) = (&groups[g].name, groups[g].width - lost(g));
            match &groups[g].pinned {
                Some(why) => format!(", most of it by `{name}`, which stays whole: {why}"),
                None if lost(g) == 0 => format!(", most of it by `{name}`, which is not to be pruned"),
                None => format!(", most of it by `{name}`, which keeps {kept} channels"),
            }
        });
        let why = format!("the target cannot be reached: {share:.3} is left at least{because}");
        PassError::refused_with(why, self.ask.hint())
    }

    /// As little as the limits allow, found by halving.
    pub fn farthest(&mut self, cx: &mut Context<'_>) -> Result<Model, PassError> {
        let limits = self.ask.limits();
        let (cost, curves) = (self.macs(), self.all_curves(cx)?);
        let least: Counts = curves.iter().map(|c| (c.group, c.least())).collect();
        let whole = cost.at(&|_| 0);
        let (mut low, mut high) = (cost_of(&cost, &curves, &least) / whole, 1.0);
        let mut best: Option<(f64, Counts)> = None;
        let mut why = String::new();
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            let counts = self.share_out(&cost, &curves, middle * whole)?;
            let built = self.build(&counts, Effort::Quick, cx)?;
            match self.broken(&built.model, limits, cx)? {
                None => {
                    high = middle;
                    best = Some((middle, counts));
                }
                Some(broken) => (low, why) = (middle, broken),
            }
        }
        let Some((share, counts)) = best else {
            return Err(PassError::refused_with(
                format!("nothing can go within the limits: with {high:.3} of the multiply-accumulates {why}"),
                "loosen the limit, or give more samples",
            ));
        };
        // More repairs are tried for the one that is taken; they only come nearer to the original.
        let built = self.build(&counts, Effort::Full, cx)?;
        let built = match self.broken(&built.model, limits, cx)? {
            None => built,
            Some(_) => self.build(&counts, Effort::Quick, cx)?,
        };
        cx.figure("kept", share);
        built.drift.into_iter().for_each(|drift| cx.figure("drift", drift));
        self.report(&built.model, cx);
        Ok(built.model)
    }

    /// The first limit that a candidate breaks on samples that are held out.
    fn broken(
        &self,
        model: &Model,
        limits: QualityLimits,
        cx: &Context<'_>,
    ) -> Result<Option<String>, PassError> {
        let trial = HeldOut::new(cx.tools, &self.original, self.split.held_out.clone())?;
        Ok(limits.broken(&trial.measure(model)?))
    }
}
