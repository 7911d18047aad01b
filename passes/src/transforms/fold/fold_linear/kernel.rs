//! Linear layers with weights in f64: composition, sum and concatenation.
//!
//! The composite of `W₁` and `W₂` sums, over the channels between them and over all pairs of taps that map to
//! the same tap, products of matrices: `W[:,:,t] = Σ W₂[:,:,c]·W₁[:,:,a]` over `c·d₂s₁ + a·d₁ = t·d`.

use super::{
    axis::{Axis, Border, TapRun, gcd},
    outline::{Obstacle, Offset, Ones, Outline, Sizes},
};
use faer::linalg::solvers::Solve;
use ndarray::{Array2, Array3, ArrayView2, Axis as Dimension, s};
use std::ops::Range;

/// A linear layer; a matrix if there are no spatial axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// `[outputs, inputs of a group, taps]`, the taps of all axes in row-major order.
    pub weight: Array3<f64>,
    /// Number of groups.
    pub group: usize,
    /// The spatial axes.
    pub axes: Vec<Axis>,
    /// One number per output channel.
    pub bias: Vec<f64>,
    /// `[outputs, taps]`: weights of an extra input channel of ones.
    pub ones: Option<Array2<f64>>,
    /// A shift of the input with the effect of the channel of ones: `ones = −W·shift`.
    pub shift: Option<Vec<f64>>,
    /// One number per output channel and position.
    pub map: Option<BiasMap>,
    /// The sums of absolute weights per output channel, `|W₂|·|W₁|` over all composed layers.
    pub gross: Vec<f64>,
}

/// One number per channel and position.
#[derive(Clone, Debug, PartialEq)]
pub struct BiasMap {
    /// Sizes of the spatial axes.
    pub sizes: Vec<usize>,
    /// `[channels, positions]`, row-major.
    pub values: Array2<f64>,
}

/// A part of a composite with seams.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// Its range along each axis.
    pub runs: Vec<TapRun>,
    /// The layer that computes it from its inputs.
    pub kernel: Kernel,
}

/// All positions of a box, in row-major order.
pub fn positions(ranges: &[Range<usize>]) -> Vec<Vec<usize>> {
    ranges.iter().fold(vec![vec![]], |positions, range| {
        let longer =
            |p: &Vec<usize>| range.clone().map(|i| [p.as_slice(), &[i]].concat()).collect::<Vec<_>>();
        positions.iter().flat_map(longer).collect()
    })
}

fn all(sizes: &[usize]) -> Vec<Vec<usize>> {
    positions(&sizes.iter().map(|&n| 0..n).collect::<Vec<_>>())
}

/// The row-major index of a position.
fn flat(position: &[usize], sizes: &[usize]) -> usize {
    position.iter().zip(sizes).fold(0, |at, (&p, &n)| at * n + p)
}

fn taps(axes: &[Axis]) -> Vec<usize> {
    axes.iter().map(|a| a.taps).collect()
}

impl Kernel {
    /// A layer from its weights `[outputs, inputs of a group, taps]`.
    pub fn new(weight: Array3<f64>, group: usize, axes: Vec<Axis>, bias: Vec<f64>) -> Self {
        let gross = row_sums(&weight);
        Self { weight, group, axes, bias, ones: None, shift: None, map: None, gross }
    }

    /// The map `scale·x + shift` of each channel.
    pub fn diagonal(scale: &[f64], shift: Vec<f64>, axes: Vec<Axis>) -> Self {
        let weight = Array3::from_shape_fn((scale.len(), 1, 1), |(c, ..)| scale[c]);
        Self::new(weight, scale.len(), axes, shift)
    }

    /// The same weight at every tap of every channel, as for average pooling.
    pub fn uniform(channels: usize, value: f64, axes: Vec<Axis>) -> Self {
        let count = taps(&axes).iter().product();
        Self::new(Array3::from_elem((channels, 1, count), value), channels, axes, vec![0.0; channels])
    }

    /// Output channels.
    pub fn outputs(&self) -> usize {
        self.weight.len_of(Dimension(0))
    }

    /// Input channels of all groups.
    pub fn inputs(&self) -> usize {
        self.weight.len_of(Dimension(1)) * self.group
    }

