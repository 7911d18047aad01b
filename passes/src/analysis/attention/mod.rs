//! Attention as exporters write it: query, key and value, the masks of the scores, and the residual addition
//! to the stream of tokens.
//!
//! `softmax(s·q·kᵀ + mask)·v` is matched from its softmax outward: upstream to the product of two
//! activations, downstream to the next product, then through operators that only rearrange elements to the
//! layers that produce q, k and v, and to the addition to the stream. Fused operators are read from one node.
//! Names and the order of axes are not significant.

mod decomposed;
mod fused;
mod residual;
mod statics;
#[cfg(test)]
mod tests;
mod walk;

pub use statics::Statics;
pub(crate) use walk::before_rearranging;

use pare_graph::{Decline, Graph, NodeId, ValueId};

/// The operators that attention is composed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Products and a `Softmax`.
    Decomposed,
    /// `Attention` of ai.onnx (operator set 23).
    Standard,
    /// com.microsoft `Attention`: the operator holds the weights of q, k and v.
    Packed,
    /// com.microsoft `MultiHeadAttention`.
    MultiHead,
    /// com.microsoft `GroupQueryAttention`.
    GroupQuery,
}

/// Query, key or value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// The operand of the product, or of the fused operator. The channels of all heads may be on one axis.
    pub value: ValueId,
    /// The axis of heads, if they are on an axis of their own.
    pub head: Option<usize>,
    /// The axis of tokens; `None` where the operand is packed with others.
    pub token: Option<usize>,
    /// The axis of channels.
    pub channel: usize,
    /// The node (`MatMul`, `Gemm`, `Conv`) that computes it from `source`, if only a bias, a constant factor,
    /// a norm of each head and rearranging operators are between.
    pub projection: Option<NodeId>,
    /// The input of the projection, before rearranging operators; without a projection, the value where the
    /// search ended.
    pub source: ValueId,
}

/// A mask or a bias of the scores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The kind.
    pub kind: MaskKind,
    /// The value that is added or selects; `None` if an attribute defines the mask.
    pub value: Option<ValueId>,
}

/// The kind of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskKind {
    /// A token attends only to those before it.
    Causal,
    /// Scores depend on the positions of both tokens: a relative or learned position bias.
    Positional,
    /// It depends on the inputs, for example on padding.
    Input,
}

/// The addition of the output to the stream of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// The `Add`, or `SkipLayerNormalization`.
    pub node: NodeId,
    /// The stream that the output is added to.
    pub stream: ValueId,
    /// The sum; `None` for a `SkipLayerNormalization` without that output.
    pub sum: Option<ValueId>,
    /// The axis of tokens in the stream.
    pub token: usize,
}

/// One attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Its operators.
    pub form: Form,
    /// The `Softmax`, or the fused operator.
    pub core: NodeId,
    /// The query.
    pub query: Operand,
    /// The key.
    pub key: Operand,
    /// The value.
    pub value: Operand,
    /// The input of the softmax, scaled and masked, with keys on the last axis; `None` for fused operators.
    pub scores: Option<ValueId>,
    /// The output of the softmax; `None` for fused operators.
    pub weights: Option<ValueId>,
    /// The product of all factors on `q·kᵀ`; `None` if one is not a constant.
    pub scale: Option<f64>,
    /// Masks and biases of the scores, in reverse order of application.
    pub masks: Vec<Mask>,
    /// `true` if past keys and values are inputs, or present ones outputs.
    pub cached: bool,
    /// The number of heads of the query.
    pub heads: Option<usize>,
    /// The number of channels of a head of the query.
    pub head_size: Option<usize>,
    /// The weighted values; heads may be on an axis of their own.
    pub context: ValueId,
    /// The layer that mixes the heads.
    pub projection: Option<NodeId>,
    /// The common source of q, k and v: the stream, or its norm. `None` if they have different sources.
    pub source: Option<ValueId>,
    /// The addition to the stream, or the reason why it was not found.
    pub residual: Result<Residual, NoResidual>,
}

/// The reason why a softmax between two products is not read as attention.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAttention {
    /// The softmax is not over the last axis of the scores.
    #[error("{0} does not normalise the last axis")]
    Axis(String),
    /// An operator between the product of q and k and the softmax is not a scale, a mask, or rearranging.
    #[error("{0} does not read a product of two activations")]
    Scores(String),
    /// The ranks of operands are not known.
    #[error("the ranks of the operands of {0} are not known")]
    Ranks(String),
    /// A fused operator does not have the inputs and attributes of the specification.
    #[error("{0} lacks inputs or attributes")]
    Incomplete(String),
}

/// The reason why the addition to the stream was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoResidual {
    /// The weighted values are not read by a linear layer.
    #[error("no projection follows the weighted values")]
    Projection,
    /// The projection is not added to a value that the attention depends on.
    #[error("the projection is not added to a stream that the attention reads")]
    Sum,
    /// Only tokens of the same window attend to each other.
    #[error("attention is within windows of {0} of the {1} tokens of the stream")]
    Window(usize, usize),
    /// The axis of tokens in the stream is ambiguous.
    #[error("the axis of tokens in the stream is ambiguous")]
    TokenAxis,
}

impl Attention {
    /// Returns whether q, k and v are computed from the same tokens.
    pub fn is_self_attention(&self) -> bool {
        self.source.is_some()
    }

    /// The first mask of this kind.
    #[cfg(test)]
    pub fn mask(&self, kind: MaskKind) -> Option<&Mask> {
        self.masks.iter().find(|m| m.kind == kind)
    }
}

/// Returns every attention of a graph, in topological order of their cores, and the reasons for subgraphs
/// that are similar but not read as attention.
pub fn attentions(graph: &Graph) -> Vec<Result<Attention, NoAttention>> {
    let statics = Statics::of(graph);
    let found = graph.nodes();
    let found = found.iter().filter_map(|&id| {
        let at = graph.at(id);
        let result =
            if at.is("Softmax") { decomposed::read(at, &statics) } else { fused::read(at, &statics) };
        match result {
            Ok(attention) => Some(Ok(attention)),
            Err(Miss::Rejected(why)) => Some(Err(why)),
            Err(Miss::Unrelated) => None,
        }
    });
    found.collect()
}

/// The result of a match that failed.
enum Miss {
    /// The node is not part of attention.
    Unrelated,
    /// The node is similar to attention.
    Rejected(NoAttention),
}

impl From<Decline> for Miss {
    fn from(_: Decline) -> Self {
        Self::Unrelated
    }
}

impl From<NoAttention> for Miss {
    fn from(why: NoAttention) -> Self {
        Self::Rejected(why)
    }
}
