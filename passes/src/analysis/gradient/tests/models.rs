//! Entire models: the derivative along a random direction of the parameters.

use crate::{
    analysis::gradient::{Differentiated, differentiate},
    framework::testing::{context, read, read_fixture, shared, tools},
};
use fastrand::Rng;
use pare_graph::{DataType, Evaluate, Graph, Model, Node, Run, Setting, Tensor, Value, ValueId};
use pare_tests::fixtures::evaluator;
use std::collections::HashMap;

/// The largest relative error, of a model whose first weights are random and small. A wrong rule has errors near 1.
const TOLERANCE: f64 = 3e-2;

/// Adds the output `loss`, the sum of the mean of `(y − 1/2)²` of each float output `y`.
fn with_loss(model: &mut Model) {
    let graph = &mut model.graph;
    let outputs: Vec<_> = graph
        .outputs()
        .iter()
        .copied()
        .filter(|&v| graph.value(v).fact.dtype() == Some(DataType::Float))
        .collect();
    let node = |graph: &mut Graph, node: Node, inputs: &[ValueId]| {
        let name = graph.fresh_name("loss_term");
        let value = graph.add_value(Value::named(&name)).unwrap();
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        graph.add_node(node, &inputs, &[Some(value)]).unwrap();
        value
    };
    let half = graph.add_value(Value::constant("half", Tensor::scalar(0.5_f32))).unwrap();
    let terms: Vec<_> = outputs
        .into_iter()
        .map(|output| {
            let error = node(graph, Node::new("Sub"), &[output, half]);
            let square = node(graph, Node::new("Mul"), &[error, error]);
            node(graph, Node::new("ReduceMean").with("keepdims", 0_i64), &[square])
        })
        .collect();
    let loss = node(graph, Node::new("Sum"), &terms);
    graph.rename_value(loss, "loss").unwrap();
    graph.add_output(loss);
}

/// The model in operator set 18 with batch norms folded, and a loss.
fn prepared(mut model: Model) -> Model {
    let mut cx = context(tools());
    cx.run_nested("upgrade-opset{to=18},lift-constants,fold-constants,fold-bn,safe", &mut model).unwrap();
    model.infer().unwrap();
    with_loss(&mut model);
    model.infer().unwrap();
    model
}

/// The floating-point initializers with more than one element.
fn parameters(model: &Model) -> Vec<String> {
    let graph = &model.graph;
    let is_weight =
        |v: &ValueId| graph.value(*v).tensor().is_some_and(|t| t.dtype() == DataType::Float && t.len() > 1);
    graph.initializers().into_iter().filter(is_weight).map(|v| graph.value(v).name.clone()).collect()
}

/// Random inputs: numbers, small tokens, and masks that keep everything.
fn inputs(model: &Model, rng: &mut Rng) -> Vec<(String, Tensor)> {
    let specs = model.graph.inputs().iter().map(|&v| model.graph.value(v));
    specs
        .map(|value| {
            let dims = value.fact.shape().unwrap();
            let shape: Vec<_> = dims.iter().map(|dim| dim.size().unwrap_or(3)).collect();
            let count = shape.iter().product();
            let dtype = value.fact.dtype().unwrap();
            let draw = |rng: &mut Rng| match (dtype, value.name.as_str()) {
                (DataType::Int64, "input_ids") => rng.i64(0..1000) as f64,
                (DataType::Int64, name) => f64::from(u8::from(name.contains("mask"))),
                _ => rng.f64() * 2.0 - 1.0,
            };
            let values: Vec<_> = (0..count).map(|_| draw(rng)).collect();
            (value.name.clone(), Tensor::from_f64(dtype, &shape, &values).unwrap())
        })
        .collect()
}

/// A model in the engine, with the names of its outputs.
struct Loaded(Box<dyn Run>, Vec<String>);

impl Loaded {
    fn new(model: &Model) -> Self {
        let names = model.graph.outputs().iter().map(|&v| model.graph.value(v).name.clone()).collect();
        Self(evaluator().load(model, Setting::PLAIN).unwrap(), names)
    }

