//! Application of a merge plan to a graph: for each block, one patch for the bias of its scores and one for
//! the merge.

use super::{
    decline::MergeDecline,
    emit::{Emitter, Lowering, Metric, max_folded, max_merged},
    options::{MergeMethod, TokenMetric},
    token_analysis::{TokenAnalysis, blocks, residual_of, tokens},
    trace::{ConstantEdit, TokenChange, Trace, trace},
};
use crate::{
    analysis::attention::{Attention, Form, Statics},
    framework::NodeBuilder,
};
use pare_graph::{
    Applied, DataType, Dim, Graph, Model, Node, NodeRef, Patch, Ref, Tensor, ValueId, ValueRef,
    ops::{ReduceView, SliceAxis},
};

/// The tokens to merge in each block, and how.
#[derive(Clone, Debug)]
pub(super) struct MergePlan {
    pub method: MergeMethod,
    /// Number of tokens to merge in each block.
    pub counts: Vec<usize>,
    pub metric: TokenMetric,
    /// True if later attentions add the logarithms of sizes to their scores.
    pub proportional: bool,
    pub lowering: Lowering,
    /// The variance of significance scores from which PPT prunes instead of merging.
    pub threshold: f64,
    /// The weight of the class token's attention in FOLDER, which protects tokens from being merged.
    pub alpha: f64,
    pub unread: UnreadTokens,
}

/// The treatment of tokens that are unread after the last attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnreadTokens {
    Keep,
    /// They are dropped if any tokens are merged.
    DropAfterMerges,
    Drop,
}

impl MergePlan {
    /// Returns whether the plan changes nothing.
    pub fn is_empty(&self) -> bool {
        self.unread != UnreadTokens::Drop && self.counts.iter().all(|&r| r == 0)
    }
}

/// The result of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Merged {
    /// Tokens merged.
    pub tokens: usize,
    /// Blocks with merges.
    pub blocks: usize,
    /// Unread tokens dropped.
    pub dropped: usize,
}

/// Applies a patch; `None` if no more patches are to be applied.
pub(super) type Apply<'a> = dyn FnMut(&mut Graph, Patch) -> Result<Option<Applied>, MergeDecline> + 'a;

/// Returns a copy of the model with the plan applied.
pub(super) fn merged_model(
    model: &Model,
    plan: &MergePlan,
    analysis: &TokenAnalysis,
) -> Result<Model, MergeDecline> {
    let mut copy = model.clone();
    let mut apply = |graph: &mut Graph, patch| {
        graph.apply(patch).map(Some).map_err(|e| MergeDecline::Method(e.to_string()))
    };
    merge(&mut copy.graph, plan, analysis, &mut apply)?;
    Ok(copy)
}

/// The result of the last merge. Values are named: ids are not valid across patches.
struct LastMerge {
    /// The merged stream.
    stream: String,
    /// Its token axis.
    token: usize,
    /// The token sizes.
    size: String,
}

/// Applies a plan to a graph.
pub(super) fn merge(
    graph: &mut Graph,
    plan: &MergePlan,
    analysis: &TokenAnalysis,
    apply: &mut Apply<'_>,
) -> Result<Merged, MergeDecline> {
    let mut merged = Merged::default();
    if plan.is_empty() {
        return Ok(merged);
    }
    let mut last: Option<LastMerge> = None;
    for block in 0..analysis.blocks {
        if let (Some(last), true) = (&last, plan.proportional) {
            let patch = size_bias(graph, &nth_attention(graph, block)?, &last.size)?;
            if apply(graph, patch)?.is_none() {
                return Ok(merged);
            }
        }
        let attention = unfused(graph, block, apply)?;
        let now = tokens(graph, &attention)?;
        if block + 1 == analysis.blocks && analysis.unread && plan.unread != UnreadTokens::Keep {
            if drop_unread(graph, &attention, now, analysis.protected, apply)? {
                merged.dropped += now - analysis.protected;
            }
            return Ok(merged);
        }
        let limit = if plan.method == MergeMethod::Folder { max_folded } else { max_merged };
        let r = plan.counts[block].min(limit(now, analysis.protected));
        if r == 0 {
            continue;
        }
        let change = TokenChange { from: now, to: now - r, protected: analysis.protected };
        let (sum, token) = residual_of(graph, &attention)?;
        let stream = graph.value_ref(sum).name().to_owned();
        let traced = trace(graph, &[(graph.value_ref(sum), token)], change, &Statics::of(graph))?;
        let sizes = last.as_ref().and_then(|last| graph.find(&last.size));
        let patch = merge_patch(graph, &attention, plan, change, sizes)?;
        let Some(applied) = apply_checked(graph, patch, &traced, change, apply)? else { return Ok(merged) };
        // The merged stream has the name of the original one.
        let size = sizes_of(graph, &applied).ok_or_else(sizes_not_found)?;
        last = Some(LastMerge { stream, token, size });
        merged.tokens += r;
        merged.blocks += 1;
    }
    if let Some(last) = last {
        weigh_pools(graph, analysis, &last, apply)?;
    }
    Ok(merged)
}

