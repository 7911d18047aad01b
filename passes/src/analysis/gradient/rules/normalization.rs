//! Softmax and normalizations.
//!
//! Normalizations share one equation. With `x̂ = (x − μ)·r`, `r = 1/√(σ² + ε)`, `y = γ·x̂ + β` and `g = dy·γ`,
//!
//! `dx = r·(g − mean(g) − x̂·mean(g·x̂))`, `dγ = Σ dy·x̂`, `dβ = Σ dy`,
//!
//! with the means over the normalized axes; without a mean in the forward pass, `mean(g)` is left out.

use super::{
    super::{
        step::{Done, Step},
        term::Term,
    },
    elementwise::ints,
    other_axes,
};
use pare_graph::{
    Decline,
    ops::{LayerNormView, SoftmaxView, axis_of},
};

/// `y = softmax(x)`, `dx = y·(dy − Σ dy·y)`.
pub(super) fn softmax(s: &Step<'_>) -> Done {
    let axes: Vec<_> = s.read(SoftmaxView::of)?.axes.collect();
    s.unary(|_, y, dy| {
        let weighted = dy * y;
        weighted - y * weighted.total(&axes)
    })
}

/// `y = ln softmax(x)`, `dx = dy − eʸ·Σ dy`.
pub(super) fn log_softmax(s: &Step<'_>) -> Done {
    let axes: Vec<_> = s.read(SoftmaxView::of)?.axes.collect();
    s.unary(|_, y, dy| dy - y.exp() * dy.total(&axes))
}

/// Values normalized along axes.
struct Normalized<'t> {
    /// `x̂`.
    x: Term<'t>,
    /// `r`.
    scale: Term<'t>,
    axes: Vec<usize>,
    centered: bool,
}

impl<'t> Normalized<'t> {
    fn new(x: Term<'t>, axes: Vec<usize>, epsilon: f64, centered: bool) -> Self {
        let deviation = if centered { x - x.mean(&axes) } else { x };
        let variance = deviation.squared().mean(&axes);
        let scale = 1.0 / (variance + epsilon).op("Sqrt");
        Self { x: deviation * scale, scale, axes, centered }
    }

