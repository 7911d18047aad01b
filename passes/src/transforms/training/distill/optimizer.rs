//! Optimizers: the change of the weights by a gradient.

use super::parameters::{Parameter, Weights};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The rule by which a gradient changes the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Adam with decoupled decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).
    Adamw,
    /// Gradient descent with momentum 0.9.
    Sgd,
}

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// The weights with the moments that an optimizer keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub weights: Weights,
    /// Running mean of the gradients.
    pub first: Vec<Vec<f32>>,
    /// Running mean of the squared gradients.
    pub second: Vec<Vec<f32>>,
    /// Steps made.
    pub steps: u64,
}

impl State {
    pub fn new(weights: Weights) -> Self {
        let zeros = || weights.values.iter().map(|values| vec![0.0; values.len()]).collect();
        Self { first: zeros(), second: zeros(), weights, steps: 0 }
    }

    /// Makes one step along the gradients, one slice a parameter.
    pub fn step(
        &mut self,
        optimizer: Optimizer,
        parameters: &[Parameter],
        gradients: &[Vec<f32>],
        rate: f64,
        decay: f64,
    ) {
        self.steps += 1;
        let power = self.steps.min(1 << 20) as i32;
        // The moments start at zero: m / (1 − β₁ᵗ) and v / (1 − β₂ᵗ) are unbiased.
        let (unbias_1, unbias_2) = (1.0 - BETA_1.powi(power), 1.0 - BETA_2.powi(power));
        let (rate, keep) = (rate as f32, 1.0 - (rate * decay) as f32);
        let weights = self.weights.values.par_iter_mut().zip(&mut self.first).zip(&mut self.second);
        weights.zip(gradients).zip(parameters).for_each(|((((w, m), v), g), parameter)| {
            for i in 0..w.len() {
                if parameter.free.as_ref().is_some_and(|free| !free[i]) {
                    continue;
                }
                match optimizer {
                    // w ← w·(1 − ηλ) − η m̂ / (√v̂ + ε)
                    Optimizer::Adamw => {
                        m[i] = BETA_1 * m[i] + (1.0 - BETA_1) * g[i];
                        v[i] = BETA_2 * v[i] + (1.0 - BETA_2) * g[i] * g[i];
                        let size = (v[i] / unbias_2).sqrt() + EPSILON;
                        w[i] = w[i] * keep - rate * (m[i] / unbias_1) / size;
                    }
                    // w ← w·(1 − ηλ) − η m
                    Optimizer::Sgd => {
                        m[i] = BETA_1 * m[i] + g[i];
                        w[i] = w[i] * keep - rate * m[i];
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(free: Option<Vec<bool>>) -> [Parameter; 1] {
        [Parameter { name: "w".into(), shape: vec![2], free, codes: None }]
    }

    #[test]
    fn the_first_step_of_adam_has_the_size_of_the_rate() {
        let mut state = State::new(Weights { values: vec![vec![1.0, 2.0]] });
        state.step(Optimizer::Adamw, &parameter(None), &[vec![1e-3, -5.0]], 0.1, 0.0);
        let w = &state.weights.values[0];
        assert!((w[0] - 0.9).abs() < 1e-4 && (w[1] - 2.1).abs() < 1e-4, "{w:?}");
    }

    #[test]
    fn zeros_of_sparse_weights_stay() {
        for optimizer in [Optimizer::Adamw, Optimizer::Sgd] {
            let mut state = State::new(Weights { values: vec![vec![0.0, 2.0]] });
            state.step(optimizer, &parameter(Some(vec![false, true])), &[vec![3.0, 3.0]], 0.1, 0.5);
            let w = &state.weights.values[0];
            assert!(w[0] == 0.0 && w[1] < 2.0);
        }
    }

    #[test]
    fn descends_to_the_minimum_of_a_square() {
        for (optimizer, rate) in [(Optimizer::Adamw, 0.05), (Optimizer::Sgd, 0.02)] {
            let mut state = State::new(Weights { values: vec![vec![5.0, -3.0]] });
            for step in 0..600 {
                let rate = rate * (1.0 - f64::from(step) / 600.0);
                let gradient = state.weights.values[0].iter().map(|w| 2.0 * (w - 1.0)).collect();
                state.step(optimizer, &parameter(None), &[gradient], rate, 0.0);
            }
            assert!(
                state.weights.values[0].iter().all(|w| (w - 1.0).abs() < 1e-2),
                "{optimizer:?} {state:?}"
            );
        }
    }
}
