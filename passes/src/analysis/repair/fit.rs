//! The fits of a repair: least squares, through a clipping activation where one follows, and matching of
//! moments.

use super::{RepairOptions, RidgeChoice, rows::TrainingRows, target::Target};
use crate::{
    analysis::{
        calibration::{NotFinite, Ridge},
        linear::AffineMap,
    },
    statistics::{Lines, Rows, Sums, column_means, covariance_with, map_rows},
};
use faer::{Mat, MatRef};
use pare_graph::Graph;

/// Returns the map of each group that least squares fits to the rows.
pub(super) fn least_squares(
    graph: &Graph,
    target: &Target<'_>,
    rows: &TrainingRows,
    options: RepairOptions,
) -> Result<Vec<AffineMap>, NotFinite> {
    let current = target.linear.maps(graph).ok_or(NotFinite)?;
    let fit = |(q, current): (usize, AffineMap)| {
        let rows = GroupRows::of(target, rows, q);
        if !target.refit.output_transform {
            return fit_group(target, q, rows, current.weight, options);
        }
        let outputs = map_rows(rows.x, current.weight.as_ref(), &current.bias);
        let o = target.linear.outputs;
        let transform =
            fit_group(target, q, GroupRows { x: outputs.all(), ..rows }, Mat::identity(o, o), options)?;
        Ok(current.then(&transform))
    };
    current.into_iter().enumerate().map(fit).collect()
}

/// Returns the map of each group, `a·(W·x + b) + c`, whose outputs have the means and variances of the
/// targets.
pub(super) fn matching_moments(
    graph: &Graph,
    target: &Target<'_>,
    rows: &TrainingRows,
) -> Result<Vec<AffineMap>, NotFinite> {
    let current = target.linear.maps(graph).ok_or(NotFinite)?;
    let fit = |(q, AffineMap { weight, bias }): (usize, AffineMap)| {
        let sums = GroupRows::of(target, rows, q).sums(target);
        let now = sums.through(weight.as_ref(), &bias, &[]);
        let factor = |i: usize| if now.yy[i] > 0.0 { (sums.yy[i] / now.yy[i]).sqrt() } else { 1.0 };
        let factors: Vec<_> = (0..bias.len()).map(factor).collect();
        let shifted = |i: usize| sums.y_mean[i] - factors[i] * (now.y_mean[i] - bias[i]);
        let map = AffineMap {
            weight: Mat::from_fn(weight.nrows(), weight.ncols(), |i, j| factors[i] * weight[(i, j)]),
            bias: (0..bias.len()).map(shifted).collect(),
        };
        map.bias.iter().chain(&factors).all(|v| v.is_finite()).then_some(map).ok_or(NotFinite)
    };
    current.into_iter().enumerate().map(fit).collect()
}

/// The rows of one group of an operator.
#[derive(Clone, Copy)]
struct GroupRows<'a> {
    x: Lines<'a>,
    y: Lines<'a>,
    addend: Option<Lines<'a>>,
}

impl<'a> GroupRows<'a> {
    fn of(target: &Target<'_>, rows: &'a TrainingRows, q: usize) -> Self {
        let (d, o) = (target.linear.width(), target.linear.outputs);
        Self {
            x: rows.inputs.columns(q * d, d),
            y: rows.targets.columns(q * o, o),
            addend: (rows.addends.width > 0).then(|| rows.addends.columns(q * o, o)),
        }
    }

    /// The sums over the rows; about zero if the operator takes no bias.
    fn sums(&self, target: &Target<'_>) -> Sums {
        self.sums_of(0, self.x.count, target)
    }

    fn sums_of(&self, first: usize, count: usize, target: &Target<'_>) -> Sums {
        let mut sums = Sums::new(self.x.width, self.y.width);
        sums.add(self.x.some(first, count), self.y.some(first, count));
        if target.linear.takes_bias() { sums } else { sums.about_zero() }
    }
}

/// The map from `x` to the targets of group `q`, drawn toward `prior`.
fn fit_group(
    target: &Target<'_>,
    q: usize,
    rows: GroupRows<'_>,
    prior: Mat<f64>,
    options: RepairOptions,
) -> Result<AffineMap, NotFinite> {
    let (d, o) = (rows.x.width, rows.y.width);
    let free = target.refit.free.as_ref().map(|all| &all[q * o * d..(q + 1) * o * d]);
    if free.is_some_and(|free| !free.contains(&true)) {
        return fit_bias(target, rows, prior, options.rounds);
    }
    let (sums, lambda) = match options.ridge {
        RidgeChoice::Fixed(lambda) => (rows.sums(target), lambda),
        RidgeChoice::Validated(lambdas) => validated(target, rows, lambdas, prior.as_ref(), free)?,
    };
    let fit = GroupFit { ridge: Ridge::new(&sums, lambda)?, prior: prior.as_ref(), free };
    let mut map = fit.solve_sums(&sums)?;
    if let Some(bounds) = target.clip.filter(|_| target.linear.takes_bias()) {
        for _ in 0..options.rounds {
            map = fit.solve_clipped(rows, bounds, &map)?;
        }
    }
    Ok(map)
}

