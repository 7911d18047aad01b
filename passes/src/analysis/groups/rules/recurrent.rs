//! Recurrent layers: hidden units with all their gates.

use super::{
    Slot::{In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Attribute, NodeRef};

/// Inputs and outputs with an axis of hidden units: initial states, all states, last states.
const STATES: [(super::Slot, usize); 5] = [(In(5), 2), (In(6), 2), (Out(0), 3), (Out(1), 2), (Out(2), 2)];

/// Ties, for hidden unit `j` of `H`, the rows `q·H + j` of `W` and `R` for every gate `q`, column `j` of `R`,
/// the same entries of both halves of `B` and of the peepholes `P`, and index `j` of every state. Both
/// directions lose the same units.
pub fn recurrent<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let hidden = t.dims(In(2))?.get(2)?.size().filter(|&n| n > 0)?;
    let lead = at.int("layout", 0) == 0;
    let column = t.handled_axis(In(2), 2)?;
    t.tie((In(0), 2), (In(1), 2));
    let exists = |t: &Tracer<'g>, slot| t.rank(slot).is_some();
    for (slot, axis) in [(In(1), 1), (In(2), 1), (In(3), 1), (In(7), 1)] {
        if exists(t, slot) {
            let rows = t.handled_axis(slot, axis)?;
            let size = t.axes[rows].size;
            t.map(rows, column, (0..size).map(|i| (i, i % hidden)));
        }
    }
    for (slot, axis) in STATES {
        if exists(t, slot) {
            let states = t.handled_axis(slot, axis);
            t.tie_axes(states, Some(column));
        }
    }
    // Samples are independent.
    let batch = |slot| match slot {
        In(0) => usize::from(lead),
        Out(0) if lead => 2,
        Out(0) => 0,
        _ => usize::from(lead),
    };
    for slot in [In(5), In(6), Out(0), Out(1), Out(2)] {
        if exists(t, slot) {
            t.tie((In(0), batch(In(0))), (slot, batch(slot)));
        }
    }
    if exists(t, In(4)) {
        t.tie((In(0), batch(In(0))), (In(4), 0));
    }
    Some(())
}

/// Sets `hidden_size`.
pub fn resize_hidden(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let columns = at.optional(2)?.rank().ok()?.checked_sub(1)?;
    if let Some(kept) = c.kept(at, In(2), columns) {
        c.set_attribute(at, "hidden_size", Some(Attribute::Int(kept.len() as i64)));
    }
    Some(())
}
