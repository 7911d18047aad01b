//! Runs of the original and the candidate on the same samples.

use super::report::{Outcome, ProofOptions, ProofReport};
use crate::{
    Batch, Engine, EngineError, Feed, ModelSource, Optimize, Session, StatePair, Value, Verdict,
    interface::Undeclared, rounding::perturbed, state::carry,
};

/// A model as written, and as the engine deploys it.
pub(super) struct Sessions {
    pub written: Box<dyn Session>,
    /// The engine's optimizer may fail on a valid model.
    pub deployed: Result<Box<dyn Session>, EngineError>,
    /// As written, with perturbed weights: an original with loops.
    perturbed: Option<Box<dyn Session>>,
}

impl Sessions {
    pub fn of_candidate(
        engine: &dyn Engine,
        model: &ModelSource,
        options: &ProofOptions,
    ) -> Result<Self, EngineError> {
        let load = |level| engine.load(model, &options.load.with_optimize(level));
        Ok(Self { written: load(Optimize::Off)?, deployed: load(Optimize::All), perturbed: None })
    }

    pub fn of_original(
        engine: &dyn Engine,
        model: &ModelSource,
        options: &ProofOptions,
    ) -> Result<Self, EngineError> {
        let load = |model| engine.load(&model, &options.load.with_optimize(Optimize::Off)).ok();
        Ok(Self { perturbed: perturbed(model).and_then(load), ..Self::of_candidate(engine, model, options)? })
    }
}

/// A proof in progress.
pub(super) struct ProofRun<'o> {
    pub report: ProofReport,
    pub original: &'o mut Sessions,
    pub candidate: Sessions,
    /// Outputs with an undeclared shape, until the original violates its own declaration.
    pub undeclared: Vec<Undeclared>,
    pub state: Vec<StatePair>,
}

impl ProofRun<'_> {
    /// Compares whether both models load as deployed.
    pub fn check_deployment(&mut self) -> Option<Outcome> {
        match (&self.original.deployed, &self.candidate.deployed) {
            // A failure counts only if the original loads.
            (Ok(_), Err(error)) => {
                let why = format!("with the engine's optimizations on, the result does not load: {error}");
                return Some(Outcome::differs(why));
            }
            (Err(error), _) => {
                let note = format!("with the engine's optimizations on, the original does not load: {error}");
                self.report.notes.push(note);
            }
            (Ok(_), Ok(_)) => {}
        }
        None
    }

    /// Runs all sessions on one batch. An error is the original's; `Some` is a difference.
    pub fn run(&mut self, batch: &Batch, options: &ProofOptions) -> Result<Option<Outcome>, EngineError> {
        let mut feeds = Feeds::new(&batch.feed);
        let max_deployed = options.max_deployed.unwrap_or(usize::MAX);
        for step in 0..options.steps.max(1) {
            let labels = batch.labels.as_deref().filter(|_| step == 0);
            let reference = self.original.written.run(&feeds.original)?;
            if let Some(outcome) = self.compare_written(&reference, &mut feeds, labels) {
                return Ok(Some(outcome));
            }
            carry(&self.state, &reference, &mut feeds.original);
            if self.report.samples < max_deployed
                && let Some(outcome) = self.compare_deployed(&reference, &mut feeds)
            {
                return Ok(Some(outcome));
            }
        }
        self.report.samples += batch.samples.len();
        Ok(None)
    }

    fn compare_written(
        &mut self,
        reference: &Feed,
        feeds: &mut Feeds,
        labels: Option<&[i64]>,
    ) -> Option<Outcome> {
        let candidate = match self.candidate.written.run(&feeds.candidate) {
            Ok(outputs) => outputs,
            Err(error) => {
                let why = format!("the result does not run where the original does: {error}");
                return Some(Outcome::differs(why));
            }
        };
        self.undeclared.retain(|Undeclared { original, .. }| {
            reference.iter().any(|(n, v)| *n == original.name && original.kind.accepts(v).is_ok())
        });
        self.report.deviation.add(reference, &candidate);
        self.report.measure(reference, &candidate, labels);
        carry(&self.state, &candidate, &mut feeds.candidate);
        None
    }

    fn compare_deployed(&mut self, reference: &Feed, feeds: &mut Feeds) -> Option<Outcome> {
        if let Some(Ok(outputs)) = self.original.perturbed.as_mut().map(|s| s.run(&feeds.perturbed)) {
            let (exact, perturbed) = (floats(reference), floats(&outputs));
            // A loop that ends after another number of steps is no measure of rounding.
            if same_shapes(&exact, &perturbed) {
                self.report.floor.add(&exact, &perturbed);
            }
            carry(&self.state, &outputs, &mut feeds.perturbed);
        }
        let original = self.original.deployed.as_mut().ok().map(|s| s.run(&feeds.original_deployed));
        if let Some(Ok(outputs)) = &original {
            self.report.floor.add(reference, outputs);
            carry(&self.state, outputs, &mut feeds.original_deployed);
        }
        match self.candidate.deployed.as_mut().ok().map(|s| s.run(&feeds.candidate_deployed)) {
            Some(Ok(outputs)) => {
                self.report.deployed.add(reference, &outputs);
                carry(&self.state, &outputs, &mut feeds.candidate_deployed);
                None
            }
            Some(Err(error)) if matches!(original, Some(Ok(_))) => {
                let why = format!("with the engine's optimizations on, the result does not run: {error}");
                Some(Outcome::differs(why))
            }
            _ => None,
        }
    }

    /// The outcome after all batches; `refusal` is the original's first error.
    pub fn judge(&mut self, refusal: Option<EngineError>, options: &ProofOptions) -> Outcome {
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
        let written = options.tolerance.judge(&report.deviation, &report.floor);
        if !written.is_equal() {
            return written.into();
        }
        match options.tolerance.judge(&report.deployed, &report.floor) {
            Verdict::Equal => Outcome::Equal,
            Verdict::Differs { output, why } => {
                let why = format!("with the engine's optimizations on, {why}");
                Outcome::Differs { output, why }
            }
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
}

/// The float outputs. Others are decisions: a decision that rounding flips is no reason to allow more flips.
fn floats(outputs: &Feed) -> Feed {
    let is_float = |(_, value): &&(String, Value)| value.as_tensor().is_some_and(|t| t.dtype().is_float());
    outputs.iter().filter(is_float).cloned().collect()
}

fn same_shapes(a: &Feed, b: &Feed) -> bool {
    let shape = |(_, value): &(String, Value)| value.as_tensor().map(|t| t.shape().to_vec());
    a.iter().map(shape).eq(b.iter().map(shape))
}
