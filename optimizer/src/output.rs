//! Output files, written atomically.

use crate::{Error, Hint};
use pare_graph::{
    Model,
    onnx::{self, ExternalData},
};
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A model that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The model file.
    pub path: PathBuf,
    /// The files with external data.
    pub data: Vec<PathBuf>,
    /// Size of all in bytes.
    pub bytes: u64,
}

/// Checks that a file can be created at `path`, before any work is done.
///
/// # Errors
///
/// [`Error::Invalid`] if `path` is a folder, or if its folder does not exist.
pub fn check_output(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        let message = format!("the output `{}` is a folder", path.display());
        return Err(Error::invalid_with(message, Hint::NameFile));
    }
    let folder = folder_of(path);
    if folder.is_dir() {
        return Ok(());
    }
    let message = format!("the output's folder `{}` does not exist", folder.display());
    Err(Error::invalid_with(message, Hint::CreateFolder(folder.to_owned())))
}

/// Removes the temporary files of outputs that are being written by this process, before it exits.
pub fn remove_temporary_files() {
    onnx::abandon();
}

/// Writes a model beside its path, then renames it.
pub(crate) fn write_model(model: &Model, path: &Path, external: &ExternalData) -> Result<Written, Error> {
    let options = onnx::WriteOptions { external: external.clone(), ..Default::default() };
    let written = onnx::write(model, path, &options)?;
    let bytes = written.bytes + written.data.iter().map(|(_, bytes)| bytes).sum::<u64>();
    let data = written.data.into_iter().map(|(data, _)| data).collect();
    Ok(Written { path: path.to_owned(), data, bytes })
}

/// Writes a file beside its path, then renames it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |error: io::Error| Error::File { action: "write", path: path.to_owned(), error };
    let mut file = tempfile::Builder::new()
        .prefix(".pare-")
        .suffix(".tmp")
        .tempfile_in(folder_of(path))
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

/// The folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
