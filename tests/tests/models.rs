//! Real models, where they lie beside the workspace: `safe` leaves each sound and equal.
//!
//! They are found in `../shared/models`, or in the folder that `PARE_MODELS` names.

use crate::support::{after, number, root, same_interface, same_outputs};
use pare_graph::onnx;
use pare_passes::Effect;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Models with operators that the engine does not have: they pass through.
const NOT_RUN: &[&str] = &["super-resolution-prepost"];

#[test]
#[allow(clippy::print_stderr, reason = "a test that skips says so")]
fn real_models_stay_equal() {
    let folder =
        std::env::var_os("PARE_MODELS").map_or_else(|| root().join("../shared/models"), PathBuf::from);
    let Ok(entries) = fs::read_dir(&folder) else {
        eprintln!("skipped: there are no models in `{}`", folder.display());
        return;
    };
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    paths.sort_by_key(|p| fs::metadata(p).map_or(0, |m| m.len()));
    // Small ones first; what time does not allow is left to a heavy run.
    let (start, allowed) = (Instant::now(), Duration::from_secs(number("PARE_MODEL_SECONDS", 60)));
    let (mut wrong, mut left) = (vec![], vec![]);
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if start.elapsed() > allowed {
            left.push(name);
            continue;
        }
        let check = || {
            let model = onnx::read(&path, &onnx::ReadOptions::default()).map_err(|e| e.to_string())?;
            let (mut changed, report) = after(&"safe".parse().unwrap(), &model)?;
            if report.unfinished {
                return Err("it still changes after the last round".into());
            }
            changed.check().map_err(|e| e.to_string())?;
            changed.infer().map_err(|e| e.to_string())?;
            same_interface(&model, &changed)?;
            same_outputs(&model, &changed, Effect::Rounding, 1)
        };
        match check() {
            Err(why) if NOT_RUN.contains(&name.as_str()) && why.starts_with("Unproven") => {}
            Ok(()) if NOT_RUN.contains(&name.as_str()) => wrong.push(format!("{name}: it runs")),
            Ok(()) => {}
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if !left.is_empty() {
        eprintln!("skipped for lack of time: {left:?}");
    }
}
