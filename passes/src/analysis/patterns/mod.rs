//! Matchers for functions that are composed of elementary operators: scalars, products, and the nodes of a
//! pattern.

mod gelu;
mod hard_swish;
mod norm;

pub(crate) use gelu::Gelu;
pub(crate) use hard_swish::{Clipped, HardSwish};
pub(crate) use norm::Norm;

use crate::framework::matching::uniform;
use pare_graph::{DataType, Decline, NodeId, NodeRef, ValueRef, expect};

/// Returns the value of a constant that broadcasts as a scalar to operands of any rank.
pub(crate) fn scalar(c: ValueRef<'_>) -> Result<f64, Decline> {
    let tensor = c.constant()?;
    expect(tensor.rank() == 0 || tensor.len() == 1 && tensor.rank() == 1)?;
    uniform(tensor).ok_or(Decline::Mismatch)
}

/// Returns `x` and the scalar `c` of `x ∘ c` or `c ∘ x`, for a commutative operator.
pub(crate) fn beside_scalar(at: NodeRef<'_>) -> Result<(ValueRef<'_>, f64), Decline> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    match (scalar(a), scalar(b)) {
        (_, Ok(c)) => Ok((a, c)),
        (Ok(c), _) => Ok((b, c)),
        (Err(decline), _) => Err(decline),
    }
}

/// Returns `x` of `1/x`.
pub(crate) fn reciprocal(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    if at.is("Reciprocal") {
        return at.input(0);
    }
    expect(at.is("Div") && at.opset() >= 7 && scalar(at.input(0)?)? == 1.0)?;
    at.input(1)
}

/// Returns whether two constants are equal up to the rounding of an exporter that computes in f32: the
/// relative error of three operations is below 4·2⁻²⁴.
pub(crate) fn is(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= 4.0 * expected.abs() * f64::from(f32::EPSILON) / 2.0
}

/// Declines unless the elements are `float`: for other types the fused operator has another precision, or
/// does not exist.
pub(crate) fn is_float(x: ValueRef<'_>) -> Result<(), Decline> {
    expect(x.dtype() == Some(DataType::Float))
}

/// A tree of `Mul`, and of `Div` by constants, as a constant factor and the other factors.
pub(crate) struct Product<'g> {
    pub constant: f64,
    pub factors: Vec<ValueRef<'g>>,
    /// The nodes of the tree.
    pub nodes: Vec<NodeId>,
}

impl<'g> Product<'g> {
    /// Reads the product that `at` computes. Factors with other users are not expanded.
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

/// The nodes of a pattern.
pub(crate) struct Parts(pub Vec<NodeId>);

impl Parts {
    /// Declines if an output of a node other than `end` is used outside the pattern.
    pub fn are_alone(&self, at: NodeRef<'_>, end: NodeId) -> Result<(), Decline> {
        for &id in self.0.iter().filter(|&&id| id != end) {
            for output in at.graph.at(id).outputs().into_iter().flatten() {
                let outside = output.users().iter().any(|(user, _)| !self.0.contains(&user.id));
                if outside || output.value().is_output() {
                    let why = format!("`{}` is used outside the pattern", output.name());
                    return Err(Decline::because(why));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    /// The scalar constants that the text of nodes names, as a list of initializers.
    pub fn constants(all: &[(&str, f32)], nodes: &str) -> String {
        let words: Vec<_> = nodes.split(|c: char| !c.is_alphanumeric()).collect();
        let used = all.iter().filter(|(name, _)| words.contains(name));
        used.map(|(name, value)| format!("float {name} = {{{value}}}")).collect::<Vec<_>>().join(", ")
    }
}
