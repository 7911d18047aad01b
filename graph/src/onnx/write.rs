//! Streaming of a [`Model`] to a file, without copies of the weights in memory.

use super::{
    WriteError, encode,
    external::{self, DataFile, Placing},
    file::{self, Stream, Temporary},
};
use crate::{Model, proto::ModelProto};
use prost::Message;
use rapidhash::v3::{DEFAULT_RAPID_SECRETS, RapidStreamHasherV3};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Options of [`write`](super::write()).
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Maximal size of the model file in bytes; tensors of larger models are stored in a data file. The limit
    /// of protobuf by default.
    pub limit: usize,
    /// Flush the content to disk before the file is renamed, so a crash cannot leave a partial file.
    pub sync: bool,
    /// The storage of weights.
    pub external: ExternalData,
}

/// The storage of weights: in the model file, or as external data in files beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalData {
    /// As in the file that the model was read from; in a data file if the model exceeds the limit.
    #[default]
    Keep,
    /// All in the model file.
    Embed,
    /// Initializers in one data file.
    One(DataFiles),
    /// Each initializer in a data file of its own.
    Each(DataFiles),
}

/// Names and layout of data files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFiles {
    /// The name of the data file, or the start of the names of several. Without, a data file is named after
    /// the model file and its content, and both are replaced at once.
    pub name: Option<String>,
    /// Bytes of the smallest initializer that is stored externally. ONNX Runtime needs small ones, such as
    /// shapes, in the model file.
    pub threshold: usize,
    /// The offset of an initializer is a multiple of this; page sizes allow mapping it by itself.
    pub align: u64,
}

impl Default for DataFiles {
    /// Initializers from 1 KiB on, aligned to pages.
    fn default() -> Self {
        Self { name: None, threshold: 1024, align: 4096 }
    }
}

/// Protobuf represents sizes as `int`.
const PROTOBUF_LIMIT: usize = i32::MAX as usize;

impl Default for WriteOptions {
    fn default() -> Self {
        Self { limit: PROTOBUF_LIMIT, sync: true, external: ExternalData::Keep }
    }
}

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Size of the model file in bytes.
    pub bytes: u64,
    /// The data files and their sizes in bytes.
    pub data: Vec<(PathBuf, u64)>,
}

/// Writes a model to `path` atomically. `path` may be a file that the model was read from.
///
/// If the model had external data or is too large for one file, weights are stored in a second file beside
/// it, named `<file name>.<hash of the content>.data`. If passes added initializers to a model of an IR
/// version before 4, where every initializer must be an input, the version becomes 4.
pub fn write(model: &Model, path: impl AsRef<Path>, options: &WriteOptions) -> Result<Written, WriteError> {
    let path = path.as_ref();
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| WriteError::Name(path.to_owned()))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (mut proto, files) = split(model, name, options)?;

    must_be_file(path)?;
    file::sweep(folder);
    // Two files cannot be renamed atomically. Since the data file is named after its content, the old model
    // file refers to the old data until it is replaced, and the new model file to the new data.
    let mut data = vec![];
    for DataFile { location, pieces } in files {
        let data_path = path.with_file_name(&location);
        let mut hash = RapidStreamHasherV3::new(&DEFAULT_RAPID_SECRETS);
        let (temporary, bytes) = fill(folder, &data_path, options, |temporary| {
            let mut stream = Stream::new(Hashing(&temporary.file, &mut hash), &model.extra.mappings);
            stream.pieces(&pieces);
            stream.finish()
        })?;
        let data_path = if location == external::location(name, 0) {
            let location = external::location(name, hash.finish());
            external::relocate(&mut proto, &location);
            path.with_file_name(location)
        } else {
            data_path
        };
        must_be_file(&data_path)?;
        data.push((temporary, data_path, bytes));
    }
    let (temporary, bytes) =
        fill(folder, path, options, |t| encode_to(&proto, Stream::new(&t.file, &model.extra.mappings)))?;
    let mut written = Written { bytes, data: vec![] };
    for (temporary, data_path, bytes) in data {
        temporary.rename(&data_path)?;
        written.data.push((data_path, bytes));
    }
    if !written.data.is_empty() {
        sync_names(folder, options);
    }
    temporary.rename(path)?;
    sync_names(folder, options);
    external::sweep(folder, name, &written.data);
    Ok(written)
}

