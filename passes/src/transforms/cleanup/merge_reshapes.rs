use super::layout::keeps_order;
use crate::analysis::fusions::is_fused;
use crate::framework::matching::{cancel, same_shape};
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError, node_builder::reshape_target},
    pass,
};
use pare_graph::{
    Decline, Edge, Model, NodeRef, Patch, ValueRef, expect,
    ops::{SqueezeView, Trait, UnsqueezeView, operators_with},
};

pass! {
    /// Merge consecutive reshapes, and remove those that restore the shape.
    ///
    /// `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`, and a `Transpose` that only moves axes of size 1, keep
    /// the elements in order. A chain of them is a single `Reshape` from the first shape to the last, and a
    /// no-op if these are equal for all values of the symbols.
    ///
    /// Declines where more than one size of the last shape is neither a number nor the size of the same axis
    /// before, which a constant target cannot express, and where the first has other uses and would be kept.
    #[pass("merge-reshapes", Exact, "reshape merged", "reshapes merged")]
    pub struct MergeReshapes {}
}

impl Pass for MergeReshapes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &operators_with(Trait::View), merged)
    }
}

fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    keeps_order(at)?;
    let (between, y) = (at.input(0)?, at.output()?);
    let inner = between.producer().ok_or(Decline::Mismatch)?;
    keeps_order(inner)?;
    // Two transposes are merged by `merge-transposes`.
    let transposes = at.is("Transpose") && inner.is("Transpose");
    expect(!transposes && !is_fused(at))?;
    let x = inner.input(0)?;
    if same_shape(x, y) {
        return cancel(at, x);
    }
    becomes_dead(between)?;
    let mut patch = Patch::at(at);
    let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
    let made = if let Some(axes) = both_unsqueeze(at, inner) {
        spell.unsqueeze(x.into(), &axes)
    } else if let Some(axes) = both_squeeze(at, inner) {
        spell.squeeze(x.into(), &axes)
    } else {
        let to = y.shape().ok_or(Decline::Mismatch)?;
        let open = || {
            Decline::because(format!("`{}` has several sizes that no constant target can express", y.name()))
        };
        match (reshape_target(x.shape(), to), y.fixed_shape()) {
            (Some(target), _) => spell.reshape(x.into(), &target),
            (None, Ok(sizes)) if at.opset() >= 14 => {
                let sizes: Vec<_> = sizes.into_iter().map(|n| n as i64).collect();
                spell.reshape_empty(x.into(), &sizes)
            }
            _ => return Err(open()),
        }
    };
    patch.replace(y, made);
    Ok(patch)
}

