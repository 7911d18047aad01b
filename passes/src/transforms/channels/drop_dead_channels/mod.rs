//! The `drop-dead-channels` pass.

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
use flow::propagate;
use pare_graph::{Graph, Model, NodeId, Patch};
use std::collections::{BTreeMap, HashMap};
use terms::Term;

pass! {
    /// Remove channels that are constant, multiples of others, or unread.
    ///
    /// The weights alone show which channels are constant (`c = f(b)`, where all weights of a filter are
    /// zero), which are a multiple of another (`x_m = α·x_k`), and which have only zero weights in their
    /// readers. In the readers of channel `m`,
    ///
    /// `b' = b + Σ c·W[:, m]`, or over padding and for multiples `W'[:, k] = W[:, k] + α·W[:, m]`,
    ///
    /// and `m` is removed with all channels that depend on it; repeatedly, until nothing changes. Of several
    /// constants over a padded convolution one remains.
    ///
    /// Declines where the weights of a reader are shared, and where a reader has no constant weights.
    #[pass("drop-dead-channels", Rounding)]
    pub struct DropDeadChannels {}
}

impl Pass for DropDeadChannels {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.run_nested("lift-constants", model)?;
        model.infer()?;
        cx.each_graph(model, |graph, cx| {
            while !cx.stopped() {
                let Some((next, dropped)) = without_dead_channels(graph, cx) else { break };
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

/// An operator that sums over the units of a group.
struct ChannelSum<'a> {
    /// The terms of each unit, in the order of its indices.
    terms: Vec<Vec<Term>>,
    /// True if all weights that read the unit are zero.
    unread: Vec<bool>,
    /// The reader, if its weights may change.
    reader: Option<Reader<'a>>,
}

/// A linear operator that reads a group.
struct Reader<'a> {
    role: &'a LinearRole,
    /// The input channels that belong to each unit.
    units: Vec<Vec<usize>>,
}

/// The weights of a reader, which removed units are merged into.
struct ReaderWeights {
    maps: Vec<AffineMap>,
    changed: bool,
}

/// The weights of all readers.
type Weights = BTreeMap<NodeId, ReaderWeights>;

/// Returns the graph without the channels that are dead now, and their number; `None` if there are none.
fn without_dead_channels(graph: &Graph, cx: &mut Context<'_>) -> Option<(Graph, u64)> {
    let groups = Groups::of(graph);
    groups.prunable().next()?;
    let roles = roles(graph);
    let mut weights = Weights::new();
    for role in roles.iter().filter(|r| r.linear.owns_weight(graph)) {
        if let Some(maps) = role.linear.maps(graph) {
            weights.insert(role.node, ReaderWeights { maps, changed: false });
        }
    }
    let mut keep = Keep::new();
    for (id, sums) in channel_sums(graph, &groups, &roles, &weights) {
        let group = &groups.groups[id];
        if let Some(why) = group.members.iter().find_map(|m| recurrent_use(graph, m.site)) {
            cx.decline(format!("`{}` is skipped: {why}", group.name));
            continue;
        }
        let units = kept_units(group.width, &sums, &mut weights);
        if units.contains(&false) {
            keep.insert(id, units);
        }
    }
    if keep.is_empty() {
        return None;
    }
    let dropped = keep.values().flatten().filter(|kept| !**kept).count() as u64;
    let mut next = match cut(graph, &groups, &keep) {
        Ok(next) => next,
        Err(why) => {
            cx.decline(why);
            return None;
        }
    };
    let patch = weights_patch(&next, &groups, &keep, &roles, &weights);
    if let Some(Err(why)) = patch.map(|patch| next.apply(patch)) {
        cx.decline(why);
        return None;
    }
    Some((next, dropped))
}

/// Returns the operators that sum over units, by group.
fn channel_sums<'a>(
    graph: &Graph,
    groups: &Groups,
    roles: &'a [LinearRole],
    weights: &Weights,
) -> BTreeMap<usize, Vec<ChannelSum<'a>>> {
    let terms = propagate(graph, groups, roles);
    let by_node: HashMap<_, _> = roles.iter().map(|r| (r.node, r)).collect();
    let mut found = BTreeMap::<usize, Vec<ChannelSum<'_>>>::new();
    for &node in graph.nodes().iter() {
        let at = graph.at(node);
        let role = by_node.get(&node).copied();
        if role.is_some_and(|r| r.passes_on(groups)) {
            continue;
        }
        for (slot, axis) in sums(at) {
            let Some(site) = site_of(at, Slot::In(slot)) else { continue };
            let Some(value) = at.optional(slot).filter(|v| !v.is_constant()) else { continue };
            for group in groups.groups_along(site, axis) {
                if groups.groups[group].pinned.is_some() {
                    continue;
                }
                let units = groups.units_along(group, site, axis);
                let known = terms.get(value.id, axis);
                // An unknown channel has a base of its own.
                let term =
                    |i: &usize| known.map_or(Term { base: u32::MAX - *i as u32, scale: 1.0 }, |t| t[*i]);
                let terms = units.iter().map(|u| u.iter().map(term).collect()).collect();
                let role = role.filter(|r| weights.contains_key(&r.node) && slot == 0);
                let unread = |u: &Vec<usize>| {
                    role.is_some_and(|r| u.iter().all(|&i| is_unread(&weights[&r.node], r, i)))
                };
                let unread = units.iter().map(unread).collect();
                let reader = role.map(|role| Reader { role, units });
                found.entry(group).or_default().push(ChannelSum { terms, unread, reader });
            }
        }
    }
    found
}

