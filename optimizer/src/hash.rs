//! Hashes of files.

use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// Adds the content of a file to a hash.
pub(crate) fn add_file(hasher: &mut Sha256, path: &Path) -> io::Result<()> {
    io::copy(&mut File::open(path)?, &mut HashWriter(hasher)).map(drop)
}

/// The hash in hexadecimal digits.
pub(crate) fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

struct HashWriter<'h>(&'h mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
