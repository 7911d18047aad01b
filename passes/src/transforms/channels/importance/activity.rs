//! Importance by activity: how often a unit is non-zero or positive.

use super::{Importance, Ranking};
use crate::{
    analysis::{
        calibration::{entropy::entropy, floats, misfit, observe},
        groups::{Slot, site_of},
    },
    framework::PassError,
};

/// Maximum number of samples; enough to estimate shares.
const SAMPLES: usize = 256;

impl Ranking<'_> {
    /// Returns, for each unit, the share of non-zero elements or the entropy in bits of the sign, summed over
    /// the distinct inputs of the readers.
    pub(super) fn activity(&self, group: usize, criterion: Importance) -> Result<Vec<f64>, PassError> {
        let graph = &self.model.graph;
        let mut score = vec![0.0; self.groups.groups[group].width];
        let mut seen = vec![];
        for role in self.readers(group) {
            let input = role.linear.input;
            if seen.contains(&input) {
                continue;
            }
            seen.push(input);
            let Some(axis) = role.linear.channel_axis(graph) else { continue };
            let Some(site) = site_of(graph.at(role.node), Slot::In(0)) else { continue };
            let units = self.groups.units_along(group, site, axis);
            let samples = self.samples.start..self.samples.end.min(self.samples.start + SAMPLES);
            let mut active: Vec<f64> = vec![];
            let mut count = 0.0;
            observe(self.tools, self.model, &[input], samples, "activity", &mut |_, values| {
                let x =
                    values.first().filter(|x| x.rank() > axis).ok_or_else(|| misfit(&role.linear, graph))?;
                let (size, inner) = (x.shape()[axis], x.shape()[axis + 1..].iter().product::<usize>());
                active.resize(size, 0.0);
                for (k, v) in floats(x)?.iter().enumerate() {
                    let is_active = if criterion == Importance::Apoz { *v != 0.0 } else { *v > 0.0 };
                    active[k / inner % size] += f64::from(u8::from(is_active));
                }
                count += (x.len() / size.max(1)) as f64;
                Ok(())
            })?;
            for (score, channels) in score.iter_mut().zip(units) {
                let share = |c: usize| active.get(c).map_or(0.0, |n| n / f64::max(count, 1.0));
                let score_of =
                    |c: usize| if criterion == Importance::Apoz { share(c) } else { entropy(share(c)) };
                *score += channels.into_iter().map(score_of).sum::<f64>();
            }
        }
        Ok(score)
    }
}