/// The map with fixed weights, and the bias that gives its outputs the means of the targets: least squares without free
/// weights.
fn fit_bias(
    target: &Target<'_>,
    rows: GroupRows<'_>,
    weight: Mat<f64>,
    rounds: usize,
) -> Result<AffineMap, NotFinite> {
    let mut map = AffineMap { bias: vec![0.0; weight.nrows()], weight };
    if !target.linear.takes_bias() {
        return Ok(map);
    }
    let outputs = column_means(map_rows(rows.x, map.weight.as_ref(), &map.bias).all());
    let shift = |targets: Lines<'_>| {
        column_means(targets).iter().zip(&outputs).map(|(target, output)| target - output).collect()
    };
    map.bias = shift(rows.y);
    if let Some(bounds) = target.clip {
        for _ in 0..rounds {
            map.bias = shift(clipped_targets(rows, bounds, &map).all());
        }
    }
    map.bias.iter().all(|b| b.is_finite()).then_some(map).ok_or(NotFinite)
}

/// The outputs, at equal distances, that a ridge is chosen by: those of a layer are alike, and solutions for all of them
/// would take most of the time.
const JUDGES: usize = 64;

/// The sums over all rows, and the ridge whose fit to most of the rows predicts the others best.
fn validated(
    target: &Target<'_>,
    rows: GroupRows<'_>,
    lambdas: &[f64],
    prior: MatRef<'_, f64>,
    free: Option<&[bool]>,
) -> Result<(Sums, f64), NotFinite> {
    // The rows of a sample are neighbors, so that at most one sample is on both sides.
    let most = rows.x.count - rows.x.count / 4;
    let mut sums = rows.sums_of(0, most, target);
    let others = rows.sums_of(most, rows.x.count - most, target);
    let (d, o) = (rows.x.width, rows.y.width);
    let judges: Vec<_> = (0..o).step_by(o.div_ceil(JUDGES).max(1)).collect();
    let (known, unknown) = (sums.of_outputs(&judges), others.of_outputs(&judges));
    let prior = Mat::from_fn(judges.len(), d, |i, j| prior[(judges[i], j)]);
    let free: Option<Vec<_>> =
        free.map(|free| judges.iter().flat_map(|&i| free[i * d..(i + 1) * d].iter().copied()).collect());
    let mut best = (f64::INFINITY, lambdas.last().copied().unwrap_or(1.0));
    for &lambda in lambdas {
        let fit =
            GroupFit { ridge: Ridge::new(&sums, lambda)?, prior: prior.as_ref(), free: free.as_deref() };
        let error = unknown.loss(&fit.solve_sums(&known)?);
        if error < best.0 {
            best = (error, lambda);
        }
    }
    let same_widths = sums.merge(&others);
    debug_assert!(same_widths);
    Ok((sums, best.1))
}

/// The least squares problem of one group, for any targets.
struct GroupFit<'a> {
    ridge: Ridge,
    prior: MatRef<'a, f64>,
    free: Option<&'a [bool]>,
}

impl GroupFit<'_> {
    fn solve_sums(&self, sums: &Sums) -> Result<AffineMap, NotFinite> {
        let cross = sums.xy.as_ref() * faer::Scale(1.0 / sums.count.max(1) as f64);
        self.solve(cross.as_ref(), &sums.y_mean)
    }

    fn solve(&self, cross: MatRef<'_, f64>, y_mean: &[f64]) -> Result<AffineMap, NotFinite> {
        match self.free {
            None => self.ridge.solve(cross, y_mean, self.prior),
            Some(free) => self.ridge.solve_free(cross, y_mean, self.prior, free),
        }
    }

    /// One round of majorisation-minimisation: least squares for [`clipped_targets`] of the current map.
    fn solve_clipped(
        &self,
        rows: GroupRows<'_>,
        bounds: (f64, f64),
        current: &AffineMap,
    ) -> Result<AffineMap, NotFinite> {
        let targets = clipped_targets(rows, bounds, current);
        let (cross, mean) = covariance_with(rows.x, targets.all());
        self.solve(cross.as_ref(), &mean)
    }
}

/// The targets with which `Σ (z − p)²` is an upper bound of `Σ (clip(z) − clip(p))²` that is exact for the outputs `p` of
/// the current map: where the original `z` is clipped, `p` is its own target if it is clipped to the same bound.
fn clipped_targets(rows: GroupRows<'_>, (low, high): (f64, f64), current: &AffineMap) -> Rows {
    let (low, high) = (low as f32, high as f32);
    let target = |z: f32, p: f32| {
        if z <= low {
            p.min(low)
        } else if z >= high {
            p.max(high)
        } else {
            z
        }
    };
    let mut targets = map_rows(rows.x, current.weight.as_ref(), &current.bias);
    let width = targets.width;
    for (i, row) in targets.data.chunks_exact_mut(width).enumerate() {
        let y = rows.y.row(i);
        match rows.addend {
            Some(addend) => {
                for ((p, &z), &a) in row.iter_mut().zip(y).zip(addend.row(i)) {
                    *p = target(z + a, *p + a) - a;
                }
            }
            None => row.iter_mut().zip(y).for_each(|(p, &z)| *p = target(z, *p)),
        }
    }
    targets
}
