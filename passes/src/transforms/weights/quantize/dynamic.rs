//! Products whose inputs are quantized while the model runs.
//!
//! ```text
//! q, s, z ← DynamicQuantizeLinear(x)
//! y = Cast(MatMulInteger(q, W_q, z))·(s·s_o) + b
//! ```
//!
//! Layers that read the same value share its quantization. ONNX Runtime fuses the rest into one kernel.

use super::weights::IntegerWeights;
use crate::{analysis::weighted_layers::WeightedLayer, framework::PassError};
use pare_graph::{DataType, Graph, Node, Patch, Ref, Tensor, ValueId};

/// Replaces these layers, which are products with matrices.
pub fn replace<'l>(
    graph: &mut Graph,
    layers: impl Iterator<Item = (&'l WeightedLayer, &'l IntegerWeights)>,
) -> Result<(), PassError> {
    let mut by_input: Vec<(ValueId, Vec<_>)> = vec![];
    for pair in layers {
        let input = pair.0.linear.input;
        match by_input.iter_mut().find(|(value, _)| *value == input) {
            Some((_, users)) => users.push(pair),
            None => by_input.push((input, vec![pair])),
        }
    }
    // From the last: the output of a layer, which is replaced, may be the input of later ones.
    for (input, users) in by_input.into_iter().rev() {
        let mut patch = Patch::anchored(users[0].0.node);
        let name = graph.value(input).name.clone();
        let hints = ["quantized", "scale", "zero_point"].map(|part| format!("{name}_{part}"));
        let quantized = patch.node_with(
            Node::new("DynamicQuantizeLinear"),
            &[Some(input.into())],
            &hints.each_ref().map(|hint| Some(hint.as_str())),
        );
        let [Some(codes), Some(scale), Some(zero)] = quantized[..] else { continue };
        for (layer, weights) in users {
            let at = graph.at(layer.node);
            let Ok(output) = at.output() else { continue };
            let name = &layer.name;
            let matrix = patch.constant(&format!("{name}_quantized"), matrix(layer, weights)?);
            let scales = Tensor::from_f64(DataType::Float, &[weights.scales.len()], &weights.scales);
            let scales = patch.constant(&format!("{name}_scale"), scales.map_err(PassError::from_error)?);
            let mut node = |part: &str, node: Node, inputs: &[Ref]| {
                patch.node(&format!("{}_{part}", output.name()), node, inputs)
            };
            let sum = node("sum", Node::new("MatMulInteger"), &[codes, matrix, zero]);
            let sum = node("sum_float", Node::new("Cast").with("to", 1_i64), &[sum]);
            let scales = node("scale", Node::new("Mul"), &[scale, scales]);
            let mut product = node("product", Node::new("Mul"), &[sum, scales]);
            if let Some(bias) = at.optional(2) {
                product = node("biased", Node::new("Add"), &[product, bias.id.into()]);
            }
            patch.replace(output, product);
        }
        graph.apply(patch).map_err(PassError::from_error)?;
    }
    Ok(())
}

/// The codes of the weights, with a column for each output.
fn matrix(layer: &WeightedLayer, weights: &IntegerWeights) -> Result<Tensor, PassError> {
    let (outputs, inputs) = (layer.linear.outputs, layer.linear.width());
    if layer.linear.weight_axes().0 > 0 {
        return Ok(weights.codes.clone());
    }
    let codes = weights.codes.to_f64().unwrap_or_default();
    let transposed: Vec<_> =
        (0..inputs * outputs).map(|k| codes[(k % outputs) * inputs + k / outputs]).collect();
    Tensor::from_f64(DataType::Int8, &[inputs, outputs], &transposed).map_err(PassError::from_error)
}
