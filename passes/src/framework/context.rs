//! The state of a running pipeline: reports, patch numbers, and state that passes keep between runs.

use super::{Counter, Figure, FigureUnit, PassInfo, Registry, StepReport, Tools};
use pare_graph::{Applied, Graph, NodeId, Patch};
use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt::Display,
    time::Duration,
};

/// The interface between a running pass and its pipeline.
pub struct Context<'t> {
    /// Resources that the caller provides.
    pub tools: Tools<'t>,
    /// The report of the current pass.
    pub report: StepReport,
    /// Patches applied by all passes so far. Patches are numbered in this order.
    pub(crate) patches: u64,
    pub(crate) stop_after: Option<u64>,
    pub(super) registry: &'static Registry,
    state: HashMap<TypeId, Box<dyn Any>>,
    /// Reports of completed nested steps, in order.
    pub(super) nested: Vec<StepReport>,
    /// The last decline of the current pass at each node, by graph number and node.
    pub(super) declined: HashMap<(usize, NodeId), String>,
    /// Graphs visited so far, which number them.
    pub(super) graphs: usize,
}

impl<'t> Context<'t> {
    /// Creates a context with no patches applied. Nested steps are looked up in `registry`.
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

    /// Returns the state of type `S`, which lasts for one run of the pipeline.
    pub fn state<S: Default + 'static>(&mut self) -> &mut S {
        let state = self.state.entry(TypeId::of::<S>()).or_insert_with(|| Box::<S>::default());
        state.downcast_mut().expect("the entry of a type holds that type")
    }

    /// Returns true once [`RunOptions::stop_after`](super::RunOptions::stop_after) is reached: no change is
    /// permitted any more.
    pub fn stopped(&self) -> bool {
        self.stop_after.is_some_and(|n| self.patches >= n)
    }

    /// Reports a measured quantity, replacing an earlier value of the same name.
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

    /// Takes back a figure that no longer holds.
    pub fn retract(&mut self, name: &str) {
        self.report.figures.shift_remove(name);
    }

    /// Adds `n` to a count of the report.
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

    /// Reports why a candidate is skipped: one sentence that names the node or value.
    pub fn decline(&mut self, why: impl Display) {
        *self.report.declined.entry(why.to_string()).or_default() += 1;
    }

    /// Applies one patch. Returns `None` if the pipeline is [stopped](Self::stopped), if the patch is empty,
    /// or if it is invalid for this graph, which is reported as a decline.
    pub fn apply(&mut self, graph: &mut Graph, patch: Patch) -> Option<Applied> {
        if self.stopped() || patch.is_empty() {
            return None;
        }
        match graph.apply(patch) {
            Ok(applied) => {
                self.count_patch();
                Some(applied)
            }
            Err(invalid) => {
                self.decline(invalid);
                None
            }
        }
    }

    /// Numbers a change that is made without a patch, such as one to the model's functions. If it returns
    /// false, the pipeline is [stopped](Self::stopped) and the change must not be made.
    pub fn permit(&mut self) -> bool {
        let permitted = !self.stopped();
        if permitted {
            self.count_patch();
        }
        permitted
    }

    fn count_patch(&mut self) {
        self.patches += 1;
        self.report.patches += 1;
    }

    /// Takes the reports of a completed pass: those of its nested steps, then its own.
    pub(super) fn take_reports(&mut self, info: &'static PassInfo, time: Duration) -> Vec<StepReport> {
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
        let mut reports = std::mem::take(&mut self.nested);
        for nested in &mut reports {
            nested.within.get_or_insert(info.name);
        }
        reports.push(report);
        reports
    }
}
