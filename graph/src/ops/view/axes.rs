//! Operators that act along axes. All axes count from the front.

use super::{ints, known, normal_axes, normal_axis, standard};
use crate::{Attribute, Decline, Dim, NodeRef, expect, ops::Trait};
use std::ops::Range;

/// The `axis` attribute of an operator, or its default, as an axis of the first input.
pub fn axis_of(at: NodeRef<'_>) -> Result<usize, Decline> {
    known(at)?;
    let schema = at.schema().and_then(|s| s.attribute("axis")).ok_or(Decline::Mismatch)?;
    let Some(Attribute::Int(axis)) = at.attr("axis").cloned().or_else(|| schema.default()) else {
        return Err(Decline::Mismatch);
    };
    normal_axis(at, axis, at.input(0)?.rank()?)
}

/// A reduction (`ReduceSum`, `ReduceMean`, …): `y = ⊕ x` over `axes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReduceView {
    /// The reduced axes, sorted; empty if the node is the identity (`noop_with_empty_axes`).
    pub axes: Vec<usize>,
    /// True if the reduced axes are kept with size 1.
    pub keepdims: bool,
}

impl ReduceView {
    /// Reads every operator with [`Trait::Reduction`]. Declines if the rank or the axes are unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        expect(at.has(Trait::Reduction))?;
        known(at)?;
        let rank = at.input(0)?.rank()?;
        let axes = match ints(at, "axes")?.filter(|axes| !axes.is_empty()) {
            Some(axes) => normal_axes(at, &axes, rank)?,
            None if at.int("noop_with_empty_axes", 0) != 0 => vec![],
            None => (0..rank).collect(),
        };
        Ok(Self { axes, keepdims: at.int("keepdims", 1) != 0 })
    }
}

/// `Squeeze`: removes axes of size 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqueezeView {
    /// Axes of the input, sorted.
    pub axes: Vec<usize>,
}

impl SqueezeView {
    /// Declines if the node has no `axes` and the shape of the input is not fixed.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Squeeze")?;
        let input = at.input(0)?;
        if let Some(axes) = ints(at, "axes")? {
            return Ok(Self { axes: normal_axes(at, &axes, input.rank()?)? });
        }
        let unknown = || Decline::because(format!("the axes of size 1 of `{}` are unknown", input.name()));
        let sizes = input.shape().and_then(|dims| dims.iter().map(Dim::known).collect::<Option<Vec<_>>>());
        let sizes = sizes.ok_or_else(unknown)?;
        Ok(Self { axes: (0..sizes.len()).filter(|&i| sizes[i] == 1).collect() })
    }
}

/// `Unsqueeze`: inserts axes of size 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsqueezeView {
    /// Axes of the output, sorted.
    pub axes: Vec<usize>,
}

impl UnsqueezeView {
    /// Declines if the rank of the input or the axes are unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Unsqueeze")?;
        let axes = ints(at, "axes")?.ok_or(Decline::Mismatch)?;
        let rank = at.input(0)?.rank()? + axes.len();
        Ok(Self { axes: normal_axes(at, &axes, rank)? })
    }
}

/// `Softmax`, `LogSoftmax`, `Hardmax`: the elements along `axes` are normalized together,
/// `yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoftmaxView {
    /// One axis; before operator set 13, all from `axis` on.
    pub axes: Range<usize>,
}

impl SoftmaxView {
    /// Declines if the rank is unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        expect(at.is("Softmax") || at.is("LogSoftmax") || at.is("Hardmax"))?;
        let axis = axis_of(at)?;
        let end = if at.opset() < 13 { at.input(0)?.rank()? } else { axis + 1 };
        Ok(Self { axes: axis..end })
    }
}

/// Returns true if a permutation is the identity.
pub fn is_identity(perm: &[usize]) -> bool {
    perm.iter().enumerate().all(|(i, &p)| i == p)
}

/// `Transpose`: axis `i` of the output is axis `perm[i]` of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransposeView {
    /// Permutation of the axes.
    pub perm: Vec<usize>,
}

impl TransposeView {
    /// Without `perm`, the axes are reversed; declines then if the rank is unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Transpose")?;
        let perm = match at.ints("perm") {
            Some(perm) => perm.iter().map(|&a| normal_axis(at, a, perm.len())).collect::<Result<_, _>>()?,
            None => (0..at.input(0)?.rank()?).rev().collect(),
        };
        let view = Self { perm };
        let mut sorted = view.perm.clone();
        sorted.sort_unstable();
        let valid = sorted.into_iter().eq(0..view.perm.len());
        valid
            .then_some(view)
            .ok_or_else(|| Decline::because(format!("`perm` of {} is not a permutation", at.describe())))
    }

    /// Returns true if the permutation is the identity.
    pub fn is_identity(&self) -> bool {
        is_identity(&self.perm)
    }

    /// The inverse permutation: `inverse[perm[i]] = i`.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut inverse = vec![0; self.perm.len()];
        self.perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
        Self { perm: inverse }
    }

    /// The composition with a transpose after this one, `(x[p])[q] = x[p[q]]`; `None` if the ranks differ.
    pub fn then(&self, next: &Self) -> Option<Self> {
        let same = self.perm.len() == next.perm.len();
        same.then(|| Self { perm: next.perm.iter().map(|&q| self.perm[q]).collect() })
    }
}
