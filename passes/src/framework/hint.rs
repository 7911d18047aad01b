//! Remedies for errors, for the caller to word.

use std::fmt;

/// The remedy of an error. [`Display`](fmt::Display) words it neutrally; a program words it in terms of its
/// own interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// The pass needs samples.
    NeedsSamples {
        /// Options under which it needs none, such as `activations=false`.
        otherwise: Option<String>,
    },
    /// The pass needs at least this many samples.
    MoreSamples(usize),
    /// The pass needs an engine.
    NeedsEngine,
    /// The name is unknown: see the list of passes.
    ListPasses,
    /// An option is invalid: see the documentation of this pass.
    ExplainPass(String),
    /// The name is unknown and similar to this one.
    DidYouMean(String),
    /// Any other remedy.
    Text(String),
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsSamples { otherwise: None } => f.write_str("give samples"),
            Self::NeedsSamples { otherwise: Some(options) } => write!(f, "give samples, or set `{options}`"),
            Self::MoreSamples(least) => write!(f, "give {least} samples or more, better some hundred"),
            Self::NeedsEngine => f.write_str("give an engine"),
            Self::ListPasses => f.write_str("see the list of passes"),
            Self::ExplainPass(name) => write!(f, "see the options of `{name}`"),
            Self::DidYouMean(name) => write!(f, "did you mean `{name}`?"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<&str> for Hint {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
