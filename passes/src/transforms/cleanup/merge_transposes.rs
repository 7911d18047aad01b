use crate::framework::matching::{cancel, is_plain, is_pointwise};
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, Decline, Model, NodeRef, Patch, Ref, Tensor, ValueRef, expect,
    ops::{GemmView, Trait, TransposeView, operators_with},
};

pass! {
    /// Merge consecutive transposes, also through elementwise functions, and fold them into `Gemm`.
    ///
    /// `(xᵖ)ᑫ` is one transpose, or none if `q` inverts `p`. An elementwise function commutes with it,
    /// `f(xᵖ)ᑫ = f((xᵖ)ᑫ)`, also with several operands: `f(xᵖ, yᵖ) = f(x, y)ᵖ`. A transposed operand of
    /// `Gemm` becomes `transA` or `transB`.
    ///
    /// Declines where an intermediate value has other uses, so that no node would be removed.
    #[pass("merge-transposes", Exact, "transpose merged", "transposes merged")]
    pub struct MergeTransposes {}
}

impl Pass for MergeTransposes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Transpose"], merged)?;
        cx.rewrite(model, &["Gemm"], into_gemm)?;
        cx.rewrite(model, &operators_with(Trait::Elementwise), below)
    }
}

/// Elementwise nodes searched between two transposes.
const REACH: usize = 16;

/// Composes this transpose with one before it and recomputes the nodes between them.
fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let outer = TransposeView::of(at)?;
    // Nodes between the transposes, innermost first, each with the slot of the followed value.
    let mut between = vec![];
    let mut value = at.input(0)?;
    let inner = loop {
        let producer = value.producer().ok_or(Decline::Mismatch)?;
        if producer.is("Transpose") {
            break producer;
        }
        expect(between.len() < REACH)?;
        value.sole_use()?;
        let slot = followed(producer)?;
        between.push((producer, slot));
        value = producer.input(slot)?;
    };
    let composed = TransposeView::of(inner)?.then(&outer).ok_or(Decline::Mismatch)?;
    // If the inner transpose is kept for other users, only its exact inverse saves a node.
    if !between.is_empty() && !composed.is_identity() {
        inner.output()?.sole_use()?;
    }
    if between.is_empty() && composed.is_identity() {
        return cancel(at, inner.input(0)?);
    }
    let mut patch = Patch::at(at);
    let y = at.output()?;
    let mut moved: Ref = inner.input(0)?.into();
    if !composed.is_identity() {
        moved = NodeBuilder::new(at.graph, &mut patch, y.name()).transpose(moved, &composed.perm);
    }
    for (node, slot) in between.into_iter().rev() {
        let mut inputs: Vec<Option<Ref>> = node.inputs().into_iter().map(|i| i.map(Into::into)).collect();
        inputs[slot] = Some(moved);
        for other in (0..inputs.len()).filter(|&i| i != slot) {
            let Some(constant) = node.optional(other) else { continue };
            let tensor = transposed(constant.constant()?, &outer.perm)?;
            if tensor.shape() != constant.constant()?.shape() {
                inputs[other] =
                    Some(NodeBuilder::new(at.graph, &mut patch, constant.name()).constant("t", tensor));
            }
        }
        moved = patch.copy(node, &inputs);
    }
    patch.replace(y, moved);
    Ok(patch)
}

/// The only input of an elementwise node that is not constant.
fn followed(at: NodeRef<'_>) -> Result<usize, Decline> {
    is_plain(at)?;
    expect(is_pointwise(at) && at.opset() >= 7)?;
    at.output()?;
    let open: Vec<_> =
        (0..at.inputs().len()).filter(|&i| at.optional(i).is_some_and(|v| !v.is_constant())).collect();
    let &[slot] = open.as_slice() else { return Err(Decline::Mismatch) };
    // The function keeps the rank of its input.
    let (x, y) = (at.input(slot)?, at.output()?);
    expect(x.rank()? == y.rank()?)?;
    Ok(slot)
}

/// A constant that broadcasts to `perm.len()` axes as the original does after the transpose. It may have one
/// axis of a size other than 1, so that the order of its elements does not change.
fn transposed(tensor: &Tensor, perm: &[usize]) -> Result<Tensor, Decline> {
    if tensor.len() == 1 {
        return Ok(tensor.clone());
    }
    let missing = perm.len().checked_sub(tensor.rank()).ok_or(Decline::Mismatch)?;
    expect(tensor.shape().iter().filter(|&&d| d != 1).count() <= 1)?;
    let full: Vec<_> = vec![1; missing].into_iter().chain(tensor.shape().iter().copied()).collect();
    let moved: Vec<_> = perm.iter().map(|&p| full[p]).collect();
    tensor.reshaped(&moved).map_err(|_| Decline::Mismatch)
}

