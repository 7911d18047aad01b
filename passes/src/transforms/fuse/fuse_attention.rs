use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Parts, is_float, scalar},
    },
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{SoftmaxView, TransposeView, is_identity},
};

pass! {
    /// Fuse scaled dot-product attention into `Attention` (operator set 23).
    ///
    /// `y = softmax(s·q·kᵀ + mask)·v` (Vaswani et al. 2017, section 3.2.1) with heads on axis 1. Keys and values that
    /// are repeated for each query of a group (Ainslie et al. 2023) are read once. Where the channels of all heads are
    /// on one axis before and after, they remain there.
    ///
    /// Not part of `safe`: quantization, distillation and token merging change the products one by one, and come
    /// before this pass.
    ///
    /// A mask that is one for all queries is expanded, since ONNX Runtime has no kernel that broadcasts it. Declines such
    /// masks if the number of queries is not fixed, masks that are broadcast along keys, types other than `float`,
    /// and if intermediate values have other uses.
    #[pass("fuse-attention", Rounding, "attention fused", "attentions fused")]
    pub struct FuseAttention {
        /// `keep` the operator set of the model, or `raise` it to 23 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseAttention {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 23, model, cx)?;
        cx.rewrite(model, &["MatMul"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 23)?;
    let core = Core::ending(at)?;
    for operand in [core.q, core.k, core.v].into_iter().chain(core.mask.map(|mask| mask.value)) {
        is_float(operand)?;
    }
    Parts(core.nodes.clone()).are_alone(at, at.id)?;
    let node = Node::new("Attention").with("scale", core.scale as f32);
    if let Ok((operands, heads, end)) = core.packed(at) {
        let node = node.with("q_num_heads", heads[0]).with("kv_num_heads", heads[1]);
        return core.replace(end, Patch::at(end), node, operands.map(Ref::from));
    }
    let mut patch = Patch::at(at);
    let mut operand = |x: ValueRef<'_>, order| {
        let mut builder = NodeBuilder::new(at.graph, &mut patch, x.name());
        match x.rank() {
            Ok(5) => builder.squeeze(x.into(), &[2]),
            _ if is_identity(order) => x.into(),
            _ => builder.transpose(x.into(), order),
        }
    };
    let as_is = [0, 1, 2, 3];
    let operands = [operand(core.q, &as_is), operand(core.k, &core.k_order), operand(core.v, &as_is)];
    core.replace(at, patch, node, operands)
}

/// `softmax(s·q·kᵀ + mask)·v`.
struct Core<'g> {
    /// Queries `[B,N,S,H]`.
    q: ValueRef<'g>,
    /// Keys, before the transposition for the product.
    k: ValueRef<'g>,
    /// The order of axes in which the keys are `[B,N,S,H]`.
    k_order: [usize; 4],
    /// Values `[B,N,S,H]`.
    v: ValueRef<'g>,
    mask: Option<Mask<'g>>,
    scale: f64,
    /// Nodes that the operator replaces.
    nodes: Vec<NodeId>,
}

/// The order of axes that exchanges heads and tokens.
const HEADS_AND_TOKENS: [usize; 4] = [0, 2, 1, 3];

