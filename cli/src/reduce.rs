//! `pare reduce`.

use crate::{
    args::{ReduceArgs, source},
    failure::{Failure, Status},
    terminal::Terminal,
};
use onnx_pare::{Environment, OptimizeOptions, ReduceOptions, check_output, reduce};
use serde_json::json;

pub fn run(args: &ReduceArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let pipeline = std::mem::take(OptimizeOptions::from(&*args.passes).pipeline()?);
    check_output(&args.output)?;
    let (model, text) = (&args.model, pipeline.to_string());
    let mut options = ReduceOptions::new(pipeline)
        .memory(args.memory)
        .scratch(crate::optimize::folder_of(&args.output))
        .environment(environment);
    options.stop_after = args.stop_after;
    let Some(small) = reduce(source(model)?, &options)? else {
        terminal.report(&json!({ "model": model, "fault": null, "written": false }), || {
            "the pipeline does not fail on this model\n".to_owned()
        });
        return Ok(Status::Success);
    };
    small.write(&args.output)?;
    let (before, after) = (small.nodes_before, small.model.node_count());
    let report = json!({
        "model": model, "output": args.output, "pipeline": text, "fault": small.fault.why,
        "nodes_before": before, "nodes_after": after, "trials_at_most": small.candidates, "written": true,
    });
    terminal.report(&report, || {
        format!("{}\nwrote {}, {after} of {before} nodes\n", small.fault.why, args.output.display())
    });
    Ok(Status::CheckFailed)
}
