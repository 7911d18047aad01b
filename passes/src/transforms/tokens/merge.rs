//! Merging through a whole graph: block after block one patch for the bias of its scores and one for the merge.

use super::{
    Method, MetricOf,
    emit::{Emit, Emitter, Metric, furthest, most},
    refusal::Refusal,
    survey::{Survey, blocks, tokens},
    trace::{Change, Trace, trace},
};
use crate::{
    analysis::attention::{Attention, Form, Statics},
    framework::NodeBuilder,
};
use pare_graph::{
    Applied, DataType, Dim, Graph, Node, NodeRef, Patch, Ref, Tensor, ValueId, ValueRef,
    ops::{ReduceView, SliceAxis},
};

/// What is merged where, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub method: Method,
    /// Tokens to merge in each block.
    pub counts: Vec<usize>,
    pub metric: MetricOf,
    pub proportional: bool,
    pub emit: Emit,
    /// The spread of significance from which on PPT prunes instead of merging.
    pub threshold: f64,
    /// How much what the class token attends to is kept from being merged, by FOLDER.
    pub alpha: f64,
    /// Drop after the last attention what nobody reads.
    pub drop_unread: bool,
    /// Do so even if nothing is merged.
    pub even_alone: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub merged: usize,
    pub blocks: usize,
    pub dropped: usize,
}

/// Applies patches.
pub(super) type Apply<'a> = dyn FnMut(&mut Graph, Patch) -> Result<Option<Applied>, Refusal> + 'a;

/// Carry out a plan. `apply` may stop early, with `None`.
pub(super) fn merge(
    graph: &mut Graph,
    plan: &Plan,
    survey: &Survey,
    apply: &mut Apply<'_>,
) -> Result<Done, Refusal> {
    let mut done = Done::default();
    // The value of sizes by name: ids do not outlive patches.
    let mut size: Option<String> = None;
    let mut stream: Option<(String, usize)> = None;
    if plan.counts.iter().all(|&r| r == 0) && !plan.even_alone {
        return Ok(done);
    }
    for block in 0..survey.blocks {
        if let (Some(size), true) = (&size, plan.proportional) {
            let attention = nth(graph, block)?;
            let patch = bias(graph, &attention, size)?;
            if apply(graph, patch)?.is_none() {
                return Ok(done);
            }
        }
        let attention = unfused(graph, block, apply)?;
        let now = tokens(graph, &attention)?;
        if block + 1 == survey.blocks && survey.unread && plan.drop_unread {
            if drop_unread(graph, &attention, now, survey.protected, apply)? {
                done.dropped += now - survey.protected;
            }
            return Ok(done);
        }
        let limit = if plan.method == Method::Folder { furthest } else { most };
        let r = plan.counts[block].min(limit(now, survey.protected));
        if r == 0 {
            continue;
        }
        let change = Change { from: now, to: now - r, protected: survey.protected };
        let residual = residual_of(graph, &attention)?;
        let start = graph.value_ref(residual.0);
        let name = start.name().to_owned();
        let followed = trace(graph, &[(start, residual.1)], change, &Statics::of(graph))?;
        let sizes = size.as_ref().and_then(|name| graph.find(name));
        let patch = merged(graph, &attention, plan, change, sizes)?;
        let Some(applied) = checked(graph, patch, &followed, change, apply)? else { return Ok(done) };
        size = Some(sizes_of(graph, &applied).ok_or_else(|| Refusal::Method("sizes were lost".into()))?);
        // The merged stream took over the name.
        stream = Some((name, residual.1));
        done.merged += r;
        done.blocks += 1;
    }
    if let (Some(size), Some((name, token))) = (size, stream) {
        pools(graph, survey, &size, (&name, token), apply)?;
    }
    Ok(done)
}

fn nth(graph: &Graph, block: usize) -> Result<Attention, Refusal> {
    blocks(graph)?.into_iter().nth(block).ok_or(Refusal::NoAttention)
}

/// The sum of the stream and the attention, and its axis of tokens.
pub(super) fn residual_of(graph: &Graph, attention: &Attention) -> Result<(ValueId, usize), Refusal> {
    let node = || graph.describe(attention.core);
    let residual = attention.residual.as_ref().map_err(|&why| Refusal::Residual { node: node(), why })?;
    let hidden =
        || Refusal::Method(format!("{} does not give the sum it normalises", graph.describe(residual.node)));
    Ok((residual.sum.ok_or_else(hidden)?, residual.token))
}

