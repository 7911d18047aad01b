//! The pass: target, order, curves, allocation, cut, repair.

use super::{
    allocate::{Counts, Curve, cost_of, global, loss_of, uniform},
    cost::CostModel,
    cut::cut,
    groups::{Groups, Keep, Kind},
    order::{Criterion, order},
    repair::{InputSums, Local, repair},
    roles::{Role, refits, roles},
};
use crate::{
    Context, Pass, PassError, pass,
    prepare::{matches, prepare},
    repair::{Setting, sequential},
    stats::{Order, Sampling, input_sums},
    trial::Trial,
};
use pare_graph::{Graph, Model, NodeId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

/// How what is left makes up for what is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// It does not.
    None,
    /// By the mean of what is gone.
    Mean,
    /// By the best estimate of removed channels from those that stay.
    Merge,
    /// By fitting each reader anew, from statistics of the original.
    Patch,
    /// By fitting operator after operator to the original's activations.
    Sequential,
}

/// How units are shared out over groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// By what they do to the outputs.
    Global,
    /// The same share of each group.
    Uniform,
}

pass! {
    /// Remove channels, and let the others make up for them.
    ///
    /// Channels that depend on each other through any topology go together (see `pare inspect --groups`). Which go is
    /// found out on unlabelled samples: block-OBS orders the units of each group, the drift of the outputs when a group
    /// alone is cut says how many, and sequential least squares repairs what is left. No training.
    ///
    /// Say how far to go by `macs`, `params` or `ratio`. Without samples the channels with the smallest weights go, the same
    /// share of every group, and nothing is repaired.
    #[pass("prune-channels", Lossy)]
    pub struct PruneChannels {
        /// Share of the multiply-accumulates to keep.
        pub macs: Option<f64> = None,
        /// Share of the parameters to keep.
        pub params: Option<f64> = None,
        /// Share of the units of each group to remove; with `scope=global` what the same multiply-accumulates buy.
        pub ratio: Option<f64> = None,
        /// What makes a channel matter: `obs`, `energy`, `l2`, `l1`, `random`. By default `obs` with samples, else `l2`.
        pub criterion: Option<Criterion> = None,
        /// How units are shared out over groups: `global` or `uniform`. By default `global` with samples.
        pub scope: Option<Scope> = None,
        /// `none`, `mean`, `merge`, `patch` or `sequential`. By default `sequential` with samples.
        pub repair: Option<Repair> = None,
        /// Counts that are kept are multiples of this.
        pub multiple: usize = 1,
        /// Units that every group keeps.
        pub min_kept: usize = 1,
        /// Prune residual streams too: groups that several layers write to.
        pub streams: bool = false,
        /// Only groups whose names match one of these patterns, `*` for anything.
        pub only: Vec<String> = vec![],
        /// No group whose name matches one of these patterns.
        pub except: Vec<String> = vec![],
    }
}

/// Levels of a curve: eighths of the width.
const LEVELS: usize = 8;
/// Samples whose activations order the units.
const STATISTICS: usize = 1000;
/// Samples that are held out to compare outputs on.
const HELD_OUT: usize = 256;
/// Fewer samples than this tell too little for a fit.
const MIN_SAMPLES: usize = 16;
/// Places of each sample that are looked at.
const PLACES: usize = 32;
/// Ridge of a fit with many samples.
const LAMBDA: f64 = 1e-3;
/// Ridge of the careful fit.
const LAMBDA_CAREFUL: f64 = 1e-2;
/// Rounds in which a fit looks at the activation behind it.
const ROUNDS: usize = 4;

impl Pass for PruneChannels {
    fn validate(&self) -> Result<(), String> {
        let targets = [("macs", self.macs), ("params", self.params), ("ratio", self.ratio)];
        let given: Vec<_> = targets.iter().filter_map(|(name, v)| v.map(|v| (name, v))).collect();
        for (name, value) in &given {
            if !(*value > 0.0 && *value < 1.0) {
                return Err(format!("`{name}` is a share between 0 and 1, not {value}"));
            }
        }
        if given.len() > 1 {
            return Err("only one of `macs`, `params`, `ratio` can be asked for".into());
        }
        if self.multiple == 0 {
            return Err("`multiple` is at least 1".into());
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let kinds = [Kind::Channels, Kind::Heads, Kind::Hidden, Kind::Stream];
        self.prune(model, cx, if self.streams { &kinds } else { &kinds[..3] })
    }
}

impl PruneChannels {
    /// Prune groups of these kinds.
    pub(super) fn prune(
        &self,
        model: &mut Model,
        cx: &mut Context<'_>,
        kinds: &[Kind],
    ) -> Result<(), PassError> {
        if self.macs.is_none() && self.params.is_none() && self.ratio.is_none() {
            return Err(PassError::refused_with("it needs a target", "such as `prune-channels{macs=0.5}`"));
        }
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let mut work = Work::new(self, model, cx, kinds)?;
        let counts = work.allocate(cx)?;
        let new = work.build(&counts, cx)?;
        if cx.permit() {
            *model = new;
        }
        Ok(())
    }
}

struct Work<'p> {
    pass: &'p PruneChannels,
    model: Model,
    groups: Groups,
    roles: Vec<Role>,
    /// Groups to prune.
    chosen: Vec<usize>,
    cost: CostModel,
    budget: f64,
    criterion: Criterion,
    scope: Scope,
    repair: Repair,
    fit: Range<usize>,
    held_out: Range<usize>,
    orders: BTreeMap<usize, Order>,
    sums: InputSums,
}

