//! The pass: quantization of weights and activations, and correction of biases.

mod emit;
mod plan;
mod ranges;
#[cfg(test)]
mod tests;

pub use ranges::Ranges;

use crate::analysis::samples::Split;
use crate::analysis::weighted_layers::{NameFilter, WeightedLayer, layers};
use crate::{
    analysis::{
        evaluation::HeldOut,
        linear::Linear,
        opset::OpsetPolicy,
        repair::{Refit, Repair, RepairOptions},
    },
    framework::{Context, Counter, Hint, Pass, PassError},
    pass,
};
use faer::Mat;
use pare_graph::{
    DataType, Graph, Model, NodeId, Patch, ValueRef,
    ops::{GemmView, Trait},
};
use plan::QuantizationPlan;
use ranges::{Grid, calibrate};
use std::collections::HashMap;

pass! {
    /// Quantize weights and activations to eight bits.
    ///
    /// Weights become int8 with a scale per output, `w ≈ s_o·q`; activations become uint8 with one scale, `x
    /// ≈ s·(q - z)`, calibrated on samples; biases become int32. `QuantizeLinear` and `DequantizeLinear`
    /// surround the operators for which ONNX Runtime has integer kernels (QDQ). Biases are corrected for the
    /// mean error of rounding, layer by layer. `activations=false` stores the weights in eight bits and
    /// computes in floats: a quarter of the size, but not faster.
    ///
    /// Run it last. Fails on quantized models, and if the operator set is older than 13 and cannot be raised.
    #[pass("quantize", Lossy)]
    pub struct Quantize {
        /// Quantize activations too. Needs samples.
        pub activations: bool = true,
        /// The choice of ranges: `minmax`, `percentile` or `mse`, the least squared error.
        pub ranges: Ranges = Ranges::Mse,
        /// For `percentile`: the percentage of values inside the range.
        pub percentile: f64 = 99.99,
        /// Correct biases for the mean error of rounding. Needs samples.
        pub correct_bias: bool = true,
        /// Only layers whose weights have a name that matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// Skip layers whose weights have a name that matches one of these patterns.
        pub except: Vec<String> = vec![],
        /// For models before operator set 13: `raise` it to 13, or `keep` it and fail.
        pub opset: OpsetPolicy = OpsetPolicy::Raise,
    }
}

/// The first operator set with a scale per index of an axis.
const OPSET: i64 = 13;

