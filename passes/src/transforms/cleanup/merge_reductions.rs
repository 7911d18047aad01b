use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, Decline, Model, NodeRef, Patch, expect,
    ops::{ReduceView, SqueezeView, UnsqueezeView, axis_of},
};

pass! {
    /// Merge `Squeeze` and `Unsqueeze` into the reduction beside them.
    ///
    /// `Squeeze` of the reduced axes is `keepdims = 0`, `Unsqueeze` of them is `keepdims = 1`, for
    /// `ReduceSum` and the other reductions, `ArgMax` and `ArgMin`. `Squeeze` before a reduction removes axes
    /// that the reduction itself can remove or keep.
    ///
    /// Declines where the axes differ and where the reduced value has other uses.
    #[pass("merge-reductions", Exact, "reduction merged", "reductions merged")]
    pub struct MergeReductions {}
}

impl Pass for MergeReductions {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Squeeze", "Unsqueeze"], |at| {
            is_plain(at)?;
            let reduced = at.input(0)?;
            let reduction = reduced.producer().ok_or(Decline::Mismatch)?;
            is_plain(reduction)?;
            let (axes, keeps) = axes(reduction)?;
            let (given, kept) = match at.op() {
                "Squeeze" => (SqueezeView::of(at)?.axes, true),
                _ => (UnsqueezeView::of(at)?.axes, false),
            };
            expect(!axes.is_empty() && axes == given && keeps == kept)?;
            reduced.sole_use()?;
            let (y, mut node) = (at.output()?, reduction.node().clone());
            node.attributes.insert("keepdims".into(), Attribute::Int(i64::from(!keeps)));
            let inputs: Vec<_> = reduction.inputs().into_iter().map(|i| i.map(Into::into)).collect();
            let mut patch = Patch::at(at);
            let made = patch.node_with(node, &inputs, &[Some(y.name())]);
            patch.replace(y, made[0].ok_or(Decline::Mismatch)?);
            Ok(patch)
        })?;
        cx.rewrite(model, SQUEEZED, squeezed)
    }
}

/// Reductions for which an additional axis of size 1 makes no difference.
const SQUEEZED: &[&str] =
    &["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp"];

/// Removes a `Squeeze` before a reduction; the axes are renumbered to those before the squeeze.
fn squeezed(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let between = at.input(0)?;
    let squeeze = between.produced_by("Squeeze")?;
    between.sole_use()?;
    let (view, removed) = (ReduceView::of(at)?, SqueezeView::of(squeeze)?.axes);
    let (x, y) = (squeeze.input(0)?, at.output()?);
    let shape = x.shape().ok_or(Decline::Mismatch)?;
    let kept: Vec<_> = (0..shape.len()).filter(|a| !removed.contains(a)).collect();
    let mut axes: Vec<_> =
        view.axes.iter().map(|&a| kept.get(a).copied()).collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    expect(!axes.is_empty())?;
    if view.keepdims {
        // The kept axes of size 1 may take the positions of the squeezed ones.
        let left: Vec<_> = (0..shape.len()).filter(|a| !axes.contains(a)).map(|a| shape[a].clone()).collect();
        expect(y.shape() == Some(left.as_slice()))?;
    } else {
        axes.extend(removed);
        axes.sort_unstable();
    }
    let axes: Vec<_> = axes.into_iter().map(|a| a as i64).collect();
    let mut patch = Patch::at(at);
    let made = NodeBuilder::new(at.graph, &mut patch, y.name()).reduce(at.op(), x.into(), &axes, false);
    patch.replace(y, made);
    Ok(patch)
}

/// The reduced axes, sorted, and whether they are kept.
fn axes(at: NodeRef<'_>) -> Result<(Vec<usize>, bool), Decline> {
    if at.is("ArgMax") || at.is("ArgMin") {
        return Ok((vec![axis_of(at)?], at.int("keepdims", 1) != 0));
    }
    let view = ReduceView::of(at)?;
    Ok((view.axes, view.keepdims))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn sets_keepdims_of_the_reduction() {
        check(
            MergeReductions::default(),
            "g (float[2,3,4] x) => (float[3] y, float[1,3,1] z, int64[2,3] i) <int64[2] a = {-1,0}, int64[1] l = {2}> {
                h = ReduceMean(x, a) y = Squeeze(h, a) k = ReduceSum<keepdims = 0>(x, a) z = Unsqueeze(k, a)
                m = ArgMax<axis = -1>(x) i = Squeeze(m, l) }",
            "g (float[2,3,4] x) => (float[3] y, float[1,3,1] z, int64[2,3] i) <int64[2] a = {-1,0}> {
                y = ReduceMean<keepdims = 0>(x, a) z = ReduceSum<keepdims = 1>(x, a)
                i = ArgMax<axis = -1, keepdims = 0>(x) }",
        );
    }

    #[test]
    fn removes_squeeze_before_reduction() {
        check(
            MergeReductions::default(),
            "g (float[N,1,M] x) => (float[N] y, float[N,1] z) <int64[1] a = {1}> {
                h = Squeeze(x, a) y = ReduceMean<keepdims = 0>(h, a) k = Squeeze(x, a) z = ReduceMax(k, a) }",
            "g (float[N,1,M] x) => (float[N] y, float[N,1] z) <int64[2] y_axes = {1,2}, int64[1] z_axes = {2}> {
                y = ReduceMean<keepdims = 0>(x, y_axes) z = ReduceMax<keepdims = 0>(x, z_axes) }",
        );
    }

    #[test]
    fn keeps_other_axes_and_shared_reductions() {
        no_match(
            MergeReductions::default(),
            "g (float[2,1,4] x) => (float[2,1] y) <int64[1] a = {2}, int64[1] b = {1}> {
                h = ReduceMean(x, a) y = Squeeze(h, b) }",
        );
        let why = declines(
            MergeReductions::default(),
            "g (float[2,1,4] x) => (float[2,4] y, float[2,1,4] z) <int64[1] b = {1}> {
                h = ReduceMean(x, b) y = Squeeze(h, b) z = Relu(h) }",
        );
        assert_eq!(why, ["`h` has 2 uses"]);
    }
}