impl<'p> Work<'p> {
    fn new(
        pass: &'p PruneChannels,
        model: &Model,
        cx: &mut Context<'_>,
        kinds: &[Kind],
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let (criterion, scope, repair) = if sampled {
            (Criterion::Obs, Scope::Global, Repair::Sequential)
        } else {
            (Criterion::L2, Scope::Uniform, Repair::None)
        };
        let criterion = pass.criterion.unwrap_or(criterion);
        let scope = pass.scope.unwrap_or(scope);
        let repair = pass.repair.unwrap_or(repair);
        let needs = criterion.needs_samples() || scope == Scope::Global || repair != Repair::None;
        if needs && !sampled {
            return Err(PassError::refused_with(
                "it needs samples, and an engine to run them",
                "give them with `--samples`, or ask for `criterion=l2,scope=uniform,repair=none`",
            ));
        }
        let count = cx.tools.samples.map_or(0, pare_graph::Samples::len);
        if needs && count < MIN_SAMPLES {
            return Err(PassError::refused_with(
                format!("{count} samples are too few"),
                format!("give {MIN_SAMPLES} or more, better some hundred"),
            ));
        }
        let held = (count / 5).clamp(1, HELD_OUT);
        let fit = count.saturating_sub(held);
        let groups = Groups::of(&model.graph);
        let roles = roles(&model.graph);
        let chosen = choose((pass, kinds), &model.graph, &groups, &roles, cx)?;
        let macs = CostModel::macs(&model.graph, &groups);
        let (cost, budget) = match (pass.macs, pass.params, pass.ratio) {
            (None, Some(share), _) => {
                let params = CostModel::params(&model.graph, &groups);
                let budget = share * params.at(&|_| 0);
                (params, budget)
            }
            (Some(share), ..) => {
                let budget = share * macs.at(&|_| 0);
                (macs, budget)
            }
            (_, _, ratio) => {
                let ratio = ratio.unwrap_or(0.0);
                let lost = |g: usize| {
                    if chosen.contains(&g) { (groups.groups[g].width as f64 * ratio) as usize } else { 0 }
                };
                let budget = macs.at(&lost) * (1.0 + 1e-9);
                (macs, budget)
            }
        };
        Ok(Self {
            pass,
            model: model.clone(),
            groups,
            roles,
            chosen,
            cost,
            budget,
            criterion,
            scope,
            repair,
            fit: 0..fit,
            held_out: fit..count,
            orders: BTreeMap::new(),
            sums: HashMap::new(),
        })
    }

