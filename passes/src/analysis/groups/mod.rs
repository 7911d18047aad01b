//! Dependency groups: which channels can only be removed together, through any topology.
//!
//! Every place (tensor, axis, index) is an atom. Operators tie atoms to each other (the rules): output channel 3
//! of a convolution to row 3 of its weight, through an activation and an `Add` to channel 3 of another
//! branch, through a `Flatten` to features 3·h·w … of a matrix. A class of tied atoms is a *unit*: remove all of it,
//! and the graph still fits together. Units that lie along the same axes form a [`Group`]. What reaches an input or
//! output of the graph, or an operator that mixes indices or is not known, stays whole, and the group says why.
//!
//! The idea is that of DepGraph (Fang et al. 2023), on indices instead of layers: so concatenation, splitting, channel
//! shuffles and packed attention need no cases of their own.

pub mod cost;
pub mod cut;
mod kind;
mod local;
pub mod roles;
mod rules;
#[cfg(test)]
pub(crate) mod tests;
mod tracer;

pub use kind::GroupKind;
pub use local::{AxisIndex, LocalTracer};
pub use tracer::{Site, Slot, site_of};

use pare_graph::{Edge, Graph, NodeId, NodeRef, ValueRef};
use std::collections::{BTreeMap, HashMap, HashSet};
use tracer::{AxisInfo, Tracer};

pub use crate::framework::glob::matches;
pub(crate) use rules::rule;
pub use rules::sums;

/// Which units of each group stay, by the group's place in [`Groups::groups`]. A group that is not named stays whole.
pub type Keep = BTreeMap<usize, Vec<bool>>;

/// Units that lie along the same axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Name: of the first node whose weights make its channels.
    pub name: String,
    /// How many units it has.
    pub width: usize,
    /// What its units are.
    pub kind: GroupKind,
    /// The axes it lies along, in the order of the graph.
    pub members: Vec<Member>,
    /// Why it cannot lose units; `None` if it can.
    pub pinned: Option<String>,
}

/// An axis along which units lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The tensor.
    pub site: Site,
    /// Its axis.
    pub axis: usize,
    /// Indices that belong to each unit.
    pub per_unit: usize,
}

/// All groups of a graph, and to which unit each index of each axis belongs.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// Groups in the order of the graph; first those that can lose units, then those that stay whole.
    pub groups: Vec<Group>,
    axes: Vec<AxisInfo>,
    index: HashMap<(Site, usize), usize>,
    /// Group and unit of every atom.
    owner: Vec<Option<(u32, u32)>>,
}

impl Groups {
    /// Find all groups. Facts must have been inferred.
    pub fn of(graph: &Graph) -> Self {
        let natures = traced(graph, None).natures();
        let tracer = traced(graph, Some(natures));
        collect(graph, tracer)
    }

    /// Groups that can lose units, with their places in `groups`.
    pub fn prunable(&self) -> impl Iterator<Item = (usize, &Group)> {
        self.groups.iter().enumerate().filter(|(_, g)| g.pinned.is_none())
    }

    /// The axes of tensors that any unit lies along.
    pub fn axes(&self) -> impl Iterator<Item = (Site, usize)> + '_ {
        self.axes.iter().map(|a| (a.site, a.axis))
    }

    /// Group and unit of each index of an axis; `None` for an axis that is not traced.
    pub fn owners(&self, site: Site, axis: usize) -> Option<&[Option<(u32, u32)>]> {
        let info = self.axes[*self.index.get(&(site, axis))?];
        Some(&self.owner[info.base..info.base + info.size])
    }

    /// The indices that stay along an axis when of some groups only some units do; `None` if all of them stay.
    pub fn kept(&self, keep: &Keep, site: Site, axis: usize) -> Option<Vec<usize>> {
        let owners = self.owners(site, axis)?;
        let stays = |&(group, unit): &(u32, u32)| {
            keep.get(&(group as usize)).is_none_or(|units| units[unit as usize])
        };
        let kept: Vec<_> = (0..owners.len()).filter(|&i| owners[i].as_ref().is_none_or(stays)).collect();
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

    /// The groups whose units some node adds up: what a cut takes from there others can make up for.
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

    /// The groups that lie along an axis.
    pub fn groups_along(&self, site: Site, axis: usize) -> Vec<usize> {
        let owners = self.owners(site, axis).unwrap_or_default();
        let mut groups: Vec<_> = owners.iter().flatten().map(|(g, _)| *g as usize).collect();
        groups.dedup();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

fn traced(graph: &Graph, natures: Option<HashMap<(Site, usize), tracer::Nature>>) -> Tracer<'_> {
    let mut tracer = Tracer::new(graph, natures);
    let mut ends: Vec<_> = graph.inputs().iter().map(|&v| (v, "input")).collect();
    ends.extend(graph.outputs().iter().map(|&v| (v, "output")));
    for (value, what) in ends {
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
            // A subgraph may read anything of this graph.
            if !graph.captured_by(id).is_empty() || at.node().subgraphs().next().is_some() {
                return None;
            }
            (rule(at)?.trace)(tracer, at)
        });
        for captured in graph.captured_by(id) {
            let Some(shape) = graph.value_ref(captured).shape() else { continue };
            for (axis, dim) in shape.iter().enumerate() {
                if let Some(axis) = dim.size().and_then(|s| tracer.axis_of(Site::Value(captured), axis, s)) {
                    tracer.pin_because(axis, format!("{} uses it inside", at.describe()));
                }
            }
        }
    }
    tracer
}

