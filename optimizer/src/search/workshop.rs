//! Makes candidates: runs pipelines, and keeps the models between their segments.

use super::family::{Combination, TRAINING};
use crate::{Environment, Error};
use pare_graph::{Model, Samples, ops::Bindings};
use pare_passes::{Effect, PassError, Pipeline, RunError, RunOptions, Tools, run};

/// A candidate, or why there is none.
pub(super) type Candidate = Result<Model, Declined>;

/// A combination of which a pass makes nothing.
#[derive(Clone, Debug)]
pub(super) struct Declined {
    pub why: String,
    /// The families up to that of the pass; `None` if stronger ones may make something.
    pub infeasible: Option<Combination>,
}

pub(super) struct Workshop<'w> {
    environment: &'w Environment,
    tools: Tools<'w>,
    original: &'w Model,
    /// Models by the segments that made them, the last used at the end.
    kept: Vec<Kept>,
    /// Bytes of weights that kept models may have.
    memory: u64,
}

struct Kept {
    segments: Vec<String>,
    candidate: Candidate,
    bytes: u64,
}

impl<'w> Workshop<'w> {
    pub fn new(environment: &'w Environment, tools: Tools<'w>, original: &'w Model, memory: u64) -> Self {
        Self { environment, tools, original, kept: vec![], memory }
    }

    /// The number of samples that candidates are calibrated on.
    pub fn samples(&self) -> usize {
        self.tools.samples.map_or(0, Samples::len)
    }

    /// Runs the pipeline of a combination, from the longest beginning that is kept.
    ///
    /// # Errors
    /// [`Error::Cancelled`]. Everything else is a reason why there is no candidate.
    pub fn make(&mut self, combination: Combination) -> Result<Candidate, Error> {
        let segments = combination.segments();
        let mut done = 0;
        let mut candidate = Ok(self.original.clone());
        if let Some(at) = self.longest(&segments) {
            let kept = self.kept.remove(at);
            (done, candidate) = (kept.segments.len(), kept.candidate.clone());
            self.kept.push(kept);
        }
        for count in done + 1..=segments.len() {
            let Ok(before) = candidate else { return Ok(candidate) };
            let family = combination.family_of(count - 1).filter(|&family| family != TRAINING);
            let infeasible = family.map(|family| combination.up_to(family));
            candidate = self.run(&segments[count - 1], before).map_err(|why| Declined { why, infeasible });
            self.environment.check_cancelled()?;
            self.keep(&segments[..count], &candidate);
        }
        Ok(candidate)
    }

    /// The kept model with the most of these segments.
    fn longest(&self, segments: &[String]) -> Option<usize> {
        let begins = |kept: &Kept| segments.starts_with(&kept.segments);
        let fitting = self.kept.iter().enumerate().filter(|(_, kept)| begins(kept));
        fitting.max_by_key(|(_, kept)| kept.segments.len()).map(|(at, _)| at)
    }

    fn keep(&mut self, segments: &[String], candidate: &Candidate) {
        let bytes = candidate.as_ref().map_or(0, |model| model.cost(&Bindings::default()).bytes);
        self.kept.push(Kept { segments: segments.to_vec(), candidate: candidate.clone(), bytes });
        while self.kept.len() > 1 && self.kept.iter().map(|kept| kept.bytes).sum::<u64>() > self.memory {
            self.kept.remove(0);
        }
    }

    fn run(&self, segment: &str, mut model: Model) -> Result<Model, String> {
        let pipeline: Pipeline = segment.parse().map_err(|e: pare_passes::PipelineError| e.to_string())?;
        let options = RunOptions::new(Tools { teacher: Some(self.original), ..self.tools });
        let report = run(&pipeline, &mut model, options, &mut ()).map_err(|e| reason(&e))?;
        let lossy = |report: &pare_passes::Report| report.effect() == Effect::Lossy;
        if pipeline.effect() == Effect::Lossy && !lossy(&report) {
            let declined = report.steps.iter().rev().flat_map(|step| step.declined());
            let most = declined.max_by_key(|(_, count)| *count);
            return Err(most.map_or("nothing to change was found".into(), |(why, _)| why.to_owned()));
        }
        Ok(model)
    }
}

/// The reason why a pass made nothing, without its name.
fn reason(error: &RunError) -> String {
    match error {
        RunError::Pass { error: PassError::Refused { why, .. }, .. } => why.clone(),
        _ => error.to_string(),
    }
}
