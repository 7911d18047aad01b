use super::pattern::{Parts, beside_scalar, is, is_float, scalar};
use crate::{Context, Pass, PassError, pass};
use pare_graph::{At, Decline, Model, Node, Patch, Wired, expect, ops::ClipView};

pass! {
    /// Recognise `HardSigmoid`, and `HardSwish` (operator set 14).
    ///
    /// `clip(x + c, 0, h)/h` and `clip(α·x + β, 0, 1)` are `HardSigmoid` with `α = 1/h`, `β = c/h`; with `α = 1/6`
    /// and `β = ½` it makes `x·HardSigmoid(x)` a `HardSwish`.
    ///
    /// Declines for other types than `float`, and where values in between are used elsewhere.
    #[pass("fuse-hard-swish", Rounding, "hard sigmoids and swishes fused")]
    pub struct FuseHardSwish {}
}

impl Pass for FuseHardSwish {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Div", "Mul", "Clip"], sigmoid)?;
        cx.rewrite(model, &["Mul"], swish)
    }
}

fn replaced(at: At<'_>, node: Node, x: Wired<'_>) -> Result<Patch, Decline> {
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let made = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, made);
    Ok(patch)
}

/// `clip(a·x + c, 0, h)·f` where `h·f = 1`.
fn sigmoid(at: At<'_>) -> Result<Patch, Decline> {
    expect(at.node().domain().is_empty() && at.opset() >= 7)?;
    let (clip, factor) = match at.op() {
        "Clip" => (at, 1.0),
        "Div" => (at.input(0)?.made_by("Clip")?, 1.0 / scalar(at.input(1)?)?),
        _ => {
            let (clip, factor) = beside_scalar(at)?;
            (clip.made_by("Clip")?, factor)
        }
    };
    let view = ClipView::of(clip)?;
    expect(view.low == 0.0 && is(view.high * factor, 1.0))?;
    let add = clip.input(0)?.made_by("Add")?;
    let (term, offset) = beside_scalar(add)?;
    let mut parts = Parts(vec![at.id, clip.id, add.id]);
    let scaled = term.maker().filter(|mul| mul.is("Mul")).map(|mul| (mul, beside_scalar(mul)));
    let (x, slope) = match scaled {
        Some((mul, Ok((x, slope)))) if term.sole_use().is_ok() => {
            parts.0.push(mul.id);
            (x, slope)
        }
        _ => (term, 1.0),
    };
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    let (alpha, beta) = (slope * factor, offset * factor);
    replaced(at, Node::new("HardSigmoid").with("alpha", alpha as f32).with("beta", beta as f32), x)
}

fn swish(at: At<'_>) -> Result<Patch, Decline> {
    expect(at.is("Mul") && at.opset() >= 14)?;
    let (a, b) = (at.input(0)?, at.input(1)?);
    let (x, sigmoid) = match (a.made_by("HardSigmoid"), b.made_by("HardSigmoid")) {
        (_, Ok(sigmoid)) if sigmoid.input(0)?.id == a.id => (a, sigmoid),
        (Ok(sigmoid), _) if sigmoid.input(0)?.id == b.id => (b, sigmoid),
        _ => return Err(Decline::Mismatch),
    };
    expect(!sigmoid.has_references())?;
    expect(is(sigmoid.float("alpha", 0.2), 1.0 / 6.0) && sigmoid.float("beta", 0.5) == 0.5)?;
    is_float(x)?;
    Parts(vec![at.id, sigmoid.id]).are_alone(at, at.id)?;
    replaced(at, Node::new("HardSwish"), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::pattern::tests::constants;
    use crate::testing::{check, declines};

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
    fn a_clipped_line_is_a_hard_sigmoid() {
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) y = Div(c, six)";
        let one = "y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, one));
        let nodes = "p = Mul(x, a) s = Add(one, p) y = Clip(s, zero, one)";
        let one = "y = HardSigmoid<alpha = 0.25, beta = 1.0>(x)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, one));
    }

    #[test]
    fn its_product_with_x_is_a_hard_swish() {
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) d = Div(c, six) y = Mul(x, d)";
        check(FuseHardSwish::default(), &graph(14, nodes), &after(14, "y = HardSwish(x)"));
        let two = "d = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, d)";
        check(FuseHardSwish::default(), &graph(11, nodes), &after(11, two));
    }

    #[test]
    fn other_bounds_stay() {
        let nodes = "s = Add(x, three) c = Clip(s, one, six) y = Div(c, six)";
        declines(FuseHardSwish::default(), &graph(11, nodes));
        let nodes = "s = Add(x, three) c = Clip(s, zero, six) y = Div(c, three)";
        declines(FuseHardSwish::default(), &graph(11, nodes));
        declines(FuseHardSwish::default(), &graph(11, "s = Add(x, a) y = Clip(s, zero, six)"));
    }
}
