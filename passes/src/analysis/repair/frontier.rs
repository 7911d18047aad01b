//! Evaluating a model segment by segment: only the values between what has run and what has not are in
//! memory.

use crate::{
    analysis::{
        calibration::{Probe, bytes_per_sample, no_samples, open_inputs},
        quality::Padding,
    },
    framework::{PassError, Tools},
};
use pare_graph::{Graph, Model, NodeId, Tensor, ValueId, ops::Bindings};
use std::{collections::HashSet, ops::Range};

/// The boundary between the nodes of a model that have run and those that have not.
pub(super) struct Frontier {
    /// Nodes that have run.
    done: HashSet<NodeId>,
    /// Values that the other nodes need.
    values: Vec<ValueId>,
    /// Their tensors, batch by batch; `None` at the inputs, where they are the samples.
    tensors: Option<Vec<Vec<Tensor>>>,
}

/// The part of a model between a frontier and the next.
pub(super) struct Segment {
    probe: Probe,
    names: Vec<String>,
    /// The requested values among those it computes; the others are the next frontier.
    requested: Vec<ValueId>,
    padding: Padding,
    next: Vec<ValueId>,
    done: HashSet<NodeId>,
}

/// The values that a segment computes from one batch.
pub(super) struct SegmentValues {
    /// The requested values.
    pub requested: Vec<Tensor>,
    /// The values of the next frontier.
    pub next: Vec<Tensor>,
}

impl Frontier {
    /// The frontier at the inputs of a model.
    pub fn new(graph: &Graph) -> Self {
        Self { done: HashSet::new(), values: open_inputs(graph), tensors: None }
    }

    /// The nodes that have to run before these values are known.
    fn pending(&self, graph: &Graph, values: &[ValueId]) -> HashSet<NodeId> {
        let is_done = |v| graph.producer(v).is_some_and(|(node, _)| self.done.contains(&node));
        graph.upstream(values.iter().copied(), is_done)
    }

    /// Loads the segment that computes `requested`. The next frontier holds what further nodes read, and the
    /// values in `later`.
    pub fn segment(
        &self,
        tools: Tools<'_>,
        model: &Model,
        requested: &[ValueId],
        later: &[ValueId],
    ) -> Result<Segment, PassError> {
        let graph = &model.graph;
        let done: HashSet<_> = self.done.union(&self.pending(graph, requested)).copied().collect();
        let computed = done.iter().flat_map(|&n| graph.results(n));
        let mut next: Vec<_> =
            computed.chain(open_inputs(graph)).filter(|&v| graph.value(v).data.is_none()).collect();
        let is_needed = |v: &ValueId| {
            let read = || graph.users(*v).iter().any(|(user, _)| !done.contains(user));
            graph.value(*v).is_output() || later.contains(v) || read()
        };
        next.retain(is_needed);
        next.sort_unstable();
        let computed: Vec<_> = requested.iter().chain(&next).copied().collect();
        let probe = Probe::new(tools, model, &self.values, &computed)?;
        let names = self.values.iter().map(|&v| graph.value(v).name.clone()).collect();
        let padding = Padding::of(tools, graph);
        Ok(Segment { probe, names, requested: requested.to_vec(), padding, next, done })
    }

    /// Runs a segment on the batch with this index. Copies of other tokens take the place of padding in the
    /// requested values.
    pub fn run(
        &self,
        tools: Tools<'_>,
        graph: &Graph,
        segment: &mut Segment,
        index: usize,
        batch: &Range<usize>,
    ) -> Result<SegmentValues, PassError> {
        let inputs = || Ok::<_, PassError>(tools.samples.ok_or_else(no_samples)?.batch(batch.clone())?);
        let feeds = match &self.tensors {
            Some(tensors) => segment.names.iter().cloned().zip(tensors[index].iter().cloned()).collect(),
            None => inputs()?,
        };
        let mut requested = segment.probe.run(&feeds)?;
        let next = requested.split_off(segment.requested.len());
        if !segment.padding.is_none() {
            segment.padding.fill(graph, &inputs()?, &segment.requested, &mut requested);
        }
        Ok(SegmentValues { requested, next })
    }

    /// Moves to the end of a segment, given the values there, batch by batch.
    pub fn advance(&mut self, segment: Segment, tensors: Vec<Vec<Tensor>>) {
        (self.done, self.values, self.tensors) = (segment.done, segment.next, Some(tensors));
    }
}

impl Segment {
    /// The bytes of one sample at the next frontier.
    pub fn bytes(&self, graph: &Graph, sizes: &Bindings) -> u64 {
        self.next.iter().map(|&v| bytes_per_sample(graph, v, sizes)).sum()
    }
}