    /// Returns true if there is one weight per channel.
    fn is_diagonal(&self) -> bool {
        self.weight.len() == self.group && self.outputs() == self.group
    }

    /// The layer without its weights.
    pub fn outline(&self) -> Outline {
        let bias = self.bias.iter().any(|&b| b != 0.0);
        let form = if self.shift.is_some() { Ones::Shift } else { Ones::Channel };
        let ones = self.ones.as_ref().map(|_| form);
        let offset = Offset { bias, ones, map: self.map.is_some() };
        let axes = self.axes.clone();
        Outline { outputs: self.outputs(), inputs: self.inputs(), group: self.group, axes, offset }
    }

    /// The factor by which rounding errors in the composed layers may exceed those of the composite:
    /// `‖|W₂|·|W₁|‖ / ‖W₂·W₁‖` in the maximum norm.
    pub fn amplification(&self) -> f64 {
        let most = |sums: &[f64]| sums.iter().copied().fold(0.0, f64::max);
        let gross = most(&self.gross);
        if gross == 0.0 { 1.0 } else { gross / most(&row_sums(&self.weight)) }
    }

    /// The composite of this layer and `next` for inputs of these sizes.
    pub fn then(&self, next: &Self, sizes: &Sizes) -> Result<Self, Obstacle> {
        let (outline, border) = self.outline().then(&next.outline(), sizes)?;
        if border == Border::Seam {
            return Err(Obstacle::Seams);
        }
        let mut composite = self.compose_interior(next);
        // The contribution of the bias differs between positions: it becomes ones or a map.
        let cut_off = border == Border::Blank && self.bias.iter().any(|&b| b != 0.0);
        let as_ones = cut_off && self.outline().is_pointwise();
        if cut_off {
            composite.bias.clone_from(&next.bias);
        }
        if outline.offset.ones.is_some() {
            let none = || Array2::zeros((self.outputs(), self.weight.dim().2));
            let mut ones = self.ones.clone().unwrap_or_else(none);
            if as_ones {
                ones.column_mut(0).iter_mut().zip(&self.bias).for_each(|(o, b)| *o += b);
            }
            composite.ones = Some(self.scatter(next, &next.all_taps(), &ones));
            composite.shift =
                if as_ones { solve_shift(&self.weight, self.group, &ones) } else { self.shift.clone() };
        }
        if self.map.is_some() || cut_off && !as_ones {
            let middle: Option<Vec<_>> = self.outline().output_sizes(sizes).into_iter().collect();
            let middle = middle.ok_or(Obstacle::OpenSizes)?;
            let mut map = self.map.clone().unwrap_or_else(|| BiasMap::zeros(self.outputs(), &middle));
            if cut_off && !as_ones {
                map.values.outer_iter_mut().zip(&self.bias).for_each(|(mut row, b)| row += *b);
            }
            composite.map = Some(next.applied_to_map(&map)?);
        }
        composite.map = match (composite.map.take(), &next.map) {
            (Some(map), Some(more)) => Some(BiasMap { values: map.values + &more.values, ..map }),
            (map, more) => map.or_else(|| more.clone()),
        };
        Ok(composite)
    }

    fn all_taps(&self) -> Vec<Range<usize>> {
        self.axes.iter().map(|a| 0..a.taps).collect()
    }

