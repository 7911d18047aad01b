//! What is left makes up for what is gone: refits of single operators from statistics of the original alone.

use crate::{
    analysis::{
        calibration::{NotFinite, Ridge},
        groups::{Groups, Keep, roles::LinearRole},
        linear::{AffineMap, Linear},
        repair::not_finite,
    },
    framework::PassError,
    statistics::{Sums, par},
};
use faer::{Accum, Mat, MatRef, linalg::matmul::matmul};
use pare_graph::{Graph, NodeId, Patch};
use std::{borrow::Cow, collections::HashMap};

/// How the readers of removed channels are changed, from statistics of the original model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Local {
    /// Not at all.
    None,
    /// Removed channels count as constant at their mean: `b' = b + W_P·μ_P`.
    Mean,
    /// As their best affine estimate from the channels that stay, the same for all taps: `x_P ≈ T·x_S + t`.
    Merge(f64),
    /// All weights are fitted anew, `W' = (W·C_:S + δ·W_S)(C_SS + δ·I)⁻¹`, with this `λ`.
    Patch(f64),
}

/// The weights of an operator when of its inputs only `channels` and of group `q`'s outputs only `rows` are left.
pub struct Rest<'a> {
    /// What it computed.
    pub map: &'a AffineMap,
    /// Its inputs.
    pub sums: Option<&'a Sums>,
    /// Taps of a channel.
    pub taps: usize,
    /// Channels that are left.
    pub channels: &'a [usize],
    /// Outputs that are left.
    pub rows: &'a [usize],
    /// Whether it can have a bias.
    pub takes_bias: bool,
}

impl Rest<'_> {
    /// The refitted map.
    pub fn repaired(&self, how: Local) -> Result<AffineMap, NotFinite> {
        let (d, taps) = (self.map.weight.ncols(), self.taps);
        let columns: Vec<_> = self.channels.iter().flat_map(|&c| c * taps..(c + 1) * taps).collect();
        let all = Mat::from_fn(self.rows.len(), d, |i, j| self.map.weight[(self.rows[i], j)]);
        let bias: Vec<_> = self.rows.iter().map(|&r| self.map.bias[r]).collect();
        let cut = Mat::from_fn(all.nrows(), columns.len(), |i, j| all[(i, columns[j])]);
        let Some(sums) = self.sums.filter(|_| how != Local::None) else {
            return Ok(AffineMap { weight: cut, bias });
        };
        match how {
            Local::Mean => {
                let mut left = columns.iter().peekable();
                let gone: Vec<_> = (0..d).filter(|c| left.next_if(|l| *l == c).is_none()).collect();
                let lost = |i: usize| gone.iter().map(|&j| all[(i, j)] * sums.x_mean[j]).sum::<f64>();
                let bias = bias.iter().enumerate().map(|(i, b)| b + lost(i)).collect();
                Ok(AffineMap { weight: cut, bias })
            }
            Local::Merge(lambda) => self.merged(sums, &all, &bias, &cut, lambda),
            Local::None | Local::Patch(_) => {
                let Local::Patch(lambda) = how else { return Ok(AffineMap { weight: cut, bias }) };
                let gone = patch(sums, all.as_ref(), &columns, self.takes_bias, lambda)?;
                let bias = bias.iter().zip(&gone.bias).map(|(b, more)| b + more).collect();
                Ok(AffineMap { weight: cut + gone.weight, bias })
            }
        }
    }

    /// `W'[:,S,t] = W[:,S,t] + W[:,P,t]·T`, with `T` from the covariance of channels, averaged over the taps.
    fn merged(
        &self,
        sums: &Sums,
        all: &Mat<f64>,
        bias: &[f64],
        cut: &Mat<f64>,
        lambda: f64,
    ) -> Result<AffineMap, NotFinite> {
        let (taps, kept) = (self.taps, self.channels);
        let channels = sums.x_mean.len() / taps.max(1);
        let gone: Vec<_> = (0..channels).filter(|c| !kept.contains(c)).collect();
        let mean = |f: &dyn Fn(usize) -> f64| (0..taps).map(f).sum::<f64>() / taps as f64;
        let at = |c: usize, t: usize| c * taps + t;
        let of_channels = Sums {
            count: sums.count,
            x_mean: kept.iter().map(|&c| mean(&|t| sums.x_mean[at(c, t)])).collect(),
            y_mean: gone.iter().map(|&c| mean(&|t| sums.x_mean[at(c, t)])).collect(),
            xx: Mat::from_fn(kept.len(), kept.len(), |i, j| {
                mean(&|t| sums.xx[(at(kept[i], t), at(kept[j], t))])
            }),
            xy: Mat::from_fn(kept.len(), gone.len(), |i, j| {
                mean(&|t| sums.xx[(at(kept[i], t), at(gone[j], t))])
            }),
            yy: gone.iter().map(|&c| mean(&|t| sums.xx[(at(c, t), at(c, t))])).collect(),
        };
        let zero = Mat::zeros(gone.len(), kept.len());
        let merge = of_channels.ridge(zero.as_ref(), lambda)?;
        let share = |i: usize, j: usize| {
            let (s, t) = (j / taps, j % taps);
            cut[(i, j)]
                + (0..gone.len()).map(|p| all[(i, at(gone[p], t))] * merge.weight[(p, s)]).sum::<f64>()
        };
        let shift = |i: usize| {
            (0..gone.len())
                .map(|p| (0..taps).map(|t| all[(i, at(gone[p], t))]).sum::<f64>() * merge.bias[p])
                .sum::<f64>()
        };
        Ok(AffineMap {
            weight: Mat::from_fn(cut.nrows(), cut.ncols(), share),
            bias: (0..cut.nrows()).map(|i| bias[i] + shift(i)).collect(),
        })
    }
}