/// `Gemm` of a transposed operand with the transpose flag inverted.
fn into_gemm(at: NodeRef<'_>) -> Result<Patch, Decline> {
    GemmView::of(at)?;
    let mut node = at.node().clone();
    let mut inputs: Vec<Option<Ref>> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    let mut turned = false;
    for (slot, flag) in [(0, "transA"), (1, "transB")] {
        let Ok(transpose) = at.input(slot)?.produced_by("Transpose") else { continue };
        expect(TransposeView::of(transpose)?.perm == [1, 0])?;
        inputs[slot] = Some(transpose.input(0)?.into());
        node.attributes.insert(flag.into(), Attribute::Int(1 - at.int(flag, 0).signum()));
        turned = true;
    }
    expect(turned)?;
    let mut patch = Patch::at(at);
    let y = at.output()?;
    let made = patch.node_with(node, &inputs, &[Some(y.name())]);
    patch.replace(y, made[0].ok_or(Decline::Mismatch)?);
    Ok(patch)
}

/// Moves the transposes of all operands of a function below it.
fn below(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    expect(is_pointwise(at) && at.opset() >= 7)?;
    let y = at.output()?;
    let mut perm: Option<Vec<usize>> = None;
    let mut inputs = vec![];
    for input in at.inputs() {
        let input = input.ok_or(Decline::Mismatch)?;
        if input.is_constant() {
            inputs.push(Err(input));
            continue;
        }
        let transpose = input.produced_by("Transpose")?;
        let view = TransposeView::of(transpose)?;
        expect(perm.get_or_insert_with(|| view.perm.clone()) == &view.perm)?;
        expect(y.rank()? == view.perm.len())?;
        inputs.push(Ok((input, transpose.input(0)?)));
    }
    let perm = perm.ok_or(Decline::Mismatch)?;
    // Each removed transpose must have no other use; a value used twice here counts once.
    let mut values: Vec<_> = inputs.iter().filter_map(|i| i.as_ref().ok()).map(|i| i.0).collect();
    values.sort_by_key(|v| v.id);
    values.dedup_by_key(|v| v.id);
    expect(values.len() > 1)?;
    let only_here =
        |v: &ValueRef<'_>| !v.value().is_output() && v.users().iter().all(|(user, _)| user.id == at.id);
    expect(values.iter().all(only_here))?;
    let mut patch = Patch::at(at);
    let inverse = TransposeView { perm: perm.clone() }.inverse().perm;
    let mut untransposed = vec![];
    for input in inputs {
        untransposed.push(Some(match input {
            Ok((_, x)) => x.into(),
            Err(constant) => {
                let tensor = transposed(constant.constant()?, &inverse)?;
                NodeBuilder::new(at.graph, &mut patch, constant.name()).constant("t", tensor)
            }
        }));
    }
    let joined = patch.copy(at, &untransposed);
    let moved = NodeBuilder::new(at.graph, &mut patch, y.name()).transpose(joined, &perm);
    patch.replace(y, moved);
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn composes_and_cancels_transposes() {
        check(
            MergeTransposes::default(),
            "g (float[2,3,4] x) => (float[4,2,3] y, float[2,3,4] z) {
                a = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [1,2,0]>(a)
                b = Transpose<perm = [2,0,1]>(a) z = Relu(b) }",
            "g (float[2,3,4] x) => (float[4,2,3] y, float[2,3,4] z) {
                y = Transpose<perm = [2,0,1]>(x) z = Relu(x) }",
        );
    }

    #[test]
    fn moves_transposes_through_elementwise_functions() {
        check(
            MergeTransposes::default(),
            "g (float[N,3,4] x) => (float[N,3,4] y) <float[3] c = {1,2,3}, float h = {0.5}> {
                a = Transpose<perm = [0,2,1]>(x) b = Add(a, c) d = Mul(h, b) e = Sigmoid(d)
                y = Transpose<perm = [0,2,1]>(e) }",
            "g (float[N,3,4] x) => (float[N,3,4] y) <float h = {0.5}, float[1,3,1] c_t = {1,2,3}> {
                b_1 = Add(x, c_t) d_1 = Mul(h, b_1) y = Sigmoid(d_1) }",
        );
    }

    #[test]
    fn keeps_transpose_of_shared_value() {
        let why = declines(
            MergeTransposes::default(),
            "g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
                a = Transpose(x) b = Relu(a) z = Neg(b) y = Transpose(b) }",
        );
        assert_eq!(why, ["`b` has 2 uses"]);
    }

    #[test]
    fn sets_transpose_flags_of_gemm() {
        check(
            MergeTransposes::default(),
            "g (float[3,2] x, float[4,3] w) => (float[2,4] y) {
                a = Transpose(x) b = Transpose<perm = [1,0]>(w) y = Gemm<alpha = 2.0>(a, b) }",
            "g (float[3,2] x, float[4,3] w) => (float[2,4] y) {
                y = Gemm<alpha = 2.0, transA = 1, transB = 1>(x, w) }",
        );
    }

    #[test]
    fn moves_transposes_below_functions_of_several_operands() {
        check(
            MergeTransposes::default(),
            "g (float[2,3] x, float[2,3] z) => (float[3,2] y) {
                a = Transpose(x) b = Transpose(z) y = Add(a, b) }",
            "g (float[2,3] x, float[2,3] z) => (float[3,2] y) {
                y_1 = Add(x, z) y = Transpose<perm = [1,0]>(y_1) }",
        );
    }
}
