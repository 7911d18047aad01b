use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Parts, is_float, scalar},
    },
    framework::{Context, NodeBuilder, Pass, PassError, matching::is_pointwise},
    pass,
};
use pare_graph::{
    Decline, Model, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{SliceAxis, SliceView, SplitView, UnsqueezeView, axis_of},
};

pass! {
    /// Fuse rotary position embeddings into `RotaryEmbedding` (operator set 23).
    ///
    /// `y = x·cos + [−x₂, x₁]·sin` (Su et al. 2021, "RoFormer", section 3.4.2) for `x = [x₁, x₂]` of shape
    /// `[B,N,S,H]` and tables of shape `[B,1,S,H]`, shared by all heads. The operator reads one half of the
    /// tables, `[B,S,H/2]`, since both are equal.
    ///
    /// Declines tables whose halves are not known to be equal, tables of another batch size than `x`, types other
    /// than `float`, and if intermediate values have other uses.
    #[pass("fuse-rotary-embedding", Rounding, "rotary embedding fused", "rotary embeddings fused")]
    pub struct FuseRotaryEmbedding {
        /// `keep` the operator set of the model, or `raise` it to 23 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseRotaryEmbedding {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 23, model, cx)?;
        cx.rewrite(model, &["Add"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 23)?;
    let Rotation { x, cos, sin, parts } = Rotation::ending(at)?;
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let mut inputs = vec![x.into()];
    for table in [cos, sin] {
        let dims = (x.shape().ok_or(Decline::Mismatch)?, table.shape().ok_or(Decline::Mismatch)?);
        let ([batch, _, tokens, _], [of, heads, positions, _]) = dims else { return Err(Decline::Mismatch) };
        expect(heads.known() == Some(1) && positions == tokens)?;
        if of != batch {
            return Err(Decline::because(format!(
                "`{}` is one table for all samples of a batch",
                table.name()
            )));
        }
        // [B,1,S,H] → [B,S,H/2]
        let before =
            table.produced_by("Unsqueeze").and_then(UnsqueezeView::of).is_ok_and(|view| view.axes == [1]);
        let table = if before { table.produced_by("Unsqueeze")?.input(0)? } else { table };
        let half = halved(table, &mut patch, MAX_STEPS)?;
        inputs.push(if before {
            half
        } else {
            NodeBuilder::new(at.graph, &mut patch, table.name()).squeeze(half, &[1])
        });
    }
    let fused = patch.node(y.name(), Node::new("RotaryEmbedding"), &inputs);
    patch.replace(y, fused);
    Ok(patch)
}

/// `x·cos + [−x₂, x₁]·sin`.
struct Rotation<'g> {
    x: ValueRef<'g>,
    cos: ValueRef<'g>,
    sin: ValueRef<'g>,
    /// The nodes of the sum and of its operands.
    parts: Parts,
}

impl<'g> Rotation<'g> {
    /// Reads a sum.
    fn ending(at: NodeRef<'g>) -> Result<Self, Decline> {
        for (straight, turned) in orders(at)? {
            let (Ok(straight), Ok(turned)) = (straight.produced_by("Mul"), turned.produced_by("Mul")) else {
                continue;
            };
            for (value, sin) in orders(turned)? {
                let Ok((x, mut nodes)) = quarter_turn(value) else { continue };
                let Some((_, cos)) = orders(straight)?.into_iter().find(|(other, _)| other.id == x.id) else {
                    continue;
                };
                nodes.extend([straight.id, turned.id, at.id]);
                return Ok(Self { x, cos, sin, parts: Parts(nodes) });
            }
        }
        Err(Decline::Mismatch)
    }
}

/// Both orders of the operands of a commutative operator.
fn orders(at: NodeRef<'_>) -> Result<[(ValueRef<'_>, ValueRef<'_>); 2], Decline> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    Ok([(a, b), (b, a)])
}

/// Returns `x` of `[−x₂, x₁]`, and the nodes that compute this.
fn quarter_turn(value: ValueRef<'_>) -> Result<(ValueRef<'_>, Vec<NodeId>), Decline> {
    let concat = value.produced_by("Concat")?;
    expect(axis_of(concat)? + 1 == value.rank()? && concat.inputs().len() == 2)?;
    let negated = concat.input(0)?.produced_by("Neg")?;
    let (second, first) = (half_of(negated.input(0)?)?, half_of(concat.input(1)?)?);
    expect(first.0.id == second.0.id && (first.1, second.1) == (0, 1))?;
    Ok((first.0, vec![concat.id, negated.id, first.2, second.2]))
}

/// Returns `x`, 0 or 1, and the node for the first or second half of `x` along its last axis.
fn half_of(value: ValueRef<'_>) -> Result<(ValueRef<'_>, usize, NodeId), Decline> {
    let (node, output) = value.graph.producer(value.id).ok_or(Decline::Mismatch)?;
    let at = value.graph.at(node);
    let x = at.input(0)?;
    let last = x.rank()?.checked_sub(1).ok_or(Decline::Mismatch)?;
    let size = x.shape().and_then(|shape| shape[last].size()).ok_or(Decline::Mismatch)?;
    if let Ok(view) = SplitView::of(at) {
        expect(view.axis == last && view.sizes == [size / 2; 2])?;
        return Ok((x, output, node));
    }
    let [cut @ SliceAxis { axis, step: 1, .. }] = SliceView::of(at)?.axes[..] else {
        return Err(Decline::Mismatch);
    };
    let (start, count) = cut.on(size);
    expect(axis == last && 2 * count == size && (start == 0 || start == count))?;
    Ok((x, start / count.max(1), node))
}

/// The largest number of nodes between `[f, f]`, or a constant, and a table.
const MAX_STEPS: usize = 8;

/// Computes the first half of a table along its last axis. Declines unless both halves are equal: those of
/// `[f, f]`, of a constant, or of a function of these that treats each element alike.
fn halved(table: ValueRef<'_>, patch: &mut Patch, steps: usize) -> Result<Ref, Decline> {
    let unequal = || Decline::because(format!("the halves of `{}` are not known to be equal", table.name()));
    let rank = table.rank()?;
    if let Ok(tensor) = table.constant() {
        return Ok(patch.constant(table.name(), first_half(tensor).ok_or_else(unequal)?));
    }
    let at = table.producer().filter(|_| steps > 0).ok_or_else(unequal)?;
    let mut rest = |value| halved(value, patch, steps - 1);
    let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
    let halves = match (at.op(), &inputs[..]) {
        ("Concat", [a, b]) if axis_of(at)? + 1 == rank && a.id == b.id => return Ok((*a).into()),
        // Rows of a table by position.
        ("Gather", [rows, positions]) if axis_of(at)? == 0 && rows.rank()? > 1 => {
            vec![rest(*rows)?, (*positions).into()]
        }
        (_, [x]) if is_pointwise(at) => vec![rest(*x)?],
        (_, [x, c]) if is_pointwise(at) && scalar(*c).is_ok() => vec![rest(*x)?, (*c).into()],
        (_, [c, x]) if is_pointwise(at) && scalar(*c).is_ok() => vec![(*c).into(), rest(*x)?],
        ("Unsqueeze", [x, axes]) if UnsqueezeView::of(at)?.axes.iter().all(|&axis| axis + 1 < rank) => {
            vec![rest(*x)?, (*axes).into()]
        }
        _ => return Err(unequal()),
    };
    let halves: Vec<_> = halves.into_iter().map(Some).collect();
    Ok(patch.copy(at, &halves))
}

/// The first half along the last axis, if the second is equal.
fn first_half(tensor: &Tensor) -> Option<Tensor> {
    let (&size, outer) = tensor.shape().split_last().filter(|&(&size, _)| size > 0 && size % 2 == 0)?;
    let row = size * tensor.dtype().bits() as usize / 8;
    let mut bytes = Vec::with_capacity(tensor.bytes().len() / 2);
    for row in tensor.bytes().chunks(row) {
        let (first, second) = row.split_at(row.len() / 2);
        (first == second).then(|| bytes.extend_from_slice(first))?;
    }
    Tensor::new(tensor.dtype(), &[outer, &[size / 2]].concat(), bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    const TURN: &str = "x1 = Slice(x, zero, two, last) x2 = Slice(x, two, four, last) n = Neg(x2) t = Concat<axis = 3>(n, x1)";

    fn graph(nodes: &str) -> String {
        let constants = [("zero", 0), ("two", 2), ("four", 4), ("last", -1), ("one", 1)];
        let words: Vec<_> = nodes.split(|c: char| !c.is_alphanumeric()).collect();
        let used = constants.iter().filter(|(name, _)| words.contains(name));
        let constants: String =
            used.map(|(name, value)| format!("int64[1] {name} = {{{value}}}, ")).collect();
        format!(
            "<ir_version: 10, opset_import: [\"\" : 23]> g (float[B,3,S,4] x, float[B,S,2] f) => (float[B,3,S,4] y) <
                {constants} float half = {{0.5}}> {{ {nodes} }}"
        )
    }

    /// The tables as exporters compute them from the angles `f`.
    const TABLES: &str =
        "e = Concat<axis = 2>(f, f) c = Cos(e) c2 = Mul(c, half) s = Sin(e) s2 = Mul(half, s)
        cos = Unsqueeze(c2, one) sin = Unsqueeze(s2, one)";

    #[test]
    fn fuses_slices_and_splits() {
        let after = "<ir_version: 10, opset_import: [\"\" : 23]> g (float[B,3,S,4] x, float[B,S,2] f) => (float[B,3,S,4] y) <
            float half = {0.5}> {
            c_1 = Cos(f) c2_1 = Mul(c_1, half) s_1 = Sin(f) s2_1 = Mul(half, s_1)
            y = RotaryEmbedding(x, c2_1, s2_1) }";
        let split = "x1, x2 = Split<axis = 3, num_outputs = 2>(x) n = Neg(x2) t = Concat<axis = -1>(n, x1)";
        for (turn, sum) in [
            (TURN, "a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)"),
            (TURN, "a = Mul(cos, x) b = Mul(sin, t) y = Add(b, a)"),
            (split, "a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)"),
        ] {
            check(FuseRotaryEmbedding::default(), &graph(&format!("{TABLES} {turn} {sum}")), after);
        }
    }

    #[test]
    fn halves_constant_tables() {
        let before = graph(&format!("{TURN} a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)"))
            .replace("[B,3,S,4]", "[1,3,1,4]")
            .replace("float half = {0.5}", "float[1,1,1,4] cos = {1,2,1,2}, float[1,1,1,4] sin = {3,4,3,4}");
        let after = "<ir_version: 10, opset_import: [\"\" : 23]> g (float[1,3,1,4] x, float[B,S,2] f) => (float[1,3,1,4] y) <
            float[1,1,1,2] cos_1 = {1,2}, int64[1] cos_axes = {1}, float[1,1,1,2] sin_1 = {3,4}, int64[1] sin_axes = {1}> {
            cos_2 = Squeeze(cos_1, cos_axes) sin_2 = Squeeze(sin_1, sin_axes) y = RotaryEmbedding(x, cos_2, sin_2) }";
        check(FuseRotaryEmbedding::default(), &before, after);
        assert_eq!(
            declines(FuseRotaryEmbedding::default(), &before.replace("{3,4,3,4}", "{3,4,3,5}")),
            ["the halves of `sin` are not known to be equal"]
        );
    }

    #[test]
    fn declines_other_halves_batches_and_turns() {
        let sum = "a = Mul(x, cos) b = Mul(t, sin) y = Add(a, b)";
        let whole = graph(&format!("{TABLES} {TURN} {sum}"));
        let declined =
            |from: &str, to: &str| declines(FuseRotaryEmbedding::default(), &whole.replace(from, to));
        assert_eq!(
            declined("e = Concat<axis = 2>(f, f)", "h = Neg(f) e = Concat<axis = 2>(f, h)"),
            ["the halves of `e` are not known to be equal"]
        );
        assert_eq!(declined("[B,S,2] f", "[1,S,2] f"), ["`cos` is one table for all samples of a batch"]);
        assert_eq!(declined("Concat<axis = 3>(n, x1)", "Concat<axis = 3>(x1, n)"), [""; 0]);
        assert_eq!(declined("n = Neg(x2)", "n = Neg(x1)"), [""; 0]);
        assert_eq!(declined("\"\" : 23", "\"\" : 22"), [""; 0]);
    }
}
