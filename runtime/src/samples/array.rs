//! Arrays in files. Only the requested rows are read, where the file format allows it.

use super::{
    error::SamplesError,
    npy::{self, Header},
};
use pare_graph::{DataType, Tensor};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};
use zip::{CompressionMethod, ZipArchive};

/// Memory limits for samples.
#[derive(Clone, Copy, Debug)]
pub struct SampleLimits {
    /// Bytes of all arrays of a file together.
    pub total: u64,
    /// Bytes of one array that may be held in memory; larger ones are unpacked into a temporary file.
    pub memory: u64,
}

impl Default for SampleLimits {
    /// 8 GiB in total, 2 GiB of an array in memory.
    fn default() -> Self {
        Self { total: 8 << 30, memory: 2 << 30 }
    }
}

/// An array in a file, with rows along its first axis.
pub(super) struct Array {
    pub name: String,
    pub header: Header,
    path: PathBuf,
    store: Store,
}

enum Store {
    /// Elements in C order from an offset of the file.
    File { file: File, start: u64 },
    /// All elements in C order.
    Memory(Vec<u8>),
    /// Not read yet: a member of a zip archive, or the file itself.
    Packed { member: Option<usize> },
}

impl Array {
    /// Opens the arrays of an `.npz` file, or the one array of an `.npy` file, named after the file.
    pub fn open_all(path: &Path, limits: &SampleLimits) -> Result<Vec<Self>, SamplesError> {
        // Opening a pipe would block until another process writes to it.
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            return Err(SamplesError::File { path: path.to_owned(), reason: "it is not a file".into() });
        }
        let file = File::open(path).map_err(|error| SamplesError::read(path, &error))?;
        let mut magic = [0; 4];
        let filled = (&file).take(4).read(&mut magic).unwrap_or(0);
        let arrays =
            if magic[..filled].starts_with(b"PK") { npz(path, file)? } else { vec![npy(path, file)?] };
        let total = arrays.iter().filter_map(|array| array.header.size()).fold(0, u64::saturating_add);
        if total > limits.total {
            return Err(SamplesError::TooLarge { path: path.to_owned(), size: total, limit: limits.total });
        }
        Ok(arrays)
    }

    /// The number of rows; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.header.shape.first().copied().unwrap_or(1)
    }

    /// The `rows` as a tensor of `dtype`. With `strip`, `rows` is one row and the tensor lacks the first
    /// axis.
    pub fn rows_as(
        &mut self,
        rows: Range<usize>,
        dtype: DataType,
        strip: bool,
        limits: &SampleLimits,
    ) -> Result<Tensor, SamplesError> {
        let bytes = self.read(rows.clone(), limits)?;
        let mut shape = self.header.shape.clone();
        match shape.first_mut() {
            Some(_) if strip => drop(shape.remove(0)),
            Some(first) => *first = rows.len(),
            None => {}
        }
        npy::tensor(self.header.element, dtype, &shape, bytes).map_err(|reason| self.broken(reason))
    }

    fn broken(&self, reason: impl Into<String>) -> SamplesError {
        let reason = format!("array `{}`: {}", self.name, reason.into());
        SamplesError::File { path: self.path.clone(), reason }
    }

    fn read(&mut self, rows: Range<usize>, limits: &SampleLimits) -> Result<Vec<u8>, SamplesError> {
        if let Store::Packed { member } = self.store {
            self.store = self.unpack(member, limits)?;
        }
        let row = self.header.row();
        let (from, size) = (rows.start * row, rows.len() * row);
        match &mut self.store {
            Store::Memory(bytes) => Ok(bytes[from..from + size].to_vec()),
            Store::File { file, start } => {
                let mut bytes = vec![0; size];
                let read = file.seek(SeekFrom::Start(*start + from as u64));
                let read = read.and_then(|_| file.read_exact(&mut bytes));
                read.map_err(|error| SamplesError::read(&self.path, &error))?;
                Ok(bytes)
            }
            Store::Packed { .. } => Err(self.broken("it cannot be unpacked")),
        }
    }

    /// Unpacks into memory, or into an anonymous file if the array is large.
    fn unpack(&self, member: Option<usize>, limits: &SampleLimits) -> Result<Store, SamplesError> {
        let failed = |error: io::Error| SamplesError::read(&self.path, &error);
        let size = self.header.size().unwrap_or(u64::MAX);
        let file = BufReader::new(File::open(&self.path).map_err(failed)?);
        let mut archive;
        let mut source: Box<dyn Read> = match member {
            None => Box::new(file),
            Some(index) => {
                archive = ZipArchive::new(file).map_err(|error| self.broken(error.to_string()))?;
                Box::new(archive.by_index(index).map_err(|error| self.broken(error.to_string()))?)
            }
        };
        io::copy(&mut (&mut source).take(self.header.length), &mut io::sink()).map_err(failed)?;
        // One byte more than declared reveals a wrong header.
        let mut source = source.take(size.saturating_add(1));
        let wrong_size = |got: u64| {
            let more = if got > size { "more" } else { "less" };
            self.broken(format!("it holds {more} than the {size} bytes of its shape"))
        };
        if size > limits.memory && !self.header.fortran {
            let mut file = tempfile::tempfile().map_err(failed)?;
            let got = io::copy(&mut source, &mut file).map_err(failed)?;
            file.flush().map_err(failed)?;
            return if got == size { Ok(Store::File { file, start: 0 }) } else { Err(wrong_size(got)) };
        }
        // Without reserved capacity: the header's size is not trusted.
        let mut bytes = Vec::new();
        source.read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 != size {
            return Err(wrong_size(bytes.len() as u64));
        }
        if self.header.fortran {
            bytes = npy::to_c_order(&bytes, &self.header.shape, self.header.element.width());
        }
        Ok(Store::Memory(bytes))
    }
}

