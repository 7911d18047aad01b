//! Linear and affine operators, normalization and clipping.

use super::{axes::axis_of, known, number, standard};
use crate::{Decline, NodeRef, ValueRef, expect};

/// `Gemm`: `Y = α·A'·B' + β·C`, where `'` transposes if the flag is set.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct GemmView {
    pub alpha: f64,
    pub beta: f64,
    pub trans_a: bool,
    pub trans_b: bool,
}

impl GemmView {
    /// Declines before operator set 7, where an attribute determines whether `C` broadcasts.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Gemm")?;
        if at.opset() < 7 {
            return Err(Decline::because(format!("{} has an operator set before 7", at.describe())));
        }
        let flag = |name| at.int(name, 0) != 0;
        let (alpha, beta) = (at.float("alpha", 1.0), at.float("beta", 1.0));
        Ok(Self { alpha, beta, trans_a: flag("transA"), trans_b: flag("transB") })
    }

    /// Returns true if it is `A·B' + C`, without scaling and with `A` not transposed.
    pub fn is_linear(&self) -> bool {
        self.alpha == 1.0 && self.beta == 1.0 && !self.trans_a
    }
}

/// `BatchNormalization` at inference: `y = scale·x + shift` for each channel (axis 1), where
///
/// `scale = γ / √(σ² + ε)` and `shift = β − scale·μ`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AffineView {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl AffineView {
    /// Declines in training mode, for statistics per element, and for statistics that are not constant.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "BatchNormalization")?;
        let because = |why: &str| Err(Decline::because(format!("{} {why}", at.describe())));
        let training = match at.opset() {
            14.. => at.int("training_mode", 0) != 0,
            7.. => false,
            _ => at.int("is_test", 0) == 0,
        };
        if training || at.outputs().into_iter().skip(1).flatten().any(|o| o.graph.use_count(o.id) > 0) {
            return because("is in training mode");
        }
        if at.opset() < 9 && at.int("spatial", 1) == 0 {
            return because("normalizes each element with statistics of its own");
        }
        let [gamma, beta, mean, variance] =
            [1, 2, 3, 4].map(|slot| at.input(slot).and_then(ValueRef::constant_f64));
        let (gamma, beta, mean, variance) = (gamma?, beta?, mean?, variance?);
        if [&beta, &mean, &variance].iter().any(|v| v.len() != gamma.len()) {
            return because("has statistics of different lengths");
        }
        let epsilon = at.float("epsilon", 1e-5);
        let scale: Vec<_> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
        if scale.iter().any(|s| !s.is_finite()) {
            return because("has a variance that is not positive");
        }
        let shift = (0..scale.len()).map(|c| beta[c] - scale[c] * mean[c]).collect();
        Ok(Self { scale, shift })
    }
}

/// `LayerNormalization`: `y = γ·(x − μ) / √(σ² + ε) + β`, with the mean and variance over the axes from
/// `axis` on.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct LayerNormView {
    pub axis: usize,
    pub epsilon: f64,
}

impl LayerNormView {
    /// Declines if the rank is unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        expect(at.is("LayerNormalization"))?;
        Ok(Self { axis: axis_of(at)?, epsilon: at.float("epsilon", 1e-5) })
    }
}

/// `Clip` and `Relu`: `y = min(max(x, low), high)`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ClipView {
    pub low: f64,
    pub high: f64,
}

impl ClipView {
    /// Declines if a bound is not constant.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        known(at)?;
        if at.is("Relu") {
            return Ok(Self { low: 0.0, high: f64::INFINITY });
        }
        standard(at, "Clip")?;
        let bound = |name, open| number(at, name).map(|bound| bound.unwrap_or(open));
        Ok(Self { low: bound("min", f64::NEG_INFINITY)?, high: bound("max", f64::INFINITY)? })
    }
}
