//! Memory-mapped files: weights that are not read are never loaded.

use bytes::Bytes;
use memmap2::Mmap;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The reason why a file cannot be mapped.
#[derive(Debug)]
pub(crate) enum MapError {
    Io(io::Error),
    NotAFile,
    Empty,
}

impl From<io::Error> for MapError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A mapped file. Slices of it are [`Bytes`] that keep it alive.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Mmap,
    file: File,
    path: PathBuf,
}

/// The owner of slices of a mapping.
struct Owner(Arc<Mapping>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
    }
}

impl Mapping {
    /// Maps a regular, non-empty file.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<(Arc<Self>, Bytes), MapError> {
        // Before opening, since opening a pipe blocks.
        if !std::fs::metadata(path)?.is_file() {
            return Err(MapError::NotAFile);
        }
        let file = File::open(path)?;
        let opened = file.metadata()?;
        if !opened.is_file() {
            return Err(MapError::NotAFile);
        }
        if opened.len() == 0 {
            return Err(MapError::Empty);
        }
        // SAFETY: the mapping is read-only and private, and lives as long as any slice of it. If another
        // program changes the file, its new bytes are seen; if it truncates the file, this process is killed.
        // Every reader that maps models has this limitation. This crate only replaces files by renaming.
        let map = unsafe { Mmap::map(&file) }?;
        let mapping = Arc::new(Self { map, file, path: path.to_owned() });
        let bytes = Bytes::from_owner(Owner(mapping.clone()));
        Ok((mapping, bytes))
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Fills `buffer` from offset `skip` of `slice`, if that is a slice of this file. Reading through the
    /// file handle keeps the mapping out of memory, and a truncated file is an error instead of a signal.
    pub fn read(&self, slice: &[u8], skip: usize, buffer: &mut [u8]) -> Option<io::Result<()>> {
        let offset = (slice.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize)?;
        let inside = offset.checked_add(slice.len())? <= self.map.len() && skip + buffer.len() <= slice.len();
        inside.then(|| self.read_at((offset + skip) as u64, buffer))
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(not(unix))]
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _ = &self.file;
        buffer.copy_from_slice(&self.map[offset as usize..][..buffer.len()]);
        Ok(())
    }

    /// Releases the memory that the file occupies; the next access loads it again.
    #[allow(unsafe_code)]
    pub fn forget(&self) {
        #[cfg(unix)]
        // SAFETY: the mapping is never written to, so its pages can be loaded from the file again. Failure is
        // harmless.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}
