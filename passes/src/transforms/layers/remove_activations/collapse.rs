//! Replacement of the linear end of a network by one matrix per value that it starts from.
//!
//! Without activations between values `vᵢ` and an output `y` with few elements, `y = Σ Mᵢ·vᵢ + c` costs
//! `|y|·Σ|vᵢ|` multiply-accumulates, however many layers there are in between. The columns of `Mᵢ` are the
//! outputs for unit vectors less `c`, the output for zeros, both computed by the engine.

use super::ActivationSearch;
use crate::{
    analysis::calibration::{Probe, floats},
    framework::PassError,
};
use pare_graph::{
    Edge, Graph, Model, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueId, ValueRef,
    ops::{AffineView, PadMode, PadView, Trait},
};
use std::collections::HashSet;

/// The largest number of matrix elements, 64 MiB in the file.
const MAX_ELEMENTS: usize = 1 << 24;
/// Unit vectors per run.
const BATCH: usize = 64;

impl ActivationSearch<'_, '_> {
    /// Replaces linear ends of a model by matrices where that reduces the MACs. Returns their number.
    pub fn collapse_linear_ends(&self, model: &mut Model) -> Result<u64, PassError> {
        let mut count = 0;
        for output in model.graph.outputs().to_vec() {
            let Some(end) = LinearEnd::of(&model.graph, output) else { continue };
            let mut changed = model.clone();
            let patch = self.collapsed(model, &end)?;
            if changed.graph.apply(patch).is_err() || changed.infer().is_err() {
                continue;
            }
            let sizes = self.tools.sizes(&model.graph);
            let macs = |model: &Model| model.cost(&sizes).macs;
            if macs(&changed) < macs(model) {
                *model = changed;
                count += 1;
            }
        }
        Ok(count)
    }

    fn collapsed(&self, model: &Model, end: &LinearEnd) -> Result<Patch, PassError> {
        let graph = &model.graph;
        let y = graph.value_ref(end.output);
        let starts: Vec<_> = end.starts.iter().map(|s| s.value).collect();
        let mut probe = Probe::new(self.tools, model, &starts, &[end.output])?;
        let mut run = |of: usize, first: usize| -> Result<Vec<f32>, PassError> {
            let mut feeds = vec![];
            for (i, start) in end.starts.iter().enumerate() {
                let each = start.elements();
                let mut values = vec![0.0_f32; end.batch * each];
                if i == of {
                    (0..end.batch.min(each - first)).for_each(|j| values[j * each + first + j] = 1.0);
                }
                let shape = [&[end.batch], &start.shape[..]].concat();
                let tensor = Tensor::from_slice(&shape, &values).map_err(PassError::from_error)?;
                feeds.push((graph.value(start.value).name.clone(), tensor));
            }
            Ok(floats(&probe.run(&feeds)?[0])?.into_owned())
        };
        let m = end.elements;
        let mut patch = Patch::anchored(end.last);
        let mut sum: Option<Ref> = None;
        for (i, start) in end.starts.iter().enumerate() {
            let each = start.elements();
            let mut matrix = vec![0.0_f64; each * m];
            let zero = run(usize::MAX, 0)?;
            for first in (0..each).step_by(end.batch) {
                let rows = run(i, first)?;
                let wanted = m * end.batch.min(each - first);
                for (j, (&row, &zero)) in rows.iter().zip(&zero).take(wanted).enumerate() {
                    matrix[first * m + j] = f64::from(row) - f64::from(zero);
                }
            }
            let bias: Vec<_> = zero.iter().take(m).map(|&c| f64::from(c)).collect();
            let mut constant = |what: &str, shape: &[usize], values: &[f64]| {
                let tensor = Tensor::from_f64(pare_graph::DataType::Float, shape, values);
                let tensor = tensor.map_err(PassError::from_error)?;
                Ok::<_, PassError>(patch.constant(&format!("{}_{what}", y.name()), tensor))
            };
            let w = constant("matrix", &[each, m], &matrix)?;
            // Only the first term includes the constant.
            let b = constant("constant", &[m], &if sum.is_none() { bias } else { vec![0.0; m] })?;
            let x = match start.shape.len() {
                1 => Ref::Old(start.value),
                _ => patch.node(y.name(), Node::new("Flatten"), &[Ref::Old(start.value)]),
            };
            let term = patch.node(y.name(), Node::new("Gemm"), &[x, w, b]);
            sum = Some(match sum {
                Some(sum) => patch.node(y.name(), Node::new("Add"), &[sum, term]),
                None => term,
            });
        }
        if let Some(sum) = sum {
            patch.replace(y, sum);
        }
        Ok(patch)
    }
}

