//! Calibration of the ranges of activations: `x ≈ s·(q - z)`, `q` from 0 to 255.

use super::plan::QuantizationPlan;
use crate::{
    analysis::calibration::{floats, observe},
    framework::{PassError, Tools},
};
use pare_graph::{Model, NodeId, ValueId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// The choice of the range of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ranges {
    /// From the smallest to the largest value.
    Minmax,
    /// Without the outermost values.
    Percentile,
    /// The range with the least squared error of rounding inside and clipping outside.
    Mse,
}

/// A scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// `s`, as stored.
    pub scale: f64,
    /// `z`.
    pub zero: u8,
}

/// The grids of the inputs of layers, by node.
pub type InputGrids = HashMap<NodeId, Grid>;

/// Bins of a histogram.
const BINS: usize = 2048;
const STEPS: f64 = 255.0;

impl Grid {
    /// The grid between two ends, extended to contain zero.
    pub fn between(low: f64, high: f64) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = f64::from(((high - low) / STEPS) as f32);
        // All values are zero.
        if !(scale > 0.0) {
            return Self { scale: 1.0, zero: 0 };
        }
        Self { scale, zero: (-low / scale).round().clamp(0.0, STEPS) as u8 }
    }

    /// The value after quantization and dequantization.
    pub fn round(&self, x: f64) -> f64 {
        let zero = f64::from(self.zero);
        self.scale * ((x / self.scale).round_ties_even() + zero).clamp(0.0, STEPS) - self.scale * zero
    }
}

/// Counts of values, in bins of equal width between two ends.
#[derive(Clone, Debug)]
struct Histogram {
    low: f64,
    high: f64,
    bins: Vec<u64>,
}

impl Histogram {
    fn centre(&self, bin: usize) -> f64 {
        self.low + (self.high - self.low) * (bin as f64 + 0.5) / BINS as f64
    }

    fn add(&mut self, values: &[f32]) {
        let per = BINS as f64 / (self.high - self.low).max(f64::MIN_POSITIVE);
        for &v in values {
            let bin = ((f64::from(v) - self.low) * per) as usize;
            self.bins[bin.min(BINS - 1)] += 1;
        }
    }

    /// The range of this percentage of the values, with equal shares excluded above and below. For
    /// non-negative values, such as outputs of a ReLU, all are excluded above.
    fn percentile(&self, percent: f64) -> (f64, f64) {
        let total: u64 = self.bins.iter().sum();
        let cut = (1.0 - percent / 100.0) * total as f64;
        let one_sided = self.low >= 0.0;
        let end = |mut bins: Box<dyn Iterator<Item = usize>>, cut: f64| {
            let mut seen = 0.0;
            bins.by_ref().find(|&b| {
                seen += self.bins[b] as f64;
                seen > cut
            })
        };
        let high = end(Box::new((0..BINS).rev()), if one_sided { cut } else { cut / 2.0 });
        let low = if one_sided { None } else { end(Box::new(0..BINS), cut / 2.0) };
        (low.map_or(self.low, |b| self.centre(b)), high.map_or(self.high, |b| self.centre(b)))
    }

    /// The range with the least squared error, among proportional reductions of the full range.
    fn least_squares(&self) -> (f64, f64) {
        let error = |share: f64| {
            let grid = Grid::between(self.low * share, self.high * share);
            let squared_error = |(b, &n): (usize, &u64)| {
                if n == 0 {
                    return 0.0;
                }
                let x = self.centre(b);
                let outside = x < self.low * share || x > self.high * share;
                // Inside the range the error is uniform over a step.
                n as f64 * if outside { (x - grid.round(x)).powi(2) } else { grid.scale.powi(2) / 12.0 }
            };
            self.bins.iter().enumerate().map(squared_error).sum::<f64>()
        };
        let shares = (0..=70).map(|i| 1.0 - f64::from(i) / 100.0);
        let best = shares.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(1.0);
        (self.low * best, self.high * best)
    }
}

/// Computes the grid of every value of the plan, and of those whose range others have.
pub fn calibrate(
    tools: Tools<'_>,
    model: &Model,
    plan: &QuantizationPlan,
    samples: Range<usize>,
    ranges: Ranges,
    percentile: f64,
) -> Result<BTreeMap<ValueId, Grid>, PassError> {
    let mut wanted: Vec<_> = plan.values.iter().flat_map(|v| [v.value, v.range]).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut ends = vec![(0.0_f64, 0.0_f64); wanted.len()];
    observe(tools, model, &wanted, samples.clone(), "ranges", &mut |_, values| {
        for ((low, high), value) in ends.iter_mut().zip(values) {
            for &v in floats(value)?.iter() {
                (*low, *high) = (low.min(f64::from(v)), high.max(f64::from(v)));
                if !v.is_finite() {
                    *high = f64::INFINITY;
                }
            }
        }
        Ok(())
    })?;
    if let Some((&value, _)) = wanted.iter().zip(&ends).find(|(_, e)| !(e.1 - e.0).is_finite()) {
        let name = &model.graph.value(value).name;
        return Err(PassError::refused(format!("`{name}` is not finite on the samples")));
    }
    if ranges != Ranges::Minmax {
        let empty = |&(low, high): &(f64, f64)| Histogram { low, high, bins: vec![0; BINS] };
        let mut histograms: Vec<_> = ends.iter().map(empty).collect();
        observe(tools, model, &wanted, samples, "histograms", &mut |_, values| {
            for (histogram, value) in histograms.iter_mut().zip(values) {
                histogram.add(&floats(value)?);
            }
            Ok(())
        })?;
        let choose = |h: &Histogram| match ranges {
            Ranges::Percentile => h.percentile(percentile),
            _ => h.least_squares(),
        };
        ends = histograms.iter().map(choose).collect();
    }
    Ok(wanted.iter().copied().zip(ends.iter().map(|&(low, high)| Grid::between(low, high))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grid_contains_zero() {
        for (low, high) in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)] {
            let grid = Grid::between(low, high);
            assert_eq!(grid.round(0.0), 0.0);
            let ends = (grid.round(low.min(0.0)), grid.round(high.max(0.0)));
            assert!(
                (ends.0 - low.min(0.0)).abs() <= grid.scale && (ends.1 - high.max(0.0)).abs() <= grid.scale
            );
        }
    }

    #[test]
    fn clips_outliers_if_that_reduces_the_error() {
        let mut rng = fastrand::Rng::with_seed(1);
        // Uniform up to 1, except for one value of 10 in ten thousand.
        let values: Vec<f32> = (0..100_000).map(|i| if i % 10_000 == 0 { 10.0 } else { rng.f32() }).collect();
        let mut histogram = Histogram { low: 0.0, high: 10.0, bins: vec![0; BINS] };
        histogram.add(&values);
        assert!((histogram.percentile(99.9).1 - 1.0).abs() < 0.02);
        let (low, high) = histogram.least_squares();
        assert_eq!(low, 0.0);
        let error = |high: f64| {
            let grid = Grid::between(0.0, high);
            values.iter().map(|&v| (f64::from(v) - grid.round(f64::from(v))).powi(2)).sum::<f64>()
        };
        // No other range has a smaller error on the values themselves.
        for share in [0.2, 0.4, 0.6, 0.8, 1.0] {
            assert!(error(high) <= 1.02 * error(10.0 * share), "{high}: {share}");
        }
    }
}
