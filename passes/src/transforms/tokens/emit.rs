//! Construction of the nodes that merge tokens.
//!
//! Channels and sizes are concatenated to rows `[size·x, size]`: one gather and one sum move both, and their
//! quotient is the mean. A merge of `r` of `N` tokens is
//!
//! ```text
//! S = m_a·m_bᵀ              a: every second unprotected token, b: the others; |m| = 1
//! best, dst = top1(S)       src = the r rows of a with the largest best, in descending order
//! out = [protected, a without src in order, b + Σ src → dst]
//! ```

use crate::framework::NodeBuilder;
use pare_graph::{DataType, Node, Ref, Tensor, ops::SliceAxis};
use serde::{Deserialize, Serialize};

/// The operators that the addition of merged rows is lowered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lowering {
    /// `ScatterElements` with `reduction=add`: operator set 16.
    Scatter,
    /// A product with a 0/1 matrix: operator set 13.
    Matmul,
}

/// The features that tokens are compared by, `[B,N,d]` or `[B,d,N]`.
#[derive(Clone, Copy)]
pub(super) struct Metric {
    pub value: Ref,
    /// The token axis, 1 or 2.
    pub token: usize,
    /// `[B,N,1]`: a penalty on merging a token of the first set, subtracted from its scores.
    pub weight: Option<Ref>,
}

impl Metric {
    pub fn new(value: Ref, token: usize) -> Self {
        Self { value, token, weight: None }
    }
}

/// Tokens as rows `[B,N,C+1]` of weighted channels and the size.
#[derive(Clone, Copy)]
pub(super) struct TokenRows {
    pub value: Ref,
    pub tokens: usize,
    pub width: usize,
}

/// The end of a slice without end.
const END: i64 = i64::MAX;

pub(super) struct Emitter<'s, 'g, 'p> {
    pub builder: &'s mut NodeBuilder<'g, 'p>,
    pub lowering: Lowering,
    /// Number of leading tokens that are neither merged nor merged into: class and distillation tokens.
    pub protected: usize,
}

