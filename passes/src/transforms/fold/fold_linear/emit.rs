//! Construction of nodes for composite layers.

use super::{
    kernel::{BiasMap, Kernel, Tile, positions, transpose},
    layer::{LayerWeights, Layout, Layouts, LinearLayer},
};
use crate::{
    framework::NodeBuilder,
    transforms::fold::preceding::{ChannelAffine, Weight, add_constant, reuse_or_add_constant, rounded},
};
use ndarray::Array3;
use pare_graph::{Attribute, DataType, Decline, Node, NodeRef, Patch, Ref, Tensor, ops::SliceAxis};

/// Adds nodes to a patch.
pub struct Writer<'g> {
    /// The patch.
    pub patch: Patch,
    /// The node that is replaced.
    at: NodeRef<'g>,
    dtype: DataType,
    /// The prefix of the names of constants.
    hint: String,
    /// The name of the bias.
    bias: String,
    /// The name of the convolutions and matrix products.
    name: Option<String>,
}

/// The largest accepted [`Kernel::amplification`]: with 24-bit weights, rounding errors of the original
/// layers then reach 6·10⁻⁵ of the outputs, and the default tolerance is 10⁻⁴.
const MAX_AMPLIFICATION: f64 = 1e3;

impl<'g> Writer<'g> {
    /// A writer of nodes that replace `at`, with the element type of these layers and named after their last
    /// product.
    pub fn at(at: NodeRef<'g>, layers: &[LinearLayer<'g>]) -> Result<Self, Decline> {
        let dtypes: Vec<_> = layers.iter().filter_map(LinearLayer::dtype).collect();
        let (&dtype, rest) = dtypes.split_first().ok_or(Decline::Mismatch)?;
        if rest.iter().any(|&d| d != dtype) {
            return Err(Decline::because(format!("{} has weights of another type", at.describe())));
        }
        let product = layers
            .iter()
            .rev()
            .find(|l| matches!(l.weights, LayerWeights::Conv { .. } | LayerWeights::Matrix { .. }));
        Ok(match product {
            Some(layer) => Self::of(at, dtype, layer.at.input(1)?.name(), layer.at),
            None => Self::of(at, dtype, &format!("{}_weight", at.output()?.name()), at),
        })
    }

    /// A writer of nodes that replace `at`, with weights named `hint` and the names of bias and node of
    /// `like`.
    pub fn of(at: NodeRef<'g>, dtype: DataType, hint: &str, like: NodeRef<'g>) -> Self {
        let bias = like.optional(2).filter(|_| !like.is("Concat") && !like.is("Sum"));
        let bias = bias.map_or_else(|| format!("{hint}_bias"), |b| b.name().to_owned());
        Self { patch: Patch::at(at), at, dtype, hint: hint.into(), bias, name: like.node().name.clone() }
    }

    /// A constant other than a weight.
    pub fn integers(&mut self, suffix: &str, tensor: Tensor) -> Ref {
        add_constant(self.at, &mut self.patch, &format!("{}{suffix}", self.hint), tensor)
    }

    /// A `ConvTranspose` with the attributes of `like` and the weights of `kernel`.
    pub fn transposed(&mut self, x: Ref, like: NodeRef<'_>, kernel: &Kernel) -> Result<Ref, Decline> {
        let (outputs, inputs, taps) = kernel.weight.dim();
        let per_group = outputs / kernel.group;
        // Stored as [inputs, outputs of a group, taps].
        let stored = Array3::from_shape_fn((inputs * kernel.group, per_group, taps), |(i, o, t)| {
            kernel.weight[[i / inputs * per_group + o, i % inputs, t]]
        });
        let sizes: Vec<_> = kernel.axes.iter().map(|a| a.taps).collect();
        let shape = [vec![stored.dim().0, per_group], sizes].concat();
        let values: Vec<_> = stored.iter().copied().collect();
        let inputs = self.operands(x, &shape, &values, &kernel.bias)?;
        let node = like.node().clone().with("group", kernel.group as i64);
        Ok(self.patch.node(&format!("{}_convtranspose", self.hint), node, &inputs))
    }

    /// The operands of a convolution: input, weight, and the bias unless it is zero.
    fn operands(
        &mut self,
        x: Ref,
        shape: &[usize],
        weight: &[f64],
        bias: &[f64],
    ) -> Result<Vec<Ref>, Decline> {
        let mut inputs = vec![x, self.constant("", shape, weight)?];
        if bias.iter().any(|&b| b != 0.0) {
            inputs.push(self.constant("_bias", &[bias.len()], bias)?);
        }
        Ok(inputs)
    }

    /// A constant of the weights' element type. The only place where composed weights are rounded.
    fn constant(&mut self, suffix: &str, shape: &[usize], values: &[f64]) -> Result<Ref, Decline> {
        let name = if suffix == "_bias" { self.bias.clone() } else { format!("{}{suffix}", self.hint) };
        let tensor = rounded(self.dtype, shape, values, &name)?;
        Ok(add_constant(self.at, &mut self.patch, &name, tensor))
    }

    fn node(&mut self, op: &str, attributes: &[(&str, Attribute)], inputs: &[Ref]) -> Ref {
        let mut node = Node::new(op);
        attributes
            .iter()
            .for_each(|(name, value)| drop(node.attributes.insert((*name).into(), value.clone())));
        if matches!(op, "Conv" | "Gemm" | "MatMul") {
            node.name.clone_from(&self.name);
        }
        self.patch.node(&format!("{}_{}", self.hint, op.to_lowercase()), node, inputs)
    }

    /// Declines a kernel whose weights would be dominated by rounding errors.
    pub fn expect_accurate(kernel: &Kernel) -> Result<(), Decline> {
        let amplification = kernel.amplification();
        if amplification <= MAX_AMPLIFICATION {
            return Ok(());
        }
        Err(Decline::because(format!("all but 1/{amplification:.0} of the composed weights would cancel")))
    }

    /// The layer applied to `x`; matrix products are `Gemm` if `gemm`, else `MatMul`.
    pub fn layer(
        &mut self,
        x: Ref,
        kernel: &Kernel,
        layouts: Layouts,
        sizes: &[Option<usize>],
        gemm: bool,
    ) -> Result<Ref, Decline> {
        Self::expect_accurate(kernel)?;
        match (layouts.input, layouts.output) {
            (Layout::Rows, _) => self.matrix(x, &kernel.weight, &kernel.bias, gemm),
            (Layout::Spatial(_), Layout::Rows) => {
                let known: Option<Vec<_>> = sizes.iter().copied().collect();
                self.flattened(x, kernel, &known.ok_or(Decline::Mismatch)?)
            }
            (Layout::Spatial(n), Layout::Spatial(_)) => {
                let known: Option<Vec<_>> = sizes.iter().copied().collect();
                self.convolution(x, kernel, n, known.as_deref())
            }
        }
    }

    /// The product `at` with scaled weights and another bias. The weights keep their layout, and remain the
    /// same constant if all factors are 1. A `MatMul` of a flattened input becomes a `Gemm`, which includes the bias.
    pub fn affine(
        &mut self,
        at: NodeRef<'g>,
        affine: &ChannelAffine,
        flattened: bool,
    ) -> Result<Ref, Decline> {
        let (x, weight) = (at.input(0)?.into(), Weight::of(at)?);
        let weight = if affine.scales() {
            let scaled = weight.scaled(&affine.scale)?;
            reuse_or_add_constant(self.at, &mut self.patch, Some(weight.value), &self.hint, scaled)
        } else {
            weight.value.into()
        };
        if at.is("MatMul") {
            if flattened && affine.shift.iter().any(|&b| b != 0.0) {
                let bias = self.constant("_bias", &[affine.shift.len()], &affine.shift)?;
                return Ok(self.node("Gemm", &[], &[x, weight, bias]));
            }
            let y = self.node("MatMul", &[], &[x, weight]);
            return self.add_bias(y, &affine.shift);
        }
        let (mut node, mut inputs) = (at.node().clone(), vec![x, weight]);
        if at.is("Gemm") || affine.shift.iter().any(|&b| b != 0.0) {
            let bias = rounded(self.dtype, &[affine.shift.len()], &affine.shift, &self.bias)?;
            inputs.push(reuse_or_add_constant(self.at, &mut self.patch, at.optional(2), &self.bias, bias));
        }
        node.attributes.shift_remove("beta");
        Ok(self.patch.node(&format!("{}_{}", self.hint, at.op().to_lowercase()), node, &inputs))
    }

    fn add_bias(&mut self, y: Ref, bias: &[f64]) -> Result<Ref, Decline> {
        if bias.iter().all(|&b| b == 0.0) {
            return Ok(y);
        }
        let b = self.constant("_bias", &[bias.len()], bias)?;
        Ok(self.node("Add", &[], &[y, b]))
    }

    fn matrix(&mut self, x: Ref, weight: &Array3<f64>, bias: &[f64], gemm: bool) -> Result<Ref, Decline> {
        let (outputs, inputs, _) = weight.dim();
        if gemm {
            let values: Vec<_> = weight.iter().copied().collect();
            let w = self.constant("", &[outputs, inputs], &values)?;
            let b = self.constant("_bias", &[outputs], bias)?;
            return Ok(self.node("Gemm", &[("transB", 1.into())], &[x, w, b]));
        }
        let values = weight.as_standard_layout();
        let values = values.as_slice().ok_or(Decline::Mismatch)?;
        let w = self.constant("", &[inputs, outputs], &transpose(values, outputs))?;
        let y = self.node("MatMul", &[], &[x, w]);
        self.add_bias(y, bias)
    }

    /// A kernel of the size of the padded input, as a matrix over the flattened input without padding.
    fn flattened(&mut self, x: Ref, kernel: &Kernel, sizes: &[usize]) -> Result<Ref, Decline> {
        let (outputs, channels, _) = kernel.weight.dim();
        let (count, mut bias) = (sizes.iter().product::<usize>(), kernel.bias.clone());
        let mut weight = Array3::zeros((outputs, channels * count, 1));
        let taps: Vec<_> = kernel.axes.iter().map(|a| 0..a.taps).collect();
        for (t, tap) in positions(&taps).into_iter().enumerate() {
            let position = tap.iter().zip(&kernel.axes).zip(sizes).try_fold(0, |at, ((&t, a), &n)| {
                let i = (t * a.dilation).checked_sub(a.before).filter(|&i| i < n)?;
                Some(at * n + i)
            });
            let Some(position) = position else { continue };
            for o in 0..outputs {
                (0..channels).for_each(|c| weight[[o, c * count + position, 0]] = kernel.weight[[o, c, t]]);
                bias[o] += kernel.ones.as_ref().map_or(0.0, |ones| ones[[o, t]]);
            }
        }
        if let Some(map) = &kernel.map {
            bias.iter_mut().zip(map.values.column(0)).for_each(|(b, m)| *b += m);
        }
        let flat = self.node("Flatten", &[], &[x]);
        self.matrix(flat, &weight, &bias, true)
    }

    fn convolution(
        &mut self,
        x: Ref,
        kernel: &Kernel,
        spatial: usize,
        sizes: Option<&[usize]>,
    ) -> Result<Ref, Decline> {
        let outputs = kernel.outputs();
        let output_sizes = kernel.axes.iter().zip(sizes.unwrap_or_default()).map(|(a, &n)| a.outputs(n));
        let positions = sizes.map(|_| output_sizes.product::<Option<usize>>().unwrap_or(usize::MAX));
        let mapped = positions.map(|n| n.saturating_mul(outputs));
        let read = sizes.map(|sizes| sizes.iter().product::<usize>().saturating_mul(kernel.inputs()));
        let (mut map, mut x) = (kernel.map.clone(), x);
        if kernel.ones.is_some() {
            // Of the three forms of the channel of ones, the one that moves the fewest elements.
            let cheaper = mapped.is_none() || read <= mapped;
            match (&kernel.shift, sizes) {
                (Some(shift), _) if cheaper => {
                    let shape = [vec![1, kernel.inputs()], vec![1; spatial]].concat();
                    let shift = self.constant("_shift", &shape, shift)?;
                    x = self.node("Sub", &[], &[x, shift]);
                }
                (_, Some(sizes)) => {
                    map = sum_maps(map, kernel.ones_as_map(sizes)).ok_or(Decline::Mismatch)?;
                }
                (_, None) => return self.with_ones(x, kernel, spatial),
            }
        }
        let y = self.conv(x, kernel, kernel.weight.clone(), &kernel.bias)?;
        let Some(map) = map else { return Ok(y) };
        let shape = [vec![1, outputs], map.sizes.clone()].concat();
        let values: Vec<_> = map.values.iter().copied().collect();
        let map = self.constant("_map", &shape, &values)?;
        Ok(self.node("Add", &[], &[y, map]))
    }

    /// The layer with an extra input channel of ones, which is padded with zeros like the others.
    fn with_ones(&mut self, x: Ref, kernel: &Kernel, spatial: usize) -> Result<Ref, Decline> {
        let ones = kernel.ones.as_ref().ok_or(Decline::Mismatch)?;
        if kernel.group != 1 || kernel.map.is_some() {
            return Err(Decline::because(
                "a grouped composite needs fixed sizes for the bias before padding",
            ));
        }
        let mut pads = vec![0_i64; 2 * (spatial + 2)];
        pads[spatial + 3] = 1;
        let x = if self.at.opset() < 11 {
            let attributes = [("pads", Attribute::Ints(pads)), ("value", Attribute::Float(1.0))];
            self.node("Pad", &attributes, &[x])
        } else {
            let pads = self.integers("_pads", Tensor::vector(&pads));
            let one = self.constant("_one", &[], &[1.0])?;
            self.node("Pad", &[], &[x, pads, one])
        };
        let (outputs, taps) = ones.dim();
        let ones = ones.to_shape((outputs, 1, taps)).map_err(|_| Decline::Mismatch)?;
        let weight = ndarray::concatenate(ndarray::Axis(1), &[kernel.weight.view(), ones.view()]);
        self.conv(x, kernel, weight.map_err(|_| Decline::Mismatch)?, &kernel.bias)
    }

    fn conv(&mut self, x: Ref, like: &Kernel, weight: Array3<f64>, bias: &[f64]) -> Result<Ref, Decline> {
        let kernel: Vec<_> = like.axes.iter().map(|a| a.taps).collect();
        let shape = [vec![weight.dim().0, weight.dim().1], kernel].concat();
        let values: Vec<_> = weight.iter().copied().collect();
        let inputs = self.operands(x, &shape, &values, bias)?;
        let list = |f: &dyn Fn(&super::axis::Axis) -> usize| {
            Attribute::Ints(like.axes.iter().map(|a| f(a) as i64).collect())
        };
        let mut attributes = vec![("kernel_shape", list(&|a| a.taps))];
        if like.axes.iter().any(|a| a.stride != 1) {
            attributes.push(("strides", list(&|a| a.stride)));
        }
        if like.axes.iter().any(|a| a.dilation != 1) {
            attributes.push(("dilations", list(&|a| a.dilation)));
        }
        if like.axes.iter().any(|a| a.before + a.after != 0) {
            let pads = like.axes.iter().map(|a| a.before).chain(like.axes.iter().map(|a| a.after));
            attributes.push(("pads", Attribute::Ints(pads.map(|p| p as i64).collect())));
        }
        if like.group != 1 {
            attributes.push(("group", (like.group as i64).into()));
        }
        Ok(self.node("Conv", &attributes, &inputs))
    }

    /// A layer with seams: each tile is computed from a slice of the input, and tiles are concatenated axis
    /// by axis, the last axis first. The caller checks the accuracy of the composite.
    pub fn tiles(&mut self, x: Ref, tiles: &[Tile], sizes: &[usize]) -> Result<Ref, Decline> {
        self.tiles_along(x, tiles, 0, sizes)
    }

    fn tiles_along(&mut self, x: Ref, tiles: &[Tile], axis: usize, sizes: &[usize]) -> Result<Ref, Decline> {
        if axis == sizes.len() {
            let tile = tiles.first().ok_or(Decline::Mismatch)?;
            return self.conv(x, &tile.kernel, tile.kernel.weight.clone(), &tile.kernel.bias);
        }
        let mut parts = vec![];
        for tiles in tiles.chunk_by(|a, b| a.runs[axis] == b.runs[axis]) {
            let run = &tiles[0].runs[axis].inputs;
            let cut = if *run == (0..sizes[axis]) { x } else { self.slice(x, axis + 2, run.start, run.end) };
            parts.push(self.tiles_along(cut, tiles, axis + 1, sizes)?);
        }
        match parts[..] {
            [only] => Ok(only),
            _ => Ok(self.node("Concat", &[("axis", (axis as i64 + 2).into())], &parts)),
        }
    }

    fn slice(&mut self, x: Ref, axis: usize, start: usize, end: usize) -> Ref {
        let cut = SliceAxis { axis, start: start as i64, end: end as i64, step: 1 };
        NodeBuilder::new(self.at.graph, &mut self.patch, &self.hint).slice(x, &[cut])
    }
}

fn sum_maps(a: Option<BiasMap>, b: Option<BiasMap>) -> Option<Option<BiasMap>> {
    Some(match (a, b?) {
        (Some(a), b) => Some(BiasMap { values: a.values + b.values, ..a }),
        (None, b) => Some(b),
    })
}

/// The name of a node, or of its output, for reports.
pub fn display_name(at: NodeRef<'_>) -> String {
    let output = || at.outputs().into_iter().flatten().next().map_or(at.op(), |o| o.name());
    let name = at.node().name.as_deref().filter(|n| !n.is_empty());
    format!("`{}`", name.unwrap_or_else(output))
}
