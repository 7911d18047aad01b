//! Operators that slice, pad, split and reshape tensors.

use super::{Argument, argument, axes::axis_of, constant, ints, normal_axis, number, standard};
use crate::{Decline, NodeRef};

/// `Slice`: the elements `start, start + step, …` before `end` along each of `axes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceView {
    /// The sliced axes, in the order of the node.
    pub axes: Vec<SliceAxis>,
}

/// The slice of one axis, as in the node: negative positions count from the end, and `end` may exceed the
/// size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SliceAxis {
    pub axis: usize,
    pub start: i64,
    pub end: i64,
    pub step: i64,
}

impl SliceView {
    /// Declines unless all parameters are constant and, if an axis is negative, the rank is known.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Slice")?;
        let (starts, ends) = (ints(at, "starts")?, ints(at, "ends")?);
        let (starts, ends) = (starts.ok_or(Decline::Mismatch)?, ends.ok_or(Decline::Mismatch)?);
        let axes = ints(at, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = ints(at, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
        if [&ends, &axes, &steps].iter().any(|v| v.len() != starts.len()) || steps.contains(&0) {
            return Err(Decline::because(format!(
                "{} has inconsistent starts, ends, axes or steps",
                at.describe()
            )));
        }
        let rank = at.input(0)?.rank();
        let axis = |i: usize| match (&rank, usize::try_from(axes[i])) {
            (Ok(rank), _) => normal_axis(at, axes[i], *rank),
            (Err(_), Ok(axis)) => Ok(axis),
            (Err(reason), Err(_)) => Err(reason.clone()),
        };
        let slice = |i| Ok(SliceAxis { axis: axis(i)?, start: starts[i], end: ends[i], step: steps[i] });
        Ok(Self { axes: (0..starts.len()).map(slice).collect::<Result<_, _>>()? })
    }
}

impl SliceAxis {
    /// The first position and the number of elements for an axis of this size.
    pub fn on(&self, size: usize) -> (usize, usize) {
        let n = size as i64;
        let from_front = |position: i64| if position < 0 { position.saturating_add(n) } else { position };
        // With a negative step, the start is at most the last element, and -1 is the end before the first.
        let (low, high) = if self.step > 0 { (0, n) } else { (-1, n - 1) };
        let start = from_front(self.start).clamp(0, high.max(0));
        let end = from_front(self.end).clamp(low, high.max(low));
        let span = if self.step > 0 { end - start } else { start - end };
        let length = if n == 0 { 0 } else { (span.max(0) as u64).div_ceil(self.step.unsigned_abs()) };
        (start as usize, length as usize)
    }
}

/// `Pad`: adds elements before and after each axis; negative pads remove elements.
#[derive(Clone, Debug, PartialEq)]
pub struct PadView {
    /// Elements before and after, for each axis of the input.
    pub pads: Vec<(i64, i64)>,
    /// Values of the added elements.
    pub mode: PadMode,
}

/// Values of padding.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum PadMode {
    Constant(f64),
    Reflect,
    Edge,
    Wrap,
}

impl PadView {
    /// Declines if the pads or the rank are unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Pad")?;
        let name = if at.opset() < 2 { "paddings" } else { "pads" };
        let given = ints(at, name)?.ok_or(Decline::Mismatch)?;
        let rank = at.input(0)?.rank()?;
        let axes = ints(at, "axes")?.unwrap_or_else(|| (0..rank as i64).collect());
        if given.len() != 2 * axes.len() {
            return Err(Decline::because(format!("{} has pads of another rank", at.describe())));
        }
        let mut pads = vec![(0, 0); rank];
        for (i, &axis) in axes.iter().enumerate() {
            pads[normal_axis(at, axis, rank)?] = (given[i], given[i + axes.len()]);
        }
        let value = || Ok(number(at, "value")?.or(number(at, "constant_value")?).unwrap_or(0.0));
        let mode = match at.string("mode", "constant") {
            "constant" => PadMode::Constant(value()?),
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" => PadMode::Wrap,
            _ => return Err(Decline::Mismatch),
        };
        Ok(Self { pads, mode })
    }
}

/// `Split`: consecutive parts along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitView {
    /// The axis.
    pub axis: usize,
    /// Sizes of the parts.
    pub sizes: Vec<usize>,
}

impl SplitView {
    /// Declines if the sizes are not constant or, for equal parts, if the size of the axis is unknown.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Split")?;
        let axis = axis_of(at)?;
        let because = |why: &str| Decline::because(format!("{} {why}", at.describe()));
        if let Some(sizes) = ints(at, "split")?.filter(|sizes| !sizes.is_empty()) {
            let sizes = sizes.iter().map(|&s| usize::try_from(s)).collect::<Result<_, _>>();
            return Ok(Self { axis, sizes: sizes.map_err(|_| because("has a negative size"))? });
        }
        let size = at.input(0)?.shape().and_then(|shape| shape[axis].size());
        let size = size.ok_or_else(|| because("splits an axis of unknown size"))?;
        let parts = at.outputs().len().max(1);
        // Equal parts, of which the last may be smaller.
        let part = size.div_ceil(parts);
        let sizes = (0..parts).map(|i| part.min(size.saturating_sub(i * part))).collect();
        Ok(Self { axis, sizes })
    }
}

/// `Reshape`: another shape with the elements in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReshapeView {
    /// Sizes as in the node: -1 is inferred, 0 copies the size of the input unless `allow_zero`.
    pub target: Vec<i64>,
    /// True if 0 means size 0.
    pub allow_zero: bool,
}

impl ReshapeView {
    /// Declines if the target is not constant.
    pub fn of(at: NodeRef<'_>) -> Result<Self, Decline> {
        standard(at, "Reshape")?;
        let target = match argument(at, "shape")? {
            Argument::Input(shape) => constant(at, "shape", shape.constant_ints())?,
            _ => at.ints("shape").ok_or(Decline::Mismatch)?.to_vec(),
        };
        Ok(Self { target, allow_zero: at.int("allowzero", 0) != 0 })
    }
}
