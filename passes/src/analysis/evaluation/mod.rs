//! Held-out evaluation: compares candidates with the original on samples that no weight was fitted to.

mod drift;

pub use drift::{Outputs, drift, entropy, noise};

use crate::{
    analysis::calibration::{Probe, batches, bytes_per_sample, no_samples, open_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{Graph, Metrics, Model, NodeId, Tensor, ValueId};
use std::{collections::HashSet, ops::Range};

/// The quality of a candidate, relative to the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// The drift of the outputs: see [`Drift`](pare_graph::evaluate::quality::Drift).
    pub drift: f64,
    /// The share of rows of class scores with the same highest class, of the output where it is least.
    pub agreement: Option<f64>,
    /// The accuracy of the original minus that of the candidate, if samples have labels; of the output where
    /// it is greatest.
    pub accuracy_drop: Option<f64>,
}

/// The largest accepted loss of quality. A limit on a quantity that cannot be measured is broken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QualityLimits {
    /// The maximum of [`Quality::drift`].
    pub max_drift: Option<f64>,
    /// The minimum of [`Quality::agreement`].
    pub min_agreement: Option<f64>,
    /// The maximum of [`Quality::accuracy_drop`].
    pub max_accuracy_drop: Option<f64>,
}

impl QualityLimits {
    /// Returns whether any limit is set.
    pub fn any(&self) -> bool {
        self.max_drift.is_some() || self.min_agreement.is_some() || self.max_accuracy_drop.is_some()
    }

    /// Checks that the limits are in range.
    ///
    /// # Errors
    /// Names a limit that is negative, NaN, or a share above 1.
    pub fn validate(&self) -> Result<(), String> {
        let limits = [
            ("max_drift", self.max_drift, f64::INFINITY),
            ("min_agreement", self.min_agreement, 1.0),
            ("max_accuracy_drop", self.max_accuracy_drop, 1.0),
        ];
        for (name, value, max) in limits {
            if let Some(value) = value.filter(|v| !(*v >= 0.0 && *v <= max)) {
                return Err(format!("`{name}` cannot be {value}"));
            }
        }
        Ok(())
    }

    /// Returns a sentence about the first limit that is broken, if any.
    pub fn broken(&self, quality: &Quality) -> Option<String> {
        let Quality { drift, agreement, accuracy_drop } = *quality;
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

/// The outputs of the original for held-out samples, to which those of candidates are compared.
pub struct HeldOut<'t> {
    tools: Tools<'t>,
    batches: Vec<Range<usize>>,
    outputs: Outputs,
}

/// The part of the original that a change leaves as it is: the values at its end, batch by batch. Candidates
/// are run from there.
pub struct Prefix {
    values: Vec<ValueId>,
    names: Vec<String>,
    tensors: Vec<Vec<Tensor>>,
}

impl<'t> HeldOut<'t> {
    /// Runs the original on the samples in `range`.
    ///
    /// # Errors
    /// If there are no samples, or the engine cannot run the model.
    pub fn new(tools: Tools<'t>, original: &Model, range: Range<usize>) -> Result<Self, PassError> {
        let graph = &original.graph;
        let bytes = graph.outputs().iter().map(|&v| bytes_per_sample(graph, v)).sum();
        let batches = batches(graph, range, bytes, tools.memory);
        let mut held_out = Self { tools, batches, outputs: vec![] };
        held_out.outputs = held_out.run(original, graph.outputs())?;
        Ok(held_out)
    }

    fn run(&self, model: &Model, values: &[ValueId]) -> Result<Vec<Vec<Tensor>>, PassError> {
        let samples = self.tools.samples.ok_or_else(no_samples)?;
        let mut probe = Probe::new(self.tools, model, &open_inputs(&model.graph), values)?;
        let run = |batch: &Range<usize>| Ok(probe.run(&samples.batch(batch.clone())?)?);
        self.batches.iter().map(run).collect()
    }

    /// The outputs of the original.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// The drift of a candidate.
    pub fn drift(&self, candidate: &Model) -> Result<f64, PassError> {
        let outputs = self.run(candidate, candidate.graph.outputs())?;
        Ok(drift(&self.outputs, &outputs)?)
    }

    /// The noise of a candidate: `Σ(x − y)² / Σx²`, the squared error over the square of the original `x`, of
    /// the float output where it is largest. Infinite where only the candidate is not finite.
    pub fn noise(&self, candidate: &Model) -> Result<f64, PassError> {
        let outputs = self.run(candidate, candidate.graph.outputs())?;
        Ok(noise(&self.outputs, &outputs)?)
    }

