//! Token analysis: the attention blocks of a graph, the tokens of its residual stream, and their final
//! readers.

use super::{
    decline::MergeDecline,
    trace::{TokenChange, Trace, trace},
};
use crate::analysis::attention::{Attention, MaskKind, Statics, attentions};
use pare_graph::{DataType, Graph, ValueId, ValueRef};

/// A graph whose tokens can be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenAnalysis {
    /// Number of attention blocks.
    pub blocks: usize,
    /// Number of tokens in the stream of each block.
    pub tokens: Vec<usize>,
    /// Number of leading tokens that are never merged: class and distillation tokens.
    pub protected: usize,
    /// True if only the protected tokens are read after the last attention.
    pub unread: bool,
}

/// Maximum number of class and distillation tokens of a model.
const MAX_PROTECTED: usize = 2;

impl TokenAnalysis {
    /// Analyses a graph, and checks that merging from block `first` on is valid everywhere downstream.
    pub fn of(graph: &Graph, first: usize) -> Result<Self, MergeDecline> {
        let blocks = blocks(graph)?;
        for block in blocks.iter().skip(first) {
            check_mergeable(graph, block)?;
        }
        let statics = Statics::of(graph);
        let tokens = blocks.iter().map(|b| tokens(graph, b)).collect::<Result<Vec<_>, _>>()?;
        let first = first.min(blocks.len() - 1);
        let all = trace_block(graph, &blocks[first], tokens[first], &statics)?;
        if let Some(&unknown) = all.weighing.iter().find(|&&n| blocks.iter().all(|b| b.core != n)) {
            return Err(MergeDecline::Operator(graph.describe(unknown)));
        }
        let skipped = all.pools.iter().map(|p| p.skipped).max().unwrap_or(0);
        let protected = all.picked.iter().map(|p| p + 1).max().unwrap_or(0).max(skipped);
        let last = trace_block(graph, &blocks[blocks.len() - 1], tokens[blocks.len() - 1], &statics)?;
        let unread = last.pools.is_empty() && !last.contracts && protected > 0;
        Ok(Self { blocks: blocks.len(), tokens, protected, unread })
    }
}

/// Traces the effect of fewer tokens after the attention of a block.
fn trace_block(
    graph: &Graph,
    block: &Attention,
    tokens: usize,
    statics: &Statics,
) -> Result<Trace, MergeDecline> {
    let (sum, axis) = residual_of(graph, block)?;
    // The effects are the same for any smaller number.
    let change = TokenChange { from: tokens, to: tokens - 1, protected: MAX_PROTECTED };
    let mut starts = vec![(graph.value_ref(sum), axis)];
    // A normalization fused with the sum is another output of the same node.
    let (producer, slot) = graph.producer(sum).ok_or(MergeDecline::NoAttention)?;
    if slot > 0 {
        let normalized = graph.at(producer).outputs().first().copied().flatten();
        starts.extend(normalized.map(|value| (value, axis)));
    }
    trace(graph, &starts, change, statics)
}

/// Returns the attentions of a graph; fails if one of them is not known.
pub(super) fn blocks(graph: &Graph) -> Result<Vec<Attention>, MergeDecline> {
    let found = attentions(graph).into_iter().collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() { Err(MergeDecline::NoAttention) } else { Ok(found) }
}

/// Returns the sum of the stream and an attention, and its token axis.
pub(super) fn residual_of(graph: &Graph, attention: &Attention) -> Result<(ValueId, usize), MergeDecline> {
    let node = || graph.describe(attention.core);
    let residual =
        attention.residual.as_ref().map_err(|&why| MergeDecline::Residual { node: node(), why })?;
    let hidden = || {
        MergeDecline::Method(format!(
            "{} does not output the sum it normalizes",
            graph.describe(residual.node)
        ))
    };
    Ok((residual.sum.ok_or_else(hidden)?, residual.token))
}

/// Returns the number of tokens in the stream of an attention.
pub(super) fn tokens(graph: &Graph, block: &Attention) -> Result<usize, MergeDecline> {
    let node = || graph.describe(block.core);
    let residual = block.residual.as_ref().map_err(|&why| MergeDecline::Residual { node: node(), why })?;
    let stream = graph.value_ref(residual.stream);
    let size = stream.shape().and_then(|s| s[residual.token].size());
    size.filter(|&n| n > 1).ok_or_else(|| MergeDecline::Open(stream.name().into()))
}

/// Checks that an attention may read merged tokens.
fn check_mergeable(graph: &Graph, block: &Attention) -> Result<(), MergeDecline> {
    let node = || graph.describe(block.core);
    if block.cached {
        return Err(MergeDecline::Cached(node()));
    }
    if let Some(mask) = block.masks.first() {
        return Err(match mask.kind {
            MaskKind::Causal => MergeDecline::Causal(node()),
            MaskKind::Positional => MergeDecline::Biased(node()),
            MaskKind::Input if mask.value.is_some_and(|v| is_logarithm(graph.value_ref(v))) => {
                MergeDecline::Merged(node())
            }
            MaskKind::Input => MergeDecline::Masked(node()),
        });
    }
    let residual = block.residual.as_ref().map_err(|&why| MergeDecline::Residual { node: node(), why })?;
    if !block.is_self_attention() {
        return Err(MergeDecline::Cross(node()));
    }
    let stream = graph.value_ref(residual.stream);
    if stream.dtype() != Some(DataType::Float) {
        return Err(MergeDecline::Type(stream.name().into()));
    }
    Ok(())
}

/// Returns whether a bias is a logarithm, as the bias that a merge adds for token sizes.
fn is_logarithm(bias: ValueRef<'_>) -> bool {
    let row = bias.producer().filter(|at| at.is("Reshape")).and_then(|at| at.input(0).ok());
    row.unwrap_or(bias).producer().is_some_and(|at| at.is("Log"))
}
