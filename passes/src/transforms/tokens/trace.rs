//! Tracing of the token axis: which downstream axes count tokens, which constants hold their number, and
//! which operators do not allow fewer tokens.

use super::decline::MergeDecline;
use crate::{analysis::attention::Statics, framework::node_builder::reshape_target};
use pare_graph::{
    Dim, Graph, NodeId, NodeRef, Tensor, ValueId, ValueRef,
    ops::{
        LayerNormView, ReduceView, SliceView, SoftmaxView, SplitView, SqueezeView, Trait, TransposeView,
        UnsqueezeView, axis_of,
    },
};
use std::{collections::HashMap, ops::Range};

/// The relation of an axis to tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Axis {
    /// It does not count tokens.
    Other,
    /// It counts tokens, without this many leading ones.
    Tokens(usize),
    /// It is a reshape of axes of this product and the token axis, such as samples × tokens.
    Folded(Dim),
}

type Axes = Vec<Axis>;

/// A mean or sum over tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub node: NodeId,
    /// Number of leading tokens that it excludes.
    pub skipped: usize,
}

/// The downstream effects of a change of the number of tokens.
#[derive(Default)]
pub(super) struct Trace {
    /// Constant inputs that must change.
    pub edits: Vec<ConstantEdit>,
    /// Means and sums over tokens.
    pub pools: Vec<Pool>,
    /// The tokens that are selected by position.
    pub picked: Vec<usize>,
    /// Softmaxes over tokens.
    pub weighing: Vec<NodeId>,
    /// True if a matrix product sums over tokens.
    pub contracts: bool,
    starts: Vec<ValueId>,
    axes: HashMap<ValueId, Axes>,
}

/// A new constant for an input of a node.
pub(super) struct ConstantEdit {
    pub node: NodeId,
    pub slot: usize,
    pub tensor: Tensor,
}

/// A change of the number of tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenChange {
    pub from: usize,
    pub to: usize,
    /// Number of leading tokens that are unchanged.
    pub protected: usize,
}