/// Returns the patch that stores the changed weights, restricted to the kept units.
fn weights_patch(
    graph: &Graph,
    groups: &Groups,
    keep: &Keep,
    roles: &[LinearRole],
    weights: &Weights,
) -> Option<Patch> {
    let mut patch: Option<Patch> = None;
    let by_node: HashMap<_, _> = roles.iter().map(|r| (r.node, r)).collect();
    for (&node, weights) in weights.iter().filter(|(_, w)| w.changed) {
        let (role, Some(operator)) = (by_node[&node], Linear::owned(graph, node)) else { continue };
        let outputs = role.linear.outputs;
        let rows = role.kept_outputs(groups, keep);
        let rows = rows.unwrap_or_else(|| (0..outputs * role.linear.groups).collect());
        let channels = role.kept_inputs(groups, keep);
        let columns = role.columns(&channels.unwrap_or_else(|| (0..role.linear.channels).collect()));
        let (mut new, mut bias) = (vec![], vec![]);
        for (q, map) in weights.maps.iter().enumerate() {
            let rows: Vec<_> = rows.iter().filter(|&r| r / outputs == q).map(|r| r % outputs).collect();
            new.push(Mat::from_fn(rows.len(), columns.len(), |i, j| map.weight[(rows[i], columns[j])]));
            bias.extend(rows.iter().map(|&r| map.bias[r]));
        }
        operator.store(graph, patch.get_or_insert_with(|| Patch::anchored(node)), &new, &bias);
    }
    patch
}

/// Returns which units of a group are kept, and merges the removed ones into the weights of their readers.
fn kept_units(width: usize, sums: &[ChannelSum<'_>], weights: &mut Weights) -> Vec<bool> {
    let mut kept = vec![true; width];
    // A constant channel is merged into the bias; a zero or unread channel adds nothing.
    for unit in 0..width {
        let removable = |s: &ChannelSum<'_>| {
            let biased =
                s.reader.as_ref().is_some_and(|r| r.role.linear.takes_bias() && !r.role.linear.is_padded());
            s.unread[unit] || s.terms[unit].iter().all(|t| t.value().is_some_and(|v| v == 0.0 || biased))
        };
        kept[unit] = !sums.iter().all(removable);
    }
    if !kept.contains(&true) {
        // A group keeps at least one unit.
        kept[0] = true;
    }
    for sum in sums {
        let Some(Reader { role, units }) = &sum.reader else { continue };
        for unit in (0..width).filter(|&u| !kept[u]) {
            for (&index, term) in units[unit].iter().zip(&sum.terms[unit]) {
                if let Some(value) = term.value().filter(|&v| v != 0.0) {
                    merge_into_bias(weights, role, index, value);
                }
            }
        }
    }
    merge_multiples(&mut kept, sums, weights);
    kept
}

