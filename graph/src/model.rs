//! A whole model: the main graph, local functions, imports, metadata.

use crate::{
    Attribute, Graph, Type,
    graph::Metadata,
    onnx::{FunctionExtra, ModelExtra},
};
use std::{path::Path, sync::Arc};

/// A model (ONNX `ModelProto`).
#[derive(Debug, Default)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: Option<i64>,
    /// Operator sets by domain, as written in the file.
    pub opsets: Arc<Vec<(String, i64)>>,
    /// Tool that made the model.
    pub producer_name: Option<String>,
    /// Its version.
    pub producer_version: Option<String>,
    /// Namespace of the model.
    pub domain: Option<String>,
    /// Version of the model itself.
    pub model_version: Option<i64>,
    /// Doc string.
    pub doc: Option<String>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// The main graph.
    pub graph: Graph,
    /// Functions local to the model.
    pub functions: Vec<Function>,
    pub(crate) extra: ModelExtra,
}

/// A model-local function (ONNX `FunctionProto`). Its inputs and outputs are those of the body, untyped.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Name: nodes call it by this as their operator.
    pub name: String,
    /// Domain.
    pub domain: String,
    /// Overload, to tell functions of one name apart.
    pub overload: Option<String>,
    /// Attributes without default.
    pub attributes: Vec<String>,
    /// Attributes with default.
    pub defaults: indexmap::IndexMap<String, Attribute>,
    /// The body. Its inputs have no types; its constants are `Constant` nodes.
    pub body: Graph,
    pub(crate) extra: FunctionExtra,
}

/// New names in a clone are those that they would have been in the original: each has a pool of its own.
impl Clone for Model {
    fn clone(&self) -> Self {
        let mut clone = Self {
            ir_version: self.ir_version,
            opsets: self.opsets.clone(),
            producer_name: self.producer_name.clone(),
            producer_version: self.producer_version.clone(),
            domain: self.domain.clone(),
            model_version: self.model_version,
            doc: self.doc.clone(),
            metadata: self.metadata.clone(),
            graph: self.graph.clone(),
            functions: self.functions.clone(),
            extra: self.extra.clone(),
        };
        let (shared, names) = (&self.graph.names, self.graph.names.detached());
        for graph in clone.graphs_mut() {
            let own = if graph.names.is(shared) { names.clone() } else { graph.names.detached() };
            graph.set_names(&own);
        }
        clone
    }
}

impl Model {
    /// A model around one graph, of file format version 8.
    pub fn of(graph: Graph) -> Self {
        Self { ir_version: Some(8), opsets: graph.opsets.clone(), graph, ..Self::default() }
    }

    /// Every graph that is no subgraph of another: the main graph, then the bodies of the functions.
    pub fn graphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        std::iter::once(&mut self.graph).chain(self.functions.iter_mut().map(|f| &mut f.body))
    }

    /// The number of nodes, those in subgraphs and functions included.
    pub fn node_count(&self) -> usize {
        fn count(graph: &Graph) -> usize {
            let inside = |&id: &crate::NodeId| graph.node(id).subgraphs().map(count).sum::<usize>();
            graph.node_count() + graph.nodes().iter().map(inside).sum::<usize>()
        }
        count(&self.graph) + self.functions.iter().map(|f| count(&f.body)).sum::<usize>()
    }

    /// The function a node calls, if it calls one of this model.
    pub fn function(&self, domain: &str, name: &str, overload: &str) -> Option<&Function> {
        let is = |f: &&Function| f.name == name && f.domain == domain;
        self.functions.iter().find(|f| is(f) && f.overload.as_deref().unwrap_or("") == overload)
    }

    /// Set a metadata entry, in its place if the key is there.
    pub fn set_metadata(&mut self, key: &str, value: &str) {
        let value = Some(value.to_owned());
        match self.metadata.iter_mut().find(|(k, _)| k.as_deref() == Some(key)) {
            Some(entry) => entry.1 = value,
            None => self.metadata.push((Some(key.to_owned()), value)),
        }
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k.as_deref() == Some(key))?.1.as_deref()
    }

    /// The files it was read from: its own, and those with external data. A model from memory has only the latter.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.extra.mappings.iter().map(|mapping| mapping.path())
    }

    /// The declared types of the main graph's inputs that a caller must give, by name.
    pub fn required_inputs(&self) -> Vec<(&str, Option<&Type>)> {
        let required = self.graph.inputs().iter().map(|&v| self.graph.value(v)).filter(|v| v.data.is_none());
        required.map(|v| (v.name.as_str(), v.declared.as_ref().and_then(|d| d.ty.as_ref()))).collect()
    }
}
