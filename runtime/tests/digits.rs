//! Real models through real engines. Each test says so and passes when its files or the library are not
//! there.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use pare_runtime::{
    Comparison, Contender, Engine, EngineChoice, EngineError, EngineKind, InputSpec, LoadOptions, Metrics,
    ModelSource, Optimize, Outcome, ProofOptions, SampleLimits, SampleSet, Session, Stopwatch, TractEngine,
    bench, prove, resolve,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// A file of the folder `shared` beside the repository, or of `PARE_SHARED`.
fn shared(file: &str) -> Option<PathBuf> {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    let folder = std::env::var_os("PARE_SHARED").map_or_else(beside, PathBuf::from);
    let path = folder.join(file);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: `{}` is not there", path.display());
    None
}

fn ort() -> Option<Arc<dyn Engine>> {
    let choice = EngineChoice { engine: EngineKind::Ort, offline: true, ..EngineChoice::default() };
    match resolve(&choice, &mut |_| {}) {
        Ok(resolved) => {
            println!("{}", resolved.note);
            Some(resolved.engine)
        }
        Err(EngineError::NotFound(_)) => {
            println!("skipped: no ONNX Runtime library");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn load(engine: &dyn Engine, path: &Path, optimize: Optimize) -> Box<dyn Session> {
    let options = LoadOptions { optimize, ..LoadOptions::default() };
    engine.load(&ModelSource::File(path.to_owned()), &options).unwrap()
}

#[test]
fn both_engines_recognise_digits_and_agree() {
    let (Some(model), Some(data)) = (shared("models/digits-cnn.onnx"), shared("data/digits.npz")) else {
        return;
    };
    let mut tract = load(&TractEngine::new(), &model, Optimize::All);
    let mut samples = SampleSet::open(&data, tract.inputs(), SampleLimits::default()).unwrap();
    let mut other = ort().map(|engine| load(&*engine, &model, Optimize::All));
    if let Some(ort) = &other {
        assert_eq!(ort.inputs(), tract.inputs());
        assert_eq!(ort.outputs()[0].name, tract.outputs()[0].name);
    }
    samples.truncate(100);
    let (mut comparison, mut metrics) = (Comparison::new(), Metrics::default());
    for batch in samples.batches(50) {
        let batch = batch.unwrap();
        let outputs = tract.run(&batch.feed).unwrap();
        let reference = match &mut other {
            Some(session) => session.run(&batch.feed).unwrap(),
            None => outputs.clone(),
        };
        let scores = |feed: &[(String, pare_runtime::Value)]| feed[0].1.as_tensor().unwrap().clone();
        metrics.add(&scores(&reference), &scores(&outputs), batch.labels.as_deref());
        comparison.add(&reference, &outputs);
    }
    let (_, deviation) = &comparison.outputs()[0];
    assert_eq!((deviation.misplaced, &deviation.mismatch), (0, &None));
    assert!(deviation.max_rel < 1e-4, "{deviation:?}");
    assert_eq!(metrics.agreement(), Some(1.0));
    assert!(metrics.candidate_accuracy().unwrap() > 0.95, "{metrics:?}");
}

#[test]
fn a_model_equals_itself_and_not_another() {
    let names = ["models/digits-cnn.onnx", "models/digits-init.onnx", "data/digits.npz"];
    let [Some(model), Some(other), Some(data)] = names.map(shared) else { return };
    let Some(engine) = ort() else { return };
    let session = load(&*engine, &model, Optimize::Off);
    let mut samples = SampleSet::open(&data, session.inputs(), SampleLimits::default()).unwrap();
    samples.truncate(32);
    let (model, other) = (ModelSource::File(model), ModelSource::File(other));
    let options = ProofOptions::default();
    let report = prove(&*engine, &model, &model, samples.batches(16), &options).unwrap();
    assert_eq!((report.outcome, report.samples, report.skipped), (Outcome::Equal, 32, 0));
    assert!(report.drift.outputs()[0].1.is_zero());
    let floor = &report.floor.outputs()[0].1;
    assert!(floor.max_rel < 1e-5, "{floor:?}");

    let mut generated = SampleSet::generated(session.inputs().iter().map(InputSpec::from).collect(), 1, 2);
    let report = prove(&*engine, &model, &other, generated.batches(1), &options).unwrap();
    let Outcome::Differs { output, why } = report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(output, session.outputs()[0].name);
    assert!(why.starts_with("it is off by up to "), "{why}");
}

#[test]
fn every_model_equals_itself_on_generated_samples() {
    let Some(folder) = shared("models/README.md").and_then(|path| path.parent().map(PathBuf::from)) else {
        return;
    };
    let Some(engine) = ort() else { return };
    for name in ["digits-fold", "digits-vit", "mnist-8", "silero-16k-op15", "gtcrn-simple", "magika-v3-3"] {
        let path = folder.join(format!("{name}.onnx"));
        let session = load(&*engine, &path, Optimize::Off);
        let inputs = session.inputs().iter().map(InputSpec::from).collect();
        let mut samples = SampleSet::generated(inputs, 0, 1);
        let model = ModelSource::File(path);
        let report = prove(&*engine, &model, &model, samples.batches(1), &ProofOptions::default()).unwrap();
        let floor = report.floor.outputs().iter().map(|(_, d)| d.max_rel).fold(0.0, f64::max);
        println!(
            "{name}: {:?}, floor {floor:.1e}, skipped {}, {:?}",
            report.outcome, report.skipped, report.notes
        );
        assert_eq!(report.outcome, Outcome::Equal, "{name}");
    }
}

#[test]
fn errors_of_onnx_runtime_are_one_sentence() {
    let (Some(model), Some(engine)) = (shared("models/digits-cnn.onnx"), ort()) else { return };
    let options = LoadOptions::default();
    let error = engine.load(&ModelSource::bytes(&b"no model"[..]), &options).err().unwrap();
    let text = error.to_string();
    assert!(text.starts_with("ONNX Runtime cannot load the model: "), "{text}");
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    let missing = ModelSource::File("/nonexistent/a.onnx".into());
    let text = engine.load(&missing, &options).err().unwrap().to_string();
    assert!(text.starts_with("ONNX Runtime cannot load `/nonexistent/a.onnx`: "), "{text}");
    let mut session = load(&*engine, &model, Optimize::Off);
    let name = session.inputs()[0].name.clone();
    let text = session.run(&[]).unwrap_err().to_string();
    assert!(text.starts_with(&format!("input `{name}` needs a value of type float[")), "{text}");
}

#[test]
fn prepared_feeds_are_timed() {
    let (Some(model), Some(data)) = (shared("models/digits-cnn.onnx"), shared("data/digits.npz")) else {
        return;
    };
    let Some(engine) = ort() else { return };
    let mut contenders: Vec<_> = [Optimize::All, Optimize::Off]
        .into_iter()
        .map(|optimize| {
            let session = load(&*engine, &model, optimize);
            let mut samples = SampleSet::open(&data, session.inputs(), SampleLimits::default()).unwrap();
            Contender::new(session, &[samples.batch(0..1).unwrap()]).unwrap()
        })
        .collect();
    let options = Stopwatch { min_time: Duration::from_millis(50), rounds: 5, ..Stopwatch::default() };
    let report = bench(&mut contenders, &options).unwrap();
    println!("{report:?}");
    assert!(report.rounds >= 5 && report.seconds.iter().all(|spread| spread.median > 0.0));
}

#[test]
fn external_data_is_found_beside_the_file_and_in_the_folder_given() {
    let Some(model) = shared("models/digits-cnn.onnx") else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("split.onnx");
    let read = pare_graph::onnx::read(&model, &pare_graph::onnx::ReadOptions::default()).unwrap();
    let small = pare_graph::onnx::WriteOptions { limit: 30_000, sync: false };
    let written = pare_graph::onnx::write(&read, &path, &small).unwrap();
    assert!(written.data.is_some(), "{written:?}");
    let bytes = std::fs::read(&path).unwrap().into();
    let sources =
        [ModelSource::File(path), ModelSource::Bytes { bytes, folder: Some(folder.path().to_owned()) }];
    let engines: Vec<Arc<dyn Engine>> =
        ort().into_iter().chain([Arc::new(TractEngine::new()) as Arc<dyn Engine>]).collect();
    for engine in engines {
        let mut whole = load(&*engine, &model, Optimize::Off);
        let inputs: Vec<_> = whole.inputs().iter().map(InputSpec::from).collect();
        let feed = SampleSet::generated(inputs, 3, 1).batch(0..1).unwrap();
        let wanted = whole.run(&feed).unwrap();
        for source in &sources {
            let options = LoadOptions { optimize: Optimize::Off, ..LoadOptions::default() };
            let got = engine.load(source, &options).unwrap().run(&feed).unwrap();
            assert_eq!(got, wanted, "{} {source}", engine.name());
        }
    }
}

#[test]
fn custom_operators_come_only_with_their_library() {
    let (Some(model), Some(engine)) = (shared("models/super-resolution-prepost.onnx"), ort()) else { return };
    let source = ModelSource::File(model);
    let error = engine.load(&source, &LoadOptions::default()).err().unwrap();
    assert!(error.hint().unwrap().contains("--custom-ops"), "{error}");
    let options =
        LoadOptions { custom_op_libraries: vec!["/nonexistent.so".into()], ..LoadOptions::default() };
    let text = engine.load(&source, &options).err().unwrap().to_string();
    assert!(text.contains("/nonexistent.so"), "{text}");
}