/// What the inputs `S` that are left add for those that are gone, `P`: `W_P·x_P ≈ V·x_S + v`,
/// `V = W_P·C_PS·(C_SS + δ·I)⁻¹`.
fn patch(
    sums: &Sums,
    weight: MatRef<'_, f64>,
    left: &[usize],
    takes_bias: bool,
    lambda: f64,
) -> Result<AffineMap, NotFinite> {
    let sums = if takes_bias { Cow::Borrowed(sums) } else { Cow::Owned(sums.about_zero()) };
    let mut stays = vec![false; weight.ncols()];
    left.iter().for_each(|&j| stays[j] = true);
    let gone: Vec<_> = (0..stays.len()).filter(|&j| !stays[j]).collect();
    let w_p = Mat::from_fn(weight.nrows(), gone.len(), |i, j| weight[(i, gone[j])]);
    let between = Mat::from_fn(left.len(), gone.len(), |i, j| sums.xx[(left[i], gone[j])]);
    let mut cross = Mat::zeros(left.len(), weight.nrows());
    let per_row = 1.0 / sums.count.max(1) as f64;
    matmul(cross.as_mut(), Accum::Replace, between.as_ref(), w_p.transpose(), per_row, par());
    let mean = |i: usize| gone.iter().enumerate().map(|(j, &p)| w_p[(i, j)] * sums.x_mean[p]).sum();
    let mean: Vec<f64> = (0..weight.nrows()).map(mean).collect();
    let none = Mat::zeros(weight.nrows(), left.len());
    Ridge::new(&sums.part(left), lambda)?.solve(cross.as_ref(), &mean, none.as_ref())
}

/// Sums over the inputs of each group of an operator, by its node.
pub type InputSums = HashMap<NodeId, Vec<Sums>>;

