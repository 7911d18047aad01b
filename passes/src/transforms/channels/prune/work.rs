//! A model on its way: its groups, in what order their units go, and what it is when some are gone.

use super::{Ask, Repair, Scope, choose::choose};
use crate::analysis::samples::{POSITIONS, Split};
use crate::{
    analysis::{
        calibration::{RemovalOrder, Sampling, input_sums},
        evaluation::HeldOut,
        groups::{
            GroupKind, Groups, Keep,
            cut::cut,
            roles::{LinearRole, refits, roles},
        },
        repair::{self, RepairOptions},
    },
    framework::{Context, Counter, PassError, Tools},
    transforms::channels::{
        allocate::Counts,
        order::{Criterion, Ranking, Scales},
        repair::{InputSums, Local, repair},
    },
};
use pare_graph::{Model, NodeId, Samples};
use std::collections::{BTreeMap, HashMap};

/// Ridge of a fit with many samples.
const LAMBDA: f64 = 1e-3;
/// Ridge of the careful fit.
const LAMBDA_CAREFUL: f64 = 1e-2;

/// What is being done, and with what.
pub struct Work<'p> {
    pub ask: &'p Ask,
    pub criterion: Criterion,
    pub scope: Scope,
    pub repair: Repair,
    /// Samples that weights are fitted to, and that outputs are compared on.
    pub split: Split,
    /// The model at the start: what a result is held against.
    pub original: Model,
    /// The model that is cut.
    pub stage: Stage,
}

/// A model with all its units, of which some go.
pub struct Stage {
    pub model: Model,
    pub groups: Groups,
    pub roles: Vec<LinearRole>,
    /// Groups to prune.
    pub chosen: Vec<usize>,
    pub orders: BTreeMap<usize, RemovalOrder>,
    pub sums: InputSums,
    /// The outputs of the original that operators still make, of those that lost some.
    made: HashMap<NodeId, Vec<usize>>,
    /// Operators that lost inputs since the start.
    lost: Vec<NodeId>,
}

/// A candidate.
pub struct Built {
    pub model: Model,
    pub keep: Keep,
    /// How far it lies from the original on samples that are held out, if that was measured.
    pub drift: Option<f64>,
}

/// How much is tried for a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// One repair, on no more samples than statistics are taken of.
    Quick,
    /// Several, of which the best is taken.
    Full,
}

