use super::pattern::{Parts, Product, beside_scalar, is, is_float};
use crate::{Context, Pass, PassError, pass};
use pare_graph::{At, Decline, Model, Node, Patch, Wired, expect};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

pass! {
    /// Recognise `Gelu` (operator set 20).
    ///
    /// `y = ½·x·(1 + erf(x/√2))`, factors in any order, and the approximation
    /// `y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
    ///
    /// Declines for other types than `float`, and where values in between are used elsewhere.
    #[pass("fuse-gelu", Rounding, "GELUs fused")]
    pub struct FuseGelu {}
}

impl Pass for FuseGelu {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Mul"], fused)
    }
}

fn fused(at: At<'_>) -> Result<Patch, Decline> {
    expect(at.opset() >= 20)?;
    let Gelu { x, approximate, parts } = Gelu::ending(at)?;
    is_float(x)?;
    parts.are_alone(at, at.id)?;
    let y = at.output()?;
    let mut patch = Patch::at(at);
    let node = Node::new("Gelu").with("approximate", if approximate { "tanh" } else { "none" });
    let made = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, made);
    Ok(patch)
}

/// `Gelu` written out.
pub(crate) struct Gelu<'g> {
    pub x: Wired<'g>,
    /// Whether by a tanh.
    approximate: bool,
    /// Its nodes.
    pub parts: Parts,
}

impl<'g> Gelu<'g> {
    /// The one that ends with this product.
    pub fn ending(at: At<'g>) -> Result<Self, Decline> {
        let product = Product::of(at)?;
        expect(is(product.constant, 0.5))?;
        let &[a, b] = product.factors.as_slice() else { return Err(Decline::Mismatch) };
        let (x, bell) = if a.made_by("Add").is_ok_and(|add| is_bell(add)) { (b, a) } else { (a, b) };
        let sum = bell.made_by("Add")?;
        let (curve, one) = beside_scalar(sum)?;
        let curve = curve.maker().ok_or(Decline::Mismatch)?;
        expect(one == 1.0)?;
        let mut parts = Parts(product.nodes);
        parts.0.extend([sum.id, curve.id]);
        let inner = curve.input(0)?.maker().ok_or(Decline::Mismatch)?;
        let approximate = match curve.op() {
            "Erf" => {
                let scaled = Product::of(inner)?;
                expect(is(scaled.constant, FRAC_1_SQRT_2) && is_only(&scaled, x))?;
                parts.0.extend(scaled.nodes);
                false
            }
            "Tanh" => {
                let scaled = Product::of(inner)?;
                let &[sum] = scaled.factors.as_slice() else { return Err(Decline::Mismatch) };
                expect(is(scaled.constant, (2.0 / PI).sqrt()))?;
                parts.0.extend(scaled.nodes);
                parts.0.extend(cubic(sum, x)?);
                true
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { x, approximate, parts })
    }
}

/// Whether a node is the last one of a `Gelu` written out. Runtimes compute that in one pass over memory (ONNX Runtime's
/// `GeluFusion`, `BiasGeluFusion` and `FastGeluFusion`) if no part is missing, so that its last factor must not go into
/// a layer that follows: one product less for each element would cost five passes.
pub(crate) fn ends_gelu(at: At<'_>) -> bool {
    (at.is("Mul") || at.is("Div"))
        && Gelu::ending(at).is_ok_and(|gelu| gelu.parts.are_alone(at, at.id).is_ok())
}

fn is_bell(add: At<'_>) -> bool {
    let maker = beside_scalar(add).ok().and_then(|(curve, _)| curve.maker());
    maker.is_some_and(|at| at.is("Erf") || at.is("Tanh"))
}

fn is_only(product: &Product<'_>, x: Wired<'_>) -> bool {
    matches!(product.factors.as_slice(), [only] if only.id == x.id)
}

/// The nodes of `x + 0.044715·x³`.
fn cubic(sum: Wired<'_>, x: Wired<'_>) -> Result<Vec<pare_graph::NodeId>, Decline> {
    let add = sum.made_by("Add")?;
    let (a, b) = (add.input(0)?, add.input(1)?);
    let term = if a.id == x.id { b } else { a };
    expect(a.id == x.id || b.id == x.id)?;
    let product = Product::of(term.maker().ok_or(Decline::Mismatch)?)?;
    expect(is(product.constant, 0.044_715))?;
    let mut parts = product.nodes;
    parts.push(add.id);
    // x³ as a power, or as x·x·x.
    if let [cube] = product.factors.as_slice() {
        let power = cube.made_by("Pow")?;
        expect(power.input(0)?.id == x.id && super::pattern::scalar(power.input(1)?)? == 3.0)?;
        parts.push(power.id);
    } else {
        expect(product.factors.len() == 3 && product.factors.iter().all(|f| f.id == x.id))?;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::pattern::tests::constants;
    use crate::testing::{check, declines};

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

    fn after(how: &str) -> String {
        format!(
            "<ir_version: 9, opset_import: [\"\" : 20]> g (float[N,3] x) => (float[N,3] y) {{
            y = Gelu<approximate = \"{how}\">(x) }}"
        )
    }

    #[test]
    fn all_spellings_are_one_operator() {
        for nodes in [
            "a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)",
            "a = Mul(i, x) e = Erf(a) s = Add(one, e) h = Mul(s, half) y = Mul(h, x)",
            "a = Div(x, r) e = Erf(a) s = Add(e, one) h = Div(x, two) y = Mul(h, s)",
        ] {
            // Division by 2 ends in a product as well.
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
    fn other_constants_and_values_in_use_stay() {
        let nodes = "a = Div(x, two) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)";
        declines(FuseGelu::default(), &graph(nodes));
        let nodes = "a = Div(x, r) e = Erf(a) s = Add(e, one) m = Mul(x, s) y = Mul(m, half)";
        let used = graph(nodes).replace("[N,3] y)", "[N,3] y, float[N,3] e)");
        assert_eq!(declines(FuseGelu::default(), &used), ["`e` is used besides the pattern"]);
        declines(FuseGelu::default(), &graph(nodes).replace("\"\" : 20", "\"\" : 19"));
    }
}
