//! Why a file cannot be read or written.

use crate::{GraphError, onnx::wire::MAX_DEPTH};
use std::{io, path::PathBuf};

/// Why a model or a tensor cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or mapped.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder, a device or a pipe.
    #[error("`{}` is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// The bytes are no such protobuf message.
    #[error("the file is damaged or no ONNX file: {0}")]
    NotOnnx(String),
    /// A field that would be lost, from a later version of ONNX or not of ONNX at all.
    #[error("{message} has the unknown field {number}, which would be lost")]
    UnknownField {
        /// Name of the protobuf message.
        message: &'static str,
        /// Number of the field.
        number: u64,
    },
    /// Messages within messages without end.
    #[error("messages are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// A model without a graph.
    #[error("the model has no graph")]
    NoGraph,
    /// A value that is used, but that nothing makes.
    #[error("`{value}` is used {by}, but nothing makes it")]
    Undefined {
        /// The value.
        value: String,
        /// Who uses it, in words.
        by: String,
    },
    /// The file that holds a tensor's elements is not there, or may not be opened.
    #[error("{place} has its data in `{location}`, which cannot be opened: {source}")]
    MissingData {
        /// The tensor, in words.
        place: String,
        /// Where its data should be, as the model says.
        location: String,
        /// What the system says.
        source: io::Error,
    },
    /// Something in the model contradicts the format.
    #[error("{place} {why}")]
    Invalid {
        /// What is wrong, in words.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// The graph refuses.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl ReadError {
    /// What may help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Empty | Self::NotOnnx(_) => {
                Some("download or export it again; what Git LFS left as a pointer, `git lfs pull` fetches")
            }
            Self::NotAFile(_) => Some("give the `.onnx` file itself"),
            Self::MissingData { .. } => Some(
                "the file with the weights belongs beside the model, under the name it was exported with",
            ),
            Self::UnknownField { .. } => Some("a later version of `pare` may know it"),
            _ => None,
        }
    }

    pub(crate) fn invalid(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), why: why.into() }
    }
}

/// Why a model cannot be written. What stood at the destination before is still there, whole.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file cannot be made, filled or renamed.
    #[error("cannot write `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The destination is a folder, a device or a pipe.
    #[error("`{}` is no regular file", .0.display())]
    NotAFile(PathBuf),
    /// The destination has no file name that another file could refer to.
    #[error("`{}` is no file name in UTF-8", .0.display())]
    Name(PathBuf),
    /// Protobuf allows no more than 2 GiB, less one byte.
    #[error("the model takes {bytes} bytes without its external data; protobuf allows {limit}")]
    TooLarge {
        /// Bytes the model would take.
        bytes: usize,
        /// Bytes it may take.
        limit: usize,
    },
    /// Subgraphs within subgraphs that no reader could read.
    #[error("subgraphs are nested too deep at {0}")]
    TooDeep(String),
    /// Nodes that need each other have no order.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The stream given by the caller failed.
    #[error("cannot write the model: {0}")]
    Stream(#[source] io::Error),
}

impl WriteError {
    /// What may help.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAFile(_) => Some("give the name of a file, or `-` for stdout"),
            Self::TooLarge { .. } => Some("write to a file: weights then go to a second one beside it"),
            _ => None,
        }
    }
}