fn npy(path: &Path, mut file: File) -> Result<Array, SamplesError> {
    let broken = |reason| SamplesError::File { path: path.to_owned(), reason };
    let failed = |error: io::Error| SamplesError::read(path, &error);
    file.rewind().map_err(failed)?;
    let header = Header::read(BufReader::new(&file)).map_err(broken)?;
    let length = file.metadata().map_err(failed)?.len();
    check_length(&header, length).map_err(broken)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let store = if header.fortran {
        Store::Packed { member: None }
    } else {
        Store::File { file, start: header.length }
    };
    Ok(Array { name, header, path: path.to_owned(), store })
}

fn npz(path: &Path, file: File) -> Result<Vec<Array>, SamplesError> {
    let broken = |reason: String| SamplesError::File { path: path.to_owned(), reason };
    let mut archive = ZipArchive::new(BufReader::new(file));
    let archive = archive.as_mut().map_err(|error| broken(error.to_string()))?;
    let mut arrays = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index(index).map_err(|error| broken(error.to_string()))?;
        let name = String::from_utf8_lossy(member.name_raw()).into_owned();
        let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
        let of_array = |reason| broken(format!("array `{name}`: {reason}"));
        let (stored, start, size) =
            (member.compression() == CompressionMethod::Stored, member.data_start(), member.size());
        let header = Header::read(member).map_err(of_array)?;
        let store = match start {
            Some(start) if stored && !header.fortran => {
                check_length(&header, size).map_err(of_array)?;
                let file = File::open(path).map_err(|error| SamplesError::read(path, &error))?;
                Store::File { file, start: start + header.length }
            }
            _ => Store::Packed { member: Some(index) },
        };
        arrays.push(Array { name, header, path: path.to_owned(), store });
    }
    Ok(arrays)
}

/// Returns true if `length` bytes contain the header and the elements it declares.
fn check_length(header: &Header, length: u64) -> Result<(), String> {
    let needed = header.size().and_then(|size| size.checked_add(header.length));
    if needed.is_some_and(|needed| needed <= length) {
        return Ok(());
    }
    Err(format!("it is cut short: its shape {:?} needs more than {length} bytes", header.shape))
}

