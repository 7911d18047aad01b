//! Weights that are stored as whole numbers: `x = s·(q - z)`, by a `DequantizeLinear` of constants.

use pare_graph::{DataType, Decline, Graph, NodeRef, Patch, Tensor, ValueId, ValueRef, expect, ops::axis_of};

/// A constant, or what is dequantized to one: its elements as they are stored.
pub(super) fn stored(value: ValueRef<'_>) -> Result<&Tensor, Decline> {
    value.constant().or_else(|_| dequantizer(value)?.input(0)?.constant())
}

fn dequantizer(value: ValueRef<'_>) -> Result<NodeRef<'_>, Decline> {
    let producer = value.producer().ok_or(Decline::Mismatch)?;
    expect(producer.is("DequantizeLinear"))?;
    Ok(producer)
}

/// The elements of a constant, or of what is dequantized to one.
pub(super) fn values(value: ValueRef<'_>) -> Result<Vec<f64>, Decline> {
    value.constant_f64().or_else(|_| dequantized(dequantizer(value)?))
}

/// What a `DequantizeLinear` of constants gives, in f64.
pub fn dequantized(at: NodeRef<'_>) -> Result<Vec<f64>, Decline> {
    let grid = Grid::of(at)?;
    let whole = at.input(0)?.constant_f64()?;
    Ok(whole.into_iter().enumerate().map(|(k, q)| grid.scale(k) * (q - grid.zero(k))).collect())
}

/// Give a `DequantizeLinear` the whole numbers nearest to `values`: `q = round(x / s) + z`. `None` if there is no such
/// node, if others read its numbers, or if one of them is out of the range of their type.
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
    let whole = |(k, x): (usize, &f64)| {
        let q = (x / grid.scale(k)).round_ties_even() + grid.zero(k);
        range.contains(&q).then_some(q)
    };
    let whole = values.iter().enumerate().map(whole).collect::<Option<Vec<_>>>()?;
    old.sole_use().ok()?;
    patch.set_data(old.id, Tensor::from_f64(tensor.dtype(), tensor.shape(), &whole).ok()?);
    Some(())
}

/// Scales and zero points: one, or one for each index of an axis.
struct Grid {
    scales: Vec<f64>,
    zeros: Vec<f64>,
    /// Elements that share an index of the axis, one after another.
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
    fn scales_go_along_their_axis_and_what_is_stored_is_rounded_once() {
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
        // 100 is no int8 at a scale of 0.5.
        assert_eq!(store(&graph, &mut patch, y, &[100.0, 0.0, 0.0, 0.0]), None);
        graph.apply(patch).unwrap();
        assert_eq!(values(graph.value_ref(w)).unwrap(), [-0.5, 1e6]);
    }
}
