//! The order of a tensor's elements after reshapes and transposes, in terms of its original axes.

use pare_graph::{
    Decline, Dim, NodeRef, ValueRef, expect,
    ops::{SqueezeView, Trait, TransposeView, UnsqueezeView},
};

use crate::framework::matching::{is_plain, is_pointwise};

/// A rearranged tensor. Every axis, before and after, is a product of factors, outermost first; a factor
/// belongs to one axis before and one after. Axes of size 1 have no factors.
///
/// `[A, B·C] → reshape [A, B, C] → transpose (0, 2, 1)` is `before = [[a], [b, c]]`,
/// `after = [[a], [c], [b]]`.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub sizes: Vec<Dim>,
    pub before: Vec<Vec<usize>>,
    pub after: Vec<Vec<usize>>,
}

impl Layout {
    /// The layout of a tensor of this shape before any view.
    pub fn new(shape: &[Dim]) -> Self {
        let mut sizes = vec![];
        let axis = |dim: &Dim| {
            if dim.known() == Some(1) {
                return vec![];
            }
            sizes.push(dim.clone());
            vec![sizes.len() - 1]
        };
        let before: Vec<_> = shape.iter().map(axis).collect();
        Self { sizes, after: before.clone(), before }
    }

    /// Applies a transpose.
    pub fn transpose(&mut self, perm: &[usize]) -> Option<()> {
        let moved: Option<Vec<_>> = perm.iter().map(|&p| self.after.get(p).cloned()).collect();
        self.after = moved.filter(|m| m.len() == self.after.len())?;
        Some(())
    }

    /// Applies a reshape. `None` if the sizes do not determine the factors of an axis.
    pub fn reshape(&mut self, shape: &[Dim]) -> Option<()> {
        let mut rest: std::collections::VecDeque<usize> = self.after.concat().into();
        let mut after = vec![];
        for dim in shape {
            let (mut axis, mut open) = (vec![], dim.clone());
            while open.known() != Some(1) {
                let factor = rest.pop_front()?;
                let size = self.sizes[factor].clone();
                if size == open {
                    axis.push(factor);
                    open = Dim::from(1_i64);
                } else if let Some(left) = open.exact_div(&size) {
                    axis.push(factor);
                    open = left;
                } else {
                    // The axis ends inside this factor.
                    let inner = self.split(factor, &open, &size.exact_div(&open)?);
                    axis.push(factor);
                    rest.push_front(inner);
                    open = Dim::from(1_i64);
                }
            }
            after.push(axis);
        }
        self.after = after;
        rest.is_empty().then_some(())
    }

    /// Splits a factor, which becomes the outer part. Returns the inner part.
    fn split(&mut self, factor: usize, outer: &Dim, inner: &Dim) -> usize {
        self.sizes[factor] = outer.clone();
        self.sizes.push(inner.clone());
        let new = self.sizes.len() - 1;
        for axis in self.before.iter_mut().chain(&mut self.after) {
            if let Some(i) = axis.iter().position(|&f| f == factor) {
                axis.insert(i + 1, new);
            }
        }
        new
    }

    /// Applies a node if it is a view.
    pub fn then(&mut self, at: NodeRef<'_>) -> Result<(), Decline> {
        is_view(at)?;
        let done = if at.is("Transpose") {
            self.transpose(&TransposeView::of(at)?.perm)
        } else {
            let shape = at.output()?.shape().ok_or(Decline::Mismatch)?;
            match at.op() {
                // Axes are more precise than sizes.
                "Squeeze" => SqueezeView::of(at).ok().and_then(|view| self.squeeze(&view.axes)),
                "Unsqueeze" => UnsqueezeView::of(at).ok().and_then(|view| self.unsqueeze(&view.axes)),
                _ => self.reshape(shape),
            }
        };
        done.ok_or(Decline::Mismatch)
    }

    fn squeeze(&mut self, axes: &[usize]) -> Option<()> {
        for &axis in axes.iter().rev() {
            // A size that must be 1 may be a symbol.
            self.after.get(axis).filter(|factors| factors.is_empty())?;
            self.after.remove(axis);
        }
        Some(())
    }

