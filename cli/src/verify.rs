//! `pare verify`: run two models and say whether they agree.

use crate::{
    args::{Common, VerifyArgs},
    failure::{Done, Failure},
    inputs::{self, Engines},
    proof::{self, Limits},
    voice::Voice,
};
use pare_runtime::{Outcome, ProofOptions, StatePair, Tolerance};
use serde_json::json;

pub fn run(args: &VerifyArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let (reference, candidate) = (inputs::model(&args.reference)?, inputs::model(&args.candidate)?);
    let mut model = reference.model;
    model.infer().map_err(|e| Failure::new(e.to_string()).of(args.reference.display()))?;
    let engines = Engines::new(common, voice);
    let mut samples = inputs::samples_or_generated(args.samples.as_deref(), &model, common.seed)?;
    let outputs = model.graph.outputs().iter().map(|&o| model.graph.value(o).name.as_str());
    let outputs: Vec<_> = outputs.collect();
    if let Some((odd, _)) =
        args.tolerance.iter().find(|(n, _)| !n.is_empty() && !outputs.contains(&n.as_str()))
    {
        return Err(Failure::new(format!("`--tolerance {odd}=…`: there is no output `{odd}`"))
            .hint(format!("the outputs are {}", outputs.join(", "))));
    }
    let options = ProofOptions {
        tolerance: Tolerance { given: args.tolerance.clone(), ..Tolerance::default() },
        any_order: true,
        steps: args.steps,
        state: args.state.iter().cloned().map(|(input, output)| StatePair { input, output }).collect(),
        ..ProofOptions::default()
    };
    let report = proof::compare(&engines, &reference.source, &candidate.source, &mut samples, options)?;
    let limits = Limits { measures: args.metric.clone(), ..args.limits.limits() };

    let faults = match &report.outcome {
        Outcome::Unproven { why } => {
            return Err(Failure::new(format!("the models could not be compared: {why}")));
        }
        // A difference of the interface, or a model that does not run, is no drift.
        Outcome::Differs { output, why } if output.is_empty() || !limits.any() => {
            vec![if output.is_empty() { why.clone() } else { format!("`{output}`: {why}") }]
        }
        Outcome::Equal | Outcome::Differs { .. } => limits.broken(&report),
    };
    let engine = engines.get()?.note.clone();
    let verdict = if faults.is_empty() { "agree" } else { "differ" };
    voice.report(
        || {
            let mut json = proof::to_json(&report, &engine);
            json["verdict"] = json!(verdict);
            json["failures"] = json!(faults);
            json
        },
        || match report.samples {
            0 => format!("the models {verdict}\n"),
            samples => {
                let measured = proof::to_text(&report);
                format!("{measured}\nthe models {verdict} on {samples} samples in {engine}\n")
            }
        },
    );
    faults.iter().for_each(|fault| voice.failed_check(fault, None));
    Ok(if faults.is_empty() { Done::Well } else { Done::CheckFailed })
}
