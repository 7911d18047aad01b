//! The rewrite driver: rules are tried at every node of every graph until none fires.

use super::{Context, PassError};
use pare_graph::{Decline, Graph, Model, NodeId, NodeRef, Patch};
use std::collections::{HashSet, VecDeque};

/// Patches per node of the original graph after which a rewrite counts as not converging.
const PATCHES_PER_NODE: usize = 20;

impl Context<'_> {
    /// Visits every graph of the model: subgraph bodies before the graph that contains them, functions last.
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

    /// Tries `rule` at every node whose operator is in `ops` (at every node if `ops` is empty) of every
    /// graph, and again around each applied patch, until it fires nowhere.
    ///
    /// # Errors
    ///
    /// [`PassError::NotConverging`] if the rule fires without end.
    pub fn rewrite(
        &mut self,
        model: &mut Model,
        ops: &[&str],
        rule: impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
    ) -> Result<(), PassError> {
        self.each_graph(model, |graph, cx| cx.rewrite_graph(graph, ops, &rule))
    }

    /// [`rewrite`](Self::rewrite) for one graph.
    pub fn rewrite_graph(
        &mut self,
        graph: &mut Graph,
        ops: &[&str],
        rule: impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
    ) -> Result<(), PassError> {
        let matches = |graph: &Graph, id: NodeId| ops.is_empty() || ops.contains(&graph.node(id).op.as_str());
        let mut budget = PATCHES_PER_NODE * (graph.node_count() + 1);
        loop {
            let before = self.patches;
            self.sweep(graph, &matches, &rule, &mut budget)?;
            // A match may depend on uses further away than the neighbours of a patch.
            if self.patches == before {
                return Ok(());
            }
        }
    }

    /// Tries `rule` once at every matching node, and again around each applied patch.
    fn sweep(
        &mut self,
        graph: &mut Graph,
        matches: &impl Fn(&Graph, NodeId) -> bool,
        rule: &impl Fn(NodeRef<'_>) -> Result<Patch, Decline>,
        budget: &mut usize,
    ) -> Result<(), PassError> {
        let mut queue: VecDeque<_> = graph.nodes().iter().copied().filter(|&id| matches(graph, id)).collect();
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
                let node = applied.added.first().copied().unwrap_or(id);
                return Err(PassError::NotConverging(graph.describe(node)));
            }
            for node in applied.added.into_iter().chain(applied.touched) {
                if graph.has_node(node) && matches(graph, node) && queued.insert(node) {
                    queue.push_back(node);
                }
            }
        }
        Ok(())
    }
}
