//! Errors, and the remedies they suggest.

use crate::{Defect, Rejected};
use pare_graph::onnx::{ReadError, WriteError};
use pare_passes::{Hint as PassHint, PipelineError, RunError, statistics::StatisticsError};
use pare_runtime::{EngineError, Hint as EngineHint, SamplesError};
use std::{fmt::Display, io, path::PathBuf, sync::Arc};

/// Why an operation did not succeed; one sentence, with the remedy in [`Error::hint`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model cannot be read.
    #[error("{}", read_message(.name, .error))]
    Read {
        /// The source, for people.
        name: String,
        /// The cause.
        error: ReadError,
    },
    /// A model cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another file cannot be read or written.
    #[error("cannot {action} `{}`: {error}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A pipeline cannot be parsed.
    #[error(transparent)]
    Pipeline(#[from] Box<PipelineSyntax>),
    /// A pass refused, or the model is invalid.
    #[error(transparent)]
    Run(RunError),
    /// A pass is defective.
    #[error("{}", .0.error)]
    Defect(Box<Defect>),
    /// The result does not keep a promise or a limit.
    #[error("{0}")]
    Rejected(Box<Rejected>),
    /// The engine cannot be found, or cannot load or run a model.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
    /// Samples cannot be read.
    #[error(transparent)]
    Samples(#[from] SamplesError),
    /// Statistics cannot be read, written or merged.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// An error with the thing it concerns.
    #[error("{subject}: {error}")]
    About {
        /// The thing, for people.
        subject: String,
        /// The error.
        error: Box<Error>,
    },
    /// [`Progress::cancelled`](crate::Progress::cancelled) returned true.
    #[error("cancelled")]
    Cancelled,
    /// Options contradict each other or the model.
    #[error("{message}")]
    Invalid {
        /// One sentence.
        message: String,
        /// The remedy.
        hint: Option<Hint>,
    },
}

/// A pipeline that cannot be parsed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", error.message)]
#[non_exhaustive]
pub struct PipelineSyntax {
    /// The text.
    pub text: String,
    /// The error, with its position in the text.
    pub error: PipelineError,
}

impl PipelineSyntax {
    /// The line with the error, and carets under its position.
    pub fn underline(&self) -> String {
        self.error.underline(&self.text)
    }
}

/// A remedy, for the caller to put into words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Samples must be given.
    NeedsSamples,
    /// Limits need a proof.
    NeedsProof,
    /// A search needs a limit.
    NeedsLimit,
    /// The families of passes that exist.
    Families(Vec<&'static str>),
    /// The command must name the model.
    NameModel,
    /// Statistics are those that [`calibrate`](crate::calibrate) writes.
    NeedsStatistics,
    /// The output must be a file, not a folder.
    NameFile,
    /// The folder must be created.
    CreateFolder(PathBuf),
    /// The symbolic dimensions that exist.
    Dimensions(Vec<String>),
    /// The outputs that exist.
    Outputs(Vec<String>),
    /// Some of the channel groups that exist.
    Groups(Vec<String>),
    /// A pass is defective and can be omitted; or the model is invalid, for the reason given.
    Defect {
        /// Why the engine does not load the original model, if it does not.
        model_error: Option<String>,
    },
    /// Initializers that the caller may override are not constants.
    FreezeInitializers {
        /// Their number.
        overridable: usize,
    },
    /// Channel counts that fit the blocks of the engine are faster.
    AlignChannels,
    /// A pass does not pay for this model.
    OmitPass {
        /// Its name.
        pass: &'static str,
    },
    /// The original is faster than the result.
    KeepOriginal,
    /// Passes that rename or reshape weights leave no mask.
    KeepWeights,
    /// The remedy of an engine, or of samples.
    Engine(EngineHint),
    /// The remedy of a pass, or of a pipeline.
    Pass(PassHint),
    /// Another remedy, in words.
    Text(String),
}

impl Error {
    /// An error about options or the model.
    pub(crate) fn invalid(message: impl Display) -> Self {
        Self::Invalid { message: message.to_string(), hint: None }
    }

    /// The same with a remedy.
    pub(crate) fn invalid_with(message: impl Display, hint: Hint) -> Self {
        Self::Invalid { message: message.to_string(), hint: Some(hint) }
    }

    /// The same error, with the thing it concerns.
    #[must_use]
    pub fn about(self, subject: impl Display) -> Self {
        Self::About { subject: subject.to_string(), error: Box::new(self) }
    }

    pub(crate) fn pipeline(error: PipelineError, text: &str) -> Self {
        Box::new(PipelineSyntax { text: text.to_owned(), error }).into()
    }

    /// The error without the things it concerns.
    pub fn root(&self) -> &Self {
        if let Self::About { error, .. } = self { error.root() } else { self }
    }

    /// The remedy.
    pub fn hint(&self) -> Option<Hint> {
        let text = |text: &str| Hint::Text(text.to_owned());
        match self {
            Self::Read { error, .. } => error.hint().map(text),
            Self::Write(error) => error.hint().map(text),
            Self::Pipeline(syntax) => syntax.error.hint.clone().map(Hint::Pass),
            Self::Run(error) => error.hint().cloned().map(Hint::Pass),
            Self::Defect(defect) => Some(Hint::Defect { model_error: defect.model_error.clone() }),
            Self::Engine(error) => error.hint().map(Hint::Engine),
            Self::Samples(error) => error.hint().map(Hint::Engine),
            Self::Statistics(_) => Some(Hint::NeedsStatistics),
            Self::About { error, .. } => error.hint(),
            Self::Invalid { hint, .. } => hint.clone(),
            Self::File { .. } | Self::Rejected(_) | Self::Cancelled => None,
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Arc::new(error).into()
    }
}

/// Some errors name the file themselves.
fn read_message(name: &str, error: &ReadError) -> String {
    match error {
        ReadError::Io { .. } | ReadError::NotAFile(_) => error.to_string(),
        _ => format!("{name}: {error}"),
    }
}
