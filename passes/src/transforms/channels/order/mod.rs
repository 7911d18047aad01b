//! In which order units go: what each criterion says of them.

mod ablation;
mod activity;
mod weights;

pub use weights::Scales;

use super::repair::InputSums;
use crate::analysis::groups::{Groups, roles::LinearRole};
use crate::{
    analysis::{
        calibration::{NotFinite, RemovalOrder, UnitReader, block_obs},
        linear::AffineMap,
    },
    framework::{PassError, Tools},
    statistics::Sums,
};
use pare_graph::Model;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// What makes a unit matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Sizes of all weights that make or read it.
    L1,
    /// Squares of all weights that make or read it.
    L2,
    /// The factors `|γ|` of the batch norms it went through (Liu et al. 2017).
    BnScale,
    /// How far the weights that make it lie from those of the others, `Σ_j |w_c - w_j|` (He et al. 2019).
    Fpgm,
    /// Nothing: chance.
    Random,
    /// How often it is not zero: 1 - APoZ (Hu et al. 2016).
    Apoz,
    /// Its variance: what is constant is replaced by its mean.
    Variance,
    /// The entropy of its sign: what is always on or always off decides nothing (EASIER, Quétu et al. 2024).
    Entropy,
    /// `Σ |W_ij|·√E x_j²` over its readers (Wanda, Sun et al. 2023).
    Wanda,
    /// `Σ W_ij²·E x_j²`: the diagonal of the readers' Hessian (Optimal Brain Damage, LeCun et al. 1989, by layers).
    Obd,
    /// The energy it brings to its readers, `tr(W_c C_cc W_cᵀ)`.
    Energy,
    /// What removing it costs its readers when they are refitted (see [`block_obs`]).
    Obs,
    /// What the outputs drift without it: Skeletonization (Mozer and Smolensky 1988), by ablation.
    Skeleton,
    /// How much the outputs move with its pre-activation: SeReNe (Tartaglione et al. 2021), by finite differences.
    Sensitivity,
}

impl Criterion {
    /// Whether it runs samples itself.
    pub fn needs_runs(self) -> bool {
        matches!(self, Self::Apoz | Self::Entropy | Self::Skeleton | Self::Sensitivity)
    }

    /// Whether it looks at sums over what readers read.
    pub fn needs_sums(self) -> bool {
        matches!(self, Self::Variance | Self::Wanda | Self::Obd | Self::Energy | Self::Obs)
    }
}

/// What criteria look at.
pub struct Ranking<'a> {
    /// What the caller lends.
    pub tools: Tools<'a>,
    /// The model.
    pub model: &'a Model,
    /// Its groups.
    pub groups: &'a Groups,
    /// Its linear operators.
    pub roles: &'a [LinearRole],
    /// Over the inputs of readers.
    pub sums: &'a InputSums,
    /// Factors of batch norms that are gone.
    pub scales: &'a Scales,
    /// Samples to look at.
    pub samples: Range<usize>,
}

impl<'a> Ranking<'a> {
    /// The units of a group, the least important first, with the loss of removing so many.
    pub fn order(&self, group: usize, criterion: Criterion) -> Result<RemovalOrder, PassError> {
        let width = self.groups.groups[group].width;
        let seed = self.tools.seed;
        // Nothing was added up where no linear operator reads the units.
        let summed = self.readers(group).any(|r| self.sums.contains_key(&r.node));
        let criterion = if criterion.needs_sums() && !summed { Criterion::L2 } else { criterion };
        Ok(ranked(match criterion {
            Criterion::Obs => return self.obs(group),
            Criterion::L1 | Criterion::L2 => self.norms(group, criterion == Criterion::L1),
            Criterion::BnScale => self.bn_scales(group)?,
            Criterion::Fpgm => self.distances(group),
            Criterion::Random => {
                let mut rng = fastrand::Rng::with_seed(seed ^ group as u64);
                (0..width).map(|_| rng.f64()).collect()
            }
            Criterion::Apoz | Criterion::Entropy => self.activity(group, criterion)?,
            Criterion::Variance => self.of_inputs(group, |reader, sums, columns| {
                let _ = reader;
                columns.iter().map(|&j| sums.xx[(j, j)] / sums.count.max(1) as f64).sum()
            }),
            Criterion::Wanda => self.of_weights(group, |w, energy| w.abs() * energy.sqrt()),
            Criterion::Obd => self.of_weights(group, |w, energy| w * w * energy),
            Criterion::Energy => {
                self.of_inputs(group, |reader, _, columns| reader.importance * energy(reader, columns))
            }
            Criterion::Skeleton => self.ablated(group)?,
            Criterion::Sensitivity => self.sensitivity(group)?,
        }))
    }