/// Gather classes of atoms to units, and units to groups.
fn collect(graph: &Graph, mut tracer: Tracer<'_>) -> Groups {
    let atoms = tracer.axes.last().map_or(0, |a| a.base + a.size);
    let roots: Vec<_> = (0..atoms).map(|atom| tracer.root(atom)).collect();
    let weights: Vec<_> = tracer.axes.iter().map(|a| is_weight(graph, a.site)).collect();
    let mut reason = vec![None; atoms];
    let mut pinned: Vec<_> = tracer.pinned.iter().map(|(&axis, &why)| (why, axis)).collect();
    pinned.sort_unstable();
    for (why, axis) in pinned {
        let info = tracer.axes[axis];
        for &root in &roots[info.base..info.base + info.size] {
            reason[root].get_or_insert(why);
        }
    }
    // The axes of every class that holds weights, with repetition, in ascending order: one list, cut by class.
    let (mut learnt, mut end) = (vec![false; atoms], vec![0_usize; atoms + 1]);
    for (info, &weight) in tracer.axes.iter().zip(&weights) {
        for &root in &roots[info.base..info.base + info.size] {
            learnt[root] |= weight;
            end[root + 1] += 1;
        }
    }
    for root in 0..atoms {
        end[root + 1] = end[root] + if learnt[root] { end[root + 1] } else { 0 };
    }
    let mut along = vec![0_u32; end[atoms]];
    let mut next = end.clone();
    for (id, info) in tracer.axes.iter().enumerate() {
        for &root in roots[info.base..info.base + info.size].iter().filter(|&&r| learnt[r]) {
            along[next[root]] = id as u32;
            next[root] += 1;
        }
    }
    let mut place = HashMap::<(&[u32], Option<usize>), usize>::new();
    let mut found: Vec<(&[u32], Option<usize>, u32)> = vec![];
    let mut unit_of = vec![None; atoms];
    for root in (0..atoms).filter(|&r| learnt[r]) {
        let (axes, why) = (&along[end[root]..end[root + 1]], reason[root]);
        let group = *place.entry((axes, why)).or_insert_with(|| {
            found.push((axes, why, 0));
            found.len() - 1
        });
        unit_of[root] = Some((group as u32, found[group].2));
        found[group].2 += 1;
    }
    // What holds no activation is the inside of a weight; a single unit has no choice.
    let shown = |&(axes, why, width): &(&[u32], Option<usize>, u32)| {
        let active = axes.iter().any(|&a| !is_static(graph, tracer.axes[a as usize].site));
        if why.is_some() { active } else { width > 1 }
    };
    // Those that can lose units first.
    let mut order: Vec<_> = (0..found.len()).filter(|&g| shown(&found[g])).collect();
    order.sort_by_key(|&g| found[g].1.is_some());
    let mut rank = vec![None; found.len()];
    order.iter().enumerate().for_each(|(new, &old)| rank[old] = Some(new as u32));
    let groups = order.iter().map(|&g| {
        let (axes, why, width) = found[g];
        let mut members: Vec<Member> = vec![];
        for &a in axes {
            let AxisInfo { site, axis, .. } = tracer.axes[a as usize];
            match members.last_mut() {
                Some(last) if (last.site, last.axis) == (site, axis) => last.per_unit += 1,
                _ => members.push(Member { site, axis, per_unit: 1 }),
            }
        }
        let pinned = why.map(|w| tracer.reasons[w].clone());
        Group {
            name: name(graph, &members),
            width: width as usize,
            kind: GroupKind::Channels,
            members,
            pinned,
        }
    });
    let groups = groups.collect();
    let owner = |&root: &usize| {
        let (group, unit): (u32, u32) = unit_of[root]?;
        Some((rank[group as usize]?, unit))
    };
    let owner = roots.iter().map(owner).collect();
    let mut groups = Groups { groups, owner, index: tracer.index, axes: tracer.axes };
    kind::classify(graph, &mut groups, &tracer.heads);
    groups
}

/// Whether it holds numbers that were learnt: a constant that is no shape or index.
fn is_weight(graph: &Graph, site: Site) -> bool {
    let Some(constant) = constant_of(graph, site) else { return false };
    let dequantized = |(at, wire): (NodeRef<'_>, Edge)| at.is("DequantizeLinear") && wire == Edge::Input(0);
    constant.value().tensor().is_some_and(|t| t.dtype().is_float())
        || constant.users().into_iter().any(dequantized)
}

/// Whether no activation lies there: a constant, or one that is dequantized.
fn is_static(graph: &Graph, site: Site) -> bool {
    let dequantized = |id| {
        let producer = graph.value_ref(id).producer().filter(|at| at.is("DequantizeLinear"));
        producer.is_some_and(|at| at.input(0).is_ok_and(ValueRef::is_constant))
    };
    constant_of(graph, site).is_some() || matches!(site, Site::Value(id) if dequantized(id))
}

/// The constant at a site, if it is one.
pub fn constant_of(graph: &Graph, site: Site) -> Option<ValueRef<'_>> {
    let value = match site {
        Site::Value(id) => graph.value_ref(id),
        Site::Use(node, slot) => graph.at(node).optional(slot)?,
    };
    value.value().tensor().is_some().then_some(value)
}

/// The name of the first node whose weights make the channels, or of the first weight.
fn name(graph: &Graph, members: &[Member]) -> String {
    let makes = |m: &&Member| {
        let Site::Value(id) = m.site else { return None };
        let (node, _) = graph.producer(id)?;
        let linear = ["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather"];
        linear.contains(&graph.node(node).op.as_str()).then_some(node)
    };
    let first: Option<NodeId> = members.iter().find_map(|m| makes(&m));
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
