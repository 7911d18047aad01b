//! Rounding of column after column, with the error of each compensated by the columns after it.
//!
//! For inputs with the second moments `H = E[x·xᵀ] + δ·I` and the Cholesky factor `U` of `H⁻¹ = Uᵀ·U`, the
//! weights that keep the outputs closest after `w_j` became `ŵ_j` are (Frantar et al. 2023)
//!
//! ```text
//! w_k ← w_k - (w_j - ŵ_j)·U_jk / U_jj        k > j
//! ```

use super::blocks::{Blocks, Grid, Grids, Row};
use crate::analysis::calibration::{NotFinite, damped_inverse};
use faer::{Mat, Side, linalg::solvers::Llt};
use rayon::prelude::*;

/// The share of the mean of the diagonal that is added to it.
const DAMPING: f64 = 0.01;

/// Quantizes rows with inputs of these second moments.
///
/// # Errors
/// If the moments are not finite.
pub fn quantize(
    rows: Vec<Vec<f64>>,
    moments: Mat<f64>,
    block: usize,
    grids: Grids,
) -> Result<Blocks, NotFinite> {
    let inverse = damped_inverse(moments, DAMPING)?;
    let factor = Llt::new(inverse.as_ref(), Side::Lower).map_err(|_| NotFinite)?;
    let lower = factor.L();
    // Row j of U is column j of its transpose.
    let upper: Vec<Vec<f64>> = (0..lower.ncols())
        .map(|j| (j..lower.nrows()).map(|k| lower[(k, j)] / lower[(j, j)]).collect())
        .collect();
    let quantized = rows.par_iter().map(|row| {
        let mut row = row.clone();
        quantize_row(&mut row, &upper, block, grids)
    });
    let quantized = quantized.collect();
    Ok(Blocks::of(&rows, quantized, block, grids))
}

/// Quantizes a row; `upper[j][k - j] = U_jk / U_jj`.
fn quantize_row(row: &mut [f64], upper: &[Vec<f64>], block: usize, grids: Grids) -> Row {
    let (mut codes, mut fitted): (Vec<u8>, Vec<Grid>) = (vec![], vec![]);
    let width = row.len();
    for start in (0..width).step_by(block) {
        let end = (start + block).min(width);
        let grid = grids.fit(&row[start..end]);
        fitted.push(grid);
        for j in start..end {
            let w = row[j];
            codes.push(grid.code(w) as u8);
            let error = w - grid.round(w);
            row[j..].iter_mut().zip(&upper[j]).for_each(|(w, u)| *w -= error * u);
        }
    }
    (codes, fitted)
}

#[cfg(test)]
mod tests {
    use super::{super::blocks::BlockMethod, *};

    /// The squared error of the outputs.
    fn error(rows: &[Vec<f64>], blocks: &Blocks, moments: &Mat<f64>) -> f64 {
        let mut sum = 0.0;
        for (r, row) in rows.iter().enumerate() {
            let difference: Vec<f64> = (0..row.len())
                .map(|j| {
                    let grid = blocks.grids[r * blocks.per_row() + j / blocks.block];
                    row[j] - grid.scale * (f64::from(blocks.codes[r * blocks.width + j]) - grid.zero)
                })
                .collect();
            for (i, a) in difference.iter().enumerate() {
                sum += difference.iter().enumerate().map(|(j, b)| a * b * moments[(i, j)]).sum::<f64>();
            }
        }
        sum
    }

    #[test]
    fn error_of_outputs_is_less_than_that_of_rounding() {
        let mut rng = fastrand::Rng::with_seed(3);
        let width = 64;
        let rows: Vec<Vec<f64>> = (0..8).map(|_| (0..width).map(|_| rng.f64() - 0.5).collect()).collect();
        let factors = Mat::from_fn(8, width, |_, _| rng.f64() - 0.5);
        let noise = Mat::from_fn(width, width, |i, j| if i == j { 0.02 } else { 0.0 });
        let moments = factors.transpose() * &factors + noise;
        let grids = Grids { bits: 4, symmetric: true, method: BlockMethod::Gptq };
        let fitted = quantize(rows.clone(), moments.clone(), 16, grids).unwrap();
        let rounded = Blocks::new(rows.clone(), 16, grids);
        let (fitted, rounded) = (error(&rows, &fitted, &moments), error(&rows, &rounded, &moments));
        assert!(fitted < 0.5 * rounded, "{fitted} {rounded}");
    }
}
