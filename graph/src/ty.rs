//! Declared types, and inferred facts.

use crate::{DataType, Dim, Tensor};
use std::fmt;

/// A declared type (ONNX `TypeProto`).
#[derive(Clone, Debug, PartialEq)]
pub struct Type {
    /// The kind of value.
    pub kind: TypeKind,
    /// Semantics of the value (`TypeProto.denotation`).
    pub denotation: Option<String>,
}

/// The kinds of values in ONNX. `None` inside means unspecified.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum TypeKind {
    Unset,
    Tensor { dtype: Option<DataType>, shape: Option<Vec<Axis>> },
    SparseTensor { dtype: Option<DataType>, shape: Option<Vec<Axis>> },
    Sequence(Option<Box<Type>>),
    Optional(Option<Box<Type>>),
    Map { key: Option<DataType>, value: Option<Box<Type>> },
    Opaque { domain: Option<String>, name: Option<String> },
}

/// One dimension of a declared shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The size.
    pub size: AxisSize,
    /// Semantics of the axis (`Dimension.denotation`).
    pub denotation: Option<String>,
}

/// The declared size of an axis.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum AxisSize {
    Fixed(i64),
    Symbol(String),
    Unknown,
}

impl Type {
    /// The type of a value, if its element type is known.
    pub fn of(fact: &Fact) -> Option<Self> {
        let Fact::Tensor(tensor) = fact else { return None };
        tensor.dtype.map(|dtype| Self::tensor(dtype, tensor.shape.as_deref()))
    }

    /// A tensor type. A size that is neither a number nor a symbol becomes unknown.
    pub fn tensor(dtype: DataType, shape: Option<&[Dim]>) -> Self {
        let axis = |d: &Dim| Axis {
            size: match (d.known(), d.as_symbol()) {
                (Some(n), _) => AxisSize::Fixed(n),
                (_, Some(name)) => AxisSize::Symbol(name.into()),
                _ => AxisSize::Unknown,
            },
            denotation: None,
        };
        let shape = shape.map(|dims| dims.iter().map(axis).collect());
        Self { kind: TypeKind::Tensor { dtype: Some(dtype), shape }, denotation: None }
    }

    /// The fact that this declaration implies. Negative sizes and the symbols `` and `?`, which some
    /// exporters write for all unknown sizes, are unknown.
    pub fn fact(&self) -> Fact {
        let of = |ty: &Option<Box<Self>>| Box::new(ty.as_ref().map_or(Fact::Unknown, |t| t.fact()));
        match &self.kind {
            TypeKind::Tensor { dtype, shape } => {
                let dim = |axis: &Axis| match &axis.size {
                    AxisSize::Fixed(n) if *n >= 0 => Dim::from(*n),
                    AxisSize::Symbol(name) if !matches!(name.as_str(), "" | "?") => Dim::symbol(name),
                    _ => Dim::unknown(),
                };
                let shape = shape.as_ref().map(|axes| axes.iter().map(dim).collect());
                Fact::Tensor(TensorFact { dtype: *dtype, shape, content: None })
            }
            TypeKind::Sequence(item) => Fact::Sequence(of(item)),
            TypeKind::Optional(item) => Fact::Optional(of(item)),
            TypeKind::Unset => Fact::Unknown,
            TypeKind::SparseTensor { .. } | TypeKind::Map { .. } | TypeKind::Opaque { .. } => Fact::Other,
        }
    }
}

/// The inferred type of a value.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Fact {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A dense tensor.
    Tensor(TensorFact),
    /// A sequence of such values.
    Sequence(Box<Fact>),
    /// An optional of such a value.
    Optional(Box<Fact>),
    /// A map, a sparse tensor or an opaque value.
    Other,
}

/// The inferred type, shape and content of a tensor.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TensorFact {
    /// Element type.
    pub dtype: Option<DataType>,
    /// Sizes of the dimensions.
    pub shape: Option<Vec<Dim>>,
    /// The elements of a small integer tensor of rank 0 or 1, as in shape arithmetic; 0 or 1 for bool.
    pub content: Option<Vec<Dim>>,
}

