//! `pare calibrate`.

use crate::{
    args::{CalibrateArgs, source},
    failure::{Failure, Status},
    format::{bytes, count, seconds},
    terminal::Terminal,
};
use onnx_pare::{CalibrateOptions, Environment, OptimizeOptions, calibrate, check_output};
use serde_json::json;
use std::time::Instant;

pub fn run(args: &CalibrateArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let start = Instant::now();
    let pipeline = std::mem::take(OptimizeOptions::from(&*args.passes).pipeline()?);
    check_output(&args.output)?;
    let options = CalibrateOptions::new(&args.samples)
        .pipeline(pipeline)
        .merge(args.add.clone())
        .positions(args.places)
        .memory(args.memory)
        .environment(environment);
    let calibration = calibrate(source(&args.model)?, &options)?;
    let size = calibration.write(&args.output)?;
    let time = start.elapsed().as_secs_f64();
    let (operators, rows, samples) = (calibration.operators, calibration.rows, calibration.samples);
    let report = json!({
        "model": args.model, "output": args.output, "operators": operators, "samples": samples, "rows": rows,
        "added": args.add, "bytes": size, "seconds": time,
    });
    terminal.report(&report, || {
        let (output, rows) = (args.output.display(), count(rows));
        format!(
            "statistics of {operators} operators over {samples} samples, {rows} rows in all\n\n\
             wrote {output} ({}) in {}\n",
            bytes(size),
            seconds(time)
        )
    });
    Ok(Status::Success)
}
