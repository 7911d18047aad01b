//! Criteria that look at weights alone.

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

/// Factors `|γ|` of batch norms, by the names of the values they make.
#[derive(Clone, Debug, Default)]
pub struct Scales(HashMap<String, Vec<f64>>);

impl Scales {
    /// Of a model whose batch norms are still there.
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

/// The weights that a constant holds: as they are dequantized, if they are.
fn learnt(constant: ValueRef<'_>, tensor: &Tensor) -> Option<Vec<f64>> {
    if tensor.dtype().is_float() {
        return tensor.to_f64();
    }
    constant.users().into_iter().find_map(|(at, wire)| {
        let dequantizes = at.is("DequantizeLinear") && wire == Edge::Input(0);
        dequantizes.then(|| dequantized(at).ok()).flatten()
    })
}

impl Ranking<'_> {
    /// Norms over all weights that a unit lies along.
    pub(super) fn norms(&self, group: usize, absolute: bool) -> Vec<f64> {
        let mut score = vec![0.0; self.groups.groups[group].width];
        for member in &self.groups.groups[group].members {
            let Some(constant) = constant_of(&self.model.graph, member.site) else { continue };
            let Some(tensor) = constant.value().tensor().filter(|t| t.rank() >= 2) else { continue };
            let Some(values) = learnt(constant, tensor) else { continue };
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

    /// Sums of `|γ|` over the batch norms that made values of the group.
    pub(super) fn bn_scales(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let of = &self.groups.groups[group];
        let mut score = vec![0.0; of.width];
        let mut any = false;
        for member in &of.members {
            let Site::Value(value) = member.site else { continue };
            let Some(scale) = self.scales.0.get(&self.model.graph.value(value).name) else { continue };
            for (score, at) in score.iter_mut().zip(self.groups.units_along(group, member.site, member.axis))
            {
                *score += at.iter().filter_map(|&i| scale.get(i)).sum::<f64>();
            }
            any = true;
        }
        if any {
            return Ok(score);
        }
        Err(PassError::refused_with(
            format!("`{}` has no batch norm, which `criterion=bn-scale` looks at", of.name),
            "ask for `criterion=l2`, or give the model before its batch norms were folded",
        ))
    }

    /// Sums of distances to the weights of all other units, over the operators that make them.
    pub(super) fn distances(&self, group: usize) -> Vec<f64> {
        let mut score = vec![0.0; self.groups.groups[group].width];
        for role in self.roles.iter().filter(|r| r.produces(self.groups).contains(&group)) {
            let Some(maps) = role.linear.maps(&self.model.graph) else { continue };
            let Some(site) = site_of(self.model.graph.at(role.node), Slot::In(1)) else { continue };
            let units = self.groups.units_along(group, site, role.linear.weight_axes().0);
            let (rows, d) = (role.linear.outputs, role.linear.width());
            // The rows of each unit one after another.
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
