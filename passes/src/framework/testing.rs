//! How passes are tested: text in, text out, and both graphs run.

use crate::framework::{Effect, Pass, Pipeline, Report, RunOptions, Tools, run};
use pare_graph::{Graph, Model, onnx, text};
use pare_runtime::{
    Engine, EngineChoice, Evaluator, ModelSource, ProofOptions, SampleSet, input_specs, prove, resolve,
};
use std::sync::{Arc, OnceLock};

/// The operator set of tests that do not name one.
pub const OPSET: i64 = 18;

/// A model from text: a whole model, or a graph of operator set [`OPSET`].
pub fn model(source: &str) -> Model {
    if source.trim_start().starts_with('<') {
        return text::parse_model(source).unwrap();
    }
    model_at(source, OPSET)
}

/// A model from the text of a graph of this operator set.
pub fn model_at(source: &str, opset: i64) -> Model {
    Model::of(text::parse_graph(source, opset).unwrap())
}

/// A context for one pass, whose nested steps are those of this crate.
pub fn context(tools: Tools<'_>) -> crate::Context<'_> {
    crate::Context::new(tools, &crate::registry::REGISTRY)
}

/// Run a pass over a model; invariants are checked by the runner.
pub fn run_pass(pass: impl Pass + 'static, model: &mut Model) -> Report {
    run_pass_with(pass, model, Tools::default())
}

/// Run a pass over a model with these tools.
pub fn run_pass_with(pass: impl Pass + 'static, model: &mut Model, tools: Tools<'_>) -> Report {
    let mut pipeline = Pipeline::default();
    pipeline.push(pass);
    run(&pipeline, model, RunOptions { tools, stop_after: None }, &mut ()).unwrap()
}

/// The pass turns `before` into `after`, up to layout of the text, and both compute the same as far as its effect
/// promises.
pub fn check(pass: impl Pass + 'static, before: &str, after: &str) {
    let (original, effect) = (model(before), pass.info().effect);
    let mut changed = original.clone();
    run_pass_with(pass, &mut changed, tools());
    let wanted = text::print_graph(&model(after).graph);
    assert_eq!(text::print_graph(&changed.graph), wanted);
    same(&original, &changed, effect);
}

/// The pass leaves the graph as it is; returns its reasons.
#[must_use = "a test asserts the reasons"]
pub fn declines(pass: impl Pass + 'static, before: &str) -> Vec<String> {
    let mut changed = model(before);
    let report = run_pass(pass, &mut changed);
    assert_eq!(text::print_graph(&changed.graph), text::print_graph(&model(before).graph));
    report.steps.into_iter().flat_map(|s| s.declined.into_keys()).collect()
}

/// The pass finds nothing in the graph, not even something to decline.
pub fn no_match(pass: impl Pass + 'static, before: &str) {
    assert_eq!(declines(pass, before), [""; 0]);
}

/// The graph as text for messages, long tensors cut short.
pub fn brief(graph: &Graph) -> String {
    text::print_graph_with(graph, text::PrintOptions { max_elements: Some(8) })
}

/// The engine that tests run models in: ONNX Runtime where it is found or can be fetched.
pub fn engine() -> &'static Arc<dyn Engine> {
    static ENGINE: OnceLock<Arc<dyn Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| resolve(&EngineChoice::default(), &mut |_| {}).unwrap().engine)
}

/// Tools with the engine.
pub fn tools() -> Tools<'static> {
    static EVALUATOR: OnceLock<Evaluator> = OnceLock::new();
    let evaluator = EVALUATOR.get_or_init(|| Evaluator::new(engine().clone()));
    Tools { engine: Some(evaluator), ..Tools::default() }
}

/// Samples for each choice of sizes of symbolic dimensions: of every kind that generation knows.
const SAMPLES_PER_PLAN: usize = 4;

/// Both models give the same outputs on generated samples: to the bit if the effect is exact, within the noise of
/// the original if it is rounding. A lossy pass has only to leave a model that runs, with the same interface.
pub fn same(original: &Model, changed: &Model, effect: Effect) {
    let source = |model: &Model| ModelSource::bytes(onnx::to_bytes(model).unwrap());
    let mut inferred = original.clone();
    inferred.infer().unwrap();
    let mut samples = SampleSet::generated(input_specs(&inferred), 0, SAMPLES_PER_PLAN);
    let (a, b) = (source(original), source(changed));
    let report = prove(&**engine(), &a, &b, samples.batches(1), &ProofOptions::default()).unwrap();
    assert!(report.samples > 0, "no sample runs: {:?}", report.outcome);
    match effect {
        Effect::Exact => {
            assert!(report.is_equal(), "{:?}", report.outcome);
            for (output, deviation) in report.deviation.outputs() {
                assert!(deviation.is_zero(), "`{output}` is not equal to the bit: {deviation:?}");
            }
        }
        Effect::Rounding => assert!(report.is_equal(), "{:?}", report.outcome),
        Effect::Lossy => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::cleanup::DropNoops;

    #[test]
    fn a_pass_is_held_to_its_text() {
        check(
            DropNoops::default(),
            "main (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }",
            "main (float[2] x) => (float[2] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn an_output_that_is_an_input_keeps_its_node_and_says_why() {
        let why = declines(DropNoops::default(), "main (float[2] x) => (float[2] y) { y = Identity(x) }");
        assert_eq!(why, ["the output `y` cannot be replaced by `x`: both are part of the interface"]);
    }
}
