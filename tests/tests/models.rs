//! Real models: the result of `safe` is valid, equal and has the same interface.
//!
//! They are read from the folder `PARE_MODELS`, by default `../shared/models`.

use crate::support::{after, root, same_interface, same_outputs};
use pare_graph::onnx;
use pare_passes::Effect;
use std::{fs, path::Path, path::PathBuf};

/// Models with operators that the engine does not have.
const NOT_RUN: &[&str] = &["super-resolution-prepost"];

fn check(path: &Path) -> Result<(), String> {
    let model = onnx::read(path, &onnx::ReadOptions::default()).map_err(|e| e.to_string())?;
    let (mut changed, report) = after(&"safe".parse().unwrap(), &model)?;
    if report.unfinished {
        return Err("it still changes in the last round".into());
    }
    changed.check().map_err(|e| e.to_string())?;
    changed.infer().map_err(|e| e.to_string())?;
    same_interface(&model, &changed)?;
    same_outputs(&model, &changed, Effect::Rounding, 1)
}

#[test]
#[ignore = "needs the models in PARE_MODELS or ../shared/models"]
fn safe_keeps_real_models_equal() {
    let folder =
        std::env::var_os("PARE_MODELS").map_or_else(|| root().join("../shared/models"), PathBuf::from);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    assert!(!paths.is_empty(), "there are no models in `{}`", folder.display());
    let mut failures = vec![];
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        match (check(&path), NOT_RUN.contains(&name)) {
            (Err(why), true) if why.starts_with("Unproven") => {}
            (Ok(()), true) => failures.push(format!("{name}: it runs")),
            (Ok(()), false) => {}
            (Err(why), _) => failures.push(format!("{name}: {why}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