impl<'g> Core<'g> {
    /// Reads the product of weights and values.
    fn ending(at: NodeRef<'g>) -> Result<Self, Decline> {
        let softmax = at.input(0)?.produced_by("Softmax")?;
        expect(at.input(0)?.rank()? == 4 && SoftmaxView::of(softmax)?.axes == (3..4))?;
        let (mut scale, mut nodes) = (1.0, vec![at.id, softmax.id]);
        let mut without_factor = |value: ValueRef<'g>| {
            let Ok((before, factor, node)) = scaled(value) else { return value };
            scale *= factor;
            nodes.push(node);
            before
        };
        let (sum, mask) = masked(softmax.input(0)?)?;
        let scores = sum.map_or(softmax.input(0), |(_, scores)| Ok(scores))?;
        let product = without_factor(scores).produced_by("MatMul")?;
        let (q, v) = (without_factor(product.input(0)?), at.input(1)?);
        let transpose = without_factor(product.input(1)?).produced_by("Transpose")?;
        let TransposeView { perm } = TransposeView::of(transpose)?;
        let &[a, b, d, c] = &perm[..] else { return Err(Decline::Mismatch) };
        let (k, k_order) = (transpose.input(0)?, [a, b, c, d]);
        nodes.push(product.id);
        nodes.extend(sum.map(|(at, _)| at.id));
        // The operator multiplies both sides by √s.
        expect(scale > 0.0 && q.rank()? == 4 && v.rank()? == 4)?;
        let mut core = Self { q, k, k_order, v, mask, scale, nodes };
        if is_identity(&k_order)
            && let (Ok(k), Ok(v)) = (before_repeating(k), before_repeating(v))
            && k.shape().map(|shape| &shape[1]) == v.shape().map(|shape| &shape[1])
        {
            (core.k, core.v) = (k, v);
        }
        Ok(core)
    }

    /// Returns the operands `[B,S,N·H]`, the numbers of heads of queries and keys, and the last node, if the result
    /// is rearranged to this shape, too.
    fn packed(&self, at: NodeRef<'g>) -> Result<([ValueRef<'g>; 3], [i64; 2], NodeRef<'g>), Decline> {
        let k = if self.k_order == HEADS_AND_TOKENS { self.k } else { before_transposing(self.k)? };
        let (q, heads) = before_splitting(before_transposing(self.q)?)?;
        let (k, of_k) = before_splitting(k)?;
        let (v, of_v) = before_splitting(before_transposing(self.v)?)?;
        let exchange = at.output()?.sole_user()?;
        expect(TransposeView::of(exchange)?.perm == HEADS_AND_TOKENS)?;
        let joined = exchange.output()?.sole_user()?;
        expect(joined.is("Reshape") && of_k == of_v)?;
        joins_heads(joined.output()?, joined.input(0)?)?;
        Ok(([q, k, v], [heads, of_k], joined))
    }

    fn replace(
        &self,
        end: NodeRef<'_>,
        mut patch: Patch,
        node: Node,
        operands: [Ref; 3],
    ) -> Result<Patch, Decline> {
        let y = end.output()?;
        let mask = self.mask.map(|Mask { value, queries }| match queries {
            None => value.into(),
            Some(queries) => {
                let mut builder = NodeBuilder::new(end.graph, &mut patch, value.name());
                let rows = builder.constant("rows", Tensor::vector(&[queries, 1]));
                builder.node(Node::new("Expand"), &[value.into(), rows])
            }
        });
        let inputs: Vec<_> = operands.into_iter().chain(mask).collect();
        let attention = patch.node(y.name(), node, &inputs);
        patch.replace(y, attention);
        Ok(patch)
    }
}

/// A value that is added to the scores.
#[derive(Clone, Copy)]
struct Mask<'g> {
    value: ValueRef<'g>,
    /// The number of queries, if there is one row for all of them.
    queries: Option<i64>,
}

/// The sum of scores and mask, and the scores.
type Sum<'g> = Option<(NodeRef<'g>, ValueRef<'g>)>;

/// Reads `scores + mask`.
fn masked(value: ValueRef<'_>) -> Result<(Sum<'_>, Option<Mask<'_>>), Decline> {
    let Ok(at) = value.produced_by("Add") else { return Ok((None, None)) };
    let (a, b) = (at.input(0)?, at.input(1)?);
    let is_product = |value: ValueRef<'_>| {
        scaled(value).map_or(value, |(before, ..)| before).produced_by("MatMul").is_ok()
    };
    let (scores, mask) = if is_product(a) { (a, b) } else { (b, a) };
    let (Some([_, _, rows, columns]), Some([leading @ .., of_rows, of_columns])) =
        (scores.shape(), mask.shape())
    else {
        return Err(Decline::Mismatch);
    };
    expect(leading.len() <= 2)?;
    let queries = if of_rows == rows { None } else { rows.known().filter(|_| of_rows.known() == Some(1)) };
    if of_columns != columns || of_rows != rows && queries.is_none() {
        return Err(Decline::because(format!("`{}` is broadcast along queries or keys", mask.name())));
    }
    Ok((Some((at, scores)), Some(Mask { value: mask, queries })))
}

/// Reads the product or quotient of a value and a scalar, which it returns as factor, with the node.
fn scaled(value: ValueRef<'_>) -> Result<(ValueRef<'_>, f64, NodeId), Decline> {
    let at = value.producer().ok_or(Decline::Mismatch)?;
    expect(at.is("Mul") || at.is("Div"))?;
    let (a, b) = (at.input(0)?, at.input(1)?);
    match (at.op(), scalar(a), scalar(b)) {
        ("Div", _, Ok(factor)) => Ok((a, 1.0 / factor, at.id)),
        ("Mul", _, Ok(factor)) => Ok((a, factor, at.id)),
        ("Mul", Ok(factor), _) => Ok((b, factor, at.id)),
        _ => Err(Decline::Mismatch),
    }
}

