//! Running candidates on samples that no weight was fitted to.

mod drift;

pub use drift::{Outputs, drift, entropy};

use crate::{
    analysis::calibration::{Probe, batches, bytes_per_sample, no_samples, open_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{Graph, Metrics, Model, NodeId, Tensor, ValueId};
use std::{collections::HashSet, ops::Range};

/// How far a candidate lies from the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// See [`drift`].
    pub drift: f64,
    /// Share of the rows of class scores whose highest is the same, of the output where it is least.
    pub agreement: Option<f64>,
    /// What the share of right classes loses, if samples have labels.
    pub accuracy_drop: Option<f64>,
}

/// How far a candidate may lie from the original. QualityLimits that cannot be measured are broken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QualityLimits {
    /// The greatest [`Quality::drift`].
    pub max_drift: Option<f64>,
    /// The least [`Quality::agreement`].
    pub min_agreement: Option<f64>,
    /// The greatest [`Quality::accuracy_drop`].
    pub max_accuracy_drop: Option<f64>,
}

impl QualityLimits {
    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.max_drift.is_some() || self.min_agreement.is_some() || self.max_accuracy_drop.is_some()
    }

    /// Whether they are limits that something can keep.
    pub fn validate(&self) -> Result<(), String> {
        let limits = [
            ("max_drift", self.max_drift, f64::INFINITY),
            ("min_agreement", self.min_agreement, 1.0),
            ("max_accuracy_drop", self.max_accuracy_drop, 1.0),
        ];
        for (name, value, most) in limits {
            if let Some(value) = value.filter(|v| !(*v >= 0.0 && *v <= most)) {
                return Err(format!("`{name}` cannot be {value}"));
            }
        }
        Ok(())
    }

    /// The first limit that is broken, as a sentence.
    pub fn broken(&self, measured: &Quality) -> Option<String> {
        let Quality { drift, agreement, accuracy_drop } = *measured;
        if let Some(limit) = self.max_drift.filter(|&limit| !(drift <= limit)) {
            return Some(format!("the drift of {drift:.3e} is more than {limit}"));
        }
        if let Some(limit) = self.min_agreement {
            match agreement {
                None => return Some("no output holds class scores, so agreement cannot be measured".into()),
                Some(share) if !(share >= limit) => {
                    return Some(format!("{share:.4} of the samples keep their class, fewer than {limit}"));
                }
                Some(_) => {}
            }
        }
        if let Some(limit) = self.max_accuracy_drop {
            match accuracy_drop {
                None => return Some("the samples have no `labels`, so accuracy cannot be measured".into()),
                Some(drop) if !(drop <= limit) => {
                    return Some(format!("accuracy drops by {drop:.4}, more than {limit}"));
                }
                Some(_) => {}
            }
        }
        None
    }
}

/// What the original gives for the samples that are held out.
pub struct HeldOut<'t> {
    tools: Tools<'t>,
    batches: Vec<Range<usize>>,
    outputs: Outputs,
}

/// Values of the original at which candidates may start, batch by batch.
pub struct Prefix {
    values: Vec<ValueId>,
    names: Vec<String>,
    held: Vec<Vec<Tensor>>,
}

impl<'t> HeldOut<'t> {
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

    /// How unsure the original is of its classes: see [`entropy`].
    pub fn entropy(&self) -> Result<Option<f64>, PassError> {
        Ok(entropy(&self.outputs)?)
    }

    /// All measures of a whole model.
    pub fn measure(&self, model: &Model) -> Result<Quality, PassError> {
        self.judge(&self.run(model, model.graph.outputs())?)
    }

    /// All measures of a candidate that is equal to the original up to the start.
    pub fn measure_from(&self, start: &Prefix, model: &Model) -> Result<Quality, PassError> {
        self.judge(&self.run_from(start, model)?)
    }

    fn judge(&self, outputs: &Outputs) -> Result<Quality, PassError> {
        let labels = self.tools.samples.and_then(pare_graph::Samples::labels);
        let mut by_output: Vec<Metrics> = vec![];
        for ((batch, a), b) in self.batches.iter().zip(&self.outputs).zip(outputs) {
            by_output.resize(a.len(), Metrics::default());
            let labels = labels.and_then(|all| all.get(batch.clone()));
            for ((metrics, a), b) in by_output.iter_mut().zip(a).zip(b) {
                metrics.add(a, b, labels);
            }
        }
        let least = |of: &dyn Fn(&Metrics) -> Option<f64>| by_output.iter().filter_map(of).reduce(f64::min);
        let gain = |m: &Metrics| Some(m.candidate_accuracy()? - m.reference_accuracy()?);
        Ok(Quality {
            drift: drift(&self.outputs, outputs)?,
            agreement: least(&Metrics::agreement),
            accuracy_drop: least(&gain).map(|gain| -gain),
        })
    }

    /// Run the original up to where a change of these nodes begins to matter.
    pub fn prefix(&self, model: &Model, changed: &HashSet<NodeId>) -> Result<Prefix, PassError> {
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
        Ok(Prefix { values, names, held })
    }

    /// The drift of a candidate that is equal to the original up to the start.
    pub fn drift_from(&self, start: &Prefix, model: &Model) -> Result<f64, PassError> {
        Ok(drift(&self.outputs, &self.run_from(start, model)?)?)
    }

    fn run_from(&self, start: &Prefix, model: &Model) -> Result<Outputs, PassError> {
        self.suffix(start, model)?.outputs(start, &mut |_, tensor| tensor.clone())
    }

    /// Load what follows a start, to run it several times.
    pub fn suffix(&self, start: &Prefix, model: &Model) -> Result<Suffix, PassError> {
        Ok(Suffix { probe: Probe::new(self.tools, model, &start.values, model.graph.outputs())? })
    }

    /// What the original gives.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }
}

/// What follows a [`Prefix`].
pub struct Suffix {
    probe: Probe,
}

impl Suffix {
    /// The outputs when one of the values at the start is changed.
    pub fn run(
        &mut self,
        start: &Prefix,
        value: ValueId,
        change: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> Result<Outputs, PassError> {
        self.outputs(start, &mut |id, tensor| if id == value { change(tensor) } else { tensor.clone() })
    }

    fn outputs(
        &mut self,
        start: &Prefix,
        change: &mut dyn FnMut(ValueId, &Tensor) -> Tensor,
    ) -> Result<Outputs, PassError> {
        let mut outputs = vec![];
        for held in &start.held {
            let values = start.values.iter().zip(held).map(|(&id, tensor)| change(id, tensor));
            let feeds: Vec<_> = start.names.iter().cloned().zip(values).collect();
            outputs.push(self.probe.run(&feeds)?);
        }
        Ok(outputs)
    }
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
