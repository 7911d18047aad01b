//! The layers that stay in float since the engine is not slower there.
//!
//! Layers of equal shape take equal time, so they are toggled together, and entire models are timed: a layer
//! between others in integers needs no conversions, which it needs between layers in float.
//!
//! ```text
//! repeat
//!     time the model in integers, in float, and with each kind of layer and each half of them in float
//!     time it once more with the kinds that were faster in float, all of them and the best one
//!     put those in float that were faster again, or stop
//! ```
//!
//! The second measurement removes a selection effect: among many noisy ratios the smallest is too small, so that on a
//! busy machine some kind always seems to be faster in float. If the result is not faster than float, everything stays
//! in float.

use super::candidates::{Candidates, Choice};
use crate::{
    analysis::timing,
    framework::{Context, PassError},
};
use pare_graph::{Model, evaluate::stopwatch::Spread, ops::Bindings};

/// A smaller difference shows nothing: the same model, loaded twice, may differ as much by its place in memory.
const MARGIN: f64 = 0.03;
/// Most measurements of one latency, which end with the first that is beyond the noise.
const REPEATS: usize = 3;
/// Rounds of the search, and the most kinds that are toggled.
const ROUNDS: usize = 6;
const KINDS: usize = 12;

pub struct SpeedSearch<'s> {
    pub candidates: &'s Candidates<'s>,
    /// The sizes of one sample.
    pub sizes: Bindings,
    /// True if products of activations must save time to be in integers.
    pub products_earn: bool,
}

/// A choice, and the latency of its model over that of the model in float.
pub struct TimedChoice {
    pub choice: Choice,
    pub latency: Spread,
}

/// Returns whether a latency relative to float is less by more than the noise.
pub fn is_faster(latency: &Spread) -> bool {
    latency.median < 1.0 - MARGIN && latency.high < 1.0
}

