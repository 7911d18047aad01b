//! Local repair: each reader of removed channels is refitted on its own, from statistics of the original
//! model.

use crate::{
    analysis::{
        calibration::{NotFinite, Ridge, damped_inverse},
        groups::{Groups, Keep, roles::LinearRole},
        linear::{AffineMap, Linear},
        repair::not_finite,
    },
    framework::PassError,
    statistics::{Sums, par},
};
use faer::{
    Accum, Mat, MatRef, Side,
    linalg::{
        matmul::matmul,
        solvers::{Llt, Solve},
    },
};
use pare_graph::{Graph, NodeId, Patch};
use std::{borrow::Cow, cell::RefCell, collections::HashMap, rc::Rc};

/// The change to the readers of removed channels, computed from statistics of the original model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LocalRepair {
    /// No change.
    None,
    /// Removed channels `P` are replaced by their mean: `b' = b + W_P·μ_P`.
    Mean,
    /// Removed channels are replaced by their best affine estimate from the kept channels `S`, the same for
    /// all taps: `x_P ≈ T·x_S + t`, fitted with this `λ`.
    Merge(f64),
    /// All weights are refitted, `W' = (W·C_:S + δ·W_S)(C_SS + δ·I)⁻¹`, with this `λ`.
    Patch(f64),
}

/// A linear operator restricted to the kept input channels and the kept output rows.
pub struct PrunedOperator<'a> {
    /// The affine map of the original operator.
    pub map: &'a AffineMap,
    /// Sums over its inputs.
    pub sums: Option<&'a Sums>,
    /// Number of kernel taps of each channel.
    pub taps: usize,
    /// The kept input channels.
    pub channels: &'a [usize],
    /// The kept outputs.
    pub rows: &'a [usize],
    /// True if the operator accepts a bias.
    pub takes_bias: bool,
    /// `(C + δ·I)⁻¹` of all inputs, for a patch that removes few of them.
    pub inverse: Option<Rc<Mat<f64>>>,
}

impl PrunedOperator<'_> {
    /// Returns the repaired map of the kept channels and rows.
    pub fn repaired(&self, repair: LocalRepair) -> Result<AffineMap, NotFinite> {
        let (d, taps) = (self.map.weight.ncols(), self.taps);
        let columns: Vec<_> = self.channels.iter().flat_map(|&c| c * taps..(c + 1) * taps).collect();
        let all = Mat::from_fn(self.rows.len(), d, |i, j| self.map.weight[(self.rows[i], j)]);
        let bias: Vec<_> = self.rows.iter().map(|&r| self.map.bias[r]).collect();
        let weight = Mat::from_fn(all.nrows(), columns.len(), |i, j| all[(i, columns[j])]);
        let Some(sums) = self.sums else { return Ok(AffineMap { weight, bias }) };
        match repair {
            LocalRepair::None => Ok(AffineMap { weight, bias }),
            LocalRepair::Mean => {
                let removed = complement(&columns, d);
                let mean = |i: usize| removed.iter().map(|&j| all[(i, j)] * sums.x_mean[j]).sum::<f64>();
                let bias = bias.iter().enumerate().map(|(i, b)| b + mean(i)).collect();
                Ok(AffineMap { weight, bias })
            }
            LocalRepair::Merge(lambda) => self.merged(sums, &all, AffineMap { weight, bias }, lambda),
            LocalRepair::Patch(lambda) => {
                let correction = match &self.inverse {
                    Some(inverse) => {
                        let zero = vec![0.0; if self.takes_bias { 0 } else { d }];
                        let mean = if self.takes_bias { &sums.x_mean } else { &zero };
                        correction_by(inverse, mean, all.as_ref(), &columns)?
                    }
                    None => correction(&sums_of_fit(sums, self.takes_bias), all.as_ref(), &columns, lambda)?,
                };
                let bias = bias.iter().zip(&correction.bias).map(|(b, more)| b + more).collect();
                Ok(AffineMap { weight: weight + correction.weight, bias })
            }
        }
    }

    /// `W'[:,S,t] = W[:,S,t] + W[:,P,t]·T`, with `T` from the covariance of channels, averaged over the taps.
    /// `all` holds the kept rows with all columns, `kept` the kept columns.
    fn merged(
        &self,
        sums: &Sums,
        all: &Mat<f64>,
        kept: AffineMap,
        lambda: f64,
    ) -> Result<AffineMap, NotFinite> {
        let (taps, stay) = (self.taps, self.channels);
        let removed = complement(stay, sums.x_mean.len() / taps.max(1));
        let mean = |f: &dyn Fn(usize) -> f64| (0..taps).map(f).sum::<f64>() / taps as f64;
        let at = |c: usize, t: usize| c * taps + t;
        let of_channels = Sums {
            count: sums.count,
            x_mean: stay.iter().map(|&c| mean(&|t| sums.x_mean[at(c, t)])).collect(),
            y_mean: removed.iter().map(|&c| mean(&|t| sums.x_mean[at(c, t)])).collect(),
            xx: Mat::from_fn(stay.len(), stay.len(), |i, j| {
                mean(&|t| sums.xx[(at(stay[i], t), at(stay[j], t))])
            }),
            xy: Mat::from_fn(stay.len(), removed.len(), |i, j| {
                mean(&|t| sums.xx[(at(stay[i], t), at(removed[j], t))])
            }),
            yy: removed.iter().map(|&c| mean(&|t| sums.xx[(at(c, t), at(c, t))])).collect(),
        };
        let zero = Mat::zeros(removed.len(), stay.len());
        let merge = of_channels.ridge(zero.as_ref(), lambda)?;
        let weight = |i: usize, j: usize| {
            let (s, t) = (j / taps, j % taps);
            kept.weight[(i, j)]
                + (0..removed.len()).map(|p| all[(i, at(removed[p], t))] * merge.weight[(p, s)]).sum::<f64>()
        };
        let shift = |i: usize| {
            (0..removed.len())
                .map(|p| (0..taps).map(|t| all[(i, at(removed[p], t))]).sum::<f64>() * merge.bias[p])
                .sum::<f64>()
        };
        let (rows, columns) = (kept.weight.nrows(), kept.weight.ncols());
        Ok(AffineMap {
            weight: Mat::from_fn(rows, columns, weight),
            bias: (0..rows).map(|i| kept.bias[i] + shift(i)).collect(),
        })
    }
}

