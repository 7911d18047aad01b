//! Going through a model step by step: only the values between what has run and what has not are held.

use crate::{
    analysis::calibration::{Probe, bytes_per_sample, no_samples, open_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{Graph, Model, NodeId, Tensor, ValueId};
use std::{collections::HashSet, ops::Range};

/// How far samples have come through a model.
pub struct Frontier {
    /// Nodes that have run.
    done: HashSet<NodeId>,
    /// Values that the rest needs.
    held: Vec<ValueId>,
    /// Their tensors, batch by batch; `None` at the start, when they are the samples.
    tensors: Option<Vec<Vec<Tensor>>>,
}

/// The next piece of the way.
pub struct Step {
    probe: Probe,
    names: Vec<String>,
    /// How many of the values it gives are asked for; the others are the next frontier.
    asked: usize,
    next: Vec<ValueId>,
    done: HashSet<NodeId>,
}

impl Frontier {
    /// At the inputs of a model.
    pub fn new(graph: &Graph) -> Self {
        Self { done: HashSet::new(), held: open_inputs(graph), tensors: None }
    }

    /// The nodes that must run before these values are there.
    fn before(&self, graph: &Graph, values: &[ValueId]) -> HashSet<NodeId> {
        let is_done = |v| graph.producer(v).is_some_and(|(node, _)| self.done.contains(&node));
        graph.upstream(values.iter().copied(), is_done)
    }

    /// Make ready to compute `wanted`, and what is needed to go on from there: what further nodes read, and what will be
    /// asked for `later`.
    pub fn step(
        &self,
        tools: Tools<'_>,
        model: &Model,
        wanted: &[ValueId],
        later: &[ValueId],
    ) -> Result<Step, PassError> {
        let graph = &model.graph;
        let done: HashSet<_> = self.done.union(&self.before(graph, wanted)).copied().collect();
        let made = done.iter().flat_map(|&n| graph.results(n));
        let mut next: Vec<_> =
            made.chain(open_inputs(graph)).filter(|&v| graph.value(v).data.is_none()).collect();
        let waits = |v: &ValueId| {
            let read = || graph.users(*v).iter().any(|(user, _)| !done.contains(user));
            graph.value(*v).is_output() || later.contains(v) || read()
        };
        next.retain(waits);
        next.sort_unstable();
        let asked: Vec<_> = wanted.iter().chain(&next).copied().collect();
        let probe = Probe::new(tools, model, &self.held, &asked)?;
        let names = self.held.iter().map(|&v| graph.value(v).name.clone()).collect();
        Ok(Step { probe, names, asked: wanted.len(), next, done })
    }

    /// Run a step for a batch: the values that were asked for, then those of the next frontier.
    pub fn run(
        &self,
        tools: Tools<'_>,
        step: &mut Step,
        index: usize,
        batch: &Range<usize>,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>), PassError> {
        let feeds = match &self.tensors {
            Some(tensors) => step.names.iter().cloned().zip(tensors[index].iter().cloned()).collect(),
            None => tools.samples.ok_or_else(no_samples)?.batch(batch.clone())?,
        };
        let mut values = step.probe.run(&feeds)?;
        let next = values.split_off(step.asked);
        Ok((values, next))
    }

    /// Move to the end of a step, whose values are these.
    pub fn advance(&mut self, step: Step, tensors: Vec<Vec<Tensor>>) {
        (self.done, self.held, self.tensors) = (step.done, step.next, Some(tensors));
    }
}

impl Step {
    /// Bytes of a sample at the next frontier.
    pub fn bytes(&self, graph: &Graph) -> u64 {
        self.next.iter().map(|&v| bytes_per_sample(graph, v)).sum()
    }
}
