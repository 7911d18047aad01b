//! Parsing and printing of the textual syntax of ONNX, for tests and dumps.
//!
//! ```text
//! <ir_version: 8, opset_import: ["" : 17]>
//! net (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 0.5}> {
//!    h = Mul(x, w)
//!    [act] y = LeakyRelu<alpha = 0.1>(h)   # a node may have a name
//! }
//! ```
//!
//! The grammar is that of the ONNX project (`docs/Syntax.md`), whose parser reads the printed text unless it
//! uses extensions. Names that are not identifiers are quoted, a backslash in quotes escapes the next
//! character, `float` is a scalar and `float[]` a tensor of unknown rank. Elements of floats of at most 16
//! bits are bit patterns (`float16[1] {15360}` is 1); elements of complex tensors alternate between real and
//! imaginary parts.
//!
//! Extensions of the grammar:
//!
//! | extension | meaning |
//! |---|---|
//! | `float16[2] {1.0, 0.5}` | halves (`float16`, `bfloat16`) by value: every element has a point or exponent |
//! | `b"\xff\\"` | a string that is not UTF-8 |
//! | `nan(0x7fc00001)` | a NaN with other than the default bits |
//! | `"my-domain"."op-1":"v/2"<"a/b" = 1>(x)` | quoted domains, operators, overloads, names of attributes |
//! | `body = "a/graph" () => () {}` | a quoted name of a subgraph, also of a tensor in an attribute |
//! | `sparse_tensor(float[9]) {float[1] {2}, int64[1] {4}}` | a sparse tensor: values, then indices |
//! | `?[N,2]`, `?()`, `seq()` | an unspecified element type, type, item type |
//! | `a: undefined` | an attribute without type and value |
//! | `<float[2] w = {1, 2}>` in a function | an initializer of its body |
//!
//! Doc strings and metadata can only be written in the header of a model; denotations and external data
//! cannot be written.

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

/// A syntax error and its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
#[non_exhaustive]
pub struct TextError {
    /// The expected and the actual token.
    pub message: String,
    /// Line, starting at 1.
    pub line: usize,
    /// Character in the line, starting at 1.
    pub column: usize,
}

/// Options of printing.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Print at most this number of elements of a tensor, and 16-bit floats by value. Text with shortened
    /// tensors cannot be parsed.
    pub max_elements: Option<usize>,
}

/// Parses a model.
pub fn parse_model(source: &str) -> Result<Model, TextError> {
    parse::Parser::new(source)?.model()
}

/// Parses a graph of a model that imports version `opset` of the standard operators.
pub fn parse_graph(source: &str, opset: i64) -> Result<Graph, TextError> {
    let empty = Graph::new(Arc::new(vec![(String::new(), opset)]));
    let mut parser = parse::Parser::new(source)?;
    let graph = parser.graph(empty)?;
    parser.end()?;
    Ok(graph)
}

/// Prints a model as text for [`parse_model`].
pub fn print_model(model: &Model) -> String {
    print_model_with(model, PrintOptions::default())
}

/// Prints a model with options.
pub fn print_model_with(model: &Model, options: PrintOptions) -> String {
    let mut printer = print::Printer::new(options);
    printer.model(model);
    printer.finish()
}

/// Prints a graph as text for [`parse_graph`].
pub fn print_graph(graph: &Graph) -> String {
    print_graph_with(graph, PrintOptions::default())
}

/// Prints a graph with options.
pub fn print_graph_with(graph: &Graph, options: PrintOptions) -> String {
    let mut printer = print::Printer::new(options);
    printer.graph(graph);
    printer.finish()
}

/// Names of the attribute types, in the order of their `AttributeType` numbers, which start at 1.
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

/// Returns true if a type may start with this word.
fn is_type_word(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque")
        || word.parse::<crate::DataType>().is_ok()
}

/// Returns true if the word is NaN or infinity.
fn is_float_word(word: &str) -> bool {
    ["nan", "inf", "infinity"].iter().any(|w| word.eq_ignore_ascii_case(w))
}

/// Returns true if the characters of the name need no quotes.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
