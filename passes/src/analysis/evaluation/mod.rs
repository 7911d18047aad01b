//! Held-out evaluation: compares candidates with the original on samples that no weight was fitted to.

mod drift;
mod layers;

pub use drift::Outputs;
pub use layers::{TensorDrift, tensor_drifts};

use crate::{
    analysis::{
        calibration::{
            Probe, activation_bytes, batches, bytes_per_sample, no_samples, open_inputs, run_batches,
        },
        quality::measures_of,
    },
    framework::{PassError, Tools},
};
use pare_graph::{
    DataType, Graph, Metrics, Model, NodeId, Tensor, ValueId,
    evaluate::quality::{OutputMeasure, QualityMeasures, TokenMask},
};
use std::{collections::HashSet, ops::Range};

/// The quality of a candidate, relative to the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// The drift of the outputs: see [`Drift`](pare_graph::evaluate::quality::Drift).
    pub drift: f64,
    /// The agreement of the output where it is least: see [`Metrics::agreement`].
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
                    return Some(format!("the agreement of {share:.4} is less than {limit}"));
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
    quality: QualityMeasures,
    /// The measures of the outputs.
    measures: Vec<OutputMeasure>,
    names: Vec<String>,
    batches: Vec<Range<usize>>,
    /// The tokens of each batch that are switched on, where others are not.
    tokens: Vec<Option<TokenMask>>,
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
        let sizes = tools.sizes(graph);
        let bytes: u64 = graph.outputs().iter().map(|&v| bytes_per_sample(graph, v, &sizes)).sum();
        let bytes = bytes + activation_bytes(original, &sizes);
        Self::in_batches(tools, original, &batches(graph, range, bytes, tools.memory))
    }

    /// Runs the original on batches of samples.
    ///
    /// # Errors
    /// As [`HeldOut::new`].
    pub fn in_batches(
        tools: Tools<'t>,
        original: &Model,
        batches: &[Range<usize>],
    ) -> Result<Self, PassError> {
        let graph = &original.graph;
        let quality = measures_of(tools, graph);
        let samples = tools.samples.ok_or_else(no_samples)?;
        let outputs = graph.outputs().iter().map(|&v| graph.value(v));
        let measure =
            |v: &pare_graph::Value| quality.measure(&v.name, v.fact.dtype().unwrap_or(DataType::Float));
        let (names, measures) = outputs.map(|v| (v.name.clone(), measure(v))).unzip();
        let mut probe = Probe::new(tools, original, &open_inputs(graph), graph.outputs())?;
        let (mut ran, mut tokens, mut outputs) = (vec![], vec![], vec![]);
        run_batches(&mut probe, samples, batches, &mut |batch, feeds, values| {
            ran.push(batch);
            tokens.push(batch_tokens(&quality, feeds));
            outputs.push(values);
            Ok(())
        })?;
        let mut held_out = Self { tools, quality, measures, names, batches: ran, tokens, outputs: vec![] };
        held_out.outputs = held_out.without_padding(outputs);
        Ok(held_out)
    }

    fn run(&self, model: &Model, values: &[ValueId]) -> Result<Vec<Vec<Tensor>>, PassError> {
        let samples = self.tools.samples.ok_or_else(no_samples)?;
        let mut probe = Probe::new(self.tools, model, &open_inputs(&model.graph), values)?;
        let run = |batch: &Range<usize>| Ok(probe.run(&samples.batch(batch.clone())?)?);
        self.batches.iter().map(run).collect()
    }

    fn run_outputs(&self, model: &Model) -> Result<Outputs, PassError> {
        Ok(self.without_padding(self.run(model, model.graph.outputs())?))
    }

    /// Outputs of a model without the tokens that are switched off.
    pub fn without_padding(&self, mut outputs: Outputs) -> Outputs {
        for (batch, tokens) in outputs.iter_mut().zip(&self.tokens).filter(|(_, tokens)| tokens.is_some()) {
            for (name, output) in self.names.iter().zip(batch) {
                *output = self.quality.without_padding(name, output, tokens.as_ref()).into_owned();
            }
        }
        outputs
    }

    /// The outputs of the original.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// Returns whether an output is compared.
    pub fn compares(&self, output: usize) -> bool {
        self.measures.get(output).is_some_and(|measure| *measure != OutputMeasure::Ignore)
    }

    /// The drift of a candidate.
    pub fn drift(&self, candidate: &Model) -> Result<f64, PassError> {
        Ok(self.drift_to(&self.run_outputs(candidate)?))
    }

    /// The drift of outputs of a candidate.
    pub fn drift_to(&self, outputs: &Outputs) -> f64 {
        drift::drift(&self.measures, &self.outputs, outputs)
    }

    /// The drift of constant outputs, the mean of those of the original: a candidate with more of it is useless.
    pub fn drift_of_constants(&self) -> f64 {
        self.drift_to(&drift::constants(&self.outputs))
    }

    /// The mean entropy of the classes that the original predicts; `None` if no output holds class scores.
    pub fn entropy(&self) -> Option<f64> {
        drift::entropy(&self.measures, &self.outputs)
    }

    /// The noise of a candidate: `Σ(x − y)² / Σx²`, the squared error over the square of the original `x`, of
    /// the float output where it is largest. Infinite where only the candidate is not finite.
    pub fn noise(&self, candidate: &Model) -> Result<f64, PassError> {
        Ok(drift::noise(&self.outputs, &self.run_outputs(candidate)?))
    }

    /// The quality of a candidate.
    pub fn measure(&self, candidate: &Model) -> Result<Quality, PassError> {
        Ok(self.quality(&self.run_outputs(candidate)?))
    }

    fn quality(&self, outputs: &Outputs) -> Quality {
        let labels = self.tools.samples.and_then(pare_graph::Samples::labels);
        let mut by_output: Vec<_> = self.measures.iter().map(|&measure| Metrics::new(measure)).collect();
        for ((batch, a), b) in self.batches.iter().zip(&self.outputs).zip(outputs) {
            let labels = labels.and_then(|all| all.get(batch.clone()));
            for ((metrics, a), b) in by_output.iter_mut().zip(a).zip(b) {
                metrics.add(a, b, labels);
            }
        }
        let least = |of: &dyn Fn(&Metrics) -> Option<f64>| by_output.iter().filter_map(of).reduce(f64::min);
        let gain = |m: &Metrics| Some(m.candidate_accuracy()? - m.reference_accuracy()?);
        Quality {
            drift: self.drift_to(outputs),
            agreement: least(&Metrics::agreement),
            accuracy_drop: least(&gain).map(|gain| -gain),
        }
    }

    /// The drift of a candidate in each batch, with the outputs of both that hold class scores, if there are any.
    pub fn drift_by_batch(
        &self,
        candidate: &Model,
    ) -> Result<Vec<(Range<usize>, f64, Option<(Tensor, Tensor)>)>, PassError> {
        let outputs = self.run_outputs(candidate)?;
        let classes = self.measures.iter().position(|m| matches!(m, OutputMeasure::Classes { .. }));
        let batches = self.batches.iter().zip(&self.outputs).zip(&outputs);
        let one = |((batch, a), b): ((&Range<usize>, &Vec<Tensor>), &Vec<Tensor>)| {
            let drift = drift::drift(&self.measures, &vec![a.clone()], &vec![b.clone()]);
            let classes = classes.and_then(|i| Some((a.get(i)?.clone(), b.get(i)?.clone())));
            (batch.clone(), drift, classes)
        };
        Ok(batches.map(one).collect())
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
        Ok(self.drift_to(&self.run_from(prefix, candidate)?))
    }

    fn run_from(&self, prefix: &Prefix, candidate: &Model) -> Result<Outputs, PassError> {
        let outputs = self.suffix(prefix, candidate)?.outputs(prefix, &mut |_, tensor| tensor.clone())?;
        Ok(self.without_padding(outputs))
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

/// The tokens of a batch that its mask switches on, if it switches others off.
fn batch_tokens(quality: &QualityMeasures, feeds: &[(String, Tensor)]) -> Option<TokenMask> {
    quality.tokens(feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)))
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
