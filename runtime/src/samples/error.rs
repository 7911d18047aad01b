//! Errors of samples.

use crate::{Hint, message::one_line};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why samples cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplesError {
    /// A file or folder cannot be read.
    #[error("`{}` cannot be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The arrays take more memory than allowed.
    #[error("`{}` unpacks to {size} bytes, and {limit} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes of all arrays together.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A folder contains no test data.
    #[error("`{}` holds neither `input_0.pb` nor a folder `test_data_set_0`", .0.display())]
    EmptyFolder(PathBuf),
    /// The arrays' names differ from those of the inputs.
    #[error("{message}")]
    Names {
        /// The names, as a sentence.
        message: String,
        /// An input that has no array; if all have one, any.
        input: String,
    },
    /// An array does not fit its input.
    #[error("input `{name}` {reason}")]
    Port {
        /// The input.
        name: String,
        /// The input's type and the array's.
        reason: String,
    },
    /// Arrays have different lengths, or inputs different fixed batch sizes.
    #[error("{0}")]
    Counts(String),
    /// There are no samples.
    #[error("there are no samples in `{}`", .0.display())]
    Empty(PathBuf),
}

impl SamplesError {
    pub(super) fn read(path: &Path, error: &io::Error) -> Self {
        Self::File { path: path.to_owned(), reason: one_line(&error.to_string()) }
    }

    /// The remedy, if one is known.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::Names { input, .. } => Some(Hint::NameArrays { input: input.clone() }),
            Self::Port { reason, .. } if reason.contains("double[") && reason.contains("float[") => {
                Some(Hint::ConvertToFloat)
            }
            Self::TooLarge { .. } => Some(Hint::FewerSamples),
            _ => None,
        }
    }
}