/// Returns `x` `[B,n,S,H]`, or `[B,n,1,S,H]`, of a value `[B,n·r,S,H]` that repeats each head `r` times: expanded along
/// a new axis after that of heads, and joined with it.
fn before_repeating(value: ValueRef<'_>) -> Result<ValueRef<'_>, Decline> {
    let expand = value.produced_by("Reshape")?.input(0)?.produced_by("Expand")?;
    let inserted = expand.input(0)?;
    let shapes = [inserted, expand.output()?, value].map(ValueRef::shape);
    let [Some([b, n, one, s, h]), Some(expanded), Some(repeated)] = shapes else {
        return Err(Decline::Mismatch);
    };
    let r = expanded.get(2).and_then(Dim::size).ok_or(Decline::Mismatch)?;
    let all = Dim::from(r * n.size().ok_or(Decline::Mismatch)?);
    expect(one.known() == Some(1) && expanded.iter().eq([b, n, &Dim::from(r), s, h]))?;
    expect(repeated.iter().eq([b, &all, s, h]))?;
    let insert = inserted.producer().filter(|at| at.is("Unsqueeze") || at.is("Reshape"));
    let before = insert.and_then(|at| at.input(0).ok());
    let fits = |x: &ValueRef<'_>| x.shape().is_some_and(|shape| shape.iter().eq([b, n, s, h]));
    Ok(before.filter(fits).unwrap_or(inserted))
}

/// Returns the value whose axes of heads and tokens are exchanged.
fn before_transposing(value: ValueRef<'_>) -> Result<ValueRef<'_>, Decline> {
    let at = value.produced_by("Transpose")?;
    expect(TransposeView::of(at)?.perm == HEADS_AND_TOKENS)?;
    at.input(0)
}

/// Returns the value `[B,S,N·H]` whose heads are split off, and their number.
fn before_splitting(value: ValueRef<'_>) -> Result<(ValueRef<'_>, i64), Decline> {
    let x = value.produced_by("Reshape")?.input(0)?;
    Ok((x, joins_heads(x, value)?))
}

/// Returns `N` for values of shapes `[B,S,N·H]` and `[B,S,N,H]`.
fn joins_heads(joined: ValueRef<'_>, split: ValueRef<'_>) -> Result<i64, Decline> {
    let (Some([b, s, w]), Some([of_b, of_s, n, h])) = (joined.shape(), split.shape()) else {
        return Err(Decline::Mismatch);
    };
    let (n, h) = (n.size().ok_or(Decline::Mismatch)?, h.size().ok_or(Decline::Mismatch)?);
    expect(b == of_b && s == of_s && w.size() == Some(n * h))?;
    Ok(n as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    fn graph(inputs: &str, output: &str, nodes: &str) -> String {
        let constants = [
            ("c", "float c = {0.5}"),
            ("two", "int64[1] two = {2}"),
            ("split", "int64[4] split = {0,0,4,2}"),
            ("join", "int64[3] join = {0,0,8}"),
            ("five", "int64[5] five = {2,2,2,3,2}"),
            ("four", "int64[4] four = {2,4,3,2}"),
        ];
        let words: Vec<_> = nodes.split(|c: char| !c.is_alphanumeric()).collect();
        let used: Vec<_> =
            constants.iter().filter(|(name, _)| words.contains(name)).map(|(_, text)| *text).collect();
        let used = if used.is_empty() { String::new() } else { format!("<{}>", used.join(", ")) };
        format!(
            "<ir_version: 10, opset_import: [\"\" : 23]> g ({inputs}) => (float{output} y) {used} {{ {nodes} }}"
        )
    }

    const HEADS: &str = "float[B,4,S,2] q, float[B,4,T,2] k, float[B,4,T,2] v, float[B,1,S,T] m";

    const CORE: &str = "t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) s = Mul(a, c) e = Add(s, m)
        p = Softmax<axis = -1>(e) y = MatMul(p, v)";

    #[test]
    fn fuses_heads() {
        let fused = "y = Attention<scale = 0.5>(q, k, v, m)";
        let after = graph(HEADS, "[B,4,S,2]", fused);
        check(FuseAttention::default(), &graph(HEADS, "[B,4,S,2]", CORE), &after);
        let other = CORE.replace("Mul(a, c)", "Mul(c, a)").replace("Add(s, m)", "Add(m, s)");
        check(FuseAttention::default(), &graph(HEADS, "[B,4,S,2]", &other), &after);
        // The factors of both sides.
        let sides = "t = Transpose<perm = [0,1,3,2]>(k) f = Mul(t, c) g = Mul(q, c) a = MatMul(g, f)
            p = Softmax<axis = 3>(a) y = MatMul(p, v)";
        let after = graph(HEADS, "[B,4,S,2]", "y = Attention<scale = 0.25>(q, k, v)");
        check(FuseAttention::default(), &graph(HEADS, "[B,4,S,2]", sides), &after);
    }

    #[test]
    fn keeps_heads_on_one_axis() {
        let inputs = "float[B,S,8] q, float[B,T,8] k, float[B,T,8] v";
        let before = "qr = Reshape(q, split) kr = Reshape(k, split) vr = Reshape(v, split)
            qt = Transpose<perm = [0,2,1,3]>(qr) t = Transpose<perm = [0,2,3,1]>(kr)
            vt = Transpose<perm = [0,2,1,3]>(vr) a = MatMul(qt, t) s = Div(a, c)
            p = Softmax<axis = -1>(s) o = MatMul(p, vt) h = Transpose<perm = [0,2,1,3]>(o) y = Reshape(h, join)";
        let after = "y = Attention<scale = 2.0, q_num_heads = 4, kv_num_heads = 4>(q, k, v)";
        check(FuseAttention::default(), &graph(inputs, "[B,S,8]", before), &graph(inputs, "[B,S,8]", after));
    }

    #[test]
    fn expands_masks_of_all_queries() {
        let fixed = |mask: &str| HEADS.replace("[B,4,S,2] q", "[B,4,3,2] q").replace("[B,1,S,T] m", mask);
        check(
            FuseAttention::default(),
            &graph(&fixed("[B,1,1,T] m"), "[B,4,3,2]", CORE),
            &graph(
                &fixed("[B,1,1,T] m"),
                "[B,4,3,2]",
                "m_1 = Expand(m, m_rows) y = Attention<scale = 0.5>(q, k, v, m_1)",
            )
            .replace("=> (float[B,4,3,2] y)", "=> (float[B,4,3,2] y) <int64[2] m_rows = {3,1}>"),
        );
        let column = graph(&fixed("[B,1,3,1] m"), "[B,4,3,2]", CORE);
        assert_eq!(declines(FuseAttention::default(), &column), ["`m` is broadcast along queries or keys"]);
    }

    #[test]
    fn reads_repeated_keys_and_values_once() {
        let inputs = "float[2,4,3,2] q, float[2,2,3,2] k, float[2,2,3,2] v";
        let before = "ku = Unsqueeze(k, two) ke = Expand(ku, five) kr = Reshape(ke, four)
            vu = Unsqueeze(v, two) ve = Expand(vu, five) vr = Reshape(ve, four)
            t = Transpose<perm = [0,1,3,2]>(kr) a = MatMul(q, t) s = Mul(a, c)
            p = Softmax<axis = -1>(s) y = MatMul(p, vr)";
        check(
            FuseAttention::default(),
            &graph(inputs, "[2,4,3,2]", before),
            &graph(inputs, "[2,4,3,2]", "y = Attention<scale = 0.5>(q, k, v)"),
        );
    }

    #[test]
    fn declines_other_masks_uses_and_scales() {
        let declined = |inputs: &str, nodes: &str| {
            declines(FuseAttention::default(), &graph(inputs, "[B,4,S,2]", nodes))
        };
        let broadcast = HEADS.replace("float[B,1,S,T] m", "float[B,1,1,T] m");
        assert_eq!(declined(&broadcast, CORE), ["`m` is broadcast along queries or keys"]);
        let shown = graph(HEADS, "[B,4,S,2]", CORE).replace("[B,4,S,2] y)", "[B,4,S,2] y, float[B,4,S,T] p)");
        assert_eq!(declines(FuseAttention::default(), &shown), ["`p` is used outside the pattern"]);
        let negative = graph(HEADS, "[B,4,S,2]", CORE).replace("c = {0.5}", "c = {-0.5}");
        assert_eq!(declines(FuseAttention::default(), &negative), [""; 0]);
        assert_eq!(declined(HEADS, &CORE.replace("axis = -1", "axis = 2")), [""; 0]);
        let old = graph(HEADS, "[B,4,S,2]", CORE).replace("\"\" : 23", "\"\" : 22");
        assert_eq!(declines(FuseAttention::default(), &old), [""; 0]);
    }
}
