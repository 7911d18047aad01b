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

/// The codes that weights may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// All from -127 to 127.
    All,
    /// Those with which the products of two weights and any two uint8 activations fit into 16 bits:
    /// `255·|q₁ + q₂| < 2¹⁵`.
    Pairs,
}

impl IntegerWeights {
    /// Rounds the weights of a layer.
    pub fn new(
        graph: &Graph,
        layer: &WeightedLayer,
        ranges: Ranges,
        codes: Codes,
    ) -> Result<Self, PassError> {
        // The kernels of depthwise convolutions add in 32 bits.
        let is_depthwise = layer.linear.is_conv() && layer.linear.channels == 1 && layer.linear.outputs == 1;
        let scale = |row: usize| {
            let row = layer.row(row);
            let least = if codes == Codes::All || is_depthwise { 0.0 } else { pair_scale(layer, &row) };
            scale(&row, ranges).max(least)
        };
        Self::with_scales(graph, layer, (0..layer.rows()).map(scale).collect())
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

/// The largest sum of two codes that a kernel adds in 16 bits: `255·128 < 2¹⁵`. One less, since both are rounded.
const PAIR_CODES: f64 = 127.0;

/// The least scale with [`Codes::Pairs`] for the weights of one output.
///
/// Without VNNI instructions, ONNX Runtime's kernels for uint8 and int8 add the products of neighbors in 16 bits, and
/// saturate (`vpmaddubsw`; found by trying). Neighbors are those at `2k` and `2k + 1` of a row, in which the channels of
/// a convolution vary faster than the positions of its kernel.
fn pair_scale(layer: &WeightedLayer, row: &[f64]) -> f64 {
    let (channels, taps) = (layer.linear.channels, layer.linear.taps());
    let at = |k: usize| {
        row.get(k % channels * taps + k / channels).copied().filter(|_| k < row.len()).unwrap_or(0.0)
    };
    // Products of different signs cancel.
    let sum = |k: usize| {
        let (a, b) = (at(k), at(k + 1));
        (a.max(0.0) + b.max(0.0)).max(-a.min(0.0) - b.min(0.0))
    };
    let largest = (0..row.len()).step_by(2).map(sum).fold(0.0, f64::max);
    // Rounded up, since it is stored in single precision.
    f64::from((largest / PAIR_CODES * (1.0 + 1e-6)) as f32)
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