fn sizes_not_found() -> MergeDecline {
    MergeDecline::Method("the token sizes were not found".into())
}

fn nth_attention(graph: &Graph, block: usize) -> Result<Attention, MergeDecline> {
    blocks(graph)?.into_iter().nth(block).ok_or(MergeDecline::NoAttention)
}

/// Applies a patch that changes the number of tokens, after checking the resulting shapes on a copy.
fn apply_checked(
    graph: &mut Graph,
    mut patch: Patch,
    traced: &Trace,
    change: TokenChange,
    apply: &mut Apply<'_>,
) -> Result<Option<Applied>, MergeDecline> {
    for ConstantEdit { node, slot, tensor } in &traced.edits {
        patch.set_constant(*node, *slot, "tokens", tensor.clone());
    }
    let mut copy = graph.clone();
    copy.apply(patch.clone()).map_err(|e| MergeDecline::Method(e.to_string()))?;
    traced.check(graph, &copy, change)?;
    apply(graph, patch)
}

/// Returns the token sizes after a merge: the divisor of its last division.
fn sizes_of(graph: &Graph, applied: &Applied) -> Option<String> {
    let division = applied.added.iter().rev().find(|&&id| graph.at(id).is("Div"))?;
    Some(graph.at(*division).input(1).ok()?.name().into())
}

/// Returns the attention of a block. A following `SkipLayerNormalization` is first split into a sum and a
/// normalization, because tokens are merged between them.
fn unfused(graph: &mut Graph, block: usize, apply: &mut Apply<'_>) -> Result<Attention, MergeDecline> {
    let attention = nth_attention(graph, block)?;
    let Ok(residual) = &attention.residual else { return Ok(attention) };
    let at = graph.at(residual.node);
    if at.node().domain() != "com.microsoft" {
        return Ok(attention);
    }
    let odd =
        || MergeDecline::Method(format!("{} cannot be split into a sum and a normalization", at.describe()));
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
    nth_attention(graph, block)
}

