//! Latency of contenders that run on one machine at the same time.
//!
//! Every contender runs once per round, and every other round is reversed, so that a change of the machine's
//! speed affects all alike. Ratios and wins are computed within a round: a slow round cancels out. The
//! stopwatch knows no engine; contenders report their own times.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// The number that summarises the runs of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimator {
    /// The median: robust against single slow runs.
    Median,
    /// The minimum: other load of the machine only ever adds time.
    Minimum,
}

/// A measurement of several contenders.
#[derive(Clone, Debug)]
pub struct Stopwatch {
    /// Runs of each contender before the first round; at least one takes place.
    pub warm_up: usize,
    /// Seconds for which each contender runs in a round, as far as `runs` allows.
    pub turn: f64,
    /// Fewest and most runs in a round.
    pub runs: RangeInclusive<usize>,
    /// Least number of rounds.
    pub rounds: usize,
    /// Least total time of all rounds.
    pub min_time: Duration,
    /// Time after which no further round starts, whatever `rounds` and `min_time` are.
    pub max_time: Duration,
    /// Summary of the runs of a round.
    pub estimator: Estimator,
}

impl Default for Stopwatch {
    /// 20 rounds, at least 2 s and at most 1 min; turns of 1 ms.
    fn default() -> Self {
        Self {
            warm_up: 3,
            turn: 1e-3,
            runs: 1..=10_000,
            rounds: 20,
            min_time: Duration::from_secs(2),
            max_time: Duration::from_mins(1),
            estimator: Estimator::Median,
        }
    }
}

/// Latency of each contender, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings {
    /// Seconds per run.
    pub seconds: Vec<Spread>,
    /// Seconds over those of the first contender in the same round; 1 for the first.
    pub ratios: Vec<Spread>,
    /// Rounds in which the contender was faster than the first.
    pub wins: Vec<usize>,
    /// Rounds measured.
    pub rounds: usize,
}

/// Minimum, median and quartiles of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Minimum.
    pub min: f64,
    /// First quartile.
    pub low: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub high: f64,
}

impl Spread {
    /// The spread of `values`, interpolated linearly; NaN without values.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
            let position = share * last as f64;
            let (below, part) = (position.floor() as usize, position.fract());
            values[below] * (1.0 - part) + values[(below + 1).min(last)] * part
        };
        Self { min: quantile(0.0), low: quantile(0.25), median: quantile(0.5), high: quantile(0.75) }
    }
}

impl Stopwatch {
    /// A measurement of `rounds` rounds, however long they take.
    pub fn rounds(rounds: usize, turn: f64, runs: RangeInclusive<usize>) -> Self {
        Self { turn, runs, rounds, min_time: Duration::ZERO, max_time: Duration::MAX, ..Self::default() }
    }

    /// Measures `contenders`. `time` runs one of them a given number of times and returns the seconds of each
    /// run, or fewer numbers where several runs are timed together.
    ///
    /// # Errors
    /// The first error of `time`.
    pub fn measure<C, E>(
        &self,
        contenders: &mut [C],
        time: impl FnMut(&mut C, usize) -> Result<Vec<f64>, E>,
    ) -> Result<Timings, E> {
        let mut start = None;
        self.measure_by(contenders, time, || start.get_or_insert_with(Instant::now).elapsed())
    }

    /// [`Self::measure`] by a clock that starts at its first reading.
    fn measure_by<C, E>(
        &self,
        contenders: &mut [C],
        mut time: impl FnMut(&mut C, usize) -> Result<Vec<f64>, E>,
        mut elapsed: impl FnMut() -> Duration,
    ) -> Result<Timings, E> {
        let runs = contenders.iter_mut().map(|c| {
            let mut fastest = f64::INFINITY;
            for _ in 0..self.warm_up.max(1) {
                fastest = time(c, 1)?.into_iter().fold(fastest, f64::min);
            }
            let wanted = (self.turn / fastest.max(1e-9)).ceil() as usize;
            Ok(wanted.clamp(*self.runs.start(), *self.runs.end()))
        });
        let runs = runs.collect::<Result<Vec<_>, E>>()?;
        let mut times = vec![vec![]; contenders.len()];
        let mut rounds = 0;
        let mut spent = elapsed();
        while rounds == 0 || (spent < self.max_time && (rounds < self.rounds || spent < self.min_time)) {
            let mut order: Vec<_> = (0..contenders.len()).collect();
            if rounds % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let round = Spread::of(time(&mut contenders[i], runs[i])?);
                times[i].push(match self.estimator {
                    Estimator::Median => round.median,
                    Estimator::Minimum => round.min,
                });
            }
            rounds += 1;
            spent = elapsed();
        }
        Ok(Timings::of(times, rounds))
    }
}

