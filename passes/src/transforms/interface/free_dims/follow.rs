//! The freed axes of every value: rules by operator.
//!
//! The inferred shapes contain the symbol where the freed axis is kept. A rule states where it must be kept;
//! where inference disagrees, a constant contains the old size, and is edited ([`super::edit`]).

use super::edit;
use pare_graph::{
    Dim, Graph, Model, NodeRef, Patch, ValueId, ValueRef,
    ops::{
        LayerNormView, PadView, ReduceView, SliceView, SoftmaxView, SqueezeView, Trait, TransposeView,
        UnsqueezeView, axis_of,
    },
};
use std::{cell::Cell, collections::HashMap};

/// Axes of a value, sorted.
pub(super) type Axes = Vec<usize>;

/// The result of a rule, or the reason why the axis cannot be followed.
pub(super) type Followed = Result<Rule, String>;

/// The result of a rule.
pub(super) enum Rule {
    /// The freed axes that the outputs must have.
    Axes(Vec<Axes>),
    /// The freed axes are those that inference finds.
    Inferred,
    /// A constant must change first.
    Edit(Patch),
}

/// The search for the freed axes.
pub(super) struct Follow {
    symbol: String,
    pub size: i64,
    /// True if positions may not be related.
    apart: bool,
    /// The first node that relates positions.
    pub related_by: Option<String>,
    /// The shapes before, by name.
    old: HashMap<String, Vec<Dim>>,
}

/// Edits per node after which the search ends: every node has few constant inputs.
const EDITS_PER_NODE: usize = 8;

impl Follow {
    pub fn new(old: &Graph, symbol: &str, size: i64, apart: bool) -> Self {
        let shape = |v: ValueId| Some((old.value(v).name.clone(), old.value(v).fact.shape()?.to_vec()));
        let old = old.values().filter_map(shape).collect();
        Self { symbol: symbol.into(), size, apart, related_by: None, old }
    }

    /// Follows the symbol through the main graph, and edits constants that contain the old size.
    pub fn run(&mut self, model: &mut Model) -> Result<(), String> {
        let infer = |model: &mut Model| model.infer().map_err(|e| format!("{}: {}", e.node, e.why));
        infer(model)?;
        for _ in 0..=EDITS_PER_NODE * (model.graph.node_count() + 1) {
            let Some(patch) = self.first_edit(&model.graph)? else {
                return self.check(&model.graph);
            };
            model.graph.apply(patch).map_err(|e| e.to_string())?;
            infer(model)?;
        }
        Err("the constants that contain the size do not settle".into())
    }

