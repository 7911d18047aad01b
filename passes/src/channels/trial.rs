//! Running candidates on samples that no weight was fitted to.

use super::drift::{Outputs, drift};
use crate::{
    PassError, Tools,
    stats::{Probe, batches, bytes_per_sample, no_samples},
};
use pare_graph::{Graph, Model, NodeId, Tensor, ValueId};
use std::{collections::HashSet, ops::Range};

/// What the original gives for the samples that are held out.
pub struct Trial<'t> {
    tools: Tools<'t>,
    batches: Vec<Range<usize>>,
    outputs: Outputs,
}

/// Values of the original at which candidates may start, batch by batch.
pub struct Start {
    values: Vec<ValueId>,
    names: Vec<String>,
    held: Vec<Vec<Tensor>>,
}

impl<'t> Trial<'t> {
    /// Run the original on the samples in `range`.
    pub fn new(tools: Tools<'t>, model: &Model, range: Range<usize>) -> Result<Self, PassError> {
        let graph = &model.graph;
        let bytes = graph.outputs().iter().map(|&v| bytes_per_sample(graph, v)).sum();
        let batches = batches(graph, range, bytes, tools.memory);
        let mut trial = Self { tools, batches, outputs: vec![] };
        trial.outputs = trial.run(model, graph.outputs())?;
        Ok(trial)
    }

    fn run(&self, model: &Model, wanted: &[ValueId]) -> Result<Vec<Vec<Tensor>>, PassError> {
        let samples = self.tools.samples.ok_or_else(no_samples)?;
        let mut probe = Probe::new(self.tools, model, &open_inputs(&model.graph), wanted)?;
        let run = |batch: &Range<usize>| Ok(probe.run(&samples.batch(batch.clone())?)?);
        self.batches.iter().map(run).collect()
    }

    /// The drift of a whole model.
    pub fn drift(&self, model: &Model) -> Result<f64, PassError> {
        let outputs = self.run(model, model.graph.outputs())?;
        Ok(drift(&self.outputs, &outputs)?)
    }

    /// Run the original up to where a change of these nodes begins to matter.
    pub fn start(&self, model: &Model, changed: &HashSet<NodeId>) -> Result<Start, PassError> {
        let graph = &model.graph;
        let values = boundary(graph, changed);
        let names = values.iter().map(|&v| graph.value(v).name.clone()).collect();
        let inputs = open_inputs(graph);
        let held = if values.iter().all(|v| inputs.contains(v)) {
            // Nothing to run: the samples themselves.
            let samples = self.tools.samples.ok_or_else(no_samples)?;
            let pick = |batch: &Range<usize>| {
                let feeds = samples.batch(batch.clone())?;
                let find = |v: &ValueId| feeds.iter().find(|(n, _)| *n == graph.value(*v).name);
                Ok(values.iter().filter_map(|v| find(v).map(|(_, t)| t.clone())).collect())
            };
            self.batches.iter().map(pick).collect::<Result<_, PassError>>()?
        } else {
            self.run(model, &values)?
        };
        Ok(Start { values, names, held })
    }

    /// The drift of a candidate that is equal to the original up to the start.
    pub fn drift_from(&self, start: &Start, model: &Model) -> Result<f64, PassError> {
        let mut probe = Probe::new(self.tools, model, &start.values, model.graph.outputs())?;
        let mut outputs = vec![];
        for held in &start.held {
            let feeds: Vec<_> = start.names.iter().cloned().zip(held.iter().cloned()).collect();
            outputs.push(probe.run(&feeds)?);
        }
        Ok(drift(&self.outputs, &outputs)?)
    }
}

/// Inputs that a caller has to give.
pub fn open_inputs(graph: &Graph) -> Vec<ValueId> {
    graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_none()).collect()
}

/// Values made before any of the changed nodes, and read by these or by what follows from them.
fn boundary(graph: &Graph, changed: &HashSet<NodeId>) -> Vec<ValueId> {
    let mut after: HashSet<ValueId> = HashSet::new();
    let mut wanted = vec![];
    for &node in graph.nodes().iter() {
        let inputs: Vec<_> =
            graph.inputs_of(node).into_iter().flatten().chain(graph.captured_by(node)).collect();
        if !changed.contains(&node) && !inputs.iter().any(|v| after.contains(v)) {
            continue;
        }
        after.extend(graph.outputs_of(node).into_iter().flatten());
        wanted.extend(inputs.into_iter().filter(|&v| graph.value(v).data.is_none()));
    }
    // An output that no change reaches is given as it is.
    wanted.extend(graph.outputs());
    wanted.retain(|v| !after.contains(v));
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}
