//! A node with its input tensors, and access to its arguments.

use super::{Stop, invalid};
use crate::{Attribute, DataType, NodeRef, Tensor, element_count};

/// A node under evaluation.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub at: NodeRef<'a>,
    pub inputs: &'a [Option<&'a Tensor>],
    /// The largest size of an output, in bytes.
    pub limit: usize,
    /// True if the data are labels (see [`trace`](super::trace)): inserted elements are -1.
    pub tracing: bool,
}

/// The size of a string element, for the limit.
const STRING_BYTES: usize = size_of::<bytes::Bytes>();

impl<'a> Call<'a> {
    pub fn optional(self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    pub fn input(self, slot: usize) -> Result<&'a Tensor, Stop> {
        self.optional(slot).map_or_else(|| invalid(format!("input {slot} is missing")), Ok)
    }

    /// All inputs of a variadic operator.
    pub fn all(self) -> Result<Vec<&'a Tensor>, Stop> {
        (0..self.inputs.len().max(1)).map(|slot| self.input(slot)).collect()
    }

    /// The integers of an input.
    pub fn ints_in(self, slot: usize) -> Result<Vec<i64>, Stop> {
        let input = self.input(slot)?;
        input.to_i64().map_or_else(|| invalid(format!("input {slot} holds {}", input.dtype())), Ok)
    }

    /// The integer of an input with one element, or the default if it is omitted.
    pub fn int_in(self, slot: usize, default: i64) -> Result<i64, Stop> {
        match self.optional(slot) {
            None => Ok(default),
            Some(_) => match self.ints_in(slot)?[..] {
                [only] => Ok(only),
                _ => invalid(format!("input {slot} is not one number")),
            },
        }
    }

    /// A list that is the attribute `name` in older operator sets and an input in newer ones.
    pub fn ints(self, name: &str, slot: usize) -> Result<Option<Vec<i64>>, Stop> {
        match (self.at.attr(name), self.optional(slot)) {
            (Some(Attribute::Ints(items)), _) => Ok(Some(items.clone())),
            (Some(_), _) => invalid(format!("`{name}` is not a list of integers")),
            (None, Some(_)) => self.ints_in(slot).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// [`ints`](Self::ints) for a required list.
    pub fn needed_ints(self, name: &str, slot: usize) -> Result<Vec<i64>, Stop> {
        self.ints(name, slot)?.map_or_else(|| invalid(format!("`{name}` is missing")), Ok)
    }

    /// The attribute `axis`, counted from the front.
    pub fn axis(self, default: i64, rank: usize) -> Result<usize, Stop> {
        axis(self.at.int("axis", default), rank)
    }

    /// The number of elements of an output; `TooLarge` above the limit.
    pub fn count(self, dtype: DataType, shape: &[usize]) -> Result<usize, Stop> {
        let count = element_count(shape).ok_or(Stop::TooLarge(u64::MAX))?;
        let bytes = match dtype {
            DataType::String => count.checked_mul(STRING_BYTES),
            _ => dtype.bytes_for(count),
        };
        match bytes {
            Some(bytes) if bytes <= self.limit => Ok(count),
            bytes => Err(Stop::TooLarge(bytes.map_or(u64::MAX, |b| b as u64))),
        }
    }

    /// The scalar for elements that the node inserts: zero, or -1 when tracing.
    pub fn fill(self, dtype: DataType) -> Result<Tensor, Stop> {
        Ok(match (self.tracing, dtype.bytes_for(1)) {
            (true, _) => Tensor::scalar(-1_i64),
            (false, Some(width)) => Tensor::new(dtype, &[], vec![0; width])?,
            (false, None) => Tensor::strings(&[], vec![bytes::Bytes::new()])?,
        })
    }
}

/// An axis counted from the front; a negative `axis` counts from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Stop> {
    wrap(axis, rank).map_or_else(|| invalid(format!("axis {axis} is out of range for rank {rank}")), Ok)
}

/// Axes counted from the front, without duplicates.
pub(super) fn axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, Stop> {
    let mut seen = vec![false; rank];
    let mut fresh = |a: usize| {
        if std::mem::replace(&mut seen[a], true) {
            invalid(format!("axis {a} is a duplicate"))
        } else {
            Ok(a)
        }
    };
    axes.iter().map(|&a| fresh(axis(a, rank)?)).collect()
}

/// A position counted from the front, if it is less than `size`; a negative one counts from the end.
pub(super) fn wrap(position: i64, size: usize) -> Option<usize> {
    let counted = if position < 0 { position.checked_add(size as i64)? } else { position };
    usize::try_from(counted).ok().filter(|&p| p < size)
}

/// Sizes from integers; invalid if one is negative.
pub(super) fn sizes(items: &[i64]) -> Result<Vec<usize>, Stop> {
    let size = |&n: &i64| usize::try_from(n).or_else(|_| invalid(format!("size {n} is negative")));
    items.iter().map(size).collect()
}

/// The shape of two operands after multidirectional broadcasting.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Stop> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let both = |i| match (size(a, i), size(b, i)) {
        (1, n) | (n, 1) => Ok(n),
        (n, m) if n == m => Ok(n),
        _ => invalid(format!("{a:?} and {b:?} do not broadcast")),
    };
    (0..rank).map(both).collect()
}

impl From<crate::TensorError> for Stop {
    fn from(error: crate::TensorError) -> Self {
        Self::Invalid(error.to_string())
    }
}
