//! Activation functions.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::ops::ClipView;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `σ(x) = 1/(1 + e⁻ˣ)`.
fn logistic(x: Term<'_>) -> Term<'_> {
    x.op("Sigmoid")
}

/// `y = σ(x)`, `dx = dy·y·(1 − y)`.
pub(super) fn sigmoid(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy * (y * (1.0 - y)))
}

/// `y = max(x, 0)`, `dx = dy` where `y > 0`, else 0.
pub(super) fn relu(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy.where_true(y.above(0.0)))
}

/// `y = x` where `x > α`, else 0; `dx` likewise.
pub(super) fn thresholded_relu(s: &Step<'_>) -> Done {
    let alpha = s.float("alpha", 1.0);
    s.unary(|x, _, dy| dy.where_true(x.above(alpha)))
}

/// `y = x` where `x ≥ 0`, else `αx`; `dx` likewise.
pub(super) fn leaky_relu(s: &Step<'_>) -> Done {
    let alpha = s.float("alpha", 0.01);
    s.unary(|x, _, dy| x.below(0.0).select(dy * alpha, dy))
}

/// `y = x` where `x ≥ 0`, else `a·x`; with `d = dy` where `x < 0`, else 0, `dx = dy + (a − 1)·d` and `da = d·x`.
pub(super) fn prelu(s: &Step<'_>) -> Done {
    let (x, slope, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let below = dy.where_true(x.below(0.0));
    s.give_with(0, || Ok(dy + below * (slope - 1.0)));
    s.give_with(1, || Ok(below * x));
    Ok(())
}

/// `y = x` where `x ≥ 0`, else `α(eˣ − 1)`; `dx = dy`, or `dy·(y + α)`.
pub(super) fn elu(s: &Step<'_>) -> Done {
    let alpha = s.float("alpha", 1.0);
    s.unary(|x, y, dy| x.below(0.0).select(dy * (y + alpha), dy))
}

/// `y = γx` where `x > 0`, else `γα(eˣ − 1)`; `dx = dy·γ`, or `dy·(y + γα)`.
pub(super) fn selu(s: &Step<'_>) -> Done {
    let (alpha, gamma) = (s.float("alpha", 1.673_263_2), s.float("gamma", 1.050_701));
    s.unary(|x, y, dy| dy * x.above(0.0).select(y.number(gamma), y + gamma * alpha))
}

/// `y = x` where `x ≥ 0`, else `α(exp(x/α) − 1)`; `dx = dy`, or `dy·exp(x/α)`.
pub(super) fn celu(s: &Step<'_>) -> Done {
    let alpha = s.float("alpha", 1.0);
    s.unary(|x, y, dy| x.below(0.0).select(dy * (y / alpha + 1.0), dy))
}

/// `y = min(max(αx + β, 0), 1)`, `dx = dy·α` where `0 < y < 1`.
pub(super) fn hard_sigmoid(s: &Step<'_>) -> Done {
    let alpha = s.float("alpha", 0.2);
    s.unary(|_, y, dy| (dy * alpha).where_true(inside(y, 0.0, 1.0)))
}

/// `y = x·min(max(x/6 + 1/2, 0), 1)`; `dx = dy·(x/3 + 1/2)` where `−3 < x < 3`, `dy` above, 0 below.
pub(super) fn hard_swish(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| {
        let outer = dy.where_true(x.above(0.0));
        inside(x, -3.0, 3.0).select(dy * (x / 3.0 + 0.5), outer)
    })
}

/// `low < x < high`.
fn inside(x: Term<'_>, low: f64, high: f64) -> Term<'_> {
    x.above(low).op2("And", x.below(high))
}

/// `y = ln(1 + eˣ)`, `dx = dy·σ(x)`.
pub(super) fn softplus(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * logistic(x))
}

/// `y = x/(1 + |x|)`, `dx = dy/(1 + |x|)²`.
pub(super) fn softsign(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy / (x.op("Abs") + 1.0).squared())
}