/// Apply a patch that changes the number of tokens, and check what became of it.
fn checked(
    graph: &mut Graph,
    mut patch: Patch,
    followed: &Trace,
    change: Change,
    apply: &mut Apply<'_>,
) -> Result<Option<Applied>, Refusal> {
    for (node, slot, tensor) in &followed.edits {
        patch.set_constant(*node, *slot, "tokens", tensor.clone());
    }
    let mut trial = graph.clone();
    trial.apply(patch.clone()).map_err(|e| Refusal::Method(e.to_string()))?;
    followed.holds(graph, &trial, change)?;
    apply(graph, patch)
}

/// The sizes after a merge: what its last division divides by.
fn sizes_of(graph: &Graph, applied: &Applied) -> Option<String> {
    let division = applied.added.iter().rev().find(|&&id| graph.at(id).is("Div"))?;
    Some(graph.at(*division).input(1).ok()?.name().into())
}

/// The attention of a block; a `SkipLayerNormalization` behind it becomes a sum and a norm first, since tokens are merged
/// in between.
fn unfused(graph: &mut Graph, block: usize, apply: &mut Apply<'_>) -> Result<Attention, Refusal> {
    let attention = nth(graph, block)?;
    let Ok(residual) = &attention.residual else { return Ok(attention) };
    let at = graph.at(residual.node);
    if at.node().domain() != "com.microsoft" {
        return Ok(attention);
    }
    let odd = || Refusal::Method(format!("{} is no sum and norm that can be taken apart", at.describe()));
    let outputs = at.outputs();
    let unused =
        |slot: usize| outputs.get(slot).copied().flatten().is_none_or(|v| graph.use_count(v.id) == 0);
    if at.op() != "SkipLayerNormalization" || graph.opset("").unwrap_or(1) < 17 || !unused(1) || !unused(2) {
        return Err(odd());
    }
    let (x, skip, gamma) = (at.input(0), at.input(1), at.input(2));
    let (Ok(x), Ok(skip), Ok(gamma)) = (x, skip, gamma) else { return Err(odd()) };
    let mut patch = Patch::at(at);
    let hint = format!("{}_sum", x.name());
    let mut sum = patch.node(&hint, Node::new("Add"), &[x.into(), skip.into()]);
    if let Some(bias) = at.optional(4) {
        sum = patch.node(&hint, Node::new("Add"), &[sum, bias.into()]);
    }
    let mut inputs = vec![sum, gamma.into()];
    inputs.extend(at.optional(3).map(Ref::from));
    let epsilon = at.float("epsilon", 1e-12) as f32;
    let norm = Node::new("LayerNormalization").with("axis", -1_i64).with("epsilon", epsilon);
    let normed = patch.node(&hint, norm, &inputs);
    if let Some(Some(y)) = outputs.first() {
        patch.replace(*y, normed);
    }
    if let Some(Some(y)) = outputs.get(3) {
        patch.replace(*y, sum);
    }
    apply(graph, patch)?;
    nth(graph, block)
}

