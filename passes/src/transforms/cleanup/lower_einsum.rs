use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Dim, Model, Node, NodeRef, Patch, Ref, ValueRef, expect, ops};

pass! {
    /// Rewrite an `Einsum` of two operands as a matrix product.
    ///
    /// `bqhd,bkhd->bhqk` is `MatMul(Transpose(q), Transpose(k))`: letters in both operands and the result are
    /// batch axes, letters in both operands only are summed, and letters in one operand and the result are
    /// rows or columns. Layers and attention become visible to passes and engines that match products, and
    /// the transposes merge with others. Of the equivalent forms the one with the fewest transposes is
    /// chosen.
    ///
    /// Declines equations with `...` or repeated letters, sums over one operand alone, and several axes for
    /// rows, columns or sums, unless the rows are all leading axes.
    #[pass("lower-einsum", Rounding, "einsum lowered", "einsums lowered")]
    pub struct LowerEinsum {}
}

impl Pass for LowerEinsum {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Einsum"], lowered)
    }
}

fn lowered(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (a, b, y) = (at.input(0)?, at.input(1)?, at.output()?);
    expect(at.inputs().len() == 2 && y.dtype().is_some_and(|d| d.is_float()))?;
    let equation: String = at.string("equation", "").chars().filter(|c| !c.is_whitespace()).collect();
    let odd = || Decline::because(format!("{} is not a matrix product: {equation}", at.describe()));
    let (terms, result) = equation.split_once("->").ok_or_else(odd)?;
    let (left, right) = terms.split_once(',').ok_or_else(odd)?;
    let [left, right, result] = [left, right, result].map(letters);
    let (left, right) = (left.ok_or_else(odd)?, right.ok_or_else(odd)?);
    let result = result.ok_or_else(odd)?;
    let ways = [Product::of(a, b, [&left, &right], &result), Product::of(b, a, [&right, &left], &result)];
    let best = ways.into_iter().flatten().min_by_key(Product::transposes).ok_or_else(odd)?;

    let mut patch = Patch::at(at);
    let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
    let [a, b] = best.operands.map(|(value, perm)| transposed(&mut spell, value.into(), &perm));
    let product = spell.node(Node::new("MatMul"), &[a, b]);
    let product = transposed(&mut spell, product, &best.result);
    patch.replace(y, product);
    Ok(patch)
}

/// The letters of a term without repetitions.
fn letters(term: &str) -> Option<Vec<char>> {
    let letters: Vec<_> = term.chars().collect();
    let once = |(i, c): (usize, &char)| c.is_ascii_alphabetic() && !letters[..i].contains(c);
    letters.iter().enumerate().all(once).then(|| letters.clone())
}

fn transposed(spell: &mut NodeBuilder<'_, '_>, value: Ref, perm: &[usize]) -> Ref {
    if ops::is_identity(perm) { value } else { spell.transpose(value, perm) }
}

