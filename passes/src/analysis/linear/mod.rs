//! One view of linear operators with constant weights: `y = W·x + b` for rows `x`.
//!
//! | operator | a row `x` is | rows of a sample |
//! |---|---|---|
//! | `Conv`, group `q` | the patch of the group's channels, channel-major | positions of the output |
//! | `Gemm`, `MatMul` with a constant matrix on the right | the last axis | all other axes |
//!
//! A bias is an input of the node, or a constant added by an `Add` that follows. In a quantized model,
//! weights and bias may be outputs of `DequantizeLinear`.

mod affine;
mod quantized;
mod rows;

pub use affine::AffineMap;
pub use quantized::dequantized;
pub use rows::Positions;

use crate::analysis::subnormals::flush_subnormals;
use faer::Mat;
use pare_graph::{
    Decline, Graph, NodeId, NodeRef, Patch, Tensor, ValueId, ValueRef, expect,
    ops::{ConvView, GemmView},
};

/// A linear operator with constant weights.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The input.
    pub input: ValueId,
    /// The output, with the bias added.
    pub output: ValueId,
    /// The weights.
    pub weight: ValueId,
    /// The number of groups of channels, each with its own map.
    pub groups: usize,
    /// Outputs `O` of a group.
    pub outputs: usize,
    /// Input channels of a group.
    pub channels: usize,
    operator: Operator,
    bias: Bias,
    quantized: bool,
}

