//! Multiply-accumulates of each operator, from the shapes of its inputs and outputs.

use super::{Bindings, product};
use crate::{Attribute, NodeRef, ValueRef};
use std::collections::HashMap;

/// The multiply-accumulates of a node without subgraphs; `None` if they are unknown.
pub(super) fn of(at: NodeRef<'_>, sizes: &Bindings) -> Option<u64> {
    let s = Shapes { at, sizes };
    let contrib = at.node().domain().starts_with("com.microsoft");
    match (at.node().domain(), at.op()) {
        ("", "Conv" | "ConvInteger" | "DeformConv") => s.convolution(1),
        ("", "QLinearConv") => s.convolution(3),
        ("", "ConvTranspose") => {
            Some(s.input_count(0)?.checked_mul(product(s.input(1)?.into_iter().skip(1))?)?)
        }
        ("", "MatMul" | "MatMulInteger" | "QLinearMatMul") => s.matmul(false),
        ("", "Gemm") => s.matmul(at.int("transA", 0) != 0),
        ("", "Einsum") => s.einsum(),
        ("", "RNN" | "GRU" | "LSTM") => s.recurrence(),
        ("" | "ai.onnx.preview", "Attention" | "FlexAttention") => {
            // K is [B,N,L,H] or [B,L,N·H]: the keys are counted by the second to last axis.
            let keys = s.input(1)?;
            let keys = *keys.get(keys.len().checked_sub(2)?)?;
            s.attention(s.input_count(0)?, keys.checked_add(s.past(4, 2)?)?)
        }
        ("ai.onnx.ml", "LinearClassifier" | "LinearRegressor") => {
            let Some(Attribute::Floats(coefficients)) = at.attr("coefficients") else { return None };
            let rows = if s.input(0)?.len() > 1 { s.input(0)?[0] } else { 1 };
            rows.checked_mul(coefficients.len() as u64)
        }
        (_, op) if contrib => s.contributed(op),
        ("" | "ai.onnx.ml" | "ai.onnx.preview.training", _) => at.schema().map(|_| 0),
        _ => None,
    }
}

/// The number of iterations of a `Scan`: the size of the scanned axis.
pub(super) fn scan_length(at: NodeRef<'_>, sizes: &Bindings) -> Option<u64> {
    let scanned = usize::try_from(at.int("num_scan_inputs", 0)).ok()?;
    let inputs = at.inputs();
    let first = inputs.len().checked_sub(scanned)?;
    let shape = sizes.shape(&inputs.get(first)?.as_ref()?.value().fact)?;
    let axis = at.ints("scan_input_axes").and_then(|axes| axes.first().copied()).unwrap_or(0);
    // In operator set 8, axis 0 is the batch, and the body runs for every sample.
    if at.opset() < 9 {
        return product(shape.into_iter().take(2));
    }
    let axis = if axis < 0 { axis.checked_add(shape.len() as i64)? } else { axis };
    shape.get(usize::try_from(axis).ok()?).copied()
}

struct Shapes<'g> {
    at: NodeRef<'g>,
    sizes: &'g Bindings,
}

