//! Attributes of nodes (ONNX `AttributeProto`).

use crate::{Graph, SparseTensor, Tensor, Type};
use bytes::Bytes;

/// The value of an attribute.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Attribute {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Graph(Box<Graph>),
    SparseTensor(Box<SparseTensor>),
    Type(Type),
    Floats(Vec<f32>),
    Ints(Vec<i64>),
    Strings(Vec<Bytes>),
    Tensors(Vec<Tensor>),
    Graphs(Vec<Graph>),
    SparseTensors(Vec<SparseTensor>),
    Types(Vec<Type>),
    /// In a function body: the attribute `name` of the calling node, of this `AttributeType` number.
    Reference {
        name: String,
        kind: i32,
    },
    /// An attribute without type and value (`UNDEFINED`).
    Undefined,
}

impl Attribute {
    /// The subgraphs, in order.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            Self::Graph(graph) => std::slice::from_ref(graph),
            Self::Graphs(graphs) => graphs,
            _ => &[],
        }
    }

    /// The subgraphs, in order.
    pub fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            Self::Graph(graph) => std::slice::from_mut(graph),
            Self::Graphs(graphs) => graphs,
            _ => &mut [],
        }
    }

    /// A string attribute.
    pub fn string(text: &str) -> Self {
        Self::String(Bytes::copy_from_slice(text.as_bytes()))
    }
}

/// Bitwise equality. Subgraphs never compare equal, since that is graph isomorphism.
impl PartialEq for Attribute {
    fn eq(&self, other: &Self) -> bool {
        use Attribute as A;
        let bits = |v: &[f32]| v.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
        match (self, other) {
            (A::Float(a), A::Float(b)) => a.to_bits() == b.to_bits(),
            (A::Int(a), A::Int(b)) => a == b,
            (A::String(a), A::String(b)) => a == b,
            (A::Tensor(a), A::Tensor(b)) => a == b,
            (A::SparseTensor(a), A::SparseTensor(b)) => a == b,
            (A::Type(a), A::Type(b)) => a == b,
            (A::Floats(a), A::Floats(b)) => bits(a) == bits(b),
            (A::Ints(a), A::Ints(b)) => a == b,
            (A::Strings(a), A::Strings(b)) => a == b,
            (A::Tensors(a), A::Tensors(b)) => a == b,
            (A::SparseTensors(a), A::SparseTensors(b)) => a == b,
            (A::Types(a), A::Types(b)) => a == b,
            (A::Reference { name: a, kind: x }, A::Reference { name: b, kind: y }) => a == b && x == y,
            (A::Undefined, A::Undefined) => true,
            _ => false,
        }
    }
}

impl From<i64> for Attribute {
    fn from(v: i64) -> Self {
        Self::Int(v)
    }
}

impl From<f32> for Attribute {
    fn from(v: f32) -> Self {
        Self::Float(v)
    }
}

impl From<Vec<i64>> for Attribute {
    fn from(v: Vec<i64>) -> Self {
        Self::Ints(v)
    }
}

impl From<&str> for Attribute {
    fn from(v: &str) -> Self {
        Self::string(v)
    }
}
