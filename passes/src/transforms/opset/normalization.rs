//! `BatchNormalization`, `GroupNormalization` and `LayerNormalization`.

use super::form::Form;
use pare_graph::{Decline, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect};

/// Non-spatial nodes are computed element by element.
pub(super) fn batch_norm_9(mut form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    let (spatial, rank) = (at.int("spatial", 1) != 0, at.input(0)?.rank());
    form.take("spatial")?;
    if spatial || rank == Ok(2) {
        return form.finish_if_changed();
    }
    expect_inference(at)?;
    let inputs = (0..5).map(|slot| at.input(slot).map(Ref::from)).collect::<Result<Vec<_>, _>>()?;
    let [x, scale, bias, mean, variance] = inputs[..] else { return Err(Decline::Mismatch) };
    let unknown =
        || Decline::because(format!("the element type of the input of {} is unknown", at.describe()));
    let dtype = at.input(0)?.dtype().ok_or_else(unknown)?;
    let epsilon = Tensor::from_f64(dtype, &[], &[at.float("epsilon", 1e-5)]).map_err(|_| unknown())?;

    let mut build = form.builder();
    let epsilon = build.constant("epsilon", epsilon);
    let mut of = |op: &str, inputs: &[Ref]| build.node(Node::new(op), inputs);
    let centred = of("Sub", &[x, mean]);
    let variance = of("Add", &[variance, epsilon]);
    let deviation = of("Sqrt", &[variance]);
    let normal = of("Div", &[centred, deviation]);
    let scaled = of("Mul", &[normal, scale]);
    let y = of("Add", &[scaled, bias]);
    Ok(form.replace(&[Some(y)]))
}

/// The outputs of training are removed; the node has to be in inference mode.
pub(super) fn batch_norm_14(mut form: Form<'_>) -> Result<Patch, Decline> {
    expect_inference(form.at)?;
    form.keep_outputs(1);
    form.finish_if_changed()
}

/// Declines if the node has the outputs of training.
fn expect_inference(at: NodeRef<'_>) -> Result<(), Decline> {
    if at.outputs().into_iter().skip(1).any(|output| output.is_some()) {
        return Err(Decline::because(format!("{} is in training mode", at.describe())));
    }
    Ok(())
}

/// Scale and bias are repeated for the channels of each group.
pub(super) fn group_norm_21(mut form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    let groups = at.int("num_groups", 0);
    let channels = at.input(0)?.shape().and_then(|shape| shape.get(1)?.known());
    let unknown = || Decline::because(format!("the number of channels of {} is unknown", at.describe()));
    let channels = channels.filter(|&c| groups > 0 && c % groups == 0).ok_or_else(unknown)?;
    let per_group = channels / groups;
    expect(per_group > 1)?;
    for (slot, name) in [(1, "scale"), (2, "bias")] {
        let value = at.input(slot)?;
        let mut build = form.builder();
        let repeated = if let Some(tensor) = repeated(value, per_group as usize) {
            build.constant(name, tensor)
        } else {
            let column = build.reshape(value.into(), &[groups, 1]);
            let shape = build.constant("shape", Tensor::vector(&[groups, per_group]));
            let rows = build.node(Node::new("Expand"), &[column, shape]);
            build.reshape(rows, &[-1])
        };
        form.connect(slot, Some(repeated));
    }
    Ok(form.finish())
}

/// A constant vector with every element repeated `count` times.
fn repeated(value: ValueRef<'_>, count: usize) -> Option<Tensor> {
    let tensor = value.constant().ok()?;
    let elements: Vec<_> = tensor.to_f64()?.iter().flat_map(|&e| std::iter::repeat_n(e, count)).collect();
    Tensor::from_f64(tensor.dtype(), &[elements.len()], &elements).ok()
}

/// ONNX Runtime accepts the operator before set 17, with a scale of another type.
pub(super) fn layer_norm_17(form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    let (x, scale) = (at.input(0)?, at.input(1)?);
    if x.dtype() == scale.dtype() {
        return Err(Decline::Mismatch);
    }
    Err(Decline::because(format!(
        "`{}` has another type than `{}`, which {} does not allow in operator set 17",
        scale.name(),
        x.name(),
        at.describe()
    )))
}
