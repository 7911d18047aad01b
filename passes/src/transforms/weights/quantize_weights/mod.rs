//! The pass: integers in blocks, for matrices and embedding tables.

mod blocks;
mod emit;
mod gptq;
#[cfg(test)]
mod tests;

pub use blocks::BlockMethod;
pub use emit::WeightForm;

use super::quantize::check_unquantized;
use crate::{
    analysis::{
        calibration::{Sampling, input_sums},
        evaluation::HeldOut,
        opset::OpsetPolicy,
        samples::{POSITIONS, Split},
        weighted_layers::{NameFilter, WeightedLayer, matching_layers},
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use blocks::{Blocks, Grids};
use pare_graph::{DataType, Graph, Model, NodeId};

pass! {
    /// Store matrices and embedding tables in four or eight bits.
    ///
    /// Each block of `block` weights of one output has a scale, and a zero point unless `symmetric`: `w ≈
    /// s·(q - z)`. Activations stay in float. `form=ort` writes ONNX Runtime's `MatMulNBits` and
    /// `GatherBlockQuantized`, which read the integers as they are; `form=standard` writes `DequantizeLinear`
    /// with a block size, for which the operator set is raised to 21.
    ///
    /// Kernels of convolutions are skipped, and weights that would not become smaller. Weights that are integers
    /// already stay as they are, so that it stores the tables that `quantize` leaves in float. Fails if nothing is left
    /// to quantize. `method=gptq` needs samples.
    #[pass("quantize-weights", Lossy)]
    pub struct QuantizeWeights {
        /// Bits of a weight: 4 or 8.
        pub bits: u32 = 4,
        /// Weights that share a scale: a power of two from 16 to 256.
        pub block: usize = 32,
        /// Scales without zero points.
        pub symmetric: bool = true,
        /// The choice of scales and integers: `round` to the nearest, `mse` for the least squared error, `hqq` for
        /// the least error with outliers by half-quadratic splitting, or `gptq` for the least error of the outputs on
        /// samples, column by column.
        pub method: BlockMethod = BlockMethod::Mse,
        /// The operators: `ort` or `standard`.
        pub form: WeightForm = WeightForm::Ort,
        /// Quantize embedding tables, the data of `Gather`, too.
        pub tables: bool = true,
        /// For `form=ort`, the least precision in which ONNX Runtime may compute: 0 for its choice, 1 for float, 2 for
        /// float16, 3 for bfloat16, 4 for int8, which is fastest.
        pub accuracy_level: i64 = 0,
        /// Only weights with a name that matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// Skip weights with a name that matches one of these patterns.
        pub except: Vec<String> = vec![],
        /// For `form=standard` and models before operator set 21: `raise` it to 21, or `keep` it and fail.
        pub opset: OpsetPolicy = OpsetPolicy::Raise,
    }
}

/// The first operator set with scales of blocks, and integers of four bits.
const OPSET: i64 = 21;

/// Weights to quantize: a matrix or a table.
struct Target {
    node: NodeId,
    kind: Kind,
    name: String,
    blocks: Blocks,
}

/// The user of the weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A product with a matrix.
    Matrix,
    /// A `Gather` of rows of a table.
    Table,
}

impl Pass for QuantizeWeights {
    fn validate(&self) -> Result<(), String> {
        if ![4, 8].contains(&self.bits) {
            return Err(format!("`bits` is 4 or 8, not {}", self.bits));
        }
        if !(16..=256).contains(&self.block) || !self.block.is_power_of_two() {
            return Err(format!("`block` is a power of two from 16 to 256, not {}", self.block));
        }
        if !(0..=4).contains(&self.accuracy_level) {
            return Err(format!("`accuracy_level` is from 0 to 4, not {}", self.accuracy_level));
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        let split = Split::when(self.method == BlockMethod::Gptq, cx.tools, "method=mse")?;
        self.ensure_opset(model, cx)?;
        let layers = self.matrices(model, cx);
        let mut targets = self.quantized(model, &layers, &split, cx)?;
        targets.extend(self.quantized_tables(&model.graph, cx));
        let bytes = |t: &Target| (4 * t.blocks.count() as u64, t.blocks.bytes());
        targets.retain(|target| {
            let (before, after) = bytes(target);
            if after >= before {
                cx.decline(format!("`{}` would not become smaller", target.name));
            }
            after < before
        });
        if targets.is_empty() {
            check_unquantized(&model.graph)?;
            let why = match cx.report.declined.keys().next() {
                Some(why) => format!("no weights can be quantized: {why}"),
                None => "the graph has no product with a constant matrix, and no table".into(),
            };
            return Err(PassError::refused(why));
        }
        let mut result = model.clone();
        if self.form == WeightForm::Ort {
            result.import("com.microsoft", 1);
        }
        for target in &targets {
            emit::replace(&mut result.graph, target, self)?;
        }
        result.graph.sweep();
        result.infer()?;
        if split.suffices() && cx.tools.engine.is_some() {
            let drift = HeldOut::new(cx.tools, model, split.held_out.clone())?.drift(&result)?;
            cx.figure("drift", drift);
        }
        if !cx.permit() {
            return Ok(());
        }
        let of = |kind: Kind| targets.iter().filter(|t| t.kind == kind).count() as u64;
        cx.count(Counter::new("matrix quantized", "matrices quantized"), of(Kind::Matrix));
        cx.count(Counter::new("table quantized", "tables quantized"), of(Kind::Table));
        let (before, after) = targets.iter().map(bytes).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        cx.share("their bytes", after as f64 / before as f64);
        let (signal, noise) =
            targets.iter().map(|t| t.blocks.energy()).fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        if noise > 0.0 {
            cx.figure("weight SNR in dB", 10.0 * (signal / noise).log10());
        }
        *model = result;
        Ok(())
    }
}

impl QuantizeWeights {
    fn grids(&self) -> Grids {
        Grids { bits: self.bits, symmetric: self.symmetric, method: self.method }
    }

    /// The layers with matrices in float. Others are declined.
    fn matrices(&self, model: &Model, cx: &mut Context<'_>) -> Vec<WeightedLayer> {
        let names = NameFilter { only: &self.only, except: &self.except };
        let mut layers = matching_layers(model, names, cx);
        layers.retain(|layer| {
            let dtype = model.graph.value(layer.linear.weight).fact.dtype();
            let why = if layer.linear.is_conv() {
                format!("`{}` is the kernel of a convolution", layer.name)
            } else if dtype != Some(DataType::Float) {
                format!("`{}` is not of type float", layer.name)
            } else {
                return true;
            };
            cx.decline(why);
            false
        });
        layers
    }

    /// Quantizes the matrices.
    fn quantized(
        &self,
        model: &Model,
        layers: &[WeightedLayer],
        split: &Split,
        cx: &Context<'_>,
    ) -> Result<Vec<Target>, PassError> {
        let target = |layer: &WeightedLayer, blocks| Target {
            node: layer.node,
            kind: Kind::Matrix,
            name: layer.name.clone(),
            blocks,
        };
        let rows = |layer: &WeightedLayer| (0..layer.rows()).map(|r| layer.row(r)).collect::<Vec<_>>();
        if self.method != BlockMethod::Gptq {
            let blocks =
                |layer: &WeightedLayer| target(layer, Blocks::new(rows(layer), self.block, self.grids()));
            return Ok(layers.iter().map(blocks).collect());
        }
        let operators: Vec<_> = layers.iter().map(|l| &l.linear).collect();
        let sampling = Sampling { positions: POSITIONS, seed: cx.tools.seed };
        let sums = input_sums(cx.tools, model, &operators, split.statistics(), sampling)?;
        let mut targets = vec![];
        for (l, (layer, sums)) in layers.iter().zip(&sums).enumerate() {
            cx.tools.progress.step("gptq", l as u64, layers.len() as u64);
            let Some(sums) = sums.first() else { continue };
            let moments = sums.about_zero().covariance();
            let blocks = gptq::quantize(rows(layer), moments, self.block, self.grids())
                .map_err(|e| PassError::refused(format!("`{}` cannot be fitted: {e}", layer.name)))?;
            targets.push(target(layer, blocks));
        }
        Ok(targets)
    }

    /// Quantizes the tables: initializers whose rows are gathered, without other users.
    fn quantized_tables(&self, graph: &Graph, cx: &mut Context<'_>) -> Vec<Target> {
        let names = NameFilter { only: &self.only, except: &self.except };
        let mut targets = vec![];
        for &node in graph.nodes().iter().filter(|_| self.tables) {
            let at = graph.at(node);
            let Some(data) = at.optional(0).filter(|_| at.is("Gather")) else { continue };
            let Some(tensor) = data.value().tensor().filter(|t| t.dtype() == DataType::Float) else {
                continue;
            };
            let &[rows, width] = tensor.shape() else { continue };
            if !names.accepts(data.name()) || rows == 0 || width == 0 {
                continue;
            }
            let why = if at.int("axis", 0) != 0 {
                format!("{} gathers columns of `{}`", at.describe(), data.name())
            } else if graph.use_count(data.id) != 1 {
                format!("`{}` has other users", data.name())
            } else if !tensor.is_finite() {
                format!("`{}` is not finite", data.name())
            } else {
                let values = tensor.to_f64().unwrap_or_default();
                let rows = values.chunks(width).map(<[f64]>::to_vec).collect();
                let blocks = Blocks::new(rows, self.block, self.grids().without_samples());
                targets.push(Target { node, kind: Kind::Table, name: data.name().into(), blocks });
                continue;
            };
            cx.decline(why);
        }
        targets
    }

    /// Raises the operator set to one that has scales of blocks.
    fn ensure_opset(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.form == WeightForm::Ort {
            return Ok(());
        }
        self.opset.ensure(OPSET, "scales of blocks", "`form=ort` needs no newer operator set", model, cx)
    }
}
