//! Importance criteria: the order in which the units of a group are removed.

mod ablation;
mod activity;
mod weights;

pub use weights::BatchNormScales;

use super::local_repair::InputSums;
use crate::analysis::groups::{Groups, roles::LinearRole};
use crate::{
    analysis::{
        calibration::{NotFinite, RemovalOrder, UnitReader, block_obs, damped_inverse},
        linear::AffineMap,
    },
    framework::{PassError, Tools},
    statistics::Sums,
};
use faer::Mat;
use pare_graph::{Model, NodeId};
use serde::{Deserialize, Serialize};
use std::{cell::RefCell, collections::HashMap, ops::Range};

/// The importance criterion of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Importance {
    /// The `ℓ₁` norm of the weights that produce or read the unit.
    L1,
    /// The squared `ℓ₂` norm of the weights that produce or read the unit.
    L2,
    /// The batch norm scales `|γ|` of the unit (Network Slimming, Liu et al. 2017).
    BnScale,
    /// The distance of the producing weights from those of the other units, `Σ_j |w_c - w_j|` (FPGM, He et
    /// al. 2019).
    Fpgm,
    /// A random number.
    Random,
    /// The share of non-zero activations, `1 - APoZ` (Hu et al. 2016).
    Apoz,
    /// The variance of the activation; a constant unit is replaced by its mean.
    Variance,
    /// The entropy of the sign of the activation; units that are always on or always off score 0 (EASIER,
    /// Quétu et al. 2024).
    Entropy,
    /// `Σ |W_ij|·√E x_j²` over the readers (Wanda, Sun et al. 2023).
    Wanda,
    /// `Σ W_ij²·E x_j²`, the diagonal of the readers' Hessian (layer-wise Optimal Brain Damage, LeCun et al.
    /// 1989).
    Obd,
    /// The energy that the unit contributes to its readers, `tr(W_c C_cc W_cᵀ)`.
    Energy,
    /// The squared error that removal causes in the refitted readers (see `block_obs`).
    Obs,
    /// The drift of the outputs without the unit (Skeletonization, Mozer and Smolensky 1988), by ablation.
    Skeleton,
    /// The sensitivity of the outputs to the pre-activation (SeReNe, Tartaglione et al. 2021), by finite
    /// differences.
    Sensitivity,
}

impl Importance {
    /// Returns whether the criterion runs samples through the model.
    pub fn needs_runs(self) -> bool {
        matches!(self, Self::Apoz | Self::Entropy | Self::Skeleton | Self::Sensitivity)
    }

    /// Returns whether the criterion uses sums over the inputs of the readers.
    pub fn needs_sums(self) -> bool {
        matches!(self, Self::Variance | Self::Wanda | Self::Obd | Self::Energy | Self::Obs)
    }
}

/// The inputs of the importance criteria.
pub struct Ranking<'a> {
    /// The tools of the pass.
    pub tools: Tools<'a>,
    /// The model.
    pub model: &'a Model,
    /// Its groups.
    pub groups: &'a Groups,
    /// Its linear operators.
    pub roles: &'a [LinearRole],
    /// Sums over the inputs of the readers.
    pub sums: &'a InputSums,
    /// Scales of the batch norms before they were folded.
    pub scales: &'a BatchNormScales,
    /// The samples to run.
    pub samples: Range<usize>,
    /// Results for readers of several groups, such as those of dense concatenation.
    pub shared: Shared,
}

/// Quantities of readers that several groups use.
#[derive(Default)]
pub struct Shared {
    /// The variance of the outputs, by reader.
    variances: RefCell<HashMap<NodeId, f64>>,
    /// The parts of a reader that belong to the groups that are not ranked yet.
    parts: RefCell<HashMap<NodeId, HashMap<usize, Vec<UnitReader>>>>,
}

/// A linear operator, of one convolution group, that reads the units of a group.
struct ReaderMap {
    /// The weights, `[O, D]`.
    weight: Mat<f64>,
    /// The inputs of each unit.
    units: Vec<Vec<usize>>,
    /// 1 over the variance of its outputs, which makes several maps comparable.
    importance: f64,
}

impl<'a> Ranking<'a> {
    /// Returns the units of a group, least important first, with the cumulative loss of their removal.
    pub fn order(&self, group: usize, criterion: Importance) -> Result<RemovalOrder, PassError> {
        let width = self.groups.groups[group].width;
        let seed = self.tools.seed;
        // There are no sums where no linear operator reads the units.
        let has_sums = self.readers(group).any(|r| self.sums.contains_key(&r.node));
        let criterion = if criterion.needs_sums() && !has_sums { Importance::L2 } else { criterion };
        Ok(ranked(match criterion {
            Importance::Obs => return self.obs(group),
            Importance::L1 | Importance::L2 => self.norms(group, criterion == Importance::L1),
            Importance::BnScale => self.bn_scales(group)?,
            Importance::Fpgm => self.distances(group),
            Importance::Random => {
                let mut rng = fastrand::Rng::with_seed(seed ^ group as u64);
                (0..width).map(|_| rng.f64()).collect()
            }
            Importance::Apoz | Importance::Entropy => self.activity(group, criterion)?,
            Importance::Variance => self.sum_over_readers(group, |_, sums, columns| {
                columns.iter().map(|&j| sums.xx[(j, j)] / sums.count.max(1) as f64).sum()
            }),
            Importance::Wanda => self.sum_over_weights(group, |w, energy| w.abs() * energy.sqrt()),
            Importance::Obd => self.sum_over_weights(group, |w, energy| w * w * energy),
            Importance::Energy => {
                let energy = |reader: &ReaderMap, sums: &Sums, columns: &[usize]| {
                    reader.importance * energy(reader, sums, columns)
                };
                self.sum_over_readers(group, energy)
            }
            Importance::Skeleton => self.ablation(group)?,
            Importance::Sensitivity => self.sensitivity(group)?,
        }))
    }

