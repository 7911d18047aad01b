//! Union-find over atoms (tensor, axis, index), which the rules of operators tie together.

use pare_graph::{Dim, Graph, NodeId, NodeRef, ValueId, ValueRef};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// A tensor whose axes are traced. Vectors are distinguished by their use, since exporters let layers share
/// equal vectors; larger constants are one tensor for all their users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// A value.
    Value(ValueId),
    /// A constant vector as this input of this node.
    Use(NodeId, usize),
}

/// An input or output of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The input with this index.
    In(usize),
    /// The output with this index.
    Out(usize),
}

/// An axis of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct AxisInfo {
    /// The tensor.
    pub site: Site,
    /// The axis.
    pub axis: usize,
    /// The first atom.
    pub base: usize,
    /// The size of the axis.
    pub size: usize,
}

/// The use of an axis and of all axes that are tied to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AxisUse {
    /// It counts independent products of two activations: the heads of attention.
    pub heads: bool,
    /// It cannot lose an index.
    pub pinned: bool,
}

/// The use of each axis.
pub type AxisUses = HashMap<(Site, usize), AxisUse>;

/// Longer axes are not traced: no weight is that wide, vocabularies and images are.
const MAX_SIZE: usize = 1 << 17;

/// Axes of one side of a segment of a reshape.
#[derive(Clone, Default)]
struct SegmentSide {
    /// The number of axes, of any size.
    count: usize,
    /// The axes of known size.
    axes: Vec<usize>,
}

/// Ties atoms while nodes are visited. In a *coarse* run each axis is one atom, and only the uses of axes are
/// determined.
pub struct Tracer<'g> {
    pub graph: &'g Graph,
    pub axes: Vec<AxisInfo>,
    pub index: HashMap<(Site, usize), usize>,
    parent: Vec<u32>,
    /// Axes that cannot lose an index, with the index of the reason.
    pub pinned: HashMap<usize, usize>,
    pub reasons: Vec<String>,
    /// Axes that count independent products of two activations.
    pub heads: HashSet<usize>,
    /// Axes of the input and of the output that a reshape merges or splits.
    segments: Vec<[SegmentSide; 2]>,
    /// `None` in a coarse run.
    uses: Option<AxisUses>,
    /// Axes of the visited node that its rule has handled.
    handled: HashSet<(Slot, usize)>,
    at: Option<NodeId>,
}

impl<'g> Tracer<'g> {
    /// A tracer of indices, given the uses of axes that a coarse run found; `None` for a coarse run.
    pub fn new(graph: &'g Graph, uses: Option<AxisUses>) -> Self {
        Self {
            graph,
            axes: vec![],
            index: HashMap::new(),
            parent: vec![],
            pinned: HashMap::new(),
            reasons: vec![],
            heads: HashSet::new(),
            segments: vec![],
            uses,
            handled: HashSet::new(),
            at: None,
        }
    }

    /// Removes all atoms and ties.
    pub fn clear(&mut self) {
        self.axes.clear();
        self.index.clear();
        self.parent.clear();
        self.pinned.clear();
        self.reasons.clear();
        self.heads.clear();
    }

