//! Block-OBS: the order in which to remove units when the remaining weights are refitted after each removal.
//!
//! Optimal Brain Surgeon (Hassibi and Stork 1993) for units of several inputs, as in ZipLM (Kurtic et al.
//! 2023): with `H = (C + δ·I)⁻¹`, removing the inputs `c` of a map `W` and refitting the others raises its
//! squared error by `tr(W_c (H_cc)⁻¹ W_cᵀ)`. The unit with the least error is removed; then
//! `W -= W_c H_cc⁻¹ H_c,:` and `H -= H_:,c H_cc⁻¹ H_c,:`.

use super::NotFinite;
use crate::statistics::par;
use faer::{
    Accum, Mat, Side,
    linalg::{
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        solvers::Llt,
    },
    prelude::Solve,
};
use rayon::prelude::*;

/// The order in which to remove units, and the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct RemovalOrder {
    /// All units, the first to be removed first.
    pub units: Vec<usize>,
    /// The squared error, weighted by importance, with the first `i` units removed; one element more than
    /// there are units.
    pub loss: Vec<f64>,
}

/// Up to this many units are removed one at a time; more are removed in this many batches.
const ROUNDS: usize = 128;

/// Ranks the units by repeatedly removing the one with the least error.
///
/// # Errors
/// If a score is not a number.
pub fn block_obs(mut readers: Vec<UnitReader>) -> Result<RemovalOrder, NotFinite> {
    let count = readers.first().map_or(0, |r| r.units.len());
    let mut remaining: Vec<_> = (0..count).collect();
    let mut order = RemovalOrder { units: vec![], loss: vec![0.0] };
    while !remaining.is_empty() {
        let score = |&unit: &usize| readers.iter().map(|reader| reader.score(unit)).sum();
        let scores: Vec<f64> = remaining.par_iter().map(score).collect();
        if scores.iter().any(|s| s.is_nan()) {
            return Err(NotFinite);
        }
        let batch = if count <= ROUNDS { 1 } else { remaining.len().div_ceil(ROUNDS) };
        let mut ranked: Vec<_> = (0..remaining.len()).collect();
        ranked.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let removed: Vec<_> = ranked[..batch].iter().map(|&i| remaining[i]).collect();
        for &i in &ranked[..batch] {
            let so_far = order.loss.last().copied().unwrap_or(0.0);
            order.units.push(remaining[i]);
            order.loss.push(so_far + scores[i]);
        }
        remaining.retain(|unit| !removed.contains(unit));
        if !remaining.is_empty() {
            readers.iter_mut().for_each(|r| r.remove(&removed));
        }
    }
    Ok(order)
}

/// A linear map that reads the units: its remaining part. Removed inputs are dropped from the matrices once
/// they are a quarter, so the cost of a step shrinks with the number of inputs.
pub struct UnitReader {
    /// `(C + δ·I)⁻¹` of the inputs of the units; only the lower triangle is valid.
    inverse: Mat<f64>,
    weight: Mat<f64>,
    /// The current columns of the remaining units.
    units: Vec<Vec<usize>>,
    /// `true` if a column remains.
    remains: Vec<bool>,
    importance: f64,
}

impl UnitReader {
    /// δ as a share of the mean of the diagonal.
    pub const RIDGE: f64 = 1e-3;

    /// The reader with the weights `[O, D]`, given the [`damped_inverse`](super::damped_inverse) of the covariance of
    /// its inputs and the inputs of each unit. Inputs of no unit are kept, so only the part of both matrices that
    /// belongs to units changes.
    ///
    /// `importance` is the weight of its squared error: 1 over the variance of its outputs makes several maps
    /// comparable.
    pub fn new(inverse: &Mat<f64>, weight: &Mat<f64>, mut units: Vec<Vec<usize>>, importance: f64) -> Self {
        let mut columns: Vec<_> = units.iter().flatten().copied().collect();
        columns.sort_unstable();
        let place = |column: &mut usize| *column = columns.partition_point(|c| c < column);
        units.iter_mut().flatten().for_each(place);
        let n = columns.len();
        Self {
            inverse: Mat::from_fn(n, n, |i, j| inverse[(columns[i], columns[j])]),
            weight: Mat::from_fn(weight.nrows(), n, |i, j| weight[(i, columns[j])]),
            units,
            remains: vec![true; n],
            importance,
        }
    }

