//! The indices that a single operator ties together.

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

/// Indices that an operator ties together, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexClass {
    /// Indices of inputs that are not constant.
    pub inputs: Vec<AxisIndex>,
    /// Indices of the axis of the output.
    pub outputs: Vec<usize>,
}

/// Traces indices through single operators.
pub struct LocalTracer<'g>(Tracer<'g>);

impl<'g> LocalTracer<'g> {
    /// A tracer for the operators of a graph.
    pub fn new(graph: &'g Graph) -> Self {
        Self(Tracer::new(graph, Some(traced(graph, None).axis_uses())))
    }

    /// Returns the classes of indices that a node ties together, for an axis of one of its outputs. `None` if
    /// the node has no complete rule or pins the axis.
    pub fn classes(&mut self, at: NodeRef<'g>, output: usize, axis: usize) -> Option<Vec<IndexClass>> {
        let Self(tracer) = self;
        tracer.clear();
        let mut complete = false;
        tracer.visit(at, |tracer, at| {
            let traced = (rule(at)?.trace)(tracer, at);
            complete = traced.is_some();
            traced
        });
        let id = *tracer.index.get(&(site_of(at, Slot::Out(output))?, axis))?;
        if !complete || tracer.pinned.contains_key(&id) {
            return None;
        }
        let of = tracer.axes[id];
        let mut classes = BTreeMap::<usize, IndexClass>::new();
        for index in 0..of.size {
            let root = tracer.root(of.base + index);
            classes.entry(root).or_default().outputs.push(index);
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
                if let Some(class) = classes.get_mut(&root) {
                    class.inputs.push(AxisIndex { value, axis: info.axis, size: info.size, index });
                }
            }
        }
        Some(classes.into_values().collect())
    }
}
