//! Propagation of terms through a graph: the transfer function of each operator.

use super::{
    scalar::elementwise,
    terms::{Interner, Term, Terms, plus},
};
use crate::analysis::groups::{Groups, IndexClass, LocalTracer, Site, roles::LinearRole};
use pare_graph::{
    Dim, Graph, NodeRef, ValueRef,
    ops::{AffineView, PadMode, PadView, PoolView, ReduceView, Trait, is_deterministic},
};
use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
};

/// An axis of an output of a node.
#[derive(Clone, Copy)]
struct OutputAxis {
    slot: usize,
    axis: usize,
    size: usize,
}

/// Returns the terms along all axes of groups that can lose units.
pub fn propagate(graph: &Graph, groups: &Groups, roles: &[LinearRole]) -> Terms {
    let roles: HashMap<_, _> = roles.iter().map(|r| (r.node, r)).collect();
    let mut tracer = LocalTracer::new(graph);
    let mut terms = Terms::default();
    let prunable =
        |site, axis| groups.groups_along(site, axis).iter().any(|&g| groups.groups[g].pinned.is_none());
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        for (slot, output) in at.outputs().into_iter().enumerate() {
            let Some(output) = output else { continue };
            for axis in 0..output.shape().map_or(0, <[Dim]>::len) {
                if !prunable(Site::Value(output.id), axis) {
                    continue;
                }
                let Some(size) = output.shape().and_then(|s| s[axis].size()) else { continue };
                let found = match roles.get(&id) {
                    Some(role) => linear(graph, role, &mut terms, axis),
                    None => transfer(at, &mut tracer, &mut terms, OutputAxis { slot, axis, size }),
                };
                if let Some(found) = found.filter(|t| t.len() == size) {
                    terms.set(output.id, axis, found);
                }
            }
        }
    }
    terms
}

/// Returns the terms along an axis of an output of a node that is not linear; `None` if they are unknown.
fn transfer<'g>(
    at: NodeRef<'g>,
    tracer: &mut LocalTracer<'g>,
    terms: &mut Terms,
    output: OutputAxis,
) -> Option<Vec<Term>> {
    let OutputAxis { slot, axis, size } = output;
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
            Some(homogeneous(terms, read, Homogeneity::Linear, Border::None))
        }
        "Pad" => pad(at, terms, axis, size),
        _ if at.has(Trait::DataMovement) => moved(at, tracer, terms, output),
        _ if slot == 0 && at.has(Trait::Elementwise) && is_deterministic(at) => {
            pointwise(at, terms, axis, size)
        }
        _ => None,
    }
}

