//! The tokens of the blocks of a transformer.

use super::{Checked, InspectOptions};
use crate::{Error, Source};
use pare_passes::transforms::tokens::{TokenAnalysis, token_statistics};
use serde::Serialize;
use std::path::PathBuf;

/// The tokens of a transformer.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Tokens {
    /// The model file.
    pub model: Option<PathBuf>,
    /// The blocks in topological order.
    pub blocks: Vec<TokenBlock>,
    /// Tokens at the front that are never merged, such as a class token; `None` if tokens cannot be merged.
    pub protected: Option<usize>,
    /// Why tokens cannot be merged.
    pub refusal: Option<String>,
    /// True if only the protected tokens are used after the last attention.
    #[serde(skip)]
    pub others_unused: bool,
}

/// A block of a transformer.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct TokenBlock {
    /// Its attention.
    pub attention: String,
    /// Number of tokens before the block.
    pub before: String,
    /// Number of tokens after the block.
    pub after: String,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Their share of the model.
    pub share: f64,
}

/// Returns the tokens of each block of a transformer, and whether they can be merged.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model or an unknown dimension.
pub fn inspect_tokens(source: impl Into<Source>, options: &InspectOptions) -> Result<Tokens, Error> {
    let Checked { model, path, .. } = Checked::load(source.into())?;
    let sizes = options.bindings(&model)?;
    let all = model.cost(&sizes).macs;
    let blocks = token_statistics(&model, &sizes).into_iter().map(|b| TokenBlock {
        attention: b.attention,
        before: b.before.to_string(),
        after: b.after.to_string(),
        macs: b.macs,
        share: if all > 0 { b.macs as f64 / all as f64 } else { 0.0 },
    });
    let analysis = TokenAnalysis::of(&model.graph, 0);
    Ok(Tokens {
        model: path,
        blocks: blocks.collect(),
        protected: analysis.as_ref().ok().map(|s| s.protected),
        refusal: analysis.as_ref().err().map(ToString::to_string),
        others_unused: analysis.is_ok_and(|s| s.unread),
    })
}
