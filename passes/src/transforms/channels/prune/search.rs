//! The state of a pruning search, and the construction of candidates.

use super::{
    PruneOptions, PruneRepair, PruneScope,
    select::{Selection, check_patterns},
    step::{ChannelSteps, GroupTimes},
};
use crate::analysis::samples::{POSITIONS, Split};
use crate::{
    analysis::{
        calibration::{RemovalOrder, Sampling, input_sums},
        evaluation::HeldOut,
        groups::{
            GroupKind, Groups, Keep,
            cost::CostModel,
            cut::cut,
            roles::{LinearRole, refits, roles},
        },
        repair::{self, Refit, RepairOptions, RidgeChoice},
    },
    framework::{Context, Counter, PassError, Tools},
    transforms::channels::{
        allocate::Allocation,
        importance::{BatchNormScales, Importance, Ranking, Shared},
        local_repair::{DampedInverses, InputSums, LocalRepair, ReaderRepair},
    },
};
use pare_graph::{Graph, Model, NodeId, Samples, ops::Bindings};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// Ridge parameter `λ` of a fit to many samples.
const LAMBDA: f64 = 1e-3;

/// Ridge parameters between which few samples choose, for each operator.
const LAMBDAS: &[f64] = &[1e-3, 1e-2, 1e-1, 1.0];

/// A sequential repair: its ridge, and the operators that are refitted: all that depend on a removed unit, or
/// only those that read one.
#[derive(Clone, Copy)]
struct SequentialRepair {
    ridge: RidgeChoice,
    all: bool,
}

/// The repairs that are compared on many samples; the first is the best as a rule.
const REPAIRS: [SequentialRepair; 2] = [
    SequentialRepair { ridge: RidgeChoice::Fixed(LAMBDA), all: true },
    SequentialRepair { ridge: RidgeChoice::Fixed(1e-2), all: false },
];

/// The repairs that are compared on few samples.
const REPAIRS_OF_FEW: [SequentialRepair; 2] = [
    SequentialRepair { ridge: RidgeChoice::Validated(LAMBDAS), all: true },
    SequentialRepair { ridge: RidgeChoice::Validated(LAMBDAS), all: false },
];

/// A pruning search: the settings in effect, the original model, and the model that is pruned.
pub struct PruneSearch<'p> {
    pub options: &'p PruneOptions,
    pub importance: Importance,
    pub scope: PruneScope,
    pub repair: PruneRepair,
    /// The samples for fits and for held-out evaluation.
    pub split: Split,
    /// The model before preparation, with its batch norms.
    pub unprepared: &'p Model,
    /// The prepared model, which results are compared with.
    pub original: Model,
    /// The model that is pruned next.
    pub subject: PrunableModel,
    /// The sizes of symbolic dimensions in the samples.
    pub sizes: Bindings,
    /// The channel steps that are known.
    pub steps: ChannelSteps,
    /// The latencies that are known.
    pub times: GroupTimes,
    /// The last result was slower than the original.
    pub is_slower: bool,
    /// Number of units of the selected groups of the original.
    total_units: usize,
}

/// A model with its groups and the removal order of their units.
pub struct PrunableModel {
    pub model: Model,
    pub groups: Groups,
    pub roles: Vec<LinearRole>,
    /// The groups to prune.
    pub selection: Selection,
    pub orders: BTreeMap<usize, RemovalOrder>,
    pub sums: InputSums,
    /// The remaining outputs, as indices in the original, of operators that lost outputs in an earlier stage.
    original_outputs: HashMap<NodeId, Vec<usize>>,
    /// Operators that lost inputs in an earlier stage.
    reduced: Vec<NodeId>,
    /// The number of units removed in an earlier stage.
    removed: usize,
}

/// A pruned and repaired model.
pub struct Candidate {
    pub model: Model,
    pub keep: Keep,
    /// The drift on held-out samples, if it was measured; before they were fitted to as well.
    pub drift: Option<f64>,
}

/// The repair of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairEffort {
    /// One repair on a part of the samples.
    Draft,
    /// One repair on the samples for statistics.
    Quick,
    /// The best of several repairs of a part of the samples, on all samples.
    Full,
}

/// A cost as a function of the removed units.
pub type CostOf = fn(&Graph, &Groups, &Bindings) -> CostModel;

