//! Repair in closed form, without new nodes: the layer before a gap, and later ones, are refitted to
//! reproduce the values of the original.
//!
//! | repair | refitted |
//! |---|---|
//! | `affine` | `W' = diag(a)·W`, `b' = a·b + c` of the layer that writes to the stream before the gap |
//! | `least-squares` | `W' = T·W` of the same layer (ReplaceMe; there `T` follows an MLP, here any writer) |
//! | `refit` | all weights of the same layer, and of every later one, in order |
//!
//! The target is the stream after the gap: with `skip`, the other term of the sum, the layer is fitted to
//! `v_original - skip`. If no layer before the gap can be refitted (an embedding), the next writer to the
//! stream is.

use super::{BlockRepair, BlockSearch, RemovedBlock, merge};
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

/// Ridge parameters to choose from, as shares of the mean variance.
const LAMBDAS: [f64; 2] = [1e-3, 3e-2];

impl BlockSearch<'_, '_> {
    /// Repaired models with descriptions. The caller measures which is best.
    pub(super) fn repaired(
        &self,
        removed: &[RemovedBlock],
        replacements: &HashMap<String, String>,
        plain: &Model,
        held_out: &HeldOut<'_>,
    ) -> Result<Vec<(String, Model)>, PassError> {
        let original = &self.original.graph;
        let gaps = gaps(original, &plain.graph, removed, replacements);
        let writers = writers(original, &plain.graph, &gaps);
        let mut repaired = vec![];
        match self.pass.repair {
            BlockRepair::None => {}
            BlockRepair::Merge | BlockRepair::KeepLast => {
                repaired.extend(merge::merged(self, removed, plain, held_out)?);
            }
            BlockRepair::Affine | BlockRepair::LeastSquares => {
                let per_channel = self.pass.repair == BlockRepair::Affine;
                let refits: Vec<_> =
                    writers.iter().filter_map(|w| output_map(&plain.graph, w, per_channel)).collect();
                for lambda in LAMBDAS {
                    repaired.push((format!("λ={lambda}"), self.refitted(plain, &refits, lambda)?));
                }
            }
            BlockRepair::Refit => {
                let lambda = LAMBDAS[0];
                repaired.push((format!("writers, λ={lambda}"), self.refitted(plain, &writers, lambda)?));
                let all = all_refits(original, &plain.graph, &gaps, &writers);
                for lambda in LAMBDAS {
                    repaired.push((format!("all, λ={lambda}"), self.refitted(plain, &all, lambda)?));
                }
            }
        }
        Ok(repaired)
    }

    fn refitted(&self, plain: &Model, refits: &[Refit], lambda: f64) -> Result<Model, PassError> {
        let mut model = plain.clone();
        let samples = self.split.fit.clone();
        let repair = Repair { tools: self.tools, original: &self.original, refits, samples };
        repair.refit(&mut model, RepairOptions::new(lambda))?;
        model.infer()?;
        Ok(model)
    }
}

/// A position in the stream where blocks were removed.
struct Gap {
    /// The stream in the changed graph.
    stream: ValueId,
    /// The value of the original that it should reproduce.
    target: ValueId,
}

/// The gaps left by removed blocks. Consecutive blocks leave one, whose target is the stream after the last
/// of them.
fn gaps(
    original: &Graph,
    changed: &Graph,
    removed: &[RemovedBlock],
    replacements: &HashMap<String, String>,
) -> Vec<Gap> {
    let position =
        |v: ValueId| original.producer(v).and_then(|(n, _)| original.nodes().iter().position(|m| *m == n));
    let mut gaps: Vec<Gap> = vec![];
    for block in removed {
        let mut name = &block.exit;
        for _ in 0..=replacements.len() {
            match replacements.get(name).filter(|_| changed.find(name).is_none()) {
                Some(next) => name = next,
                None => break,
            }
        }
        let (Some(stream), Some(target)) = (changed.find(name), original.find(&block.exit)) else { continue };
        let stream = before_repeated_clips(changed, stream);
        match gaps.iter_mut().find(|g| g.stream == stream) {
            Some(gap) if position(gap.target) < position(target) => gap.target = target,
            Some(_) => {}
            None => gaps.push(Gap { stream, target }),
        }
    }
    gaps
}

