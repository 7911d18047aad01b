//! Files in memory: mapped, so that weights nobody looks at are never loaded.

use super::ReadError;
use bytes::Bytes;
use memmap2::Mmap;
use std::{fs::File, path::Path, sync::Arc};

/// A mapped file. Slices of it are [`Bytes`] that keep it alive.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

/// What `Bytes` own.
struct Owner(Arc<Mapping>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.0
    }
}

impl Mapping {
    /// Map a regular, non-empty file.
    #[allow(unsafe_code)]
    pub fn open(path: &Path) -> Result<(Arc<Self>, Bytes), ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        // Before opening, since opening a pipe waits for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(ReadError::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(io)?;
        let opened = file.metadata().map_err(io)?;
        if !opened.is_file() {
            return Err(ReadError::NotAFile(path.to_owned()));
        }
        if opened.len() == 0 {
            return Err(ReadError::Empty);
        }
        // SAFETY: the mapping is read-only and private, and lives as long as any slice of it. A file that another
        // program changes meanwhile shows other bytes, and one that it cuts short ends this process: the price of
        // mapping, which every reader of models pays. We ourselves only ever replace files by renaming.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let mapping = Arc::new(Self(map));
        let bytes = Bytes::from_owner(Owner(mapping.clone()));
        Ok((mapping, bytes))
    }

    /// Whether `bytes` are a slice of this file.
    fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = (bytes.as_ptr() as usize).checked_sub(self.0.as_ptr() as usize)?;
        (offset.checked_add(bytes.len())? <= self.0.len()).then_some(offset)
    }

    /// Let go of the memory that holds `bytes`, if they are a slice of this file; the next look loads them again.
    #[allow(unsafe_code)]
    pub fn forget(&self, bytes: &[u8]) {
        let Some(offset) = self.offset_of(bytes) else { return };
        #[cfg(unix)]
        // SAFETY: the range is within the mapping. Nothing is ever written to it, so that its pages hold what the
        // file holds and are loaded from there again. Failing is harmless.
        let _ =
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, bytes.len()) };
        #[cfg(not(unix))]
        let _ = offset;
    }

    /// Let go of all memory that the file occupies.
    pub fn forget_all(&self) {
        self.forget(&self.0);
    }
}
