//! The input of a shape rule: a node with the facts of its inputs.

use super::dims::{self, MAX_CONTENT};
use crate::{Attribute, DataType, Dim, Fact, NodeRef, TensorFact, ValueRef, element_count};
use std::borrow::Cow;

/// The facts of the outputs by slot (missing ones are unknown), or a contradiction.
pub(super) type Facts = Result<Vec<Fact>, String>;

/// A shape, `None` if it is unknown; or a contradiction.
pub(super) type Shape = Result<Option<Vec<Dim>>, String>;

/// A shape rule.
pub(super) type Rule = fn(&Cx<'_>) -> Facts;

/// Integers that are an attribute in older operator sets and an input in newer ones.
pub(super) enum Ints {
    Absent,
    /// An input that is computed at run time.
    Unknown,
    Known(Vec<i64>),
}

/// A node under inference.
pub(super) struct Cx<'g> {
    pub at: NodeRef<'g>,
    pub inputs: Vec<Option<ValueRef<'g>>>,
    /// Number of outputs of the node.
    pub outputs: usize,
}

impl<'g> Cx<'g> {
    pub fn new(at: NodeRef<'g>) -> Self {
        Self { at, inputs: at.inputs(), outputs: at.node().slots.1 as usize }
    }

    pub fn input(&self, slot: usize) -> Option<ValueRef<'g>> {
        self.inputs.get(slot).copied().flatten()
    }

    pub fn fact(&self, slot: usize) -> &'g Fact {
        self.input(slot).map_or(&Fact::Unknown, |v| &v.value().fact)
    }

    pub fn dtype(&self, slot: usize) -> Option<DataType> {
        self.fact(slot).dtype()
    }

    /// The element type of the first of these inputs that has one.
    pub fn dtype_of(&self, slots: impl IntoIterator<Item = usize>) -> Option<DataType> {
        slots.into_iter().find_map(|slot| self.dtype(slot))
    }

    pub fn shape(&self, slot: usize) -> Option<&'g [Dim]> {
        self.fact(slot).shape()
    }

    /// The shape of an input, as a vector.
    pub fn dims(&self, slot: usize) -> Option<Vec<Dim>> {
        self.shape(slot).map(<[Dim]>::to_vec)
    }

    /// The number of elements of an input that is a vector.
    pub fn length(&self, slot: usize) -> Option<usize> {
        self.shape(slot)?.first()?.size()
    }

    pub fn rank(&self, slot: usize) -> Option<usize> {
        self.shape(slot).map(<[Dim]>::len)
    }

    /// The size of an axis, or a new unknown size.
    pub fn dim(&self, slot: usize, axis: usize) -> Dim {
        self.shape(slot).and_then(|s| s.get(axis)).cloned().unwrap_or_else(Dim::unknown)
    }

    /// The elements of a small integer or bool tensor.
    pub fn content(&self, slot: usize) -> Option<Cow<'g, [Dim]>> {
        let fact = self.fact(slot);
        if let Some(content) = fact.content() {
            return Some(Cow::Borrowed(content));
        }
        let small = fact.fixed_shape().and_then(|s| element_count(&s)).is_some_and(|n| n <= MAX_CONTENT);
        if fact.dtype() != Some(DataType::Bool) || !small {
            return None;
        }
        let items = self.input(slot)?.constant_ints().ok()?;
        Some(items.into_iter().map(Dim::from).collect())
    }

    /// The elements of a small integer tensor if all are known.
    pub fn numbers(&self, slot: usize) -> Option<Vec<i64>> {
        self.content(slot)?.iter().map(Dim::known).collect()
    }

    /// The first element of a small integer tensor if all are known.
    pub fn number(&self, slot: usize) -> Option<i64> {
        self.numbers(slot)?.first().copied()
    }

    /// The elements of a small constant in f64.
    pub fn floats(&self, slot: usize) -> Option<Vec<f64>> {
        let tensor = self.input(slot)?.constant().ok()?;
        (tensor.len() <= MAX_CONTENT).then(|| tensor.to_f64())?
    }

    /// The attribute `name`, or else the input.
    pub fn ints_or_input(&self, name: &str, slot: usize) -> Ints {
        match self.at.attr(name) {
            Some(Attribute::Ints(v)) => Ints::Known(v.clone()),
            Some(Attribute::Int(v)) => Ints::Known(vec![*v]),
            Some(_) => Ints::Unknown,
            None if self.input(slot).is_some() => self.numbers(slot).map_or(Ints::Unknown, Ints::Known),
            None => Ints::Absent,
        }
    }

    /// An integer attribute as a size; 0 if it is negative.
    pub fn size(&self, name: &str, default: i64) -> usize {
        usize::try_from(self.at.int(name, default)).unwrap_or(0)
    }

    /// An attribute that is an element type.
    pub fn dtype_attr(&self, name: &str) -> Option<DataType> {
        match self.at.attr(name)? {
            Attribute::Int(n) => DataType::from_number(i32::try_from(*n).ok()?),
            _ => None,
        }
    }

    /// The axis attribute `name`, counted from the front.
    pub fn axis(&self, name: &str, default: i64, rank: usize) -> Result<usize, String> {
        dims::axis(self.at.int(name, default), rank)
    }

    /// Name and fact of an input, for messages.
    pub fn name(&self, slot: usize) -> String {
        match self.input(slot) {
            Some(v) => format!("`{}` {}", v.name(), v.value().fact),
            None => format!("input {slot}"),
        }
    }

    /// The common element type of the inputs `slots`, or a contradiction. Unknown types are ignored.
    pub fn same_dtype(&self, slots: impl IntoIterator<Item = usize>) -> Result<Option<DataType>, String> {
        let mut first: Option<(usize, DataType)> = None;
        for slot in slots {
            match (self.dtype(slot), first) {
                (Some(d), Some((other, e))) if d != e => {
                    return Err(format!(
                        "{} and {} differ in element type",
                        self.name(other),
                        self.name(slot)
                    ));
                }
                (Some(d), None) => first = Some((slot, d)),
                _ => {}
            }
        }
        Ok(first.map(|f| f.1))
    }

    /// Returns a contradiction if the rank of the input is known and not `rank`.
    pub fn expect_rank(&self, slot: usize, rank: usize) -> Result<(), String> {
        match self.rank(slot) {
            Some(r) if r != rank => Err(format!("{} does not have rank {rank}", self.name(slot))),
            _ => Ok(()),
        }
    }

    /// The common size of two axes `(slot, axis)`, or a contradiction.
    pub fn agree(&self, a: (usize, usize), b: (usize, usize)) -> Result<Dim, String> {
        let (x, y) = (self.dim(a.0, a.1), self.dim(b.0, b.1));
        let differ =
            || format!("axis {} of {} and axis {} of {} differ", a.1, self.name(a.0), b.1, self.name(b.0));
        x.unify(&y).ok_or_else(differ)
    }
}

