//! Why tokens cannot be merged.

use crate::analysis::attention::{NoAttention, NoResidual};

/// Why tokens cannot be merged here without changing what the model means.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing to work on.
    #[error("no attention was found")]
    NoAttention,
    /// What looks like attention but is none that is known.
    #[error(transparent)]
    Unknown(#[from] NoAttention),
    /// Queries, keys and values of different tokens.
    #[error("{0} is no self-attention: q, k and v are made of different values")]
    Cross(String),
    /// The stream was not found.
    #[error("{node}: {why}")]
    Residual {
        /// The core of the attention.
        node: String,
        /// Why.
        why: NoResidual,
    },
    /// Order matters.
    #[error("{0} is causal: merged tokens would see what comes after them")]
    Causal(String),
    /// Scores depend on places.
    #[error("{0} has a bias for each pair of places, which merged tokens do not have")]
    Biased(String),
    /// The pass was here before.
    #[error("{0} weighs tokens by their sizes: some were merged already")]
    Merged(String),
    /// A mask that would have to be merged too.
    #[error("{0} is masked by an input")]
    Masked(String),
    /// Keys and values of earlier runs.
    #[error("{0} keeps keys and values from run to run")]
    Cached(String),
    /// How many tokens there are is not known.
    #[error("the number of tokens in `{0}` is not fixed")]
    Open(String),
    /// Elements are no `float`.
    #[error("`{0}` is not of type float")]
    Type(String),
    /// A constant for each token meets tokens.
    #[error("`{0}` holds a value for each place and is used after the first merge")]
    Positions(String),
    /// Merged tokens meet those from before.
    #[error("`{0}` holds the tokens as they were before a merge and meets merged ones")]
    Earlier(String),
    /// Tokens are mixed by place.
    #[error("{0} mixes tokens by their places")]
    Mixes(String),
    /// Tokens are laid out in two dimensions, or folded into channels.
    #[error("{0} lays tokens out in another shape")]
    Flattened(String),
    /// Tokens are joined with others.
    #[error("{0} joins tokens with others")]
    Joins(String),
    /// A token that may be merged is picked.
    #[error("{node} picks token {place} by its place")]
    Picked {
        /// The node.
        node: String,
        /// The token.
        place: usize,
    },
    /// The number of tokens is part of the interface.
    #[error("the output `{0}` has an axis of tokens")]
    Output(String),
    /// An operator of which it is not known what it does to tokens.
    #[error("of {0} it is not known what it does to tokens")]
    Operator(String),
    /// What could not be foreseen.
    #[error("`{value}` would be of shape [{got}] instead of [{wanted}]")]
    Shape {
        /// The value.
        value: String,
        /// The shape it should have.
        wanted: String,
        /// The shape it would have.
        got: String,
    },
    /// What the method needs.
    #[error("{0}")]
    Method(String),
}
