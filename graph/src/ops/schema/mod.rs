//! Operator schemas of the ONNX standard (inputs, outputs, attributes and types of every version) and
//! operator traits.
//!
//! The schemas are in the text file `schema.txt`, written by `schema.py`, which documents the format. It is
//! parsed on first use. A schema applies from the operator set that introduced it until the next version of
//! the operator.

mod table;
mod traits;
mod types;

pub use traits::{Trait, operators_with, traits};
pub use types::TypeSet;

use crate::{Attribute, NodeRef, standard_domain};
use std::fmt;
use table::table;

/// One version of an operator.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Name of the operator.
    pub name: &'static str,
    /// Domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// The operator set that introduced this version.
    pub since: i64,
    /// True if models must no longer use the operator.
    pub deprecated: bool,
    /// Formal inputs; the last may be variadic.
    pub inputs: Vec<Formal>,
    /// Formal outputs; the last may be variadic.
    pub outputs: Vec<Formal>,
    /// Attributes, sorted by name.
    pub attributes: Vec<AttributeSchema>,
    /// Type variables. Inputs and outputs of one variable have equal types.
    pub variables: Vec<(&'static str, TypeSet)>,
}

/// A formal input or output.
#[derive(Clone, Debug)]
pub struct Formal {
    /// Name in the standard.
    pub name: &'static str,
    /// Number of values.
    pub arity: Arity,
    /// Allowed types.
    pub types: TypeSet,
    /// Index of its type variable in [`Schema::variables`]; `None` if the type is not a variable.
    pub variable: Option<usize>,
    /// True if all values of a variadic input or output have the same type.
    pub homogeneous: bool,
}

/// The number of values of a formal input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    Single,
    /// At most one.
    Optional,
    /// At least this many, each of which may be omitted.
    Variadic(usize),
}

/// An attribute of an operator.
#[derive(Clone, Debug)]
pub struct AttributeSchema {
    /// Name.
    pub name: &'static str,
    /// Kind of its value.
    pub kind: AttributeKind,
    /// True if a node must have it.
    pub required: bool,
    default: Option<&'static str>,
}

/// The kind of an attribute value, numbered as `AttributeProto.AttributeType`.
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

/// The schema of an operator in an operator set: the newest version introduced by that set or an earlier one.
pub fn schema(domain: &str, op: &str, opset: i64) -> Option<&'static Schema> {
    let table = table();
    let versions = &table.schemas[table.operators.get(&(standard_domain(domain), op))?.clone()];
    versions.iter().rev().find(|s| s.since <= opset)
}

/// Returns true for the domains of ONNX Runtime's own operators.
pub fn is_engine_domain(domain: &str) -> bool {
    matches!(domain, "com.microsoft" | "com.microsoft.nchwc")
}

/// Returns true if the schema table covers this domain.
pub fn is_known_domain(domain: &str) -> bool {
    newest_opset(domain).is_some()
}

/// The newest operator set of a domain in the schema table; `None` for unknown domains.
pub fn newest_opset(domain: &str) -> Option<i64> {
    let domain = standard_domain(domain);
    table().domains.iter().find(|d| d.0 == domain).map(|d| d.1)
}

/// The names of the operators in an operator set, without deprecated ones.
pub fn operators(domain: &str, opset: i64) -> impl Iterator<Item = &'static str> {
    let domain = standard_domain(domain).to_owned();
    let names = table().operators.keys().filter(move |k| k.0 == domain).copied();
    names.filter(move |&(d, op)| schema(d, op, opset).is_some_and(|s| !s.deprecated)).map(|(_, op)| op)
}

impl NodeRef<'_> {
    /// The schema of the node's operator; `None` for unknown operators and domains that are not imported.
    pub fn schema(self) -> Option<&'static Schema> {
        schema(self.node().domain(), self.op(), self.graph.opset(self.node().domain())?)
    }
}

impl Schema {
    /// The least number of inputs of a node.
    pub fn min_inputs(&self) -> usize {
        least(&self.inputs)
    }

    /// The largest number of inputs of a node; `None` if it is unbounded.
    pub fn max_inputs(&self) -> Option<usize> {
        most(&self.inputs)
    }

    /// The least number of outputs of a node.
    pub fn min_outputs(&self) -> usize {
        least(&self.outputs)
    }

