//! The cost of a graph as a function of the number of units that each group keeps.

use super::{Groups, Site, Slot, constant_of, site_of, tracer::operand};
use pare_graph::{
    Graph, NodeRef,
    ops::{self, Bindings, NodeCost},
};
use std::collections::{BTreeMap, HashMap};

/// A sum of terms, one for each node or weight. A term is proportional to the sizes of some axes.
#[derive(Clone, Debug, Default)]
pub struct CostModel {
    fixed: f64,
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    /// The cost with all units, and the axes that it is proportional to.
    Product { full: f64, axes: Vec<AxisSize> },
    /// The measured cost of a group of this width by the number of kept units; other numbers cost as much as
    /// the next larger one.
    Table { group: usize, table: CostTable },
}

/// The size of an axis, `size - Σ per_unit·(width - kept)` over groups.
#[derive(Clone, Debug)]
struct AxisSize {
    size: f64,
    parts: Vec<AxisPart>,
}

/// A group along an axis, and its indices per unit.
#[derive(Clone, Debug)]
struct AxisPart {
    group: usize,
    per_unit: f64,
}

/// The measured costs of a group by the number of kept units.
#[derive(Clone, Debug)]
pub struct CostTable {
    /// The number of units of the group.
    pub width: usize,
    /// The cost by the number of kept units.
    pub costs: BTreeMap<usize, f64>,
}

impl CostModel {
    /// The multiply-accumulates at these sizes, which are those of one sample.
    pub fn macs(graph: &Graph, groups: &Groups, sizes: &Bindings) -> Self {
        let cost = graph.cost(sizes);
        let mut model = Self::default();
        for NodeCost { id, macs, .. } in cost.nodes {
            model.add(groups, macs.unwrap_or(0) as f64, factors(graph.at(id)));
        }
        model
    }

    /// The number of elements of weights, at any sizes.
    pub fn params(graph: &Graph, groups: &Groups, _: &Bindings) -> Self {
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

    fn add(&mut self, groups: &Groups, full: f64, axes: Vec<(Site, usize)>) {
        let size = |(site, axis): (Site, usize)| {
            let owners = groups.owners(site, axis)?;
            let mut parts = HashMap::<usize, f64>::new();
            for (group, _) in owners.iter().flatten() {
                *parts.entry(*group as usize).or_default() += 1.0;
            }
            let part = |(group, n): (usize, f64)| AxisPart {
                group,
                per_unit: n / groups.groups[group].width as f64,
            };
            let mut parts: Vec<_> = parts.into_iter().map(part).collect();
            parts.sort_by_key(|p| p.group);
            (!parts.is_empty()).then_some(AxisSize { size: owners.len() as f64, parts })
        };
        let axes: Vec<_> = axes.into_iter().filter_map(size).collect();
        if axes.is_empty() || full == 0.0 {
            self.fixed += full;
        } else {
            self.terms.push(Term::Product { full, axes });
        }
    }

    /// A model of measured costs: of the entire graph, and of each group.
    pub fn tables(total: f64, tables: &BTreeMap<usize, CostTable>) -> Self {
        let table = |(&group, table): (&usize, &CostTable)| Term::Table { group, table: table.clone() };
        let terms: Vec<_> = tables.iter().map(table).collect();
        let fixed = total - terms.iter().map(|t| t.at(&|_| 0)).sum::<f64>();
        Self { fixed, terms }
    }

    /// The cost with `lost(group)` units of each group removed.
    pub fn at(&self, lost: &dyn Fn(usize) -> usize) -> f64 {
        self.fixed + self.terms.iter().map(|t| t.at(lost)).sum::<f64>()
    }

    /// The part of the cost that depends on a group.
    pub fn of(&self, group: usize) -> Self {
        let touches = |t: &&Term| t.groups().any(|g| g == group);
        Self { fixed: 0.0, terms: self.terms.iter().filter(touches).cloned().collect() }
    }

    /// Returns whether no term depends on two of these groups.
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
        let share = |axis: &AxisSize| {
            let removed: f64 = axis.parts.iter().map(|p| p.per_unit * lost(p.group) as f64).sum();
            (axis.size - removed) / axis.size
        };
        match self {
            Self::Product { full, axes } => full * axes.iter().map(share).product::<f64>(),
            Self::Table { group, table: CostTable { width, costs } } => {
                let next = costs.range(width - lost(*group)..).next().or_else(|| costs.iter().next_back());
                next.map_or(0.0, |(_, cost)| *cost)
            }
        }
    }

    /// The groups that the term depends on, with repetition.
    fn groups(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Self::Product { axes, .. } => Box::new(axes.iter().flat_map(|a| &a.parts).map(|p| p.group)),
            Self::Table { group, .. } => Box::new(std::iter::once(*group)),
        }
    }
}

/// Returns the axes that the cost of a node is proportional to.
fn factors(at: NodeRef<'_>) -> Vec<(Site, usize)> {
    let rank = |slot| operand(at, slot).and_then(|v| v.rank().ok()).unwrap_or(0);
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
    axes.into_iter().filter_map(|(slot, axis)| Some((site_of(at, slot)?, axis))).collect()
}