    fn inverse(&self, i: usize, j: usize) -> f64 {
        self.inverse[(i.max(j), i.min(j))]
    }

    /// `tr(W_c (H_cc)⁻¹ W_cᵀ)`, as `|L⁻¹ W_cᵀ|²` with `H_cc = L·Lᵀ`.
    fn score(&self, unit: usize) -> f64 {
        let columns = &self.units[unit];
        if let [c] = columns[..] {
            let squares: f64 = self.weight.col(c).iter().map(|w| w * w).sum();
            return self.importance * squares / self.inverse[(c, c)];
        }
        let m = columns.len();
        let mut l: Vec<f64> = (0..m * m).map(|k| self.inverse(columns[k / m], columns[k % m])).collect();
        if !cholesky(&mut l, m) {
            // Inputs that are linearly dependent up to rounding can replace each other.
            return 0.0;
        }
        let (mut sum, mut z) = (0.0, vec![0.0; m]);
        for o in 0..self.weight.nrows() {
            for i in 0..m {
                let known: f64 = (0..i).map(|j| l[i * m + j] * z[j]).sum();
                z[i] = (self.weight[(o, columns[i])] - known) / l[i * m + i];
                sum += z[i] * z[i];
            }
        }
        self.importance * sum
    }

    fn remove(&mut self, units: &[usize]) {
        let columns: Vec<_> = units.iter().flat_map(|&u| std::mem::take(&mut self.units[u])).collect();
        let (d, r) = (self.inverse.nrows(), columns.len());
        let across = Mat::from_fn(d, r, |i, j| self.inverse(i, columns[j]));
        let mut block = Mat::from_fn(r, r, |i, j| across[(columns[i], j)]);
        // A small multiple of the diagonal keeps the factor finite where the block is singular up to
        // rounding.
        let scale = (0..r).map(|i| block[(i, i)]).fold(0.0, f64::max);
        (0..r).for_each(|i| block[(i, i)] += 1e-12 * scale);
        let Ok(factor) = Llt::new(block.as_ref(), Side::Lower) else { return };
        let share = factor.solve(across.transpose());
        let removed = Mat::from_fn(self.weight.nrows(), r, |i, j| self.weight[(i, columns[j])]);
        matmul(self.weight.as_mut(), Accum::Add, removed.as_ref(), share.as_ref(), -1.0, par());
        let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
        let (inverse, across) = (self.inverse.as_mut(), across.as_ref());
        triangular::matmul(inverse, lower, Accum::Add, across, full, share.as_ref(), full, -1.0, par());
        columns.iter().for_each(|&c| self.remains[c] = false);
        self.compact();
    }

    /// Drops removed columns from the matrices once they are a quarter of all.
    fn compact(&mut self) {
        let kept: Vec<_> = (0..self.remains.len()).filter(|&i| self.remains[i]).collect();
        if 4 * kept.len() > 3 * self.remains.len() {
            return;
        }
        let mut index = vec![0; self.remains.len()];
        kept.iter().enumerate().for_each(|(new, &old)| index[old] = new);
        let n = kept.len();
        self.inverse = Mat::from_fn(n, n, |i, j| if i < j { 0.0 } else { self.inverse[(kept[i], kept[j])] });
        self.weight = Mat::from_fn(self.weight.nrows(), n, |i, j| self.weight[(i, kept[j])]);
        self.units.iter_mut().flatten().for_each(|column| *column = index[*column]);
        self.remains = vec![true; n];
    }
}

