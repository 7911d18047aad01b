//! What is there to merge: the attentions of a graph, the tokens of its stream, and what reads them in the end.

use super::{
    merge::residual_of,
    refusal::Refusal,
    trace::{Change, trace},
};
use crate::analysis::attention::{Attention, MaskKind, Statics, attentions};
use pare_graph::{DataType, Graph, ValueRef};

/// A graph whose tokens can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Attentions, in order: each is a block.
    pub blocks: usize,
    /// Tokens in the stream of each block.
    pub tokens: Vec<usize>,
    /// Tokens at the front that stay: a class token, a distillation token.
    pub protected: usize,
    /// Whether what follows the last attention reads the protected tokens only.
    pub unread: bool,
}

/// The tokens that a model may have for classes.
const SPECIAL: usize = 2;

impl Survey {
    /// Look at a graph, and check that merging from block `first` on leaves everything downstream right.
    pub fn of(graph: &Graph, first: usize) -> Result<Self, Refusal> {
        let blocks = blocks(graph)?;
        for block in blocks.iter().skip(first) {
            checked(graph, block)?;
        }
        let statics = Statics::of(graph);
        let tokens = blocks.iter().map(|b| tokens(graph, b)).collect::<Result<Vec<_>, _>>()?;
        let follow = |block: usize, protected: usize| {
            let (sum, axis) = residual_of(graph, &blocks[block])?;
            // Any smaller number does for finding out what follows.
            let change = Change { from: tokens[block], to: tokens[block] - 1, protected };
            let mut starts = vec![(graph.value_ref(sum), axis)];
            // A norm in the same operator reads the sum too.
            let (producer, slot) = graph.producer(sum).ok_or(Refusal::NoAttention)?;
            if slot > 0 {
                starts.extend(
                    graph.at(producer).outputs().first().copied().flatten().map(|normed| (normed, axis)),
                );
            }
            trace(graph, &starts, change, &statics)
        };
        let first = first.min(blocks.len() - 1);
        let all = follow(first, SPECIAL)?;
        if let Some(&unknown) = all.weighing.iter().find(|&&n| blocks.iter().all(|b| b.core != n)) {
            return Err(Refusal::Operator(graph.describe(unknown)));
        }
        let skipped = all.pools.iter().map(|p| p.skipped).max().unwrap_or(0);
        let protected = all.picked.iter().map(|p| p + 1).max().unwrap_or(0).max(skipped);
        let last = follow(blocks.len() - 1, SPECIAL)?;
        let unread = last.pools.is_empty() && !last.contracts && protected > 0;
        Ok(Self { blocks: blocks.len(), tokens, protected, unread })
    }
}

/// The attentions of a graph, all of which are known.
pub(super) fn blocks(graph: &Graph) -> Result<Vec<Attention>, Refusal> {
    let found = attentions(graph).into_iter().collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(Refusal::NoAttention) } else { Ok(found) }
}

/// Tokens in the stream of an attention.
pub(super) fn tokens(graph: &Graph, block: &Attention) -> Result<usize, Refusal> {
    let node = || graph.describe(block.core);
    let residual = block.residual.as_ref().map_err(|&why| Refusal::Residual { node: node(), why })?;
    let stream = graph.value_ref(residual.stream);
    let size = stream.shape().and_then(|s| s[residual.token].size());
    size.filter(|&n| n > 1).ok_or_else(|| Refusal::Open(stream.name().into()))
}

/// Whether the tokens of an attention may have been merged.
fn checked(graph: &Graph, block: &Attention) -> Result<(), Refusal> {
    let node = || graph.describe(block.core);
    if block.cached {
        return Err(Refusal::Cached(node()));
    }
    if let Some(mask) = block.masks.first() {
        return Err(match mask.kind {
            MaskKind::Causal => Refusal::Causal(node()),
            MaskKind::Positional => Refusal::Biased(node()),
            MaskKind::Input if mask.value.is_some_and(|v| is_of_sizes(graph.value_ref(v))) => {
                Refusal::Merged(node())
            }
            MaskKind::Input => Refusal::Masked(node()),
        });
    }
    let residual = block.residual.as_ref().map_err(|&why| Refusal::Residual { node: node(), why })?;
    if !block.is_self_attention() {
        return Err(Refusal::Cross(node()));
    }
    let stream = graph.value_ref(residual.stream);
    if stream.dtype() != Some(DataType::Float) {
        return Err(Refusal::Type(stream.name().into()));
    }
    Ok(())
}

/// Whether a bias is the logarithm of something, as a merge adds that of sizes.
fn is_of_sizes(bias: ValueRef<'_>) -> bool {
    let row = bias.producer().filter(|at| at.is("Reshape")).and_then(|at| at.input(0).ok());
    row.unwrap_or(bias).producer().is_some_and(|at| at.is("Log"))
}
