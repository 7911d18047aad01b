//! Affine maps.

use crate::statistics::par;
use faer::{Accum, Mat, linalg::matmul::matmul};

/// An affine map `y = W·x + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct AffineMap {
    /// `W`, `[O, D]`.
    pub weight: Mat<f64>,
    /// `b`, `O` elements.
    pub bias: Vec<f64>,
}

impl AffineMap {
    /// The composition `W₂·(W₁·x + b₁) + b₂` of this map and `next`.
    #[must_use]
    pub fn then(&self, next: &Self) -> Self {
        let (o, d) = (next.weight.nrows(), self.weight.ncols());
        let mut weight = Mat::zeros(o, d);
        matmul(weight.as_mut(), Accum::Replace, next.weight.as_ref(), self.weight.as_ref(), 1.0, par());
        let inner =
            |i: usize| self.bias.iter().enumerate().map(|(j, b)| next.weight[(i, j)] * b).sum::<f64>();
        Self { weight, bias: (0..o).map(|i| next.bias[i] + inner(i)).collect() }
    }
}
