//! The samples of a pass that fits weights: those it fits to, and those it holds out.

use crate::framework::{Hint, PassError, Tools};
use pare_graph::Samples;
use std::ops::Range;

/// Samples whose activations are added up to statistics.
pub(crate) const STATISTICS: usize = 1000;
/// Samples at most that are held out to compare outputs on.
pub(crate) const HELD_OUT: usize = 256;
/// Fewer samples than this tell too little for a fit.
const MIN_SAMPLES: usize = 16;
/// Places of each sample that a fit looks at.
pub(crate) const PLACES: usize = 32;

/// The samples of a pass that fits: those it fits to, and those it compares outputs on, a fifth of all.
#[derive(Debug, Clone)]
pub(crate) struct Split {
    pub fit: Range<usize>,
    pub held_out: Range<usize>,
}

impl Split {
    /// What there is, if anything. Fewer than five samples serve for both.
    pub fn of(tools: Tools<'_>) -> Self {
        let count = tools.samples.map_or(0, Samples::len);
        let held = (count / 5).min(HELD_OUT);
        Self { fit: 0..count - held, held_out: if held > 0 { count - held..count } else { 0..count } }
    }

    /// The same for a pass that cannot do without, unless it is asked for what needs none: `otherwise`.
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

    /// The one or the other.
    pub fn when(needed: bool, tools: Tools<'_>, otherwise: &str) -> Result<Self, PassError> {
        if needed { Self::required(tools, Some(otherwise)) } else { Ok(Self::of(tools)) }
    }

    /// The samples whose activations are added up.
    pub fn statistics(&self) -> Range<usize> {
        0..self.fit.end.min(STATISTICS)
    }

    /// Whether they tell enough to compare outputs.
    pub fn suffices(&self) -> bool {
        self.held_out.end >= MIN_SAMPLES
    }
}