    fn run(&mut self, feeds: &[(String, Tensor)]) -> HashMap<String, Tensor> {
        let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        self.1.iter().cloned().zip(self.0.run(&feeds).unwrap()).collect()
    }
}

/// Asserts that for each parameter `p` with the gradient `g`, the loss changes along `d = g·r` with random `r`
/// as `Σ g·d` predicts.
///
/// Losses are floats with a rounding error near 1e-7 of their size. Long steps cross kinks of `Relu`, and short ones
/// lose digits, so that of steps that change the loss by 1 %, 0.1 % and 0.01 % the best counts.
fn check(model: Model) {
    let model = prepared(model);
    let names = parameters(&model);
    let mut rng = Rng::with_seed(7);
    let mut feeds = inputs(&model, &mut rng);
    let given = feeds.len();
    for name in &names {
        let tensor = model.graph.value_ref(model.graph.find(name).unwrap()).constant().unwrap().clone();
        feeds.push((name.clone(), tensor));
    }
    let Differentiated { model: result, gradients, stopped } = differentiate(&model, "loss", &names).unwrap();
    result.check().unwrap();
    assert_eq!(stopped, [""; 0]);
    let first = Loaded::new(&result).run(&feeds);
    let mut forward = result.clone();
    let is_gradient = |v: &ValueId| gradients.values().any(|name| *name == result.graph.value(*v).name);
    let outputs: Vec<_> = result.graph.outputs().iter().copied().filter(is_gradient).collect();
    forward.graph.remove_outputs(&outputs);
    forward.graph.sweep();
    let mut forward = Loaded::new(&forward);
    let loss = first["loss"].single().unwrap();
    let mut worst = (0.0, String::new());
    for (i, name) in names.iter().enumerate() {
        let Some(gradient) = gradients.get(name) else { continue };
        let gradient = first[gradient].to_f64().unwrap();
        let direction: Vec<_> = gradient.iter().map(|g| g * (0.5 + rng.f64())).collect();
        let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let size: f64 = gradient.iter().map(|g| g * g).sum::<f64>();
        if size < 1e-12 * loss * loss {
            continue;
        }
        let mut loss_at = |distance: f64| {
            let mut moved = feeds.clone();
            let tensor = &feeds[given + i].1;
            let values = tensor.to_f64().unwrap();
            let values: Vec<_> = values.iter().zip(&direction).map(|(p, d)| p + distance * d).collect();
            moved[given + i].1 = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).unwrap();
            forward.run(&moved)["loss"].single().unwrap()
        };
        let mut error_of = |share: f64| {
            let step = share * loss / slope;
            let near = (loss_at(step) - loss_at(-step)) / 2.0;
            let far = (loss_at(2.0 * step) - loss_at(-2.0 * step)) / 4.0;
            ((4.0 * near - far) / 3.0 / step / slope - 1.0).abs()
        };
        let error = [1e-2, 1e-3, 1e-4].into_iter().map(&mut error_of).fold(f64::INFINITY, f64::min);
        if error > worst.0 {
            worst = (error, name.clone());
        }
    }
    let (error, name) = worst;
    assert!(error < TOLERANCE, "the gradient of `{name}` has the error {error:.1e}");
}

#[test]
fn fixtures() {
    for file in
        ["digits-cnn.onnx", "digits-fold.onnx", "digits-init.onnx", "digits-vit.onnx", "cifar-mbv2.onnx"]
    {
        check(read_fixture(file));
    }
}

#[test]
#[ignore = "needs models outside of the repository"]
fn shared_models() {
    for file in ["cifar-resnet20.onnx", "cifar-vit.onnx"] {
        check(read(shared().join("models").join(file)));
    }
}

#[test]
#[ignore = "needs a model in the cache"]
fn minilm() {
    let cache = std::path::PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/pare-models");
    check(read(cache.join("minilm.onnx")));
}