/// The fact of a tensor.
pub(super) fn tensor(dtype: Option<DataType>, shape: Option<Vec<Dim>>) -> Fact {
    Fact::Tensor(TensorFact { dtype, shape, content: None })
}

/// The facts of a single output.
pub(super) fn one(dtype: Option<DataType>, shape: Option<Vec<Dim>>) -> Facts {
    Ok(vec![tensor(dtype, shape)])
}

/// The fact of a tensor with the elements `content`, which is dropped unless it fits a short integer or bool
/// tensor.
pub(super) fn filled(dtype: Option<DataType>, shape: Option<Vec<Dim>>, content: Option<Vec<Dim>>) -> Fact {
    let is_integral = dtype.is_some_and(|d| d.is_integer() || d == DataType::Bool);
    let fits = |items: &Vec<Dim>| match shape.as_deref() {
        Some([]) => items.len() == 1,
        Some([n]) => n.size() == Some(items.len()) && items.len() <= MAX_CONTENT,
        _ => false,
    };
    let content = content.filter(|c| is_integral && fits(c));
    let content = content.map(|items| items.into_iter().map(|d| in_range(d, dtype)).collect());
    Fact::Tensor(TensorFact { dtype, shape, content })
}

/// An element of this type; unknown if it would wrap.
fn in_range(item: Dim, dtype: Option<DataType>) -> Dim {
    let (Some(n), Some(dtype)) = (item.known(), dtype) else { return item };
    let bits = dtype.bits();
    let unsigned = dtype.name().starts_with('u') || dtype == DataType::Bool;
    let fits = match bits {
        64.. => !unsigned || n >= 0,
        _ if unsigned => n >= 0 && n >> bits == 0,
        _ => (-(1_i64 << (bits - 1))..1_i64 << (bits - 1)).contains(&n),
    };
    if fits { item } else { Dim::integer() }
}
