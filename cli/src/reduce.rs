//! `pare reduce`: the smallest model on which a pipeline still fails.

use crate::{
    args::{Common, Prove, ReduceArgs},
    failure::{Done, Failure},
    inputs::{self, Engines},
    optimize::Work,
    proof::Limits,
    proving::{Proving, TRIALS},
    voice::Voice,
};
use pare_graph::onnx;
use pare_passes::Tools;
use serde_json::json;

pub fn run(args: &ReduceArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let work = Work {
        model: args.model.clone(),
        output: args.output.clone(),
        pipeline: args.passes.parse().map_err(|e| Failure::pipeline(&e, &args.passes))?,
        samples: None,
        statistics: vec![],
        test: None,
        limits: Limits::default(),
        prove: Prove::Whole,
        freeze_initializers: false,
        stop_after: args.stop_after,
        print_after: None,
        verbose: false,
        memory: args.memory,
    };
    inputs::check_output(&work.output)?;
    let loaded = inputs::model(&work.model)?;
    let engines = Engines::new(common, voice);
    let tools = Tools {
        engine: Some(&engines),
        progress: voice,
        seed: common.seed,
        threads: common.threads,
        memory: work.memory,
        ..Tools::default()
    };
    let proving = Proving::new(&work, common, voice, &engines, tools, &loaded.model, loaded.source.clone());
    let Some(fault) = proving.fault(&loaded.model) else {
        voice.report(
            || json!({ "model": work.model, "fault": null, "written": false }),
            || "the pipeline does not fail on this model\n".to_owned(),
        );
        return Ok(Done::Well);
    };
    let none = || Failure::new(format!("the fault does not repeat: {}", fault.why));
    let (small, fault) = proving.reproducer(&loaded.model, fault.kind).ok_or_else(none)?;
    onnx::write(&small, &work.output, &onnx::WriteOptions::default())?;
    let (before, after) = (loaded.model.node_count(), small.node_count());
    voice.report(
        || {
            json!({
                "model": work.model, "output": work.output, "pipeline": work.pipeline.to_string(),
                "fault": fault.why, "nodes_before": before, "nodes_after": after, "trials_at_most": TRIALS,
                "written": true,
            })
        },
        || format!("{}\nwrote {}, {after} of {before} nodes\n", fault.why, work.output.display()),
    );
    Ok(Done::CheckFailed)
}
