//! Insertion of `QuantizeLinear` and `DequantizeLinear` (QDQ).

use super::{
    plan::{MOVING, QuantizationPlan, QuantizedValue},
    ranges::{Grid, InputGrids},
    weights::IntegerWeights,
};
use crate::{analysis::weighted_layers::WeightedLayer, framework::PassError};
use pare_graph::{DataType, Edge, Graph, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueId, ops::ClipView};
use std::collections::{BTreeMap, HashMap};

/// Inserts a QDQ pair after every value of the plan. If the value is produced by an integer kernel, all its
/// users but views that bodies read take the rounded value, otherwise only those with integer kernels. Returns the
/// grids of the layers' inputs.
pub fn activations(
    graph: &mut Graph,
    plan: &QuantizationPlan,
    grids: &BTreeMap<ValueId, Grid>,
) -> Result<InputGrids, PassError> {
    let ranges: HashMap<_, _> = plan.values.iter().map(|v| (v.value, v.range)).collect();
    let grid_of = |value: &ValueId| grids.get(ranges.get(value)?);
    for &QuantizedValue { value, .. } in &plan.values {
        let Some(grid) = grid_of(&value) else { continue };
        let users = graph.users(value);
        let in_integers = |node: &NodeId| plan.integer.contains(node);
        let produced_in_integers = graph.value_ref(value).producer().is_some_and(|at| {
            let before = at.input(0).ok().and_then(|v| v.producer());
            let clips = ClipView::of(at).is_ok();
            in_integers(&at.id) || clips && before.is_some_and(|at| in_integers(&at.id))
        });
        let reads = |user: &NodeId| in_integers(user) || produced_in_integers && !feeds_body(graph.at(*user));
        let users: Vec<_> = users.into_iter().filter(|(user, _)| reads(user)).collect();
        let Some(&(anchor, _)) = users.first() else { continue };
        let name = graph.value(value).name.clone();
        let mut patch = Patch::anchored(graph.producer(value).map_or(anchor, |p| p.0));
        let scale = patch.constant(&format!("{name}_scale"), Tensor::scalar(grid.scale as f32));
        let zero = patch.constant(&format!("{name}_zero_point"), Tensor::scalar(grid.zero));
        let quantize = Node::new("QuantizeLinear");
        let quantized = patch.node(&format!("{name}_quantized"), quantize, &[value.into(), scale, zero]);
        let dequantize = Node::new("DequantizeLinear");
        let rounded = patch.node(&format!("{name}_dequantized"), dequantize, &[quantized, scale, zero]);
        for (user, edge) in users {
            if let Edge::Input(slot) = edge {
                patch.set_input(user, slot as usize, rounded);
            }
        }
        graph.apply(patch).map_err(PassError::from_error)?;
    }
    let grid = |(node, value): (&NodeId, &ValueId)| Some((*node, *grid_of(value)?));
    Ok(plan.layers.iter().filter_map(grid).collect())
}

/// Returns true if a body reads the result of a node that only moves elements. ONNX Runtime 1.32 moves a QDQ pair
/// behind such nodes, and crashes where it meets a body.
fn feeds_body(at: NodeRef<'_>) -> bool {
    let is_body = |(user, edge): (NodeRef<'_>, Edge)| !matches!(edge, Edge::Input(_)) || feeds_body(user);
    MOVING.contains(&at.op()) && at.output().is_ok_and(|output| output.users().into_iter().any(is_body))
}

/// Stores the weights of a layer as int8 with a scale per output. If its input is quantized too, its bias
/// becomes int32 in units of the products, `b = s_x·s_o·q`.
pub fn weights(
    graph: &mut Graph,
    layer: &WeightedLayer,
    weights: &IntegerWeights,
    input: Option<&Grid>,
) -> Result<(), PassError> {
    let (linear, scales) = (&layer.linear, &weights.scales);
    let mut patch = Patch::anchored(layer.node);
    let weight = Quantized {
        name: &layer.name,
        values: weights.codes.clone(),
        scales: Tensor::from_f64(DataType::Float, &[scales.len()], scales).map_err(PassError::from_error)?,
        axis: linear.weight_axes().0,
    };
    let weight = weight.dequantize(&mut patch)?;
    patch.set_input(layer.node, 1, weight);
    let at = graph.at(layer.node);
    // The bias of a `MatMul` is an `Add` after it, which stays in floats.
    if let (Some(grid), Some(bias)) = (input, at.optional(2).filter(|_| !at.is("MatMul"))) {
        let values = bias
            .constant_f64()
            .map_err(|_| PassError::refused(format!("`{}` is not constant", bias.name())))?;
        if values.len() == scales.len() {
            let units: Vec<_> = scales.iter().map(|s| f64::from((s * grid.scale) as f32)).collect();
            let integers: Vec<_> = values.iter().zip(&units).map(|(b, unit)| b / unit).collect();
            // Such a bias stays in float, and so does the computation of its layer.
            if !integers.iter().all(|code| code.abs() <= f64::from(i32::MAX)) {
                return graph.apply(patch).map(drop).map_err(PassError::from_error);
            }
            let bias = Quantized {
                name: bias.name(),
                values: Tensor::from_f64(DataType::Int32, &[integers.len()], &integers)
                    .map_err(PassError::from_error)?,
                scales: Tensor::from_f64(DataType::Float, &[units.len()], &units)
                    .map_err(PassError::from_error)?,
                axis: 0,
            };
            let bias = bias.dequantize(&mut patch)?;
            patch.set_input(layer.node, 2, bias);
        }
    }
    graph.apply(patch).map(drop).map_err(PassError::from_error)
}

/// A constant stored in integers, with scales along an axis and zero points of zero.
struct Quantized<'n> {
    name: &'n str,
    values: Tensor,
    scales: Tensor,
    axis: usize,
}

impl Quantized<'_> {
    /// Adds the constants and a `DequantizeLinear`.
    fn dequantize(self, patch: &mut Patch) -> Result<Ref, PassError> {
        let Self { name, values, scales, axis } = self;
        let zeros = Tensor::from_f64(values.dtype(), scales.shape(), &vec![0.0; scales.len()])
            .map_err(PassError::from_error)?;
        let values = patch.constant(&format!("{name}_quantized"), values);
        let scales = patch.constant(&format!("{name}_scale"), scales);
        let zeros = patch.constant(&format!("{name}_zero_point"), zeros);
        let node = Node::new("DequantizeLinear").with("axis", axis as i64);
        Ok(patch.node(&format!("{name}_dequantized"), node, &[values, scales, zeros]))
    }
}
