//! External data of tensors (`external_data`).

use super::{
    DataFiles, ReadError, ReadOptions,
    encode::SMALL,
    tensor::{EXTERNAL, describe, layout, tensor_from},
};
use crate::{
    mapped::{MapError, Mapping},
    proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, StringStringEntryProto,
        TensorProto,
    },
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    convert::Infallible,
    io::ErrorKind,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Calls `f` with every tensor of the model: in graphs, subgraphs, functions and training graphs.
fn tensors<E>(
    model: &mut ModelProto,
    f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let training = model.training_info.iter_mut();
    let training = training.flat_map(|t| t.initialization.iter_mut().chain(&mut t.algorithm));
    for graph in model.graph.iter_mut().chain(training) {
        in_graph(graph, f)?;
    }
    for function in &mut model.functions {
        function.attribute_proto.iter_mut().try_for_each(|a| in_attribute(a, f))?;
        in_nodes(&mut function.node, f)?;
    }
    Ok(())
}

fn in_graph<E>(g: &mut GraphProto, f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>) -> Result<(), E> {
    g.initializer.iter_mut().try_for_each(&mut *f)?;
    g.sparse_initializer.iter_mut().try_for_each(|s| in_sparse(s, f))?;
    in_nodes(&mut g.node, f)
}

fn in_nodes<E>(
    nodes: &mut [NodeProto],
    f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    nodes.iter_mut().flat_map(|n| &mut n.attribute).try_for_each(|a| in_attribute(a, f))
}

fn in_attribute<E>(
    a: &mut AttributeProto,
    f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    a.t.iter_mut().chain(&mut a.tensors).try_for_each(&mut *f)?;
    a.sparse_tensor.iter_mut().chain(&mut a.sparse_tensors).try_for_each(|s| in_sparse(s, f))?;
    a.g.iter_mut().chain(&mut a.graphs).try_for_each(|g| in_graph(g, f))
}

fn in_sparse<E>(
    s: &mut SparseTensorProto,
    f: &mut impl FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    s.values.iter_mut().chain(&mut s.indices).try_for_each(f)
}

// ---- reading

/// Sets `raw_data` of every external tensor to a slice of the mapped file. Returns the mappings.
pub(super) fn load(
    model: &mut ModelProto,
    folders: &[PathBuf],
    options: &ReadOptions,
) -> Result<Vec<Arc<Mapping>>, ReadError> {
    let mut files = Files { folders, options, open: HashMap::new(), mappings: vec![] };
    tensors(model, &mut |tensor| match tensor.data_location {
        Some(EXTERNAL) => files.load(tensor),
        _ => Ok(()),
    })?;
    Ok(files.mappings)
}

/// The files with external data by location; each is mapped once.
struct Files<'a> {
    folders: &'a [PathBuf],
    options: &'a ReadOptions,
    open: HashMap<String, Bytes>,
    mappings: Vec<Arc<Mapping>>,
}

impl Files<'_> {
    fn load(&mut self, tensor: &mut TensorProto) -> Result<(), ReadError> {
        let object = describe(tensor);
        let refuse = |why: String| ReadError::invalid(&object, why);
        if tensor.raw_data.is_some() {
            return Err(refuse("has both raw_data and external data".into()));
        }
        let entry = |key: &str| -> Result<Option<&str>, ReadError> {
            let mut all = tensor.external_data.iter().filter(|e| e.key() == key);
            match (all.next(), all.next()) {
                (_, Some(_)) => Err(refuse(format!("has two entries `{key}` for its external data"))),
                (first, None) => Ok(first.map(StringStringEntryProto::value)),
            }
        };
        let number = |key: &str| -> Result<Option<usize>, ReadError> {
            let parse = |text: &str| {
                text.parse()
                    .map_err(|_| refuse(format!("has external data of {key} `{text}`, which is not a size")))
            };
            entry(key)?.map(parse).transpose()
        };
        let location =
            entry("location")?.ok_or_else(|| refuse("has external data without location".into()))?;
        let (dtype, shape) = layout(tensor)?;
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.or_else(|| dtype.bytes_for(crate::element_count(&shape)?));
        let length = length.ok_or_else(|| refuse("has external data of unknown length".into()))?;
        let file = self.open(location, &object)?;
        let end = offset.checked_add(length).filter(|&end| end <= file.len());
        let Some(end) = end else {
            let size = file.len();
            return Err(refuse(format!(
                "has {length} bytes at {offset} of `{location}`, which holds {size} bytes"
            )));
        };
        tensor.raw_data = Some(file.slice(offset..end));
        Ok(())
    }

    fn open(&mut self, location: &str, of: &str) -> Result<Bytes, ReadError> {
        if let Some(file) = self.open.get(location) {
            return Ok(file.clone());
        }
        let no_folder = || format!("has its data in the file `{location}`, but no folder is given");
        if self.folders.is_empty() {
            return Err(ReadError::invalid(of, no_folder()));
        }
        let path = resolve(self.folders, location, of, self.options)?;
        let file = match Mapping::open(&path) {
            Ok((mapping, file)) => {
                self.mappings.push(mapping);
                file
            }
            // An empty file cannot be mapped.
            Err(MapError::Empty) => Bytes::new(),
            Err(error) => return Err(ReadError::of_mapping(error, &path)),
        };
        self.open.insert(location.into(), file.clone());
        Ok(file)
    }
}