/// The indices below `size` that are not in `kept`, ascending.
fn complement(kept: &[usize], size: usize) -> Vec<usize> {
    let mut stays = vec![false; size];
    kept.iter().for_each(|&i| stays[i] = true);
    (0..size).filter(|&i| !stays[i]).collect()
}

/// The sums of a fit with a bias, or without one about zero.
fn sums_of_fit(sums: &Sums, takes_bias: bool) -> Cow<'_, Sums> {
    if takes_bias { Cow::Borrowed(sums) } else { Cow::Owned(sums.about_zero()) }
}

/// The term that the kept inputs `S` add for the removed inputs `P`: `W_P·x_P ≈ V·x_S + v`,
/// `V = W_P·C_PS·(C_SS + δ·I)⁻¹`.
fn correction(
    sums: &Sums,
    weight: MatRef<'_, f64>,
    kept: &[usize],
    lambda: f64,
) -> Result<AffineMap, NotFinite> {
    let removed = complement(kept, weight.ncols());
    let w_p = Mat::from_fn(weight.nrows(), removed.len(), |i, j| weight[(i, removed[j])]);
    let between = Mat::from_fn(kept.len(), removed.len(), |i, j| sums.xx[(kept[i], removed[j])]);
    let mut cross = Mat::zeros(kept.len(), weight.nrows());
    let per_row = 1.0 / sums.count.max(1) as f64;
    matmul(cross.as_mut(), Accum::Replace, between.as_ref(), w_p.transpose(), per_row, par());
    let mean = |i: usize| removed.iter().enumerate().map(|(j, &p)| w_p[(i, j)] * sums.x_mean[p]).sum();
    let mean: Vec<f64> = (0..weight.nrows()).map(mean).collect();
    let prior = Mat::zeros(weight.nrows(), kept.len());
    Ridge::new(&sums.part(kept), lambda)?.solve(cross.as_ref(), &mean, prior.as_ref())
}

