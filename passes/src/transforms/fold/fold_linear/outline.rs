//! What a layer looks like without its weights: enough to tell whether layers compose, and at which cost.

use super::axis::{Axis, Border, gcd};

/// The outline of a linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Output channels.
    pub outputs: usize,
    /// Input channels, of all groups.
    pub inputs: usize,
    /// Groups of channels that do not mix.
    pub group: usize,
    /// The spatial axes.
    pub axes: Vec<Axis>,
    /// What it adds.
    pub offset: Offset,
}

/// What a layer adds besides the products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    /// A number for each output channel.
    pub bias: bool,
    /// The response to a channel that is one wherever there is an input, and padded with zeros like any other.
    pub ones: bool,
    /// Whether a constant input does what the channel of ones does.
    pub shift: bool,
    /// A number for each output channel and place.
    pub map: bool,
}

/// Sizes of the spatial axes, as far as they are known.
pub type Sizes = [Option<usize>];

/// Why two layers do not compose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Channels or axes do not fit: they are no chain.
    Misfit,
    /// The padding of the second layer is met, and sizes are not fixed.
    OpenSizes,
    /// The seams along the border are too many, or meet what the first layer adds place by place.
    Seams,
    /// The composite would be larger than can be computed with.
    Size,
}

/// Weights of a composite may have no more elements: 2 GiB in f64.
const MAX_ELEMENTS: usize = 1 << 28;

impl Outline {
    /// Elements of the weights; `None` if there are too many to compute with.
    pub fn elements(&self) -> Option<usize> {
        let taps = self.axes.iter().map(|a| a.taps);
        let channels = [self.outputs, self.inputs / self.group.max(1)];
        let count = channels.into_iter().chain(taps).try_fold(1_usize, usize::checked_mul);
        count.filter(|&n| n <= MAX_ELEMENTS)
    }

    /// Whether each output place comes from one real input place.
    pub fn is_pointwise(&self) -> bool {
        self.axes.iter().all(|a| a.is_pointwise())
    }

    /// Whether each output channel comes from one input channel, and no two from the same.
    fn is_diagonal(&self) -> bool {
        self.outputs == self.inputs && self.group == self.inputs
    }

    /// Sizes of the output's spatial axes.
    pub fn output_sizes(&self, sizes: &Sizes) -> Vec<Option<usize>> {
        self.axes.iter().zip(sizes).map(|(axis, &size)| axis.outputs(size?)).collect()
    }

    /// This layer, then `next`, over inputs of these sizes; with what is met at the border. A composite with seams
    /// can be computed in parts, but composed no further.
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
        let placed = own.ones || own.map || next.offset.map;
        if next.offset.ones || border == Border::Seam && placed {
            return Err(Obstacle::Seams);
        }
        // Around the output of the first layer stand zeros, not its bias. Where its outputs are inputs, place by
        // place, the bias is a channel of ones; otherwise only a map tells how much of it arrives.
        let cut_off = border == Border::Blank && own.bias;
        let offset = Offset {
            bias: next.offset.bias || own.bias && !cut_off,
            ones: own.ones || cut_off && self.is_pointwise(),
            // `a·x + b = a·(x + b/a)`. Where channels mix, only the weights tell whether there is such an input.
            shift: if cut_off { !own.ones && self.is_diagonal() } else { own.shift },
            map: own.map || next.offset.map || cut_off && !self.is_pointwise(),
        };
        if !fixed && (offset.map || border == Border::Seam) {
            return Err(Obstacle::OpenSizes);
        }
        let group = gcd(self.group, next.group);
        let whole = Self { outputs: next.outputs, inputs: self.inputs, group, axes, offset };
        if whole.axes.iter().any(|a| !a.is_sane()) || whole.elements().is_none() {
            return Err(Obstacle::Size);
        }
        Ok((whole, border))
    }

    /// The outline that all of `branches` over one input have room in; `None` if their outputs do not lie place by
    /// place on each other.
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
                // Last tap behind the place of the output; the first lies `before` in front of it.
                let last = all().map(|a| a.extent() as i64 - 1 - a.before as i64).max()?;
                let steps = all().map(|a| gcd(before - a.before, if a.taps > 1 { a.dilation } else { 0 }));
                let dilation = steps.fold(0, gcd).max(1);
                let reach = usize::try_from(last + before as i64).ok()?;
                let after = usize::try_from(room(first.axes[i]) + last + 1).ok()?;
                let taps = reach / dilation + 1;
                let axis = Axis { taps, stride: first.axes[i].stride, dilation, before, after };
                axis.is_sane().then_some(axis)
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
    fn a_bias_in_front_of_padding_becomes_ones_or_a_map() {
        let point = conv(1, 1, 0).then(&conv(3, 1, 1), &[None]).unwrap();
        assert_eq!(
            point,
            (
                Outline { offset: Offset { bias: true, ones: true, ..Offset::default() }, ..conv(3, 1, 1) },
                Border::Blank
            )
        );
        // "Full" padding: the first layer sees every input, the second one pads further.
        let full = conv(3, 1, 2).then(&conv(3, 1, 1), &[Some(8)]).unwrap();
        assert!(full.0.offset.map && full.1 == Border::Blank);
        assert_eq!(conv(3, 1, 1).then(&conv(3, 1, 1), &[None]), Err(Obstacle::OpenSizes));
        assert_eq!(conv(3, 1, 1).then(&conv(3, 1, 1), &[Some(8)]).unwrap().1, Border::Seam);
    }

    #[test]
    fn branches_meet_on_a_common_grid() {
        let axes = Outline::common(&[conv(3, 1, 1), conv(1, 1, 0), conv(3, 2, 2)]).unwrap();
        assert_eq!(axes, [Axis { taps: 5, stride: 1, dilation: 1, before: 2, after: 2 }]);
        let axes = Outline::common(&[conv(1, 1, 0), conv(3, 2, 2)]).unwrap();
        assert_eq!(axes, [Axis { taps: 3, stride: 1, dilation: 2, before: 2, after: 2 }]);
        assert_eq!(Outline::common(&[conv(3, 1, 1), conv(3, 1, 0)]), None);
    }
}
