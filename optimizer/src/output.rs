//! Output files, written atomically.

use crate::{Error, Hint};
use pare_graph::{Model, onnx};
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
    /// The file with external data, if the model has one.
    pub data: Option<PathBuf>,
    /// Size of both in bytes.
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
pub(crate) fn write_model(model: &Model, path: &Path) -> Result<Written, Error> {
    let written = onnx::write(model, path, &onnx::WriteOptions::default())?;
    let (data, more) = written.data.map_or((None, 0), |(data, bytes)| (Some(data), bytes));
    Ok(Written { path: path.to_owned(), data, bytes: written.bytes + more })
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
