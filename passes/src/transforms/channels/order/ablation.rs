//! Criteria that try: what happens to the outputs without a unit, or when it moves a little.
//!
//! The original is run once up to the value in question; what follows is loaded once and run for every unit with the
//! value changed along that unit alone.

use super::Ranking;
use crate::{
    analysis::{
        calibration::floats,
        evaluation::{HeldOut, drift},
        groups::{Site, Slot, site_of},
    },
    framework::PassError,
};
use pare_graph::{Tensor, ValueId};
use std::collections::BTreeSet;

/// Samples that every unit is tried on.
const SAMPLES: usize = 64;
/// A step of the pre-activation, in its standard deviations.
const STEP: f64 = 1e-2;

impl Ranking<'_> {
    /// The drift of the outputs when what readers read of a unit is zero, added up over the values they read.
    pub(super) fn ablated(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let graph = &self.model.graph;
        let mut read = BTreeSet::new();
        for role in self.readers(group) {
            let site = site_of(graph.at(role.node), Slot::In(0));
            read.extend(
                site.zip(role.linear.channel_axis(graph)).map(|(s, axis)| (role.linear.input, s, axis)),
            );
        }
        let mut score = vec![0.0; self.groups.groups[group].width];
        for (value, site, axis) in read {
            self.tried(
                (group, value, site, axis),
                &mut score,
                &|x, channels| Ok((changed(x, axis, channels, &|_| 0.0)?, 1.0)),
                &|a, b| Ok(drift(a, b)?),
            )?;
        }
        Ok(score)
    }

    /// `E |Δy| / δ`, averaged over the outputs, when the pre-activation of a unit is moved by `δ` at every place; added up
    /// over the operators that make it.
    pub(super) fn sensitivity(&self, group: usize) -> Result<Vec<f64>, PassError> {
        let graph = &self.model.graph;
        let mut score = vec![0.0; self.groups.groups[group].width];
        for role in self.roles.iter().filter(|r| r.produces(self.groups).contains(&group)) {
            let (value, axis) = (
                role.linear.output,
                if role.linear.is_conv() {
                    1
                } else {
                    let Ok(rank) = graph.value_ref(role.linear.output).rank() else { continue };
                    rank.saturating_sub(1)
                },
            );
            self.tried(
                (group, value, Site::Value(value), axis),
                &mut score,
                &|x, channels| {
                    let delta = STEP * deviation(&floats(x)?);
                    Ok((changed(x, axis, channels, &|v| v + delta as f32)?, delta))
                },
                &|a, b| {
                    let (mut sum, mut count) = (0.0, 0.0);
                    for (a, b) in
                        a.iter().flatten().zip(b.iter().flatten()).filter(|(a, _)| a.dtype().is_float())
                    {
                        for (a, b) in floats(a)?.iter().zip(floats(b)?.iter()) {
                            sum += f64::from((a - b).abs());
                            count += 1.0;
                        }
                    }
                    Ok(sum / f64::max(count, 1.0))
                },
            )?;
        }
        Ok(score)
    }

    /// Change a value along each unit in turn, run what follows, and add `measure` of the outputs over the size of the
    /// change to the unit's score.
    fn tried(
        &self,
        (group, value, site, axis): (usize, ValueId, Site, usize),
        score: &mut [f64],
        change: &dyn Fn(&Tensor, &[usize]) -> Result<(Tensor, f64), PassError>,
        measure: &dyn Fn(&Vec<Vec<Tensor>>, &Vec<Vec<Tensor>>) -> Result<f64, PassError>,
    ) -> Result<(), PassError> {
        let graph = &self.model.graph;
        let range = self.samples.start..self.samples.end.min(self.samples.start + SAMPLES);
        let trial = HeldOut::new(self.tools, self.model, range)?;
        let users = graph.users(value).into_iter().map(|(user, _)| user).collect();
        let start = trial.prefix(self.model, &users)?;
        let mut rest = trial.suffix(&start, self.model)?;
        for (unit, channels) in self.groups.units_along(group, site, axis).into_iter().enumerate() {
            let mut size = 1.0;
            let mut failed = None;
            let outputs = rest.run(&start, value, &mut |x| match change(x, &channels) {
                Ok((new, by)) => {
                    size = by;
                    new
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    x.clone()
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            let by = measure(trial.outputs(), &outputs)?;
            score[unit] += if size > 0.0 { by / size } else { 0.0 };
        }
        Ok(())
    }
}

/// The tensor with these channels of an axis changed.
fn changed(
    x: &Tensor,
    axis: usize,
    channels: &[usize],
    by: &dyn Fn(f32) -> f32,
) -> Result<Tensor, PassError> {
    let mut values = floats(x)?.into_owned();
    let (size, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
    for (k, v) in values.iter_mut().enumerate() {
        if channels.contains(&(k / inner % size)) {
            *v = by(*v);
        }
    }
    let values: Vec<_> = values.into_iter().map(f64::from).collect();
    Tensor::from_f64(x.dtype(), x.shape(), &values).map_err(|e| PassError::refused(e.to_string()))
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt()
}
