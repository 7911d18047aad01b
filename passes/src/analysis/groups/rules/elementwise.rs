//! Operators that compute each element from those at the same place.

use super::{Port, Tracer};
use pare_graph::{Dim, NodeRef};

/// Axes are aligned at the right; one of size 1 that is repeated ties nothing.
pub fn broadcast<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let inputs = at.inputs().len();
    for (o, output) in at.outputs().into_iter().enumerate() {
        let Some(output) = output else { continue };
        let out = output.shape()?;
        for slot in 0..inputs {
            let Some(dims) = t.dims(Port::In(slot)) else {
                at.optional(slot).map_or(Some(()), |_| None)?;
                continue;
            };
            align(t, Port::In(slot), dims, Port::Out(o), out)?;
        }
    }
    Some(())
}

/// Tie the axes of an operand to those of the result it is broadcast to.
pub fn align(t: &mut Tracer<'_>, from: Port, dims: &[Dim], to: Port, out: &[Dim]) -> Option<()> {
    let offset = out.len().checked_sub(dims.len())?;
    for (axis, dim) in dims.iter().enumerate() {
        let out_axis = axis + offset;
        if dim.known() == Some(1) && out[out_axis].known() != Some(1) {
            t.axis(from, axis);
            t.axis(to, out_axis);
        } else {
            t.tie((from, axis), (to, out_axis));
        }
    }
    (0..offset).for_each(|axis| t.mention(to, axis));
    Some(())
}
