//! In which order units go: what each criterion says of them.

use super::{groups::Groups, repair::InputSums, roles::Role};
use crate::{
    PassError,
    stats::{NotFinite, Order, Reader, block_obs},
};
use pare_graph::Graph;
use serde::{Deserialize, Serialize};

/// What makes a unit matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// What removing it costs its readers when they are refitted: needs samples.
    Obs,
    /// The energy it brings to its readers, `tr(W_c C_cc W_cᵀ)`: needs samples.
    Energy,
    /// Squares of all weights that make or read it.
    L2,
    /// Sizes of all weights that make or read it.
    L1,
    /// Nothing: chance.
    Random,
}

impl Criterion {
    /// Whether it looks at activations.
    pub fn needs_samples(self) -> bool {
        matches!(self, Self::Obs | Self::Energy)
    }
}

/// The units of a group, the least important first, with the loss of removing so many.
pub fn order(
    graph: &Graph,
    groups: &Groups,
    roles: &[Role],
    sums: &InputSums,
    group: usize,
    criterion: Criterion,
    seed: u64,
) -> Result<Order, PassError> {
    let width = groups.groups[group].width;
    let readers: Vec<_> = roles.iter().filter(|r| r.reads(groups).contains(&group)).collect();
    match criterion {
        Criterion::Obs => {
            let mut states = vec![];
            for role in &readers {
                states.extend(readers_of(graph, groups, role, sums, group));
            }
            if states.is_empty() {
                return order(graph, groups, roles, sums, group, Criterion::L2, seed);
            }
            let order = block_obs(states);
            order.map_err(|e: NotFinite| PassError::refused(format!("`{}`: {e}", groups.groups[group].name)))
        }
        Criterion::Random => {
            let mut rng = fastrand::Rng::with_seed(seed ^ group as u64);
            Ok(ranked((0..width).map(|_| rng.f64()).collect()))
        }
        Criterion::Energy => {
            let mut score = vec![0.0; width];
            for role in &readers {
                for reader in readers_of(graph, groups, role, sums, group) {
                    for (score, columns) in score.iter_mut().zip(&reader.units) {
                        *score += reader.importance * energy(&reader, columns);
                    }
                }
            }
            Ok(ranked(score))
        }
        Criterion::L1 | Criterion::L2 => Ok(ranked(norms(graph, groups, group, criterion))),
    }
}

/// What a role is to block-OBS, for each of its groups.
fn readers_of(graph: &Graph, groups: &Groups, role: &Role, sums: &InputSums, group: usize) -> Vec<Reader> {
    let (Some(maps), Some(inputs)) = (role.maps(graph), sums.get(&role.node)) else { return vec![] };
    let units = role.unit_columns(groups, group);
    let all = |q: usize| (0..inputs[q].x_mean.len()).collect::<Vec<_>>();
    let variance: f64 = (0..maps.len().min(inputs.len()))
        .map(|q| {
            inputs[q]
                .through(maps[q].weight.as_ref(), &maps[q].bias, &all(q))
                .y_variance()
                .iter()
                .sum::<f64>()
        })
        .sum();
    let importance = if variance > 0.0 { 1.0 / variance } else { 1.0 };
    let reader = |(map, sums): (crate::stats::Affine, &crate::stats::Sums)| Reader {
        covariance: sums.covariance(),
        weight: map.weight,
        units: units.clone(),
        importance,
    };
    maps.into_iter().zip(inputs).map(reader).collect()
}

fn energy(reader: &Reader, columns: &[usize]) -> f64 {
    let mut sum = 0.0;
    for o in 0..reader.weight.nrows() {
        for &i in columns {
            for &j in columns {
                sum += reader.weight[(o, i)] * reader.covariance[(i, j)] * reader.weight[(o, j)];
            }
        }
    }
    sum
}

/// Norms over all weights that a unit lies along.
fn norms(graph: &Graph, groups: &Groups, group: usize, criterion: Criterion) -> Vec<f64> {
    let mut score = vec![0.0; groups.groups[group].width];
    for member in &groups.groups[group].members {
        let constant = super::groups::constant_of(graph, member.site);
        let Some(tensor) = constant.and_then(|v| v.value().tensor()).filter(|t| t.rank() >= 2) else {
            continue;
        };
        let Some(values) = tensor.to_f64() else { continue };
        let inner: usize = tensor.shape()[member.axis + 1..].iter().product();
        let size = tensor.shape()[member.axis];
        let units = groups.units_along(group, member.site, member.axis);
        let mut unit_of = vec![None; size];
        units.iter().enumerate().for_each(|(u, at)| at.iter().for_each(|&i| unit_of[i] = Some(u)));
        for (k, v) in values.iter().enumerate() {
            if let Some(unit) = unit_of[k / inner % size] {
                score[unit] += if criterion == Criterion::L1 { v.abs() } else { v * v };
            }
        }
    }
    score
}

fn ranked(score: Vec<f64>) -> Order {
    let mut units: Vec<_> = (0..score.len()).collect();
    units.sort_by(|&a, &b| score[a].total_cmp(&score[b]));
    let mut loss = vec![0.0];
    units.iter().for_each(|&u| loss.push(loss[loss.len() - 1] + score[u]));
    Order { units, loss }
}
