//! Healing in closed form, without new nodes: the layer before the gap, and those behind, are fitted to what the
//! original gives there.
//!
//! | healing | what is fitted |
//! |---|---|
//! | `affine` | `W' = diag(a)·W`, `b' = a·b + c` of the layer that writes to the stream before the gap |
//! | `least-squares` | `W' = T·W` of the same (ReplaceMe; there `T` stands behind an MLP, here behind any writer) |
//! | `refit` | all weights of the same, and of every layer behind, in order |
//!
//! The target is the stream behind the gap, so that with what is added to it before (`skip`) the fit is
//! `y = v_original - skip`. Where nothing before the gap can be fitted (an embedding), the next layer that writes to the
//! stream stands in.

use super::{Gone, Healing, Work, merge};
use crate::{
    analysis::{
        evaluation::HeldOut,
        linear::Linear,
        repair::{Refit, Repair, RepairOptions, dependents},
    },
    framework::PassError,
};
use pare_graph::{Graph, Model, NodeId, ValueId, ValueRef, ops::ClipView};
use std::collections::{HashMap, HashSet};

/// Ridges to choose from, as shares of the mean variance.
const LAMBDAS: [f64; 2] = [1e-3, 3e-2];

/// Healed models, with what was done; which is best is to be measured.
pub(super) fn heal(
    work: &Work<'_, '_>,
    gone: &[Gone],
    stands: &HashMap<String, String>,
    plain: &Model,
    trial: &HeldOut<'_>,
) -> Result<Vec<(String, Model)>, PassError> {
    let gaps = gaps(&work.original.graph, &plain.graph, gone, stands);
    let writers = writers(&work.original.graph, &plain.graph, &gaps);
    let mut healed = vec![];
    match work.pass.healing {
        Healing::None => {}
        Healing::Merge | Healing::KeepLast => healed.extend(merge::merged(work, gone, plain, trial)?),
        Healing::Affine | Healing::LeastSquares => {
            let channels = work.pass.healing == Healing::Affine;
            let refits: Vec<_> = writers.iter().filter_map(|w| mapped(&plain.graph, w, channels)).collect();
            for lambda in LAMBDAS {
                healed.push((format!("λ={lambda}"), fitted(work, plain, &refits, lambda)?));
            }
        }
        Healing::Refit => {
            healed.push((format!("writers, λ={}", LAMBDAS[0]), fitted(work, plain, &writers, LAMBDAS[0])?));
            let all = all(&work.original.graph, &plain.graph, &gaps, &writers);
            for lambda in LAMBDAS {
                healed.push((format!("all, λ={lambda}"), fitted(work, plain, &all, lambda)?));
            }
        }
    }
    Ok(healed)
}

fn fitted(work: &Work<'_, '_>, plain: &Model, refits: &[Refit], lambda: f64) -> Result<Model, PassError> {
    let mut model = plain.clone();
    let samples = work.split.fit.clone();
    let repair = Repair { tools: work.tools, original: &work.original, refits, samples };
    repair.refit(&mut model, RepairOptions::new(lambda))?;
    model.infer()?;
    Ok(model)
}

/// A place where blocks are gone: the stream as it is now, and the value of the original that it should be like.
struct Gap {
    now: ValueId,
    meant: ValueId,
}

/// Blocks that follow one another leave one gap; what counts is the stream behind the last of them.
fn gaps(original: &Graph, changed: &Graph, gone: &[Gone], stands: &HashMap<String, String>) -> Vec<Gap> {
    let place =
        |v: ValueId| original.producer(v).and_then(|(n, _)| original.nodes().iter().position(|m| *m == n));
    let mut gaps: Vec<Gap> = vec![];
    for block in gone {
        let mut name = &block.exit;
        for _ in 0..=stands.len() {
            match stands.get(name).filter(|_| changed.find(name).is_none()) {
                Some(next) => name = next,
                None => break,
            }
        }
        let (Some(now), Some(meant)) = (changed.find(name), original.find(&block.exit)) else { continue };
        let now = before_repeats(changed, now);
        match gaps.iter_mut().find(|g| g.now == now) {
            Some(gap) if place(gap.meant) < place(meant) => gap.meant = meant,
            Some(_) => {}
            None => gaps.push(Gap { now, meant }),
        }
    }
    gaps
}

