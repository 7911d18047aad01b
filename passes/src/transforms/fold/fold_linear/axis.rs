//! Composition of two convolutions along one spatial axis, and the border of the composite.
//!
//! With kernel `k`, stride `s`, dilation `d` and `before` leading zeros, output `v` reads the inputs
//! `v·s + a·d − before`, `0 ≤ a < k`. The second layer's tap `c` then reads, through the first layer's tap
//! `a`,
//!
//! ```text
//! (v·s₂ + c·d₂ − b₂)·s₁ + a·d₁ − b₁  =  v·(s₁s₂) + (c·d₂s₁ + a·d₁) − (b₁ + s₁b₂)
//! ```
//!
//! which is one layer with stride `s₁s₂`, padding `b₁ + s₁b₂` and taps at `c·d₂s₁ + a·d₁`, whose greatest
//! common divisor is the new dilation.

use std::ops::Range;

/// The geometry of a convolution along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Kernel size.
    pub taps: usize,
    /// Stride.
    pub stride: usize,
    /// Dilation.
    pub dilation: usize,
    /// Zeros before the input.
    pub before: usize,
    /// Zeros after the input.
    pub after: usize,
}

/// The effect on a composite of the second layer's padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Border {
    /// The second layer reads no padding.
    Clear,
    /// The composite reads no input at the padded positions: only the bias of the first layer differs from
    /// zero there.
    Blank,
    /// The composite reads inputs at the padded positions, which the second layer does not.
    Seam,
}

/// A range of outputs for which the same taps of the second layer are inside, and the part of the input that
/// it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapRun {
    /// The outputs.
    pub outputs: Range<usize>,
    /// The taps of the second layer that read the output of the first rather than padding.
    pub inside: Range<usize>,
    /// The corresponding taps of the composite that read an input for one of the outputs.
    pub taps: Range<usize>,
    /// The inputs they read.
    pub inputs: Range<usize>,
    /// Zeros before these inputs.
    pub before: usize,
    /// Zeros after these inputs.
    pub after: usize,
    /// True if the taps read padding only. Then `inputs` serves for its length only.
    pub padding_only: bool,
}

/// The largest extent, stride, dilation or padding of a layer, which excludes overflows.
pub const LIMIT: usize = 1 << 16;