/// As [`correction`], from `Q = (C + δ·I)⁻¹` of all inputs and their `mean` (zero without a bias):
/// `V = -W_P·Q_PP⁻¹·Q_PS` (inverse of a block matrix), a system of the size of `P` instead of that of `S`.
fn correction_by(
    inverse: &Mat<f64>,
    mean: &[f64],
    weight: MatRef<'_, f64>,
    kept: &[usize],
) -> Result<AffineMap, NotFinite> {
    let removed = complement(kept, weight.ncols());
    let part = |rows: &[usize], columns: &[usize]| {
        Mat::from_fn(rows.len(), columns.len(), |i, j| inverse[(rows[i], columns[j])])
    };
    let w_p = Mat::from_fn(removed.len(), weight.nrows(), |i, j| weight[(j, removed[i])]);
    let factor = Llt::new(part(&removed, &removed).as_ref(), Side::Lower).map_err(|_| NotFinite)?;
    let solved = factor.solve(&w_p);
    let mut v = Mat::zeros(weight.nrows(), kept.len());
    matmul(v.as_mut(), Accum::Replace, solved.transpose(), part(&removed, kept).as_ref(), -1.0, par());
    let shift = |o: usize| {
        let lost: f64 = removed.iter().enumerate().map(|(i, &p)| w_p[(i, o)] * mean[p]).sum();
        let estimated: f64 = kept.iter().enumerate().map(|(j, &s)| v[(o, j)] * mean[s]).sum();
        lost - estimated
    };
    let bias: Vec<f64> = (0..weight.nrows()).map(shift).collect();
    if bias.iter().all(|b| b.is_finite()) { Ok(AffineMap { weight: v, bias }) } else { Err(NotFinite) }
}

/// Inverse covariances of readers, computed once for all candidates that remove few of their inputs, as groups
/// do that are concatenated with many others.
#[derive(Default)]
pub struct DampedInverses(RefCell<HashMap<(NodeId, usize), Rc<Mat<f64>>>>);

impl DampedInverses {
    /// Most inputs of a reader: the inverses of all readers are held at once.
    const MAX_INPUTS: usize = 1024;

    /// The inverse for convolution group `q` of a reader, unless many inputs are removed.
    fn get(
        &self,
        (node, q): (NodeId, usize),
        (sums, takes_bias): (&Sums, bool),
        removed: usize,
        lambda: f64,
    ) -> Result<Option<Rc<Mat<f64>>>, NotFinite> {
        let inputs = sums.x_mean.len();
        if inputs > Self::MAX_INPUTS || 4 * removed > inputs {
            return Ok(None);
        }
        if let Some(known) = self.0.borrow().get(&(node, q)) {
            return Ok(Some(known.clone()));
        }
        let inverse = Rc::new(damped_inverse(sums_of_fit(sums, takes_bias).covariance(), lambda)?);
        self.0.borrow_mut().insert((node, q), inverse.clone());
        Ok(Some(inverse))
    }
}

/// Sums over the inputs of each group of an operator, by its node.
pub type InputSums = HashMap<NodeId, Vec<Sums>>;

/// The local repair of all operators that lose inputs.
pub struct ReaderRepair<'a> {
    /// The graph before the removal.
    pub original: &'a Graph,
    /// Its linear operators.
    pub roles: &'a [LinearRole],
    /// Sums over their inputs.
    pub sums: &'a InputSums,
    /// Its groups.
    pub groups: &'a Groups,
    /// The kept units.
    pub keep: &'a Keep,
    /// The repair of each operator.
    pub repair: LocalRepair,
    /// Inverses that several candidates share; without, each is repaired by itself.
    pub inverses: Option<&'a DampedInverses>,
}

