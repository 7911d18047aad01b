//! Attention as exporters write it: which values are query, key and value, what is added to the scores, and where the
//! result joins the stream of tokens.
//!
//! `softmax(s·q·kᵀ + mask)·v` is looked for from its softmax outward: up to the product of two activations, down to the
//! next one, then through whatever only rearranges elements to the layers that make q, k and v, and on to the
//! addition to the stream. Fused operators say the same in one node. Nothing is asked of names or of the order of axes.

mod decomposed;
mod fused;
mod residual;
mod statics;
#[cfg(test)]
mod tests;
mod walk;

pub use statics::Statics;

use pare_graph::{Decline, Graph, NodeId, ValueId};

/// How the graph writes it.
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
    /// What the product, or the fused operator, reads. All heads' channels may lie on one axis.
    pub value: ValueId,
    /// The axis of heads, where they have one of their own.
    pub head: Option<usize>,
    /// The axis of tokens; `None` where the operand is packed with others.
    pub token: Option<usize>,
    /// The axis of channels.
    pub channel: usize,
    /// The node (`MatMul`, `Gemm`, `Conv`) that makes it from `source`, if only a bias, a constant factor, a norm of each
    /// head and rearranging lie in between.
    pub projection: Option<NodeId>,
    /// What the projection reads, before it was rearranged; without a projection, where the search ended.
    pub source: ValueId,
}

/// What the scores are masked with, or biased by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// What it does.
    pub kind: MaskKind,
    /// The value that is added, or selects; `None` where an attribute says so.
    pub value: Option<ValueId>,
}

/// What a mask does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskKind {
    /// A token sees only those before it.
    Causal,
    /// Scores depend on the places of both tokens: a relative position bias, or a learned one.
    Positional,
    /// It depends on the inputs: padding, say.
    Input,
}

/// Where the result joins the stream of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residual {
    /// The `Add`, or `SkipLayerNormalization`.
    pub node: NodeId,
    /// What the result is added to.
    pub stream: ValueId,
    /// The sum. `SkipLayerNormalization` need not give it: then it is `None`, and a norm follows at once.
    pub sum: Option<ValueId>,
    /// The axis of tokens in the stream.
    pub token: usize,
}

/// One attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// How it is written.
    pub form: Form,
    /// The `Softmax`, or the fused operator.
    pub core: NodeId,
    /// Query.
    pub query: Operand,
    /// Key.
    pub key: Operand,
    /// Value.
    pub value: Operand,
    /// What enters the softmax, scaled and masked, keys on its last axis. Fused operators do not show it.
    pub scores: Option<ValueId>,
    /// What leaves the softmax.
    pub weights: Option<ValueId>,
    /// The factor on `q·kᵀ`, all places taken together; `None` if the file does not say it as a number.
    pub scale: Option<f64>,
    /// Masks and biases of the scores, from the outermost in.
    pub masks: Vec<Mask>,
    /// Past keys and values come in, or new ones go out.
    pub cached: bool,
    /// Heads of the query.
    pub heads: Option<usize>,
    /// Channels of a head of the query.
    pub head_size: Option<usize>,
    /// The weighted values, heads perhaps still apart.
    pub context: ValueId,
    /// The layer that mixes the heads.
    pub projection: Option<NodeId>,
    /// What the attention of the stream reads: its norm, or the stream itself. `None` if q, k and v read different values.
    pub source: Option<ValueId>,
    /// Where it joins the stream; or why that was not found.
    pub residual: Result<Residual, NoResidual>,
}

/// Why a softmax between two products is none that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAttention {
    /// Rows of the scores are not what is normalised.
    #[error("{0} does not normalise the last axis")]
    Axis(String),
    /// What leads from the product of q and k to the softmax is none of scale, mask and rearranging.
    #[error("{0} reads no product of two activations")]
    Scores(String),
    /// The shapes of operands are not known.
    #[error("the ranks of the operands of {0} are not known")]
    Ranks(String),
    /// An operator of this name whose inputs are not what the specification says.
    #[error("{0} lacks inputs or attributes")]
    Incomplete(String),
}

/// Why the place where attention joins the stream was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoResidual {
    /// What follows is no layer that mixes heads.
    #[error("no projection follows the weighted values")]
    Projection,
    /// The projection is not added to anything the attention depends on.
    #[error("the projection is not added to a stream that the attention reads")]
    Sum,
    /// Only parts of the stream attend to each other.
    #[error("attention is within windows: it sees {0} tokens of the stream's {1}")]
    Window(usize, usize),
    /// It is not clear which axis of the stream counts tokens.
    #[error("the axis of tokens in the stream is not clear")]
    TokenAxis,
}

impl Attention {
    /// Whether q, k and v are made of the same tokens.
    pub fn is_self_attention(&self) -> bool {
        self.source.is_some()
    }

    /// The first mask of this kind.
    pub fn mask(&self, kind: MaskKind) -> Option<&Mask> {
        self.masks.iter().find(|m| m.kind == kind)
    }
}

/// Every attention in a graph, in topological order of their cores, and what looks like one but is none that we know.
pub fn attentions(graph: &Graph) -> Vec<Result<Attention, NoAttention>> {
    let statics = Statics::of(graph);
    let found = graph.nodes();
    let found = found.iter().filter_map(|&id| {
        let at = graph.at(id);
        let result =
            if at.is("Softmax") { decomposed::read(at, &statics) } else { fused::read(at, &statics) };
        match result {
            Ok(attention) => Some(Ok(attention)),
            Err(Miss::Is(why)) => Some(Err(why)),
            Err(Miss::Not) => None,
        }
    });
    found.collect()
}

/// Nothing to report, or a reason.
enum Miss {
    Not,
    Is(NoAttention),
}

impl From<Decline> for Miss {
    fn from(_: Decline) -> Self {
        Self::Not
    }
}

impl From<NoAttention> for Miss {
    fn from(why: NoAttention) -> Self {
        Self::Is(why)
    }
}
