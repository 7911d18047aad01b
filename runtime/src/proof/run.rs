//! Runs of the original and the candidate on the same samples.

use super::{
    noise::{Draws, Noise, add_floats, get},
    report::{Outcome, ProofOptions, ProofReport},
    vacuity::vacuity,
    variants::seeded,
};
use crate::{
    Batch, Comparison, Engine, EngineError, Feed, ModelSource, Optimize, Port, Session, StatePair, Tolerance,
    Value, Verdict, engine::describe, interface::Undeclared, state::carry,
};
use pare_graph::evaluate::quality::TokenMask;
use std::collections::{BTreeMap, BTreeSet};

/// A model as written, and as the engine deploys it.
pub(super) struct Sessions {
    pub written: Box<dyn Session>,
    /// The engine's optimizer may fail on a valid model.
    pub deployed: Result<Box<dyn Session>, EngineError>,
    /// True if the model draws random numbers.
    pub is_random: bool,
}

impl Sessions {
    pub fn load(
        engine: &dyn Engine,
        model: &ModelSource,
        options: &ProofOptions,
    ) -> Result<Self, EngineError> {
        let random = seeded(model);
        let model = random.as_ref().unwrap_or(model);
        let deployed = engine.load(model, &options.load.with_optimize(Optimize::All));
        let written = engine.load(model, &options.load.as_written())?;
        Ok(Self { written, deployed, is_random: random.is_some() })
    }
}

/// A proof in progress.
pub(super) struct ProofRun<'o, 'e> {
    pub report: ProofReport,
    pub original: &'o mut Sessions,
    pub candidate: Sessions,
    pub noise: &'o mut Noise<'e>,
    /// Outputs with an undeclared shape, until the original violates its own declaration.
    pub undeclared: Vec<Undeclared>,
    pub state: Vec<StatePair>,
    /// Outputs that violate their declaration in the original but not in the candidate, each with a sentence.
    pub misdeclared: BTreeMap<String, String>,
    /// Outputs of the original that differ from run to run.
    pub random: BTreeSet<String>,
    /// Integers and other decisions that differ where rounding decides.
    pub undecided: usize,
    /// Elements that are nearer to double precision than the original's.
    pub more_precise: usize,
    /// Numbers that rounding changes arbitrarily, by output.
    pub undetermined: BTreeMap<String, u64>,
}

/// The outputs of all sessions in one run. If only deployed models ran, theirs are the only ones.
struct Outputs {
    reference: Feed,
    candidate: Feed,
    /// As deployed, beside those as written.
    original_deployed: Option<Feed>,
    candidate_deployed: Option<Feed>,
}

/// A batch that was not compared.
enum Interruption {
    /// There is too little memory for both models, or the original does not run on the provider.
    Skipped(EngineError),
    /// The candidate fails where the original runs.
    Difference(Outcome),
}

impl Interruption {
    fn of(error: EngineError, why: &str) -> Self {
        if error.is_out_of_memory() {
            return Self::Skipped(error);
        }
        Self::Difference(Outcome::differs(format!("{why}: {error}")))
    }
}

impl Outputs {
    /// The outputs of both models that quality is measured on: as deployed where models differ or a provider is
    /// requested. An engine computes a quantized model in integers only as deployed.
    fn judged(&self, options: &ProofOptions) -> [&Feed; 2] {
        if !options.measures_only && options.load.provider.is_cpu() {
            return [&self.reference, &self.candidate];
        }
        let deployed = [&self.original_deployed, &self.candidate_deployed];
        let [original, candidate] = deployed.map(Option::as_ref);
        [original.unwrap_or(&self.reference), candidate.unwrap_or(&self.candidate)]
    }

    /// The outputs of the original, and those of the candidate as written and as deployed.
    fn split(&mut self) -> (&Feed, Vec<&mut Feed>) {
        let Self { reference, candidate, candidate_deployed, .. } = self;
        (reference, std::iter::once(candidate).chain(candidate_deployed).collect())
    }

    /// The deviation of the candidate as written and as deployed.
    fn compare(&self) -> [Comparison; 2] {
        [Some(&self.candidate), self.candidate_deployed.as_ref()].map(|outputs| {
            let mut comparison = Comparison::new();
            if let Some(outputs) = outputs {
                comparison.add(&self.reference, outputs);
            }
            comparison
        })
    }

