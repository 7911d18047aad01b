//! The kinds of groups.

use super::{Group, Groups, Site, Slot, constant_of, site_of, tracer::AxisInfo};
use pare_graph::{Graph, NodeRef};
use std::collections::HashSet;

/// The function of the units of a group in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// Channels inside a block.
    Channels,
    /// Channels of a residual stream, to which several layers add.
    Stream,
    /// Heads of attention.
    Heads,
    /// Hidden units of a feed-forward network: produced and read by matrices only.
    Hidden,
}

impl GroupKind {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Channels => "channels",
            Self::Stream => "stream",
            Self::Heads => "heads",
            Self::Hidden => "hidden",
        }
    }
}

/// Sets the kinds of all groups. `heads` are axes that count independent products of two activations.
pub(super) fn classify(graph: &Graph, groups: &mut Groups, heads: &HashSet<usize>) {
    let streams = streams(graph, groups);
    let heads: HashSet<(Site, usize)> =
        heads.iter().map(|&a| groups.axes[a]).map(|a: AxisInfo| (a.site, a.axis)).collect();
    for (id, group) in groups.groups.iter_mut().enumerate() {
        group.kind = if group.members.iter().any(|m| heads.contains(&(m.site, m.axis))) {
            GroupKind::Heads
        } else if streams.contains(&id) {
            GroupKind::Stream
        } else if is_hidden(graph, group) {
            GroupKind::Hidden
        } else {
            GroupKind::Channels
        };
    }
}

/// Returns the groups along which two activations are added.
fn streams(graph: &Graph, groups: &Groups) -> HashSet<usize> {
    let mut found = HashSet::new();
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if !["Add", "Sub", "Sum"].iter().any(|op| at.is(op)) {
            continue;
        }
        let mut seen = HashSet::new();
        for groups in (0..at.inputs().len()).filter_map(|slot| groups_of_input(at, groups, slot)) {
            found.extend(groups.iter().filter(|g| !seen.insert(**g)).copied().collect::<Vec<_>>());
            seen.extend(groups);
        }
    }
    found
}

/// Returns the groups along the axes of an input that is not constant.
fn groups_of_input(at: NodeRef<'_>, groups: &Groups, slot: usize) -> Option<HashSet<usize>> {
    let value = at.optional(slot).filter(|v| !v.is_constant())?;
    let site = site_of(at, Slot::In(slot))?;
    Some((0..value.rank().ok()?).flat_map(|axis| groups.groups_along(site, axis)).collect())
}

/// Returns whether only matrices produce and read the units.
fn is_hidden(graph: &Graph, group: &Group) -> bool {
    let (mut produced, mut read) = (false, false);
    for member in &group.members {
        let Some(constant) = constant_of(graph, member.site) else { continue };
        let shape = constant.shape().unwrap_or_default();
        if shape.iter().filter(|d| d.known() != Some(1)).count() < 2 {
            continue;
        }
        for (user, _) in constant.users() {
            // The axis of the matrix that is summed over.
            let inner = match user.op() {
                "MatMul" if shape.len() == 2 => 0,
                "Gemm" => usize::from(user.int("transB", 0) != 0),
                _ => return false,
            };
            *(if member.axis == inner { &mut read } else { &mut produced }) = true;
        }
    }
    produced && read
}
