//! Latency of a model and of its result, side by side.

mod reasons;

pub use reasons::Slowdown;

use crate::{Error, Hint, bench::contenders, environment::LazyEngine, runner::Placement};
use pare_graph::Model;
use pare_passes::Report;
use pare_runtime::{Feed, LoadOptions, ModelSource, Provider, Spread, Stopwatch, Timings, bench as measure};
use serde::Serialize;
use std::time::Duration;

/// The latency of a model and of its result: interleaved rounds, with all optimizations of the engine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// Samples per run, where the models leave it open.
    pub batch: usize,
    /// Threads within one operator.
    pub threads: usize,
    /// The execution provider.
    pub provider: String,
    /// Rounds that were measured.
    pub rounds: usize,
    /// Seconds per run of the original.
    pub before: Quartiles,
    /// Seconds per run of the result.
    pub after: Quartiles,
    /// The time of the original over that of the result in the same round.
    pub speed: Quartiles,
    /// True if the result is slower by more than the noise of the measurement.
    pub slower: bool,
    /// Why it is slower, as far as that is known.
    pub reasons: Vec<Slowdown>,
}

/// Median and quartiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Quartiles {
    /// First quartile.
    pub low: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub high: f64,
}

impl Quartiles {
    fn of(spread: &Spread) -> Self {
        Self { low: spread.low, median: spread.median, high: spread.high }
    }

    /// The quartiles of the reciprocals.
    fn reciprocals(spread: &Spread) -> Self {
        Self { low: 1.0 / spread.high, median: 1.0 / spread.median, high: 1.0 / spread.low }
    }
}

impl Latency {
    fn of(timings: &Timings, batch: usize, threads: usize, provider: &Provider) -> Self {
        let provider = provider.to_string();
        let [before, after] = [0, 1].map(|i| Quartiles::of(&timings.seconds[i]));
        let speed = Quartiles::reciprocals(&timings.ratios[1]);
        let slower = is_slower(timings);
        Self {
            batch,
            threads,
            provider,
            rounds: timings.rounds,
            before,
            after,
            speed,
            slower,
            reasons: vec![],
        }
    }

    /// The remedy of a slower result.
    pub fn hint(&self) -> Option<Hint> {
        let mut remedies = self.reasons.iter().filter_map(Slowdown::hint);
        self.slower.then(|| remedies.next().unwrap_or(Hint::KeepOriginal))
    }
}

/// A smaller slowdown is not reported: the same model, loaded twice, may differ as much by its place in memory.
const MARGIN: f64 = 0.03;

/// The time of a measurement, which slow models need, and that of the second one of a result that seems slower.
const SHORT: Duration = Duration::from_millis(1200);
const LONG: Duration = Duration::from_secs(10);
/// Inputs that are run in turn.
const MAX_FEEDS: usize = 4;

/// Returns true if the second model is slower than the first by more than [`MARGIN`] in the median, and in more
/// rounds than chance allows: if both were equally fast, at least `n/2 + 1.55·√n` of `n` rounds would be lost
/// with a probability of 0.001. So fewer than 10 rounds show nothing.
fn is_slower(timings: &Timings) -> bool {
    let rounds = timings.rounds as f64;
    let lost = (timings.rounds - timings.wins[1]) as f64;
    timings.ratios[1].median > 1.0 + MARGIN && lost >= rounds / 2.0 + 1.55 * rounds.sqrt()
}

/// Measures results against their original.
pub(crate) struct LatencyMeter<'m> {
    pub engine: &'m LazyEngine<'m>,
    pub placement: &'m Placement<'m>,
    /// Threads within one operator.
    pub threads: usize,
    /// Samples per run of the feeds.
    pub batch: usize,
}