impl Fact {
    /// A tensor of this element type and shape.
    pub fn tensor(dtype: DataType, shape: Vec<Dim>) -> Self {
        Self::Tensor(TensorFact { dtype: Some(dtype), shape: Some(shape), content: None })
    }

    /// The fact of a constant.
    pub fn of_constant(tensor: &Tensor) -> Self {
        // Shape arithmetic works on short vectors; longer ones are data.
        let small = tensor.rank() <= 1 && tensor.len() <= 64 && tensor.dtype().is_integer();
        let content = small.then(|| tensor.to_i64()).flatten();
        Self::Tensor(TensorFact {
            dtype: Some(tensor.dtype()),
            shape: Some(tensor.shape().iter().map(|&d| Dim::from(d)).collect()),
            content: content.map(|items| items.into_iter().map(Dim::from).collect()),
        })
    }

    /// The element type of a tensor.
    pub fn dtype(&self) -> Option<DataType> {
        match self {
            Self::Tensor(t) => t.dtype,
            _ => None,
        }
    }

    /// The shape of a tensor.
    pub fn shape(&self) -> Option<&[Dim]> {
        match self {
            Self::Tensor(t) => t.shape.as_deref(),
            _ => None,
        }
    }

    /// The elements of a small integer tensor.
    pub fn content(&self) -> Option<&[Dim]> {
        match self {
            Self::Tensor(t) => t.content.as_deref(),
            _ => None,
        }
    }

    /// The shape of a tensor, if all sizes are numbers.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape()?.iter().map(Dim::size).collect()
    }

    /// The most general fact that implies both; `None` if they contradict each other.
    pub fn unify(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Unknown, fact) | (fact, Self::Unknown) => fact.clone(),
            (Self::Tensor(a), Self::Tensor(b)) => Self::Tensor(TensorFact {
                dtype: match (a.dtype, b.dtype) {
                    (Some(x), Some(y)) if x != y => return None,
                    (x, y) => x.or(y),
                },
                shape: match (&a.shape, &b.shape) {
                    (Some(a), Some(b)) if a.len() == b.len() => {
                        Some(a.iter().zip(b).map(|(a, b)| a.unify(b)).collect::<Option<_>>()?)
                    }
                    (Some(_), Some(_)) => return None,
                    (a, b) => a.as_ref().or(b.as_ref()).cloned(),
                },
                content: a.content.as_ref().or(b.content.as_ref()).cloned(),
            }),
            (Self::Sequence(a), Self::Sequence(b)) => Self::Sequence(Box::new(a.unify(b)?)),
            (Self::Optional(a), Self::Optional(b)) => Self::Optional(Box::new(a.unify(b)?)),
            (Self::Other, Self::Other) => Self::Other,
            _ => return None,
        })
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Tensor(t) => {
                f.write_str(t.dtype.map_or("?", |d| d.name()))?;
                match &t.shape {
                    Some(shape) => {
                        let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
                        write!(f, "[{}]", sizes.join(","))
                    }
                    None => f.write_str("[...]"),
                }
            }
            Self::Sequence(item) => write!(f, "seq({item})"),
            Self::Optional(item) => write!(f, "optional({item})"),
            Self::Other => f.write_str("other"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unify_combines_facts_and_rejects_contradictions() {
        let n = || Dim::symbol("N");
        let a = Fact::tensor(DataType::Float, vec![n(), Dim::unknown()]);
        let b = Fact::tensor(DataType::Float, vec![Dim::unknown(), Dim::from(3_i64)]);
        assert_eq!(a.unify(&b), Some(Fact::tensor(DataType::Float, vec![n(), Dim::from(3_i64)])));
        let c = Fact::tensor(DataType::Float, vec![n(), Dim::from(4_i64)]);
        assert_eq!(c.unify(&b), None);
        assert_eq!(Fact::Unknown.unify(&a), Some(a));
    }
}
