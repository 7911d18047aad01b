//! Chooses the candidates that are tried.

use super::{
    Interruptible, SearchEnd, SearchOptions, Trial, TrialOutcome,
    family::{Combination, FAMILIES, TRAINING},
    journal::Journal,
    judge::Judge,
    limit::{Law, Limit, Quantity, below},
    predict::{Prediction, Predictor},
    trial::Measured,
    workshop::{Declined, Workshop},
};
use crate::{Error, Event};
use pare_graph::{Model, onnx};
use pare_passes::transforms::training::Distill;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    f64::consts::PI,
    sync::Arc,
    time::{Duration, Instant},
};

/// Least expected improvement of the logarithm of the cost that is worth a measurement.
const WORTHWHILE: f64 = 2e-3;
/// The forward passes that a sample costs each time that it is shown in training: three to seven, and as many again
/// for the search for a rate and the samples that are held out.
const TRAINING_PASSES: f64 = 10.0;
/// A family is not made stronger once its loss is this multiple of a limit.
const BEYOND: f64 = 2.0;
/// The metric is measured of candidates whose predicted drop is at most this multiple of the limit.
const PROMISING: f64 = 1.5;
/// The drift up to which outputs are those of the original but for rounding, so that a metric of them is not measured.
const EQUAL: f64 = 1e-9;
/// Trials on a part of the samples that are tried as results if there are no others.
const FINALISTS: usize = 4;
/// The share of the budget after which no family is made stronger alone.
const ALONE: f64 = 0.3;
/// The share of the budget after which no more trials start, by fidelity.
const DEADLINES: [f64; 3] = [0.35, 0.6, 1.0];
const DEADLINES_WITHOUT_TRAINING: [f64; 3] = [0.5, 1.0, 1.0];
const TOO_LONG: &str = "it takes longer than the budget has time for";

/// The effort that a candidate is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fidelity {
    /// Calibrated on a part of the samples.
    Part,
    /// Calibrated on all samples.
    All,
    /// Also trained on them.
    Trained,
}

impl Fidelity {
    pub const ALL: [Self; 3] = [Self::Part, Self::All, Self::Trained];

    /// The position of its workshop.
    fn workshop(self) -> usize {
        usize::from(self != Self::Part)
    }
}

/// The times after which no more trials start, by fidelity.
pub(super) fn deadlines(start: Instant, budget: Duration, trains: bool) -> [Instant; 3] {
    let shares = if trains { DEADLINES } else { DEADLINES_WITHOUT_TRAINING };
    shares.map(|share| start + budget.mul_f64(share))
}

/// A search in progress.
pub(super) struct Explorer<'e> {
    pub options: &'e SearchOptions,
    pub judge: Judge<'e>,
    /// With a part of the samples, and with all.
    pub workshops: [Workshop<'e>; 2],
    pub fidelity: Fidelity,
    pub journal: Journal,
    pub limits: Vec<Limit>,
    pub families: Vec<usize>,
    pub trials: Vec<Trial>,
    /// The pipelines of candidates, by the number of their samples and their hash.
    pub made: HashMap<(usize, [u8; 32]), Combination>,
    pub start: Instant,
    /// The times after which no more trials start, by fidelity.
    pub deadlines: [Instant; 3],
    /// The time that making and comparing the result takes.
    pub reserve: Duration,
    pub interruptible: Arc<Interruptible>,
    /// Trials of earlier searches.
    pub resumed: usize,
    pub end: SearchEnd,
}

