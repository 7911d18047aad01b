//! What each weight is worth: the square of its size, or what the layer's squared error grows by when it goes.
//!
//! With `H = E[x·xᵀ]` of the layer's inputs (centred where the bias can make up for means) and the error
//! `½·E|ΔW·x|² = ½·Σ_rows Δw·H·Δwᵀ`:
//!
//! * Optimal Brain Damage (LeCun, Denker and Solla 1990), `H` taken as diagonal: `s = ½·h_jj·w²`.
//! * Optimal Brain Surgeon (Hassibi and Stork 1993), the row's other weights making up for it: `s = w² / (2·[H⁻¹]_jj)`,
//!   and `Δw = -w / [H⁻¹]_jj · H⁻¹_j`. Exact means row by row with an inverse of its own (ExactOBS, Frantar and Alistarh
//!   2022); one inverse for all rows, walked through column by column, is SparseGPT (Frantar and Alistarh 2023).

use crate::{analysis::calibration::NotFinite, statistics::Sums};
use faer::{
    Mat, MatRef, Side,
    linalg::solvers::{DenseSolveCore, Llt},
};
use rayon::prelude::*;

/// δ as a share of the mean of the diagonal of `H`.
const RIDGE: f64 = 1e-3;

/// `H` of a group of a layer.
pub fn hessian(sums: &Sums, centred: bool) -> Mat<f64> {
    if centred { sums.covariance() } else { sums.about_zero().covariance() }
}

/// `½·h_jj·w²`.
pub fn obd(weight: MatRef<'_, f64>, h: MatRef<'_, f64>) -> Vec<f64> {
    rows(weight, |w, j| h[(j, j)] * w * w / 2.0)
}

/// `w²·E[x_j²]`, whose root Wanda (Sun et al. 2023) compares.
pub fn wanda(weight: MatRef<'_, f64>, energy: &[f64]) -> Vec<f64> {
    rows(weight, |w, j| w * w * energy[j])
}

/// `(|w|·(1 - λ·(1 - s))ᴷ)²` with `s = |w|·√E[x_j²]`, at most 1 in a layer: what is left of each weight after `K` steps in
/// which LOBSTER (Tartaglione et al. 2022) shrinks it by how insensitive the layer's output is to it.
pub fn insensitivity(weight: MatRef<'_, f64>, energy: &[f64], largest: f64) -> Vec<f64> {
    const RATE: f64 = 0.01;
    const STEPS: i32 = 100;
    rows(weight, |w, j| {
        let s = w.abs() * energy[j].sqrt() / largest.max(f64::MIN_POSITIVE);
        (w * (1.0 - RATE * (1.0 - s)).powi(STEPS)).powi(2)
    })
}

/// A number for each weight, row-major.
pub fn rows(weight: MatRef<'_, f64>, of: impl Fn(f64, usize) -> f64) -> Vec<f64> {
    let (o, d) = (weight.nrows(), weight.ncols());
    (0..o).flat_map(|i| (0..d).map(move |j| (i, j))).map(|(i, j)| of(weight[(i, j)], j)).collect()
}

/// `(H + δ·I)⁻¹`.
pub fn inverse(h: MatRef<'_, f64>) -> Result<Mat<f64>, NotFinite> {
    let (d, mut h) = (h.nrows(), h.to_owned());
    let trace: f64 = (0..d).map(|i| h[(i, i)]).sum();
    if !trace.is_finite() {
        return Err(NotFinite);
    }
    let delta = if trace > 0.0 { RIDGE * trace / d as f64 } else { 1.0 };
    (0..d).for_each(|i| h[(i, i)] += delta);
    Ok(Llt::new(h.as_ref(), Side::Lower).map_err(|_| NotFinite)?.inverse())
}

/// The columns of the lower factor of `H⁻¹ = L·Lᵀ`: `L_jj² = [(H_{j..,j..})⁻¹]_jj`, which is what is left of the inverse
/// when the columns before `j` are done with.
pub fn lower(inverse: MatRef<'_, f64>) -> Result<Mat<f64>, NotFinite> {
    Ok(Llt::new(inverse, Side::Lower).map_err(|_| NotFinite)?.L().to_owned())
}

