use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Gelu, is_float},
    },
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, Node, NodeRef, Patch, expect};

pass! {
    /// Fuse GELU patterns into `Gelu` (operator set 20).
    ///
    /// `y = ½·x·(1 + erf(x/√2))`, with factors in any order, and the approximation
    /// `y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    ///
    /// Declines types other than `float`, and if intermediate values have other uses.
    #[pass("fuse-gelu", Rounding, "GELU fused", "GELUs fused")]
    pub struct FuseGelu {
        /// `keep` the operator set of the model, or `raise` it to 20 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseGelu {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 20, model, cx)?;
        cx.rewrite(model, &["Mul", "Div"], fused)
    }
}

fn fused(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 20)?;
    let Gelu { x, approximate, parts } = Gelu::ending(at)?;
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let node = Node::new("Gelu").with("approximate", if approximate { "tanh" } else { "none" });
    let gelu = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, gelu);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::patterns::tests::constants;
    use crate::framework::testing::{check, declines};

    const CONSTANTS: &[(&str, f32)] = &[
        ("r", std::f32::consts::SQRT_2),
        ("i", std::f32::consts::FRAC_1_SQRT_2),
        ("one", 1.0),
        ("half", 0.5),
        ("two", 2.0),
        ("three", 3.0),
        ("c", 0.044_715),
        ("p", 0.797_884_6),
    ];

    fn graph(nodes: &str) -> String {
        let constants = constants(CONSTANTS, nodes);
        format!(
            "<ir_version: 9, opset_import: [\"\" : 20]> g (float[N,3] x) => (float[N,3] y) <{constants}> {{ {nodes} }}"
        )
    }

    fn after(approximate: &str) -> String {
        format!(
            "<ir_version: 9, opset_import: [\"\" : 20]> g (float[N,3] x) => (float[N,3] y) {{
            y = Gelu<approximate = \"{approximate}\">(x) }}"
        )
    }

    #[test]
    fn fuses_all_forms() {
        for nodes in [
            "a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)",
            "a = Mul(i, x) e = Erf(a) s = Add(one, e) h = Mul(s, half) y = Mul(h, x)",
            "a = Div(x, r) e = Erf(a) s = Add(e, one) h = Div(x, two) y = Mul(h, s)",
            "a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(half, m)",
            "a = Div(x, r) e = Erf(a) s = Add(e, one) h = Mul(half, s) y = Mul(x, h)",
            "a = Div(x, r) e = Erf(a) s = Add(one, e) m = Mul(s, x) y = Div(m, two)",
        ] {
            check(FuseGelu::default(), &graph(nodes), &after("none"));
        }
        for nodes in [
            "q = Pow(x, three) k = Mul(q, c) a = Add(x, k) b = Mul(a, p) t = Tanh(b) s = Add(t, one) m = Mul(x, s)
                y = Mul(m, half)",
            "q = Mul(x, x) u = Mul(q, x) k = Mul(c, u) a = Add(k, x) b = Mul(p, a) t = Tanh(b) s = Add(one, t)
                h = Mul(half, x) y = Mul(h, s)",
        ] {
            check(FuseGelu::default(), &graph(nodes), &after("tanh"));
        }
    }

    #[test]
    fn declines_other_constants_other_uses_and_old_opsets() {
        let nodes = "a = Div(x, two) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)";
        let none: [&str; 0] = [];
        assert_eq!(declines(FuseGelu::default(), &graph(nodes)), none);
        let nodes = "a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)";
        let used = graph(nodes).replace("[N,3] y)", "[N,3] y, float[N,3] e)");
        assert_eq!(declines(FuseGelu::default(), &used), ["`e` is used outside the pattern"]);
        let old = graph(nodes).replace("\"\" : 20", "\"\" : 19");
        assert_eq!(declines(FuseGelu::default(), &old), none);
    }
}