impl Explorer<'_> {
    /// Tries candidates until time is up, or none is promising.
    pub fn explore(&mut self) -> Result<(), Error> {
        let done = self.try_families().and_then(|()| {
            self.try_combinations()?;
            self.fidelity = Fidelity::All;
            self.try_combinations()?;
            if self.families.contains(&TRAINING) {
                self.fidelity = Fidelity::Trained;
                self.try_combinations()?;
                // If no training is worthwhile, the remaining time is for further combinations without it.
                self.deadlines = [self.end_of_budget(); 3];
                self.fidelity = Fidelity::All;
                self.try_combinations()?;
            }
            Ok(())
        });
        match done {
            // The best so far is the result.
            Err(Error::Cancelled) if !self.trials.is_empty() => {
                self.end = SearchEnd::Cancelled;
                Ok(())
            }
            other => other,
        }
    }

    /// Returns whether the time for trials of this fidelity is up.
    fn is_over(&mut self) -> bool {
        let deadline = self.deadlines[self.fidelity as usize];
        let now = Instant::now();
        // The first of a fidelity takes at least as long as those before.
        let mut alike = longest(self.of(self.fidelity)).max(longest(self.trials.iter().rev().take(1)));
        if self.fidelity == Fidelity::Trained {
            alike = alike.max(longest(self.of(Fidelity::All)) + self.training());
        }
        let over = now >= deadline || now + alike >= self.latest();
        if over && self.deadlines.last() == Some(&deadline) {
            self.end = SearchEnd::Budget;
        }
        over
    }

    /// The time that training takes.
    fn training(&self) -> Duration {
        let samples = self.samples(Fidelity::Trained);
        let shown = samples as f64 * Distill::default_epochs(samples);
        self.judge.time_per_sample().mul_f64(TRAINING_PASSES * shown)
    }

    /// The seconds that a candidate takes: those of its families alone, together.
    fn seconds(&self, combination: Combination) -> f64 {
        let least = self.trials.first().map_or(0.0, |trial| trial.seconds);
        let alone = |(family, strength): (usize, u32)| {
            let singles = self.of(Fidelity::Part).filter_map(|trial| {
                let (other, at) = trial.strengths.as_single()?;
                (other == family).then_some((at.abs_diff(strength), trial.seconds))
            });
            singles.min_by_key(|(distance, _)| *distance).map_or(0.0, |(_, seconds)| seconds - least)
        };
        least + combination.parts().map(alone).filter(|&more| more > 0.0).sum::<f64>()
    }

    /// Gives the budget to candidates without training if there is no time for it, unless it is asked for. Whether one
    /// may start is decided again by [`Self::is_over`].
    fn plan_training(&mut self) {
        let [.., all, _] = self.deadlines;
        let is_asked_for = !self.options.families.is_empty();
        if !is_asked_for && self.families.contains(&TRAINING) && all + self.training() > self.latest() {
            self.families.retain(|&family| family != TRAINING);
            self.deadlines = deadlines(self.start, self.options.budget, false);
        }
    }

    /// The time at which a trial has to be over, so that the result is there within the budget.
    fn latest(&self) -> Instant {
        self.end_of_budget().checked_sub(self.reserve).unwrap_or_else(Instant::now)
    }

    fn end_of_budget(&self) -> Instant {
        self.start + self.options.budget
    }

    /// Returns whether the noise of a limit is known.
    pub fn has_known_noise(&self) -> bool {
        self.limits.iter().any(|l| matches!(l.quantity, Quantity::AccuracyDrop | Quantity::Disagreement))
    }

    /// Each family alone, all of them mildly before one is made stronger. The first trial is `safe`.
    fn try_families(&mut self) -> Result<(), Error> {
        self.attempt(Combination::default())?;
        self.check_limits_are_measured()?;
        self.plan_training();
        // The last family takes the least time.
        let alone = self.families.iter().copied().filter(|&family| family != TRAINING);
        let mut rising: Vec<_> = alone.rev().collect();
        for level in 0.. {
            let mut next = vec![];
            for family in rising {
                let Some(&strength) = FAMILIES[family].ladder.get(level) else { continue };
                if self.is_over() || (level > 0 && self.start.elapsed() >= self.options.budget.mul_f64(ALONE))
                {
                    return Ok(());
                }
                match self.attempt(Combination::single(family, strength))? {
                    TrialOutcome::Measured(measured) if !self.is_far_beyond(&measured) => next.push(family),
                    _ => {}
                }
            }
            if next.is_empty() {
                break;
            }
            rising = next;
        }
        Ok(())
    }

    /// The combination with the largest expected improvement, again and again.
    fn try_combinations(&mut self) -> Result<(), Error> {
        while !self.is_over() {
            let Some(next) = self.most_promising() else { break };
            self.attempt(next)?;
        }
        Ok(())
    }

    /// An error if a limit is on a quantity that cannot be measured of this model on these samples.
    fn check_limits_are_measured(&self) -> Result<(), Error> {
        let measured = match self.trials.first().map(|trial| &trial.outcome) {
            Some(TrialOutcome::Measured(measured)) => measured,
            Some(TrialOutcome::Skipped(why)) => {
                return Err(Error::invalid(format!("`safe` makes no candidate: {why}")));
            }
            None => return Ok(()),
        };
        for limit in &self.limits {
            let message = match limit.quantity {
                Quantity::AccuracyDrop => "the samples have no `labels`, so accuracy cannot be measured",
                Quantity::Disagreement => "no output holds class scores, so agreement cannot be measured",
                _ => continue,
            };
            if limit.loss(measured).is_none() {
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    fn is_far_beyond(&self, measured: &Measured) -> bool {
        let beyond = |limit: &Limit| limit.loss(measured).is_some_and(|loss| !(loss <= BEYOND * limit.bound));
        !measured.drift.is_finite() || self.limits.iter().any(beyond)
    }

    /// Makes and measures a candidate, or finds it in the journal.
    fn attempt(&mut self, combination: Combination) -> Result<TrialOutcome, Error> {
        self.options.environment.check_cancelled()?;
        let pipeline = combination.to_string();
        let samples = self.samples(self.fidelity);
        let known = self.journal.find(&pipeline, samples).filter(|trial| self.is_complete(trial)).cloned();
        let trial = if let Some(trial) = known {
            self.resumed += 1;
            trial
        } else {
            let start = Instant::now();
            // Without the first trial there is no search.
            self.interruptible.allow((!self.trials.is_empty()).then(|| self.latest()));
            let outcome = self.measure(combination);
            let is_late = matches!(outcome, Err(Error::Cancelled)) && self.interruptible.is_late();
            self.interruptible.allow(None);
            let skipped = |why: &str| Err(Declined { why: why.into(), infeasible: None });
            let (outcome, infeasible) = match if is_late { skipped(TOO_LONG) } else { outcome? } {
                Ok(measured) => (TrialOutcome::Measured(measured), None),
                Err(Declined { why, infeasible }) => (TrialOutcome::Skipped(why), infeasible),
            };
            let seconds = start.elapsed().as_secs_f64();
            let trial = Trial { pipeline, strengths: combination, samples, seconds, infeasible, outcome };
            // Another search may have more time.
            if !is_late {
                self.journal.add(&trial);
            }
            trial
        };
        let outcome = trial.outcome.clone();
        self.trials.push(trial);
        self.announce();
        Ok(outcome)
    }

    /// A metric may not have been measured under other limits.
    fn is_complete(&self, trial: &Trial) -> bool {
        let Some(measured) = trial.measured().filter(|_| self.options.metric.is_some()) else { return true };
        measured.metric_drop.is_some() || !self.is_promising(measured)
    }

    fn measure(&mut self, combination: Combination) -> Result<Result<Measured, Declined>, Error> {
        let candidate = match self.workshops[self.fidelity.workshop()].make(combination)? {
            Ok(candidate) => candidate,
            Err(declined) => return Ok(Err(declined)),
        };
        let skipped = |why: String| Ok(Err(Declined { why, infeasible: None }));
        if let Some(same) = self.made_before(&candidate, combination) {
            return skipped(format!("it makes the same model as `{same}`"));
        }
        let measured = self.judge(&candidate);
        self.options.environment.check_cancelled()?;
        match measured {
            Ok(measured) => Ok(Ok(measured)),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            // The original was measured, so this candidate alone is at fault.
            Err(error) => skipped(error.to_string()),
        }
    }

    /// Returns whether a pass made nothing of a combination that is at most as strong.
    fn is_infeasible(&self, combination: Combination) -> bool {
        self.trials.iter().filter_map(|trial| trial.infeasible).any(|weaker| weaker.is_within(combination))
    }

    /// The other pipeline that made the same candidate of the same samples, if one did. A model without streams loses the
    /// same channels with and without them.
    fn made_before(&mut self, candidate: &Model, combination: Combination) -> Option<Combination> {
        // A model beyond the limit of one message has no bytes to be recognised by.
        let bytes = onnx::to_bytes(candidate).ok()?;
        let key = (self.samples(self.fidelity), Sha256::digest(bytes).into());
        let first = *self.made.entry(key).or_insert(combination);
        (first != combination).then_some(first)
    }

    /// Measures a candidate.
    pub fn judge(&self, candidate: &Model) -> Result<Measured, Error> {
        let mut measured = self.judge.measure(candidate)?;
        if self.judge.original_metric().is_some() && measured.drift <= EQUAL {
            measured.metric_drop = Some(0.0);
        } else if self.is_promising(&measured) {
            measured.metric_drop = self.judge.metric_drop(candidate)?;
        }
        Ok(measured)
    }

    /// Returns whether the metric of a candidate is worth a measurement.
    fn is_promising(&self, measured: &Measured) -> bool {
        let Some(limit) = self.limits.iter().find(|limit| limit.quantity == Quantity::MetricDrop) else {
            return false;
        };
        let others = self.limits.iter().filter(|limit| limit.quantity != Quantity::MetricDrop);
        let holds =
            others.clone().all(|limit| limit.loss(measured).is_none_or(|loss| loss <= BEYOND * limit.bound));
        holds
            && self
                .law(limit)
                .is_none_or(|law| law.loss(measured.drift) <= PROMISING * limit.bound.max(1e-12))
    }

    /// The measured trials of a fidelity.
    fn measured(&self, fidelity: Fidelity) -> Vec<(Combination, &Measured)> {
        self.of(fidelity).filter_map(|trial| Some((trial.strengths, trial.measured()?))).collect()
    }

    /// The number of samples that trials of a fidelity are calibrated on.
    fn samples(&self, fidelity: Fidelity) -> usize {
        self.workshops[fidelity.workshop()].samples()
    }

    /// The trials of a fidelity. If the samples are too few to use a part of them, `Part` and `All` are the same.
    fn of(&self, fidelity: Fidelity) -> impl Iterator<Item = &Trial> {
        let (samples, trained) = (self.samples(fidelity), fidelity == Fidelity::Trained);
        self.trials
            .iter()
            .filter(move |trial| trial.samples == samples && trial.strengths.is_trained() == trained)
    }

    /// Why a family makes nothing, or nothing stronger.
    pub fn refusal(&self, family: usize) -> Option<&str> {
        let shows = |trial: &&Trial| match trial.strengths.as_single() {
            Some((only, _)) => only == family,
            // Never alone.
            None => family == TRAINING && trial.strengths.is_trained(),
        };
        self.trials.iter().filter(shows).find_map(Trial::skipped)
    }

    fn law(&self, limit: &Limit) -> Option<Law> {
        limit.law(self.trials.iter().filter_map(Trial::measured), self.judge.samples)
    }

    /// The probability that the limits hold for other samples, if all hold for these with the confidence that is
    /// asked for; 1 if the noise of no limit is known.
    pub fn accepted(&self, measured: &Measured) -> Option<f64> {
        let mut least = 1.0_f64;
        for limit in &self.limits {
            let estimate = limit.estimate(measured, self.law(limit), self.judge.samples)?;
            let holds = limit.loss(measured)? <= limit.bound;
            let confidence = limit.confidence(estimate).unwrap_or(1.0);
            if !holds || confidence < self.options.confidence {
                return None;
            }
            least = least.min(confidence);
        }
        Some(least)
    }

    /// The trials of these fidelities that keep the limits, the cheapest first.
    fn kept(&self, fidelities: &[Fidelity]) -> Vec<(&Trial, f64)> {
        let trials = fidelities.iter().flat_map(|&fidelity| self.of(fidelity));
        let mut kept: Vec<_> = trials
            .filter_map(|trial| {
                let measured = trial.measured()?;
                self.accepted(measured).map(|_| (trial, measured.cost))
            })
            .collect();
        kept.sort_by(|a, b| a.1.total_cmp(&b.1));
        kept
    }

    /// The trials that the result is taken from, in this order: the cheapest that keep the limits.
    pub fn finalists(&self) -> Vec<&Trial> {
        let mut kept = self.kept(&[Fidelity::All, Fidelity::Trained]);
        if kept.is_empty() {
            kept = self.kept(&[Fidelity::Part]);
            kept.truncate(FINALISTS);
        }
        let trials = kept.into_iter().map(|(trial, _)| trial);
        trials.filter(|trial| trial.strengths != Combination::default()).collect()
    }

    /// The combination with the largest expected improvement, if one is worthwhile: at first in a second, later whatever
    /// it takes. With the remaining share `α` of the budget, the improvement is divided by `seconds^α` (Lee et al. 2020,
    /// Cost-aware Bayesian optimization, section 3.2).
    fn most_promising(&self) -> Option<Combination> {
        let predictor = Predictor::new(Fidelity::ALL.map(|fidelity| self.measured(fidelity)));
        let base = self.trials.first()?.measured()?.cost.ln();
        let rival = self.kept(self.rivals()).first().map_or(0.0, |(_, cost)| cost.ln() - base);
        // The drift at which each limit is reached.
        let bounds: Vec<_> = self
            .limits
            .iter()
            .filter_map(|limit| match limit.quantity {
                Quantity::Drift => Some((limit.bound, 0.0)),
                _ => self.law(limit).map(|law| law.drift(limit.bound)),
            })
            .collect();
        let probability = |p: &Prediction| {
            let kept = bounds.iter().map(|(drift, error)| {
                below((drift.ln() - p.drift) / p.drift_deviation.hypot(*error).max(1e-6))
            });
            kept.fold(1.0, f64::min)
        };
        let score = |combination: Combination| {
            let p = predictor.predict_with(self.fidelity, combination);
            expected_improvement(rival - p.cost, p.cost_deviation) * probability(&p)
        };
        let remaining = 1.0 - self.start.elapsed().div_duration_f64(self.options.budget).min(1.0);
        let mut best = (0.0, None);
        for combination in predictor.grid() {
            let score = score(combination);
            if score <= WORTHWHILE {
                continue;
            }
            let made = combination.with_training(self.fidelity == Fidelity::Trained);
            let rate = score / self.seconds(combination).max(1e-3).powf(remaining);
            if rate > best.0
                && !self.is_infeasible(made)
                && !self.of(self.fidelity).any(|trial| trial.strengths == made)
            {
                best = (rate, Some(made));
            }
        }
        best.1
    }

    /// The fidelities of the trials that the next one has to be better than.
    fn rivals(&self) -> &'static [Fidelity] {
        match self.fidelity {
            Fidelity::Part => &[Fidelity::Part],
            Fidelity::All => &[Fidelity::All],
            Fidelity::Trained => &[Fidelity::All, Fidelity::Trained],
        }
    }

    /// Reports the progress.
    fn announce(&self) {
        let Some(trial) = self.trials.last() else { return };
        let best = self.kept(self.rivals()).first().map(|(_, cost)| *cost);
        self.options.environment.progress.event(&Event::Tried { trial, number: self.trials.len(), best });
    }
}

/// The time of the longest of these trials.
fn longest<'t>(trials: impl Iterator<Item = &'t Trial>) -> Duration {
    let seconds = trials.map(|trial| trial.seconds).max_by(f64::total_cmp).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// The mean of `max(0, x)` for a normal variable.
fn expected_improvement(mean: f64, deviation: f64) -> f64 {
    let z = mean / deviation;
    mean * below(z) + deviation * (-z * z / 2.0).exp() / (2.0 * PI).sqrt()
}
