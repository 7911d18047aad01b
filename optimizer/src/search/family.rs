//! Families of lossy passes, and pipelines that combine them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A family of lossy passes that differ in one parameter.
#[derive(Debug)]
pub(super) struct Family {
    /// The name that users select it by.
    pub name: &'static str,
    /// The strengths that are measured alone first, from mild to strong. Combinations also use multiples of
    /// `resolution` between them.
    pub ladder: &'static [u32],
    /// The smallest difference of two strengths that is worth a measurement.
    pub resolution: u32,
    /// True if it removes units or channels. Only one family that does takes part in a combination: one distribution
    /// over all layers beats two in a row, of which the second finds little left.
    pub narrows: bool,
    step: fn(u32) -> String,
}

/// The families, in the order in which a pipeline applies them: whole blocks first, so that nothing is fitted to
/// layers that go; then training, which repairs the weights further; INT8 last, since the other passes read float
/// weights.
///
/// Strengths are counts, or percentages that are removed. Numbers of channels are multiples of 8, the smallest
/// block of common kernels: the step that `multiple=auto` measures may differ between two runs, and the pipeline
/// has to give the same bytes again.
pub(super) const FAMILIES: [Family; 9] = [
    Family {
        name: "blocks",
        ladder: &[1, 2, 3, 4, 6, 8],
        resolution: 1,
        narrows: false,
        step: |n| format!("drop-blocks{{count={n}}}"),
    },
    Family {
        name: "activations",
        ladder: &[1, 2, 4],
        resolution: 1,
        narrows: false,
        step: |n| format!("remove-activations{{count={n}}},fold-linear"),
    },
    Family {
        name: "heads",
        ladder: &[25, 50],
        resolution: 25,
        narrows: false,
        step: |n| format!("prune-heads{{ratio={}}}", share(n)),
    },
    Family {
        name: "hidden",
        ladder: &[25, 50, 75],
        resolution: 5,
        narrows: true,
        step: |n| format!("prune-hidden{{ratio={},multiple=8}}", share(n)),
    },
    Family {
        name: "channels",
        ladder: &[15, 30, 45, 60],
        resolution: 5,
        narrows: true,
        step: |n| format!("prune-channels{{macs={},multiple=8}}", share(100 - n)),
    },
    Family {
        name: "streams",
        ladder: &[15, 30, 45, 60],
        resolution: 5,
        narrows: true,
        step: |n| format!("prune-channels{{macs={},streams=true,multiple=8}}", share(100 - n)),
    },
    Family {
        name: "tokens",
        ladder: &[2, 4, 8, 12],
        resolution: 1,
        narrows: false,
        step: |n| format!("merge-tokens{{r={n}}}"),
    },
    Family { name: "training", ladder: &[1], resolution: 1, narrows: false, step: |_| "distill".into() },
    Family {
        name: "precision",
        ladder: &[1],
        resolution: 1,
        narrows: false,
        step: |_| "quantize{for=size}".into(),
    },
];

/// The number of families.
pub(super) const COUNT: usize = FAMILIES.len();

const PRECISION: usize = COUNT - 1;
/// The family that removes nothing: alone it makes no candidate.
pub(super) const TRAINING: usize = COUNT - 2;

/// A percentage as a share, in its shortest form.
fn share(percent: u32) -> String {
    format!("{}", f64::from(percent) / 100.0)
}

/// The strength of each family; 0 leaves it out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Combination(pub [u32; COUNT]);

impl Combination {
    /// One family alone.
    pub fn single(family: usize, strength: u32) -> Self {
        let mut combination = Self::default();
        combination.0[family] = strength;
        combination
    }

    /// The same candidate with or without training.
    pub fn with_training(mut self, trained: bool) -> Self {
        self.0[TRAINING] = u32::from(trained);
        self
    }

    pub fn is_trained(&self) -> bool {
        self.0[TRAINING] > 0
    }

    /// The families that take part, with their strengths.
    pub fn parts(&self) -> impl Iterator<Item = (usize, u32)> {
        self.0.into_iter().enumerate().filter(|(_, strength)| *strength > 0)
    }

