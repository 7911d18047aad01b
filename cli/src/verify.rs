//! `pare verify`.

use crate::{
    args::{VerifyArgs, source},
    comparison,
    failure::{Failure, Status},
    terminal::Terminal,
};
use onnx_pare::{Environment, Verification, VerifyOptions, verify};

pub fn run(args: &VerifyArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let mut limits = args.limits.limits();
    limits.measures.clone_from(&args.metric);
    let mut options = VerifyOptions::default()
        .limits(limits)
        .quality(args.quality.options())
        .tolerance(args.tolerance.clone())
        .steps(args.steps)
        .state(args.state.clone())
        .environment(environment);
    options.samples.clone_from(&args.samples);
    let result = verify(source(&args.reference)?, source(&args.candidate)?, &options)?;
    terminal.report(&result, || text(&result));
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
    format!("{outputs}\nthe models {verdict} on {samples} samples in {engine}\n")
}
