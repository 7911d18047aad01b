//! How terms flow through a graph: each operator says what it makes of constants and multiples.

use super::{
    scalar::{elementwise, is_elementwise},
    terms::{Interner, Term, Terms},
};
use crate::analysis::groups::{Groups, IndexClass, LocalTracer, Site, roles::LinearRole};
use pare_graph::{
    Dim, Graph, NodeRef, ValueRef,
    ops::{AffineView, PadMode, PadView, PoolView, ReduceView},
};
use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// Operators that only move elements: the rules of the groups say which index becomes which.
const MOVES: &[&str] = &[
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The terms of all axes along which groups lie that can lose units.
pub fn flow(graph: &Graph, groups: &Groups, roles: &[LinearRole]) -> Terms {
    let roles: HashMap<_, _> = roles.iter().map(|r| (r.node, r)).collect();
    let mut tracer = LocalTracer::new(graph);
    let mut terms = Terms::default();
    let open =
        |site, axis| groups.groups_along(site, axis).iter().any(|&g| groups.groups[g].pinned.is_none());
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        for (slot, output) in at.outputs().into_iter().enumerate() {
            let Some(output) = output else { continue };
            for axis in 0..output.shape().map_or(0, <[Dim]>::len) {
                if !open(Site::Value(output.id), axis) {
                    continue;
                }
                let Some(size) = output.shape().and_then(|s| s[axis].size()) else { continue };
                let found = match roles.get(&id) {
                    Some(role) => linear(graph, role, &mut terms, axis),
                    None => through(at, &mut tracer, &mut terms, (slot, axis, size)),
                };
                if let Some(found) = found.filter(|t| t.len() == size) {
                    terms.set(output.id, axis, found);
                }
            }
        }
    }
    terms
}

fn through<'g>(
    at: NodeRef<'g>,
    tracer: &mut LocalTracer<'g>,
    terms: &mut Terms,
    (slot, axis, size): (usize, usize, usize),
) -> Option<Vec<Term>> {
    if !at.node().domain().is_empty() || at.has_references() {
        return None;
    }
    match at.op() {
        "BatchNormalization" if slot == 0 && axis == 1 => affine(at, terms, size),
        "InstanceNormalization" if axis == 1 => instance_norm(at, terms, size),
        "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" if slot == 0 && axis < 2 => {
            pool(at, terms, axis, size)
        }
        "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceSum" => reduce(at, terms, axis, size),
        "Resize" | "Upsample" => {
            let crops = at.string("coordinate_transformation_mode", "") == "tf_crop_and_resize";
            let from = at.input(0).ok()?;
            let read = (axis < 2 && !crops).then(|| terms.along(from.id, axis, size))?;
            Some(grown(terms, read, true, false))
        }
        "Pad" => pad(at, terms, axis, size),
        op if MOVES.contains(&op) => moved(at, tracer, terms, (slot, axis, size)),
        op if is_elementwise(op) && slot == 0 => pointwise(at, terms, axis, size),
        _ => None,
    }
}

/// `y_o = b_o + Σ W[o, i, t]·x_i[t]`: over zero-free padding a constant stays one, or joins the bias.
fn linear(graph: &Graph, role: &LinearRole, terms: &mut Terms, axis: usize) -> Option<Vec<Term>> {
    let linear = &role.linear;
    let at = graph.at(role.node);
    let channels = if linear.is_conv() { 1 } else { graph.value_ref(at.output().ok()?.id).rank().ok()? - 1 };
    if axis != channels {
        return None;
    }
    let (inputs, taps) = (linear.channels, linear.taps());
    let read = terms.along(linear.input, linear.channel_axis(graph)?, inputs * linear.groups);
    let padded = linear.is_padded();
    // The bias of a sum behind the node is added there.
    let own = at.output().ok()?.id == linear.output;
    let maps = role.linear.maps(graph)?;
    let (mut interner, mut found) = (Interner::default(), vec![]);
    for (q, map) in maps.iter().enumerate() {
        let read = &read[q * inputs..(q + 1) * inputs];
        // Columns of what is computed, and those of constants that the padding lets through everywhere.
        let mut places = BTreeMap::new();
        for term in read.iter().filter(|t| t.value().is_none_or(|v| padded && v != 0.0)) {
            let next = places.len();
            places.entry(term.base).or_insert(next);
        }
        let mut hasher = DefaultHasher::new();
        let mut by_place: Vec<_> = places.iter().map(|(base, place)| (place, base)).collect();
        by_place.sort_unstable();
        by_place.hash(&mut hasher);
        for o in 0..linear.outputs {
            let mut bias = if own { map.bias[o] } else { 0.0 };
            let mut row = vec![0.0; places.len() * taps];
            for (i, term) in read.iter().enumerate() {
                match (term.value(), places.get(&term.base)) {
                    (Some(0.0), _) => {}
                    (Some(value), _) if !padded => {
                        bias += (0..taps).map(|t| map.weight[(o, i * taps + t)]).sum::<f64>() * value;
                    }
                    (_, Some(place)) => (0..taps).for_each(|t| {
                        row[place * taps + t] += map.weight[(o, i * taps + t)] * term.scale;
                    }),
                    (_, None) => return None,
                }
            }
            let Some(&first) = row.iter().find(|w| **w != 0.0) else {
                found.push(Term::constant(bias));
                continue;
            };
            let mut pattern = hasher.clone();
            row.iter().for_each(|w| (*w == 0.0).hash(&mut pattern));
            let pattern = pattern.finish();
            let numbers = row.iter().map(|w| w / first).chain([bias / first]).collect();
            let key = vec![pattern as u32, (pattern >> 32) as u32];
            found.push(interner.term(terms, key, numbers).times(first));
        }
    }
    Some(found)
}

