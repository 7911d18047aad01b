//! Importance by perturbation: the change of the outputs when a unit is zeroed or its pre-activation is
//! shifted.
//!
//! The original is run once up to the perturbed value. The rest of the model is loaded once, and run for each
//! unit with only that unit's channels perturbed.

use super::Ranking;
use crate::{
    analysis::{
        calibration::floats,
        evaluation::{HeldOut, Outputs},
        groups::{Site, Slot, site_of},
    },
    framework::PassError,
};
use pare_graph::{Tensor, ValueId};
use std::collections::BTreeSet;

/// Number of samples that each unit is perturbed on.
const SAMPLES: usize = 64;
/// Shift of the pre-activation, in standard deviations.
const STEP: f64 = 1e-2;

/// The axis of a value along which a group is perturbed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PerturbedAxis {
    value: ValueId,
    site: Site,
    axis: usize,
}

/// A perturbed tensor and the size of its perturbation.
struct Perturbed {
    tensor: Tensor,
    size: f64,
}

impl Ranking<'_> {
    /// Returns the drift of the outputs when a unit is zeroed in the input of its readers, summed over these
    /// inputs.
    pub(super) fn ablation(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let graph = &self.model.graph;
        let mut read = BTreeSet::new();
        for role in self.readers(group) {
            let site = site_of(graph.at(role.node), Slot::In(0));
            read.extend(site.zip(role.linear.channel_axis(graph)).map(|(site, axis)| PerturbedAxis {
                value: role.linear.input,
                site,
                axis,
            }));
        }
        let mut score = vec![0.0; self.groups.groups[group].width];
        for at in read {
            let zero = |x: &Tensor, channels: &[usize]| {
                Ok(Perturbed { tensor: mapped(x, at.axis, channels, &|_| 0.0)?, size: 1.0 })
            };
            self.perturb(group, at, &mut score, &zero, &|original, changed| Ok(original.drift_to(changed)))?;
        }
        Ok(score)
    }

    /// Returns `E |Δy| / δ`, averaged over the outputs, for a shift `δ` of the pre-activation of a unit at
    /// all positions, summed over the operators that produce the unit.
    pub(super) fn sensitivity(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let graph = &self.model.graph;
        let mut score = vec![0.0; self.groups.groups[group].width];
        for role in self.roles.iter().filter(|r| r.produces(self.groups).contains(&group)) {
            let value = role.linear.output;
            let axis = if role.linear.is_conv() {
                1
            } else {
                let Ok(rank) = graph.value_ref(value).rank() else { continue };
                rank.saturating_sub(1)
            };
            let shift = |x: &Tensor, channels: &[usize]| {
                let delta = STEP * standard_deviation(&floats(x)?);
                let tensor = mapped(x, axis, channels, &|v| v + delta as f32)?;
                Ok(Perturbed { tensor, size: delta })
            };
            let at = PerturbedAxis { value, site: Site::Value(value), axis };
            self.perturb(group, at, &mut score, &shift, &mean_absolute_difference)?;
        }
        Ok(score)
    }

    /// Perturbs a value along each unit in turn, runs the rest of the model, and adds the `distance` of the
    /// outputs, divided by the size of the perturbation, to the unit's score.
    fn perturb(
        &self,
        group: usize,
        at: PerturbedAxis,
        score: &mut [f64],
        perturbation: &dyn Fn(&Tensor, &[usize]) -> Result<Perturbed, PassError>,
        distance: &dyn Fn(&HeldOut<'_>, &Outputs) -> Result<f64, PassError>,
    ) -> Result<(), PassError> {
        let graph = &self.model.graph;
        let range = self.samples.start..self.samples.end.min(self.samples.start + SAMPLES);
        let held_out = HeldOut::new(self.tools, self.model, range)?;
        let users = graph.users(at.value).into_iter().map(|(user, _)| user).collect();
        let start = held_out.prefix(self.model, &users)?;
        let mut rest = held_out.suffix(&start, self.model)?;
        for (unit, channels) in self.groups.units_along(group, at.site, at.axis).into_iter().enumerate() {
            let mut size = 1.0;
            let mut failed = None;
            let outputs = rest.run(&start, at.value, &mut |x| match perturbation(x, &channels) {
                Ok(perturbed) => {
                    size = perturbed.size;
                    perturbed.tensor
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    x.clone()
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            let distance = distance(&held_out, &held_out.without_padding(outputs))?;
            score[unit] += if size > 0.0 { distance / size } else { 0.0 };
        }
        Ok(())
    }
}

/// Returns the mean of `|a - b|` over all elements of the floating-point outputs that are compared.
fn mean_absolute_difference(original: &HeldOut<'_>, changed: &Outputs) -> Result<f64, PassError> {
    let (mut sum, mut count) = (0.0, 0.0);
    let batches = original.outputs().iter().zip(changed);
    let outputs = batches.flat_map(|(a, b)| a.iter().zip(b).enumerate());
    let compared = outputs.filter(|(output, (a, _))| a.dtype().is_float() && original.compares(*output));
    for (_, (a, b)) in compared {
        for (a, b) in floats(a)?.iter().zip(floats(b)?.iter()) {
            sum += f64::from((a - b).abs());
            count += 1.0;
        }
    }
    Ok(sum / f64::max(count, 1.0))
}

/// Returns the tensor with `map` applied to these channels of an axis.
fn mapped(
    x: &Tensor,
    axis: usize,
    channels: &[usize],
    map: &dyn Fn(f32) -> f32,
) -> Result<Tensor, PassError> {
    let mut values = floats(x)?.into_owned();
    let (size, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
    for (k, v) in values.iter_mut().enumerate() {
        if channels.contains(&(k / inner % size)) {
            *v = map(*v);
        }
    }
    let values: Vec<_> = values.into_iter().map(f64::from).collect();
    Tensor::from_f64(x.dtype(), x.shape(), &values).map_err(PassError::from_error)
}

fn standard_deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}
