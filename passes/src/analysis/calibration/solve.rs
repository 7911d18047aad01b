//! Least squares in closed form, from sums alone.

use crate::{
    analysis::linear::AffineMap,
    statistics::{Sums, par},
};
use faer::{
    Accum, Mat, MatRef, Side,
    linalg::{
        matmul::matmul,
        solvers::{DenseSolveCore, Llt},
    },
    prelude::Solve,
};
use rayon::prelude::*;

/// A system without finite solution: the activations hold NaN or infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sums over the samples are not finite")]
pub struct NotFinite;

/// The matrix `C + δ·I`, `δ = λ · mean(diag C)`, and its Cholesky factor, for any number of targets.
pub struct Ridge {
    damped: Mat<f64>,
    factor: Llt<f64>,
    delta: f64,
    x_mean: Vec<f64>,
}

/// `C + δ·I` of a covariance, its Cholesky factor, and `δ = λ · mean(diag C)`.
fn factorise(mut c: Mat<f64>, lambda: f64) -> Result<(Mat<f64>, Llt<f64>, f64), NotFinite> {
    let d = c.nrows();
    let trace: f64 = (0..d).map(|i| c[(i, i)]).sum();
    if !trace.is_finite() {
        return Err(NotFinite);
    }
    // Constant inputs do not determine W; any δ > 0 keeps the prior.
    let delta = if trace > 0.0 { lambda * trace / d as f64 } else { 1.0 };
    (0..d).for_each(|i| c[(i, i)] += delta);
    let factor = Llt::new(c.as_ref(), Side::Lower).map_err(|_| NotFinite)?;
    Ok((c, factor, delta))
}

/// `(C + δ·I)⁻¹` of a covariance `[D, D]`, with `δ = λ · mean(diag C)`.
///
/// # Errors
/// If the covariance is not finite.
pub fn damped_inverse(covariance: Mat<f64>, lambda: f64) -> Result<Mat<f64>, NotFinite> {
    Ok(factorise(covariance, lambda)?.1.inverse())
}

impl Ridge {
    /// Factorises the covariance of the inputs of `sums`.
    ///
    /// # Errors
    /// If the covariance is not finite.
    pub fn new(sums: &Sums, lambda: f64) -> Result<Self, NotFinite> {
        let (damped, factor, delta) = factorise(sums.covariance(), lambda)?;
        Ok(Self { damped, factor, delta, x_mean: sums.x_mean.clone() })
    }

    /// Minimises `E|y - W·x - b|² + δ·|W - W₀|²`: `W = (D + δ·W₀)·(C + δ·I)⁻¹`, `b = E y - W·E x`, from
    /// `cross` `Dᵀ = Cov(x, y)` `[D, O]`, `E y`, and `prior` `W₀` `[O, D]`.
    ///
    /// # Errors
    /// If the solution is not finite.
    pub fn solve(
        &self,
        cross: MatRef<'_, f64>,
        y_mean: &[f64],
        prior: MatRef<'_, f64>,
    ) -> Result<AffineMap, NotFinite> {
        let right =
            Mat::from_fn(cross.nrows(), cross.ncols(), |i, j| cross[(i, j)] + self.delta * prior[(j, i)]);
        let solution = self.factor.solve(&right);
        self.affine(solution.transpose().to_owned(), y_mean)
    }

    /// Like [`Ridge::solve`], but fits only the weights `S = free[o]` of each row `o` (`free` is `[O, D]`);
    /// the others keep their prior: `W_S = W₀_S + (C_SS + δ·I)⁻¹·(D - C·W₀)_S`.
    ///
    /// # Errors
    /// If the solution is not finite, or some `C_SS` is singular up to rounding.
    pub fn solve_free(
        &self,
        cross: MatRef<'_, f64>,
        y_mean: &[f64],
        prior: MatRef<'_, f64>,
        free: &[bool],
    ) -> Result<AffineMap, NotFinite> {
        let (d, o) = (cross.nrows(), cross.ncols());
        let mut rest = cross + prior.transpose() * faer::Scale(self.delta);
        matmul(rest.as_mut(), Accum::Add, self.damped.as_ref(), prior.transpose(), -1.0, par());
        let step = |i: usize| {
            let row = &free[i * d..(i + 1) * d];
            let at: Vec<_> = (0..d).filter(|&j| row[j]).collect();
            if at.is_empty() {
                return Some((at, Mat::zeros(0, 1)));
            }
            let part = Mat::from_fn(at.len(), at.len(), |a, b| self.damped[(at[a], at[b])]);
            let rest = Mat::from_fn(at.len(), 1, |a, _| rest[(at[a], i)]);
            Some((at, Llt::new(part.as_ref(), Side::Lower).ok()?.solve(&rest)))
        };
        let steps = (0..o).into_par_iter().map(step).collect::<Option<Vec<_>>>().ok_or(NotFinite)?;
        let mut weight = prior.to_owned();
        for (i, (at, by)) in steps.into_iter().enumerate() {
            at.into_iter().enumerate().for_each(|(a, j)| weight[(i, j)] += by[(a, 0)]);
        }
        self.affine(weight, y_mean)
    }

