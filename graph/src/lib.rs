//! ONNX models as graphs: read, change by checked patches, write, with nothing lost.
//!
//! A [`Model`] holds a [`Graph`]: one directed graph in which nodes and values are vertices and uses are edges.
//! Rules look at it through cursors ([`NodeRef`], [`ValueRef`]) and answer with a [`Patch`], which [`Graph::apply`] checks
//! as a whole before anything changes.

mod apply;
mod attr;
mod check;
mod cursor;
mod dim;
mod dtype;
pub mod evaluate;
mod graph;
mod inline;
mod journal;
mod model;
pub mod onnx;
pub mod ops;
mod patch;
mod slice;
mod tensor;
pub mod text;
mod ty;

pub use attr::{Attribute, SparseTensor};
pub use check::{CheckError, Fault, nearest};
pub use cursor::{Decline, NodeRef, ValueRef, expect};
pub use dim::Dim;
pub use dtype::DataType;
pub use evaluate::{Evaluate, EvaluateError, Run, Samples, Setting, quality::Metrics};
pub use graph::{
    Constant, Declared, Edge, Graph, GraphError, Metadata, Node, NodeId, Value, ValueId, standard_domain,
};
pub use model::{Function, Model};
pub use ops::InferError;
pub use patch::{Applied, NewValue, Patch, PatchError, Ref};
pub use slice::Boundary;
pub use tensor::{Element, Tensor, TensorError, element_count, pack_bits};
pub use ty::{Axis, AxisSize, Fact, TensorFact, Type, TypeKind};

/// The README's code is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