impl LatencyMeter<'_> {
    /// 40 rounds, of small models in a fifth of a second; fewer if they take longer than `max_time`.
    fn stopwatch(max_time: Duration) -> Stopwatch {
        Stopwatch { warm_up: 1, max_time, ..Stopwatch::rounds(40, 2e-3, 1..=10_000) }
    }

    fn load_options(&self) -> LoadOptions {
        LoadOptions { threads: self.threads, ..self.engine.load_options() }
    }

    /// Measures both models on `feeds`. A result that seems to be slower is measured again, for longer, and loaded
    /// before the original: the second session finds another memory than the first.
    pub fn compare(&self, original: &Model, result: &Model, feeds: &[Feed]) -> Result<Latency, Error> {
        let models = [self.placement.place(original)?, self.placement.place(result)?];
        let feeds = self.some(feeds, &models[0])?;
        let mut timings = self.time(&models, &feeds, Self::stopwatch(SHORT), false)?;
        if timings.ratios[1].median > 1.0 + MARGIN {
            timings = self.time(&models, &feeds, Self::stopwatch(LONG), true)?;
        }
        Ok(Latency::of(&timings, self.batch, self.threads, &self.load_options().provider))
    }

    /// Some of the feeds, evenly taken from all: as many as a model runs 20 times in the time of a measurement.
    fn some(&self, feeds: &[Feed], model: &ModelSource) -> Result<Vec<Feed>, Error> {
        let once = Stopwatch { warm_up: 1, ..Stopwatch::rounds(1, 0.0, 1..=1) };
        let first = feeds.get(..1).unwrap_or_default();
        let seconds = self.time(std::slice::from_ref(model), first, once, false)?.seconds[0].median;
        let affordable = (SHORT.as_secs_f64() / (20.0 * seconds)) as usize;
        let count = affordable.clamp(1, MAX_FEEDS).min(feeds.len());
        Ok((0..count).map(|i| feeds[i * feeds.len() / count].clone()).collect())
    }

    /// Measures both models, and explains a slower result.
    pub fn report(
        &self,
        original: &Model,
        result: &Model,
        feeds: &[Feed],
        run: &Report,
    ) -> Result<Latency, Error> {
        let mut latency = self.compare(original, result, feeds)?;
        if latency.slower {
            latency.reasons = self.reasons(original, result, run);
        }
        Ok(latency)
    }

    /// Measures the models. `last_first` reverses the order in which they are loaded.
    fn time(
        &self,
        models: &[ModelSource],
        feeds: &[Feed],
        stopwatch: Stopwatch,
        last_first: bool,
    ) -> Result<Timings, Error> {
        let mut order: Vec<_> = models.iter().map(|model| ("the model", model.clone())).collect();
        if last_first {
            order.reverse();
        }
        let mut contenders = contenders(self.engine, &self.load_options(), order, feeds)?;
        if last_first {
            contenders.reverse();
        }
        Ok(measure(&mut contenders, &stopwatch)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two models in rounds of which the second loses some, with this median of the ratio.
    fn timings(rounds: usize, lost: usize, ratio: f64) -> Timings {
        let spread = |x: f64| Spread { min: x, low: x, median: x, high: 2.0 * x };
        let (seconds, ratios) = (vec![spread(1.0), spread(ratio)], vec![spread(1.0), spread(ratio)]);
        Timings { seconds, ratios, wins: vec![0, rounds - lost], rounds }
    }

    #[test]
    fn slower_is_more_than_the_noise() {
        assert!(is_slower(&timings(40, 30, 1.2)));
        assert!(!is_slower(&timings(40, 29, 1.2)), "chance");
        assert!(!is_slower(&timings(40, 40, 1.02)), "the place in memory");
        assert!(is_slower(&timings(10, 10, 1.2)));
        assert!(!is_slower(&timings(9, 9, 1.2)), "too few rounds");
        assert!(!is_slower(&timings(40, 0, 0.8)));
    }

    #[test]
    fn speed_is_the_reciprocal_of_the_ratio() {
        let latency = Latency::of(&timings(40, 40, 1.25), 2, 1, &Provider::default());
        assert_eq!(latency.speed, Quartiles { low: 0.4, median: 0.8, high: 0.8 });
        assert_eq!((latency.before.median, latency.after.median, latency.slower), (1.0, 1.25, true));
        assert_eq!(latency.hint(), Some(Hint::KeepOriginal));
        assert_eq!(Latency::of(&timings(40, 0, 0.8), 2, 1, &Provider::default()).hint(), None);
    }
}
