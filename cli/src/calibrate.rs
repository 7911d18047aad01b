//! `pare calibrate`: statistics of activations to a file.

use crate::{
    args::{CalibrateArgs, Common},
    failure::{Done, Failure},
    inputs::{self, Engines},
    voice::{self, Voice},
};
use pare_graph::Samples;
use pare_passes::{
    Pipeline, RunOptions, Tools,
    analysis::calibration::{Sampling, collect_statistics},
    run as run_pipeline,
    statistics::Statistics,
};
use pare_runtime::SharedSamples;
use serde_json::json;
use std::{path::Path, time::Instant};

pub fn run(args: &CalibrateArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let start = Instant::now();
    let pipeline: Pipeline = args.passes.parse().map_err(|e| Failure::pipeline(&e, &args.passes))?;
    inputs::check_output(&args.output)?;
    let earlier = args.add.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut model = inputs::model(&args.model)?.model;
    let engines = Engines::new(common, voice);
    let samples = SharedSamples::from(inputs::samples(&args.samples, &model)?);
    let tools = Tools {
        engine: Some(&engines),
        samples: Some(&samples),
        statistics: None,
        progress: voice,
        seed: common.seed,
        threads: common.threads,
        memory: args.memory,
    };
    run_pipeline(&pipeline, &mut model, RunOptions::new(tools), &mut ())?;
    model.infer().map_err(|e| Failure::new(e.to_string()))?;
    let sampling = Sampling { positions: args.places, seed: common.seed };
    let mut statistics = collect_statistics(tools, &model, 0..samples.len(), sampling)
        .map_err(|e| Failure::new(e.to_string()).of(format_args!("`{}`", args.model.display())))?;
    if statistics.is_empty() {
        return Err(Failure::new(format!(
            "`{}` has no linear operator with constant weights",
            args.model.display()
        )));
    }
    for earlier in earlier {
        statistics.merge(earlier).map_err(|e| Failure::new(e.to_string()))?;
    }
    let bytes = statistics.write(&args.output).map_err(|e| Failure::new(e.to_string()))?;
    let seconds = start.elapsed().as_secs_f64();
    let (operators, rows, count) = (statistics.len(), statistics.rows(), samples.len());
    voice.report(
        || {
            json!({ "model": args.model, "output": args.output, "operators": operators, "samples": count,
                    "rows": rows, "added": args.add, "bytes": bytes, "seconds": seconds })
        },
        || {
            format!(
                "statistics of {operators} operators over {count} samples, {} rows in all\n\nwrote {} ({}) in {}\n",
                voice::count(rows),
                args.output.display(),
                voice::bytes(bytes),
                voice::seconds(seconds)
            )
        },
    );
    Ok(Done::Well)
}

/// Statistics from a file.
fn read(path: &Path) -> Result<Statistics, Failure> {
    Statistics::read(path).map_err(|e| Failure::new(e.to_string()).hint("`pare calibrate` writes such files"))
}

/// The sum of the statistics in these files; `None` if there are none.
pub fn all(paths: &[std::path::PathBuf]) -> Result<Option<Statistics>, Failure> {
    let mut sum: Option<Statistics> = None;
    for path in paths {
        let next = read(path)?;
        match &mut sum {
            Some(sum) => sum.merge(next).map_err(|e| Failure::new(e.to_string()))?,
            None => sum = Some(next),
        }
    }
    Ok(sum)
}