    /// Visits a node: `trace` ties its axes. Every axis that it does not handle is pinned, and all axes if it
    /// returns `None`.
    pub fn visit(&mut self, at: NodeRef<'g>, trace: impl FnOnce(&mut Self, NodeRef<'g>) -> Option<()>) {
        self.handled.clear();
        self.at = Some(at.id);
        let complete = trace(self, at).is_some();
        let ins = at.inputs().into_iter().enumerate().map(|(i, v)| (Slot::In(i), v));
        let outs = at.outputs().into_iter().enumerate().map(|(i, v)| (Slot::Out(i), v));
        let mut reason = None;
        for (slot, value) in ins.chain(outs).collect::<Vec<_>>() {
            let Some(rank) = value.and_then(|v| v.shape().map(<[Dim]>::len)) else { continue };
            for axis in 0..rank {
                if complete && self.handled.contains(&(slot, axis)) {
                    continue;
                }
                let Some(id) = self.find_axis(at, slot, axis) else { continue };
                let reason = *reason.get_or_insert_with(|| {
                    self.reasons.push(reads_entire_axis(&at.describe()));
                    self.reasons.len() - 1
                });
                self.pinned.entry(id).or_insert(reason);
            }
        }
        self.at = None;
    }

    fn find_axis(&mut self, at: NodeRef<'_>, slot: Slot, axis: usize) -> Option<usize> {
        let site = site_of(at, slot)?;
        let size = dims(at, slot)?.get(axis)?.size()?;
        self.axis_of(site, axis, size)
    }

    /// Returns the axis of a tensor, which is added with its size if it is new; `None` if it is too long.
    pub fn axis_of(&mut self, site: Site, axis: usize, size: usize) -> Option<usize> {
        if let Some(&id) = self.index.get(&(site, axis)) {
            return Some(id);
        }
        let atoms = if self.is_coarse() { 1 } else { size };
        if size > MAX_SIZE || u32::try_from(self.parent.len() + atoms).is_err() {
            return None;
        }
        let (id, base) = (self.axes.len(), self.parent.len());
        self.axes.push(AxisInfo { site, axis, base, size });
        self.parent.extend(base as u32..(base + atoms) as u32);
        self.index.insert((site, axis), id);
        Some(id)
    }

    /// Marks an axis of an operand as handled and returns it; `None` if its size is unknown or too large.
    pub fn handled_axis(&mut self, slot: Slot, axis: usize) -> Option<usize> {
        let at = self.graph.at(self.at?);
        self.handled.insert((slot, axis));
        self.find_axis(at, slot, axis)
    }

    /// Marks an axis as handled: it may lose indices as far as this node is concerned.
    pub fn handle(&mut self, slot: Slot, axis: usize) {
        self.handled.insert((slot, axis));
    }

    /// Marks all axes of an operand as handled.
    pub fn handle_all(&mut self, slot: Slot) {
        (0..self.rank(slot).unwrap_or(0)).for_each(|axis| self.handle(slot, axis));
    }

    /// The rank of an operand.
    pub fn rank(&self, slot: Slot) -> Option<usize> {
        self.dims(slot).map(<[Dim]>::len)
    }

    /// The shape of an operand.
    pub fn dims(&self, slot: Slot) -> Option<&'g [Dim]> {
        dims(self.graph.at(self.at?), slot)
    }

    /// Returns whether the input is a constant.
    pub fn is_constant(&self, slot: usize) -> bool {
        self.at.is_some_and(|id| self.graph.at(id).optional(slot).is_some_and(ValueRef::is_constant))
    }

    /// Ties index `i` of both axes, for all `i`.
    pub fn tie(&mut self, a: (Slot, usize), b: (Slot, usize)) {
        let (x, y) = (self.handled_axis(a.0, a.1), self.handled_axis(b.0, b.1));
        self.tie_axes(x, y);
    }

    /// Ties index `i` of both axes, for all `i`. If one is not traced or the sizes differ, both are pinned.
    pub fn tie_axes(&mut self, a: Option<usize>, b: Option<usize>) {
        match (a, b) {
            (Some(a), Some(b)) if self.axes[a].size == self.axes[b].size => {
                let atoms = if self.is_coarse() { 1 } else { self.axes[a].size };
                let (a, b) = (self.axes[a].base, self.axes[b].base);
                (0..atoms).for_each(|i| self.join(a + i, b + i));
            }
            (a, b) => a.into_iter().chain(b).for_each(|axis| self.pin_axis(axis)),
        }
    }

    /// Ties index `i` of axis `a` to index `j` of axis `b`, for these pairs; not in a coarse run.
    pub fn map(&mut self, a: usize, b: usize, pairs: impl IntoIterator<Item = (usize, usize)>) {
        if self.is_coarse() {
            return;
        }
        let (a, b) = (self.axes[a].base, self.axes[b].base);
        pairs.into_iter().for_each(|(i, j)| self.join(a + i, b + j));
    }

    /// Pins an axis of an operand of the visited node.
    pub fn pin(&mut self, slot: Slot, axis: usize) {
        if let Some(axis) = self.handled_axis(slot, axis) {
            self.pin_axis(axis);
        }
    }

    /// Pins an axis on behalf of the visited node.
    pub fn pin_axis(&mut self, axis: usize) {
        let node = self.at.map_or_else(String::new, |id| self.graph.describe(id));
        self.pin_because(axis, reads_entire_axis(&node));
    }

    /// Pins an axis for this reason, unless it is pinned already.
    pub fn pin_because(&mut self, axis: usize, reason: String) {
        if !self.pinned.contains_key(&axis) {
            self.reasons.push(reason);
            self.pinned.insert(axis, self.reasons.len() - 1);
        }
    }

    /// Records that an axis counts independent products of two activations.
    pub fn mark_heads(&mut self, slot: Slot, axis: usize) {
        if let Some(axis) = self.handled_axis(slot, axis) {
            self.heads.insert(axis);
        }
    }

    /// Records, in a coarse run, that a reshape turns these axes of input 0 into these of output 0.
    pub fn add_segment(&mut self, from: &Range<usize>, to: &Range<usize>) {
        if self.is_coarse() {
            let side = |t: &mut Self, slot, axes: &Range<usize>| SegmentSide {
                count: axes.len(),
                axes: axes.clone().filter_map(|axis| t.handled_axis(slot, axis)).collect(),
            };
            let segment = [side(self, Slot::In(0), from), side(self, Slot::Out(0), to)];
            self.segments.push(segment);
        }
    }

    /// The use of an axis of an operand.
    pub fn axis_use(&self, slot: Slot, axis: usize) -> AxisUse {
        let site = self.at.and_then(|id| site_of(self.graph.at(id), slot));
        let known = self.uses.as_ref().zip(site).and_then(|(uses, site)| uses.get(&(site, axis)));
        known.copied().unwrap_or_default()
    }

    /// Returns whether each axis is one atom.
    pub fn is_coarse(&self) -> bool {
        self.uses.is_none()
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The smaller root remains, so units are in the order of their first atoms.
        match a.cmp(&b) {
            std::cmp::Ordering::Less => self.parent[b] = a as u32,
            std::cmp::Ordering::Greater => self.parent[a] = b as u32,
            std::cmp::Ordering::Equal => {}
        }
    }

    /// The representative of an atom.
    pub fn root(&mut self, mut atom: usize) -> usize {
        while self.parent[atom] as usize != atom {
            let grandparent = self.parent[self.parent[atom] as usize];
            self.parent[atom] = grandparent;
            atom = grandparent as usize;
        }
        atom
    }

    /// Returns the uses of all axes, after a coarse run.
    pub fn axis_uses(mut self) -> AxisUses {
        let mut of_root = HashMap::<usize, AxisUse>::new();
        let (heads, pinned) = (self.heads.clone(), self.pinned.keys().copied().collect::<Vec<_>>());
        for axis in heads {
            of_root.entry(self.root_of_axis(axis)).or_default().heads = true;
        }
        for axis in pinned {
            of_root.entry(self.root_of_axis(axis)).or_default().pinned = true;
        }
        while self.propagate_heads(&mut of_root) {}
        let infos = self.axes.clone();
        let axis_use = |info: AxisInfo| {
            let root = self.root(info.base);
            ((info.site, info.axis), of_root.get(&root).copied().unwrap_or_default())
        };
        infos.into_iter().map(axis_use).collect()
    }

    fn root_of_axis(&mut self, axis: usize) -> usize {
        self.root(self.axes[axis].base)
    }

    /// Marks axes as heads that a reshape turns into an axis of heads if no other axis of the segment can
    /// lose an index: those of grouped keys and values, which are repeated. Returns whether there are new
    /// ones.
    fn propagate_heads(&mut self, of_root: &mut HashMap<usize, AxisUse>) -> bool {
        let segments = std::mem::take(&mut self.segments);
        let mut changed = false;
        for [a, b] in &segments {
            for (one, many) in [(a, b), (b, a)] {
                let &[only] = &one.axes[..] else { continue };
                let root = self.root_of_axis(only);
                if one.count != 1 || !of_root.get(&root).is_some_and(|u| u.heads) {
                    continue;
                }
                let wide = many.axes.iter().filter(|&&m| self.axes[m].size > 1).copied().collect::<Vec<_>>();
                let roots = wide.into_iter().map(|m| self.root_of_axis(m));
                let open = roots.filter(|r| !of_root.get(r).is_some_and(|u| u.pinned)).collect::<Vec<_>>();
                if let [open] = open[..] {
                    let heads = &mut of_root.entry(open).or_default().heads;
                    changed |= !*heads;
                    *heads = true;
                }
            }
        }
        self.segments = segments;
        changed
    }
}

/// The reason for pinning an axis because of a node.
fn reads_entire_axis(node: &str) -> String {
    format!("{node} reads the entire axis")
}

/// The value in a slot of a node.
pub(super) fn operand(at: NodeRef<'_>, slot: Slot) -> Option<ValueRef<'_>> {
    match slot {
        Slot::In(slot) => at.optional(slot),
        Slot::Out(slot) => at.outputs().get(slot).copied().flatten(),
    }
}

fn dims(at: NodeRef<'_>, slot: Slot) -> Option<&[Dim]> {
    operand(at, slot)?.shape()
}

/// The site in a slot of a node.
pub fn site_of(at: NodeRef<'_>, slot: Slot) -> Option<Site> {
    let value = operand(at, slot)?;
    let Slot::In(slot) = slot else { return Some(Site::Value(value.id)) };
    match value.value().tensor() {
        // A vector may have further axes of size 1.
        Some(t) if t.shape().iter().filter(|&&d| d > 1).count() <= 1 => Some(Site::Use(at.id, slot)),
        _ => Some(Site::Value(value.id)),
    }
}
