//! Operators with a sliding window over the spatial axes: convolution and pooling.
//!
//! Along one spatial axis, with kernel `k`, stride `s`, dilation `d` and padding `p = begin + end`:
//! `out = ⌊(in + p − (d·(k−1) + 1)) / s⌋ + 1`.

use super::standard;
use crate::{Decline, NodeRef, ValueRef, expect};

/// `Conv`: `Y[n,o] = B[o] + Σ_c Σ_k W[o,c,k] · X[n, c', s·i + d·k − begin]`, channels `c'` of the group of
/// `o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvView {
    /// Sizes of the kernel along the spatial axes.
    pub kernel: Vec<usize>,
    /// Strides along the spatial axes.
    pub strides: Vec<usize>,
    /// Dilations along the spatial axes.
    pub dilations: Vec<usize>,
    /// Padding before and after each spatial axis, `auto_pad` resolved.
    pub pads: Vec<(i64, i64)>,
    /// Number of groups, of `input channels / group` channels each.
    pub group: usize,
    /// Output channels.
    pub outputs: usize,
    /// Input channels of a group.
    pub inputs: usize,
}

impl ConvView {
    /// Declines if the shape of the weight is not fixed, or `auto_pad` depends on an unknown input size.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Conv")?;
        let shape = at.input(1)?.fixed_shape()?;
        expect(shape.len() >= 2)?;
        let window = Window::of(at, shape[2..].to_vec())?;
        let group = group(at, shape[0])?;
        let pads = window.pads(at)?;
        let Window { kernel, strides, dilations } = window;
        Ok(Self { kernel, strides, dilations, pads, group, outputs: shape[0], inputs: shape[1] })
    }

    /// Returns true if it is a linear map of the channels at each position: kernel 1, stride 1, no padding.
    pub fn is_pointwise(&self) -> bool {
        let ones = |v: &[usize]| v.iter().all(|&n| n == 1);
        ones(&self.kernel) && ones(&self.strides) && self.is_unpadded()
    }

    /// Returns true if each input channel is a group.
    pub fn is_depthwise(&self) -> bool {
        self.inputs == 1 && self.group > 1
    }

    /// Returns true if all pads are 0.
    pub fn is_unpadded(&self) -> bool {
        self.pads.iter().all(|&p| p == (0, 0))
    }
}

/// `ConvTranspose`, the adjoint of a convolution. Along one spatial axis,
/// `out = s·(in − 1) + output_padding + d·(k−1) + 1 − begin − end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvTransposeView {
    /// Sizes of the kernel along the spatial axes.
    pub kernel: Vec<usize>,
    /// Strides along the spatial axes.
    pub strides: Vec<usize>,
    /// Dilations along the spatial axes.
    pub dilations: Vec<usize>,
    /// Elements removed before and after each spatial axis.
    pub pads: Vec<(i64, i64)>,
    /// Elements added after each spatial axis.
    pub output_padding: Vec<i64>,
    /// Number of groups.
    pub group: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels of a group.
    pub outputs: usize,
}

impl ConvTransposeView {
    /// Declines if the shape of the weight is not fixed, or the pads follow from the shape of the output.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "ConvTranspose")?;
        let shape = at.input(1)?.fixed_shape()?;
        expect(shape.len() >= 2)?;
        let window = Window::of(at, shape[2..].to_vec())?;
        let group = group(at, shape[0])?;
        let spatial = window.kernel.len();
        let output_padding = list(at, "output_padding", spatial, 0)?;
        if at.attr("output_shape").is_some() || at.string("auto_pad", "NOTSET").starts_with("SAME") {
            return Err(Decline::because(format!("{} has no explicit pads", at.describe())));
        }
        let pads = window.pads(at)?;
        let Window { kernel, strides, dilations } = window;
        let (inputs, outputs) = (shape[0], shape[1]);
        Ok(Self { kernel, strides, dilations, pads, output_padding, group, inputs, outputs })
    }
}

/// `MaxPool`, `AveragePool`, `LpPool`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// Sizes of the window along the spatial axes.
    pub kernel: Vec<usize>,
    /// Strides along the spatial axes.
    pub strides: Vec<usize>,
    /// Dilations along the spatial axes.
    pub dilations: Vec<usize>,
    /// Padding before and after each spatial axis, `auto_pad` resolved.
    pub pads: Vec<(i64, i64)>,
    /// True if the number of windows is rounded up.
    pub ceil: bool,
    /// True if an average includes the padding.
    pub counts_padding: bool,
}

