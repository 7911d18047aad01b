//! Layers without their weights, which suffice to decide whether they compose and at which cost.

use super::axis::{Axis, Border, gcd};

/// The geometry of a linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Output channels.
    pub outputs: usize,
    /// Input channels of all groups.
    pub inputs: usize,
    /// Number of groups.
    pub group: usize,
    /// The spatial axes.
    pub axes: Vec<Axis>,
    /// The terms added to the products.
    pub offset: Offset,
}

/// The terms that a layer adds to the products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// One number per output channel.
    pub bias: bool,
    /// The response to an extra input channel of ones, which is padded with zeros like the others.
    pub ones: Option<Ones>,
    /// One number per output channel and position.
    pub map: bool,
}

/// The forms of the response to a channel of ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ones {
    /// Only the channel itself has this response.
    Channel,
    /// Subtracting a constant from the input has the same effect.
    Shift,
}

/// Sizes of the spatial axes, as far as they are known.
pub type Sizes = [Option<usize>];

/// The reason why two layers do not compose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Channels or axes do not match.
    Misfit,
    /// The result depends on the padding of the second layer, and sizes are not fixed.
    OpenSizes,
    /// The composite has seams, and is to be composed further or adds a number per position.
    Seams,
    /// The composite is too large.
    Size,
}

/// The largest number of weights of a composite: 2 GiB in f64.
const MAX_ELEMENTS: usize = 1 << 28;

impl Outline {
    /// The number of weights; `None` above [`MAX_ELEMENTS`].
    pub fn elements(&self) -> Option<usize> {
        let taps = self.axes.iter().map(|a| a.taps);
        let channels = [self.outputs, self.inputs / self.group.max(1)];
        let count = channels.into_iter().chain(taps).try_fold(1_usize, usize::checked_mul);
        count.filter(|&n| n <= MAX_ELEMENTS)
    }

    /// Returns true if each output position reads exactly one input position, and never padding.
    pub fn is_pointwise(&self) -> bool {
        self.axes.iter().all(|a| a.is_pointwise())
    }

    /// Returns true if each output channel reads one input channel, and no two the same.
    fn is_diagonal(&self) -> bool {
        self.outputs == self.inputs && self.group == self.inputs
    }

    /// Sizes of the output's spatial axes.
    pub fn output_sizes(&self, sizes: &Sizes) -> Vec<Option<usize>> {
        self.axes.iter().zip(sizes).map(|(axis, &size)| axis.outputs(size?)).collect()
    }

    /// The composite of this layer and `next` for inputs of these sizes, and its border. A composite with
    /// seams can be computed in tiles, but not composed further.
    pub fn then(&self, next: &Self, sizes: &Sizes) -> Result<(Self, Border), Obstacle> {
        if self.outputs != next.inputs || self.axes.len() != next.axes.len() || self.axes.len() != sizes.len()
        {
            return Err(Obstacle::Misfit);
        }
        let pairs = || self.axes.iter().zip(&next.axes);
        let axes: Vec<_> = pairs().map(|(a, b)| a.then(*b)).collect();
        let borders = pairs().zip(sizes).map(|((a, b), &size)| a.border(*b, size));
        let border = borders.max().unwrap_or(Border::Clear);
        let fixed = sizes.iter().all(Option::is_some);
        let own = self.offset;
        let positional = own.ones.is_some() || own.map || next.offset.map;
        if next.offset.ones.is_some() || border == Border::Seam && positional {
            return Err(Obstacle::Seams);
        }
        // The output of the first layer is padded with zeros, not with its bias. If the first layer is
        // pointwise, its bias is the response to a channel of ones. Otherwise its contribution at each
        // position is a map.
        let cut_off = border == Border::Blank && own.bias;
        let offset = Offset {
            bias: next.offset.bias || own.bias && !cut_off,
            ones: match own.ones {
                Some(_) if cut_off => Some(Ones::Channel),
                // `a·x + b = a·(x + b/a)`. If channels mix, the existence of such a shift depends on the
                // weights.
                None if cut_off && self.is_pointwise() => {
                    Some(if self.is_diagonal() { Ones::Shift } else { Ones::Channel })
                }
                ones => ones,
            },
            map: own.map || next.offset.map || cut_off && !self.is_pointwise(),
        };
        if !fixed && (offset.map || border == Border::Seam) {
            return Err(Obstacle::OpenSizes);
        }
        let group = gcd(self.group, next.group);
        let composite = Self { outputs: next.outputs, inputs: self.inputs, group, axes, offset };
        if composite.axes.iter().any(|a| !a.is_valid()) || composite.elements().is_none() {
            return Err(Obstacle::Size);
        }
        Ok((composite, border))
    }

