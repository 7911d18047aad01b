//! Tests of `pare search`.

use super::{code, fixture, json, pare, run, stderr};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
};

const MODEL: &str = "digits-cnn.onnx";
const SAMPLES: &str = "digits-calibration.npz";
const TEST: &str = "digits.npz";

/// A folder with a model, samples, and a cache of its own that has the same ONNX Runtime.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    [MODEL, SAMPLES, TEST].iter().for_each(|name| drop(fixture(folder.path(), name)));
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    #[cfg(unix)]
    for entry in onnx_pare::engines::cache_folder().into_iter().flat_map(fs::read_dir).flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("onnxruntime-") {
            std::os::unix::fs::symlink(entry.path(), cache.join(entry.file_name())).unwrap();
        }
    }
    folder
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = pare(folder);
    command.env("PARE_CACHE", folder.join("cache"));
    command.args(["search", MODEL, "-o", "found.onnx", "--samples", SAMPLES, "--json"]).args(args);
    command
}

fn search(folder: &Path, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

fn trials(report: &Value) -> &Vec<Value> {
    report["trials"].as_array().unwrap()
}

#[test]
fn the_printed_pipeline_makes_the_same_bytes_and_a_second_search_resumes() {
    let folder = folder();
    let at = folder.path();
    let args = ["--test", TEST, "--max-accuracy-drop", "0.05", "--goal", "macs", "--passes", "blocks"];
    let found = search(at, &[&args[..], &["--front", "front", "--report", "report.html"]].concat());
    assert_eq!(code(&found), 0, "{}", stderr(&found));
    let report = json(&found);
    let best = &report["best"]["measured"];
    assert!(
        best["accuracy_drop"].as_f64().unwrap() <= 0.05 && best["cost"].as_f64().unwrap() < 0.8,
        "{best}"
    );
    assert!(report["confidence"].as_f64().unwrap() >= 0.5);
    assert_eq!(report["result"]["after"]["macs"], best["macs"]);

    // The front is written, and no entry is better than the next in both.
    let front: Vec<Value> = serde_json::from_slice(&fs::read(at.join("front/front.json")).unwrap()).unwrap();
    assert!(front.len() > 1 && at.join("front/00.onnx").is_file());
    let measured = |entry: &Value, name: &str| entry["measured"][name].as_f64().unwrap();
    for pair in front.windows(2) {
        assert!(measured(&pair[0], "drift") <= measured(&pair[1], "drift"));
        assert!(measured(&pair[0], "cost") > measured(&pair[1], "cost"));
    }

    // The page has a mark for every candidate that was measured.
    let page = fs::read_to_string(at.join("report.html")).unwrap();
    let marks = trials(&report).iter().filter(|trial| trial["measured"].is_object()).count();
    assert!(page.contains(&format!("data-marks=\"{marks}\"")) && page.matches("<circle").count() == marks);

    let pipeline = report["pipeline"].as_str().unwrap();
    let args_again =
        ["optimize", MODEL, "-o", "again.onnx", "--samples", SAMPLES, "--test", TEST, "--passes", pipeline];
    let again = run(at, &args_again);
    assert_eq!(code(&again), 0, "{}", stderr(&again));
    assert!(fs::read(at.join("found.onnx")).unwrap() == fs::read(at.join("again.onnx")).unwrap());

    let second = json(&search(at, &args));
    assert_eq!(second["resumed"].as_u64().unwrap(), trials(&report).len() as u64);
    assert_eq!((&second["trials"], &second["end"]), (&report["trials"], &"finished".into()));
    assert_eq!(second["pipeline"], report["pipeline"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_the_best_so_far_and_a_second_start_continues() {
    let folder = folder();
    let at = folder.path();
    let args = ["--test", TEST, "--max-accuracy-drop", "0.05", "--goal", "bytes"];
    let mut running = command(at, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stderr.take().unwrap()).lines();
    // INT8 is tried first, and `safe` before it.
    let tried = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("quantize")));
    assert!(tried.is_some());
    let killed = Command::new("kill").args(["-INT", &running.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    let output = running.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{rest:?}");
    let report = json(&output);
    assert_eq!(
        (&report["end"], &report["pipeline"]),
        (&"cancelled".into(), &"safe,quantize{for=size}".into())
    );
    assert!(at.join("found.onnx").is_file());

    let second = json(&search(at, &[&args[..], &["--passes", "precision"]].concat()));
    assert!(second["resumed"].as_u64().unwrap() >= 2, "{}", second["resumed"]);
    assert_eq!(second["end"], "finished");
}

#[test]
fn safe_is_the_result_if_no_candidate_keeps_the_limit() {
    let folder = folder();
    let at = folder.path();
    let found = search(at, &["--max-drift", "0", "--goal", "bytes", "--passes", "blocks"]);
    assert_eq!(code(&found), 0, "{}", stderr(&found));
    let report = json(&found);
    assert_eq!((&report["pipeline"], &report["best"]), (&"safe".into(), &Value::Null));
    assert_eq!(code(&run(at, &["optimize", MODEL, "-o", "safe.onnx"])), 0);
    assert!(fs::read(at.join("found.onnx")).unwrap() == fs::read(at.join("safe.onnx")).unwrap());
}

/// A network without residual streams loses the same channels with and without them.
#[test]
fn the_same_candidate_is_not_measured_twice() {
    let folder = folder();
    fixture(folder.path(), "digits-fold.onnx");
    let args =
        ["search", "digits-fold.onnx", "-o", "found.onnx", "--samples", SAMPLES, "--json", "--goal", "macs"];
    let args =
        [&args[..], &["--max-drift", "0.05", "--passes", "channels,streams", "--budget", "30s"]].concat();
    let found = run(folder.path(), &args);
    assert_eq!(code(&found), 0, "{}", stderr(&found));
    let report = json(&found);
    let skipped: Vec<_> = trials(&report).iter().filter_map(|trial| trial["skipped"].as_str()).collect();
    assert!(
        skipped.iter().any(|why| why.starts_with("it makes the same model as `safe,prune-channels{")),
        "{skipped:?}"
    );
}

#[cfg(unix)]
#[test]
fn a_metric_of_the_caller_is_limited() {
    let folder = folder();
    // The metric falls by 1 with the size of the file, so every candidate that is smaller loses.
    let size = fs::metadata(folder.path().join(MODEL)).unwrap().len();
    let evaluate = format!("test $(wc -c < {{model}}) -ge {} && echo 1 || echo 0", size * 9 / 10);
    let args =
        ["--goal", "bytes", "--passes", "precision", "--evaluate", &evaluate, "--max-metric-drop", "0.5"];
    let report = json(&search(folder.path(), &args));
    assert_eq!((&report["metric"], &report["pipeline"]), (&1.0.into(), &"safe".into()));
    let quantized =
        trials(&report).iter().find(|trial| trial["pipeline"] == "safe,quantize{for=size}").unwrap();
    assert_eq!(quantized["measured"]["metric_drop"], 1.0);
}

#[test]
fn what_cannot_be_searched_is_one_sentence() {
    let folder = folder();
    let at = folder.path();
    let error = |args: &[&str]| {
        let output = search(at, args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(!at.join("found.onnx").exists());
        stderr(&output)
    };
    let accuracy = "error: the samples have no `labels`, so accuracy cannot be measured\n";
    assert!(error(&["--max-accuracy-drop", "0.01"]).ends_with(accuracy));
    assert_eq!(
        error(&[]),
        "error: a search needs a limit on the loss of quality\n\
         hint: give one, such as `--max-accuracy-drop 0.01` or `--min-agreement 0.97`\n"
    );
    let families = "hint: the families are blocks, activations, heads, hidden, channels, streams, tokens, training, precision\n";
    assert_eq!(
        error(&["--min-agreement", "0.9", "--passes", "chanels"]),
        format!("error: there is no family of passes `chanels`\n{families}")
    );
    let failing = error(&["--evaluate", "echo none >&2; exit 3 # {model}", "--max-metric-drop", "0.1"]);
    assert!(failing.contains("it failed with exit status: 3: none"), "{failing}");
    assert!(error(&["--evaluate", "echo 1", "--max-metric-drop", "0.1"]).contains("does not name the model"));
    assert!(error(&["--min-agreement", "0.9", "--test", "none.npz"]).contains("none.npz"));
}
