//! Who makes the channels of a group and who reads them: the linear operators on either side.

use super::{Groups, Keep, Port, Site, site_of};
use crate::analysis::{
    calibration::{Affine, Linear},
    repair::{Refit, behind},
};
use faer::Mat;
use pare_graph::{Graph, NodeId};
use std::collections::HashSet;

/// A linear operator with its place among the groups.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its node (of a `MatMul` with a bias behind it, the `MatMul`).
    pub node: NodeId,
    /// What it computes.
    pub linear: Linear,
    /// Its weights.
    pub site: Site,
}

/// All linear operators of a graph with weights that are constant or dequantized, in order.
pub fn roles(graph: &Graph) -> Vec<Role> {
    let role = |&node: &NodeId| {
        let at = graph.at(node);
        let linear = Linear::of_quantized(at).ok()?;
        Some(Role { node, linear, site: site_of(at, Port::In(1))? })
    };
    graph.nodes().iter().filter_map(role).collect()
}

/// What to fit anew after a cut, in order: the operators that lose inputs or have `lost` some before, or (`all`) every
/// one behind those that can make up for something.
pub fn refits(
    graph: &Graph,
    roles: &[Role],
    (groups, keep): (&Groups, &Keep),
    lost: &[NodeId],
    all: bool,
) -> Vec<Refit> {
    let mut lost: HashSet<_> = lost.iter().copied().collect();
    lost.extend(roles.iter().filter(|r| r.kept_inputs(groups, keep).is_some()).map(|r| r.node));
    let dirty = behind(graph, &lost);
    let wanted = |r: &&Role| {
        let last = graph.value(r.linear.output).is_output();
        lost.contains(&r.node) || all && dirty.contains(&r.linear.output) && (r.linear.takes_bias() || !last)
    };
    let refit = |r: &Role| Refit {
        node: r.node,
        target: r.linear.output,
        sum: None,
        kept: r.kept_outputs(groups, keep),
        free: None,
        behind: false,
    };
    roles.iter().filter(wanted).map(refit).collect()
}

impl Role {
    /// The groups whose channels it sums over.
    pub fn reads(&self, groups: &Groups) -> Vec<usize> {
        groups.groups_along(self.site, self.linear.weight_axes().1)
    }

    /// The groups whose channels it makes. A depthwise convolution (or another that loses whole groups) passes on what
    /// it reads.
    pub fn makes(&self, groups: &Groups) -> Vec<usize> {
        if self.passes_on(groups) {
            vec![]
        } else {
            groups.groups_along(self.site, self.linear.weight_axes().0)
        }
    }

    /// Whether it loses whole groups, so that what it makes are the units that it reads.
    pub fn passes_on(&self, groups: &Groups) -> bool {
        self.linear.groups > 1 && self.reads(groups).is_empty()
    }

    /// The channels it still reads; `None` if all.
    pub fn kept_inputs(&self, groups: &Groups, keep: &Keep) -> Option<Vec<usize>> {
        groups.kept(keep, self.site, self.linear.weight_axes().1)
    }

    /// The outputs it still makes; `None` if all.
    pub fn kept_outputs(&self, groups: &Groups, keep: &Keep) -> Option<Vec<usize>> {
        groups.kept(keep, self.site, self.linear.weight_axes().0)
    }

    /// The numbers of a row that belong to these channels.
    pub fn columns(&self, channels: &[usize]) -> Vec<usize> {
        let taps = self.linear.taps();
        channels.iter().flat_map(|&c| c * taps..(c + 1) * taps).collect()
    }

    /// The numbers of a row that belong to each unit of a group.
    pub fn unit_columns(&self, groups: &Groups, group: usize) -> Vec<Vec<usize>> {
        let units = groups.units_along(group, self.site, self.linear.weight_axes().1);
        units.into_iter().map(|channels| self.columns(&channels)).collect()
    }

    /// Weights and bias of each of its groups.
    pub fn maps(&self, graph: &Graph) -> Option<Vec<Affine>> {
        let (bias, o) = (self.linear.bias(graph)?, self.linear.outputs);
        let map = |q: usize| {
            let weight: Mat<f64> = self.linear.weight(graph, q)?;
            Some(Affine { weight, bias: bias[q * o..(q + 1) * o].to_vec() })
        };
        (0..self.linear.groups).map(map).collect()
    }
}
