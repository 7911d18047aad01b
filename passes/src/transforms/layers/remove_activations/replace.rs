//! An activation gives way to a line for each channel.

use crate::analysis::{activation::Activation, linear::Linear};
use pare_graph::{DataType, Decline, Graph, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect};

/// The patch that puts `y = a·z + c` in the place of an activation whose channels lie along `axis`.
///
/// Before a sum the line is shared out, `a·(p + q) + c = (a·p + c) + a·q`, so that it can go into the layers that make
/// the terms.
pub fn replace(
    graph: &Graph,
    activation: &Activation,
    axis: usize,
    lines: &[(f64, f64)],
) -> Result<Patch, Decline> {
    let (z, y) = (graph.value_ref(activation.input), graph.value_ref(activation.output));
    let end = activation.end(graph).ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(end);
    if lines.iter().all(|&line| line == (1.0, 0.0)) {
        patch.replace(y, z);
        return Ok(patch);
    }
    let (rank, dtype) = (z.rank()?, z.dtype().ok_or(Decline::Mismatch)?);
    expect(end.graph.opset("").is_some_and(|opset| opset >= 7))?;
    let mut line = Line { patch, hint: format!("{}_line", y.name()), rank, axis, dtype };
    let without: Vec<_> = lines.iter().map(|&(a, _)| (a, 0.0)).collect();
    let made = match terms(z, activation) {
        Some((add, p, q)) => {
            let p = line.of(p, lines)?;
            let q = line.of(q, &without)?;
            line.patch.node(y.name(), add.node().clone(), &[p, q])
        }
        None => line.of(z, lines)?,
    };
    line.patch.replace(y, made);
    Ok(line.patch)
}

/// The sum that is all that goes into an activation, and its terms: first one that a layer makes for it alone.
fn terms<'g>(z: ValueRef<'g>, activation: &Activation) -> Option<(NodeRef<'g>, ValueRef<'g>, ValueRef<'g>)> {
    let add = z.produced_by("Add").ok()?;
    let alone =
        z.users().iter().all(|(user, _)| activation.nodes.contains(&user.id)) && !z.value().is_output();
    let (a, b) = (add.input(0).ok()?, add.input(1).ok()?);
    let alike = a.shape().is_some() && a.shape() == b.shape() && a.id != b.id;
    let open = !a.is_constant() && !b.is_constant();
    if !(alone && alike && open) {
        return None;
    }
    let owned =
        |v: ValueRef<'_>| v.sole_use().is_ok() && v.producer().is_some_and(|at| Linear::of(at).is_ok());
    match (owned(a), owned(b)) {
        (true, _) => Some((add, a, b)),
        (_, true) => Some((add, b, a)),
        _ => None,
    }
}

struct Line {
    patch: Patch,
    hint: String,
    rank: usize,
    axis: usize,
    dtype: DataType,
}

impl Line {
    /// `a·x + c`: one node where there is one for it.
    fn of(&mut self, x: ValueRef<'_>, lines: &[(f64, f64)]) -> Result<Ref, Decline> {
        let (a, c): (Vec<_>, Vec<_>) = lines.iter().copied().unzip();
        let (scales, shifts) = (a.iter().any(|&a| a != 1.0), c.iter().any(|&c| c != 0.0));
        let mut y = Ref::from(x);
        if scales && shifts && self.axis == 1 {
            let shape = [lines.len()];
            let (zeros, ones) = (vec![0.0; lines.len()], vec![1.0; lines.len()]);
            let mut inputs = vec![y];
            for (what, values) in [("scale", &a), ("shift", &c), ("mean", &zeros), ("variance", &ones)] {
                inputs.push(self.constant(what, &shape, values)?);
            }
            let node = Node::new("BatchNormalization").with("epsilon", 0.0_f32);
            return Ok(self.patch.node(&self.hint, node, &inputs));
        }
        let shape: Vec<_> = [lines.len()].into_iter().chain(vec![1; self.rank - 1 - self.axis]).collect();
        for (needed, op, values) in [(scales, "Mul", &a), (shifts, "Add", &c)] {
            if needed {
                let constant = self.constant(&op.to_lowercase(), &shape, values)?;
                y = self.patch.node(&self.hint, Node::new(op), &[y, constant]);
            }
        }
        Ok(y)
    }

    fn constant(&mut self, what: &str, shape: &[usize], values: &[f64]) -> Result<Ref, Decline> {
        let tensor = Tensor::from_f64(self.dtype, shape, values).map_err(|_| Decline::Mismatch)?;
        Ok(self.patch.constant(&format!("{}_{what}", self.hint), tensor))
    }
}
