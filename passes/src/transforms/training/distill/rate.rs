//! The choice of the rate by short trials.

/// Factor between the rates that are tried.
const FACTOR: f64 = 3.0;
/// The most trials.
const TRIALS: usize = 6;

/// Climbs from `first` in the direction in which the result of `trial`, a drift, falls. Returns the best rate, or
/// `None` if no trial ended.
///
/// The drift has one minimum in the rate as far as short trials show: too small a rate changes nothing, too large a
/// one destroys what was there.
pub fn choose<E>(first: f64, mut trial: impl FnMut(f64) -> Result<Option<f64>, E>) -> Result<Option<f64>, E> {
    let Some(drift) = trial(first)? else { return Ok(None) };
    // Any result is better than none.
    let drift = if drift.is_nan() { f64::INFINITY } else { drift };
    let (mut best, mut tried) = ((first, drift), 1);
    for factor in [FACTOR, 1.0 / FACTOR] {
        let (start, mut rate) = (best, best.0);
        while tried < TRIALS {
            rate *= factor;
            let Some(drift) = trial(rate)? else { return Ok(Some(best.0)) };
            tried += 1;
            if drift.is_nan() || drift >= best.1 {
                break;
            }
            best = (rate, drift);
        }
        // Both directions are tried only if the first rate is the best of those above.
        if best.0 != start.0 {
            break;
        }
    }
    Ok(Some(best.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(first: f64, drift: impl Fn(f64) -> f64) -> (f64, usize) {
        let mut count = 0;
        let best = choose(first, |rate| {
            count += 1;
            Ok::<_, ()>(Some(drift(rate)))
        });
        (best.unwrap().unwrap(), count)
    }

    #[test]
    fn climbs_up_and_down() {
        let around = |best: f64| move |rate: f64| (rate / best).ln().abs();
        assert_eq!(found(1.0, around(1.0)), (1.0, 3));
        assert_eq!(found(1.0, around(10.0)), (9.0, 4));
        let (rate, count) = found(1.0, around(0.1));
        assert!((rate - 1.0 / 9.0).abs() < 1e-12 && count == 5);
    }

    #[test]
    fn rates_that_diverge_are_not_chosen() {
        let (rate, _) = found(1.0, |rate| if rate > 0.5 { f64::NAN } else { 1.0 });
        assert!(rate < 0.5);
        let (rate, _) = found(0.1, |rate| if rate > 0.2 { f64::NAN } else { 1.0 / rate });
        assert_eq!(rate, 0.1);
    }

    #[test]
    fn an_end_of_the_trials_keeps_the_best() {
        let mut results = vec![None, Some(1.0), Some(2.0)];
        assert_eq!(choose(1.0, |_| Ok::<_, ()>(results.pop().unwrap())), Ok(Some(3.0)));
        assert_eq!(choose(1.0, |_| Ok::<_, ()>(None)), Ok(None));
    }
}
