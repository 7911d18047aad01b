//! What the modules share: the engine, models, comparing them.

use pare_graph::{Model, onnx, text};
use pare_passes::{Effect, Pipeline, Report, RunOptions, Tools, run};
use pare_runtime::{
    Engine, EngineChoice, Evaluator, ModelSource, Original, ProofOptions, SampleSet, declared_change,
    input_specs, resolve,
};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// The engine that models run in.
pub fn engine() -> &'static Arc<dyn Engine> {
    static ENGINE: OnceLock<Arc<dyn Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| resolve(&EngineChoice::default(), &mut |_| {}).unwrap().engine)
}

/// What passes may use: the engine.
pub fn tools() -> Tools<'static> {
    static EVALUATOR: OnceLock<Evaluator> = OnceLock::new();
    let evaluator = EVALUATOR.get_or_init(|| Evaluator::new(engine().clone()));
    Tools { engine: Some(evaluator), ..Tools::default() }
}

/// The folder of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A number from the environment, for heavy runs.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The model after the pipeline.
pub fn after(pipeline: &Pipeline, model: &Model) -> Result<(Model, Report), String> {
    let mut changed = model.clone();
    let options = RunOptions { tools: tools(), stop_after: None };
    let report = run(pipeline, &mut changed, options, &mut ()).map_err(|e| e.to_string())?;
    Ok((changed, report))
}

/// The bytes of the model in a file.
pub fn bytes(model: &Model) -> Result<Vec<u8>, String> {
    onnx::to_bytes(model).map_err(|e| e.to_string())
}

/// Both models have the same inputs and outputs: names, order, types, symbolic sizes.
pub fn same_interface(a: &Model, b: &Model) -> Result<(), String> {
    declared_change(a, b).map_or(Ok(()), Err)
}

/// A model in the engine, on generated samples: what others are held to.
pub struct Truth {
    original: Original<'static>,
    samples: SampleSet,
}

impl Truth {
    /// Load `model`, and generate `per_plan` samples for each choice of its open sizes.
    pub fn of(model: &Model, per_plan: usize) -> Result<Self, String> {
        static OPTIONS: OnceLock<ProofOptions> = OnceLock::new();
        let mut inferred = model.clone();
        inferred.infer().map_err(|e| e.to_string())?;
        let samples = SampleSet::generated(input_specs(&inferred), 0, per_plan);
        let options = OPTIONS.get_or_init(ProofOptions::default);
        let original = Original::new(&**engine(), &ModelSource::bytes(bytes(model)?), options);
        Ok(Self { original, samples })
    }

    /// Whether `model` gives the same outputs, as far as the effect promises.
    pub fn same_outputs(&mut self, model: &Model, effect: Effect) -> Result<(), String> {
        let candidate = ModelSource::bytes(bytes(model)?);
        let report = self.original.prove(&candidate, self.samples.batches(1)).map_err(|e| e.to_string())?;
        if !report.is_equal() {
            return Err(format!("{:?}", report.outcome));
        }
        let off = report.deviation.outputs().iter().find(|(_, d)| effect == Effect::Exact && !d.is_zero());
        match off {
            Some((output, by)) => Err(format!("`{output}` is not equal to the bit: {by:?}")),
            None => Ok(()),
        }
    }
}

/// Both models give the same outputs on generated samples, as far as the effect promises.
pub fn same_outputs(a: &Model, b: &Model, effect: Effect, per_plan: usize) -> Result<(), String> {
    Truth::of(a, per_plan)?.same_outputs(b, effect)
}

/// The model as text, for messages.
pub fn brief(model: &Model) -> String {
    text::print_graph_with(&model.graph, text::PrintOptions { max_elements: Some(4) })
}
