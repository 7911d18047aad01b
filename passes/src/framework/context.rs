//! What a pass works with: rewriting, counting, declining, and what the caller lends it.

use super::{
    Counter, Figure, FigureUnit, PassError, PassInfo, Pipeline, Registry, Scratch, Step, StepReport,
};
use crate::statistics::Statistics;
use pare_graph::{Applied, Decline, Evaluate, Graph, Model, NodeId, NodeRef, Patch, Samples};
use std::{
    any::{Any, TypeId},
    collections::{HashMap, HashSet, VecDeque},
    fmt::Display,
    time::{Duration, Instant},
};

/// What the caller lends to a pipeline.
#[derive(Clone, Copy)]
pub struct Tools<'t> {
    /// Runs models. Passes that need one refuse without it; constant folding does what it can itself.
    pub engine: Option<&'t dyn Evaluate>,
    /// Inputs to calibrate on and to measure drift with.
    pub samples: Option<&'t dyn Samples>,
    /// Sums over activations that were taken before; samples are run for those that are missing.
    pub statistics: Option<&'t Statistics>,
    /// Hears of long work.
    pub progress: &'t dyn Progress,
    /// Seeds every random choice.
    pub seed: u64,
    /// Threads for our own arithmetic and for timing; 0 for as many as there are cores.
    pub threads: usize,
    /// Bytes that activations may occupy during calibration.
    pub memory: u64,
}

impl Default for Tools<'_> {
    fn default() -> Self {
        Self {
            engine: None,
            samples: None,
            statistics: None,
            progress: &NoProgress,
            seed: 0,
            threads: 0,
            memory: 2 << 30,
        }
    }
}

/// Hears how far long work is.
pub trait Progress: Sync {
    /// `done` of `total` of `what`; called often.
    fn step(&self, what: &str, done: u64, total: u64);
}

/// Says nothing.
pub struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _: &str, _: u64, _: u64) {}
}

/// What a running pass works with.
pub struct Context<'t> {
    /// What the caller lends.
    pub tools: Tools<'t>,
    /// What this pass did so far.
    pub report: StepReport,
    /// Patches applied by all passes so far; each has a number, which bisecting counts on.
    pub(crate) patches: u64,
    pub(crate) stop_after: Option<u64>,
    registry: &'static Registry,
    /// State that a pass keeps between its runs in one pipeline, by its type.
    state: HashMap<TypeId, Box<dyn Any>>,
    /// Reports of nested steps, in the order in which they ended.
    nested: Vec<StepReport>,
    /// Places left alone by the pass that runs, each with its last reason.
    declined: HashMap<(usize, NodeId), String>,
    graphs: usize,
}

/// Rounds after which a repetition is cut off; pipelines converge in two or three.
pub(super) const MAX_ROUNDS: u64 = 20;

/// How many patches a pass may apply for each node it found, before it counts as running in circles.
const PATCHES_PER_NODE: usize = 20;

impl<'t> Context<'t> {
    /// A context with no patches applied; nested steps are those of `registry`.
    pub fn new(tools: Tools<'t>, registry: &'static Registry) -> Self {
        Self {
            tools,
            report: StepReport::default(),
            patches: 0,
            stop_after: None,
            registry,
            state: HashMap::new(),
            nested: vec![],
            declined: HashMap::new(),
            graphs: 0,
        }
    }