    /// The deviation of the judged outputs without tokens that are switched off.
    fn compare_judged(&self, options: &ProofOptions, tokens: Option<&TokenMask>) -> Comparison {
        let selected = |feed: &Feed| -> Feed {
            let of_tokens = |(name, value): &(String, Value)| {
                let value = match value {
                    Value::Tensor(tensor) => {
                        Value::Tensor(options.quality.without_padding(name, tensor, tokens).into_owned())
                    }
                    other => other.clone(),
                };
                (name.clone(), value)
            };
            feed.iter().map(of_tokens).collect()
        };
        let judged = self.judged(options);
        let mut comparison = Comparison::new();
        if tokens.is_none() {
            comparison.add(judged[0], judged[1]);
        } else {
            let [reference, candidate] = judged.map(selected);
            comparison.add(&reference, &candidate);
        }
        comparison
    }
}

/// The condition under which deployed models run, as the start of a sentence.
fn deployed(options: &ProofOptions) -> String {
    match &options.load.provider {
        provider if provider.is_cpu() => "with the engine's optimizations on".to_owned(),
        provider => format!("on {provider}"),
    }
}

impl ProofRun<'_, '_> {
    /// Compares whether both models load as deployed.
    pub fn check_deployment(&mut self, options: &ProofOptions) -> Option<Outcome> {
        let deployed = deployed(options);
        match (&self.original.deployed, &self.candidate.deployed) {
            // A failure counts only if the original loads.
            (Ok(_), Err(error)) => {
                let why = format!("{deployed}, the result does not load: {error}");
                return Some(Outcome::differs(why));
            }
            (Err(error), _) => {
                let why = format!("{deployed}, the original does not load: {error}");
                // On a provider that was requested, nothing can be compared.
                if !options.load.provider.is_cpu() {
                    return Some(Outcome::Unproven { why });
                }
                self.report.notes.push(why);
            }
            (Ok(_), Ok(_)) => {}
        }
        None
    }

    /// Runs all sessions on one batch. An error is the original's, or one of memory; `Some` is a difference.
    pub fn run(&mut self, batch: &Batch, options: &ProofOptions) -> Result<Option<Outcome>, EngineError> {
        let mut feeds = Feeds::new(&batch.feed);
        let has_deployed = self.original.deployed.is_ok() && self.candidate.deployed.is_ok();
        let only_deployed =
            has_deployed && options.max_written.is_some_and(|most| self.report.samples >= most);
        for step in 0..options.steps.max(1) {
            let outputs = if only_deployed {
                self.run_deployed(&feeds, options)
            } else {
                let reference = self.original.written.run(&feeds.original)?;
                self.run_others(reference, &feeds, options)
            };
            let mut outputs = match outputs {
                Ok(outputs) => outputs,
                Err(Interruption::Skipped(error)) => return Err(error),
                Err(Interruption::Difference(outcome)) => return Ok(Some(outcome)),
            };
            if options.steps > 1 {
                self.perturb_state(&outputs.reference, &mut feeds);
            }
            let inputs = feeds.original.iter().filter_map(|(name, v)| Some((name.as_str(), v.as_tensor()?)));
            let tokens = options.quality.tokens(inputs);
            let [written, deployed] = if options.measures_only {
                let judged = outputs.compare_judged(options, tokens.as_ref());
                [judged.clone(), judged]
            } else {
                self.explain(&feeds.original, &mut outputs, options)
            };
            let reference = &outputs.reference;
            self.undeclared.retain(|Undeclared { original, .. }| {
                reference.iter().any(|(n, v)| *n == original.name && original.kind.accepts(v).is_ok())
            });
            self.find_misdeclared(&outputs);
            self.report.deviation.merge(&written);
            self.report.deployed.merge(&deployed);
            let labels = batch.labels.as_deref().filter(|_| step == 0);
            let [a, b] = outputs.judged(options);
            self.report.measure(a, b, labels, &options.quality, tokens.as_ref());
            feeds.carry(&self.state, &outputs);
        }
        self.report.samples += batch.samples.len();
        Ok(None)
    }

