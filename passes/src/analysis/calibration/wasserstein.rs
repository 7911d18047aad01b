//! How far two clouds of points lie apart in the direction in which they lie furthest apart.

use crate::statistics::{Lines, Rows};

/// Steps of the power iteration; the direction settles within ten.
const STEPS: usize = 30;
/// Directions to start from: the difference of the means, the one in which the clouds' widths differ most, random ones.
const RANDOM_STARTS: usize = 3;

/// The max-sliced Wasserstein distance `max_{|w|=1} W₂(X·w, Y·w)` of as many rows `X` as `Y`, `[N, D]`.
///
/// On a line `W₂² = Σ (sort(x)ᵢ - sort(y)ᵢ)²/N`, so for the matching that sorting at `w` gives, with the matched
/// differences `Δ` `[N, D]`, it is `wᵀ(ΔᵀΔ)w/N`: the next `w` is `ΔᵀΔw`, normalised, and the best one is kept. Random
/// directions (LaCoOT's code draws 50) see `1/√D` of a distance that lies along one axis.
pub fn max_sliced(x: Lines<'_>, y: Lines<'_>, seed: u64) -> f64 {
    let (n, d) = (x.count.min(y.count), x.width.min(y.width));
    if n == 0 || d == 0 {
        return 0.0;
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mean: Vec<f64> =
        (0..d).map(|j| (0..n).map(|i| diff(x, y, i, i, j)).sum::<f64>() / n as f64).collect();
    let mut starts = vec![mean, widths(x, y, n, d)];
    starts.extend((0..RANDOM_STARTS).map(|_| (0..d).map(|_| rng.f64() - 0.5).collect()));
    starts.into_iter().map(|w| climb(x, y, n, w)).fold(0.0, f64::max)
}

fn diff(x: Lines<'_>, y: Lines<'_>, i: usize, k: usize, j: usize) -> f64 {
    f64::from(x.row(i)[j]) - f64::from(y.row(k)[j])
}

/// The axis along which the spreads differ most.
fn widths(x: Lines<'_>, y: Lines<'_>, n: usize, d: usize) -> Vec<f64> {
    let spread = |l: Lines<'_>| {
        let (mut sum, mut square) = (vec![0.0; d], vec![0.0; d]);
        for i in 0..n {
            for (j, &v) in l.row(i)[..d].iter().enumerate() {
                sum[j] += f64::from(v);
                square[j] += f64::from(v).powi(2);
            }
        }
        let of = move |j: usize| (square[j] / n as f64 - (sum[j] / n as f64).powi(2)).max(0.0).sqrt();
        (0..d).map(of).collect::<Vec<_>>()
    };
    let (a, b) = (spread(x), spread(y));
    let apart: Vec<_> = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).collect();
    let most = apart.iter().copied().fold(0.0, f64::max);
    apart.into_iter().map(|w| if w == most { 1.0 } else { 0.0 }).collect()
}

/// The distance at a local maximum, from the direction `w` up.
fn climb(x: Lines<'_>, y: Lines<'_>, n: usize, mut w: Vec<f64>) -> f64 {
    let (mut best, mut last) = (0.0_f64, f64::NEG_INFINITY);
    for _ in 0..=STEPS {
        let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm.is_nan() || norm < 1e-300 {
            break;
        }
        w.iter_mut().for_each(|v| *v /= norm);
        let (a, b) = (sorted(x, n, &w), sorted(y, n, &w));
        let apart: Vec<_> = a.iter().zip(&b).map(|(a, b)| a.0 - b.0).collect();
        let distance = (apart.iter().map(|v| v * v).sum::<f64>() / n as f64).sqrt();
        best = best.max(distance);
        // Each step is the best one for its matching: what does not grow has settled.
        if distance <= last * (1.0 + 1e-9) {
            break;
        }
        last = distance;
        w.fill(0.0);
        for ((a, b), by) in a.iter().zip(&b).zip(&apart) {
            let (x, y) = (x.row(a.1), y.row(b.1));
            w.iter_mut()
                .zip(x.iter().zip(y))
                .for_each(|(w, (&x, &y))| *w += by * (f64::from(x) - f64::from(y)));
        }
    }
    best
}

