//! Blocks of integers with a scale each.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The choice of scales, zero points and integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockMethod {
    /// The range of the block, and the nearest integers.
    Round,
    /// The part of the range with the least squared error, and the nearest integers.
    Mse,
    /// The grid with the least `Σ|w - s·(q - z)|^p`, `p < 1`, by half-quadratic splitting (Badri and Shaji 2023).
    Hqq,
    /// Grids of `mse`, and integers with the least squared error of the outputs on samples (Frantar et al. 2023).
    Gptq,
}

/// The kind of grids.
#[derive(Clone, Copy, Debug)]
pub struct Grids {
    pub bits: u32,
    pub symmetric: bool,
    pub method: BlockMethod,
}

/// The grid of a block: `w ≈ scale·(q - zero)`, `q` from 0 to `top`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// As stored.
    pub scale: f64,
    pub zero: f64,
    top: f64,
}

/// Parts of the range that `mse` tries, in steps of 2.5 %. More than the range has integers on both ends of it.
const SHARES: std::ops::RangeInclusive<u32> = 16..=41;

impl Grid {
    /// The integer of a weight.
    pub fn code(&self, w: f64) -> f64 {
        (w / self.scale + self.zero).round_ties_even().clamp(0.0, self.top)
    }

    /// The weight after quantization.
    pub fn round(&self, w: f64) -> f64 {
        self.scale * (self.code(w) - self.zero)
    }
}

impl Grids {
    /// The kind for weights without statistics.
    pub fn without_samples(self) -> Self {
        let method = if self.method == BlockMethod::Gptq { BlockMethod::Mse } else { self.method };
        Self { method, ..self }
    }

    /// The grid of a block.
    pub fn fit(self, block: &[f64]) -> Grid {
        let full = self.range(block, 1.0);
        match self.method {
            BlockMethod::Round => full,
            BlockMethod::Hqq => self.half_quadratic(block, self.least_squares(block)),
            BlockMethod::Mse | BlockMethod::Gptq => self.least_squares(block),
        }
    }

    /// The grid of a scale and a zero point.
    fn grid(self, scale: f64, zero: f64) -> Grid {
        let top = f64::from((1_u32 << self.bits) - 1);
        // Rounded to single precision, in which it is stored.
        let scale = f64::from(scale as f32);
        let scale = if scale > 0.0 && scale.is_finite() { scale } else { 1.0 };
        Grid { scale, zero: zero.round_ties_even().clamp(0.0, top), top }
    }

    /// The zero point of symmetric grids.
    fn middle(self) -> f64 {
        f64::from(1_u32 << (self.bits - 1))
    }

    /// The grid of a part of the range of the block.
    fn range(self, block: &[f64], share: f64) -> Grid {
        if self.symmetric {
            let largest = block.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
            return self.grid(share * largest / (self.middle() - 1.0), self.middle());
        }
        let low = block.iter().fold(0.0_f64, |m, &w| m.min(w)) * share;
        let high = block.iter().fold(0.0_f64, |m, &w| m.max(w)) * share;
        let scale = (high - low) / f64::from((1_u32 << self.bits) - 1);
        self.grid(scale, if scale > 0.0 { -low / scale } else { 0.0 })
    }

    fn least_squares(self, block: &[f64]) -> Grid {
        let error = |grid: &Grid| block.iter().map(|&w| (w - grid.round(w)).powi(2)).sum::<f64>();
        let grids = SHARES.map(|step| self.range(block, f64::from(step) / 40.0));
        let errors = grids.map(|grid| (error(&grid), grid));
        let best = errors.min_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or_else(|| self.range(block, 1.0), |(_, grid)| grid)
    }

    /// Alternates between the outliers `e`, the integers, and the grid:
    ///
    /// ```text
    /// e ← shrink(w - s·(q - z))      shrink(r) = sign(r)·max(0, |r| - |r|^(p-1)/β)
    /// s ← Σ(w - e)(q - z) / Σ(q - z)²
    /// z ← mean(q - (w - e)/s)        unless symmetric
    /// ```
    fn half_quadratic(self, block: &[f64], start: Grid) -> Grid {
        const P: f64 = 0.7;
        const ROUNDS: usize = 20;
        let norm = |grid: &Grid| block.iter().map(|&w| (w - grid.round(w)).abs().powf(P)).sum::<f64>();
        // In units of the scale, β has a meaning for blocks of any size.
        let (mut best, mut grid, mut beta) = ((norm(&start), start), start, 10.0);
        for _ in 0..ROUNDS {
            let unit = grid.scale;
            let inliers: Vec<_> = block
                .iter()
                .map(|&w| {
                    let r = (w - grid.round(w)) / unit;
                    let shrunk =
                        if r == 0.0 { 0.0 } else { (r.abs() - r.abs().powf(P - 1.0) / beta).max(0.0) };
                    w - unit * shrunk * r.signum()
                })
                .collect();
            let steps: Vec<_> = block.iter().map(|&w| grid.code(w) - grid.zero).collect();
            let square: f64 = steps.iter().map(|q| q * q).sum();
            if square == 0.0 {
                break;
            }
            let scale = inliers.iter().zip(&steps).map(|(w, q)| w * q).sum::<f64>() / square;
            let shift =
                inliers.iter().zip(&steps).map(|(w, q)| q - w / scale).sum::<f64>() / block.len() as f64;
            let zero = if self.symmetric { grid.zero } else { grid.zero + shift };
            grid = self.grid(scale, zero);
            let error = norm(&grid);
            if error < best.0 {
                best = (error, grid);
            }
            beta *= 1.05;
        }
        best.1
    }
}