impl Timings {
    /// `times[c][r]`: seconds per run of contender `c` in round `r`.
    fn of(times: Vec<Vec<f64>>, rounds: usize) -> Self {
        let pairs = |own: &[f64]| own.iter().copied().zip(times[0].iter().copied()).collect::<Vec<_>>();
        let ratio = |own: &Vec<f64>| {
            Spread::of(pairs(own).into_iter().map(|(own, first)| own / first.max(1e-12)).collect())
        };
        let wins = |own: &Vec<f64>| pairs(own).into_iter().filter(|(own, first)| own < first).count();
        Self {
            ratios: times.iter().map(ratio).collect(),
            wins: times.iter().map(wins).collect(),
            seconds: times.iter().cloned().map(Spread::of).collect(),
            rounds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times `(milliseconds, log of the runs asked for)` contenders with a clock that only they advance.
    fn measure(stopwatch: &Stopwatch, contenders: &mut [(u64, Vec<usize>)]) -> Timings {
        let clock = std::cell::Cell::new(Duration::ZERO);
        let time = |(millis, log): &mut (u64, Vec<usize>), runs: usize| {
            log.push(runs);
            clock.set(clock.get() + Duration::from_millis(*millis * runs as u64));
            Ok::<_, ()>(vec![*millis as f64 / 1e3; runs])
        };
        stopwatch.measure_by(contenders, time, || clock.get()).unwrap()
    }

    #[test]
    fn reports_seconds_ratios_and_wins() {
        let stopwatch = Stopwatch::rounds(5, 1e-3, 1..=10);
        let timings = measure(&stopwatch, &mut [(8, vec![]), (2, vec![]), (16, vec![])]);
        let all = |x| Spread { min: x, low: x, median: x, high: x };
        assert_eq!(timings.rounds, 5);
        assert_eq!(timings.seconds, [8e-3, 2e-3, 16e-3].map(all));
        assert_eq!(timings.ratios, [1.0, 0.25, 2.0].map(all));
        assert_eq!(timings.wins, [0, 5, 0]);
    }

    #[test]
    fn chooses_runs_by_a_warm_up() {
        let mut contenders = [(1, vec![]), (50, vec![]), (2, vec![])];
        measure(&Stopwatch::rounds(2, 0.02, 3..=15), &mut contenders);
        let logs = contenders.map(|(_, log)| log);
        assert_eq!(logs, [[1, 1, 1, 15, 15], [1, 1, 1, 3, 3], [1, 1, 1, 10, 10]]);
        let mut one = [(0, vec![])];
        measure(&Stopwatch { warm_up: 0, ..Stopwatch::rounds(1, 1.0, 1..=7) }, &mut one);
        assert_eq!(one[0].1, [1, 7]);
    }

    #[test]
    fn ends_by_rounds_and_time() {
        let rounds = |stopwatch: Stopwatch| measure(&stopwatch, &mut [(10, vec![])]).rounds;
        let (ms, ten) =
            (Duration::from_millis, Stopwatch { runs: 1..=1, ..Stopwatch::rounds(10, 1.0, 1..=1) });
        assert_eq!(rounds(ten.clone()), 10);
        assert_eq!(rounds(Stopwatch { min_time: ms(230), ..ten.clone() }), 20);
        assert_eq!(rounds(Stopwatch { max_time: ms(70), ..ten.clone() }), 4);
        assert_eq!(rounds(Stopwatch { max_time: ms(0), ..ten }), 1);
    }

    #[test]
    fn reverses_every_other_round() {
        let mut order = vec![];
        let time = |name: &mut char, runs: usize| {
            order.push(*name);
            Ok::<_, ()>(vec![1.0; runs])
        };
        Stopwatch { warm_up: 1, ..Stopwatch::rounds(3, 0.0, 1..=1) }.measure(&mut ['a', 'b'], time).unwrap();
        assert_eq!(order.iter().collect::<String>(), "ababbaab");
    }

    #[test]
    fn returns_the_first_error() {
        let result = Stopwatch::default().measure(&mut [()], |(), _| Err::<Vec<f64>, _>("no"));
        assert_eq!(result.unwrap_err(), "no");
        assert_eq!(measure(&Stopwatch::rounds(2, 1.0, 1..=1), &mut []).seconds, []);
    }

    #[test]
    fn minimum_ignores_slow_runs() {
        let mut slow = 0.0;
        let time = |(): &mut (), runs: usize| {
            slow += 1.0;
            Ok::<_, ()>((0..runs).map(|i| if i == 0 { 1.0 } else { slow }).collect())
        };
        let stopwatch = Stopwatch { estimator: Estimator::Minimum, ..Stopwatch::rounds(2, 5.0, 1..=5) };
        assert_eq!(stopwatch.measure(&mut [()], time).unwrap().seconds[0].median, 1.0);
    }

    #[test]
    fn interpolates_quartiles() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { min: 1.0, low: 1.75, median: 2.5, high: 3.25 });
        assert_eq!(Spread::of(vec![7.0]), Spread { min: 7.0, low: 7.0, median: 7.0, high: 7.0 });
        assert!(Spread::of(vec![]).median.is_nan());
    }
}