    /// Order the units, draw the curves, and share the budget out.
    fn allocate(&mut self, cx: &mut Context<'_>) -> Result<Counts, PassError> {
        if self.criterion.needs_samples()
            || matches!(self.repair, Repair::Mean | Repair::Merge | Repair::Patch | Repair::Sequential)
        {
            let reads = |r: &&Role| r.reads(&self.groups).iter().any(|g| self.chosen.contains(g));
            let readers: Vec<_> = self.roles.iter().filter(reads).collect();
            let operators: Vec<_> = readers.iter().map(|r| &r.linear).collect();
            let range = self.fit.start..self.fit.end.min(STATISTICS);
            let sampling = Sampling { places: PLACES, seed: cx.tools.seed };
            let sums = input_sums(cx.tools, &self.model, &operators, range, sampling)?;
            self.sums = readers.iter().map(|r| r.node).zip(sums).collect();
        }
        for (i, &group) in self.chosen.iter().enumerate() {
            let graph = &self.model.graph;
            let found =
                order(graph, &self.groups, &self.roles, &self.sums, group, self.criterion, cx.tools.seed)?;
            self.orders.insert(group, found);
            cx.tools.progress.step("order", i as u64 + 1, self.chosen.len() as u64);
        }
        let curves = match self.scope {
            Scope::Uniform => self.chosen.iter().map(|&g| self.flat(g)).collect(),
            Scope::Global => self.curves(cx)?,
        };
        let step = self.pass.multiple;
        let counts = match (self.scope, self.pass.ratio) {
            (Scope::Uniform, Some(ratio)) => {
                let keep = |c: &Curve| {
                    let kept = c.width - (c.width as f64 * ratio) as usize;
                    (c.group, kept.div_ceil(step).saturating_mul(step).clamp(c.least(), c.width))
                };
                Some(curves.iter().map(keep).collect())
            }
            (Scope::Uniform, None) => uniform(&self.cost, &curves, self.budget, step),
            (Scope::Global, _) => global(&self.cost, &curves, self.budget, step),
        };
        let counts = counts.ok_or_else(|| self.unreachable(&curves))?;
        let whole = self.cost.at(&|_| 0);
        cx.report.figures.insert("kept".into(), cost_of(&self.cost, &curves, &counts) / whole);
        cx.report.figures.insert("drift expected".into(), loss_of(&curves, &counts));
        Ok(counts)
    }

    /// The least a group may keep.
    fn least(&self, group: usize) -> usize {
        self.pass.min_kept.max(1).min(self.groups.groups[group].width)
    }

    fn flat(&self, group: usize) -> Curve {
        let width = self.groups.groups[group].width;
        Curve { group, width, losses: BTreeMap::from([(self.least(group), 1.0), (width, 0.0)]) }
    }

    fn unreachable(&self, curves: &[Curve]) -> PassError {
        let least: Counts = curves.iter().map(|c| (c.group, c.least())).collect();
        let share = cost_of(&self.cost, curves, &least) / self.cost.at(&|_| 0);
        let whole = self.groups.groups.iter().filter(|g| g.whole.is_some()).max_by_key(|g| g.members.len());
        let because = whole.map_or_else(String::new, |g| {
            format!("; `{}` stays whole: {}", g.name, g.whole.as_deref().unwrap_or_default())
        });
        let hint = if self.pass.streams { "ask for less" } else { "ask for less, or allow `streams=true`" };
        PassError::refused_with(
            format!("the target cannot be reached: {share:.3} is left at least{because}"),
            hint,
        )
    }

    /// The drift when each group alone is cut to each level.
    fn curves(&self, cx: &mut Context<'_>) -> Result<Vec<Curve>, PassError> {
        let trial = Trial::new(cx.tools, &self.model, self.held_out.clone())?;
        let mut curves = vec![];
        for (i, &group) in self.chosen.iter().enumerate() {
            cx.tools.progress.step("curves", i as u64, self.chosen.len() as u64);
            let width = self.groups.groups[group].width;
            let mut curve = Curve { group, width, losses: BTreeMap::from([(width, 0.0)]) };
            let start = trial.start(&self.model, &self.touched(group))?;
            for kept in self.levels(group) {
                let keep = self.keep(&Counts::from([(group, kept)]));
                let changed = self.cut(&keep, self.local())?;
                curve.losses.insert(kept, trial.drift_from(&start, &changed)?);
            }
            // Losing more is never better: what a measurement says otherwise is noise.
            let mut least = f64::INFINITY;
            for loss in curve.losses.values_mut() {
                least = least.min(*loss);
                *loss = least;
            }
            curves.push(curve);
        }
        cx.tools.progress.step("curves", curves.len() as u64, curves.len() as u64);
        Ok(curves)
    }

    fn levels(&self, group: usize) -> Vec<usize> {
        let (width, least) = (self.groups.groups[group].width, self.least(group));
        let step = self.pass.multiple;
        let mut levels: Vec<_> = (1..LEVELS)
            .map(|i| (width * i).div_ceil(LEVELS).div_ceil(step) * step)
            .filter(|&kept| kept >= least && kept < width)
            .collect();
        levels.dedup();
        // Down to an eighth a curve says little: the last steps cost most.
        if levels.len() > 3 && levels[0] * LEVELS <= width {
            levels.remove(0);
        }
        levels
    }

    /// Nodes whose weights change when the group is cut.
    fn touched(&self, group: usize) -> HashSet<NodeId> {
        let graph = &self.model.graph;
        let mut nodes = HashSet::new();
        for member in &self.groups.groups[group].members {
            match member.site {
                super::groups::Site::Use(node, _) => drop(nodes.insert(node)),
                super::groups::Site::Value(value) => {
                    nodes.extend(graph.producer(value).map(|(node, _)| node));
                    nodes.extend(graph.users(value).into_iter().map(|(node, _)| node));
                }
            }
        }
        nodes
    }

