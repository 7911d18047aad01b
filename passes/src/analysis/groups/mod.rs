//! Dependency groups: channels that can only be removed together, through any topology.
//!
//! Every (tensor, axis, index) is an *atom*. The rules of the operators tie atoms together: output channel 3
//! of a convolution to row 3 of its weight, through an activation and an `Add` to channel 3 of another
//! branch, through a `Flatten` to the features from 3·h·w on of a matrix. A class of tied atoms is a *unit*:
//! the graph stays consistent if all of it is removed. Units along the same axes form a [`Group`]. An axis
//! that reaches an input or output of the graph, or an operator that mixes its indices or has no rule, is
//! *pinned*: it keeps all its indices, and the group records the reason.
//!
//! This is the idea of DepGraph (Fang et al. 2023) on indices instead of layers, so concatenation, splitting,
//! channel shuffles and packed attention are not special cases.

mod collect;
pub mod cost;
pub(crate) mod cut;
mod kind;
mod local;
pub(crate) mod roles;
mod rules;
#[cfg(test)]
pub(crate) mod tests;
mod tracer;

pub use kind::GroupKind;
pub(crate) use local::{IndexClass, LocalTracer};
pub use tracer::Site;
pub(crate) use tracer::{Slot, site_of};

use pare_graph::{Edge, Graph, NodeId, NodeRef, ValueRef};
use std::collections::{BTreeMap, HashMap, HashSet};
use tracer::{AxisInfo, AxisUses, Tracer};

pub use crate::framework::glob::matches;
pub(crate) use rules::rule;
pub(crate) use rules::sums;

/// The units that are kept, by the index of their group in [`Groups::groups`]. Groups without an entry keep
/// all units.
pub type Keep = BTreeMap<usize, Vec<bool>>;

/// Units along the same axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The name of the first node whose weights produce the channels.
    pub name: String,
    /// The number of units.
    pub width: usize,
    /// The kind of its units.
    pub kind: GroupKind,
    /// The axes of the units, in the order of the graph.
    pub members: Vec<Member>,
    /// The reason why no unit can be removed; `None` if units can be removed.
    pub pinned: Option<String>,
}

/// An axis of the units of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The tensor.
    pub site: Site,
    /// The axis.
    pub axis: usize,
    /// The number of indices of each unit.
    pub per_unit: usize,
}

/// All groups of a graph, and the unit of each index of each axis.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// The groups in the order of the graph: those that can lose units, then those that are pinned.
    pub groups: Vec<Group>,
    axes: Vec<AxisInfo>,
    index: HashMap<(Site, usize), usize>,
    /// The group and unit of each atom.
    owner: Vec<Option<(u32, u32)>>,
}

impl Groups {
    /// Finds all groups of a graph with inferred shapes.
    pub fn of(graph: &Graph) -> Self {
        let uses = traced(graph, None).axis_uses();
        collect::collect(graph, traced(graph, Some(uses)))
    }

    /// The groups that can lose units, with their indices in `groups`.
    pub fn prunable(&self) -> impl Iterator<Item = (usize, &Group)> {
        self.groups.iter().enumerate().filter(|(_, g)| g.pinned.is_none())
    }