impl Emitter<'_, '_, '_> {
    fn op(&mut self, op: &str, inputs: &[Ref]) -> Ref {
        self.builder.node(Node::new(op), inputs)
    }

    fn ints(&mut self, hint: &str, values: &[i64]) -> Ref {
        self.builder.constant(hint, Tensor::vector(values))
    }

    fn cut(&mut self, x: Ref, axis: usize, start: usize, end: i64, step: i64) -> Ref {
        self.builder.slice(x, &[SliceAxis { axis, start: start as i64, end, step }])
    }

    /// Returns the `k` largest (or smallest) elements along `axis` in order: values and indices.
    fn top(&mut self, x: Ref, axis: i64, k: usize, largest: bool) -> (Ref, Ref) {
        let k = self.ints("k", &[k as i64]);
        let node =
            Node::new("TopK").with("axis", axis).with("largest", i64::from(largest)).with("sorted", 1_i64);
        let [values, indices] = self.builder.nodes(node, &[x, k], ["best", "place"]);
        (values, indices)
    }

    /// Returns `x` and its sizes as rows. Without sizes, all sizes are 1.
    pub fn rows(&mut self, x: Ref, size: Option<Ref>, tokens: usize, channels: usize) -> TokenRows {
        let value = if let Some(size) = size {
            let weighted = self.op("Mul", &[x, size]);
            self.builder.node(Node::new("Concat").with("axis", 2_i64), &[weighted, size])
        } else {
            // Append a channel of ones.
            let pads = self.ints("pads", &[0, 0, 0, 0, 0, 1]);
            let one = self.builder.constant("one", Tensor::scalar(1_f32));
            self.op("Pad", &[x, pads, one])
        };
        TokenRows { value, tokens, width: channels + 1 }
    }

    /// Returns the means of the channels. The last node is the division by the sizes.
    pub fn means(&mut self, rows: TokenRows) -> Ref {
        let parts = self.ints("parts", &[rows.width as i64 - 1, 1]);
        let node = Node::new("Split").with("axis", 2_i64);
        let [sum, size] = self.builder.nodes(node, &[rows.value, parts], ["sum", "size"]);
        self.op("Div", &[sum, size])
    }

    /// Returns the sum of `[B,H,..,..]` over heads, which has the direction of the mean. A product is faster
    /// than a reduction over an inner axis.
    pub fn over_heads(&mut self, k: Ref, heads: usize, target: &[i64]) -> Ref {
        let flat = self.builder.reshape(k, &[0, heads as i64, -1]);
        let ones = self.builder.constant("ones", ones(&[1, heads]));
        let sum = self.op("MatMul", &[ones, flat]);
        self.builder.reshape(sum, target)
    }

    /// Merges `r` tokens, at most [`max_merged`].
    pub fn merge(&mut self, rows: TokenRows, metric: Metric, r: usize) -> TokenRows {
        let TokenRows { tokens, width, .. } = rows;
        let [even, odd] = sets(tokens, self.protected);
        let unit = self.builder.node(
            Node::new("LpNormalization").with("axis", metric.token as i64 ^ 3).with("p", 2_i64),
            &[metric.value],
        );
        let mut a = self.cut(unit, metric.token, even.0, END, 2);
        let mut b = self.cut(unit, metric.token, odd.0, END, 2);
        let transposed = if metric.token == 1 { &mut b } else { &mut a };
        *transposed = self.builder.transpose(*transposed, &[0, 2, 1]);
        let scores = self.op("MatMul", &[a, b]);
        let (mut best, near) = self.top(scores, -1, 1, true);
        if let Some(weight) = metric.weight {
            // The penalty is the same for all partners of a token, so it does not change the best one.
            let weight = self.cut(weight, 1, even.0, END, 2);
            best = self.op("Sub", &[best, weight]);
        }
        let (_, order) = self.top(best, 1, even.1, true);
        let (src, stay) = if r < even.1 {
            let parts = self.ints("parts", &[r as i64, (even.1 - r) as i64]);
            let node = Node::new("Split").with("axis", 1_i64);
            let [src, stay] = self.builder.nodes(node, &[order, parts], ["src", "stay"]);
            // As in the reference implementation: sorted if there is a class token.
            let stay = if self.protected > 0 { self.top(stay, 1, even.1 - r, false).0 } else { stay };
            (src, Some(stay))
        } else {
            (order, None)
        };
        let dst = self.builder.node(Node::new("GatherElements").with("axis", 1_i64), &[near, src]);

        let from = self.cut(rows.value, 1, even.0, END, 2);
        let into = self.cut(rows.value, 1, odd.0, END, 2);
        let gather = || Node::new("GatherND").with("batch_dims", 1_i64);
        let moved = self.builder.node(gather(), &[from, src]);
        let into = match self.lowering {
            Lowering::Matmul => {
                let row = self.builder.reshape(dst, &[0, 1, r as i64]);
                let positions: Vec<i64> = (0..odd.1 as i64).collect();
                let column = Tensor::vector(&positions).reshaped(&[odd.1, 1]).expect("as many elements");
                let column = self.builder.constant("places", column);
                let equal = self.op("Equal", &[column, row]);
                let matrix = self.builder.node(Node::new("Cast").with("to", 1_i64), &[equal]);
                let sums = self.op("MatMul", &[matrix, moved]);
                self.op("Add", &[into, sums])
            }
            Lowering::Scatter => {
                let zeros =
                    Tensor::vector(&vec![0_i64; width]).reshaped(&[1, 1, width]).expect("as many elements");
                let zeros = self.builder.constant("zeros", zeros);
                let indices = self.op("Add", &[dst, zeros]);
                let node = Node::new("ScatterElements").with("axis", 1_i64).with("reduction", "add");
                self.builder.node(node, &[into, indices, moved])
            }
        };
        let mut parts = vec![];
        if self.protected > 0 {
            parts.push(self.cut(rows.value, 1, 0, self.protected as i64, 1));
        }
        if let Some(stay) = stay {
            parts.push(self.builder.node(gather(), &[from, stay]));
        }
        parts.push(into);
        let value = self.builder.node(Node::new("Concat").with("axis", 1_i64), &parts);
        TokenRows { value, tokens: tokens - r, width }
    }

    /// Returns `30α·a` for each token, `[B,N,1]`, where `a` is the attention of the class token, averaged
    /// over heads (FOLDER). `attention` is `[B,H,N,N]` or `[B·H,N,N]`; `axis` is the query axis.
    pub fn class_attention(
        &mut self,
        attention: Ref,
        axis: usize,
        heads: usize,
        tokens: usize,
        alpha: f64,
    ) -> Ref {
        let class = self.cut(attention, axis, 0, 1, 1);
        let flat = self.builder.reshape(class, &[-1, heads as i64, tokens as i64]);
        let share = Tensor::from_f64(DataType::Float, &[1, heads], &vec![30.0 * alpha / heads as f64; heads]);
        let share = self.builder.constant("share", share.expect("as many elements"));
        let sum = self.op("MatMul", &[share, flat]);
        self.builder.reshape(sum, &[0, tokens as i64, 1])
    }

    /// Merges `r` tokens, at most [`max_folded`], by repeated halving (FOLDER). From the second round on,
    /// tokens are compared by size-weighted sums of the metric, and attention penalties are summed.
    pub fn fold(&mut self, rows: TokenRows, metric: Metric, dim: usize, mut r: usize) -> TokenRows {
        if r <= max_merged(rows.tokens, self.protected) {
            return self.merge(rows, metric, r);
        }
        // Rows are extended in front by the penalty and the size-weighted metric.
        let channels = rows.width;
        let metric_rows = match metric.token {
            1 => metric.value,
            _ => self.builder.transpose(metric.value, &[0, 2, 1]),
        };
        let size = self.cut(rows.value, 2, channels - 1, END, 1);
        let weighted = self.op("Mul", &[metric_rows, size]);
        let parts: Vec<_> = metric.weight.into_iter().chain([weighted, rows.value]).collect();
        let value = self.builder.node(Node::new("Concat").with("axis", 2_i64), &parts);
        let (first, front) = (parts.len() - 2, parts.len() - 2 + dim);
        let mut rows = TokenRows { value, width: front + channels, ..rows };
        let mut metric = metric;
        while r > 0 {
            let now = r.min(max_merged(rows.tokens, self.protected));
            if now == 0 {
                break;
            }
            rows = self.merge(rows, metric, now);
            r -= now;
            if r > 0 {
                metric = Metric::new(self.cut(rows.value, 2, first, front as i64, 1), 1);
                metric.weight = (first > 0).then(|| self.cut(rows.value, 2, 0, 1, 1));
            }
        }
        let value = self.cut(rows.value, 2, front, END, 1);
        TokenRows { value, width: channels, ..rows }
    }

    /// Removes the `r` tokens of lowest significance, the attention of the class token times the norm of the
    /// value (PPT). `attention` is `[B,H,N,N]`, `value` is `[B,H,N,d]`. Also returns whether the variance of
    /// the significance is at least `threshold`, `[B,1,1]`.
    pub fn prune(
        &mut self,
        rows: TokenRows,
        attention: Ref,
        value: Ref,
        r: usize,
        threshold: f64,
    ) -> (TokenRows, Ref) {
        let others = rows.tokens - self.protected;
        let p = self.protected;
        let class = self.builder.slice(
            attention,
            &[
                SliceAxis { axis: 2, start: 0, end: 1, step: 1 },
                SliceAxis { axis: 3, start: p as i64, end: END, step: 1 },
            ],
        );
        let class = self.builder.squeeze(class, &[2]);
        let value = self.cut(value, 2, p, END, 1);
        let norm = self.builder.reduce("ReduceL2", value, &[3], false);
        let significance = self.op("Mul", &[class, norm]);
        let sum = self.builder.reduce("ReduceSum", significance, &[1], false);
        let all = self.builder.reduce("ReduceSum", sum, &[1], true);
        let share = self.op("Div", &[sum, all]);
        // Σ (share − 1/n)² / (n − 1)
        let mean = self.builder.constant("mean", Tensor::scalar(1.0 / others as f32));
        let deviation = self.op("Sub", &[share, mean]);
        let square = self.op("Mul", &[deviation, deviation]);
        let variance = self.builder.reduce("ReduceSum", square, &[1], true);
        let bound = (threshold * (others as f64 - 1.0)) as f32;
        let bound = self.builder.constant("bound", Tensor::scalar(bound));
        let prune = self.op("Less", &[variance, bound]);
        let prune = self.op("Not", &[prune]);
        let prune = self.builder.unsqueeze(prune, &[2]);

        let (_, kept) = self.top(share, 1, others - r, true);
        let (kept, _) = self.top(kept, 1, others - r, false);
        let kept = self.builder.unsqueeze(kept, &[2]);
        let from = self.cut(rows.value, 1, p, END, 1);
        let stay = self.builder.node(Node::new("GatherND").with("batch_dims", 1_i64), &[from, kept]);
        let front = self.cut(rows.value, 1, 0, p as i64, 1);
        let value = self.builder.node(Node::new("Concat").with("axis", 1_i64), &[front, stay]);
        (TokenRows { value, tokens: rows.tokens - r, width: rows.width }, prune)
    }

    /// Selects pruned or merged rows for each sample.
    pub fn choose(&mut self, prune: Ref, pruned: TokenRows, merged: TokenRows) -> TokenRows {
        let value = self.op("Where", &[prune, pruned.value, merged.value]);
        TokenRows { value, ..merged }
    }
}

/// Returns the first token and the size of the two alternating sets of tokens.
fn sets(tokens: usize, protected: usize) -> [(usize, usize); 2] {
    let (a, b) = match protected {
        0 => (0, 1),
        1 => (2, 1),
        _ => (2, 3),
    };
    [a, b].map(|from| (from, tokens.saturating_sub(from).div_ceil(2)))
}

/// Returns the largest number of tokens that one merge can remove.
pub(super) fn max_merged(tokens: usize, protected: usize) -> usize {
    let [even, odd] = sets(tokens, protected);
    if odd.1 == 0 { 0 } else { even.1.min((tokens - protected) / 2) }
}

/// Returns the largest number of tokens that repeated merges can remove.
pub(super) fn max_folded(tokens: usize, protected: usize) -> usize {
    let mut remaining = tokens;
    while let removed @ 1.. = max_merged(remaining, protected) {
        remaining -= removed;
    }
    tokens - remaining
}

fn ones(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_f64(DataType::Float, shape, &vec![1.0; count]).expect("as many elements")
}