    /// The families up to this one.
    pub fn up_to(mut self, family: usize) -> Self {
        self.0[family + 1..].fill(0);
        self
    }

    /// Returns whether another is at least as strong in each family.
    pub fn is_within(&self, other: Self) -> bool {
        self.0.iter().zip(other.0).all(|(own, other)| *own <= other)
    }

    /// The only family that takes part, with its strength.
    pub fn as_single(&self) -> Option<(usize, u32)> {
        let mut parts = self.parts();
        parts.next().filter(|_| parts.next().is_none())
    }

    /// The family whose step is the segment at this position.
    pub fn family_of(&self, segment: usize) -> Option<usize> {
        let steps: Vec<_> = self.parts().map(|(f, _)| f).filter(|&f| f != PRECISION).collect();
        let index = segment.checked_sub(1)?;
        let is_last = segment + 1 == self.segments().len();
        steps.get(index).copied().or_else(|| (self.0[PRECISION] > 0 && is_last).then_some(PRECISION))
    }

    /// The parts of the pipeline. The model after each is kept, so that combinations with the same beginning share
    /// its cost.
    pub fn segments(&self) -> Vec<String> {
        let mut segments = vec!["safe".to_owned()];
        segments.extend(self.parts().filter(|(f, _)| *f != PRECISION).map(|(f, n)| (FAMILIES[f].step)(n)));
        if segments.len() > 1 {
            segments.push("safe".into());
        }
        segments.extend(self.parts().filter(|(f, _)| *f == PRECISION).map(|(f, n)| (FAMILIES[f].step)(n)));
        segments
    }
}

/// The pipeline in text form.
impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.segments().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_passes::{Effect, Pipeline};

    #[test]
    fn all_steps_are_lossy_pipelines() {
        for (i, family) in FAMILIES.iter().enumerate() {
            for &strength in family.ladder {
                let text = Combination::single(i, strength).to_string();
                let pipeline: Pipeline = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
                assert_eq!(pipeline.effect(), Effect::Lossy, "{text}");
            }
            assert!(family.ladder.is_sorted() && family.ladder[0] > 0, "{}", family.name);
        }
    }

    #[test]
    fn training_follows_what_removes() {
        let trained = Combination::single(4, 30).with_training(true);
        assert!(trained.is_trained() && !trained.with_training(false).is_trained());
        assert_eq!(trained.to_string(), "safe,prune-channels{macs=0.7,multiple=8},distill,safe");
    }

    #[test]
    fn quantization_comes_last() {
        let mut combination = Combination::single(3, 50);
        assert_eq!(combination.as_single(), Some((3, 50)));
        combination.0[PRECISION] = 1;
        assert_eq!(combination.as_single(), None);
        assert_eq!(
            combination.to_string(),
            "safe,prune-hidden{ratio=0.5,multiple=8},safe,quantize{for=size}"
        );
        assert_eq!(Combination::single(PRECISION, 1).to_string(), "safe,quantize{for=size}");
        assert_eq!(Combination::default().to_string(), "safe");
    }

    #[test]
    fn segments_belong_to_families() {
        let mut combination = Combination::single(0, 2).with_training(true);
        combination.0[6] = 4;
        combination.0[PRECISION] = 1;
        let families: Vec<_> = (0..6).map(|segment| combination.family_of(segment)).collect();
        assert_eq!(combination.segments()[4], "safe", "{combination}");
        assert_eq!(families, [None, Some(0), Some(6), Some(TRAINING), None, Some(PRECISION)]);
        assert_eq!(Combination::single(PRECISION, 1).family_of(1), Some(PRECISION));
        assert_eq!(Combination::single(3, 50).family_of(2), None);
    }

    #[test]
    fn weaker_combinations_are_within_stronger_ones() {
        let mut strong = Combination::single(0, 2);
        strong.0[3] = 50;
        let weak = strong.up_to(2);
        assert_eq!(weak, Combination::single(0, 2));
        assert!(weak.is_within(strong) && !strong.is_within(weak) && weak.is_within(weak));
        assert!(!Combination::single(4, 15).is_within(strong));
    }
}
