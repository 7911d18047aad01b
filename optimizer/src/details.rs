//! Details of a report in HTML: layers, tensors and samples.

use crate::{Error, TensorDrift};
use pare_graph::{Model, Tensor, evaluate::quality::top};
use pare_passes::{
    Tools,
    analysis::evaluation::{HeldOut, tensor_drifts},
};
use serde::Serialize;
use std::collections::HashMap;

/// The samples that are looked at one by one, and those that are listed.
const LOOKED_AT: usize = 256;
const LISTED: usize = 12;

/// The differences between a model and its original in detail.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Details {
    /// The operators of the original that multiply, in the order of the file.
    pub layers: Vec<LayerChange>,
    /// The drift of tensors along the depth.
    pub tensors: Vec<TensorDrift>,
    /// The samples whose outputs drift most.
    pub samples: Vec<SampleDrift>,
}

/// The cost of an operator before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LayerChange {
    /// The operator and its name.
    pub name: String,
    /// Multiply-accumulates of one sample in the original.
    pub before: u64,
    /// In the result; 0 if nothing computes the same tensor.
    pub after: u64,
}

/// A sample whose outputs drift.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SampleDrift {
    /// Its position.
    pub sample: usize,
    /// The drift of its outputs.
    pub drift: f64,
    /// Its label.
    pub label: Option<i64>,
    /// The class of the original, if an output holds class scores.
    pub before: Option<usize>,
    /// The class of the result.
    pub after: Option<usize>,
}

impl Details {
    /// Runs both models on the samples of the tools.
    pub(crate) fn measure(tools: Tools<'_>, original: &Model, result: &Model) -> Result<Self, Error> {
        let inferred = |model: &Model| {
            let mut model = model.clone();
            model.infer().map_err(Error::invalid)?;
            Ok::<_, Error>(model)
        };
        let (original, result) = (inferred(original)?, inferred(result)?);
        Ok(Self {
            layers: layers(tools, &original, &result),
            tensors: tensor_drifts(tools, &original, &result).map_err(Error::invalid)?,
            samples: samples(tools, &original, &result)?,
        })
    }
}

fn layers(tools: Tools<'_>, original: &Model, result: &Model) -> Vec<LayerChange> {
    let costs = |model: &Model| {
        let first = |id| model.graph.outputs_of(id).iter().flatten().next().copied();
        let cost = model.cost(&tools.sizes(&model.graph));
        let nodes = cost.nodes.iter().filter_map(|node| {
            let output = model.graph.value(first(node.id)?).name.clone();
            Some((output, model.graph.describe(node.id), node.macs.filter(|&macs| macs > 0)?))
        });
        nodes.collect::<Vec<_>>()
    };
    let after: HashMap<_, _> = costs(result).into_iter().map(|(output, _, macs)| (output, macs)).collect();
    let change = |(output, name, before): (String, String, u64)| LayerChange {
        name,
        before,
        after: after.get(&output).copied().unwrap_or(0),
    };
    costs(original).into_iter().map(change).collect()
}

/// The samples that drift most, each compared by itself.
fn samples(tools: Tools<'_>, original: &Model, result: &Model) -> Result<Vec<SampleDrift>, Error> {
    let Some(given) = tools.samples else { return Ok(vec![]) };
    let labels = given.labels().map(<[i64]>::to_vec);
    // Without memory for more, batches have one sample.
    let tools = Tools { memory: 1, ..tools };
    let held_out = HeldOut::new(tools, original, 0..given.len().min(LOOKED_AT)).map_err(Error::invalid)?;
    let mut drifts: Vec<_> = held_out
        .drift_by_batch(result)
        .map_err(Error::invalid)?
        .into_iter()
        .map(|(batch, drift, classes)| SampleDrift {
            sample: batch.start,
            drift,
            label: labels.as_ref().and_then(|labels| labels.get(batch.start).copied()),
            before: classes.as_ref().and_then(|(a, _)| class(a)),
            after: classes.as_ref().and_then(|(_, b)| class(b)),
        })
        .filter(|sample| sample.drift > 0.0)
        .collect();
    drifts.sort_by(|a, b| b.drift.total_cmp(&a.drift));
    drifts.truncate(LISTED);
    Ok(drifts)
}

fn class(scores: &Tensor) -> Option<usize> {
    top(&scores.to_f64()?)
}