/// The value before activations that only repeat the one before them: what stood between blocks that are gone.
fn before_repeats(graph: &Graph, mut value: ValueId) -> ValueId {
    let clip = |v: ValueId| graph.value_ref(v).producer().and_then(|at| Some((at, ClipView::of(at).ok()?)));
    while let Some((at, bounds)) = clip(value) {
        let Ok(input) = at.input(0) else { break };
        if clip(input.id).is_none_or(|(_, before)| before != bounds) {
            break;
        }
        value = input.id;
    }
    value
}

/// The layers that a stream can be changed by: the nodes of a graph by the value they give.
fn layers(graph: &Graph) -> HashMap<ValueId, NodeId> {
    let of = |&node: &NodeId| Linear::owned(graph, node).map(|l| (l.output, node));
    graph.nodes().iter().filter_map(of).collect()
}

/// For each gap the layer that writes to the stream before it, or else behind it.
fn writers(original: &Graph, changed: &Graph, gaps: &[Gap]) -> Vec<Refit> {
    let layers = layers(changed);
    let place: HashMap<_, _> = changed.nodes().iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let mut refits: Vec<Refit> = vec![];
    for gap in gaps {
        let before = before(changed, &layers, gap.now).map(|(node, added)| {
            let sum = added.then_some(gap.meant);
            Refit { node, target: gap.meant, sum, kept: None, free: None, output_transform: false }
        });
        let next = || {
            let after = dependents(changed, &readers(changed, gap.now));
            let refit = |&node: &NodeId| meant(original, changed, node, &after).filter(|r| r.sum.is_some());
            changed.nodes().iter().find_map(refit)
        };
        refits.extend(before.or_else(next).filter(|r| refits.iter().all(|other| other.node != r.node)));
    }
    refits.sort_by_key(|r| place.get(&r.node).copied());
    refits
}

fn readers(graph: &Graph, value: ValueId) -> HashSet<NodeId> {
    graph.users(value).into_iter().map(|(node, _)| node).collect()
}

/// The layer whose output, perhaps added to something and then clipped, is this value; and whether it is added. Of two
/// terms the one with more weights.
fn before(graph: &Graph, layers: &HashMap<ValueId, NodeId>, mut value: ValueId) -> Option<(NodeId, bool)> {
    for _ in 0..4 {
        if let Some(&node) = layers.get(&value) {
            return Some((node, false));
        }
        let producer = graph.value_ref(value).producer()?;
        if producer.is("Add") {
            let terms = producer.inputs().into_iter().flatten().filter_map(|v| layers.get(&v.id));
            let size = |node: &&NodeId| {
                graph.at(**node).input(1).and_then(ValueRef::constant).map_or(0, pare_graph::Tensor::len)
            };
            return terms.max_by_key(size).map(|&node| (node, true));
        }
        if !["Relu", "Clip", "Identity"].iter().any(|op| producer.is(op)) {
            return None;
        }
        value = producer.input(0).ok()?.id;
    }
    None
}

/// A writer with no more than a map behind it.
fn mapped(graph: &Graph, writer: &Refit, channels: bool) -> Option<Refit> {
    let layer = Linear::owned(graph, writer.node)?;
    let (groups, o) = (layer.groups, layer.outputs);
    let diagonal = || (0..groups * o * o).map(|i| i / o % o == i % o).collect();
    Some(Refit { output_transform: true, free: channels.then(diagonal), ..writer.clone() })
}

/// What a layer, or the sum it is a term of, gives in the original.
fn meant(original: &Graph, changed: &Graph, node: NodeId, after: &HashSet<ValueId>) -> Option<Refit> {
    let layer = Linear::owned(changed, node)?;
    let output = changed.value_ref(layer.output);
    if !after.contains(&output.id) || output.value().is_output() && !layer.takes_bias() {
        return None;
    }
    let same =
        |v: ValueRef<'_>| original.find(v.name()).filter(|&o| original.value_ref(o).shape() == v.shape());
    let sum = output.sole_user().ok().filter(|at| at.is("Add")).and_then(|at| at.output().ok());
    let sum = sum.and_then(same);
    let target = same(output).or(sum)?;
    Some(Refit { node, target, sum, kept: None, free: None, output_transform: false })
}

/// The writers, and every layer behind a gap.
fn all(original: &Graph, changed: &Graph, gaps: &[Gap], writers: &[Refit]) -> Vec<Refit> {
    let starts = gaps.iter().flat_map(|g| readers(changed, g.now)).collect();
    let after = dependents(changed, &starts);
    let refit = |&node: &NodeId| match writers.iter().find(|w| w.node == node) {
        Some(writer) => Some(writer.clone()),
        None => meant(original, changed, node, &after),
    };
    changed.nodes().iter().filter_map(refit).collect()
}
