//! Scores of weights: the square of the magnitude, or the increase of the layer's squared error when the
//! weight is removed.
//!
//! With `H = E[x·xᵀ]` of the layer's inputs (centred if a refitted bias compensates for means) and the error
//! `½·E|ΔW·x|² = ½·Σ_rows Δw·H·Δwᵀ`:
//!
//! * Optimal Brain Damage (LeCun, Denker and Solla 1990), `H` assumed diagonal: `s = ½·h_jj·w²`.
//! * Optimal Brain Surgeon (Hassibi and Stork 1993), the other weights of the row updated optimally: `s = w²
//!   / (2·[H⁻¹]_jj)`, `Δw = -w / [H⁻¹]_jj · H⁻¹_j`. ExactOBS (Frantar and Alistarh 2022) updates an inverse
//!   per row; SparseGPT (Frantar and Alistarh 2023) uses one inverse for all rows, column by column.

use crate::{
    analysis::calibration::{NotFinite, damped_inverse},
    statistics::Sums,
};
use faer::{Mat, MatRef, Side, linalg::solvers::Llt};
use rayon::prelude::*;

/// δ as a share of the mean of the diagonal of `H`.
const RIDGE: f64 = 1e-3;

/// `H` of a group of a layer.
pub fn hessian(sums: &Sums, centred: bool) -> Mat<f64> {
    if centred { sums.covariance() } else { sums.about_zero().covariance() }
}

/// `½·h_jj·w²`.
pub fn obd(weight: MatRef<'_, f64>, h: MatRef<'_, f64>) -> Vec<f64> {
    map_weights(weight, |w, j| h[(j, j)] * w * w / 2.0)
}

/// `w²·E[x_j²]`, whose root Wanda (Sun et al. 2023) compares.
pub fn wanda(weight: MatRef<'_, f64>, energy: &[f64]) -> Vec<f64> {
    map_weights(weight, |w, j| w * w * energy[j])
}

/// `(|w|·(1 - λ·(1 - s))ᴷ)²` with the sensitivity `s = |w|·√E[x_j²]`, scaled to at most 1 in a layer: each
/// weight after `K` steps of LOBSTER's decay (Tartaglione et al. 2022), which is proportional to the
/// insensitivity `1 - s`. `largest` is the largest unscaled sensitivity of the layer.
pub fn insensitivity(weight: MatRef<'_, f64>, energy: &[f64], largest: f64) -> Vec<f64> {
    const RATE: f64 = 0.01;
    const STEPS: i32 = 100;
    map_weights(weight, |w, j| {
        let s = w.abs() * energy[j].sqrt() / largest.max(f64::MIN_POSITIVE);
        (w * (1.0 - RATE * (1.0 - s)).powi(STEPS)).powi(2)
    })
}

/// Maps each weight and its column, row-major.
pub fn map_weights(weight: MatRef<'_, f64>, map: impl Fn(f64, usize) -> f64) -> Vec<f64> {
    let (o, d) = (weight.nrows(), weight.ncols());
    (0..o).flat_map(|i| (0..d).map(move |j| (i, j))).map(|(i, j)| map(weight[(i, j)], j)).collect()
}

/// `(H + δ·I)⁻¹`.
pub fn inverse(h: MatRef<'_, f64>) -> Result<Mat<f64>, NotFinite> {
    damped_inverse(h.to_owned(), RIDGE)
}

/// The lower factor of `H⁻¹ = L·Lᵀ`: `L_jj² = [(H_{j..,j..})⁻¹]_jj`, the diagonal of the inverse after the
/// columns before `j` are eliminated.
pub fn lower_factor(inverse: MatRef<'_, f64>) -> Result<Mat<f64>, NotFinite> {
    Ok(Llt::new(inverse, Side::Lower).map_err(|_| NotFinite)?.L().to_owned())
}

/// SparseGPT: in column order, the contribution of each removed weight of a row is transferred to the weights
/// after it. The score of a weight is `w² / (2·L_jj²)` in its column. `kept` is `[O, D]` row-major.
pub fn sparse_gpt(weight: MatRef<'_, f64>, lower: MatRef<'_, f64>, kept: &[bool]) -> Vec<f64> {
    let d = weight.ncols();
    let row = |i: usize| {
        let mut w: Vec<f64> = (0..d).map(|j| weight[(i, j)]).collect();
        let mut scores = vec![0.0; d];
        for j in 0..d {
            let step = w[j] / lower[(j, j)];
            scores[j] = step * step / 2.0;
            if !kept[i * d + j] {
                (j..d).for_each(|k| w[k] -= step * lower[(k, j)]);
            }
        }
        scores
    };
    (0..weight.nrows()).into_par_iter().flat_map_iter(row).collect()
}

/// The largest number of weights to remove in each group of inputs of a row.
pub struct GroupLimit {
    /// The group of each input.
    group_of: Vec<usize>,
    groups: usize,
    most: usize,
}

