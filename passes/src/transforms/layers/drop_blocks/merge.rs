//! Merging of removed blocks into a kept one (*LaCo*).
//!
//! `θ* = θ_l + η·Σ_k (θ_{l+k} - θ_l)` over weights and biases of the linear layers; norms are unchanged. The
//! paper's `η` is 1, which overshoots where blocks differ, so it is chosen on samples. The published
//! notebooks update `θ_l` while they add, and so end with the weights of the last block: `keep-last`.

use super::{BlockRepair, BlockSearch, RemovedBlock};
use crate::{
    analysis::{
        blocks::{Block, blocks},
        evaluation::HeldOut,
        linear::{AffineMap, Linear},
    },
    framework::PassError,
};
use faer::{Mat, Scale};
use pare_graph::{Graph, Model, Patch};

/// The number of coefficients to choose from.
const STEPS: u32 = 10;

/// The weights of a block, by layer and group.
type BlockWeights = Vec<Vec<AffineMap>>;

/// A kept block and the removed blocks merged into it, in order.
struct Merge {
    into: String,
    own: BlockWeights,
    others: Vec<BlockWeights>,
}

/// The merged model, if there are blocks of the same shape.
pub(super) fn merged(
    search: &BlockSearch<'_, '_>,
    removed: &[RemovedBlock],
    plain: &Model,
    held_out: &HeldOut<'_>,
) -> Result<Option<(String, Model)>, PassError> {
    let merges = merges(&search.original.graph, removed);
    if merges.is_empty() {
        return Ok(None);
    }
    if search.pass.repair == BlockRepair::KeepLast {
        return Ok(build(plain, &merges, None).map(|model| ("keep-last".into(), model)));
    }
    let mut best: Option<(f64, f64, Model)> = None;
    for step in 1..=STEPS {
        let eta = f64::from(step) / f64::from(STEPS);
        let Some(model) = build(plain, &merges, Some(eta)) else { return Ok(None) };
        let drift = held_out.drift(&model)?;
        if best.as_ref().is_none_or(|b| drift < b.1) {
            best = Some((eta, drift, model));
        }
    }
    Ok(best.map(|(eta, _, model)| (format!("η={eta}"), model)))
}

/// The linear layers of a block, in order.
fn layers(graph: &Graph, block: &Block) -> Vec<Linear> {
    block.body.iter().filter_map(|&n| Linear::owned(graph, n)).collect()
}

/// Weights and biases of each layer, by group.
fn weights(graph: &Graph, block: &Block) -> Option<BlockWeights> {
    layers(graph, block).iter().map(|layer| layer.maps(graph)).collect()
}

/// Assigns each removed block to the nearest kept block with the same layers before it, or else after it.
fn merges(graph: &Graph, removed: &[RemovedBlock]) -> Vec<Merge> {
    let all = blocks(graph);
    let is_removed = |b: &Block| removed.iter().any(|r| r.branch == graph.value(b.branch).name);
    let signatures: Vec<_> = all
        .iter()
        .map(|b| {
            let shapes = |l: &Linear| (l.weight_axes(), l.groups, l.outputs, l.width(), l.takes_bias());
            (b.kind, b.identity, layers(graph, b).iter().map(shapes).collect::<Vec<_>>())
        })
        .collect();
    let mut merges: Vec<Merge> = vec![];
    for i in (0..all.len()).filter(|&i| is_removed(&all[i])) {
        let fits = |j: &usize| {
            !is_removed(&all[*j]) && signatures[*j] == signatures[i] && !signatures[i].2.is_empty()
        };
        let Some(into) = (0..i).rev().find(fits).or_else(|| (i + 1..all.len()).find(fits)) else { continue };
        let (Some(own), Some(other)) = (weights(graph, &all[into]), weights(graph, &all[i])) else {
            continue;
        };
        let name = graph.value(all[into].branch).name.clone();
        match merges.iter_mut().find(|m| m.into == name) {
            Some(merge) => merge.others.push(other),
            None => merges.push(Merge { into: name, own, others: vec![other] }),
        }
    }
    merges
}

/// The model with merged blocks; without `η`, the weights of the last one replace those of the kept one.
fn build(plain: &Model, merges: &[Merge], eta: Option<f64>) -> Option<Model> {
    let mut model = plain.clone();
    for merge in merges {
        let graph = &model.graph;
        let block = blocks(graph).into_iter().find(|b| graph.value(b.branch).name == merge.into)?;
        let mut patch = Patch::anchored(*block.body.first()?);
        for (i, layer) in layers(graph, &block).iter().enumerate() {
            let maps: Vec<_> =
                (0..layer.groups).map(|q| merged_map(merge, i, q, eta)).collect::<Option<_>>()?;
            let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
            let weights: Vec<Mat<f64>> = maps.into_iter().map(|m| m.weight).collect();
            layer.store(graph, &mut patch, &weights, &bias)?;
        }
        model.graph.apply(patch).ok()?;
    }
    Some(model)
}

/// `θ_l + η·Σ (θ - θ_l)`.
fn merged_map(merge: &Merge, layer: usize, group: usize, eta: Option<f64>) -> Option<AffineMap> {
    let at = |all: &[Vec<AffineMap>]| all.get(layer)?.get(group).cloned();
    let own = at(&merge.own)?;
    let Some(eta) = eta else { return at(merge.others.last()?) };
    let mut result = own.clone();
    for other in &merge.others {
        let other = at(other)?;
        result.weight += (&other.weight - &own.weight) * Scale(eta);
        result
            .bias
            .iter_mut()
            .zip(other.bias.iter().zip(&own.bias))
            .for_each(|(r, (a, b))| *r += eta * (a - b));
    }
    Some(result)
}
