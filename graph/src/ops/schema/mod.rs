//! What the ONNX standard says about its operators: inputs, outputs, attributes and types of every version.
//!
//! The table is the text file `schema.txt`, written by `schema.py`, which explains its lines. It is read once, on
//! first use. A schema counts from the operator set it came with until the next version of the operator.

mod table;
mod types;

pub use types::TypeSet;

use crate::{Attribute, NodeRef, standard_domain};
use std::fmt;
use table::table;

/// One version of an operator.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Name of the operator.
    pub name: &'static str,
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// The operator set that brought this version.
    pub since: i64,
    /// Whether models must no longer use it.
    pub deprecated: bool,
    /// Whether it may draw random numbers.
    pub random: bool,
    /// Inputs; the last may stand for several.
    pub inputs: Vec<Formal>,
    /// Outputs; the last may stand for several.
    pub outputs: Vec<Formal>,
    /// Attributes, sorted by name.
    pub attributes: Vec<AttributeSchema>,
    /// The type variables: inputs and outputs of one variable have one type.
    pub variables: Vec<(&'static str, TypeSet)>,
}

/// A formal input or output.
#[derive(Clone, Debug)]
pub struct Formal {
    /// Its name in the standard.
    pub name: &'static str,
    /// How many values it stands for.
    pub arity: Arity,
    /// The types it may have.
    pub types: TypeSet,
    /// Which of [`Schema::variables`] is its type; `None` if it has a type of its own.
    pub variable: Option<usize>,
    /// Whether all of a variadic one have the same type.
    pub homogeneous: bool,
}

/// How many values a formal input or output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// One.
    Single,
    /// One or none.
    Optional,
    /// At least this many; each may be omitted.
    Variadic(usize),
}

/// An attribute as the standard has it.
#[derive(Clone, Debug)]
pub struct AttributeSchema {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: AttributeKind,
    /// Whether a node must have it.
    pub required: bool,
    default: Option<&'static str>,
}

/// What an attribute may hold, numbered as in `AttributeProto.AttributeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AttributeKind {
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Graph = 5,
    Floats = 6,
    Ints = 7,
    Strings = 8,
    Tensors = 9,
    Graphs = 10,
    SparseTensor = 11,
    SparseTensors = 12,
    Type = 13,
    Types = 14,
}

/// The schema of an operator in an operator set: the newest version that came with it or before.
pub fn schema(domain: &str, op: &str, opset: i64) -> Option<&'static Schema> {
    let table = table();
    let versions = &table.schemas[table.operators.get(&(standard_domain(domain), op))?.clone()];
    versions.iter().rev().find(|s| s.since <= opset)
}

/// Whether the standard describes the operators of this domain.
pub fn is_known_domain(domain: &str) -> bool {
    newest_opset(domain).is_some()
}

/// The newest operator set of a domain that the table describes; later ones may have more.
pub fn newest_opset(domain: &str) -> Option<i64> {
    let domain = standard_domain(domain);
    table().domains.iter().find(|d| d.0 == domain).map(|d| d.1)
}

/// The names of the operators in an operator set that models may use.
pub fn operators(domain: &str, opset: i64) -> impl Iterator<Item = &'static str> {
    let domain = standard_domain(domain).to_owned();
    let names = table().operators.keys().filter(move |k| k.0 == domain).copied();
    names.filter(move |&(d, op)| schema(d, op, opset).is_some_and(|s| !s.deprecated)).map(|(_, op)| op)
}

impl NodeRef<'_> {
    /// The schema of the node's operator; none if it is not standard, or not in the imported operator set.
    pub fn schema(self) -> Option<&'static Schema> {
        schema(self.node().domain(), self.op(), self.graph.opset(self.node().domain())?)
    }
}

impl Schema {
    /// How many inputs a node must list.
    pub fn min_inputs(&self) -> usize {
        least(&self.inputs)
    }

    /// How many inputs a node may list; `None`: any number.
    pub fn max_inputs(&self) -> Option<usize> {
        most(&self.inputs)
    }

    /// How many outputs a node must list.
    pub fn min_outputs(&self) -> usize {
        least(&self.outputs)
    }

    /// How many outputs a node may list; `None`: any number.
    pub fn max_outputs(&self) -> Option<usize> {
        most(&self.outputs)
    }