/// Traces values and their token axes through the graph.
pub(super) fn trace(
    graph: &Graph,
    starts: &[(ValueRef<'_>, usize)],
    change: TokenChange,
    statics: &Statics,
) -> Result<Trace, MergeDecline> {
    let mut tracer = Tracer { change, statics, trace: Trace::default() };
    for &(start, token) in starts {
        let mut axes = vec![Axis::Other; start.shape().map_or(0, <[Dim]>::len)];
        *axes.get_mut(token).ok_or_else(|| MergeDecline::Open(start.name().into()))? = Axis::Tokens(0);
        tracer.trace.axes.insert(start.id, axes);
        tracer.trace.starts.push(start.id);
    }
    for &id in graph.nodes().iter() {
        // The producer of a start is not downstream, even if it reads another start.
        let produces_start = graph.outputs_of(id).iter().flatten().any(|v| tracer.trace.starts.contains(v));
        if !produces_start {
            tracer.node(graph.at(id))?;
        }
    }
    let outputs = graph.outputs().iter().map(|&v| graph.value_ref(v));
    for output in outputs {
        if tracer.trace.axes.contains_key(&output.id) {
            return Err(MergeDecline::Output(output.name().into()));
        }
    }
    Ok(tracer.trace)
}

impl Trace {
    /// Checks that traced values have the new number of tokens, and that all other shapes are unchanged.
    pub fn check(&self, before: &Graph, after: &Graph, change: TokenChange) -> Result<(), MergeDecline> {
        for id in before.values().filter(|&v| after.has_value(v)) {
            let (old, new) = (&before.value(id).fact, after.value_ref(id));
            let (Some(old_shape), Some(shape)) = (old.shape(), new.shape()) else { continue };
            // The start values themselves are unchanged.
            let axes = self.axes.get(&id).filter(|_| !self.starts.contains(&id));
            let wanted: Vec<Dim> = match axes {
                Some(axes) => old_shape.iter().zip(axes).map(|(d, a)| change.new_dim(d, a)).collect(),
                None => old_shape.to_vec(),
            };
            let differs = |(a, b): (&Dim, &Dim)| a != b && !(a.known().is_none() || b.known().is_none());
            if wanted.len() != shape.len() || wanted.iter().zip(shape).any(differs) {
                let show = |dims: &[Dim]| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                let (value, wanted, got) = (new.name().into(), show(&wanted), show(shape));
                return Err(MergeDecline::Shape { value, wanted, got });
            }
        }
        Ok(())
    }
}

impl TokenChange {
    /// Returns the new size of a dimension.
    fn new_dim(self, dim: &Dim, axis: &Axis) -> Dim {
        match axis {
            Axis::Other => dim.clone(),
            Axis::Tokens(skip) => Dim::from(self.to - skip),
            Axis::Folded(_) => {
                let others = dim.exact_div(&Dim::from(self.from)).unwrap_or_else(Dim::unknown);
                &others * &Dim::from(self.to)
            }
        }
    }

    /// Returns the number of tokens along an axis before the change.
    fn count(self, axis: &Axis) -> Option<usize> {
        match axis {
            Axis::Tokens(skip) => Some(self.from - skip),
            _ => None,
        }
    }
}

struct Tracer<'s> {
    change: TokenChange,
    statics: &'s Statics,
    trace: Trace,
}

impl Tracer<'_> {
    fn axes(&self, value: ValueRef<'_>) -> Option<&Axes> {
        self.trace.axes.get(&value.id)
    }

    fn node(&mut self, at: NodeRef<'_>) -> Result<(), MergeDecline> {
        let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
        let captured = at.graph.captured_by(at.id).into_iter().any(|v| self.trace.axes.contains_key(&v));
        if captured {
            return Err(MergeDecline::Operator(at.describe()));
        }
        if !inputs.iter().any(|v| self.axes(*v).is_some()) || at.is("Shape") || at.is("Size") {
            return Ok(());
        }
        let outputs = self.outputs(at)?;
        for (output, axes) in at.outputs().into_iter().zip(outputs) {
            if let (Some(output), true) = (output, axes.iter().any(|a| *a != Axis::Other)) {
                self.trace.axes.insert(output.id, axes);
            }
        }
        Ok(())
    }

    /// Returns the axes of each output of a node that reads tokens.
    fn outputs(&mut self, at: NodeRef<'_>) -> Result<Vec<Axes>, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let first = at.input(0).map_err(|_| unknown())?;
        let own = self.axes(first).cloned();
        let skips = at.node().domain() == "com.microsoft" && at.op().starts_with("Skip");
        if skips || at.has(Trait::Elementwise) {
            let axes = self.broadcast(at)?;
            return Ok(vec![axes; at.outputs().len()]);
        }
        if is_attention(at) {
            return self.attention(at);
        }
        if !at.node().domain().is_empty() && !at.op().ends_with("LayerNormalization") {
            return Err(unknown());
        }
        match at.op() {
            "MatMul" => return self.product(at).map(|axes| vec![axes]),
            "Gemm" => return self.gemm(at).map(|axes| vec![axes]),
            "Concat" => return self.concat(at).map(|axes| vec![axes]),
            _ => {}
        }
        self.by_first_input(at, own.ok_or_else(unknown)?)
    }

    /// Returns the axes of each output of a node whose other inputs have no tokens; `own` are those of the
    /// first input.
    fn by_first_input(&mut self, at: NodeRef<'_>, own: Axes) -> Result<Vec<Axes>, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let is_token = |axis: usize| own.get(axis).is_some_and(|a| *a != Axis::Other);
        Ok(match at.op() {
            "Softmax" | "LogSoftmax" => {
                let view = SoftmaxView::of(at).map_err(|_| unknown())?;
                if view.axes.clone().any(is_token) {
                    self.trace.weighing.push(at.id);
                }
                vec![own]
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                let last = own.len() - 1;
                let axis = LayerNormView::of(at).map_or(last, |v| v.axis);
                if (axis..=last).any(is_token) {
                    return Err(MergeDecline::Mixes(at.describe()));
                }
                vec![own; at.outputs().len()]
            }
            "LpNormalization" => vec![own],
            "Transpose" => {
                let view = TransposeView::of(at).map_err(|_| unknown())?;
                vec![view.perm.iter().map(|&p| own[p].clone()).collect()]
            }
            "Squeeze" => {
                let view = SqueezeView::of(at).map_err(|_| unknown())?;
                let kept = own.iter().enumerate().filter(|(i, _)| !view.axes.contains(i));
                vec![kept.map(|(_, a)| a.clone()).collect()]
            }
            "Unsqueeze" => {
                let view = UnsqueezeView::of(at).map_err(|_| unknown())?;
                let mut axes = own;
                view.axes.iter().for_each(|&a| axes.insert(a, Axis::Other));
                vec![axes]
            }
            "Reshape" | "Flatten" => vec![self.reshape(at, &own)?],
            "Split" => {
                let axis =
                    SplitView::of(at).map(|v| v.axis).or_else(|_| axis_of(at)).map_err(|_| unknown())?;
                if is_token(axis) {
                    return Err(MergeDecline::Mixes(at.describe()));
                }
                vec![own; at.outputs().len()]
            }
            "Slice" => vec![self.slice(at, own)?],
            "Gather" => vec![self.gather(at, &own)?],
            _ if at.has(Trait::Reduction) => vec![self.reduce(at, own)?],
            "GlobalAveragePool" => {
                if let [_, Axis::Other, Axis::Tokens(skipped)] = own[..] {
                    self.trace.pools.push(Pool { node: at.id, skipped });
                    vec![vec![]]
                } else {
                    return Err(unknown());
                }
            }
            _ => return Err(unknown()),
        })
    }

    /// Returns the axes of a broadcast of all inputs.
    fn broadcast(&self, at: NodeRef<'_>) -> Result<Axes, MergeDecline> {
        let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
        let rank = |v: &ValueRef<'_>| v.shape().map(<[Dim]>::len);
        let ranks: Option<Vec<_>> = inputs.iter().map(rank).collect();
        let ranks = ranks.ok_or_else(|| MergeDecline::Operator(at.describe()))?;
        let most = ranks.iter().copied().max().unwrap_or(0);
        let mut axes = vec![Axis::Other; most];
        for (input, rank) in inputs.iter().zip(&ranks) {
            for (i, axis) in self.axes(*input).into_iter().flatten().enumerate() {
                if *axis != Axis::Other {
                    axes[most - rank + i] = axis.clone();
                }
            }
        }
        for (input, rank) in inputs.iter().zip(&ranks) {
            let own = self.axes(*input);
            for (i, dim) in input.shape().unwrap_or(&[]).iter().enumerate() {
                let wanted = &axes[most - rank + i];
                let has = own.map_or(&Axis::Other, |own| &own[i]);
                if *wanted == Axis::Other || has == wanted || dim.known() == Some(1) {
                    continue;
                }
                if self.change.to == 1 && *has == Axis::Other {
                    // The single token is broadcast to all positions; the others are unread.
                    axes[most - rank + i] = Axis::Other;
                    continue;
                }
                let name = input.name().into();
                let fixed = self.statics.has(*input);
                return Err(if fixed { MergeDecline::Positions(name) } else { MergeDecline::Earlier(name) });
            }
        }
        Ok(axes)
    }

    fn product(&mut self, at: NodeRef<'_>) -> Result<Axes, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let (a, b) = (at.input(0).map_err(|_| unknown())?, at.input(1).map_err(|_| unknown())?);
        let of = |v: ValueRef<'_>| {
            let rank = v.shape().map(<[Dim]>::len).filter(|&r| r >= 2)?;
            Some(self.axes(v).cloned().unwrap_or_else(|| vec![Axis::Other; rank]))
        };
        let (x, y) = (of(a).ok_or_else(unknown)?, of(b).ok_or_else(unknown)?);
        let (m, k) = (x.len() - 2, y.len() - 2);
        if x[m + 1] != y[k] {
            return Err(MergeDecline::Mixes(at.describe()));
        }
        self.trace.contracts |= y[k] != Axis::Other;
        let batch = m.max(k);
        let mut axes = vec![Axis::Other; batch];
        for front in [&x[..m], &y[..k]] {
            for (i, axis) in front.iter().enumerate().filter(|(_, a)| **a != Axis::Other) {
                axes[batch - front.len() + i] = axis.clone();
            }
        }
        axes.extend([x[m].clone(), y[k + 1].clone()]);
        Ok(axes)
    }

    fn gemm(&self, at: NodeRef<'_>) -> Result<Axes, MergeDecline> {
        let mut of = [0, 1].map(|slot| {
            at.input(slot).ok().and_then(|v| self.axes(v).cloned()).unwrap_or_else(|| vec![Axis::Other; 2])
        });
        for (axes, flag) in of.iter_mut().zip(["transA", "transB"]) {
            if at.int(flag, 0) != 0 {
                axes.swap(0, 1);
            }
        }
        let [x, y] = of;
        if x[1] != y[0] || at.optional(2).is_some_and(|c| self.axes(c).is_some()) {
            return Err(MergeDecline::Mixes(at.describe()));
        }
        Ok(vec![x[0].clone(), y[1].clone()])
    }

    fn concat(&self, at: NodeRef<'_>) -> Result<Axes, MergeDecline> {
        let axis = axis_of(at).map_err(|_| MergeDecline::Operator(at.describe()))?;
        let of: Vec<_> = at.inputs().into_iter().flatten().map(|v| self.axes(v)).collect();
        match of[0] {
            Some(first) if of.iter().all(|a| *a == Some(first)) && first[axis] == Axis::Other => {
                Ok(first.clone())
            }
            _ => Err(MergeDecline::Joins(at.describe())),
        }
    }

    /// Records the selection of a token by position, which must be a protected one.
    fn pick(&mut self, at: NodeRef<'_>, position: i64, skip: usize) -> Result<(), MergeDecline> {
        let count = (self.change.from - skip) as i64;
        let position = if position < 0 { position + count } else { position } + skip as i64;
        let position = usize::try_from(position).map_err(|_| MergeDecline::Operator(at.describe()))?;
        if position >= self.change.protected {
            return Err(MergeDecline::Picked { node: at.describe(), position });
        }
        self.trace.picked.push(position);
        Ok(())
    }

    fn slice(&mut self, at: NodeRef<'_>, mut axes: Axes) -> Result<Axes, MergeDecline> {
        let view = SliceView::of(at).map_err(|_| MergeDecline::Operator(at.describe()))?;
        for cut in view.axes {
            let skip = match axes[cut.axis] {
                Axis::Other => continue,
                Axis::Tokens(skip) => skip,
                Axis::Folded(_) => return Err(MergeDecline::Mixes(at.describe())),
            };
            let count = self.change.from - skip;
            if cut.step != 1 {
                return Err(MergeDecline::Mixes(at.describe()));
            }
            let (start, length) = cut.on(count);
            let last = start + length;
            if last == count && start + skip <= self.change.protected {
                // All but protected tokens.
                axes[cut.axis] = Axis::Tokens(skip + start);
                self.trace.picked.extend((skip..skip + start).last());
                // A finite positive end is the old number of tokens.
                if cut.end > 0 && cut.end < i64::from(i32::MAX) {
                    return Err(MergeDecline::Operator(at.describe()));
                }
            } else {
                for position in start..last {
                    self.pick(at, position as i64, skip)?;
                }
                axes[cut.axis] = Axis::Other;
            }
        }
        Ok(axes)
    }

    fn gather(&mut self, at: NodeRef<'_>, own: &Axes) -> Result<Axes, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let (axis, indices) = (axis_of(at).map_err(|_| unknown())?, at.input(1).map_err(|_| unknown())?);
        match own[axis] {
            Axis::Other => {}
            Axis::Tokens(skip) => {
                for position in indices.constant_ints().map_err(|_| unknown())? {
                    self.pick(at, position, skip)?;
                }
            }
            Axis::Folded(_) => return Err(MergeDecline::Mixes(at.describe())),
        }
        let rank = indices.rank().map_err(|_| unknown())?;
        let mut axes = own.clone();
        axes.splice(axis..=axis, vec![Axis::Other; rank]);
        Ok(axes)
    }

    fn reduce(&mut self, at: NodeRef<'_>, own: Axes) -> Result<Axes, MergeDecline> {
        let view = ReduceView::of(at).map_err(|_| MergeDecline::Operator(at.describe()))?;
        let over: Vec<_> = view.axes.iter().filter(|&&a| own[a] != Axis::Other).collect();
        if let Some(&&axis) = over.first() {
            let pools = at.is("ReduceMean") || at.is("ReduceSum");
            match own[axis] {
                Axis::Tokens(skipped) if pools && own.len() == 3 && view.axes == [axis] && axis > 0 => {
                    self.trace.pools.push(Pool { node: at.id, skipped });
                }
                _ => return Err(MergeDecline::Mixes(at.describe())),
            }
        }
        let of = |(i, axis): (usize, Axis)| match (view.axes.contains(&i), view.keepdims) {
            (true, true) => Some(Axis::Other),
            (true, false) => None,
            (false, _) => Some(axis),
        };
        Ok(own.into_iter().enumerate().filter_map(of).collect())
    }

    /// Returns the axes of the output of a fused attention, which are those of the queries.
    fn attention(&self, at: NodeRef<'_>) -> Result<Vec<Axes>, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let [q, k, v] = [0, 1, 2].map(|slot| at.optional(slot));
        let of = |v: Option<ValueRef<'_>>| v.and_then(|v| self.axes(v)).cloned();
        let rank = q.and_then(|q| q.shape().map(<[Dim]>::len)).ok_or_else(unknown)?;
        if of(k) != of(v) && at.op() != "Attention" || rank > 4 {
            return Err(unknown());
        }
        // A bias of the scores may have a token axis for the keys only.
        let is_key_bias =
            |axes: &Axes| axes.split_last().is_some_and(|(_, front)| front.iter().all(|a| *a == Axis::Other));
        let mut others = at.inputs().into_iter().skip(3).flatten().filter_map(|v| self.axes(v));
        if !others.all(is_key_bias) {
            return Err(unknown());
        }
        Ok(vec![of(q).unwrap_or_else(|| vec![Axis::Other; rank])])
    }

    /// Returns the axes after a reshape that keeps the token axis, or merges it with entire adjacent axes.
    fn reshape(&mut self, at: NodeRef<'_>, own: &Axes) -> Result<Axes, MergeDecline> {
        let unknown = || MergeDecline::Operator(at.describe());
        let (x, y) = (at.input(0).map_err(|_| unknown())?, at.output().map_err(|_| unknown())?);
        let (a, b) = (x.shape().ok_or_else(unknown)?, y.shape().ok_or_else(unknown)?);
        let mut axes = vec![Axis::Other; b.len()];
        for AxisRun { from, to } in
            matching_runs(a, b).ok_or_else(|| MergeDecline::Flattened(at.describe()))?
        {
            let marked: Vec<_> = from.clone().filter(|&i| own[i] != Axis::Other).collect();
            let &[i] = &marked[..] else {
                if marked.is_empty() {
                    continue;
                }
                return Err(MergeDecline::Flattened(at.describe()));
            };
            let before = |dims: &[Dim]| dims.iter().fold(Dim::from(1_i64), |p, d| &p * d);
            if from.len() == 1 && to.len() == 1 {
                axes[to.start] = own[i].clone();
                continue;
            }
            // `ahead` is the product of the axes before the tokens within the run.
            let (ahead, count) = match &own[i] {
                Axis::Tokens(_) => (before(&a[from.start..i]), self.change.count(&own[i])),
                Axis::Folded(ahead) => (ahead.clone(), Some(self.change.from)),
                Axis::Other => return Err(unknown()),
            };
            let entire = own[i] == Axis::Tokens(0) || matches!(own[i], Axis::Folded(_));
            let own_axis = to.clone().find(|&j| b[j].size() == count && before(&b[to.start..j]) == ahead);
            axes[match (own_axis, to.len()) {
                (Some(j), _) => j,
                (None, 1) if entire => to.start,
                _ => return Err(MergeDecline::Flattened(at.describe())),
            }] = match (own_axis, &own[i]) {
                (Some(_), Axis::Tokens(skip)) => Axis::Tokens(*skip),
                (Some(_), _) => Axis::Tokens(0),
                (None, _) => Axis::Folded(ahead),
            };
        }
        if at.is("Reshape") {
            self.retarget(at, own, &axes, (a, b))?;
        }
        Ok(axes)
    }

    /// Updates the constant target shape of a `Reshape` that holds the number of tokens.
    fn retarget(
        &mut self,
        at: NodeRef<'_>,
        own: &Axes,
        axes: &Axes,
        shapes: (&[Dim], &[Dim]),
    ) -> Result<(), MergeDecline> {
        let target = at.input(1).ok().and_then(|t| t.constant_ints().ok());
        // 0 copies and -1 infers the size; a positive number is the old size.
        let holds_size = |target: &[i64]| target.iter().zip(axes).any(|(&n, a)| n > 0 && *a != Axis::Other);
        if target.as_ref().is_some_and(|target| !holds_size(target)) {
            return Ok(());
        }
        let new = |dims: &[Dim], axes: &Axes| {
            dims.iter().zip(axes).map(|(d, a)| self.change.new_dim(d, a)).collect::<Vec<_>>()
        };
        let (a, b) = (new(shapes.0, own), new(shapes.1, axes));
        let target = reshape_target(Some(&a), &b).ok_or_else(|| MergeDecline::Flattened(at.describe()))?;
        self.trace.edits.push(ConstantEdit { node: at.id, slot: 1, tensor: Tensor::vector(&target) });
        Ok(())
    }
}

