//! The quantity that an operator is fitted to: its output in the original, or the sum that the output is a
//! term of.

use super::Refit;
use crate::analysis::linear::Linear;
use pare_graph::{Edge, Graph, NodeId, NodeRef, Tensor, ValueId, ValueRef, ops::ClipView};
use std::collections::HashSet;

/// The target of an operator that is being refitted.
pub(super) struct Target<'a> {
    /// The operator in the changed model.
    pub linear: Linear,
    /// The value of the original.
    pub value: ValueId,
    /// The other term, if `value` is a sum.
    pub addend: Option<Addend>,
    /// The bounds of the activations that follow, if they only clip.
    pub clip: Option<(f64, f64)>,
    pub refit: &'a Refit,
}

/// A value that is added to the output of an operator.
pub(super) enum Addend {
    /// A value of the changed model.
    Value(ValueId),
    /// A constant, equal for all samples.
    Constant(Tensor),
}

impl<'a> Target<'a> {
    /// The target of `refit`; `None` if its weights have other users, or if it has a target only as a term of
    /// a sum and the addend is not final. `pending` are the operators that have not been refitted yet,
    /// including this one.
    pub fn of(original: &Graph, changed: &Graph, refit: &'a Refit, pending: &[Refit]) -> Option<Self> {
        let linear = Linear::owned(changed, refit.node)?;
        let output = changed.value_ref(linear.output);
        let add = output.sole_user().ok().filter(|at| at.is("Add"));
        let nodes: HashSet<_> = pending.iter().map(|r| r.node).collect();
        let sum = add.and_then(|add| {
            let addend = addend_of(add, output)?;
            let is_final = match &addend {
                Addend::Value(value) => !depends_on(changed, *value, &nodes),
                Addend::Constant(_) => true,
            };
            let sum = refit.sum.or_else(|| sum_in_original(original, changed, refit.target, &addend))?;
            is_final.then_some((sum, addend))
        });
        let (value, addend) = match sum {
            Some((sum, addend)) => (sum, Some(addend)),
            None if refit.sum == Some(refit.target) => return None,
            None => (refit.target, None),
        };
        // An activation reads the sum, if there is one.
        let activated = match (add, &addend) {
            (Some(add), Some(_)) => add.output().ok(),
            (Some(_), None) => None,
            (None, _) => Some(output),
        };
        let clip = activated.filter(|v| !v.value().is_output()).and_then(clip_bounds);
        Some(Self { linear, value, addend, clip, refit })
    }
}

/// Returns the bounds of the users of a value, if all of them clip it to the same interval.
fn clip_bounds(value: ValueRef<'_>) -> Option<(f64, f64)> {
    let bounds = |(at, edge): (NodeRef<'_>, Edge)| {
        ClipView::of(at).ok().filter(|_| edge == Edge::Input(0)).map(|c| (c.low, c.high))
    };
    let bounds: Vec<_> = value.users().into_iter().map(bounds).collect::<Option<_>>()?;
    bounds.first().copied().filter(|first| bounds.iter().all(|b| b == first))
}

/// Returns the sum of the original that is the only user of `target`, if the addend there has the name and
/// the shape of the addend here.
fn sum_in_original(original: &Graph, changed: &Graph, target: ValueId, addend: &Addend) -> Option<ValueId> {
    let Addend::Value(addend) = addend else { return None };
    let target = original.value_ref(target);
    let add = target.sole_user().ok().filter(|at| at.is("Add"))?;
    let other = add.inputs().into_iter().flatten().find(|v| v.id != target.id)?;
    let same = other.name() == changed.value(*addend).name && other.shape() == target.shape();
    same.then(|| add.output().ok().map(|sum| sum.id)).flatten()
}

/// Returns the term of a sum beside `value`.
fn addend_of(add: NodeRef<'_>, value: ValueRef<'_>) -> Option<Addend> {
    let other = add.inputs().into_iter().flatten().find(|v| v.id != value.id)?;
    match other.constant() {
        Ok(constant) => Some(Addend::Constant(constant.clone())),
        Err(_) => {
            (other.shape().is_some() && other.shape() == value.shape()).then_some(Addend::Value(other.id))
        }
    }
}

fn depends_on(graph: &Graph, value: ValueId, nodes: &HashSet<NodeId>) -> bool {
    !graph.upstream([value], |_| false).is_disjoint(nodes)
}
