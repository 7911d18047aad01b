//! The pass: which units say nothing of their own, and who takes over what they said.

mod flow;
mod scalar;
mod terms;
#[cfg(test)]
mod tests;

use crate::{
    analysis::{
        groups::{
            Groups, Keep, Site, Slot,
            cut::cut,
            roles::{LinearRole, roles},
            site_of, sums,
        },
        linear::{AffineMap, Linear},
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use faer::Mat;
use flow::flow;
use pare_graph::{Graph, Model, NodeId, Patch};
use std::collections::{BTreeMap, HashMap};
use terms::Term;

pass! {
    /// Remove channels that say nothing of their own.
    ///
    /// From the weights alone it follows which channels are constant (`c = f(b)`, where all weights of a filter are zero),
    /// which are a multiple of another (`x_m = α·x_k`), and which nobody reads. In the layers that read channel `m`
    ///
    /// `b' = b + Σ c·W[:, m]`, or over padding and for multiples `W'[:, k] = W[:, k] + α·W[:, m]`,
    ///
    /// and `m` goes, with all that depends on it (see `pare inspect --groups`); again, until nothing more goes. So of all
    /// constants over a padded convolution one stays.
    ///
    /// Declines where weights that would change are shared, and where channels meet what is not weighted by constants.
    #[pass("drop-dead-channels", Rounding)]
    pub struct DropDeadChannels {}
}

impl Pass for DropDeadChannels {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.run_nested("lift-constants", model)?;
        model.infer()?;
        cx.each_graph(model, |graph, cx| {
            while !cx.stopped() {
                let Some((next, dropped)) = round(graph, cx) else { break };
                if !cx.permit() {
                    break;
                }
                cx.count(Counter::new("channel dropped", "channels dropped"), dropped);
                *graph = next;
            }
            Ok(())
        })
    }
}

/// Where units of a group are added up.
struct Sum<'a> {
    /// Terms of each unit, in the order of its indices.
    terms: Vec<Vec<Term>>,
    /// Whether no weight takes in anything from the unit.
    unread: Vec<bool>,
    /// The reader, with the indices of its inputs that belong to each unit; if its weights may change.
    reader: Option<(&'a LinearRole, Vec<Vec<usize>>)>,
}

/// New weights of a reader.
struct Edit {
    maps: Vec<AffineMap>,
    changed: bool,
}

/// The graph without what can go now, and how much that is.
fn round(graph: &Graph, cx: &mut Context<'_>) -> Option<(Graph, u64)> {
    let groups = Groups::of(graph);
    groups.prunable().next()?;
    let roles = roles(graph);
    let terms = flow(graph, &groups, &roles);
    let by_node: HashMap<_, _> = roles.iter().map(|r| (r.node, r)).collect();
    let mut edits = BTreeMap::<NodeId, Edit>::new();
    for role in roles.iter().filter(|r| r.linear.owns_weight(graph)) {
        if let Some(maps) = role.linear.maps(graph) {
            edits.insert(role.node, Edit { maps, changed: false });
        }
    }
    let mut found = BTreeMap::<usize, Vec<Sum<'_>>>::new();
    for &node in graph.nodes().iter() {
        let at = graph.at(node);
        for (slot, axis) in sums(at) {
            let Some(site) = site_of(at, Slot::In(slot)) else { continue };
            let Some(value) = at.optional(slot).filter(|v| !v.is_constant()) else { continue };
            let role = by_node.get(&node).copied();
            if role.is_some_and(|r| r.passes_on(&groups)) {
                continue;
            }
            for group in groups.groups_along(site, axis) {
                if groups.groups[group].pinned.is_some() {
                    continue;
                }
                let units = groups.units_along(group, site, axis);
                let known = terms.get(value.id, axis);
                // What is not known is like nothing else.
                let term =
                    |i: &usize| known.map_or(Term { base: u32::MAX - *i as u32, scale: 1.0 }, |t| t[*i]);
                let terms = units.iter().map(|u| u.iter().map(term).collect()).collect();
                let reader = role.filter(|r| edits.contains_key(&r.node) && slot == 0);
                let silent = |u: &Vec<usize>| {
                    reader.is_some_and(|r| u.iter().all(|&i| is_unread(&edits[&r.node], r, i)))
                };
                let unread = units.iter().map(silent).collect();
                let reader = reader.map(|r| (r, units));
                found.entry(group).or_default().push(Sum { terms, unread, reader });
            }
        }
    }
    let mut keep = Keep::new();
    for (group, sums) in &found {
        let asked = &groups.groups[*group];
        let odd = asked.members.iter().find_map(|m| statistics(graph, m.site));
        if let Some(why) = odd {
            cx.decline(format!("`{}` stays as it is: {why}", asked.name));
            continue;
        }
        let units = decide(asked.width, sums, &mut edits);
        if units.contains(&false) {
            keep.insert(*group, units);
        }
    }
    if keep.is_empty() {
        return None;
    }
    let dropped = keep.values().flatten().filter(|stays| !**stays).count() as u64;
    let mut next = match cut(graph, &groups, &keep) {
        Ok(next) => next,
        Err(why) => {
            cx.decline(why);
            return None;
        }
    };
    let mut patch: Option<Patch> = None;
    for (&node, edit) in edits.iter().filter(|(_, e)| e.changed) {
        let (role, Some(new)) = (by_node[&node], Linear::owned(&next, node)) else { continue };
        let outputs = role.linear.outputs;
        let rows = role.kept_outputs(&groups, &keep);
        let rows = rows.unwrap_or_else(|| (0..outputs * role.linear.groups).collect());
        let channels = role.kept_inputs(&groups, &keep);
        let columns = role.columns(&channels.unwrap_or_else(|| (0..role.linear.channels).collect()));
        let (mut weights, mut bias) = (vec![], vec![]);
        for (q, map) in edit.maps.iter().enumerate() {
            let rows: Vec<_> = rows.iter().filter(|&r| r / outputs == q).map(|r| r % outputs).collect();
            weights.push(Mat::from_fn(rows.len(), columns.len(), |i, j| map.weight[(rows[i], columns[j])]));
            bias.extend(rows.iter().map(|&r| map.bias[r]));
        }
        new.store(&next, patch.get_or_insert_with(|| Patch::anchored(node)), &weights, &bias);
    }
    if let Some(Err(why)) = patch.map(|patch| next.apply(patch)) {
        cx.decline(why);
        return None;
    }
    Some((next, dropped))
}

/// Which units of a group stay. What goes is taken over by the readers that stay.
fn decide(width: usize, sums: &[Sum<'_>], edits: &mut BTreeMap<NodeId, Edit>) -> Vec<bool> {
    let mut stays = vec![true; width];
    // A channel that is constant joins the bias; one that is zero, or is not read, leaves nothing behind.
    for unit in 0..width {
        let joins = |s: &Sum<'_>| {
            let biased =
                s.reader.as_ref().is_some_and(|(r, _)| r.linear.takes_bias() && !r.linear.is_padded());
            s.unread[unit] || s.terms[unit].iter().all(|t| t.value().is_some_and(|v| v == 0.0 || biased))
        };
        stays[unit] = !sums.iter().all(joins);
    }
    if !stays.contains(&true) {
        // Of a group something stays.
        stays[0] = true;
    }
    for sum in sums {
        let Some((role, units)) = &sum.reader else { continue };
        for unit in (0..width).filter(|&u| !stays[u]) {
            for (&index, term) in units[unit].iter().zip(&sum.terms[unit]) {
                if let Some(value) = term.value().filter(|&v| v != 0.0) {
                    into_bias(edits, role, index, value);
                }
            }
        }
    }
    // Of channels that are multiples of each other the largest stays.
    let mut alike = BTreeMap::<Vec<u32>, Vec<usize>>::new();
    for unit in (0..width).filter(|&u| stays[u]) {
        let all = sums.iter().flat_map(|s| &s.terms[unit]);
        let read = sums.iter().filter_map(|s| s.reader.as_ref());
        if read.clone().count() == sums.len() && all.clone().all(|t| t.scale != 0.0) {
            // Alike, and read by the same groups of the readers.
            let groups = read.flat_map(|(role, units)| units[unit].iter().map(|&i| place(role, i).0 as u32));
            alike.entry(all.map(|t| t.base).chain(groups).collect()).or_default().push(unit);
        }
    }
    let size = |unit: usize| {
        sums.iter().flat_map(|s| &s.terms[unit]).map(|t| t.scale.abs()).fold(f64::INFINITY, f64::min)
    };
    for units in alike.into_values() {
        let Some(heir) = units.iter().copied().reduce(|a, b| if size(b) > size(a) { b } else { a }) else {
            continue;
        };
        for &unit in units.iter().filter(|&&u| u != heir) {
            stays[unit] = false;
            for sum in sums {
                let Some((role, units)) = &sum.reader else { continue };
                for (k, (&from, &to)) in units[unit].iter().zip(&units[heir]).enumerate() {
                    let share = sum.terms[unit][k].scale / sum.terms[heir][k].scale;
                    into_other(edits, role, (from, to), share);
                }
            }
        }
    }
    stays
}

/// Where an input channel of a grouped operator stands: its group, and its first column there.
fn place(role: &LinearRole, index: usize) -> (usize, usize) {
    (index / role.linear.channels, index % role.linear.channels * role.linear.taps())
}

fn is_unread(edit: &Edit, role: &LinearRole, index: usize) -> bool {
    let (q, column) = place(role, index);
    let weight = &edit.maps[q].weight;
    (column..column + role.linear.taps()).all(|j| (0..weight.nrows()).all(|i| weight[(i, j)] == 0.0))
}

/// `b += c·Σ_t W[:, m, t]`.
fn into_bias(edits: &mut BTreeMap<NodeId, Edit>, role: &LinearRole, index: usize, value: f64) {
    let (q, column) = place(role, index);
    let Some(edit) = edits.get_mut(&role.node) else { return };
    let AffineMap { weight, bias } = &mut edit.maps[q];
    for (i, bias) in bias.iter_mut().enumerate() {
        *bias += value * (column..column + role.linear.taps()).map(|j| weight[(i, j)]).sum::<f64>();
    }
    edit.changed = true;
}

/// `W[:, k] += α·W[:, m]`, tap by tap.
fn into_other(edits: &mut BTreeMap<NodeId, Edit>, role: &LinearRole, (from, to): (usize, usize), share: f64) {
    let ((q, m), (p, k)) = (place(role, from), place(role, to));
    let Some(edit) = edits.get_mut(&role.node).filter(|_| p == q) else { return };
    let weight = &mut edit.maps[q].weight;
    for tap in 0..role.linear.taps() {
        for i in 0..weight.nrows() {
            weight[(i, k + tap)] += share * weight[(i, m + tap)];
        }
    }
    edit.changed = true;
}

/// Why the units at this site cannot be judged by what is added up: recurrent layers add them up inside.
fn statistics(graph: &Graph, site: Site) -> Option<String> {
    let Site::Value(value) = site else { return None };
    let users =
        graph.users(value).into_iter().map(|(node, _)| node).chain(graph.producer(value).map(|p| p.0));
    let mut recurrent = users.filter(|&n| ["LSTM", "GRU", "RNN"].contains(&graph.node(n).op.as_str()));
    recurrent.next().map(|n| format!("{} uses it inside", graph.describe(n)))
}