impl<'p> PruneSearch<'p> {
    pub fn new(
        options: &'p PruneOptions,
        unprepared: &'p Model,
        model: &Model,
        cx: &mut Context<'_>,
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let (importance, scope, repair) = match cx.tools.statistics {
            _ if sampled => (Importance::Obs, PruneScope::Global, PruneRepair::Sequential),
            Some(_) => (Importance::Obs, PruneScope::Uniform, PruneRepair::Patch),
            None => (Importance::L2, PruneScope::Uniform, PruneRepair::None),
        };
        let importance = options.criterion.unwrap_or(importance);
        let scope = options.scope.unwrap_or(scope);
        let repair = options.repair.unwrap_or(repair);
        let sums = importance.needs_sums() || repair.needs_sums();
        let runs = importance.needs_runs()
            || scope == PruneScope::Global
            || matches!(repair, PruneRepair::Moments | PruneRepair::Readers | PruneRepair::Sequential)
            || options.limits().any();
        let required = runs || sums && cx.tools.statistics.is_none();
        let split = Split::when(required, cx.tools, "criterion=l2,scope=uniform,repair=none")?;
        if options.max_accuracy_drop.is_some() && cx.tools.samples.and_then(Samples::labels).is_none() {
            return Err(PassError::refused_with(
                "`max_accuracy_drop` needs labels",
                "add an array `labels` to the samples, or use `min_agreement`",
            ));
        }
        if required && split.left_out() > 0 {
            cx.figure("samples that no fit needs", split.left_out() as f64);
        }
        let subject = PrunableModel::new(model.clone(), options);
        check_patterns(options, &subject.groups)?;
        subject.selection.report(options, model, cx)?;
        let sizes = cx.tools.sizes(&model.graph);
        let total_units = subject.selection.groups.iter().map(|&g| subject.groups.groups[g].width).sum();
        let original = model.clone();
        let mut search = Self {
            options,
            importance,
            scope,
            repair,
            split,
            unprepared,
            original,
            subject,
            sizes,
            steps: ChannelSteps::new(),
            times: GroupTimes::new(),
            is_slower: false,
            total_units,
        };
        search.rank_units(cx)?;
        Ok(search)
    }

    /// Computes the removal order of the units of each selected group.
    fn rank_units(&mut self, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.subject.sums = if self.importance.needs_sums() || self.repair.needs_sums() {
            self.input_sums(cx.tools)?
        } else {
            HashMap::new()
        };
        let scales = BatchNormScales::of(self.unprepared);
        let subject = &self.subject;
        let ranking = Ranking {
            tools: cx.tools,
            model: &subject.model,
            groups: &subject.groups,
            roles: &subject.roles,
            sums: &subject.sums,
            scales: &scales,
            samples: self.split.statistics(),
            shared: Shared::default(),
        };
        let mut orders = BTreeMap::new();
        for (i, &group) in subject.selection.groups.iter().enumerate() {
            orders.insert(group, ranking.order(group, self.importance)?);
            cx.tools.progress.step("order", i as u64 + 1, subject.selection.groups.len() as u64);
        }
        self.subject.orders = orders;
        Ok(())
    }

    /// Returns the sums over the inputs of the readers of the selected groups.
    fn input_sums(&self, tools: Tools<'_>) -> Result<InputSums, PassError> {
        let subject = &self.subject;
        let reads =
            |r: &&LinearRole| r.reads(&subject.groups).iter().any(|g| subject.selection.groups.contains(g));
        let readers: Vec<_> = subject.roles.iter().filter(reads).collect();
        let operators: Vec<_> = readers.iter().map(|r| &r.linear).collect();
        let range = self.split.statistics();
        let sampling = Sampling { positions: POSITIONS, seed: tools.seed };
        // Given statistics are those of the original, not of a pruned model.
        let tools = Tools { statistics: tools.statistics.filter(|_| subject.is_original()), ..tools };
        let sums = input_sums(tools, &subject.model, &operators, range, sampling)?;
        Ok(readers.iter().map(|r| r.node).zip(sums).collect())
    }

    /// Returns the number of units of a group.
    pub fn width(&self, group: usize) -> usize {
        self.subject.groups.groups[group].width
    }

    /// Returns the smallest number of units that a group keeps.
    pub fn min_kept(&self, group: usize) -> usize {
        self.options.min_kept.max(1).min(self.width(group))
    }

    /// Returns the kept units of an allocation.
    pub fn keep(&self, allocation: &Allocation) -> Keep {
        let mut keep = Keep::new();
        for (&group, &kept) in allocation {
            let width = self.width(group);
            if kept < width {
                let mut units = vec![true; width];
                let order = self.subject.orders.get(&group).map_or(&[][..], |o| &o.units);
                order.iter().take(width - kept).for_each(|&u| units[u] = false);
                keep.insert(group, units);
            }
        }
        keep
    }

    /// Returns the local repair of candidates.
    pub fn local_repair(&self) -> LocalRepair {
        match self.repair {
            PruneRepair::None | PruneRepair::Moments => LocalRepair::None,
            PruneRepair::Mean => LocalRepair::Mean,
            PruneRepair::Merge => LocalRepair::Merge(LAMBDA),
            PruneRepair::Patch | PruneRepair::Readers | PruneRepair::Sequential => LocalRepair::Patch(LAMBDA),
        }
    }

