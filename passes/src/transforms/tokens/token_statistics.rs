//! The number of tokens and the cost of each block of a transformer.

use crate::analysis::attention::attentions;
use pare_graph::{Dim, Graph, Model, NodeId, ops::Bindings};
use std::collections::HashMap;

/// A block: an attention and all nodes up to the next one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BlockTokens {
    /// The core of its attention, as text.
    pub attention: String,
    /// Number of tokens that the attention reads.
    pub before: Dim,
    /// Number of tokens at the end of the block.
    pub after: Dim,
    /// Multiply-accumulates of the block; those of the last block include the rest of the model.
    pub macs: u64,
}

/// An attention with its residual stream.
struct Block {
    core: NodeId,
    /// The producer of the stream.
    producer: Option<NodeId>,
    /// The token axis of the stream.
    token: usize,
    /// The shape of the stream.
    shape: Vec<Dim>,
}

/// Returns the blocks of a model in order. Attentions without a residual stream are skipped; `sizes` binds
/// the symbolic dimensions for the cost.
pub fn token_statistics(model: &Model, sizes: &Bindings) -> Vec<BlockTokens> {
    let graph = &model.graph;
    let cost: HashMap<NodeId, u64> =
        model.cost(sizes).nodes.iter().map(|n| (n.id, n.macs.unwrap_or(0))).collect();
    let found: Vec<_> = attentions(graph)
        .into_iter()
        .flatten()
        .filter_map(|attention| {
            let residual = attention.residual.clone().ok()?;
            Some(Block {
                core: attention.core,
                producer: graph.producer(residual.stream).map(|(node, _)| node),
                token: residual.token,
                shape: graph.value_ref(residual.stream).shape()?.to_vec(),
            })
        })
        .collect();
    let order = graph.nodes();
    let position = |node: NodeId| order.iter().position(|&n| n == node).unwrap_or(0);
    let starts: Vec<_> = found.iter().map(|b| b.producer.map_or(0, |node| position(node) + 1)).collect();
    let mut blocks = vec![];
    for (i, block) in found.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(order.len()).max(starts[i]);
        let nodes = &order[starts[i]..end];
        let before = block.shape[block.token].clone();
        blocks.push(BlockTokens {
            attention: graph.describe(block.core),
            after: last_stream(graph, nodes, block).unwrap_or_else(|| before.clone()),
            before,
            macs: nodes.iter().filter_map(|n| cost.get(n)).sum(),
        });
    }
    blocks
}

/// Returns the number of tokens of the last `Add` among the nodes whose shape matches the stream.
fn last_stream(graph: &Graph, nodes: &[NodeId], block: &Block) -> Option<Dim> {
    let outputs = nodes.iter().rev().filter(|&&n| graph.at(n).is("Add"));
    outputs
        .filter_map(|&n| graph.at(n).output().ok()?.shape())
        .find(|s| s.len() == block.shape.len() && s.last() == block.shape.last())
        .map(|s| s[block.token].clone())
}
