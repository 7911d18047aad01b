use crate::{
    framework::{
        Context, NodeBuilder, Pass, PassError,
        matching::{has_clip, is_plain, spans, uniform},
    },
    pass,
};
use pare_graph::{DataType, Decline, Model, Node, NodeRef, Patch, ValueRef, expect};

pass! {
    /// Fuse a minimum and a maximum with constants into `Clip`, and `max(x, 0)` into `Relu`.
    ///
    /// `min(max(x, a), b) = Clip(x, a, b)` and `max(min(x, b), a) = Clip(x, a, b)`, where crossed bounds are
    /// replaced by the outer one. Engines fuse `Relu` and `Clip`, but not `Max` and `Min`, with the layer before
    /// them.
    ///
    /// Declines for types that `Clip` does not take, for bounds that a caller may override, where a bound differs
    /// between elements or may broadcast `x`, and where the inner value has other uses.
    #[pass("fuse-clip", Rounding, "minimum or maximum fused", "minima and maxima fused")]
    pub struct FuseClip {}
}

impl Pass for FuseClip {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Min", "Max"], clip)?;
        cx.rewrite(model, &["Max"], relu)
    }
}

/// The operand and the constant of a minimum or maximum.
fn bounded(at: NodeRef<'_>) -> Result<(ValueRef<'_>, f64), Decline> {
    is_plain(at)?;
    // `Min` and `Max` broadcast from set 8 on.
    expect(at.opset() >= 8 && at.inputs().len() == 2)?;
    let (a, b, y) = (at.input(0)?, at.input(1)?, at.output()?);
    let (x, tensor) = match (a.constant(), b.constant()) {
        (_, Ok(tensor)) => (a, tensor),
        (Ok(tensor), _) => (b, tensor),
        (Err(Decline::Mismatch), Err(decline)) | (Err(decline), _) => return Err(decline),
    };
    expect(has_clip(tensor.dtype(), at.opset()) && !x.is_constant() && spans(x, tensor, y))?;
    let bound = uniform(tensor).filter(|bound| !bound.is_nan()).ok_or(Decline::Mismatch)?;
    Ok((x, bound))
}

fn clip(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let (between, outer_bound) = bounded(at)?;
    let inner =
        between.producer().filter(|inner| inner.is("Min") || inner.is("Max")).ok_or(Decline::Mismatch)?;
    expect(inner.op() != at.op())?;
    let (x, inner_bound) = bounded(inner)?;
    // If the bounds cross, the result is the outer one everywhere.
    let (low, high) = if at.is("Min") {
        (inner_bound.min(outer_bound), outer_bound)
    } else {
        (outer_bound, inner_bound.max(outer_bound))
    };
    between.sole_use()?;
    let y = at.output()?;
    let dtype = y.dtype().ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(at);
    let new = NodeBuilder::new(at.graph, &mut patch, y.name()).clip(x.into(), dtype, low, high);
    patch.replace(y, new.map_err(|_| Decline::Mismatch)?);
    Ok(patch)
}

fn relu(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let (x, bound) = bounded(at)?;
    let y = at.output()?;
    expect(bound == 0.0 && y.dtype() == Some(DataType::Float))?;
    let mut patch = Patch::at(at);
    let new = patch.node(y.name(), Node::new("Relu"), &[x.into()]);
    patch.replace(y, new);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, model_at, no_match, run_pass, same};

    #[test]
    fn fuses_minimum_and_maximum() {
        check(
            FuseClip::default(),
            "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float a = {-1}, float[1] b = {2}> {
                h = Max(x, a) y = Min(b, h) k = Min(x, b) z = Max(k, a) }",
            "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <
                float y_min = {-1}, float y_max = {2}, float z_min = {-1}, float z_max = {2}> {
                y = Clip(x, y_min, y_max) z = Clip(x, z_min, z_max) }",
        );
    }

    #[test]
    fn writes_attributes_in_old_sets() {
        let source =
            "g (float[2] x) => (float[2] y) <float a = {0}, float b = {6}> { h = Max(x, a) y = Min(h, b) }";
        let original = model_at(source, 9);
        let mut changed = original.clone();
        run_pass(FuseClip::default(), &mut changed);
        let text = pare_graph::text::print_graph(&changed.graph);
        assert!(text.contains("y = Clip<min = 0.0, max = 6.0>(x)"), "{text}");
        same(&original, &changed, crate::framework::Effect::Rounding);
    }

    #[test]
    fn fuses_maximum_with_zero() {
        check(
            FuseClip::default(),
            "g (float[N,2] x) => (float[N,2] y) <float[2] z = {0,0}> { y = Max(z, x) }",
            "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn fuses_crossed_bounds_and_integers() {
        check(
            FuseClip::default(),
            "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float a = {3}, float[1] b = {2}> {
                h = Max(x, a) y = Min(h, b) k = Min(x, b) z = Max(k, a) }",
            "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <
                float y_min = {2}, float y_max = {2}, float z_min = {3}, float z_max = {3}> {
                y = Clip(x, y_min, y_max) z = Clip(x, z_min, z_max) }",
        );
        for dtype in ["int32", "double"] {
            check(
                FuseClip::default(),
                &format!(
                    "g ({dtype}[N,2] x) => ({dtype}[N,2] y) <{dtype} a = {{1}}, {dtype}[1,1] b = {{2}}> {{
                        h = Max(x, a) y = Min(h, b) }}"
                ),
                &format!(
                    "g ({dtype}[N,2] x) => ({dtype}[N,2] y) <{dtype} y_min = {{1}}, {dtype} y_max = {{2}}> {{
                        y = Clip(x, y_min, y_max) }}"
                ),
            );
        }
    }

    #[test]
    fn keeps_varying_and_overridable_bounds_other_types_and_uses() {
        let graph = |outputs: &str, a: &str, b: &str| {
            format!(
                "g (float[2] x) => (float[2] y{outputs}) <float a = {{{a}}}, {b}> {{ h = Max(x, a) y = Min(h, b) }}"
            )
        };
        no_match(FuseClip::default(), &graph("", "1", "float[2] b = {2,3}"));
        let why = declines(FuseClip::default(), &graph(", float[2] h", "1", "float b = {2}"));
        assert_eq!(why, ["`h` has 2 uses"]);
        no_match(
            FuseClip::default(),
            "g (int64[2] x) => (int64[2] y) <int64 a = {1}, int64 b = {2}> { h = Max(x, a) y = Min(h, b) }",
        );
        let why = declines(
            FuseClip::default(),
            "g (float[2] x, float a = {1}) => (float[2] y) <float b = {2}> { h = Max(x, a) y = Min(h, b) }",
        );
        assert_eq!(why, ["`a` can be overridden by the caller"]);
    }
}