    /// The composite of this layer and the taps `inside` of `next`, each of which also reads the bias.
    fn composed(&self, next: &Self, inside: &[Range<usize>]) -> Self {
        let axes: Vec<_> = self.axes.iter().zip(&next.axes).map(|(a, b)| a.then(*b)).collect();
        let group = gcd(self.group, next.group);
        let (own, other) = (self.weight.dim(), next.weight.dim());
        let per_group = self.inputs() / group;
        let mut weight = Array3::zeros((other.0, per_group, taps(&axes).iter().product()));
        let (rows, mids, last) = (own.0 / self.group, other.1, other.0 / next.group);
        let outputs_of_block = other.0 / group;
        let mut bias = Array2::zeros((other.0, 1));
        let own_bias = Array2::from_shape_fn((own.0, 1), |(m, _)| self.bias[m]);
        let gross = Array2::from_shape_fn((own.0, 1), |(m, _)| self.gross[m]);
        let mut composed_gross = Array2::<f64>::zeros((other.0, 1));
        for tap in positions(inside) {
            let c = flat(&tap, &taps(&next.axes));
            let targets = self.targets(next, &tap);
            // Factors per channel in either layer need no matrix product.
            if self.is_diagonal() {
                for ((o, m), value) in next.weight.index_axis(Dimension(2), c).indexed_iter() {
                    weight[[o, m, targets[0]]] += value * self.weight[[o / last * mids + m, 0, 0]];
                }
            } else if next.is_diagonal() {
                let rows = weight.outer_iter_mut().zip(self.weight.outer_iter());
                for ((mut to, from), &factor) in rows.zip(&next.weight) {
                    for (a, &target) in targets.iter().enumerate() {
                        to.column_mut(target).scaled_add(factor, &from.column(a));
                    }
                }
            }
            let dense = !self.is_diagonal() && !next.is_diagonal();
            for j in (0..next.group).filter(|_| dense) {
                let (out, mid) = (j * last..(j + 1) * last, j * mids..(j + 1) * mids);
                for i in mid.start / rows..mid.end.div_ceil(rows) {
                    let m = mid.start.max(i * rows)..mid.end.min((i + 1) * rows);
                    let first = self.weight.slice(s![m.clone(), .., ..]);
                    let first = first.into_shape_with_order((m.len(), own.1 * own.2));
                    let first = first.expect("rows of a row-major array are contiguous");
                    let second =
                        next.weight.slice(s![out.clone(), m.start - mid.start..m.end - mid.start, c]);
                    let product = second.dot(&first);
                    let base = i * own.1 - out.start / outputs_of_block * per_group;
                    for (row, o) in product.outer_iter().zip(out.clone()) {
                        for (at, value) in row.iter().enumerate() {
                            weight[[o, base + at / own.2, targets[at % own.2]]] += value;
                        }
                    }
                }
            }
            bias += &next.mix(c, own_bias.view(), |w| w);
            composed_gross += &next.mix(c, gross.view(), f64::abs);
        }
        let bias = next.bias.iter().zip(&bias).map(|(b, more)| b + more).collect();
        Self { gross: composed_gross.into_raw_vec_and_offset().0, ..Self::new(weight, group, axes, bias) }
    }

    /// The taps of the composite that this layer's taps contribute to through tap `other` of `next`.
    fn targets(&self, next: &Self, other: &[usize]) -> Vec<usize> {
        let axes: Vec<_> = self.axes.iter().zip(&next.axes).map(|(a, b)| a.then(*b)).collect();
        let target = |own: Vec<usize>| {
            let axis = |i: usize| self.axes[i].tap(own[i], next.axes[i], other[i]);
            flat(&(0..own.len()).map(axis).collect::<Vec<_>>(), &taps(&axes))
        };
        all(&taps(&self.axes)).into_iter().map(target).collect()
    }

    /// The composite of `values`, `[channels, taps]` of this layer, and the taps `inside` of `next`.
    fn scatter(&self, next: &Self, inside: &[Range<usize>], values: &Array2<f64>) -> Array2<f64> {
        let axes: Vec<_> = self.axes.iter().zip(&next.axes).map(|(a, b)| a.then(*b)).collect();
        let mut result = Array2::zeros((next.outputs(), taps(&axes).iter().product()));
        for tap in positions(inside) {
            let mixed = next.mix(flat(&tap, &taps(&next.axes)), values.view(), |w| w);
            for (own, target) in self.targets(next, &tap).into_iter().enumerate() {
                let mut column = result.column_mut(target);
                column += &mixed.column(own);
            }
        }
        result
    }

    /// The product of one tap, with `f` applied to its weights, and `[input channels, columns]`.
    fn mix(&self, tap: usize, values: ArrayView2<'_, f64>, f: fn(f64) -> f64) -> Array2<f64> {
        let (outputs, mids, _) = self.weight.dim();
        let rows = outputs / self.group;
        let mut result = Array2::zeros((outputs, values.ncols()));
        if self.is_diagonal() {
            result.assign(&values);
            let weights = self.weight.iter().map(|&w| f(w));
            result.outer_iter_mut().zip(weights).for_each(|(mut row, w)| row *= w);
            return result;
        }
        for j in 0..self.group {
            let weight = self.weight.slice(s![j * rows..(j + 1) * rows, .., tap]).mapv(f);
            let product = weight.dot(&values.slice(s![j * mids..(j + 1) * mids, ..]));
            result.slice_mut(s![j * rows..(j + 1) * rows, ..]).assign(&product);
        }
        result
    }