    /// The largest number of outputs of a node; `None` if it is unbounded.
    pub fn max_outputs(&self) -> Option<usize> {
        most(&self.outputs)
    }

    /// The formal input of input `slot`.
    pub fn input(&self, slot: usize) -> Option<&Formal> {
        formal(&self.inputs, slot)
    }

    /// The formal output of output `slot`.
    pub fn output(&self, slot: usize) -> Option<&Formal> {
        formal(&self.outputs, slot)
    }

    /// Returns true if every node of the version `old` is a node of this version: the same attributes, and
    /// inputs and outputs that are required no more and restricted no more than before. A new attribute does
    /// not extend an operator, since its default may change the result.
    pub fn extends(&self, old: &Self) -> bool {
        let attributes = self.attributes.len() == old.attributes.len()
            && self.attributes.iter().zip(&old.attributes).all(|(new, old)| new.extends(old));
        let formals = extend(&self.inputs, &old.inputs) && extend(&self.outputs, &old.outputs);
        !self.deprecated && attributes && formals && self.relates_no_more_types_than(old)
    }

    /// Returns true if types that have to be equal in this version are equal in the version `old`.
    fn relates_no_more_types_than(&self, old: &Self) -> bool {
        let pairs = |schema: &Self| {
            let formals = schema.inputs.iter().chain(&schema.outputs);
            formals.map(|f| (f.variable, f.types)).collect::<Vec<_>>()
        };
        let position =
            |i: usize| if i < old.inputs.len() { i } else { self.inputs.len() + i - old.inputs.len() };
        let (new, old) = (pairs(self), pairs(old));
        let equal = |of: &[(Option<usize>, TypeSet)], i: usize, j: usize| {
            let single = of[i].1.is_single() && of[i].1 == of[j].1;
            single || of[i].0.is_some() && of[i].0 == of[j].0
        };
        (0..old.len()).all(|j| {
            (0..j).all(|i| {
                let (p, q) = (new.get(position(i)), new.get(position(j)));
                let related = p.zip(q).is_some_and(|(p, q)| p.0.is_some() && p.0 == q.0);
                !related || equal(&old, i, j)
            })
        })
    }

    /// The attribute with this name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeSchema> {
        self.attributes.binary_search_by_key(&name, |a| a.name).ok().map(|i| &self.attributes[i])
    }
}

/// Returns true if the formals `new` accept all that the formals `old` accept.
fn extend(new: &[Formal], old: &[Formal]) -> bool {
    let accepts = |(new, old): (&Formal, &Formal)| {
        let arity = match (new.arity, old.arity) {
            (Arity::Variadic(new), Arity::Variadic(old)) => new <= old,
            (Arity::Optional, Arity::Single) => true,
            (new, old) => new == old,
        };
        arity && new.types.contains(&old.types) && (!new.homogeneous || old.homogeneous)
    };
    let omitted = |f: &Formal| matches!(f.arity, Arity::Optional | Arity::Variadic(0));
    new.len() >= old.len() && new.iter().zip(old).all(accepts) && new[old.len()..].iter().all(omitted)
}

fn formal(formals: &[Formal], slot: usize) -> Option<&Formal> {
    let variadic = || formals.last().filter(|f| matches!(f.arity, Arity::Variadic(_)));
    formals.get(slot).or_else(variadic)
}

/// The number of slots up to the last required one. Optional formals before a variadic one occupy a slot.
fn least(formals: &[Formal]) -> usize {
    let needed = |(i, f): (usize, &Formal)| match f.arity {
        Arity::Single => i + 1,
        Arity::Optional => 0,
        Arity::Variadic(least) => i + least,
    };
    formals.iter().enumerate().map(needed).max().unwrap_or(0)
}

fn most(formals: &[Formal]) -> Option<usize> {
    let unbounded = formals.iter().any(|f| matches!(f.arity, Arity::Variadic(_)));
    (!unbounded).then_some(formals.len())
}

impl AttributeSchema {
    fn extends(&self, old: &Self) -> bool {
        let same = self.name == old.name && self.kind == old.kind && self.default == old.default;
        same && (!self.required || old.required)
    }

    /// The default value; `None` if the standard defines none.
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

    /// The kind of an attribute value; for a reference, the declared kind of its target.
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
                let index = usize::try_from(kind.checked_sub(1)?).ok()?;
                Self::NAMES.get(index)?.0
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
