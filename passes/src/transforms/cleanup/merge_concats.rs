use crate::framework::matching::{bypass, is_plain};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, Ref, ValueRef, expect,
    ops::{SplitView, axis_of},
};

pass! {
    /// Merge nested `Concat`s, and remove a `Concat` of all parts of a `Split`.
    ///
    /// `[[a, b], c] = [a, b, c]` along one axis; empty parts are removed; all parts of a `Split` along its
    /// axis are the original tensor.
    ///
    /// Declines where the inner `Concat` has other uses and would be kept.
    #[pass("merge-concats", Exact, "concatenation merged", "concatenations merged")]
    pub struct MergeConcats {}
}

impl Pass for MergeConcats {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Concat"], |at| {
            is_plain(at)?;
            unsplit(at).or_else(|_| flattened(at))
        })
    }
}

/// Replaces a `Concat` of all parts of a `Split` by the tensor that was split.
fn unsplit(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let parts: Vec<_> = at.inputs().into_iter().collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    let first: &ValueRef<'_> = parts.first().ok_or(Decline::Mismatch)?;
    let split = first.produced_by("Split")?;
    let made: Vec<_> = split.outputs().into_iter().flatten().map(|v| v.id).collect();
    expect(made.iter().copied().eq(parts.iter().map(|p| p.id)) && made.len() == split.outputs().len())?;
    expect(SplitView::of(split)?.axis == axis_of(at)?)?;
    bypass(at, split.input(0)?)
}

/// Replaces a `Concat` of `Concat`s by one, without empty parts.
fn flattened(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let axis = axis_of(at)?;
    let mut parts: Vec<ValueRef<'_>> = vec![];
    let mut changed = false;
    for part in at.inputs().into_iter().flatten() {
        let inner = part.produced_by("Concat").ok().filter(|inner| {
            let along = is_plain(*inner).and_then(|()| axis_of(*inner));
            along == Ok(axis) && part.sole_use().is_ok()
        });
        if let Some(inner) = inner {
            parts.extend(inner.inputs().into_iter().flatten());
            changed = true;
        } else if part.shape().and_then(|s| s.get(axis)).and_then(Dim::known) == Some(0) {
            changed = true;
        } else {
            parts.push(part);
        }
    }
    expect(changed && !parts.is_empty())?;
    let mut patch = Patch::at(at);
    let inputs: Vec<Option<Ref>> = parts.into_iter().map(|p| Some(p.into())).collect();
    let joined = patch.copy(at, &inputs);
    patch.replace(at.output()?, joined);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn flattens_nested_concats() {
        check(
            MergeConcats::default(),
            "g (float[N,2] a, float[N,3] b, float[N,0] c) => (float[N,7] y) {
                h = Concat<axis = -1>(a, b) y = Concat<axis = 1>(h, c, a) }",
            "g (float[N,2] a, float[N,3] b, float[N,0] c) => (float[N,7] y) { y = Concat<axis = 1>(a, b, a) }",
        );
    }

    #[test]
    fn removes_concat_of_split_parts() {
        check(
            MergeConcats::default(),
            "g (float[N,6] x) => (float[N,6] y) { a, b = Split<axis = 1, num_outputs = 2>(x)
                h = Concat<axis = 1>(a, b) y = Relu(h) }",
            "g (float[N,6] x) => (float[N,6] y) { y = Relu(x) }",
        );
        no_match(
            MergeConcats::default(),
            "g (float[N,6] x) => (float[N,6] y) { a, b = Split<axis = 1, num_outputs = 2>(x)
                y = Concat<axis = 1>(b, a) }",
        );
    }

    /// PyTorch declares the empty list that a loop starts from as the shape of every iteration.
    #[test]
    fn keeps_lists_that_grow_in_loops() {
        no_match(
            MergeConcats::default(),
            "g (float[1,3] x) => (float[n,3] y) <int64 n = {4}, bool t = {1}, float[0,3] none = {}> {
                y = Loop(n, t, none) <body = b (int64 i, bool c, float[0,3] v) => (bool d, float[m,3] w) {
                    d = Identity(c) w = Concat<axis = 0>(v, x) }> }",
        );
    }

    #[test]
    fn keeps_other_axes_and_shared_concats() {
        no_match(
            MergeConcats::default(),
            "g (float[2,2] a) => (float[4,4] y) { h = Concat<axis = 0>(a, a) y = Concat<axis = 1>(h, h) }",
        );
        no_match(
            MergeConcats::default(),
            "g (float[2,2] a) => (float[6,2] y, float[4,2] h) {
                h = Concat<axis = 0>(a, a) y = Concat<axis = 0>(h, a) }",
        );
    }
}
