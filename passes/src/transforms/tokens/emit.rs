//! The nodes that merge tokens, in a patch.
//!
//! Channels and sizes travel together: rows of `[size·x, size]`, so that one gather and one sum serve both, and their
//! quotient is the mean. A merge of `r` of `N` tokens is then
//!
//! ```text
//! S = m_a·m_bᵀ              a: every second token (from the first that is not protected), b: the others; |m| = 1
//! best, dst = top1(S)       src = the r rows of a whose best is best, in descending order
//! out = [protected, a without src in order, b + Σ src → dst]
//! ```

use crate::framework::NodeBuilder;
use pare_graph::{DataType, Node, Ref, Tensor, ops::SliceAxis};
use serde::{Deserialize, Serialize};

/// How the merged rows are added to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emit {
    /// `ScatterElements` that adds: operator set 16.
    Scatter,
    /// A product with a matrix of zeros and ones: operator set 13.
    Matmul,
}

/// What tokens are compared by, `[B,N,d]` or `[B,d,N]`.
#[derive(Clone, Copy)]
pub(super) struct Metric {
    pub value: Ref,
    /// The axis of tokens, 1 or 2.
    pub token: usize,
    /// `[B,N,1]`: what keeps a token of the first set from being merged, taken off its scores.
    pub weight: Option<Ref>,
}

impl Metric {
    pub fn new(value: Ref, token: usize) -> Self {
        Self { value, token, weight: None }
    }
}

/// Tokens as rows `[B,N,C+1]` of weighted channels and the weight.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub value: Ref,
    pub tokens: usize,
    pub width: usize,
}

/// Ends of slices that go to the end.
const END: i64 = i64::MAX;

pub(super) struct Emitter<'s, 'g, 'p> {
    pub spell: &'s mut NodeBuilder<'g, 'p>,
    pub emit: Emit,
    /// Tokens at the front that are never merged, nor merged into: the class token, the distillation token.
    pub protected: usize,
}

