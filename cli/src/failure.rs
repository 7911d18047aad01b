//! Exit states of commands.

use crate::hints::{self, Interface};
use onnx_pare::Error;

/// A command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Exit code 0.
    Success,
    /// A check failed: exit code 1.
    CheckFailed,
    /// The output was written but not proven: exit code 3.
    Unproven,
}

/// A command that could not run: exit code 2.
#[derive(Debug)]
pub struct Failure {
    /// One sentence.
    pub message: String,
    /// The line of the input with the error underlined.
    pub detail: Option<String>,
    /// The remedy.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), detail: None, hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = match error.root() {
            Error::Pipeline(syntax) => Some(syntax.underline()),
            _ => None,
        };
        let hint = error.hint().map(|hint| hints::text(&hint, Interface::Command));
        Self { message: error.to_string(), detail, hint }
    }
}