    /// Returns the model with only the kept units, locally repaired.
    pub fn cut(&self, keep: &Keep, repair: LocalRepair) -> Result<Model, PassError> {
        self.cut_sharing(None, keep, repair)
    }

    /// As [`cut`](Self::cut), for one of many candidates that share `inverses`.
    pub fn cut_sharing(
        &self,
        inverses: Option<&DampedInverses>,
        keep: &Keep,
        repair: LocalRepair,
    ) -> Result<Model, PassError> {
        let PrunableModel { model, groups, roles, sums, .. } = &self.subject;
        let mut graph = cut(&model.graph, groups, keep).map_err(PassError::from_error)?;
        ReaderRepair { original: &model.graph, roles, sums, groups, keep, repair, inverses }
            .apply(&mut graph)?;
        let mut changed = model.clone();
        changed.graph = graph;
        Ok(changed)
    }

    /// Builds and repairs the candidate of an allocation.
    pub fn build(
        &self,
        allocation: &Allocation,
        effort: RepairEffort,
        cx: &mut Context<'_>,
    ) -> Result<Candidate, PassError> {
        let keep = self.keep(allocation);
        let mut model = self.cut(&keep, self.local_repair())?;
        let drift = match self.repair {
            _ if keep.is_empty() && self.subject.is_original() => Some(0.0),
            PruneRepair::None | PruneRepair::Mean | PruneRepair::Merge | PruneRepair::Patch => None,
            PruneRepair::Moments => {
                let (refits, samples) = (&self.refits(&keep, true), self.split.fit.clone());
                let repair = repair::Repair { tools: cx.tools, original: &self.original, refits, samples };
                repair.match_moments(&mut model)?;
                None
            }
            PruneRepair::Readers | PruneRepair::Sequential => {
                let (repaired, drift) = self.sequentially_repaired(model, &keep, effort, cx)?;
                model = repaired;
                Some(drift)
            }
        };
        Ok(Candidate { model, keep, drift })
    }

    /// Returns the refits after a removal: of the operators that lost inputs, or of all operators downstream.
    fn refits(&self, keep: &Keep, all: bool) -> Vec<Refit> {
        let PrunableModel { model, groups, roles, reduced, .. } = &self.subject;
        let mut refits = refits(&model.graph, roles, groups, keep, reduced, all);
        for refit in &mut refits {
            refit.kept = self.subject.outputs_in_original(refit.node, refit.kept.take());
        }
        refits
    }

    /// Returns the best of a locally repaired model and its sequential repairs, with its drift. The best is chosen after
    /// fits to a part of the samples, and fitted again to all: few samples without limits include those held out.
    fn sequentially_repaired(
        &self,
        local: Model,
        keep: &Keep,
        effort: RepairEffort,
        cx: &mut Context<'_>,
    ) -> Result<(Model, f64), PassError> {
        let held_out = HeldOut::new(cx.tools, &self.original, self.split.held_out.clone())?;
        let mut drift = held_out.drift(&local)?;
        let mut details = vec![("drift, local repair".to_owned(), drift)];
        let few = self.split.has_few();
        let repairs: Vec<_> = if few { REPAIRS_OF_FEW } else { REPAIRS }
            .into_iter()
            .filter(|repair| self.repair == PruneRepair::Sequential || !repair.all)
            .collect();
        let (repairs, fit) = match effort {
            RepairEffort::Draft => (&repairs[..1], self.split.part()),
            RepairEffort::Quick => (&repairs[..1], self.split.statistics()),
            RepairEffort::Full => (&repairs[..], self.split.part()),
        };
        let mut best = None;
        for &repair in repairs {
            let candidate = self.refitted(&local, keep, repair, fit.clone(), cx.tools)?;
            let of_candidate = held_out.drift(&candidate)?;
            let refitted = if repair.all { "all layers" } else { "readers" };
            details.push((format!("drift, {refitted} refitted"), of_candidate));
            if of_candidate < drift {
                (best, drift) = (Some((candidate, repair)), of_candidate);
            }
        }
        if effort == RepairEffort::Full {
            details.into_iter().for_each(|(name, value)| cx.detail(name, value));
        }
        let Some((candidate, repair)) = best else { return Ok((local, drift)) };
        let fits_held_out = few && !self.options.limits().any();
        let all = match effort {
            RepairEffort::Full if fits_held_out => self.split.all(),
            RepairEffort::Full => self.split.fit.clone(),
            _ => fit.clone(),
        };
        if all == fit {
            return Ok((candidate, drift));
        }
        let result = self.refitted(&local, keep, repair, all, cx.tools)?;
        // Samples that were fitted to do not judge.
        if fits_held_out {
            return Ok((result, drift));
        }
        let of_result = held_out.drift(&result)?;
        Ok(if of_result < drift { (result, of_result) } else { (candidate, drift) })
    }

