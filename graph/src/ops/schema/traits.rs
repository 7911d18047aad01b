//! Properties of operators that rewrite rules rely on, from the table `traits.txt`.

use crate::{NodeRef, standard_domain};
use std::{collections::HashMap, sync::OnceLock};

/// A property that every node of an operator has, whatever its attributes.
///
/// Data movement, [`Rectifier`](Trait::Rectifier), [`Idempotent`](Trait::Idempotent),
/// [`Involution`](Trait::Involution) and [`Commutative`](Trait::Commutative) hold bit for bit; the other
/// traits hold for the function of real numbers, which engines round. Inputs are not NaN. A
/// [`Random`](Trait::Random) operator has its other traits if it draws no numbers (`Dropout` at inference).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trait {
    /// Each element of every output is a function of the elements at its index in the inputs, the same at
    /// every index. Inputs broadcast as in numpy.
    Elementwise,
    /// Elementwise non-linearity between layers: an output of the shape and type of input 0. Further inputs
    /// are parameters.
    Activation,
    /// Elementwise, and `f(x) = x` for `x ≥ 0`.
    Rectifier,
    /// Elementwise, and non-decreasing in input 0 with all other inputs fixed.
    Monotone,
    /// Elementwise comparison of two numbers, with a boolean output.
    Comparison,
    /// `f(f(x)) = f(x)` in input 0, with equal attributes and further inputs.
    Idempotent,
    /// `f(f(x)) = x` in input 0, with equal attributes and further inputs.
    Involution,
    /// Exchanging inputs 0 and 1 does not change the output.
    Commutative,
    /// No element of a floating-point output is negative.
    NonNegative,
    /// Every element of the output is between 0 and 1.
    UnitInterval,
    /// Affine in input 0, with all other inputs fixed: `f(a·x + b·y) = a·f(x) + b·f(y)` for `a + b = 1`. For
    /// `BatchNormalization` at inference.
    Linear,
    /// Every element of the outputs is a copy of an element of input 0, or of any input of a variadic
    /// operator. The selection depends on shapes, attributes and the other inputs only.
    DataMovement,
    /// Data movement that uses every element of input 0 exactly once.
    View,
    /// View with the elements in their row-major order: only the shape changes.
    Reshape,
    /// Combines the elements along the axes given by `axes`, and keeps these with size 1 if `keepdims` is
    /// set.
    Reduction,
    /// Converts between real numbers and integers with a scale and a zero point.
    Quantization,
    /// May return different outputs for equal inputs: draws random numbers, or calls code that is not known.
    Random,
}

impl Trait {
    /// All traits, with their names in the table.
    const NAMES: [(&str, Self); 17] = [
        ("elementwise", Self::Elementwise),
        ("activation", Self::Activation),
        ("rectifier", Self::Rectifier),
        ("monotone", Self::Monotone),
        ("comparison", Self::Comparison),
        ("idempotent", Self::Idempotent),
        ("involution", Self::Involution),
        ("commutative", Self::Commutative),
        ("non-negative", Self::NonNegative),
        ("unit-interval", Self::UnitInterval),
        ("linear", Self::Linear),
        ("data-movement", Self::DataMovement),
        ("view", Self::View),
        ("reshape", Self::Reshape),
        ("reduction", Self::Reduction),
        ("quantization", Self::Quantization),
        ("random", Self::Random),
    ];

    /// All traits.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(_, of)| of)
    }

    /// The weaker trait that follows from this one.
    const fn implied(self) -> Option<Self> {
        match self {
            Self::Activation | Self::Rectifier | Self::Monotone | Self::Comparison => Some(Self::Elementwise),
            Self::UnitInterval => Some(Self::NonNegative),
            Self::Reshape => Some(Self::View),
            Self::View => Some(Self::DataMovement),
            Self::DataMovement => Some(Self::Linear),
            _ => None,
        }
    }
}

/// The traits of an operator, each with the first operator set in which it holds.
type Row = Vec<(Trait, i64)>;
type Table = HashMap<(&'static str, &'static str), Row>;

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| parse(include_str!("traits.txt")).expect("valid table of traits"))
}

fn parse(text: &'static str) -> Option<Table> {
    let (mut table, mut domain) = (Table::new(), "");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("domain ") {
            domain = standard_domain(name);
        } else {
            let mut words = line.split(' ');
            let replaced = table.insert((domain, words.next()?), parse_row(words)?);
            replaced.is_none().then_some(())?;
        }
    }
    Some(table)
}

