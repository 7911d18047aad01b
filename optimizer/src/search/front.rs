//! The Pareto front: trials that no other is better than in both cost and quality.

use super::trial::Trial;
use crate::{Error, Optimized, output::write_file};
use serde::Serialize;
use std::path::Path;

/// The positions of the trials of the front, from the best quality to the least cost.
pub(super) fn front(trials: &[Trial]) -> Vec<usize> {
    let mut measured: Vec<_> =
        trials.iter().enumerate().filter_map(|(at, trial)| Some((at, trial.measured()?))).collect();
    measured.sort_by(|(_, a), (_, b)| a.drift.total_cmp(&b.drift).then(a.cost.total_cmp(&b.cost)));
    let mut front: Vec<(usize, f64)> = vec![];
    for (at, m) in measured {
        if m.drift.is_finite() && front.last().is_none_or(|(_, cost)| m.cost < *cost) {
            front.push((at, m.cost));
        }
    }
    front.into_iter().map(|(at, _)| at).collect()
}

/// An entry of `front.json`.
#[derive(Serialize)]
struct Entry<'e> {
    model: String,
    #[serde(flatten)]
    trial: &'e Trial,
}

/// Makes the models of the front and writes them with `front.json`, which lists their pipelines.
pub(super) fn write(
    folder: &Path,
    front: &[usize],
    trials: &[Trial],
    make: &dyn Fn(&str) -> Result<Optimized, Error>,
) -> Result<(), Error> {
    let failed = |error| Error::File { action: "create", path: folder.to_owned(), error };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut entries = vec![];
    for (number, trial) in front.iter().filter_map(|&at| trials.get(at)).enumerate() {
        let model = format!("{number:02}.onnx");
        make(&trial.pipeline)?.write(folder.join(&model))?;
        entries.push(Entry { model, trial });
    }
    let text = serde_json::to_string_pretty(&entries).unwrap_or_default() + "\n";
    write_file(&folder.join("front.json"), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            family::Combination,
            trial::{Measured, TrialOutcome},
        },
        *,
    };

    #[test]
    fn dominated_trials_are_left_out() {
        let trial = |cost: f64, drift: f64| Trial {
            pipeline: String::new(),
            strengths: Combination::default(),
            samples: 1,
            seconds: 0.0,
            infeasible: None,
            outcome: TrialOutcome::Measured(Measured::of(cost, drift)),
        };
        let trials =
            [trial(1.0, 0.0), trial(0.6, 0.2), trial(0.7, 0.3), trial(0.5, 0.1), trial(0.2, f64::INFINITY)];
        assert_eq!(front(&trials), [0, 3]);
    }
}
