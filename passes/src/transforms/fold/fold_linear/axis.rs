//! One spatial axis of a convolution: how two of them compose, and what happens at the border.
//!
//! With kernel `k`, stride `s`, dilation `d` and `before` zeros in front, output `v` reads the inputs
//! `v·s + a·d − before`, `0 ≤ a < k`. The second layer's tap `c` then reads, through the first layer's tap `a`,
//!
//! ```text
//! (v·s₂ + c·d₂ − b₂)·s₁ + a·d₁ − b₁  =  v·(s₁s₂) + (c·d₂s₁ + a·d₁) − (b₁ + s₁b₂)
//! ```
//!
//! which is one layer with stride `s₁s₂`, padding `b₁ + s₁b₂` and taps at `c·d₂s₁ + a·d₁`: all that is left is their
//! greatest common divisor, the new dilation.

use std::ops::Range;

/// The geometry of a convolution along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Taps of the kernel.
    pub taps: usize,
    /// Stride.
    pub stride: usize,
    /// Dilation.
    pub dilation: usize,
    /// Zeros in front of the input.
    pub before: usize,
    /// Zeros behind the input.
    pub after: usize,
}

/// What a composite layer meets where the second layer reads zeros around the output of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Border {
    /// The second layer reads no such zero.
    Clear,
    /// The composite reads no input there either: only the bias of the first layer differs from zero.
    Blank,
    /// The composite reads inputs there that the second layer does not see.
    Seam,
}

/// Outputs that see the same taps of the second layer, and how the composite computes them from a part of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The outputs.
    pub outputs: Range<usize>,
    /// The taps of the second layer that lie inside the output of the first.
    pub inside: Range<usize>,
    /// The taps of the composite that are left and meet an input for one of the outputs.
    pub taps: Range<usize>,
    /// The inputs they read.
    pub inputs: Range<usize>,
    /// Zeros in front of and behind these inputs.
    pub pads: (usize, usize),
    /// Whether they see padding alone: then the inputs stand here for their number only.
    pub blind: bool,
}

/// No extent, stride, dilation or padding of a layer may be larger, so that no arithmetic here overflows.
pub const LIMIT: usize = 1 << 16;

