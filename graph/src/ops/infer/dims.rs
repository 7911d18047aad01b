//! Arithmetic of shapes: broadcasting, products, equality. `Err` is a contradiction.

use crate::{Dim, Fact, TensorFact};
use std::collections::HashSet;

/// The largest rank of inferred shapes.
pub(super) const MAX_RANK: usize = 64;

/// The largest number of elements of a tensor whose content is propagated.
pub(super) const MAX_CONTENT: usize = 64;

/// Formats a shape as `[a,b,c]`.
pub(super) fn show(dims: &[Dim]) -> String {
    format!("[{}]", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

/// `rank` new unknown sizes; `None` above [`MAX_RANK`].
pub(super) fn unknowns(rank: usize) -> Option<Vec<Dim>> {
    (rank <= MAX_RANK).then(|| (0..rank).map(|_| Dim::unknown()).collect())
}

/// The size of an axis after broadcasting; `None` if the sizes are incompatible.
pub(super) fn broadcast_dim(a: &Dim, b: &Dim) -> Option<Dim> {
    let (x, y) = (a.known(), b.known());
    // a and min(a, c): if they differ then c is smaller, and must be 1.
    if a == b || y == Some(1) || b.is_minimum_with(a) {
        return Some(a.clone());
    }
    if x == Some(1) || a.is_minimum_with(b) {
        return Some(b.clone());
    }
    match (x, y) {
        (Some(_), Some(_)) => None,
        // The unknown size is 1 or equal.
        (Some(_), None) => Some(a.clone()),
        (None, Some(_)) => Some(b.clone()),
        (None, None) => Some(Dim::unknown()),
    }
}

/// Multidirectional broadcasting as in NumPy.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let (long, short) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    let lead = long.len() - short.len();
    let mut dims = long.to_vec();
    for (dim, other) in dims[lead..].iter_mut().zip(short) {
        let cannot = || format!("{} and {} cannot be broadcast together", show(a), show(b));
        *dim = broadcast_dim(dim, other).ok_or_else(cannot)?;
    }
    Ok(dims)
}

/// The number of elements.
pub(super) fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1_i64), |n, d| &n * d)
}

/// `a + n`.
pub(super) fn plus(a: &Dim, n: i64) -> Dim {
    a + &Dim::from(n)
}

/// `a · n`.
pub(super) fn times(a: &Dim, n: i64) -> Dim {
    a * &Dim::from(n)
}

/// An axis counted from the front; a negative `axis` counts from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let front = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let inside = front.and_then(|a| usize::try_from(a).ok()).filter(|&a| a < rank);
    inside.ok_or_else(|| format!("axis {axis} is out of range for rank {rank}"))
}

/// The common part of two facts, for a value that has one or the other. Different sizes become unknown.
pub(super) fn common(a: &Fact, b: &Fact) -> Fact {
    Widen::default().fact(a, b)
}

/// Generalizes facts until they hold in every iteration of a loop.
#[derive(Default)]
pub(super) struct Widen {
    /// Unknown sizes that differ between iterations.
    fresh: HashSet<Dim>,
    /// True if a fact was generalized.
    pub changed: bool,
}

impl Widen {
    fn dim(&mut self, a: &Dim, b: &Dim, new: fn() -> Dim) -> Dim {
        if a == b || self.fresh.contains(a) {
            return a.clone();
        }
        self.changed = true;
        let dim = new();
        self.fresh.insert(dim.clone());
        dim
    }

    fn dims(&mut self, a: Option<&[Dim]>, b: Option<&[Dim]>, new: fn() -> Dim) -> Option<Vec<Dim>> {
        match (a, b) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(a, b)| self.dim(a, b, new)).collect())
            }
            (a, _) => {
                self.changed |= a.is_some();
                None
            }
        }
    }

    /// The part of `a` in which `b` does not differ.
    pub fn fact(&mut self, a: &Fact, b: &Fact) -> Fact {
        match (a, b) {
            (Fact::Tensor(a), Fact::Tensor(b)) => {
                let dtype = a.dtype.filter(|_| a.dtype == b.dtype);
                self.changed |= dtype != a.dtype;
                let shape = self.dims(a.shape.as_deref(), b.shape.as_deref(), Dim::unknown);
                let content = self.dims(a.content.as_deref(), b.content.as_deref(), Dim::integer);
                Fact::Tensor(TensorFact { dtype, shape, content })
            }
            (Fact::Sequence(a), Fact::Sequence(b)) => Fact::Sequence(Box::new(self.fact(a, b))),
            (Fact::Optional(a), Fact::Optional(b)) => Fact::Optional(Box::new(self.fact(a, b))),
            // A value and an optional have an optional in common.
            (Fact::Optional(a), b) if *b != Fact::Unknown => Fact::Optional(Box::new(self.fact(a, b))),
            (a, Fact::Optional(b)) if *a != Fact::Unknown => {
                self.changed = true;
                Fact::Optional(Box::new(self.fact(a, b)))
            }
            (Fact::Other, Fact::Other) => Fact::Other,
            (a, _) => {
                self.changed |= *a != Fact::Unknown;
                Fact::Unknown
            }
        }
    }

    /// The fact after the loop: sizes that differ between iterations become new unknowns, those of the last
    /// one.
    pub fn outside(&self, fact: &Fact) -> Fact {
        let rename = |dims: &Vec<Dim>, new: fn() -> Dim| {
            dims.iter().map(|d| if self.fresh.contains(d) { new() } else { d.clone() }).collect()
        };
        match fact {
            Fact::Tensor(t) => Fact::Tensor(TensorFact {
                dtype: t.dtype,
                shape: t.shape.as_ref().map(|s| rename(s, Dim::unknown)),
                content: t.content.as_ref().map(|c| rename(c, Dim::integer)),
            }),
            Fact::Sequence(item) => Fact::Sequence(Box::new(self.outside(item))),
            Fact::Optional(item) => Fact::Optional(Box::new(self.outside(item))),
            other => other.clone(),
        }
    }
}