/// Replaces a small row-major matrix by its Cholesky factor. Returns false if it is not positive definite.
fn cholesky(a: &mut [f64], m: usize) -> bool {
    for j in 0..m {
        let pivot: f64 = a[j * m + j] - (0..j).map(|k| a[j * m + k].powi(2)).sum::<f64>();
        if pivot <= 0.0 {
            return false;
        }
        let pivot = pivot.sqrt();
        a[j * m + j] = pivot;
        for i in j + 1..m {
            let sum: f64 = (0..j).map(|k| a[i * m + k] * a[j * m + k]).sum();
            a[i * m + j] = (a[i * m + j] - sum) / pivot;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::calibration::damped_inverse;
    use crate::statistics::Sums;

    /// Six units of two inputs each, correlated.
    fn sums(seed: u64) -> (Sums, Mat<f64>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mix = Mat::from_fn(12, 12, |_, _| rng.f32() - 0.5);
        let z = Mat::from_fn(600, 12, |_, _| rng.f32());
        let x = &z * &mix;
        let data = (0..600).flat_map(|i| (0..12).map(|j| x[(i, j)]).collect::<Vec<_>>()).collect();
        let mut sums = Sums::new(12, 0);
        sums.add_inputs(crate::statistics::Rows { width: 12, data }.all());
        (sums, Mat::from_fn(4, 12, |_, _| rng.f64() - 0.5))
    }

    fn units() -> Vec<Vec<usize>> {
        (0..6).map(|u| vec![2 * u, 2 * u + 1]).collect()
    }

    /// The least-squares error with these units removed, by a refit from scratch.
    fn refit(sums: &Sums, weight: &Mat<f64>, removed: &[usize]) -> f64 {
        let kept: Vec<_> = (0..12).filter(|c| !removed.contains(&(c / 2))).collect();
        let part = sums.through(weight.as_ref(), &[], &kept);
        let prior = Mat::from_fn(4, kept.len(), |i, j| weight[(i, kept[j])]);
        let d = sums.covariance();
        let mean =
            |n: usize, at: &dyn Fn(usize) -> usize| (0..n).map(|i| d[(at(i), at(i))]).sum::<f64>() / n as f64;
        // The same δ for both fits.
        let lambda = UnitReader::RIDGE * mean(12, &|i| i) / mean(kept.len(), &|i| kept[i]);
        let fit = part.ridge(prior.as_ref(), lambda).unwrap();
        let delta = UnitReader::RIDGE * mean(12, &|i| i);
        let moved: f64 = (0..4)
            .flat_map(|i| (0..kept.len()).map(move |j| (i, j)))
            .map(|(i, j)| (fit.weight[(i, j)] - prior[(i, j)]).powi(2))
            .sum();
        let lost: f64 = (0..4)
            .flat_map(|i| removed.iter().flat_map(move |&g| [(i, 2 * g), (i, 2 * g + 1)]))
            .map(|at| weight[at].powi(2))
            .sum();
        part.loss(&fit) + delta * (moved + lost)
    }

    #[test]
    fn order_and_loss_agree_with_refits_from_scratch() {
        for seed in 0..8 {
            let (sums, weight) = sums(seed);
            let inverse = damped_inverse(sums.covariance(), UnitReader::RIDGE).unwrap();
            let reader = UnitReader::new(&inverse, &weight, units(), 1.0);
            let order = block_obs(vec![reader]).unwrap();
            let mut removed = vec![];
            for (step, &unit) in order.units.iter().enumerate().take(5) {
                let with = |u: usize| [&removed[..], &[u]].concat();
                let best = (0..6)
                    .filter(|u| !removed.contains(u))
                    .min_by(|&a, &b| {
                        refit(&sums, &weight, &with(a)).total_cmp(&refit(&sums, &weight, &with(b)))
                    })
                    .unwrap();
                assert_eq!(unit, best, "seed {seed}, step {step}");
                removed.push(unit);
                let (loss, expected) = (order.loss[step + 1], refit(&sums, &weight, &removed));
                assert!((loss - expected).abs() < 1e-6 * expected.max(1e-9), "{loss} is not {expected}");
            }
        }
    }

    #[test]
    fn weighs_readers_by_importance() {
        let (sums, weight) = sums(9);
        let inverse = damped_inverse(sums.covariance(), UnitReader::RIDGE).unwrap();
        let reader = |importance| UnitReader::new(&inverse, &weight, units()[..4].to_vec(), importance);
        let one = block_obs(vec![reader(1.0)]).unwrap();
        let two = block_obs(vec![reader(0.25), reader(0.75)]).unwrap();
        assert_eq!(one.units, two.units);
        one.loss.iter().zip(&two.loss).for_each(|(a, b)| assert!((a - b).abs() < 1e-9));
    }

    #[test]
    fn removes_many_units_in_batches() {
        let n = 300;
        let weight = Mat::from_fn(1, n, |_, j| 1.0 + ((j * 7) % n) as f64);
        let reader = UnitReader::new(&Mat::identity(n, n), &weight, (0..n).map(|u| vec![u]).collect(), 1.0);
        let order = block_obs(vec![reader]).unwrap();
        let sizes: Vec<_> = order.units.iter().map(|j| (j * 7) % n).collect();
        assert_eq!(sizes, (0..n).collect::<Vec<_>>());
        assert_eq!(order.loss.len(), n + 1);
    }
}
