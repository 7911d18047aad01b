//! Collection of tied atoms into units, and of units into groups.

use super::{AxisInfo, Group, GroupKind, Groups, Member, is_static, is_weight, kind, name, tracer::Tracer};
use pare_graph::Graph;
use std::collections::HashMap;

/// The classes of tied atoms, by their root.
struct Classes {
    /// The root of each atom.
    roots: Vec<usize>,
    /// True if a class holds weights.
    has_weights: Vec<bool>,
    /// The reason for which a class is pinned.
    reasons: Vec<Option<usize>>,
    /// The axes of all classes with weights, with repetition: those of root `r` are `ends[r]..ends[r + 1]`,
    /// ascending.
    axes: Vec<u32>,
    ends: Vec<usize>,
}

impl Classes {
    fn of(graph: &Graph, tracer: &mut Tracer<'_>) -> Self {
        let atoms = tracer.axes.last().map_or(0, |a| a.base + a.size);
        let roots: Vec<_> = (0..atoms).map(|atom| tracer.root(atom)).collect();
        let of_axis = |info: &AxisInfo| &roots[info.base..info.base + info.size];
        let mut reasons = vec![None; atoms];
        let mut pinned: Vec<_> = tracer.pinned.iter().map(|(&axis, &why)| (why, axis)).collect();
        pinned.sort_unstable();
        for (why, axis) in pinned {
            for &root in of_axis(&tracer.axes[axis]) {
                reasons[root].get_or_insert(why);
            }
        }
        let (mut has_weights, mut ends) = (vec![false; atoms], vec![0_usize; atoms + 1]);
        for info in &tracer.axes {
            let weight = is_weight(graph, info.site);
            for &root in of_axis(info) {
                has_weights[root] |= weight;
                ends[root + 1] += 1;
            }
        }
        for root in 0..atoms {
            ends[root + 1] = ends[root] + if has_weights[root] { ends[root + 1] } else { 0 };
        }
        let mut axes = vec![0_u32; ends[atoms]];
        let mut next = ends.clone();
        for (id, info) in tracer.axes.iter().enumerate() {
            for &root in of_axis(info).iter().filter(|&&r| has_weights[r]) {
                axes[next[root]] = id as u32;
                next[root] += 1;
            }
        }
        Self { roots, has_weights, reasons, axes, ends }
    }

    /// The axes of a class, with repetition.
    fn axes(&self, root: usize) -> &[u32] {
        &self.axes[self.ends[root]..self.ends[root + 1]]
    }
}

/// Classes with the same axes and the same reason for which they are pinned.
#[derive(Clone, Copy)]
struct FoundGroup<'a> {
    axes: &'a [u32],
    why: Option<usize>,
    width: u32,
}

/// Collects classes of atoms into units, and units into groups.
pub(super) fn collect(graph: &Graph, mut tracer: Tracer<'_>) -> Groups {
    let classes = Classes::of(graph, &mut tracer);
    let atoms = classes.roots.len();
    let mut index = HashMap::<(&[u32], Option<usize>), usize>::new();
    let mut found: Vec<FoundGroup<'_>> = vec![];
    let mut unit_of = vec![None; atoms];
    for root in (0..atoms).filter(|&r| classes.has_weights[r]) {
        let (axes, why) = (classes.axes(root), classes.reasons[root]);
        let group = *index.entry((axes, why)).or_insert_with(|| {
            found.push(FoundGroup { axes, why, width: 0 });
            found.len() - 1
        });
        unit_of[root] = Some((group as u32, found[group].width));
        found[group].width += 1;
    }
    // Pinned groups without activations are inner axes of weights. The only unit of a group cannot be
    // removed.
    let is_reported = |group: &FoundGroup<'_>| {
        let active = group.axes.iter().any(|&a| !is_static(graph, tracer.axes[a as usize].site));
        if group.why.is_some() { active } else { group.width > 1 }
    };
    // Groups that can lose units come first.
    let mut order: Vec<_> = (0..found.len()).filter(|&g| is_reported(&found[g])).collect();
    order.sort_by_key(|&g| found[g].why.is_some());
    let mut rank = vec![None; found.len()];
    order.iter().enumerate().for_each(|(new, &old)| rank[old] = Some(new as u32));
    let groups = order.iter().map(|&g| {
        let FoundGroup { axes, why, width } = found[g];
        let members = members(axes, &tracer);
        Group {
            name: name(graph, &members),
            width: width as usize,
            kind: GroupKind::Channels,
            members,
            pinned: why.map(|w| tracer.reasons[w].clone()),
        }
    });
    let groups = groups.collect();
    let owner = |&root: &usize| {
        let (group, unit): (u32, u32) = unit_of[root]?;
        Some((rank[group as usize]?, unit))
    };
    let owner = classes.roots.iter().map(owner).collect();
    let mut groups = Groups { groups, owner, index: tracer.index, axes: tracer.axes };
    kind::classify(graph, &mut groups, &tracer.heads);
    groups
}

/// The distinct axes of a class, with the number of their repetitions.
fn members(axes: &[u32], tracer: &Tracer<'_>) -> Vec<Member> {
    let mut members: Vec<Member> = vec![];
    for &a in axes {
        let AxisInfo { site, axis, .. } = tracer.axes[a as usize];
        match members.last_mut() {
            Some(last) if (last.site, last.axis) == (site, axis) => last.per_unit += 1,
            _ => members.push(Member { site, axis, per_unit: 1 }),
        }
    }
    members
}
