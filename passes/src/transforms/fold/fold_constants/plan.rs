//! Which constant values are stored, so that the file does not grow too much.
//!
//! Backwards through the constant nodes: one with outputs that are still used is replaced by these, if they are worth
//! their bytes, and then its inputs lose a use, perhaps their last, which gives bytes back. Otherwise it stays, and so
//! do the uses of its inputs. Nodes that share large constants are weighed together first: two halves of a
//! weight take no more than the weight.

use super::{NODE, SMALL, region::Region};
use pare_graph::{Attribute, Fact, Graph, NodeId, ValueId};
use petgraph::unionfind::UnionFind;
use std::collections::{HashMap, HashSet};

/// What is stored.
#[derive(Default)]
pub(super) struct Plan {
    /// Nodes that go, each with those of its outputs that become constants; from the end of the graph to its start.
    pub folds: Vec<(NodeId, Vec<ValueId>)>,
    /// Bytes by which the file grows. Values of which the size was not known count nothing.
    pub growth: i64,
    /// What stays an operator, with the bytes it would add.
    pub too_large: Vec<(ValueId, u64)>,
}

impl Plan {
    /// A plan under which the file grows by no more than `room`, small constants apart.
    pub fn new(graph: &Graph, region: &Region<'_>, room: i64) -> Self {
        let cluster = clusters(graph, region);
        // As if there were room for everything: by how much does each cluster grow?
        let mut growth = vec![0; region.nodes.len()];
        let mut weighing = Weighing::of(graph, region);
        for (i, &node) in region.nodes.iter().enumerate().rev() {
            growth[cluster[i]] += weighing.fold(node).map_or(0, |fold| fold.growth);
        }
        let mut order: Vec<_> = (0..growth.len()).filter(|&i| cluster[i] == i).collect();
        order.sort_by_key(|&i| growth[i]);
        let mut left = room;
        let fits = |&i: &usize| {
            let fits = growth[i] <= left.max(0);
            left -= if fits { growth[i] } else { 0 };
            fits
        };
        let fitting: HashSet<_> = order.into_iter().filter(fits).collect();

        let constant: HashSet<_> = region.nodes.iter().copied().collect();
        let mut plan = Self::default();
        let mut weighing = Weighing::of(graph, region);
        for (i, &node) in region.nodes.iter().enumerate().rev() {
            let Some(fold) = weighing.fold(node) else { continue };
            let whole = fitting.contains(&cluster[i]);
            if !whole && fold.bytes > SMALL && fold.growth > left.max(0) {
                // Only the end of a chain is news; why the rest stays follows from it.
                let ends = |&&v: &&ValueId| {
                    graph.value(v).is_output()
                        || graph.users(v).iter().any(|(user, _)| !constant.contains(user))
                };
                plan.too_large
                    .extend(fold.values.iter().find(ends).map(|&v| (v, fold.growth.unsigned_abs())));
                weighing.undo(&fold);
                continue;
            }
            left -= if whole { 0 } else { fold.growth };
            plan.growth += fold.growth;
            plan.folds.push((node, fold.values));
        }
        plan
    }
}

/// For each constant node a representative of those it shares large constants with, directly or through others.
fn clusters(graph: &Graph, region: &Region<'_>) -> Vec<usize> {
    let mut sets = UnionFind::new(region.nodes.len());
    let mut first: HashMap<ValueId, usize> = HashMap::new();
    for (i, &node) in region.nodes.iter().enumerate() {
        let large = |v: &ValueId| region.size(graph, *v).is_none_or(|bytes| bytes > SMALL);
        let inputs = graph.inputs_of(node).into_iter().flatten();
        for value in inputs.chain(graph.outputs_of(node).into_iter().flatten()).filter(large) {
            sets.union(i, *first.entry(value).or_insert(i));
        }
    }
    sets.into_labeling()
}

/// A node that goes.
struct Fold {
    /// Its outputs that are used and become constants.
    values: Vec<ValueId>,
    /// Their bytes.
    bytes: u64,
    /// By how much the file grows: less what is not used any more.
    growth: i64,
    /// Values that lost a use.
    lost: Vec<ValueId>,
}

/// How often each value is still used.
struct Weighing<'g> {
    graph: &'g Graph,
    region: &'g Region<'g>,
    uses: HashMap<ValueId, usize>,
}

impl<'g> Weighing<'g> {
    fn of(graph: &'g Graph, region: &'g Region<'g>) -> Self {
        Self { graph, region, uses: HashMap::new() }
    }

    fn uses(&mut self, value: ValueId) -> &mut usize {
        self.uses.entry(value).or_insert_with(|| self.graph.use_count(value))
    }

    /// Take a node away. `None` if it has gone with those that used it, or if an output cannot be stored.
    fn fold(&mut self, node: NodeId) -> Option<Fold> {
        let mut values: Vec<_> = self.graph.outputs_of(node).into_iter().flatten().collect();
        values.retain(|&v| *self.uses(v) > 0);
        let storable = |v: &ValueId| {
            self.region.tensor(self.graph, *v).is_some()
                || matches!(&self.graph.value(*v).fact, Fact::Tensor(t) if t.dtype.is_some())
        };
        if values.is_empty() || !values.iter().all(storable) {
            return None;
        }
        let bytes = values.iter().filter_map(|&v| self.region.size(self.graph, v)).sum();
        let (mut released, mut lost) = (NODE, vec![]);
        let mut queue: Vec<_> = self.graph.inputs_of(node).into_iter().flatten().collect();
        while let Some(value) = queue.pop() {
            lost.push(value);
            let uses = self.uses(value);
            *uses = uses.saturating_sub(1);
            if *uses > 0 {
                continue;
            }
            let Some((producer, _)) = self.graph.producer(value) else {
                let constant = self.graph.value(value);
                let freed = !constant.is_captured() || self.region.sole.contains(&constant.name);
                let tensor = constant.tensor().filter(|_| freed);
                released += tensor.map_or(0, |tensor| tensor.size_in_bytes() as u64);
                continue;
            };
            let outputs: Vec<_> = self.graph.outputs_of(producer).into_iter().flatten().collect();
            if outputs.into_iter().all(|v| *self.uses(v) == 0) {
                released += NODE + attribute_bytes(self.graph, producer);
                queue.extend(self.graph.inputs_of(producer).into_iter().flatten());
            }
        }
        Some(Fold { values, bytes, growth: bytes as i64 - released as i64, lost })
    }

    fn undo(&mut self, fold: &Fold) {
        fold.lost.iter().for_each(|&v| *self.uses(v) += 1);
    }
}

/// Bytes of the tensors among the attributes of a node.
pub(super) fn attribute_bytes(graph: &Graph, node: NodeId) -> u64 {
    let bytes = |attribute: &Attribute| match attribute {
        Attribute::Tensor(tensor) => tensor.size_in_bytes() as u64,
        Attribute::Floats(items) => 4 * items.len() as u64,
        Attribute::Ints(items) => 8 * items.len() as u64,
        _ => 0,
    };
    graph.node(node).attributes.values().map(bytes).sum()
}
