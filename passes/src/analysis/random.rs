//! Random numbers of other distributions than the generator's.

use fastrand::Rng;
use std::f64::consts::TAU;

/// A standard normal number (Box and Muller 1958).
pub(crate) fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (TAU * rng.f64()).cos()
}
