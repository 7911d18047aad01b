use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Dim, Edge, Model, NodeRef, Patch, expect,
    ops::{SliceAxis, SliceView},
};

pass! {
    /// Merge consecutive slices, and slices that partition an axis into a `Split`.
    ///
    /// Slices of different axes commute. On one axis, with step 1 and positions counted from the front,
    /// `x[a:b][c:d] = x[a+c : min(b, a+d)]`.
    ///
    /// Declines where positions are not constant, where an axis is sliced twice in another way, where the
    /// first slice has users other than slices and would be kept, and where the parts overlap or leave gaps.
    #[pass("merge-slices", Exact, "slice merged", "slices merged")]
    pub struct MergeSlices {}
}

impl Pass for MergeSlices {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Slice"], |at| {
            let between = at.input(0)?;
            let inner = between.produced_by("Slice")?;
            let cuts = composed(inner, at)?;
            // All users of the first slice must be merged with it.
            let follows = |(user, wire): &(NodeRef<'_>, Edge)| {
                *wire == Edge::Input(0) && user.is("Slice") && composed(inner, *user).is_ok()
            };
            expect(!between.value().is_output() && between.users().iter().all(follows))?;
            let mut patch = Patch::at(at);
            let y = at.output()?;
            let made = NodeBuilder::new(at.graph, &mut patch, y.name()).slice(inner.input(0)?.into(), &cuts);
            patch.replace(y, made);
            Ok(patch)
        })?;
        cx.rewrite(model, &["Slice"], partitioned)
    }
}

/// Replaces all slices that partition an axis by one `Split`, starting from the first.
fn partitioned(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let x = at.input(0)?;
    let (axis, 0, _) = part(at)? else { return Err(Decline::Mismatch) };
    let mut parts = vec![];
    for (user, wire) in x.users() {
        match part(user) {
            Ok((a, start, length)) if a == axis && wire == Edge::Input(0) => {
                parts.push((start, length, user.output()?));
            }
            _ => {}
        }
    }
    parts.sort_by_key(|p| p.0);
    let mut end = 0;
    for &(start, length, _) in &parts {
        expect(start == end && length > 0)?;
        end += length;
    }
    let size = x.shape().and_then(|s| s.get(axis)).and_then(Dim::size);
    expect(parts.len() > 1 && size == Some(end))?;
    // The split is computed where the first part is, so it may depend on `x` only.
    let mut patch = Patch::at(at);
    let sizes: Vec<_> = parts.iter().map(|p| p.1 as i64).collect();
    let hints: Vec<_> = parts.iter().map(|p| p.2.name()).collect();
    let made = NodeBuilder::new(at.graph, &mut patch, x.name()).split(x.into(), axis, &sizes, &hints);
    for ((.., old), new) in parts.into_iter().zip(made) {
        patch.replace(old, new.ok_or(Decline::Mismatch)?);
    }
    Ok(patch)
}

/// The axis, start and length of a slice of one axis with step 1.
fn part(at: NodeRef<'_>) -> Result<(usize, usize, usize), Decline> {
    is_plain(at)?;
    let view = SliceView::of(at)?;
    let &[cut] = view.axes.as_slice() else { return Err(Decline::Mismatch) };
    expect(cut.step == 1)?;
    let size = at.input(0)?.shape().and_then(|s| s.get(cut.axis)).and_then(Dim::size);
    let (start, length) = cut.on(size.ok_or(Decline::Mismatch)?);
    Ok((cut.axis, start, length))
}

/// The composition of two slices.
fn composed(inner: NodeRef<'_>, outer: NodeRef<'_>) -> Result<Vec<SliceAxis>, Decline> {
    is_plain(inner)?;
    let mut cuts = SliceView::of(inner)?.axes;
    for cut in SliceView::of(outer)?.axes {
        match cuts.iter_mut().find(|c| c.axis == cut.axis) {
            None => cuts.push(cut),
            Some(first) => *first = composed_on_axis(*first, cut)?,
        }
    }
    Ok(cuts)
}

fn composed_on_axis(first: SliceAxis, second: SliceAxis) -> Result<SliceAxis, Decline> {
    let simple = |c: SliceAxis| c.step == 1 && c.start >= 0 && c.end >= 0;
    expect(simple(first) && simple(second))?;
    let start = first.start.saturating_add(second.start);
    let end = first.end.min(first.start.saturating_add(second.end));
    Ok(SliceAxis { start, end, ..first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn merges_slices_of_different_axes_and_of_one_axis() {
        check(
            MergeSlices::default(),
            "g (float[8,9] x) => (float[2,4] y, float[8,2] z) <
                int64[1] a = {1}, int64[1] b = {5}, int64[1] o = {0}, int64[1] e = {3}> {
                h = Slice(x, a, b, a) y = Slice(h, a, e, o) z = Slice(h, a, e, a) }",
            "g (float[8,9] x) => (float[2,4] y, float[8,2] z) <
                int64[2] y_starts = {1,1}, int64[2] y_ends = {5,3}, int64[2] y_axes = {1,0},
                int64[1] z_starts = {2}, int64[1] z_ends = {4}, int64[1] z_axes = {1}> {
                y = Slice(x, y_starts, y_ends, y_axes) z = Slice(x, z_starts, z_ends, z_axes) }",
        );
    }

    #[test]
    fn keeps_positions_beyond_the_axis() {
        let cut = |start, end| SliceAxis { axis: 0, start, end, step: 1 };
        for size in 0..5_usize {
            for (a, b, c, d) in
                [(0, 3, 1, 2), (1, 9, 2, 7), (2, 2, 0, 1), (4, 5, 0, 3), (0, i64::MAX, 1, i64::MAX)]
            {
                let (skip, taken) = cut(a, b).on(size);
                let (further, left) = cut(c, d).on(taken);
                let (start, length) = composed_on_axis(cut(a, b), cut(c, d)).unwrap().on(size);
                assert_eq!(length, left, "{size} {a}:{b} {c}:{d}");
                assert!(length == 0 || start == skip + further);
            }
        }
        assert!(composed_on_axis(cut(0, -1), cut(0, 2)).is_err());
    }

    #[test]
    fn turns_slices_that_partition_an_axis_into_split() {
        let graph = |rest: &str| {
            format!(
                "g (float[N,8] x) => (float[N,3] y, float[N,a] z) <int64[1] o = {{0}}, int64[1] i = {{1}},
                    int64[1] a = {{3}}, int64[1] b = {{9}}> {{
                    z = Slice(x, {rest}, b, i) y = Slice(x, o, a, i) }}"
            )
        };
        check(
            MergeSlices::default(),
            &graph("a"),
            "g (float[N,8] x) => (float[N,3] y, float[N,a] z) <int64[2] x_split = {3,5}> {
                y, z = Split<axis = 1>(x, x_split) }",
        );
        no_match(MergeSlices::default(), &graph("i"));
    }

    #[test]
    fn keeps_shared_slice() {
        no_match(
            MergeSlices::default(),
            "g (float[8,9] x) => (float[2,4] y, float[8,4] z) <int64[1] a = {1}, int64[1] b = {5}, int64[1] o = {0},
                int64[1] e = {3}> {
                h = Slice(x, a, b, a) y = Slice(h, a, e, o) z = Relu(h) }",
        );
    }
}