impl ReaderRepair<'_> {
    /// Repairs every operator of `pruned` that lost inputs.
    pub fn apply(&self, pruned: &mut Graph) -> Result<(), PassError> {
        if self.repair == LocalRepair::None {
            return Ok(());
        }
        let mut patch: Option<Patch> = None;
        for role in self.roles {
            let Some(channels) = role.kept_inputs(self.groups, self.keep) else { continue };
            let quantized = role.linear.is_quantized();
            let new = if quantized {
                // Only the bias is changed: other weights would need other scales.
                Linear::of_quantized(pruned.at(role.node)).ok().filter(Linear::takes_bias)
            } else {
                Linear::owned(pruned, role.node)
            };
            let repair = if quantized { LocalRepair::Mean } else { self.repair };
            let (Some(maps), Some(new)) = (role.linear.maps(self.original), new) else { continue };
            let Some(inputs) = self.sums.get(&role.node) else { continue };
            let o = role.linear.outputs;
            let outputs = role
                .kept_outputs(self.groups, self.keep)
                .unwrap_or_else(|| (0..o * role.linear.groups).collect());
            let (mut weights, mut bias) = (vec![], vec![]);
            for (q, map) in maps.iter().enumerate() {
                let rows: Vec<_> = outputs.iter().filter(|&&r| r / o == q).map(|r| r % o).collect();
                let taps = role.linear.taps();
                let name = |e| not_finite(self.original, role.node, e);
                let inverse = match (self.inverses, repair, inputs.get(q)) {
                    (Some(shared), LocalRepair::Patch(lambda), Some(sums)) => {
                        let removed = map.weight.ncols().saturating_sub(channels.len() * taps);
                        let fit = (sums, role.linear.takes_bias());
                        shared.get((role.node, q), fit, removed, lambda).map_err(name)?
                    }
                    _ => None,
                };
                let operator = PrunedOperator {
                    map,
                    sums: inputs.get(q),
                    taps,
                    channels: &channels,
                    rows: &rows,
                    takes_bias: role.linear.takes_bias(),
                    inverse,
                };
                let repaired = operator.repaired(repair).map_err(name)?;
                weights.push(repaired.weight);
                bias.extend(repaired.bias);
            }
            let patch = patch.get_or_insert_with(|| Patch::anchored(role.node));
            // A bias that its type cannot represent stays unchanged.
            let _ = if new.is_quantized() {
                new.store_bias(pruned, patch, &bias)
            } else {
                new.store(pruned, patch, &weights, &bias)
            };
        }
        if let Some(patch) = patch {
            pruned.apply(patch).map_err(PassError::from_error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 2 is 2·x₀ - x₁ + 1 at every tap, so `Merge` and `Patch` are exact whatever the weights are.
    #[test]
    fn repairs_linearly_dependent_channels_exactly() {
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
        let operator = |channels: &'static [usize]| PrunedOperator {
            map: &map,
            sums: Some(&sums),
            taps: 2,
            channels,
            rows: &[0, 2],
            takes_bias: true,
            inverse: None,
        };
        for repair in [LocalRepair::Merge(1e-9), LocalRepair::Patch(1e-9)] {
            let got = operator(&[0, 1]).repaired(repair).unwrap();
            assert_eq!((got.weight.nrows(), got.weight.ncols()), (2, 4));
            for (i, row) in [0, 2].into_iter().enumerate() {
                for r in 0..500 {
                    let full: f64 = (0..6).map(|j| map.weight[(row, j)] * f64::from(x[(r, j)])).sum();
                    let part: f64 = (0..4).map(|j| got.weight[(i, j)] * f64::from(x[(r, j)])).sum();
                    assert!((full + map.bias[row] - part - got.bias[i]).abs() < 1e-4, "{repair:?}");
                }
            }
        }
        // The shared inverse gives the same correction, up to its δ.
        let inverse = Some(Rc::new(damped_inverse(sums.covariance(), 1e-9).unwrap()));
        let patch = LocalRepair::Patch(1e-9);
        let by_inverse = PrunedOperator { inverse, ..operator(&[0, 1]) }.repaired(patch).unwrap();
        let by_itself = operator(&[0, 1]).repaired(patch).unwrap();
        for (i, j) in [(0, 0), (0, 3), (1, 1), (1, 2)] {
            assert!((by_inverse.weight[(i, j)] - by_itself.weight[(i, j)]).abs() < 1e-5);
        }
        assert!((by_inverse.bias[1] - by_itself.bias[1]).abs() < 1e-5);
        let mean = operator(&[0, 2]).repaired(LocalRepair::Mean).unwrap();
        let removed: f64 = (2..4).map(|j| map.weight[(2, j)] * sums.x_mean[j]).sum();
        assert!((mean.bias[1] - 0.3 - removed).abs() < 1e-12);
        assert_eq!(mean.weight[(1, 2)], map.weight[(2, 4)]);
    }
}
