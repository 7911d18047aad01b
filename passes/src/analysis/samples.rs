//! The samples of a pass that fits weights: those to fit to, and those held out.

use crate::framework::{Hint, PassError, Tools};
use pare_graph::Samples;
use std::ops::Range;

/// The largest number of samples in statistics.
pub(crate) const STATISTICS: usize = 1000;
/// The largest number of samples in a fit: with 32 positions each, some 130,000 rows of at most a few thousand numbers.
const FIT: usize = 4096;
/// Least samples to choose between fits by: with fewer, the best fit to them is often another than that to all.
const PART: usize = 256;
/// The largest number of held-out samples.
pub(crate) const HELD_OUT: usize = 256;
/// The least number of samples for a fit.
pub(crate) const MIN_SAMPLES: usize = 16;
/// Positions of each sample that a fit uses.
pub(crate) const POSITIONS: usize = 32;

/// A split of the samples: those to fit to, and a fifth that is held out to compare outputs on.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub fit: Range<usize>,
    pub held_out: Range<usize>,
}

impl Split {
    /// Splits the available samples, if any. Fewer than five samples are used for both.
    pub fn of(tools: Tools<'_>) -> Self {
        let count = tools.samples.map_or(0, Samples::len);
        let held = (count / 5).min(HELD_OUT);
        let held_out = if held > 0 { count - held..count } else { 0..count };
        Self { fit: 0..(count - held).min(FIT), held_out }
    }

    /// Splits the samples of a pass that needs them. `otherwise` is an option with which it does not.
    ///
    /// # Errors
    /// If there is no engine, or fewer than 16 samples.
    pub fn required(tools: Tools<'_>, otherwise: Option<&str>) -> Result<Self, PassError> {
        if tools.samples.is_none() || tools.engine.is_none() {
            let hint = Hint::NeedsSamples { otherwise: otherwise.map(Into::into) };
            return Err(PassError::refused_with("it needs samples, and an engine to run them", hint));
        }
        let split = Self::of(tools);
        match split.held_out.end {
            count if count < MIN_SAMPLES => Err(PassError::refused_with(
                format!("{count} samples are too few"),
                Hint::MoreSamples(MIN_SAMPLES),
            )),
            _ => Ok(split),
        }
    }

    /// [`Split::required`] if samples are needed, else [`Split::of`].
    pub fn when(needed: bool, tools: Tools<'_>, otherwise: &str) -> Result<Self, PassError> {
        if needed { Self::required(tools, Some(otherwise)) } else { Ok(Self::of(tools)) }
    }

    /// The samples in statistics.
    pub fn statistics(&self) -> Range<usize> {
        0..self.fit.end.min(STATISTICS)
    }

    /// The samples of trial fits, which only choose the kind of fit.
    pub fn part(&self) -> Range<usize> {
        0..self.fit.end.min((self.fit.end / 4).max(PART))
    }

    /// All samples.
    pub fn all(&self) -> Range<usize> {
        0..self.held_out.end
    }

    /// The number of samples that are neither needed for a fit nor held out.
    pub fn left_out(&self) -> usize {
        self.held_out.start.saturating_sub(self.fit.end)
    }

    /// Returns whether there are so few samples that a fit also needs those that are held out.
    pub fn has_few(&self) -> bool {
        self.fit.len() < STATISTICS
    }

    /// Returns whether there are enough samples to compare outputs.
    pub fn suffices(&self) -> bool {
        self.held_out.end >= MIN_SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::{EvaluateError, Tensor};

    struct Count(usize);

    impl Samples for Count {
        fn len(&self) -> usize {
            self.0
        }

        fn batch(&self, _: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
            Ok(vec![])
        }
    }

    #[test]
    fn fits_to_no_more_samples_than_they_need() {
        let split = |count| Split::of(Tools { samples: Some(&Count(count)), ..Tools::default() });
        for (count, fit, held_out, left_out) in [
            (4, 4, 0..4, 0),
            (100, 80, 80..100, 0),
            (4352, 4096, 4096..4352, 0),
            (50_000, 4096, 49_744..50_000, 45_648),
        ] {
            let split = split(count);
            assert_eq!((split.fit.len(), split.left_out()), (fit, left_out));
            assert_eq!(split.held_out, held_out);
        }
    }
}
