//! `pare verify`.

use crate::{
    args::{VerifyArgs, source},
    comparison,
    failure::{Failure, Status},
    format::{figure, table},
    terminal::Terminal,
};
use onnx_pare::{Environment, TensorDrift, Verification, VerifyOptions, verify};

pub fn run(args: &VerifyArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let mut limits = args.limits.limits();
    limits.measures.clone_from(&args.metric);
    let mut options = VerifyOptions::default()
        .limits(limits)
        .quality(args.quality.options())
        .tolerance(args.tolerance.clone())
        .steps(args.steps)
        .state(args.state.clone())
        .layers(args.layers || args.report.is_some())
        .memory(args.memory)
        .environment(environment);
    options.samples.clone_from(&args.samples);
    let result = verify(source(&args.reference)?, source(&args.candidate)?, &options)?;
    terminal.report_with_page(&result, args.report.as_deref(), || text(&result))?;
    result.failures.iter().for_each(|failure| terminal.failed_check(failure));
    Ok(if result.agrees() { Status::Success } else { Status::CheckFailed })
}

fn text(result: &Verification) -> String {
    let (verdict, samples) = (result.verdict, result.comparison.report.samples);
    if samples == 0 {
        return format!("the models {verdict}\n");
    }
    let engine = &result.comparison.engine;
    let outputs = comparison::text(&result.comparison);
    let layers = result.layers.as_deref().map_or_else(String::new, layers);
    format!("{outputs}{layers}\nthe models {verdict} on {samples} samples in {engine}\n")
}

/// The drift of each tensor along the depth.
fn layers(drifts: &[TensorDrift]) -> String {
    let rows = drifts.iter().map(|t| vec![t.name.clone(), t.operator.clone(), figure(t.drift)]);
    format!("\n{}", table(&["tensor", "operator", "drift"], rows.collect()))
}
