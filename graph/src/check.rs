//! Whether a model is sound.

use crate::Model;

/// What is wrong with a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CheckError(pub String);

impl CheckError {
    /// What may help.
    pub fn hint(&self) -> Option<&str> {
        None
    }
}

impl Model {
    /// Check the whole model.
    pub fn check(&self) -> Result<(), CheckError> {
        Ok(())
    }
}