/// The nodes between some values and an output, all of them linear.
struct LinearEnd {
    output: ValueId,
    /// The producer of the output.
    last: NodeId,
    /// Elements of the output per sample.
    elements: usize,
    /// The values that it starts from.
    starts: Vec<Start>,
    /// Samples per run.
    batch: usize,
}

/// A value that a linear end starts from.
struct Start {
    value: ValueId,
    /// Its shape per sample.
    shape: Vec<usize>,
}

impl Start {
    /// Elements per sample.
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl LinearEnd {
    /// The largest linear end with this output, if that has shape `[samples, classes]`.
    fn of(graph: &Graph, output: ValueId) -> Option<Self> {
        let y = graph.value_ref(output);
        let shape = y.shape().filter(|s| s.len() == 2)?;
        let (samples, elements) = (shape[0].clone(), shape[1].size()?);
        let last = graph.producer(output)?.0;
        // Users before producers.
        let mut inside = HashSet::new();
        let mut layers = 0;
        for &id in graph.nodes().iter().rev() {
            let outputs: Vec<_> = graph.outputs_of(id).into_iter().flatten().collect();
            let within = |v: &ValueId| {
                let users = graph.users(*v);
                let read =
                    users.iter().all(|(user, edge)| inside.contains(user) && matches!(edge, Edge::Input(_)));
                *v == output && users.is_empty() || read && !users.is_empty() && !graph.value(*v).is_output()
            };
            let alike = |v: &ValueId| {
                let v = graph.value_ref(*v);
                v.shape().and_then(|s| s.first()) == Some(&samples) && v.dtype() == y.dtype()
            };
            let data = linear_inputs(graph.at(id)).filter(|data| data.iter().chain(&outputs).all(alike));
            if data.is_some() && outputs.iter().all(within) && !outputs.is_empty() {
                inside.insert(id);
                layers += usize::from(matches!(graph.node(id).op.as_str(), "Conv" | "Gemm" | "MatMul"));
            }
        }
        // A single layer is a matrix already.
        if layers < 2 || y.dtype() != Some(pare_graph::DataType::Float) {
            return None;
        }
        let mut starts: Vec<Start> = vec![];
        for &id in graph.nodes().iter().filter(|id| inside.contains(id)) {
            for value in linear_inputs(graph.at(id))? {
                let computed = graph.producer(value).is_some_and(|(producer, _)| inside.contains(&producer));
                if !computed && starts.iter().all(|s| s.value != value) {
                    let shape: Option<Vec<_>> =
                        graph.value(value).fact.shape()?[1..].iter().map(pare_graph::Dim::size).collect();
                    starts.push(Start { value, shape: shape? });
                }
            }
        }
        let total = starts.iter().map(Start::elements).sum::<usize>();
        let fits = total > 0 && total.checked_mul(elements).is_some_and(|n| n <= MAX_ELEMENTS);
        let batch = samples.size().unwrap_or(BATCH);
        fits.then_some(Self { output, last, elements, starts, batch })
    }
}

/// The inputs that a node is affine in: all that are not constant. `None` if it is not affine in them.
fn linear_inputs(at: NodeRef<'_>) -> Option<Vec<ValueId>> {
    if !at.node().domain().is_empty() || at.has_references() {
        return None;
    }
    let open: Vec<ValueRef<'_>> = at.inputs().into_iter().flatten().filter(|v| !v.is_constant()).collect();
    let first = open.len() == 1 && at.optional(0).is_some_and(|v| v.id == open[0].id);
    let is_affine = match at.op() {
        // Further linear operators may mix the samples along axis 0.
        "Conv" | "ConvTranspose" | "Gemm" | "MatMul" | "Div" | "Neg" | "AveragePool"
        | "GlobalAveragePool" | "ReduceMean" | "ReduceSum" | "Transpose" | "Slice" => first,
        _ if at.has(Trait::Reshape) => first,
        "BatchNormalization" => first && AffineView::of(at).is_ok(),
        "Pad" => first && PadView::of(at).is_ok_and(|pad| matches!(pad.mode, PadMode::Constant(_))),
        "Add" | "Sub" | "Sum" | "Concat" => !open.is_empty(),
        "Mul" => open.len() == 1,
        _ => false,
    };
    is_affine.then(|| open.into_iter().map(|v| v.id).collect())
}
