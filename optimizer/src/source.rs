//! Models that functions take: a path, bytes or a graph.

use crate::Error;
use bytes::Bytes;
use pare_graph::{Model, onnx};
use pare_runtime::ModelSource;
use std::path::{Path, PathBuf};

/// A model: a file, bytes in memory, or a graph.
///
/// ```
/// # use onnx_pare::Source;
/// let file = Source::from(std::path::Path::new("model.onnx"));
/// let memory = Source::from(vec![8, 8]).named("stdin");
/// assert_eq!((file.name(), memory.name()), ("`model.onnx`", "stdin"));
/// ```
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Path(PathBuf),
    Bytes(Bytes),
    Model(Box<Model>),
}

/// A model that was read, and the form in which an engine takes it.
pub(crate) struct LoadedModel {
    pub model: Model,
    pub source: ModelSource,
    /// Size in bytes, external data included.
    pub bytes: u64,
}

impl Source {
    /// The name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same model under another name in errors.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The path, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        if let Content::Path(path) = &self.content { Some(path) } else { None }
    }

    pub(crate) fn load(self) -> Result<LoadedModel, Error> {
        let name = self.name;
        match self.content {
            Content::Path(path) => {
                let model = onnx::read(&path, &onnx::ReadOptions::default())
                    .map_err(|error| Error::Read { name, error })?;
                let bytes = onnx::bytes_on_disk(&model);
                Ok(LoadedModel { model, source: ModelSource::File(path), bytes })
            }
            Content::Bytes(data) => {
                let model =
                    onnx::read_bytes(data.clone(), None).map_err(|error| Error::Read { name, error })?;
                let bytes = data.len() as u64;
                Ok(LoadedModel { model, source: ModelSource::bytes(data), bytes })
            }
            Content::Model(model) => {
                let data = onnx::to_bytes(&model)?;
                let bytes = data.len() as u64;
                Ok(LoadedModel { model: *model, source: ModelSource::bytes(data), bytes })
            }
        }
    }

    fn of_bytes(bytes: Bytes) -> Self {
        Self { name: "the model".into(), content: Content::Bytes(bytes) }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self { name: format!("`{}`", path.display()), content: Content::Path(path) }
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        path.to_owned().into()
    }
}

impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

impl From<Bytes> for Source {
    fn from(bytes: Bytes) -> Self {
        Self::of_bytes(bytes)
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::of_bytes(bytes.into())
    }
}

impl From<&Vec<u8>> for Source {
    fn from(bytes: &Vec<u8>) -> Self {
        bytes.clone().into()
    }
}

impl From<&[u8]> for Source {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl From<Model> for Source {
    fn from(model: Model) -> Self {
        Self { name: "the model".into(), content: Content::Model(Box::new(model)) }
    }
}
