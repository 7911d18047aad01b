//! What follows from a value with fewer tokens: which axes count tokens downstream, which constants hold their number,
//! and what could not be right any more.

use super::refusal::Refusal;
use crate::{analysis::attention::Statics, framework::node_builder::reshape_target};
use pare_graph::{
    Dim, Graph, NodeId, NodeRef, Tensor, ValueId, ValueRef,
    ops::{
        LayerNormView, ReduceView, SliceView, SoftmaxView, SplitView, SqueezeView, Trait, TransposeView,
        UnsqueezeView, axis_of,
    },
};
use std::collections::HashMap;

/// What an axis has to do with tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Axis {
    /// Nothing.
    Other,
    /// It counts them, without so many at the front.
    Tokens(usize),
    /// It counts them together with others: samples, say, whose number comes before.
    Folded(Dim),
}

type Axes = Vec<Axis>;

/// A mean or sum over tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub node: NodeId,
    /// Tokens at the front that are left out of it.
    pub skipped: usize,
}

/// What a change of the number of tokens means downstream.
#[derive(Default)]
pub(super) struct Trace {
    /// Inputs of nodes that need other constants.
    pub edits: Vec<(NodeId, usize, Tensor)>,
    /// Means and sums over tokens.
    pub pools: Vec<Pool>,
    /// The tokens that are picked by their place.
    pub picked: Vec<usize>,
    /// Softmaxes over tokens.
    pub weighing: Vec<NodeId>,
    /// Whether a product sums over tokens.
    pub contracts: bool,
    starts: Vec<ValueId>,
    axes: HashMap<ValueId, Axes>,
}

/// The change: `from` tokens become `to` tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub from: usize,
    pub to: usize,
    /// Tokens at the front that stay what and where they are.
    pub protected: usize,
}