    /// `dx` from `g`.
    fn backward(&self, g: Term<'t>) -> Term<'t> {
        let along = self.x * (g * self.x).mean(&self.axes);
        let rest = if self.centered { g - g.mean(&self.axes) } else { g };
        self.scale * (rest - along)
    }
}

/// The mean and variance over the last axes, `γ` and `β` of their shape.
pub(super) fn layer(s: &Step<'_>) -> Done {
    let LayerNormView { axis, epsilon } = s.read(LayerNormView::of)?;
    last_axes(s, axis, epsilon, true)
}

/// As [`layer`], without a mean and `β`.
pub(super) fn rms(s: &Step<'_>) -> Done {
    let axis = s.read(axis_of)?;
    last_axes(s, axis, s.float("epsilon", 1e-5), false)
}

fn last_axes(s: &Step<'_>, axis: usize, epsilon: f64, centered: bool) -> Done {
    let (x, gamma, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    if s.wants(0) || s.wants(1) {
        let normalized = Normalized::new(x, (axis..x.rank()?).collect(), epsilon, centered);
        s.give_with(0, || Ok(normalized.backward(dy * gamma)));
        s.give_with(1, || Ok(dy * normalized.x));
    }
    s.give(2, dy);
    Ok(())
}

/// A vector with one element for each channel (axis 1) of a tensor of this rank.
fn channels(vector: Term<'_>, rank: usize) -> Term<'_> {
    vector.unsqueeze(&(1..rank.saturating_sub(1)).collect::<Vec<_>>())
}

/// The mean and variance over the spatial axes of each sample and channel.
pub(super) fn instance(s: &Step<'_>) -> Done {
    let (x, gamma, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let rank = x.rank()?;
    let normalized = Normalized::new(x, (2..rank).collect(), s.float("epsilon", 1e-5), true);
    let others = other_axes(rank, &[1]);
    s.give_with(0, || Ok(normalized.backward(dy * channels(gamma, rank))));
    s.give_with(1, || Ok((dy * normalized.x).collapsed(&others)));
    s.give_with(2, || Ok(dy.collapsed(&others)));
    Ok(())
}

/// The mean and variance over the channels of a group and the spatial axes; `γ` and `β` for each channel, or for
/// each group before operator set 21.
pub(super) fn group(s: &Step<'_>) -> Done {
    let (x, gamma, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let groups = usize::try_from(s.int("num_groups", 1)).map_err(|_| Decline::Mismatch)?;
    let width = x.size(1)?;
    if groups == 0 || width % groups != 0 {
        return s.because("has groups that do not divide its channels");
    }
    // x: [N, groups, channels, positions]
    let shape = [0, groups as i64, (width / groups) as i64, -1];
    let dy = dy.reshape(&shape);
    let normalized = Normalized::new(x.reshape(&shape), vec![2, 3], s.float("epsilon", 1e-5), true);
    let by_group = s.read(|at| at.opset()) < 21;
    let target = if by_group { [1, groups as i64, 1, 1] } else { [1, groups as i64, -1, 1] };
    let axes: &[usize] = if by_group { &[0, 2, 3] } else { &[0, 3] };
    s.give_with(0, || normalized.backward(dy * gamma.reshape(&target)).reshape_like(x));
    s.give_with(1, || Ok((dy * normalized.x).collapsed(axes).reshape(&[-1])));
    s.give_with(2, || Ok(dy.collapsed(axes).reshape(&[-1])));
    Ok(())
}

/// `y = (x − μ)/√(σ² + 1e-9)` along `axes`.
pub(super) fn mean_variance(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    let rank = x.rank()? as i64;
    let axes = ints(s, "axes", &[0, 2, 3]);
    let axes =
        axes.iter().map(|&a| usize::try_from(if a < 0 { a + rank } else { a })).collect::<Result<_, _>>();
    let axes = axes.map_err(|_| Decline::Mismatch)?;
    s.give_with(0, || Ok(Normalized::new(x, axes, 1e-9, true).backward(dy)));
    Ok(())
}

/// `y = x/‖x‖`, `dx = (dy − y·Σ dy·y)/‖x‖`, with the norm of order 2.
pub(super) fn lp(s: &Step<'_>) -> Done {
    if s.int("p", 2) != 2 {
        return s.because("has a norm other than that of order 2");
    }
    let axis = s.read(axis_of)?;
    s.unary(|x, y, dy| (dy - y * (dy * y).total(&[axis])) / x.reduce("ReduceL2", &[axis]))
}

/// At inference, for each channel: `y = γ·(x − μ)·r + β` with `r = 1/√(σ² + ε)`;
/// `dx = dy·γ·r`, `dγ = Σ dy·(x − μ)·r`, `dβ = Σ dy`, `dμ = −Σ dy·γ·r`, `dσ² = −½·Σ dy·γ·(x − μ)·r³`.
pub(super) fn batch(s: &Step<'_>) -> Done {
    if s.int("training_mode", 0) != 0 {
        return s.because("is in training mode");
    }
    let (x, gamma, mean, variance, dy) = (s.x(0)?, s.x(1)?, s.x(3)?, s.x(4)?, s.dy()?);
    let rank = x.rank()?;
    let others = other_axes(rank, &[1]);
    let r = 1.0 / (variance + s.float("epsilon", 1e-5)).op("Sqrt");
    s.give_with(0, || Ok(dy * channels(gamma * r, rank)));
    let sum = |slots: &[usize]| slots.iter().any(|&slot| s.wants(slot)).then(|| dy.collapsed(&others));
    let spread = [1, 4]
        .iter()
        .any(|&slot| s.wants(slot))
        .then(|| (dy * (x - channels(mean, rank))).collapsed(&others));
    if let Some(spread) = spread {
        s.give_with(1, || Ok(spread * r));
        s.give_with(4, || Ok(spread * (gamma * r * r * r) * -0.5));
    }
    if let Some(sum) = sum(&[2, 3]) {
        s.give(2, sum);
        s.give_with(3, || Ok(-(sum * gamma * r)));
    }
    Ok(())
}
