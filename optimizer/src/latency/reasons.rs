//! Why a result is slower than its original.

use super::LatencyMeter;
use crate::Hint;
use pare_graph::{Graph, Model, NodeRef, onnx, ops::ConvView};
use pare_passes::Report;
use pare_runtime::{LoadOptions, ModelSource};
use serde::{Serialize, Serializer};
use std::{collections::BTreeMap, fmt};

/// A reason why a result is slower than its original; in JSON a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slowdown {
    /// The engine finds fewer patterns that it has one kernel for.
    LostKernels {
        /// Nodes that the engine runs, before and after.
        nodes: [usize; 2],
        /// Kernels of which there are fewer, and by how many.
        kernels: Vec<(String, usize)>,
    },
    /// Convolutions lost the numbers of channels for which the engine has a blocked layout.
    UnevenChannels {
        /// Convolutions whose number of output channels was a multiple and is none.
        convolutions: usize,
        /// The number of channels in a block.
        multiple: usize,
    },
    /// Layers were quantized, and conversions take longer than integer products save.
    Quantized,
}

/// Channels in a block of the layout that ONNX Runtime uses for convolutions: 16, or 8 on older machines.
const BLOCK: usize = 16;

impl Slowdown {
    /// The remedy, if there is one.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::UnevenChannels { .. } => Some(Hint::AlignChannels),
            Self::Quantized => Some(Hint::OmitPass { pass: "quantize" }),
            Self::LostKernels { .. } => None,
        }
    }
}

impl fmt::Display for Slowdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostKernels { nodes: [before, after], kernels } => {
                let lost = kernels.iter().map(|(kernel, n)| format!("{n} {kernel}")).collect::<Vec<_>>();
                write!(f, "the engine runs {after} nodes instead of {before}")?;
                if lost.is_empty() { Ok(()) } else { write!(f, ", without {}", lost.join(", ")) }
            }
            Self::UnevenChannels { convolutions, multiple } => {
                write!(
                    f,
                    "{convolutions} more convolutions have channel counts that are no multiple of {multiple}"
                )
            }
            Self::Quantized => {
                f.write_str("converting to 8 bits and back takes longer than integer products save")
            }
        }
    }
}

impl Serialize for Slowdown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl LatencyMeter<'_> {
    /// The known reasons why `result` is slower.
    pub(super) fn reasons(&self, original: &Model, result: &Model, run: &Report) -> Vec<Slowdown> {
        // The kernels of other providers are not known.
        if !self.load_options().provider.is_cpu() {
            return vec![];
        }
        let is_quantized = run.steps.iter().any(|step| step.pass == "quantize" && step.patches > 0);
        let [before, after] = [original, result].map(|model| uneven_convolutions(&model.graph));
        let uneven = after.saturating_sub(before);
        let uneven =
            (uneven > 0).then_some(Slowdown::UnevenChannels { convolutions: uneven, multiple: BLOCK });
        // The graph of a quantized model has other kernels in any case.
        let lost = if is_quantized { None } else { self.lost_kernels(original, result) };
        [is_quantized.then_some(Slowdown::Quantized), uneven, lost].into_iter().flatten().collect()
    }

    fn lost_kernels(&self, original: &Model, result: &Model) -> Option<Slowdown> {
        let [before, after] = [self.executed(original)?, self.executed(result)?];
        let nodes = [&before, &after].map(|ops| ops.values().sum::<usize>());
        let written = operators(&original.graph);
        // Kernels that the engine put in place of the operators of the original.
        let fused = before.iter().filter(|(op, _)| !written.contains_key(*op));
        let fewer = fused.filter_map(|(op, n)| {
            let lost = n.saturating_sub(after.get(op).copied().unwrap_or_default());
            (lost > 0).then(|| (op.clone(), lost))
        });
        let kernels = fewer.collect();
        (nodes[1] > nodes[0]).then_some(Slowdown::LostKernels { nodes, kernels })
    }

    /// The operators of the graph that the engine runs; `None` if it cannot write it.
    fn executed(&self, model: &Model) -> Option<BTreeMap<String, usize>> {
        let folder = tempfile::tempdir().ok()?;
        let path = folder.path().join("executed.onnx");
        let options = LoadOptions { optimized_model: Some(path.clone()), ..self.load_options() };
        let source: ModelSource = self.placement.place(model).ok()?;
        self.engine.engine().ok()?.load(&source, &options).ok()?;
        let executed = onnx::read(&path, &onnx::ReadOptions::default()).ok()?;
        Some(operators(&executed.graph))
    }
}