    /// The axes that units are traced along.
    pub fn axes(&self) -> impl Iterator<Item = (Site, usize)> + '_ {
        self.axes.iter().map(|a| (a.site, a.axis))
    }

    /// The group and unit of each index of an axis; `None` for an axis that is not traced.
    pub fn owners(&self, site: Site, axis: usize) -> Option<&[Option<(u32, u32)>]> {
        let info = self.axes[*self.index.get(&(site, axis))?];
        Some(&self.owner[info.base..info.base + info.size])
    }

    /// The indices of an axis that are kept if only some units of some groups are; `None` if all are.
    pub fn kept(&self, keep: &Keep, site: Site, axis: usize) -> Option<Vec<usize>> {
        let owners = self.owners(site, axis)?;
        let is_kept = |&(group, unit): &(u32, u32)| {
            keep.get(&(group as usize)).is_none_or(|units| units[unit as usize])
        };
        let kept: Vec<_> = (0..owners.len()).filter(|&i| owners[i].as_ref().is_none_or(is_kept)).collect();
        (kept.len() < owners.len()).then_some(kept)
    }

    /// The indices of an axis that belong to each unit of a group.
    pub fn units_along(&self, group: usize, site: Site, axis: usize) -> Vec<Vec<usize>> {
        let mut units = vec![vec![]; self.groups[group].width];
        for (i, owner) in self.owners(site, axis).unwrap_or_default().iter().enumerate() {
            if let Some((_, unit)) = owner.filter(|(g, _)| *g as usize == group) {
                units[unit as usize].push(i);
            }
        }
        units
    }

    /// The groups whose units are summed over by some node, so that a refit of its weights can compensate a
    /// removal.
    pub fn summed(&self, graph: &Graph) -> HashSet<usize> {
        let mut found = HashSet::new();
        for &id in graph.nodes().iter() {
            let at = graph.at(id);
            for (slot, axis) in sums(at) {
                let computed = at.optional(slot).is_some_and(|v| !v.is_constant());
                let site = site_of(at, Slot::In(slot)).filter(|_| computed);
                found.extend(site.into_iter().flat_map(|site| self.groups_along(site, axis)));
            }
        }
        found
    }

    /// The groups with units along an axis.
    pub fn groups_along(&self, site: Site, axis: usize) -> Vec<usize> {
        let owners = self.owners(site, axis).unwrap_or_default();
        let mut groups: Vec<_> = owners.iter().flatten().map(|(g, _)| *g as usize).collect();
        groups.dedup();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// Visits all nodes of a graph: see [`Tracer::new`].
fn traced(graph: &Graph, uses: Option<AxisUses>) -> Tracer<'_> {
    let mut tracer = Tracer::new(graph, uses);
    let mut interface: Vec<_> = graph.inputs().iter().map(|&v| (v, "input")).collect();
    interface.extend(graph.outputs().iter().map(|&v| (v, "output")));
    for (value, what) in interface {
        let Some(shape) = graph.value_ref(value).shape() else { continue };
        for (axis, dim) in shape.iter().enumerate() {
            let Some(size) = dim.size() else { continue };
            if let Some(id) = tracer.axis_of(Site::Value(value), axis, size) {
                tracer.pin_because(id, format!("it is the {what} `{}`", graph.value(value).name));
            }
        }
    }
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        tracer.visit(at, |tracer, at| {
            // Axes that a subgraph reads are not traced further.
            if !graph.captured_by(id).is_empty() || at.node().subgraphs().next().is_some() {
                return None;
            }
            (rule(at)?.trace)(tracer, at)
        });
        for captured in graph.captured_by(id) {
            let Some(shape) = graph.value_ref(captured).shape() else { continue };
            for (axis, dim) in shape.iter().enumerate() {
                if let Some(axis) = dim.size().and_then(|s| tracer.axis_of(Site::Value(captured), axis, s)) {
                    tracer.pin_because(axis, format!("a subgraph of {} reads it", at.describe()));
                }
            }
        }
    }
    tracer
}

/// Returns whether a site is a constant of weights rather than a shape or an index.
fn is_weight(graph: &Graph, site: Site) -> bool {
    let Some(constant) = constant_of(graph, site) else { return false };
    let dequantized = |(at, edge): (NodeRef<'_>, Edge)| at.is("DequantizeLinear") && edge == Edge::Input(0);
    constant.value().tensor().is_some_and(|t| t.dtype().is_float())
        || constant.users().into_iter().any(dequantized)
}

/// Returns whether a site is a constant or a dequantized constant.
fn is_static(graph: &Graph, site: Site) -> bool {
    let dequantized = |id| {
        let producer = graph.value_ref(id).producer().filter(|at| at.is("DequantizeLinear"));
        producer.is_some_and(|at| at.input(0).is_ok_and(ValueRef::is_constant))
    };
    constant_of(graph, site).is_some() || matches!(site, Site::Value(id) if dequantized(id))
}

/// Returns the constant at a site.
pub fn constant_of(graph: &Graph, site: Site) -> Option<ValueRef<'_>> {
    let value = match site {
        Site::Value(id) => graph.value_ref(id),
        Site::Use(node, slot) => graph.at(node).optional(slot)?,
    };
    value.value().tensor().is_some().then_some(value)
}

/// Returns the name of the first node whose weights produce the channels, or of the first weight.
fn name(graph: &Graph, members: &[Member]) -> String {
    let producer = |m: &Member| {
        let Site::Value(id) = m.site else { return None };
        let (node, _) = graph.producer(id)?;
        let linear = ["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather"];
        linear.contains(&graph.node(node).op.as_str()).then_some(node)
    };
    let first: Option<NodeId> = members.iter().find_map(producer);
    let named = first.map(|node| (graph.node(node).name.clone(), node));
    match named {
        Some((Some(name), _)) if !name.is_empty() => name,
        Some((_, node)) => {
            let output = graph.outputs_of(node).into_iter().flatten().next();
            output.map_or_else(String::new, |v| graph.value(v).name.clone())
        }
        None => members
            .iter()
            .find_map(|m| constant_of(graph, m.site))
            .map_or_else(String::new, |v| v.name().to_owned()),
    }
}
