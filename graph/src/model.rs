//! Models: the main graph, local functions, imports, metadata.

use crate::{
    Attribute, Graph, Metadata,
    extra::{FunctionExtra, ModelExtra},
};
use std::{path::Path, sync::Arc};

/// A model (ONNX `ModelProto`).
#[derive(Debug, Default)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: Option<i64>,
    /// Operator set versions by domain, as written in the file.
    pub opsets: Arc<Vec<(String, i64)>>,
    /// The tool that produced the model.
    pub producer_name: Option<String>,
    /// Version of that tool.
    pub producer_version: Option<String>,
    /// Namespace of the model.
    pub domain: Option<String>,
    /// Version of the model.
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
    /// Name, which is the operator of nodes that call the function.
    pub name: String,
    /// Domain.
    pub domain: String,
    /// Overload, which distinguishes functions with the same name.
    pub overload: Option<String>,
    /// Attributes without default.
    pub attributes: Vec<String>,
    /// Attributes with default.
    pub defaults: indexmap::IndexMap<String, Attribute>,
    /// The body. Its inputs have no types; its constants are `Constant` nodes.
    pub body: Graph,
    pub(crate) extra: FunctionExtra,
}

/// A clone has its own pool of names, so new names in it are the same as they would be in the original.
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
    /// A model of IR version 8 with this main graph.
    pub fn of(graph: Graph) -> Self {
        Self { ir_version: Some(8), opsets: graph.opsets.clone(), graph, ..Self::default() }
    }

    /// Imports an operator set for the main graph, unless its domain is imported already.
    pub fn import(&mut self, domain: &str, version: i64) {
        if self.graph.opset(domain).is_none() {
            let mut opsets = (*self.graph.opsets).clone();
            opsets.push((domain.into(), version));
            self.graph.share_opsets(&Arc::new(opsets));
            self.opsets = Arc::clone(&self.graph.opsets);
        }
    }

    /// The main graph, then the bodies of the functions.
    pub fn graphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        std::iter::once(&mut self.graph).chain(self.functions.iter_mut().map(|f| &mut f.body))
    }

    /// The number of nodes, including those in subgraphs and functions.
    pub fn node_count(&self) -> usize {
        fn count(graph: &Graph) -> usize {
            let inside = |&id: &crate::NodeId| graph.node(id).subgraphs().map(count).sum::<usize>();
            graph.node_count() + graph.nodes().iter().map(inside).sum::<usize>()
        }
        count(&self.graph) + self.functions.iter().map(|f| count(&f.body)).sum::<usize>()
    }

    /// The function with this domain, name and overload.
    pub fn function(&self, domain: &str, name: &str, overload: &str) -> Option<&Function> {
        let is = |f: &&Function| f.name == name && f.domain == domain;
        self.functions.iter().find(|f| is(f) && f.overload.as_deref().unwrap_or("") == overload)
    }

    /// Sets a metadata entry; an existing entry keeps its position.
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

    /// The files that are mapped: the model file, unless the model was read from memory, and its external
    /// data.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.extra.mappings.iter().map(|mapping| mapping.path())
    }
}