/// The number of nodes of each operator.
fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for &id in graph.nodes().iter() {
        *counts.entry(graph.node(id).op.clone()).or_default() += 1;
    }
    counts
}

/// The number of convolutions whose output channels fill no block.
fn uneven_convolutions(graph: &Graph) -> usize {
    let is_uneven =
        |at: NodeRef<'_>| at.is("Conv") && ConvView::of(at).is_ok_and(|view| view.outputs % BLOCK != 0);
    graph.nodes().iter().filter(|&&id| is_uneven(graph.at(id))).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text::parse_graph;

    const TYPES: &str =
        "g (float[N,32] x) => (float[N,32] y) <float r = {1.4142135}, float one = {1}, float half = {0.5}>";

    fn model(graph: &str) -> Model {
        Model::of(parse_graph(graph, 17).unwrap())
    }

    #[test]
    fn counts_convolutions_that_fill_no_block() {
        let graph = |a: usize, b: usize| {
            let weights = |sizes: [usize; 2]| vec!["1"; sizes[0] * sizes[1]].join(",");
            model(&format!(
                "g (float[N,3,4,4] x) => (float[N,{b},4,4] y) <float[{a},3,1,1] v = {{{}}}, float[{b},{a},1,1] w = {{{}}}> {{
                    h = Conv(x, v) y = Conv(h, w) }}",
                weights([a, 3]),
                weights([b, a])
            ))
        };
        let counts = [(16, 32), (13, 32), (13, 31)].map(|(a, b)| uneven_convolutions(&graph(a, b).graph));
        assert_eq!(counts, [0, 1, 2]);
    }

    #[test]
    fn reasons_are_sentences_with_a_remedy() {
        let lost = Slowdown::LostKernels { nodes: [1, 4], kernels: vec![("Gelu".into(), 1)] };
        assert_eq!(lost.to_string(), "the engine runs 4 nodes instead of 1, without 1 Gelu");
        assert_eq!(lost.hint(), None);
        let uneven = Slowdown::UnevenChannels { convolutions: 3, multiple: BLOCK };
        assert_eq!(
            serde_json::to_value(&uneven).unwrap(),
            "3 more convolutions have channel counts that are no multiple of 16"
        );
        assert_eq!(uneven.hint(), Some(Hint::AlignChannels));
        assert_eq!(Slowdown::Quantized.hint(), Some(Hint::OmitPass { pass: "quantize" }));
    }

    #[cfg(feature = "ort")]
    #[test]
    fn names_kernels_that_the_engine_lost() {
        use crate::{Environment, environment::LazyEngine, runner::Placement};

        let gelu = |end: &str| {
            let rest = "i = Div(x, r) e = Erf(i) a = Add(e, one)";
            model(&format!("{TYPES} {{ {rest} {end} }}"))
        };
        let original = gelu("p = Mul(x, a) y = Mul(p, half)");
        let environment = Environment::default();
        let engine = LazyEngine::new(&environment);
        let source = ModelSource::bytes(onnx::to_bytes(&original).unwrap());
        let placement = Placement::new(&original, &source, None);
        let meter = LatencyMeter { engine: &engine, placement: &placement, threads: 1, batch: 1 };
        if meter.executed(&original).is_none() {
            return; // another engine
        }
        let lost = meter.lost_kernels(&original, &gelu("p = Mul(a, half) q = Add(x, p) y = Mul(q, p)"));
        assert_eq!(
            lost,
            Some(Slowdown::LostKernels { nodes: [1, 6], kernels: vec![("Gelu".to_owned(), 1)] })
        );
        assert_eq!(meter.lost_kernels(&original, &original), None);
    }
}