    /// The axes of the sum of `branches` over one input; `None` if their outputs differ in size or stride.
    pub fn common(branches: &[Self]) -> Option<Vec<Axis>> {
        let first = branches.first()?;
        (0..first.axes.len())
            .map(|i| {
                let all = || branches.iter().map(|b| b.axes[i]);
                let room = |a: Axis| (a.before + a.after) as i64 - a.extent() as i64;
                let same = all().all(|a| a.stride == first.axes[i].stride && room(a) == room(first.axes[i]));
                if !same {
                    return None;
                }
                let before = all().map(|a| a.before).max()?;
                // Offset of the last tap from the position of the output; the first tap is at `−before`.
                let last = all().map(|a| a.extent() as i64 - 1 - a.before as i64).max()?;
                let steps = all().map(|a| gcd(before - a.before, if a.taps > 1 { a.dilation } else { 0 }));
                let dilation = steps.fold(0, gcd).max(1);
                let reach = usize::try_from(last + before as i64).ok()?;
                let after = usize::try_from(room(first.axes[i]) + last + 1).ok()?;
                let taps = reach / dilation + 1;
                let axis = Axis { taps, stride: first.axes[i].stride, dilation, before, after };
                axis.is_valid().then_some(axis)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(taps: usize, dilation: usize, pads: usize) -> Outline {
        let axes = vec![Axis { taps, stride: 1, dilation, before: pads, after: pads }];
        Outline { outputs: 4, inputs: 4, group: 1, axes, offset: Offset { bias: true, ..Offset::default() } }
    }

    #[test]
    fn turns_bias_before_padding_into_ones_or_map() {
        let point = conv(1, 1, 0).then(&conv(3, 1, 1), &[None]).unwrap();
        assert_eq!(
            point,
            (
                Outline {
                    offset: Offset { bias: true, ones: Some(Ones::Channel), map: false },
                    ..conv(3, 1, 1)
                },
                Border::Blank
            )
        );
        // "Full" padding: the first layer reads every input, the second one pads further.
        let full = conv(3, 1, 2).then(&conv(3, 1, 1), &[Some(8)]).unwrap();
        assert!(full.0.offset.map && full.1 == Border::Blank);
        assert_eq!(conv(3, 1, 1).then(&conv(3, 1, 1), &[None]), Err(Obstacle::OpenSizes));
        assert_eq!(conv(3, 1, 1).then(&conv(3, 1, 1), &[Some(8)]).unwrap().1, Border::Seam);
    }

    #[test]
    fn aligns_branches_on_a_common_grid() {
        let axes = Outline::common(&[conv(3, 1, 1), conv(1, 1, 0), conv(3, 2, 2)]).unwrap();
        assert_eq!(axes, [Axis { taps: 5, stride: 1, dilation: 1, before: 2, after: 2 }]);
        let axes = Outline::common(&[conv(1, 1, 0), conv(3, 2, 2)]).unwrap();
        assert_eq!(axes, [Axis { taps: 3, stride: 1, dilation: 2, before: 2, after: 2 }]);
        assert_eq!(Outline::common(&[conv(3, 1, 1), conv(3, 1, 0)]), None);
    }
}
