use super::is_plain;
use crate::{Context, Pass, PassError, pass};
use pare_graph::{
    At, Attribute, Decline, Model, Patch, expect,
    ops::{ReduceView, SqueezeView, UnsqueezeView, axis_of},
};

pass! {
    /// Let a reduction keep or drop its axes itself.
    ///
    /// `Squeeze` after a reduction that keeps the same axes is `keepdims = 0`, `Unsqueeze` of them after one that drops
    /// them is `keepdims = 1`. So for `ReduceSum` and the like, `ArgMax` and `ArgMin`.
    ///
    /// Declines where the axes differ and where the reduced value has another use.
    #[pass("merge-reductions", Exact)]
    pub struct MergeReductions {}
}

impl Pass for MergeReductions {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Squeeze", "Unsqueeze"], |at| {
            is_plain(at)?;
            let reduced = at.input(0)?;
            let reduction = reduced.maker().ok_or(Decline::Mismatch)?;
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
        })
    }
}

/// The axes that a node reduces, sorted, and whether they stay.
fn axes(at: At<'_>) -> Result<(Vec<usize>, bool), Decline> {
    if at.is("ArgMax") || at.is("ArgMin") {
        return Ok((vec![axis_of(at)?], at.int("keepdims", 1) != 0));
    }
    let view = ReduceView::of(at)?;
    Ok((view.axes, view.keepdims))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, declines};

    #[test]
    fn axes_are_kept_and_dropped_by_the_reduction() {
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
    fn other_axes_and_uses_stay() {
        declines(
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
