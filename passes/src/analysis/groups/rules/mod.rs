//! The rules of operators: the indices that they tie together, and the changes that they need when indices
//! are removed.
//!
//! A rule handles every axis that may lose indices. Axes that it does not handle, and all axes of operators
//! without a rule, are pinned.

mod attention;
mod elementwise;
mod linear;
mod norm;
mod pieces;
mod recurrent;
mod reshape;

use super::tracer::{Slot, Tracer};
use crate::analysis::groups::cut::Cutter;
use pare_graph::{NodeRef, ops::Trait};

/// Ties the indices of a node; `None` if its attributes or shapes are not understood.
pub type Trace = for<'g> fn(&mut Tracer<'g>, NodeRef<'g>) -> Option<()>;

/// Adapts attributes and shape constants of a node to the remaining indices; `None` if that is not possible.
pub type Rewrite = fn(&mut Cutter<'_>, NodeRef<'_>) -> Option<()>;

/// The rule of an operator.
pub struct Rule {
    /// Ties indices.
    pub trace: Trace,
    /// Adapts the node; most operators need no change.
    pub rewrite: Option<Rewrite>,
}

const fn traced(trace: Trace) -> Rule {
    Rule { trace, rewrite: None }
}

const fn rewritten(trace: Trace, rewrite: Rewrite) -> Rule {
    Rule { trace, rewrite: Some(rewrite) }
}

/// Returns the rule for a node.
pub fn rule(at: NodeRef<'_>) -> Option<&'static Rule> {
    if at.has_references() {
        return None;
    }
    static ELEMENTWISE: Rule = traced(elementwise::broadcast);
    static REDUCE: Rule = rewritten(norm::reduce, norm::rescale_mean);
    let own = match at.node().domain() {
        "" => standard(at.op()),
        "com.microsoft" => microsoft(at.op()),
        _ => None,
    };
    // `CastLike` reads no element of its second input, which need not broadcast; if it does, it is tied as
    // well.
    let elementwise = at.has(Trait::Elementwise) || at.is("CastLike");
    own.or(elementwise.then_some(&ELEMENTWISE)).or(at.has(Trait::Reduction).then_some(&REDUCE))
}

fn standard(op: &str) -> Option<&'static Rule> {
    static CONV: Rule = rewritten(linear::conv, linear::regroup);
    static CONV_TRANSPOSE: Rule = rewritten(linear::conv_transpose, linear::regroup);
    static GEMM: Rule = traced(linear::gemm);
    static MATMUL: Rule = traced(linear::matmul);
    static PER_CHANNEL: Rule = traced(norm::per_channel);
    static LAYER_NORM: Rule = traced(norm::layer_norm);
    static ALONG: Rule = traced(norm::along);
    static GROUP_NORM: Rule = rewritten(norm::group_norm, norm::recount_groups);
    static RMS_NORM: Rule = rewritten(norm::rms_norm, norm::rescale_rms);
    static GRID: Rule = traced(norm::grid_sample);
    static RECURRENT: Rule = rewritten(recurrent::recurrent, recurrent::resize_hidden);
    static ATTENTION: Rule = rewritten(attention::attention, attention::recount);
    static TILE: Rule = traced(reshape::tile);
    static EINSUM: Rule = traced(linear::einsum);
    static POOL: Rule = traced(norm::pool);
    static QUANTIZE: Rule = traced(norm::quantize);
    static CONCAT: Rule = traced(pieces::concat);
    static SPLIT: Rule = rewritten(pieces::split, pieces::resplit);
    static SLICE: Rule = rewritten(pieces::slice, pieces::reslice);
    static GATHER: Rule = rewritten(pieces::gather, pieces::regather);
    static PAD: Rule = traced(pieces::pad);
    static RESIZE: Rule = rewritten(pieces::resize, pieces::rescale);
    static DEPTH: Rule = traced(pieces::depth_to_space);
    static RESHAPE: Rule = rewritten(reshape::reshape, reshape::retarget);
    static FLATTEN: Rule = traced(reshape::reshape);
    static TRANSPOSE: Rule = traced(reshape::transpose);
    static EXPAND: Rule = rewritten(reshape::expand, reshape::retarget);
    static SHAPE: Rule = traced(reshape::shape);
    Some(match op {
        "Conv" => &CONV,
        "ConvTranspose" => &CONV_TRANSPOSE,
        "Gemm" => &GEMM,
        "MatMul" => &MATMUL,
        "BatchNormalization" | "InstanceNormalization" => &PER_CHANNEL,
        "LayerNormalization" => &LAYER_NORM,
        "GroupNormalization" => &GROUP_NORM,
        "RMSNormalization" | "SimplifiedLayerNormalization" => &RMS_NORM,
        "LSTM" | "GRU" | "RNN" => &RECURRENT,
        "Attention" => &ATTENTION,
        "RotaryEmbedding" => &ROTARY,
        "GridSample" => &GRID,
        "Tile" => &TILE,
        "Einsum" => &EINSUM,
        "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" | "CumSum" | "ArgMax" | "ArgMin" => &ALONG,
        "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
            &POOL
        }
        "QuantizeLinear" | "DequantizeLinear" => &QUANTIZE,
        "Concat" => &CONCAT,
        "Split" => &SPLIT,
        "Slice" => &SLICE,
        "Gather" => &GATHER,
        "Pad" => &PAD,
        "Resize" | "Upsample" => &RESIZE,
        "DepthToSpace" | "SpaceToDepth" => &DEPTH,
        "Reshape" => &RESHAPE,
        "Flatten" | "Squeeze" | "Unsqueeze" => &FLATTEN,
        "Transpose" => &TRANSPOSE,
        "Expand" => &EXPAND,
        "Shape" => &SHAPE,
        _ => return None,
    })
}

