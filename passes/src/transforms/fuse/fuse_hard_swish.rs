use crate::{
    analysis::{
        opset::OpsetPolicy,
        patterns::{Clipped, HardSwish, beside_scalar, is, is_float, scalar},
    },
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, Node, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fuse clipped lines into `HardSigmoid` and `HardSwish` (operator set 14).
    ///
    /// `clip(x + c, 0, h)/h` and `clip(α·x + β, 0, 1)` are `HardSigmoid` with `α = 1/h`, `β = c/h`. With
    /// `α = 1/6` and `β = ½`, `x·HardSigmoid(x)` is `HardSwish`.
    ///
    /// Declines types other than `float`, and if intermediate values have other uses.
    #[pass("fuse-hard-swish", Rounding, "hard sigmoid or swish fused", "hard sigmoids and swishes fused")]
    pub struct FuseHardSwish {
        /// `keep` the operator set of the model, or `raise` it to 14 where that allows more.
        pub opset: OpsetPolicy = OpsetPolicy::Keep,
    }
}

impl Pass for FuseHardSwish {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        self.opset.raise_for(Self::INFO.name, 14, model, cx)?;
        cx.rewrite(model, &["Div", "Mul", "Clip"], sigmoid)?;
        cx.rewrite(model, &["Mul", "Div"], swish)
    }
}

fn replaced(at: NodeRef<'_>, node: Node, x: ValueRef<'_>) -> Result<Patch, Decline> {
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let new = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, new);
    Ok(patch)
}

/// `clip(a·x + c, 0, h)·f` with `h·f = 1`.
fn sigmoid(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let (clip, factor) = match at.op() {
        "Clip" => (at, 1.0),
        "Div" => (at.input(0)?.produced_by("Clip")?, 1.0 / scalar(at.input(1)?)?),
        _ => {
            let (clip, factor) = beside_scalar(at)?;
            (clip.produced_by("Clip")?, factor)
        }
    };
    let mut line = Clipped::of(clip)?;
    expect(is(line.high * factor, 1.0))?;
    is_float(line.x)?;
    line.parts.0.push(at.id);
    line.parts.are_alone(at, at.id)?;
    let (alpha, beta) = (line.slope * factor, line.offset * factor);
    replaced(at, Node::new("HardSigmoid").with("alpha", alpha as f32).with("beta", beta as f32), line.x)
}

fn swish(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 14)?;
    let HardSwish { x, parts } = HardSwish::ending(at)?;
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    replaced(at, Node::new("HardSwish"), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::patterns::tests::constants;
    use crate::framework::testing::{check, declines};

    const CONSTANTS: &[(&str, f32)] =
        &[("three", 3.0), ("zero", 0.0), ("six", 6.0), ("one", 1.0), ("a", 0.25)];

    fn graph(opset: u8, nodes: &str) -> String {
        let constants = constants(CONSTANTS, nodes);
        format!(
            "<ir_version: 8, opset_import: [\"\" : {opset}]> g (float[N,3] x) => (float[N,3] y) <{constants}> {{
                {nodes} }}"
        )
    }

    fn after(opset: u8, nodes: &str) -> String {
        format!(
            "<ir_version: 8, opset_import: [\"\" : {opset}]> g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}"
        )
    }

    #[test]
    fn fuses_clipped_line_into_hard_sigmoid() {
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) y = Div(c, six)";
        let one = "y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, one));
        let nodes = "p = Mul(x, a) s = Add(one, p) y = Clip(s, zero, one)";
        let one = "y = HardSigmoid<alpha = 0.25, beta = 1.0>(x)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, one));
    }

    #[test]
    fn fuses_product_with_input_into_hard_swish() {
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) d = Div(c, six) y = Mul(x, d)";
        check(FuseHardSwish::default(), &graph(14, nodes), &after(14, "y = HardSwish(x)"));
        let divided_last = "s = Add(x, three) c = Clip(s, zero, six) m = Mul(x, c) y = Div(m, six)";
        check(FuseHardSwish::default(), &graph(14, divided_last), &after(14, "y = HardSwish(x)"));
        let two = "d = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, d)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, two));
    }

    #[test]
    fn declines_other_bounds() {
        let nodes = "s = Add(x, three) c = Clip(s, one, six) y = Div(c, six)";
        let none: [&str; 0] = [];
        assert_eq!(declines(FuseHardSwish::default(), &graph(11, nodes)), none);
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) y = Div(c, three)";
        assert_eq!(declines(FuseHardSwish::default(), &graph(11, nodes)), none);
        let nodes = "s = Add(x, a) y = Clip(s, zero, six)";
        assert_eq!(declines(FuseHardSwish::default(), &graph(11, nodes)), none);
    }
}
