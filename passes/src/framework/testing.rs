//! Helpers of pass tests: models as text, and comparison in the engine.

use crate::framework::{Context, Effect, Pass, Pipeline, Report, RunError, RunOptions, Tools, run};
use pare_graph::{Graph, Model, text};
use pare_tests::fixtures::{Reference, evaluator};
pub use pare_tests::fixtures::{engine, read, read_fixture, samples, shared};

/// The operator set of graphs without one.
pub const OPSET: i64 = 18;

/// Parses a model, or a graph of operator set [`OPSET`].
pub fn model(source: &str) -> Model {
    if source.trim_start().starts_with('<') {
        return text::parse_model(source).unwrap();
    }
    model_at(source, OPSET)
}

/// Parses a graph of operator set `opset`.
pub fn model_at(source: &str, opset: i64) -> Model {
    Model::of(text::parse_graph(source, opset).unwrap())
}

/// A context for one pass of this crate.
pub fn context(tools: Tools<'_>) -> Context<'_> {
    Context::new(tools, &crate::registry::REGISTRY)
}

/// Runs a pass without tools.
pub fn run_pass(pass: impl Pass + 'static, model: &mut Model) -> Report {
    run_pass_with(pass, model, Tools::default())
}

/// Runs a pass with `tools`.
pub fn run_pass_with(pass: impl Pass + 'static, model: &mut Model, tools: Tools<'_>) -> Report {
    try_pass(pass, model, tools).unwrap()
}

/// Runs a pass that may fail.
pub fn try_pass(pass: impl Pass + 'static, model: &mut Model, tools: Tools<'_>) -> Result<Report, RunError> {
    let mut pipeline = Pipeline::default();
    pipeline.push(pass);
    run(&pipeline, model, RunOptions::new(tools), &mut ())
}

/// Asserts that the pass turns `before` into `after`, up to the layout of the text, and that both agree as
/// far as the effect of the pass promises.
pub fn check(pass: impl Pass + 'static, before: &str, after: &str) {
    let (original, effect) = (model(before), pass.info().effect);
    let mut changed = original.clone();
    run_pass_with(pass, &mut changed, tools());
    assert_eq!(text::print_graph(&changed.graph), text::print_graph(&model(after).graph));
    same(&original, &changed, effect);
}

/// Asserts that the pass does not change the model, and returns its reasons.
#[must_use = "a test asserts the reasons"]
pub fn declines(pass: impl Pass + 'static, before: &str) -> Vec<String> {
    let mut changed = model(before);
    let report = run_pass(pass, &mut changed);
    assert_eq!(text::print_graph(&changed.graph), text::print_graph(&model(before).graph));
    report.steps.into_iter().flat_map(|s| s.declined.into_keys()).collect()
}

/// Asserts that the pass neither changes the graph nor declines anything.
pub fn no_match(pass: impl Pass + 'static, before: &str) {
    assert_eq!(declines(pass, before), [""; 0]);
}

/// The graph as text for messages, with abbreviated tensors.
pub fn brief(graph: &Graph) -> String {
    text::print_graph_with(graph, text::PrintOptions { max_elements: Some(8) })
}

/// `count` random numbers between -0.5 and 0.5, as text.
pub fn numbers(count: usize, seed: u64) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| format!("{:.3}", rng.f32() - 0.5)).collect::<Vec<_>>().join(",")
}

/// Tools with the engine.
pub fn tools() -> Tools<'static> {
    Tools { engine: Some(evaluator()), ..Tools::default() }
}

/// Generated samples for each assignment of symbolic dims; the generator has four kinds.
const SAMPLES: usize = 4;

/// Asserts that both models agree on generated samples: bitwise if the effect is exact, within the rounding
/// noise of the original if it is rounding. For a lossy effect both only have to run.
pub fn same(original: &Model, changed: &Model, effect: Effect) {
    let mut original = Reference::new(original, SAMPLES).unwrap();
    match effect {
        Effect::Lossy => {
            let report = original.compare(changed).unwrap();
            assert!(report.samples > 0, "no sample runs: {:?}", report.outcome);
        }
        effect => original.check_equal(changed, effect == Effect::Exact).unwrap(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::cleanup::DropNoops;

    #[test]
    fn compares_text_and_outputs() {
        check(
            DropNoops::default(),
            "main (float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }",
            "main (float[2] x) => (float[2] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn returns_reasons() {
        let why = declines(DropNoops::default(), "main (float[2] x) => (float[2] y) { y = Identity(x) }");
        assert_eq!(why, ["the output `y` cannot be replaced by `x`: both are part of the interface"]);
    }
}
