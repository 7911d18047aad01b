//! Patterns of elementary operators that ONNX Runtime replaces by one kernel when it loads a model.
//!
//! A rewrite that takes a node out of such a pattern saves that node and loses the kernel: without the last
//! product of a layer normalization, nine nodes run instead of one. So rewrites that remove or merge nodes skip
//! those of a complete pattern. Patterns that no rewrite of this crate takes apart are not listed, nor are those
//! that the engine also finds after the rewrite (`Conv` with a norm, sum or activation, `MatMul` with a bias,
//! `BiasSoftmax`, `QuickGelu`).
//!
//! `tests/tests/fusions.rs` compares the graphs that the engine runs before and after `safe`.

use super::patterns::{Gelu, Norm, Parts};
use crate::framework::matching::same_shape;
use pare_graph::{Decline, NodeRef, ValueRef, expect};

/// A pattern, by the nodes that rewrites would remove.
struct Fusion {
    /// The operators of those nodes.
    ops: &'static [&'static str],
    /// The first operator set in which the engine does not find the pattern any more.
    until: i64,
    /// Declines unless the node belongs to a complete pattern.
    part: fn(NodeRef<'_>) -> Result<(), Decline>,
}

const ALWAYS: i64 = i64::MAX;

/// The passes of the engine that find the patterns are named after the kernels.
const FUSIONS: &[Fusion] = &[
    // Gelu, BiasGelu, FastGelu: the last factor.
    Fusion { ops: &["Mul", "Div"], until: ALWAYS, part: gelu },
    // LayerNormalization and SimplifiedLayerNormalization: scale and bias.
    Fusion { ops: &["Mul"], until: ALWAYS, part: norm_scale },
    Fusion { ops: &["Add"], until: ALWAYS, part: norm_bias },
    // SkipLayerNormalization: the sum before a norm.
    Fusion { ops: &["Add"], until: ALWAYS, part: norm_sum },
    // Attention: axes of the mask and the three products. From operator set 13 on, axes are inputs, for which
    // the engine does not look.
    Fusion { ops: &["Unsqueeze"], until: 13, part: attention_mask },
    Fusion { ops: &["MatMul"], until: 13, part: attention_projection },
];

/// Returns true if a composed layer normalization that ends with `at` follows a sum of two activations that has
/// no other use. The engine fuses these into `SkipLayerNormalization`, and no sum with `LayerNormalization`
/// itself.
pub(crate) fn joins_sum(at: NodeRef<'_>) -> bool {
    at.is("Add") && sum_before(at).is_ok()
}

/// Returns true if the engine fuses this node with others, which a rewrite that removes it would prevent.
pub(crate) fn is_fused(at: NodeRef<'_>) -> bool {
    let fused = |fusion: &Fusion| {
        fusion.ops.iter().any(|op| at.is(op)) && at.opset() < fusion.until && (fusion.part)(at).is_ok()
    };
    FUSIONS.iter().any(fused)
}

fn gelu(at: NodeRef<'_>) -> Result<(), Decline> {
    Gelu::ending(at)?.parts.are_alone(at, at.id)
}

/// `γ·(x − μ)/√(σ² + ε)`, or without `x − μ`.
fn norm_scale(at: NodeRef<'_>) -> Result<(), Decline> {
    scaled_norm(at).map(drop)
}

