use crate::{
    analysis::{
        fusions::joins_sum,
        opset::OpsetPolicy,
        patterns::{Norm, Parts, is_float},
    },
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{DataType, Decline, Model, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect};

pass! {
    /// Fuse normalization patterns into `LayerNormalization` (operator set 17) and `RMSNormalization` (23).
    ///
    /// `y = γ·(x − μ)/√(σ² + ε) + β` with `μ = mean(x)` and `σ² = mean((x − μ)²)` over the last axes, in the
    /// forms written by exporters: the square as `Pow` or `Mul`, the root as a division, a `Reciprocal`, or a
    /// power. Without `x − μ` it is `RMSNormalization`. `γ` and `β` have the shape of those axes, or are absent.
    ///
    /// Declines types other than `float`, axes that are not the last ones or of unknown size, if
    /// intermediate values have other uses, and after a sum that ONNX Runtime fuses with these nodes, but not
    /// with the fused operator.
    #[pass("fuse-layer-norm", Rounding, "layer norm fused", "layer norms fused")]
    pub struct FuseLayerNorm {
        /// `keep` the operator set of the model, or `raise` it to 17 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseLayerNorm {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 17, model, cx)?;
        cx.rewrite(model, &["Div", "Mul"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 17)?;
    let norm = Norm::of(at)?;
    let rank = norm.x.rank()?;
    expect(norm.centered || at.opset() >= 23)?;
    is_float(norm.x)?;
    // The last axes, with known sizes.
    expect(norm.axes.iter().copied().eq(rank - norm.axes.len()..rank))?;
    let shape = norm.x.shape().ok_or(Decline::Mismatch)?;
    let sizes: Option<Vec<_>> = norm.axes.iter().map(|&a| shape[a].size()).collect();
    let sizes =
        sizes.ok_or_else(|| Decline::because(format!("the sizes of `{}` are not fixed", norm.x.name())))?;
    let mut parts: Vec<_> = norm.parts.iter().map(|p| p.id).collect();
    // Scale and bias, if present.
    let (mut end, mut gamma, mut beta) = (at, None, None);
    if let Some((next, tensor)) = following(end, "Mul", &sizes) {
        (end, gamma) = (next, Some(tensor));
        parts.push(end.id);
    }
    if let Some((next, tensor)) = following(end, "Add", &sizes).filter(|_| norm.centered) {
        (end, beta) = (next, Some(tensor));
        parts.push(end.id);
    }
    Parts(parts).are_alone(at, end.id)?;
    if joins_sum(end) {
        let why = format!("`{}` is a sum, with which the engine fuses the nodes of the norm", norm.x.name());
        return Err(Decline::because(why));
    }
    let ones = || {
        let count = pare_graph::element_count(&sizes).filter(|&n| n <= MAX_ONES)?;
        Tensor::from_f64(DataType::Float, &sizes, &vec![1.0; count]).ok().map(Parameter::New)
    };
    let gamma = gamma.or_else(ones).ok_or(Decline::Mismatch)?;
    let y = end.output()?;
    let mut patch = Patch::at(end);
    let mut inputs: Vec<Ref> = vec![norm.x.into()];
    let mut builder = NodeBuilder::new(at.graph, &mut patch, y.name());
    for (name, constant) in [("scale", Some(gamma)), ("bias", beta)] {
        inputs.extend(constant.map(|constant| match constant {
            Parameter::Existing(value) => value.into(),
            Parameter::New(tensor) => builder.constant(name, tensor),
        }));
    }
    let op = if norm.centered { "LayerNormalization" } else { "RMSNormalization" };
    let axis = norm.axes.len() as i64;
    let node = Node::new(op).with("axis", -axis).with("epsilon", norm.epsilon as f32);
    let norm = patch.node(y.name(), node, &inputs);
    patch.replace(y, norm);
    Ok(patch)
}

/// The largest number of ones in a scale that is added because the model has none.
const MAX_ONES: usize = 1 << 16;

/// A scale or bias.
enum Parameter<'g> {
    /// A value of the model.
    Existing(ValueRef<'g>),
    /// A new constant.
    New(Tensor),
}

/// The only user of `at`, if it is `op` with a value of shape `sizes`, up to leading sizes of 1 for constants.
fn following<'g>(at: NodeRef<'g>, op: &str, sizes: &[usize]) -> Option<(NodeRef<'g>, Parameter<'g>)> {
    let y = at.output().ok()?;
    let next = y.sole_user().ok().filter(|next| next.is(op))?;
    let (a, b) = (next.input(0).ok()?, next.input(1).ok()?);
    let value = if a.id == y.id { b } else { a };
    let Ok(tensor) = value.constant() else {
        let fits = value.id != y.id && value.fixed_shape().is_ok_and(|shape| shape == sizes);
        return fits.then_some((next, Parameter::Existing(value)));
    };
    let ones = tensor.rank().checked_sub(sizes.len())?;
    let fits = tensor.shape()[..ones].iter().all(|&d| d == 1) && tensor.shape()[ones..] == *sizes;
    let keeps = y.shape().is_some_and(|s| s.len() >= tensor.rank());
    (fits && keeps).then_some(())?;
    let parameter =
        if ones == 0 { Parameter::Existing(value) } else { Parameter::New(tensor.reshaped(sizes).ok()?) };
    Some((next, parameter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::patterns::tests::constants;
    use crate::framework::testing::{check, declines, model, run_pass};

    const NORM: &str =
        "m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) q = Pow(d, two) v = ReduceMean<axes = [-1]>(q)
        e = Add(v, eps) s = Sqrt(e)";

    const CONSTANTS: &[(&str, f32)] = &[("two", 2.0), ("eps", 0.001), ("one", 1.0), ("half", -0.5)];

    fn graph(nodes: &str) -> String {
        let mut constants = constants(CONSTANTS, nodes);
        for (name, values) in [("g", "{1,2}"), ("b", "{3,4}")] {
            let word = |c: char| !c.is_alphanumeric();
            if nodes.split(word).any(|w| w == name) {
                constants = format!("{constants}, float[2] {name} = {values}");
            }
        }
        format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,2] x) => (float[N,3,2] y) <{constants}> {{
                {nodes} }}"
        )
    }

    const AFTER: &str = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,2] x) => (float[N,3,2] y) <
        float[2] g = {1,2}, float[2] b = {3,4}> {
        y = LayerNormalization<axis = -1, epsilon = 0.001>(x, g, b) }";

    #[test]
    fn fuses_all_forms() {
        for nodes in [
            format!("{NORM} n = Div(d, s) p = Mul(n, g) y = Add(p, b)"),
            format!("{NORM} r = Reciprocal(s) n = Mul(r, d) p = Mul(g, n) y = Add(b, p)"),
            format!("{NORM} r = Div(one, s) n = Mul(d, r) p = Mul(g, n) y = Add(b, p)"),
            NORM.replace("s = Sqrt(e)", "r = Pow(e, half) n = Mul(d, r) p = Mul(g, n) y = Add(b, p)"),
            NORM.replace("Pow(d, two)", "Mul(d, d)") + " n = Div(d, s) p = Mul(n, g) y = Add(p, b)",
            format!("{NORM} c = Sub(x, m) n = Div(c, s) p = Mul(n, g) y = Add(p, b)"),
            NORM.replace(
                "s = Sqrt(e)",
                "i = Reciprocal(e) r = Sqrt(i) n = Mul(d, r) p = Mul(g, n) y = Add(b, p)",
            ),
            NORM.replace(
                "s = Sqrt(e)",
                "i = Div(one, e) r = Sqrt(i) n = Mul(r, d) p = Mul(g, n) y = Add(b, p)",
            ),
        ] {
            check(FuseLayerNorm::default(), &graph(&nodes), AFTER);
        }
    }

    #[test]
    fn takes_computed_scale_and_bias() {
        let inputs = |text: String| {
            text.replace("(float[N,3,2] x)", "(float[N,3,2] x, float[2] g, float[2] b)")
                .replace(", float[2] g = {1,2}", "")
                .replace(", float[2] b = {3,4}", "")
        };
        let after = |norm: &str| {
            format!(
                "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,2] x, float[2] g, float[2] b) => (float[N,3,2] y) {{ {norm} }}"
            )
        };
        for nodes in [
            "n = Div(d, s) p = Mul(n, g) y = Add(p, b)",
            "r = Reciprocal(s) n = Mul(r, d) p = Mul(g, n) y = Add(b, p)",
            "r = Div(one, s) n = Mul(d, r) p = Mul(g, n) y = Add(b, p)",
        ] {
            check(
                FuseLayerNorm::default(),
                &inputs(graph(&format!("{NORM} {nodes}"))),
                &after("y = LayerNormalization<axis = -1, epsilon = 0.001>(x, g, b)"),
            );
        }
        // The scale is computed by nodes of the model.
        check(
            FuseLayerNorm::default(),
            &inputs(graph(&format!("k = Neg(b) {NORM} n = Div(d, s) y = Mul(n, k)"))),
            &after("k = Neg(b) y = LayerNormalization<axis = -1, epsilon = 0.001>(x, k)"),
        );
        // A scale for each row is not one of the norm.
        let rows = inputs(graph(&format!("{NORM} n = Div(d, s) y = Mul(n, g)")))
            .replace("float[2] g", "float[3,1] g");
        let mut changed = model(&rows);
        run_pass(FuseLayerNorm::default(), &mut changed);
        let text = pare_graph::text::print_graph(&changed.graph);
        assert!(text.contains("y = Mul(n, g)"), "{text}");
    }

    #[test]
    fn adds_missing_scale_of_ones() {
        check(
            FuseLayerNorm::default(),
            &graph(&format!("{NORM} y = Div(d, s)")),
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[N,3,2] x) => (float[N,3,2] y) <float[2] y_scale = {1,1}> {
                y = LayerNormalization<axis = -1, epsilon = 0.001>(x, y_scale) }",
        );
    }

    #[test]
    fn fuses_uncentered_norm_into_rms_normalization() {
        let nodes = "q = Mul(x, x) a = Constant<value = int64[1] {-1}>() v = ReduceMean(q, a) e = Add(v, eps) s = Sqrt(e)
            r = Reciprocal(s) n = Mul(x, r) y = Mul(g, n)";
        check(
            FuseLayerNorm::default(),
            &graph(nodes).replace("\"\" : 17", "\"\" : 23").replace("ir_version: 8", "ir_version: 10"),
            "<ir_version: 10, opset_import: [\"\" : 23]> g (float[N,3,2] x) => (float[N,3,2] y) <float[2] g = {1,2}> {
                y = RMSNormalization<axis = -1, epsilon = 0.001>(x, g) }",
        );
    }

    #[test]
    fn declines_other_axes_other_uses_and_old_opsets() {
        let other = graph(&format!("{NORM} y = Div(d, s)")).replace("axes = [-1]", "axes = [1]");
        let none: [&str; 0] = [];
        assert_eq!(declines(FuseLayerNorm::default(), &other), none);
        let used =
            graph(&format!("{NORM} y = Div(d, s)")).replace("[N,3,2] y)", "[N,3,2] y, float[N,3,1] v)");
        assert_eq!(declines(FuseLayerNorm::default(), &used), ["`v` is used outside the pattern"]);
        let skip = graph(&format!("{NORM} n = Div(d, s) p = Mul(n, g) y = Add(p, b)"));
        let skip = skip
            .replace("m = ReduceMean", "x = Add(z, z) m = ReduceMean")
            .replace("[N,3,2] x)", "[N,3,2] z)");
        assert_eq!(
            declines(FuseLayerNorm::default(), &skip),
            ["`x` is a sum, with which the engine fuses the nodes of the norm"]
        );
        let old = graph(&format!("{NORM} y = Div(d, s)")).replace("\"\" : 17", "\"\" : 16");
        assert_eq!(declines(FuseLayerNorm::default(), &old), none);
    }
}
