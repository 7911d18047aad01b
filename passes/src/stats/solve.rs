//! Least squares in closed form, from sums alone.

use super::{Sums, sums::par};
use faer::{
    Accum, Mat, MatRef, Side,
    linalg::{matmul::matmul, solvers::Llt},
    prelude::Solve,
};

/// An affine map `y = W·x + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// `W`, `[O, D]`.
    pub weight: Mat<f64>,
    /// `b`, `O` numbers.
    pub bias: Vec<f64>,
}

/// A system that has no finite solution: the activations it was made from hold NaN or infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sums over the samples are not finite")]
pub struct NotFinite;

/// The factor of `C + δ·I`, `δ = λ · mean(diag C)`: solves for any number of targets.
pub struct Ridge {
    factor: Llt<f64>,
    delta: f64,
    x_mean: Vec<f64>,
}

impl Ridge {
    /// Factorise for the inputs of `sums`.
    pub fn new(sums: &Sums, lambda: f64) -> Result<Self, NotFinite> {
        let mut c = sums.covariance();
        let d = c.nrows();
        let trace: f64 = (0..d).map(|i| c[(i, i)]).sum();
        if !trace.is_finite() {
            return Err(NotFinite);
        }
        // Where all inputs are constant nothing is learnt about W, and any δ > 0 keeps it as it was.
        let delta = if trace > 0.0 { lambda * trace / d as f64 } else { 1.0 };
        (0..d).for_each(|i| c[(i, i)] += delta);
        let factor = Llt::new(c.as_ref(), Side::Lower).map_err(|_| NotFinite)?;
        Ok(Self { factor, delta, x_mean: sums.x_mean.clone() })
    }

    /// `argmin E|y - W·x - b|² + δ·|W - W₀|²`:
    /// `W = (D + δ·W₀)·(C + δ·I)⁻¹`, `b = E y - W·E x`, from `Dᵀ = Cov(x, y)` `[D, O]` and `E y`.
    pub fn solve(&self, cross: MatRef<'_, f64>, y_mean: &[f64], prior: MatRef<'_, f64>) -> Affine {
        let right =
            Mat::from_fn(cross.nrows(), cross.ncols(), |i, j| cross[(i, j)] + self.delta * prior[(j, i)]);
        let solution = self.factor.solve(&right);
        let weight = solution.transpose().to_owned();
        let at_mean = |o: usize| (0..weight.ncols()).map(|j| weight[(o, j)] * self.x_mean[j]).sum::<f64>();
        let bias = (0..weight.nrows()).map(|o| y_mean[o] - at_mean(o)).collect();
        Affine { weight, bias }
    }
}

impl Sums {
    /// The affine map nearest to the data, drawn toward `prior` `[O, D]` with weight `λ · mean(diag C)`.
    pub fn ridge(&self, prior: MatRef<'_, f64>, lambda: f64) -> Result<Affine, NotFinite> {
        let cross = self.xy.as_ref() * faer::Scale(1.0 / self.count.max(1) as f64);
        let affine = Ridge::new(self, lambda)?.solve(cross.as_ref(), &self.y_mean, prior);
        let finite = affine.bias.iter().all(|b| b.is_finite());
        if finite { Ok(affine) } else { Err(NotFinite) }
    }

    /// `E|y - W·x - b|²`, summed over the `y`.
    pub fn loss(&self, map: &Affine) -> f64 {
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

    fn data(seed: u64) -> (Mat<f32>, Mat<f32>) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let x = Mat::from_fn(400, 5, |_, j| rng.f32() + j as f32);
        let y = Mat::from_fn(400, 2, |i, j| 2.0 * x[(i, j)] - x[(i, 4)] + 3.0 + 0.1 * rng.f32());
        (x, y)
    }

    /// The gradient of the objective, computed row by row, is zero at the solution.
    #[test]
    fn the_ridge_solution_is_stationary() {
        let (x, y) = data(1);
        let mut sums = Sums::new(5, 2);
        sums.add(x.as_ref(), y.as_ref());
        let prior = Mat::from_fn(2, 5, |i, j| (i + j) as f64 / 10.0);
        let (n, lambda) = (400.0, 0.1);
        let got = sums.ridge(prior.as_ref(), lambda).unwrap();
        let c = sums.covariance();
        let delta = lambda * (0..5).map(|i| c[(i, i)]).sum::<f64>() / 5.0;
        for o in 0..2 {
            let rest = |r: usize| {
                let p: f64 = (0..5).map(|j| got.weight[(o, j)] * f64::from(x[(r, j)])).sum();
                f64::from(y[(r, o)]) - p - got.bias[o]
            };
            let mean: f64 = (0..400).map(rest).sum::<f64>() / n;
            assert!(mean.abs() < 1e-6, "the bias leaves a mean of {mean}");
            for j in 0..5 {
                let pull: f64 = (0..400).map(|r| rest(r) * f64::from(x[(r, j)])).sum::<f64>() / n;
                let gradient = pull - delta * (got.weight[(o, j)] - prior[(o, j)]);
                assert!(gradient.abs() < 1e-6, "gradient {gradient}");
            }
            let brute: f64 = (0..400).map(|r| rest(r).powi(2)).sum::<f64>() / n;
            let one = Affine { weight: got.weight.subrows(o, 1).to_owned(), bias: vec![got.bias[o]] };
            let mut of_one = Sums::new(5, 1);
            of_one.add(x.as_ref(), y.subcols(o, 1));
            assert!((of_one.loss(&one) - brute).abs() < 1e-6);
        }
    }

    #[test]
    fn constant_inputs_leave_the_weights_alone_and_nan_is_refused() {
        let (ones, y) = (Mat::from_fn(9, 3, |_, _| 1.0_f32), Mat::from_fn(9, 1, |i, _| i as f32));
        let mut sums = Sums::new(3, 1);
        sums.add(ones.as_ref(), y.as_ref());
        let prior = Mat::from_fn(1, 3, |_, j| j as f64);
        let got = sums.ridge(prior.as_ref(), 1e-3).unwrap();
        assert_eq!((got.weight, got.bias), (prior.clone(), vec![4.0 - 3.0]));
        let mut bad = Sums::new(3, 1);
        bad.add(Mat::from_fn(9, 3, |_, _| f32::NAN).as_ref(), y.as_ref());
        assert_eq!(bad.ridge(prior.as_ref(), 1e-3), Err(NotFinite));
        assert!(!bad.is_finite());
    }
}
