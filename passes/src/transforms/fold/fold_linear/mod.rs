//! Composition of linear layers. The README beside this file derives the equations.

mod axis;
mod chain;
mod cost;
mod crop_kernels;
mod emit;
mod join;
mod kernel;
mod latency;
mod layer;
mod outline;
mod siblings;
mod swap;
#[cfg(test)]
mod tests;
mod transposed;

pub use crop_kernels::CropKernels;

use crate::{
    analysis::composition::By,
    framework::{Context, Pass, PassError},
    pass,
};
use chain::Candidate;
use cost::LayerCost;
use latency::{CompositionTimer, Timing};
use pare_graph::{Decline, Graph, Model, NodeRef, Patch, expect};
use siblings::Siblings;

pass! {
    /// Compose consecutive linear layers into one.
    ///
    /// Convolutions, matrix products, batch norms, scales and shifts per channel, zero padding and average
    /// pools are linear, as are chains of them, and sums or concatenations of such chains over one input. A
    /// chain `W₂·(W₁·x + b₁) + b₂` becomes `(W₂W₁)·x + (W₂b₁ + b₂)`: kernels of any size, stride, dilation,
    /// padding and grouping compose tap by tap, `W[:,:,t] = Σ W₂[:,:,c]·W₁[:,:,a]` over
    /// `c·d₂s₁ + a·d₁ = t·d`. Where the second layer pads the output of the first, the border is computed
    /// from the taps inside it, so the result is exact everywhere. Weights are composed in f64 and rounded
    /// once.
    ///
    /// Declines if the composite would cost more, if most of the composed weights would cancel, and if the
    /// border depends on sizes that are not fixed.
    #[pass("fold-linear", Rounding, "linear layer composed", "linear layers composed")]
    pub struct FoldLinear {
        /// The criterion: `macs` (MACs never rise; nodes and moved elements count too), `latency` (both forms
        /// are timed), `always`.
        pub by: By = By::Macs,
    }
}

impl Pass for FoldLinear {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let timer = match (self.by, cx.tools.engine) {
            (By::Latency, Some(engine)) => {
                Some(CompositionTimer::new(engine, cx.tools.threads, cx.tools.seed))
            }
            (By::Latency, None) => {
                let hint = "give an engine, or decide `by=macs`";
                return Err(PassError::refused_with("`by=latency` needs an engine", hint));
            }
            _ => None,
        };
        let policy = CompositionPolicy { by: self.by, timer };
        cx.each_graph(model, |graph, cx| fold(graph, cx, &policy))?;
        policy.timer.as_ref().map_or(Ok(()), CompositionTimer::failure)?;
        Ok(())
    }
}

fn fold(graph: &mut Graph, cx: &mut Context<'_>, policy: &CompositionPolicy<'_>) -> Result<(), PassError> {
    let always = policy.by == By::Always;
    let silent = |_| Decline::Mismatch;
    loop {
        let before = cx.report.patches;
        // Pools first: a 1×1 convolution after them costs less than any composite. Then joins of branches,
        // since one composed branch may no longer add up with the others. Siblings last, since they may be
        // parts of chains.
        cx.rewrite_graph(graph, &["AveragePool", "GlobalAveragePool", "ReduceMean"], |at| {
            swap::pool(at).map_err(silent)
        })?;
        cx.rewrite_graph(graph, &["Add", "Sum", "Concat"], |at| policy.chain(at).map_err(silent))?;
        cx.rewrite_graph(graph, LAYERS, |at| policy.chain(at).map_err(silent))?;
        cx.rewrite_graph(graph, &[LAYERS, &["ConvTranspose"]].concat(), |at| {
            transposed::pair(at, always).map_err(silent)
        })?;
        cx.rewrite_graph(graph, &["Conv", "Gemm", "MatMul"], |at| policy.siblings(at).map_err(silent))?;
        if cx.report.patches == before || cx.stopped() {
            break;
        }
    }
    report_declines(graph, cx, policy);
    Ok(())
}

/// Operators that can be read as layers.
const LAYERS: &[&str] = &[
    "Conv",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Pad",
    "AveragePool",
    "Sum",
    "Concat",
];