/// The path of the file at `location` in the first of these folders that has it. The model may access these
/// folders, but nothing else.
fn resolve(
    folders: &[PathBuf],
    location: &str,
    of: &str,
    options: &ReadOptions,
) -> Result<PathBuf, ReadError> {
    let refuse = |why: String| Err(ReadError::invalid(of, why));
    let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    // A backslash is a separator on some systems only.
    let plain = !location.is_empty() && !location.contains(['\\', '\0']);
    if !plain || !Path::new(location).components().all(inside) {
        return refuse(format!("has its data at `{location}`, which is not a path in the model's folder"));
    }
    let missing = |source| ReadError::MissingData { tensor: of.into(), location: location.into(), source };
    let found = folders.iter().map(|folder| folder.join(location).canonicalize());
    let path =
        found.reduce(Result::or).unwrap_or_else(|| Err(ErrorKind::NotFound.into())).map_err(missing)?;
    let inside = |folder: &PathBuf| folder.canonicalize().is_ok_and(|folder| path.starts_with(folder));
    if !options.follow_links && !folders.iter().any(inside) {
        return refuse(format!(
            "has its data in `{location}`, a link to a file outside of the model's folder"
        ));
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_file() => Ok(path),
        Ok(_) => refuse(format!("has its data in `{location}`, which is not a regular file")),
        Err(e) => Err(missing(e)),
    }
}

// ---- writing

/// A data file: offsets and bytes, in order.
pub(super) struct DataFile {
    pub location: String,
    pub pieces: Vec<(u64, Bytes)>,
}

/// The places of external tensors.
pub(super) struct Placing<'p> {
    /// The name of the data file, or the start of the names.
    location: String,
    /// The alignment; by size if `None`.
    align: Option<u64>,
    /// True if each tensor has its own file; then names are derived from those of tensors.
    each: Option<&'p str>,
}

impl<'p> Placing<'p> {
    /// The places of the tensors that are external already: one file named after its content.
    pub fn marked(model: &str) -> Self {
        Self { location: location(model, 0), align: None, each: None }
    }

    /// The places that the caller chose.
    pub fn chosen(model: &'p str, layout: &'p DataFiles, each: bool) -> Self {
        let name = layout.name.as_deref();
        Self {
            location: name.map_or_else(|| location(model, 0), str::to_owned),
            align: Some(layout.align.max(1)),
            each: each.then(|| name.unwrap_or(model)),
        }
    }

    fn align(&self, length: usize) -> u64 {
        // Page alignment, so large tensors can be mapped individually; cache lines for the others.
        self.align.unwrap_or(match length {
            0 => 1,
            1..0x1_0000 => 64,
            _ => 4096,
        })
    }

    /// A new name for the file of a tensor, with the characters that all file systems allow.
    fn own_file(start: &str, tensor: &TensorProto, files: &[DataFile]) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let name: String = tensor.name().chars().map(plain).take(100).collect();
        let numbered = |n: usize| match n {
            0 => format!("{start}.{name}.data"),
            n => format!("{start}.{name}.{n}.data"),
        };
        let is_free = |name: &String| files.iter().all(|f| f.location != *name);
        (0..=files.len()).map(numbered).find(is_free).unwrap_or_default()
    }
}

