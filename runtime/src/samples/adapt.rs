//! Generated samples that a model runs on, found by trying.
//!
//! Declared types leave out what operators need: equal lengths, sizes that are multiples, indices within a
//! table. Engines state it when they fail, so the numbers in their messages are tried first, then usual sizes.

use super::{Generated, InputSpec, SampleSet, Source, generate::generate};
use crate::{EngineError, PortKind, Session};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Runs at most; each fails early, or succeeds.
const MAX_TRIES: usize = 200;
/// Most sizes of weights to try for one dimension.
const MAX_SIZES: usize = 24;
/// Most sizes and bounds to try after one failure.
const MAX_NUMBERS: usize = 8;
/// Sizes that models of images, sound and text are often made for.
const USUAL: [usize; 11] = [32, 64, 16, 224, 320, 1, 2, 128, 640, 512, 16_000];
/// Largest size or bound taken from a message.
const LARGEST: usize = 1 << 16;
/// Sizes up to this are those of batches.
const BATCH: usize = 3;

/// Properties of generated samples.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Variant {
    sizes: BTreeMap<String, usize>,
    /// Exclusive upper bound of all integers; `None` for those of the inputs.
    bound: Option<i64>,
}

impl SampleSet {
    /// Changes sizes of symbolic dimensions and ranges of integers of generated samples until `session` runs.
    /// Returns false, without a change, for given samples and if no samples were found.
    pub fn adapt(&mut self, session: &mut dyn Session) -> bool {
        let Source::Generated(generated) = &mut self.source else { return false };
        let Generated { inputs, plans, seed, weight_sizes } = generated;
        let mut run = |variant: &Variant| {
            session.run(&generate(&bounded(inputs, variant.bound), &variant.sizes, *seed, 0)).map(drop)
        };
        let Some(found) = search(plans, weight_sizes, &mut run) else { return false };
        let mut variants = vec![found.clone()];
        variants.extend(others(&found).into_iter().filter(|variant| run(variant).is_ok()).take(2));
        *inputs = bounded(inputs, found.bound);
        let each = self.count / plans.len();
        *plans = variants.into_iter().map(|variant| variant.sizes).collect();
        self.count = each * plans.len();
        true
    }
}

/// The inputs with integers below `bound`.
fn bounded(inputs: &[InputSpec], bound: Option<i64>) -> Vec<InputSpec> {
    let Some(bound) = bound else { return inputs.to_vec() };
    let lower = |input: &InputSpec| {
        let range = input.bound.clone().unwrap_or(0..bound);
        InputSpec { bound: Some(range.start..range.end.min(bound)), choices: vec![], ..input.clone() }
    };
    let is_integer =
        |input: &InputSpec| matches!(&input.kind, PortKind::Tensor { dtype, .. } if dtype.is_integer());
    inputs.iter().map(|input| if is_integer(input) { lower(input) } else { input.clone() }).collect()
}

/// The first variant that runs.
fn search(
    plans: &[BTreeMap<String, usize>],
    weight_sizes: &[usize],
    run: &mut impl FnMut(&Variant) -> Result<(), EngineError>,
) -> Option<Variant> {
    let mut seen = BTreeSet::new();
    let mut queue: VecDeque<_> =
        plans.iter().map(|sizes| Variant { sizes: sizes.clone(), bound: None }).collect();
    queue.extend(plans.first().into_iter().flat_map(|sizes| matching(sizes, weight_sizes)));
    queue.extend(plans.first().into_iter().flat_map(usual));
    let mut tries = 0;
    while let Some(variant) = queue.pop_front() {
        if !seen.insert(variant.clone()) {
            continue;
        }
        tries += 1;
        match run(&variant) {
            Ok(()) => return Some(variant),
            Err(_) if tries >= MAX_TRIES => return None,
            Err(error) => {
                corrections(&error.to_string(), &variant).into_iter().rev().for_each(|v| queue.push_front(v));
            }
        }
    }
    None
}

/// One size equal to a size of the weights.
fn matching(sizes: &BTreeMap<String, usize>, weight_sizes: &[usize]) -> Vec<Variant> {
    let free = sizes.iter().filter(|(_, size)| **size > BATCH).map(|(name, _)| name);
    let with = |name: &String, &size: &usize| {
        let mut variant = Variant { sizes: sizes.clone(), bound: None };
        variant.sizes.insert(name.clone(), size);
        variant
    };
    free.flat_map(|name| weight_sizes.iter().take(MAX_SIZES).map(move |size| with(name, size))).collect()
}

