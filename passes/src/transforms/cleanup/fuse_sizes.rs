use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    DataType, Decline, Dim, Graph, Model, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
};
use std::collections::{HashMap, HashSet};

pass! {
    /// Merge values that hold the same sizes, and compute sizes with the fewest nodes.
    ///
    /// Two values that hold the same sizes for all values of the symbols are merged, however they are
    /// computed. A vector of sizes is read directly from the axes: one `Shape` from axis `start` to `end`
    /// (operator set 15) per piece, joined by a `Concat`.
    ///
    /// Declines where a size is not an axis of a graph input or of a value whose `Shape` is already taken.
    #[pass("fuse-sizes", Exact, "size computation shortened", "size computations shortened")]
    pub struct FuseSizes {}
}

impl Pass for FuseSizes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| {
            merge(graph, cx);
            Ok(())
        })?;
        cx.rewrite(model, SHAPERS, shortened)
    }
}

/// Operators of shape arithmetic that can produce the final vector.
const SHAPERS: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Div",
    "Gather",
    "Mul",
    "Reshape",
    "Slice",
    "Sub",
    "Unsqueeze",
    "Where",
    "Squeeze",
];

/// The sizes that a value holds, if one of them is symbolic.
fn sizes(value: ValueRef<'_>) -> Option<&[Dim]> {
    let content = value.value().fact.content()?;
    let open = content.iter().any(|d| d.known().is_none());
    (open && !value.value().is_output()).then_some(content)
}

/// Replaces values by the first one that holds the same sizes.
fn merge(graph: &mut Graph, cx: &mut Context<'_>) {
    let mut first = HashMap::new();
    for &id in graph.nodes().iter() {
        if !graph.has_node(id) {
            continue;
        }
        let Ok(output) = graph.at(id).output() else { continue };
        let (Some(content), Some(dtype), Some(shape)) = (sizes(output), output.dtype(), output.shape())
        else {
            continue;
        };
        let key = (dtype, shape.to_vec(), content.to_vec());
        // The first value may have been removed together with one that used it.
        let Some(&equal) = first.get(&key).filter(|&&v| graph.has_value(v)) else {
            first.insert(key, output.id);
            continue;
        };
        let mut patch = Patch::anchored(id);
        patch.replace(output, equal);
        cx.apply(graph, patch);
    }
}

/// A piece of a vector of sizes.
enum Piece<'g> {
    Numbers(Vec<i64>),
    /// Axes `start..end` of a value.
    Axes(ValueRef<'g>, usize, usize),
}

fn shortened(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let y = at.output()?;
    let content = sizes(y).ok_or(Decline::Mismatch)?;
    expect(y.dtype() == Some(DataType::Int64) && y.rank()? == 1)?;
    let dead = dying(at);
    let sources = sources(at, &dead);
    let pieces = pieces(content, &sources).ok_or(Decline::Mismatch)?;
    let shapes = pieces.iter().filter(|p| matches!(p, Piece::Axes(..))).count();
    expect(shapes + usize::from(pieces.len() > 1) < dead.len())?;
    let mut patch = Patch::at(at);
    let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
    let mut parts: Vec<Ref> = vec![];
    for piece in pieces {
        parts.push(match piece {
            Piece::Numbers(numbers) => spell.constant("sizes", Tensor::vector(&numbers)),
            Piece::Axes(of, start, end) => {
                let mut node = Node::new("Shape");
                if (start, end) != (0, of.rank()?) {
                    expect(at.opset() >= 15)?;
                    node = node.with("start", start as i64).with("end", end as i64);
                }
                spell.node(node, &[of.into()])
            }
        });
    }
    let vector = match parts.as_slice() {
        &[only] => only,
        _ => spell.node(Node::new("Concat").with("axis", 0_i64), &parts),
    };
    patch.replace(y, vector);
    Ok(patch)
}

/// Nodes searched for each vector.
const REACH: usize = 64;

