//! Arithmetic and elementary functions of each element.

use super::super::step::{Done, Step};
use pare_graph::{Attribute, ops::is_deterministic};
use std::f64::consts::PI;

/// `y = x`, `dx = dy`.
pub(super) fn identity(s: &Step<'_>) -> Done {
    s.unary(|_, _, dy| dy)
}

/// `y = x` at inference, `dx = dy`.
pub(super) fn dropout(s: &Step<'_>) -> Done {
    if !s.read(is_deterministic) {
        return s.because("drops values at random");
    }
    identity(s)
}

/// `y = x` in another element type, `dx = dy` in that of `x`.
pub(super) fn cast(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy.cast(x.dtype()))
}

/// `y = |x|`, `dx = dy·sign(x)`.
pub(super) fn abs(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * x.op("Sign"))
}

/// `y = −x`, `dx = −dy`.
pub(super) fn neg(s: &Step<'_>) -> Done {
    s.unary(|_, _, dy| -dy)
}

/// `y = 1/x`, `dx = −dy·y²`.
pub(super) fn reciprocal(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| -(dy * y.squared()))
}

/// `y = √x`, `dx = dy/(2y)`.
pub(super) fn sqrt(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy * 0.5 / y)
}

/// `y = eˣ`, `dx = dy·y`.
pub(super) fn exp(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy * y)
}

/// `y = ln x`, `dx = dy/x`.
pub(super) fn log(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy / x)
}

/// `y = erf(x)`, `dx = dy·(2/√π)·exp(−x²)`.
pub(super) fn erf(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * ((-x.squared()).exp() * (2.0 / PI.sqrt())))
}

/// `y = tanh(x)`, `dx = dy·(1 − y²)`.
pub(super) fn tanh(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy * (1.0 - y.squared()))
}

/// `y = sin(x)`, `dx = dy·cos(x)`.
pub(super) fn sin(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * x.op("Cos"))
}

/// `y = cos(x)`, `dx = −dy·sin(x)`.
pub(super) fn cos(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| -(dy * x.op("Sin")))
}

/// `y = tan(x)`, `dx = dy·(1 + y²)`.
pub(super) fn tan(s: &Step<'_>) -> Done {
    s.unary(|_, y, dy| dy * (y.squared() + 1.0))
}

/// `y = sinh(x)`, `dx = dy·(eˣ + e⁻ˣ)/2`.
pub(super) fn sinh(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * ((x.exp() + (-x).exp()) * 0.5))
}

/// `y = cosh(x)`, `dx = dy·(eˣ − e⁻ˣ)/2`.
pub(super) fn cosh(s: &Step<'_>) -> Done {
    s.unary(|x, _, dy| dy * ((x.exp() - (-x).exp()) * 0.5))
}

/// `y = a + b`, `da = dy`, `db = dy`.
pub(super) fn add(s: &Step<'_>) -> Done {
    sum(s)
}

/// `y = Σᵢ xᵢ`, `dxᵢ = dy`.
pub(super) fn sum(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    (0..s.arity()).for_each(|slot| s.give(slot, dy));
    Ok(())
}

/// `y = Σᵢ xᵢ / n`, `dxᵢ = dy/n`.
pub(super) fn mean(s: &Step<'_>) -> Done {
    let dx = s.dy()? / s.arity() as f64;
    (0..s.arity()).for_each(|slot| s.give(slot, dx));
    Ok(())
}

/// `y = a − b`, `da = dy`, `db = −dy`.
pub(super) fn sub(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    s.give(0, dy);
    s.give_with(1, || Ok(-dy.sum_to(s.x(1)?)?));
    Ok(())
}

/// `y = a·b`, `da = dy·b`, `db = dy·a`.
pub(super) fn mul(s: &Step<'_>) -> Done {
    let (a, b, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    s.give_with(0, || Ok(dy * b));
    s.give_with(1, || Ok(dy * a));
    Ok(())
}

/// `y = a/b`, `da = dy/b`, `db = −dy·y/b`.
pub(super) fn div(s: &Step<'_>) -> Done {
    let (b, y, dy) = (s.x(1)?, s.y()?, s.dy()?);
    s.give_with(0, || Ok(dy / b));
    s.give_with(1, || Ok(-(dy * y / b)));
    Ok(())
}

/// `y = aᵇ`, `da = dy·b·aᵇ⁻¹`, `db = dy·y·ln a` (0 where `a ≤ 0`).
pub(super) fn pow(s: &Step<'_>) -> Done {
    let (a, b, y, dy) = (s.x(0)?, s.x(1)?, s.y()?, s.dy()?);
    s.give_with(0, || {
        Ok(match b.scalar() {
            Some(2.0) => dy * (a * 2.0),
            Some(3.0) => dy * (a.squared() * 3.0),
            Some(0.5) => dy * 0.5 / y,
            Some(b) => dy * (a.pow(b - 1.0) * b),
            None => {
                let b = b.cast(a.dtype());
                dy * (b * a.op2("Pow", b - 1.0))
            }
        })
    });
    s.give_with(1, || {
        let positive = a.above(0.0);
        let log = positive.select(a, a.number(1.0)).op("Log");
        Ok((dy * y * log).cast(b.dtype()))
    });
    Ok(())
}

/// `y = maxᵢ xᵢ` (or the minimum), `dxᵢ = dy·[xᵢ = y] / Σⱼ [xⱼ = y]`.
pub(super) fn extreme(s: &Step<'_>) -> Done {
    let (y, dy) = (s.y()?, s.dy()?);
    let chosen = |slot| Ok(s.x(slot)?.op2("Equal", y).cast(y.dtype()));
    let all = (0..s.arity()).map(chosen).collect::<Result<Vec<_>, _>>()?;
    let Some(ties) = all.iter().copied().reduce(|a, b| a + b) else { return s.because("has no operands") };
    let share = dy / ties;
    (0..s.arity()).for_each(|slot| s.give_with(slot, || Ok(share * all[slot])));
    Ok(())
}

/// `y = a` where `c`, else `b`; `da = dy` where `c`, else 0; `db` the other way round.
pub(super) fn choose(s: &Step<'_>) -> Done {
    let (c, dy) = (s.x(0)?, s.dy()?);
    s.give_with(1, || Ok(dy.where_true(c)));
    s.give_with(2, || Ok(dy.where_true(c.op("Not"))));
    Ok(())
}

/// Returns the integers of an attribute, or `default`.
pub(super) fn ints(s: &Step<'_>, name: &str, default: &[i64]) -> Vec<i64> {
    s.read(|at| match at.attr(name) {
        Some(Attribute::Ints(ints)) => ints.clone(),
        _ => default.to_vec(),
    })
}
