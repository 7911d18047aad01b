//! `Softmax`, `LogSoftmax` and `Hardmax`, which normalized all axes from `axis` on before operator set 13.

use super::form::Form;
use crate::framework::node_builder::reshape_target;
use pare_graph::{Attribute, Decline, Node, Patch};

/// The default of `axis` before operator set 13.
const OLD_AXIS: i64 = 1;

/// A node along one axis, if at most one of the axes has more than one element. Otherwise the axes are
/// flattened into one.
pub(super) fn softmax_13(mut form: Form<'_>) -> Result<Patch, Decline> {
    let (at, x) = (form.at, form.at.input(0)?);
    let axis = at.int("axis", OLD_AXIS);
    let single = match x.shape() {
        None => (axis == -1).then_some(axis),
        Some(shape) => {
            let first = if axis < 0 { axis + shape.len() as i64 } else { axis };
            let outside =
                || Decline::because(format!("{} has axis {axis} of {} axes", at.describe(), shape.len()));
            let first = usize::try_from(first).ok().filter(|&a| a < shape.len()).ok_or_else(outside)?;
            let mut several = (first..shape.len()).filter(|&i| shape[i].known() != Some(1));
            let only = several.next().unwrap_or(first);
            several.next().is_none().then_some(only as i64)
        }
    };
    if let Some(axis) = single {
        form.set("axis", axis);
        return Ok(form.finish());
    }
    let (op, target) = (form.node.op.clone(), x.shape().and_then(|dims| reshape_target(None, dims)));
    let mut build = form.builder();
    let flat = build.node(Node::new("Flatten").with("axis", axis), &[x.into()]);
    let flat = build.node(Node::new(&op).with("axis", Attribute::Int(-1)), &[flat]);
    let y = if let Some(target) = target {
        build.reshape(flat, &target)
    } else {
        let shape = build.node(Node::new("Shape"), &[x.into()]);
        build.node(Node::new("Reshape"), &[flat, shape])
    };
    Ok(form.replace(&[Some(y)]))
}

/// The last axis is the only one from it on.
pub(super) fn before_softmax_13(form: &mut Form<'_>) -> Result<(), Decline> {
    let axis = form.at.int("axis", -1);
    let last = form.at.input(0)?.shape().map(|shape| shape.len() as i64 - 1);
    if axis != -1 && Some(axis) != last {
        return Err(Decline::because(format!(
            "{} normalizes axis {axis} only, operator set 12 all axes from it on",
            form.at.describe()
        )));
    }
    form.set("axis", axis);
    Ok(())
}
