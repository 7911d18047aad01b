//! The pass: types of nodes, values and weights.

mod format;
mod kernels;
mod plan;
mod ranges;
mod search;
#[cfg(test)]
mod tests;

use crate::{
    analysis::{
        evaluation::HeldOut,
        opset::OpsetPolicy,
        samples::{HELD_OUT, Split},
    },
    framework::{Context, Counter, InterfaceChange, Pass, PassError},
    pass,
};
use format::Format;
use pare_graph::{DataType, Graph, Model, ValueId};
use plan::Plan;
use search::Search;
use serde::{Deserialize, Serialize};

/// The type of the converted numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `float16`.
    Fp16,
    /// `bfloat16`.
    Bf16,
    /// `float16`, and `float` where the outputs need it.
    Mixed,
}

pass! {
    /// Convert weights and activations to floats of 16 bits.
    ///
    /// `float` becomes `float16` or `bfloat16` in weights, values and bodies of control flow, with a `Cast` at
    /// the borders only. A node stays in float if its operator has no such form in its operator set or no
    /// kernel in ONNX Runtime, if a constant would become infinite or zero, or if a value exceeds the range on
    /// the samples. With `mixed`, the nodes that cost most signal stay in float too, until the outputs have
    /// `min_snr`: they are found by bisecting the order of nodes.
    ///
    /// Halves the file. ONNX Runtime's CPU computes most operators in float, and is not faster. The SNR is
    /// that of an engine that rounds the output of every node. Functions are inlined first.
    ///
    /// Declines if nothing can be converted. `mixed` needs samples.
    #[pass("convert-precision", Lossy)]
    pub struct ConvertPrecision {
        /// `fp16`, `bf16`, or `mixed`: `float16` with nodes in float where `min_snr` needs them.
        pub to: Precision = Precision::Fp16,
        /// Keep the types of inputs and outputs.
        pub keep_io: bool = true,
        /// For `mixed`: the least ratio of signal to noise of each output, in dB, on up to 256 samples.
        pub min_snr: f64 = 40.0,
        /// On samples, values may reach the largest and smallest number of the type up to this factor.
        pub margin: f64 = 2.0,
        /// Keep nodes in float that have an output whose name matches one of these patterns, `*` for any text.
        pub except: Vec<String> = vec![],
        /// For models before operator set 13 and `bf16`: `raise` it to 13, or `keep` it and fail.
        pub opset: OpsetPolicy = OpsetPolicy::Raise,
    }
}

/// The operator set that introduced `bfloat16`.
const OPSET: i64 = 13;

impl Pass for ConvertPrecision {
    fn validate(&self) -> Result<(), String> {
        if !(self.margin >= 1.0 && self.margin <= 1e4) {
            return Err(format!("`margin` is a factor from 1 to 10000, not {}", self.margin));
        }
        if !(self.min_snr > 0.0 && self.min_snr.is_finite()) {
            return Err(format!("`min_snr` is a positive number of dB, not {}", self.min_snr));
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        if model.graph.opset("").is_none() {
            cx.decline("the model does not import the standard operators, which include casts");
            return Ok(());
        }
        let format = Format::of(self.to);
        let is_mixed = self.to == Precision::Mixed;
        let split = if is_mixed { Split::required(cx.tools, Some("to=fp16"))? } else { Split::of(cx.tools) };
        self.ensure_opset(model, cx)?;
        let mut plain = model.clone();
        let prepared = cx.scratch().run("inline-functions,lift-constants", &mut plain)?;
        plain.infer()?;
        let mut plan = Plan::new(&plain.graph, format, &self.except);
        // Nothing is fitted to samples, so that all of them judge.
        let judged = 0..split.all().end.min(HELD_OUT);
        let is_sampled = cx.tools.engine.is_some() && !judged.is_empty();
        if is_sampled {
            let extreme = ranges::extreme_values(cx.tools, &plain, split.statistics(), format, self.margin)?;
            plan.keep_values(&plain.graph, &extreme);
        }
        let mut half = plan.eligible();
        let mut noise = None;
        if is_sampled {
            let held_out = HeldOut::new(cx.tools, &plain, judged)?;
            let (held_out, dtype) = (&held_out, format.dtype);
            let search = Search { plain: &plain, plan: &plan, held_out, dtype, min_snr: self.min_snr };
            if is_mixed {
                let (chosen, of_chosen) = search.run(half, cx)?;
                (half, noise) = (chosen, Some(of_chosen));
            } else {
                noise = Some(search.noise_of(&half)?);
            }
        }
        let types = plan.types(&plain.graph, &half, self.keep_io);
        let (converted, constants) = (plan::count_nodes(&types), plan::count_constants(&types));
        plan.decline(cx);
        if self.keep_io {
            Plan::decline_inputs(&plain.graph, cx);
        }
        if converted == 0 && constants == 0 {
            cx.decline(format!("no node and no constant can be {}", format.dtype));
            return Ok(());
        }
        if cx.stopped() {
            return Ok(());
        }
        if let Some(noise) = noise.filter(|noise| *noise > 0.0) {
            cx.figure("SNR in dB", -10.0 * noise.log10());
        }
        // The same steps again, now reported as nested steps.
        if prepared.patches() > 0 {
            cx.run_nested("inline-functions,lift-constants", model)?;
        }
        if !cx.permit() {
            return Ok(());
        }
        if !self.keep_io {
            report_interface(&plain.graph, format.dtype, cx);
        }
        let mut result = plain;
        result.convert_nodes(DataType::Float, format.dtype, &types);
        result.infer()?;
        cx.count_of(Counter::new("node converted", "nodes converted"), converted, plan.count());
        cx.count(Counter::new("constant converted", "constants converted"), constants);
        *model = result;
        Ok(())
    }
}

impl ConvertPrecision {
    /// Raises the operator set to one that has the type.
    fn ensure_opset(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.to != Precision::Bf16 {
            return Ok(());
        }
        let remedy = format!("export the model with operator set {OPSET} or later");
        self.opset.ensure(OPSET, "bfloat16", remedy, model, cx)
    }
}

/// Reports the inputs and outputs that change their type.
fn report_interface(graph: &Graph, dtype: DataType, cx: &mut Context<'_>) {
    let names = |ids: &[ValueId]| -> Vec<String> {
        let ids = ids.iter().filter(|&&v| graph.value(v).fact.dtype() == Some(DataType::Float));
        ids.map(|&v| format!("`{}`", graph.value(v).name)).collect()
    };
    let names = [names(graph.inputs()), names(graph.outputs())].concat();
    if !names.is_empty() {
        cx.report.interface.push(InterfaceChange::Other(format!("{} became {dtype}", names.join(", "))));
    }
}
