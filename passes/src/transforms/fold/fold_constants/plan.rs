//! Selection of the constant values that are stored, under a limit on the growth of the file.
//!
//! The constant nodes are visited from the end of the graph. A node with used outputs is replaced by these if
//! their bytes fit; its inputs then lose a use, perhaps their last, which releases bytes. Otherwise the node
//! is kept, with the uses of its inputs. Nodes that share large constants are decided together: two halves of
//! a weight need no more bytes than the weight.

use super::{NODE, SMALL, region::Region};
use pare_graph::{Attribute, Fact, Graph, NodeId, ValueId};
use petgraph::unionfind::UnionFind;
use std::collections::{HashMap, HashSet};

/// The constants to store.
#[derive(Default)]
pub(super) struct FoldPlan {
    /// Nodes to remove, each with its used outputs, which become constants; from the end of the graph to its
    /// start.
    pub folds: Vec<(NodeId, Vec<ValueId>)>,
    /// Growth of the file in bytes. Values of unknown size count as 0.
    pub growth: i64,
    /// Values that are too large to store, with the bytes they would add.
    pub too_large: Vec<(ValueId, u64)>,
}

impl FoldPlan {
    /// A plan under which the file grows by at most `room` bytes, not counting small constants.
    pub fn new(graph: &Graph, region: &Region<'_>, room: i64) -> Self {
        let cluster = clusters(graph, region);
        // The growth of each cluster if all of it were folded.
        let mut growth = vec![0; region.nodes.len()];
        let mut uses = UseCounts::of(graph, region);
        for (i, &node) in region.nodes.iter().enumerate().rev() {
            growth[cluster[i]] += uses.fold(node).map_or(0, |fold| fold.growth);
        }
        let mut order: Vec<_> = (0..growth.len()).filter(|&i| cluster[i] == i).collect();
        order.sort_by_key(|&i| growth[i]);
        let mut remaining = room;
        let fits = |&i: &usize| {
            let fits = growth[i] <= remaining.max(0);
            remaining -= if fits { growth[i] } else { 0 };
            fits
        };
        let fitting: HashSet<_> = order.into_iter().filter(fits).collect();

        let constant: HashSet<_> = region.nodes.iter().copied().collect();
        let mut plan = Self::default();
        let mut uses = UseCounts::of(graph, region);
        for (i, &node) in region.nodes.iter().enumerate().rev() {
            let Some(fold) = uses.fold(node) else { continue };
            let cluster_fits = fitting.contains(&cluster[i]);
            if !cluster_fits && fold.bytes > SMALL && fold.growth > remaining.max(0) {
                // Reported for the end of a chain only: the nodes before it follow.
                let ends = |&&v: &&ValueId| {
                    graph.value(v).is_output()
                        || graph.users(v).iter().any(|(user, _)| !constant.contains(user))
                };
                plan.too_large
                    .extend(fold.values.iter().find(ends).map(|&v| (v, fold.growth.unsigned_abs())));
                uses.undo(&fold);
                continue;
            }
            remaining -= if cluster_fits { 0 } else { fold.growth };
            plan.growth += fold.growth;
            plan.folds.push((node, fold.values));
        }
        plan
    }
}

/// The cluster of each constant node: nodes connected by large values, named by a representative.
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

/// The effect of removing one constant node.
struct Fold {
    /// Its used outputs, which become constants.
    values: Vec<ValueId>,
    /// Their bytes.
    bytes: u64,
    /// Growth of the file: `bytes` less the bytes that are no longer used.
    growth: i64,
    /// Values that lose a use.
    lost: Vec<ValueId>,
}

/// The remaining uses of each value while nodes are removed.
struct UseCounts<'g> {
    graph: &'g Graph,
    region: &'g Region<'g>,
    uses: HashMap<ValueId, usize>,
}

impl<'g> UseCounts<'g> {
    fn of(graph: &'g Graph, region: &'g Region<'g>) -> Self {
        Self { graph, region, uses: HashMap::new() }
    }

    fn uses(&mut self, value: ValueId) -> &mut usize {
        self.uses.entry(value).or_insert_with(|| self.graph.use_count(value))
    }

    /// Removes a node. `None` if it was already removed as unused, or if an output cannot be stored.
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
                let freed = !constant.is_captured() || self.region.unshared.contains(&constant.name);
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
