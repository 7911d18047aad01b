//! How many tokens each block of a model has, and what it costs.

use crate::analysis::attention::attentions;
use pare_graph::{Dim, Graph, Model, NodeId, ops::Bindings};
use std::collections::HashMap;

/// A block: an attention with what follows it, up to the next one.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockTokens {
    /// The core of its attention, in words.
    pub attention: String,
    /// Tokens that attend.
    pub before: Dim,
    /// Tokens at the end of the block.
    pub after: Dim,
    /// Multiply-accumulates from the stream that it reads to the end of the block; of the last one to the end of the model.
    pub macs: u64,
}

/// The blocks of a model in order, with their tokens. Attentions that join no stream are none; `sizes` are those of the
/// symbols that cost is counted with.
pub fn census(model: &Model, sizes: &Bindings) -> Vec<BlockTokens> {
    let graph = &model.graph;
    let cost: HashMap<NodeId, u64> =
        model.cost(sizes).nodes.iter().map(|n| (n.id, n.macs.unwrap_or(0))).collect();
    let found: Vec<_> = attentions(graph)
        .into_iter()
        .flatten()
        .filter_map(|attention| {
            let residual = attention.residual.clone().ok()?;
            let producer = graph.producer(residual.stream).map(|(node, _)| node);
            let shape = graph.value_ref(residual.stream).shape()?.to_vec();
            Some((attention.core, producer, residual.token, shape))
        })
        .collect();
    let order = graph.nodes();
    let place = |node: NodeId| order.iter().position(|&n| n == node).unwrap_or(0);
    let starts: Vec<_> = found.iter().map(|f| f.1.map_or(0, |producer| place(producer) + 1)).collect();
    let mut blocks = vec![];
    for (i, (core, _, token, shape)) in found.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(order.len()).max(starts[i]);
        let nodes = &order[starts[i]..end];
        blocks.push(BlockTokens {
            attention: graph.describe(*core),
            before: shape[*token].clone(),
            after: last_stream(graph, nodes, *token, shape).unwrap_or_else(|| shape[*token].clone()),
            macs: nodes.iter().filter_map(|n| cost.get(n)).sum(),
        });
    }
    blocks
}

/// Tokens of the last sum among the nodes that looks like the stream.
fn last_stream(graph: &Graph, nodes: &[NodeId], token: usize, stream: &[Dim]) -> Option<Dim> {
    let outputs = nodes.iter().rev().filter(|&&n| graph.at(n).is("Add"));
    outputs
        .filter_map(|&n| graph.at(n).output().ok()?.shape())
        .find(|s| s.len() == stream.len() && s.last() == stream.last())
        .map(|s| s[token].clone())
}