    fn affine(&self, weight: Mat<f64>, y_mean: &[f64]) -> Result<AffineMap, NotFinite> {
        let at_mean = |o: usize| (0..weight.ncols()).map(|j| weight[(o, j)] * self.x_mean[j]).sum::<f64>();
        let bias = (0..weight.nrows()).map(|o| y_mean[o] - at_mean(o)).collect();
        let affine = AffineMap { weight, bias };
        if affine.bias.iter().all(|b| b.is_finite()) { Ok(affine) } else { Err(NotFinite) }
    }
}

impl Sums {
    /// The least-squares map for the data, drawn toward `prior` `[O, D]` with weight `λ · mean(diag C)`.
    ///
    /// # Errors
    /// If the sums or the solution are not finite.
    pub(crate) fn ridge(&self, prior: MatRef<'_, f64>, lambda: f64) -> Result<AffineMap, NotFinite> {
        let cross = self.xy.as_ref() * faer::Scale(1.0 / self.count.max(1) as f64);
        Ridge::new(self, lambda)?.solve(cross.as_ref(), &self.y_mean, prior)
    }

    /// The mean squared error `E|y - W·x - b|²`, summed over the outputs.
    pub(crate) fn loss(&self, map: &AffineMap) -> f64 {
        let n = self.count.max(1) as f64;
        let (d, o) = (self.x_mean.len(), self.y_mean.len());
        let mut wc = Mat::zeros(o, d);
        matmul(wc.as_mut(), Accum::Replace, map.weight.as_ref(), self.xx.as_ref(), 1.0, par());
        let of = |i: usize| {
            let (mut scatter, mut mean) = (self.yy[i], self.y_mean[i] - map.bias[i]);
            for j in 0..d {
                let w = map.weight[(i, j)];
                scatter += w * (wc[(i, j)] - 2.0 * self.xy[(j, i)]);
                mean -= w * self.x_mean[j];
            }
            scatter / n + mean * mean
        };
        (0..o).map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(m: &Mat<f32>) -> crate::statistics::Rows {
        let data = (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect();
        crate::statistics::Rows { width: m.ncols(), data }
    }

    fn data(seed: u64) -> (Mat<f32>, Mat<f32>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let x = Mat::from_fn(400, 5, |_, j| rng.f32() + j as f32);
        let y = Mat::from_fn(400, 2, |i, j| 2.0 * x[(i, j)] - x[(i, 4)] + 3.0 + 0.1 * rng.f32());
        (x, y)
    }

    #[test]
    fn ridge_solution_has_zero_gradient() {
        let (x, y) = data(1);
        let mut sums = Sums::new(5, 2);
        sums.add(rows(&x).all(), rows(&y).all());
        let prior = Mat::from_fn(2, 5, |i, j| (i + j) as f64 / 10.0);
        let (n, lambda) = (400.0, 0.1);
        let got = sums.ridge(prior.as_ref(), lambda).unwrap();
        let c = sums.covariance();
        let delta = lambda * (0..5).map(|i| c[(i, i)]).sum::<f64>() / 5.0;
        for o in 0..2 {
            let residual = |r: usize| {
                let p: f64 = (0..5).map(|j| got.weight[(o, j)] * f64::from(x[(r, j)])).sum();
                f64::from(y[(r, o)]) - p - got.bias[o]
            };
            let mean: f64 = (0..400).map(residual).sum::<f64>() / n;
            assert!(mean.abs() < 1e-6, "the mean residual is {mean}");
            for j in 0..5 {
                let pull: f64 = (0..400).map(|r| residual(r) * f64::from(x[(r, j)])).sum::<f64>() / n;
                let gradient = pull - delta * (got.weight[(o, j)] - prior[(o, j)]);
                assert!(gradient.abs() < 1e-6, "gradient {gradient}");
            }
            let brute: f64 = (0..400).map(|r| residual(r).powi(2)).sum::<f64>() / n;
            let one = AffineMap { weight: got.weight.subrows(o, 1).to_owned(), bias: vec![got.bias[o]] };
            let mut of_one = Sums::new(5, 1);
            of_one.add(rows(&x).all(), rows(&y).columns(o, 1));
            assert!((of_one.loss(&one) - brute).abs() < 1e-6);
        }
    }

    /// Free weights equal those of a separate fit to the residual of the fixed ones.
    #[test]
    fn fits_free_weights_to_the_residual_of_fixed_ones() {
        let (x, y) = data(2);
        let mut sums = Sums::new(5, 2);
        sums.add(rows(&x).all(), rows(&y).all());
        let prior = Mat::from_fn(2, 5, |i, j| if j == 3 { 0.0 } else { (i + j) as f64 / 10.0 });
        let free = [[true, false, true, false, true], [false, true, true, false, false]];
        let lambda = 1e-2;
        let cross = sums.xy.as_ref() * faer::Scale(1.0 / 400.0);
        let ridge = Ridge::new(&sums, lambda).unwrap();
        let got = ridge.solve_free(cross.as_ref(), &sums.y_mean, prior.as_ref(), &free.concat()).unwrap();
        for (o, free) in free.iter().enumerate() {
            let at: Vec<_> = (0..5).filter(|&j| free[j]).collect();
            let residual = Mat::from_fn(400, 1, |r, _| {
                let fixed = (0..5).filter(|j| !free[*j]).map(|j| prior[(o, j)] as f32 * x[(r, j)]);
                y[(r, o)] - fixed.sum::<f32>()
            });
            let mut alone = Sums::new(at.len(), 1);
            alone.add(rows(&Mat::from_fn(400, at.len(), |r, a| x[(r, at[a])])).all(), rows(&residual).all());
            // The same δ for both fits.
            let mean = |c: Mat<f64>| (0..c.nrows()).map(|i| c[(i, i)]).sum::<f64>() / c.nrows() as f64;
            let lambda = lambda * mean(sums.covariance()) / mean(alone.covariance());
            let prior_alone = Mat::from_fn(1, at.len(), |_, a| prior[(o, at[a])]);
            let fit = alone.ridge(prior_alone.as_ref(), lambda).unwrap();
            at.iter().enumerate().for_each(|(a, &j)| {
                assert!((got.weight[(o, j)] - fit.weight[(0, a)]).abs() < 1e-4, "{got:?} {fit:?}");
            });
            (0..5).filter(|j| !free[*j]).for_each(|j| assert_eq!(got.weight[(o, j)], prior[(o, j)]));
            assert!((got.bias[o] - fit.bias[0]).abs() < 1e-4);
        }
        let none = ridge.solve_free(cross.as_ref(), &sums.y_mean, prior.as_ref(), &[false; 10]).unwrap();
        assert_eq!(none.weight, prior);
        let mean: f64 = (0..5).map(|j| prior[(1, j)] * sums.x_mean[j]).sum();
        assert!((none.bias[1] - (sums.y_mean[1] - mean)).abs() < 1e-9);
    }

    #[test]
    fn keeps_weights_of_constant_inputs_and_rejects_nan() {
        let (ones, y) = (Mat::from_fn(9, 3, |_, _| 1.0_f32), Mat::from_fn(9, 1, |i, _| i as f32));
        let mut sums = Sums::new(3, 1);
        sums.add(rows(&ones).all(), rows(&y).all());
        let prior = Mat::from_fn(1, 3, |_, j| j as f64);
        let got = sums.ridge(prior.as_ref(), 1e-3).unwrap();
        assert_eq!((got.weight, got.bias), (prior.clone(), vec![4.0 - 3.0]));
        let mut bad = Sums::new(3, 1);
        bad.add(rows(&Mat::from_fn(9, 3, |_, _| f32::NAN)).all(), rows(&y).all());
        assert_eq!(bad.ridge(prior.as_ref(), 1e-3), Err(NotFinite));
        assert!(!bad.is_finite());
    }
}
