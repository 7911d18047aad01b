//! Units whose output has stopped changing: they are not trained until it changes again.
//!
//! Let `ŷ(t)` be the output of a unit on some samples at time `t`, as a vector of length 1. The similarity
//! `φ(t) = ŷ(t)·ŷ(t−1)` has the velocity `v(t) = φ(t) − φ(t−1) − μ·v(t−1)`, and a unit is at equilibrium while
//! `|v| < ε` (Bragagnolo et al. 2022).

use super::parameters::Parameter;
use crate::analysis::linear::Linear;
use pare_graph::{Graph, NodeId, Tensor};

/// The weight `μ` of the last velocity.
const MOMENTUM: f64 = 0.5;
/// Gradients of some units are computed if they are at most this share: their part of the layer's gradient is copied.
const PAYS: f64 = 0.875;

/// The units of a layer with a trained weight.
struct Layer {
    /// The name of its output.
    output: String,
    /// The axis of the units in the output.
    axis: usize,
    units: usize,
    /// The position of the weight among the parameters.
    weight: usize,
    /// Elements of the weight for one unit, within one index of the axes before.
    run: usize,
    /// The position of the bias.
    bias: Option<usize>,
}

/// The motion of a layer's units.
#[derive(Default)]
struct Motion {
    output: Vec<f32>,
    similarity: Option<Vec<f64>>,
    velocity: Option<Vec<f64>>,
}

/// The units of all layers, and those that are at equilibrium.
pub struct Equilibrium {
    threshold: f64,
    layers: Vec<Layer>,
    motions: Vec<Motion>,
}

/// The part of a parameter that is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    /// The position of the parameter.
    pub parameter: usize,
    /// The units that are trained.
    pub units: Vec<usize>,
    /// The number of all units.
    of: usize,
    /// Elements for one unit, within one index of the axes before.
    run: usize,
    is_weight: bool,
}

impl Equilibrium {
    /// Reads the layers of a graph whose weights are parameters.
    pub fn new(threshold: f64, graph: &Graph, parameters: &[Parameter]) -> Self {
        let position = |name: &str| parameters.iter().position(|p| p.name == name);
        let layer = |&node: &NodeId| {
            let at = graph.at(node);
            let linear = Linear::of(at).ok()?;
            let output = graph.value_ref(linear.output);
            let weight = position(&graph.value(linear.weight).name)?;
            let units = linear.groups * linear.outputs;
            if units < 2 || graph.use_count(linear.weight) != 1 {
                return None;
            }
            let axis = if at.is("Conv") { 1 } else { output.rank().ok()?.checked_sub(1)? };
            let run = if linear.outputs > 1 { linear.offset(0, 1, 0) } else { linear.offset(1, 0, 0) };
            let bias = linear.bias_value().filter(|&bias| graph.use_count(bias) == 1);
            let bias = bias.and_then(|bias| position(&graph.value(bias).name));
            let bias = bias.filter(|&i| parameters[i].shape.iter().product::<usize>() == units);
            Some(Layer { output: output.name().into(), axis, units, weight, run, bias })
        };
        let layers: Vec<_> = graph.nodes().iter().filter_map(layer).collect();
        let motions = layers.iter().map(|_| Motion::default()).collect();
        Self { threshold, layers, motions }
    }

    /// The names of the values to observe.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().map(|layer| layer.output.as_str())
    }

    /// Takes the outputs at the next time, and returns the parts that are trained from then on.
    pub fn observe(&mut self, outputs: &[Tensor]) -> Vec<Moving> {
        let mut found = vec![];
        for ((layer, motion), output) in self.layers.iter().zip(&mut self.motions).zip(outputs) {
            let Ok(values) = output.to_vec::<f32>() else { continue };
            let inner = output.shape().get(layer.axis + 1..).map_or(1, |sizes| sizes.iter().product());
            let is_moving = motion.next(values, layer.units, inner, self.threshold);
            let units: Vec<_> = (0..layer.units).filter(|&unit| is_moving[unit]).collect();
            let of = layer.units;
            let weight = Moving { parameter: layer.weight, units, of, run: layer.run, is_weight: true };
            let bias =
                layer.bias.map(|parameter| Moving { parameter, run: 1, is_weight: false, ..weight.clone() });
            found.extend([Some(weight), bias].into_iter().flatten());
        }
        found
    }
}

impl Motion {
    /// Takes the next output, where units repeat after `inner` elements each. Returns true for units that move; all
    /// do until the velocity is known.
    fn next(&mut self, output: Vec<f32>, units: usize, inner: usize, threshold: f64) -> Vec<bool> {
        let last = std::mem::replace(&mut self.output, output);
        if last.len() != self.output.len() {
            return vec![true; units];
        }
        let mut sums = vec![[0.0_f64; 3]; units];
        let blocks = last.chunks_exact(inner.max(1)).zip(self.output.chunks_exact(inner.max(1)));
        for (block, (a, b)) in blocks.enumerate() {
            let mut part = [0.0_f32; 3];
            for (a, b) in a.iter().zip(b) {
                part[0] += a * b;
                part[1] += a * a;
                part[2] += b * b;
            }
            let sum = &mut sums[block % units];
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
        }
        // A unit that is and was zero has not changed.
        let cosine = |[ab, aa, bb]: [f64; 3]| if aa == bb && aa == 0.0 { 1.0 } else { ab / (aa * bb).sqrt() };
        let similarity: Vec<_> = sums.into_iter().map(cosine).collect();
        let Some(before) = self.similarity.replace(similarity.clone()) else { return vec![true; units] };
        let known = self.velocity.take().unwrap_or_else(|| vec![0.0; units]);
        let velocity =
            similarity.iter().zip(&before).zip(&known).map(|((new, old), v)| new - old - MOMENTUM * v);
        let velocity: Vec<f64> = velocity.collect();
        let is_moving = velocity.iter().map(|v| v.is_nan() || v.abs() >= threshold).collect();
        self.velocity = Some(velocity);
        is_moving
    }
}