static ROTARY: Rule = rewritten(attention::rotary, attention::recount);

/// Rules of the operators into which ONNX Runtime fuses others.
fn microsoft(op: &str) -> Option<&'static Rule> {
    static FUSED: Rule = rewritten(attention::fused, attention::recount);
    static MULTI_HEAD: Rule = rewritten(attention::multi_head, attention::recount);
    static GROUP_QUERY: Rule = rewritten(attention::group_query, attention::recount);
    Some(match op {
        "Attention" => &FUSED,
        "MultiHeadAttention" => &MULTI_HEAD,
        "GroupQueryAttention" => &GROUP_QUERY,
        "RotaryEmbedding" => &ROTARY,
        _ => return None,
    })
}

/// Returns the inputs and axes that a node sums over. There, and only there, removing an index is equivalent
/// to setting it to zero.
pub fn sums(at: NodeRef<'_>) -> Vec<(usize, usize)> {
    let rank = |slot: usize| at.optional(slot).and_then(|v| v.rank().ok());
    let found = match at.op() {
        "Attention" if at.node().domain() == "com.microsoft" => Some(vec![(0, 2)]),
        _ if !at.node().domain().is_empty() => None,
        "Conv" | "ConvTranspose" => Some(vec![(0, 1)]),
        "Gemm" => {
            let axis = |name, plain| if at.int(name, 0) != 0 { 1 - plain } else { plain };
            Some(vec![(0, axis("transA", 1)), (1, axis("transB", 0))])
        }
        "MatMul" => {
            rank(0).zip(rank(1)).map(|(a, b)| vec![(0, a.saturating_sub(1)), (1, b.saturating_sub(2))])
        }
        "LSTM" | "GRU" | "RNN" => Some(vec![(0, 2)]),
        "RMSNormalization" | "SimplifiedLayerNormalization" => norm::rms_axis(at).map(|axis| vec![(0, axis)]),
        "Einsum" => linear::einsum_axes(at).map(|(terms, result)| {
            let axes = terms
                .iter()
                .enumerate()
                .flat_map(|(slot, t)| t.iter().enumerate().map(move |(a, c)| (slot, a, c)));
            axes.filter(|(_, _, letter)| !result.contains(letter))
                .map(|(slot, axis, _)| (slot, axis))
                .collect()
        }),
        "ReduceSum" | "ReduceSumSquare" | "ReduceL1" | "ReduceL2" | "ReduceMean" => {
            let view = pare_graph::ops::ReduceView::of(at);
            view.ok().map(|view| view.axes.into_iter().map(|a| (0, a)).collect())
        }
        _ => None,
    };
    found.unwrap_or_default()
}
