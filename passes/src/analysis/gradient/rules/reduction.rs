//! Reductions along axes.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{Decline, Node, ops::ReduceView};

/// A reduction: `x`, and `y` and `dy` with the reduced axes of size 1.
struct Reduced<'t> {
    x: Term<'t>,
    y: Term<'t>,
    dy: Term<'t>,
}

impl<'t> Reduced<'t> {
    fn of(s: &Step<'t>) -> Result<Self, Decline> {
        let (x, y, dy) = (s.x(0)?, s.y()?, s.dy()?);
        let view = s.read(ReduceView::of)?;
        let keep = |term: Term<'t>| if view.keepdims { term } else { term.unsqueeze(&view.axes) };
        Ok(Self { x, y: keep(y), dy: keep(dy) })
    }
}

fn rule<'t>(s: &Step<'t>, dx: impl FnOnce(Reduced<'t>) -> Term<'t>) -> Done {
    let reduced = Reduced::of(s)?;
    let x = reduced.x;
    s.give_with(0, || Ok(dx(reduced).expand_like(x)));
    Ok(())
}

/// `y = Σ x`, `dx = dy`.
pub(super) fn sum(s: &Step<'_>) -> Done {
    rule(s, |r| r.dy)
}

/// `y = Σ x / n`, `dx = dy/n`.
pub(super) fn mean(s: &Step<'_>) -> Done {
    rule(s, |r| match (r.x.count().scalar(), r.y.count().scalar()) {
        (Some(x), Some(y)) => r.dy * (y / x),
        _ => r.dy * (r.y.count() / r.x.count()),
    })
}

/// `y = max x` (or the minimum), `dx = dy·[x = y] / Σ [x = y]`.
pub(super) fn extreme(s: &Step<'_>) -> Done {
    let axes = s.read(ReduceView::of)?.axes;
    rule(s, |r| {
        let chosen = r.x.op2("Equal", r.y).cast(r.x.dtype());
        chosen * (r.dy / chosen.total(&axes))
    })
}

/// `y = Σ |x|`, `dx = dy·sign(x)`.
pub(super) fn l1(s: &Step<'_>) -> Done {
    rule(s, |r| r.dy * r.x.op("Sign"))
}

/// `y = √Σ x²`, `dx = dy·x/y`.
pub(super) fn l2(s: &Step<'_>) -> Done {
    rule(s, |r| r.x * (r.dy / r.y))
}

/// `y = Σ x²`, `dx = 2·dy·x`.
pub(super) fn sum_square(s: &Step<'_>) -> Done {
    rule(s, |r| r.x * (r.dy * 2.0))
}

/// `y = ln Σ x`, `dx = dy·e⁻ʸ`.
pub(super) fn log_sum(s: &Step<'_>) -> Done {
    rule(s, |r| r.dy * (-r.y).exp())
}

/// `y = ln Σ eˣ`, `dx = dy·exp(x − y)`.
pub(super) fn log_sum_exp(s: &Step<'_>) -> Done {
    rule(s, |r| r.dy * (r.x - r.y).exp())
}

/// `y = Π x`, `dx = dy·y/x` for factors other than 0.
pub(super) fn product(s: &Step<'_>) -> Done {
    rule(s, |r| r.dy * r.y / r.x)
}

/// `yᵢ = Σ_{j ≤ i} xⱼ`, `dxⱼ = Σ_{i ≥ j} dyᵢ`: the sum from the other end.
pub(super) fn cum_sum(s: &Step<'_>) -> Done {
    let (axis, dy) = (s.x(1)?, s.dy()?);
    let reverse = 1 - s.int("reverse", 0);
    let node = Node::new("CumSum").with("exclusive", s.int("exclusive", 0)).with("reverse", reverse);
    s.give_with(0, || Ok(s.tape.node(node, &[dy, axis])));
    Ok(())
}