    fn unsqueeze(&mut self, axes: &[usize]) -> Option<()> {
        for &axis in axes {
            (axis <= self.after.len()).then(|| self.after.insert(axis, vec![]))?;
        }
        Some(())
    }

    /// Returns true if the elements are in their original order.
    pub fn is_in_order(&self) -> bool {
        self.before.concat() == self.after.concat()
    }

    /// The size of a product of factors.
    pub fn size(&self, factors: &[usize]) -> Dim {
        factors.iter().fold(Dim::from(1_i64), |product, &f| &product * &self.sizes[f])
    }

    /// The permutation of the original axes that yields the order of elements after, if no axis is split.
    /// Axes of size 1 stay as close to their positions as possible.
    pub fn moved_axes(&self) -> Option<Vec<usize>> {
        let order = self.after.concat();
        let (mut perm, mut place) = (vec![], 0);
        while place < order.len() {
            let axis = self.before.iter().position(|factors| factors.first() == Some(&order[place]))?;
            let factors = &self.before[axis];
            (order.get(place..place + factors.len())? == factors.as_slice()).then_some(())?;
            perm.push(axis);
            place += factors.len();
        }
        let mut ones = (0..self.before.len()).filter(|&a| self.before[a].is_empty()).collect::<Vec<_>>();
        // Axes of size 1 take the positions that they have after.
        let mut all = vec![];
        let mut moved = perm.into_iter();
        for axis in &self.after {
            if axis.is_empty() {
                if !ones.is_empty() {
                    all.push(ones.remove(0));
                }
            } else {
                let mut covered = 0;
                while covered < axis.len() {
                    let Some(next) = moved.next() else { break };
                    covered += self.before[next].len();
                    all.push(next);
                }
            }
        }
        all.extend(moved);
        all.extend(ones);
        Some(all)
    }

    /// The inverse layout.
    pub fn reversed(&self) -> Self {
        Self { sizes: self.sizes.clone(), before: self.after.clone(), after: self.before.clone() }
    }
}

/// Declines unless the node is a transpose or a reshape. An `Identity` belongs to `drop-noops`.
pub(super) fn is_view(at: NodeRef<'_>) -> Result<(), Decline> {
    is_plain(at)?;
    expect(at.is("Transpose") || at.has(Trait::Reshape) && !at.is("Identity"))
}

/// Declines unless the node keeps the elements in order.
pub(super) fn keeps_order(at: NodeRef<'_>) -> Result<(), Decline> {
    is_view(at)?;
    if at.is("Transpose") {
        let shape = at.input(0)?.shape().ok_or(Decline::Mismatch)?;
        let view = TransposeView::of(at)?;
        expect(view.perm.len() == shape.len())?;
        let moved = view.perm.iter().filter(|&&p| shape[p].known() != Some(1));
        expect(moved.is_sorted())?;
    }
    Ok(())
}

/// A step between a value and one it is rearranged from.
pub(super) struct Step<'g> {
    pub at: NodeRef<'g>,
    pub is_view: bool,
    /// True if the value that it produces has further uses and is kept.
    pub is_kept: bool,
}

/// The chain of views and elementwise functions that ends in the value `last`, last node first, at most
/// `most` nodes.
pub(super) fn steps_to(last: ValueRef<'_>, most: usize) -> Vec<Step<'_>> {
    let (mut steps, mut value) = (vec![], last);
    while steps.len() < most {
        let Some(at) = value.producer() else { break };
        let view = is_view(at).is_ok();
        let function = is_pointwise(at) && at.inputs().len() == 1 && is_plain(at).is_ok();
        if !view && !function || at.output().is_err() {
            break;
        }
        let is_kept = value.sole_use().is_err();
        // A function whose value is kept would be computed twice.
        if function && is_kept {
            break;
        }
        steps.push(Step { at, is_view: view, is_kept });
        let Ok(input) = at.input(0) else { break };
        value = input;
    }
    steps
}