/// Moves the tensors that are marked as external to data files. Equal slices are stored once.
pub(super) fn unload(model: &mut ModelProto, placing: &Placing<'_>) -> Vec<DataFile> {
    let mut files: Vec<DataFile> = vec![];
    let (mut end, mut known) = (0, HashMap::new());
    let never = tensors(model, &mut |tensor| -> Result<(), Infallible> {
        if tensor.data_location != Some(EXTERNAL) {
            return Ok(());
        }
        let Some(raw) = tensor.raw_data.take() else { return Ok(()) };
        let length = raw.len();
        let (location, offset) = known
            .entry((raw.as_ptr(), length))
            .or_insert_with(|| {
                if let Some(start) = placing.each {
                    let location = Placing::own_file(start, tensor, &files);
                    files.push(DataFile { location: location.clone(), pieces: vec![(0, raw)] });
                    return (location, 0);
                }
                let offset = u64::next_multiple_of(end, placing.align(length));
                end = offset + length as u64;
                if files.is_empty() {
                    files.push(DataFile { location: placing.location.clone(), pieces: vec![] });
                }
                files[0].pieces.push((offset, raw));
                (placing.location.clone(), offset)
            })
            .clone();
        let entries = &mut tensor.external_data;
        // The checksum is that of the previous file.
        entries.retain(|e| e.key() != "checksum");
        for (key, value) in
            [("location", location), ("offset", offset.to_string()), ("length", length.to_string())]
        {
            match entries.iter_mut().find(|e| e.key() == key) {
                Some(entry) => entry.value = Some(value),
                None => entries.push(StringStringEntryProto { key: Some(key.into()), value: Some(value) }),
            }
        }
        Ok(())
    });
    never.unwrap_or_else(|e| match e {});
    files
}

/// Name of the data file of the model file `name`, with the hash of its content. The length is constant.
pub(super) fn location(name: &str, hash: u64) -> String {
    format!("{name}.{hash:016x}.data")
}

/// Sets the location of all external tensors.
pub(super) fn relocate(model: &mut ModelProto, location: &str) {
    let never = tensors(model, &mut |tensor| -> Result<(), Infallible> {
        let locations = tensor.external_data.iter_mut().filter(|e| e.key() == "location");
        locations.for_each(|entry| entry.value = Some(location.into()));
        Ok(())
    });
    never.unwrap_or_else(|e| match e {});
}

/// Removes the data files of previous models with this name.
pub(super) fn sweep(folder: &Path, name: &str, keep: &[(PathBuf, u64)]) {
    let stale = |path: &Path| {
        let file = path.file_name().and_then(|n| n.to_str());
        let hash = file.and_then(|f| f.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".data"));
        hash.is_some_and(|h| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit()))
            && keep.iter().all(|(kept, _)| kept.file_name() != path.file_name())
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if stale(&entry.path()) && entry.file_type().is_ok_and(|t| t.is_file()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Marks all large tensors.
pub(super) fn pack_large(model: &mut ModelProto) {
    let never = tensors(model, &mut |tensor| -> Result<(), Infallible> {
        pack(tensor, SMALL);
        Ok(())
    });
    never.unwrap_or_else(|e| match e {});
}

/// Marks the initializers of the main graph of at least `threshold` bytes. Engines read attributes and
/// subgraphs from the model file.
pub(super) fn pack_initializers(model: &mut ModelProto, threshold: usize) {
    model.graph.iter_mut().flat_map(|g| &mut g.initializer).for_each(|tensor| pack(tensor, threshold));
}

/// Marks a tensor of at least `threshold` bytes, its elements in `raw_data`.
fn pack(tensor: &mut TensorProto, threshold: usize) {
    let raw = tensor.raw_data.as_ref().map(Bytes::len);
    let lists = tensor.float_data.len() * 4
        + tensor.double_data.len() * 8
        + tensor.int64_data.len() * 8
        + tensor.uint64_data.len() * 4
        + tensor.int32_data.len();
    if raw.unwrap_or(lists) < threshold.max(1) || !tensor.string_data.is_empty() {
        return;
    }
    if raw.is_none() {
        let Ok(read) = tensor_from(tensor.clone()) else { return };
        *tensor = TensorProto {
            raw_data: Some(read.bytes().clone()),
            float_data: vec![],
            double_data: vec![],
            int32_data: vec![],
            int64_data: vec![],
            uint64_data: vec![],
            ..std::mem::take(tensor)
        };
    }
    tensor.data_location = Some(EXTERNAL);
}

/// Keep all tensors in the model: no other file is written.
pub(super) fn inline(model: &mut ModelProto) {
    let never = tensors(model, &mut |tensor| -> Result<(), Infallible> {
        if tensor.data_location == Some(EXTERNAL) {
            tensor.data_location = None;
            tensor.external_data.clear();
        }
        Ok(())
    });
    never.unwrap_or_else(|e| match e {});
}