/// The greatest common divisor, with `gcd(0, n) = n`.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Axis {
    /// The axis of a pointwise layer.
    pub const POINT: Self = Self { taps: 1, stride: 1, dilation: 1, before: 0, after: 0 };

    /// Returns true if each output reads exactly one input, and never padding.
    pub fn is_pointwise(self) -> bool {
        self.taps == 1 && self.before == 0 && self.after == 0
    }

    /// Returns true if all parameters are within [`LIMIT`].
    pub fn is_valid(self) -> bool {
        let Self { taps, stride, dilation, before, after } = self;
        (1..=LIMIT).contains(&taps)
            && (1..=LIMIT).contains(&stride)
            && (1..=LIMIT).contains(&dilation)
            && before.max(after) <= LIMIT
            && self.extent() <= LIMIT
    }

    /// The distance from the first tap to the last, both included.
    pub fn extent(self) -> usize {
        (self.taps - 1) * self.dilation + 1
    }

    /// The number of outputs; `None` if the kernel does not fit into the padded input.
    pub fn outputs(self, inputs: usize) -> Option<usize> {
        let room = inputs.checked_add(self.before + self.after)?.checked_sub(self.extent())?;
        Some(room / self.stride + 1)
    }

    /// The composite of this axis and `next`. The numbers of outputs agree:
    /// `⌊(⌊n/s₁⌋ + m)/s₂⌋ = ⌊(n + s₁m)/(s₁s₂)⌋`.
    pub fn then(self, next: Self) -> Self {
        let step = next.dilation * self.stride;
        let reach = (next.taps - 1) * step + (self.taps - 1) * self.dilation;
        let divisor = self.divisor(next);
        Self {
            taps: reach / divisor + 1,
            stride: self.stride * next.stride,
            dilation: divisor,
            before: self.before + self.stride * next.before,
            after: self.after + self.stride * next.after,
        }
    }

    /// The dilation of the composite. The dilation of a single tap has no effect.
    fn divisor(self, next: Self) -> usize {
        let own = if self.taps > 1 { self.dilation } else { 0 };
        let other = if next.taps > 1 { next.dilation * self.stride } else { 0 };
        gcd(own, other).max(1)
    }

    /// The tap of the composite that tap `own` and tap `other` of `next` contribute to.
    pub fn tap(self, own: usize, next: Self, other: usize) -> usize {
        (other * next.dilation * self.stride + own * self.dilation) / self.divisor(next)
    }

    /// The border of the composite with `next` for `inputs` inputs. If their number is unknown, `Clear` and
    /// `Blank` hold for every number, and `Seam` for some.
    pub fn border(self, next: Self, inputs: Option<usize>) -> Border {
        match inputs {
            Some(inputs) => self.border_of(next, inputs),
            None if next.before == 0 && next.after == 0 => Border::Clear,
            // The last position before the output reads up to `extent − 1 − stride − before`, and the first
            // one after it starts at least `after + 1 − extent` after the input.
            None if (next.before == 0 || self.extent() <= self.before + self.stride)
                && (next.after == 0 || self.extent() <= self.after + 1) =>
            {
                Border::Blank
            }
            None => Border::Seam,
        }
    }

    fn border_of(self, next: Self, inputs: usize) -> Border {
        let Some(middle) = self.outputs(inputs) else { return Border::Seam };
        let Some(outputs) = next.outputs(middle) else { return Border::Seam };
        let leading = (1..=next.before as i64).map(|i| -i);
        let trailing = (0..next.after as i64).map(|i| middle as i64 + i);
        let is_read = |&position: &i64| {
            (0..next.taps).any(|c| {
                let start = position + next.before as i64 - (c * next.dilation) as i64;
                start >= 0 && start % next.stride as i64 == 0 && start / (next.stride as i64) < outputs as i64
            })
        };
        let reads_input = |position: i64| {
            let start = position * self.stride as i64 - self.before as i64;
            (0..self.taps).any(|a| (0..inputs as i64).contains(&(start + (a * self.dilation) as i64)))
        };
        let border = |position| if reads_input(position) { Border::Seam } else { Border::Blank };
        leading.chain(trailing).filter(is_read).map(border).max().unwrap_or(Border::Clear)
    }

    /// Divides the outputs of the composite with `next` for `inputs` inputs into runs with the same taps of
    /// `next` inside. `None` if a kernel is larger than its input, or if there are more than `max_runs` runs.
    pub fn runs(self, next: Self, inputs: usize, max_runs: usize) -> Option<Vec<TapRun>> {
        let middle = self.outputs(inputs)?;
        let outputs = next.outputs(middle)?;
        let inside = |v: usize| {
            // Tap `c` reads position `v·s + c·d − before`, which is inside from 0 to `middle`.
            let start = v * next.stride;
            let first = next.before.saturating_sub(start).div_ceil(next.dilation);
            let end = (middle + next.before).saturating_sub(start).div_ceil(next.dilation).min(next.taps);
            first.min(end)..end
        };
        let mut parts = vec![];
        let mut first = 0;
        while first < outputs {
            let taps = inside(first);
            // Runs in the middle are long: skip to the last output with all taps inside.
            let full = taps == (0..next.taps);
            let last_full =
                (middle + next.before).checked_sub(next.extent()).map_or(0, |room| room / next.stride);
            let mut end = if full { last_full.min(outputs - 1) + 1 } else { first + 1 };
            while end < outputs && inside(end) == taps {
                end += 1;
            }
            parts.push((first..end, taps));
            first = end;
            if parts.len() > max_runs {
                return None;
            }
        }
        Some(parts.into_iter().map(|(outputs, inside)| self.run(next, inputs, outputs, inside)).collect())
    }

    fn run(self, next: Self, inputs: usize, outputs: Range<usize>, inside: Range<usize>) -> TapRun {
        let composite = self.then(next);
        let position = |v: usize, tap: usize| {
            (v * composite.stride + tap * composite.dilation) as i64 - composite.before as i64
        };
        let run = |taps: Range<usize>, start: i64, end: i64, padding_only: bool| {
            let (before, after) = ((-start).max(0) as usize, (end - inputs as i64).max(0) as usize);
            let inputs = start.max(0) as usize..end.min(inputs as i64) as usize;
            let (outputs, inside) = (outputs.clone(), inside.clone());
            TapRun { outputs, inside, taps, inputs, before, after, padding_only }
        };
        let inside_taps = match inside.clone().last() {
            Some(last) => self.tap(0, next, inside.start)..self.tap(self.taps - 1, next, last) + 1,
            None => 0..0,
        };
        let reads_input =
            |&t: &usize| position(outputs.start, t) < inputs as i64 && position(outputs.end - 1, t) >= 0;
        let (low, high) = (inside_taps.clone().find(reads_input), inside_taps.rev().find(reads_input));
        if let (Some(low), Some(high)) = (low, high) {
            let (start, end) = (position(outputs.start, low), position(outputs.end - 1, high) + 1);
            if start < inputs as i64 && end > 0 {
                return run(low..high + 1, start, end, false);
            }
        }
        run(0..1, 0, ((outputs.len() - 1) * composite.stride) as i64 + 1, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(taps: usize, stride: usize, pads: usize) -> Axis {
        Axis { taps, stride, dilation: 1, before: pads, after: pads }
    }

    #[test]
    fn composes_strides_and_dilations() {
        let a = axis(3, 2, 1).then(axis(3, 1, 1));
        assert_eq!(a, Axis { taps: 7, stride: 2, dilation: 1, before: 3, after: 3 });
        // A stride of 2 in a 1-tap layer becomes dilation.
        let b = axis(1, 2, 0).then(axis(3, 1, 0));
        assert_eq!(b, Axis { taps: 3, stride: 2, dilation: 2, before: 0, after: 0 });
    }

    #[test]
    fn classifies_borders_with_and_without_sizes() {
        // Kernel 3, stride 2, padding 1 before a padded kernel 3: no seam for odd sizes only.
        let (a, b) = (axis(3, 2, 1), axis(3, 1, 1));
        assert_eq!(a.border(b, Some(33)), Border::Blank);
        assert_eq!(a.border(b, Some(32)), Border::Seam);
        assert_eq!(a.border(b, None), Border::Seam);
        assert_eq!(axis(1, 2, 0).border(b, None), Border::Blank);
        assert_eq!(a.border(axis(3, 1, 0), None), Border::Clear);
        // A window of stride 2 may never read the trailing padding.
        let late = Axis { after: 1, ..axis(2, 2, 0) };
        assert_eq!(axis(3, 1, 0).border(late, Some(10)), Border::Clear);
    }

    #[test]
    fn divides_outputs_into_runs() {
        let runs = axis(3, 1, 1).runs(axis(3, 1, 1), 8, 8).unwrap();
        let parts: Vec<_> = runs
            .iter()
            .map(|r| (r.outputs.clone(), r.taps.clone(), r.inputs.clone(), (r.before, r.after)))
            .collect();
        assert_eq!(
            parts,
            [(0..1, 2..5, 0..3, (0, 0)), (1..7, 0..5, 0..8, (1, 1)), (7..8, 0..3, 5..8, (0, 0)),]
        );
        assert_eq!(axis(3, 1, 1).runs(axis(3, 1, 1), 8, 2), None);
    }
}
