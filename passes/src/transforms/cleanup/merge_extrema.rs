use crate::{
    framework::{
        Context, NodeBuilder, Pass, PassError,
        matching::{is_plain, same_shape},
    },
    pass,
};
use pare_graph::{Decline, Model, NodeRef, Patch, Ref, Tensor, ValueRef, expect, ops::eval::evaluate};

pass! {
    /// Merge nested minima and nested maxima, and the constants among their operands.
    ///
    /// `min(min(a, b), c) = min(a, b, c)`, and `min(x, c, d) = min(x, min(c, d))` with the inner one computed for
    /// constants. The sign of a zero may change, since the order of operands does.
    ///
    /// Declines where the inner value has other uses or is smaller than the result, and for constants whose
    /// minimum would have more elements than each of them.
    #[pass("merge-extrema", Rounding, "minimum or maximum merged", "minima and maxima merged")]
    pub struct MergeExtrema {}
}

impl Pass for MergeExtrema {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Min", "Max"], merged)
    }
}

fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    // `Min` and `Max` broadcast from set 8 on.
    expect(at.opset() >= 8)?;
    let y = at.output()?;
    let (mut operands, mut kept, mut opened) = (vec![], Decline::Mismatch, false);
    for slot in 0..at.inputs().len() {
        let x = at.input(slot)?;
        match nested(x, at) {
            Ok(inner) => {
                operands.extend(inner);
                opened = true;
            }
            Err(decline) => {
                operands.push(x);
                if decline != Decline::Mismatch {
                    kept = decline;
                }
            }
        }
    }
    let (constants, others): (Vec<_>, Vec<_>) = operands.into_iter().partition(|x| x.is_constant());
    // Constants alone are evaluated by `fold-constants`.
    expect(!others.is_empty())?;
    let folded = folded(at, &constants);
    if !opened && folded.is_none() {
        return Err(kept);
    }
    let mut patch = Patch::at(at);
    let mut inputs: Vec<Ref> = others.into_iter().map(Into::into).collect();
    match folded {
        Some(tensor) => {
            inputs.push(NodeBuilder::new(at.graph, &mut patch, y.name()).constant("bound", tensor));
        }
        None => inputs.extend(constants.into_iter().map(Ref::from)),
    }
    let new = patch.node(y.name(), at.node().clone(), &inputs);
    patch.replace(y, new);
    Ok(patch)
}

/// The operands of the same function in the operand `x` of `at`.
fn nested<'g>(x: ValueRef<'g>, at: NodeRef<'g>) -> Result<Vec<ValueRef<'g>>, Decline> {
    let inner = x.produced_by(at.op())?;
    is_plain(inner)?;
    // If the inner value is smaller than the result, it is cheaper to compute it first.
    expect(same_shape(x, at.output()?))?;
    x.sole_use()?;
    (0..inner.inputs().len()).map(|slot| inner.input(slot)).collect()
}

/// The function of several constants, if it has the size of one of them.
fn folded(at: NodeRef<'_>, constants: &[ValueRef<'_>]) -> Option<Tensor> {
    let tensors: Vec<_> = constants.iter().map(|c| c.constant().ok()).collect::<Option<_>>()?;
    let largest = tensors.iter().map(|tensor| tensor.size_in_bytes()).max().filter(|_| tensors.len() > 1)?;
    let inputs: Vec<_> = tensors.into_iter().map(Some).collect();
    evaluate(at, &inputs, largest).ok()?.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn merges_constants_of_nested_functions() {
        for dtype in ["float", "int32"] {
            let graph = |nodes: &str, constants: &str| {
                format!("g ({dtype}[N,3] x) => ({dtype}[N,3] y, {dtype}[N,3] z) <{constants}> {{ {nodes} }}")
            };
            check(
                MergeExtrema::default(),
                &graph(
                    "h = Min(x, a) y = Min(b, h) k = Max(a, x) z = Max(k, b)",
                    &format!("{dtype}[1] a = {{3}}, {dtype} b = {{6}}"),
                ),
                &graph(
                    "y = Min(x, y_bound) z = Max(x, z_bound)",
                    &format!("{dtype}[1] y_bound = {{3}}, {dtype}[1] z_bound = {{6}}"),
                ),
            );
        }
    }

    #[test]
    fn merges_operands_of_several_inputs() {
        check(
            MergeExtrema::default(),
            "g (int32[N,3,3] x) => (int32[N,3,3] y) <int32[3] a = {2,5,8}, int32[1] b = {4}, int32[3] c = {3,1,-6}, int32[3] d = {-2,7,9}> {
                h = Min(x, a, b, c) y = Min(h, d, b) }",
            "g (int32[N,3,3] x) => (int32[N,3,3] y) <int32[3] y_bound = {-2,1,-6}> { y = Min(x, y_bound) }",
        );
        // A chain of values; one that a caller may override is not a constant.
        check(
            MergeExtrema::default(),
            "g (float[N,3] x, float[N,3] w, float[1] a = {1}) => (float[N,3] y) {
                h = Max(x, w) k = Max(h, a) y = Max(w, k) }",
            "g (float[N,3] x, float[N,3] w, float[1] a = {1}) => (float[N,3] y) { y = Max(w, x, w, a) }",
        );
    }

    #[test]
    fn folds_constants_of_one_node() {
        check(
            MergeExtrema::default(),
            "g (float[N,3] x) => (float[N,3] y) <float[3] a = {2,5,8}, float b = {4}> { y = Max(a, x, b) }",
            "g (float[N,3] x) => (float[N,3] y) <float[3] y_bound = {4,5,8}> { y = Max(x, y_bound) }",
        );
    }

    #[test]
    fn keeps_shared_values_smaller_ones_and_outer_products_of_constants() {
        let why = declines(
            MergeExtrema::default(),
            "g (float[N,3] x) => (float[N,3] y, float[N,3] h) <float a = {2}, float b = {4}> { h = Min(x, a) y = Min(h, b) }",
        );
        assert_eq!(why, ["`h` has 2 uses"]);
        no_match(
            MergeExtrema::default(),
            "g (float[N,3] x, float[3] a, float[3] b) => (float[N,3] y) { h = Min(a, b) y = Min(x, h) }",
        );
        no_match(
            MergeExtrema::default(),
            "g (float[2,2] x) => (float[2,2] y) <float[2,1] a = {2,3}, float[2] b = {4,1}> { y = Min(x, a, b) }",
        );
        no_match(
            MergeExtrema::default(),
            "g (float[2,2] x) => (float[2,2] y) <float a = {2}, float b = {4}> { h = Min(x, b) y = Max(h, a) }",
        );
    }
}
