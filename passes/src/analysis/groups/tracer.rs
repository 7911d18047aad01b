//! Union-find over places of tensors: every (tensor, axis, index) is an atom, and operators tie atoms together.

use pare_graph::{Dim, Graph, NodeId, NodeRef, ValueId, ValueRef};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// A tensor whose axes are traced. Constants of one axis are told apart by their use, since exporters let layers share
/// a vector that happens to be equal; larger ones are one tensor for all who read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// A value.
    Value(ValueId),
    /// A constant as this input of this node.
    Use(NodeId, usize),
}

/// An input or output of the node at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Input by slot.
    In(usize),
    /// Output by slot.
    Out(usize),
}

/// An axis of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct AxisInfo {
    /// The tensor.
    pub site: Site,
    /// The axis.
    pub axis: usize,
    /// Its first atom.
    pub base: usize,
    /// How many it has.
    pub size: usize,
}

/// What is known about an axis when its indices are not looked at: how the axis as a whole is used, there and in all
/// axes that are tied to it index by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// It counts independent products of two activations: the heads of attention.
    pub heads: bool,
    /// It cannot lose an index.
    pub pinned: bool,
}

/// Atoms of one axis beyond which it is left whole: no weight is that wide, vocabularies and images are.
const MAX_SIZE: usize = 1 << 17;

/// Ties atoms while operators are visited. In a *coarse* run each axis is one atom and only its nature is found out.
pub struct Tracer<'g> {
    pub graph: &'g Graph,
    pub axes: Vec<AxisInfo>,
    pub index: HashMap<(Site, usize), usize>,
    parent: Vec<u32>,
    /// Axes that are left whole, with the reason.
    pub pinned: HashMap<usize, usize>,
    pub reasons: Vec<String>,
    /// Axes that count independent products of two activations.
    pub heads: HashSet<usize>,
    /// Axes that a reshape splits and merges, with how many there are on each side, of whatever size.
    segments: Vec<[(usize, Vec<usize>); 2]>,
    natures: Option<HashMap<(Site, usize), Nature>>,
    coarse: bool,
    mentioned: HashSet<(bool, usize, usize)>,
    at: Option<NodeId>,
}

impl<'g> Tracer<'g> {
    /// With the natures of axes from a coarse run, or to make one.
    pub fn new(graph: &'g Graph, natures: Option<HashMap<(Site, usize), Nature>>) -> Self {
        Self {
            graph,
            axes: vec![],
            index: HashMap::new(),
            parent: vec![],
            pinned: HashMap::new(),
            reasons: vec![],
            heads: HashSet::new(),
            segments: vec![],
            coarse: natures.is_none(),
            natures,
            mentioned: HashSet::new(),
            at: None,
        }
    }

    /// Forget all ties.
    pub fn clear(&mut self) {
        self.axes.clear();
        self.index.clear();
        self.parent.clear();
        self.pinned.clear();
        self.reasons.clear();
        self.heads.clear();
    }

