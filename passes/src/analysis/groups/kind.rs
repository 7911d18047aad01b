//! What the units of a group are to the network.

use super::{Group, Groups, Site, Slot, constant_of, site_of, tracer::AxisInfo};
use pare_graph::{Graph, NodeRef};
use std::collections::HashSet;

/// What the units of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupKind {
    /// Channels inside a block.
    Channels,
    /// Channels of a residual stream: what several layers write is added up in them.
    Stream,
    /// Heads of attention.
    Heads,
    /// Hidden units of a feed-forward network: matrices make them, and matrices read them.
    Hidden,
}

impl GroupKind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Channels => "channels",
            Self::Stream => "stream",
            Self::Heads => "heads",
            Self::Hidden => "hidden",
        }
    }
}

/// Find out the kinds of all groups. `heads` are axes that count independent products of two activations.
pub(super) fn classify(graph: &Graph, groups: &mut Groups, heads: &HashSet<usize>) {
    let streams = streams(graph, groups);
    let many: HashSet<(Site, usize)> =
        heads.iter().map(|&a| groups.axes[a]).map(|a: AxisInfo| (a.site, a.axis)).collect();
    for (id, group) in groups.groups.iter_mut().enumerate() {
        group.kind = if group.members.iter().any(|m| many.contains(&(m.site, m.axis))) {
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

/// Groups along which two activations are added.
fn streams(graph: &Graph, groups: &Groups) -> HashSet<usize> {
    let mut found = HashSet::new();
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if !["Add", "Sub", "Sum"].iter().any(|op| at.is(op)) {
            continue;
        }
        let mut seen = HashSet::new();
        for along in (0..at.inputs().len()).filter_map(|slot| along(at, groups, slot)) {
            found.extend(along.iter().filter(|g| !seen.insert(**g)).copied().collect::<Vec<_>>());
            seen.extend(along);
        }
    }
    found
}

/// The groups along an input that is no constant, each once.
fn along(at: NodeRef<'_>, groups: &Groups, slot: usize) -> Option<HashSet<usize>> {
    let value = at.optional(slot).filter(|v| !v.is_constant())?;
    let site = site_of(at, Slot::In(slot))?;
    Some((0..value.rank().ok()?).flat_map(|axis| groups.groups_along(site, axis)).collect())
}

/// Whether only matrices make and read it.
fn is_hidden(graph: &Graph, group: &Group) -> bool {
    let (mut made, mut read) = (false, false);
    for member in &group.members {
        let Some(constant) = constant_of(graph, member.site) else { continue };
        let shape = constant.shape().unwrap_or_default();
        if shape.iter().filter(|d| d.known() != Some(1)).count() < 2 {
            continue;
        }
        for (user, _) in constant.users() {
            // The axis of a matrix that is summed over.
            let inner = match user.op() {
                "MatMul" if shape.len() == 2 => 0,
                "Gemm" => usize::from(user.int("transB", 0) != 0),
                _ => return false,
            };
            *(if member.axis == inner { &mut read } else { &mut made }) = true;
        }
    }
    made && read
}