    /// Runs both models as deployed.
    fn run_deployed(&mut self, feeds: &Feeds, options: &ProofOptions) -> Result<Outputs, Interruption> {
        let (Ok(original), Ok(candidate)) = (&mut self.original.deployed, &mut self.candidate.deployed)
        else {
            let why = format!("{}, a model does not load", deployed(options));
            return Err(Interruption::Difference(Outcome::Unproven { why }));
        };
        let reference = original.run(&feeds.original_deployed).map_err(Interruption::Skipped)?;
        let fails =
            |error| Interruption::of(error, &format!("{}, the result does not run", deployed(options)));
        let candidate = candidate.run(&feeds.candidate_deployed).map_err(fails)?;
        Ok(Outputs { reference, candidate, original_deployed: None, candidate_deployed: None })
    }

    /// Runs the candidate, and both models as deployed; adds the noise of the original to the floor.
    fn run_others(
        &mut self,
        reference: Feed,
        feeds: &Feeds,
        options: &ProofOptions,
    ) -> Result<Outputs, Interruption> {
        let fails = |error| Interruption::of(error, "the result does not run where the original does");
        let candidate = self.candidate.written.run(&feeds.candidate).map_err(fails)?;
        let mut outputs = Outputs { reference, candidate, original_deployed: None, candidate_deployed: None };
        let original = self.original.deployed.as_mut().ok().map(|s| s.run(&feeds.original_deployed));
        let original = match original {
            Some(Err(error)) if !options.load.provider.is_cpu() => return Err(Interruption::Skipped(error)),
            original => original,
        };
        if let Some(Ok(deployed)) = &original {
            self.report.floor.add(&outputs.reference, deployed);
        }
        match self.candidate.deployed.as_mut().ok().map(|s| s.run(&feeds.candidate_deployed)) {
            Some(Err(error)) if matches!(original, Some(Ok(_))) => {
                let why = format!("{}, the result does not run", deployed(options));
                return Err(Interruption::of(error, &why));
            }
            candidate => outputs.candidate_deployed = candidate.and_then(Result::ok),
        }
        outputs.original_deployed = original.and_then(Result::ok);
        Ok(outputs)
    }

    /// Adds the noise of a state that is carried on: it may grow from step to step.
    fn perturb_state(&mut self, reference: &Feed, feeds: &mut Feeds) {
        if let Some(perturbed) = self.noise.near(&feeds.perturbed) {
            add_floats(reference, &perturbed, &mut self.report.floor);
            carry(&self.state, &perturbed, &mut feeds.perturbed);
        }
    }

    /// The deviations of the candidate. If they exceed the noise seen so far, the original runs again, also
    /// with perturbed operands.
    fn explain(&mut self, feed: &Feed, outputs: &mut Outputs, options: &ProofOptions) -> [Comparison; 2] {
        let is_first = self.report.samples == 0;
        if self.original.is_random && is_first {
            self.find_random(feed, &outputs.reference);
        }
        let found = outputs.compare();
        if !self.exceeds(&found, options) || self.noise.is_exhausted() {
            return found;
        }
        self.find_random(feed, &outputs.reference);
        let (reference, mut candidates) = outputs.split();
        let mut draws = Draws::new(feed);
        for (name, count) in
            self.noise.measure(&mut draws, reference, &mut candidates, &mut self.report.floor)
        {
            *self.undetermined.entry(name).or_default() += count as u64;
        }
        self.undecided += self.noise.decide(&mut draws, reference, &mut candidates);
        let found = outputs.compare();
        if !self.exceeds(&found, options) {
            return found;
        }
        let (reference, mut candidates) = outputs.split();
        self.more_precise +=
            self.noise.measure_error(feed, reference, &mut candidates, &mut self.report.floor);
        let found = outputs.compare();
        if self.exceeds(&found, options) {
            self.noise.add_unexplained();
        }
        found
    }

    fn exceeds(&self, found: &[Comparison; 2], options: &ProofOptions) -> bool {
        // One batch is judged on the scale of all, as at the end.
        let differs = |(found, tolerance): (&Comparison, Tolerance)| {
            let found = found.without(&self.random).on_scale_of(&self.report.deviation);
            !tolerance.judge(&found, &self.report.floor).is_equal()
        };
        found.iter().zip(self.tolerances(options)).any(differs)
    }

