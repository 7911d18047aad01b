//! Elementwise operators, with broadcasting.

use super::{Slot, Tracer};
use pare_graph::{Dim, NodeRef};

/// Ties the axes of all inputs to those of the outputs, aligned at the right. Axes of size 1 that are
/// broadcast are not tied.
pub fn broadcast<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let inputs = at.inputs().len();
    for (o, output) in at.outputs().into_iter().enumerate() {
        let Some(output) = output else { continue };
        let out = output.shape()?;
        for slot in 0..inputs {
            let Some(dims) = t.dims(Slot::In(slot)) else {
                at.optional(slot).map_or(Some(()), |_| None)?;
                continue;
            };
            align(t, Slot::In(slot), dims, Slot::Out(o), out)?;
        }
    }
    Some(())
}

/// Ties the axes of an operand to those of the result that it is broadcast to.
pub fn align(t: &mut Tracer<'_>, from: Slot, dims: &[Dim], to: Slot, out: &[Dim]) -> Option<()> {
    let offset = out.len().checked_sub(dims.len())?;
    for (axis, dim) in dims.iter().enumerate() {
        let out_axis = axis + offset;
        if dim.known() == Some(1) && out[out_axis].known() != Some(1) {
            t.handled_axis(from, axis);
            t.handled_axis(to, out_axis);
        } else {
            t.tie((from, axis), (to, out_axis));
        }
    }
    (0..offset).for_each(|axis| t.handle(to, axis));
    Some(())
}
