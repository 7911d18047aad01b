//! SynFlow (Tanaka et al. 2020): the synaptic flow through each weight of a network with positive weights and
//! inputs.
//!
//! `R = 1ᵀ·|W_L|·…·|W_1|·1`, without activations and biases, needs no data. The score `w·∂R/∂w` of weight
//! `[i, j]` is `|w_ij|·b_i·x_j`: the flow into the weight times the flow from its output to the outputs of
//! the network. `R` is linear in the outputs of a layer, so `b_i` is `R` with that output one in its entire
//! map and all others zero; `x_j` is the mean over the map. Weights are removed in rounds, after each of
//! which the remaining weights carry the flow.

use super::select::{Budget, Pattern, select};
use crate::{
    analysis::{
        calibration::{Probe, floats, open_inputs, size_of},
        linear::{Linear, Positions},
        weighted_layers::{Kept, WeightedLayer},
    },
    framework::{PassError, Tools},
    statistics::Rows,
};
use pare_graph::{DataType, EvaluateError, Graph, Model, Node, NodeId, Patch, Tensor, ops::Trait};

const ROUNDS: i32 = 20;
/// Outputs of a layer that are evaluated in one run.
const BATCH: usize = 32;

/// Operators besides data movement that map positive numbers to positive numbers: linear with positive weights, or a
/// maximum.
#[rustfmt::skip]
const POSITIVE: &[&str] = &[
    "Conv", "Gemm", "MatMul", "Add", "Sum", "Mul", "Pad", "Cast", "Constant", "AveragePool", "MaxPool",
    "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "Shape", "Resize",
];

/// Returns the masks that remove the share `ratio` of all weights.
pub fn masks(
    tools: Tools<'_>,
    model: &Model,
    layers: &[WeightedLayer],
    pattern: Pattern,
    ratio: f64,
) -> Result<Vec<Kept>, PassError> {
    let model = positive(model, layers)?;
    let all: Vec<_> = layers.iter().collect();
    let mut kept: Vec<Kept> = layers.iter().map(|l| vec![true; l.count()]).collect();
    for round in 1..=ROUNDS {
        tools.progress.step("flow", round as u64, ROUNDS as u64);
        let scores = scores(tools, &model, layers, &kept)?;
        let share = 1.0 - (1.0 - ratio).powf(f64::from(round) / f64::from(ROUNDS));
        kept = select(&scores, &all, pattern, &Budget::All(share));
    }
    Ok(kept)
}

/// The network with the absolute values of its weights, without biases and activations.
fn positive(model: &Model, layers: &[WeightedLayer]) -> Result<Model, PassError> {
    let mut model = model.clone();
    let graph = &mut model.graph;
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if at.has(Trait::Activation) || at.is("Dropout") {
            let (Ok(x), Ok(y)) = (at.input(0), at.output()) else { continue };
            let mut patch = Patch::at(at);
            let identity = patch.node(y.name(), Node::new("Identity"), &[x.into()]);
            patch.replace(y, identity);
            apply(graph, patch)?;
        } else if !at.has(Trait::DataMovement) && !POSITIVE.iter().any(|op| at.is(op)) {
            return Err(PassError::refused_with(
                format!("synflow supports linear layers and activations, and {} is neither", at.describe()),
                "use another criterion, or run `safe` first",
            ));
        }
    }
    let mut patch: Option<Patch> = None;
    for id in graph.initializers() {
        let Some(tensor) = graph.value(id).tensor().filter(|t| t.dtype().is_float()) else { continue };
        let Some(values) = tensor.to_f64() else { continue };
        let sizes: Vec<_> = values.into_iter().map(f64::abs).collect();
        let user = graph.users(id).first().map(|u| u.0);
        let (Ok(sizes), Some(user)) = (Tensor::from_f64(tensor.dtype(), tensor.shape(), &sizes), user) else {
            continue;
        };
        patch.get_or_insert_with(|| Patch::anchored(user)).set_data(id, sizes);
    }
    if let Some(patch) = patch {
        apply(graph, patch)?;
    }
    for layer in layers {
        let linear = linear(graph, layer.node)?;
        let weights: Option<Vec<_>> = (0..linear.groups).map(|q| linear.weight(graph, q)).collect();
        let mut patch = Patch::anchored(layer.node);
        let zeros = vec![0.0; layer.rows()];
        if weights.and_then(|w| linear.store(graph, &mut patch, &w, &zeros)).is_some() {
            apply(graph, patch)?;
        }
    }
    Ok(model)
}

fn apply(graph: &mut Graph, patch: Patch) -> Result<(), PassError> {
    graph.apply(patch).map(drop).map_err(PassError::from_error)
}

fn linear(graph: &Graph, node: NodeId) -> Result<Linear, PassError> {
    let lost = || PassError::refused(format!("{} is not a linear layer any more", graph.describe(node)));
    Linear::of(graph.at(node)).map_err(|_| lost())
}

