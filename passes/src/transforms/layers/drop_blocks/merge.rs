//! Merging as in *LaCo*: a block takes up what changes from it to those that are gone.
//!
//! `θ* = θ_l + η·Σ_k (θ_{l+k} - θ_l)` over weights and biases of the linear layers; norms stay. The paper's `η` is 1, which
//! overshoots where blocks differ, so it is chosen on samples. The published notebooks change `θ_l` while they add,
//! and so end with the weights of the last block: `keep-last`.

use super::{Gone, Healing, Work};
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

/// Coefficients to choose from.
const STEPS: u32 = 10;

/// A kept block with those it takes up, in order.
struct Merge {
    into: String,
    own: Vec<Vec<AffineMap>>,
    others: Vec<Vec<Vec<AffineMap>>>,
}

/// The merged model, if there are blocks of the same shape.
pub(super) fn merged(
    work: &Work<'_, '_>,
    gone: &[Gone],
    plain: &Model,
    trial: &HeldOut<'_>,
) -> Result<Option<(String, Model)>, PassError> {
    let merges = merges(&work.original.graph, gone);
    if merges.is_empty() {
        return Ok(None);
    }
    if work.pass.healing == Healing::KeepLast {
        return Ok(build(plain, &merges, None).map(|model| ("keep-last".into(), model)));
    }
    let mut best: Option<(f64, f64, Model)> = None;
    for step in 1..=STEPS {
        let eta = f64::from(step) / f64::from(STEPS);
        let Some(model) = build(plain, &merges, Some(eta)) else { return Ok(None) };
        let drift = trial.drift(&model)?;
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

/// Weights and biases of each layer, group by group.
fn weights(graph: &Graph, block: &Block) -> Option<Vec<Vec<AffineMap>>> {
    layers(graph, block).iter().map(|layer| layer.maps(graph)).collect()
}

/// For each block that is gone the nearest kept one before it with the same layers, or else behind it.
fn merges(graph: &Graph, gone: &[Gone]) -> Vec<Merge> {
    let all = blocks(graph);
    let is_gone = |b: &Block| gone.iter().any(|g| g.branch == graph.value(b.branch).name);
    let kinds: Vec<_> = all
        .iter()
        .map(|b| {
            let shapes = |l: &Linear| (l.weight_axes(), l.groups, l.outputs, l.width(), l.takes_bias());
            (b.kind, b.identity, layers(graph, b).iter().map(shapes).collect::<Vec<_>>())
        })
        .collect();
    let mut merges: Vec<Merge> = vec![];
    for i in (0..all.len()).filter(|&i| is_gone(&all[i])) {
        let fits = |j: &usize| !is_gone(&all[*j]) && kinds[*j] == kinds[i] && !kinds[i].2.is_empty();
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

/// The model with merged blocks; without `η` the last one's weights replace the kept one's.
fn build(plain: &Model, merges: &[Merge], eta: Option<f64>) -> Option<Model> {
    let mut model = plain.clone();
    for merge in merges {
        let graph = &model.graph;
        let block = blocks(graph).into_iter().find(|b| graph.value(b.branch).name == merge.into)?;
        let mut patch = Patch::anchored(*block.body.first()?);
        for (i, layer) in layers(graph, &block).iter().enumerate() {
            let maps: Vec<_> = (0..layer.groups).map(|q| sum(merge, i, q, eta)).collect::<Option<_>>()?;
            let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
            let weights: Vec<Mat<f64>> = maps.into_iter().map(|m| m.weight).collect();
            layer.store(graph, &mut patch, &weights, &bias)?;
        }
        model.graph.apply(patch).ok()?;
    }
    Some(model)
}

/// `θ_l + η·Σ (θ - θ_l)`.
fn sum(merge: &Merge, layer: usize, group: usize, eta: Option<f64>) -> Option<AffineMap> {
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
