//! Linear layers composed into one: see the README beside this file for the derivations.

mod axis;
mod chain;
mod emit;
mod join;
mod kernel;
mod layer;
mod outline;
mod swap;
#[cfg(test)]
mod tests;
mod work;

use crate::{Context, Pass, PassError, pass};
use chain::Candidate;
use pare_graph::{At, Decline, Graph, Model, Patch};
use serde::{Deserialize, Serialize};

pass! {
    /// Compose linear layers without an activation in between into one.
    ///
    /// Convolutions, matrices, batch norms, factors and summands per channel, zero padding and average pools are linear, and
    /// so is every chain of them, and every sum or concatenation of such chains over one input. Of a chain
    /// `W₂·(W₁·x + b₁) + b₂` one layer `(W₂W₁)·x + (W₂b₁ + b₂)` is left: kernels of any size, stride, dilation,
    /// padding and grouping compose tap by tap, `W[:,:,t] = Σ W₂[:,:,c]·W₁[:,:,a]` over `c·d₂s₁ + a·d₁ = t·d`.
    /// Where the second layer reads zeros around the output of the first, the border is computed from the taps that
    /// lie inside, so the result is exact everywhere. Weights are composed in f64 and rounded once.
    ///
    /// Declines where the composite would cost more, where most of the composed weights would cancel, and where the
    /// border depends on sizes that are not fixed.
    #[pass("fold-linear", Rounding)]
    pub struct FoldLinear {
        /// What decides: `macs` (multiply-accumulates never rise; nodes and moved elements count too), `latency` (both forms are measured), `always`.
        pub by: By = By::Macs,
    }
}

/// What decides whether composing pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Multiply-accumulates never rise, and all work together falls.
    #[default]
    Macs,
    /// Both forms are run on this machine.
    Latency,
    /// As few layers as possible.
    Always,
}

impl Pass for FoldLinear {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| self.graph(graph, cx))
    }
}

impl FoldLinear {
    fn graph(&self, graph: &mut Graph, cx: &mut Context<'_>) -> Result<(), PassError> {
        loop {
            let before = cx.report.patches;
            // Pools first: a 1×1 convolution behind them costs less than any composite. Then branches, which are
            // read as they are, before one of them is written in a form that no longer adds up.
            cx.rewrite_graph(graph, &["AveragePool", "GlobalAveragePool", "ReduceMean"], swap::pool)?;
            cx.rewrite_graph(graph, &["Add", "Sum", "Concat"], |at| self.fold(at))?;
            cx.rewrite_graph(graph, &[], |at| self.fold(at))?;
            cx.count("composed", cx.report.patches - before);
            if cx.report.patches == before || cx.stopped() {
                break;
            }
        }
        self.report_left(graph, cx);
        Ok(())
    }

    fn fold(&self, at: At<'_>) -> Result<Patch, Decline> {
        let chain = chain::ending(at)?;
        let best = chain::best(&chain, |c| self.gain(c)).ok_or(Decline::Mismatch)?;
        let name = best.describe();
        best.patch().map_err(|decline| match decline {
            Decline::Because(why) => Decline::Because(format!("{name}: {why}")),
            Decline::Mismatch => Decline::Mismatch,
        })
    }

    /// What composing gains, in the measure that decides; `None` if it does not pay.
    fn gain(&self, candidate: &Candidate<'_, '_>) -> Option<f64> {
        let (before, after) = (candidate.before, candidate.after);
        let saved = before.total() as f64 - after.total() as f64;
        match self.by {
            By::Always if before.layers > after.layers => {
                // Any layer fewer outweighs all work.
                Some((before.layers - after.layers) as f64 * 1e18 + saved)
            }
            _ => (saved > 0.0 && after.macs <= before.macs).then_some(saved),
        }
    }

    /// Report neighbours that could be composed and were not.
    fn report_left(&self, graph: &Graph, cx: &mut Context<'_>) {
        for &id in graph.nodes().iter() {
            let Ok(chain) = chain::ending(graph.at(id)) else { continue };
            for pair in chain.windows(2) {
                let Some(candidate) = Candidate::of(pair) else { continue };
                if candidate.layers.iter().all(layer::Layer::is_product) && self.gain(&candidate).is_none() {
                    cx.decline(candidate.dear());
                }
            }
        }
    }
}