fn parse_row(words: impl Iterator<Item = &'static str>) -> Option<Row> {
    let mut row = Row::new();
    for word in words {
        let (name, since) = word.split_once('@').unwrap_or((word, "1"));
        let of = Trait::NAMES.iter().find(|(n, _)| *n == name)?.1;
        row.push((of, since.parse().ok()?));
    }
    // A version given in the row takes precedence over that of a stronger trait.
    let mut next = 0;
    while let Some(&(of, since)) = row.get(next) {
        if let Some(weaker) = of.implied().filter(|weaker| row.iter().all(|(t, _)| t != weaker)) {
            row.push((weaker, since));
        }
        next += 1;
    }
    Some(row)
}

fn row<'a>(domain: &'a str, op: &'a str) -> Option<&'a [(Trait, i64)]> {
    table().get(&(standard_domain(domain), op)).map(Vec::as_slice)
}

/// The traits of an operator in an operator set; `None` if the table does not list the operator.
pub fn traits(domain: &str, op: &str, opset: i64) -> Option<Vec<Trait>> {
    let held = row(domain, op)?.iter().filter(|(_, since)| *since <= opset);
    Some(held.map(|(of, _)| *of).collect())
}

/// The operators of all domains with a trait, by name: the nodes to which a rule for the trait may apply.
pub fn operators_with(of: Trait) -> Vec<&'static str> {
    let rows = table().iter().filter(|(_, row)| row.iter().any(|(t, _)| *t == of));
    let mut names: Vec<_> = rows.map(|((_, op), _)| *op).collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl NodeRef<'_> {
    /// Returns true if the node has a trait. Nodes of operators that the table does not list have none.
    pub fn has(self, of: Trait) -> bool {
        let opset = self.opset();
        // Before operator set 7, `axis` aligns the second input with any axes of the first.
        let misaligned = of == Trait::Elementwise && opset < 7 && self.attr("axis").is_some();
        let row = row(self.node().domain(), self.op()).unwrap_or_default();
        !misaligned && row.iter().any(|&(t, since)| t == of && since <= opset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Model, ops, text::parse_graph};

    #[test]
    fn lists_every_standard_operator() {
        for (domain, opset) in
            [("", 28), ("ai.onnx.ml", 5), ("ai.onnx.preview", 1), ("ai.onnx.preview.training", 1)]
        {
            assert_eq!(ops::newest_opset(domain), Some(opset));
            for old in 1..=opset {
                for op in ops::operators(domain, old) {
                    assert!(traits(domain, op, old).is_some(), "{op} of `{domain}` has no row in traits.txt");
                }
            }
        }
        for (domain, op) in table().keys().filter(|(domain, _)| ops::is_known_domain(domain)) {
            let newest = ops::newest_opset(domain).unwrap();
            assert!(
                ops::schema(domain, op, newest).is_some(),
                "{op} of `{domain}` is not a standard operator"
            );
        }
    }

    #[test]
    fn adds_implied_traits() {
        let of = |op| traits("ai.onnx", op, 28).unwrap();
        use Trait::{DataMovement, Elementwise, Linear, Rectifier, View};
        assert_eq!(of("Transpose"), [View, DataMovement, Linear]);
        assert!(of("Relu").contains(&Rectifier) && of("Relu").contains(&Elementwise));
        assert!(of("Constant").is_empty() && traits("", "Unknown", 28).is_none());
        assert!(operators_with(Trait::Quantization).contains(&"QuantizeLinear"));
    }

    #[test]
    fn depends_on_operator_set_and_alignment() {
        let has = |node: &str, opset, of| {
            let text = format!("g (float[2,3] x, float[2] s) => (float[2,3] y) {{ y = {node} }}");
            let model = Model::of(parse_graph(&text, opset).unwrap());
            model.graph.at(model.graph.nodes()[0]).has(of)
        };
        assert!(has("Add<axis = 0, broadcast = 1>(x, s)", 6, Trait::Linear));
        assert!(!has("Add<axis = 0, broadcast = 1>(x, s)", 6, Trait::Elementwise));
        assert!(has("Add(x, x)", 6, Trait::Elementwise) && !has("Add(x, x)", 6, Trait::Commutative));
        assert!(has("PRelu(x, s)", 6, Trait::Rectifier) && !has("PRelu(x, s)", 6, Trait::Elementwise));
        assert!(has("PRelu(x, s)", 7, Trait::Elementwise) && has("Add(x, x)", 7, Trait::Commutative));
    }
}