/// Writes arrays for tests.
#[cfg(test)]
pub(super) fn write_npz(path: &Path, arrays: &[(&str, Vec<u8>)], method: CompressionMethod) {
    let mut archive = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{name}.npy"), options).unwrap();
        io::copy(&mut &bytes[..], &mut archive).unwrap();
    }
    archive.finish().unwrap();
}

#[cfg(test)]
mod tests {
    use super::{super::npy::tests::npy as npy_file, *};

    fn rows(path: &Path, limits: &SampleLimits) -> Result<Tensor, SamplesError> {
        let mut array = Array::open_all(path, limits)?.remove(0);
        let dtype = array.header.element.dtype().unwrap();
        array.rows_as(1..3, dtype, false, limits)
    }

    #[test]
    fn reads_rows_from_every_storage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let plain = npy_file("|u1", false, "(3, 2)", &[1, 2, 3, 4, 5, 6]);
        let turned = npy_file("|u1", true, "(3, 2)", &[1, 3, 5, 2, 4, 6]);
        let wanted = Tensor::from_slice(&[2, 2], &[3_u8, 4, 5, 6]).unwrap();
        let small = SampleLimits { memory: 0, ..SampleLimits::default() };
        for file in [&plain, &turned] {
            for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
                write_npz(&path, &[("x", file.clone())], method);
                assert_eq!(rows(&path, &SampleLimits::default()).unwrap(), wanted);
                assert_eq!(rows(&path, &small).unwrap(), wanted);
            }
            let single = folder.path().join("x.npy");
            std::fs::write(&single, file).unwrap();
            assert_eq!(rows(&single, &SampleLimits::default()).unwrap(), wanted);
        }
    }

    #[test]
    fn keeps_bits_of_half_floats_and_bools() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npz");
        let halves = npy_file("<f2", false, "(3,)", &[0, 0x3c, 0, 0xc0, 1, 0x7c]);
        let bools = npy_file("|b1", false, "(3,)", &[1, 0, 7]);
        write_npz(&path, &[("h", halves), ("b", bools)], CompressionMethod::Deflated);
        let limits = SampleLimits::default();
        let mut arrays = Array::open_all(&path, &limits).unwrap();
        let halves = arrays[0].rows_as(0..3, DataType::Float16, false, &limits).unwrap();
        assert_eq!(&halves.bytes()[..], [0, 0x3c, 0, 0xc0, 1, 0x7c]);
        let bools = arrays[1].rows_as(0..3, DataType::Bool, false, &limits).unwrap();
        assert_eq!(bools.to_vec::<bool>().unwrap(), [true, false, true]);
        assert_eq!(&bools.bytes()[..], [1, 0, 1]);
    }

    #[test]
    fn rejects_archives_with_wrong_sizes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bomb.npz");
        // A megabyte of zeros after a header that declares four bytes, and vice versa.
        let long = npy_file("<f4", false, "(1,)", &vec![0; 1 << 20]);
        let short = npy_file("<f4", false, "(1000000,)", &[0; 4]);
        for (file, word) in [(long, "more"), (short, "less")] {
            write_npz(&path, &[("x", file)], CompressionMethod::Deflated);
            let mut array = Array::open_all(&path, &SampleLimits::default()).unwrap().remove(0);
            let error = array.rows_as(0..1, DataType::Float, false, &SampleLimits::default()).unwrap_err();
            assert!(error.to_string().contains(&format!("holds {word} than")), "{error}");
        }
        let large = npy_file("<f4", false, "(4000000000,)", &vec![0; 1 << 20]);
        write_npz(&path, &[("x", large.clone())], CompressionMethod::Deflated);
        let error = Array::open_all(&path, &SampleLimits::default()).err().unwrap();
        assert!(matches!(error, SamplesError::TooLarge { size: 16_000_000_000, .. }), "{error}");
        let limits = SampleLimits { total: u64::MAX, ..SampleLimits::default() };
        write_npz(&path, &[("x", large)], CompressionMethod::Stored);
        let error = Array::open_all(&path, &limits).err().unwrap();
        assert!(error.to_string().contains("cut short"), "{error}");
    }
}