    /// The response to a map, with the layer's padding and without its bias.
    fn applied_to_map(&self, map: &BiasMap) -> Result<BiasMap, Obstacle> {
        let sizes: Option<Vec<_>> = self.axes.iter().zip(&map.sizes).map(|(a, &n)| a.outputs(n)).collect();
        let sizes = sizes.ok_or(Obstacle::Misfit)?;
        let mut result = BiasMap::zeros(self.outputs(), &sizes);
        for (tap, index) in all(&taps(&self.axes)).into_iter().zip(0..) {
            let mut read = Array2::zeros((map.values.nrows(), result.values.ncols()));
            for (to, position) in all(&sizes).into_iter().enumerate() {
                let from = |i: usize| {
                    let a = self.axes[i];
                    let at = (position[i] * a.stride + tap[i] * a.dilation).checked_sub(a.before)?;
                    (at < map.sizes[i]).then_some(at)
                };
                if let Some(from) = (0..position.len()).map(from).collect::<Option<Vec<_>>>() {
                    read.column_mut(to).assign(&map.values.column(flat(&from, &map.sizes)));
                }
            }
            result.values += &self.mix(index, read.view(), |w| w);
        }
        Ok(result)
    }

    /// The response to the channel of ones as a map, for inputs of these sizes.
    pub fn ones_as_map(&self, sizes: &[usize]) -> Option<BiasMap> {
        let ones = self.ones.as_ref()?;
        let (outputs, taps) = ones.dim();
        let weight = ones.to_shape((outputs, 1, taps)).ok()?.to_owned();
        let layer = Self::new(weight, 1, self.axes.clone(), vec![0.0; outputs]);
        let positions = sizes.iter().product();
        layer.applied_to_map(&BiasMap { sizes: sizes.to_vec(), values: Array2::ones((1, positions)) }).ok()
    }

    /// The composite of this layer and `next` away from the border.
    pub fn compose_interior(&self, next: &Self) -> Self {
        self.composed(next, &next.all_taps())
    }

    /// The composite of this layer and `next` in tiles. All outputs of a tile have the same taps of `next`
    /// inside, so its kernel and bias are exact without corrections.
    pub fn tiles(&self, next: &Self, runs: &[Vec<TapRun>]) -> Vec<Tile> {
        let counts: Vec<_> = runs.iter().map(Vec::len).collect();
        let tile = |position: Vec<usize>| {
            let runs: Vec<_> = position.iter().zip(runs).map(|(&i, runs)| runs[i].clone()).collect();
            let inside: Vec<_> = runs.iter().map(|r| r.inside.clone()).collect();
            let kernel = self.composed(next, &inside).cut(&runs);
            Tile { runs, kernel }
        };
        all(&counts).into_iter().map(tile).collect()
    }

    /// The layer with the taps of these runs only.
    fn cut(&self, runs: &[TapRun]) -> Self {
        let kept = positions(&runs.iter().map(|r| r.taps.clone()).collect::<Vec<_>>());
        let kept: Vec<_> = kept.iter().map(|tap| flat(tap, &taps(&self.axes))).collect();
        let axis =
            |(a, r): (&Axis, &TapRun)| Axis { taps: r.taps.len(), before: r.before, after: r.after, ..*a };
        let axes = self.axes.iter().zip(runs).map(axis).collect();
        let mut weight = self.weight.select(Dimension(2), &kept);
        if runs.iter().any(|r| r.padding_only) {
            weight.fill(0.0);
        }
        Self::new(weight, self.group, axes, self.bias.clone())
    }

