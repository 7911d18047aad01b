//! Measuring how long models take.
//!
//! Contenders take turns in every round, and every other round in reverse, so that a machine that gets
//! slower or faster meanwhile does so for all. Ratios are taken within a round and only then
//! summarised: what slows a round down cancels out.

use crate::{EngineError, Prepared, Session, Value};
use std::time::{Duration, Instant};

/// When a measurement ends.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Runs of each contender before anything is measured.
    pub warm_up: usize,
    /// Rounds at least.
    pub rounds: usize,
    /// Time to spend on rounds at least, all contenders together.
    pub min_time: Duration,
    /// Time after which no further round is begun, however few there were.
    pub max_time: Duration,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { warm_up: 3, rounds: 20, min_time: Duration::from_secs(2), max_time: Duration::from_secs(60) }
    }
}

/// One model in a measurement.
pub struct Contender {
    session: Box<dyn Session>,
    feeds: Vec<Prepared>,
}

impl Contender {
    /// A loaded model and what it runs on, which is converted now.
    pub fn new(mut session: Box<dyn Session>, feeds: &[Vec<(String, Value)>]) -> Result<Self, EngineError> {
        let feeds = feeds.iter().map(|feed| session.prepare(feed)).collect::<Result<_, _>>()?;
        Ok(Self { session, feeds })
    }

    /// Seconds for one pass over all feeds, `passes` times, per run.
    fn time(&mut self, passes: usize) -> Result<f64, EngineError> {
        let start = Instant::now();
        for _ in 0..passes {
            for feed in &self.feeds {
                self.session.run_prepared(feed)?;
            }
        }
        Ok(start.elapsed().as_secs_f64() / (passes * self.feeds.len()) as f64)
    }
}

/// The middle of many numbers, and where the middle half of them lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of them are smaller.
    pub median: f64,
    /// A quarter of them are smaller.
    pub low: f64,
    /// A quarter of them are larger.
    pub high: f64,
}

impl Spread {
    /// Of `values`, at least one.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (below, part) = (place.floor() as usize, place.fract());
            let above = (below + 1).min(values.len() - 1);
            values[below] * (1.0 - part) + values[above] * part
        };
        Self { median: at(0.5), low: at(0.25), high: at(0.75) }
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// Seconds a run of each contender.
    pub seconds: Vec<Spread>,
    /// Seconds of each contender over those of the first in the same round; the first is 1.
    pub ratios: Vec<Spread>,
    /// Rounds measured.
    pub rounds: usize,
}

/// A measurement shorter than this is repeated within a round, for the clock's sake.
const SHORTEST: f64 = 1e-3;

/// Measure `contenders` against each other.
///
/// # Errors
/// The first one that a contender meets; [`EngineError::Run`] if there is nothing to measure.
pub fn bench(contenders: &mut [Contender], options: &BenchOptions) -> Result<BenchReport, EngineError> {
    if contenders.is_empty() || contenders.iter().any(|contender| contender.feeds.is_empty()) {
        let (engine, reason) = ("the benchmark".to_owned(), "there are no samples".to_owned());
        return Err(EngineError::Run { engine, reason });
    }
    let mut passes = vec![1; contenders.len()];
    for (contender, passes) in contenders.iter_mut().zip(&mut passes) {
        let mut last = f64::INFINITY;
        for _ in 0..options.warm_up.max(1) {
            last = contender.time(1)? * contender.feeds.len() as f64;
        }
        *passes = (SHORTEST / last.max(1e-9)).ceil().clamp(1.0, 1e4) as usize;
    }

    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
    let start = Instant::now();
    let mut rounds = 0;
    while rounds == 0
        || (start.elapsed() < options.max_time
            && (rounds < options.rounds || start.elapsed() < options.min_time))
    {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if rounds % 2 == 1 {
            order.reverse();
        }
        for place in order {
            times[place].push(contenders[place].time(passes[place])?);
        }
        rounds += 1;
    }
    let ratios = times.iter().map(|own| {
        let first = times[0].iter().map(|first| first.max(1e-12));
        Spread::of(own.iter().zip(first).map(|(own, first)| own / first).collect())
    });
    Ok(BenchReport { ratios: ratios.collect(), seconds: times.into_iter().map(Spread::of).collect(), rounds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, FakeEngine, feed};
    use crate::{Engine, LoadOptions, ModelSource};

    fn contender(takes: u64, feeds: usize) -> Contender {
        let takes = Duration::from_millis(takes);
        let engine = FakeEngine::of([("m", Fake { takes, fails_at: Some(100.0), ..Fake::adding(0.0) })]);
        let session = engine.load(&ModelSource::bytes("m"), &LoadOptions::default()).unwrap();
        Contender::new(session, &vec![feed("x", &[1.0]); feeds]).unwrap()
    }

    #[test]
    fn the_slower_one_is_found_out() {
        let options = BenchOptions { min_time: Duration::ZERO, rounds: 5, ..BenchOptions::default() };
        let report = bench(&mut [contender(2, 2), contender(8, 2)], &options).unwrap();
        assert_eq!((report.rounds, report.ratios[0]), (5, Spread { median: 1.0, low: 1.0, high: 1.0 }));
        assert!(report.seconds[0].median >= 0.002, "{report:?}");
        assert!(report.ratios[1].median > 1.5, "{report:?}");
    }

    #[test]
    fn it_ends_in_time_and_repeats_what_is_short() {
        let options = BenchOptions {
            min_time: Duration::from_millis(30),
            max_time: Duration::from_millis(60),
            rounds: usize::MAX,
            warm_up: 0,
        };
        let report = bench(&mut [contender(0, 1)], &options).unwrap();
        assert!(report.rounds >= 1 && report.seconds[0].median < 1e-3, "{report:?}");
    }

    #[test]
    fn nothing_to_measure_is_an_error() {
        assert!(bench(&mut [], &BenchOptions::default()).is_err());
        assert!(bench(&mut [contender(0, 0)], &BenchOptions::default()).is_err());
    }

    #[test]
    fn quartiles_are_interpolated() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { median: 2.5, low: 1.75, high: 3.25 });
        assert_eq!(Spread::of(vec![7.0]), Spread { median: 7.0, low: 7.0, high: 7.0 });
    }
}