/// Reports the layers that could be composed and were not. Once at the end, since each rule knows only its
/// own reasons.
fn report_declines(graph: &Graph, cx: &mut Context<'_>, policy: &CompositionPolicy<'_>) {
    let reason = |result| match result {
        Err(Decline::Because(why)) => Some(why),
        _ => None,
    };
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if let Some(why) = reason(transposed::pair(at, policy.by == By::Always)) {
            cx.decline(why);
        }
        let Ok(chain) = chain::ending(at) else { continue };
        if let Some(why) = reason(policy.chain(at)) {
            cx.decline(why);
        }
        for pair in chain.windows(2).filter(|pair| pair.iter().all(layer::LinearLayer::is_product)) {
            let Some(candidate) = Candidate::of(pair) else { continue };
            if policy.gain(&candidate).is_none() {
                cx.decline(policy.reason(&candidate));
            }
        }
    }
}

/// Decides which compositions pay.
struct CompositionPolicy<'e> {
    by: By,
    timer: Option<CompositionTimer<'e>>,
}

impl CompositionPolicy<'_> {
    /// Composes the last profitable run of layers in the chain that ends with the node.
    fn chain(&self, at: NodeRef<'_>) -> Result<Patch, Decline> {
        let chain = chain::ending(at)?;
        let best = chain::best(&chain, |c| self.gain(c)).ok_or(Decline::Mismatch)?;
        prefixed(&best.describe(), best.patch())
    }

    fn siblings(&self, at: NodeRef<'_>) -> Result<Patch, Decline> {
        let siblings = Siblings::of(at)?;
        let (before, after) = siblings.cost().ok_or(Decline::Mismatch)?;
        let timing = self.timer.as_ref().and_then(|timer| {
            timer.time(&siblings.key(), siblings.input(), &siblings.outputs(), |graph| {
                let node = graph.users(graph.inputs()[0]).first().map(|u| u.0).ok_or(Decline::Mismatch)?;
                let patch = Siblings::of(graph.at(node))?.patch()?;
                graph.apply(patch).map(drop).map_err(|e| Decline::because(e.to_string()))
            })
        });
        expect(self.gain_of(before, after, timing).is_some())?;
        prefixed(&siblings.describe(), siblings.patch())
    }

    /// The gain of a composition under the criterion; `None` if it does not pay.
    fn gain(&self, candidate: &Candidate<'_, '_>) -> Option<f64> {
        self.gain_of(candidate.before, candidate.after, self.timing(candidate))
    }

    fn gain_of(&self, before: LayerCost, after: LayerCost, timing: Option<Timing>) -> Option<f64> {
        let saved = before.total() as f64 - after.total() as f64;
        match self.by {
            By::Latency => timing.filter(Timing::is_faster).map(|t| t.before - t.after),
            // One layer less outweighs any other cost.
            By::Always if before.layers > after.layers => {
                Some((before.layers - after.layers) as f64 * 1e18 + saved)
            }
            By::Always | By::Macs => (saved > 0.0 && after.macs <= before.macs).then_some(saved),
        }
    }

    fn timing(&self, candidate: &Candidate<'_, '_>) -> Option<Timing> {
        let (first, last) = (candidate.layers.first()?, candidate.layers.last()?);
        self.timer.as_ref()?.time(&candidate.key(), first.input, &[last.output()], |graph| {
            let end = graph.producer(graph.outputs()[0]).ok_or(Decline::Mismatch)?.0;
            let chain = chain::ending(graph.at(end))?;
            let patch = Candidate::of(&chain).ok_or(Decline::Mismatch)?.patch()?;
            graph.apply(patch).map(drop).map_err(|e| Decline::because(e.to_string()))
        })
    }

    /// The reason why a candidate does not pay.
    fn reason(&self, candidate: &Candidate<'_, '_>) -> String {
        match self.timing(candidate) {
            Some(timing) => format!("{} would take {}", candidate.describe(), timing.describe()),
            None => candidate.cost_increase(),
        }
    }
}

/// Prefixes the reason of a decline with the names of the layers.
fn prefixed(layers: &str, patch: Result<Patch, Decline>) -> Result<Patch, Decline> {
    patch.map_err(|decline| match decline {
        Decline::Because(why) => Decline::Because(format!("{layers}: {why}")),
        Decline::Mismatch => Decline::Mismatch,
    })
}
