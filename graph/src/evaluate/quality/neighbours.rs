//! The order of neighbours among embeddings.

use super::cosine;

/// The largest number of rows that are compared with each other: the pairs of 500 estimate the order of all.
const MOST: usize = 500;

/// Rows of the original and of a candidate, to compare how they are ordered by similarity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbours {
    rows: Vec<[Vec<f64>; 2]>,
}

/// The order of neighbours in a candidate, relative to the original.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NeighbourOrder {
    /// The share of rows whose nearest other row is the same.
    pub nearest: f64,
    /// The rank correlation (Spearman) of the cosines of all pairs of rows.
    pub correlation: f64,
}

impl Neighbours {
    pub(super) fn add(&mut self, original: &[f64], candidate: &[f64]) {
        if self.rows.len() < MOST {
            self.rows.push([original.to_vec(), candidate.to_vec()]);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        let room = MOST - self.rows.len();
        self.rows.extend(other.rows.iter().take(room).cloned());
    }

    /// The order among all rows; `None` for fewer than three, which have no order.
    pub fn order(&self) -> Option<NeighbourOrder> {
        let count = self.rows.len();
        if count < 3 {
            return None;
        }
        let [original, candidate] = [0, 1].map(|side| {
            let pair = |i: usize, j: usize| cosine(&self.rows[i][side], &self.rows[j][side]);
            (0..count).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| pair(i, j)).collect::<Vec<_>>()
        });
        let at = |i: usize, j: usize| if i > j { i * (i - 1) / 2 + j } else { j * (j - 1) / 2 + i };
        let nearest = |pairs: &[f64], i: usize| {
            let others = (0..count).filter(|&j| j != i);
            others.max_by(|&a, &b| pairs[at(i, a)].total_cmp(&pairs[at(i, b)]))
        };
        let same = (0..count).filter(|&i| nearest(&original, i) == nearest(&candidate, i)).count();
        let finite = original.iter().chain(&candidate).all(|v| v.is_finite());
        let correlation = if finite { correlation(&ranks(&original), &ranks(&candidate)) } else { f64::NAN };
        Some(NeighbourOrder { nearest: same as f64 / count as f64, correlation })
    }
}

/// The ranks of values; equal values share their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = start as f64 + (tied.len() - 1) as f64 / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        start += tied.len();
    }
    ranks
}

/// Pearson's correlation; 1 where both are constant, 0 where one is.
fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let mean = (x.len() as f64 - 1.0) / 2.0;
    let centred = |v: &[f64]| v.iter().map(|v| v - mean).collect::<Vec<_>>();
    cosine(&centred(x), &centred(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(original: &[[f64; 2]], candidate: &[[f64; 2]]) -> NeighbourOrder {
        let mut rows = Neighbours::default();
        original.iter().zip(candidate).for_each(|(a, b)| rows.add(a, b));
        rows.order().unwrap()
    }

    #[test]
    fn equal_directions_have_equal_order() {
        let rows = [[1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [-1.0, 3.0]];
        let longer = rows.map(|[x, y]| [3.0 * x, 3.0 * y]);
        assert_eq!(order(&rows, &longer), NeighbourOrder { nearest: 1.0, correlation: 1.0 });
        assert_eq!(Neighbours::default().order(), None);
    }

    #[test]
    fn another_order_lowers_both() {
        let angle = |degrees: f64| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        // Pairs (1,0), (2,0), (2,1) are 10, 50 and 40 degrees apart, then 50, 10 and 40.
        let got = order(&[0.0, 10.0, 50.0].map(angle), &[0.0, 50.0, 10.0].map(angle));
        assert_eq!((got.nearest, got.correlation), (0.0, -1.0));
    }

    #[test]
    fn ranks_of_ties_are_their_mean() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0]), [2.5, 1.0, 2.5, 0.0]);
        assert_eq!(correlation(&ranks(&[1.0, 1.0]), &ranks(&[1.0, 1.0])), 1.0);
    }
}
