//! ONNX models as graphs: read, transform by checked patches, and write without loss.
//!
//! | part | contents |
//! |---|---|
//! | [`onnx`] | reading and writing of files, external data included |
//! | [`text`] | parsing and printing of the ONNX textual syntax |
//! | [`Model`], [`Graph`] | the representation: a directed graph with nodes and values as vertices |
//! | [`NodeRef`], [`ValueRef`] | read-only references, by which rewrite rules match |
//! | [`Patch`], [`Graph::apply`] | a change, and its checked application: all of it or nothing |
//! | [`Graph::upstream`], [`Graph::extract`], … | reachability, and extraction of subgraphs |
//! | [`Model::check`], [`Model::infer`] | validation, inference of types and shapes |
//! | [`ops`] | operators: schemas, typed views, evaluation, cost |
//! | [`Evaluate`] | the interface to an engine that runs models |
//!
//! ```
//! use pare_graph::{Decline, Model, NodeRef, Patch, onnx, text};
//!
//! /// Removes an `Identity` node.
//! fn drop_identity(at: NodeRef<'_>) -> Result<Patch, Decline> {
//!     let (input, output) = (at.input(0)?, at.output()?);
//!     let mut patch = Patch::at(at);
//!     patch.replace(output, input);
//!     Ok(patch)
//! }
//!
//! let source = "g (float[N,2] x) => (float[N,2] y) { a = Identity(x) y = Relu(a) }";
//! let mut model = Model::of(text::parse_graph(source, 18)?);
//! model.check()?;
//! model.infer()?;
//! let first = model.graph.nodes()[0];
//! let patch = drop_identity(model.graph.at(first)).unwrap();
//! model.graph.apply(patch)?;
//! assert_eq!(model.node_count(), 1);
//! let bytes = onnx::to_bytes(&model)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod attr;
mod check;
mod cursor;
mod dim;
mod dtype;
pub mod evaluate;
mod extra;
mod functions;
mod graph;
mod inline;
mod journal;
mod mapped;
mod model;
mod node;
pub mod onnx;
pub mod ops;
mod patch;
mod precision;
mod proto;
mod slice;
mod sparse;
mod tensor;
pub mod text;
mod ty;

pub use attr::Attribute;
pub use check::{CheckError, Fault, nearest};
pub use cursor::{Decline, NodeRef, ValueRef, expect};
pub use dim::{Dim, UnknownSize};
pub use dtype::DataType;
pub use evaluate::{Evaluate, EvaluateError, Run, Samples, Setting, quality::Metrics};
pub use graph::{Edge, Graph, GraphError, NodeId, ValueId};
pub use model::{Function, Model};
pub use node::{Constant, Declared, Metadata, Node, Value, standard_domain};
pub use ops::InferError;
pub use patch::{Applied, NewValue, Patch, PatchError, Ref};
pub use precision::{ConvertedGraph, ConvertedNode};
pub use slice::Boundary;
pub use sparse::SparseTensor;
pub use tensor::{Element, Tensor, TensorError, element_count, pack_bits};
pub use ty::{Axis, AxisSize, Fact, TensorFact, Type, TypeKind};

/// Tests the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
