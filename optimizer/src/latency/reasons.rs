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
            Self::UnevenChannels { multiple, .. } => Some(Hint::AlignChannels { multiple: *multiple }),
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