impl Emitter<'_, '_, '_> {
    fn op(&mut self, op: &str, inputs: &[Ref]) -> Ref {
        self.spell.node(Node::new(op), inputs)
    }

    fn ints(&mut self, what: &str, values: &[i64]) -> Ref {
        self.spell.constant(what, Tensor::vector(values))
    }

    fn cut(&mut self, x: Ref, axis: usize, start: usize, end: i64, step: i64) -> Ref {
        self.spell.slice(x, &[SliceAxis { axis, start: start as i64, end, step }])
    }

    /// The `k` largest along `axis`, in order: values and places.
    fn top(&mut self, x: Ref, axis: i64, k: usize, largest: bool) -> (Ref, Ref) {
        let k = self.ints("k", &[k as i64]);
        let node =
            Node::new("TopK").with("axis", axis).with("largest", i64::from(largest)).with("sorted", 1_i64);
        let [values, places] = self.spell.nodes(node, &[x, k], ["best", "place"]);
        (values, places)
    }

    /// `x` and its sizes as rows. Without sizes every token counts once.
    pub fn rows(&mut self, x: Ref, size: Option<Ref>, tokens: usize, channels: usize) -> Rows {
        let value = if let Some(size) = size {
            let weighted = self.op("Mul", &[x, size]);
            self.spell.node(Node::new("Concat").with("axis", 2_i64), &[weighted, size])
        } else {
            // A further channel of ones.
            let pads = self.ints("pads", &[0, 0, 0, 0, 0, 1]);
            let one = self.spell.constant("one", Tensor::scalar(1_f32));
            self.op("Pad", &[x, pads, one])
        };
        Rows { value, tokens, width: channels + 1 }
    }

    /// Means of the channels, and sizes. The last node is the division, whose second operand are the sizes.
    pub fn means(&mut self, rows: Rows) -> Ref {
        let parts = self.ints("parts", &[rows.width as i64 - 1, 1]);
        let node = Node::new("Split").with("axis", 2_i64);
        let [sum, size] = self.spell.nodes(node, &[rows.value, parts], ["sum", "size"]);
        self.op("Div", &[sum, size])
    }

    /// The sum over heads of `[B,H,..,..]`: for comparing directions as good as the mean. One product is faster than a
    /// reduction over an axis in the middle.
    pub fn over_heads(&mut self, k: Ref, heads: usize, target: &[i64]) -> Ref {
        let flat = self.spell.reshape(k, &[0, heads as i64, -1]);
        let ones = self.spell.constant("ones", ones(&[1, heads]));
        let sum = self.op("MatMul", &[ones, flat]);
        self.spell.reshape(sum, target)
    }

    /// Merge `r` tokens. `r` is at most what [`most`] says.
    pub fn merge(&mut self, rows: Rows, metric: Metric, r: usize) -> Rows {
        let Rows { tokens, width, .. } = rows;
        let [even, odd] = sets(tokens, self.protected);
        let length = self.spell.node(
            Node::new("LpNormalization").with("axis", metric.token as i64 ^ 3).with("p", 2_i64),
            &[metric.value],
        );
        let mut a = self.cut(length, metric.token, even.0, END, 2);
        let mut b = self.cut(length, metric.token, odd.0, END, 2);
        let turned = if metric.token == 1 { &mut b } else { &mut a };
        *turned = self.spell.transpose(*turned, &[0, 2, 1]);
        let scores = self.op("MatMul", &[a, b]);
        let (mut best, near) = self.top(scores, -1, 1, true);
        if let Some(weight) = metric.weight {
            // The same for all partners of a token, so that the nearest stays the nearest.
            let weight = self.cut(weight, 1, even.0, END, 2);
            best = self.op("Sub", &[best, weight]);
        }
        let (_, order) = self.top(best, 1, even.1, true);
        let (src, stay) = if r < even.1 {
            let parts = self.ints("parts", &[r as i64, (even.1 - r) as i64]);
            let node = Node::new("Split").with("axis", 1_i64);
            let [src, stay] = self.spell.nodes(node, &[order, parts], ["src", "stay"]);
            // As in the reference: in order if there is a class token.
            let stay = if self.protected > 0 { self.top(stay, 1, even.1 - r, false).0 } else { stay };
            (src, Some(stay))
        } else {
            (order, None)
        };
        let dst = self.spell.node(Node::new("GatherElements").with("axis", 1_i64), &[near, src]);

        let from = self.cut(rows.value, 1, even.0, END, 2);
        let into = self.cut(rows.value, 1, odd.0, END, 2);
        let gather = || Node::new("GatherND").with("batch_dims", 1_i64);
        let moved = self.spell.node(gather(), &[from, src]);
        let into = match self.emit {
            Emit::Matmul => {
                let row = self.spell.reshape(dst, &[0, 1, r as i64]);
                let places: Vec<i64> = (0..odd.1 as i64).collect();
                let column = Tensor::vector(&places).reshaped(&[odd.1, 1]).expect("as many elements");
                let column = self.spell.constant("places", column);
                let is = self.op("Equal", &[column, row]);
                let matrix = self.spell.node(Node::new("Cast").with("to", 1_i64), &[is]);
                let sums = self.op("MatMul", &[matrix, moved]);
                self.op("Add", &[into, sums])
            }
            Emit::Scatter => {
                let zeros =
                    Tensor::vector(&vec![0_i64; width]).reshaped(&[1, 1, width]).expect("as many elements");
                let zeros = self.spell.constant("zeros", zeros);
                let places = self.op("Add", &[dst, zeros]);
                let node = Node::new("ScatterElements").with("axis", 1_i64).with("reduction", "add");
                self.spell.node(node, &[into, places, moved])
            }
        };
        let mut parts = vec![];
        if self.protected > 0 {
            parts.push(self.cut(rows.value, 1, 0, self.protected as i64, 1));
        }
        if let Some(stay) = stay {
            parts.push(self.spell.node(gather(), &[from, stay]));
        }
        parts.push(into);
        let value = self.spell.node(Node::new("Concat").with("axis", 1_i64), &parts);
        Rows { value, tokens: tokens - r, width }
    }

    /// `30α·a` for each token, `[B,N,1]`: `a` is how much the class token attends to it, in the mean over heads (FOLDER).
    /// `attention` is `[B,H,N,N]` or `[B·H,N,N]`, with `axis` that of the queries.
    pub fn attended(&mut self, attention: Ref, axis: usize, heads: usize, tokens: usize, alpha: f64) -> Ref {
        let class = self.cut(attention, axis, 0, 1, 1);
        let flat = self.spell.reshape(class, &[-1, heads as i64, tokens as i64]);
        let share = Tensor::from_f64(DataType::Float, &[1, heads], &vec![30.0 * alpha / heads as f64; heads]);
        let share = self.spell.constant("share", share.expect("as many elements"));
        let sum = self.op("MatMul", &[share, flat]);
        self.spell.reshape(sum, &[0, tokens as i64, 1])
    }

    /// Merge `r` tokens however many these are, halving again and again (FOLDER). From the second round on tokens are
    /// compared by the weighted sums of what they were compared by, and what was attended to adds up.
    pub fn fold(&mut self, rows: Rows, metric: Metric, dim: usize, mut r: usize) -> Rows {
        if r <= most(rows.tokens, self.protected) {
            return self.merge(rows, metric, r);
        }
        // Let the metric travel in front of the channels, weighted like them, and behind the weights, which are sums.
        let channels = rows.width;
        let by_token = match metric.token {
            1 => metric.value,
            _ => self.spell.transpose(metric.value, &[0, 2, 1]),
        };
        let size = self.cut(rows.value, 2, channels - 1, END, 1);
        let weighted = self.op("Mul", &[by_token, size]);
        let parts: Vec<_> = metric.weight.into_iter().chain([weighted, rows.value]).collect();
        let value = self.spell.node(Node::new("Concat").with("axis", 2_i64), &parts);
        let (first, front) = (parts.len() - 2, parts.len() - 2 + dim);
        let mut rows = Rows { value, width: front + channels, ..rows };
        let mut metric = metric;
        while r > 0 {
            let now = r.min(most(rows.tokens, self.protected));
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
        Rows { value, width: channels, ..rows }
    }

    /// Keep the tokens that the class token attends to most, by weight times length of the value (PPT).
    /// `attention` is `[B,H,N,N]`, `value` `[B,H,N,d]`. Also whether the spread of that is at least `threshold`: `[B,1,1]`.
    pub fn prune(&mut self, rows: Rows, attention: Ref, value: Ref, r: usize, threshold: f64) -> (Rows, Ref) {
        let others = rows.tokens - self.protected;
        let p = self.protected;
        let class = self.spell.slice(
            attention,
            &[
                SliceAxis { axis: 2, start: 0, end: 1, step: 1 },
                SliceAxis { axis: 3, start: p as i64, end: END, step: 1 },
            ],
        );
        let class = self.spell.squeeze(class, &[2]);
        let value = self.cut(value, 2, p, END, 1);
        let length = self.spell.reduce("ReduceL2", value, &[3], false);
        let each = self.op("Mul", &[class, length]);
        let sum = self.spell.reduce("ReduceSum", each, &[1], false);
        let all = self.spell.reduce("ReduceSum", sum, &[1], true);
        let share = self.op("Div", &[sum, all]);
        // Σ (share − 1/n)² / (n − 1)
        let mean = self.spell.constant("mean", Tensor::scalar(1.0 / others as f32));
        let off = self.op("Sub", &[share, mean]);
        let square = self.op("Mul", &[off, off]);
        let spread = self.spell.reduce("ReduceSum", square, &[1], true);
        let bound = (threshold * (others as f64 - 1.0)) as f32;
        let bound = self.spell.constant("bound", Tensor::scalar(bound));
        let wide = self.op("Less", &[spread, bound]);
        let wide = self.op("Not", &[wide]);
        let wide = self.spell.unsqueeze(wide, &[2]);

        let (_, kept) = self.top(share, 1, others - r, true);
        let (kept, _) = self.top(kept, 1, others - r, false);
        let kept = self.spell.unsqueeze(kept, &[2]);
        let from = self.cut(rows.value, 1, p, END, 1);
        let stay = self.spell.node(Node::new("GatherND").with("batch_dims", 1_i64), &[from, kept]);
        let front = self.cut(rows.value, 1, 0, p as i64, 1);
        let value = self.spell.node(Node::new("Concat").with("axis", 1_i64), &[front, stay]);
        (Rows { value, tokens: rows.tokens - r, width: rows.width }, wide)
    }

    /// One or the other, for each sample.
    pub fn choose(&mut self, wide: Ref, pruned: Rows, merged: Rows) -> Rows {
        let value = self.op("Where", &[wide, pruned.value, merged.value]);
        Rows { value, ..merged }
    }
}

/// First token and count of the two sets that tokens are split into.
fn sets(tokens: usize, protected: usize) -> [(usize, usize); 2] {
    let (a, b) = match protected {
        0 => (0, 1),
        1 => (2, 1),
        _ => (2, 3),
    };
    [a, b].map(|from| (from, tokens.saturating_sub(from).div_ceil(2)))
}

/// The most tokens that one merge can take away.
pub(super) fn most(tokens: usize, protected: usize) -> usize {
    let [even, odd] = sets(tokens, protected);
    if odd.1 == 0 { 0 } else { even.1.min((tokens - protected) / 2) }
}

/// The most tokens that merges one after another can take away.
pub(super) fn furthest(tokens: usize, protected: usize) -> usize {
    let mut left = tokens;
    while let now @ 1.. = most(left, protected) {
        left -= now;
    }
    tokens - left
}

fn ones(shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    Tensor::from_f64(DataType::Float, shape, &vec![1.0; count]).expect("as many elements")
}