/// Returns the tensor behind a constant operand, or declines.
type ReadConstant = for<'g> fn(ValueRef<'g>) -> Result<&'g Tensor, Decline>;

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    Conv(ConvView),
    /// `alpha·W`, with `W` in the file as `[O, D]` (`transposed`) or `[D, O]`, after axes of size 1.
    Matrix {
        transposed: bool,
        alpha: f64,
        leading: usize,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Bias {
    /// This constant, times a factor.
    Constant(ValueId, f64),
    /// None, but the node has an input for one.
    Slot,
    /// None, and no input for one.
    Missing,
}

impl Linear {
    /// Reads `Conv`, `Gemm` and `MatMul`; declines if the weights are not constant.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        Self::read(at, |value| value.constant())
    }

    /// Like [`Linear::of`], but also reads dequantized weights. Of these operators only the bias can be
    /// changed.
    pub fn of_quantized(at: NodeRef<'_>) -> Result<Self, Decline> {
        let linear = Self::read(at, quantized::integers)?;
        Ok(Self { quantized: !at.input(1)?.is_constant(), ..linear })
    }

    /// Returns the operator of a node if its weights may be changed: see [`Linear::owns_weight`].
    pub fn owned(graph: &Graph, node: NodeId) -> Option<Self> {
        Self::of(graph.at(node)).ok().filter(|linear| linear.owns_weight(graph))
    }

    fn read(at: NodeRef<'_>, constant: ReadConstant) -> Result<Self, Decline> {
        match at.op() {
            "Conv" => Self::conv(at, constant),
            "Gemm" => Self::gemm(at, constant),
            "MatMul" => Self::matmul(at, constant),
            _ => Err(Decline::Mismatch),
        }
    }

    fn conv(at: NodeRef<'_>, constant: ReadConstant) -> Result<Self, Decline> {
        let view = ConvView::of(at)?;
        let (weight, output) = (at.input(1)?, at.output()?);
        constant(weight)?;
        let bias = match at.optional(2) {
            Some(bias) => {
                constant(bias)?;
                Bias::Constant(bias.id, 1.0)
            }
            None => Bias::Slot,
        };
        Ok(Self {
            input: at.input(0)?.id,
            output: output.id,
            weight: weight.id,
            groups: view.group,
            outputs: view.outputs / view.group,
            channels: view.inputs,
            operator: Operator::Conv(view),
            bias,
            quantized: false,
        })
    }

    fn gemm(at: NodeRef<'_>, constant: ReadConstant) -> Result<Self, Decline> {
        let view = GemmView::of(at)?;
        expect(!view.trans_a && view.alpha != 0.0)?;
        let weight = at.input(1)?;
        let shape = constant(weight)?.shape();
        expect(shape.len() == 2)?;
        let (channels, outputs) = if view.trans_b { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let bias = match at.optional(2) {
            Some(bias) if view.beta != 0.0 => {
                // A scalar, or one number for each row of the batch, is not a bias of the outputs.
                let tensor = constant(bias)?;
                expect(tensor.shape().last() == Some(&outputs) && tensor.len() == outputs)?;
                Bias::Constant(bias.id, view.beta)
            }
            Some(_) => Bias::Missing,
            None if view.beta == 1.0 => Bias::Slot,
            None => Bias::Missing,
        };
        Ok(Self {
            input: at.input(0)?.id,
            output: at.output()?.id,
            weight: weight.id,
            groups: 1,
            outputs,
            channels,
            operator: Operator::Matrix { transposed: view.trans_b, alpha: view.alpha, leading: 0 },
            bias,
            quantized: false,
        })
    }

    fn matmul(at: NodeRef<'_>, constant: ReadConstant) -> Result<Self, Decline> {
        expect(at.is("MatMul"))?;
        let (input, weight, output) = (at.input(0)?, at.input(1)?, at.output()?);
        let &[ref leading @ .., channels, outputs] = constant(weight)?.shape() else {
            return Err(Decline::Mismatch);
        };
        expect(leading.iter().all(|&size| size == 1) && input.rank()? >= leading.len() + 2)?;
        let (bias, output) = match added_bias(output, outputs, constant) {
            Some((bias, sum)) => (Bias::Constant(bias.id, 1.0), sum),
            None => (Bias::Missing, output),
        };
        Ok(Self {
            input: input.id,
            output: output.id,
            weight: weight.id,
            groups: 1,
            outputs,
            channels,
            operator: Operator::Matrix { transposed: false, alpha: 1.0, leading: leading.len() },
            bias,
            quantized: false,
        })
    }

    /// The length `D` of a row of one group.
    pub fn width(&self) -> usize {
        self.channels * self.taps()
    }

    /// Elements of a row that belong to one channel.
    pub fn taps(&self) -> usize {
        match &self.operator {
            Operator::Conv(view) => view.kernel.iter().product(),
            Operator::Matrix { .. } => 1,
        }
    }

    /// Returns whether the weights are an initializer without other users, so that they may be changed.
    pub fn owns_weight(&self, graph: &Graph) -> bool {
        graph.value(self.weight).tensor().is_some() && graph.use_count(self.weight) == 1
    }

    /// Returns whether the bias can be changed or added.
    pub fn takes_bias(&self) -> bool {
        !(self.bias == Bias::Missing || self.quantized && self.bias == Bias::Slot)
    }

    /// The constant that holds the bias, if there is one.
    pub fn bias_value(&self) -> Option<ValueId> {
        if let Bias::Constant(id, _) = self.bias { Some(id) } else { None }
    }

    /// Returns whether the weights are dequantized, so that they cannot be changed.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// The axes of the weight that count outputs and input channels.
    pub fn weight_axes(&self) -> (usize, usize) {
        match self.operator {
            Operator::Conv(_) | Operator::Matrix { transposed: true, .. } => (0, 1),
            Operator::Matrix { transposed: false, leading, .. } => (leading + 1, leading),
        }
    }

    /// The channel axis of the input and of the output.
    pub fn channel_axis(&self, graph: &Graph) -> Option<usize> {
        match self.operator {
            Operator::Conv(_) => Some(1),
            Operator::Matrix { .. } => graph.value_ref(self.input).rank().ok()?.checked_sub(1),
        }
    }

    /// Returns whether some of its inputs are padding.
    pub fn is_padded(&self) -> bool {
        matches!(&self.operator, Operator::Conv(view) if view.pads.iter().any(|&p| p != (0, 0)))
    }

    /// Returns whether channels are on axis 1; otherwise they are on the last axis.
    pub fn is_conv(&self) -> bool {
        matches!(self.operator, Operator::Conv(_))
    }

    /// The weights of group `q`, `[O, D]`.
    pub fn weight(&self, graph: &Graph, q: usize) -> Option<Mat<f64>> {
        let w = quantized::values(graph.value_ref(self.weight)).ok()?;
        let factor = self.factor();
        Some(Mat::from_fn(self.outputs, self.width(), |i, j| factor * w[self.offset(q, i, j)]))
    }

    /// The bias of all groups; zeros if there is none.
    pub fn bias(&self, graph: &Graph) -> Option<Vec<f64>> {
        match self.bias {
            Bias::Constant(id, factor) => {
                let values = quantized::values(graph.value_ref(id)).ok()?;
                Some(values.into_iter().map(|b| b * factor).collect())
            }
            Bias::Slot | Bias::Missing => Some(vec![0.0; self.groups * self.outputs]),
        }
    }

    /// The map of each group.
    pub fn maps(&self, graph: &Graph) -> Option<Vec<AffineMap>> {
        let (bias, o) = (self.bias(graph)?, self.outputs);
        let map = |q: usize| {
            Some(AffineMap { weight: self.weight(graph, q)?, bias: bias[q * o..(q + 1) * o].to_vec() })
        };
        (0..self.groups).map(map).collect()
    }

    /// The offset in the tensor of the weight `[i, j]` of group `q`.
    pub fn offset(&self, q: usize, i: usize, j: usize) -> usize {
        match self.operator {
            Operator::Conv(_) => (q * self.outputs + i) * self.width() + j,
            Operator::Matrix { transposed: true, .. } => i * self.width() + j,
            Operator::Matrix { transposed: false, .. } => j * self.outputs + i,
        }
    }

    /// Drops axes of size 1 of the weights, and multiplies them by `alpha` and the bias by `beta`, which become
    /// 1; `None` if nothing changes or can be changed.
    pub fn normalize(&self, at: NodeRef<'_>, patch: &mut Patch) -> Option<()> {
        if let Operator::Matrix { leading: leading @ 1.., .. } = self.operator {
            let old = at.graph.value(self.weight).tensor()?;
            patch.set_data(self.weight, old.reshaped(&old.shape()[leading..]).ok()?);
            return Some(());
        }
        let view = GemmView::of(at).ok().filter(|view| view.alpha != 1.0 || view.beta != 1.0)?;
        let scaled = |value: ValueRef<'_>, factor: f64| {
            let old = value.constant().ok()?;
            let values: Vec<_> = old.to_f64()?.into_iter().map(|v| v * factor).collect();
            Tensor::from_f64(old.dtype(), old.shape(), &values).ok()
        };
        patch.set_data(self.weight, scaled(at.graph.value_ref(self.weight), view.alpha)?);
        if let Some(bias) = at.optional(2) {
            patch.set_constant(at.id, 2, bias.name(), scaled(bias, view.beta)?);
        }
        patch.set_attribute(at.id, "alpha", None);
        patch.set_attribute(at.id, "beta", None);
        Some(())
    }

    /// The factor of the weights.
    fn factor(&self) -> f64 {
        if let Operator::Matrix { alpha, .. } = self.operator { alpha } else { 1.0 }
    }

    /// Writes new weights `[O, D]` and a new bias, of all groups, to the patch. They are rounded once, here.
    /// The bias is dropped if the node has no input for one.
    pub fn store(&self, graph: &Graph, patch: &mut Patch, weights: &[Mat<f64>], bias: &[f64]) -> Option<()> {
        let old = graph.value_ref(self.weight).constant().ok()?;
        let (o, d, factor) = (self.outputs, self.width(), self.factor());
        let mut w = vec![0.0; old.len()];
        for (q, weight) in weights.iter().enumerate() {
            for i in 0..o {
                for j in 0..d {
                    w[self.offset(q, i, j)] = weight[(i, j)] / factor;
                }
            }
        }
        // Least squares drives what is useless towards zero, but not to it.
        flush_subnormals(&mut w, old.dtype());
        patch.set_data(self.weight, Tensor::from_f64(old.dtype(), old.shape(), &w).ok()?);
        self.store_bias(graph, patch, bias)
    }

    /// Writes a new bias of all groups to the patch. It is dropped if the node has no input for one, and for
    /// a quantized operator without a bias, which would not be fused as a quantized one any more.
    pub fn store_bias(&self, graph: &Graph, patch: &mut Patch, bias: &[f64]) -> Option<()> {
        match self.bias {
            Bias::Constant(id, factor) => {
                let values: Vec<_> = bias.iter().map(|b| b / factor).collect();
                let Ok(old) = graph.value_ref(id).constant() else {
                    return quantized::store(graph, patch, id, &values);
                };
                let tensor = Tensor::from_f64(old.dtype(), old.shape(), &values).ok()?;
                if graph.use_count(id) == 1 && graph.value(id).tensor().is_some() {
                    patch.set_data(id, tensor);
                } else {
                    // Other users keep the old bias.
                    let at = graph.value_ref(self.output).producer()?;
                    let slot = at.inputs().iter().position(|v| v.is_some_and(|v| v.id == id))?;
                    patch.set_constant(at.id, slot, &graph.value(id).name, tensor);
                }
            }
            Bias::Slot if !self.quantized && bias.iter().any(|&b| b != 0.0) => {
                let dtype = graph.value_ref(self.weight).constant().ok()?.dtype();
                let tensor = Tensor::from_f64(dtype, &[bias.len()], bias).ok()?;
                let at = graph.value_ref(self.output).producer()?;
                patch.set_constant(at.id, 2, &format!("{}_bias", graph.value(self.weight).name), tensor);
            }
            Bias::Slot | Bias::Missing => {}
        }
        Some(())
    }
}

/// Returns the constant vector of `n` elements along the last axis that an `Add` adds to a value, and the
/// sum.
fn added_bias(value: ValueRef<'_>, n: usize, constant: ReadConstant) -> Option<(ValueRef<'_>, ValueRef<'_>)> {
    let add = value.sole_user().ok().filter(|at| at.is("Add"))?;
    let other = if add.input(0).ok()?.id == value.id { add.input(1).ok()? } else { add.input(0).ok()? };
    let tensor = constant(other).ok()?;
    let fits =
        tensor.len() == n && tensor.shape().last() == Some(&n) && tensor.rank() <= value.rank().ok()?;
    fits.then_some((other, add.output().ok()?))
}
