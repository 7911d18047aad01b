use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Edge, Model, Node, NodeRef, Patch, Ref, ValueRef, expect, ops::axis_of};

pass! {
    /// Replace sequences whose items are known one by one.
    ///
    /// `SplitToSequence` followed by `SequenceAt` of constant positions is a `Split`, whose parts lose the axis
    /// if `keepdims` is 0. `SequenceConstruct` followed by `ConcatFromSequence` is a `Concat`, whose parts get a
    /// new axis if `new_axis` is 1; followed by `SequenceAt`, it is the item.
    ///
    /// Declines where the sequence has other uses, where a position is not constant, and where the number of
    /// items is unknown.
    #[pass("lower-sequences", Exact, "sequence lowered", "sequences lowered")]
    pub struct LowerSequences {}
}

impl Pass for LowerSequences {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["SplitToSequence", "ConcatFromSequence", "SequenceAt"], |at| {
            is_plain(at)?;
            match at.op() {
                "SplitToSequence" => split(at),
                "ConcatFromSequence" => concat(at),
                _ => item(at),
            }
        })
    }
}

/// `SplitToSequence` of which only items at constant positions are read.
fn split(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let (x, sequence, axis) = (at.input(0)?, at.output()?, axis_of(at)?);
    expect(!sequence.value().is_output())?;
    let size = x.shape().and_then(|shape| shape[axis].size());
    let size =
        size.ok_or_else(|| Decline::because(format!("{} splits an axis of unknown size", at.describe())))?;
    let sizes = sizes(at, size)?;
    let reads = sequence.users().into_iter().map(|(user, edge)| {
        expect(user.is("SequenceAt") && edge == Edge::Input(0))?;
        Ok((user, position(user, sizes.len())?))
    });
    let reads: Vec<_> = reads.collect::<Result<_, Decline>>()?;
    expect(!reads.is_empty())?;
    // Without sizes, the parts have size 1, and the axis may be removed.
    let squeezes = at.optional(1).is_none() && at.int("keepdims", 1) == 0;

    let mut patch = Patch::at(at);
    let named =
        |i: usize| reads.iter().find(|read| read.1 == i).and_then(|read| Some(read.0.output().ok()?.name()));
    let names: Vec<_> = (0..sizes.len())
        .map(|i| named(i).map_or_else(|| format!("{}_{i}", sequence.name()), str::to_owned))
        .collect();
    let hints: Vec<_> = names.iter().map(String::as_str).collect();
    let parts = NodeBuilder::new(at.graph, &mut patch, sequence.name()).split(x.into(), axis, &sizes, &hints);
    for (read, position) in reads {
        let (y, mut part) = (read.output()?, parts[position].ok_or(Decline::Mismatch)?);
        if squeezes {
            part = NodeBuilder::new(at.graph, &mut patch, y.name()).squeeze(part, &[axis as i64]);
        }
        patch.replace(y, part);
    }
    Ok(patch)
}

/// The sizes of the parts of an axis.
fn sizes(at: NodeRef<'_>, size: usize) -> Result<Vec<i64>, Decline> {
    let size = size as i64;
    let given = at.optional(1).map(|split| split.constant()).transpose()?;
    let sizes = match given {
        None => vec![1; size as usize],
        Some(sizes) if sizes.rank() == 1 => sizes.to_i64().ok_or(Decline::Mismatch)?,
        Some(step) => {
            let step = step.single_i64().filter(|&step| step > 0).ok_or(Decline::Mismatch)?;
            (0..size).step_by(step as usize).map(|start| step.min(size - start)).collect()
        }
    };
    expect(!sizes.is_empty() && sizes.len() <= MAX_ITEMS && sizes.iter().sum::<i64>() == size)?;
    Ok(sizes)
}

/// Items up to which a sequence is lowered, since each is an output of `Split`.
const MAX_ITEMS: usize = 256;

/// The position that `SequenceAt` reads in a sequence of `count` items.
fn position(at: NodeRef<'_>, count: usize) -> Result<usize, Decline> {
    let index = at.input(1)?;
    let unknown = || Decline::because(format!("the position `{}` is not constant", index.name()));
    let index = index.constant().ok().and_then(|index| index.single_i64()).ok_or_else(unknown)?;
    let index = if index < 0 { index + count as i64 } else { index };
    usize::try_from(index).ok().filter(|&i| i < count).ok_or(Decline::Mismatch)
}

