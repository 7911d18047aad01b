use super::layout::Layout;
use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError, node_builder::reshape_target},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, ValueRef, expect,
    ops::{SplitView, SqueezeView, TransposeView, is_identity},
};

pass! {
    /// Move a `Split` before the views that precede it.
    ///
    /// Attention with packed projections is often written as
    /// `x → Reshape [B, N, 3, H, d] → Transpose (2, 0, 3, 1, 4) → Split (0) → Squeeze`. The parts are slices
    /// of the last axis of `x`: `x → Split (2)`, each `→ Reshape [B, N, H, d] → Transpose (0, 2, 1, 3)`. The
    /// transposes have one axis less, merge with those that follow, and let engines copy contiguous rows.
    ///
    /// Declines where the parts are not contiguous along an original axis, and where the rewrite needs more
    /// nodes.
    #[pass("split-views", Exact, "split moved before views", "splits moved before views")]
    pub struct SplitViews {}
}

impl Pass for SplitViews {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Split"], split_before)
    }
}

fn split_before(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let SplitView { axis, sizes } = SplitView::of(at)?;
    expect(sizes.len() > 1 && sizes.iter().all(|&s| s == 1))?;
    let transpose = at.input(0)?.produced_by("Transpose")?;
    let reshape = transpose.input(0)?.produced_by("Reshape")?;
    at.input(0)?.sole_use()?;
    transpose.input(0)?.sole_use()?;
    let x = reshape.input(0)?;
    let (from, apart) = x.shape().zip(transpose.input(0)?.shape()).ok_or(Decline::Mismatch)?;

    // The parts must be the outermost factor of an axis of `x`.
    let mut layout = Layout::new(from);
    layout.then(reshape)?;
    let perm = TransposeView::of(transpose)?.perm;
    let place = *perm.get(axis).ok_or(Decline::Mismatch)?;
    let &[part] = layout.after.get(place).ok_or(Decline::Mismatch)?.as_slice() else {
        return Err(Decline::Mismatch);
    };
    let source = layout.before.iter().position(|f| f.first() == Some(&part)).ok_or(Decline::Mismatch)?;
    let inner = layout.size(&layout.before[source][1..]).size().ok_or(Decline::Mismatch)?;

    // Every part is squeezed.
    let mut squeezed = vec![];
    for output in at.outputs() {
        let squeeze = output.ok_or(Decline::Mismatch)?.sole_user()?;
        is_plain(squeeze)?;
        expect(squeeze.is("Squeeze") && SqueezeView::of(squeeze)?.axes == [axis])?;
        squeezed.push(squeeze.output()?);
    }
    expect(squeezed.len() == sizes.len())?;
    let perm: Vec<_> = perm.into_iter().filter(|&p| p != place).map(|p| p - usize::from(p > place)).collect();
    let turns = !is_identity(&perm);
    let joins = |y: &&ValueRef<'_>| {
        let users = y.users();
        !y.value().is_output() && !users.is_empty() && users.iter().all(|(user, _)| user.is("Transpose"))
    };
    let transposes = if turns { squeezed.iter().filter(|y| !joins(y)).count() } else { 0 };
    // A split and reshapes instead of a reshape, a transpose, a split and squeezes.
    expect(1 + squeezed.len() + transposes <= 3 + squeezed.len())?;

    let mut small = from.to_vec();
    small[source] = Dim::from(inner);
    let mut wanted = apart.to_vec();
    wanted.remove(place);
    let target = reshape_target(Some(&small), &wanted).ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(at);
    let hints: Vec<_> = squeezed.iter().map(|y| format!("{}_part", y.name())).collect();
    let hints: Vec<_> = hints.iter().map(String::as_str).collect();
    let parts = NodeBuilder::new(at.graph, &mut patch, x.name()).split(
        x.into(),
        source,
        &vec![inner as i64; sizes.len()],
        &hints,
    );
    for (y, part) in squeezed.into_iter().zip(parts) {
        let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
        let mut made = spell.reshape(part.ok_or(Decline::Mismatch)?, &target);
        if turns {
            made = spell.transpose(made, &perm);
        }
        patch.replace(y, made);
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    fn graph(output: &str, nodes: &str) -> String {
        format!(
            "g (float[N,5,12] x) => ({output}) <int64[5] apart = {{0,5,3,2,2}}, int64[3] thirds = {{1,1,1}},
                int64[1] zero = {{0}}> {{ {nodes} }}"
        )
    }

    const PACKED: &str = "a = Reshape(x, apart) b = Transpose<perm = [2,0,3,1,4]>(a)
        e, f, h = Split<axis = 0>(b, thirds) q = Squeeze(e, zero) k0 = Squeeze(f, zero) v = Squeeze(h, zero)";

    #[test]
    fn splits_packed_heads_before_the_views() {
        let nodes = format!("{PACKED} k = Transpose<perm = [0,1,3,2]>(k0) s = MatMul(q, k) y = MatMul(s, v)");
        check(
            SplitViews::default(),
            &graph("float[N,2,5,2] y", &nodes),
            "g (float[N,5,12] x) => (float[N,2,5,2] y)
                <int64[3] x_split = {4,4,4}, int64[4] q_shape = {-1,5,2,2}, int64[4] k0_shape = {-1,5,2,2},
                 int64[4] v_shape = {-1,5,2,2}> {
                q_part, k0_part, v_part = Split<axis = 2>(x, x_split)
                q_1 = Reshape(q_part, q_shape) q = Transpose<perm = [0,2,1,3]>(q_1)
                k0_1 = Reshape(k0_part, k0_shape) k0 = Transpose<perm = [0,2,1,3]>(k0_1)
                v_1 = Reshape(v_part, v_shape) v = Transpose<perm = [0,2,1,3]>(v_1)
                k = Transpose<perm = [0,1,3,2]>(k0) s = MatMul(q, k) y = MatMul(s, v) }",
        );
    }

    #[test]
    fn keeps_scattered_parts_and_rewrites_that_add_nodes() {
        // No transpose follows that could be merged.
        let nodes = format!("{PACKED} s = Add(q, k0) y = Mul(s, v)");
        no_match(SplitViews::default(), &graph("float[N,2,5,2] y", &nodes));
        // The parts are the innermost factor.
        let nodes = "apart = Constant<value = int64[5] {0,5,2,2,3}>() a = Reshape(x, apart)
            b = Transpose<perm = [4,0,2,1,3]>(a) e, f, h = Split<axis = 0>(b, thirds) q = Squeeze(e, zero)
            k0 = Squeeze(f, zero) v = Squeeze(h, zero) k = Transpose<perm = [0,1,3,2]>(k0) s = MatMul(q, k)
            y = MatMul(s, v)";
        no_match(
            SplitViews::default(),
            &graph("float[N,2,5,2] y", nodes).replacen("int64[5] apart = {0,5,3,2,2}, ", "", 1),
        );
        // A part is used before it is squeezed.
        let nodes = format!(
            "{PACKED} k = Transpose<perm = [0,1,3,2]>(k0) s = MatMul(q, k) z = MatMul(s, v) y = Add(z, e)"
        );
        let why = declines(SplitViews::default(), &graph("float[1,N,2,5,2] y", &nodes));
        assert_eq!(why, ["`e` has 2 uses"]);
    }
}
