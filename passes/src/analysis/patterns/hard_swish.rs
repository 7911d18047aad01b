//! `HardSwish` and the clipped line within it, as compositions of elementary operators.

use super::{Parts, Product, beside_scalar, is};
use pare_graph::{Decline, NodeRef, ValueRef, expect, ops::ClipView};

/// `clip(slope·x + offset, 0, high)`.
pub(crate) struct Clipped<'g> {
    pub x: ValueRef<'g>,
    pub slope: f64,
    pub offset: f64,
    pub high: f64,
    pub parts: Parts,
}

impl<'g> Clipped<'g> {
    /// Reads a `Clip` of a line, or `HardSigmoid`.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        if at.is("HardSigmoid") {
            expect(!at.has_references())?;
            let (slope, offset) = (at.float("alpha", 0.2), at.float("beta", 0.5));
            return Ok(Self { x: at.input(0)?, slope, offset, high: 1.0, parts: Parts(vec![at.id]) });
        }
        expect(at.opset() >= 7)?;
        let view = ClipView::of(at)?;
        expect(view.low == 0.0)?;
        let add = at.input(0)?.produced_by("Add")?;
        let (term, offset) = beside_scalar(add)?;
        let mut parts = Parts(vec![at.id, add.id]);
        let scaled = term.producer().filter(|mul| mul.is("Mul")).map(|mul| (mul, beside_scalar(mul)));
        let (x, slope) = match scaled {
            Some((mul, Ok((x, slope)))) if term.sole_use().is_ok() => {
                parts.0.push(mul.id);
                (x, slope)
            }
            _ => (term, 1.0),
        };
        Ok(Self { x, slope, offset, high: view.high, parts })
    }
}

/// `HardSwish` as a composition.
pub(crate) struct HardSwish<'g> {
    pub x: ValueRef<'g>,
    /// The nodes.
    pub parts: Parts,
}

impl<'g> HardSwish<'g> {
    /// Reads the composition that ends with this product: `x·clip(s·x + o, 0, h)·f` with `s·f = 1/6`,
    /// `o·f = 1/2` and `h·f = 1`.
    pub fn ending(at: NodeRef<'g>) -> Result<Self, Decline> {
        let product = Product::of(at)?;
        let &[a, b] = product.factors.as_slice() else { return Err(Decline::Mismatch) };
        let gate = |gate: ValueRef<'g>, x: ValueRef<'g>| {
            let line = Clipped::of(gate.producer().ok_or(Decline::Mismatch)?)?;
            expect(line.x.id == x.id).map(|()| line)
        };
        let mut line = gate(a, b).or_else(|_| gate(b, a))?;
        let f = product.constant;
        expect(is(line.slope * f, 1.0 / 6.0) && is(line.offset * f, 0.5) && is(line.high * f, 1.0))?;
        line.parts.0.extend(product.nodes);
        Ok(Self { x: line.x, parts: line.parts })
    }
}
