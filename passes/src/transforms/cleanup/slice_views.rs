use super::layout::{Layout, steps_to};
use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError, node_builder::reshape_target},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, Ref, ValueRef,
    ops::{SliceAxis, axis_of},
};

pass! {
    /// Replace a `Gather` of one index after views by a `Slice` before them.
    ///
    /// `Gather` of index `k` along an axis that is a factor of the original axis `A` is a `Slice` of `A`:
    /// with `n` the size of the factor, every `n`-th position from `k` if it is the innermost factor of `A`,
    /// the `k`-th block if it is the outermost. The halves of a channel shuffle become two slices.
    ///
    /// Declines where the remaining elements are in another order, and where more nodes would be needed.
    #[pass("slice-views", Exact, "gather moved before views", "gathers moved before views")]
    pub struct SliceViews {}
}

/// Longest chain of views searched.
const REACH: usize = 6;

impl Pass for SliceViews {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Gather"], cut_before)
    }
}

fn cut_before(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (axis, index, y) = (axis_of(at)?, at.input(1)?.constant()?, at.output()?);
    let place = index.single_i64().filter(|_| index.rank() <= 1).ok_or(Decline::Mismatch)?;
    let chain = steps_to(at.input(0)?, REACH);
    let mut with_reshape = None;
    for length in 1..=chain.iter().take_while(|s| s.is_view).count() {
        let part = &chain[..length];
        let x = part[length - 1].at.input(0)?;
        let Some(from) = x.shape() else { break };
        let mut layout = Layout::new(from);
        if part.iter().rev().try_for_each(|s| layout.then(s.at)).is_err() {
            continue;
        }
        let Some((cut, size)) = cut(&layout, axis, place) else { continue };
        let mut left = from.to_vec();
        left[cut.axis] = Dim::from(size);
        if left == y.shape().ok_or(Decline::Mismatch)? {
            return patch(at, x, cut, None);
        }
        // With a reshape after it, the slice pays only if at least two nodes become dead.
        if length > 1 && part.iter().all(|s| !s.is_kept) {
            let target = reshape_target(Some(&left), y.shape().ok_or(Decline::Mismatch)?);
            with_reshape = with_reshape.or(target.map(|t| (x, cut, t)));
        }
    }
    let (x, cut, target) = with_reshape.ok_or(Decline::Mismatch)?;
    patch(at, x, cut, Some(&target))
}

fn patch(at: NodeRef<'_>, x: ValueRef<'_>, cut: SliceAxis, target: Option<&[i64]>) -> Result<Patch, Decline> {
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
    let mut value: Ref = spell.slice(x.into(), &[cut]);
    if let Some(target) = target {
        value = spell.reshape(value, target);
    }
    patch.replace(y, value);
    Ok(patch)
}

/// The slice of an original axis that selects position `place` of axis `axis`, and the remaining size of that
/// axis; `None` if the selection is not a slice or the remaining elements are in another order.
fn cut(layout: &Layout, axis: usize, place: i64) -> Option<(SliceAxis, usize)> {
    let &[factor] = layout.after.get(axis)?.as_slice() else { return None };
    let rest = |axes: &[Vec<usize>]| axes.concat().into_iter().filter(|&f| f != factor).collect::<Vec<_>>();
    (rest(&layout.before) == rest(&layout.after)).then_some(())?;
    let source = layout.before.iter().position(|factors| factors.contains(&factor))?;
    let (n, total) = (layout.sizes[factor].size()?, layout.size(&layout.before[source]).size()?);
    let place = usize::try_from(if place < 0 { place.checked_add(n as i64)? } else { place }).ok()?;
    (place < n).then_some(())?;
    let inner = total / n;
    let (start, end, step) = match layout.before[source].as_slice() {
        [.., last] if *last == factor => (place, total, n),
        [first, ..] if *first == factor => (place * inner, (place + 1) * inner, 1),
        _ => return None,
    };
    let cut = SliceAxis { axis: source, start: start as i64, end: end as i64, step: step as i64 };
    Some((cut, inner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn halves_of_shuffled_channels_become_slices() {
        check(
            SliceViews::default(),
            "g (float[1,6,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) <
                int64[3] s = {3,2,16}, int64[5] t = {2,-1,3,4,4}, int64 a = {0}, int64 b = {-1}> {
                h = Reshape(x, s) k = Transpose<perm = [1,0,2]>(h) l = Reshape(k, t)
                y = Gather<axis = 0>(l, a) z = Gather<axis = 0>(l, b) }",
            "g (float[1,6,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) <
                int64[1] y_starts = {0}, int64[1] y_ends = {6}, int64[1] y_axes = {1}, int64[1] y_steps = {2},
                int64[1] z_starts = {1}, int64[1] z_ends = {6}, int64[1] z_axes = {1}, int64[1] z_steps = {2}> {
                y = Slice(x, y_starts, y_ends, y_axes, y_steps) z = Slice(x, z_starts, z_ends, z_axes, z_steps) }",
        );
    }

    #[test]
    fn block_becomes_slice_with_step_1() {
        check(
            SliceViews::default(),
            "g (float[N,6] x) => (float[N,3] y) <int64[3] s = {0,2,3}, int64 a = {1}> {
                h = Reshape(x, s) y = Gather<axis = 1>(h, a) }",
            "g (float[N,6] x) => (float[N,3] y) <int64[1] y_starts = {3}, int64[1] y_ends = {6}, int64[1] y_axes = {1}> {
                y = Slice(x, y_starts, y_ends, y_axes) }",
        );
    }

    #[test]
    fn keeps_gather_that_reorders() {
        no_match(
            SliceViews::default(),
            "g (float[2,3,4] x) => (float[4,3] y) <int64 a = {1}> {
                h = Transpose<perm = [0,2,1]>(x) y = Gather<axis = 0>(h, a) }",
        );
    }
}