    /// Visit a node: `trace` says what it ties; every axis it does not mention is left whole.
    pub fn visit(&mut self, at: NodeRef<'g>, trace: impl FnOnce(&mut Self, NodeRef<'g>) -> Option<()>) {
        self.mentioned.clear();
        self.at = Some(at.id);
        let complete = trace(self, at).is_some();
        let ins = at.inputs().into_iter().enumerate().map(|(i, v)| (Slot::In(i), v));
        let outs = at.outputs().into_iter().enumerate().map(|(i, v)| (Slot::Out(i), v));
        let mut reason = None;
        for (port, value) in ins.chain(outs).collect::<Vec<_>>() {
            let Some(rank) = value.and_then(|v| v.shape().map(<[Dim]>::len)) else { continue };
            for axis in 0..rank {
                if complete && self.mentioned.contains(&key(port, axis)) {
                    continue;
                }
                let Some(id) = self.find_axis(at, port, axis) else { continue };
                let reason = *reason.get_or_insert_with(|| {
                    self.reasons.push(format!("{} needs it whole", at.describe()));
                    self.reasons.len() - 1
                });
                self.pinned.entry(id).or_insert(reason);
            }
        }
        self.at = None;
    }

    fn find_axis(&mut self, at: NodeRef<'_>, port: Slot, axis: usize) -> Option<usize> {
        let site = site_of(at, port)?;
        let size = dims(at, port)?.get(axis)?.size()?;
        self.axis_of(site, axis, size)
    }

    /// The axis of a tensor, by its size.
    pub fn axis_of(&mut self, site: Site, axis: usize, size: usize) -> Option<usize> {
        if let Some(&id) = self.index.get(&(site, axis)) {
            return Some(id);
        }
        let atoms = if self.coarse { 1 } else { size };
        if size > MAX_SIZE || u32::try_from(self.parent.len() + atoms).is_err() {
            return None;
        }
        let (id, base) = (self.axes.len(), self.parent.len());
        self.axes.push(AxisInfo { site, axis, base, size });
        self.parent.extend(base as u32..(base + atoms) as u32);
        self.index.insert((site, axis), id);
        Some(id)
    }

    /// An axis of an operand; `None` if its size is not a number. To ask is to know what becomes of it.
    pub fn axis(&mut self, port: Slot, axis: usize) -> Option<usize> {
        let at = self.graph.at(self.at?);
        self.mentioned.insert(key(port, axis));
        self.find_axis(at, port, axis)
    }

    /// The axis may lose indices; the node ties it to nothing.
    pub fn mention(&mut self, port: Slot, axis: usize) {
        self.mentioned.insert(key(port, axis));
    }

    /// Number of axes of an operand.
    pub fn rank(&self, port: Slot) -> Option<usize> {
        dims(self.graph.at(self.at?), port).map(<[Dim]>::len)
    }

    /// Sizes of an operand.
    pub fn dims(&self, port: Slot) -> Option<&'g [Dim]> {
        dims(self.graph.at(self.at?), port)
    }

    /// Whether the input is a constant.
    pub fn is_constant(&self, slot: usize) -> bool {
        self.at.is_some_and(|id| self.graph.at(id).optional(slot).is_some_and(ValueRef::is_constant))
    }

    /// Index `i` of both axes goes together, for all `i`.
    pub fn tie(&mut self, a: (Slot, usize), b: (Slot, usize)) {
        let (x, y) = (self.axis(a.0, a.1), self.axis(b.0, b.1));
        self.tie_axes(x, y);
    }

    /// `tie`, for axes that were looked up.
    pub fn tie_axes(&mut self, a: Option<usize>, b: Option<usize>) {
        match (a, b) {
            (Some(a), Some(b)) if self.axes[a].size == self.axes[b].size => {
                let atoms = if self.coarse { 1 } else { self.axes[a].size };
                let (a, b) = (self.axes[a].base, self.axes[b].base);
                (0..atoms).for_each(|i| self.join(a + i, b + i));
            }
            (a, b) => a.into_iter().chain(b).for_each(|axis| self.pin_axis(axis)),
        }
    }

    /// Index `i` of axis `a` goes with index `j` of axis `b`, for these pairs.
    pub fn map(&mut self, a: usize, b: usize, pairs: impl IntoIterator<Item = (usize, usize)>) {
        if self.coarse {
            return;
        }
        let (a, b) = (self.axes[a].base, self.axes[b].base);
        pairs.into_iter().for_each(|(i, j)| self.join(a + i, b + j));
    }

    /// The axis cannot lose an index, because of the node at hand.
    pub fn pin(&mut self, port: Slot, axis: usize) {
        if let Some(axis) = self.axis(port, axis) {
            self.pin_axis(axis);
        }
    }

    /// `pin`, for an axis that was looked up.
    pub fn pin_axis(&mut self, axis: usize) {
        let node = self.at.map_or_else(String::new, |id| self.graph.describe(id));
        self.pin_because(axis, format!("{node} needs it whole"));
    }

    /// The axis cannot lose an index, for this reason.
    pub fn pin_because(&mut self, axis: usize, reason: String) {
        if !self.pinned.contains_key(&axis) {
            self.reasons.push(reason);
            self.pinned.insert(axis, self.reasons.len() - 1);
        }
    }

    /// The axis counts independent products of two activations.
    pub fn mark_heads(&mut self, port: Slot, axis: usize) {
        if let Some(axis) = self.axis(port, axis) {
            self.heads.insert(axis);
        }
    }

    /// Remember, in a coarse run, that these axes of input 0 become these of output 0.
    pub fn note_segment(&mut self, from: &Range<usize>, to: &Range<usize>) {
        if self.coarse {
            let known = |t: &mut Self, port, axes: &Range<usize>| {
                (axes.len(), axes.clone().filter_map(|axis| t.axis(port, axis)).collect())
            };
            let segment = [known(self, Slot::In(0), from), known(self, Slot::Out(0), to)];
            self.segments.push(segment);
        }
    }

    /// The nature of an axis of an operand.
    pub fn nature(&self, port: Slot, axis: usize) -> Nature {
        let site = self.at.and_then(|id| site_of(self.graph.at(id), port));
        let known = self.natures.as_ref().zip(site).and_then(|(n, site)| n.get(&(site, axis)));
        known.copied().unwrap_or_default()
    }

    /// Whether indices are not looked at.
    pub fn is_coarse(&self) -> bool {
        self.coarse
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        // The smaller one stays: roots come first, and units in the order of their first place.
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

    /// The natures of all axes, after a coarse run.
    pub fn natures(mut self) -> HashMap<(Site, usize), Nature> {
        let mut of_root = HashMap::<usize, Nature>::new();
        let (heads, pinned) = (self.heads.clone(), self.pinned.keys().copied().collect::<Vec<_>>());
        for axis in heads {
            let root = self.root(self.axes[axis].base);
            of_root.entry(root).or_default().heads = true;
        }
        for axis in pinned {
            let root = self.root(self.axes[axis].base);
            of_root.entry(root).or_default().pinned = true;
        }
        // Heads that a reshape makes of one axis among others that cannot lose an index: those of grouped keys and values,
        // which are repeated.
        let segments = std::mem::take(&mut self.segments);
        loop {
            let before = of_root.values().filter(|n| n.heads).count();
            for [a, b] in &segments {
                for (one, many) in [(a, b), (b, a)] {
                    let &[one_axis] = &one.1[..] else { continue };
                    let root = self.root(self.axes[one_axis].base);
                    if one.0 != 1 || !of_root.get(&root).is_some_and(|n| n.heads) {
                        continue;
                    }
                    let open = many.1.iter().filter(|&&m| self.axes[m].size > 1).copied().collect::<Vec<_>>();
                    let open = open.into_iter().map(|m| self.root(self.axes[m].base));
                    let open = open.filter(|r| !of_root.get(r).is_some_and(|n| n.pinned)).collect::<Vec<_>>();
                    if let [only] = open[..] {
                        of_root.entry(only).or_default().heads = true;
                    }
                }
            }
            if of_root.values().filter(|n| n.heads).count() == before {
                break;
            }
        }
        let infos = self.axes.clone();
        let nature = |info: AxisInfo| {
            let root = self.root(info.base);
            ((info.site, info.axis), of_root.get(&root).copied().unwrap_or_default())
        };
        infos.into_iter().map(nature).collect()
    }
}

fn key(port: Slot, axis: usize) -> (bool, usize, usize) {
    match port {
        Slot::In(slot) => (false, slot, axis),
        Slot::Out(slot) => (true, slot, axis),
    }
}

fn operand(at: NodeRef<'_>, port: Slot) -> Option<ValueRef<'_>> {
    match port {
        Slot::In(slot) => at.optional(slot),
        Slot::Out(slot) => at.outputs().get(slot).copied().flatten(),
    }
}

fn dims(at: NodeRef<'_>, port: Slot) -> Option<&[Dim]> {
    operand(at, port)?.shape()
}

/// The site of an operand of a node.
pub fn site_of(at: NodeRef<'_>, port: Slot) -> Option<Site> {
    let value = operand(at, port)?;
    let Slot::In(slot) = port else { return Some(Site::Value(value.id)) };
    match value.value().tensor() {
        // A vector, however many axes of size 1 it has.
        Some(t) if t.shape().iter().filter(|&&d| d > 1).count() <= 1 => Some(Site::Use(at.id, slot)),
        _ => Some(Site::Value(value.id)),
    }
}
