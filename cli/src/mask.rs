//! `pare mask`.

use crate::{
    args::{MaskArgs, source},
    failure::{Failure, Status},
    format::count,
    terminal::Terminal,
};
use onnx_pare::{Environment, MaskOptions, OptimizeOptions, check_output, mask};
use serde_json::json;
use std::path::Path;

pub fn run(args: &MaskArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let pipeline = std::mem::take(OptimizeOptions::from(&*args.passes).pipeline()?);
    let to_stdout = args.output == Path::new("-");
    if !to_stdout {
        check_output(&args.output)?;
    }
    let mut options = MaskOptions::new(pipeline).memory(args.memory).environment(environment);
    options.samples.clone_from(&args.samples);
    let masked = mask(source(&args.model)?, &options)?;
    if to_stdout {
        terminal.write(&masked.to_bytes()?);
        return Ok(Status::Success);
    }
    masked.write(&args.output)?;
    let (tensors, weights, kept) = (masked.tensors, masked.weights, masked.kept);
    let report = json!({ "output": args.output, "tensors": tensors, "weights": weights, "kept": kept });
    terminal.report(&report, || {
        let (kept, weights) = (count(kept as u64), count(weights as u64));
        format!("{kept} of {weights} weights kept in {tensors} tensors\nwrote {}\n", args.output.display())
    });
    Ok(Status::Success)
}