    /// The tolerances of the candidate as written and as deployed. The engine's optimizations may replace
    /// functions by approximations, which perturbation does not show.
    fn tolerances(&self, options: &ProofOptions) -> [Tolerance; 2] {
        let given = &options.tolerance;
        let is_measured = !options.measures_only && !self.noise.is_unknown();
        [if is_measured { given.measured() } else { given.clone() }, given.clone()]
    }

    /// Finds outputs to which the engine gives another shape in the original than declared.
    fn find_misdeclared(&mut self, outputs: &Outputs) {
        for (name, a) in &outputs.reference {
            let Some(b) = get(&outputs.candidate, name).filter(|b| describe(a) != describe(b)) else {
                continue;
            };
            let Some(Port { kind, .. }) = self.noise.declared(name) else { continue };
            if kind.accepts(a).is_err() && kind.accepts(b).is_ok() {
                let sentence =
                    format!("in this engine `{name}` of the original is {}, declared {kind}", describe(a));
                self.misdeclared.entry(name.clone()).or_insert(sentence);
            }
        }
    }

    /// Finds outputs that differ between equal runs.
    fn find_random(&mut self, feed: &Feed, reference: &Feed) {
        let Ok(again) = self.original.written.run(feed) else { return };
        let mut difference = Comparison::new();
        difference.add(reference, &again);
        let differing = difference.outputs().iter().filter(|(_, deviation)| !deviation.is_zero());
        self.random.extend(differing.map(|(name, _)| name.clone()));
    }

    /// The outcome after all batches; `refusal` is the original's first error.
    pub fn judge(&mut self, refusal: Option<EngineError>, options: &ProofOptions) -> Outcome {
        let [of_written, of_deployed] = self.tolerances(options);
        let report = &mut self.report;
        if report.samples == 0 {
            let why = match refusal {
                Some(error) => format!("the original runs on none of the samples: {error}"),
                None => "there are no samples".to_owned(),
            };
            return Outcome::Unproven { why };
        }
        if let Some(Undeclared { original, candidate }) = self.undeclared.first() {
            let why = format!("output `{}` is {candidate} instead of {}", original.name, original.kind);
            return Outcome::differs(why);
        }
        if let Some(error) = refusal {
            report.notes.push(format!("{} runs were skipped: {error}", report.skipped));
        }
        if self.undecided > 0 {
            let note = format!("{} integers differ where rounding decides", self.undecided);
            report.notes.push(note);
        }
        if self.more_precise > 0 {
            let note = format!("{} elements are more precise than the original's", self.more_precise);
            report.notes.push(note);
        }
        let judge = |tolerance: &Tolerance, found: &Comparison| {
            tolerance.judge(&found.without(&self.random), &report.floor)
        };
        match (judge(&of_written, &report.deviation), judge(&of_deployed, &report.deployed)) {
            (Verdict::Equal, Verdict::Equal) => vacuity(report, &self.random, &self.undetermined),
            (Verdict::Equal, Verdict::Differs { output, why }) => {
                let why = format!("{}, {why}", deployed(options));
                Outcome::Differs { output, why }
            }
            (Verdict::Differs { output, why }, _) => match self.misdeclared.remove(&output) {
                Some(why) => Outcome::Unproven { why },
                None => Outcome::Differs { output, why },
            },
        }
    }
}

/// The feed of each session, which carries its own state.
struct Feeds {
    original: Feed,
    candidate: Feed,
    original_deployed: Feed,
    candidate_deployed: Feed,
    perturbed: Feed,
}

impl Feeds {
    fn new(feed: &Feed) -> Self {
        Self {
            original: feed.clone(),
            candidate: feed.clone(),
            original_deployed: feed.clone(),
            candidate_deployed: feed.clone(),
            perturbed: feed.clone(),
        }
    }

    fn carry(&mut self, state: &[StatePair], outputs: &Outputs) {
        let Outputs { reference, candidate, original_deployed, candidate_deployed } = outputs;
        carry(state, reference, &mut self.original);
        carry(state, candidate, &mut self.candidate);
        carry(state, original_deployed.as_ref().unwrap_or(reference), &mut self.original_deployed);
        carry(state, candidate_deployed.as_ref().unwrap_or(candidate), &mut self.candidate_deployed);
    }
}