    fn keep(&self, counts: &Counts) -> Keep {
        let mut keep = Keep::new();
        for (&group, &kept) in counts {
            let width = self.groups.groups[group].width;
            if kept < width {
                let mut units = vec![true; width];
                let order = self.orders.get(&group).map_or(&[][..], |o| &o.units);
                order.iter().take(width - kept).for_each(|&u| units[u] = false);
                keep.insert(group, units);
            }
        }
        keep
    }

    /// The repair of single operators that candidates get.
    fn local(&self) -> Local {
        match self.repair {
            Repair::None => Local::None,
            Repair::Mean => Local::Mean,
            Repair::Merge => Local::Merge(LAMBDA),
            Repair::Patch | Repair::Sequential => Local::Patch(LAMBDA),
        }
    }

    fn cut(&self, keep: &Keep, how: Local) -> Result<Model, PassError> {
        let graph = &self.model.graph;
        let mut new = cut(graph, &self.groups, keep).map_err(|e| PassError::refused(e.to_string()))?;
        repair(graph, &self.roles, &self.sums, (&self.groups, keep), &mut new, how)?;
        let mut changed = self.model.clone();
        changed.graph = new;
        Ok(changed)
    }

    /// Cut to these counts, and repair.
    fn build(&self, counts: &Counts, cx: &mut Context<'_>) -> Result<Model, PassError> {
        let keep = self.keep(counts);
        let lost: usize = keep.values().flatten().filter(|stays| !**stays).count();
        cx.count("channels removed", lost as u64);
        let local = self.cut(&keep, self.local())?;
        if self.repair != Repair::Sequential || keep.is_empty() {
            return Ok(local);
        }
        let trial = Trial::new(cx.tools, &self.model, self.held_out.clone())?;
        let mut best = (trial.drift(&local)?, local.clone());
        cx.report.figures.insert("drift of single repairs".into(), best.0);
        for (lambda, all) in [(LAMBDA, true), (LAMBDA_CAREFUL, false)] {
            let mut candidate = local.clone();
            let refits = refits(&self.model.graph, &self.roles, (&self.groups, &keep), all);
            let setting = Setting { lambda, rounds: ROUNDS, places: PLACES };
            sequential(cx.tools, &self.model, &mut candidate, &refits, self.fit.clone(), setting)?;
            let drift = trial.drift(&candidate)?;
            let which = if all { "all" } else { "readers" };
            cx.report.figures.insert(format!("drift at λ={lambda}, {which}"), drift);
            if drift < best.0 {
                best = (drift, candidate);
            }
        }
        cx.report.figures.insert("drift".into(), best.0);
        Ok(best.1)
    }
}

/// The groups that may be pruned.
fn choose(
    (pass, kinds): (&PruneChannels, &[Kind]),
    graph: &Graph,
    groups: &Groups,
    roles: &[Role],
    cx: &mut Context<'_>,
) -> Result<Vec<usize>, PassError> {
    let mut chosen = vec![];
    let mut matched = false;
    for (id, group) in groups.groups.iter().enumerate() {
        let named = pass.only.is_empty() || pass.only.iter().any(|p| matches(p, &group.name));
        if !named || pass.except.iter().any(|p| matches(p, &group.name)) {
            continue;
        }
        matched = true;
        if let Some(why) = &group.whole {
            cx.decline(format!("`{}` stays whole: {why}", group.name));
            continue;
        }
        let readers = roles.iter().filter(|r| r.reads(groups).contains(&id)).count();
        if readers == 0 || group.width < 2 {
            continue;
        }
        if !kinds.contains(&group.kind) {
            if group.kind == Kind::Stream && kinds.contains(&Kind::Channels) {
                cx.decline(format!(
                    "`{}` is a stream that several layers write to (`streams=true` allows it)",
                    group.name
                ));
            }
            continue;
        }
        chosen.push(id);
    }
    if !matched {
        let hint = format!(
            "groups are named after layers, such as `{}`",
            groups.groups.first().map_or("", |g| &g.name)
        );
        return Err(PassError::refused_with("no group has a name that matches", hint));
    }
    if chosen.is_empty() {
        return Err(PassError::refused(format!(
            "`{}` has no group that can lose channels",
            graph.name.as_deref().unwrap_or("the graph")
        )));
    }
    Ok(chosen)
}