impl Shapes<'_> {
    fn shape(&self, value: Option<ValueRef<'_>>) -> Option<Vec<u64>> {
        self.sizes.shape(&value?.value().fact)
    }

    fn input(&self, slot: usize) -> Option<Vec<u64>> {
        self.shape(self.at.optional(slot))
    }

    fn output(&self) -> Option<Vec<u64>> {
        self.shape(self.at.outputs().first().copied().flatten())
    }

    fn input_count(&self, slot: usize) -> Option<u64> {
        product(self.input(slot)?)
    }

    fn output_count(&self) -> Option<u64> {
        product(self.output()?)
    }

    /// Each output element sums over the input channels of its group and the kernel: `|Y| · Π W[1..]`.
    fn convolution(&self, weight: usize) -> Option<u64> {
        let taps = product(self.input(weight)?.into_iter().skip(1))?;
        self.output_count()?.checked_mul(taps)
    }

    /// `|Y| · K`, with `K` the size of the reduced axis of `A`.
    fn matmul(&self, trans_a: bool) -> Option<u64> {
        let a = self.input(0)?;
        let from_end = if trans_a && a.len() > 1 { 2 } else { 1 };
        let k = *a.get(a.len().checked_sub(from_end)?)?;
        self.output_count()?.checked_mul(k)
    }

    /// Every step of every sequence multiplies with `W` and `R`: `S · B · (|W| + |R|)`.
    fn recurrence(&self) -> Option<u64> {
        let steps = product(self.input(0)?.into_iter().take(2))?;
        steps.checked_mul(self.input_count(1)?.checked_add(self.input_count(2)?)?)
    }

    /// Scores `Q·Kᵀ` and outputs `P·V` for `L` keys: `L · (|Q| + |Y|)`.
    fn attention(&self, queries: u64, keys: u64) -> Option<u64> {
        keys.checked_mul(queries.checked_add(self.output_count()?)?)
    }

    /// The number of keys in an optional cache.
    fn past(&self, slot: usize, axis: usize) -> Option<u64> {
        match self.at.optional(slot) {
            Some(_) => self.input(slot)?.get(axis).copied(),
            None => Some(0),
        }
    }

    /// The product of the sizes of all labels, once per product of two operands; 0 if no label is summed
    /// over.
    fn einsum(&self) -> Option<u64> {
        let equation: String = self.at.string("equation", "").split_whitespace().collect();
        let (terms, output) = equation.split_once("->").map_or((&*equation, None), |(t, o)| (t, Some(o)));
        let mut sizes = HashMap::<(char, usize), u64>::new();
        let terms: Vec<_> = terms.split(',').collect();
        let mut uses = HashMap::<char, usize>::new();
        for (slot, term) in terms.iter().enumerate() {
            let shape = self.input(slot)?;
            let named = term.chars().filter(|c| c.is_alphabetic()).count();
            let ellipsis = shape.len().checked_sub(named)?;
            let labels = term.replace("...", ".");
            let mut axes = shape.into_iter();
            for label in labels.chars() {
                // The axes of `...` broadcast from the last one.
                let keys: Vec<_> = if label == '.' {
                    (0..ellipsis).rev().map(|i| ('.', i)).collect()
                } else {
                    vec![(label, 0)]
                };
                for key in keys {
                    let size = axes.next()?;
                    let known = sizes.entry(key).or_insert(size);
                    *known = (*known).max(size);
                }
                *uses.entry(label).or_default() += 1;
            }
        }
        let kept = |label: char| match output {
            Some(output) => label == '.' || output.contains(label),
            None => label == '.' || uses.get(&label) == Some(&1),
        };
        if terms.len() < 2 || uses.keys().all(|&label| kept(label)) {
            return Some(0);
        }
        product(sizes.into_values())?.checked_mul(terms.len() as u64 - 1)
    }

    /// Contributed operators of ONNX Runtime: fused forms of the standard ones.
    fn contributed(&self, op: &str) -> Option<u64> {
        let trans_a = self.at.int("transA", 0) != 0;
        match op {
            "Conv" | "FusedConv" | "NhwcConv" | "NhwcFusedConv" => self.convolution(1),
            "QLinearConv" => self.convolution(3),
            "FusedMatMul"
            | "TransposeMatMul"
            | "FusedGemm"
            | "GemmFastGelu"
            | "QGemm"
            | "FusedMatMulActivation"
            | "MatMulInteger16"
            | "MatMulIntegerToFloat"
            | "DynamicQuantizeMatMul"
            | "MatMulNBits"
            | "MatMulBnb4"
            | "MatMulFpQ4"
            | "SparseToDenseMatMul" => self.matmul(trans_a),
            "Attention" => {
                // One product with the weight computes Q, K and V, of equal sizes unless `qkv_hidden_sizes`
                // is set.
                let (input, weight) = (self.input(0)?, self.input(1)?);
                let rows = product(input.iter().take(2).copied())?;
                let width = *weight.get(1)?;
                let query = self.at.ints("qkv_hidden_sizes").and_then(|s| u64::try_from(*s.first()?).ok());
                let keys = input.get(1)?.checked_add(self.past(4, 3)?)?;
                let projection = product([rows, *input.get(2)?, width])?;
                projection.checked_add(self.attention(rows.checked_mul(query.unwrap_or(width / 3))?, keys)?)
            }
            "MultiHeadAttention" => {
                let query = self.input(0)?;
                let packed = if query.len() == 5 { 3 } else { 1 };
                let keys = match (self.at.optional(1), self.input(1)) {
                    (None, _) => *query.get(1)?,
                    (Some(_), keys) => keys.and_then(|k| k.get(if k.len() == 4 { 2 } else { 1 }).copied())?,
                };
                self.attention(product(query)? / packed, keys.checked_add(self.past(6, 2)?)?)
            }
            "GroupQueryAttention" => {
                let keys = self.input(0)?.get(1)?.checked_add(self.past(3, 2)?)?;
                self.attention(self.output_count()?, keys)
            }
            _ => {
                let heavy = ["Attention", "MoE", "Search", "Sampling", "LSTM", "Gemm", "MatMul", "Conv"];
                (!heavy.iter().any(|word| op.contains(word))).then_some(0)
            }
        }
    }
}