/// Add the logarithms of the sizes to the scores: a token that stands for `s` counts like `s` tokens.
fn bias(graph: &Graph, attention: &Attention, size: &str) -> Result<Patch, Refusal> {
    let size = graph
        .find(size)
        .map(|v| graph.value_ref(v))
        .ok_or_else(|| Refusal::Method("sizes were lost".into()))?;
    let core = graph.at(attention.core);
    let odd = || Refusal::Method(format!("{} takes no bias of its scores", core.describe()));
    let mut patch = Patch::at(core);
    let mut spell = NodeBuilder::new(graph, &mut patch, size.name());
    let log = spell.node(Node::new("Log"), &[size.into()]);
    let row = spell.reshape(log, &[0, 1, 1, -1]);
    if let (Some(scores), Some(weights)) = (attention.scores, attention.weights) {
        let scores = graph.value_ref(scores);
        let rank = scores.rank().map_err(|_| odd())?;
        let row = match (rank, attention.heads) {
            (4, _) => row,
            (3, Some(heads)) => {
                // Samples and heads share an axis.
                let zeros = zeros(&[1, heads, 1, 1]);
                let zeros = spell.constant("heads", zeros);
                let each = spell.node(Node::new("Add"), &[row, zeros]);
                let last = scores.shape().and_then(<[Dim]>::last).and_then(Dim::known).ok_or_else(odd)?;
                spell.reshape(each, &[-1, 1, last])
            }
            _ => return Err(odd()),
        };
        let biased = spell.node(Node::new("Add"), &[scores.into(), row]);
        let inputs = core.inputs().into_iter().enumerate();
        let inputs: Vec<_> =
            inputs.map(|(i, v)| if i == 0 { Some(biased) } else { v.map(Ref::from) }).collect();
        let weights = graph.value_ref(weights);
        let again = patch.node_with(core.node().clone(), &inputs, &[Some(weights.name())]);
        patch.replace(weights, again[0].ok_or_else(odd)?);
        return Ok(patch);
    }
    let slot = match attention.form {
        Form::Standard => 3,
        Form::Packed | Form::MultiHead => 5,
        Form::Decomposed | Form::GroupQuery => return Err(odd()),
    };
    // One row for each query.
    let queries = tokens(graph, attention)?;
    let zeros = spell.constant("queries", zeros(&[1, 1, queries, 1]));
    let whole = spell.node(Node::new("Add"), &[row, zeros]);
    let mut inputs: Vec<_> = core.inputs().into_iter().map(|v| v.map(Ref::from)).collect();
    inputs.resize(inputs.len().max(slot + 1), None);
    inputs[slot] = Some(whole);
    let outputs = core.outputs();
    let hints: Vec<_> = outputs.iter().map(|v| v.map(ValueRef::name)).collect();
    let made = patch.node_with(core.node().clone(), &inputs, &hints);
    for (old, new) in outputs.iter().zip(made) {
        if let (Some(old), Some(new)) = (old, new) {
            patch.replace(*old, new);
        }
    }
    Ok(patch)
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::from_f64(DataType::Float, shape, &vec![0.0; shape.iter().product()]).expect("as many elements")
}

/// The patch that merges behind one attention.
fn merged(
    graph: &Graph,
    attention: &Attention,
    plan: &Plan,
    change: Change,
    size: Option<ValueId>,
) -> Result<Patch, Refusal> {
    let (sum, token) = residual_of(graph, attention)?;
    let sum = graph.value_ref(sum);
    let odd = |why: &str| Refusal::Method(format!("{} {why}", graph.describe(attention.core)));
    let channels = sum.shape().and_then(<[Dim]>::last).and_then(Dim::size);
    let channels = channels.ok_or_else(|| Refusal::Open(sum.name().into()))?;
    let r = change.from - change.to;
    // Behind the attention too, whose operands are read.
    let anchor = graph.producer(sum.id).map_or(attention.core, |p| p.0);
    let mut patch = Patch::anchored(anchor);
    let mut spell = NodeBuilder::new(graph, &mut patch, sum.name());
    let x = if token == 1 { sum.into() } else { spell.transpose(sum.into(), &[1, 0, 2]) };
    let mut emitter = Emitter { spell: &mut spell, emit: plan.emit, protected: change.protected };
    let (metric, dim) = match plan.metric {
        MetricOf::Feature => (Metric::new(x, 1), channels),
        MetricOf::Key => keys(&mut emitter, graph, attention)?,
    };
    let rows = emitter.rows(x, size.map(Ref::from), change.from, channels);
    let rows = match plan.method {
        Method::Tome => emitter.merge(rows, metric, r),
        Method::Folder => {
            let mut metric = metric;
            if plan.alpha > 0.0 && change.protected > 0 {
                let heads = attention.heads.zip(attention.weights);
                let (heads, weights) = heads.ok_or_else(|| {
                    odd("does not show its weights, which FOLDER looks at unless `alpha=0`")
                })?;
                let weights = graph.value_ref(weights);
                let rank = weights.rank().map_err(|_| odd("has weights of unknown rank"))?;
                metric.weight =
                    Some(emitter.attended(weights.into(), rank - 2, heads, change.from, plan.alpha));
            }
            emitter.fold(rows, metric, dim, r)
        }
        Method::Ppt => {
            let weights =
                attention.weights.ok_or_else(|| odd("does not show its weights, which PPT looks at"))?;
            let value = graph.value_ref(attention.value.value);
            if value.rank() != Ok(4) || change.protected == 0 {
                return Err(odd("has no class token, or no axis of heads, which PPT looks at"));
            }
            let merged = emitter.merge(rows, metric, r);
            let (pruned, wide) = emitter.prune(rows, weights.into(), value.into(), r, plan.threshold);
            emitter.choose(wide, pruned, merged)
        }
    };
    let mut means = emitter.means(rows);
    if token == 0 {
        means = spell.transpose(means, &[1, 0, 2]);
    }
    patch.reshape(sum, means);
    Ok(patch)
}