/// Returns the patch that adds the logarithms of sizes to the scores of an attention: a token of size `s` is
/// weighted like `s` tokens (proportional attention).
fn size_bias(graph: &Graph, attention: &Attention, size: &str) -> Result<Patch, MergeDecline> {
    let size = graph.find(size).map(|v| graph.value_ref(v)).ok_or_else(sizes_not_found)?;
    let core = graph.at(attention.core);
    let odd = || MergeDecline::Method(format!("{} has no input for a bias of its scores", core.describe()));
    let mut patch = Patch::at(core);
    let mut builder = NodeBuilder::new(graph, &mut patch, size.name());
    let log = builder.node(Node::new("Log"), &[size.into()]);
    let row = builder.reshape(log, &[0, 1, 1, -1]);
    if let (Some(scores), Some(weights)) = (attention.scores, attention.weights) {
        let scores = graph.value_ref(scores);
        let rank = scores.rank().map_err(|_| odd())?;
        let row = match (rank, attention.heads) {
            (4, _) => row,
            (3, Some(heads)) => {
                // Samples and heads share the first axis.
                let zeros = zeros(&[1, heads, 1, 1]);
                let zeros = builder.constant("heads", zeros);
                let each = builder.node(Node::new("Add"), &[row, zeros]);
                let last = scores.shape().and_then(<[Dim]>::last).and_then(Dim::known).ok_or_else(odd)?;
                builder.reshape(each, &[-1, 1, last])
            }
            _ => return Err(odd()),
        };
        let biased = builder.node(Node::new("Add"), &[scores.into(), row]);
        let inputs = core.inputs().into_iter().enumerate();
        let inputs: Vec<_> =
            inputs.map(|(i, v)| if i == 0 { Some(biased) } else { v.map(Ref::from) }).collect();
        let weights = graph.value_ref(weights);
        let softmax = patch.node_with(core.node().clone(), &inputs, &[Some(weights.name())]);
        patch.replace(weights, softmax[0].ok_or_else(odd)?);
        return Ok(patch);
    }
    let slot = match attention.form {
        Form::Standard => 3,
        Form::Packed | Form::MultiHead => 5,
        Form::Decomposed | Form::GroupQuery => return Err(odd()),
    };
    // One row for each query.
    let queries = tokens(graph, attention)?;
    let zeros = builder.constant("queries", zeros(&[1, 1, queries, 1]));
    let bias = builder.node(Node::new("Add"), &[row, zeros]);
    let mut inputs: Vec<_> = core.inputs().into_iter().map(|v| v.map(Ref::from)).collect();
    inputs.resize(inputs.len().max(slot + 1), None);
    inputs[slot] = Some(bias);
    let outputs = core.outputs();
    let hints: Vec<_> = outputs.iter().map(|v| v.map(ValueRef::name)).collect();
    let added = patch.node_with(core.node().clone(), &inputs, &hints);
    for (old, new) in outputs.iter().zip(added) {
        if let (Some(old), Some(new)) = (old, new) {
            patch.replace(*old, new);
        }
    }
    Ok(patch)
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::from_f64(DataType::Float, shape, &vec![0.0; shape.iter().product()]).expect("as many elements")
}

/// Returns the patch that merges tokens after an attention.
fn merge_patch(
    graph: &Graph,
    attention: &Attention,
    plan: &MergePlan,
    change: TokenChange,
    size: Option<ValueId>,
) -> Result<Patch, MergeDecline> {
    let (sum, token) = residual_of(graph, attention)?;
    let sum = graph.value_ref(sum);
    let odd = |why: &str| MergeDecline::Method(format!("{} {why}", graph.describe(attention.core)));
    let channels = sum.shape().and_then(<[Dim]>::last).and_then(Dim::size);
    let channels = channels.ok_or_else(|| MergeDecline::Open(sum.name().into()))?;
    let r = change.from - change.to;
    // After the sum, and thereby after the attention, whose operands are read.
    let anchor = graph.producer(sum.id).map_or(attention.core, |p| p.0);
    let mut patch = Patch::anchored(anchor);
    let mut builder = NodeBuilder::new(graph, &mut patch, sum.name());
    let x = if token == 1 { sum.into() } else { builder.transpose(sum.into(), &[1, 0, 2]) };
    let mut emitter = Emitter { builder: &mut builder, lowering: plan.lowering, protected: change.protected };
    let (metric, dim) = match plan.metric {
        TokenMetric::Feature => (Metric::new(x, 1), channels),
        TokenMetric::Key => keys(&mut emitter, graph, attention)?,
    };
    let rows = emitter.rows(x, size.map(Ref::from), change.from, channels);
    let rows = match plan.method {
        MergeMethod::Tome => emitter.merge(rows, metric, r),
        MergeMethod::Folder => {
            let mut metric = metric;
            if plan.alpha > 0.0 && change.protected > 0 {
                let heads = attention.heads.zip(attention.weights);
                let (heads, weights) = heads.ok_or_else(|| {
                    odd("has no output of its weights, which FOLDER needs unless `alpha=0`")
                })?;
                let weights = graph.value_ref(weights);
                let rank = weights.rank().map_err(|_| odd("has weights of unknown rank"))?;
                metric.weight =
                    Some(emitter.class_attention(weights.into(), rank - 2, heads, change.from, plan.alpha));
            }
            emitter.fold(rows, metric, dim, r)
        }
        MergeMethod::Ppt => {
            let weights =
                attention.weights.ok_or_else(|| odd("has no output of its weights, which PPT needs"))?;
            let value = graph.value_ref(attention.value.value);
            if value.rank() != Ok(4) || change.protected == 0 {
                return Err(odd("has no class token or no head axis, which PPT needs"));
            }
            let merged = emitter.merge(rows, metric, r);
            let (pruned, select) = emitter.prune(rows, weights.into(), value.into(), r, plan.threshold);
            emitter.choose(select, pruned, merged)
        }
    };
    let mut means = emitter.means(rows);
    if token == 0 {
        means = builder.transpose(means, &[1, 0, 2]);
    }
    patch.reshape(sum, means);
    Ok(patch)
}