impl<'p> Work<'p> {
    pub fn new(ask: &'p Ask, model: &Model, cx: &mut Context<'_>) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let (criterion, scope, repair) = match cx.tools.statistics {
            _ if sampled => (Criterion::Obs, Scope::Global, Repair::Sequential),
            Some(_) => (Criterion::Obs, Scope::Uniform, Repair::Patch),
            None => (Criterion::L2, Scope::Uniform, Repair::None),
        };
        let criterion = ask.criterion.unwrap_or(criterion);
        let scope = ask.scope.unwrap_or(scope);
        let repair = ask.repair.unwrap_or(repair);
        let sums = criterion.needs_sums() || repair.needs_sums();
        let runs = criterion.needs_runs()
            || scope == Scope::Global
            || matches!(repair, Repair::Moments | Repair::Sequential)
            || ask.limits().any();
        let needs = runs || sums && cx.tools.statistics.is_none();
        let split = Split::when(needs, cx.tools, "criterion=l2,scope=uniform,repair=none")?;
        if ask.max_accuracy_drop.is_some() && cx.tools.samples.and_then(Samples::labels).is_none() {
            return Err(PassError::refused_with(
                "`max_accuracy_drop` needs labels",
                "add an array `labels` to the samples, or ask for `min_agreement`",
            ));
        }
        let stage = Stage::new(model.clone(), ask, cx)?;
        Ok(Self { ask, criterion, scope, repair, split, original: model.clone(), stage })
    }

    /// Find out in what order the units of each group go. `given` is the model as it came.
    pub fn order(&mut self, given: &Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.stage.sums = if self.criterion.needs_sums() || self.repair.needs_sums() {
            self.sums(cx.tools)?
        } else {
            HashMap::new()
        };
        let scales = Scales::of(given);
        let stage = &self.stage;
        let ranking = Ranking {
            tools: cx.tools,
            model: &stage.model,
            groups: &stage.groups,
            roles: &stage.roles,
            sums: &stage.sums,
            scales: &scales,
            samples: self.split.statistics(),
        };
        let mut orders = BTreeMap::new();
        for (i, &group) in stage.chosen.iter().enumerate() {
            orders.insert(group, ranking.order(group, self.criterion)?);
            cx.tools.progress.step("order", i as u64 + 1, stage.chosen.len() as u64);
        }
        self.stage.orders = orders;
        Ok(())
    }

    /// What the readers of the chosen groups read.
    fn sums(&self, tools: Tools<'_>) -> Result<InputSums, PassError> {
        let stage = &self.stage;
        let reads = |r: &&LinearRole| r.reads(&stage.groups).iter().any(|g| stage.chosen.contains(g));
        let readers: Vec<_> = stage.roles.iter().filter(reads).collect();
        let operators: Vec<_> = readers.iter().map(|r| &r.linear).collect();
        let range = self.split.statistics();
        let sampling = Sampling { positions: POSITIONS, seed: tools.seed };
        // What was seen of the original does not hold for what is left of it.
        let tools = Tools { statistics: tools.statistics.filter(|_| stage.is_first()), ..tools };
        let sums = input_sums(tools, &stage.model, &operators, range, sampling)?;
        Ok(readers.iter().map(|r| r.node).zip(sums).collect())
    }

    /// The least a group may keep.
    pub fn least(&self, group: usize) -> usize {
        self.ask.min_kept.max(1).min(self.stage.groups.groups[group].width)
    }

    /// The units that stay of these counts.
    pub fn keep(&self, counts: &Counts) -> Keep {
        let mut keep = Keep::new();
        for (&group, &kept) in counts {
            let width = self.stage.groups.groups[group].width;
            if kept < width {
                let mut units = vec![true; width];
                let order = self.stage.orders.get(&group).map_or(&[][..], |o| &o.units);
                order.iter().take(width - kept).for_each(|&u| units[u] = false);
                keep.insert(group, units);
            }
        }
        keep
    }

    /// The repair of single operators that candidates get.
    pub fn local(&self) -> Local {
        match self.repair {
            Repair::None | Repair::Moments => Local::None,
            Repair::Mean => Local::Mean,
            Repair::Merge => Local::Merge(LAMBDA),
            Repair::Patch | Repair::Sequential => Local::Patch(LAMBDA),
        }
    }

    /// The model with these units alone.
    pub fn cut(&self, keep: &Keep, how: Local) -> Result<Model, PassError> {
        let stage = &self.stage;
        let graph = &stage.model.graph;
        let mut new = cut(graph, &stage.groups, keep).map_err(|e| PassError::refused(e.to_string()))?;
        repair(graph, &stage.roles, &stage.sums, (&stage.groups, keep), &mut new, how)?;
        let mut changed = stage.model.clone();
        changed.graph = new;
        Ok(changed)
    }

    /// Cut to these counts, and repair.
    pub fn build(&self, counts: &Counts, effort: Effort, cx: &mut Context<'_>) -> Result<Built, PassError> {
        let keep = self.keep(counts);
        let local = self.cut(&keep, self.local())?;
        let tools = cx.tools;
        let refit = |all: bool| {
            let mut refits = refits(
                &self.stage.model.graph,
                &self.stage.roles,
                &self.stage.groups,
                &keep,
                &self.stage.lost,
                all,
            );
            for refit in &mut refits {
                refit.kept = self.stage.made_of(refit.node, refit.kept.take());
            }
            refits
        };
        match self.repair {
            _ if keep.is_empty() && self.stage.lost.is_empty() => {
                return Ok(Built { model: local, keep, drift: Some(0.0) });
            }
            Repair::None | Repair::Mean | Repair::Merge | Repair::Patch => {
                return Ok(Built { model: local, keep, drift: None });
            }
            Repair::Moments => {
                let mut model = local;
                let (refits, samples) = (&refit(true), self.split.fit.clone());
                let repair = repair::Repair { tools, original: &self.original, refits, samples };
                repair.match_moments(&mut model)?;
                return Ok(Built { model, keep, drift: None });
            }
            Repair::Sequential => {}
        }
        let trial = HeldOut::new(tools, &self.original, self.split.held_out.clone())?;
        let mut best = (trial.drift(&local)?, local.clone());
        let mut figures = vec![("drift of single repairs".to_owned(), best.0)];
        let ways = [(LAMBDA, true), (LAMBDA_CAREFUL, false)];
        let (ways, fit) = match effort {
            Effort::Full => (&ways[..], self.split.fit.clone()),
            Effort::Quick => (&ways[..1], self.split.statistics()),
        };
        for &(lambda, all) in ways {
            let mut candidate = local.clone();
            let (refits, samples) = (&refit(all), fit.clone());
            let repair = repair::Repair { tools, original: &self.original, refits, samples };
            repair.refit(&mut candidate, RepairOptions::new(lambda))?;
            let drift = trial.drift(&candidate)?;
            let which = if all { "all" } else { "readers" };
            figures.push((format!("drift at λ={lambda}, {which}"), drift));
            if drift < best.0 {
                best = (drift, candidate);
            }
        }
        if effort == Effort::Full {
            figures.into_iter().for_each(|(name, value)| cx.detail(name, value));
        }
        Ok(Built { model: best.1, keep, drift: Some(best.0) })
    }

    /// Go on from a candidate: what it lost is gone, the original stays what it is.
    pub fn advance(&mut self, built: Built, given: &Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let Built { mut model, keep, .. } = built;
        model.infer()?;
        let mut next = Stage::new(model, self.ask, &mut cx.scratch().context())?;
        for role in &self.stage.roles {
            if let Some(kept) = self.stage.made_of(role.node, role.kept_outputs(&self.stage.groups, &keep)) {
                next.made.insert(role.node, kept);
            }
            if role.kept_inputs(&self.stage.groups, &keep).is_some() {
                next.lost.push(role.node);
            }
        }
        next.lost.extend(&self.stage.lost);
        self.stage = next;
        self.order(given, cx)
    }

    /// Count what is gone.
    pub fn report(&self, model: &Model, cx: &mut Context<'_>) {
        let width = |model: &Model| {
            let groups = Groups::of(&model.graph);
            groups.groups.iter().map(|g| g.width as u64).sum::<u64>()
        };
        let what = match self.ask.kinds {
            [GroupKind::Heads] => Counter::new("head removed", "heads removed"),
            [GroupKind::Hidden] => Counter::new("hidden unit removed", "hidden units removed"),
            _ => Counter::new("channel removed", "channels removed"),
        };
        cx.count(what, width(&self.original).saturating_sub(width(model)));
    }
}

impl Stage {
    fn new(model: Model, ask: &Ask, cx: &mut Context<'_>) -> Result<Self, PassError> {
        let groups = Groups::of(&model.graph);
        let roles = roles(&model.graph);
        let chosen = choose(ask, &model.graph, &groups, cx)?;
        let (orders, sums) = (BTreeMap::new(), HashMap::new());
        Ok(Self { model, groups, roles, chosen, orders, sums, made: HashMap::new(), lost: vec![] })
    }

    /// Whether nothing has been cut yet.
    pub fn is_first(&self) -> bool {
        self.lost.is_empty()
    }

    /// The outputs of the original that an operator makes when of those it makes now only `kept` are left.
    fn made_of(&self, node: NodeId, kept: Option<Vec<usize>>) -> Option<Vec<usize>> {
        match (self.made.get(&node), kept) {
            (None, kept) => kept,
            (Some(made), None) => Some(made.clone()),
            (Some(made), Some(kept)) => Some(kept.into_iter().map(|i| made[i]).collect()),
        }
    }
}

impl Repair {
    fn needs_sums(self) -> bool {
        !matches!(self, Self::None | Self::Moments)
    }
}