    /// Checks the nodes in order, up to the first that needs an edit.
    fn first_edit(&mut self, graph: &Graph) -> Result<Option<Patch>, String> {
        for &id in graph.nodes().iter() {
            let at = graph.at(id);
            let wanted = match self.rule(at)? {
                Rule::Edit(patch) => return Ok(Some(patch)),
                Rule::Inferred => continue,
                Rule::Axes(axes) => axes,
            };
            for (output, axes) in at.outputs().into_iter().zip(wanted) {
                if let Some(output) = output
                    && self.axes(graph, output.id) != axes
                {
                    return Err(format!(
                        "{} does not keep the freed axis in `{}`",
                        at.describe(),
                        output.name()
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Checks that at the old size all shapes are those of the original.
    fn check(&self, graph: &Graph) -> Result<(), String> {
        for id in graph.values() {
            let value = graph.value(id);
            let (Some(old), Some(new)) = (self.old.get(&value.name), value.fact.shape()) else { continue };
            let at_old = |d: &Dim| d.eval(&|symbol| (symbol == self.symbol).then_some(self.size));
            let differs =
                |(old, new): (&Dim, &Dim)| matches!((old.known(), at_old(new)), (Some(a), Some(b)) if a != b);
            if old.len() != new.len() || old.iter().zip(new).any(differs) {
                return Err(format!("`{}` would have another shape at the old size", value.name));
            }
        }
        Ok(())
    }

    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// Returns true if a size depends on the freed axis.
    pub fn depends(&self, dim: &Dim) -> bool {
        let found = Cell::new(false);
        let size = |symbol: &str| {
            found.set(found.get() || symbol == self.symbol);
            Some(1)
        };
        dim.known().is_none() && {
            let _ = dim.eval_with(&size, &|_| Some(1));
            found.get()
        }
    }

    /// The freed axes of a value.
    pub fn axes(&self, graph: &Graph, id: ValueId) -> Axes {
        let shape = graph.value(id).fact.shape().unwrap_or_default();
        (0..shape.len()).filter(|&i| self.depends(&shape[i])).collect()
    }

    fn of(&self, value: ValueRef<'_>) -> Axes {
        self.axes(value.graph, value.id)
    }

    /// The freed axes of an input; none if it is omitted.
    pub fn input(&self, at: NodeRef<'_>, slot: usize) -> Axes {
        at.optional(slot).map_or_else(Axes::new, |v| self.of(v))
    }

    /// The shape of a value before.
    pub fn old_dims(&self, value: ValueRef<'_>) -> Option<&[Dim]> {
        self.old.get(value.name()).map(Vec::as_slice)
    }

    /// The shape of a value before, if all sizes were numbers.
    pub fn old_shape(&self, value: ValueRef<'_>) -> Option<Vec<i64>> {
        self.old.get(value.name())?.iter().map(Dim::known).collect()
    }

    /// Records that a node relates positions of the axis.
    pub fn relate(&mut self, at: NodeRef<'_>) -> Result<(), String> {
        if self.apart {
            return Err(format!("{} relates the samples of the batch", at.describe()));
        }
        self.related_by.get_or_insert_with(|| at.describe());
        Ok(())
    }

    fn relate_if(&mut self, at: NodeRef<'_>, condition: bool) -> Result<(), String> {
        if condition { self.relate(at) } else { Ok(()) }
    }

    fn rule(&mut self, at: NodeRef<'_>) -> Followed {
        let graph = at.graph;
        if graph.captured_by(at.id).into_iter().any(|v| !self.axes(graph, v).is_empty()) {
            return Err(format!("a subgraph of {} reads the freed axis", at.describe()));
        }
        let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
        if inputs.iter().all(|&v| self.of(v).is_empty()) {
            return self.sizes(at, &inputs);
        }
        match at.node().domain() {
            "" => self.standard(at),
            "ai.onnx.ml" => self.rows(at),
            "com.microsoft" => self.microsoft(at),
            _ => Err(unknown(at)),
        }
    }

    /// A node that at most computes with the size of the axis.
    fn sizes(&mut self, at: NodeRef<'_>, inputs: &[ValueRef<'_>]) -> Followed {
        let content =
            |v: ValueRef<'_>| v.value().fact.content().is_some_and(|c| c.iter().any(|d| self.depends(d)));
        if inputs.iter().any(|&v| content(v)) {
            let outputs: Vec<_> = at.outputs().into_iter().flatten().collect();
            let shapes = ["Reshape", "Expand", "ConstantOfShape", "Tile"].iter().any(|op| at.is(op));
            // Sizes that are data, and numbers of positions.
            let is_size = |v: &ValueRef<'_>| v.value().fact.content().is_some();
            self.relate_if(at, !shapes && !outputs.iter().all(is_size))?;
        }
        Ok(Rule::Inferred)
    }

    fn standard(&mut self, at: NodeRef<'_>) -> Followed {
        let x = self.input(at, 0);
        let outputs = at.outputs().len();
        let every = |axes: Axes| Ok(Rule::Axes(vec![axes; outputs]));
        let reason = |_| unknown(at);
        if at.has(Trait::Elementwise) {
            return self.broadcast(at);
        }
        match at.op() {
            "Shape" | "Size" => Ok(Rule::Inferred),
            "Dropout" | "CastLike" | "QuantizeLinear" | "DequantizeLinear" => {
                self.only_first(at)?;
                every(x)
            }
            "DynamicQuantizeLinear" => {
                self.relate(at)?;
                Ok(Rule::Axes(vec![x, vec![], vec![]]))
            }
            "Reshape" | "Flatten" => edit::reshape(self, at),
            "Expand" => edit::expand(self, at),
            "Transpose" => {
                let perm = TransposeView::of(at).map_err(reason)?.perm;
                every((0..perm.len()).filter(|&i| x.contains(&perm[i])).collect())
            }
            "Squeeze" => {
                let removed = SqueezeView::of(at)
                    .map_err(|_| format!("{} may remove the freed axis", at.describe()))?
                    .axes;
                if x.iter().any(|a| removed.contains(a)) {
                    return Err(format!("{} removes the freed axis", at.describe()));
                }
                every(x.iter().map(|a| a - removed.iter().filter(|r| *r < a).count()).collect())
            }
            "Unsqueeze" => {
                let mut axes = x;
                for added in UnsqueezeView::of(at).map_err(reason)?.axes {
                    axes.iter_mut().filter(|a| **a >= added).for_each(|a| *a += 1);
                }
                every(axes)
            }
            "Softmax" | "LogSoftmax" | "Hardmax" => {
                let view = SoftmaxView::of(at).map_err(reason)?;
                self.relate_if(at, x.iter().any(|a| view.axes.contains(a)))?;
                every(x)
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => self.layer_norm(at),
            "LpNormalization" | "CumSum" | "TopK" => {
                let axis = match at.op() {
                    "CumSum" => {
                        let axis = at.input(1).and_then(|v| v.scalar()).map_err(reason)? as i64;
                        usize::try_from(if axis < 0 { axis + rank(at, 0)? as i64 } else { axis })
                            .map_err(|_| unknown(at))?
                    }
                    _ => axis_of(at).map_err(reason)?,
                };
                if at.is("TopK") && x.contains(&axis) {
                    return Err(format!("{} selects positions of the freed axis", at.describe()));
                }
                self.relate_if(at, x.contains(&axis))?;
                every(x)
            }
            "Trilu" => {
                let last = rank(at, 0)?.saturating_sub(2);
                self.relate_if(at, x.iter().any(|&a| a >= last))?;
                every(x)
            }
            "ArgMax" | "ArgMin" => {
                let axis = axis_of(at).map_err(reason)?;
                self.reduced(at, &[axis], at.int("keepdims", 1) != 0)
            }
            _ if at.has(Trait::Reduction) => {
                let ReduceView { axes, keepdims } = ReduceView::of(at).map_err(reason)?;
                self.reduced(at, &axes, keepdims)
            }
            "MatMul" | "MatMulInteger" => self.product(at),
            "Gemm" => self.gemm(at),
            "BatchNormalization" => {
                self.only_first(at)?;
                if x.contains(&1) { Err(channels(at)) } else { every(x) }
            }
            "Conv"
            | "ConvInteger"
            | "ConvTranspose"
            | "QLinearConv"
            | "MaxPool"
            | "AveragePool"
            | "LpPool"
            | "LRN"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "DepthToSpace"
            | "SpaceToDepth" => {
                self.images(at)?;
                every(x)
            }
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
                self.images(at)?;
                every(x.into_iter().filter(|&a| a < 2).collect())
            }
            "Resize" | "Upsample" => {
                self.images(at)?;
                match edit::resize(self, at, &x)? {
                    Some(patch) => Ok(Rule::Edit(patch)),
                    None => every(x),
                }
            }
            "Pad" => {
                let pads = PadView::of(at).map_err(reason)?.pads;
                self.relate_if(at, x.iter().any(|&a| pads[a] != (0, 0)))?;
                every(x)
            }
            "Concat" => {
                let axis = axis_of(at).map_err(reason)?;
                if let Some(patch) = edit::joined(self, at, Some(axis))? {
                    return Ok(Rule::Edit(patch));
                }
                let mut axes: Axes = (0..at.inputs().len()).flat_map(|slot| self.input(at, slot)).collect();
                axes.sort_unstable();
                axes.dedup();
                self.relate_if(at, axes.contains(&axis))?;
                every(axes)
            }
            "Split" => {
                let axis = axis_of(at).map_err(reason)?;
                if x.contains(&axis) {
                    return Err(format!("{} splits the freed axis", at.describe()));
                }
                every(x)
            }
            "Slice" => self.slice(at, x),
            "Gather" => self.gather(at, &x),
            "GatherElements" => {
                let axis = axis_of(at).map_err(reason)?;
                if x != self.input(at, 1) || x.contains(&axis) {
                    return Err(format!("{} selects positions of the freed axis", at.describe()));
                }
                every(x)
            }
            "Tile" => {
                self.only_first(at)?;
                every(x)
            }
            "LSTM" | "GRU" | "RNN" => self.recurrent(at),
            _ => Err(unknown(at)),
        }
    }

    /// Operators of linear models and trees: one row per sample.
    fn rows(&mut self, at: NodeRef<'_>) -> Followed {
        if at.is("ZipMap") || self.input(at, 0) != [0] {
            return Err(unknown(at));
        }
        Ok(Rule::Axes(vec![vec![0]; at.outputs().len()]))
    }

    fn microsoft(&mut self, at: NodeRef<'_>) -> Followed {
        match at.op() {
            _ if at.has(Trait::Elementwise) => self.broadcast(at),
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" | "LayerNormalization" => {
                self.layer_norm(at)
            }
            "FusedConv" => {
                self.images(at)?;
                Ok(Rule::Axes(vec![self.input(at, 0)]))
            }
            "Attention" | "MultiHeadAttention" => {
                let x = self.input(at, 0);
                if x.iter().any(|&a| a > 1) {
                    return Err(unknown(at));
                }
                self.relate_if(at, x.contains(&1))?;
                Ok(Rule::Axes(vec![x]))
            }
            _ => Err(unknown(at)),
        }
    }

    /// Checks that only the first input has the freed axis.
    fn only_first(&self, at: NodeRef<'_>) -> Result<(), String> {
        match (1..at.inputs().len()).find(|&slot| !self.input(at, slot).is_empty()) {
            Some(slot) => Err(format!("{} reads the freed axis as its input {slot}", at.describe())),
            None => Ok(()),
        }
    }

    /// Images `[N,C,…]`: positions are related, channels are counted by weights.
    fn images(&mut self, at: NodeRef<'_>) -> Result<(), String> {
        self.only_first(at)?;
        let x = self.input(at, 0);
        if x.contains(&1) {
            return Err(channels(at));
        }
        self.relate_if(at, x.iter().any(|&a| a > 1))
    }

    /// All inputs broadcast. A constant with several equal rows becomes one row.
    fn broadcast(&self, at: NodeRef<'_>) -> Followed {
        if let Some(patch) = edit::joined(self, at, None)? {
            return Ok(Rule::Edit(patch));
        }
        let ranks: Vec<_> = (0..at.inputs().len()).map(|slot| rank(at, slot).unwrap_or(0)).collect();
        let most = ranks.iter().copied().max().unwrap_or(0);
        let shifted = |slot: usize| self.input(at, slot).into_iter().map(move |a| (a, slot));
        let mut axes: Axes =
            (0..ranks.len()).flat_map(shifted).map(|(a, slot)| a + most - ranks[slot]).collect();
        axes.sort_unstable();
        axes.dedup();
        Ok(Rule::Axes(vec![axes; at.outputs().len()]))
    }

    fn layer_norm(&mut self, at: NodeRef<'_>) -> Followed {
        let x = self.input(at, 0);
        let last = rank(at, 0)?.saturating_sub(1);
        let first = LayerNormView::of(at).map_or(last, |view| view.axis);
        self.relate_if(at, x.iter().any(|&a| a >= first))?;
        if at.op().starts_with("Skip") && self.input(at, 1) != x {
            return Err(unknown(at));
        }
        Ok(Rule::Axes(vec![x; at.outputs().len()]))
    }

    fn reduced(&mut self, at: NodeRef<'_>, axes: &[usize], keepdims: bool) -> Followed {
        let x = self.input(at, 0);
        self.relate_if(at, x.iter().any(|a| axes.contains(a)))?;
        let kept = x.into_iter().filter(|a| !axes.contains(a));
        let before = |a: usize| if keepdims { 0 } else { axes.iter().filter(|&&r| r < a).count() };
        Ok(Rule::Axes(vec![kept.map(|a| a - before(a)).collect()]))
    }

    fn product(&mut self, at: NodeRef<'_>) -> Followed {
        let (m, k) = (rank(at, 0)?, rank(at, 1)?);
        if m < 2 || k < 2 {
            return Err(unknown(at));
        }
        let (a, b) = (self.input(at, 0), self.input(at, 1));
        let (summed, other) = (a.contains(&(m - 1)), b.contains(&(k - 2)));
        if summed != other {
            return Err(format!("{} sums over the freed axis, but a factor has a fixed size", at.describe()));
        }
        self.relate_if(at, summed)?;
        if let Some(patch) = edit::batched(self, at)? {
            return Ok(Rule::Edit(patch));
        }
        let out = m.max(k);
        let mut axes: Axes = a.iter().filter(|&&i| i + 1 < m).map(|i| i + out - m).collect();
        axes.extend(b.iter().filter(|&&i| i + 2 != k).map(|i| i + out - k));
        axes.sort_unstable();
        axes.dedup();
        self.relate_if(at, axes.len() > 1)?;
        Ok(Rule::Axes(vec![axes]))
    }

    fn gemm(&mut self, at: NodeRef<'_>) -> Followed {
        let side = |slot: usize, flag: &str| -> Axes {
            let axes = self.input(at, slot);
            if at.int(flag, 0) == 0 { axes } else { axes.into_iter().map(|a| 1 - a.min(1)).collect() }
        };
        let (a, b) = (side(0, "transA"), side(1, "transB"));
        if a.contains(&1) != b.contains(&0) {
            return Err(format!("{} sums over the freed axis, but a factor has a fixed size", at.describe()));
        }
        self.relate_if(at, a.contains(&1))?;
        let mut axes: Axes = a.into_iter().filter(|&i| i == 0).collect();
        axes.extend(b.into_iter().filter(|&i| i == 1));
        self.relate_if(at, axes.len() > 1)?;
        if let Some(bias) = at.optional(2) {
            let shape = self.old_shape(bias).ok_or_else(|| unknown(at))?;
            let fixed = |&axis: &usize| {
                (axis + shape.len())
                    .checked_sub(2)
                    .is_some_and(|i| shape[i] > 1 && !self.of(bias).contains(&i))
            };
            if axes.iter().any(fixed) {
                return Err(format!("`{}` has a fixed number of rows", bias.name()));
            }
        }
        Ok(Rule::Axes(vec![axes]))
    }

    fn slice(&mut self, at: NodeRef<'_>, x: Axes) -> Followed {
        self.only_first(at)?;
        let view = SliceView::of(at).map_err(|_| unknown(at))?;
        if let Some(patch) = edit::slice(self, at, &view, &x)? {
            return Ok(Rule::Edit(patch));
        }
        let partial = view
            .axes
            .iter()
            .any(|s| x.contains(&s.axis) && (s.start != 0 || s.step != 1 || s.end < i64::from(i32::MAX)));
        self.relate_if(at, partial)?;
        Ok(Rule::Axes(vec![x]))
    }

    fn gather(&mut self, at: NodeRef<'_>, x: &[usize]) -> Followed {
        let axis = axis_of(at).map_err(|_| unknown(at))?;
        let (indices, count) = (self.input(at, 1), rank(at, 1)?);
        // Indices that are computed from the size follow it.
        self.relate_if(at, !x.is_empty() && !indices.is_empty())?;
        if x.contains(&axis) {
            if let Some(patch) = edit::gather_all(self, at, axis) {
                return Ok(Rule::Edit(patch));
            }
            // The first and the last position exist at every size.
            let chosen = at.input(1).and_then(|v| v.constant_ints()).unwrap_or_default();
            let is_fixed = at.input(1).is_ok_and(ValueRef::is_constant);
            if is_fixed && (chosen.is_empty() || chosen.iter().any(|i| ![0, -1].contains(i))) {
                return Err(format!("{} selects positions of the freed axis", at.describe()));
            }
            self.relate(at)?;
        }
        let kept = x.iter().filter(|&&a| a != axis).map(|&a| if a < axis { a } else { a + count - 1 });
        let mut axes: Axes = kept.chain(indices.iter().map(|i| i + axis)).collect();
        axes.sort_unstable();
        Ok(Rule::Axes(vec![axes]))
    }

    /// `X` is `[steps, samples, units]`, or with `layout = 1` `[samples, steps, units]`.
    fn recurrent(&mut self, at: NodeRef<'_>) -> Followed {
        let x = self.input(at, 0);
        let (samples, steps) = if at.int("layout", 0) == 0 { (1, 0) } else { (0, 1) };
        self.relate_if(at, x.contains(&steps))?;
        if x.contains(&2) || (1..4).any(|slot| !self.input(at, slot).is_empty()) {
            return Err(unknown(at));
        }
        if x.contains(&samples) {
            if at.optional(4).is_some_and(|lengths| self.of(lengths).is_empty()) {
                return Err(format!("{} has a fixed number of sequence lengths", at.describe()));
            }
            for slot in [5, 6] {
                if let Some(state) = at.optional(slot).filter(|&s| self.of(s).is_empty()) {
                    let x = at.input(0).map_err(|_| unknown(at))?;
                    return edit::expanded(self, at, (slot, samples), (x, samples), state).map(Rule::Edit);
                }
            }
        }
        // Y is [steps, directions, samples, units], or [samples, steps, directions, units].
        let all = |a: usize| match (samples, a == samples) {
            (1, true) => 2,
            (_, true) => 0,
            (1, false) => 0,
            (_, false) => 1,
        };
        let mut y: Axes = x.iter().map(|&a| all(a)).collect();
        y.sort_unstable();
        let last: Axes = x.iter().filter(|&&a| a == samples).map(|_| samples).collect();
        Ok(Rule::Axes(vec![y, last.clone(), last]))
    }
}

pub(super) fn rank(at: NodeRef<'_>, slot: usize) -> Result<usize, String> {
    at.input(slot).ok().and_then(|v| v.shape()).map(<[Dim]>::len).ok_or_else(|| unknown(at))
}

pub(super) fn unknown(at: NodeRef<'_>) -> String {
    format!("the freed axis cannot be followed through {}", at.describe())
}

fn channels(at: NodeRef<'_>) -> String {
    format!("the freed axis is the channel axis of {}", at.describe())
}