/// Places along a direction, ascending, each with its row.
fn sorted(lines: Lines<'_>, n: usize, w: &[f64]) -> Vec<(f64, usize)> {
    let along = |i: usize| lines.row(i).iter().zip(w).map(|(&v, w)| f64::from(v) * w).sum::<f64>();
    let mut places: Vec<_> = (0..n).map(|i| (along(i), i)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    places
}

/// The distance over the root of the mean square of `X·w` in a direction of middling size: so that streams of different
/// scale compare.
pub fn max_sliced_relative(x: &Rows, y: &Rows, seed: u64) -> f64 {
    let mean_square = x.data.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.data.len().max(1) as f64;
    let distance = max_sliced(x.all(), y.all(), seed);
    if mean_square > 0.0 { distance / mean_square.sqrt() } else { distance }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(rng: &mut fastrand::Rng) -> f32 {
        ((-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()) as f32
    }

    fn cloud(n: usize, d: usize, seed: u64) -> Rows {
        let mut rng = fastrand::Rng::with_seed(seed);
        Rows { width: d, data: (0..n * d).map(|_| normal(&mut rng)).collect() }
    }

    fn along(rows: &Rows, w: &[f64]) -> Vec<f64> {
        sorted(rows.all(), rows.count(), w).into_iter().map(|p| p.0).collect()
    }

    fn at(x: &Rows, y: &Rows, w: &[f64]) -> f64 {
        let (a, b) = (along(x, w), along(y, w));
        (a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
    }

    /// One of 1024 axes is stretched by two: the distance along it, about 1, is found; 50 random directions see little.
    #[test]
    fn one_axis_among_a_thousand_is_found() {
        let (n, d) = (256, 1024);
        let x = cloud(n, d, 1);
        let mut y = x.clone();
        y.data.iter_mut().step_by(d).for_each(|v| *v *= 2.0);
        // The dense search: X and Y differ along the first axis only, so the best direction is `cos·e₁ + sin·r` for some
        // `r` orthogonal to it, and any `r` only blurs the order. All angles to many `r`:
        let mut rng = fastrand::Rng::with_seed(2);
        let mut dense = 0.0_f64;
        for _ in 0..8 {
            let mut r: Vec<f64> = (0..d).map(|_| f64::from(normal(&mut rng))).collect();
            r[0] = 0.0;
            let norm = r.iter().map(|v| v * v).sum::<f64>().sqrt();
            for step in 0..=90 {
                let (sin, cos) = (f64::from(step) * std::f64::consts::PI / 180.0).sin_cos();
                let mut w: Vec<_> = r.iter().map(|v| v / norm * sin).collect();
                w[0] = cos;
                dense = dense.max(at(&x, &y, &w));
            }
        }
        let found = max_sliced(x.all(), y.all(), 0);
        assert!((found / dense - 1.0).abs() < 0.02, "found {found}, dense search {dense}");
        let random = |rng: &mut fastrand::Rng| {
            let w: Vec<f64> = (0..d).map(|_| f64::from(normal(rng))).collect();
            let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
            at(&x, &y, &w.iter().map(|v| v / norm).collect::<Vec<_>>())
        };
        let random = (0..50).map(|_| random(&mut rng)).fold(0.0, f64::max);
        assert!(random < 0.1 * found, "50 random directions find {random}");
    }

    #[test]
    fn the_same_cloud_in_another_order_is_no_distance_away_and_a_shift_is_its_length() {
        let x = cloud(64, 8, 3);
        let mut turned = x.clone();
        turned.data.rotate_left(5 * 8);
        assert!(max_sliced(x.all(), turned.all(), 0) < 1e-6);
        let mut moved = x.clone();
        moved.data.chunks_exact_mut(8).for_each(|row| (row[0], row[1]) = (row[0] + 3.0, row[1] - 4.0));
        assert!((max_sliced(x.all(), moved.all(), 0) - 5.0).abs() < 1e-4);
        assert_eq!(max_sliced(x.all().some(0, 0), x.all().some(0, 0), 0), 0.0);
    }
}
