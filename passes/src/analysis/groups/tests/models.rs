//! Real models: each is cut at random and compared with zeroing, and each pinned group has a reason.

use super::compare_with_zeroing;
use crate::{
    analysis::{groups::Groups, prepare::PREPARATION},
    framework::{Pipeline, RunOptions, run, testing::tools},
};
use pare_graph::{Model, Setting, onnx};
use pare_runtime::{SampleSet, SharedSamples, input_specs};
use std::path::PathBuf;

/// Folders of models: the shared one, and those in `PARE_MODELS`.
fn folders() -> Vec<PathBuf> {
    let shared = std::env::var("PARE_SHARED")
        .map_or_else(|_| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let more = std::env::var("PARE_MODELS").unwrap_or_default();
    std::iter::once(shared.join("models"))
        .chain(std::env::split_paths(&more))
        .filter(|f| f.is_dir())
        .collect()
}

fn prepared(path: &PathBuf) -> Result<Model, String> {
    let mut model = onnx::read(path, &onnx::ReadOptions::default()).map_err(|e| e.to_string())?;
    let pipeline: Pipeline = PREPARATION.parse().map_err(|_| "the preparation is not a pipeline")?;
    run(&pipeline, &mut model, RunOptions { tools: tools(), stop_after: None }, &mut ())
        .map_err(|e| e.to_string())?;
    model.infer().map_err(|e| e.to_string())?;
    Ok(model)
}

/// Takes minutes: `cargo test -p pare-passes --lib real_models -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes, and needs models that are not in the repository"]
#[allow(clippy::print_stdout)] // a table of the results
fn cutting_equals_zeroing_on_real_models() {
    let mut cut = 0;
    for folder in folders() {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
        paths.sort();
        for path in paths {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let model = match prepared(&path) {
                Ok(model) => model,
                Err(why) => {
                    println!("{name}: {why}");
                    continue;
                }
            };
            if let Err(why) = tools().engine.unwrap().load(&model, Setting::PLAIN) {
                println!("{name}: {why}");
                continue;
            }
            let groups = Groups::of(&model.graph);
            let pinned = groups.groups.iter().filter(|g| g.pinned.is_some());
            assert!(pinned.clone().all(|g| g.pinned.as_deref().is_some_and(|why| !why.is_empty())));
            let samples = SharedSamples::from(SampleSet::generated(input_specs(&model), 0, 1));
            let Ok(sample) = pare_graph::Samples::batch(&samples, 0..1) else {
                println!("{name}: no samples");
                continue;
            };
            let feeds: Vec<_> = sample.iter().map(|(n, t)| (n.as_str(), t)).collect();
            let (open, lost) = compare_with_zeroing(&model, &feeds, 1);
            println!(
                "{name}: {open} groups can lose units, {} are pinned; {lost} cut, equal to zeroing",
                pinned.count()
            );
            cut += lost;
        }
    }
    assert!(cut > 100 || folders().is_empty(), "{cut}");
}
