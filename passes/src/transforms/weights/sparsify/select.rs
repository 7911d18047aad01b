//! From scores to masks: the lowest go, as many as the budget says, in the shapes that the pattern allows.

use crate::analysis::weighted_layers::{Kept, WeightedLayer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};

/// Which weights may go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Any.
    Free,
    /// Of every `m` inputs in a row (of one tap, consecutive channels) `n` stay.
    Of(usize, usize),
    /// Runs of so many consecutive weights of a row live or die together.
    Block(usize),
}

/// Weights of a block if no number is given: 16 floats are a vector register, and a line of cache.
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
        let wrong = || format!("`{text}` is no pattern: `free`, `2:4` or another `n:m`, `block` or `block8`");
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

/// How much goes.
#[derive(Clone, Debug)]
pub enum Budget {
    /// This share of all weights together.
    All(f64),
    /// This share of each layer.
    Each(Vec<f64>),
    /// This share of each row of every layer.
    Row(f64),
}

/// The inputs of a row that an `n:m` pattern looks at together; `None` if they do not come out even.
pub fn parties(layer: &WeightedLayer, m: usize) -> Option<Vec<Vec<usize>>> {
    let (channels, taps) = (layer.linear.channels, layer.linear.taps());
    if channels % m != 0 {
        return None;
    }
    let party = |p: usize| {
        let (tap, first) = (p % taps, p / taps * m);
        (first..first + m).map(|c| c * taps + tap).collect()
    };
    Some((0..taps * (channels / m)).map(party).collect())
}

/// What stays when the lowest scores go. Scores are squares: those of a block are averaged.
pub fn select(
    scores: &[Vec<f64>],
    layers: &[&WeightedLayer],
    pattern: Pattern,
    budget: &Budget,
) -> Vec<Kept> {
    let size = match pattern {
        Pattern::Of(n, m) => return layers.iter().zip(scores).map(|(l, s)| n_of_m(l, s, (n, m))).collect(),
        Pattern::Block(size) => size,
        Pattern::Free => 1,
    };
    // Units of each layer as (score, first weight, weights), row by row.
    let units = |layer: &WeightedLayer, scores: &[f64]| -> Vec<(f64, usize, usize)> {
        let d = layer.linear.width().max(1);
        let row = |(r, row): (usize, &[f64])| {
            let unit = move |(b, chunk): (usize, &[f64])| {
                (chunk.iter().sum::<f64>() / chunk.len() as f64, r * d + b * size, chunk.len())
            };
            row.chunks(size).enumerate().map(unit).collect::<Vec<_>>()
        };
        scores.chunks(d).enumerate().flat_map(row).collect()
    };
    let mut kept: Vec<Kept> = layers.iter().map(|l| vec![true; l.count()]).collect();
    let mut drop = |mut units: Vec<(f64, usize, usize, usize)>, share: f64| {
        units.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all: usize = units.iter().map(|u| u.2).sum();
        let mut left = (all as f64 * share).round() as usize;
        for (_, first, count, layer) in units {
            if count > left {
                break;
            }
            left -= count;
            kept[layer][first..first + count].fill(false);
        }
    };
    let of = |l: usize| {
        let of_layer = units(layers[l], &scores[l]).into_iter();
        of_layer.map(|(score, first, count)| (score, first, count, l)).collect::<Vec<_>>()
    };
    match budget {
        Budget::All(share) => drop((0..layers.len()).flat_map(of).collect(), *share),
        Budget::Each(shares) => (0..layers.len()).for_each(|l| drop(of(l), shares[l])),
        Budget::Row(share) => {
            for l in 0..layers.len() {
                let per_row = layers[l].linear.width().div_ceil(size).max(1);
                of(l).chunks(per_row).for_each(|row| drop(row.to_vec(), *share));
            }
        }
    }
    kept
}

fn n_of_m(layer: &WeightedLayer, scores: &[f64], (n, m): (usize, usize)) -> Kept {
    let mut kept = vec![true; layer.count()];
    let Some(parties) = parties(layer, m) else { return kept };
    let d = layer.linear.width();
    for row in 0..layer.rows() {
        for party in &parties {
            let mut party: Vec<_> = party.iter().map(|j| row * d + j).collect();
            party.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            party[..m - n].iter().for_each(|&k| kept[k] = false);
        }
    }
    kept
}

/// The share of each layer's weights to keep, of those measured (`levels`, descending from 1, with the loss of each), so
/// that the summed loss is least and no more than `budget` weights stay: levels between are linear. Lagrange: for a price
/// of a weight each layer takes its cheapest level, and the price is found by bisection.
pub fn share_out(counts: &[usize], levels: &[Vec<(f64, f64)>], budget: f64) -> Vec<f64> {
    const STEPS: usize = 16;
    let fine: Vec<Vec<(f64, f64)>> = levels
        .iter()
        .map(|levels| {
            let between = |pair: &[(f64, f64)]| {
                let ((a, x), (b, y)) = (pair[0], pair[1]);
                let at = move |t: f64| (a + (b - a) * t, x + (y - x) * t);
                (0..STEPS).map(move |i| at(i as f64 / STEPS as f64)).collect::<Vec<_>>()
            };
            levels.windows(2).flat_map(between).chain(levels.last().copied()).collect()
        })
        .collect();
    let at = |price: f64| -> Vec<f64> {
        let choice = |(levels, &count): (&Vec<(f64, f64)>, &usize)| {
            let cost = |&(share, loss): &(f64, f64)| loss + price * share * count as f64;
            levels.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).map_or(1.0, |l| l.0)
        };
        fine.iter().zip(counts).map(choice).collect()
    };
    let weight = |shares: &[f64]| shares.iter().zip(counts).map(|(s, &n)| s * n as f64).sum::<f64>();
    // Prices span many orders: bisected in the logarithm.
    let (mut low, mut high) = (-60.0_f64, 20.0_f64);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if weight(&at(middle.exp())) <= budget { high = middle } else { low = middle }
    }
    let mut shares = at(high.exp());
    // What is left over goes to all alike.
    let (spent, over) = (weight(&shares), weight(&at(low.exp())));
    if over > spent {
        let more = ((budget - spent) / (over - spent)).clamp(0.0, 1.0);
        let above = at(low.exp());
        shares.iter_mut().zip(above).for_each(|(s, above)| *s += (above - *s) * more);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_shown() {
        for text in ["free", "2:4", "1:8", "block16", "block4"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        assert_eq!("block".parse(), Ok(Pattern::Block(16)));
        for text in ["", "4:2", "2:2", "0:4", "block0", "blocks", "half"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn weights_are_shared_out_where_they_count_most() {
        // The first layer needs its weights, the second does not.
        let levels =
            vec![vec![(1.0, 0.0), (0.5, 1.0), (0.25, 8.0)], vec![(1.0, 0.0), (0.5, 0.01), (0.25, 0.1)]];
        let shares = share_out(&[100, 100], &levels, 125.0);
        assert!((shares[0] * 100.0 + shares[1] * 100.0 - 125.0).abs() < 1e-6, "{shares:?}");
        assert!((shares[1] - 0.25).abs() < 1e-9, "{shares:?}");
    }
}