/// `y = s·x + t` for each channel.
fn affine(at: NodeRef<'_>, terms: &mut Terms, size: usize) -> Option<Vec<Term>> {
    let view = AffineView::of(at).ok()?;
    let read = terms.along(at.input(0).ok()?.id, 1, size);
    let mut interner = Interner::default();
    let each = read.into_iter().zip(view.scale.iter().zip(&view.shift));
    Some(each.map(|(x, (&s, &t))| plus(&mut interner, terms, x.times(s), Term::constant(t))).collect())
}

/// A constant less its mean is nothing: what is left is the shift.
fn instance_norm(at: NodeRef<'_>, terms: &mut Terms, size: usize) -> Option<Vec<Term>> {
    let shift = at.input(2).ok()?.constant_f64().ok()?;
    let read = terms.along(at.input(0).ok()?.id, 1, size);
    let each = read.iter().zip(shift);
    Some(each.map(|(x, b)| if x.value().is_some() { Term::constant(b) } else { terms.fresh() }).collect())
}

/// `x + y`, where the larger share of a multiple comes first.
pub fn plus(interner: &mut Interner, terms: &mut Terms, x: Term, y: Term) -> Term {
    match (x.value(), y.value()) {
        (Some(a), Some(b)) => Term::constant(a + b),
        (_, Some(0.0)) => x,
        (Some(0.0), _) => y,
        (Some(_), None) => plus(interner, terms, y, x),
        _ if x.base == y.base => Term { scale: x.scale + y.scale, ..x },
        _ => interner.term(terms, vec![x.base, y.base], vec![y.scale / x.scale]).times(x.scale),
    }
}

/// Averages are linear, maxima at least grow with what they are taken of.
fn pool(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let read = terms.along(at.input(0).ok()?.id, axis, size);
    let average = at.op().contains("Average");
    // A mean over a border of zeros is no constant any more.
    let bordered =
        average && PoolView::of(at).is_ok_and(|v| v.counts_padding && v.pads.iter().any(|p| *p != (0, 0)));
    Some(grown(terms, read, average, bordered))
}

/// Terms through something that is linear, or (`linear` unset) homogeneous for positive factors only.
fn grown(terms: &mut Terms, read: Vec<Term>, linear: bool, bordered: bool) -> Vec<Term> {
    let mut interner = Interner::default();
    let each = |x: Term| match x.value() {
        Some(0.0) => x,
        Some(_) if !bordered => x,
        _ => {
            let sign = if linear { 1.0 } else { x.scale.signum() };
            interner.term(terms, vec![x.base], vec![sign]).times(x.scale * sign)
        }
    };
    read.into_iter().map(each).collect()
}

/// Along an axis that stays.
fn reduce(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let view = ReduceView::of(at).ok()?;
    let input = at.input(0).ok()?;
    let shape = input.shape()?;
    let left: Vec<_> = (0..shape.len()).filter(|a| view.keepdims || !view.axes.contains(a)).collect();
    let from = *left.get(axis).filter(|a| !view.axes.contains(a))?;
    let read = terms.along(input.id, from, size);
    if !at.is("ReduceSum") {
        return Some(grown(terms, read, at.is("ReduceMean"), false));
    }
    let count = view.axes.iter().map(|&a| shape[a].size()).product::<Option<usize>>()? as f64;
    let mean = grown(terms, read, true, false);
    Some(mean.into_iter().map(|x| x.times(count)).collect())
}

