use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Parts, beside_scalar, is_float, scalar},
    },
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    DataType, Decline, Model, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect, ops::ReduceView,
};

pass! {
    /// Fuse normalization patterns into `LayerNormalization` (operator set 17) and `RMSNormalization` (23).
    ///
    /// `y = γ·(x − μ)/√(σ² + ε) + β` with `μ = mean(x)` and `σ² = mean((x − μ)²)` over the last axes, in the
    /// forms written by exporters: the square as `Pow` or `Mul`, the root as a division, a `Reciprocal`, or a
    /// power. Without `x − μ` it is `RMSNormalization`. `γ` and `β` are constants of the shape of those axes,
    /// or absent.
    ///
    /// Declines types other than `float`, axes that are not the last ones or of unknown size, and if
    /// intermediate values have other uses.
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

/// `x / √(mean(x²) + ε)`, or the same of `x − mean(x)` if `centered`.
struct Norm<'g> {
    x: ValueRef<'g>,
    centered: bool,
    axes: Vec<usize>,
    epsilon: f64,
    parts: Vec<NodeRef<'g>>,
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
    /// A constant of the model.
    Existing(ValueRef<'g>),
    /// A new constant.
    New(Tensor),
}

/// The only user of `at`, if it is `op` with a constant of shape `sizes`.
fn following<'g>(at: NodeRef<'g>, op: &str, sizes: &[usize]) -> Option<(NodeRef<'g>, Parameter<'g>)> {
    let y = at.output().ok()?;
    let next = y.sole_user().ok().filter(|next| next.is(op))?;
    let (a, b) = (next.input(0).ok()?, next.input(1).ok()?);
    let value = if a.id == y.id { b } else { a };
    let tensor = value.constant().ok()?;
    let ones = tensor.rank().checked_sub(sizes.len())?;
    let fits = tensor.shape()[..ones].iter().all(|&d| d == 1) && tensor.shape()[ones..] == *sizes;
    let keeps = y.shape().is_some_and(|s| s.len() >= tensor.rank());
    (fits && keeps).then_some(())?;
    let parameter =
        if ones == 0 { Parameter::Existing(value) } else { Parameter::New(tensor.reshaped(sizes).ok()?) };
    Some((next, parameter))
}

impl<'g> Norm<'g> {
    fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let (a, b) = (at.input(0)?, at.input(1)?);
        if at.is("Div") {
            let (variance, mut parts) = root(b.producer().ok_or(Decline::Mismatch)?, 0.5)?;
            parts.push(at);
            return Self::from(a, variance, parts);
        }
        expect(at.is("Mul"))?;
        for (d, r) in [(a, b), (b, a)] {
            let Some(producer) = r.producer() else { continue };
            if let Ok((variance, mut parts)) = inverse_root(producer) {
                parts.push(at);
                return Self::from(d, variance, parts);
            }
        }
        Err(Decline::Mismatch)
    }

    /// The norm with this numerator and `variance` = `mean(d²) + ε`.
    fn from(
        numerator: ValueRef<'g>,
        variance: NodeRef<'g>,
        mut parts: Vec<NodeRef<'g>>,
    ) -> Result<Self, Decline> {
        let (mean, epsilon) = beside_scalar(variance)?;
        expect(variance.is("Add"))?;
        let mean = mean.produced_by("ReduceMean")?;
        let view = ReduceView::of(mean)?;
        expect(view.keepdims)?;
        let square = mean.input(0)?.producer().ok_or(Decline::Mismatch)?;
        let d = squared(square)?;
        parts.extend([variance, mean, square]);
        if d.id == numerator.id {
            if let Ok((x, of)) = centered(d, &view.axes) {
                parts.extend([d.producer().ok_or(Decline::Mismatch)?, of]);
                return Ok(Self { x, centered: true, axes: view.axes, epsilon, parts });
            }
            return Ok(Self { x: d, centered: false, axes: view.axes, epsilon, parts });
        }
        // The difference may be computed twice.
        let (x, of) = centered(d, &view.axes)?;
        let (again, of_again) = centered(numerator, &view.axes)?;
        expect(x.id == again.id)?;
        let differences = [d, numerator].map(|v| v.producer().ok_or(Decline::Mismatch));
        for difference in differences {
            parts.push(difference?);
        }
        parts.extend([of, of_again]);
        Ok(Self { x, centered: true, axes: view.axes, epsilon, parts })
    }
}

/// The producer of `v` in `v^power`.
fn root(at: NodeRef<'_>, power: f64) -> Result<(NodeRef<'_>, Vec<NodeRef<'_>>), Decline> {
    let fits = at.is("Sqrt") && power == 0.5 || at.is("Pow") && scalar(at.input(1)?)? == power;
    expect(fits)?;
    Ok((at.input(0)?.producer().ok_or(Decline::Mismatch)?, vec![at]))
}

/// The producer of `v` in `1/√v`.
fn inverse_root(at: NodeRef<'_>) -> Result<(NodeRef<'_>, Vec<NodeRef<'_>>), Decline> {
    let below = match at.op() {
        "Reciprocal" if at.is("Reciprocal") => at.input(0)?,
        "Div" if at.is("Div") && scalar(at.input(0)?)? == 1.0 => at.input(1)?,
        _ => return root(at, -0.5),
    };
    let (variance, mut parts) = root(below.producer().ok_or(Decline::Mismatch)?, 0.5)?;
    parts.push(at);
    Ok((variance, parts))
}

/// The base `d` of `d²` or `d·d`.
fn squared(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    let d = at.input(0)?;
    let fits = at.is("Pow") && scalar(at.input(1)?)? == 2.0 || at.is("Mul") && at.input(1)?.id == d.id;
    expect(fits)?;
    Ok(d)
}

/// The value `x` of `x − mean(x)`, and the node of the mean.
fn centered<'g>(d: ValueRef<'g>, axes: &[usize]) -> Result<(ValueRef<'g>, NodeRef<'g>), Decline> {
    let difference = d.produced_by("Sub")?;
    let (x, mean) = (difference.input(0)?, difference.input(1)?.produced_by("ReduceMean")?);
    let view = ReduceView::of(mean)?;
    expect(view.keepdims && view.axes == axes && mean.input(0)?.id == x.id)?;
    Ok((x, mean))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::patterns::tests::constants;
    use crate::framework::testing::{check, declines};

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
        ] {
            check(FuseLayerNorm::default(), &graph(&nodes), AFTER);
        }
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
        let old = graph(&format!("{NORM} y = Div(d, s)")).replace("\"\" : 17", "\"\" : 16");
        assert_eq!(declines(FuseLayerNorm::default(), &old), none);
    }
}