    /// State of type `S` that the pass keeps between its runs in one pipeline.
    pub fn state<S: Default + 'static>(&mut self) -> &mut S {
        let state = self.state.entry(TypeId::of::<S>()).or_insert_with(|| Box::<S>::default());
        state.downcast_mut().expect("the entry of a type holds that type")
    }

    /// A runner for models that are not the one being transformed.
    pub fn scratch(&self) -> Scratch<'t> {
        Scratch { tools: self.tools, registry: self.registry }
    }

    /// Runs other passes on the model, such as `"lift-constants,fold-constants"`. Their patches are numbered with those of
    /// this pass, and each is reported under its own name as a nested step.
    ///
    /// # Errors
    ///
    /// The first error of a nested pass; a pipeline that does not parse is refused.
    pub fn run_nested(&mut self, pipeline: &str, model: &mut Model) -> Result<(), PassError> {
        let pipeline = Pipeline::parse(pipeline, self.registry)
            .map_err(|e| PassError::refused(format!("the nested pipeline is invalid: {e}")))?;
        self.run_steps(pipeline.steps(), model)
    }

    fn run_steps(&mut self, steps: &[Step], model: &mut Model) -> Result<(), PassError> {
        for step in steps {
            let pass = match step {
                Step::Pass { pass, .. } => pass,
                Step::Preset { steps, .. } => {
                    self.run_steps(steps.steps(), model)?;
                    continue;
                }
                Step::Repeat(steps) => {
                    let mut before = u64::MAX;
                    for _ in 0..MAX_ROUNDS {
                        if std::mem::replace(&mut before, self.patches) == self.patches {
                            break;
                        }
                        self.run_steps(steps.steps(), model)?;
                    }
                    continue;
                }
            };
            if self.stopped() {
                return Ok(());
            }
            let outer = (std::mem::take(&mut self.report), std::mem::take(&mut self.declined));
            let start = Instant::now();
            let ran = pass.run(model, self);
            let reports = self.finish(pass.info(), start.elapsed());
            self.nested.extend(reports);
            (self.report, self.declined) = outer;
            ran?;
        }
        Ok(())
    }

    /// The reports of the nested steps that ran since the last call.
    pub(super) fn take_nested(&mut self) -> Vec<StepReport> {
        std::mem::take(&mut self.nested)
    }

    /// Whether `--stop-after` was reached: nothing is applied any more.
    pub fn stopped(&self) -> bool {
        self.stop_after.is_some_and(|n| self.patches >= n)
    }

    /// Adds to a measured quantity of the report.
    pub fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.report.figures.insert(name.into(), Figure { value, detail: false, unit: FigureUnit::None });
    }

    /// Reports a share, shown as a percentage.
    pub fn share(&mut self, name: impl Into<String>, value: f64) {
        self.report.figures.insert(name.into(), Figure { value, detail: false, unit: FigureUnit::Percent });
    }

    /// Reports a quantity that explains the search rather than the result.
    pub fn detail(&mut self, name: impl Into<String>, value: f64) {
        self.report.figures.insert(name.into(), Figure { value, detail: true, unit: FigureUnit::None });
    }

    /// Adds to a count of the report.
    pub fn count(&mut self, what: Counter, n: u64) {
        if n > 0 {
            *self.report.counts.entry(what).or_default() += n;
        }
    }

    /// Adds to a count of the report that is part of `total`.
    pub fn count_of(&mut self, what: Counter, n: u64, total: u64) {
        self.count(what, n);
        self.report.totals.insert(what, total);
    }

    /// Report that something was left alone, and why.
    pub fn decline(&mut self, why: impl Display) {
        *self.report.declined.entry(why.to_string()).or_default() += 1;
    }

    /// Apply one patch. `None` if `--stop-after` was reached, or if the graph refuses the patch; then the reason
    /// is reported.
    pub fn apply(&mut self, graph: &mut Graph, patch: Patch) -> Option<Applied> {
        if self.stopped() || patch.is_empty() {
            return None;
        }
        match graph.apply(patch) {
            Ok(applied) => {
                self.patches += 1;
                self.report.patches += 1;
                Some(applied)
            }
            Err(refused) => {
                self.decline(refused);
                None
            }
        }
    }

    /// Count a change that was made without a patch (to the model as a whole). False if `--stop-after` was
    /// reached: then the change must not be made.
    pub fn permit(&mut self) -> bool {
        let permitted = !self.stopped();
        if permitted {
            self.patches += 1;
            self.report.patches += 1;
        }
        permitted
    }

    /// Visit every graph of the model: bodies of subgraphs before the graph around them, functions last.
    pub fn each_graph(
        &mut self,
        model: &mut Model,
        mut visit: impl FnMut(&mut Graph, &mut Self) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        for graph in model.graphs_mut() {
            self.visit(graph, &mut visit)?;
        }
        Ok(())
    }

    fn visit(
        &mut self,
        graph: &mut Graph,
        visit: &mut dyn FnMut(&mut Graph, &mut Self) -> Result<(), PassError>,
    ) -> Result<(), PassError> {
        for &id in graph.nodes().iter() {
            if graph.node(id).subgraphs().next().is_some() {
                graph.with_subgraphs(id, |bodies, _| {
                    bodies.iter_mut().try_for_each(|body| self.visit(body, visit))
                })?;
            }
        }
        self.graphs += 1;
        visit(graph, self)
    }

    /// Try `rule` at every node whose operator is among `ops` (every node, if there are none), in every graph,
    /// again around each patch, until it fires nowhere.
    pub fn rewrite(
        &mut self,
        model: &mut Model,
        ops: &[&str],
        rule: impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
    ) -> Result<(), PassError> {
        self.each_graph(model, |graph, cx| cx.rewrite_graph(graph, ops, &rule))
    }

    /// `rewrite` for one graph.
    pub fn rewrite_graph(
        &mut self,
        graph: &mut Graph,
        ops: &[&str],
        rule: impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
    ) -> Result<(), PassError> {
        let wanted = |graph: &Graph, id: NodeId| ops.is_empty() || ops.contains(&graph.node(id).op.as_str());
        let mut budget = PATCHES_PER_NODE * (graph.node_count() + 1);
        loop {
            let before = self.patches;
            self.sweep(graph, &wanted, &rule, &mut budget)?;
            // A node may wait for a use to go that lies further off than the nodes around the patch.
            if self.patches == before {
                return Ok(());
            }
        }
    }

    /// Try `rule` at every wanted node, and again around each patch.
    fn sweep(
        &mut self,
        graph: &mut Graph,
        wanted: &impl Fn(&Graph, NodeId) -> bool,
        rule: &impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
        budget: &mut usize,
    ) -> Result<(), PassError> {
        let mut queue: VecDeque<_> = graph.nodes().iter().copied().filter(|&id| wanted(graph, id)).collect();
        let mut queued: HashSet<_> = queue.iter().copied().collect();
        while let Some(id) = queue.pop_front() {
            queued.remove(&id);
            if !graph.has_node(id) || self.stopped() {
                continue;
            }
            self.declined.remove(&(self.graphs, id));
            let patch = match rule(graph.at(id)) {
                Ok(patch) => patch,
                Err(Decline::Mismatch) => continue,
                Err(Decline::Because(why)) => {
                    self.declined.insert((self.graphs, id), why);
                    continue;
                }
            };
            let Some(applied) = self.apply(graph, patch) else { continue };
            *budget -= 1;
            if *budget == 0 {
                return Err(PassError::NotConverging(
                    graph.describe(applied.added.first().copied().unwrap_or(id)),
                ));
            }
            for node in applied.added.into_iter().chain(applied.touched) {
                if graph.has_node(node) && wanted(graph, node) && queued.insert(node) {
                    queue.push_back(node);
                }
            }
        }
        Ok(())
    }

    /// The reports of the pass that ran: those of its nested steps, then its own.
    pub(super) fn finish(&mut self, info: &'static PassInfo, time: Duration) -> Vec<StepReport> {
        let mut report = std::mem::take(&mut self.report);
        for (_, why) in self.declined.drain() {
            *report.declined.entry(why).or_default() += 1;
        }
        report.declined.sort_keys();
        if let Some(what) = info.counts.filter(|_| report.patches > 0) {
            *report.counts.entry(what).or_default() += report.patches;
        }
        report.pass = info.name;
        report.effect = Some(info.effect);
        report.time = time;
        let mut reports = self.take_nested();
        for nested in &mut reports {
            nested.within.get_or_insert(info.name);
        }
        reports.push(report);
        reports
    }
}