impl Moving {
    /// The units to compute the gradient of; `None` for all.
    pub fn wanted(&self) -> Option<&[usize]> {
        let pays = self.is_weight && self.units.len() as f64 <= PAYS * self.of as f64;
        (self.units.is_empty() || pays).then_some(&self.units[..])
    }

    /// The elements of the parameter that are trained, out of those that are without the equilibrium.
    pub fn free(&self, otherwise: Option<&Vec<bool>>, len: usize) -> Vec<bool> {
        let mut is_moving = vec![false; self.of];
        self.units.iter().for_each(|&unit| is_moving[unit] = true);
        let is_free = |i: usize| is_moving[i / self.run % self.of] && otherwise.is_none_or(|free| free[i]);
        (0..len).map(is_free).collect()
    }

    /// The gradient of all units from that of the wanted ones: zeros elsewhere.
    pub fn spread(&self, part: &[f32], len: usize) -> Vec<f32> {
        let mut all = vec![0.0; len];
        let rows = part.chunks_exact(self.run).enumerate();
        for (k, row) in rows {
            let (outer, unit) = (k / self.units.len(), self.units[k % self.units.len()]);
            let start = (outer * self.of + unit) * self.run;
            all[start..start + self.run].copy_from_slice(row);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::model;

    #[test]
    fn the_velocity_is_that_of_the_similarity() {
        let mut motion = Motion::default();
        // The first unit turns by less and less; the second does not turn, but grows.
        let output = |angle: f32, size: f32| vec![angle.cos(), angle.sin(), size, size];
        let angles = [0.0_f32, 0.8, 1.2, 1.3, 1.31];
        let mut velocity = 0.0;
        for (t, &angle) in angles.iter().enumerate() {
            let is_moving = motion.next(output(angle, 1.0 + angle), 2, 2, 0.06);
            if t < 2 {
                assert_eq!(is_moving, [true, true]);
                continue;
            }
            let turned = |t: usize| f64::from(angles[t] - angles[t - 1]).cos();
            velocity = turned(t) - turned(t - 1) - MOMENTUM * velocity;
            let known = motion.velocity.as_ref().unwrap();
            assert!((known[0] - velocity).abs() < 1e-6 && known[1].abs() < 1e-6, "{known:?} {velocity}");
            assert_eq!(is_moving, [velocity.abs() >= 0.06, false]);
        }
    }

    fn moving(units: &[usize], of: usize, run: usize) -> Moving {
        Moving { parameter: 0, units: units.to_vec(), of, run, is_weight: true }
    }

    #[test]
    fn parts_spread_over_rows_or_columns() {
        let rows = moving(&[0, 2], 3, 2);
        assert_eq!(rows.spread(&[1.0, 2.0, 3.0, 4.0], 6), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
        assert_eq!(rows.free(None, 6), [true, true, false, false, true, true]);
        let columns = moving(&[1], 3, 1);
        assert_eq!(columns.spread(&[1.0, 2.0], 6), [0.0, 1.0, 0.0, 0.0, 2.0, 0.0]);
        let sparse = vec![true, false, true, true, true, true];
        assert_eq!(columns.free(Some(&sparse), 6), [false, false, false, false, true, false]);
    }

    #[test]
    fn few_units_that_rest_are_computed() {
        assert_eq!(moving(&[0, 1, 2, 3, 4, 5, 6, 7], 8, 1).wanted(), None);
        assert_eq!(moving(&[1, 5], 8, 1).wanted(), Some(&[1, 5][..]));
        let bias = |units: &[usize]| Moving { is_weight: false, ..moving(units, 8, 1) };
        assert_eq!((bias(&[1]).wanted(), bias(&[]).wanted()), (None, Some(&[][..])));
    }

    #[test]
    fn reads_layers_with_trained_weights() {
        let mut model = model(
            "g (float[2,2,4,4] x, float[2,3] z) => (float[2,3,4,4] c, float[2,5] y, float[2,5] u) <
            float[3,2,1,1] w = {1,2,3,4,5,6}, float[3] b = {1,2,3}, float[3,5] m = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}> {
            c = Conv(x, w, b) y = MatMul(z, m) u = Gemm(z, m) }",
        );
        model.infer().unwrap();
        let parameter = |name: &str, shape: &[usize]| Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            free: None,
            codes: None,
        };
        let all = [parameter("b", &[3]), parameter("w", &[3, 2, 1, 1]), parameter("m", &[3, 5])];
        let found = Equilibrium::new(0.1, &model.graph, &all);
        // The matrix has two users.
        assert_eq!(found.outputs().collect::<Vec<_>>(), ["c"]);
        let layer = &found.layers[0];
        assert_eq!((layer.weight, layer.bias, layer.run, layer.units), (1, Some(0), 2, 3));
    }
}