/// All sizes but those of batches equal to a usual one; small integers.
fn usual(sizes: &BTreeMap<String, usize>) -> Vec<Variant> {
    let with = |size: usize, bound| {
        let sizes = sizes.iter().map(|(name, &old)| (name.clone(), if old <= BATCH { old } else { size }));
        Variant { sizes: sizes.collect(), bound }
    };
    let same = |bound| Variant { sizes: sizes.clone(), bound };
    [Some(2), Some(1)].map(same).into_iter().chain(USUAL.map(|size| with(size, None))).collect()
}

/// Variants of one that failed: a size in the message is replaced by another number there, or integers are
/// bounded by one.
fn corrections(message: &str, failed: &Variant) -> Vec<Variant> {
    let numbers: BTreeSet<usize> = numbers(message).filter(|n| (1..=LARGEST).contains(n)).collect();
    let mut variants = vec![];
    // `idx=9 must be within the inclusive range [-4,3]`
    let bounds = numbers.iter().map(|&n| n as i64 + 1).filter(|&n| failed.bound.is_none_or(|old| n < old));
    if message.contains("range") || message.contains("bounds") {
        variants.extend(bounds.take(MAX_NUMBERS).map(|n| Variant { bound: Some(n), ..failed.clone() }));
    }
    let sizes = failed.sizes.iter().filter(|(_, size)| **size > BATCH && numbers.contains(size));
    for (name, old) in sizes {
        for &number in numbers.iter().filter(|n| *n != old).take(MAX_NUMBERS) {
            let mut variant = failed.clone();
            variant.sizes.insert(name.clone(), number);
            variants.push(variant);
        }
    }
    variants
}

fn numbers(text: &str) -> impl Iterator<Item = usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok())
}

/// Other batches and larger sizes, which show more of a model.
fn others(found: &Variant) -> Vec<Variant> {
    let map = |change: fn(usize) -> usize| {
        let sizes = found.sizes.iter().map(|(name, &size)| (name.clone(), change(size)));
        Variant { sizes: sizes.collect(), bound: found.bound }
    };
    let batch = |size| if size <= BATCH { size % BATCH + 1 } else { size };
    let mut all = vec![
        map(|size| if size <= BATCH { size % BATCH + 1 } else { 2 * size }),
        map(batch),
        map(|size| if size <= BATCH { size } else { 2 * size }),
    ];
    all.retain(|variant| variant != found);
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(reason: String) -> Result<(), EngineError> {
        Err(EngineError::Run { engine: "test".into(), reason })
    }

    fn plan(sizes: &[(&str, usize)]) -> BTreeMap<String, usize> {
        sizes.iter().map(|&(name, size)| (name.to_owned(), size)).collect()
    }

    #[test]
    fn takes_sizes_from_messages() {
        let plans = [plan(&[("n", 1), ("a", 8), ("b", 13)])];
        let found = search(&plans, &[], &mut |variant| {
            let (a, b) = (variant.sizes["a"], variant.sizes["b"]);
            match (a, b) {
                (a, b) if a != b => failing(format!("cannot broadcast {a} by {b}")),
                (24, _) => Ok(()),
                (a, _) => failing(format!("{a} is not 24")),
            }
        });
        assert_eq!(found.map(|variant| variant.sizes), Some(plan(&[("n", 1), ("a", 24), ("b", 24)])));
    }

    #[test]
    fn takes_bounds_from_messages() {
        let found = search(&[plan(&[])], &[], &mut |variant| match variant.bound {
            Some(bound) if bound <= 4 => Ok(()),
            _ => failing("idx=9 must be within the inclusive range [-4,3]".into()),
        });
        assert_eq!(found.unwrap().bound, Some(4));
    }

    #[test]
    fn tries_sizes_of_the_weights() {
        let found = search(&[plan(&[("n", 1), ("a", 8), ("b", 512)])], &[4, 33], &mut |variant| {
            if variant.sizes["b"] == 33 { Ok(()) } else { failing("dimension mismatch".into()) }
        });
        assert_eq!(found.map(|variant| variant.sizes), Some(plan(&[("n", 1), ("a", 8), ("b", 33)])));
    }

    #[test]
    fn tries_usual_sizes() {
        let found = search(&[plan(&[("n", 1), ("h", 61), ("w", 96)])], &[], &mut |variant| {
            let is_multiple = variant.sizes["h"] % 32 == 0 && variant.sizes["w"] % 32 == 0;
            if is_multiple { Ok(()) } else { failing("it failed".into()) }
        });
        assert_eq!(found.map(|variant| variant.sizes), Some(plan(&[("n", 1), ("h", 32), ("w", 32)])));
        let mut tries = 0;
        let none = search(&[plan(&[("h", 61)])], &[], &mut |_| {
            tries += 1;
            failing("never 1 2 3 4 5 6 7 8 61".into())
        });
        assert!(none.is_none() && tries <= MAX_TRIES, "{tries}");
    }
}