/// Returns whether the node is a fused attention operator.
fn is_attention(at: NodeRef<'_>) -> bool {
    let fused = ["Attention", "MultiHeadAttention", "GroupQueryAttention"];
    fused.contains(&at.op()) && ["", "com.microsoft"].contains(&at.node().domain())
}

/// Runs of axes of two shapes that hold the same number of elements.
struct AxisRun {
    from: Range<usize>,
    to: Range<usize>,
}

/// Returns the shortest matching runs of axes of two shapes; `None` if there are none.
fn matching_runs(a: &[Dim], b: &[Dim]) -> Option<Vec<AxisRun>> {
    let (mut i, mut j, mut found) = (0, 0, vec![]);
    while i < a.len() && j < b.len() {
        let mut run = None;
        'search: for total in 2..=(a.len() - i) + (b.len() - j) {
            for n in 1..total {
                let m = total - n;
                if i + n > a.len() || j + m > b.len() {
                    continue;
                }
                let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1_i64), |p, d| &p * d);
                if product(&a[i..i + n]) == product(&b[j..j + m]) {
                    run = Some((n, m));
                    break 'search;
                }
            }
        }
        let (n, m) = run?;
        found.push(AxisRun { from: i..i + n, to: j..j + m });
        (i, j) = (i + n, j + m);
    }
    // Trailing axes of size 1 belong to the last run.
    let ones = |dims: &[Dim]| dims.iter().all(|d| d.known() == Some(1));
    if !ones(&a[i..]) || !ones(&b[j..]) {
        return None;
    }
    if let Some(run) = found.last_mut() {
        (run.from.end, run.to.end) = (a.len(), b.len());
    }
    Some(found)
}
