//! Rounding of weights: int8 with a scale per output, `w ≈ s_o·q`.

use super::ranges::{Grid, Ranges};
use crate::{analysis::weighted_layers::WeightedLayer, framework::PassError};
use faer::Mat;
use pare_graph::{DataType, Graph, Tensor};
use std::borrow::Cow;

/// The largest magnitude of the int32 code of a bias: half of the range, so that the sum with the products
/// does not overflow and a corrected bias fits too.
const BIAS_CODES: f64 = (1_u32 << 30) as f64;

/// The weights of a layer in integers.
#[derive(Clone)]
pub struct IntegerWeights {
    /// The scale of each output, of all groups, as stored.
    pub scales: Vec<f64>,
    /// `q` in the layout of the weights, from -127 to 127.
    pub codes: Tensor,
}

impl IntegerWeights {
    /// Rounds the weights of a layer.
    pub fn new(graph: &Graph, layer: &WeightedLayer, ranges: Ranges) -> Result<Self, PassError> {
        let scales = (0..layer.rows()).map(|r| scale(&layer.row(r), ranges)).collect();
        Self::with_scales(graph, layer, scales)
    }

    /// `q = round(w / s)`.
    fn with_scales(graph: &Graph, layer: &WeightedLayer, scales: Vec<f64>) -> Result<Self, PassError> {
        let missing = || PassError::refused(format!("`{}` is not an initializer", layer.name));
        let old = graph.value(layer.linear.weight).tensor().ok_or_else(missing)?;
        let mut codes = vec![0.0; old.len()];
        for (q, w) in layer.weights.iter().enumerate() {
            for i in 0..w.nrows() {
                let scale = scales[q * layer.linear.outputs + i];
                for j in 0..w.ncols() {
                    let code = (w[(i, j)] / scale).round_ties_even().clamp(-127.0, 127.0);
                    codes[layer.linear.offset(q, i, j)] = code;
                }
            }
        }
        let codes = Tensor::from_f64(DataType::Int8, old.shape(), &codes);
        Ok(Self { scales, codes: codes.map_err(PassError::from_error)? })
    }

    /// The same weights with scales so large that the codes of the biases, `b / (s_x·s_o)`, fit into an int32
    /// beside an input of this grid.
    pub fn beside(
        &self,
        graph: &Graph,
        layer: &WeightedLayer,
        grid: &Grid,
    ) -> Result<Cow<'_, Self>, PassError> {
        // Rounded up, since it is stored in single precision.
        let least = |bias: &f64| f64::from((bias.abs() / (grid.scale * BIAS_CODES) * (1.0 + 1e-6)) as f32);
        let scales: Vec<_> =
            self.scales.iter().zip(&layer.bias).map(|(s, bias)| s.max(least(bias))).collect();
        Ok(if scales == self.scales {
            Cow::Borrowed(self)
        } else {
            Cow::Owned(Self::with_scales(graph, layer, scales)?)
        })
    }

    /// `s·q` of each group.
    pub fn values(&self, layer: &WeightedLayer) -> Vec<Mat<f64>> {
        let codes = self.codes.to_f64().unwrap_or_default();
        let (o, linear) = (layer.linear.outputs, &layer.linear);
        let group = |q: usize| {
            Mat::from_fn(o, linear.width(), |i, j| self.scales[q * o + i] * codes[linear.offset(q, i, j)])
        };
        (0..linear.groups).map(group).collect()
    }

    /// `Σw²` and `Σ(w - s·q)²`.
    pub fn energy(&self, layer: &WeightedLayer) -> (f64, f64) {
        let (mut signal, mut noise) = (0.0, 0.0);
        for (w, rounded) in layer.weights.iter().zip(self.values(layer)) {
            for i in 0..w.nrows() {
                for j in 0..w.ncols() {
                    signal += w[(i, j)].powi(2);
                    noise += (w[(i, j)] - rounded[(i, j)]).powi(2);
                }
            }
        }
        (signal, noise)
    }
}

/// The scale of the weights of one output. Symmetric: `q` is from -127 to 127.
fn scale(row: &[f64], ranges: Ranges) -> f64 {
    let largest = row.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
    let error = |scale: f64| {
        row.iter()
            .map(|w| (w - scale * (w / scale).round_ties_even().clamp(-127.0, 127.0)).powi(2))
            .sum::<f64>()
    };
    // Clipping the largest weight a little may reduce the error of the others.
    let shares: &[f64] =
        if ranges == Ranges::Mse { &[1.0, 0.975, 0.95, 0.925, 0.9, 0.85, 0.8, 0.75, 0.7] } else { &[1.0] };
    // As stored.
    let scales = shares.iter().map(|share| f64::from((share * largest / 127.0) as f32)).filter(|s| *s > 0.0);
    scales.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(1.0)
}