    /// Returns the linear operators that read a group.
    fn readers(&self, group: usize) -> impl Iterator<Item = &'a LinearRole> {
        self.roles.iter().filter(move |r| r.reads(self.groups).contains(&group))
    }

    fn obs(&self, group: usize) -> Result<RemovalOrder, PassError> {
        let name = |e: NotFinite| PassError::refused(format!("`{}`: {e}", self.groups.groups[group].name));
        let mut readers = vec![];
        for role in self.readers(group) {
            readers.extend(self.unit_readers(role, group).map_err(name)?);
        }
        if readers.is_empty() {
            return self.order(group, Importance::L2);
        }
        block_obs(readers).map_err(name)
    }

    /// Returns a linear operator as readers of a group. The inverse covariance is computed once for all groups
    /// that it reads.
    fn unit_readers(&self, role: &LinearRole, group: usize) -> Result<Vec<UnitReader>, NotFinite> {
        let known = |parts: &mut HashMap<usize, _>| parts.remove(&group);
        if let Some(readers) = self.shared.parts.borrow_mut().get_mut(&role.node).and_then(known) {
            return Ok(readers);
        }
        let is_prunable = |g: &usize| self.groups.groups[*g].pinned.is_none();
        let groups: Vec<_> = role.reads(self.groups).into_iter().filter(is_prunable).collect();
        let mut parts: HashMap<usize, Vec<UnitReader>> = HashMap::new();
        for (map, sums) in self.reader_sums(role, group) {
            let inverse = damped_inverse(sums.covariance(), UnitReader::RIDGE)?;
            for &g in &groups {
                let units = if g == group { map.units.clone() } else { role.unit_columns(self.groups, g) };
                let reader = UnitReader::new(&inverse, &map.weight, units, map.importance);
                parts.entry(g).or_default().push(reader);
            }
        }
        let own = parts.remove(&group).unwrap_or_default();
        if !parts.is_empty() {
            self.shared.parts.borrow_mut().insert(role.node, parts);
        }
        Ok(own)
    }

    /// Returns the score of each unit, summed over the readers. `score_of` receives a reader, its sums and
    /// the columns of a unit.
    fn sum_over_readers(
        &self,
        group: usize,
        score_of: impl Fn(&ReaderMap, &Sums, &[usize]) -> f64,
    ) -> Vec<f64> {
        let mut scores = vec![0.0; self.groups.groups[group].width];
        for role in self.readers(group) {
            for (reader, sums) in self.reader_sums(role, group) {
                for (score, columns) in scores.iter_mut().zip(&reader.units) {
                    *score += score_of(&reader, sums, columns);
                }
            }
        }
        scores
    }

    /// Returns the score of each unit, summed over the weights that read it. `score_of` receives a weight and
    /// the energy `E x²` of its input.
    fn sum_over_weights(&self, group: usize, score_of: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.sum_over_readers(group, |reader, sums, columns| {
            let energy = sums.x_energy();
            let column =
                |&j: &usize| reader.weight.col(j).iter().map(|&w| score_of(w, energy[j])).sum::<f64>();
            columns.iter().map(column).sum()
        })
    }

    /// Returns the maps of a linear operator that read a group, one for each of its convolution groups, with
    /// their sums.
    fn reader_sums(&self, role: &LinearRole, group: usize) -> Vec<(ReaderMap, &'a Sums)> {
        let (Some(maps), Some(inputs)) = (role.linear.maps(&self.model.graph), self.sums.get(&role.node))
        else {
            return vec![];
        };
        let units = role.unit_columns(self.groups, group);
        let variance = || {
            let of_map = |(map, sums): (&AffineMap, &Sums)| {
                sums.through(map.weight.as_ref(), &map.bias, &[]).y_variance().iter().sum::<f64>()
            };
            maps.iter().zip(inputs).map(of_map).sum()
        };
        let variance = *self.shared.variances.borrow_mut().entry(role.node).or_insert_with(variance);
        let importance = if variance > 0.0 { 1.0 / variance } else { 1.0 };
        let reader = |(map, sums): (AffineMap, &'a Sums)| {
            (ReaderMap { weight: map.weight, units: units.clone(), importance }, sums)
        };
        maps.into_iter().zip(inputs).map(reader).collect()
    }
}

/// `tr(W_c C_cc W_cᵀ)` of the columns `c`.
fn energy(reader: &ReaderMap, sums: &Sums, columns: &[usize]) -> f64 {
    let per_row = 1.0 / sums.count.max(1) as f64;
    let mut sum = 0.0;
    for o in 0..reader.weight.nrows() {
        for &i in columns {
            for &j in columns {
                sum += reader.weight[(o, i)] * sums.xx[(i, j)] * per_row * reader.weight[(o, j)];
            }
        }
    }
    sum
}

/// Returns the units by ascending score.
fn ranked(score: Vec<f64>) -> RemovalOrder {
    let mut units: Vec<_> = (0..score.len()).collect();
    units.sort_by(|&a, &b| score[a].total_cmp(&score[b]));
    let mut loss = vec![0.0];
    units.iter().for_each(|&u| loss.push(loss[loss.len() - 1] + score[u]));
    RemovalOrder { units, loss }
}