impl SpeedSearch<'_> {
    /// Returns the choice without units that are faster in float, which is empty if integers are not faster.
    pub fn choose(&self, mut choice: Choice, cx: &mut Context<'_>) -> Result<TimedChoice, PassError> {
        for round in 0..ROUNDS {
            cx.tools.progress.step("timing", round as u64, ROUNDS as u64);
            let mut slow = self.slow_kinds(&choice, cx)?;
            if slow.len() > 1 {
                slow = vec![slow[0].clone(), slow.concat()];
            }
            let Some(fastest) = self.faster_in_float(&choice, slow, cx)?.into_iter().next() else { break };
            choice = dropping(&choice, &fastest);
            if !choice.contains(&true) {
                break;
            }
        }
        cx.tools.progress.step("timing", ROUNDS as u64, ROUNDS as u64);
        let latency = self.latency(&choice, cx)?;
        Ok(TimedChoice { choice, latency })
    }

    /// The latency of a choice over that of float, the larger of two measurements: the second loads the models in
    /// another order, so that they are in other places in memory. Both are repeated while other load hides which model
    /// is faster.
    pub fn latency(&self, choice: &Choice, cx: &Context<'_>) -> Result<Spread, PassError> {
        if !choice.contains(&true) {
            return Ok(Spread::of(vec![1.0]));
        }
        let (plain, model) = (self.candidates.plain, self.candidates.build(choice)?);
        let measure = || -> Result<Spread, PassError> {
            let first = self.measure(&[plain, &model], cx)?[1];
            let second = timing::inverse(&self.measure(&[&model, plain], cx)?[1]);
            Ok(if first.median > second.median { first } else { second })
        };
        let mut latency = measure()?;
        for _ in 1..REPEATS {
            if is_faster(&latency) || latency.median >= 1.0 - MARGIN {
                break;
            }
            latency = measure()?;
        }
        Ok(latency)
    }

    /// Returns the kinds of units with which in float the model is faster, the one that saves most first. A half of
    /// all units is a kind too.
    fn slow_kinds(&self, choice: &Choice, cx: &Context<'_>) -> Result<Vec<Vec<usize>>, PassError> {
        let mut kinds = self.kinds(choice, KINDS);
        if kinds.len() > 2 {
            let (low, high) = kinds.split_at(kinds.len() / 2);
            kinds.extend([low.concat(), high.concat()]);
        }
        self.faster_in_float(choice, kinds, cx)
    }

    /// The sets of units with which in float the model is faster than the choice, the fastest first.
    fn faster_in_float(
        &self,
        choice: &Choice,
        sets: Vec<Vec<usize>>,
        cx: &Context<'_>,
    ) -> Result<Vec<Vec<usize>>, PassError> {
        let without: Vec<_> = sets.iter().map(|units| dropping(choice, units)).collect();
        let limit = |units: &[usize]| {
            let earns = self.products_earn && units.iter().all(|&unit| self.candidates.is_product(unit));
            if earns { 1.0 + MARGIN } else { 1.0 - MARGIN }
        };
        let ratios = self.ratios(choice, &without, cx)?.into_iter();
        let mut faster: Vec<_> = ratios.zip(sets).filter(|(ratio, units)| *ratio < limit(units)).collect();
        faster.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(faster.into_iter().map(|(_, units)| units).collect())
    }

    /// The part of the latency of float that each unit of a choice saves in integers: what the model takes longer
    /// with its kind in float, shared by the units of the kind.
    pub fn saved(&self, choice: &Choice, cx: &Context<'_>) -> Result<Vec<f64>, PassError> {
        let kinds = self.kinds(choice, usize::MAX);
        let mut others: Vec<_> = kinds.iter().map(|kind| dropping(choice, kind)).collect();
        others.push(vec![false; choice.len()]);
        let mut ratios = self.ratios(choice, &others, cx)?;
        let float = ratios.pop().unwrap_or(1.0);
        let mut saved = vec![0.0; choice.len()];
        for (kind, ratio) in kinds.iter().zip(ratios) {
            kind.iter().for_each(|&unit| saved[unit] = (ratio - 1.0) / float / kind.len() as f64);
        }
        Ok(saved)
    }

    /// The latency of each choice over that of the first.
    fn ratios(&self, first: &Choice, others: &[Choice], cx: &Context<'_>) -> Result<Vec<f64>, PassError> {
        let first = self.candidates.build(first)?;
        // All of them are loaded at the same time.
        let bytes = first.cost(&self.sizes).bytes.max(1) * 8;
        let together = (cx.tools.memory / bytes).clamp(1, 2 * KINDS as u64) as usize;
        let mut ratios = vec![];
        for part in others.chunks(together) {
            let build = |choice: &Choice| match choice.contains(&true) {
                true => self.candidates.build(choice),
                false => Ok(self.candidates.plain.clone()),
            };
            let models = part.iter().map(build).collect::<Result<Vec<_>, _>>()?;
            let models: Vec<&Model> = std::iter::once(&first).chain(&models).collect();
            ratios.extend(self.measure(&models, cx)?.into_iter().skip(1).map(|spread| spread.median));
        }
        Ok(ratios)
    }

    /// The latency of each model over that of the first.
    fn measure(&self, models: &[&Model], cx: &Context<'_>) -> Result<Vec<Spread>, PassError> {
        timing::ratios(cx.tools, &self.sizes, models)
    }

    /// The chosen units by operator and shape, in the order of the first of each; neighbors together if there are
    /// more than `most` kinds of layers.
    fn kinds(&self, choice: &Choice, most: usize) -> Vec<Vec<usize>> {
        let graph = &self.candidates.plain.graph;
        let mut kinds: Vec<(String, Vec<usize>)> = vec![];
        for unit in (0..choice.len()).filter(|&unit| choice[unit]) {
            let at = graph.at(self.candidates.node(unit));
            let values = at.inputs().into_iter().take(2).flatten().chain(at.output());
            let shapes: Vec<_> = values.map(|v| v.value().fact.to_string()).collect();
            let groups = at.int("group", 1);
            let kind = format!("{} {groups} {}", at.op(), shapes.join(" "));
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, units)) => units.push(unit),
                None => kinds.push((kind, vec![unit])),
            }
        }
        let products = kinds.iter().filter(|(_, units)| self.candidates.is_product(units[0])).count();
        let (layers, products) = kinds.split_at(kinds.len() - products);
        let joined = |kinds: &[(String, Vec<usize>)], most: usize| -> Vec<Vec<usize>> {
            let parts = kinds.chunks(kinds.len().div_ceil(most).max(1));
            parts.map(|part| part.iter().flat_map(|(_, units)| units.clone()).collect()).collect()
        };
        [joined(layers, most), joined(products, most.div_ceil(6))].concat()
    }
}

/// The choice without these units.
fn dropping(choice: &Choice, units: &[usize]) -> Choice {
    let mut choice = choice.clone();
    units.iter().for_each(|&unit| choice[unit] = false);
    choice
}
