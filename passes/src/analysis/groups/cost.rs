//! What a graph costs as a function of how many units each group keeps.

use super::{Groups, Site, Slot, constant_of, site_of};
use pare_graph::{
    Graph, NodeRef,
    ops::{self, Bindings, NodeCost},
};
use std::collections::{BTreeMap, HashMap};

/// A sum of products: each term is a node (or a weight), its factors are the axes that its cost grows with.
#[derive(Clone, Debug, Default)]
pub struct CostModel {
    fixed: f64,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    /// What it costs with all units, and the axes that this is proportional to.
    Product { whole: f64, axes: Vec<Form> },
    /// What a group of this width costs with so many units kept; between these as the next larger one.
    Table { group: usize, width: usize, costs: BTreeMap<usize, f64> },
}

/// The size of an axis, `size - Σ per_unit·(width - kept)`.
#[derive(Clone, Debug)]
struct Form {
    size: f64,
    parts: Vec<(usize, f64)>,
}

impl CostModel {
    /// Multiply-accumulates for one sample.
    pub fn macs(graph: &Graph, groups: &Groups) -> Self {
        let cost = graph.cost(&Bindings::default());
        let mut model = Self::default();
        for NodeCost { id, macs, .. } in cost.nodes {
            model.add(groups, macs.unwrap_or(0) as f64, factors(graph.at(id)));
        }
        model
    }

    /// Elements of weights.
    pub fn params(graph: &Graph, groups: &Groups) -> Self {
        let mut by_site = HashMap::<Site, Vec<(Site, usize)>>::new();
        for (site, axis) in groups.axes().filter(|(site, _)| constant_of(graph, *site).is_some()) {
            by_site.entry(site).or_default().push((site, axis));
        }
        let mut model = Self { fixed: graph.cost(&Bindings::default()).params as f64, terms: vec![] };
        let mut seen = std::collections::HashSet::new();
        let mut sites: Vec<_> = by_site.into_iter().collect();
        sites.sort_by_key(|(site, _)| *site);
        for (site, axes) in sites {
            let Some(value) = constant_of(graph, site).filter(|v| seen.insert(v.id)) else { continue };
            let count =
                value.value().tensor().map_or(0, |t| if ops::is_parameter(t.dtype()) { t.len() } else { 0 });
            model.fixed -= count as f64;
            model.add(groups, count as f64, axes);
        }
        model
    }

    fn add(&mut self, groups: &Groups, whole: f64, axes: Vec<(Site, usize)>) {
        let form = |(site, axis): (Site, usize)| {
            let owners = groups.owners(site, axis)?;
            let mut parts = HashMap::<usize, f64>::new();
            for (group, _) in owners.iter().flatten() {
                *parts.entry(*group as usize).or_default() += 1.0;
            }
            let per_unit = |(group, n): (usize, f64)| (group, n / groups.groups[group].width as f64);
            let mut parts: Vec<_> = parts.into_iter().map(per_unit).collect();
            parts.sort_by_key(|p| p.0);
            (!parts.is_empty()).then_some(Form { size: owners.len() as f64, parts })
        };
        let axes: Vec<_> = axes.into_iter().filter_map(form).collect();
        if axes.is_empty() || whole == 0.0 {
            self.fixed += whole;
        } else {
            self.terms.push(Term::Product { whole, axes });
        }
    }

    /// What was measured: the cost of the whole, and for each group its width and what it costs with so many units kept.
    pub fn tables(whole: f64, tables: &BTreeMap<usize, (usize, BTreeMap<usize, f64>)>) -> Self {
        let table = |(&group, (width, costs)): (&usize, &(usize, BTreeMap<usize, f64>))| Term::Table {
            group,
            width: *width,
            costs: costs.clone(),
        };
        let terms: Vec<_> = tables.iter().map(table).collect();
        let fixed = whole - terms.iter().map(|t| t.at(&|_| 0)).sum::<f64>();
        Self { fixed, terms }
    }

    /// The cost when `lost(group)` units of each group are gone.
    pub fn at(&self, lost: &dyn Fn(usize) -> usize) -> f64 {
        self.fixed + self.terms.iter().map(|t| t.at(lost)).sum::<f64>()
    }

    /// What changes with the units of this group.
    pub fn of(&self, group: usize) -> Self {
        let touches = |t: &&Term| t.groups().any(|g| g == group);
        Self { fixed: 0.0, terms: self.terms.iter().filter(touches).cloned().collect() }
    }

    /// Whether no term depends on two of these groups.
    pub fn is_separable(&self, groups: &[usize]) -> bool {
        self.terms.iter().all(|t| {
            let mut of = t.groups().filter(|g| groups.contains(g));
            let first = of.next();
            of.all(|g| Some(g) == first)
        })
    }
}

impl Term {
    fn at(&self, lost: &dyn Fn(usize) -> usize) -> f64 {
        let share = |form: &Form| {
            let gone: f64 = form.parts.iter().map(|&(g, per_unit)| per_unit * lost(g) as f64).sum();
            (form.size - gone) / form.size
        };
        match self {
            Self::Product { whole, axes } => whole * axes.iter().map(share).product::<f64>(),
            Self::Table { group, width, costs } => {
                let next = costs.range(width - lost(*group)..).next().or_else(|| costs.iter().next_back());
                next.map_or(0.0, |(_, cost)| *cost)
            }
        }
    }

    /// The groups it depends on, with repetition.
    fn groups(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Self::Product { axes, .. } => Box::new(axes.iter().flat_map(|a| &a.parts).map(|p| p.0)),
            Self::Table { group, .. } => Box::new(std::iter::once(*group)),
        }
    }
}

/// The axes that the cost of a node is proportional to.
fn factors(at: NodeRef<'_>) -> Vec<(Site, usize)> {
    let rank = |port| match port {
        Slot::In(slot) => at.optional(slot).and_then(|v| v.rank().ok()).unwrap_or(0),
        Slot::Out(slot) => at.outputs().get(slot).copied().flatten().and_then(|v| v.rank().ok()).unwrap_or(0),
    };
    let axes: Vec<(Slot, usize)> = match at.op() {
        "Conv" | "ConvTranspose" => vec![(Slot::In(1), 0), (Slot::In(1), 1)],
        "MatMul" => {
            let k = (Slot::In(0), rank(Slot::In(0)).saturating_sub(1));
            (0..rank(Slot::Out(0))).map(|axis| (Slot::Out(0), axis)).chain([k]).collect()
        }
        "Gemm" => {
            let k = (Slot::In(1), usize::from(at.int("transB", 0) != 0));
            vec![(Slot::Out(0), 0), (Slot::Out(0), 1), k]
        }
        _ => vec![],
    };
    axes.into_iter().filter_map(|(port, axis)| Some((site_of(at, port)?, axis))).collect()
}
