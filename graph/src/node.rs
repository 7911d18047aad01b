//! Nodes and values.

use crate::{Attribute, Fact, Graph, SparseTensor, Tensor, Type, extra::NodeExtra};
use indexmap::IndexMap;
use std::sync::OnceLock;

/// Metadata entries, key and value; either may be absent in the file.
pub type Metadata = Vec<(Option<String>, Option<String>)>;

/// An operator application.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Operator name, such as `Conv`.
    pub op: String,
    /// Domain of the operator as written in the file; standard if absent, empty or `ai.onnx`.
    pub domain: Option<String>,
    /// Overload of a model-local function.
    pub overload: Option<String>,
    /// Name of the node; not necessarily unique.
    pub name: Option<String>,
    /// Doc string.
    pub doc: Option<String>,
    /// Attributes in file order.
    pub attributes: IndexMap<String, Attribute>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// Position in the file. Ranks increase along every edge, so sorting by rank is a topological order.
    pub(crate) rank: Rank,
    /// Numbers of input and output slots, including omitted ones at the end.
    pub(crate) slots: (u32, u32),
    pub(crate) extra: NodeExtra,
    /// The tensor of a `Constant` node with a number or a list, once it is requested.
    pub(crate) literal: OnceLock<Box<Tensor>>,
}

/// Position in the file, then order of creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub u64, pub u64);

impl Node {
    /// A node of the standard domain.
    pub fn new(op: &str) -> Self {
        Self { op: op.into(), ..Self::default() }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Self {
        self.literal.take();
        self.attributes.insert(name.into(), value.into());
        self
    }

    /// The domain with its standard spelling: empty for the ONNX operators.
    pub fn domain(&self) -> &str {
        standard_domain(self.domain.as_deref().unwrap_or(""))
    }

    /// Returns true if the node is the standard operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.op == op && self.domain().is_empty()
    }

    /// The tensor of a `Constant` node, given by any of its attributes. `None` for other operators, and for a
    /// reference to an attribute of the calling node.
    pub fn literal(&self) -> Option<&Tensor> {
        use Attribute as A;
        let mut given =
            self.attributes.iter().filter(|(name, _)| !name.starts_with("__") && self.is("Constant"));
        let (Some((name, value)), None) = (given.next(), given.next()) else { return None };
        let tensor = match (name.as_str(), value) {
            ("value", A::Tensor(tensor)) => return Some(tensor),
            ("sparse_value", A::SparseTensor(sparse)) => return sparse.dense(),
            _ if self.literal.get().is_some() => return self.literal.get().map(Box::as_ref),
            ("value_float", A::Float(v)) => Tensor::scalar(*v),
            ("value_floats", A::Floats(v)) => Tensor::vector(v),
            ("value_int", A::Int(v)) => Tensor::scalar(*v),
            ("value_ints", A::Ints(v)) => Tensor::vector(v),
            ("value_string", A::String(v)) => Tensor::strings(&[], vec![v.clone()]).ok()?,
            ("value_strings", A::Strings(v)) => Tensor::strings(&[v.len()], v.clone()).ok()?,
            _ => return None,
        };
        Some(self.literal.get_or_init(|| Box::new(tensor)))
    }

    /// The subgraphs in the attributes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.values().flat_map(Attribute::graphs)
    }
}

/// A value: an input, an initializer, an output of a node, or captured from an outer graph.
#[derive(Clone, Debug, Default)]
pub struct Value {
    /// Name, unique in the graph.
    pub name: String,
    /// Type and shape as far as they are known.
    pub fact: Fact,
    /// Entry among the inputs, outputs or `value_info` of the file.
    pub declared: Option<Declared>,
    /// Elements of an initializer, or of a captured value that is an initializer of an outer graph.
    pub data: Option<Constant>,
    pub(crate) role: Role,
    /// Order of creation: initializers are written in this order.
    pub(crate) seq: u64,
}

/// A declaration (ONNX `ValueInfoProto`) without the name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// The type, if the entry has one.
    pub ty: Option<Type>,
    /// Doc string.
    pub doc: Option<String>,
    /// Free key-value entries.
    pub metadata: Metadata,
    /// Position in `value_info`; `None` for inputs and outputs that are not declared there.
    pub(crate) order: Option<u64>,
    /// Type and shape of this output according to the first inference.
    pub(crate) computed: Option<Fact>,
}

/// The elements of an initializer.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// A dense tensor.
    Dense(Tensor),
    /// A sparse tensor (ONNX `sparse_initializer`).
    Sparse(SparseTensor),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Role {
    pub input: bool,
    pub output: bool,
    pub captured: bool,
}

impl Value {
    /// A value with a name only.
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// An initializer.
    pub fn constant(name: &str, tensor: Tensor) -> Self {
        let fact = Fact::of_constant(&tensor);
        Self { name: name.into(), fact, data: Some(Constant::Dense(tensor)), ..Self::default() }
    }

    /// Returns true if the value is an input of the graph.
    pub fn is_input(&self) -> bool {
        self.role.input
    }

    /// Returns true if the value is an output of the graph.
    pub fn is_output(&self) -> bool {
        self.role.output
    }

    /// Returns true if the value belongs to an outer graph.
    pub fn is_captured(&self) -> bool {
        self.role.captured
    }

    /// The elements of an initializer that the caller cannot override.
    pub fn tensor(&self) -> Option<&Tensor> {
        self.data.as_ref().filter(|_| !self.role.input)?.dense()
    }
}

impl Constant {
    /// The elements; see [`SparseTensor::dense`].
    pub fn dense(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(tensor) => Some(tensor),
            Self::Sparse(sparse) => sparse.dense(),
        }
    }

    /// Type and shape, and the content as far as facts hold it.
    pub fn fact(&self) -> Fact {
        match self {
            Self::Dense(tensor) => Fact::of_constant(tensor),
            Self::Sparse(sparse) => sparse.fact(),
        }
    }
}

/// The domain, with the standard domain (`ai.onnx`) spelled as the empty string.
pub fn standard_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}
