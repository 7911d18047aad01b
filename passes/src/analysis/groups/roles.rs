//! The linear operators that produce and read the channels of a group.

use super::{Groups, Keep, Site, Slot, site_of};
use crate::analysis::{
    linear::Linear,
    repair::{Refit, dependents},
};
use pare_graph::{Graph, NodeId};
use std::collections::HashSet;

/// A linear operator and its relation to the groups.
#[derive(Clone, Debug)]
pub struct LinearRole {
    /// The node; of a `MatMul` with a bias added after it, the `MatMul`.
    pub node: NodeId,
    /// The operator.
    pub linear: Linear,
    /// Its weights.
    pub site: Site,
}

/// Returns all linear operators of a graph whose weights are constant or dequantized, in topological order.
pub fn roles(graph: &Graph) -> Vec<LinearRole> {
    let role = |&node: &NodeId| {
        let at = graph.at(node);
        let linear = Linear::of_quantized(at).ok()?;
        Some(LinearRole { node, linear, site: site_of(at, Slot::In(1))? })
    };
    graph.nodes().iter().filter_map(role).collect()
}

/// Returns the operators to refit after a cut, in topological order: those that lose inputs or have `lost`
/// some before. With `all`, also every operator that depends on one of these.
pub fn refits(
    graph: &Graph,
    roles: &[LinearRole],
    groups: &Groups,
    keep: &Keep,
    lost: &[NodeId],
    all: bool,
) -> Vec<Refit> {
    let mut lost: HashSet<_> = lost.iter().copied().collect();
    lost.extend(roles.iter().filter(|r| r.kept_inputs(groups, keep).is_some()).map(|r| r.node));
    let dirty = dependents(graph, &lost);
    let is_wanted = |r: &&LinearRole| {
        let last = graph.value(r.linear.output).is_output();
        lost.contains(&r.node) || all && dirty.contains(&r.linear.output) && (r.linear.takes_bias() || !last)
    };
    let refit = |r: &LinearRole| Refit {
        node: r.node,
        target: r.linear.output,
        sum: None,
        kept: r.kept_outputs(groups, keep),
        free: None,
        output_transform: false,
    };
    roles.iter().filter(is_wanted).map(refit).collect()
}

impl LinearRole {
    /// The groups whose channels it sums over.
    pub fn reads(&self, groups: &Groups) -> Vec<usize> {
        groups.groups_along(self.site, self.linear.weight_axes().1)
    }

    /// The groups whose channels it produces. Empty for operators that pass on the units they read.
    pub fn produces(&self, groups: &Groups) -> Vec<usize> {
        if self.passes_on(groups) {
            vec![]
        } else {
            groups.groups_along(self.site, self.linear.weight_axes().0)
        }
    }

    /// Returns whether its outputs are the units that it reads: it is depthwise, or another convolution that
    /// loses entire groups.
    pub fn passes_on(&self, groups: &Groups) -> bool {
        self.linear.groups > 1 && self.reads(groups).is_empty()
    }

    /// The input channels that are kept; `None` if all.
    pub fn kept_inputs(&self, groups: &Groups, keep: &Keep) -> Option<Vec<usize>> {
        groups.kept(keep, self.site, self.linear.weight_axes().1)
    }

    /// The outputs that are kept; `None` if all.
    pub fn kept_outputs(&self, groups: &Groups, keep: &Keep) -> Option<Vec<usize>> {
        groups.kept(keep, self.site, self.linear.weight_axes().0)
    }

    /// The elements of a row that belong to these channels.
    pub fn columns(&self, channels: &[usize]) -> Vec<usize> {
        let taps = self.linear.taps();
        channels.iter().flat_map(|&c| c * taps..(c + 1) * taps).collect()
    }

    /// The elements of a row that belong to each unit of a group.
    pub fn unit_columns(&self, groups: &Groups, group: usize) -> Vec<Vec<usize>> {
        let units = groups.units_along(group, self.site, self.linear.weight_axes().1);
        units.into_iter().map(|channels| self.columns(&channels)).collect()
    }
}