/// Returns the keys, summed over heads, and their number of channels.
fn keys(
    emitter: &mut Emitter<'_, '_, '_>,
    graph: &Graph,
    attention: &Attention,
) -> Result<(Metric, usize), MergeDecline> {
    let core = graph.at(attention.core);
    let key = &attention.key;
    let value = graph.value_ref(key.value);
    let odd = || MergeDecline::Method(format!("the layout of the keys of {} is not known", core.describe()));
    let shape = value.shape().ok_or_else(odd)?;
    let heads = attention.heads.ok_or_else(odd)?;
    if attention.form == Form::Packed {
        let head = attention.head_size.ok_or_else(odd)?;
        let (weights, bias) = (core.input(1).map_err(|_| odd())?, core.optional(2));
        let matrix = summed_keys(weights, heads, head).ok_or_else(odd)?;
        let matrix = emitter.builder.constant("keys", matrix);
        let mut metric = emitter.builder.node(Node::new("MatMul"), &[value.into(), matrix]);
        if let Some(bias) = bias {
            let bias = summed_keys(bias, heads, head).ok_or_else(odd)?;
            let bias = emitter.builder.constant("keys", bias);
            metric = emitter.builder.node(Node::new("Add"), &[metric, bias]);
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
            // Samples and heads share the first axis.
            let count = shape[token].size().ok_or_else(odd)?;
            let flat = emitter.builder.reshape(value.into(), &[-1, heads as i64, (count * dim) as i64]);
            let by_token = token < key.channel;
            let target = if by_token { [0, -1, dim as i64] } else { [0, dim as i64, -1] };
            let value = emitter.over_heads(flat, heads, &target);
            Ok((Metric::new(value, if by_token { 1 } else { 2 }), dim))
        }
        (3, None) => {
            // All heads share the channel axis; `MultiHeadAttention` may add a bias to the keys.
            let head = attention.head_size.filter(|h| h > &0 && dim % h == 0).ok_or_else(odd)?;
            let stack: Vec<f64> =
                (0..dim * head).map(|i| f64::from(u8::from(i / head % head == i % head))).collect();
            let stack = Tensor::from_f64(DataType::Float, &[dim, head], &stack).map_err(|_| odd())?;
            let mut keys = Ref::from(value);
            if let (Form::MultiHead, Some(bias)) = (attention.form, core.optional(3)) {
                let all = bias.constant_f64().map_err(|_| odd())?;
                let part = all.get(dim..2 * dim).ok_or_else(odd)?;
                let part = Tensor::from_f64(DataType::Float, &[dim], part).map_err(|_| odd())?;
                let part = emitter.builder.constant("keys", part);
                keys = emitter.builder.node(Node::new("Add"), &[keys, part]);
            }
            let stack = emitter.builder.constant("heads", stack);
            let metric = emitter.builder.node(Node::new("MatMul"), &[keys, stack]);
            Ok((Metric::new(metric, 1), head))
        }
        _ => Err(odd()),
    }
}

