//! The initializers that are trained, and their values.

use super::quantized::Codes;
use crate::{analysis::weighted_layers::NameFilter, framework::PassError};
use pare_graph::{DataType, Graph, NodeRef, Patch, Tensor, ValueId, ValueRef};
use std::collections::HashMap;

/// A weight tensor of the model.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    /// The elements that change; all if `None`.
    pub free: Option<Vec<bool>>,
    /// The integers that the model holds in place of the floats.
    pub codes: Option<Codes>,
}

impl Parameter {
    /// The name of the initializer in the model.
    pub fn initializer(&self) -> &str {
        self.codes.as_ref().map_or(&self.name, |codes| &codes.initializer)
    }

    /// Lets no element change.
    pub fn hold(&mut self) {
        self.free = Some(vec![false; self.shape.iter().product()]);
    }
}

/// Sparse weights have at least this share of zeros, and these stay.
const SPARSE: f64 = 0.05;

/// Chooses the parameters: weights and biases of linear operators, scales and shifts of normalizations, slopes, and
/// vectors that are added to or multiplied with activations.
///
/// Embeddings and tables of positions are read by index or whole: a sample updates little of them, and they stay.
///
/// `codes` are those of weights that the model holds in integers.
pub fn parameters(
    graph: &Graph,
    names: NameFilter<'_>,
    codes: &HashMap<String, Codes>,
) -> Vec<(Parameter, Vec<f32>)> {
    let mut found: Vec<ValueId> = vec![];
    for &node in &*graph.nodes() {
        let at = graph.at(node);
        for slot in 0..graph.inputs_of(node).len() {
            let Some(id) = at.optional(slot).map(|value| rounded(value).id) else { continue };
            if is_parameter(at, slot, id) && !found.contains(&id) && names.accepts(&graph.value(id).name) {
                found.push(id);
            }
        }
    }
    let read = |id: ValueId| {
        let value = graph.value(id);
        let tensor = value.tensor()?;
        let values = tensor.to_vec::<f32>().ok()?;
        let zeros = values.iter().filter(|v| **v == 0.0).count();
        let is_sparse = tensor.rank() > 1 && zeros as f64 >= SPARSE * values.len() as f64;
        let free = is_sparse.then(|| values.iter().map(|v| *v != 0.0).collect());
        let codes = codes.get(&value.name).cloned();
        Some((Parameter { name: value.name.clone(), shape: tensor.shape().to_vec(), free, codes }, values))
    };
    found.into_iter().filter_map(read).collect()
}

/// The value that a `QuantizeLinear` and a `DequantizeLinear` round, or the value itself.
fn rounded(value: ValueRef<'_>) -> ValueRef<'_> {
    let source = |value: ValueRef<'_>, op| Some(value.produced_by(op).ok()?.input(0).ok()?.id);
    let id =
        source(value, "DequantizeLinear").and_then(|id| source(value.graph.value_ref(id), "QuantizeLinear"));
    id.map_or(value, |id| value.graph.value_ref(id))
}

fn is_parameter(at: NodeRef<'_>, slot: usize, id: ValueId) -> bool {
    let value = at.graph.value(id);
    let Some(tensor) = value.tensor() else { return false };
    if tensor.dtype() != DataType::Float || value.is_input() || value.is_output() || !tensor.is_finite() {
        return false;
    }
    let is_vector = || tensor.len() > 1 && tensor.shape().iter().filter(|&&d| d > 1).count() == 1;
    match at.node().op.as_str() {
        _ if !at.node().domain().is_empty() => false,
        "Conv"
        | "ConvTranspose"
        | "LayerNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "RMSNormalization"
        | "PRelu" => slot > 0,
        // The running mean and variance are statistics.
        "BatchNormalization" => slot == 1 || slot == 2,
        "Gemm" | "MatMul" => true,
        "Add" | "Sub" | "Mul" => is_vector(),
        _ => false,
    }
}

/// Values of all parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub values: Vec<Vec<f32>>,
}

/// The number of elements that are trained.
pub fn count(parameters: &[Parameter]) -> u64 {
    let free = |p: &Parameter| match &p.free {
        Some(free) => free.iter().filter(|f| **f).count(),
        None => p.shape.iter().product(),
    };
    parameters.iter().map(free).sum::<usize>() as u64
}

/// A patch that sets the parameters of a graph; `None` if the graph has no nodes.
pub fn patch(graph: &Graph, parameters: &[Parameter], weights: &Weights) -> Result<Option<Patch>, PassError> {
    let Some(&first) = graph.nodes().first() else { return Ok(None) };
    let mut patch = Patch::anchored(first);
    for (parameter, values) in parameters.iter().zip(&weights.values) {
        let Some(id) = graph.find(parameter.initializer()) else { continue };
        let tensor = match &parameter.codes {
            None => tensor(&parameter.shape, values)?,
            Some(codes) => codes.quantized(&parameter.shape, values)?,
        };
        patch.set_data(id, tensor);
    }
    Ok(Some(patch))
}

/// A patch that sets the floats of the parameters, of integers too; `None` if the graph has no nodes.
pub fn patch_floats(
    graph: &Graph,
    parameters: &[Parameter],
    weights: &Weights,
) -> Result<Option<Patch>, PassError> {
    let floats: Vec<_> = parameters.iter().map(|p| Parameter { codes: None, ..p.clone() }).collect();
    patch(graph, &floats, weights)
}

/// The values of a parameter as a tensor.
pub fn tensor(shape: &[usize], values: &[f32]) -> Result<Tensor, PassError> {
    Tensor::from_slice(shape, values).map_err(PassError::from_error)
}
