//! Files in memory: mapped, so that weights nobody looks at are never loaded.

use super::ReadError;
use bytes::Bytes;
use memmap2::Mmap;
use std::{fs::File, io, path::Path, sync::Arc};

/// A mapped file. Slices of it are [`Bytes`] that keep it alive.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Mmap,
    file: File,
}

/// What `Bytes` own.
struct Owner(Arc<Mapping>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.map
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
        let mapping = Arc::new(Self { map, file });
        let bytes = Bytes::from_owner(Owner(mapping.clone()));
        Ok((mapping, bytes))
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Fill `buffer` with what stands `skip` bytes behind the start of `slice`, if that is a slice of this file.
    /// Reading keeps the mapping out of memory, and a file cut short is an error only.
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

    /// Let go of the memory that the file occupies; the next look loads it again.
    #[allow(unsafe_code)]
    pub fn forget(&self) {
        #[cfg(unix)]
        // SAFETY: nothing is ever written to the mapping, so that its pages hold what the file holds and are
        // loaded from there again. Failing is harmless.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}
