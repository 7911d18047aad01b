//! Writes a model that computes the mean squared error of its first output to the input `target`, and the gradients
//! with respect to all weights: `differentiate IN OUT`.

use pare_graph::{DataType, Model, Node, Value, ValueId, onnx};
use pare_passes::{
    Pipeline, RunOptions, Tools,
    analysis::{gradient::differentiate, prepare::PREPARATION},
    registry::REGISTRY,
    run,
};
use std::{env, error::Error, path::Path};

/// Appends `loss = mean((y − target)²)`.
fn add_loss(model: &mut Model) -> Result<(), Box<dyn Error>> {
    let graph = &mut model.graph;
    let output = *graph.outputs().first().ok_or("the model has no output")?;
    let mut target = Value::named("target");
    target.fact = graph.value(output).fact.clone();
    let fact = target.fact.clone();
    target.declared = graph.value(output).declared.clone();
    let target = graph.add_value(target)?;
    graph.set_fact(target, fact);
    graph.add_input(target);
    let mut append = |name: &str, node: Node, inputs: &[ValueId]| -> Result<ValueId, Box<dyn Error>> {
        let value = graph.add_value(Value::named(name))?;
        graph.add_node(node, &inputs.iter().copied().map(Some).collect::<Vec<_>>(), &[Some(value)])?;
        Ok(value)
    };
    let error = append("loss_error", Node::new("Sub"), &[output, target])?;
    let square = append("loss_square", Node::new("Mul"), &[error, error])?;
    let loss = append("loss", Node::new("ReduceMean").with("keepdims", 0_i64), &[square])?;
    graph.add_output(loss);
    Ok(model.infer()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [input, output] = &arguments[..] else { return Err("usage: differentiate IN OUT".into()) };
    let mut model = onnx::read(Path::new(input), &onnx::ReadOptions::default())?;
    let pipeline = Pipeline::parse(&format!("upgrade-opset{{to=18}},{PREPARATION},safe"), &REGISTRY)?;
    run(&pipeline, &mut model, RunOptions::new(Tools::default()), &mut ())?;
    model.infer()?;
    add_loss(&mut model)?;
    let graph = &model.graph;
    let is_weight = |v: &ValueId| {
        graph.value_ref(*v).constant().is_ok_and(|t| t.dtype() == DataType::Float && t.len() > 1)
    };
    let weights: Vec<_> = graph.initializers().into_iter().filter(is_weight).collect();
    let names: Vec<_> = weights.iter().map(|&v| graph.value(v).name.clone()).collect();
    let result = differentiate(&model, "loss", &names)?;
    onnx::write(&result.model, Path::new(output), &onnx::WriteOptions::default())?;
    // The forward pass with constant weights, for comparison, and the values of the weights.
    onnx::write(&model, Path::new(&format!("{output}.forward")), &onnx::WriteOptions::default())?;
    #[allow(clippy::print_stderr)]
    for reason in &result.stopped {
        eprintln!("{reason}");
    }
    Ok(())
}
