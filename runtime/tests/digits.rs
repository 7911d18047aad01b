//! Real models in both engines.
#![allow(clippy::unwrap_used)]

use pare_runtime::{
    Comparison, Contender, Engine, EngineChoice, EngineKind, Hint, InputSpec, LoadOptions, Metrics,
    ModelSource, Optimize, Outcome, OutputMeasure, ProofOptions, SampleLimits, SampleSet, Session, Stopwatch,
    TractEngine, bench, prove, resolve,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

fn fixture(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures")).join(file)
}

/// A file of `PARE_SHARED`, or of the folder `shared` beside the repository.
fn shared(file: &str) -> PathBuf {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    std::env::var_os("PARE_SHARED").map_or_else(beside, PathBuf::from).join(file)
}

/// ONNX Runtime, which these tests need.
fn ort() -> Arc<dyn Engine> {
    let choice = EngineChoice { engine: EngineKind::Ort, ..EngineChoice::default() };
    resolve(&choice, &mut |_| {}).unwrap().engine
}

fn load(engine: &dyn Engine, path: &Path, optimize: Optimize) -> Box<dyn Session> {
    let options = LoadOptions { optimize, ..LoadOptions::default() };
    engine.load(&ModelSource::File(path.to_owned()), &options).unwrap()
}

#[test]
fn engines_agree_on_digits() {
    let (model, data) = (fixture("digits-cnn.onnx"), fixture("digits.npz"));
    let mut tract = load(&TractEngine::new(), &model, Optimize::All);
    let mut samples = SampleSet::open(&data, tract.inputs(), SampleLimits::default()).unwrap();
    let mut ort = load(&*ort(), &model, Optimize::All);
    assert_eq!(ort.inputs(), tract.inputs());
    assert_eq!(ort.outputs()[0].name, tract.outputs()[0].name);
    samples.truncate(100);
    let (mut comparison, mut metrics) = (Comparison::new(), Metrics::new(OutputMeasure::CLASSES));
    for batch in samples.batches(50) {
        let batch = batch.unwrap();
        let outputs = tract.run(&batch.feed).unwrap();
        let reference = ort.run(&batch.feed).unwrap();
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
fn proof_distinguishes_models() {
    let [model, other, data] = ["digits-cnn.onnx", "digits-init.onnx", "digits.npz"].map(fixture);
    let engine = ort();
    let session = load(&*engine, &model, Optimize::Off);
    let mut samples = SampleSet::open(&data, session.inputs(), SampleLimits::default()).unwrap();
    samples.truncate(32);
    let (model, other) = (ModelSource::File(model), ModelSource::File(other));
    let options = ProofOptions::default();
    let report = prove(&*engine, &model, &model, samples.batches(16), &options).unwrap();
    assert_eq!((report.outcome, report.samples, report.skipped), (Outcome::Equal, 32, 0));
    assert!(report.deviation.outputs()[0].1.is_zero());
    let floor = &report.floor.outputs()[0].1;
    assert!(floor.max_rel < 1e-5, "{floor:?}");

    let mut generated = SampleSet::generated(session.inputs().iter().map(InputSpec::from).collect(), 1, 2);
    let report = prove(&*engine, &model, &other, generated.batches(1), &options).unwrap();
    let Outcome::Differs { output, why } = report.outcome else { panic!("{:?}", report.outcome) };
    assert_eq!(output, session.outputs()[0].name);
    assert!(why.starts_with("it is off by up to "), "{why}");
}

fn proves_model_equal_to_itself(path: PathBuf) {
    let engine = ort();
    let session = load(&*engine, &path, Optimize::Off);
    let inputs = session.inputs().iter().map(InputSpec::from).collect();
    let mut samples = SampleSet::generated(inputs, 0, 1);
    let model = ModelSource::File(path);
    let report = prove(&*engine, &model, &model, samples.batches(1), &ProofOptions::default()).unwrap();
    assert_eq!(report.outcome, Outcome::Equal, "{model}: {:?}", report.notes);
}

#[test]
fn models_equal_themselves_on_generated_samples() {
    for file in ["digits-fold.onnx", "digits-vit.onnx"] {
        proves_model_equal_to_itself(fixture(file));
    }
}

#[test]
#[ignore = "needs the models in PARE_SHARED"]
fn shared_models_equal_themselves_on_generated_samples() {
    for name in ["mnist-8", "silero-16k-op15", "gtcrn-simple", "magika-v3-3"] {
        proves_model_equal_to_itself(shared(&format!("models/{name}.onnx")));
    }
}

#[test]
fn reports_errors_of_onnx_runtime_in_one_sentence() {
    let (model, engine) = (fixture("digits-cnn.onnx"), ort());
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
fn times_prepared_feeds() {
    let (model, data) = (fixture("digits-cnn.onnx"), fixture("digits.npz"));
    let engine = ort();
    let mut contenders: Vec<_> = [Optimize::All, Optimize::Off]
        .into_iter()
        .map(|optimize| {
            let session = load(&*engine, &model, optimize);
            let mut samples = SampleSet::open(&data, session.inputs(), SampleLimits::default()).unwrap();
            Contender::new(session, &[samples.batch(0..1).unwrap()]).unwrap()
        })
        .collect();
    let timings = bench(&mut contenders, &Stopwatch::rounds(5, 1e-3, 1..=10)).unwrap();
    assert_eq!((timings.rounds, timings.seconds.len()), (5, 2));
}

#[test]
fn loads_external_data_from_both_kinds_of_folders() {
    let model = fixture("digits-cnn.onnx");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("split.onnx");
    let read = pare_graph::onnx::read(&model, &pare_graph::onnx::ReadOptions::default()).unwrap();
    let small = pare_graph::onnx::WriteOptions { limit: 30_000, sync: false, ..Default::default() };
    let written = pare_graph::onnx::write(&read, &path, &small).unwrap();
    assert!(!written.data.is_empty(), "{written:?}");
    let bytes = std::fs::read(&path).unwrap().into();
    let sources =
        [ModelSource::File(path), ModelSource::Bytes { bytes, folder: Some(folder.path().to_owned()) }];
    for engine in [ort(), Arc::new(TractEngine::new())] {
        let mut single = load(&*engine, &model, Optimize::Off);
        let inputs: Vec<_> = single.inputs().iter().map(InputSpec::from).collect();
        let feed = SampleSet::generated(inputs, 3, 1).batch(0..1).unwrap();
        let expected = single.run(&feed).unwrap();
        for source in &sources {
            let options = LoadOptions { optimize: Optimize::Off, ..LoadOptions::default() };
            let got = engine.load(source, &options).unwrap().run(&feed).unwrap();
            assert_eq!(got, expected, "{} {source}", engine.name());
        }
    }
}

#[test]
#[ignore = "needs the models in PARE_SHARED"]
fn custom_operators_need_their_library() {
    let (source, engine) = (ModelSource::File(shared("models/super-resolution-prepost.onnx")), ort());
    let error = engine.load(&source, &LoadOptions::default()).err().unwrap();
    assert_eq!(error.hint(), Some(Hint::LoadCustomOps), "{error}");
    let options =
        LoadOptions { custom_op_libraries: vec!["/nonexistent.so".into()], ..LoadOptions::default() };
    let text = engine.load(&source, &options).err().unwrap().to_string();
    assert!(text.contains("/nonexistent.so"), "{text}");
}