impl Pass for Quantize {
    fn validate(&self) -> Result<(), String> {
        if self.percentile > 50.0 && self.percentile <= 100.0 {
            Ok(())
        } else {
            Err("`percentile` is more than 50 and at most 100".into())
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        check_unquantized(&model.graph)?;
        let sampled = cx.tools.samples.is_some_and(|s| !s.is_empty()) && cx.tools.engine.is_some();
        if self.activations && !sampled {
            return Err(PassError::refused_with(
                "ranges of activations need samples, and an engine to run them",
                Hint::NeedsSamples { otherwise: Some("activations=false".into()) },
            ));
        }
        self.ensure_opset(model, cx)?;
        let split = Split::of(cx.tools);
        let plain = normalized(model)?;
        let layers = self.layers(&plain, cx)?;
        let plan = if self.activations {
            QuantizationPlan::new(&plain.graph, &layers)
        } else {
            QuantizationPlan::default()
        };
        let grids = calibrate(cx.tools, &plain, &plan, split.statistics(), self)?;

        // Weights are rounded but stay in floats until the biases are corrected.
        let mut rounded = plain.clone();
        let input_grids = emit::activations(&mut rounded.graph, &plan, &grids)?;
        let scales = |layer: &WeightedLayer| {
            // The bias of a `MatMul` is an `Add` after it, which stays in floats.
            let has_bias = rounded.graph.at(layer.node).optional(2).is_some();
            let input = input_grids.get(&layer.node).filter(|_| has_bias);
            weight_scales(layer, self.ranges, input)
        };
        let scales: Vec<_> = layers.iter().map(scales).collect();
        for (layer, scales) in layers.iter().zip(&scales) {
            store(&mut rounded.graph, layer, &round(layer, scales))?;
        }
        let emitted = |mut model: Model| -> Result<_, PassError> {
            for (layer, scales) in layers.iter().zip(&scales) {
                let input = input_grids.get(&layer.node).copied();
                emit::weights(&mut model.graph, layer, scales, input)?;
            }
            Ok(model)
        };
        let mut rounded = if self.correct_bias && sampled {
            let corrected = corrected(&plain, &rounded, &layers, &split, cx)?;
            // Both are measured as the engine computes them, in integers.
            better(&plain, emitted(rounded)?, emitted(corrected)?, &split, cx)?
        } else {
            emitted(rounded)?
        };
        if cx.permit() {
            cx.count(Counter::new("layer quantized", "layers quantized"), layers.len() as u64);
            cx.count(Counter::new("activation quantized", "activations quantized"), grids.len() as u64);
            cx.figure("weight SNR in dB", snr(&layers, &scales));
            if !self.activations {
                cx.report.notes.push(
                    "only weights are stored in eight bits: ONNX Runtime computes in floats and is not faster".into(),
                );
            }
            rounded.graph.sweep();
            *model = rounded;
        }
        Ok(())
    }
}

impl Quantize {
    /// Returns the layers that are quantized: those with weights in float. Others are declined.
    fn layers(&self, model: &Model, cx: &mut Context<'_>) -> Result<Vec<WeightedLayer>, PassError> {
        let graph = &model.graph;
        decline_inner_layers(graph, cx);
        decline_left_operands(graph, cx);
        let mut layers = layers(model, NameFilter { only: &self.only, except: &self.except }, cx)?;
        let mut first = None;
        layers.retain(|layer| {
            let dtype = graph.value(layer.linear.weight).fact.dtype().filter(|&d| d != DataType::Float);
            let scaled = GemmView::of(graph.at(layer.node)).is_ok_and(|view| !view.is_linear());
            let why = match dtype {
                Some(dtype) => format!("`{}` is of type {dtype}, and only float is quantized", layer.name),
                None if scaled => format!("{} scales its operands", graph.describe(layer.node)),
                None => return true,
            };
            cx.decline(&why);
            first.get_or_insert(why);
            false
        });
        match first.filter(|_| layers.is_empty()) {
            Some(why) => Err(PassError::refused(format!("no layer can be quantized: {why}"))),
            None => Ok(layers),
        }
    }
}

/// Returns the model with weights for which there are integer kernels: matrices of products, and the factors of
/// `Gemm` in its weights and biases.
fn normalized(model: &Model) -> Result<Model, PassError> {
    let mut plain = model.clone();
    for &node in model.graph.nodes().iter() {
        let mut patch = Patch::anchored(node);
        let changed = Linear::owned(&model.graph, node)
            .and_then(|linear| linear.normalize(model.graph.at(node), &mut patch));
        if changed.is_some() {
            plain.graph.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
        }
    }
    Ok(plain)
}

/// Declines the linear operators in bodies of control flow, which stay in floats.
fn decline_inner_layers(graph: &Graph, cx: &mut Context<'_>) {
    fn count(graph: &Graph) -> usize {
        let of_node = |&id: &NodeId| {
            let (at, inner) = (graph.at(id), graph.node(id).subgraphs().map(count).sum::<usize>());
            // A captured matrix may be a weight of an outer graph.
            let is_weight = |v: ValueRef<'_>| v.is_constant() || v.value().is_captured();
            inner + usize::from(at.has(Trait::Linear) && at.optional(1).is_some_and(is_weight))
        };
        graph.nodes().iter().map(of_node).sum()
    }
    for &id in graph.nodes().iter() {
        let layers: usize = graph.node(id).subgraphs().map(count).sum();
        if layers > 0 {
            let layers = if layers == 1 { "1 layer stays".into() } else { format!("{layers} layers stay") };
            cx.decline(format!("{layers} in float: the bodies of {} are not quantized", graph.describe(id)));
        }
    }
}

/// Declines products with a constant on the left, for which there is no integer kernel with a scale per row.
fn decline_left_operands(graph: &Graph, cx: &mut Context<'_>) {
    for at in graph.nodes().iter().map(|&id| graph.at(id)).filter(|at| at.is("MatMul")) {
        let Some(weight) = at.optional(0).filter(|v| v.is_constant()) else { continue };
        if weight.dtype() == Some(DataType::Float) && at.optional(1).is_some_and(|v| !v.is_constant()) {
            let (name, product) = (weight.name(), at.describe());
            cx.decline(format!(
                "`{name}` is the left operand of {product}, and only right ones are quantized"
            ));
        }
    }
}

/// Returns the model with its biases refitted to the activations of the original.
fn corrected(
    original: &Model,
    rounded: &Model,
    layers: &[WeightedLayer],
    split: &Split,
    cx: &Context<'_>,
) -> Result<Model, PassError> {
    let mut candidate = rounded.clone();
    candidate.infer()?;
    let refits = |layer: &WeightedLayer| {
        layer.linear.takes_bias().then(|| Refit {
            node: layer.node,
            target: layer.linear.output,
            sum: None,
            output_transform: false,
            kept: None,
            free: Some(vec![false; layer.count()]),
        })
    };
    let refits: Vec<_> = layers.iter().filter_map(refits).collect();
    // All weights are fixed, so λ has no effect.
    let options = RepairOptions { lambda: 1.0, rounds: 0 };
    let repair = Repair { tools: cx.tools, original, refits: &refits, samples: split.fit.clone() };
    repair.refit(&mut candidate, options)?;
    Ok(candidate)
}

/// Returns the corrected model if that reduces the drift on held-out samples, otherwise the other.
fn better(
    original: &Model,
    rounded: Model,
    corrected: Model,
    split: &Split,
    cx: &mut Context<'_>,
) -> Result<Model, PassError> {
    let held_out = HeldOut::new(cx.tools, original, split.held_out.clone())?;
    let (before, after) = (held_out.drift(&rounded)?, held_out.drift(&corrected)?);
    cx.figure("drift before bias correction", before);
    cx.figure("drift after bias correction", after);
    Ok(if after < before { corrected } else { rounded })
}

/// Checks that the model is not quantized.
pub(super) fn check_unquantized(graph: &Graph) -> Result<(), PassError> {
    let quantized = |&&id: &&NodeId| {
        let op = graph.node(id).op.as_str();
        op.contains("QuantizeLinear")
            || op.contains("DequantizeLinear")
            || op.starts_with("QLinear")
            || op.ends_with("Integer")
            || ["QGemm", "MatMulNBits", "GatherBlockQuantized"].contains(&op)
    };
    if let Some(&id) = graph.nodes().iter().find(quantized) {
        return Err(PassError::refused(format!("the model is quantized already: {}", graph.describe(id))));
    }
    Ok(())
}

impl Quantize {
    /// Raises the operator set to one that has scales per output.
    fn ensure_opset(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let remedy = format!("export the model with operator set {OPSET} or later");
        self.opset.ensure(OPSET, "scales per output", remedy, model, cx)
    }
}

/// The largest magnitude of the int32 code of a bias: half of the range, so that the sum with the products
/// does not overflow and a corrected bias fits too.
const BIAS_CODES: f64 = (1_u32 << 30) as f64;

/// The scale of the weights of each output, of all groups. Symmetric: `q` is from -127 to 127. With a grid of
/// the input, the code of the bias, `b / (s_x·s_o)`, fits into an int32.
fn weight_scales(layer: &WeightedLayer, ranges: Ranges, input: Option<&Grid>) -> Vec<f64> {
    let scale = |r: usize| {
        let row = layer.row(r);
        let largest = row.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
        // Rounded up, since it is stored in single precision.
        let least = input.map_or(0.0, |grid| layer.bias[r].abs() / (grid.scale * BIAS_CODES) * (1.0 + 1e-6));
        if largest == 0.0 {
            return f64::from(least.max(1.0) as f32);
        }
        let error = |scale: f64| {
            row.iter()
                .map(|w| (w - scale * (w / scale).round_ties_even().clamp(-127.0, 127.0)).powi(2))
                .sum::<f64>()
        };
        // Clipping the largest weight a little may reduce the error of the others.
        let shares: &[f64] = if ranges == Ranges::Mse {
            &[1.0, 0.975, 0.95, 0.925, 0.9, 0.85, 0.8, 0.75, 0.7]
        } else {
            &[1.0]
        };
        let scales = shares.iter().map(|share| (share * largest / 127.0).max(least));
        // As stored.
        let scales = scales.map(|s| f64::from(s as f32)).filter(|s| *s > 0.0);
        scales.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(1.0)
    };
    (0..layer.rows()).map(scale).collect()
}

/// `q = round(w / s)`.
fn integers(layer: &WeightedLayer, scales: &[f64]) -> Vec<Mat<f64>> {
    let o = layer.linear.outputs;
    let group = |(q, w): (usize, &Mat<f64>)| {
        Mat::from_fn(w.nrows(), w.ncols(), |i, j| {
            (w[(i, j)] / scales[q * o + i]).round_ties_even().clamp(-127.0, 127.0)
        })
    };
    layer.weights.iter().enumerate().map(group).collect()
}

/// `s·q`.
fn round(layer: &WeightedLayer, scales: &[f64]) -> Vec<Mat<f64>> {
    let o = layer.linear.outputs;
    let group =
        |(q, n): (usize, Mat<f64>)| Mat::from_fn(n.nrows(), n.ncols(), |i, j| scales[q * o + i] * n[(i, j)]);
    integers(layer, scales).into_iter().enumerate().map(group).collect()
}

fn store(graph: &mut Graph, layer: &WeightedLayer, weights: &[Mat<f64>]) -> Result<(), PassError> {
    let mut patch = Patch::anchored(layer.node);
    let cannot = || PassError::refused(format!("`{}` cannot be changed", layer.name));
    layer.linear.store(graph, &mut patch, weights, &layer.bias).ok_or_else(cannot)?;
    graph.apply(patch).map(drop).map_err(|e| PassError::refused(e.to_string()))
}

/// `10·log₁₀(Σw² / Σ(w - ŵ)²)` over all layers.
fn snr(layers: &[WeightedLayer], scales: &[Vec<f64>]) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (layer, scales) in layers.iter().zip(scales) {
        for (w, rounded) in layer.weights.iter().zip(round(layer, scales)) {
            for i in 0..w.nrows() {
                for j in 0..w.ncols() {
                    signal += w[(i, j)].powi(2);
                    noise += (w[(i, j)] - rounded[(i, j)]).powi(2);
                }
            }
        }
    }
    10.0 * (signal / f64::max(noise, f64::MIN_POSITIVE)).log10()
}

/// The grids of the inputs of layers, by node.
type InputGrids = HashMap<NodeId, Grid>;