impl PoolView {
    /// Declines if `auto_pad` depends on an unknown input size.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        expect(["MaxPool", "AveragePool", "LpPool"].contains(&at.op()))?;
        standard(at, at.op())?;
        let kernel = at.ints("kernel_shape").ok_or(Decline::Mismatch)?;
        let kernel = kernel.iter().map(|&k| usize::try_from(k)).collect::<Result<_, _>>();
        let window = Window::of(at, kernel.map_err(|_| Decline::Mismatch)?)?;
        let pads = window.pads(at)?;
        let Window { kernel, strides, dilations } = window;
        let (ceil, counts_padding) = (at.int("ceil_mode", 0) != 0, at.int("count_include_pad", 0) != 0);
        Ok(Self { kernel, strides, dilations, pads, ceil, counts_padding })
    }
}

/// The padding of a `Conv` or `ConvInteger` before and after each spatial axis, `auto_pad` resolved. Declines if
/// the shape of the weight is not fixed, or `auto_pad` depends on an unknown input size.
pub fn conv_pads(at: NodeRef<'_>) -> Result<Vec<(i64, i64)>, Decline> {
    expect(at.is("Conv") || at.is("ConvInteger"))?;
    let shape = at.input(1)?.fixed_shape()?;
    Window::of(at, shape.get(2..).ok_or(Decline::Mismatch)?.to_vec())?.pads(at)
}

fn group(at: NodeRef<'_>, channels: usize) -> Result<usize, Decline> {
    let group = usize::try_from(at.int("group", 1)).ok().filter(|&g| g > 0 && channels.is_multiple_of(g));
    group.ok_or_else(|| {
        Decline::because(format!("{} has groups that do not divide its channels", at.describe()))
    })
}

/// A window without its padding.
struct Window {
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
}

impl Window {
    fn of(at: NodeRef<'_>, kernel: Vec<usize>) -> Result<Self, Decline> {
        let positive = |name| -> Result<Vec<usize>, Decline> {
            let items = list(at, name, kernel.len(), 1)?;
            let sizes =
                items.iter().map(|&i| usize::try_from(i).ok().filter(|&i| i > 0)).collect::<Option<_>>();
            sizes.ok_or_else(|| Decline::because(format!("`{name}` of {} is not positive", at.describe())))
        };
        Ok(Self { strides: positive("strides")?, dilations: positive("dilations")?, kernel })
    }

    fn pads(&self, at: NodeRef<'_>) -> Result<Vec<(i64, i64)>, Decline> {
        let spatial = self.kernel.len();
        let upper = match at.string("auto_pad", "NOTSET") {
            "VALID" => return Ok(vec![(0, 0); spatial]),
            "SAME_UPPER" => true,
            "SAME_LOWER" => false,
            _ => {
                let pads = list(at, "pads", 2 * spatial, 0)?;
                return Ok((0..spatial).map(|i| (pads[i], pads[i + spatial])).collect());
            }
        };
        let input = at.input(0)?;
        (0..spatial).map(|i| self.same(input, i, upper)).collect()
    }

    fn same(&self, input: ValueRef<'_>, i: usize, upper: bool) -> Result<(i64, i64), Decline> {
        let (kernel, stride, dilation) = (self.kernel[i], self.strides[i], self.dilations[i]);
        let size = input.shape().and_then(|shape| shape.get(i + 2)?.size());
        // With stride 1, the padding does not depend on the size of the input.
        let size = size.or((stride == 1).then_some(kernel.saturating_mul(dilation)));
        let unknown =
            || Decline::because(format!("padding depends on the unknown size of `{}`", input.name()));
        same_pads(size.ok_or_else(unknown)?, kernel, stride, dilation, upper).ok_or(Decline::Mismatch)
    }
}

/// The padding before and after an axis for `auto_pad = SAME_UPPER` or `SAME_LOWER`, such that `out = ⌈in /
/// s⌉`: `p = max(0, (⌈in / s⌉ − 1)·s + d·(k−1) + 1 − in)`, the odd element after (upper) or before. `None` on
/// overflow.
pub fn same_pads(
    size: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    upper: bool,
) -> Option<(i64, i64)> {
    let reach = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
    let steps = size.div_ceil(stride.max(1)).saturating_sub(1).checked_mul(stride)?;
    let total = i64::try_from(steps.checked_add(reach)?.saturating_sub(size)).ok()?;
    let small = total / 2;
    Some(if upper { (small, total - small) } else { (total - small, small) })
}

/// An integer list attribute of this length; all `default` if it is omitted.
fn list(at: NodeRef<'_>, name: &str, length: usize, default: i64) -> Result<Vec<i64>, Decline> {
    match at.ints(name) {
        None | Some([]) => Ok(vec![default; length]),
        Some(items) if items.len() == length => Ok(items.to_vec()),
        Some(items) => Err(Decline::because(format!(
            "`{name}` of {} has {} entries, not {length}",
            at.describe(),
            items.len()
        ))),
    }
}
