//! The reasons why tokens cannot be merged.

use crate::analysis::attention::{NoAttention, NoResidual};

/// The reason why merging tokens would change the meaning of a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeDecline {
    /// The graph has no attention.
    #[error("no attention was found")]
    NoAttention,
    /// A pattern resembles attention, but is not a known form of it.
    #[error(transparent)]
    Unknown(#[from] NoAttention),
    /// Cross-attention.
    #[error("{0} is not self-attention: queries, keys and values are computed from different values")]
    Cross(String),
    /// The residual stream was not found.
    #[error("{node}: {why}")]
    Residual {
        /// The core of the attention.
        node: String,
        /// The reason.
        why: NoResidual,
    },
    /// A causal mask.
    #[error("{0} is causal: merged tokens would attend to later ones")]
    Causal(String),
    /// A positional bias of the scores.
    #[error("{0} has a bias for each pair of positions, which merged tokens do not have")]
    Biased(String),
    /// The pass has already run.
    #[error("{0} weighs tokens by their sizes: some have been merged already")]
    Merged(String),
    /// A mask that would have to be merged with the tokens.
    #[error("{0} is masked by an input")]
    Masked(String),
    /// A key/value cache.
    #[error("{0} caches keys and values")]
    Cached(String),
    /// A symbolic number of tokens.
    #[error("the number of tokens in `{0}` is not fixed")]
    Open(String),
    /// Elements that are not `float`.
    #[error("`{0}` is not of type float")]
    Type(String),
    /// A constant with a token axis, downstream of a merge.
    #[error("`{0}` has a value for each position and is used after the first merge")]
    Positions(String),
    /// Tokens from before a merge, combined with merged ones.
    #[error("`{0}` has the tokens from before a merge and is combined with merged ones")]
    Earlier(String),
    /// An operator that mixes tokens.
    #[error("{0} mixes tokens by their positions")]
    Mixes(String),
    /// Tokens in two dimensions, or folded into channels.
    #[error("{0} changes the layout of the tokens")]
    Flattened(String),
    /// Tokens that are concatenated with others.
    #[error("{0} concatenates tokens with others")]
    Joins(String),
    /// A token that may be merged is selected.
    #[error("{node} selects token {position} by its position")]
    Picked {
        /// The node.
        node: String,
        /// The token.
        position: usize,
    },
    /// The number of tokens is part of the interface.
    #[error("the output `{0}` has a token axis")]
    Output(String),
    /// An operator without a rule.
    #[error("the effect of {0} on tokens is not known")]
    Operator(String),
    /// The inferred shape is not the predicted one.
    #[error("`{value}` would have shape [{got}] instead of [{wanted}]")]
    Shape {
        /// The value.
        value: String,
        /// The predicted shape.
        wanted: String,
        /// The inferred shape.
        got: String,
    },
    /// A requirement of the method that the model does not meet.
    #[error("{0}")]
    Method(String),
}
