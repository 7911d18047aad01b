//! The engine, the models and the samples of `fixtures/`, and the comparison of two models in the engine.

use pare_graph::{Model, onnx, text};
use pare_runtime::{
    Engine, EngineChoice, Evaluator, ModelSource, Original, Port, ProofOptions, ProofReport, SampleLimits,
    SampleSet, SharedSamples, input_specs, resolve,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// The engine of all tests: ONNX Runtime if it is found, otherwise tract.
pub fn engine() -> &'static Arc<dyn Engine> {
    static ENGINE: OnceLock<Arc<dyn Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| {
        resolve(&EngineChoice::default(), &mut |_| {}).expect("an engine is available").engine
    })
}

/// The engine as passes use it.
pub fn evaluator() -> &'static Evaluator {
    static EVALUATOR: OnceLock<Evaluator> = OnceLock::new();
    EVALUATOR.get_or_init(|| Evaluator::new(engine().clone()))
}

/// The root folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace").to_owned()
}

/// The path of a file in `fixtures/`.
pub fn fixture(file: &str) -> PathBuf {
    root().join("fixtures").join(file)
}

/// The folder of models and data that are not in the repository: `PARE_SHARED`, or `shared` beside it.
pub fn shared() -> PathBuf {
    std::env::var_os("PARE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from)
}

/// Reads a model of `fixtures/` and infers its types.
///
/// # Panics
///
/// If the file is missing or invalid.
pub fn read_fixture(file: &str) -> Model {
    read(fixture(file))
}

/// Reads a model and infers its types.
///
/// # Panics
///
/// If the file is missing or invalid.
pub fn read(path: impl AsRef<Path>) -> Model {
    let path = path.as_ref();
    let mut model = onnx::read(path, &onnx::ReadOptions::default())
        .unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    model.infer().unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    model
}

/// The samples in a file of `fixtures/`, such as `digits-calibration.npz`, for the inputs of `model`.
///
/// # Panics
///
/// If the file is missing or does not fit the model.
pub fn samples(file: &str, model: &Model) -> SharedSamples {
    open_samples(&fixture(file), model)
}

/// The samples in a file, for the inputs of `model`.
///
/// # Panics
///
/// If the file is missing or does not fit the model.
pub fn open_samples(file: &Path, model: &Model) -> SharedSamples {
    let ports = input_specs(model).into_iter().map(|spec| Port { name: spec.name, kind: spec.kind });
    let samples = SampleSet::open(file, &ports.collect::<Vec<_>>(), SampleLimits::default());
    samples.unwrap_or_else(|e| panic!("`{}`: {e}", file.display())).into()
}

/// A model in the engine with generated samples, to which other models are compared.
pub struct Reference {
    original: Original<'static>,
    samples: SampleSet,
}

impl Reference {
    /// Loads `model` and generates `samples` samples for each assignment of its symbolic dims.
    ///
    /// # Errors
    ///
    /// If the model cannot be serialised or its types cannot be inferred.
    pub fn new(model: &Model, samples: usize) -> Result<Self, String> {
        static OPTIONS: OnceLock<ProofOptions> = OnceLock::new();
        let mut inferred = model.clone();
        inferred.infer().map_err(|e| e.to_string())?;
        let samples = SampleSet::generated(input_specs(&inferred), 0, samples);
        let options = OPTIONS.get_or_init(ProofOptions::default);
        let original = Original::new(&**engine(), &ModelSource::bytes(bytes(model)?), options);
        Ok(Self { original, samples })
    }

    /// Runs both models on the samples.
    ///
    /// # Errors
    ///
    /// If a model does not load or run.
    pub fn compare(&mut self, model: &Model) -> Result<ProofReport, String> {
        let candidate = ModelSource::bytes(bytes(model)?);
        self.original.prove(&candidate, self.samples.batches(1)).map_err(|e| e.to_string())
    }

    /// Compares the outputs of `model`: bitwise, or up to the rounding noise of the original.
    ///
    /// # Errors
    ///
    /// The first difference.
    pub fn check_equal(&mut self, model: &Model, bitwise: bool) -> Result<(), String> {
        let report = self.compare(model)?;
        if !report.is_equal() || report.samples == 0 {
            return Err(format!("{:?}", report.outcome));
        }
        match report.deviation.outputs().iter().find(|(_, d)| bitwise && !d.is_zero()) {
            Some((output, by)) => Err(format!("`{output}` is not bitwise equal: {by:?}")),
            None => Ok(()),
        }
    }
}

/// Serialises a model.
///
/// # Errors
///
/// If the model exceeds the limits of the format.
pub fn bytes(model: &Model) -> Result<Vec<u8>, String> {
    onnx::to_bytes(model).map_err(|e| e.to_string())
}

/// The model as text for messages, with tensors of at most `elements` elements.
pub fn brief(model: &Model, elements: usize) -> String {
    text::print_graph_with(&model.graph, text::PrintOptions { max_elements: Some(elements) })
}
