//! The proof that a pipeline keeps its promises and the limits.

use crate::{
    Comparison, Error, QualityLimits,
    bisect::{self, Suspect, bisect},
    runner::Runner,
    stages::Stage,
};
use pare_graph::Model;
use pare_passes::{Effect, InterfaceChange};
use pare_runtime::{Outcome, ProofOptions, ProofReport, SampleSet, declared_change};
use serde::{Serialize, Serializer};
use std::fmt;

/// Samples that show how values are rounded, by passes that promise equality and by the engine's
/// optimizations. Each has thousands of values, all of which would differ; only shares of samples, such as
/// accuracy, need all samples.
const ROUNDING_SAMPLES: usize = 512;

/// The comparisons of a proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prove {
    /// The result with the original; in lossy pipelines also the stages that promise equality.
    #[default]
    Result,
    /// In addition, the models before and after each pass.
    EachPass,
    /// None.
    Nothing,
}

/// The result of a proof.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Proof {
    /// The result compared with the original.
    #[serde(flatten)]
    pub overall: Comparison,
    /// The weakest promise of the passes that changed the model.
    pub effect: Effect,
    /// Broken promises and exceeded limits, one sentence each.
    pub failures: Vec<String>,
    /// The patch at fault, if it was found.
    #[serde(rename = "guilty")]
    pub culprit: Option<Culprit>,
    /// Each pass by itself, with [`Prove::EachPass`].
    #[serde(rename = "each")]
    pub stages: Vec<StageProof>,
}

/// The first patch after which the models differ.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Culprit {
    /// Its number.
    pub patch: u64,
    /// The pass that applied it.
    pub pass: String,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patch {}, by `{}`, is the first after which the models differ", self.patch, self.pass)
    }
}

impl Serialize for Culprit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The comparison of the models before and after passes.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StageProof {
    /// The comparison.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// The passes, separated by commas.
    pub passes: String,
    /// Their weakest promise.
    pub effect: Effect,
}

/// A result to prove.
pub(crate) struct Claim<'c> {
    pub original: &'c Model,
    pub result: &'c Model,
    pub stages: &'c [Stage],
    pub mode: Prove,
    pub limits: &'c QualityLimits,
    /// Requested changes of inputs and outputs.
    pub interface: Vec<InterfaceChange>,
}

impl Claim<'_> {
    /// Compares the models; `test` are samples for the overall comparison.
    pub fn prove(&self, runner: &Runner<'_>, test: Option<SampleSet>) -> Result<Proof, Error> {
        let effect = self.stages.iter().map(|s| s.effect).max().unwrap_or(Effect::Exact);
        let mut overall = self.compare(runner, effect, test)?;
        overall.report.notes.dedup();
        let mut failures = self.check_limits(&overall);
        if self.interface.is_empty() {
            failures.extend(declared_change(self.original, self.result));
        }
        let mut stages = vec![];
        if effect == Effect::Lossy || self.mode == Prove::EachPass {
            stages = self.prove_stages(runner, &mut failures)?;
        }
        let mut culprit = None;
        if let Some(difference) = overall.difference() {
            if effect < Effect::Lossy {
                failures.push(difference);
                match bisect(runner, self.original)? {
                    Suspect::One(found) => culprit = Some(found),
                    Suspect::OneOf(patches) => {
                        let (first, last) = (patches.start(), patches.end());
                        overall.report.notes.push(format!(
                            "the patch at fault is one of {first} to {last}: the search for it ended after {} s",
                            bisect::MAX_TIME.as_secs()
                        ));
                    }
                    Suspect::Unknown => {}
                }
            } else if matches!(overall.outcome(), Outcome::Differs { output, .. } if output.is_empty()) {
                // Interfaces must agree even where values may differ.
                failures.push(difference);
            }
        }
        Ok(Proof { overall, effect, failures, culprit, stages })
    }

    fn compare(
        &self,
        runner: &Runner<'_>,
        effect: Effect,
        test: Option<SampleSet>,
    ) -> Result<Comparison, Error> {
        if cfg!(not(feature = "engine")) {
            let report = ProofReport::unproven("this build contains no engine");
            return Ok(Comparison { report, engine: "none".into() });
        }
        let options = ProofOptions {
            narrowed: !self.interface.is_empty(),
            measures_only: effect == Effect::Lossy,
            max_written: (effect == Effect::Lossy).then_some(ROUNDING_SAMPLES),
            ..ProofOptions::default()
        };
        if self.interface.is_empty() {
            runner.compare(self.original, self.result, test, options)
        } else {
            runner.compare_changed(self.original, self.result, &self.interface, options)
        }
    }

    /// Limits hold whatever the passes promise.
    fn check_limits(&self, overall: &Comparison) -> Vec<String> {
        match overall.outcome() {
            Outcome::Unproven { .. } if self.limits.is_empty() => vec![],
            Outcome::Unproven { why } => vec![format!("the limits could not be checked: {why}")],
            _ => self.limits.exceeded(overall),
        }
    }

    fn prove_stages(
        &self,
        runner: &Runner<'_>,
        failures: &mut Vec<String>,
    ) -> Result<Vec<StageProof>, Error> {
        let each_pass = self.mode == Prove::EachPass;
        if cfg!(not(feature = "engine")) {
            return Ok(vec![]);
        }
        let mut proofs = vec![];
        for stage in self.stages.iter().filter(|s| each_pass || s.effect < Effect::Lossy) {
            let max_samples = (!each_pass).then_some(ROUNDING_SAMPLES);
            let options = ProofOptions { max_samples, ..ProofOptions::default() };
            let comparison =
                runner.compare_changed(&stage.before, &stage.after, &stage.interface, options)?;
            let passes = stage.passes.join(", ");
            if let (Outcome::Differs { output, why }, true) =
                (comparison.outcome(), stage.effect < Effect::Lossy)
            {
                let promise = if stage.passes.len() == 1 { "promises" } else { "promise" };
                failures.push(format!("`{output}`: {why}, though {passes} {promise} equality"));
            }
            if each_pass {
                proofs.push(StageProof { comparison, passes, effect: stage.effect });
            }
        }
        Ok(proofs)
    }
}
