//! Tests of projects, of the examples for build tools, and of the documentation of reports.

use super::{code, fixture, json, root, run, stderr};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const PROJECT: &str = r#"
[pipelines]
small = "safe,prune-channels{ratio=0.2}"

[[model]]
input = "digits-cnn.onnx"
output = "out/cnn.onnx"
pipeline = "small"
samples = "digits-calibration.npz"
test = "digits.npz"
limits = { min_agreement = 0.9 }

[[model]]
input = "digits-fold.onnx"
output = "out/fold.onnx"
"#;

fn states(report: &Value) -> Vec<&str> {
    report["models"].as_array().unwrap().iter().map(|m| m["state"].as_str().unwrap()).collect()
}

#[test]
fn rebuilds_a_model_only_if_something_changed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-cnn.onnx", "digits-fold.onnx", "digits.npz", "digits-calibration.npz"] {
        fixture(at, name);
    }
    fs::write(at.join("pare.toml"), PROJECT).unwrap();
    let project = |more: &[&str]| run(at, &[&["optimize", "--config", "pare.toml", "--json"], more].concat());
    let check = project(&["--check"]);
    assert!(code(&check) == 1 && states(&json(&check)) == ["stale", "stale"], "{}", stderr(&check));
    assert!(!at.join("out").exists() && !at.join("pare.lock").exists(), "a check builds nothing");

    let built = project(&[]);
    assert_eq!(code(&built), 0, "{}", stderr(&built));
    assert_eq!(states(&json(&built)), ["built", "built"]);
    let bytes = || fs::read(at.join("out/cnn.onnx")).unwrap();
    let (first, lock) = (bytes(), fs::read(at.join("pare.lock")).unwrap());
    for more in [&[][..], &["--check"]] {
        let again = project(more);
        assert_eq!((code(&again), states(&json(&again))), (0, vec!["fresh", "fresh"]), "{}", stderr(&again));
    }
    assert_eq!(fs::read(at.join("pare.lock")).unwrap(), lock);

    // Touched, but not changed.
    fs::write(at.join("digits-cnn.onnx"), fs::read(at.join("digits-cnn.onnx")).unwrap()).unwrap();
    assert_eq!(code(&project(&["--check"])), 0);
    // A changed pipeline, a changed output, a changed input.
    fs::write(at.join("pare.toml"), PROJECT.replace("ratio=0.2", "ratio=0.3")).unwrap();
    let check = project(&["--check"]);
    assert_eq!(states(&json(&check)), ["stale", "fresh"]);
    assert!(stderr(&check).contains("`out/cnn.onnx` is stale: the pipeline changed"), "{}", stderr(&check));
    fs::write(at.join("pare.toml"), PROJECT).unwrap();
    fs::write(at.join("out/fold.onnx"), "changed").unwrap();
    let check = project(&["--check"]);
    assert!(
        stderr(&check).contains("`out/fold.onnx` is stale: `out/fold.onnx` changed"),
        "{}",
        stderr(&check)
    );
    fs::copy(at.join("digits-cnn.onnx"), at.join("digits-fold.onnx")).unwrap();
    let built = project(&[]);
    assert_eq!(states(&json(&built)), ["fresh", "built"], "{}", stderr(&built));
    assert!(bytes() == first);

    // An exceeded limit: exit code 1; the output is unchanged and stale.
    fs::write(at.join("pare.toml"), PROJECT.replace("min_agreement = 0.9", "min_agreement = 1.1")).unwrap();
    let broken = project(&[]);
    assert!(code(&broken) == 1 && states(&json(&broken)) == ["failed", "fresh"], "{}", stderr(&broken));
    assert!(stderr(&broken).contains("keep their class in `logits`, fewer than 1.1"), "{}", stderr(&broken));
    assert!(bytes() == first);
    assert_eq!(code(&project(&["--check"])), 1);
}

/// Copies `examples/build` and the fixtures that it uses.
fn example(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder.join("fixtures")).unwrap();
    for name in ["digits-cnn.onnx", "digits-fold.onnx", "digits.npz", "digits-calibration.npz"] {
        fixture(&folder.join("fixtures"), name);
    }
    let to = folder.join("examples/build");
    fs::create_dir_all(&to).unwrap();
    for name in ["Makefile", "pare.toml", "github-actions.yml"] {
        fs::copy(root().join("examples/build").join(name), to.join(name)).unwrap();
    }
    to
}

/// Runs a script in a shell that finds the tested `pare`.
fn shell(folder: &Path, script: &str) -> std::process::Output {
    let bin = Path::new(env!("CARGO_BIN_EXE_pare")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-ec", script]).env("PATH", path).current_dir(folder).output().unwrap()
}

#[test]
#[cfg(unix)]
fn runs_the_examples_for_build_tools() {
    let folder = tempfile::tempdir().unwrap();
    let at = example(folder.path());
    let stale = shell(&at, "make check");
    assert!(!stale.status.success(), "nothing is built yet");
    let built = shell(&at, "make && make check");
    assert!(built.status.success(), "{}", stderr(&built));
    let again = shell(&at, "make");
    assert!(String::from_utf8_lossy(&again.stdout).matches("fresh").count() == 2, "{again:?}");

    // Every step of the workflow, except installations.
    let workflow = fs::read_to_string(at.join("github-actions.yml")).unwrap();
    let steps: Vec<_> =
        workflow.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix("run: ")).collect();
    let steps: Vec<_> = steps.into_iter().filter(|step| !step.contains("install")).collect();
    assert!(!steps.is_empty());
    for step in steps {
        let ran = shell(&at, step);
        assert!(ran.status.success(), "{step}: {}", stderr(&ran));
    }
}

/// Collects the names of the fields of a report, except those of free-form maps.
fn fields(report: &Value, all: &mut BTreeSet<String>) {
    match report {
        Value::Object(map) => {
            for (key, value) in map {
                all.insert(key.clone());
                if !["counts", "declined", "figures", "opsets", "operators"].contains(&key.as_str()) {
                    fields(value, all);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, all)),
        _ => {}
    }
}

#[test]
fn documents_every_field_of_reports() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-cnn.onnx", "digits-fold.onnx", "digits.npz", "digits-calibration.npz"] {
        fixture(at, name);
    }
    fs::write(at.join("pare.toml"), PROJECT).unwrap();
    let commands: [&[&str]; 6] = [
        &["optimize", "digits-fold.onnx", "-o", "a.onnx", "--samples", "digits.npz", "--prove", "each"],
        &["optimize", "--config", "pare.toml"],
        &["verify", "digits-fold.onnx", "a.onnx"],
        &["reduce", "digits-fold.onnx", "-o", "b.onnx"],
        &["inspect", "digits-fold.onnx", "--layers"],
        &["bench", "digits-fold.onnx", "--rounds", "2", "--time", "0.01"],
    ];
    let described = fs::read_to_string(root().join("cli/REPORTS.md")).unwrap();
    let mut all = BTreeSet::new();
    for args in commands {
        let report = json(&run(at, &[args, &["--json"]].concat()));
        assert_eq!(report["schema"], 2, "{args:?}");
        fields(&report, &mut all);
    }
    let missing: Vec<_> = all.iter().filter(|f| !described.contains(&format!("`{f}`"))).collect();
    assert!(missing.is_empty(), "not in cli/REPORTS.md: {missing:?}");
}