impl GroupLimit {
    /// Limits the weights removed in each of `groups`, which partition the inputs, to `most`.
    pub fn new(groups: &[Vec<usize>], most: usize) -> Self {
        let mut group_of = vec![0; groups.iter().map(Vec::len).sum()];
        groups.iter().enumerate().for_each(|(g, inputs)| inputs.iter().for_each(|&j| group_of[j] = g));
        Self { group_of, groups: groups.len(), most }
    }
}

/// ExactOBS: repeatedly removes the weight of a row with the smallest loss and updates the others. The score
/// of a weight is the running maximum of the losses up to its removal, so the weights with the lowest scores
/// of a row are those removed first. Weights beyond `limit` have an infinite score.
pub fn exact_obs(weight: MatRef<'_, f64>, inverse: MatRef<'_, f64>, limit: Option<&GroupLimit>) -> Vec<f64> {
    let d = weight.ncols();
    let row = |i: usize| {
        let mut w: Vec<f64> = (0..d).map(|j| weight[(i, j)]).collect();
        let mut h = inverse.to_owned();
        let mut remaining: Vec<usize> = (0..d).collect();
        let mut removable = limit.map(|limit| vec![limit.most; limit.groups]);
        let mut scores = vec![f64::INFINITY; d];
        let mut worst = 0.0_f64;
        loop {
            let allowed = |j: &usize| match (&removable, limit) {
                (Some(removable), Some(limit)) => removable[limit.group_of[*j]] > 0,
                _ => true,
            };
            let loss = |j: usize| w[j] * w[j] / (2.0 * h[(j, j)]);
            let candidates = remaining.iter().copied().filter(allowed);
            let Some(p) = candidates.min_by(|&a, &b| loss(a).total_cmp(&loss(b))) else { break };
            worst = worst.max(loss(p));
            scores[p] = worst;
            if let (Some(removable), Some(limit)) = (&mut removable, limit) {
                removable[limit.group_of[p]] -= 1;
            }
            remaining.retain(|&j| j != p);
            let (pivot, step) = (h[(p, p)], w[p] / h[(p, p)]);
            let column: Vec<f64> = remaining.iter().map(|&j| h[(j, p)]).collect();
            for (&j, &c) in remaining.iter().zip(&column) {
                w[j] -= step * c;
                let share = c / pivot;
                let h_j = h.col_as_slice_mut(j);
                remaining.iter().zip(&column).for_each(|(&k, &x)| h_j[k] -= share * x);
            }
        }
        scores
    };
    (0..weight.nrows()).into_par_iter().flat_map_iter(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Rows;
    use faer::{linalg::solvers::DenseSolveCore, prelude::Solve};

    /// A random layer: its inputs, their sums, its weights.
    fn layer(seed: u64) -> (Mat<f64>, Sums, Mat<f64>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mix = Mat::from_fn(9, 9, |_, _| rng.f64() - 0.3);
        let x = Mat::from_fn(300, 9, |_, _| rng.f64()) * &mix;
        // In f32, as engines produce them.
        let x = Mat::from_fn(300, 9, |i, j| f64::from(x[(i, j)] as f32));
        let data = (0..300).flat_map(|i| (0..9).map(|j| x[(i, j)] as f32).collect::<Vec<_>>()).collect();
        let mut sums = Sums::new(9, 0);
        sums.add_inputs(Rows { width: 9, data }.all());
        (x, sums, Mat::from_fn(4, 9, |_, _| rng.f64() - 0.5))
    }

    /// `½·E|Δw·x|²` over all samples.
    fn error(x: &Mat<f64>, change: &[f64]) -> f64 {
        let squared = |r: usize| (0..9).map(|j| change[j] * x[(r, j)]).sum::<f64>().powi(2);
        (0..300).map(squared).sum::<f64>() / 300.0 / 2.0
    }

    /// The least error over all changes that set `removed` to zero, by solving for the others.
    fn least_error(h: &Mat<f64>, w: &[f64], removed: &[usize]) -> f64 {
        let free: Vec<_> = (0..9).filter(|j| !removed.contains(j)).collect();
        let part = Mat::from_fn(free.len(), free.len(), |a, b| h[(free[a], free[b])]);
        let right = Mat::from_fn(free.len(), 1, |a, _| removed.iter().map(|&g| h[(free[a], g)] * w[g]).sum());
        let moved = Llt::new(part.as_ref(), Side::Lower).unwrap().solve(&right);
        let mut change = [0.0; 9];
        removed.iter().for_each(|&g| change[g] = -w[g]);
        free.iter().enumerate().for_each(|(a, &j)| change[j] = moved[(a, 0)]);
        let product = |i: usize| (0..9).map(|j| change[i] * h[(i, j)] * change[j]).sum::<f64>();
        (0..9).map(product).sum::<f64>() / 2.0
    }

    fn damped(h: &Mat<f64>) -> Mat<f64> {
        let delta = RIDGE * (0..9).map(|i| h[(i, i)]).sum::<f64>() / 9.0;
        Mat::from_fn(9, 9, |i, j| h[(i, j)] + if i == j { delta } else { 0.0 })
    }

    #[test]
    fn obd_is_the_error_of_zeroing_a_weight() {
        for seed in 0..8 {
            let (x, sums, w) = layer(seed);
            // For a single weight the diagonal is exact.
            let scores = obd(w.as_ref(), hessian(&sums, false).as_ref());
            for i in 0..4 {
                for j in 0..9 {
                    let mut change = [0.0; 9];
                    change[j] = -w[(i, j)];
                    let expected = error(&x, &change);
                    // Sums of f32 products have six significant digits.
                    assert!((scores[i * 9 + j] - expected).abs() < 1e-5 * expected.max(1e-3), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn obs_is_the_least_error_with_a_weight_at_zero() {
        for seed in 0..8 {
            let (_, sums, w) = layer(seed);
            let h = hessian(&sums, true);
            let inverse = inverse(h.as_ref()).unwrap();
            let h = damped(&h);
            for i in 0..4 {
                let row: Vec<_> = (0..9).map(|j| w[(i, j)]).collect();
                for j in 0..9 {
                    let score = row[j] * row[j] / (2.0 * inverse[(j, j)]);
                    let expected = least_error(&h, &row, &[j]);
                    assert!(
                        (score - expected).abs() < 1e-6 * expected,
                        "seed {seed}: {score} instead of {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn exact_obs_removes_the_cheapest_weight_at_every_step() {
        for seed in 0..8 {
            let (_, sums, w) = layer(seed);
            let h = hessian(&sums, true);
            let scores = exact_obs(w.as_ref(), inverse(h.as_ref()).unwrap().as_ref(), None);
            let h = damped(&h);
            for i in 0..4 {
                let row: Vec<_> = (0..9).map(|j| w[(i, j)]).collect();
                let (mut removed, mut worst, mut before) = (vec![], 0.0_f64, 0.0);
                for _ in 0..8 {
                    let with = |j: usize| least_error(&h, &row, &[&removed[..], &[j]].concat());
                    let remaining = (0..9).filter(|j| !removed.contains(j));
                    let best = remaining.min_by(|&a, &b| with(a).total_cmp(&with(b))).unwrap();
                    worst = worst.max(with(best) - before);
                    before = with(best);
                    let score = scores[i * 9 + best];
                    assert!((score - worst).abs() < 1e-6 * worst, "seed {seed}: {score} instead of {worst}");
                    removed.push(best);
                }
            }
        }
    }

    #[test]
    fn sparse_gpt_updates_only_later_columns() {
        let (_, sums, w) = layer(3);
        let h = hessian(&sums, true);
        let inverse = inverse(h.as_ref()).unwrap();
        let kept: Vec<_> = (0..36).map(|k| k % 9 != 2 && k % 9 != 5).collect();
        let scores = sparse_gpt(w.as_ref(), lower_factor(inverse.as_ref()).unwrap().as_ref(), &kept);
        let h = damped(&h);
        for i in 0..4 {
            let row: Vec<_> = (0..9).map(|j| w[(i, j)]).collect();
            // With the columns before fixed, the loss is that of a smaller layer.
            let tail = |from: usize| {
                let n = 9 - from;
                let part = Mat::from_fn(n, n, |a, b| h[(from + a, from + b)]);
                Llt::new(part.as_ref(), Side::Lower).unwrap().inverse()
            };
            let inverse = tail(2);
            let first = row[2] * row[2] / (2.0 * inverse[(0, 0)]);
            assert!((scores[i * 9 + 2] - first).abs() < 1e-9 * first);
            let moved = row[5] - row[2] / inverse[(0, 0)] * inverse[(3, 0)];
            let second = moved * moved / (2.0 * tail(5)[(0, 0)]);
            assert!((scores[i * 9 + 5] - second).abs() < 1e-9 * second.max(1e-12));
        }
    }

    #[test]
    fn limits_removals_in_each_group() {
        let mut rng = fastrand::Rng::with_seed(4);
        let w = Mat::from_fn(3, 8, |_, _| rng.f64() - 0.5);
        let groups = vec![vec![0, 2, 4, 6], vec![1, 3, 5, 7]];
        let scores =
            exact_obs(w.as_ref(), Mat::<f64>::identity(8, 8).as_ref(), Some(&GroupLimit::new(&groups, 2)));
        for row in scores.chunks(8) {
            for group in &groups {
                assert_eq!(group.iter().filter(|&&j| row[j].is_finite()).count(), 2);
            }
        }
    }
}