/// Merges the kept units that are multiples of each other into the one with the largest scale.
fn merge_multiples(kept: &mut [bool], sums: &[ChannelSum<'_>], weights: &mut Weights) {
    let mut multiples = BTreeMap::<Vec<u32>, Vec<usize>>::new();
    for unit in (0..kept.len()).filter(|&u| kept[u]) {
        let terms = sums.iter().flat_map(|s| &s.terms[unit]);
        let readers = sums.iter().filter_map(|s| s.reader.as_ref());
        if readers.clone().count() == sums.len() && terms.clone().all(|t| t.scale != 0.0) {
            // Equal bases, read by the same convolution groups.
            let groups = readers.flat_map(|r| r.units[unit].iter().map(|&i| column_of(r.role, i).0 as u32));
            multiples.entry(terms.map(|t| t.base).chain(groups).collect()).or_default().push(unit);
        }
    }
    let scale = |unit: usize| {
        sums.iter().flat_map(|s| &s.terms[unit]).map(|t| t.scale.abs()).fold(f64::INFINITY, f64::min)
    };
    for units in multiples.into_values() {
        let largest = units.iter().copied().reduce(|a, b| if scale(b) > scale(a) { b } else { a });
        let Some(target) = largest else { continue };
        for &unit in units.iter().filter(|&&u| u != target) {
            kept[unit] = false;
            for sum in sums {
                let Some(Reader { role, units }) = &sum.reader else { continue };
                for (k, (&from, &to)) in units[unit].iter().zip(&units[target]).enumerate() {
                    let factor = sum.terms[unit][k].scale / sum.terms[target][k].scale;
                    merge_into_channel(weights, role, Multiple { from, to, factor });
                }
            }
        }
    }
}

/// The relation `x_from = factor·x_to` of two input channels.
struct Multiple {
    from: usize,
    to: usize,
    factor: f64,
}

/// Returns the convolution group of an input channel, and the channel's first column in it.
fn column_of(role: &LinearRole, channel: usize) -> (usize, usize) {
    (channel / role.linear.channels, channel % role.linear.channels * role.linear.taps())
}

fn is_unread(weights: &ReaderWeights, role: &LinearRole, channel: usize) -> bool {
    let (q, column) = column_of(role, channel);
    let weight = &weights.maps[q].weight;
    (column..column + role.linear.taps()).all(|j| (0..weight.nrows()).all(|i| weight[(i, j)] == 0.0))
}

/// `b += c·Σ_t W[:, m, t]`.
fn merge_into_bias(weights: &mut Weights, role: &LinearRole, channel: usize, value: f64) {
    let (q, column) = column_of(role, channel);
    let Some(weights) = weights.get_mut(&role.node) else { return };
    let AffineMap { weight, bias } = &mut weights.maps[q];
    for (i, bias) in bias.iter_mut().enumerate() {
        *bias += value * (column..column + role.linear.taps()).map(|j| weight[(i, j)]).sum::<f64>();
    }
    weights.changed = true;
}

/// `W[:, k] += α·W[:, m]`, tap by tap.
fn merge_into_channel(weights: &mut Weights, role: &LinearRole, Multiple { from, to, factor }: Multiple) {
    let ((q, m), (p, k)) = (column_of(role, from), column_of(role, to));
    let Some(weights) = weights.get_mut(&role.node).filter(|_| p == q) else { return };
    let weight = &mut weights.maps[q].weight;
    for tap in 0..role.linear.taps() {
        for i in 0..weight.nrows() {
            weight[(i, k + tap)] += factor * weight[(i, m + tap)];
        }
    }
    weights.changed = true;
}

/// Returns why the units at a site cannot be judged by the sums over them: recurrent layers also sum over
/// them internally.
fn recurrent_use(graph: &Graph, site: Site) -> Option<String> {
    let Site::Value(value) = site else { return None };
    let users =
        graph.users(value).into_iter().map(|(node, _)| node).chain(graph.producer(value).map(|p| p.0));
    let mut recurrent = users.filter(|&n| ["LSTM", "GRU", "RNN"].contains(&graph.node(n).op.as_str()));
    recurrent.next().map(|n| format!("{} uses it internally", graph.describe(n)))
}
