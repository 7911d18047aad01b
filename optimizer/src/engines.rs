//! The engines of this machine.

use crate::{Environment, Error, environment::LazyEngine};
#[cfg(feature = "install")]
use std::path::PathBuf;

#[cfg(feature = "ort")]
pub use pare_runtime::{Candidate, candidates};
pub use pare_runtime::{Hint, cache_folder};

/// Returns the name and version of the engine that `environment` resolves to, and why it was chosen.
///
/// # Errors
///
/// [`Error::Engine`] if there is none.
pub fn describe(environment: &Environment) -> Result<String, Error> {
    LazyEngine::new(environment).description()
}

/// Fetches ONNX Runtime into the cache folder of the user, and returns the path of the library. `progress`
/// receives one line before the download.
///
/// # Errors
///
/// [`Error::Engine`] if the library cannot be fetched.
#[cfg(feature = "install")]
pub fn install(progress: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    pare_runtime::install::install(progress).map_err(|e| pare_runtime::EngineError::from(e).into())
}
