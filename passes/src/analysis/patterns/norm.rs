//! Normalization as a composition of elementary operators.

use super::{beside_scalar, reciprocal, scalar};
use pare_graph::{Decline, NodeRef, ValueRef, expect, ops::ReduceView};

/// `x / √(mean(x²) + ε)`, or the same of `x − mean(x)` if `centered`.
pub(crate) struct Norm<'g> {
    pub x: ValueRef<'g>,
    pub centered: bool,
    pub axes: Vec<usize>,
    pub epsilon: f64,
    /// The nodes.
    pub parts: Vec<NodeRef<'g>>,
}

impl<'g> Norm<'g> {
    /// Reads the composition that ends with this division or product.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let (a, b) = (at.input(0)?, at.input(1)?);
        if at.is("Div") {
            let (variance, mut parts) = root(b.producer().ok_or(Decline::Mismatch)?, 0.5)?;
            parts.push(at);
            return Self::from(a, variance, parts);
        }
        expect(at.is("Mul"))?;
        for (d, r) in [(a, b), (b, a)] {
            let Some(producer) = r.producer() else { continue };
            if let Ok((variance, mut parts)) = inverse_root(producer) {
                parts.push(at);
                return Self::from(d, variance, parts);
            }
        }
        Err(Decline::Mismatch)
    }

    /// The norm with this numerator and `variance` = `mean(d²) + ε`.
    fn from(
        numerator: ValueRef<'g>,
        variance: NodeRef<'g>,
        mut parts: Vec<NodeRef<'g>>,
    ) -> Result<Self, Decline> {
        let (mean, epsilon) = beside_scalar(variance)?;
        expect(variance.is("Add"))?;
        let mean = mean.produced_by("ReduceMean")?;
        let view = ReduceView::of(mean)?;
        expect(view.keepdims)?;
        let square = mean.input(0)?.producer().ok_or(Decline::Mismatch)?;
        let d = squared(square)?;
        parts.extend([variance, mean, square]);
        if d.id == numerator.id {
            if let Ok((x, of)) = centered(d, &view.axes) {
                parts.extend([d.producer().ok_or(Decline::Mismatch)?, of]);
                return Ok(Self { x, centered: true, axes: view.axes, epsilon, parts });
            }
            return Ok(Self { x: d, centered: false, axes: view.axes, epsilon, parts });
        }
        // The difference may be computed twice.
        let (x, of) = centered(d, &view.axes)?;
        let (again, of_again) = centered(numerator, &view.axes)?;
        expect(x.id == again.id)?;
        let differences = [d, numerator].map(|v| v.producer().ok_or(Decline::Mismatch));
        for difference in differences {
            parts.push(difference?);
        }
        parts.extend([of, of_again]);
        Ok(Self { x, centered: true, axes: view.axes, epsilon, parts })
    }
}

/// The producer of `v` in `v^power`.
fn root(at: NodeRef<'_>, power: f64) -> Result<(NodeRef<'_>, Vec<NodeRef<'_>>), Decline> {
    let fits = at.is("Sqrt") && power == 0.5 || at.is("Pow") && scalar(at.input(1)?)? == power;
    expect(fits)?;
    Ok((at.input(0)?.producer().ok_or(Decline::Mismatch)?, vec![at]))
}

/// The producer of `v` in `1/√v` or `√(1/v)`.
fn inverse_root(at: NodeRef<'_>) -> Result<(NodeRef<'_>, Vec<NodeRef<'_>>), Decline> {
    if let Ok(below) = reciprocal(at) {
        let (variance, mut parts) = root(below.producer().ok_or(Decline::Mismatch)?, 0.5)?;
        parts.push(at);
        return Ok((variance, parts));
    }
    if let Ok((inverse, mut parts)) = root(at, 0.5)
        && let Ok(variance) = reciprocal(inverse)
    {
        parts.push(inverse);
        return Ok((variance.producer().ok_or(Decline::Mismatch)?, parts));
    }
    root(at, -0.5)
}

/// The base `d` of `d²` or `d·d`.
fn squared(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    let d = at.input(0)?;
    let fits = at.is("Pow") && scalar(at.input(1)?)? == 2.0 || at.is("Mul") && at.input(1)?.id == d.id;
    expect(fits)?;
    Ok(d)
}

/// The value `x` of `x − mean(x)`, and the node of the mean.
fn centered<'g>(d: ValueRef<'g>, axes: &[usize]) -> Result<(ValueRef<'g>, NodeRef<'g>), Decline> {
    let difference = d.produced_by("Sub")?;
    let (x, mean) = (difference.input(0)?, difference.input(1)?.produced_by("ReduceMean")?);
    let view = ReduceView::of(mean)?;
    expect(view.keepdims && view.axes == axes && mean.input(0)?.id == x.id)?;
    Ok((x, mean))
}
