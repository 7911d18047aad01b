//! Latency of models, measured by a [`Stopwatch`].

use crate::{EngineError, Prepared, Session, Value};
use pare_graph::evaluate::stopwatch::{Stopwatch, Timings};
use std::time::Instant;

/// One model in a measurement.
pub struct Contender {
    session: Box<dyn Session>,
    feeds: Vec<Prepared>,
}

impl Contender {
    /// A loaded model and the feeds it runs on, which are converted here.
    ///
    /// # Errors
    /// A feed that does not fit the model's inputs.
    pub fn new(mut session: Box<dyn Session>, feeds: &[Vec<(String, Value)>]) -> Result<Self, EngineError> {
        let feeds = feeds.iter().map(|feed| session.prepare(feed)).collect::<Result<_, _>>()?;
        Ok(Self { session, feeds })
    }

    /// Seconds per run, the mean of all passes through the feeds that `runs` runs need. The clock is read once
    /// for all: single runs may be too short for it.
    fn time(&mut self, runs: usize) -> Result<Vec<f64>, EngineError> {
        let passes = runs.div_ceil(self.feeds.len());
        let start = Instant::now();
        for _ in 0..passes {
            for feed in &self.feeds {
                self.session.run_prepared(feed)?;
            }
        }
        Ok(vec![start.elapsed().as_secs_f64() / (passes * self.feeds.len()) as f64])
    }
}

/// Measures `contenders` against each other.
///
/// # Errors
/// The first error of a contender; [`EngineError::Run`] if there is nothing to run.
pub fn bench(contenders: &mut [Contender], stopwatch: &Stopwatch) -> Result<Timings, EngineError> {
    if contenders.is_empty() || contenders.iter().any(|contender| contender.feeds.is_empty()) {
        let (engine, reason) = ("the benchmark".to_owned(), "there are no samples".to_owned());
        return Err(EngineError::Run { engine, reason });
    }
    stopwatch.measure(contenders, Contender::time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, FakeEngine, feed};
    use crate::{Engine, LoadOptions, ModelSource};
    use std::sync::atomic::Ordering;

    /// A contender with this many feeds, and the number of its runs.
    fn contender(feeds: usize) -> (Contender, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        let fake = Fake::adding(0.0);
        let runs = fake.runs.clone();
        let engine = FakeEngine::of([("m", fake)]);
        let session = engine.load(&ModelSource::bytes("m"), &LoadOptions::default()).unwrap();
        (Contender::new(session, &vec![feed("x", &[1.0]); feeds]).unwrap(), runs)
    }

    #[test]
    fn runs_all_feeds_equally_often() {
        let ((a, a_runs), (b, b_runs)) = (contender(1), contender(3));
        let stopwatch = Stopwatch { warm_up: 1, ..Stopwatch::rounds(2, 1.0, 4..=4) };
        let timings = bench(&mut [a, b], &stopwatch).unwrap();
        assert_eq!((timings.rounds, timings.seconds.len()), (2, 2));
        // 4 runs are 2 passes through 3 feeds.
        assert_eq!((a_runs.load(Ordering::Relaxed), b_runs.load(Ordering::Relaxed)), (1 + 2 * 4, 3 + 2 * 6));
    }

    #[test]
    fn rejects_empty_measurements() {
        assert!(bench(&mut [], &Stopwatch::default()).is_err());
        assert!(bench(&mut [contender(0).0], &Stopwatch::default()).is_err());
    }
}
