//! What each operator ties together, and what has to be rewritten when it loses indices.
//!
//! A rule mentions every axis that may lose indices. What it does not mention stays whole; so does everything at an
//! operator without a rule.

mod elementwise;
mod linear;
mod norm;
mod pieces;
mod reshape;

use super::tracer::{Port, Tracer};
use crate::channels::cut::Cutter;
use pare_graph::At;

/// Says what a node ties together; `None` if that cannot be told.
pub type Trace = for<'g> fn(&mut Tracer<'g>, At<'g>) -> Option<()>;

/// Makes attributes and shape constants of a node fit what is left; `None` if they cannot.
pub type Rewrite = fn(&mut Cutter<'_>, At<'_>) -> Option<()>;

/// How an operator is treated.
pub struct Rule {
    /// What it ties together.
    pub trace: Trace,
    /// What to rewrite; most operators need nothing.
    pub rewrite: Option<Rewrite>,
}

const fn traced(trace: Trace) -> Rule {
    Rule { trace, rewrite: None }
}

const fn rewritten(trace: Trace, rewrite: Rewrite) -> Rule {
    Rule { trace, rewrite: Some(rewrite) }
}

/// The rule for a node.
pub fn rule(at: At<'_>) -> Option<&'static Rule> {
    if at.has_references() {
        return None;
    }
    match at.node().domain() {
        "" => standard(at.op()),
        _ => None,
    }
}

fn standard(op: &str) -> Option<&'static Rule> {
    static ELEMENTWISE: Rule = traced(elementwise::broadcast);
    static CONV: Rule = rewritten(linear::conv, linear::regroup);
    static CONV_TRANSPOSE: Rule = rewritten(linear::conv_transpose, linear::regroup);
    static GEMM: Rule = traced(linear::gemm);
    static MATMUL: Rule = traced(linear::matmul);
    static PER_CHANNEL: Rule = traced(norm::per_channel);
    static LAYER_NORM: Rule = traced(norm::layer_norm);
    static ALONG: Rule = traced(norm::along);
    static REDUCE: Rule = traced(norm::reduce);
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
        op if op.starts_with("Reduce") => &REDUCE,
        op if elementwise::OPERATORS.contains(&op) => &ELEMENTWISE,
        _ => return None,
    })
}

/// The inputs, with their axes, whose elements a node adds up with weights: there, and only there, cutting an index is the
/// same as a zero.
pub fn sums(at: At<'_>) -> Vec<(usize, usize)> {
    let rank = |slot: usize| at.optional(slot).and_then(|v| v.rank().ok());
    let found = match at.op() {
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
        "ReduceSum" | "ReduceSumSquare" | "ReduceL1" | "ReduceL2" => pare_graph::ops::ReduceView::of(at)
            .ok()
            .map(|view| view.axes.into_iter().map(|a| (0, a)).collect()),
        _ => None,
    };
    found.unwrap_or_default()
}