/// The items of a `SequenceConstruct`.
fn items(sequence: ValueRef<'_>) -> Result<Vec<ValueRef<'_>>, Decline> {
    let construct = sequence.produced_by("SequenceConstruct")?;
    construct.inputs().into_iter().collect::<Option<_>>().ok_or(Decline::Mismatch)
}

fn concat(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let (sequence, y) = (at.input(0)?, at.output()?);
    let items = items(sequence)?;
    sequence.sole_use()?;
    let axis = at.int("axis", 0);
    let mut patch = Patch::at(at);
    let parts: Vec<Ref> = if at.int("new_axis", 0) == 0 {
        items.into_iter().map(Ref::from).collect()
    } else {
        let mut build = NodeBuilder::new(at.graph, &mut patch, y.name());
        items.into_iter().map(|item| build.unsqueeze(item.into(), &[axis])).collect()
    };
    let concat = patch.node(y.name(), Node::new("Concat").with("axis", axis), &parts);
    patch.replace(y, concat);
    Ok(patch)
}

fn item(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let items = items(at.input(0)?)?;
    let item = items[position(at, items.len())?];
    crate::framework::matching::bypass(at, item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn splits_into_parts() {
        check(
            LowerSequences::default(),
            "g (float[2,5] x) => (float[2,3] y, float[2,2] z) <int64[2] s = {3,2}, int64 i = {0}, int64 j = {-1}> {
                q = SplitToSequence<axis = 1>(x, s) y = SequenceAt(q, i) z = SequenceAt(q, j) }",
            "g (float[2,5] x) => (float[2,3] y, float[2,2] z) <int64[2] q_split = {3,2}> {
                y, z = Split<axis = 1>(x, q_split) }",
        );
        // Equal parts, of which the last is smaller, and one is not read.
        check(
            LowerSequences::default(),
            "g (float[5,2] x) => (float[1,2] y) <int64 s = {2}, int64 j = {2}> {
                q = SplitToSequence(x, s) y = SequenceAt(q, j) }",
            "g (float[5,2] x) => (float[1,2] y) <int64[3] q_split = {2,2,1}> {
                q_0, q_1, y = Split<axis = 0>(x, q_split) }",
        );
    }

    #[test]
    fn squeezes_parts_without_the_axis() {
        check(
            LowerSequences::default(),
            "g (float[2,3] x) => (float[2] y) <int64 i = {1}> {
                q = SplitToSequence<axis = 1, keepdims = 0>(x) y = SequenceAt(q, i) }",
            "g (float[2,3] x) => (float[2] y) <int64[3] q_split = {1,1,1}, int64[1] y_axes = {1}> {
                q_0, y_1, q_2 = Split<axis = 1>(x, q_split) y = Squeeze(y_1, y_axes) }",
        );
    }

    #[test]
    fn concatenates_items() {
        check(
            LowerSequences::default(),
            "g (float[2] a, float[2] b) => (float[4] y, float[2,2] z, float[2] w) <int64 i = {1}> {
                q = SequenceConstruct(a, b) y = ConcatFromSequence<axis = 0>(q)
                r = SequenceConstruct(a, b) z = ConcatFromSequence<axis = -1, new_axis = 1>(r)
                s = SequenceConstruct(a, b) h = SequenceAt(s, i) w = Neg(h) }",
            "g (float[2] a, float[2] b) => (float[4] y, float[2,2] z, float[2] w) <int64[1] z_axes = {-1}, int64[1] z_axes_1 = {-1}> {
                y = Concat<axis = 0>(a, b) z_1 = Unsqueeze(a, z_axes) z_2 = Unsqueeze(b, z_axes_1)
                z = Concat<axis = -1>(z_1, z_2) w = Neg(b) }",
        );
    }

    #[test]
    fn declines_unknown_positions_and_sizes() {
        let why = declines(
            LowerSequences::default(),
            "g (float[4] x, int64 i) => (float[1] y) { q = SplitToSequence(x) y = SequenceAt(q, i) }",
        );
        assert_eq!(why, ["the position `i` is not constant"]);
        let why = declines(
            LowerSequences::default(),
            "g (float[N] x) => (float[1] y) <int64 i = {0}> { q = SplitToSequence(x) y = SequenceAt(q, i) }",
        );
        assert_eq!(why, ["SplitToSequence producing `q` splits an axis of unknown size"]);
    }
}