/// The nodes that become dead if the output of `at` is computed otherwise, `at` first.
fn dying(at: NodeRef<'_>) -> Vec<NodeId> {
    let (mut list, mut set) = (vec![at.id], HashSet::from([at.id]));
    let mut next = 0;
    while next < list.len() && list.len() < REACH {
        for input in at.graph.at(list[next]).inputs().into_iter().flatten() {
            let Some((id, _)) = at.graph.producer(input.id) else { continue };
            let producer = at.graph.at(id);
            let serves_only_these =
                producer.outputs().into_iter().flatten().all(|o| {
                    !o.value().is_output() && o.users().iter().all(|(user, _)| set.contains(&user.id))
                });
            if serves_only_these && set.insert(id) {
                list.push(id);
            }
        }
        next += 1;
    }
    list
}

/// The values whose axes may be read: graph inputs, then values whose shape is already taken.
fn sources<'g>(at: NodeRef<'g>, dying: &[NodeId]) -> Vec<ValueRef<'g>> {
    let graph = at.graph;
    let inputs = graph.inputs().iter().map(|&v| graph.value_ref(v)).filter(|v| v.value().data.is_none());
    let mut list: Vec<_> = inputs.collect();
    for &id in dying {
        for producer in std::iter::once(graph.at(id))
            .chain(graph.at(id).inputs().into_iter().flatten().filter_map(ValueRef::producer))
        {
            if producer.is("Shape") {
                list.extend(producer.input(0).ok());
            }
        }
    }
    list
}

fn pieces<'g>(content: &[Dim], sources: &[ValueRef<'g>]) -> Option<Vec<Piece<'g>>> {
    let mut pieces: Vec<Piece<'g>> = vec![];
    for dim in content {
        if let Some(number) = dim.known() {
            match pieces.last_mut() {
                Some(Piece::Numbers(numbers)) => numbers.push(number),
                _ => pieces.push(Piece::Numbers(vec![number])),
            }
            continue;
        }
        if let Some(Piece::Axes(of, _, end)) = pieces.last_mut()
            && of.shape().and_then(|s| s.get(*end)) == Some(dim)
        {
            *end += 1;
            continue;
        }
        let axis = |of: &ValueRef<'g>| Some((*of, of.shape()?.iter().position(|d| d == dim)?));
        let (of, axis) = sources.iter().find_map(axis)?;
        pieces.push(Piece::Axes(of, axis, axis + 1));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn reads_sizes_from_axes() {
        check(
            FuseSizes::default(),
            "g (float[N,M,4] x, float[1,4] c) => (float[M,N,4] y) <int64 i = {0}, int64 j = {1}, int64[1] o = {0},
                int64[1] l = {4}> {
                h = Relu(x) s = Shape(h) n = Gather(s, i) m = Gather(s, j) u = Unsqueeze(n, o) v = Unsqueeze(m, o)
                t = Concat<axis = 0>(v, u, l) y = Expand(c, t) }",
            "g (float[N,M,4] x, float[1,4] c) => (float[M,N,4] y) <int64[1] l = {4}> {
                u = Shape<start = 0, end = 1>(x) v = Shape<start = 1, end = 2>(x)
                t = Concat<axis = 0>(v, u, l) y = Expand(c, t) }",
        );
    }

    #[test]
    fn merges_equal_sizes() {
        check(
            FuseSizes::default(),
            "g (float[N] x, float[1] c) => (float[N] y, float[N] z) {
                a = Relu(x) s = Shape(a) b = Exp(x) t = Shape(b) y = Expand(a, s) z = Expand(b, t) }",
            "g (float[N] x, float[1] c) => (float[N] y, float[N] z) {
                a = Relu(x) s = Shape(a) b = Exp(x) y = Expand(a, s) z = Expand(b, s) }",
        );
    }

    #[test]
    fn keeps_sizes_that_are_not_axes() {
        no_match(
            FuseSizes::default(),
            "g (float[N] x, float[1] c) => (float[M] y) { s = Shape(x) t = Add(s, s) y = Expand(c, t) }",
        );
    }
}