/// The keys, summed over heads, and how many channels that has.
fn keys(
    emitter: &mut Emitter<'_, '_, '_>,
    graph: &Graph,
    attention: &Attention,
) -> Result<(Metric, usize), Refusal> {
    let core = graph.at(attention.core);
    let key = &attention.key;
    let value = graph.value_ref(key.value);
    let odd = || {
        Refusal::Method(format!("the keys of {} are laid out in a way that is not known", core.describe()))
    };
    let shape = value.shape().ok_or_else(odd)?;
    let heads = attention.heads.ok_or_else(odd)?;
    if attention.form == Form::Packed {
        let head = attention.head_size.ok_or_else(odd)?;
        let (weights, bias) = (core.input(1).map_err(|_| odd())?, core.optional(2));
        let matrix = summed(weights, heads, head).ok_or_else(odd)?;
        let matrix = emitter.spell.constant("keys", matrix);
        let mut metric = emitter.spell.node(Node::new("MatMul"), &[value.into(), matrix]);
        if let Some(bias) = bias {
            let bias = summed(bias, heads, head).ok_or_else(odd)?;
            let bias = emitter.spell.constant("keys", bias);
            metric = emitter.spell.node(Node::new("Add"), &[metric, bias]);
        }
        return Ok((Metric::new(metric, 1), head));
    }
    let dim = shape[key.channel].size().ok_or_else(odd)?;
    let token = key.token.ok_or_else(odd)?;
    match (shape.len(), key.head) {
        (4, Some(1)) => {
            let own = shape[1].size().ok_or_else(odd)?;
            let by_token = token < key.channel;
            let target = if by_token { [0, -1, dim as i64] } else { [0, dim as i64, -1] };
            let value = emitter.over_heads(value.into(), own, &target);
            Ok((Metric::new(value, if by_token { 1 } else { 2 }), dim))
        }
        (3, None) if attention.form == Form::Decomposed => {
            // Samples and heads share an axis.
            let count = shape[token].size().ok_or_else(odd)?;
            let flat = emitter.spell.reshape(value.into(), &[-1, heads as i64, (count * dim) as i64]);
            let by_token = token < key.channel;
            let target = if by_token { [0, -1, dim as i64] } else { [0, dim as i64, -1] };
            let value = emitter.over_heads(flat, heads, &target);
            Ok((Metric::new(value, if by_token { 1 } else { 2 }), dim))
        }
        (3, None) => {
            // All heads' channels on one axis; the operator may add a bias of its own.
            let head = attention.head_size.filter(|h| h > &0 && dim % h == 0).ok_or_else(odd)?;
            let stack: Vec<f64> =
                (0..dim * head).map(|i| f64::from(u8::from(i / head % head == i % head))).collect();
            let stack = Tensor::from_f64(DataType::Float, &[dim, head], &stack).map_err(|_| odd())?;
            let mut whole = Ref::from(value);
            if let (Form::MultiHead, Some(bias)) = (attention.form, core.optional(3)) {
                let all = bias.constant_f64().map_err(|_| odd())?;
                let part = all.get(dim..2 * dim).ok_or_else(odd)?;
                let part = Tensor::from_f64(DataType::Float, &[dim], part).map_err(|_| odd())?;
                let part = emitter.spell.constant("keys", part);
                whole = emitter.spell.node(Node::new("Add"), &[whole, part]);
            }
            let stack = emitter.spell.constant("heads", stack);
            let metric = emitter.spell.node(Node::new("MatMul"), &[whole, stack]);
            Ok((Metric::new(metric, 1), head))
        }
        _ => Err(odd()),
    }
}

/// Of packed weights `[C, 3·H·d]`, or biases `[3·H·d]`, those of the keys, summed over heads: `[C, d]`, `[d]`.
fn summed(packed: ValueRef<'_>, heads: usize, head: usize) -> Option<Tensor> {
    let tensor = packed.constant().ok()?;
    let (&width, front) = tensor.shape().split_last()?;
    let hidden = heads * head;
    if width != 3 * hidden {
        return None;
    }
    let data = tensor.to_f64()?;
    let of_row = |row: &[f64]| {
        (0..head).map(|c| (0..heads).map(|h| row[hidden + h * head + c]).sum()).collect::<Vec<f64>>()
    };
    let sums: Vec<f64> = data.chunks_exact(width).flat_map(of_row).collect();
    let shape: Vec<_> = front.iter().copied().chain([head]).collect();
    Tensor::from_f64(tensor.dtype(), &shape, &sums).ok()
}