/// A matrix `[rows, width]` of integers, with a grid for each block of a row.
pub struct Blocks {
    pub rows: usize,
    pub width: usize,
    pub block: usize,
    pub bits: u32,
    pub symmetric: bool,
    /// Row-major.
    pub codes: Vec<u8>,
    /// The grids of the blocks of each row.
    pub grids: Vec<Grid>,
    /// `Σw²` and the squared error.
    energy: (f64, f64),
}

/// A quantized row: integers and grids.
pub type Row = (Vec<u8>, Vec<Grid>);

impl Blocks {
    /// Quantizes the rows to the nearest integers.
    pub fn new(rows: Vec<Vec<f64>>, block: usize, grids: Grids) -> Self {
        let quantized = rows.par_iter().map(|row| {
            let parts = row.chunks(block).map(|part| (part, grids.fit(part)));
            let (mut codes, mut fitted) = (vec![], vec![]);
            for (part, grid) in parts {
                codes.extend(part.iter().map(|&w| grid.code(w) as u8));
                fitted.push(grid);
            }
            (codes, fitted)
        });
        Self::of(&rows, quantized.collect(), block, grids)
    }

    /// The matrix of these quantized rows.
    pub fn of(rows: &[Vec<f64>], quantized: Vec<Row>, block: usize, grids: Grids) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let mut energy = (0.0, 0.0);
        for (row, (codes, grids)) in rows.iter().zip(&quantized) {
            for (j, (w, &q)) in row.iter().zip(codes).enumerate() {
                let grid = grids[j / block];
                energy.0 += w * w;
                energy.1 += (w - grid.scale * (f64::from(q) - grid.zero)).powi(2);
            }
        }
        let (codes, fitted): (Vec<_>, Vec<_>) = quantized.into_iter().unzip();
        Self {
            rows: rows.len(),
            width,
            block,
            bits: grids.bits,
            symmetric: grids.symmetric,
            codes: codes.concat(),
            grids: fitted.concat(),
            energy,
        }
    }

    /// The number of weights.
    pub fn count(&self) -> usize {
        self.rows * self.width
    }

    /// Blocks of a row.
    pub fn per_row(&self) -> usize {
        self.width.div_ceil(self.block)
    }

    /// Bytes of integers, scales and zero points.
    pub fn bytes(&self) -> u64 {
        let packed = |count: usize| (count * self.bits as usize).div_ceil(8);
        let blocks = self.rows * self.per_row();
        let zeros = if self.symmetric { 0 } else { self.rows * packed(self.per_row()) };
        (self.rows * packed(self.per_row() * self.block) + 4 * blocks + zeros) as u64
    }

    /// `Σw²` and the squared error.
    pub fn energy(&self) -> (f64, f64) {
        self.energy
    }

    /// The integers of the zero points, row-major.
    pub fn zeros(&self) -> Vec<u8> {
        self.grids.iter().map(|grid| grid.zero as u8).collect()
    }

    /// The scales, row-major.
    pub fn scales(&self) -> Vec<f32> {
        self.grids.iter().map(|grid| grid.scale as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(p: f64, block: &[f64], grid: Grid) -> f64 {
        block.iter().map(|&w| (w - grid.round(w)).abs().powf(p)).sum()
    }

    #[test]
    fn methods_minimise_their_errors() {
        let mut rng = fastrand::Rng::with_seed(1);
        for bits in [4, 8] {
            for symmetric in [true, false] {
                let mut sums = [[0.0; 2]; 3];
                for _ in 0..50 {
                    let mut block: Vec<f64> =
                        (0..32).map(|_| (0..4).map(|_| rng.f64() - 0.5).sum::<f64>()).collect();
                    block[7] = 3.0;
                    for (method, sums) in
                        [BlockMethod::Round, BlockMethod::Mse, BlockMethod::Hqq].into_iter().zip(&mut sums)
                    {
                        let grid = Grids { bits, symmetric, method }.fit(&block);
                        sums[0] += error(2.0, &block, grid);
                        sums[1] += error(0.7, &block, grid);
                    }
                }
                let [round, mse, hqq] = sums;
                assert!(mse[0] < round[0] && hqq[1] < mse[1], "{bits} {symmetric} {sums:?}");
            }
        }
    }

    #[test]
    fn zeros_and_ends_are_exact() {
        for symmetric in [true, false] {
            let grids = Grids { bits: 4, symmetric, method: BlockMethod::Round };
            assert_eq!(grids.fit(&[0.0; 16]).round(0.0), 0.0);
            let grid = grids.fit(&[-7.0, 0.0, 3.0, 7.0]);
            assert_eq!(grid.round(0.0), 0.0);
            assert!((grid.round(7.0) - 7.0).abs() < grid.scale, "{symmetric}");
        }
    }
}
