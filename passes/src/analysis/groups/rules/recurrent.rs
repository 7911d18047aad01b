//! Recurrent layers: hidden units, with all their gates.

use super::{
    Slot::{In, Out},
    Tracer,
};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{Attribute, NodeRef};

/// Inputs and outputs along whose axes hidden units lie, one for each: initial states, all states, the last ones.
const STATES: [(super::Slot, usize); 5] = [(In(5), 2), (In(6), 2), (Out(0), 3), (Out(1), 2), (Out(2), 2)];

/// With `G` gates in front of each other, hidden unit `j` is rows `q·H + j` of `W` and `R` for every gate `q`, column `j` of
/// `R`, those entries of both halves of `B` and of the peepholes `P`, and index `j` of every state. Both directions lose
/// the same units.
pub fn recurrent<'g>(t: &mut Tracer<'g>, at: NodeRef<'g>) -> Option<()> {
    let hidden = t.dims(In(2))?.get(2)?.size().filter(|&n| n > 0)?;
    let lead = at.int("layout", 0) == 0;
    let column = t.axis(In(2), 2)?;
    t.tie((In(0), 2), (In(1), 2));
    let there = |t: &Tracer<'g>, port| t.rank(port).is_some();
    for (port, axis) in [(In(1), 1), (In(2), 1), (In(3), 1), (In(7), 1)] {
        if there(t, port) {
            let rows = t.axis(port, axis)?;
            let size = t.axes[rows].size;
            t.map(rows, column, (0..size).map(|i| (i, i % hidden)));
        }
    }
    for (port, axis) in STATES {
        if there(t, port) {
            let states = t.axis(port, axis);
            t.tie_axes(states, Some(column));
        }
    }
    // Sequences of a batch are apart.
    let batch = |port| match port {
        In(0) => usize::from(lead),
        Out(0) if lead => 2,
        Out(0) => 0,
        _ => usize::from(lead),
    };
    for port in [In(5), In(6), Out(0), Out(1), Out(2)] {
        if there(t, port) {
            t.tie((In(0), batch(In(0))), (port, batch(port)));
        }
    }
    if there(t, In(4)) {
        t.tie((In(0), batch(In(0))), (In(4), 0));
    }
    Some(())
}

/// Fewer hidden units.
pub fn resize_hidden(c: &mut Cutter<'_>, at: NodeRef<'_>) -> Option<()> {
    let columns = at.optional(2)?.rank().ok()?.checked_sub(1)?;
    if let Some(left) = c.kept(at, In(2), columns) {
        c.set_attribute(at, "hidden_size", Some(Attribute::Int(left.len() as i64)));
    }
    Some(())
}
