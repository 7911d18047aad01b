//! Errors of passes and of pipeline runs.

use super::Hint;
use pare_graph::{EvaluateError, InferError};

/// An error of a pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// The options, the samples or the model do not allow what is requested.
    #[error("{why}")]
    Refused {
        /// One sentence.
        why: String,
        /// The remedy, if one is known.
        hint: Option<Hint>,
    },
    /// A rewrite fires without end.
    #[error("it does not converge at {0}")]
    NotConverging(String),
    /// Running the model failed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// Types or shapes contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
}

impl PassError {
    /// A [`PassError::Refused`] without a hint.
    pub fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into(), hint: None }
    }

    /// A [`PassError::Refused`] with the sentence of an error.
    #[allow(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
    pub fn from_error(error: impl ToString) -> Self {
        Self::refused(error.to_string())
    }

    /// A [`PassError::Refused`] with a hint.
    pub fn refused_with(why: impl Into<String>, hint: impl Into<Hint>) -> Self {
        Self::Refused { why: why.into(), hint: Some(hint.into()) }
    }
}

/// An error that ended the run of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The model was invalid before any pass ran.
    #[error("the model is invalid: {why}")]
    Input {
        /// One sentence.
        why: String,
        /// The remedy, if one is known.
        hint: Option<Hint>,
    },
    /// A pass failed.
    #[error("`{pass}`: {error}")]
    Pass {
        /// Its name.
        pass: &'static str,
        /// Its error.
        error: PassError,
    },
    /// A pass left an invalid model behind: a defect of the pass.
    #[error("`{pass}` left an invalid model behind: {why}")]
    Broken {
        /// Its name.
        pass: &'static str,
        /// The violated invariant.
        why: String,
    },
    /// A pass panicked: a defect of the pass.
    #[error("`{pass}` panicked: {message}")]
    Panicked {
        /// Its name.
        pass: &'static str,
        /// The panic message.
        message: String,
    },
}

impl RunError {
    /// The remedy, if one is known.
    pub fn hint(&self) -> Option<&Hint> {
        match self {
            Self::Input { hint, .. } | Self::Pass { error: PassError::Refused { hint, .. }, .. } => {
                hint.as_ref()
            }
            _ => None,
        }
    }
}