    /// The operators that read a group.
    fn readers(&self, group: usize) -> impl Iterator<Item = &'a LinearRole> {
        self.roles.iter().filter(move |r| r.reads(self.groups).contains(&group))
    }

    fn obs(&self, group: usize) -> Result<RemovalOrder, PassError> {
        let states: Vec<_> =
            self.readers(group).flat_map(|r| self.states(r, group)).map(|(r, _)| r).collect();
        if states.is_empty() {
            return self.order(group, Criterion::L2);
        }
        let order = block_obs(states);
        order.map_err(|e: NotFinite| PassError::refused(format!("`{}`: {e}", self.groups.groups[group].name)))
    }

    /// Scores that add up over readers: each by itself, with its sums and the columns of a unit.
    fn of_inputs(&self, group: usize, score_of: impl Fn(&UnitReader, &Sums, &[usize]) -> f64) -> Vec<f64> {
        let mut scores = vec![0.0; self.groups.groups[group].width];
        for role in self.readers(group) {
            for (reader, sums) in self.states(role, group) {
                for (score, columns) in scores.iter_mut().zip(&reader.units) {
                    *score += score_of(&reader, sums, columns);
                }
            }
        }
        scores
    }

    /// Scores of single weights and the energy `E x²` of what they read, added up.
    fn of_weights(&self, group: usize, score_of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.of_inputs(group, |reader, sums, columns| {
            let energy = sums.x_energy();
            let column =
                |&j: &usize| reader.weight.col(j).iter().map(|&w| score_of(w, energy[j])).sum::<f64>();
            columns.iter().map(column).sum()
        })
    }

    /// What a role is to block-OBS, for each of its groups.
    fn states(&self, role: &LinearRole, group: usize) -> Vec<(UnitReader, &'a Sums)> {
        let (Some(maps), Some(inputs)) = (role.linear.maps(&self.model.graph), self.sums.get(&role.node))
        else {
            return vec![];
        };
        let units = role.unit_columns(self.groups, group);
        let variance: f64 = (0..maps.len().min(inputs.len()))
            .map(|q| {
                let outputs = inputs[q].through(maps[q].weight.as_ref(), &maps[q].bias, &[]);
                outputs.y_variance().iter().sum::<f64>()
            })
            .sum();
        let importance = if variance > 0.0 { 1.0 / variance } else { 1.0 };
        let reader = |(map, sums): (AffineMap, &'a Sums)| {
            let covariance = sums.covariance();
            (UnitReader { covariance, weight: map.weight, units: units.clone(), importance }, sums)
        };
        maps.into_iter().zip(inputs).map(reader).collect()
    }
}

fn energy(reader: &UnitReader, columns: &[usize]) -> f64 {
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

/// The units by their scores, the least first.
fn ranked(score: Vec<f64>) -> RemovalOrder {
    let mut units: Vec<_> = (0..score.len()).collect();
    units.sort_by(|&a, &b| score[a].total_cmp(&score[b]));
    let mut loss = vec![0.0];
    units.iter().for_each(|&u| loss.push(loss[loss.len() - 1] + score[u]));
    RemovalOrder { units, loss }
}