    /// The mean entropy of the classes that the original predicts: see [`entropy`].
    pub fn entropy(&self) -> Result<Option<f64>, PassError> {
        Ok(entropy(&self.outputs)?)
    }

    /// The quality of a candidate.
    pub fn measure(&self, candidate: &Model) -> Result<Quality, PassError> {
        self.quality(&self.run(candidate, candidate.graph.outputs())?)
    }

    fn quality(&self, outputs: &Outputs) -> Result<Quality, PassError> {
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

    /// Runs the original up to the values that a change of these nodes does not affect.
    pub fn prefix(&self, original: &Model, changed: &HashSet<NodeId>) -> Result<Prefix, PassError> {
        let graph = &original.graph;
        let values = boundary(graph, changed);
        let names = values.iter().map(|&v| graph.value(v).name.clone()).collect();
        let inputs = open_inputs(graph);
        let tensors = if values.iter().all(|v| inputs.contains(v)) {
            // The values are the samples themselves.
            let samples = self.tools.samples.ok_or_else(no_samples)?;
            let pick = |batch: &Range<usize>| {
                let feeds = samples.batch(batch.clone())?;
                let find = |v: &ValueId| feeds.iter().find(|(n, _)| *n == graph.value(*v).name);
                Ok(values.iter().filter_map(|v| find(v).map(|(_, t)| t.clone())).collect())
            };
            self.batches.iter().map(pick).collect::<Result<_, PassError>>()?
        } else {
            self.run(original, &values)?
        };
        Ok(Prefix { values, names, tensors })
    }

    /// The drift of a candidate that shares a prefix with the original.
    pub fn drift_from(&self, prefix: &Prefix, candidate: &Model) -> Result<f64, PassError> {
        Ok(drift(&self.outputs, &self.run_from(prefix, candidate)?)?)
    }

    fn run_from(&self, prefix: &Prefix, candidate: &Model) -> Result<Outputs, PassError> {
        self.suffix(prefix, candidate)?.outputs(prefix, &mut |_, tensor| tensor.clone())
    }

    /// Loads the part of a model that follows a prefix, to run it several times.
    pub fn suffix(&self, prefix: &Prefix, model: &Model) -> Result<Suffix, PassError> {
        // A change may leave a value of the prefix without users, such as a size that is constant now.
        let given: Vec<_> = prefix.values.iter().copied().filter(|&v| model.graph.has_value(v)).collect();
        Ok(Suffix { probe: Probe::new(self.tools, model, &given, model.graph.outputs())? })
    }
}

/// The part of a model that follows a [`Prefix`].
pub struct Suffix {
    probe: Probe,
}

impl Suffix {
    /// Returns the outputs of the model with one value of the prefix changed.
    pub fn run(
        &mut self,
        prefix: &Prefix,
        value: ValueId,
        change: &mut dyn FnMut(&Tensor) -> Tensor,
    ) -> Result<Outputs, PassError> {
        self.outputs(prefix, &mut |id, tensor| if id == value { change(tensor) } else { tensor.clone() })
    }

    fn outputs(
        &mut self,
        prefix: &Prefix,
        change: &mut dyn FnMut(ValueId, &Tensor) -> Tensor,
    ) -> Result<Outputs, PassError> {
        let mut outputs = vec![];
        for tensors in &prefix.tensors {
            let values = prefix.values.iter().zip(tensors).map(|(&id, tensor)| change(id, tensor));
            let feeds: Vec<_> = prefix.names.iter().cloned().zip(values).collect();
            outputs.push(self.probe.run(&feeds)?);
        }
        Ok(outputs)
    }
}

/// Returns the values that do not depend on the changed nodes but are read by them, or by nodes that depend
/// on them.
fn boundary(graph: &Graph, changed: &HashSet<NodeId>) -> Vec<ValueId> {
    let dependent = graph.downstream(changed.iter().copied());
    let mut boundary: Vec<_> = dependent.iter().flat_map(|&node| graph.operands(node)).collect();
    boundary.retain(|&v| graph.value(v).data.is_none());
    // Outputs of the model that do not depend on the change are taken from the prefix.
    boundary.extend(graph.outputs());
    boundary.retain(|&v| graph.producer(v).is_none_or(|(node, _)| !dependent.contains(&node)));
    boundary.sort_unstable();
    boundary.dedup();
    boundary
}