/// Follow values with an axis of tokens each through the graph.
pub(super) fn trace(
    graph: &Graph,
    starts: &[(ValueRef<'_>, usize)],
    change: Change,
    statics: &Statics,
) -> Result<Trace, Refusal> {
    let mut tracer = Tracer { change, statics, trace: Trace::default() };
    for &(start, token) in starts {
        let mut axes = vec![Axis::Other; start.shape().map_or(0, <[Dim]>::len)];
        *axes.get_mut(token).ok_or_else(|| Refusal::Open(start.name().into()))? = Axis::Tokens(0);
        tracer.trace.axes.insert(start.id, axes);
        tracer.trace.starts.push(start.id);
    }
    for &id in graph.nodes().iter() {
        // What makes a start is no part of what follows, even if it reads another one.
        let makes_start = graph.outputs_of(id).iter().flatten().any(|v| tracer.trace.starts.contains(v));
        if !makes_start {
            tracer.node(graph.at(id))?;
        }
    }
    let outputs = graph.outputs().iter().map(|&v| graph.value_ref(v));
    for output in outputs {
        if tracer.trace.axes.contains_key(&output.id) {
            return Err(Refusal::Output(output.name().into()));
        }
    }
    Ok(tracer.trace)
}

impl Trace {
    /// Whether what was traced has so many tokens now, and nothing else another shape than before.
    pub fn holds(&self, before: &Graph, after: &Graph, change: Change) -> Result<(), Refusal> {
        for id in before.values().filter(|&v| after.has_value(v)) {
            let (old, new) = (&before.value(id).fact, after.value_ref(id));
            let (Some(old_shape), Some(shape)) = (old.shape(), new.shape()) else { continue };
            // The values from which on there are fewer stay themselves.
            let axes = self.axes.get(&id).filter(|_| !self.starts.contains(&id));
            let wanted: Vec<Dim> = match axes {
                Some(axes) => old_shape.iter().zip(axes).map(|(d, a)| change.size(d, a)).collect(),
                None => old_shape.to_vec(),
            };
            let differs = |(a, b): (&Dim, &Dim)| a != b && !(a.known().is_none() || b.known().is_none());
            if wanted.len() != shape.len() || wanted.iter().zip(shape).any(differs) {
                let show = |dims: &[Dim]| dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                let (value, wanted, got) = (new.name().into(), show(&wanted), show(shape));
                return Err(Refusal::Shape { value, wanted, got });
            }
        }
        Ok(())
    }
}

impl Change {
    /// What a dimension of this kind becomes.
    fn size(self, dim: &Dim, axis: &Axis) -> Dim {
        match axis {
            Axis::Other => dim.clone(),
            Axis::Tokens(skip) => Dim::from(self.to - skip),
            Axis::Folded(_) => {
                let others = dim.exact_div(&Dim::from(self.from)).unwrap_or_else(Dim::unknown);
                &others * &Dim::from(self.to)
            }
        }
    }

    fn counted(self, axis: &Axis) -> Option<usize> {
        match axis {
            Axis::Tokens(skip) => Some(self.from - skip),
            _ => None,
        }
    }
}

struct Tracer<'s> {
    change: Change,
    statics: &'s Statics,
    trace: Trace,
}

impl Tracer<'_> {
    fn axes(&self, value: ValueRef<'_>) -> Option<&Axes> {
        self.trace.axes.get(&value.id)
    }

    fn node(&mut self, at: NodeRef<'_>) -> Result<(), Refusal> {
        let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
        let captured = at.graph.captured_by(at.id).into_iter().any(|v| self.trace.axes.contains_key(&v));
        if captured {
            return Err(Refusal::Operator(at.describe()));
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

    /// The axes of each output of a node with tokens among its inputs.
    fn outputs(&mut self, at: NodeRef<'_>) -> Result<Vec<Axes>, Refusal> {
        let unknown = || Refusal::Operator(at.describe());
        let first = at.input(0).map_err(|_| unknown())?;
        let own = self.axes(first).cloned();
        let skips = at.node().domain() == "com.microsoft" && at.op().starts_with("Skip");
        if skips || at.has(Trait::Elementwise) {
            return Ok(vec![self.broadcast(at)?; at.outputs().len()]);
        }
        if attends(at) {
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
        // The others are about their first input.
        let own = own.ok_or_else(unknown)?;
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
                    return Err(Refusal::Mixes(at.describe()));
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
                    return Err(Refusal::Mixes(at.describe()));
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

    /// Inputs aligned at their last axes.
    fn broadcast(&self, at: NodeRef<'_>) -> Result<Axes, Refusal> {
        let inputs: Vec<_> = at.inputs().into_iter().flatten().collect();
        let rank = |v: &ValueRef<'_>| v.shape().map(<[Dim]>::len);
        let ranks: Option<Vec<_>> = inputs.iter().map(rank).collect();
        let ranks = ranks.ok_or_else(|| Refusal::Operator(at.describe()))?;
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
                    // One token meets all that there were: the others are read by nobody.
                    axes[most - rank + i] = Axis::Other;
                    continue;
                }
                let name = input.name().into();
                let fixed = self.statics.has(*input);
                return Err(if fixed { Refusal::Positions(name) } else { Refusal::Earlier(name) });
            }
        }
        Ok(axes)
    }

    fn product(&mut self, at: NodeRef<'_>) -> Result<Axes, Refusal> {
        let unknown = || Refusal::Operator(at.describe());
        let (a, b) = (at.input(0).map_err(|_| unknown())?, at.input(1).map_err(|_| unknown())?);
        let of = |v: ValueRef<'_>| {
            let rank = v.shape().map(<[Dim]>::len).filter(|&r| r >= 2)?;
            Some(self.axes(v).cloned().unwrap_or_else(|| vec![Axis::Other; rank]))
        };
        let (x, y) = (of(a).ok_or_else(unknown)?, of(b).ok_or_else(unknown)?);
        let (m, k) = (x.len() - 2, y.len() - 2);
        if x[m + 1] != y[k] {
            return Err(Refusal::Mixes(at.describe()));
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

    fn gemm(&self, at: NodeRef<'_>) -> Result<Axes, Refusal> {
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
            return Err(Refusal::Mixes(at.describe()));
        }
        Ok(vec![x[0].clone(), y[1].clone()])
    }

    fn concat(&self, at: NodeRef<'_>) -> Result<Axes, Refusal> {
        let axis = axis_of(at).map_err(|_| Refusal::Operator(at.describe()))?;
        let of: Vec<_> = at.inputs().into_iter().flatten().map(|v| self.axes(v)).collect();
        match of[0] {
            Some(first) if of.iter().all(|a| *a == Some(first)) && first[axis] == Axis::Other => {
                Ok(first.clone())
            }
            _ => Err(Refusal::Joins(at.describe())),
        }
    }

    /// A place in the sequence of tokens that stays where it is.
    fn pick(&mut self, at: NodeRef<'_>, place: i64, skip: usize) -> Result<(), Refusal> {
        let count = (self.change.from - skip) as i64;
        let place = if place < 0 { place + count } else { place } + skip as i64;
        let place = usize::try_from(place).map_err(|_| Refusal::Operator(at.describe()))?;
        if place >= self.change.protected {
            return Err(Refusal::Picked { node: at.describe(), place });
        }
        self.trace.picked.push(place);
        Ok(())
    }

    fn slice(&mut self, at: NodeRef<'_>, mut axes: Axes) -> Result<Axes, Refusal> {
        let view = SliceView::of(at).map_err(|_| Refusal::Operator(at.describe()))?;
        for cut in view.axes {
            let skip = match axes[cut.axis] {
                Axis::Other => continue,
                Axis::Tokens(skip) => skip,
                Axis::Folded(_) => return Err(Refusal::Mixes(at.describe())),
            };
            let count = self.change.from - skip;
            if cut.step != 1 {
                return Err(Refusal::Mixes(at.describe()));
            }
            let (start, length) = cut.on(count);
            let last = start + length;
            if last == count && start + skip <= self.change.protected {
                // All but tokens that stay.
                axes[cut.axis] = Axis::Tokens(skip + start);
                self.trace.picked.extend((skip..skip + start).last());
                // An end that is written as a number is one of tokens.
                if cut.end > 0 && cut.end < i64::from(i32::MAX) {
                    return Err(Refusal::Operator(at.describe()));
                }
            } else {
                for place in start..last {
                    self.pick(at, place as i64, skip)?;
                }
                axes[cut.axis] = Axis::Other;
            }
        }
        Ok(axes)
    }

    fn gather(&mut self, at: NodeRef<'_>, own: &Axes) -> Result<Axes, Refusal> {
        let unknown = || Refusal::Operator(at.describe());
        let (axis, places) = (axis_of(at).map_err(|_| unknown())?, at.input(1).map_err(|_| unknown())?);
        match own[axis] {
            Axis::Other => {}
            Axis::Tokens(skip) => {
                for place in places.constant_ints().map_err(|_| unknown())? {
                    self.pick(at, place, skip)?;
                }
            }
            Axis::Folded(_) => return Err(Refusal::Mixes(at.describe())),
        }
        let rank = places.rank().map_err(|_| unknown())?;
        let mut axes = own.clone();
        axes.splice(axis..=axis, vec![Axis::Other; rank]);
        Ok(axes)
    }

    fn reduce(&mut self, at: NodeRef<'_>, own: Axes) -> Result<Axes, Refusal> {
        let view = ReduceView::of(at).map_err(|_| Refusal::Operator(at.describe()))?;
        let over: Vec<_> = view.axes.iter().filter(|&&a| own[a] != Axis::Other).collect();
        if let Some(&&axis) = over.first() {
            let pools = at.is("ReduceMean") || at.is("ReduceSum");
            match own[axis] {
                Axis::Tokens(skipped) if pools && own.len() == 3 && view.axes == [axis] && axis > 0 => {
                    self.trace.pools.push(Pool { node: at.id, skipped });
                }
                _ => return Err(Refusal::Mixes(at.describe())),
            }
        }
        let of = |(i, axis): (usize, Axis)| match (view.axes.contains(&i), view.keepdims) {
            (true, true) => Some(Axis::Other),
            (true, false) => None,
            (false, _) => Some(axis),
        };
        Ok(own.into_iter().enumerate().filter_map(of).collect())
    }

    /// A fused attention: tokens of the queries go to the output.
    fn attention(&self, at: NodeRef<'_>) -> Result<Vec<Axes>, Refusal> {
        let unknown = || Refusal::Operator(at.describe());
        let [q, k, v] = [0, 1, 2].map(|slot| at.optional(slot));
        let of = |v: Option<ValueRef<'_>>| v.and_then(|v| self.axes(v)).cloned();
        let rank = q.and_then(|q| q.shape().map(<[Dim]>::len)).ok_or_else(unknown)?;
        if of(k) != of(v) && at.op() != "Attention" || rank > 4 {
            return Err(unknown());
        }
        // A bias of the scores may have one for each key; all else would have to be looked at.
        let for_keys =
            |axes: &Axes| axes.split_last().is_some_and(|(_, front)| front.iter().all(|a| *a == Axis::Other));
        let mut others = at.inputs().into_iter().skip(3).flatten().filter_map(|v| self.axes(v));
        if !others.all(for_keys) {
            return Err(unknown());
        }
        Ok(vec![of(q).unwrap_or_else(|| vec![Axis::Other; rank])])
    }

    /// A reshape that keeps tokens on an axis of their own, or folds them with whole axes beside.
    fn reshape(&mut self, at: NodeRef<'_>, own: &Axes) -> Result<Axes, Refusal> {
        let unknown = || Refusal::Operator(at.describe());
        let (x, y) = (at.input(0).map_err(|_| unknown())?, at.output().map_err(|_| unknown())?);
        let (a, b) = (x.shape().ok_or_else(unknown)?, y.shape().ok_or_else(unknown)?);
        let mut axes = vec![Axis::Other; b.len()];
        for (from, to) in groups(a, b).ok_or_else(|| Refusal::Flattened(at.describe()))? {
            let marked: Vec<_> = from.clone().filter(|&i| own[i] != Axis::Other).collect();
            let &[i] = &marked[..] else {
                if marked.is_empty() {
                    continue;
                }
                return Err(Refusal::Flattened(at.describe()));
            };
            let before = |dims: &[Dim]| dims.iter().fold(Dim::from(1_i64), |p, d| &p * d);
            if from.len() == 1 && to.len() == 1 {
                axes[to.start] = own[i].clone();
                continue;
            }
            // What comes before the tokens within the group.
            let (ahead, count) = match &own[i] {
                Axis::Tokens(_) => (before(&a[from.start..i]), self.change.counted(&own[i])),
                Axis::Folded(ahead) => (ahead.clone(), Some(self.change.from)),
                Axis::Other => return Err(unknown()),
            };
            let whole = own[i] == Axis::Tokens(0) || matches!(own[i], Axis::Folded(_));
            let own_axis = to.clone().find(|&j| b[j].size() == count && before(&b[to.start..j]) == ahead);
            axes[match (own_axis, to.len()) {
                (Some(j), _) => j,
                (None, 1) if whole => to.start,
                _ => return Err(Refusal::Flattened(at.describe())),
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

    /// Let a target that says how many tokens there are say the new number.
    fn retarget(
        &mut self,
        at: NodeRef<'_>,
        own: &Axes,
        axes: &Axes,
        shapes: (&[Dim], &[Dim]),
    ) -> Result<(), Refusal> {
        let target = at.input(1).ok().and_then(|t| t.constant_ints().ok());
        // 0 copies and -1 is left open; a number is one that changes.
        let says = |target: &[i64]| target.iter().zip(axes).any(|(&n, a)| n > 0 && *a != Axis::Other);
        if target.as_ref().is_some_and(|target| !says(target)) {
            return Ok(());
        }
        let new = |dims: &[Dim], axes: &Axes| {
            dims.iter().zip(axes).map(|(d, a)| self.change.size(d, a)).collect::<Vec<_>>()
        };
        let (a, b) = (new(shapes.0, own), new(shapes.1, axes));
        let target = reshape_target(Some(&a), &b).ok_or_else(|| Refusal::Flattened(at.describe()))?;
        self.trace.edits.push((at.id, 1, Tensor::vector(&target)));
        Ok(())
    }
}

/// Whether it is an attention in one operator.
fn attends(at: NodeRef<'_>) -> bool {
    let fused = ["Attention", "MultiHeadAttention", "GroupQueryAttention"];
    fused.contains(&at.op()) && ["", "com.microsoft"].contains(&at.node().domain())
}

type Span = std::ops::Range<usize>;

/// The smallest runs of axes of both shapes that hold as many elements.
fn groups(a: &[Dim], b: &[Dim]) -> Option<Vec<(Span, Span)>> {
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
        found.push((i..i + n, j..j + m));
        (i, j) = (i + n, j + m);
    }
    // Axes of size 1 at the end belong to the last run.
    let ones = |dims: &[Dim]| dims.iter().all(|d| d.known() == Some(1));
    if !ones(&a[i..]) || !ones(&b[j..]) {
        return None;
    }
    if let Some((from, to)) = found.last_mut() {
        (from.end, to.end) = (a.len(), b.len());
    }
    Some(found)
}
