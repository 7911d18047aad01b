//! Means and scatters of rows: the sufficient statistics of a least-squares fit.

use faer::{
    Accum, Mat, MatMut, MatRef, Par,
    linalg::matmul::{
        matmul,
        triangular::{self, BlockStructure},
    },
};

/// Rows of `f32` numbers, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The length of a row.
    pub width: usize,
    /// The rows, one after another.
    pub data: Vec<f32>,
}

impl Rows {
    /// No rows of this width.
    pub fn new(width: usize) -> Self {
        Self { width, data: vec![] }
    }

    /// The number of rows.
    pub fn count(&self) -> usize {
        self.data.len().checked_div(self.width).unwrap_or(0)
    }

    /// A view of all rows.
    pub fn all(&self) -> Lines<'_> {
        self.columns(0, self.width)
    }

    /// A view of `count` columns.
    pub fn columns(&self, from: usize, count: usize) -> Lines<'_> {
        Lines { data: &self.data, stride: self.width, from, width: count, count: self.count() }
    }

    /// The rows as a matrix `[N, D]`.
    pub(crate) fn matrix(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.data, self.count(), self.width)
    }
}

/// A view of some columns of rows.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a> {
    data: &'a [f32],
    stride: usize,
    from: usize,
    /// The length of a row.
    pub width: usize,
    /// The number of rows.
    pub count: usize,
}

impl<'a> Lines<'a> {
    /// The row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride + self.from..][..self.width]
    }

    /// A view of `count` rows.
    #[must_use]
    pub fn some(&self, first: usize, count: usize) -> Self {
        Self { data: &self.data[first * self.stride..(first + count) * self.stride], count, ..*self }
    }

    /// The rows as a matrix `[N, D]`.
    pub(crate) fn matrix(&self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(self.data, self.count, self.stride).subcols(self.from, self.width)
    }
}

/// The count, means and scatters `Σ (x-μ)(x-μ)ᵀ`, `Σ (x-μ)(y-ν)ᵀ`, `Σ (y-ν)²` in f64 of pairs of rows `x`
/// (inputs of a linear map) and `y` (its target outputs).
///
/// Sums of chunks of rows [merge](Sums::merge) by the parallel algorithm of Chan, Golub and LeVeque, which
/// does not lose precision to means far from zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Sums {
    pub(crate) count: u64,
    /// Mean of `x`, `D` numbers.
    pub(crate) x_mean: Vec<f64>,
    /// Mean of `y`, `O` numbers; empty without `y`.
    pub(crate) y_mean: Vec<f64>,
    /// Scatter of `x`, `[D, D]`.
    pub(crate) xx: Mat<f64>,
    /// Scatter of `x` with `y`, `[D, O]`.
    pub(crate) xy: Mat<f64>,
    /// Scatter of each column of `y`, `O` numbers.
    pub(crate) yy: Vec<f64>,
}

/// Rows whose products are summed in f32 before they are added in f64: the rounding of such short sums is
/// near 1e-6 of the standard deviations, a thousandth of the smallest ridge in use.
const BLOCK: usize = 2048;

/// Parallelism over all threads of the pool.
pub(crate) fn par() -> Par {
    Par::rayon(0)
}

impl Sums {
    /// Sums over no rows.
    pub fn new(x_width: usize, y_width: usize) -> Self {
        Self {
            count: 0,
            x_mean: vec![0.0; x_width],
            y_mean: vec![0.0; y_width],
            xx: Mat::zeros(x_width, x_width),
            xy: Mat::zeros(x_width, y_width),
            yy: vec![0.0; y_width],
        }
    }

    /// The number of rows.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean of each column of `x`.
    pub fn x_mean(&self) -> &[f64] {
        &self.x_mean
    }

    /// Adds rows `x`, `[N, D]`, with `y`, `[N, O]`.
    pub fn add(&mut self, x: Lines<'_>, y: Lines<'_>) {
        for from in (0..x.count).step_by(BLOCK) {
            let n = BLOCK.min(x.count - from);
            self.add_block(x.some(from, n), y.some(from, n));
        }
    }

    /// Adds rows `x`, `[N, D]`, without `y`.
    pub fn add_inputs(&mut self, x: Lines<'_>) {
        self.add(x, Lines { width: 0, ..x });
    }

