//! The rate of each step.

use std::f64::consts::PI;

/// A linear rise over a share of the steps, then half a cosine down to zero (Loshchilov and Hutter 2017).
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub rate: f64,
    pub steps: u64,
}

impl Schedule {
    /// The most steps of the rise.
    const WARM_UP: u64 = 50;

    /// The rate of step `step`, counted from 0.
    pub fn at(self, step: u64) -> f64 {
        let rise = (self.steps / 10).clamp(1, Self::WARM_UP);
        if step < rise {
            return self.rate * (step + 1) as f64 / rise as f64;
        }
        let done = (step - rise) as f64 / (self.steps - rise).max(1) as f64;
        self.rate * 0.5 * (1.0 + (PI * done.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls_to_zero() {
        let schedule = Schedule { rate: 1.0, steps: 100 };
        let rates: Vec<_> = (0..100).map(|step| schedule.at(step)).collect();
        assert_eq!((rates[0], rates[9], rates[10]), (0.1, 1.0, 1.0));
        assert!(rates[10..].is_sorted_by(|a, b| a >= b));
        assert!((rates[55] - 0.5).abs() < 1e-12 && rates[99] < 1e-3);
    }

    #[test]
    fn a_single_step_has_the_full_rate() {
        assert_eq!(Schedule { rate: 0.5, steps: 1 }.at(0), 0.5);
    }
}