/// `y = x·tanh(ln(1 + eˣ))`; with `t` the second factor, `dx = dy·(t + x·(1 − t²)·σ(x))`.
///
/// `t = 1 − 2/((1 + eˣ)² + 1)`.
pub(super) fn mish(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| {
        let t = 1.0 - 2.0 / ((x.exp() + 1.0).squared() + 1.0);
        dy * (t + x * ((1.0 - t.squared()) * logistic(x)))
    })
}

/// `y = x·σ(αx)`, `dx = dy·σ(αx)·(1 + αx·(1 − σ(αx)))`.
fn sigmoid_weighted(s: &Step<'_>, alpha: f64) -> Done {
    s.unary(|x, _, dy| {
        let scaled = if alpha == 1.0 { x } else { x * alpha };
        let gate = logistic(scaled);
        dy * (gate * (scaled * (1.0 - gate) + 1.0))
    })
}

/// `y = x·σ(αx)`.
pub(super) fn swish(s: &Step<'_>) -> Done {
    sigmoid_weighted(s, s.float("alpha", 1.0))
}

/// `y = x·σ(αx)`.
pub(super) fn quick_gelu(s: &Step<'_>) -> Done {
    sigmoid_weighted(s, s.float("alpha", 1.702))
}

/// `y = x + λ` below `−λ`, `x − λ` above `λ`, shifted by the bias; `dx = dy` there, else 0.
pub(super) fn shrink(s: &Step<'_>) -> Done {
    let lambda = s.float("lambd", 0.5);
    s.unary(|x, _, dy| dy.where_true(x.op("Abs").above(lambda)))
}

/// `y = min(max(x, low), high)`, `dx = dy` where `low < x < high`. Constant bounds have no gradient.
pub(super) fn clip(s: &Step<'_>) -> Done {
    if s.wants(1) || s.wants(2) {
        return s.because("has bounds that depend on a parameter");
    }
    let view = s.read(ClipView::of)?;
    s.unary(|x, _, dy| match (view.low.is_finite(), view.high.is_finite()) {
        (true, true) => dy.where_true(inside(x, view.low, view.high)),
        (true, false) => dy.where_true(x.above(view.low)),
        (false, true) => dy.where_true(x.below(view.high)),
        (false, false) => dy,
    })
}

/// `y = x·Φ(x)` with the distribution `Φ` of a normal variable and its density `φ`: `dx = dy·(Φ(x) + x·φ(x))`.
pub(super) fn gelu(s: &Step<'_>) -> Done {
    if s.string("approximate", "none") == "tanh" {
        return tanh_gelu(s);
    }
    s.unary(|x, _, dy| {
        let distribution = ((x * FRAC_1_SQRT_2).op("Erf") + 1.0) * 0.5;
        let density = (x.squared() * -0.5).exp() * (1.0 / (2.0 * PI).sqrt());
        dy * (distribution + x * density)
    })
}

/// `y = x/2·(1 + t)`, `t = tanh(√(2/π)·(x + 0.044715·x³))`;
/// `dx = dy/2·(1 + t + x·(1 − t²)·√(2/π)·(1 + 3·0.044715·x²))`.
fn tanh_gelu(s: &Step<'_>) -> Done {
    const CUBIC: f64 = 0.044_715;
    let scale = (2.0 / PI).sqrt();
    s.unary(|x, _, dy| {
        let square = x.squared();
        let t = (x * (square * (CUBIC * scale) + scale)).op("Tanh");
        let slope = square * (3.0 * CUBIC * scale) + scale;
        dy * ((t + 1.0 + x * ((1.0 - t.squared()) * slope)) * 0.5)
    })
}

/// The approximation of Gelu by `tanh`; declines with a bias.
pub(super) fn fast_gelu(s: &Step<'_>) -> Done {
    if s.optional(1).is_some() {
        return s.because("has a bias");
    }
    tanh_gelu(s)
}