/// `Transpose(Transpose(a)·Transpose(b))`.
struct Product<'g> {
    operands: [(ValueRef<'g>, Vec<usize>); 2],
    result: Vec<usize>,
}

impl<'g> Product<'g> {
    fn of(a: ValueRef<'g>, b: ValueRef<'g>, [left, right]: [&[char]; 2], result: &[char]) -> Option<Self> {
        let within = |all: &[char], keep: &dyn Fn(char) -> bool| -> Vec<char> {
            all.iter().copied().filter(|&c| keep(c)).collect()
        };
        let (l, r, y) = (|c| left.contains(&c), |c| right.contains(&c), |c: char| result.contains(&c));
        let stacked = within(result, &|c| l(c) && r(c));
        let rows = within(result, &|c| l(c) && !r(c));
        let columns = within(result, &|c| r(c) && !l(c));
        let sums = within(left, &|c| r(c) && !y(c));
        let is_complete = stacked.len() + rows.len() + columns.len() == result.len()
            && stacked.len() + rows.len() + sums.len() == left.len()
            && stacked.len() + columns.len() + sums.len() == right.len();
        // One matrix is shared by all axes in front of its rows.
        let in_place = rows.len() == 1 || stacked.is_empty() && rows.len() > 1;
        if !(is_complete && in_place && sums.len() == 1 && columns.len() == 1) {
            return None;
        }
        let size = |value: ValueRef<'g>, all: &[char]| -> Option<Dim> {
            let axis = all.iter().position(|c| *c == sums[0])?;
            value.shape().filter(|s| s.len() == all.len())?.get(axis).cloned()
        };
        // An einsum broadcasts an axis of size 1, a matrix product does not.
        if size(a, left)? != size(b, right)? {
            return None;
        }
        let perm = |from: &[char], to: &[char]| -> Option<Vec<usize>> {
            to.iter().map(|c| from.iter().position(|f| f == c)).collect()
        };
        let made = [&stacked[..], &rows, &columns].concat();
        Some(Self {
            operands: [
                (a, perm(left, &[&stacked[..], &rows, &sums].concat())?),
                (b, perm(right, &[&stacked[..], &sums, &columns].concat())?),
            ],
            result: perm(&made, result)?,
        })
    }

    /// The number of computed transposes; engines multiply without transposing the last two axes.
    fn transposes(&self) -> usize {
        let cost = |perm: &[usize]| match perm.split_last_chunk() {
            _ if ops::is_identity(perm) => 0,
            Some((front, [p, q])) if ops::is_identity(front) && p > q => 1,
            _ => 2,
        };
        let operands = self.operands.iter().filter(|o| !o.0.is_constant()).map(|o| cost(&o.1));
        operands.sum::<usize>() + cost(&self.result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines};

    #[test]
    fn lowers_attention_scores_and_weighted_values() {
        let graph =
            |x: &str, y: &str, of: &str, nodes: &str| format!("g ({x}) => (float[{of}] {y}) {{ {nodes} }}");
        let attention = |nodes| graph("float[B,5,2,3] q, float[B,7,2,3] k", "s", "B,2,5,7", nodes);
        check(
            LowerEinsum::default(),
            &attention("s = Einsum<equation = \"bqhd,bkhd->bhqk\">(q, k)"),
            &attention(
                "s_1 = Transpose<perm = [0,2,1,3]>(q) s_2 = Transpose<perm = [0,2,3,1]>(k) s = MatMul(s_1, s_2)",
            ),
        );
        let values = |nodes| graph("float[B,2,5,7] p, float[B,7,2,3] v", "c", "B,5,2,3", nodes);
        check(
            LowerEinsum::default(),
            &values("c = Einsum<equation = \"b h q k, b k h d -> b q h d\">(p, v)"),
            &values(
                "c_1 = Transpose<perm = [0,2,1,3]>(v) c_2 = MatMul(p, c_1) c = Transpose<perm = [0,2,1,3]>(c_2)",
            ),
        );
        let plain = |nodes| graph("float[B,2,5,3] q, float[B,2,7,3] k", "s", "B,2,5,7", nodes);
        check(
            LowerEinsum::default(),
            &plain("s = Einsum<equation = \"bhid,bhjd->bhij\">(q, k)"),
            &plain("s_1 = Transpose<perm = [0,1,3,2]>(k) s = MatMul(q, s_1)"),
        );
        // One transpose of the result instead of two of the operands.
        let turned = |nodes| graph("float[2,5,3] q, float[2,3,7] k", "s", "2,7,5", nodes);
        check(
            LowerEinsum::default(),
            &turned("s = Einsum<equation = \"bqd,bdk->bkq\">(q, k)"),
            &turned("s_1 = MatMul(q, k) s = Transpose<perm = [0,2,1]>(s_1)"),
        );
    }

    #[test]
    fn lowers_linear_layer() {
        let graph = |nodes: &str| {
            format!("g (float[N,4,2] x) => (float[N,4,3] y) <float[2,3] w = {{1,2,3,4,5,6}}> {{ {nodes} }}")
        };
        check(
            LowerEinsum::default(),
            &graph("y = Einsum<equation = \"bti,io->bto\">(x, w)"),
            &graph("y = MatMul(x, w)"),
        );
    }

    #[test]
    fn keeps_equations_that_are_not_products() {
        let why = |a: &str, b: &str, y: &str, equation: &str| {
            let text = format!(
                "g (float[{a}] a, float[{b}] b) => (float[{y}] y) {{ y = Einsum<equation = \"{equation}\">(a, b) }}"
            );
            let mut reasons = declines(LowerEinsum::default(), &text);
            assert_eq!(reasons.len(), 1, "{reasons:?}");
            reasons.remove(0)
        };
        for (a, b, y, equation) in [
            ("2,3", "2,3", "2,3", "ij,ij->ij"),
            ("2,3", "2,3", "2", "ij,ij->i"),
            ("2,3", "4,5", "2,5", "ij,kl->il"),
            ("2,3,4", "3,4,5", "2,5", "ijk,jkl->il"),
            ("2,3", "3,4", "2,4", "...j,jk->...k"),
            // Broadcast along the summed axis.
            ("2,1", "3,4", "2,4", "ij,jk->ik"),
        ] {
            assert_eq!(
                why(a, b, y, equation),
                format!("Einsum producing `y` is not a matrix product: {equation}")
            );
        }
    }
}