    /// The same layer with its taps on the grid of `axes`, which includes them (see [`Outline::common`]), and
    /// in `group` groups, a divisor of its own number.
    fn on_grid(&self, axes: &[Axis], group: usize) -> Self {
        if self.axes == axes && self.group == group {
            return self.clone();
        }
        let (outputs, own, _) = self.weight.dim();
        let per_group = self.inputs() / group;
        let mut weight = Array3::zeros((outputs, per_group, taps(axes).iter().product()));
        let target = |tap: Vec<usize>| {
            let axis = |i: usize| {
                let (a, wide) = (self.axes[i], axes[i]);
                (tap[i] * a.dilation + wide.before - a.before) / wide.dilation
            };
            flat(&(0..tap.len()).map(axis).collect::<Vec<_>>(), &taps(axes))
        };
        let targets: Vec<_> = all(&taps(&self.axes)).into_iter().map(target).collect();
        let (rows, block) = (outputs / self.group, outputs / group);
        for ((o, i, a), &value) in self.weight.indexed_iter() {
            let channel = o / rows * own + i - o / block * per_group;
            weight[[o, channel, targets[a]]] = value;
        }
        let ones = self.ones.as_ref().map(|ones| {
            let mut wide = Array2::zeros((outputs, weight.dim().2));
            targets.iter().enumerate().for_each(|(a, &t)| wide.column_mut(t).assign(&ones.column(a)));
            wide
        });
        Self { weight, group, axes: axes.to_vec(), ones, ..self.clone() }
    }

    /// The sum of layers over one input.
    pub fn sum(branches: &[Self]) -> Option<Self> {
        let axes = Outline::common(&branches.iter().map(Self::outline).collect::<Vec<_>>())?;
        let group = branches.iter().map(|b| b.group).fold(0, gcd);
        let mut aligned = branches.iter().map(|b| b.on_grid(&axes, group));
        let first = aligned.next()?;
        aligned.try_fold(first, |mut sum, branch| {
            if sum.weight.dim() != branch.weight.dim() {
                return None;
            }
            sum.weight += &branch.weight;
            sum.bias.iter_mut().zip(&branch.bias).for_each(|(a, b)| *a += b);
            sum.gross.iter_mut().zip(&branch.gross).for_each(|(a, b)| *a += b);
            sum.shift = sum.shift.take().filter(|shift| branch.shift.as_ref() == Some(shift));
            sum.ones = match (sum.ones.take(), branch.ones) {
                (Some(a), Some(b)) => Some(a + b),
                (a, b) => a.or(b),
            };
            sum.map = match (sum.map.take(), branch.map) {
                (Some(a), Some(b)) if a.sizes == b.sizes => {
                    Some(BiasMap { values: a.values + b.values, ..a })
                }
                (Some(_), Some(_)) => return None,
                (a, b) => a.or(b),
            };
            Some(sum)
        })
    }

    /// The concatenation of layers over one input along the output channels, in one group.
    pub fn stack(branches: &[Self]) -> Option<Self> {
        let axes = Outline::common(&branches.iter().map(Self::outline).collect::<Vec<_>>())?;
        if branches.iter().any(|b| b.map.is_some()) {
            return None;
        }
        let aligned: Vec<_> = branches.iter().map(|b| b.on_grid(&axes, 1)).collect();
        let weights: Vec<_> = aligned.iter().map(|b| b.weight.view()).collect();
        let weight = ndarray::concatenate(Dimension(0), &weights).ok()?;
        let taps = weight.dim().2;
        let ones = aligned.iter().any(|b| b.ones.is_some()).then(|| {
            let ones = |b: &Self| b.ones.clone().unwrap_or_else(|| Array2::zeros((b.outputs(), taps)));
            let all: Vec<_> = aligned.iter().map(ones).collect();
            ndarray::concatenate(Dimension(0), &all.iter().map(|a| a.view()).collect::<Vec<_>>())
        });
        let joined = |part: fn(&Self) -> &Vec<f64>| aligned.iter().flat_map(|b| part(b).clone()).collect();
        let mut stacked = Self::new(weight, 1, axes, joined(|b| &b.bias));
        stacked.ones = ones.transpose().ok()?;
        stacked.shift =
            aligned[0].shift.clone().filter(|shift| aligned.iter().all(|b| b.shift.as_ref() == Some(shift)));
        stacked.gross = joined(|b| &b.gross);
        Some(stacked)
    }
}