/// The value before activations that repeat the one before them, as between removed blocks.
fn before_repeated_clips(graph: &Graph, mut value: ValueId) -> ValueId {
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

/// The refittable layers of a graph, by their outputs.
fn layers(graph: &Graph) -> HashMap<ValueId, NodeId> {
    let of = |&node: &NodeId| Linear::owned(graph, node).map(|l| (l.output, node));
    graph.nodes().iter().filter_map(of).collect()
}

/// For each gap, the layer that writes to the stream before it, or else after it.
fn writers(original: &Graph, changed: &Graph, gaps: &[Gap]) -> Vec<Refit> {
    let layers = layers(changed);
    let position: HashMap<_, _> = changed.nodes().iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let mut refits: Vec<Refit> = vec![];
    for gap in gaps {
        let before = writer_before(changed, &layers, gap.stream).map(|writer| {
            let sum = writer.is_term.then_some(gap.target);
            Refit {
                node: writer.node,
                target: gap.target,
                sum,
                kept: None,
                free: None,
                output_transform: false,
            }
        });
        let next = || {
            let after = dependents(changed, &readers(changed, gap.stream));
            let refit =
                |&node: &NodeId| refit_of(original, changed, node, &after).filter(|r| r.sum.is_some());
            changed.nodes().iter().find_map(refit)
        };
        refits.extend(before.or_else(next).filter(|r| refits.iter().all(|other| other.node != r.node)));
    }
    refits.sort_by_key(|r| position.get(&r.node).copied());
    refits
}

fn readers(graph: &Graph, value: ValueId) -> HashSet<NodeId> {
    graph.users(value).into_iter().map(|(node, _)| node).collect()
}

/// A layer that writes to the stream.
struct StreamWriter {
    node: NodeId,
    /// True if its output is a term of a sum.
    is_term: bool,
}

/// The layer whose output is this value, possibly after an `Add` and a clip. Of two terms, the one with more
/// weights.
fn writer_before(
    graph: &Graph,
    layers: &HashMap<ValueId, NodeId>,
    mut value: ValueId,
) -> Option<StreamWriter> {
    for _ in 0..4 {
        if let Some(&node) = layers.get(&value) {
            return Some(StreamWriter { node, is_term: false });
        }
        let producer = graph.value_ref(value).producer()?;
        if producer.is("Add") {
            let terms = producer.inputs().into_iter().flatten().filter_map(|v| layers.get(&v.id));
            let size = |node: &&NodeId| {
                graph.at(**node).input(1).and_then(ValueRef::constant).map_or(0, pare_graph::Tensor::len)
            };
            return terms.max_by_key(size).map(|&node| StreamWriter { node, is_term: true });
        }
        if !["Relu", "Clip", "Identity"].iter().any(|op| producer.is(op)) {
            return None;
        }
        value = producer.input(0).ok()?.id;
    }
    None
}

/// The refit of a writer restricted to a linear map of its output, diagonal if `per_channel`.
fn output_map(graph: &Graph, writer: &Refit, per_channel: bool) -> Option<Refit> {
    let layer = Linear::owned(graph, writer.node)?;
    let (groups, o) = (layer.groups, layer.outputs);
    let diagonal = || (0..groups * o * o).map(|i| i / o % o == i % o).collect();
    Some(Refit { output_transform: true, free: per_channel.then(diagonal), ..writer.clone() })
}

/// The refit of a layer to its output in the original, or to that of the sum that it is a term of.
fn refit_of(original: &Graph, changed: &Graph, node: NodeId, after: &HashSet<ValueId>) -> Option<Refit> {
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

/// The refits of the writers and of every layer after a gap.
fn all_refits(original: &Graph, changed: &Graph, gaps: &[Gap], writers: &[Refit]) -> Vec<Refit> {
    let starts = gaps.iter().flat_map(|g| readers(changed, g.stream)).collect();
    let after = dependents(changed, &starts);
    let refit = |&node: &NodeId| match writers.iter().find(|w| w.node == node) {
        Some(writer) => Some(writer.clone()),
        None => refit_of(original, changed, node, &after),
    };
    changed.nodes().iter().filter_map(refit).collect()
}