/// Declines unless the intermediate value becomes dead: all its users are views that are merged.
fn becomes_dead(between: ValueRef<'_>) -> Result<(), Decline> {
    expect(!between.value().is_output())?;
    let is_merged =
        |(user, edge): &(NodeRef<'_>, Edge)| *edge == Edge::Input(0) && keeps_order(*user).is_ok();
    expect(between.users().iter().all(is_merged))
}

fn both_unsqueeze(at: NodeRef<'_>, inner: NodeRef<'_>) -> Option<Vec<i64>> {
    let (outer, inner) = (UnsqueezeView::of(at).ok()?.axes, UnsqueezeView::of(inner).ok()?.axes);
    let rank = at.output().ok()?.rank().ok()?;
    // Axes of the last shape that exist before the outer `Unsqueeze`.
    let kept: Vec<_> = (0..rank).filter(|a| !outer.contains(a)).collect();
    let mut axes: Vec<_> = inner.iter().map(|&a| kept.get(a).copied()).collect::<Option<_>>()?;
    axes.extend(outer);
    axes.sort_unstable();
    Some(axes.into_iter().map(|a| a as i64).collect())
}

fn both_squeeze(at: NodeRef<'_>, inner: NodeRef<'_>) -> Option<Vec<i64>> {
    let rank = inner.input(0).ok()?.rank().ok()?;
    let (outer, inner) = (SqueezeView::of(at).ok()?.axes, SqueezeView::of(inner).ok()?.axes);
    let kept: Vec<_> = (0..rank).filter(|a| !inner.contains(a)).collect();
    let mut axes: Vec<_> = outer.iter().map(|&a| kept.get(a).copied()).collect::<Option<_>>()?;
    axes.extend(inner);
    axes.sort_unstable();
    Some(axes.into_iter().map(|a| a as i64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, model, no_match, run_pass};
    use pare_graph::text::print_graph;

    #[test]
    fn merges_chain_into_one_reshape() {
        check(
            MergeReshapes::default(),
            "g (float[N,3,4] x) => (float[N,2,6] y) <int64[2] s = {-1,12}, int64[3] t = {0,2,6}, int64[1] o = {1}> {
                a = Reshape(x, s) b = Unsqueeze(a, o) c = Squeeze(b, o) y = Reshape(c, t) }",
            "g (float[N,3,4] x) => (float[N,2,6] y) <int64[3] y_shape = {-1,2,6}> { y = Reshape(x, y_shape) }",
        );
    }

    #[test]
    fn removes_chain_that_restores_the_shape() {
        check(
            MergeReshapes::default(),
            "g (float[N,M,4] x) => (float[N,M,4] y) <int64[1] o = {0}> {
                a = Unsqueeze(x, o) b = Squeeze(a, o) y = Relu(b) }",
            "g (float[N,M,4] x) => (float[N,M,4] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn adds_axes_of_consecutive_unsqueezes_and_squeezes() {
        check(
            MergeReshapes::default(),
            "g (float[N,M] x) => (float[1,N,1,M] y) <int64[1] a = {1}, int64[1] b = {0}> {
                h = Unsqueeze(x, a) y = Unsqueeze(h, b) }",
            "g (float[N,M] x) => (float[1,N,1,M] y) <int64[2] y_axes = {0,2}> { y = Unsqueeze(x, y_axes) }",
        );
        check(
            MergeReshapes::default(),
            "g (float[1,N,1,M] x) => (float[N,M] y) <int64[1] a = {0}, int64[1] b = {1}> {
                h = Squeeze(x, a) y = Squeeze(h, b) }",
            "g (float[1,N,1,M] x) => (float[N,M] y) <int64[2] y_axes = {0,2}> { y = Squeeze(x, y_axes) }",
        );
    }

    #[test]
    fn treats_transpose_of_unit_axes_as_reshape() {
        check(
            MergeReshapes::default(),
            "g (float[N,1,5] x) => (float[N,5] y) <int64[2] s = {0,5}> {
                a = Transpose<perm = [0,2,1]>(x) y = Reshape(a, s) }",
            "g (float[N,1,5] x) => (float[N,5] y) <int64[2] y_shape = {-1,5}> { y = Reshape(x, y_shape) }",
        );
    }

    /// Without elements there is nothing to compare, so only the text is.
    #[test]
    fn merges_reshapes_of_empty_tensors() {
        for (graph, reshape) in [
            (
                "g (float[0,6,2] x) => (float[0,0,3] y) <int64[3] s = {3,2,-1}, int64[3] t = {0,0,3}> {
                    h = Reshape(x, s) y = Reshape<allowzero = 1>(h, t) }",
                "{0,0,3}",
            ),
            (
                "g (float[2,0,3] x) => (float[0,4,0] y) <int64[3] t = {0,4,0}> {
                    h = Flatten<axis = 2>(x) y = Reshape<allowzero = 1>(h, t) }",
                "{0,4,0}",
            ),
            (
                "g (float[0,5] x) => (float[3,0] y) <int64[1] o = {0}, int64[2] t = {3,0}> {
                    h = Unsqueeze(x, o) y = Reshape<allowzero = 1>(h, t) }",
                "{3,0}",
            ),
        ] {
            let mut changed = model(graph);
            run_pass(MergeReshapes::default(), &mut changed);
            let text = print_graph(&changed.graph);
            let shape = format!("y_shape = {reshape}\n> {{\n   y = Reshape<allowzero = 1>(x, y_shape)");
            assert!(text.contains(&shape), "{text}");
        }
    }

    #[test]
    fn keeps_inexpressible_targets_and_shared_reshapes() {
        let why = declines(
            MergeReshapes::default(),
            "g (float[N,1,M,6] x) => (float[a,b,c] y) <int64[1] o = {1}, int64[3] s = {-1,0,3}> {
                h = Squeeze(x, o) y = Reshape(h, s) }",
        );
        assert_eq!(why, ["`y` has several sizes that no constant target can express"]);
        no_match(
            MergeReshapes::default(),
            "g (float[2,6] x) => (float[12] y, float[3,4] z) <int64[2] s = {3,4}, int64[1] t = {12}> {
                h = Reshape(x, s) y = Reshape(h, t) z = Relu(h) }",
        );
    }
}