    fn add_block(&mut self, x: Lines<'_>, y: Lines<'_>) {
        let n = x.count;
        let (x_mean, x) = centred(x);
        let (y_mean, y) = centred(y);
        let squares = squares(&y);
        let x = x.matrix();
        let (d, o) = (x_mean.len(), y_mean.len());
        let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
        let mut xx = Mat::<f32>::zeros(d, d);
        triangular::matmul(xx.as_mut(), lower, Accum::Replace, x.transpose(), full, x, full, 1.0, par());
        let mut xy = Mat::<f32>::zeros(d, o);
        if o > 0 {
            matmul(xy.as_mut(), Accum::Replace, x.transpose(), y.matrix(), 1.0_f32, par());
        }
        // The scatter of the two means: n₁·n₂ / (n₁ + n₂) · δ·δᵀ.
        let (have, new) = (self.count as f64, n as f64);
        let factor = have * new / (have + new);
        let dx: Vec<_> = x_mean.iter().zip(&self.x_mean).map(|(b, a)| b - a).collect();
        let dy: Vec<_> = y_mean.iter().zip(&self.y_mean).map(|(b, a)| b - a).collect();
        for j in 0..d {
            add_column(&mut self.xx, &xx, j, j, factor * dx[j], &dx);
        }
        for j in 0..o {
            add_column(&mut self.xy, &xy, j, 0, factor * dy[j], &dx);
            self.yy[j] += squares[j] + factor * dy[j] * dy[j];
        }
        mirror(self.xx.as_mut());
        let share = new / (have + new);
        self.x_mean.iter_mut().zip(&dx).for_each(|(m, d)| *m += d * share);
        self.y_mean.iter_mut().zip(&dy).for_each(|(m, d)| *m += d * share);
        self.count += n as u64;
    }

    /// Adds the sums over other rows. Returns false without a change if the widths differ.
    #[must_use]
    pub fn merge(&mut self, other: &Self) -> bool {
        if (self.x_mean.len(), self.y_mean.len()) != (other.x_mean.len(), other.y_mean.len()) {
            return false;
        }
        let (have, new) = (self.count as f64, other.count as f64);
        if other.count == 0 {
            return true;
        }
        let (factor, share) = (have * new / (have + new), new / (have + new));
        let dx: Vec<_> = other.x_mean.iter().zip(&self.x_mean).map(|(b, a)| b - a).collect();
        let dy: Vec<_> = other.y_mean.iter().zip(&self.y_mean).map(|(b, a)| b - a).collect();
        for j in 0..dx.len() {
            for i in 0..dx.len() {
                self.xx[(i, j)] += other.xx[(i, j)] + factor * dx[i] * dx[j];
            }
        }
        for j in 0..dy.len() {
            for i in 0..dx.len() {
                self.xy[(i, j)] += other.xy[(i, j)] + factor * dx[i] * dy[j];
            }
            self.yy[j] += other.yy[j] + factor * dy[j] * dy[j];
        }
        self.x_mean.iter_mut().zip(&dx).for_each(|(m, d)| *m += d * share);
        self.y_mean.iter_mut().zip(&dy).for_each(|(m, d)| *m += d * share);
        self.count += other.count;
        true
    }

    /// Returns true if all sums are finite.
    pub fn is_finite(&self) -> bool {
        let diagonal = self.xx.diagonal().column_vector();
        let mut all = self.x_mean.iter().chain(&self.y_mean).chain(&self.yy).chain(diagonal.iter());
        all.all(|v| v.is_finite())
    }

    /// The sums about zero instead of the means, for fits without a bias.
    #[must_use]
    pub fn about_zero(&self) -> Self {
        let n = self.count as f64;
        let (x, y) = (&self.x_mean, &self.y_mean);
        Self {
            count: self.count,
            x_mean: vec![0.0; x.len()],
            y_mean: vec![0.0; y.len()],
            xx: Mat::from_fn(x.len(), x.len(), |i, j| self.xx[(i, j)] + n * x[i] * x[j]),
            xy: Mat::from_fn(x.len(), y.len(), |i, j| self.xy[(i, j)] + n * x[i] * y[j]),
            yy: self.yy.iter().zip(y).map(|(s, m)| s + n * m * m).collect(),
        }
    }

    /// The covariance of `x`: `C = Σ (x-μ)(x-μ)ᵀ / N`.
    pub(crate) fn covariance(&self) -> Mat<f64> {
        self.xx.as_ref() * faer::Scale(1.0 / self.count.max(1) as f64)
    }

    /// The mean square of each column of `x`.
    pub fn x_energy(&self) -> Vec<f64> {
        let n = self.count.max(1) as f64;
        (0..self.x_mean.len()).map(|i| self.xx[(i, i)] / n + self.x_mean[i].powi(2)).collect()
    }

    /// The variance of each column of `y`.
    pub fn y_variance(&self) -> Vec<f64> {
        self.yy.iter().map(|v| v / self.count.max(1) as f64).collect()
    }

