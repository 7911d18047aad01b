//! Drift tensor by tensor, along the depth of a model: where quality is lost.

use crate::{
    analysis::calibration::{Probe, batches, bytes_per_sample, no_samples, open_inputs},
    framework::{PassError, Tools},
};
use pare_graph::{
    DataType, EvaluateError, Graph, Model, ValueId,
    evaluate::quality::{Drift, OutputMeasure},
};
use serde::Serialize;

/// The most samples that tensors are compared on.
const SAMPLES: usize = 64;
/// The part of the memory that the tensors of one run may occupy: both models hold them.
const PART: u64 = 4;

/// The distance of a tensor of one model from that of the same name in another.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorDrift {
    /// The tensor.
    pub name: String,
    /// The operator that computes it in the reference.
    pub operator: String,
    /// The squared error over the variance.
    pub drift: f64,
}

impl TensorDrift {
    /// The drift of a tensor that an operator computes.
    pub fn new(name: impl Into<String>, operator: impl Into<String>, drift: f64) -> Self {
        Self { name: name.into(), operator: operator.into(), drift }
    }
}

/// Compares the floats that both models compute under the same name and in the same shape, in the order of the
/// reference's nodes. Tensors are compared in parts that fit into the memory of the tools.
///
/// # Errors
/// If a model is invalid, if there are no samples, or if the engine cannot run a model.
pub fn tensor_drifts(
    tools: Tools<'_>,
    reference: &Model,
    candidate: &Model,
) -> Result<Vec<TensorDrift>, PassError> {
    let inferred = |model: &Model| {
        let mut model = model.clone();
        model.infer().map_err(EvaluateError::from_error)?;
        Ok::<_, PassError>(model)
    };
    let (reference, candidate) = (inferred(reference)?, inferred(candidate)?);
    let sizes = tools.sizes(&reference.graph);
    let bytes = |v: ValueId| bytes_per_sample(&reference.graph, v, &sizes);
    let mut drifts = vec![];
    let pairs = common_tensors(&reference.graph, &candidate.graph);
    let mut rest = &pairs[..];
    while !rest.is_empty() {
        let mut total = 0;
        let fitting = rest.iter().take_while(|(a, _)| {
            total += bytes(*a) * SAMPLES as u64;
            total <= tools.memory / PART
        });
        let (part, later) = rest.split_at(fitting.count().max(1));
        let each = part.iter().map(|(a, _)| bytes(*a)).sum();
        drifts.extend(compare(&reference, &candidate, part, each, tools)?);
        rest = later;
    }
    Ok(drifts)
}

/// Values of both graphs with the same name, type and shape.
fn common_tensors(a: &Graph, b: &Graph) -> Vec<(ValueId, ValueId)> {
    let mut pairs = vec![];
    for &node in a.nodes().iter() {
        for &value in a.outputs_of(node).iter().flatten() {
            let fact = &a.value(value).fact;
            let Some(other) = b.find(&a.value(value).name).filter(|&v| b.producer(v).is_some()) else {
                continue;
            };
            let same = fact.shape().is_some() && fact.shape() == b.value(other).fact.shape();
            if same && fact.dtype().is_some_and(DataType::is_float) {
                pairs.push((value, other));
            }
        }
    }
    pairs
}

fn compare(
    reference: &Model,
    candidate: &Model,
    pairs: &[(ValueId, ValueId)],
    bytes_per_sample: u64,
    tools: Tools<'_>,
) -> Result<Vec<TensorDrift>, PassError> {
    let samples = tools.samples.ok_or_else(no_samples)?;
    let (wanted, others): (Vec<_>, Vec<_>) = pairs.iter().copied().unzip();
    let mut probes = [
        Probe::new(tools, reference, &open_inputs(&reference.graph), &wanted)?,
        Probe::new(tools, candidate, &open_inputs(&candidate.graph), &others)?,
    ];
    let mut drifts = vec![Drift::new(OutputMeasure::Error); pairs.len()];
    let range = 0..samples.len().min(SAMPLES);
    for batch in batches(&reference.graph, range, bytes_per_sample, tools.memory / PART) {
        let feeds = samples.batch(batch)?;
        let [x, y] = &mut probes;
        for ((drift, x), y) in drifts.iter_mut().zip(x.run(&feeds)?).zip(y.run(&feeds)?) {
            drift.add(&x, &y);
        }
    }
    let graph = &reference.graph;
    let entry = |(&value, drift): (&ValueId, Drift)| {
        let operator =
            graph.producer(value).map_or_else(String::new, |(node, _)| graph.node(node).op.clone());
        TensorDrift::new(&graph.value(value).name, operator, drift.value())
    };
    Ok(wanted.iter().zip(drifts).map(entry).collect())
}
