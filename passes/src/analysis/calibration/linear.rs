//! Linear operators with constant weights, all seen the same way: `y = W·x + b` for rows `x`.
//!
//! | operator | a row `x` is | rows of a sample |
//! |---|---|---|
//! | `Conv`, group `q` | the patch of the group's channels, channel-major | places of the output |
//! | `Gemm`, `MatMul` with a constant matrix on the right | the last axis | all other axes |
//!
//! A bias may be an input of the node, or an `Add` behind it. Of a quantized model, weights and bias may be dequantized.

use super::quantized;
use crate::statistics::Rows;
use faer::Mat;
use pare_graph::{
    Decline, Graph, NodeRef, Patch, Tensor, ValueId, ValueRef, expect,
    ops::{ConvView, GemmView},
};

/// A linear operator with constant weights.
#[derive(Clone, Debug)]
pub struct Linear {
    /// What it reads.
    pub input: ValueId,
    /// What it makes, with the bias added.
    pub output: ValueId,
    /// Its weights.
    pub weight: ValueId,
    /// Groups of channels that are mapped each by itself.
    pub groups: usize,
    /// Outputs `O` of a group.
    pub outputs: usize,
    /// Input channels of a group.
    pub channels: usize,
    kind: Kind,
    bias: Bias,
    quantized: bool,
}

