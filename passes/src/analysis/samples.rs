//! The samples of a pass that fits weights: those to fit to, and those held out.

use crate::framework::{Hint, PassError, Tools};
use pare_graph::Samples;
use std::ops::Range;

/// The largest number of samples in statistics.
pub(crate) const STATISTICS: usize = 1000;
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
        Self { fit: 0..count - held, held_out: if held > 0 { count - held..count } else { 0..count } }
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

    /// All samples.
    pub fn all(&self) -> Range<usize> {
        0..self.held_out.end
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
