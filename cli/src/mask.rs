//! `pare mask`: run a pipeline, and write where it left zeros among the weights.

use crate::{
    args::{Common, MaskArgs},
    failure::{Done, Failure},
    inputs::{self, Engines},
    voice::{self, Voice},
};
use pare_passes::{Pipeline, RunOptions, Tools, run as run_pipeline, transforms::weights::Mask};
use pare_runtime::SharedSamples;
use serde_json::json;

pub fn run(args: &MaskArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let pipeline: Pipeline = args.passes.parse().map_err(|e| Failure::pipeline(&e, &args.passes))?;
    inputs::check_output(&args.output)?;
    let before = inputs::model(&args.model)?.model;
    let engines = Engines::new(common, voice);
    let samples = match &args.samples {
        Some(path) => Some(SharedSamples::from(inputs::samples(path, &before)?)),
        None => None,
    };
    let tools = Tools {
        engine: Some(&engines),
        samples: samples.as_ref().map(|s| s as &dyn pare_graph::Samples),
        statistics: None,
        progress: voice,
        seed: common.seed,
        threads: common.threads,
        memory: args.memory,
    };
    let mut after = before.clone();
    run_pipeline(&pipeline, &mut after, RunOptions::new(tools), &mut ())?;
    let mask = Mask::between(&before, &after).map_err(|e| {
        Failure::new(format!("the pipeline leaves no mask of `{}`: {e}", args.model.display())).hint(
            "weights keep their names and shapes with `sparsify{…,cascade=false}`, and without `fold-bn`",
        )
    })?;
    let bytes = mask.to_bytes().map_err(|e| Failure::new(e.to_string()))?;
    if args.output == std::path::Path::new("-") {
        voice.raw(&bytes);
        return Ok(Done::Well);
    }
    inputs::write_whole(&args.output, &bytes)?;
    let (all, stay) = mask.counts();
    voice.report(
        || json!({ "output": args.output, "tensors": mask.tensors.len(), "weights": all, "kept": stay }),
        || {
            format!(
                "{} of {} weights stay in {} tensors\nwrote {}\n",
                voice::count(stay as u64),
                voice::count(all as u64),
                mask.tensors.len(),
                args.output.display()
            )
        },
    );
    Ok(Done::Well)
}
