//! ONNX's own tests of operators, when `ONNX_NODE_TESTS` names the folder that holds them: every element
//! type, sequences and optionals go in and come out.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use pare_runtime::{
    Deviation, EngineChoice, EngineError, EngineKind, LoadOptions, ModelSource, Optimize, SamplesError,
    Value, read_test_data, resolve,
};
use std::{collections::BTreeMap, fs, path::Path};

enum Fate {
    Passed,
    /// The outputs are not those expected.
    Off(String),
    /// The engine cannot load or run the model.
    Refused(String),
    /// Values did not get in or out: this crate's fault.
    Lost(String),
}

impl Fate {
    fn why(&self) -> &str {
        match self {
            Self::Passed => "",
            Self::Off(why) | Self::Refused(why) | Self::Lost(why) => why,
        }
    }
}

fn run(engine: &dyn pare_runtime::Engine, folder: &Path) -> Fate {
    let options = LoadOptions { optimize: Optimize::Off, ..LoadOptions::default() };
    let mut session = match engine.load(&ModelSource::File(folder.join("model.onnx")), &options) {
        Ok(session) => session,
        Err(error) => return Fate::Refused(error.to_string()),
    };
    let data = folder.join("test_data_set_0");
    let lost = |error: SamplesError| Fate::Lost(error.to_string());
    let feed = match read_test_data(&data, "input", session.inputs()) {
        Ok(feed) => feed,
        Err(error) => return lost(error),
    };
    let wanted = match read_test_data(&data, "output", session.outputs()) {
        Ok(feed) => feed,
        Err(error) => return lost(error),
    };
    let got = match session.run(&feed) {
        Ok(outputs) => outputs,
        Err(error @ EngineError::Run { .. }) => return Fate::Refused(error.to_string()),
        Err(error) => return Fate::Lost(error.to_string()),
    };
    for (name, wanted) in &wanted {
        let Some((_, got)) = got.iter().find(|(other, _)| other == name) else {
            return Fate::Off(format!("`{name}` is missing"));
        };
        let plain = |value: &Value| match value {
            Value::Optional(Some(inner)) => (**inner).clone(),
            value => value.clone(),
        };
        let deviation = Deviation::between(&plain(wanted), &plain(got));
        let off = deviation.max_rel > 2e-2 || deviation.misplaced > 0 || deviation.mismatch.is_some();
        if off || (deviation.differing > 0 && deviation.max_abs == 0.0) {
            return Fate::Off(format!("{deviation:?}"));
        }
    }
    Fate::Passed
}

#[test]
fn values_of_every_type_get_in_and_out() {
    let Some(folder) = std::env::var_os("ONNX_NODE_TESTS") else {
        println!("skipped: ONNX_NODE_TESTS is not set");
        return;
    };
    let choice = EngineChoice { engine: EngineKind::Ort, offline: true, ..EngineChoice::default() };
    let Ok(resolved) = resolve(&choice, &mut |_| {}) else {
        println!("skipped: no ONNX Runtime library");
        return;
    };
    for engine in [&*resolved.engine, &pare_runtime::TractEngine::new()] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut lost = Vec::new();
        let mut folders: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        for folder in folders {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let fate = run(engine, &folder);
            let kind = match &fate {
                Fate::Passed => "passed",
                Fate::Off(_) => "off",
                Fate::Refused(_) => "refused",
                Fate::Lost(_) => "lost",
            };
            *counts.entry(kind).or_default() += 1;
            if !matches!(fate, Fate::Passed) {
                println!("{} {name}: {kind} {}", engine.name(), fate.why());
            }
            if matches!(fate, Fate::Lost(_)) {
                lost.push(name);
            }
        }
        println!("{} {counts:?}", engine.name());
        // tract takes fewer types, and says so.
        assert!(lost.is_empty() || engine.name() == "tract", "{lost:?}");
    }
}
