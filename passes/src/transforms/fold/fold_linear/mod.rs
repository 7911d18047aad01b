//! Linear layers composed into one: see the README beside this file for the derivations.

mod axis;
mod chain;
mod crop;
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
mod work;

use crate::{
    analysis::composition::By,
    framework::{Context, Pass, PassError},
    pass,
};
use chain::Candidate;
pub(crate) use crop::cropped;
use latency::{Stopwatch, Timing};
use pare_graph::{Decline, Graph, Model, NodeRef, Patch, expect};
use siblings::Siblings;
use work::Work;

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
    #[pass("fold-linear", Rounding, "linear layer composed", "linear layers composed")]
    pub struct FoldLinear {
        /// What decides: `macs` (multiply-accumulates never rise; nodes and moved elements count too), `latency` (both forms are measured), `always`.
        pub by: By = By::Macs,
    }
}

impl Pass for FoldLinear {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let watch = match (self.by, cx.tools.engine) {
            (By::Latency, Some(engine)) => Some(Stopwatch::new(engine, cx.tools.threads, cx.tools.seed)),
            (By::Latency, None) => {
                let hint = "give an engine, or decide `by=macs`";
                return Err(PassError::refused_with(
                    "`by=latency` runs models, and there is no engine",
                    hint,
                ));
            }
            _ => None,
        };
        let judge = Judge { by: self.by, watch };
        cx.each_graph(model, |graph, cx| fold(graph, cx, &judge))?;
        judge.watch.as_ref().map_or(Ok(()), Stopwatch::failure)?;
        Ok(())
    }
}

fn fold(graph: &mut Graph, cx: &mut Context<'_>, judge: &Judge<'_>) -> Result<(), PassError> {
    let always = judge.by == By::Always;
    let quiet = |_| Decline::Mismatch;
    loop {
        let before = cx.report.patches;
        // Pools first: a 1×1 convolution behind them costs less than any composite. Then branches, which are read
        // as they are, before one of them is written in a form that no longer adds up. What only lies side by side
        // comes last: it may have been part of more.
        cx.rewrite_graph(graph, &["AveragePool", "GlobalAveragePool", "ReduceMean"], |at| {
            swap::pool(at).map_err(quiet)
        })?;
        cx.rewrite_graph(graph, &["Add", "Sum", "Concat"], |at| judge.chain(at).map_err(quiet))?;
        cx.rewrite_graph(graph, LAYERS, |at| judge.chain(at).map_err(quiet))?;
        cx.rewrite_graph(graph, &[LAYERS, &["ConvTranspose"]].concat(), |at| {
            transposed::pair(at, always).map_err(quiet)
        })?;
        cx.rewrite_graph(graph, &["Conv", "Gemm", "MatMul"], |at| judge.siblings(at).map_err(quiet))?;
        if cx.report.patches == before || cx.stopped() {
            break;
        }
    }
    report_left(graph, cx, judge);
    Ok(())
}

/// Operators that are layers.
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

/// Report what could be composed and was not: once, at the end, since each rule sees only its own reasons.
fn report_left(graph: &Graph, cx: &mut Context<'_>, judge: &Judge<'_>) {
    let because = |result| match result {
        Err(Decline::Because(why)) => Some(why),
        _ => None,
    };
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if let Some(why) = because(transposed::pair(at, judge.by == By::Always)) {
            cx.decline(why);
        }
        let Ok(chain) = chain::ending(at) else { continue };
        if let Some(why) = because(judge.chain(at)) {
            cx.decline(why);
        }
        for pair in chain.windows(2).filter(|pair| pair.iter().all(layer::Layer::is_product)) {
            let Some(candidate) = Candidate::of(pair) else { continue };
            if judge.gain(&candidate).is_none() {
                cx.decline(judge.reason(&candidate));
            }
        }
    }
}

/// Decides what pays.
struct Judge<'e> {
    by: By,
    watch: Option<Stopwatch<'e>>,
}

impl Judge<'_> {
    /// The last run of layers worth composing in the chain that ends with the node.
    fn chain(&self, at: NodeRef<'_>) -> Result<Patch, Decline> {
        let chain = chain::ending(at)?;
        let best = chain::best(&chain, |c| self.gain(c)).ok_or(Decline::Mismatch)?;
        named(best.describe(), best.patch())
    }

    fn siblings(&self, at: NodeRef<'_>) -> Result<Patch, Decline> {
        let siblings = Siblings::of(at)?;
        let (before, after) = siblings.work().ok_or(Decline::Mismatch)?;
        let timing = self.watch.as_ref().and_then(|watch| {
            watch.time(&siblings.key(), siblings.input(), &siblings.outputs(), |graph| {
                let node = graph.users(graph.inputs()[0]).first().map(|u| u.0).ok_or(Decline::Mismatch)?;
                let patch = Siblings::of(graph.at(node))?.patch()?;
                graph.apply(patch).map(drop).map_err(|e| Decline::because(e.to_string()))
            })
        });
        expect(self.judged(before, after, timing).is_some())?;
        named(siblings.describe(), siblings.patch())
    }

    /// What composing gains, in the measure that decides; `None` if it does not pay.
    fn gain(&self, candidate: &Candidate<'_, '_>) -> Option<f64> {
        self.judged(candidate.before, candidate.after, self.timing(candidate))
    }

    fn judged(&self, before: Work, after: Work, timing: Option<Timing>) -> Option<f64> {
        let saved = before.total() as f64 - after.total() as f64;
        match self.by {
            By::Latency => timing.filter(Timing::is_faster).map(|t| t.before - t.after),
            // Any layer fewer outweighs all work.
            By::Always if before.layers > after.layers => {
                Some((before.layers - after.layers) as f64 * 1e18 + saved)
            }
            By::Always | By::Macs => (saved > 0.0 && after.macs <= before.macs).then_some(saved),
        }
    }

    fn timing(&self, candidate: &Candidate<'_, '_>) -> Option<Timing> {
        let (first, last) = (candidate.layers.first()?, candidate.layers.last()?);
        self.watch.as_ref()?.time(&candidate.key(), first.input, &[last.output()], |graph| {
            let end = graph.producer(graph.outputs()[0]).ok_or(Decline::Mismatch)?.0;
            let chain = chain::ending(graph.at(end))?;
            let patch = Candidate::of(&chain).ok_or(Decline::Mismatch)?.patch()?;
            graph.apply(patch).map(drop).map_err(|e| Decline::because(e.to_string()))
        })
    }

    /// Why a candidate does not pay.
    fn reason(&self, candidate: &Candidate<'_, '_>) -> String {
        match self.timing(candidate) {
            Some(timing) => format!("{} would take {}", candidate.describe(), timing.describe()),
            None => candidate.dear(),
        }
    }
}

fn named(layers: String, patch: Result<Patch, Decline>) -> Result<Patch, Decline> {
    patch.map_err(|decline| match decline {
        Decline::Because(why) => Decline::Because(format!("{layers}: {why}")),
        Decline::Mismatch => Decline::Mismatch,
    })
}