/// The scores of all weights under the masks `kept`.
fn scores(
    tools: Tools<'_>,
    model: &Model,
    layers: &[WeightedLayer],
    kept: &[Kept],
) -> Result<Vec<Vec<f64>>, PassError> {
    let mut model = model.clone();
    for (layer, kept) in layers.iter().zip(kept) {
        let mut patch = Patch::anchored(layer.node);
        if layer.zero(&model.graph, kept, &mut patch).is_some() {
            apply(&mut model.graph, patch)?;
        }
    }
    let graph = &model.graph;
    let linears = layers.iter().map(|l| linear(graph, l.node)).collect::<Result<Vec<_>, _>>()?;
    let wanted: Vec<_> = linears.iter().flat_map(|l| [l.input, l.output]).collect();
    let mut probe = Probe::new(tools, &model, &open_inputs(graph), &wanted)?;
    let values = probe.run(&inputs(graph, 1, 1.0)?)?;
    let fixed = open_inputs(graph).into_iter().find_map(|v| graph.value(v).fact.shape()?.first()?.size());
    let mut all = vec![];
    for (l, (layer, linear)) in layers.iter().zip(&linears).enumerate() {
        let (x, y) = (&values[2 * l], &values[2 * l + 1]);
        let inflow = inflow(linear, x, y)?;
        let outflow = outflow(tools, &model, linear, y.shape(), fixed.unwrap_or(BATCH))?;
        let (o, d) = (linear.outputs, linear.width());
        let mut scores = Vec::with_capacity(layer.count());
        for q in 0..linear.groups {
            let weight = linear.weight(graph, q).ok_or_else(|| not_finite(layer))?;
            for i in 0..o {
                scores.extend((0..d).map(|j| weight[(i, j)] * outflow[q * o + i] * inflow[q * d + j]));
            }
        }
        if !scores.iter().all(|s| s.is_finite()) {
            return Err(not_finite(layer));
        }
        all.push(scores);
    }
    Ok(all)
}

fn not_finite(layer: &WeightedLayer) -> PassError {
    PassError::refused(format!("the flow through `{}` overflows", layer.name))
}

/// The inputs of the model, all elements equal to `fill`.
fn inputs(graph: &Graph, batch: usize, fill: f64) -> Result<Vec<(String, Tensor)>, PassError> {
    let input = |v| {
        let value = graph.value(v);
        let unknown = || PassError::refused(format!("synflow cannot fill the input `{}`", value.name));
        let dtype = value.fact.dtype().filter(|d| d.is_float()).ok_or_else(unknown)?;
        let dims = value.fact.shape().ok_or_else(unknown)?.iter().map(size_of);
        let mut shape = dims.collect::<Option<Vec<_>>>().ok_or_else(unknown)?;
        if let Some(first) = shape.first_mut() {
            *first *= batch;
        }
        let count = shape.iter().product();
        let tensor = Tensor::from_f64(dtype, &shape, &vec![fill; count]).map_err(|_| unknown())?;
        Ok((value.name.clone(), tensor))
    };
    open_inputs(graph).into_iter().map(input).collect()
}

/// The flow into each input of a row, the mean over all places.
fn inflow(linear: &Linear, x: &Tensor, y: &Tensor) -> Result<Vec<f64>, PassError> {
    let mut rows = Rows::new(linear.groups * linear.width());
    let positions: Vec<_> = (0..linear.positions(y.shape())).collect();
    let at = Positions { sample: 0, chosen: &positions };
    linear.gather_inputs(&floats(x)?, x.shape(), y.shape(), at, &mut rows);
    let mut sums = vec![0.0; rows.width];
    for row in rows.data.chunks_exact(rows.width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
    }
    Ok(sums.into_iter().map(|s| s / positions.len().max(1) as f64).collect())
}

/// The flow from each output of a layer to the outputs of the network, computed on `most` samples at a time.
fn outflow(
    tools: Tools<'_>,
    model: &Model,
    linear: &Linear,
    shape: &[usize],
    most: usize,
) -> Result<Vec<f64>, PassError> {
    let graph = &model.graph;
    let mut probe = Probe::new(tools, model, &[linear.output], graph.outputs())?;
    let outputs = linear.groups * linear.outputs;
    let axis = if linear.is_conv() { 1 } else { shape.len() - 1 };
    let inner: usize = shape[axis + 1..].iter().product();
    let size: usize = shape[1..].iter().product();
    let name = graph.value(linear.output).name.clone();
    let dtype = graph.value(linear.output).fact.dtype().unwrap_or(DataType::Float);
    let mut flows: Vec<f64> = vec![];
    // One more sample without any output measures the constant part.
    for first in (0..=outputs).step_by(most.clamp(1, BATCH)) {
        let units: Vec<_> = (first..=outputs).take(most.clamp(1, BATCH)).collect();
        // A fixed batch has to be full.
        let batch = if most < BATCH { most } else { units.len() };
        let mut y = vec![0.0; batch * size];
        for (sample, &unit) in units.iter().enumerate() {
            let map = y[sample * size..(sample + 1) * size].iter_mut().enumerate();
            map.filter(|(k, _)| k / inner % outputs == unit).for_each(|(_, v)| *v = 1.0);
        }
        let batch_shape = [&[batch], &shape[1..]].concat();
        let y = Tensor::from_f64(dtype, &batch_shape, &y).map_err(EvaluateError::from_error)?;
        let fixed = if most < BATCH { 1 } else { batch };
        let mut feeds = inputs(graph, fixed, 0.0)?;
        feeds.push((name.clone(), y));
        let results = probe.run(&feeds)?;
        let mut sums = vec![0.0; batch];
        for result in &results {
            let values = floats(result)?;
            let row = values.len() / batch.max(1);
            let add = |(sum, row): (&mut f64, &[f32])| *sum += row.iter().map(|&v| f64::from(v)).sum::<f64>();
            sums.iter_mut().zip(values.chunks_exact(row.max(1))).for_each(add);
        }
        flows.extend(&sums[..units.len()]);
    }
    let constant = flows.pop().unwrap_or_default();
    Ok(flows.into_iter().map(|flow| flow - constant).collect())
}
