//! From scores to masks: the weights with the lowest scores are removed, within the budget and the pattern.

use crate::analysis::weighted_layers::{Kept, WeightedLayer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, ops::Range, str::FromStr};

/// The positions of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere.
    Free,
    /// `n:m`: `n` of every `m` inputs in a row remain (consecutive channels of one tap).
    Of(usize, usize),
    /// Blocks of this many consecutive weights of a row are removed together.
    Block(usize),
}

/// The default size of a block: 16 floats are a vector register and a cache line.
const BLOCK: usize = 16;

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free => f.write_str("free"),
            Self::Of(n, m) => write!(f, "{n}:{m}"),
            Self::Block(size) => write!(f, "block{size}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a pattern: `free`, `2:4` or another `n:m`, `block` or `block8`");
        if text == "free" {
            return Ok(Self::Free);
        }
        if let Some(size) = text.strip_prefix("block") {
            let size = if size.is_empty() { BLOCK } else { size.parse().map_err(|_| wrong())? };
            return if size > 0 { Ok(Self::Block(size)) } else { Err(wrong()) };
        }
        let (n, m) = text.split_once(':').ok_or_else(wrong)?;
        let (n, m) = (n.parse().map_err(|_| wrong())?, m.parse().map_err(|_| wrong())?);
        if n > 0 && n < m { Ok(Self::Of(n, m)) } else { Err(wrong()) }
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The weights to remove.
#[derive(Clone, Debug)]
pub enum Budget {
    /// This share of all weights.
    All(f64),
    /// This share of each layer.
    Each(Vec<f64>),
    /// This share of each row.
    Row(f64),
}

/// The groups of `m` inputs of a row in an `n:m` pattern; `None` if `m` does not divide the channels.
pub fn n_of_m_groups(layer: &WeightedLayer, m: usize) -> Option<Vec<Vec<usize>>> {
    let (channels, taps) = (layer.linear.channels, layer.linear.taps());
    if channels % m != 0 {
        return None;
    }
    let group = |g: usize| {
        let (tap, first) = (g % taps, g / taps * m);
        (first..first + m).map(|c| c * taps + tap).collect()
    };
    Some((0..taps * (channels / m)).map(group).collect())
}

/// Consecutive weights of a row that are removed together.
#[derive(Clone)]
struct Unit {
    /// The mean score of its weights.
    score: f64,
    layer: usize,
    /// Its weights in the layer, row-major.
    weights: Range<usize>,
}

/// Returns the masks after removing the weights with the lowest scores. Scores are squares, so those of a
/// block are averaged.
pub fn select(
    scores: &[Vec<f64>],
    layers: &[&WeightedLayer],
    pattern: Pattern,
    budget: &Budget,
) -> Vec<Kept> {
    let size = match pattern {
        Pattern::Of(n, m) => {
            return layers.iter().zip(scores).map(|(l, s)| select_n_of_m(l, s, n, m)).collect();
        }
        Pattern::Block(size) => size,
        Pattern::Free => 1,
    };
    let mut kept: Vec<Kept> = layers.iter().map(|l| vec![true; l.count()]).collect();
    let mut remove = |mut units: Vec<Unit>, share: f64| {
        units.sort_by(|a, b| a.score.total_cmp(&b.score));
        let all: usize = units.iter().map(|u| u.weights.len()).sum();
        let mut remaining = (all as f64 * share).round() as usize;
        for unit in units {
            if unit.weights.len() > remaining {
                break;
            }
            remaining -= unit.weights.len();
            kept[unit.layer][unit.weights].fill(false);
        }
    };
    // The units of a layer, row by row.
    let units = |layer: usize| -> Vec<Unit> {
        let d = layers[layer].linear.width().max(1);
        let unit = |first: usize, scores: &[f64]| Unit {
            score: scores.iter().sum::<f64>() / scores.len() as f64,
            layer,
            weights: first..first + scores.len(),
        };
        let row = |(r, row): (usize, &[f64])| {
            row.chunks(size).enumerate().map(|(b, chunk)| unit(r * d + b * size, chunk)).collect::<Vec<_>>()
        };
        scores[layer].chunks(d).enumerate().flat_map(row).collect()
    };
    match budget {
        Budget::All(share) => remove((0..layers.len()).flat_map(units).collect(), *share),
        Budget::Each(shares) => (0..layers.len()).for_each(|l| remove(units(l), shares[l])),
        Budget::Row(share) => {
            for l in 0..layers.len() {
                let per_row = layers[l].linear.width().div_ceil(size).max(1);
                units(l).chunks(per_row).for_each(|row| remove(row.to_vec(), *share));
            }
        }
    }
    kept
}

