//! ONNX's own tests of operators, in both engines: values of every element type, sequences and optional
//! values are converted both ways. The tests are in `fixtures/nodes`, or in the folder `ONNX_NODE_TESTS`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use pare_runtime::{
    Deviation, Engine, EngineChoice, EngineError, EngineKind, LoadOptions, ModelSource, Optimize,
    TractEngine, Value, read_test_data, resolve,
};
use std::{collections::BTreeMap, fs, path::Path};

/// Why a test did not pass.
enum Failure {
    /// The outputs deviate from the expected ones.
    Deviates(String),
    /// The engine cannot load or run the model.
    Rejected(String),
    /// A value cannot be read or converted, which is a defect of this crate.
    Conversion(String),
}

fn run(engine: &dyn Engine, folder: &Path) -> Result<(), Failure> {
    let options = LoadOptions { optimize: Optimize::Off, ..LoadOptions::default() };
    let loaded = engine.load(&ModelSource::File(folder.join("model.onnx")), &options);
    let mut session = loaded.map_err(|error| Failure::Rejected(error.to_string()))?;
    let read = |role: &str, ports: &_| {
        let data = read_test_data(&folder.join("test_data_set_0"), role, ports);
        data.map_err(|error| Failure::Conversion(error.to_string()))
    };
    let (feed, expected) = (read("input", session.inputs())?, read("output", session.outputs())?);
    let outputs = session.run(&feed).map_err(|error| match error {
        EngineError::Run { .. } => Failure::Rejected(error.to_string()),
        _ => Failure::Conversion(error.to_string()),
    })?;
    for (name, expected) in &expected {
        let Some((_, output)) = outputs.iter().find(|(other, _)| other == name) else {
            return Err(Failure::Deviates(format!("`{name}` is missing")));
        };
        let present = |value: &Value| match value {
            Value::Optional(Some(inner)) => (**inner).clone(),
            value => value.clone(),
        };
        let deviation = Deviation::between(&present(expected), &present(output));
        let deviates = deviation.max_rel > 2e-2 || deviation.misplaced > 0 || deviation.mismatch.is_some();
        if deviates || (deviation.differing > 0 && deviation.max_abs == 0.0) {
            return Err(Failure::Deviates(format!("{deviation:?}")));
        }
    }
    Ok(())
}

#[test]
fn converts_values_of_every_type() {
    let fixtures = || concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/nodes").into();
    let folder = std::env::var_os("ONNX_NODE_TESTS").unwrap_or_else(fixtures);
    let choice = EngineChoice { engine: EngineKind::Ort, ..EngineChoice::default() };
    let ort = resolve(&choice, &mut |_| {}).unwrap().engine;
    for engine in [&*ort, &TractEngine::new()] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut failed_conversions = Vec::new();
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let (outcome, why) = match run(engine, &folder) {
                Ok(()) => ("passed", None),
                Err(Failure::Deviates(why)) => ("deviates", Some(why)),
                Err(Failure::Rejected(why)) => ("rejected", Some(why)),
                Err(Failure::Conversion(why)) => {
                    failed_conversions.push(name.clone());
                    ("conversion", Some(why))
                }
            };
            *counts.entry(outcome).or_default() += 1;
            if let Some(why) = why {
                println!("{} {name}: {outcome} {why}", engine.name());
            }
        }
        println!("{} {counts:?}", engine.name());
        // tract supports fewer types.
        assert!(failed_conversions.is_empty() || engine.name() == "tract", "{failed_conversions:?}");
    }
}
