//! Atomic creation of files, and streaming of messages.

use super::WriteError;
use crate::mapped::Mapping;
use bytes::{Buf, BufMut, Bytes, buf::UninitSlice};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A file with a temporary name, locked while it is written, and removed unless it is renamed.
pub(super) struct Temporary {
    pub file: File,
    path: PathBuf,
}

/// The existing temporary files, for [`abandon`].
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all temporary files, for a process that is about to exit. Later attempts to write a file block
/// until then.
pub fn abandon() {
    let live = live();
    for path in live.iter() {
        let _ = fs::remove_file(path);
    }
    // The lock is never released.
    std::mem::forget(live);
}

impl Temporary {
    pub fn new(folder: &Path) -> Result<Self, WriteError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".pare-{}-{n}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    // On file systems without locks, `sweep` does not remove stale files either.
                    let _ = file.try_lock();
                    live().push(path.clone());
                    return Ok(Self { file, path });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(WriteError::Io { path: folder.to_owned(), source }),
            }
        }
    }

    /// Flushes the content to disk.
    pub fn sync(&self, to: &Path) -> Result<(), WriteError> {
        self.file.sync_all().map_err(|source| WriteError::Io { path: to.to_owned(), source })
    }

    /// Renames the file to its destination.
    pub fn rename(mut self, to: &Path) -> Result<(), WriteError> {
        let mut live = live();
        fs::rename(&self.path, to).map_err(|source| WriteError::Io { path: to.to_owned(), source })?;
        live.retain(|path| *path != self.path);
        self.path.clear();
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let mut live = live();
            let _ = fs::remove_file(&self.path);
            live.retain(|path| *path != self.path);
        }
    }
}

/// Removes temporary files in `folder` that are not locked, which a killed process left.
pub(super) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let named = entry.file_name().to_str().is_some_and(|n| n.starts_with(".pare-"));
        let ours = named && path.extension().is_some_and(|e| e == "tmp");
        if ours && entry.file_type().is_ok_and(|t| t.is_file()) {
            let stale = OpenOptions::new().write(true).open(&path).is_ok_and(|f| f.try_lock().is_ok());
            if stale {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A buffer for prost that writes to a stream, so messages are never entirely in memory.
pub(super) struct Stream<'a, W> {
    to: W,
    /// Files that weights may be slices of.
    mappings: &'a [Arc<Mapping>],
    buffer: Box<[u8]>,
    filled: usize,
    written: u64,
    failed: Option<io::Error>,
}

/// Bytes written at once.
const CHUNK: usize = 1 << 20;

impl<'a, W: Write> Stream<'a, W> {
    pub fn new(to: W, mappings: &'a [Arc<Mapping>]) -> Self {
        let buffer = vec![0; 1 << 16].into_boxed_slice();
        Self { to, mappings, buffer, filled: 0, written: 0, failed: None }
    }

    fn flush(&mut self) {
        let filled = std::mem::take(&mut self.filled);
        self.pass(filled, |s, n| s.to.write_all(&s.buffer[..n]));
    }

    /// After a failure all further bytes are dropped; `finish` returns the error.
    fn pass(&mut self, n: usize, write: impl FnOnce(&mut Self, usize) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(self, n).err();
            self.written += n as u64;
        }
    }

    /// Writes bytes without buffering. Weights are read through their file handle: reading them through the
    /// mapping would load it into memory.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.flush();
        let mut own = vec![];
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            if self.failed.is_some() {
                return;
            }
            own.resize(chunk.len(), 0);
            let mut sources = self.mappings.iter().filter(|_| bytes.len() >= CHUNK);
            let read = sources.find_map(|m| m.read(bytes, i * CHUNK, &mut own));
            self.pass(chunk.len(), |s, _| match read {
                Some(read) => read.and_then(|()| s.to.write_all(&own)),
                None => s.to.write_all(chunk),
            });
        }
    }

    /// Writes the pieces of a data file with zeros between them.
    pub fn pieces(&mut self, pieces: &[(u64, Bytes)]) {
        for (offset, bytes) in pieces {
            self.flush();
            let gap = offset.saturating_sub(self.written) as usize;
            self.copy(&vec![0; gap.min(CHUNK)]);
            self.copy(bytes);
        }
    }

    /// The number of bytes written.
    pub fn finish(mut self) -> io::Result<u64> {
        self.flush();
        match self.failed {
            Some(error) => Err(error),
            None => self.to.flush().map(|()| self.written),
        }
    }
}

// SAFETY: `chunk_mut` returns the remaining part of the buffer, which is initialized and never empty.
// `advance_mut` counts the bytes written to it, which is checked when the buffer is sliced.
#[allow(unsafe_code)]
unsafe impl<W: Write> BufMut for Stream<'_, W> {
    fn remaining_mut(&self) -> usize {
        usize::MAX
    }

    unsafe fn advance_mut(&mut self, n: usize) {
        self.filled += n;
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        if self.filled == self.buffer.len() {
            self.flush();
        }
        UninitSlice::new(&mut self.buffer[self.filled..])
    }

    fn put<T: Buf>(&mut self, mut from: T) {
        while from.has_remaining() {
            let chunk = from.chunk();
            let n = chunk.len();
            if n >= self.buffer.len() {
                self.copy(chunk);
            } else {
                self.put_slice(chunk);
            }
            from.advance(n);
        }
    }
}
