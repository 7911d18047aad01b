//! What one operator alone does to indices.

use super::{Site, Slot, rule, site_of, traced, tracer::Tracer};
use pare_graph::{Graph, NodeRef, ValueId};
use std::collections::BTreeMap;

/// An index of an axis of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AxisIndex {
    /// The value.
    pub value: ValueId,
    /// The axis.
    pub axis: usize,
    /// The size of the axis.
    pub size: usize,
    /// The index.
    pub index: usize,
}

/// Follows indices through single operators.
pub struct LocalTracer<'g>(Tracer<'g>);

impl<'g> LocalTracer<'g> {
    /// For the operators of this graph.
    pub fn new(graph: &'g Graph) -> Self {
        Self(Tracer::new(graph, Some(traced(graph, None).natures())))
    }

    /// Which indices of inputs an operator ties to which indices of an axis of its output; both ascending. `None` if
    /// that cannot be told.
    pub fn classes(
        &mut self,
        at: NodeRef<'g>,
        (port, axis): (Slot, usize),
    ) -> Option<Vec<(Vec<AxisIndex>, Vec<usize>)>> {
        let Self(tracer) = self;
        tracer.clear();
        let mut complete = false;
        tracer.visit(at, |tracer, at| {
            let traced = (rule(at)?.trace)(tracer, at);
            complete = traced.is_some();
            traced
        });
        let id = *tracer.index.get(&(site_of(at, port)?, axis))?;
        if !complete || tracer.pinned.contains_key(&id) {
            return None;
        }
        let of = tracer.axes[id];
        let mut classes = BTreeMap::<usize, (Vec<AxisIndex>, Vec<usize>)>::new();
        for index in 0..of.size {
            let root = tracer.root(of.base + index);
            classes.entry(root).or_default().1.push(index);
        }
        let inputs: Vec<_> =
            at.inputs().into_iter().flatten().filter(|v| !v.is_constant()).map(|v| v.id).collect();
        for info in tracer.axes.clone() {
            let Site::Value(value) = info.site else { continue };
            if !inputs.contains(&value) {
                continue;
            }
            for index in 0..info.size {
                let root = tracer.root(info.base + index);
                if let Some((ins, _)) = classes.get_mut(&root) {
                    ins.push(AxisIndex { value, axis: info.axis, size: info.size, index });
                }
            }
        }
        Some(classes.into_values().collect())
    }
}
