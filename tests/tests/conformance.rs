//! A sample of ONNX's node tests: files round-trip byte for byte, and `safe` changes no output.

use crate::support::{after, bytes, engine, root};
use pare_graph::onnx;
use pare_runtime::{
    Comparison, Feed, LoadOptions, ModelSource, Optimize, Tolerance, Verdict, read_test_data,
};
use std::{fs, path::Path};

/// Tests whose model does not run in the engine.
const NOT_RUN: &[&str] = &[
    "adagrad",
    "bernoulli_seed",
    "dequantizelinear",
    "optional_get_element_sequence",
    "optional_get_element_tensor",
    "optional_has_element_empty_optional_input",
    "optional_has_element_optional_input",
    "quantizelinear",
    "strnormalizer_export_monday_casesensintive_lower",
];

fn run(model: &[u8], optimize: Optimize, data: &Path) -> Result<Feed, String> {
    let options = LoadOptions::default().with_optimize(optimize);
    let mut session =
        engine().load(&ModelSource::bytes(model.to_vec()), &options).map_err(|e| e.to_string())?;
    let feed = read_test_data(data, "input", session.inputs()).map_err(|e| e.to_string())?;
    session.run(&feed).map_err(|e| e.to_string())
}

/// Returns whether the original runs. Errors are defects of `pare`.
fn conforms(folder: &Path) -> Result<bool, String> {
    let original = fs::read(folder.join("model.onnx")).map_err(|e| e.to_string())?;
    let model = onnx::read_bytes(original.clone(), None).map_err(|e| e.to_string())?;
    if bytes(&model)? != original {
        return Err("it is another file after reading and writing".into());
    }
    let (changed, _) = after(&"safe".parse().unwrap(), &model)?;
    let data = folder.join("test_data_set_0");
    let Ok(wanted) = run(&original, Optimize::Off, &data) else { return Ok(false) };
    let (mut drift, mut floor) = (Comparison::new(), Comparison::new());
    drift.add(&wanted, &run(&bytes(&changed)?, Optimize::Off, &data)?);
    if let Ok(deployed) = run(&original, Optimize::All, &data) {
        floor.add(&wanted, &deployed);
    }
    match Tolerance::default().judge(&drift, &floor) {
        Verdict::Equal => Ok(true),
        Verdict::Differs { output, why } => Err(format!("`{output}`: {why}")),
    }
}

#[test]
fn node_tests_round_trip_and_keep_their_outputs() {
    let folders = fs::read_dir(root().join("fixtures/nodes")).unwrap().map(|e| e.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|p| p.is_dir()).collect();
    folders.sort();
    assert_eq!(folders.len(), 77);
    let (mut wrong, mut not_run) = (vec![], vec![]);
    for folder in &folders {
        let name = folder.file_name().unwrap().to_str().unwrap();
        match conforms(folder) {
            Ok(true) => {}
            Ok(false) => not_run.push(name),
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(not_run, NOT_RUN);
}