/// Refit every operator of `cut` that lost inputs, from the statistics of the original.
pub fn repair(
    original: &Graph,
    roles: &[LinearRole],
    sums: &InputSums,
    (groups, keep): (&Groups, &Keep),
    cut: &mut Graph,
    how: Local,
) -> Result<(), PassError> {
    if how == Local::None {
        return Ok(());
    }
    let mut patch: Option<Patch> = None;
    for role in roles {
        let Some(channels) = role.kept_inputs(groups, keep) else { continue };
        let new = if role.linear.is_quantized() {
            // What the bias cannot make up for would take other scales.
            Linear::of_quantized(cut.at(role.node)).ok().filter(Linear::takes_bias)
        } else {
            Linear::owned(cut, role.node)
        };
        let how = if role.linear.is_quantized() { Local::Mean } else { how };
        let (Some(maps), Some(new)) = (role.linear.maps(original), new) else { continue };
        let Some(inputs) = sums.get(&role.node) else { continue };
        let o = role.linear.outputs;
        let outputs =
            role.kept_outputs(groups, keep).unwrap_or_else(|| (0..o * role.linear.groups).collect());
        let (mut weights, mut bias) = (vec![], vec![]);
        for (q, map) in maps.iter().enumerate() {
            let rows: Vec<_> = outputs.iter().filter(|&&r| r / o == q).map(|r| r % o).collect();
            let rest = Rest {
                map,
                sums: inputs.get(q),
                taps: role.linear.taps(),
                channels: &channels,
                rows: &rows,
                takes_bias: role.linear.takes_bias(),
            };
            let repaired = rest.repaired(how).map_err(|e| not_finite(original, role.node, e))?;
            weights.push(repaired.weight);
            bias.extend(repaired.bias);
        }
        let patch = patch.get_or_insert_with(|| Patch::anchored(role.node));
        // A bias that its type cannot hold stays as it is.
        let _ = if new.is_quantized() {
            new.store_bias(cut, patch, &bias)
        } else {
            new.store(cut, patch, &weights, &bias)
        };
    }
    if let Some(patch) = patch {
        cut.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 2 is 2·x₀ - x₁ + 1, for every tap: whatever the weights, each repair but the mean is exact.
    #[test]
    fn what_the_others_know_is_not_lost() {
        let mut rng = fastrand::Rng::with_seed(5);
        let base: Vec<Vec<f32>> = (0..500).map(|_| (0..4).map(|_| rng.f32()).collect()).collect();
        let x = Mat::<f32>::from_fn(500, 6, |i, j| match j {
            0..4 => base[i][j],
            _ => 2.0 * base[i][j - 4] - base[i][j - 2] + 1.0,
        });
        let mut sums = Sums::new(6, 0);
        let data = (0..500).flat_map(|i| (0..6).map(|j| x[(i, j)]).collect::<Vec<_>>()).collect();
        sums.add_inputs(crate::statistics::Rows { width: 6, data }.all());
        let weight = Mat::from_fn(3, 6, |i, j| (i as f64 - 1.0) * 0.3 + j as f64 * 0.1);
        let map = AffineMap { weight, bias: vec![0.1, 0.2, 0.3] };
        let rest = |channels: &'static [usize]| Rest {
            map: &map,
            sums: Some(&sums),
            taps: 2,
            channels,
            rows: &[0, 2],
            takes_bias: true,
        };
        for how in [Local::Merge(1e-9), Local::Patch(1e-9)] {
            let got = rest(&[0, 1]).repaired(how).unwrap();
            assert_eq!((got.weight.nrows(), got.weight.ncols()), (2, 4));
            for (i, row) in [0, 2].into_iter().enumerate() {
                for r in 0..500 {
                    let full: f64 = (0..6).map(|j| map.weight[(row, j)] * f64::from(x[(r, j)])).sum();
                    let part: f64 = (0..4).map(|j| got.weight[(i, j)] * f64::from(x[(r, j)])).sum();
                    assert!((full + map.bias[row] - part - got.bias[i]).abs() < 1e-4, "{how:?}");
                }
            }
        }
        let mean = rest(&[0, 2]).repaired(Local::Mean).unwrap();
        let lost: f64 = (2..4).map(|j| map.weight[(2, j)] * sums.x_mean[j]).sum();
        assert!((mean.bias[1] - 0.3 - lost).abs() < 1e-12);
        assert_eq!(mean.weight[(1, 2)], map.weight[(2, 4)]);
    }
}
