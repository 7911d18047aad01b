//! What is written: `QuantizeLinear` and `DequantizeLinear` behind activations, `DequantizeLinear` before weights and biases.

use super::{Places, integers, plan::Plan, ranges::Grid};
use crate::{analysis::weighted_layers::WeightedLayer, framework::PassError};
use pare_graph::{DataType, Graph, Node, NodeId, Patch, Tensor, ValueId};
use std::collections::BTreeMap;

fn refused(e: impl ToString) -> PassError {
    PassError::refused(e.to_string())
}

/// Put a pair behind every value of the plan. All its readers then read what is left of it, where it is made in integers;
/// else only those in integers. The grids of what the layers read.
pub fn activations(
    graph: &mut Graph,
    plan: &Plan,
    grids: &BTreeMap<ValueId, Grid>,
) -> Result<Places, PassError> {
    for &(value, _) in &plan.values {
        let Some(grid) = grids.get(&value) else { continue };
        let users = graph.users(value);
        let in_integers = |node: &NodeId| plan.integer.contains(node);
        let made = graph.value_ref(value).producer().is_some_and(|at| {
            let before = at.input(0).ok().and_then(|v| v.producer());
            let clips = pare_graph::ops::ClipView::of(at).is_ok();
            in_integers(&at.id) || clips && before.is_some_and(|at| in_integers(&at.id))
        });
        let users: Vec<_> = users.into_iter().filter(|(user, _)| made || in_integers(user)).collect();
        let Some(&(anchor, _)) = users.first() else { continue };
        let name = graph.value(value).name.clone();
        let mut patch = Patch::anchored(graph.producer(value).map_or(anchor, |p| p.0));
        let scale = patch.constant(&format!("{name}_scale"), Tensor::scalar(grid.scale as f32));
        let zero = patch.constant(&format!("{name}_zero_point"), Tensor::scalar(grid.zero));
        let quantize = Node::new("QuantizeLinear");
        let quantized = patch.node(&format!("{name}_quantized"), quantize, &[value.into(), scale, zero]);
        let dequantize = Node::new("DequantizeLinear");
        let rounded = patch.node(&format!("{name}_dequantized"), dequantize, &[quantized, scale, zero]);
        for (user, wire) in users {
            if let pare_graph::Edge::Input(slot) = wire {
                patch.set_input(user, slot as usize, rounded);
            }
        }
        graph.apply(patch).map_err(refused)?;
    }
    let grid = |(node, value): (&NodeId, &ValueId)| Some((*node, *grids.get(value)?));
    Ok(plan.layers.iter().filter_map(grid).collect())
}

/// Store a layer's weights as int8 with a scale for each output. Where its input is quantized too, the bias becomes int32
/// in units of the products: `b = s_x·s_o·q`.
pub fn weights(
    graph: &mut Graph,
    layer: &WeightedLayer,
    scales: &[f64],
    input: Option<Grid>,
) -> Result<(), PassError> {
    let linear = &layer.linear;
    let old = graph.value(linear.weight).tensor().ok_or_else(|| refused("weights are gone"))?.clone();
    let mut numbers = vec![0.0; old.len()];
    for (q, group) in integers(layer, scales).iter().enumerate() {
        for i in 0..group.nrows() {
            (0..group.ncols()).for_each(|j| numbers[linear.offset(q, i, j)] = group[(i, j)]);
        }
    }
    let mut patch = Patch::anchored(layer.node);
    let constant = |patch: &mut Patch, hint: &str, dtype, shape: &[usize], values: &[f64]| {
        let tensor = Tensor::from_f64(dtype, shape, values).map_err(refused)?;
        Ok::<_, PassError>(patch.constant(hint, tensor))
    };
    let name = &layer.name;
    let axis = linear.weight_axes().0 as i64;
    let whole = constant(&mut patch, &format!("{name}_quantized"), DataType::Int8, old.shape(), &numbers)?;
    let scale = constant(&mut patch, &format!("{name}_scale"), old.dtype(), &[scales.len()], scales)?;
    let zeros = vec![0.0; scales.len()];
    let zero = constant(&mut patch, &format!("{name}_zero_point"), DataType::Int8, &[scales.len()], &zeros)?;
    let dequantize = Node::new("DequantizeLinear").with("axis", axis);
    let weight = patch.node(&format!("{name}_dequantized"), dequantize, &[whole, scale, zero]);
    patch.set_input(layer.node, 1, weight);
    // The bias of a `MatMul` is an `Add` behind it, which stays in floats.
    let at = graph.at(layer.node);
    if let (Some(grid), Some(bias)) = (input, at.optional(2).filter(|_| !at.is("MatMul"))) {
        // Corrected by now.
        let values = bias.constant_f64().map_err(|_| refused("a bias is gone"))?;
        if values.len() != scales.len() {
            return graph.apply(patch).map(drop).map_err(refused);
        }
        let units: Vec<_> = scales.iter().map(|s| f64::from((s * grid.scale) as f32)).collect();
        let numbers: Vec<_> = values.iter().zip(&units).map(|(b, unit)| b / unit).collect();
        let hint = bias.name().to_owned();
        let whole =
            constant(&mut patch, &format!("{hint}_quantized"), DataType::Int32, &[numbers.len()], &numbers)?;
        let scale = constant(&mut patch, &format!("{hint}_scale"), old.dtype(), &[units.len()], &units)?;
        let zero =
            constant(&mut patch, &format!("{hint}_zero_point"), DataType::Int32, &[units.len()], &zeros)?;
        let dequantize = Node::new("DequantizeLinear").with("axis", 0_i64);
        let bias = patch.node(&format!("{hint}_dequantized"), dequantize, &[whole, scale, zero]);
        patch.set_input(layer.node, 2, bias);
    }
    graph.apply(patch).map(drop).map_err(refused)
}
