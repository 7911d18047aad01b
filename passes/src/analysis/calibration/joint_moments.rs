//! Joint moments of two values of the same shape, channel by channel.

/// Means, variances and covariance of `x` and `y` in each channel, and the share of `x ≥ 0`; in f64, merged
/// batch by batch as in [`Sums`](crate::statistics::Sums).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JointMoments {
    /// The moments of each channel.
    pub channels: Vec<ChannelMoments>,
}

/// The moments of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ChannelMoments {
    count: f64,
    /// Mean of `x`.
    pub x_mean: f64,
    /// Mean of `y`.
    pub y_mean: f64,
    xx: f64,
    xy: f64,
    positive: f64,
}

impl ChannelMoments {
    fn merge(&mut self, other: &Self) {
        let count = self.count + other.count;
        if other.count == 0.0 {
            return;
        }
        let (factor, share) = (self.count * other.count / count, other.count / count);
        let (dx, dy) = (other.x_mean - self.x_mean, other.y_mean - self.y_mean);
        self.xx += other.xx + factor * dx * dx;
        self.xy += other.xy + factor * dx * dy;
        self.x_mean += share * dx;
        self.y_mean += share * dy;
        self.positive += other.positive;
        self.count = count;
    }

    /// The standard deviation of `x`.
    pub fn deviation(&self) -> f64 {
        (self.xx / self.count.max(1.0)).sqrt()
    }

    /// The share of `x ≥ 0`.
    pub fn positive(&self) -> f64 {
        self.positive / self.count.max(1.0)
    }

    /// The linear regression of `y` on `x`: the slope `Cov(x, y) / Var(x)` and the intercept
    /// `E y − slope·E x`. For a Gaussian `x` and `y = f(x)` the slope is `E f'(x)` (Stein's lemma).
    pub fn line(&self) -> (f64, f64) {
        // Rounding gives a constant x a small variance.
        let constant = self.xx <= self.count * (self.x_mean * f64::from(f32::EPSILON)).powi(2);
        let slope = if constant { 0.0 } else { self.xy / self.xx };
        (slope, self.y_mean - slope * self.x_mean)
    }
}

impl JointMoments {
    /// The moments of no elements.
    pub fn new(channels: usize) -> Self {
        Self { channels: vec![ChannelMoments::default(); channels] }
    }

    /// Adds the elements of two values of this shape with channels on `axis`. Shapes with another number of
    /// channels are ignored.
    pub fn add(&mut self, x: &[f32], y: &[f32], shape: &[usize], axis: usize) {
        let count = self.channels.len();
        if shape.get(axis) != Some(&count) || x.len() != y.len() || count == 0 {
            return;
        }
        let inner: usize = shape[axis + 1..].iter().product();
        let outer = x.len() / (inner * count).max(1);
        let elements = |c: usize| {
            let run = move |o: usize| (o * count + c) * inner..(o * count + c + 1) * inner;
            (0..outer).flat_map(run).map(|i| (f64::from(x[i]), f64::from(y[i])))
        };
        let n = (outer * inner) as f64;
        for (c, total) in self.channels.iter_mut().enumerate() {
            let mut moments = ChannelMoments { count: n, ..ChannelMoments::default() };
            for (x, y) in elements(c) {
                moments.x_mean += x / n;
                moments.y_mean += y / n;
                moments.positive += f64::from(u8::from(x >= 0.0));
            }
            for (x, y) in elements(c) {
                moments.xx += (x - moments.x_mean).powi(2);
                moments.xy += (x - moments.x_mean) * (y - moments.y_mean);
            }
            total.merge(&moments);
        }
    }

    /// Returns whether all moments are finite.
    pub fn is_finite(&self) -> bool {
        self.channels.iter().all(|p| p.xx.is_finite() && p.xy.is_finite() && p.y_mean.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::random::normal;

    #[test]
    fn regression_of_relu_agrees_with_steins_lemma() {
        // z = 0.7 + 1.3·n: slope Φ(b/g), offset E relu − slope·b.
        let mut rng = fastrand::Rng::with_seed(1);
        let mut moments = JointMoments::new(2);
        for _ in 0..40 {
            // [N, C, L] with a constant second channel.
            let z: Vec<_> = (0..2 * 2 * 500)
                .map(|i| (if i / 500 % 2 == 0 { 0.7 + 1.3 * normal(&mut rng) } else { -4.0 }) as f32)
                .collect();
            let y: Vec<_> = z.iter().map(|z| z.max(0.0)).collect();
            moments.add(&z, &y, &[2, 2, 500], 1);
        }
        let (b, g) = (0.7, 1.3);
        let phi = statrs::function::erf::erf;
        let slope = 0.5 * (1.0 + phi(b / g / std::f64::consts::SQRT_2));
        let density = (-0.5_f64 * (b / g).powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let offset = b * slope + g * density - slope * b;
        // 40,000 draws: three standard errors are about 0.01.
        let line = moments.channels[0].line();
        assert!((line.0 - slope).abs() < 0.01 && (line.1 - offset).abs() < 0.02, "{line:?} {slope} {offset}");
        assert!((moments.channels[0].positive() - slope).abs() < 0.01);
        assert!((moments.channels[0].deviation() - g).abs() < 0.02);
        assert_eq!(moments.channels[1].line(), (0.0, 0.0));
        assert_eq!(moments.channels[1].positive(), 0.0);
    }

    #[test]
    fn merges_batches() {
        let x: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 + 100.0).collect();
        let y: Vec<f32> = x.iter().map(|v| 3.0 * v - 2.0).collect();
        let (mut all, mut parts) = (JointMoments::new(3), JointMoments::new(3));
        all.add(&x, &y, &[4, 2, 3], 2);
        parts.add(&x[..6], &y[..6], &[1, 2, 3], 2);
        parts.add(&x[6..], &y[6..], &[3, 2, 3], 2);
        for (a, b) in all.channels.iter().zip(&parts.channels) {
            let (a, b) = (a.line(), b.line());
            assert!((a.0 - 3.0).abs() < 1e-9 && (a.1 + 2.0).abs() < 1e-7, "{a:?}");
            assert!((a.0 - b.0).abs() < 1e-9 && (a.1 - b.1).abs() < 1e-7);
        }
    }
}