    /// The sums over the columns `kept` of `x`, without `y`.
    #[must_use]
    pub fn part(&self, kept: &[usize]) -> Self {
        Self {
            count: self.count,
            x_mean: kept.iter().map(|&i| self.x_mean[i]).collect(),
            y_mean: vec![],
            xx: Mat::from_fn(kept.len(), kept.len(), |i, j| self.xx[(kept[i], kept[j])]),
            xy: Mat::zeros(kept.len(), 0),
            yy: vec![],
        }
    }

    /// The sums of `x` with these columns of `y`.
    #[must_use]
    pub(crate) fn of_outputs(&self, columns: &[usize]) -> Self {
        Self {
            count: self.count,
            x_mean: self.x_mean.clone(),
            y_mean: columns.iter().map(|&j| self.y_mean[j]).collect(),
            xx: self.xx.clone(),
            xy: Mat::from_fn(self.x_mean.len(), columns.len(), |i, j| self.xy[(i, columns[j])]),
            yy: columns.iter().map(|&j| self.yy[j]).collect(),
        }
    }

    /// The sums over the columns `kept` of `x` with `y = W·x + b` of all columns; `W` is `[O, D]`, a missing
    /// bias is zero.
    #[must_use]
    pub(crate) fn through(&self, weight: MatRef<'_, f64>, bias: &[f64], kept: &[usize]) -> Self {
        let (d, o) = (self.x_mean.len(), weight.nrows());
        let mut all = Mat::zeros(d, o);
        matmul(all.as_mut(), Accum::Replace, self.xx.as_ref(), weight.transpose(), 1.0, par());
        let inner = |i: usize| (0..d).map(|j| weight[(i, j)] * self.x_mean[j]).sum::<f64>();
        Self {
            y_mean: (0..o).map(|i| inner(i) + bias.get(i).copied().unwrap_or(0.0)).collect(),
            xy: Mat::from_fn(kept.len(), o, |i, j| all[(kept[i], j)]),
            yy: (0..o).map(|i| (0..d).map(|j| weight[(i, j)] * all[(j, i)]).sum()).collect(),
            ..self.part(kept)
        }
    }
}

/// The covariance `[D, O]` of rows `x`, `[N, D]`, and `y`, `[N, O]`, and the means of `y`.
pub(crate) fn covariance_with(x: Lines<'_>, y: Lines<'_>) -> (Mat<f64>, Vec<f64>) {
    let (y_mean, y) = centred(y);
    let mut cross = Mat::<f64>::zeros(x.width, y.width);
    for from in (0..x.count).step_by(BLOCK) {
        let n = BLOCK.min(x.count - from);
        let mut block = Mat::<f32>::zeros(x.width, y.width);
        let (a, b) = (x.some(from, n).matrix(), y.all().some(from, n).matrix());
        matmul(block.as_mut(), Accum::Replace, a.transpose(), b, 1.0_f32, par());
        (0..y.width).for_each(|j| add_column(&mut cross, &block, j, 0, 0.0, &vec![0.0; x.width]));
    }
    (cross * faer::Scale(1.0 / x.count.max(1) as f64), y_mean)
}

/// `X·Wᵀ + b` for rows `X`, `[N, D]`.
pub(crate) fn map_rows(x: Lines<'_>, weight: MatRef<'_, f64>, bias: &[f64]) -> Rows {
    let w = Mat::from_fn(weight.nrows(), weight.ncols(), |i, j| weight[(i, j)] as f32);
    let bias: Vec<_> = bias.iter().map(|&b| b as f32).collect();
    let mut y = Rows { width: bias.len(), data: bias.repeat(x.count) };
    let out = MatMut::from_row_major_slice_mut(&mut y.data, x.count, bias.len());
    matmul(out, Accum::Add, x.matrix(), w.transpose(), 1.0_f32, par());
    y
}

/// `sum[from.., j] += block[from.., j] + factor·d[from..]`.
fn add_column(sum: &mut Mat<f64>, block: &Mat<f32>, j: usize, from: usize, factor: f64, d: &[f64]) {
    let block = &block.col_as_slice(j)[from..];
    let sum = &mut sum.col_as_slice_mut(j)[from..];
    for ((sum, &block), d) in sum.iter_mut().zip(block).zip(&d[from..]) {
        *sum += f64::from(block) + factor * d;
    }
}

/// The means of the columns.
pub(crate) fn column_means(rows: Lines<'_>) -> Vec<f64> {
    let mut mean = vec![0.0; rows.width];
    for i in 0..rows.count {
        mean.iter_mut().zip(rows.row(i)).for_each(|(m, &v)| *m += f64::from(v));
    }
    mean.iter_mut().for_each(|m| *m /= rows.count.max(1) as f64);
    mean
}

/// The means in f64, and the rows minus the means.
fn centred(rows: Lines<'_>) -> (Vec<f64>, Rows) {
    let mean = column_means(rows);
    let mut deviations = Rows::new(rows.width);
    deviations.data.reserve_exact(rows.count * rows.width);
    for i in 0..rows.count {
        deviations.data.extend(rows.row(i).iter().zip(&mean).map(|(&v, m)| (f64::from(v) - m) as f32));
    }
    (mean, deviations)
}

