//! Masks of any layers for any budget, from scores that are made ready once.

use super::{
    Criterion, Work,
    score::{exact, hessian, insensitivity, inverse, lower, obd, rows, walk, wanda},
    select::{Budget, Pattern, parties, select},
};
use crate::{
    analysis::{
        calibration::NotFinite,
        repair::not_finite,
        weighted_layers::{Kept, WeightedLayer},
    },
    framework::{Context, PassError},
    statistics::Sums,
};
use faer::Mat;

/// Scores, or what it takes to walk for them.
pub struct Masks<'w> {
    work: &'w Work<'w>,
    scores: Vec<Ready>,
}

enum Ready {
    /// The same whatever goes.
    Fixed(Vec<f64>),
    /// They depend on what else goes: the factor of each group's `H⁻¹`, and what its losses count.
    Walk(Vec<Mat<f64>>, f64),
}

/// How often masks are chosen anew from the scores that they lead to themselves.
const ROUNDS: usize = 4;

impl<'w> Masks<'w> {
    pub fn new(work: &'w Work<'w>, cx: &Context<'_>) -> Result<Self, PassError> {
        let mut scores = vec![];
        for (l, layer) in work.layers.iter().enumerate() {
            cx.tools.progress.step("scores", l as u64, work.layers.len() as u64);
            let sums = work.sums.get(l).map_or(&[][..], Vec::as_slice);
            let ready = ready(work, layer, sums, cx.tools.seed ^ l as u64);
            scores.push(ready.map_err(|e| not_finite(&work.model.graph, layer.node, e))?);
        }
        cx.tools.progress.step("scores", scores.len() as u64, scores.len() as u64);
        Ok(Self { work, scores })
    }

    /// The scores of a layer when what `kept` leaves out goes.
    fn scores(&self, l: usize, kept: Option<&Kept>) -> Vec<f64> {
        let layer = &self.work.layers[l];
        match &self.scores[l] {
            Ready::Fixed(scores) => scores.clone(),
            Ready::Walk(factors, importance) => {
                let all = vec![true; layer.count()];
                let kept = kept.unwrap_or(&all);
                let group =
                    |q: usize| walk(layer.weights[q].as_ref(), factors[q].as_ref(), layer.of_group(kept, q));
                (0..factors.len()).flat_map(group).map(|s| s * importance).collect()
            }
        }
    }

    /// Scores that do not depend on what else goes.
    pub fn fixed(&self) -> Vec<Vec<f64>> {
        (0..self.scores.len()).map(|l| self.scores(l, None)).collect()
    }

    /// What stays of these layers.
    pub fn of(&self, which: &[usize], budget: &Budget) -> Result<Vec<Kept>, PassError> {
        let layers: Vec<_> = which.iter().map(|&l| &self.work.layers[l]).collect();
        let choose = |kept: Option<&[Kept]>| -> Result<Vec<Kept>, PassError> {
            let score = |(i, &l): (usize, &usize)| self.scores(l, kept.map(|k| &k[i]));
            let scores: Vec<_> = which.iter().enumerate().map(score).collect();
            if scores.iter().flatten().any(|s| s.is_nan()) {
                return Err(PassError::refused("the scores of the weights are not finite"));
            }
            Ok(select(&scores, &layers, self.work.pass.pattern, budget))
        };
        let mut kept = choose(None)?;
        if which.iter().any(|&l| matches!(self.scores[l], Ready::Walk(..))) {
            for _ in 1..ROUNDS {
                kept = choose(Some(&kept))?;
            }
        }
        Ok(kept)
    }
}

fn ready(work: &Work<'_>, layer: &WeightedLayer, sums: &[Sums], seed: u64) -> Result<Ready, NotFinite> {
    // Means are made up for where there is a bias that is fitted too.
    let centred = layer.linear.takes_bias() && work.refit != super::Refitting::None;
    let groups = || layer.weights.iter().zip(sums);
    let fixed =
        |of: &dyn Fn((&Mat<f64>, &Sums)) -> Vec<f64>| Ok(Ready::Fixed(groups().flat_map(of).collect()));
    let importance = importance(layer, sums);
    match work.criterion {
        Criterion::Magnitude | Criterion::Synflow => {
            let squares = layer.weights.iter().flat_map(|w| rows(w.as_ref(), |w, _| w * w));
            Ok(Ready::Fixed(squares.collect()))
        }
        Criterion::Random => {
            let mut rng = fastrand::Rng::with_seed(seed);
            Ok(Ready::Fixed((0..layer.count()).map(|_| rng.f64()).collect()))
        }
        Criterion::Wanda => fixed(&|(w, sums)| wanda(w.as_ref(), &sums.x_energy())),
        Criterion::Insensitivity => {
            let felt = |(w, sums): (&Mat<f64>, &Sums)| wanda(w.as_ref(), &sums.x_energy());
            let largest = groups().flat_map(felt).fold(0.0, f64::max).sqrt();
            fixed(&|(w, sums)| insensitivity(w.as_ref(), &sums.x_energy(), largest))
        }
        Criterion::Obd => fixed(&|(w, sums)| {
            let scores = obd(w.as_ref(), hessian(sums, centred).as_ref());
            scores.into_iter().map(|s| s * importance).collect()
        }),
        Criterion::Obs if work.pass.exact => {
            let parties = match work.pass.pattern {
                Pattern::Of(n, m) => parties(layer, m).map(|p| (p, m - n)),
                _ => None,
            };
            let mut scores = vec![];
            for (w, sums) in groups() {
                let inverse = inverse(hessian(sums, centred).as_ref())?;
                let parties = parties.as_ref().map(|(p, most)| (p.as_slice(), *most));
                let group = exact(w.as_ref(), inverse.as_ref(), parties);
                scores.extend(group.into_iter().map(|s| s * importance));
            }
            Ok(Ready::Fixed(scores))
        }
        Criterion::Obs => {
            let factor = |s: &Sums| lower(inverse(hessian(s, centred).as_ref())?.as_ref());
            Ok(Ready::Walk(sums.iter().map(factor).collect::<Result<_, _>>()?, importance))
        }
    }
}

/// What the squared error of a layer counts among others: 1 over the variance of its outputs.
fn importance(layer: &WeightedLayer, sums: &[Sums]) -> f64 {
    let variance = |(w, sums): (&Mat<f64>, &Sums)| -> f64 {
        sums.through(w.as_ref(), &[], &[]).y_variance().iter().sum()
    };
    let total: f64 = layer.weights.iter().zip(sums).map(variance).sum();
    if total > 0.0 { 1.0 / total } else { 1.0 }
}
