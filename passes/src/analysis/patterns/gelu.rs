//! `Gelu` as a composition of elementary operators.

use super::{Parts, Product, beside_scalar, is, scalar};
use pare_graph::{Decline, NodeId, NodeRef, ValueRef, expect};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `Gelu` as a composition: `x/2·(1 + erf(x/√2))` or `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
pub(crate) struct Gelu<'g> {
    pub x: ValueRef<'g>,
    /// `true` if it is the tanh approximation.
    pub approximate: bool,
    /// The nodes.
    pub parts: Parts,
}

impl<'g> Gelu<'g> {
    /// Reads the composition that ends with this product.
    pub fn ending(at: NodeRef<'g>) -> Result<Self, Decline> {
        let product = Product::of(at)?;
        expect(is(product.constant, 0.5))?;
        let &[a, b] = product.factors.as_slice() else { return Err(Decline::Mismatch) };
        let (x, bell) = if a.produced_by("Add").is_ok_and(|add| is_bell(add)) { (b, a) } else { (a, b) };
        let sum = bell.produced_by("Add")?;
        let (curve, one) = beside_scalar(sum)?;
        let curve = curve.producer().ok_or(Decline::Mismatch)?;
        expect(one == 1.0)?;
        let mut parts = Parts(product.nodes);
        parts.0.extend([sum.id, curve.id]);
        let inner = curve.input(0)?.producer().ok_or(Decline::Mismatch)?;
        let approximate = match curve.op() {
            "Erf" => {
                let scaled = Product::of(inner)?;
                expect(is(scaled.constant, FRAC_1_SQRT_2) && is_only(&scaled, x))?;
                parts.0.extend(scaled.nodes);
                false
            }
            "Tanh" => {
                let scaled = Product::of(inner)?;
                let &[sum] = scaled.factors.as_slice() else { return Err(Decline::Mismatch) };
                expect(is(scaled.constant, (2.0 / PI).sqrt()))?;
                parts.0.extend(scaled.nodes);
                parts.0.extend(cubic(sum, x)?);
                true
            }
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { x, approximate, parts })
    }
}

fn is_bell(add: NodeRef<'_>) -> bool {
    let producer = beside_scalar(add).ok().and_then(|(curve, _)| curve.producer());
    producer.is_some_and(|at| at.is("Erf") || at.is("Tanh"))
}

fn is_only(product: &Product<'_>, x: ValueRef<'_>) -> bool {
    matches!(product.factors.as_slice(), [only] if only.id == x.id)
}

/// The nodes of `x + 0.044715·x³`.
fn cubic(sum: ValueRef<'_>, x: ValueRef<'_>) -> Result<Vec<NodeId>, Decline> {
    let add = sum.produced_by("Add")?;
    let (a, b) = (add.input(0)?, add.input(1)?);
    let term = if a.id == x.id { b } else { a };
    expect(a.id == x.id || b.id == x.id)?;
    let product = Product::of(term.producer().ok_or(Decline::Mismatch)?)?;
    expect(is(product.constant, 0.044_715))?;
    let mut parts = product.nodes;
    parts.push(add.id);
    // x³ is a power or x·x·x.
    if let [cube] = product.factors.as_slice() {
        let power = cube.produced_by("Pow")?;
        expect(power.input(0)?.id == x.id && scalar(power.input(1)?)? == 3.0)?;
        parts.push(power.id);
    } else {
        expect(product.factors.len() == 3 && product.factors.iter().all(|f| f.id == x.id))?;
    }
    Ok(parts)
}
