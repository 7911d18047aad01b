//! The textual syntax of ONNX, both ways: what tests are written in and dumps are read in.
//!
//! ```text
//! <ir_version: 8, opset_import: ["" : 17]>
//! net (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 0.5}> {
//!    h = Mul(x, w)
//!    [act] y = LeakyRelu<alpha = 0.1>(h)   # a node may have a name
//! }
//! ```
//!
//! The grammar is the one of the ONNX project (`docs/Syntax.md` there); what it can say, its parser reads from
//! our text too. Names that are no plain identifiers stand in quotes, a backslash in quotes takes the next
//! character as it is, `float` is a scalar and `float[]` a tensor of unknown rank. The elements of 16-bit and
//! smaller floats are bit patterns (`float16[1] {15360}` is 1), those of complex tensors real and imaginary parts in turn.
//!
//! Where that grammar has no form, these extend it:
//!
//! | extension | stands for |
//! |---|---|
//! | `float16[2] {1.0, 0.5}` | halves (`float16`, `bfloat16`) by value: every element has a point or exponent |
//! | `b"\xff\\"` | a string that is no UTF-8 |
//! | `nan(0x7fc00001)` | a NaN by its bits, where they are not the usual ones |
//! | `"my-domain"."op-1":"v/2"<"a/b" = 1>(x)` | quoted domains, operators, overloads, names of attributes |
//! | `body = "a/graph" () => () {}` | a quoted name of a subgraph, also of a tensor in an attribute |
//! | `sparse_tensor(float[9]) {float[1] {2}, int64[1] {4}}` | a sparse tensor: values, then indices |
//! | `?[N,2]`, `?()`, `seq()` | an element type left open, a type that says nothing, an open item type |
//! | `a: undefined` | an attribute without type and value |
//! | `<float[2] w = {1, 2}>` in a function | an initializer of its body |
//!
//! Lists of tensors, graphs and types are read whole. Doc strings and metadata have no form but in the header of
//! a model, denotations none at all; a text cannot refer to external data.

mod build;
mod lex;
mod number;
mod parse;
mod parse_literal;
mod print;
mod print_literal;
#[cfg(test)]
mod tests;

use crate::{Graph, Model};
use std::sync::Arc;

/// Why a text is no model or graph, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct TextError {
    /// What was expected and what stands there.
    pub message: String,
    /// Line, from 1.
    pub line: usize,
    /// Character in the line, from 1.
    pub column: usize,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Show only so many elements of a tensor, and halves by value: for people; a shortened tensor cannot be
    /// read back.
    pub max_elements: Option<usize>,
}

/// Read a model.
pub fn parse_model(source: &str) -> Result<Model, TextError> {
    parse::Parser::new(source)?.model()
}

/// Read a bare graph of a model that imports version `opset` of the standard operators.
pub fn parse_graph(source: &str, opset: i64) -> Result<Graph, TextError> {
    let empty = Graph::new(Arc::new(vec![(String::new(), opset)]));
    let mut parser = parse::Parser::new(source)?;
    let graph = parser.graph(empty)?;
    parser.end()?;
    Ok(graph)
}

/// The model as text that [`parse_model`] reads back.
pub fn print_model(model: &Model) -> String {
    print_model_with(model, PrintOptions::default())
}

/// The model as text.
pub fn print_model_with(model: &Model, options: PrintOptions) -> String {
    let mut printer = print::Printer::new(options);
    printer.model(model);
    printer.finish()
}

/// The graph as text that [`parse_graph`] reads back.
pub fn print_graph(graph: &Graph) -> String {
    print_graph_with(graph, PrintOptions::default())
}

/// The graph as text.
pub fn print_graph_with(graph: &Graph, options: PrintOptions) -> String {
    let mut printer = print::Printer::new(options);
    printer.graph(graph);
    printer.finish()
}

/// Names of the types of attributes, at their `AttributeType` number less one.
const KINDS: [&str; 14] = [
    "float",
    "int",
    "string",
    "tensor",
    "graph",
    "floats",
    "ints",
    "strings",
    "tensors",
    "graphs",
    "sparse_tensor",
    "sparse_tensors",
    "type_proto",
    "type_protos",
];

/// Whether a type may begin with this word.
fn is_type_word(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque")
        || word.parse::<crate::DataType>().is_ok()
}

/// Whether the word is one of the numbers that are no digits.
fn is_float_word(word: &str) -> bool {
    ["nan", "inf", "infinity"].iter().any(|w| word.eq_ignore_ascii_case(w))
}

/// Whether the name needs no quotes, as far as its characters go.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
