//! Importance by weights alone.

use super::Ranking;
use crate::{
    analysis::{
        groups::{Site, Slot, constant_of, site_of},
        linear::dequantized,
    },
    framework::PassError,
};
use faer::Mat;
use pare_graph::{Edge, Model, Tensor, ValueRef, ops::AffineView};
use std::collections::HashMap;

/// Batch norm scales `|γ|`, by the name of the batch norm's output.
#[derive(Clone, Debug, Default)]
pub struct BatchNormScales(HashMap<String, Vec<f64>>);

impl BatchNormScales {
    /// Collects the scales of a model whose batch norms have not been folded.
    pub fn of(model: &Model) -> Self {
        let graph = &model.graph;
        let scale = |at: pare_graph::NodeRef<'_>| {
            AffineView::of(at).ok()?;
            let gamma = at.input(1).ok()?.constant_f64().ok()?;
            Some((at.output().ok()?.name().to_owned(), gamma.into_iter().map(f64::abs).collect()))
        };
        Self(graph.nodes().iter().filter_map(|&id| scale(graph.at(id))).collect())
    }
}

/// Returns the weights that a constant holds, dequantized if they are quantized.
fn weights_of(constant: ValueRef<'_>, tensor: &Tensor) -> Option<Vec<f64>> {
    if tensor.dtype().is_float() {
        return tensor.to_f64();
    }
    constant.users().into_iter().find_map(|(at, edge)| {
        let dequantizes = at.is("DequantizeLinear") && edge == Edge::Input(0);
        dequantizes.then(|| dequantized(at).ok()).flatten()
    })
}

impl Ranking<'_> {
    /// Returns the norm of each unit over all constants that have an axis in the group.
    pub(super) fn norms(&self, group: usize, absolute: bool) -> Vec<f64> {
        let mut score = vec![0.0; self.groups.groups[group].width];
        for member in &self.groups.groups[group].members {
            let Some(constant) = constant_of(&self.model.graph, member.site) else { continue };
            let Some(tensor) = constant.value().tensor().filter(|t| t.rank() >= 2) else { continue };
            let Some(values) = weights_of(constant, tensor) else { continue };
            let inner: usize = tensor.shape()[member.axis + 1..].iter().product();
            let size = tensor.shape()[member.axis];
            let units = self.groups.units_along(group, member.site, member.axis);
            let mut unit_of = vec![None; size];
            units.iter().enumerate().for_each(|(u, at)| at.iter().for_each(|&i| unit_of[i] = Some(u)));
            for (k, v) in values.iter().enumerate() {
                if let Some(unit) = unit_of[k / inner % size] {
                    score[unit] += if absolute { v.abs() } else { v * v };
                }
            }
        }
        score
    }

    /// Returns the sum of `|γ|` of each unit over the batch norms of the group.
    pub(super) fn bn_scales(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let id = group;
        let group = &self.groups.groups[id];
        let mut score = vec![0.0; group.width];
        let mut any = false;
        for member in &group.members {
            let Site::Value(value) = member.site else { continue };
            let Some(scale) = self.scales.0.get(&self.model.graph.value(value).name) else { continue };
            for (score, at) in score.iter_mut().zip(self.groups.units_along(id, member.site, member.axis)) {
                *score += at.iter().filter_map(|&i| scale.get(i)).sum::<f64>();
            }
            any = true;
        }
        if any {
            return Ok(score);
        }
        Err(PassError::refused_with(
            format!("`{}` has no batch norm, so `criterion=bn-scale` cannot rank it", group.name),
            "use `criterion=l2`, or the model before its batch norms were folded",
        ))
    }

    /// Returns the sum of distances of each unit's weights to those of all units, over the operators that
    /// produce them.
    pub(super) fn distances(&self, group: usize) -> Vec<f64> {
        let mut score = vec![0.0; self.groups.groups[group].width];
        for role in self.roles.iter().filter(|r| r.produces(self.groups).contains(&group)) {
            let Some(maps) = role.linear.maps(&self.model.graph) else { continue };
            let Some(site) = site_of(self.model.graph.at(role.node), Slot::In(1)) else { continue };
            let units = self.groups.units_along(group, site, role.linear.weight_axes().0);
            let (rows, d) = (role.linear.outputs, role.linear.width());
            // The rows of each unit, concatenated.
            let per_unit = units.iter().map(Vec::len).max().unwrap_or(0);
            let entry = |unit: usize, k: usize| {
                let row = units[unit].get(k / d.max(1)).copied()?;
                Some(maps.get(row / rows)?.weight[(row % rows, k % d)])
            };
            let w = Mat::from_fn(units.len(), per_unit * d, |u, k| entry(u, k).unwrap_or(0.0));
            let gram = &w * w.transpose();
            for a in 0..units.len() {
                let distance = |b: usize| (gram[(a, a)] + gram[(b, b)] - 2.0 * gram[(a, b)]).max(0.0).sqrt();
                score[a] += (0..units.len()).map(distance).sum::<f64>();
            }
        }
        score
    }
}
