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
    /// Join once instead of twice, and not what was just cut apart.
    ///
    /// `[[a, b], c] = [a, b, c]` along one axis; parts without elements are left out; all the parts of a `Split` along
    /// its axis are what was split.
    ///
    /// Declines where the inner `Concat` has other uses and would stay.
    #[pass("merge-concats", Exact, "concatenation merged", "concatenations merged")]
    pub struct MergeConcats {}
}

impl Pass for MergeConcats {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Concat"], |at| {
            is_plain(at)?;
            whole(at).or_else(|_| flattened(at))
        })
    }
}

/// A `Concat` of all parts of a `Split`.
fn whole(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let parts: Vec<_> = at.inputs().into_iter().collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    let first: &ValueRef<'_> = parts.first().ok_or(Decline::Mismatch)?;
    let split = first.produced_by("Split")?;
    let made: Vec<_> = split.outputs().into_iter().flatten().map(|v| v.id).collect();
    expect(made.iter().copied().eq(parts.iter().map(|p| p.id)) && made.len() == split.outputs().len())?;
    expect(SplitView::of(split)?.axis == axis_of(at)?)?;
    bypass(at, split.input(0)?)
}

/// A `Concat` of the parts of its parts, without empty ones.
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
    use crate::framework::testing::{check, declines};

    #[test]
    fn a_concat_of_concats_is_one() {
        check(
            MergeConcats::default(),
            "g (float[N,2] a, float[N,3] b, float[N,0] c) => (float[N,7] y) {
                h = Concat<axis = -1>(a, b) y = Concat<axis = 1>(h, c, a) }",
            "g (float[N,2] a, float[N,3] b, float[N,0] c) => (float[N,7] y) { y = Concat<axis = 1>(a, b, a) }",
        );
    }

    #[test]
    fn parts_joined_again_are_the_whole() {
        check(
            MergeConcats::default(),
            "g (float[N,6] x) => (float[N,6] y) { a, b = Split<axis = 1, num_outputs = 2>(x)
                h = Concat<axis = 1>(a, b) y = Relu(h) }",
            "g (float[N,6] x) => (float[N,6] y) { y = Relu(x) }",
        );
        declines(
            MergeConcats::default(),
            "g (float[N,6] x) => (float[N,6] y) { a, b = Split<axis = 1, num_outputs = 2>(x)
                y = Concat<axis = 1>(b, a) }",
        );
    }

    #[test]
    fn another_axis_or_use_stays() {
        declines(
            MergeConcats::default(),
            "g (float[2,2] a) => (float[4,4] y) { h = Concat<axis = 0>(a, a) y = Concat<axis = 1>(h, h) }",
        );
        declines(
            MergeConcats::default(),
            "g (float[2,2] a) => (float[6,2] y, float[4,2] h) {
                h = Concat<axis = 0>(a, a) y = Concat<axis = 0>(h, a) }",
        );
    }
}