/// `y_o = b_o + Σ W[o, i, t]·x_i[t]`. Without padding a constant input is part of the bias; with zero padding
/// it is a term like any other.
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
    // The bias of a following `Add` is added by that node.
    let has_bias = at.output().ok()?.id == linear.output;
    let maps = role.linear.maps(graph)?;
    let (mut interner, mut found) = (Interner::default(), vec![]);
    for (q, map) in maps.iter().enumerate() {
        let read = &read[q * inputs..(q + 1) * inputs];
        // The columns of each base; constants are one where padding makes them vary.
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
            let mut bias = if has_bias { map.bias[o] } else { 0.0 };
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

/// A constant minus its mean is zero, so the output is the shift.
fn instance_norm(at: NodeRef<'_>, terms: &mut Terms, size: usize) -> Option<Vec<Term>> {
    let shift = at.input(2).ok()?.constant_f64().ok()?;
    let read = terms.along(at.input(0).ok()?.id, 1, size);
    let each = read.iter().zip(shift);
    Some(each.map(|(x, b)| if x.value().is_some() { Term::constant(b) } else { terms.fresh() }).collect())
}

/// Average pooling is linear, max pooling positively homogeneous.
fn pool(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let read = terms.along(at.input(0).ok()?.id, axis, size);
    let average = at.op().contains("Average");
    // A mean that counts zero padding is not constant.
    let padded =
        average && PoolView::of(at).is_ok_and(|v| v.counts_padding && v.pads.iter().any(|p| *p != (0, 0)));
    let border = if padded { Border::Zero } else { Border::None };
    Some(homogeneous(terms, read, Homogeneity::linear_if(average), border))
}

/// The factors `α` for which `f(α·x) = α·f(x)`.
#[derive(Clone, Copy, PartialEq)]
enum Homogeneity {
    /// All.
    Linear,
    /// Positive ones.
    Positive,
}

impl Homogeneity {
    fn linear_if(linear: bool) -> Self {
        if linear { Self::Linear } else { Self::Positive }
    }
}

/// The border of a windowed operator.
#[derive(Clone, Copy, PartialEq)]
enum Border {
    /// None, or ignored.
    None,
    /// Zeros.
    Zero,
}

/// Returns the terms after a homogeneous function that maps constants to themselves, unless there is a
/// border.
fn homogeneous(terms: &mut Terms, read: Vec<Term>, by: Homogeneity, border: Border) -> Vec<Term> {
    let mut interner = Interner::default();
    let each = |x: Term| match x.value() {
        Some(0.0) => x,
        Some(_) if border == Border::None => x,
        _ => {
            let sign = if by == Homogeneity::Linear { 1.0 } else { x.scale.signum() };
            interner.term(terms, vec![x.base], vec![sign]).times(x.scale * sign)
        }
    };
    read.into_iter().map(each).collect()
}

/// A reduction over other axes than the traced one.
fn reduce(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let view = ReduceView::of(at).ok()?;
    let input = at.input(0).ok()?;
    let shape = input.shape()?;
    let remaining: Vec<_> = (0..shape.len()).filter(|a| view.keepdims || !view.axes.contains(a)).collect();
    let from = *remaining.get(axis).filter(|a| !view.axes.contains(a))?;
    let read = terms.along(input.id, from, size);
    if !at.is("ReduceSum") {
        return Some(homogeneous(terms, read, Homogeneity::linear_if(at.is("ReduceMean")), Border::None));
    }
    let count = view.axes.iter().map(|&a| shape[a].size()).product::<Option<usize>>()? as f64;
    let mean = homogeneous(terms, read, Homogeneity::Linear, Border::None);
    Some(mean.into_iter().map(|x| x.times(count)).collect())
}

/// A border of the same constant has no effect.
fn pad(at: NodeRef<'_>, terms: &mut Terms, axis: usize, size: usize) -> Option<Vec<Term>> {
    let view = PadView::of(at).ok()?;
    (view.pads[axis] == (0, 0)).then_some(())?;
    let read = terms.along(at.input(0).ok()?.id, axis, size);
    let PadMode::Constant(border) = view.mode else {
        return Some(homogeneous(terms, read, Homogeneity::Linear, Border::None));
    };
    let mut interner = Interner::default();
    let each = |x: Term| match x.value() {
        Some(value) if value == border => x,
        _ => interner.term(terms, vec![x.base], vec![border / x.scale]).times(x.scale),
    };
    Some(read.into_iter().map(each).collect())
}

/// Relates indices as the group rule of the operator does.
fn moved<'g>(
    at: NodeRef<'g>,
    tracer: &mut LocalTracer<'g>,
    terms: &mut Terms,
    OutputAxis { slot, axis, size }: OutputAxis,
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
        // Indices that are split or joined keep their order everywhere. Bases of different values are
        // unrelated.
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
    let result = ResultAxis { rank, axis, size };
    let operands = at.inputs().into_iter().map(|v| operand(v, terms, result));
    let operands: Vec<_> = operands.collect::<Option<_>>()?;
    let mut interner = Interner::default();
    let each = |i: usize| {
        let xs: Vec<_> = operands.iter().map(|o| o[i]).collect();
        elementwise(at, &mut interner, terms, &xs)
    };
    Some((0..size).map(each).collect())
}

/// An axis of the result of an elementwise operator.
#[derive(Clone, Copy)]
struct ResultAxis {
    rank: usize,
    axis: usize,
    size: usize,
}

/// Returns the terms of an operand that is broadcast along an axis of the result.
fn operand(
    value: Option<ValueRef<'_>>,
    terms: &mut Terms,
    ResultAxis { rank, axis, size }: ResultAxis,
) -> Option<Vec<Term>> {
    let Some(value) = value else { return Some(vec![Term::constant(0.0); size]) };
    let shape = value.shape()?;
    let own = (axis + shape.len()).checked_sub(rank).filter(|&a| shape[a].size() == Some(size));
    let Ok(tensor) = value.constant() else {
        return Some(match own {
            Some(own) => terms.along(value.id, own, size),
            // Broadcast: equal at all indices.
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
        // Elements that differ along other axes are not a single number.
        *known = if known.is_none_or(|k| k == v) { Some(v) } else { Some(f64::NAN) };
    }
    let each = seen.into_iter().map(|v| match v {
        Some(v) if !v.is_nan() => Term::constant(v),
        _ => terms.fresh(),
    });
    let found: Vec<_> = each.collect();
    Some(if found.len() == size { found } else { vec![*found.first()?; size] })
}
