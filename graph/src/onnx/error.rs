//! Errors of reading and writing.

use super::wire::MAX_DEPTH;
use crate::{GraphError, mapped::MapError};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The reason why a model or a tensor cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened or mapped.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The path is a folder, a device or a pipe.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The bytes are not a valid protobuf message.
    #[error("the file is damaged or not an ONNX file: {0}")]
    NotOnnx(String),
    /// A field that would be lost, of a later version of ONNX or unrelated to ONNX.
    #[error("{message} has the unknown field {number}, which would be lost")]
    UnknownField {
        /// Name of the protobuf message.
        message: &'static str,
        /// Number of the field.
        number: u64,
    },
    /// Messages are nested too deep.
    #[error("messages are nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The model has no graph.
    #[error("the model has no graph")]
    NoGraph,
    /// A value is used, but has no producer.
    #[error("`{value}` is used {by}, but has no producer")]
    Undefined {
        /// The value.
        value: String,
        /// Description of the user.
        by: String,
    },
    /// The file with the elements of a tensor cannot be opened.
    #[error("{tensor} has its data in `{location}`, which cannot be opened: {source}")]
    MissingData {
        /// Description of the tensor.
        tensor: String,
        /// The location of its data according to the model.
        location: String,
        /// The error of the system.
        source: io::Error,
    },
    /// Something in the model contradicts the format.
    #[error("{object} {why}")]
    Invalid {
        /// Description of the invalid object.
        object: String,
        /// Description of the fault.
        why: String,
    },
    /// The graph is invalid.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl ReadError {
    /// A remedy for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Empty | Self::NotOnnx(_) => Some(
                "download or export it again; `git lfs pull` fetches files that Git LFS stores as pointers",
            ),
            Self::NotAFile(_) => Some("give the path of the `.onnx` file"),
            Self::MissingData { .. } => {
                Some("the file with the weights must be in the folder of the model, under its original name")
            }
            Self::UnknownField { .. } => Some("a later version of `pare` may support it"),
            _ => None,
        }
    }

    pub(super) fn of_mapping(error: MapError, path: &Path) -> Self {
        match error {
            MapError::Io(source) => Self::Io { path: path.to_owned(), source },
            MapError::NotAFile => Self::NotAFile(path.to_owned()),
            MapError::Empty => Self::Empty,
        }
    }

    pub(crate) fn invalid(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { object: object.into(), why: why.into() }
    }
}

/// The reason why a model cannot be written. The previous file at the destination is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A file cannot be created, written or renamed.
    #[error("cannot write `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The destination is a folder, a device or a pipe.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The destination has no file name in UTF-8, which external data requires.
    #[error("`{}` has no file name in UTF-8", .0.display())]
    Name(PathBuf),
    /// A data file must be beside the model file.
    #[error("`{0}` is not the name of a data file beside the model")]
    DataName(String),
    /// The model exceeds the limit of protobuf, 2 GiB less one byte.
    #[error("the model takes {bytes} bytes without its external data; protobuf allows {limit}")]
    TooLarge {
        /// Size of the model in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Subgraphs are nested deeper than readers support.
    #[error("subgraphs are nested too deep at {0}")]
    TooDeep(String),
    /// The nodes form a cycle.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Writing to the stream of the caller failed.
    #[error("cannot write the model: {0}")]
    Stream(#[source] io::Error),
}

impl WriteError {
    /// A remedy for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAFile(_) => Some("give the path of a regular file"),
            Self::TooLarge { .. } => {
                Some("write to a file: weights are then stored in a second file beside it")
            }
            _ => None,
        }
    }
}