/// A border of the same constant changes nothing.
fn pad(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let view = PadView::of(at).ok()?;
    (view.pads[axis] == (0, 0)).then_some(())?;
    let read = terms.along(at.input(0).ok()?.id, axis, size);
    let PadMode::Constant(border) = view.mode else { return Some(grown(terms, read, true, false)) };
    let mut interner = Interner::default();
    let each = |x: Term| match x.value() {
        Some(value) if value == border => x,
        _ => interner.term(terms, vec![x.base], vec![border / x.scale]).times(x.scale),
    };
    Some(read.into_iter().map(each).collect())
}

/// Index by index, as the rule of the operator ties them.
fn moved<'g>(
    at: NodeRef<'g>,
    tracer: &mut LocalTracer<'g>,
    terms: &mut Terms,
    (slot, axis, size): (usize, usize, usize),
) -> Option<Vec<Term>> {
    let classes = tracer.classes(at, slot, axis)?;
    let mut found = vec![None; size];
    let mut interner = Interner::default();
    let mut sources = vec![];
    for IndexClass { inputs: ins, outputs: outs } in classes {
        let read: Vec<_> = ins.iter().map(|p| terms.along(p.value, p.axis, p.size)[p.index]).collect();
        let value = read.first().and_then(|t| t.value());
        if value.is_some() && read.iter().all(|t| t.value() == value) {
            outs.iter().for_each(|&out| found[out] = value.map(Term::constant));
            continue;
        }
        // One index becomes several, or several one: in the same order everywhere. Bases of different values have
        // nothing to say to each other.
        let Some((source, first)) = ins.first().map(|p| (p.value, p.axis)).zip(read.first()) else {
            continue;
        };
        let alone = ins.iter().all(|p| (p.value, p.axis) == source) && (ins.len() == 1 || outs.len() == 1);
        if !alone || first.scale == 0.0 {
            continue;
        }
        let place = sources.iter().position(|s| *s == source).unwrap_or_else(|| {
            sources.push(source);
            sources.len() - 1
        });
        for (k, &out) in outs.iter().enumerate() {
            let key = [place as u32, k as u32].into_iter().chain(read.iter().map(|t| t.base)).collect();
            let numbers = read.iter().map(|t| t.scale / first.scale).collect();
            found[out] = Some(interner.term(terms, key, numbers).times(first.scale));
        }
    }
    Some(found.into_iter().map(|t| t.unwrap_or_else(|| terms.fresh())).collect())
}

fn pointwise(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let rank = at.outputs().first().copied().flatten()?.rank().ok()?;
    let operands = at.inputs().into_iter().map(|v| operand(v, terms, (rank, axis, size)));
    let operands: Vec<_> = operands.collect::<Option<_>>()?;
    let mut interner = Interner::default();
    let each = |i: usize| {
        let xs: Vec<_> = operands.iter().map(|o| o[i]).collect();
        elementwise(at, &mut interner, terms, &xs)
    };
    Some((0..size).map(each).collect())
}

/// An operand at each index of an axis of the result that it is broadcast to.
fn operand(
    value: Option<ValueRef<'_>>,
    terms: &mut Terms,
    (rank, axis, size): (usize, usize, usize),
) -> Option<Vec<Term>> {
    let Some(value) = value else { return Some(vec![Term::constant(0.0); size]) };
    let shape = value.shape()?;
    let own = (axis + shape.len()).checked_sub(rank).filter(|&a| shape[a].size() == Some(size));
    let Ok(tensor) = value.constant() else {
        return Some(match own {
            Some(own) => terms.along(value.id, own, size),
            // The same for all indices.
            None => vec![terms.fresh(); size],
        });
    };
    let elements = tensor.to_f64()?;
    let inner = own.map_or(1, |own| tensor.shape()[own + 1..].iter().product::<usize>());
    let count = own.map_or(1, |_| size);
    let mut seen = vec![None; count];
    for (k, &v) in elements.iter().enumerate() {
        let i = k / inner.max(1) % count;
        let known: &mut Option<f64> = &mut seen[i];
        // What differs along other axes is no number.
        *known = if known.is_none_or(|k| k == v) { Some(v) } else { Some(f64::NAN) };
    }
    let each = seen.into_iter().map(|v| match v {
        Some(v) if !v.is_nan() => Term::constant(v),
        _ => terms.fresh(),
    });
    let found: Vec<_> = each.collect();
    Some(if found.len() == size { found } else { vec![*found.first()?; size] })
}