/// Flushes the entries of `folder` to disk, where the system supports that.
fn sync_names(folder: &Path, options: &WriteOptions) {
    if options.sync {
        let _ = fs::File::open(folder).and_then(|f| f.sync_all());
    }
}

/// Hashes the bytes that are written.
struct Hashing<'h, W>(W, &'h mut RapidStreamHasherV3<'static>);

impl<W: io::Write> io::Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.0.write(bytes)?;
        self.1.write(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A temporary file with content, which is renamed to `path` later.
fn fill(
    folder: &Path,
    path: &Path,
    options: &WriteOptions,
    write: impl FnOnce(&Temporary) -> io::Result<u64>,
) -> Result<(Temporary, u64), WriteError> {
    let temporary = Temporary::new(folder)?;
    let bytes = write(&temporary).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    if options.sync {
        temporary.sync(path)?;
    }
    Ok((temporary, bytes))
}

/// Checks that renaming would not replace a device or a pipe.
fn must_be_file(path: &Path) -> Result<(), WriteError> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(WriteError::NotAFile(path.to_owned())),
        _ => Ok(()),
    }
}

fn encode_to<W: io::Write>(proto: &ModelProto, mut stream: Stream<'_, W>) -> io::Result<u64> {
    proto.encode(&mut stream).map_err(io::Error::other)?;
    stream.finish()
}

/// The message of the model file `name`, and the data files.
fn split(
    model: &Model,
    name: &str,
    options: &WriteOptions,
) -> Result<(ModelProto, Vec<DataFile>), WriteError> {
    let mut proto = encode::model(model)?;
    let files = match &options.external {
        ExternalData::Keep => {
            let mut files = external::unload(&mut proto, &Placing::marked(name));
            if proto.encoded_len() > options.limit {
                proto = encode::model(model)?;
                external::pack_large(&mut proto);
                files = external::unload(&mut proto, &Placing::marked(name));
            }
            files
        }
        ExternalData::Embed => {
            external::inline(&mut proto);
            vec![]
        }
        ExternalData::One(layout) | ExternalData::Each(layout) => {
            let valid = |n: &String| Path::new(n).file_name().is_some_and(|f| f == n.as_str()) && n != name;
            if let Some(other) = layout.name.as_ref().filter(|n| !valid(n)) {
                return Err(WriteError::DataName(other.clone()));
            }
            external::inline(&mut proto);
            external::pack_initializers(&mut proto, layout.threshold);
            let each = matches!(options.external, ExternalData::Each(_));
            external::unload(&mut proto, &Placing::chosen(name, layout, each))
        }
    };
    fits(&proto, options.limit)?;
    Ok((proto, files))
}

fn fits(proto: &ModelProto, limit: usize) -> Result<usize, WriteError> {
    let bytes = proto.encoded_len();
    if bytes > limit { Err(WriteError::TooLarge { bytes, limit }) } else { Ok(bytes) }
}

/// Writes a model to a stream. External data is included; the model must not exceed 2 GiB.
pub fn write_to(model: &Model, to: impl io::Write) -> Result<u64, WriteError> {
    let proto = inlined(model)?;
    encode_to(&proto, Stream::new(to, &model.extra.mappings)).map_err(WriteError::Stream)
}

/// The bytes of a model file. External data is included; the model must not exceed 2 GiB.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, WriteError> {
    Ok(inlined(model)?.encode_to_vec())
}

fn inlined(model: &Model) -> Result<ModelProto, WriteError> {
    let mut proto = encode::model(model)?;
    external::inline(&mut proto);
    fits(&proto, PROTOBUF_LIMIT)?;
    Ok(proto)
}