/// Returns the key part of packed weights `[C, 3·H·d]` or biases `[3·H·d]`, summed over heads: `[C, d]` or
/// `[d]`.
fn summed_keys(packed: ValueRef<'_>, heads: usize, head: usize) -> Option<Tensor> {
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

/// Drops the unread tokens after the last attention. Where only one token is read, only its query is
/// computed. Returns whether the tokens were dropped.
fn drop_unread(
    graph: &mut Graph,
    attention: &Attention,
    now: usize,
    kept: usize,
    apply: &mut Apply<'_>,
) -> Result<bool, MergeDecline> {
    let slice = |patch: &mut Patch, graph: &Graph, value: ValueRef<'_>, axis: usize| {
        let cut = SliceAxis { axis, start: 0, end: kept as i64, step: 1 };
        let sliced = NodeBuilder::new(graph, patch, value.name()).slice(value.into(), &[cut]);
        patch.reshape(value, sliced);
    };
    let change = TokenChange { from: now, to: kept, protected: kept };
    let (sum, token) = residual_of(graph, attention)?;
    let sum = graph.value_ref(sum);
    let traced = trace(graph, &[(sum, token)], change, &Statics::of(graph))?;
    let mut patch = Patch::anchored(graph.producer(sum.id).map_or(attention.core, |p| p.0));
    slice(&mut patch, graph, sum, token);
    if apply_checked(graph, patch, &traced, change, apply)?.is_none() {
        return Ok(false);
    }
    let query = &attention.query;
    let (Form::Decomposed, 1, Some(axis)) = (attention.form, kept, query.token) else { return Ok(true) };
    let value = graph.value_ref(query.value);
    let Some((producer, _)) = graph.producer(value.id) else { return Ok(true) };
    // Where downstream nodes need all rows, all are computed.
    let Ok(traced) = trace(graph, &[(value, axis)], change, &Statics::of(graph)) else { return Ok(true) };
    let mut patch = Patch::anchored(producer);
    slice(&mut patch, graph, value, axis);
    apply_checked(graph, patch, &traced, change, apply).map(|_| true).or(Ok(true))
}

/// Weighs the means and sums over tokens by the token sizes.
fn weigh_pools(
    graph: &mut Graph,
    analysis: &TokenAnalysis,
    last: &LastMerge,
    apply: &mut Apply<'_>,
) -> Result<(), MergeDecline> {
    let find = |name: &str| graph.find(name).map(|v| graph.value_ref(v));
    let (Some(merged), Some(sizes)) = (find(&last.stream), find(&last.size)) else {
        return Err(sizes_not_found());
    };
    let now = merged.shape().and_then(|s| s[last.token].size());
    let now = now.ok_or_else(|| MergeDecline::Open(merged.name().into()))?;
    let change = TokenChange { from: now, to: now, protected: analysis.protected };
    let pools = trace(graph, &[(merged, last.token), (sizes, 1)], change, &Statics::of(graph))?.pools;
    for pool in pools {
        let all = analysis.tokens[0] - pool.skipped;
        let patch = weighted_pool(graph.at(pool.node), &last.size, pool.skipped, all)?;
        apply(graph, patch)?;
    }
    Ok(())
}

/// Returns the patch that replaces a mean of `x` by `Σ size·x / all`, and a sum by `Σ size·x`.
fn weighted_pool(at: NodeRef<'_>, size: &str, skipped: usize, all: usize) -> Result<Patch, MergeDecline> {
    let odd = || MergeDecline::Operator(at.describe());
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
    let mut builder = NodeBuilder::new(graph, &mut patch, y.name());
    let mut weights = Ref::from(size);
    if skipped > 0 {
        weights =
            builder.slice(weights, &[SliceAxis { axis: 1, start: skipped as i64, end: i64::MAX, step: 1 }]);
    }
    if axis == 2 {
        weights = builder.transpose(weights, &[0, 2, 1]);
    }
    let weighted = builder.node(Node::new("Mul"), &[x.into(), weights]);
    let mut sum = builder.reduce("ReduceSum", weighted, &[axis as i64], keepdims);
    if !at.is("ReduceSum") {
        let share = builder.constant("share", Tensor::scalar(1.0 / all as f32));
        sum = builder.node(Node::new("Mul"), &[sum, share]);
    }
    patch.replace(y, sum);
    Ok(patch)
}