    /// Returns a locally repaired model after a sequential repair on these samples.
    fn refitted(
        &self,
        local: &Model,
        keep: &Keep,
        repair: SequentialRepair,
        samples: Range<usize>,
        tools: Tools<'_>,
    ) -> Result<Model, PassError> {
        let mut model = local.clone();
        let refits = &self.refits(keep, repair.all);
        let options = RepairOptions { ridge: repair.ridge, ..RepairOptions::new(LAMBDA) };
        repair::Repair { tools, original: &self.original, refits, samples }.refit(&mut model, options)?;
        Ok(model)
    }

    /// Starts over from the original.
    pub fn restart(&mut self, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.subject.is_original() {
            return Ok(());
        }
        self.subject = PrunableModel::new(self.original.clone(), self.options);
        self.rank_units(cx)
    }

    /// Continues the search from a candidate. Results are still compared with the original.
    pub fn advance(&mut self, candidate: Candidate, cx: &mut Context<'_>) -> Result<(), PassError> {
        let Candidate { mut model, keep, .. } = candidate;
        model.infer()?;
        // There may be no group any more that can lose units.
        let mut next = PrunableModel::new(model, self.options);
        let PrunableModel { groups, roles, reduced, .. } = &self.subject;
        for role in roles {
            let kept = self.subject.outputs_in_original(role.node, role.kept_outputs(groups, &keep));
            if let Some(kept) = kept {
                next.original_outputs.insert(role.node, kept);
            }
            if role.kept_inputs(groups, &keep).is_some() {
                next.reduced.push(role.node);
            }
        }
        next.reduced.extend(reduced);
        next.removed = self.subject.removed + removed_units(&keep);
        self.subject = next;
        self.rank_units(cx)
    }

    /// The cost of the subject.
    pub fn cost_of_subject(&self, cost: CostOf) -> CostModel {
        cost(&self.subject.model.graph, &self.subject.groups, &self.sizes)
    }

    /// Returns the share of the original's cost that remains when only `keep` is kept of the subject.
    pub fn remaining_cost(&self, cost: CostOf, keep: &Keep) -> f64 {
        let removed = |g: usize| keep.get(&g).map_or(0, |units| units.iter().filter(|kept| !**kept).count());
        let graph = &self.original.graph;
        let original = cost(graph, &Groups::of(graph), &self.sizes).at(&|_| 0);
        self.cost_of_subject(cost).at(&removed) / original
    }

    /// Reports the removed units, the remaining multiply-accumulates and the drift of the result.
    pub fn report(&self, result: &Candidate, cx: &mut Context<'_>) {
        let counter = match self.options.kinds {
            [GroupKind::Heads] => Counter::new("head removed", "heads removed"),
            [GroupKind::Hidden] => Counter::new("hidden unit removed", "hidden units removed"),
            _ => Counter::new("channel removed", "channels removed"),
        };
        let removed = self.subject.removed + removed_units(&result.keep);
        cx.count_of(counter, removed as u64, self.total_units as u64);
        cx.share("MACs", self.remaining_cost(CostModel::macs, &result.keep));
        if let Some(drift) = result.drift {
            cx.figure("drift", drift);
        }
    }
}

impl PrunableModel {
    fn new(model: Model, options: &PruneOptions) -> Self {
        let groups = Groups::of(&model.graph);
        Self {
            selection: Selection::new(options, &model.graph, &groups),
            roles: roles(&model.graph),
            model,
            groups,
            orders: BTreeMap::new(),
            sums: HashMap::new(),
            original_outputs: HashMap::new(),
            reduced: vec![],
            removed: 0,
        }
    }

    /// Returns whether nothing has been removed yet.
    pub fn is_original(&self) -> bool {
        self.reduced.is_empty()
    }

    /// Translates the kept outputs of an operator, `None` for all, to indices in the original.
    fn outputs_in_original(&self, node: NodeId, kept: Option<Vec<usize>>) -> Option<Vec<usize>> {
        match (self.original_outputs.get(&node), kept) {
            (None, kept) => kept,
            (Some(outputs), None) => Some(outputs.clone()),
            (Some(outputs), Some(kept)) => Some(kept.into_iter().map(|i| outputs[i]).collect()),
        }
    }
}

fn removed_units(keep: &Keep) -> usize {
    keep.values().flatten().filter(|kept| !**kept).count()
}

impl PruneRepair {
    fn needs_sums(self) -> bool {
        !matches!(self, Self::None | Self::Moments)
    }
}