/// The largest `|W|·|x₀|` as a multiple of `|b|`.
///
/// `W·x + b` has a rounding error of about `ε·(|W|·|x| + |b|)`, and `W·(x − x₀)` of `ε·(|W|·|x| + |W|·|x₀|)`
/// with `|W|·|x₀| ≥ |b|`: the shift is as precise as the bias if both are equal. A factor of 2 loses one bit.
/// Factors per channel have `|W|·|x₀| = |b|`, while channels that mix mostly cancel (10 to 100 times `|b|`).
const MAX_SHIFT: f64 = 2.0;

/// The constant input `x` of a pointwise layer with `W·x = −ones`, if there is an accurate solution within
/// [`MAX_SHIFT`].
fn solve_shift(weight: &Array3<f64>, group: usize, ones: &Array2<f64>) -> Option<Vec<f64>> {
    let (outputs, inputs, _) = weight.dim();
    let rows = outputs / group;
    if rows > inputs {
        return None; // Overdetermined.
    }
    let mut all = vec![];
    for j in 0..group {
        let w: ArrayView2<'_, f64> = weight.slice(s![j * rows..(j + 1) * rows, .., 0]);
        let wanted = ones.slice(s![j * rows..(j + 1) * rows, 0]).mapv(|o| -o);
        // The minimum-norm solution, Wᵀ(WWᵀ)⁻¹y, with one step of iterative refinement.
        let gram = w.dot(&w.t());
        let gram = faer::Mat::from_fn(rows, rows, |r, c| gram[[r, c]]);
        let factor = gram.llt(faer::Side::Lower).ok()?;
        let mut x = ndarray::Array1::<f64>::zeros(inputs);
        for _ in 0..2 {
            let residual = &wanted - &w.dot(&x);
            let solved = factor.solve(faer::Mat::from_fn(rows, 1, |r, _| residual[r]));
            x += &w.t().dot(&ndarray::Array1::from_shape_fn(rows, |r| solved[(r, 0)]));
        }
        let most = |v: &ndarray::Array1<f64>| v.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let size = most(&w.mapv(f64::abs).dot(&x.mapv(f64::abs)));
        // 2⁻⁴⁰ is far below the resolution of 24-bit weights.
        if !(most(&(&wanted - &w.dot(&x))) <= most(&wanted) / (1_u64 << 40) as f64
            && size <= MAX_SHIFT * most(&wanted))
        {
            return None;
        }
        all.extend(x);
    }
    Some(all)
}

/// Transposes a matrix of `rows` rows block by block, for the caches.
pub fn transpose(values: &[f64], rows: usize) -> Vec<f64> {
    const SIDE: usize = 16;
    let columns = values.len() / rows.max(1);
    let mut result = vec![0.0; values.len()];
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for column in left..columns.min(left + SIDE) {
                for row in top..rows.min(top + SIDE) {
                    result[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    result
}

fn row_sums(weight: &Array3<f64>) -> Vec<f64> {
    weight.outer_iter().map(|row| row.iter().map(|w| w.abs()).sum()).collect()
}

impl BiasMap {
    fn zeros(channels: usize, sizes: &[usize]) -> Self {
        Self { sizes: sizes.to_vec(), values: Array2::zeros((channels, sizes.iter().product())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_for_precise_shifts_only() {
        let weight = |values: [f64; 4]| Array3::from_shape_vec((2, 2, 1), values.to_vec()).unwrap();
        let ones = Array2::from_shape_vec((2, 1), vec![1.0, -1.0]).unwrap();
        let found = solve_shift(&weight([2.0, 0.0, 0.0, 4.0]), 1, &ones).unwrap();
        assert!((found[0] + 0.5).abs() < 1e-12 && (found[1] - 0.25).abs() < 1e-12, "{found:?}");
        // x₀ = (−10, 10): terms of ±19 cancel to ±1.
        assert_eq!(solve_shift(&weight([1.0, 0.9, 0.9, 1.0]), 1, &ones), None);
    }

    #[test]
    fn transposes_matrices_of_any_size() {
        for (rows, columns) in [(1, 40), (17, 33), (32, 16), (0, 3)] {
            let values: Vec<_> = (0..rows * columns).map(f64::from).collect();
            let wanted = (0..columns).flat_map(|c| (0..rows).map(move |r| f64::from(r * columns + c)));
            assert_eq!(transpose(&values, rows as usize), wanted.collect::<Vec<_>>());
        }
    }
}
