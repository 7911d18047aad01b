//! Replacement of an activation by an affine map of each channel.

use crate::analysis::{activation::Activation, calibration::ChannelMoments, linear::Linear};
use pare_graph::{DataType, Decline, Graph, Node, NodeRef, Patch, Ref, Tensor, ValueRef, expect};

/// The map `slope·z + intercept`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    pub slope: f64,
    pub intercept: f64,
}

impl Line {
    pub const IDENTITY: Self = Self { slope: 1.0, intercept: 0.0 };

    /// The least-squares line through the samples of a channel.
    pub fn fit(moments: &ChannelMoments) -> Self {
        let (slope, intercept) = moments.line();
        Self { slope, intercept }
    }
}

/// The patch that replaces an activation with channels along `axis` by the line of each channel.
///
/// If `z = p + q`, the line is distributed, `a·(p + q) + c = (a·p + c) + a·q`, so that it can be folded into
/// the producers of the terms.
pub fn replace(
    graph: &Graph,
    activation: &Activation,
    axis: usize,
    lines: &[Line],
) -> Result<Patch, Decline> {
    let (z, y) = (graph.value_ref(activation.input), graph.value_ref(activation.output));
    let end = activation.end(graph).ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(end);
    if lines.iter().all(|&line| line == Line::IDENTITY) {
        patch.replace(y, z);
        return Ok(patch);
    }
    let (rank, dtype) = (z.rank()?, z.dtype().ok_or(Decline::Mismatch)?);
    expect(end.graph.opset("").is_some_and(|opset| opset >= 7))?;
    let mut writer = LineWriter { patch, hint: format!("{}_line", y.name()), rank, axis, dtype };
    let scales: Vec<_> = lines.iter().map(|&line| Line { intercept: 0.0, ..line }).collect();
    let replacement = match terms(z, activation) {
        Some((add, p, q)) => {
            let p = writer.apply(p, lines)?;
            let q = writer.apply(q, &scales)?;
            writer.patch.node(y.name(), add.node().clone(), &[p, q])
        }
        None => writer.apply(z, lines)?,
    };
    writer.patch.replace(y, replacement);
    Ok(writer.patch)
}

/// The `Add` that produces the input of an activation and has no other use, and its terms, first one that is
/// produced by a layer without other uses.
fn terms<'g>(z: ValueRef<'g>, activation: &Activation) -> Option<(NodeRef<'g>, ValueRef<'g>, ValueRef<'g>)> {
    let add = z.produced_by("Add").ok()?;
    let sole_use =
        z.users().iter().all(|(user, _)| activation.nodes.contains(&user.id)) && !z.value().is_output();
    let (a, b) = (add.input(0).ok()?, add.input(1).ok()?);
    let alike = a.shape().is_some() && a.shape() == b.shape() && a.id != b.id;
    let open = !a.is_constant() && !b.is_constant();
    if !(sole_use && alike && open) {
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

struct LineWriter {
    patch: Patch,
    hint: String,
    rank: usize,
    axis: usize,
    dtype: DataType,
}

impl LineWriter {
    /// `a·x + c`, as a single node where possible.
    fn apply(&mut self, x: ValueRef<'_>, lines: &[Line]) -> Result<Ref, Decline> {
        let (a, c): (Vec<_>, Vec<_>) = lines.iter().map(|l| (l.slope, l.intercept)).unzip();
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
