//! What patterns are made of: scalars, products, and nodes that only serve the pattern.

mod gelu;
mod hard_swish;

pub(crate) use gelu::{Gelu, ends_gelu};
pub(crate) use hard_swish::{Clipped, HardSwish};

use crate::framework::matching::uniform;
use pare_graph::{DataType, Decline, NodeId, NodeRef, ValueRef, expect};

/// The value of a constant that broadcasts like a scalar, whatever the rank of the other operand.
pub(crate) fn scalar(c: ValueRef<'_>) -> Result<f64, Decline> {
    let tensor = c.constant()?;
    expect(tensor.rank() == 0 || tensor.len() == 1 && tensor.rank() == 1)?;
    uniform(tensor).ok_or(Decline::Mismatch)
}

/// The operand of `x ∘ c` or `c ∘ x` beside a scalar constant, for a commutative operator.
pub(crate) fn beside_scalar(at: NodeRef<'_>) -> Result<(ValueRef<'_>, f64), Decline> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    match (scalar(a), scalar(b)) {
        (_, Ok(c)) => Ok((a, c)),
        (Ok(c), _) => Ok((b, c)),
        (Err(decline), _) => Err(decline),
    }
}

/// Whether two constants are the same but for the rounding of the exporter, who may have computed in f32: three
/// operations there are off by less than 4 units of 2⁻²⁴.
pub(crate) fn is(value: f64, wanted: f64) -> bool {
    (value - wanted).abs() <= 4.0 * wanted.abs() * f64::from(f32::EPSILON) / 2.0
}

/// Elements are `float`: for others the fused operator computes in another precision, or not at all.
pub(crate) fn is_float(x: ValueRef<'_>) -> Result<(), Decline> {
    expect(x.dtype() == Some(DataType::Float))
}

/// A product written as a tree of `Mul` and `Div` by constants: a constant factor and the other factors.
pub(crate) struct Product<'g> {
    pub constant: f64,
    pub factors: Vec<ValueRef<'g>>,
    /// Nodes of the tree.
    pub nodes: Vec<NodeId>,
}

impl<'g> Product<'g> {
    /// The product that `at` computes, through factors that have no other use.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let mut product = Self { constant: 1.0, factors: vec![], nodes: vec![] };
        product.multiply(at, 4)?;
        Ok(product)
    }

    fn multiply(&mut self, at: NodeRef<'g>, depth: usize) -> Result<(), Decline> {
        expect((at.is("Mul") || at.is("Div")) && at.opset() >= 7)?;
        self.nodes.push(at.id);
        let (a, b) = (at.input(0)?, at.input(1)?);
        if at.is("Div") {
            self.constant /= scalar(b)?;
            self.factor(a, depth);
            return Ok(());
        }
        self.factor(a, depth);
        self.factor(b, depth);
        Ok(())
    }

    fn factor(&mut self, x: ValueRef<'g>, depth: usize) {
        if let Ok(c) = scalar(x) {
            self.constant *= c;
            return;
        }
        let inner = x
            .producer()
            .filter(|at| depth > 0 && (at.is("Mul") || at.is("Div")))
            .filter(|_| x.sole_use().is_ok());
        let before = (self.constant, self.factors.len(), self.nodes.len());
        if let Some(inner) = inner {
            if self.multiply(inner, depth - 1).is_ok() {
                return;
            }
            self.constant = before.0;
            self.factors.truncate(before.1);
            self.nodes.truncate(before.2);
        }
        self.factors.push(x);
    }
}

/// The nodes that a pattern consists of. Those that are not its end must serve nothing else.
pub(crate) struct Parts(pub Vec<NodeId>);

impl Parts {
    /// Declines if a value that a part makes is used by another node, unless it is `end`.
    pub fn are_alone(&self, at: NodeRef<'_>, end: NodeId) -> Result<(), Decline> {
        for &id in self.0.iter().filter(|&&id| id != end) {
            for output in at.graph.at(id).outputs().into_iter().flatten() {
                let outside = output.users().iter().any(|(user, _)| !self.0.contains(&user.id));
                if outside || output.value().is_output() {
                    let why = format!("`{}` is used besides the pattern", output.name());
                    return Err(Decline::because(why));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// The scalar constants that nodes mention, as a list of initializers.
    pub fn constants(all: &[(&str, f32)], nodes: &str) -> String {
        let words: Vec<_> = nodes.split(|c: char| !c.is_alphanumeric()).collect();
        let used = all.iter().filter(|(name, _)| words.contains(name));
        used.map(|(name, value)| format!("float {name} = {{{value}}}")).collect::<Vec<_>>().join(", ")
    }
}
