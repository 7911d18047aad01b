//! Quantized weights: integers `q` with scale `s` and zero point `z`, `x = s·(q - z)`, as inputs of
//! `DequantizeLinear`.

use pare_graph::{DataType, Decline, Graph, NodeRef, Patch, Tensor, ValueId, ValueRef, expect, ops::axis_of};

/// Returns a constant, or the constant integers that it is dequantized from.
pub(super) fn integers(value: ValueRef<'_>) -> Result<&Tensor, Decline> {
    value.constant().or_else(|_| dequantizer(value)?.input(0)?.constant())
}

fn dequantizer(value: ValueRef<'_>) -> Result<NodeRef<'_>, Decline> {
    let producer = value.producer().ok_or(Decline::Mismatch)?;
    expect(producer.is("DequantizeLinear"))?;
    Ok(producer)
}

/// Returns the elements of a constant or of a dequantized constant.
pub(super) fn values(value: ValueRef<'_>) -> Result<Vec<f64>, Decline> {
    value.constant_f64().or_else(|_| dequantized(dequantizer(value)?))
}

/// Returns the output of a `DequantizeLinear` of constants, in f64.
pub fn dequantized(at: NodeRef<'_>) -> Result<Vec<f64>, Decline> {
    let grid = Grid::of(at)?;
    let integers = at.input(0)?.constant_f64()?;
    Ok(integers.into_iter().enumerate().map(|(k, q)| grid.scale(k) * (q - grid.zero(k))).collect())
}

/// Replaces the integers of the `DequantizeLinear` that produces `value` by those nearest to `values`,
/// `q = round(x / s) + z`. `None` if there is no such node, if the integers have other users, or if one of
/// the new ones is out of the range of their type.
pub(super) fn store(graph: &Graph, patch: &mut Patch, value: ValueId, values: &[f64]) -> Option<()> {
    let at = dequantizer(graph.value_ref(value)).ok()?;
    let (grid, old) = (Grid::of(at).ok()?, at.input(0).ok()?);
    let tensor = old.value().tensor().filter(|t| t.len() == values.len())?;
    let half = 2_f64.powi(tensor.dtype().bits() as i32 - 1);
    let range = match tensor.dtype() {
        DataType::Int8 | DataType::Int16 | DataType::Int32 => -half..=half - 1.0,
        DataType::Uint8 | DataType::Uint16 => 0.0..=2.0 * half - 1.0,
        _ => return None,
    };
    let quantize = |(k, x): (usize, &f64)| {
        let q = (x / grid.scale(k)).round_ties_even() + grid.zero(k);
        range.contains(&q).then_some(q)
    };
    let integers = values.iter().enumerate().map(quantize).collect::<Option<Vec<_>>>()?;
    old.sole_use().ok()?;
    patch.set_data(old.id, Tensor::from_f64(tensor.dtype(), tensor.shape(), &integers).ok()?);
    Some(())
}

/// Scales and zero points, per tensor or per index of an axis.
struct Grid {
    scales: Vec<f64>,
    zeros: Vec<f64>,
    /// The product of the sizes after the axis: consecutive elements with the same scale.
    inner: usize,
}

impl Grid {
    fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        expect(at.int("block_size", 0) == 0)?;
        let scales = at.input(1)?.constant_f64()?;
        let zeros = at.optional(2).map_or_else(|| Ok(vec![0.0; scales.len()]), ValueRef::constant_f64)?;
        let shape = at.input(0)?.constant()?.shape();
        let inner = match scales.len() {
            1 => 1,
            n => {
                let axis = axis_of(at)?;
                expect(shape.get(axis) == Some(&n))?;
                shape[axis + 1..].iter().product()
            }
        };
        expect(!scales.is_empty() && zeros.len() == scales.len() && scales.iter().all(|s| *s > 0.0))?;
        Ok(Self { scales, zeros, inner })
    }

    fn scale(&self, element: usize) -> f64 {
        self.scales[element / self.inner % self.scales.len()]
    }

    fn zero(&self, element: usize) -> f64 {
        self.zeros[element / self.inner % self.zeros.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text;

    #[test]
    fn dequantizes_along_the_axis_and_stores_rounded_integers() {
        let model = text::parse_model(
            r#"<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2,2] y, float[2] z)
               <int8[2,2] q = {1, -2, 3, 4}, float[2] s = {0.5, 2}, int8[2] o = {0, 1}, int32[2] b = {7, 8}, float t = {0.25}> {
                 y = DequantizeLinear<axis = 1>(q, s, o)
                 w = DequantizeLinear(b, t)
                 z = Add(x, w)
               }"#,
        )
        .unwrap();
        let graph = &model.graph;
        let find = |name: &str| graph.value_ref(graph.find(name).unwrap());
        assert_eq!(values(find("y")).unwrap(), [0.5, -6.0, 1.5, 6.0]);
        assert_eq!(values(find("w")).unwrap(), [1.75, 2.0]);
        assert!(values(find("z")).is_err());
        let mut graph = graph.clone();
        let (w, y) = (graph.find("w").unwrap(), graph.find("y").unwrap());
        let mut patch = Patch::anchored(graph.nodes()[1]);
        store(&graph, &mut patch, w, &[-0.4, 1e6]).unwrap();
        // 100 is out of the range of int8 at a scale of 0.5.
        assert_eq!(store(&graph, &mut patch, y, &[100.0, 0.0, 0.0, 0.0]), None);
        graph.apply(patch).unwrap();
        assert_eq!(values(graph.value_ref(w)).unwrap(), [-0.5, 1e6]);
    }
}
