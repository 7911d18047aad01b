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

/// Uses the ONNX Runtime that `owner`, another part of this process, has loaded: models are run in it instead of in a
/// library of their own. `base` is the result of its function `OrtGetApiBase`.
///
/// # Errors
///
/// [`Error::Engine`] if a library is in use, or if it is too old.
///
/// # Safety
///
/// `base` is valid, and the library is never unloaded.
#[cfg(feature = "ort")]
#[allow(unsafe_code)]
pub unsafe fn adopt(base: *const std::ffi::c_void, owner: &str) -> Result<(), Error> {
    // SAFETY: the caller promises the same.
    let adopted = unsafe { pare_runtime::OrtEngine::adopt(base.cast(), owner) };
    Ok(adopted?)
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