/// One walk through the columns of every row: each weight that does not stay hands over what it did to the weights
/// after it. The score `w² / (2·L_jj²)` of every weight when its turn comes.
pub fn walk(weight: MatRef<'_, f64>, lower: MatRef<'_, f64>, kept: &[bool]) -> Vec<f64> {
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

/// ExactOBS: of each row the cheapest weight goes again and again, the others making up for it. Each weight's score is the
/// loss of its own removal, at least that of those before it: of scores so made, the lowest of a row are its first to go.
/// Of each of the `parties` of inputs no more than so many go.
pub fn exact(
    weight: MatRef<'_, f64>,
    inverse: MatRef<'_, f64>,
    parties: Option<(&[Vec<usize>], usize)>,
) -> Vec<f64> {
    let d = weight.ncols();
    let party_of = parties.map(|(parties, _)| {
        let mut of = vec![0; d];
        parties.iter().enumerate().for_each(|(p, inputs)| inputs.iter().for_each(|&j| of[j] = p));
        of
    });
    let row = |i: usize| {
        let mut w: Vec<f64> = (0..d).map(|j| weight[(i, j)]).collect();
        let mut h = inverse.to_owned();
        let mut alive: Vec<usize> = (0..d).collect();
        let mut room = parties.map(|(parties, most)| vec![most; parties.len()]);
        let mut scores = vec![f64::INFINITY; d];
        let mut worst = 0.0_f64;
        loop {
            let may = |j: &usize| match (&room, &party_of) {
                (Some(room), Some(of)) => room[of[*j]] > 0,
                _ => true,
            };
            let loss = |j: usize| w[j] * w[j] / (2.0 * h[(j, j)]);
            let found = alive.iter().copied().filter(may).min_by(|&a, &b| loss(a).total_cmp(&loss(b)));
            let Some(p) = found else { break };
            worst = worst.max(loss(p));
            scores[p] = worst;
            if let (Some(room), Some(of)) = (&mut room, &party_of) {
                room[of[p]] -= 1;
            }
            alive.retain(|&j| j != p);
            let (pivot, step) = (h[(p, p)], w[p] / h[(p, p)]);
            let column: Vec<f64> = alive.iter().map(|&j| h[(j, p)]).collect();
            for (&j, &c) in alive.iter().zip(&column) {
                w[j] -= step * c;
                let share = c / pivot;
                let of_j = h.col_as_slice_mut(j);
                alive.iter().zip(&column).for_each(|(&k, &x)| of_j[k] -= share * x);
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
    use faer::prelude::Solve;

    /// A random layer: its inputs, their sums, its weights.
    fn layer(seed: u64) -> (Mat<f64>, Sums, Mat<f64>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mix = Mat::from_fn(9, 9, |_, _| rng.f64() - 0.3);
        let x = Mat::from_fn(300, 9, |_, _| rng.f64()) * &mix;
        // As engines give them.
        let x = Mat::from_fn(300, 9, |i, j| f64::from(x[(i, j)] as f32));
        let data = (0..300).flat_map(|i| (0..9).map(|j| x[(i, j)] as f32).collect::<Vec<_>>()).collect();
        let mut sums = Sums::new(9, 0);
        sums.add_inputs(Rows { width: 9, data }.all());
        (x, sums, Mat::from_fn(4, 9, |_, _| rng.f64() - 0.5))
    }

    /// `½·E|Δw·x|²`, sample by sample.
    fn error(x: &Mat<f64>, change: &[f64]) -> f64 {
        let at = |r: usize| (0..9).map(|j| change[j] * x[(r, j)]).sum::<f64>().powi(2);
        (0..300).map(at).sum::<f64>() / 300.0 / 2.0
    }

    /// The least of the error over all changes that take `gone` to zero, by solving for the others.
    fn least(h: &Mat<f64>, w: &[f64], gone: &[usize]) -> f64 {
        let free: Vec<_> = (0..9).filter(|j| !gone.contains(j)).collect();
        let part = Mat::from_fn(free.len(), free.len(), |a, b| h[(free[a], free[b])]);
        let right = Mat::from_fn(free.len(), 1, |a, _| gone.iter().map(|&g| h[(free[a], g)] * w[g]).sum());
        let moved = Llt::new(part.as_ref(), Side::Lower).unwrap().solve(&right);
        let mut change = [0.0; 9];
        gone.iter().for_each(|&g| change[g] = -w[g]);
        free.iter().enumerate().for_each(|(a, &j)| change[j] = moved[(a, 0)]);
        let product = |i: usize| (0..9).map(|j| change[i] * h[(i, j)] * change[j]).sum::<f64>();
        (0..9).map(product).sum::<f64>() / 2.0
    }

    fn damped(h: &Mat<f64>) -> Mat<f64> {
        let delta = RIDGE * (0..9).map(|i| h[(i, i)]).sum::<f64>() / 9.0;
        Mat::from_fn(9, 9, |i, j| h[(i, j)] + if i == j { delta } else { 0.0 })
    }

    #[test]
    fn obd_is_the_error_that_zeroing_a_weight_makes() {
        for seed in 0..8 {
            let (x, sums, w) = layer(seed);
            // What a diagonal model says of one weight alone is no approximation.
            let scores = obd(w.as_ref(), hessian(&sums, false).as_ref());
            for i in 0..4 {
                for j in 0..9 {
                    let mut change = [0.0; 9];
                    change[j] = -w[(i, j)];
                    let brute = error(&x, &change);
                    // Sums of f32 products carry six digits.
                    assert!((scores[i * 9 + j] - brute).abs() < 1e-5 * brute.max(1e-3), "seed {seed}");
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
                    let told = row[j] * row[j] / (2.0 * inverse[(j, j)]);
                    let brute = least(&h, &row, &[j]);
                    assert!((told - brute).abs() < 1e-6 * brute, "seed {seed}: {told} is not {brute}");
                }
            }
        }
    }

    #[test]
    fn exact_obs_takes_the_cheapest_weight_at_every_step() {
        for seed in 0..8 {
            let (_, sums, w) = layer(seed);
            let h = hessian(&sums, true);
            let scores = exact(w.as_ref(), inverse(h.as_ref()).unwrap().as_ref(), None);
            let h = damped(&h);
            for i in 0..4 {
                let row: Vec<_> = (0..9).map(|j| w[(i, j)]).collect();
                let (mut gone, mut worst, mut before) = (vec![], 0.0_f64, 0.0);
                for _ in 0..8 {
                    let with = |j: usize| least(&h, &row, &[&gone[..], &[j]].concat());
                    let left = (0..9).filter(|j| !gone.contains(j));
                    let best = left.min_by(|&a, &b| with(a).total_cmp(&with(b))).unwrap();
                    worst = worst.max(with(best) - before);
                    before = with(best);
                    let told = scores[i * 9 + best];
                    assert!((told - worst).abs() < 1e-6 * worst, "seed {seed}: {told} is not {worst}");
                    gone.push(best);
                }
            }
        }
    }

    /// What is handed over along a row makes up as well as the columns after it can.
    #[test]
    fn a_walk_scores_each_weight_by_what_the_ones_after_it_cannot_make_up_for() {
        let (_, sums, w) = layer(3);
        let h = hessian(&sums, true);
        let inverse = inverse(h.as_ref()).unwrap();
        let kept: Vec<_> = (0..36).map(|k| k % 9 != 2 && k % 9 != 5).collect();
        let scores = walk(w.as_ref(), lower(inverse.as_ref()).unwrap().as_ref(), &kept);
        let h = damped(&h);
        for i in 0..4 {
            let row: Vec<_> = (0..9).map(|j| w[(i, j)]).collect();
            // Columns before the one that goes are held: their error is that of a smaller layer.
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
    fn parties_lose_no_more_than_they_may() {
        let mut rng = fastrand::Rng::with_seed(4);
        let w = Mat::from_fn(3, 8, |_, _| rng.f64() - 0.5);
        let parties = vec![vec![0, 2, 4, 6], vec![1, 3, 5, 7]];
        let scores = exact(w.as_ref(), Mat::<f64>::identity(8, 8).as_ref(), Some((&parties, 2)));
        for row in scores.chunks(8) {
            for party in &parties {
                assert_eq!(party.iter().filter(|&&j| row[j].is_finite()).count(), 2);
            }
        }
    }
}