/// Behind the last attention keep the tokens that are read. Where that is one, only its query is asked, too.
fn drop_unread(
    graph: &mut Graph,
    attention: &Attention,
    now: usize,
    kept: usize,
    apply: &mut Apply<'_>,
) -> Result<bool, Refusal> {
    let front = |patch: &mut Patch, graph: &Graph, value: ValueRef<'_>, axis: usize| {
        let cut = SliceAxis { axis, start: 0, end: kept as i64, step: 1 };
        let made = NodeBuilder::new(graph, patch, value.name()).slice(value.into(), &[cut]);
        patch.reshape(value, made);
    };
    let change = Change { from: now, to: kept, protected: kept };
    let (sum, token) = residual_of(graph, attention)?;
    let sum = graph.value_ref(sum);
    let followed = trace(graph, &[(sum, token)], change, &Statics::of(graph))?;
    let mut patch = Patch::anchored(graph.producer(sum.id).map_or(attention.core, |p| p.0));
    front(&mut patch, graph, sum, token);
    if checked(graph, patch, &followed, change, apply)?.is_none() {
        return Ok(false);
    }
    let query = &attention.query;
    let (Form::Decomposed, 1, Some(axis)) = (attention.form, kept, query.token) else { return Ok(true) };
    let value = graph.value_ref(query.value);
    let Some((producer, _)) = graph.producer(value.id) else { return Ok(true) };
    // Where the sum cannot do with one row, all rows are computed.
    let Ok(followed) = trace(graph, &[(value, axis)], change, &Statics::of(graph)) else { return Ok(true) };
    let mut patch = Patch::anchored(producer);
    front(&mut patch, graph, value, axis);
    checked(graph, patch, &followed, change, apply).map(|_| true).or(Ok(true))
}

/// Means and sums over tokens count each as often as it stands for others. `stream` is what the last merge gave, with its
/// axis of tokens.
fn pools(
    graph: &mut Graph,
    survey: &Survey,
    size: &str,
    stream: (&str, usize),
    apply: &mut Apply<'_>,
) -> Result<(), Refusal> {
    let find = |name: &str| graph.find(name).map(|v| graph.value_ref(v));
    let (Some(merged), Some(sizes)) = (find(stream.0), find(size)) else {
        return Err(Refusal::Method("sizes were lost".into()));
    };
    let now = merged.shape().and_then(|s| s[stream.1].size());
    let now = now.ok_or_else(|| Refusal::Open(merged.name().into()))?;
    let change = Change { from: now, to: now, protected: survey.protected };
    let pools = trace(graph, &[(merged, stream.1), (sizes, 1)], change, &Statics::of(graph))?.pools;
    for pool in pools {
        let patch = pooled(graph.at(pool.node), size, pool.skipped, survey.tokens[0] - pool.skipped)?;
        apply(graph, patch)?;
    }
    Ok(())
}

/// `Σ size·x / all` instead of a mean of `x`.
fn pooled(at: NodeRef<'_>, size: &str, skipped: usize, all: usize) -> Result<Patch, Refusal> {
    let odd = || Refusal::Operator(at.describe());
    let graph = at.graph;
    let (x, y) = (at.input(0).map_err(|_| odd())?, at.output().map_err(|_| odd())?);
    let global = at.is("GlobalAveragePool");
    let (axis, keepdims) = if global {
        (2, true)
    } else {
        let view = ReduceView::of(at).map_err(|_| odd())?;
        (*view.axes.first().ok_or_else(odd)?, view.keepdims)
    };
    let size = graph.find(size).map(|v| graph.value_ref(v)).ok_or_else(odd)?;
    let mut patch = Patch::at(at);
    let mut spell = NodeBuilder::new(graph, &mut patch, y.name());
    let mut weights = Ref::from(size);
    if skipped > 0 {
        weights =
            spell.slice(weights, &[SliceAxis { axis: 1, start: skipped as i64, end: i64::MAX, step: 1 }]);
    }
    if axis == 2 {
        weights = spell.transpose(weights, &[0, 2, 1]);
    }
    let weighted = spell.node(Node::new("Mul"), &[x.into(), weights]);
    let mut sum = spell.reduce("ReduceSum", weighted, &[axis as i64], keepdims);
    if !at.is("ReduceSum") {
        let share = spell.constant("share", Tensor::scalar(1.0 / all as f32));
        sum = spell.node(Node::new("Mul"), &[sum, share]);
    }
    patch.replace(y, sum);
    Ok(patch)
}