/// The sum of the squares of each column.
fn squares(rows: &Rows) -> Vec<f64> {
    let mut sums = vec![0.0; rows.width];
    for row in rows.data.chunks_exact(rows.width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    sums
}

/// Copies the lower triangle to the upper one.
fn mirror(mut m: MatMut<'_, f64>) {
    for j in 1..m.ncols() {
        for i in 0..j {
            m[(i, j)] = m[(j, i)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, width: usize, offset: f32, seed: u64) -> Rows {
        let mut rng = fastrand::Rng::with_seed(seed);
        Rows { width, data: (0..rows * width).map(|_| rng.f32() - 0.5 + offset).collect() }
    }

    /// The sums by two passes in f64.
    fn two_passes(x: &Rows, y: &Rows) -> (Vec<f64>, Mat<f64>, Mat<f64>) {
        let (x, y, n) = (x.matrix(), y.matrix(), x.count());
        let mean =
            |m: MatRef<'_, f32>, j: usize| (0..n).map(|i| f64::from(m[(i, j)])).sum::<f64>() / n as f64;
        let product = |a: MatRef<'_, f32>, i, b: MatRef<'_, f32>, j| {
            let (p, q) = (mean(a, i), mean(b, j));
            (0..n).map(|r| (f64::from(a[(r, i)]) - p) * (f64::from(b[(r, j)]) - q)).sum::<f64>()
        };
        (
            (0..x.ncols()).map(|j| mean(x, j)).collect(),
            Mat::from_fn(x.ncols(), x.ncols(), |i, j| product(x, i, x, j)),
            Mat::from_fn(x.ncols(), y.ncols(), |i, j| product(x, i, y, j)),
        )
    }

    #[test]
    fn equals_two_passes_for_all_chunks() {
        let (x, y) = (random(5000, 7, 100.0, 1), random(5000, 3, -20.0, 2));
        let (mean, xx, xy) = two_passes(&x, &y);
        let mut all = Sums::new(7, 3);
        all.add(x.all(), y.all());
        let (mut a, mut b) = (Sums::new(7, 3), Sums::new(7, 3));
        a.add(x.all().some(0, 137), y.all().some(0, 137));
        b.add(x.all().some(137, 4863), y.all().some(137, 4863));
        assert!(a.merge(&b));
        for sums in [&all, &a] {
            assert_eq!(sums.count, 5000);
            for i in 0..7 {
                assert!((sums.x_mean[i] - mean[i]).abs() < 1e-12 * 100.0);
                // A variance of 1/12 times 5000 rows; f32 products of blocks have six digits.
                (0..7).for_each(|j| assert!((sums.xx[(i, j)] - xx[(i, j)]).abs() < 1e-5 * 400.0));
                (0..3).for_each(|j| assert!((sums.xy[(i, j)] - xy[(i, j)]).abs() < 1e-5 * 400.0));
            }
            assert_eq!(sums.xx[(2, 5)], sums.xx[(5, 2)]);
        }
        assert!(!a.merge(&Sums::new(6, 3)));
    }

    #[test]
    fn through_equals_the_sums_over_mapped_rows() {
        let x = random(900, 4, 0.3, 3);
        let weight = Mat::from_fn(2, 4, |i, j| (i * 4 + j) as f64 / 4.0 - 1.0);
        let bias = [0.5, -2.0];
        let value = |r: usize, o: usize| {
            let sum: f64 = (0..4).map(|j| weight[(o, j)] * f64::from(x.matrix()[(r, j)])).sum();
            (sum + bias[o]) as f32
        };
        let y = Rows { width: 2, data: (0..900).flat_map(|r| [value(r, 0), value(r, 1)]).collect() };
        let mut inputs = Sums::new(4, 0);
        inputs.add_inputs(x.all());
        let kept = [0, 3];
        let predicted = inputs.through(weight.as_ref(), &bias, &kept);
        let x_kept = (0..900).flat_map(|i| kept.map(|j| x.matrix()[(i, j)])).collect();
        let x_kept = Rows { width: 2, data: x_kept };
        let mut expected = Sums::new(2, 2);
        expected.add(x_kept.all(), y.all());
        for o in 0..2 {
            assert!((predicted.y_mean[o] - expected.y_mean[o]).abs() < 1e-6);
            assert!((predicted.yy[o] - expected.yy[o]).abs() < 1e-4 * expected.yy[o]);
            (0..2).for_each(|i| assert!((predicted.xy[(i, o)] - expected.xy[(i, o)]).abs() < 1e-3));
        }
    }
}