/// Greatest common divisor; that of 0 and `n` is `n`.
pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Axis {
    /// The axis of a layer that leaves every place alone.
    pub const POINT: Self = Self { taps: 1, stride: 1, dilation: 1, before: 0, after: 0 };

    /// Whether each output comes from one input, and all of them from real ones.
    pub fn is_pointwise(self) -> bool {
        self.taps == 1 && self.before == 0 && self.after == 0
    }

    /// Whether it is small enough to compute with.
    pub fn is_sane(self) -> bool {
        let Self { taps, stride, dilation, before, after } = self;
        (1..=LIMIT).contains(&taps)
            && (1..=LIMIT).contains(&stride)
            && (1..=LIMIT).contains(&dilation)
            && before.max(after) <= LIMIT
            && self.extent() <= LIMIT
    }

    /// From the first tap to the last.
    pub fn extent(self) -> usize {
        (self.taps - 1) * self.dilation + 1
    }

    /// The number of outputs; `None` if the kernel does not fit into the padded input.
    pub fn outputs(self, inputs: usize) -> Option<usize> {
        let room = inputs.checked_add(self.before + self.after)?.checked_sub(self.extent())?;
        Some(room / self.stride + 1)
    }

    /// This axis, then `next`. The number of outputs agrees: `⌊(⌊n/s₁⌋ + m)/s₂⌋ = ⌊(n + s₁m)/(s₁s₂)⌋`.
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

    /// The dilation of the composite: a single tap has no say in it.
    fn divisor(self, next: Self) -> usize {
        let own = if self.taps > 1 { self.dilation } else { 0 };
        let theirs = if next.taps > 1 { next.dilation * self.stride } else { 0 };
        gcd(own, theirs).max(1)
    }

    /// The tap of the composite that tap `own` seen through tap `theirs` of `next` is.
    pub fn tap(self, own: usize, next: Self, theirs: usize) -> usize {
        (theirs * next.dilation * self.stride + own * self.dilation) / self.divisor(next)
    }

    /// What the composite with `next` meets at the border of `inputs` inputs. Without their number, `Clear` and
    /// `Blank` hold for every number, and `Seam` for some.
    pub fn border(self, next: Self, inputs: Option<usize>) -> Border {
        match inputs {
            Some(inputs) => self.border_of(next, inputs),
            None if next.before == 0 && next.after == 0 => Border::Clear,
            // The last place in front of the output reaches up to `extent − 1 − stride − before`, and the first
            // one behind it begins at least `after + 1 − extent` behind the input.
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
        let in_front = (1..=next.before as i64).map(|i| -i);
        let behind = (0..next.after as i64).map(|i| middle as i64 + i);
        // Some window of the second layer has a tap there.
        let is_read = |&place: &i64| {
            (0..next.taps).any(|c| {
                let start = place + next.before as i64 - (c * next.dilation) as i64;
                start >= 0 && start % next.stride as i64 == 0 && start / (next.stride as i64) < outputs as i64
            })
        };
        let reads_input = |place: i64| {
            let start = place * self.stride as i64 - self.before as i64;
            (0..self.taps).any(|a| (0..inputs as i64).contains(&(start + (a * self.dilation) as i64)))
        };
        let worst = |place| if reads_input(place) { Border::Seam } else { Border::Blank };
        in_front.chain(behind).filter(is_read).map(worst).max().unwrap_or(Border::Clear)
    }

    /// The outputs of the composite with `next` over `inputs` inputs in runs that see the same taps of `next`.
    /// `None` if sizes do not fit, or there are more than `most` runs.
    pub fn runs(self, next: Self, inputs: usize, most: usize) -> Option<Vec<Run>> {
        let middle = self.outputs(inputs)?;
        let outputs = next.outputs(middle)?;
        let inside = |v: usize| {
            // Tap c lies at v·s + c·d − before, and inside from 0 to `middle`.
            let start = v * next.stride;
            let first = next.before.saturating_sub(start).div_ceil(next.dilation);
            let end = (middle + next.before).saturating_sub(start).div_ceil(next.dilation).min(next.taps);
            first.min(end)..end
        };
        let mut parts = vec![];
        let mut first = 0;
        while first < outputs {
            let taps = inside(first);
            // Runs in the middle are long: skip to the last output that begins before the end of the input.
            let full = taps == (0..next.taps);
            let last_full =
                (middle + next.before).checked_sub(next.extent()).map_or(0, |room| room / next.stride);
            let mut end = if full { last_full.min(outputs - 1) + 1 } else { first + 1 };
            while end < outputs && inside(end) == taps {
                end += 1;
            }
            parts.push((first..end, taps));
            first = end;
            if parts.len() > most {
                return None;
            }
        }
        Some(parts.into_iter().map(|(outputs, inside)| self.run(next, inputs, outputs, inside)).collect())
    }

    fn run(self, next: Self, inputs: usize, outputs: Range<usize>, inside: Range<usize>) -> Run {
        let whole = self.then(next);
        let place =
            |v: usize, tap: usize| (v * whole.stride + tap * whole.dilation) as i64 - whole.before as i64;
        let made = |taps: Range<usize>, start: i64, end: i64, blind: bool| {
            let pads = ((-start).max(0) as usize, (end - inputs as i64).max(0) as usize);
            let read = start.max(0) as usize..end.min(inputs as i64) as usize;
            Run { outputs: outputs.clone(), inside: inside.clone(), taps, inputs: read, pads, blind }
        };
        let left = match inside.clone().last() {
            Some(last) => self.tap(0, next, inside.start)..self.tap(self.taps - 1, next, last) + 1,
            None => 0..0,
        };
        // A tap meets an input if its first place is not behind all of them, nor its last one before.
        let meets = |&t: &usize| place(outputs.start, t) < inputs as i64 && place(outputs.end - 1, t) >= 0;
        let (low, high) = (left.clone().find(meets), left.rev().find(meets));
        if let (Some(low), Some(high)) = (low, high) {
            let (start, end) = (place(outputs.start, low), place(outputs.end - 1, high) + 1);
            if start < inputs as i64 && end > 0 {
                return made(low..high + 1, start, end, false);
            }
        }
        made(0..1, 0, ((outputs.len() - 1) * whole.stride) as i64 + 1, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(taps: usize, stride: usize, pads: usize) -> Axis {
        Axis { taps, stride, dilation: 1, before: pads, after: pads }
    }

    #[test]
    fn kernels_grow_by_the_stride_of_the_first() {
        let a = axis(3, 2, 1).then(axis(3, 1, 1));
        assert_eq!(a, Axis { taps: 7, stride: 2, dilation: 1, before: 3, after: 3 });
        // A 1-tap layer of stride 2 leaves holes, which are dilation.
        let b = axis(1, 2, 0).then(axis(3, 1, 0));
        assert_eq!(b, Axis { taps: 3, stride: 2, dilation: 2, before: 0, after: 0 });
    }

    #[test]
    fn borders_are_told_with_and_without_sizes() {
        // 3/s2/p1 under a padded 3: exact at the end for odd sizes only.
        let (a, b) = (axis(3, 2, 1), axis(3, 1, 1));
        assert_eq!(a.border(b, Some(33)), Border::Blank);
        assert_eq!(a.border(b, Some(32)), Border::Seam);
        assert_eq!(a.border(b, None), Border::Seam);
        assert_eq!(axis(1, 2, 0).border(b, None), Border::Blank);
        assert_eq!(a.border(axis(3, 1, 0), None), Border::Clear);
        // A window of stride 2 may never reach the padding behind.
        let late = Axis { after: 1, ..axis(2, 2, 0) };
        assert_eq!(axis(3, 1, 0).border(late, Some(10)), Border::Clear);
    }

    #[test]
    fn runs_cover_all_outputs_once() {
        let runs = axis(3, 1, 1).runs(axis(3, 1, 1), 8, 8).unwrap();
        let parts: Vec<_> =
            runs.iter().map(|r| (r.outputs.clone(), r.taps.clone(), r.inputs.clone(), r.pads)).collect();
        assert_eq!(
            parts,
            [(0..1, 2..5, 0..3, (0, 0)), (1..7, 0..5, 0..8, (1, 1)), (7..8, 0..3, 5..8, (0, 0)),]
        );
        assert_eq!(axis(3, 1, 1).runs(axis(3, 1, 1), 8, 2), None);
    }
}