/// What counts as a constant weight, and its elements as they are stored.
type Held = for<'g> fn(ValueRef<'g>) -> Result<&'g Tensor, Decline>;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Conv(ConvView),
    /// `W` stands as `[O, D]` (`transposed`), or as `[D, O]`; the operator multiplies it by `alpha`.
    Matrix {
        transposed: bool,
        alpha: f64,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Bias {
    /// This constant, times a factor.
    Constant(ValueId, f64),
    /// None so far. The node has a slot for one.
    Slot,
    /// None so far, and no slot either.
    Missing,
}

impl Linear {
    /// Reads `Conv`, `Gemm` and `MatMul`; declines if the weights are not constant.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        Self::held(at, |value| value.constant())
    }

    /// Reads also those whose weights are dequantized; they can be looked at, but only their bias be changed.
    pub fn of_quantized(at: NodeRef<'_>) -> Result<Self, Decline> {
        let linear = Self::held(at, quantized::stored)?;
        Ok(Self { quantized: !at.input(1)?.is_constant(), ..linear })
    }

    fn held(at: NodeRef<'_>, held: Held) -> Result<Self, Decline> {
        match at.op() {
            "Conv" => Self::conv(at, held),
            "Gemm" => Self::gemm(at, held),
            "MatMul" => Self::matmul(at, held),
            _ => Err(Decline::Mismatch),
        }
    }

    fn conv(at: NodeRef<'_>, held: Held) -> Result<Self, Decline> {
        let view = ConvView::of(at)?;
        let (weight, output) = (at.input(1)?, at.output()?);
        held(weight)?;
        let bias = match at.optional(2) {
            Some(bias) => {
                held(bias)?;
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
            kind: Kind::Conv(view),
            bias,
            quantized: false,
        })
    }

    fn gemm(at: NodeRef<'_>, held: Held) -> Result<Self, Decline> {
        let view = GemmView::of(at)?;
        expect(!view.trans_a && view.alpha != 0.0)?;
        let weight = at.input(1)?;
        let shape = held(weight)?.shape();
        expect(shape.len() == 2)?;
        let (channels, outputs) = if view.trans_b { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let bias = match at.optional(2) {
            Some(bias) if view.beta != 0.0 => {
                // A bias that is one number for all, or one for each row of a batch, is not ours to change.
                let stored = held(bias)?;
                expect(stored.shape().last() == Some(&outputs) && stored.len() == outputs)?;
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
            kind: Kind::Matrix { transposed: view.trans_b, alpha: view.alpha },
            bias,
            quantized: false,
        })
    }

    fn matmul(at: NodeRef<'_>, held: Held) -> Result<Self, Decline> {
        expect(at.is("MatMul"))?;
        let (input, weight, output) = (at.input(0)?, at.input(1)?, at.output()?);
        let &[channels, outputs] = held(weight)?.shape() else { return Err(Decline::Mismatch) };
        expect(input.rank()? >= 2)?;
        let (bias, output) = match added(output, outputs, held) {
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
            kind: Kind::Matrix { transposed: false, alpha: 1.0 },
            bias,
            quantized: false,
        })
    }

    /// Numbers in a row of one group: `D`.
    pub fn width(&self) -> usize {
        self.channels * self.taps()
    }

    /// Inputs of a row that belong to one channel.
    pub fn taps(&self) -> usize {
        match &self.kind {
            Kind::Conv(view) => view.kernel.iter().product(),
            Kind::Matrix { .. } => 1,
        }
    }

    /// Whether each channel is mapped on its own.
    pub fn is_depthwise(&self) -> bool {
        self.channels == 1 && self.groups > 1
    }

    /// Whether its weights are an initializer that nothing else reads, so that they may be changed.
    pub fn owns_weight(&self, graph: &Graph) -> bool {
        graph.value(self.weight).tensor().is_some() && graph.use_count(self.weight) == 1
    }

    /// Whether a repair can give it a bias: it has one, or a place for one.
    pub fn takes_bias(&self) -> bool {
        !(self.bias == Bias::Missing || self.quantized && self.bias == Bias::Slot)
    }

    /// Whether its weights are dequantized: they stay as they are.
    pub fn is_quantized(&self) -> bool {
        self.quantized
    }

    /// Axes of the weight along which its outputs and its input channels lie.
    pub fn weight_axes(&self) -> (usize, usize) {
        match self.kind {
            Kind::Conv(_) | Kind::Matrix { transposed: true, .. } => (0, 1),
            Kind::Matrix { transposed: false, .. } => (1, 0),
        }
    }

    /// Axis of the input and of the output along which channels lie.
    pub fn channel_axis(&self, graph: &Graph) -> Option<usize> {
        match self.kind {
            Kind::Conv(_) => Some(1),
            Kind::Matrix { .. } => graph.value_ref(self.input).rank().ok()?.checked_sub(1),
        }
    }

    /// Whether some of its inputs are padding.
    pub fn is_padded(&self) -> bool {
        matches!(&self.kind, Kind::Conv(view) if view.pads.iter().any(|&p| p != (0, 0)))
    }

    /// Whether channels lie along axis 1, else along the last.
    pub fn is_conv(&self) -> bool {
        matches!(self.kind, Kind::Conv(_))
    }

    /// The weights of group `q`, `[O, D]`.
    pub fn weight(&self, graph: &Graph, q: usize) -> Option<Mat<f64>> {
        let w = quantized::values(graph.value_ref(self.weight)).ok()?;
        let factor = self.factor();
        Some(Mat::from_fn(self.outputs, self.width(), |i, j| factor * w[self.place(q, i, j)]))
    }

    /// Where the weight `[i, j]` of group `q` stands in the tensor.
    pub fn place(&self, q: usize, i: usize, j: usize) -> usize {
        match self.kind {
            Kind::Conv(_) => (q * self.outputs + i) * self.width() + j,
            Kind::Matrix { transposed: true, .. } => i * self.width() + j,
            Kind::Matrix { transposed: false, .. } => j * self.outputs + i,
        }
    }

    /// Whether it multiplies by its weights, and adds its bias, as they are stored.
    pub fn is_plain(&self) -> bool {
        self.factor() == 1.0 && !matches!(self.bias, Bias::Constant(_, factor) if factor != 1.0)
    }

    /// What the operator multiplies its weights by.
    fn factor(&self) -> f64 {
        if let Kind::Matrix { alpha, .. } = self.kind { alpha } else { 1.0 }
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

    /// Put new weights `[O, D]` of all groups, and a new bias, into the graph. Rounded once, here. The bias is dropped
    /// if there is no place for one.
    pub fn store(&self, graph: &Graph, patch: &mut Patch, weights: &[Mat<f64>], bias: &[f64]) -> Option<()> {
        let old = graph.value_ref(self.weight).constant().ok()?;
        let (o, d, factor) = (self.outputs, self.width(), self.factor());
        let mut w = vec![0.0; old.len()];
        for (q, weight) in weights.iter().enumerate() {
            for i in 0..o {
                for j in 0..d {
                    w[self.place(q, i, j)] = weight[(i, j)] / factor;
                }
            }
        }
        patch.set_data(self.weight, Tensor::from_f64(old.dtype(), old.shape(), &w).ok()?);
        self.store_bias(graph, patch, bias)
    }

    /// Put a new bias of all groups into the graph. It is dropped if there is no place for one; a quantized operator that
    /// has none gets none, so that it stays one.
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
                    // Others read it too: they keep the old one.
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

    /// What two operators share that see the same rows: the value they read, and the window they slide over it.
    pub fn reads(&self) -> (ValueId, Vec<i64>) {
        let Kind::Conv(view) = &self.kind else { return (self.input, vec![]) };
        let sizes = [&view.kernel, &view.strides, &view.dilations].into_iter().flatten();
        let sizes = sizes.map(|&n| n as i64).chain(view.pads.iter().flat_map(|p| [p.0, p.1]));
        (self.input, sizes.chain([view.group as i64]).collect())
    }

    /// The shape of the output for an input of this shape; `None` if that is none of this operator's.
    pub fn output_shape(&self, input: &[usize]) -> Option<Vec<usize>> {
        let outputs = self.groups * self.outputs;
        let Kind::Conv(view) = &self.kind else {
            let (&last, rest) = input.split_last()?;
            return (last == self.channels).then(|| [rest, &[outputs]].concat());
        };
        if input.len() != view.kernel.len() + 2 || input[1] != self.channels * self.groups {
            return None;
        }
        let mut shape = vec![input[0], outputs];
        for (a, &size) in input[2..].iter().enumerate() {
            let reach = view.dilations[a].checked_mul(view.kernel[a].checked_sub(1)?)?.checked_add(1)?;
            let padded = usize::try_from(size as i64 + view.pads[a].0 + view.pads[a].1).ok()?;
            shape.push(padded.checked_sub(reach)? / view.strides[a] + 1);
        }
        Some(shape)
    }

    /// How many rows each sample of an output of this shape makes.
    pub fn places(&self, output: &[usize]) -> usize {
        match self.kind {
            Kind::Conv(_) => output[2..].iter().product(),
            Kind::Matrix { .. } => output[1..output.len() - 1].iter().product(),
        }
    }

    /// Append to `rows` the patches that the places `at` of sample `sample` of the output are computed from. The places
    /// count in row-major order over an output of shape `output`.
    pub fn gather_inputs(
        &self,
        x: &[f32],
        shape: &[usize],
        output: &[usize],
        sample: usize,
        at: &[usize],
        rows: &mut Rows,
    ) {
        let Kind::Conv(view) = &self.kind else {
            return gather_last(x, shape, sample, at, rows);
        };
        let (channels, spatial) = (shape[1], &shape[2..]);
        let plane: usize = spatial.iter().product();
        let x = &x[sample * channels * plane..][..channels * plane];
        let taps: Vec<Vec<usize>> = indices(&view.kernel).collect();
        for &place in at {
            // Offsets into a plane, one for each tap; `None` lies in the padding.
            let centre = unravel(place, &output[2..]);
            let offset = |tap: &Vec<usize>| {
                let mut offset = 0;
                for a in 0..spatial.len() {
                    let i =
                        (centre[a] * view.strides[a] + tap[a] * view.dilations[a]) as i64 - view.pads[a].0;
                    let i = usize::try_from(i).ok().filter(|&i| i < spatial[a])?;
                    offset = offset * spatial[a] + i;
                }
                Some(offset)
            };
            let offsets: Vec<_> = taps.iter().map(offset).collect();
            for plane in x.chunks_exact(plane.max(1)) {
                rows.data.extend(offsets.iter().map(|o| o.map_or(0.0, |o| plane[o])));
            }
        }
    }

    /// Append to `rows` the channels of the places `at` of sample `sample` of a value shaped like the output.
    pub fn gather_outputs(&self, y: &[f32], shape: &[usize], sample: usize, at: &[usize], rows: &mut Rows) {
        if !self.is_conv() {
            return gather_last(y, shape, sample, at, rows);
        }
        let (channels, plane) = (shape[1], shape[2..].iter().product::<usize>());
        let y = &y[sample * channels * plane..][..channels * plane];
        for &place in at {
            rows.data.extend((0..channels).map(|c| y[c * plane + place]));
        }
    }
}

/// The constant vector of `n` numbers along the last axis that is added to a value, and the sum.
fn added(value: ValueRef<'_>, n: usize, held: Held) -> Option<(ValueRef<'_>, ValueRef<'_>)> {
    let add = value.sole_user().ok().filter(|at| at.is("Add"))?;
    let other = if add.input(0).ok()?.id == value.id { add.input(1).ok()? } else { add.input(0).ok()? };
    let tensor = held(other).ok()?;
    let fits =
        tensor.len() == n && tensor.shape().last() == Some(&n) && tensor.rank() <= value.rank().ok()?;
    fits.then_some((other, add.output().ok()?))
}

fn gather_last(x: &[f32], shape: &[usize], sample: usize, at: &[usize], rows: &mut Rows) {
    let width = shape[shape.len() - 1];
    let places: usize = shape[1..shape.len() - 1].iter().product();
    for &place in at {
        rows.data.extend_from_slice(&x[(sample * places + place) * width..][..width]);
    }
}

/// The coordinates of a row-major index.
fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        at[axis] = index % shape[axis].max(1);
        index /= shape[axis].max(1);
    }
    at
}

/// All coordinates of a shape in row-major order.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..shape.iter().product()).map(|i| unravel(i, shape))
}