/// The normalization that `at` multiplies by a vector.
fn scaled_norm(at: NodeRef<'_>) -> Result<Norm<'_>, Decline> {
    expect(at.is("Mul"))?;
    let end = beside_vector(at)?.producer().ok_or(Decline::Mismatch)?;
    let norm = Norm::of(end)?;
    let has = |op: &str| norm.parts.iter().any(|part| part.is(op));
    // The engine finds squares that are powers, and roots that divide.
    expect(has("Pow") && has("Sqrt") && has("Div") && (end.is("Div") || !norm.centered))?;
    end.output()?.sole_use()?;
    Parts(norm.parts.iter().map(|part| part.id).collect()).are_alone(at, end.id)?;
    Ok(norm)
}

/// `γ·(x − μ)/√(σ² + ε) + β`.
fn norm_bias(at: NodeRef<'_>) -> Result<(), Decline> {
    let scaled = beside_vector(at)?;
    scaled.sole_use()?;
    expect(scaled_norm(scaled.produced_by("Mul")?)?.centered)
}

/// The sum of two activations before the norm whose bias `at` adds.
fn sum_before(at: NodeRef<'_>) -> Result<NodeRef<'_>, Decline> {
    norm_bias(at)?;
    let norm = scaled_norm(beside_vector(at)?.producer().ok_or(Decline::Mismatch)?)?;
    let sum = norm.x.produced_by("Add")?;
    let is_part = |(user, _): &(NodeRef<'_>, _)| norm.parts.iter().any(|part| part.id == user.id);
    expect(!norm.x.value().is_output() && norm.x.users().iter().all(is_part))?;
    expect(norm.x.rank()? == 3 && same_shape(sum.input(0)?, sum.input(1)?))?;
    Ok(sum)
}

/// `x + f(x)`, of which only a norm is computed.
fn norm_sum(at: NodeRef<'_>) -> Result<(), Decline> {
    let of = |op: &'static str| move |(user, _): &(NodeRef<'_>, _)| user.is(op);
    let users = at.output()?.users();
    let (difference, _) = users.into_iter().find(of("Sub")).ok_or(Decline::Mismatch)?;
    let users = difference.output()?.users();
    let (quotient, _) = users.into_iter().find(of("Div")).ok_or(Decline::Mismatch)?;
    let end = following(following(quotient, "Div")?, "Mul")?;
    expect(end.is("Add") && sum_before(end)?.id == at.id)
}

/// The other operand of a sum or product with a constant vector.
fn beside_vector(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    let is_vector = |value: ValueRef<'_>| value.constant().is_ok_and(|tensor| tensor.rank() == 1);
    if is_vector(b) {
        return Ok(a);
    }
    expect(is_vector(a))?;
    Ok(b)
}

/// The second `Unsqueeze` of `(1 − unsqueeze(unsqueeze(mask)))·c`, which is added to scores.
fn attention_mask(at: NodeRef<'_>) -> Result<(), Decline> {
    at.input(0)?.produced_by("Unsqueeze")?;
    let mut user = at.output()?.sole_user()?;
    if user.is("Cast") {
        user = user.output()?.sole_user()?;
    }
    let penalty = following(user, "Sub")?;
    expect(penalty.is("Mul"))?;
    let is_added = |(user, _): &(NodeRef<'_>, _)| scores(*user).is_ok();
    expect(penalty.output()?.users().iter().any(is_added))
}

/// A product with constant weights that becomes query or key: `Add`, `Reshape`, `Transpose`, and the scores.
fn attention_projection(at: NodeRef<'_>) -> Result<(), Decline> {
    expect(at.input(1)?.is_constant())?;
    let bias = at.output()?.sole_user()?;
    let views = following(following(bias, "Add")?, "Reshape")?;
    let product = following(following(views, "Transpose")?, "MatMul")?;
    scores(following(product, "Div")?)
}

/// Returns the only user of `at`, which is `op`.
fn following<'g>(at: NodeRef<'g>, op: &str) -> Result<NodeRef<'g>, Decline> {
    expect(at.is(op))?;
    at.output()?.sole_user()
}

/// Declines unless the node adds a mask to the scores of a softmax.
fn scores(at: NodeRef<'_>) -> Result<(), Decline> {
    expect(at.is("Add") && at.output()?.sole_user()?.is("Softmax"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::model_at;

    /// The outputs of the nodes that belong to a pattern.
    fn fused(opset: i64, graph: &str) -> Vec<String> {
        let mut model = model_at(graph, opset);
        model.infer().unwrap();
        let graph = &model.graph;
        let nodes = graph.nodes().to_vec();
        let fused = nodes.into_iter().map(|id| graph.at(id)).filter(|&at| is_fused(at));
        fused.map(|at| at.output().unwrap().name().to_owned()).collect()
    }

    const NORM: &str =
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q)
        e = Add(v, eps) s = Sqrt(e)";

    fn norm(nodes: &str) -> String {
        format!(
            "g (float[N,3,2] x) => (float[N,3,2] y) <float two = {{2}}, float eps = {{0.001}}, float one = {{1}},
            float[2] g = {{1,2}}, float[2] b = {{3,4}}, float[1,1,2] wide = {{1,2}}, float[2,2] w = {{1,2,3,4}}> {{
            {nodes} y = MatMul(f, w) }}"
        )
    }

    fn norm_of_sum(nodes: &str) -> String {
        norm(nodes).replace("[N,3,2] x)", "[N,3,2] z)")
    }

    #[test]
    fn finds_scale_and_bias_of_norms() {
        for (nodes, parts) in [
            ("n = Div(d, s) p = Mul(n, g) f = Add(p, b)", &["p", "f"][..]),
            ("n = Div(d, s) p = Mul(g, n) f = Add(b, p)", &["p", "f"]),
            ("n = Div(d, s) f = Mul(n, g)", &["f"]),
            // Forms that the engine does not find.
            ("n = Div(d, s) p = Mul(n, wide) f = Add(p, b)", &[]),
            ("n = Div(d, s) f = Add(n, b)", &[]),
            ("r = Reciprocal(s) n = Mul(d, r) p = Mul(n, g) f = Add(p, b)", &[]),
        ] {
            assert_eq!(fused(13, &norm(&format!("{NORM} {nodes}"))), parts, "{nodes}");
        }
        let products = NORM.replace("Pow(d, two)", "Mul(d, d)");
        assert!(
            fused(13, &norm(&format!("{products} n = Div(d, s) p = Mul(n, g) f = Add(p, b)"))).is_empty()
        );
        let uncentered = "q = Pow(x, two) v = ReduceMean<axes = [-1]>(q) e = Add(v, eps) s = Sqrt(e)";
        assert_eq!(fused(13, &norm(&format!("{uncentered} n = Div(x, s) f = Mul(g, n)"))), ["f"]);
        assert_eq!(
            fused(13, &norm(&format!("{uncentered} r = Div(one, s) n = Mul(x, r) f = Mul(n, g)"))),
            ["f"]
        );
        assert!(
            fused(13, &norm(&format!("{uncentered} n = Div(x, s) p = Mul(g, n) f = Mul(p, s)"))).is_empty()
        );
    }

    #[test]
    fn finds_sums_before_norms() {
        let graph = |op: &str, end: &str| {
            let norm = format!("{NORM} n = Div(d, s) p = Mul(n, g) {end} = Add(p, b)");
            norm_of_sum(&format!("k = Relu(z) x = {op}(z, k) {norm}"))
        };
        assert_eq!(fused(13, &graph("Add", "f")), ["x", "p", "f"]);
        assert_eq!(fused(13, &graph("Mul", "f")), ["p", "f"]);
        let used = graph("Add", "c").replace("y = MatMul(f, w)", "f = Add(c, x) y = MatMul(f, w)");
        assert_eq!(fused(13, &used), ["p", "c"]);
    }

    #[test]
    fn finds_last_factor_of_gelu() {
        let gelu = "i = Div(x, r) e = Erf(i) a = Add(e, one) h = Mul(x, a) y = Mul(h, half)";
        let graph = |nodes: &str| {
            format!(
                "g (float[N,2] x) => (float[N,2] y) <float r = {{1.4142135}}, float one = {{1}}, float half = {{0.5}}>
                {{ {nodes} }}"
            )
        };
        assert_eq!(fused(13, &graph(gelu)), ["y"]);
        assert!(fused(13, &graph(&gelu.replace("Erf", "Tanh"))).is_empty());
    }

    #[test]
    fn finds_mask_and_products_of_attention() {
        let graph = "g (float[N,T,2] x, int64[N,T] mask) => (float[N,1,T,T] y) <float[2,2] w = {1,2,3,4},
            float[2] b = {1,2}, int64[4] heads = {0,0,1,2}, float one = {1}, float c = {-10000}, float r = {1.4}> {
            m1 = Unsqueeze<axes = [1]>(mask) m2 = Unsqueeze<axes = [2]>(m1) m3 = Cast<to = 1>(m2)
            m4 = Sub(one, m3) m5 = Mul(m4, c)
            q1 = MatMul(x, w) q2 = Add(q1, b) q3 = Reshape(q2, heads) q = Transpose<perm = [0,2,1,3]>(q3)
            k1 = MatMul(x, w) k2 = Add(k1, b) k3 = Reshape(k2, heads) k = Transpose<perm = [0,2,3,1]>(k3)
            s1 = MatMul(q, k) s2 = Div(s1, r) s3 = Add(s2, m5) y = Softmax<axis = 3>(s3) }";
        assert_eq!(fused(12, graph), ["m2", "q1", "k1"]);
        assert!(fused(12, &graph.replace("Softmax<axis = 3>", "Relu")).is_empty());
    }
}
