//! Clocks that time runs of a model.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// A clock. Its readings alone have no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The time that passes.
    Wall,
    /// The processor time of the calling thread: what passes on a machine that does nothing else. A run on one thread
    /// takes as long whatever other processes do, so that choices by latency do not depend on them. Where the system
    /// does not tell, the time that passes.
    Thread,
}

impl Clock {
    /// Returns the reading of this clock.
    pub fn now(self) -> Duration {
        match self {
            Self::Thread => thread_time().unwrap_or_else(wall_time),
            Self::Wall => wall_time(),
        }
    }

    /// Returns the time since an earlier reading.
    pub fn since(self, start: Duration) -> Duration {
        self.now().saturating_sub(start)
    }
}

fn wall_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

#[cfg(unix)]
fn thread_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().ok()
}

#[cfg(not(unix))]
fn thread_time() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn waiting_takes_no_processor_time() {
        let waited = |clock: Clock| {
            let start = clock.now();
            std::thread::sleep(Duration::from_millis(50));
            clock.since(start)
        };
        assert!(waited(Clock::Wall) >= Duration::from_millis(50));
        assert!(waited(Clock::Thread) < Duration::from_millis(25));
    }

    #[test]
    fn work_takes_time_on_both_clocks() {
        for clock in [Clock::Wall, Clock::Thread] {
            let (start, wall) = (clock.now(), Clock::Wall.now());
            while Clock::Wall.since(wall) < Duration::from_millis(30) {}
            assert!(clock.since(start) > Duration::ZERO, "{clock:?}");
        }
    }
}
