//! Every rule on random shapes and attributes.

use super::{
    super::{carries, differentiate, operators},
    cases::{Arithmetic, Case, Sample, cases},
    lowered::lowered,
};
use fastrand::Rng;
use pare_graph::{DataType, Evaluate, Graph, Model, Node, Run, Setting, Tensor, Value, ValueId, text};
use pare_tests::fixtures::evaluator;
use std::collections::HashMap;

/// Draws of each case.
const DRAWS: u64 = 4;

/// The largest error of an element of a gradient, relative to the largest element.
const TOLERANCE: f64 = 1e-6;

/// Appends `loss = Σ c·y` over all outputs with random `c`.
fn add_loss(graph: &mut Graph, arithmetic: Arithmetic, rng: &mut Rng) {
    fn append(graph: &mut Graph, node: Node, inputs: &[ValueId]) -> ValueId {
        let name = graph.fresh_name("loss_term");
        let value = graph.add_value(Value::named(&name)).unwrap();
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        graph.add_node(node, &inputs, &[Some(value)]).unwrap();
        value
    }
    let mut terms = vec![];
    for output in graph.outputs().to_vec() {
        let fact = &graph.value(output).fact;
        let (dtype, shape) = (fact.dtype().unwrap(), fact.fixed_shape().unwrap());
        if !carries(dtype) {
            continue;
        }
        let factors = (0..shape.iter().product()).map(|_| arithmetic.draw(rng)).collect::<Vec<_>>();
        let name = graph.fresh_name("factor");
        let factor = Value::constant(&name, Tensor::from_f64(dtype, &shape, &factors).unwrap());
        let factor = graph.add_value(factor).unwrap();
        let product = append(graph, Node::new("Mul"), &[output, factor]);
        terms.push(append(graph, Node::new("ReduceSum").with("keepdims", 0_i64), &[product]));
    }
    let loss = append(graph, Node::new("Sum"), &terms);
    graph.rename_value(loss, "loss").unwrap();
    graph.add_output(loss);
}

/// The model of a body with a loss, in operator set `opset`.
fn model(sample: &Sample, body: &str, case: &Case, rng: &mut Rng) -> Model {
    let ty = case.arithmetic.name();
    let parameters = sample.parameters.iter().map(|(name, shape, values)| {
        let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
        let sizes = if shape.is_empty() { String::new() } else { format!("[{}]", sizes.join(",")) };
        let values: Vec<_> = values.iter().map(|v| format!("{v:?}")).collect();
        format!("{ty}{sizes} {name} = {{{}}}", values.join(","))
    });
    let all: Vec<_> = parameters.chain(sample.constants.iter().cloned()).collect();
    let names = sample.outputs.join(", ");
    let body = body.replace("TYPE", &DataType::number(case.arithmetic.dtype()).to_string());
    let source = format!(
        "<ir_version: 10, opset_import: [\"\" : {}, \"com.microsoft\" : 1]>\nmain () => ({names}) <{}> {{ {body} }}",
        case.opset,
        all.join(", ")
    );
    let mut model = text::parse_model(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    model.infer().unwrap_or_else(|e| panic!("{e}\n{source}"));
    add_loss(&mut model.graph, case.arithmetic, rng);
    model.infer().unwrap();
    model
}

/// The model in the engine.
fn load(model: &Model) -> Result<Box<dyn Run>, String> {
    evaluator().load(model, Setting::PLAIN).map_err(|e| e.to_string())
}

/// The outputs by name.
fn outputs(
    model: &Model,
    engine: &mut dyn Run,
    feeds: &[(String, Tensor)],
) -> Result<HashMap<String, Tensor>, String> {
    let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let names = model.graph.outputs().iter().map(|&v| model.graph.value(v).name.clone());
    Ok(names.zip(engine.run(&feeds).map_err(|e| e.to_string())?).collect())
}

/// Compares the gradients of a draw of a case with central differences.
fn check(case: &Case, seed: u64) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let sample = (case.draw)(&mut rng);
    let names: Vec<_> = sample.parameters.iter().map(|p| p.0.to_owned()).collect();
    let start = rng.clone();
    let source = model(&sample, &sample.body, case, &mut rng);
    let result = differentiate(&source, "loss", &names).map_err(|e| e.to_string())?;
    result.model.check().map_err(|e| e.to_string())?;
    if !result.stopped.is_empty() {
        return Err(result.stopped.join(", "));
    }
    // Both forward passes have the same loss: the random factors are drawn again.
    let forward = match &sample.reference {
        Some(body) => {
            let other = model(&sample, body, case, &mut start.clone());
            differentiate(&other, "loss", &names).map_err(|e| e.to_string())?.model
        }
        None => result.model.clone(),
    };
    let dtype = case.arithmetic.dtype();
    let feeds: Vec<_> = sample
        .parameters
        .iter()
        .map(|(name, shape, values)| ((*name).to_owned(), Tensor::from_f64(dtype, shape, values).unwrap()))
        .collect();
    let (lowered_result, forward) = (lowered(&result.model), lowered(&forward));
    let first = outputs(&lowered_result, &mut *load(&lowered_result)?, &feeds)?;
    let mut engine = load(&forward)?;
    for (i, (name, shape, values)) in sample.parameters.iter().enumerate() {
        let Some(output) = result.gradients.get(*name) else { return Err(format!("`{name}` has none")) };
        let gradient = first[output].to_f64().unwrap();
        if first[output].shape() != &shape[..] {
            return Err(format!("the gradient of `{name}` has shape {:?}", first[output].shape()));
        }
        let mut loss_at = |element: usize, distance: f64| {
            let mut moved = feeds.clone();
            let mut values = values.clone();
            values[element] += distance;
            moved[i].1 = Tensor::from_f64(dtype, shape, &values).unwrap();
            Ok::<_, String>(outputs(&forward, &mut *engine, &moved)?["loss"].single().unwrap_or(f64::NAN))
        };
        let step = case.arithmetic.step();
        let mut measured = vec![];
        for element in 0..values.len() {
            let near = (loss_at(element, step)? - loss_at(element, -step)?) / (2.0 * step);
            measured.push(if case.arithmetic.is_exact() {
                near
            } else {
                let far = (loss_at(element, 2.0 * step)? - loss_at(element, -2.0 * step)?) / (4.0 * step);
                (4.0 * near - far) / 3.0
            });
        }
        let largest = measured.iter().fold(1e-3_f64, |most, v| most.max(v.abs()));
        let difference = measured.iter().zip(&gradient).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let error = if difference.is_nan() { f64::INFINITY } else { difference / largest };
        if error > TOLERANCE {
            return Err(format!(
                "`{name}` {shape:?}: {error:.1e}\nmeasured {measured:?}\ngradient {gradient:?}"
            ));
        }
    }
    Ok(())
}

#[test]
fn every_rule_agrees_with_central_differences() {
    let cases = cases();
    let mut failures = vec![];
    for (domain, op) in operators() {
        let own: Vec<_> = cases.iter().filter(|case| (case.domain, case.op) == (domain, op)).collect();
        if own.is_empty() {
            failures.push(format!("{op} has no case"));
        }
        for (number, case) in own.into_iter().enumerate() {
            for seed in 0..DRAWS {
                match check(case, seed * 31 + 7) {
                    Ok(()) => {}
                    Err(why) => {
                        let sample = (case.draw)(&mut Rng::with_seed(seed * 31 + 7));
                        failures.push(format!("{op} case {number} seed {seed} `{}`: {why}", sample.body));
                        break;
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