    /// The formal input that input `slot` of a node belongs to.
    pub fn input(&self, slot: usize) -> Option<&Formal> {
        formal(&self.inputs, slot)
    }

    /// The formal output that output `slot` of a node belongs to.
    pub fn output(&self, slot: usize) -> Option<&Formal> {
        formal(&self.outputs, slot)
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeSchema> {
        self.attributes.binary_search_by_key(&name, |a| a.name).ok().map(|i| &self.attributes[i])
    }
}

fn formal(formals: &[Formal], slot: usize) -> Option<&Formal> {
    let variadic = || formals.last().filter(|f| matches!(f.arity, Arity::Variadic(_)));
    formals.get(slot).or_else(variadic)
}

/// Up to the last one that must be there; optional ones before a variadic one hold their place.
fn least(formals: &[Formal]) -> usize {
    let needed = |(i, f): (usize, &Formal)| match f.arity {
        Arity::Single => i + 1,
        Arity::Optional => 0,
        Arity::Variadic(least) => i + least,
    };
    formals.iter().enumerate().map(needed).max().unwrap_or(0)
}

fn most(formals: &[Formal]) -> Option<usize> {
    let endless = formals.iter().any(|f| matches!(f.arity, Arity::Variadic(_)));
    (!endless).then_some(formals.len())
}

impl AttributeSchema {
    /// What a node that lacks it means; none if the standard names no value.
    pub fn default(&self) -> Option<Attribute> {
        let text = self.default?;
        let items = || text.trim_matches(['[', ']']).split(',').filter(|item| !item.is_empty());
        let quoted = |item: &str| item.trim_matches('"').to_owned().into_bytes().into();
        Some(match self.kind {
            AttributeKind::Float => Attribute::Float(text.parse().ok()?),
            AttributeKind::Int => Attribute::Int(text.parse().ok()?),
            AttributeKind::String => Attribute::String(quoted(text)),
            AttributeKind::Floats => {
                Attribute::Floats(items().map(str::parse).collect::<Result<_, _>>().ok()?)
            }
            AttributeKind::Ints => Attribute::Ints(items().map(str::parse).collect::<Result<_, _>>().ok()?),
            AttributeKind::Strings => Attribute::Strings(items().map(quoted).collect()),
            _ => return None,
        })
    }
}

impl AttributeKind {
    const NAMES: [(Self, &str); 14] = [
        (Self::Float, "float"),
        (Self::Int, "int"),
        (Self::String, "string"),
        (Self::Tensor, "tensor"),
        (Self::Graph, "graph"),
        (Self::Floats, "floats"),
        (Self::Ints, "ints"),
        (Self::Strings, "strings"),
        (Self::Tensors, "tensors"),
        (Self::Graphs, "graphs"),
        (Self::SparseTensor, "sparse_tensor"),
        (Self::SparseTensors, "sparse_tensors"),
        (Self::Type, "type"),
        (Self::Types, "types"),
    ];

    /// What an attribute holds; for a reference what it says it refers to.
    pub fn of(attribute: &Attribute) -> Option<Self> {
        Some(match attribute {
            Attribute::Float(_) => Self::Float,
            Attribute::Int(_) => Self::Int,
            Attribute::String(_) => Self::String,
            Attribute::Tensor(_) => Self::Tensor,
            Attribute::Graph(_) => Self::Graph,
            Attribute::SparseTensor(_) => Self::SparseTensor,
            Attribute::Type(_) => Self::Type,
            Attribute::Floats(_) => Self::Floats,
            Attribute::Ints(_) => Self::Ints,
            Attribute::Strings(_) => Self::Strings,
            Attribute::Tensors(_) => Self::Tensors,
            Attribute::Graphs(_) => Self::Graphs,
            Attribute::SparseTensors(_) => Self::SparseTensors,
            Attribute::Types(_) => Self::Types,
            Attribute::Reference { kind, .. } => {
                let place = usize::try_from(kind.checked_sub(1)?).ok()?;
                Self::NAMES.get(place)?.0
            }
            Attribute::Undefined => return None,
        })
    }
}

impl fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize - 1].1)
    }
}

#[cfg(test)]
mod tests;
