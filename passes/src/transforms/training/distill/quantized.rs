//! Integer weights: floats that every step rounds, along which gradients pass straight (Bengio et al. 2013).

use crate::framework::PassError;
use pare_graph::{DataType, Edge, Graph, Node, NodeId, Patch, Tensor, ops::Trait};
use std::collections::HashMap;

/// The integers of a weight tensor: `w ≈ s·(q − z)`, with a scale and a zero point for each index of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// The initializer of the model.
    pub initializer: String,
    dtype: DataType,
    scales: Vec<f64>,
    zeros: Vec<f64>,
    /// Elements of the tensor for one index of the axis, within one index of the axes before it.
    run: usize,
}

impl Codes {
    fn parts(&self, element: usize) -> (f64, f64) {
        let index = element / self.run % self.scales.len();
        (self.scales[index], self.zeros[index])
    }

    fn dequantized(&self, codes: &Tensor) -> Option<Tensor> {
        let values = codes.to_f64()?.into_iter().enumerate().map(|(i, code)| {
            let (scale, zero) = self.parts(i);
            scale * (code - zero)
        });
        Tensor::from_f64(DataType::Float, codes.shape(), &values.collect::<Vec<_>>()).ok()
    }

    /// `q = round(w/s) + z`, clamped to the type.
    pub fn quantized(&self, shape: &[usize], values: &[f32]) -> Result<Tensor, PassError> {
        let code = |(i, value): (usize, &f32)| {
            let (scale, zero) = self.parts(i);
            (f64::from(*value) / scale).round_ties_even() + zero
        };
        let codes: Vec<_> = values.iter().enumerate().map(code).collect();
        Tensor::from_f64(self.dtype, shape, &codes).map_err(PassError::from_error)
    }
}

/// Replaces each integer initializer that a `DequantizeLinear` reads by its floats: rounded by a `QuantizeLinear`,
/// or as they are if they are biases of 32 bits, whose steps are tiny. Returns the codes by the name of the floats.
pub fn unfold(graph: &mut Graph) -> Result<HashMap<String, Codes>, PassError> {
    let mut found = HashMap::new();
    for &node in &*graph.nodes() {
        let Some((patch, codes)) = unfolded(graph, node) else { continue };
        let name = floats_of(&codes);
        // The constant would have another name.
        if graph.find(&name).is_some() {
            continue;
        }
        graph.apply(patch).map_err(PassError::from_error)?;
        found.insert(name, codes);
    }
    Ok(found)
}

/// The name of the floats of an initializer.
fn floats_of(codes: &Codes) -> String {
    format!("{}_unrounded", codes.initializer)
}

fn unfolded(graph: &Graph, node: NodeId) -> Option<(Patch, Codes)> {
    let at = graph.at(node);
    if !at.is("DequantizeLinear") || at.int("block_size", 0) != 0 {
        return None;
    }
    let (weight, scale) = (at.input(0).ok()?, at.input(1).ok()?);
    weight.sole_use().ok()?;
    let tensor = weight.value().tensor().filter(|_| !weight.value().is_input())?;
    let scales = scale.value().tensor()?.to_f64()?;
    let zeros = match at.optional(2) {
        Some(zero) => zero.value().tensor()?.to_f64()?,
        None => vec![0.0; scales.len()],
    };
    let rank = tensor.rank();
    let axis = at.int("axis", 1);
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    let run = if scales.len() == 1 { tensor.len() } else { tensor.shape().get(axis + 1..)?.iter().product() };
    let fits = scales.len() == 1 || tensor.shape().get(axis) == Some(&scales.len());
    if !fits || zeros.len() != scales.len() || scales.iter().any(|s| *s <= 0.0) {
        return None;
    }
    let is_wide = match tensor.dtype() {
        DataType::Int8 | DataType::Uint8 => false,
        DataType::Int32 => true,
        _ => return None,
    };
    let (initializer, dtype, run) = (weight.name().to_owned(), tensor.dtype(), run.max(1));
    let codes = Codes { initializer, dtype, scales, zeros, run };
    let mut patch = Patch::at(at);
    let floats = patch.constant(&floats_of(&codes), codes.dequantized(tensor)?);
    if is_wide {
        for (user, edge) in at.output().ok()?.users() {
            // Only a sum takes a bias of 32 bits.
            let Edge::Input(slot) = edge else { return None };
            if !user.has(Trait::Linear) {
                return None;
            }
            patch.set_input(user.id, slot as usize, floats);
        }
    } else {
        let mut quantize = Node::new("QuantizeLinear");
        quantize.attributes = at.node().attributes.clone();
        let inputs: Vec<_> = std::iter::once(floats)
            .chain([Some(scale), at.optional(2)].into_iter().flatten().map(Into::into))
            .collect();
        let rounded = patch.node("rounded_weight", quantize, &inputs);
        patch.set_input(node, 0, rounded);
    }
    Some((patch, codes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::model;

    const QUANTIZED: &str = "g (float[N,2] x) => (float[N,2] y) <
        int8[2,2] w = {10, -20, 30, 127}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0},
        int32[2] b = {100, -7}, float[2] t = {0.01, 0.02}, int32[2] o = {0, 0}> {
        v = DequantizeLinear<axis = 1>(w, s, z) c = DequantizeLinear<axis = 0>(b, t, o) y = Gemm(x, v, c) }";

    #[test]
    fn floats_round_to_the_same_integers() {
        let original = model(QUANTIZED);
        let mut unfolded = original.clone();
        let codes = unfold(&mut unfolded.graph).unwrap();
        unfolded.check().unwrap();
        unfolded.infer().unwrap();
        let value = |model: &pare_graph::Model, name: &str| {
            model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().clone()
        };
        assert_eq!(codes.len(), 2);
        for (name, codes) in &codes {
            let floats: Vec<f32> = value(&unfolded, name).to_vec().unwrap();
            let old = value(&original, &codes.initializer);
            assert_eq!(codes.quantized(old.shape(), &floats).unwrap(), old);
            if codes.initializer == "w" {
                assert_eq!(floats, [5.0, -5.0, 15.0, 31.75]);
                let far = codes.quantized(&[2, 2], &[1e9, -1e9, 0.0, 0.1]).unwrap();
                assert_eq!(far.to_i64().unwrap(), [127, -128, 0, 0]);
            }
        }
        let ops: Vec<_> = unfolded.graph.nodes().iter().map(|&n| unfolded.graph.node(n).op.clone()).collect();
        assert_eq!(ops, ["QuantizeLinear", "DequantizeLinear", "Gemm"]);
    }
}
