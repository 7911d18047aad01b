//! Masks of layers for a budget, from scores that are prepared once.

use super::{
    Refitting, WeightCriterion,
    score::{
        GroupLimit, exact_obs, hessian, insensitivity, inverse, lower_factor, map_weights, obd, sparse_gpt,
        wanda,
    },
    select::{Budget, Pattern, n_of_m_groups, select},
    sparsification::Sparsification,
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

/// The scores of all layers.
pub struct Masks<'w> {
    work: &'w Sparsification<'w>,
    scores: Vec<LayerScores>,
}

enum LayerScores {
    /// Independent of the mask.
    Independent(Vec<f64>),
    /// Dependent on the mask, by SparseGPT.
    Sequential {
        /// The lower factor of `H⁻¹` of each group.
        factors: Vec<Mat<f64>>,
        importance: f64,
    },
}

/// Iterations of choosing a mask from the scores that the previous mask leads to.
const ROUNDS: usize = 4;

impl<'w> Masks<'w> {
    pub fn new(work: &'w Sparsification<'w>, cx: &Context<'_>) -> Result<Self, PassError> {
        let mut scores = vec![];
        for (l, layer) in work.layers.iter().enumerate() {
            cx.tools.progress.step("scores", l as u64, work.layers.len() as u64);
            let sums = work.sums.get(l).map_or(&[][..], Vec::as_slice);
            let prepared = prepare(work, layer, sums, cx.tools.seed ^ l as u64);
            scores.push(prepared.map_err(|e| not_finite(&work.model.graph, layer.node, e))?);
        }
        cx.tools.progress.step("scores", scores.len() as u64, scores.len() as u64);
        Ok(Self { work, scores })
    }

    /// The scores of a layer under a mask.
    fn scores(&self, l: usize, kept: Option<&Kept>) -> Vec<f64> {
        let layer = &self.work.layers[l];
        match &self.scores[l] {
            LayerScores::Independent(scores) => scores.clone(),
            LayerScores::Sequential { factors, importance } => {
                let all = vec![true; layer.count()];
                let kept = kept.unwrap_or(&all);
                let group = |q: usize| {
                    sparse_gpt(layer.weights[q].as_ref(), factors[q].as_ref(), layer.of_group(kept, q))
                };
                (0..factors.len()).flat_map(group).map(|s| s * importance).collect()
            }
        }
    }

    /// The scores of all layers without a mask.
    pub fn independent_scores(&self) -> Vec<Vec<f64>> {
        (0..self.scores.len()).map(|l| self.scores(l, None)).collect()
    }

    /// Returns the masks of the layers `which`.
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
        if which.iter().any(|&l| matches!(self.scores[l], LayerScores::Sequential { .. })) {
            for _ in 1..ROUNDS {
                kept = choose(Some(&kept))?;
            }
        }
        Ok(kept)
    }
}

fn prepare(
    work: &Sparsification<'_>,
    layer: &WeightedLayer,
    sums: &[Sums],
    seed: u64,
) -> Result<LayerScores, NotFinite> {
    // A refitted bias compensates for means.
    let centred = layer.linear.takes_bias() && work.refit != Refitting::None;
    let groups = || layer.weights.iter().zip(sums);
    let independent = |score: &dyn Fn((&Mat<f64>, &Sums)) -> Vec<f64>| {
        Ok(LayerScores::Independent(groups().flat_map(score).collect()))
    };
    let importance = importance(layer, sums);
    match work.criterion {
        WeightCriterion::Magnitude | WeightCriterion::Synflow => {
            let squares = layer.weights.iter().flat_map(|w| map_weights(w.as_ref(), |w, _| w * w));
            Ok(LayerScores::Independent(squares.collect()))
        }
        WeightCriterion::Random => {
            let mut rng = fastrand::Rng::with_seed(seed);
            Ok(LayerScores::Independent((0..layer.count()).map(|_| rng.f64()).collect()))
        }
        WeightCriterion::Wanda => independent(&|(w, sums)| wanda(w.as_ref(), &sums.x_energy())),
        WeightCriterion::Insensitivity => {
            let sensitivity = |(w, sums): (&Mat<f64>, &Sums)| wanda(w.as_ref(), &sums.x_energy());
            let largest = groups().flat_map(sensitivity).fold(0.0, f64::max).sqrt();
            independent(&|(w, sums)| insensitivity(w.as_ref(), &sums.x_energy(), largest))
        }
        WeightCriterion::Obd => independent(&|(w, sums)| {
            let scores = obd(w.as_ref(), hessian(sums, centred).as_ref());
            scores.into_iter().map(|s| s * importance).collect()
        }),
        WeightCriterion::Obs if work.pass.exact => {
            let limit = match work.pass.pattern {
                Pattern::Of(n, m) => n_of_m_groups(layer, m).map(|groups| GroupLimit::new(&groups, m - n)),
                _ => None,
            };
            let mut scores = vec![];
            for (w, sums) in groups() {
                let inverse = inverse(hessian(sums, centred).as_ref())?;
                let group = exact_obs(w.as_ref(), inverse.as_ref(), limit.as_ref());
                scores.extend(group.into_iter().map(|s| s * importance));
            }
            Ok(LayerScores::Independent(scores))
        }
        WeightCriterion::Obs => {
            let factor = |s: &Sums| lower_factor(inverse(hessian(s, centred).as_ref())?.as_ref());
            let factors = sums.iter().map(factor).collect::<Result<_, _>>()?;
            Ok(LayerScores::Sequential { factors, importance })
        }
    }
}

/// The weight of a layer's squared error among the layers: 1 over the variance of its outputs.
fn importance(layer: &WeightedLayer, sums: &[Sums]) -> f64 {
    let variance = |(w, sums): (&Mat<f64>, &Sums)| -> f64 {
        sums.through(w.as_ref(), &[], &[]).y_variance().iter().sum()
    };
    let total: f64 = layer.weights.iter().zip(sums).map(variance).sum();
    if total > 0.0 { 1.0 / total } else { 1.0 }
}
