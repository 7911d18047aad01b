use crate::framework::matching::{is_plain, uniform};
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{DataType, Decline, Model, NodeRef, Patch, Tensor, expect};

pass! {
    /// Replace `0·x` of integers, `false ∧ x` and `true ∨ x` by the constant result.
    ///
    /// Floats are excluded: `0·∞` and `0·NaN` are not zero. Declines where the shape is not fixed or the
    /// constant would be larger than 256 bytes.
    #[pass("fold-absorbing", Exact, "product folded", "products folded")]
    pub struct FoldAbsorbing {}
}

/// Largest constant in bytes.
const SMALL: usize = 256;

impl Pass for FoldAbsorbing {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Mul", "And", "Or", "BitwiseAnd"], absorbed)
    }
}

fn absorbed(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let y = at.output()?;
    let dtype = y.dtype().ok_or(Decline::Mismatch)?;
    let wanted = match at.op() {
        "Or" => 1.0,
        _ => 0.0,
    };
    expect(dtype.is_integer() || dtype == DataType::Bool)?;
    let absorbs = |slot: usize| at.input(slot).and_then(|v| Ok(uniform(v.constant()?) == Some(wanted)));
    expect(absorbs(0) == Ok(true) || absorbs(1) == Ok(true))?;
    let shape = y.value().fact.fixed_shape().ok_or(Decline::Mismatch)?;
    let count = pare_graph::element_count(&shape).ok_or(Decline::Mismatch)?;
    expect(dtype.bytes_for(count).is_some_and(|bytes| bytes <= SMALL))?;
    let tensor = Tensor::from_f64(dtype, &shape, &vec![wanted; count]).map_err(|_| Decline::Mismatch)?;
    let mut patch = Patch::at(at);
    let constant = NodeBuilder::new(at.graph, &mut patch, y.name()).constant("value", tensor);
    patch.replace(y, constant);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn folds_integer_product_with_zero() {
        check(
            FoldAbsorbing::default(),
            "g (int64 n, bool[2] b) => (float y, bool[2] z) <int64 o = {0}, bool t = {1}> {
                h = Mul(n, o) y = Cast<to = 1>(h) k = Or(t, b) z = Not(k) }",
            "g (int64 n, bool[2] b) => (float y, bool[2] z) <int64 h = {0}, bool[2] k = {1,1}> {
                y = Cast<to = 1>(h) z = Not(k) }",
        );
    }

    #[test]
    fn keeps_floats_and_symbolic_shapes() {
        no_match(FoldAbsorbing::default(), "g (float x) => (float y) <float o = {0}> { y = Mul(x, o) }");
        no_match(
            FoldAbsorbing::default(),
            "g (int64[N] x) => (int64[N] y) <int64 o = {0}> { y = Mul(x, o) }",
        );
    }
}
