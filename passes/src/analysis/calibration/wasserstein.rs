//! The max-sliced Wasserstein distance of two sets of points.

use crate::statistics::{Lines, Rows};

/// Steps of the power iteration; the direction converges within ten.
const STEPS: usize = 30;
/// Random initial directions, beside the difference of the means and the axis along which the spreads differ
/// most.
const RANDOM_STARTS: usize = 3;

/// Returns the max-sliced Wasserstein distance `max_{|w|=1} W₂(X·w, Y·w)` of equally many rows `X` and `Y`,
/// `[N, D]`.
///
/// In one dimension `W₂² = Σ (sort(x)ᵢ - sort(y)ᵢ)²/N`. For the matching that sorting along `w` gives, with
/// the matched differences `Δ` `[N, D]`, it is `wᵀ(ΔᵀΔ)w/N`: the next `w` is `ΔᵀΔw`, normalised, and the
/// largest distance is returned. Random directions alone (LaCoOT's code draws 50) see `1/√D` of a distance
/// along one axis.
pub fn max_sliced(x: Lines<'_>, y: Lines<'_>, seed: u64) -> f64 {
    let (n, d) = (x.count.min(y.count), x.width.min(y.width));
    if n == 0 || d == 0 {
        return 0.0;
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mean: Vec<f64> =
        (0..d).map(|j| (0..n).map(|i| diff(x, y, i, i, j)).sum::<f64>() / n as f64).collect();
    let mut starts = vec![mean, spread_axis(x, y, n, d)];
    starts.extend((0..RANDOM_STARTS).map(|_| (0..d).map(|_| rng.f64() - 0.5).collect()));
    starts.into_iter().map(|w| climb(x, y, n, w)).fold(0.0, f64::max)
}

fn diff(x: Lines<'_>, y: Lines<'_>, i: usize, k: usize, j: usize) -> f64 {
    f64::from(x.row(i)[j]) - f64::from(y.row(k)[j])
}

/// The axis along which the standard deviations differ most, as a unit vector.
fn spread_axis(x: Lines<'_>, y: Lines<'_>, n: usize, d: usize) -> Vec<f64> {
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
    let differences: Vec<_> = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).collect();
    let largest = differences.iter().copied().fold(0.0, f64::max);
    differences.into_iter().map(|w| if w == largest { 1.0 } else { 0.0 }).collect()
}

/// The distance at the local maximum that the power iteration reaches from direction `w`.
fn climb(x: Lines<'_>, y: Lines<'_>, n: usize, mut w: Vec<f64>) -> f64 {
    let (mut best, mut last) = (0.0_f64, f64::NEG_INFINITY);
    for _ in 0..=STEPS {
        let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
        if norm.is_nan() || norm < 1e-300 {
            break;
        }
        w.iter_mut().for_each(|v| *v /= norm);
        let (a, b) = (sorted(x, n, &w), sorted(y, n, &w));
        let differences: Vec<_> = a.iter().zip(&b).map(|(a, b)| a.0 - b.0).collect();
        let distance = (differences.iter().map(|v| v * v).sum::<f64>() / n as f64).sqrt();
        best = best.max(distance);
        // Each step maximises the distance for its matching, so an iteration without growth has converged.
        if distance <= last * (1.0 + 1e-9) {
            break;
        }
        last = distance;
        w.fill(0.0);
        for ((a, b), by) in a.iter().zip(&b).zip(&differences) {
            let (x, y) = (x.row(a.1), y.row(b.1));
            w.iter_mut()
                .zip(x.iter().zip(y))
                .for_each(|(w, (&x, &y))| *w += by * (f64::from(x) - f64::from(y)));
        }
    }
    best
}

/// The rows projected onto a direction, ascending, each with its index.
fn sorted(lines: Lines<'_>, n: usize, w: &[f64]) -> Vec<(f64, usize)> {
    let along = |i: usize| lines.row(i).iter().zip(w).map(|(&v, w)| f64::from(v) * w).sum::<f64>();
    let mut sorted: Vec<_> = (0..n).map(|i| (along(i), i)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    sorted
}

/// [`max_sliced`] over the root mean square of the elements of `X`, which makes streams of different scale
/// comparable.
pub fn max_sliced_relative(x: &Rows, y: &Rows, seed: u64) -> f64 {
    let mean_square = x.data.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.data.len().max(1) as f64;
    let distance = max_sliced(x.all(), y.all(), seed);
    if mean_square > 0.0 { distance / mean_square.sqrt() } else { distance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::random::normal;

    fn cloud(n: usize, d: usize, seed: u64) -> Rows {
        let mut rng = fastrand::Rng::with_seed(seed);
        Rows { width: d, data: (0..n * d).map(|_| normal(&mut rng) as f32).collect() }
    }

    fn along(rows: &Rows, w: &[f64]) -> Vec<f64> {
        sorted(rows.all(), rows.count(), w).into_iter().map(|p| p.0).collect()
    }

    fn at(x: &Rows, y: &Rows, w: &[f64]) -> f64 {
        let (a, b) = (along(x, w), along(y, w));
        (a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
    }

    /// One of 1024 axes is scaled by two: the distance along it, about 1, is found. 50 random directions find
    /// little.
    #[test]
    fn finds_one_axis_among_a_thousand() {
        let (n, d) = (256, 1024);
        let x = cloud(n, d, 1);
        let mut y = x.clone();
        y.data.iter_mut().step_by(d).for_each(|v| *v *= 2.0);
        // Dense search: X and Y differ along the first axis only, so the best direction is `cos·e₁ + sin·r`
        // for some `r` orthogonal to it. All angles to many `r`:
        let mut rng = fastrand::Rng::with_seed(2);
        let mut dense = 0.0_f64;
        for _ in 0..8 {
            let mut r: Vec<f64> = (0..d).map(|_| normal(&mut rng)).collect();
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
            let w: Vec<f64> = (0..d).map(|_| normal(rng)).collect();
            let norm = w.iter().map(|v| v * v).sum::<f64>().sqrt();
            at(&x, &y, &w.iter().map(|v| v / norm).collect::<Vec<_>>())
        };
        let random = (0..50).map(|_| random(&mut rng)).fold(0.0, f64::max);
        assert!(random < 0.1 * found, "50 random directions find {random}");
    }

    #[test]
    fn ignores_row_order_and_measures_shifts() {
        let x = cloud(64, 8, 3);
        let mut rotated = x.clone();
        rotated.data.rotate_left(5 * 8);
        assert!(max_sliced(x.all(), rotated.all(), 0) < 1e-6);
        let mut moved = x.clone();
        moved.data.chunks_exact_mut(8).for_each(|row| (row[0], row[1]) = (row[0] + 3.0, row[1] - 4.0));
        assert!((max_sliced(x.all(), moved.all(), 0) - 5.0).abs() < 1e-4);
        assert_eq!(max_sliced(x.all().some(0, 0), x.all().some(0, 0), 0), 0.0);
    }
}