fn select_n_of_m(layer: &WeightedLayer, scores: &[f64], n: usize, m: usize) -> Kept {
    let mut kept = vec![true; layer.count()];
    let Some(groups) = n_of_m_groups(layer, m) else { return kept };
    let d = layer.linear.width();
    for row in 0..layer.rows() {
        for group in &groups {
            let mut group: Vec<_> = group.iter().map(|j| row * d + j).collect();
            group.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            group[..m - n].iter().for_each(|&k| kept[k] = false);
        }
    }
    kept
}

/// A measured point of the curve of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// The share of the weights that remain.
    pub share: f64,
    /// The loss with these weights.
    pub loss: f64,
}

/// Returns the share of weights to keep in each layer that minimises the summed loss with at most `budget`
/// weights.
///
/// `counts` are the weights of the layers, `curves` their measured levels, from share 1 downwards,
/// interpolated linearly. By Lagrange, at a given price per weight each layer takes its cheapest level;
/// bisection finds the price.
pub fn allocate(counts: &[usize], curves: &[Vec<Level>], budget: f64) -> Vec<f64> {
    const STEPS: usize = 16;
    let interpolate = |curve: &Vec<Level>| -> Vec<Level> {
        let between = |pair: &[Level]| {
            let (a, b) = (pair[0], pair[1]);
            let at = move |t: f64| Level {
                share: a.share + (b.share - a.share) * t,
                loss: a.loss + (b.loss - a.loss) * t,
            };
            (0..STEPS).map(move |i| at(i as f64 / STEPS as f64)).collect::<Vec<_>>()
        };
        curve.windows(2).flat_map(between).chain(curve.last().copied()).collect()
    };
    let fine: Vec<_> = curves.iter().map(interpolate).collect();
    let shares_at = |price: f64| -> Vec<f64> {
        let choice = |(curve, &count): (&Vec<Level>, &usize)| {
            let cost = |level: &Level| level.loss + price * level.share * count as f64;
            curve.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).map_or(1.0, |level| level.share)
        };
        fine.iter().zip(counts).map(choice).collect()
    };
    let weights = |shares: &[f64]| shares.iter().zip(counts).map(|(s, &n)| s * n as f64).sum::<f64>();
    // Prices span many orders of magnitude, so the logarithm is bisected.
    let (mut low, mut high) = (-60.0_f64, 20.0_f64);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if weights(&shares_at(middle.exp())) <= budget { high = middle } else { low = middle }
    }
    let (mut shares, above) = (shares_at(high.exp()), shares_at(low.exp()));
    // The remaining budget is spent on all layers in proportion.
    let (spent, over) = (weights(&shares), weights(&above));
    if over > spent {
        let more = ((budget - spent) / (over - spent)).clamp(0.0, 1.0);
        shares.iter_mut().zip(above).for_each(|(s, above)| *s += (above - *s) * more);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_patterns() {
        for text in ["free", "2:4", "1:8", "block16", "block4"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert_eq!("block".parse(), Ok(Pattern::Block(16)));
        for text in ["", "4:2", "2:2", "0:4", "block0", "blocks", "half"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn allocates_weights_to_the_layer_that_needs_them() {
        // The first layer needs its weights, the second does not.
        let curves = [[(1.0, 0.0), (0.5, 1.0), (0.25, 8.0)], [(1.0, 0.0), (0.5, 0.01), (0.25, 0.1)]];
        let curves = curves.map(|curve| curve.map(|(share, loss)| Level { share, loss }).to_vec());
        let shares = allocate(&[100, 100], &curves, 125.0);
        assert!((shares[0] * 100.0 + shares[1] * 100.0 - 125.0).abs() < 1e-6, "{shares:?}");
        assert!((shares[1] - 0.25).abs() < 1e-9, "{shares:?}");
    }
}
