use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, NodeRef, Patch, expect, ops::ReduceView};

pass! {
    /// Merge two reductions of the same kind along different axes.
    ///
    /// `mean_A(mean_B(x)) = mean_{A∪B}(x)`, since all groups have the same size; likewise sums, products,
    /// maxima and minima.
    ///
    /// Declines where the inner reduction has other uses, and where only one of both keeps its axes.
    #[pass("merge-nested-reductions", Rounding, "nested reduction merged", "nested reductions merged")]
    pub struct MergeNestedReductions {}
}

/// Reductions of reductions that are reductions.
const OPS: &[&str] = &["ReduceMean", "ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"];

impl Pass for MergeNestedReductions {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, OPS, merged)
    }
}

fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (between, y) = (at.input(0)?, at.output()?);
    let inner = between.produced_by(at.op())?;
    is_plain(inner)?;
    let (first, second) = (ReduceView::of(inner)?, ReduceView::of(at)?);
    expect(!first.axes.is_empty() && !second.axes.is_empty() && first.keepdims == second.keepdims)?;
    between.sole_use()?;
    let x = inner.input(0)?;
    let mut axes = first.axes.clone();
    if first.keepdims {
        axes.extend(&second.axes);
    } else {
        // The axes that remain after the first reduction.
        let kept: Vec<_> = (0..x.rank()?).filter(|axis| !first.axes.contains(axis)).collect();
        axes.extend(second.axes.iter().filter_map(|&axis| kept.get(axis)));
    }
    axes.sort_unstable();
    axes.dedup();
    let axes: Vec<_> = axes.into_iter().map(|axis| axis as i64).collect();
    let mut patch = Patch::at(at);
    let new =
        NodeBuilder::new(at.graph, &mut patch, y.name()).reduce(at.op(), x.into(), &axes, first.keepdims);
    patch.replace(y, new);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn merges_means() {
        check(
            MergeNestedReductions::default(),
            "g (float[N,3,H,W] x) => (float[N,3] y) <int64[1] a = {3}, int64[1] b = {2}> {
                h = ReduceMean<keepdims = 0>(x, a) y = ReduceMean<keepdims = 0>(h, b) }",
            "g (float[N,3,H,W] x) => (float[N,3] y) <int64[2] y_axes = {2,3}> {
                y = ReduceMean<keepdims = 0>(x, y_axes) }",
        );
    }

    #[test]
    fn renumbers_axes_and_keeps_them() {
        check(
            MergeNestedReductions::default(),
            "g (float[2,3,4] x) => (float[3] y, float[1,3,1] z) <int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {-1}> {
                h = ReduceMax<keepdims = 0>(x, a) y = ReduceMax<keepdims = 0>(h, b)
                k = ReduceSum(x, a) z = ReduceSum(k, c) }",
            "g (float[2,3,4] x) => (float[3] y, float[1,3,1] z) <int64[2] y_axes = {0,2}, int64[2] z_axes = {0,2}> {
                y = ReduceMax<keepdims = 0>(x, y_axes) z = ReduceSum<keepdims = 1>(x, z_axes) }",
        );
    }

    #[test]
    fn keeps_shared_and_different_reductions() {
        let graph = |outputs: &str, second: &str| {
            format!(
                "g (float[2,3,4] x) => (float[2] y{outputs}) <int64[1] a = {{2}}, int64[1] b = {{1}}> {{
                    h = ReduceMean<keepdims = 0>(x, a) y = {second} }}"
            )
        };
        let mean = "ReduceMean<keepdims = 0>(h, b)";
        let why = declines(MergeNestedReductions::default(), &graph(", float[2,3] h", mean));
        assert_eq!(why, ["`h` has 2 uses"]);
        no_match(MergeNestedReductions::default(), &graph("", "ReduceMax<keepdims = 0>(h, b)"));
    }
}
