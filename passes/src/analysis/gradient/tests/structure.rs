//! Interface, sums over uses, and reasons.

use crate::{
    analysis::gradient::{Differentiated, GradientError, Units, differentiate, differentiate_units},
    framework::testing::{model, model_at},
};
use pare_graph::{Evaluate, Model, Setting, Tensor};
use pare_tests::fixtures::evaluator;
use std::collections::HashMap;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn values(model: &Model, ids: &[pare_graph::ValueId]) -> Vec<String> {
    ids.iter().map(|&v| format!("{} {}", model.graph.value(v).name, model.graph.value(v).fact)).collect()
}

#[test]
fn parameters_become_inputs_and_gradients_outputs() {
    let source = "main (float[N,3] x) => (float[N,2] y, float loss) <float[3,2] w = {1,2,3,4,5,6}, float[2] unused = {1,2}> \
                  { y = MatMul(x, w) z = Add(unused, unused) loss = ReduceSum<keepdims = 0>(y) }";
    let result = differentiate(&model(source), "loss", &names(&["unused", "w"])).unwrap();
    let graph = &result.model.graph;
    assert_eq!(values(&result.model, graph.inputs()), ["x float[N,3]", "unused float[2]", "w float[3,2]"]);
    assert_eq!(
        values(&result.model, graph.outputs()),
        ["y float[N,2]", "loss float[]", "w_gradient float[3,2]"]
    );
    assert!(graph.value(graph.find("w").unwrap()).data.is_none());
    assert_eq!(result.gradients.into_iter().collect::<Vec<_>>(), [("w".into(), "w_gradient".into())]);
    assert_eq!(result.stopped, [""; 0]);
}

#[test]
fn values_without_a_rule_stop_the_gradient() {
    let source = "main (float[4] x, bool c) => (float loss) <float[4] a = {1,2,3,4}, float[4] b = {1,2,3,4}> { \
                  r = Round(a) d = Det2(b) e = If(c) <then_branch = t () => (float[4] p) { p = Add(a, b) }, \
                  else_branch = f () => (float[4] p) { p = Sub(a, b) }> \
                  s = Add(r, e) t = Add(s, x) loss = ReduceSum<keepdims = 0>(t) }";
    let source = source.replace("d = Det2(b) ", "");
    let result = differentiate(&model(&source), "loss", &names(&["a", "b"])).unwrap();
    assert!(result.gradients.is_empty());
    assert_eq!(
        result.stopped,
        [
            "If producing `e` is control flow, which has no gradient",
            "Round producing `r` is constant between its steps, so its derivative is 0",
        ]
    );
}

#[test]
fn copies_of_nodes_do_not_keep_names() {
    let source = "main (float[1,1,4] x) => (float loss) <float[1] w = {2}> { s = Mul(x, w) \
                  [pool] p = MaxPool<kernel_shape = [2], strides = [2]>(s) loss = ReduceSum<keepdims = 0>(p) }";
    let result = differentiate(&model_at(source, 18), "loss", &names(&["w"])).unwrap();
    result.model.check().unwrap();
}

#[test]
fn refuses_others() {
    let source = "main (float[3] x) => (float[3] y, float l) <float[3] w = {1,2,3}, int64[1] i = {0}> \
                  { y = Mul(x, w) g = Gather(y, i) l = ReduceSum<keepdims = 0>(g) }";
    let refused = |loss: &str, parameter: &str, opset| {
        differentiate(&model_at(source, opset), loss, &names(&[parameter])).unwrap_err().to_string()
    };
    assert_eq!(refused("l", "w", 13), "operator set 13 has no gradients: they need 18 or newer");
    assert_eq!(refused("m", "w", 18), "the model has no output `m`");
    assert_eq!(refused("y", "w", 18), "the loss `y` is float[3], not one number");
    assert_eq!(refused("l", "x", 18), "`x` is not an initializer of the main graph");
    assert_eq!(refused("l", "i", 18), "the parameter `i` holds int64, which has no gradient");
    assert!(matches!(
        differentiate(&model(source), "l", &names(&["none"])),
        Err(GradientError::NotInitializer(_))
    ));
}

#[test]
fn a_shared_gradient_has_an_output_for_each_parameter() {
    let source = "main (float[3] x) => (float loss) <float[3] a = {1,2,3}, float[3] b = {1,2,3}> \
                  { s = Add(a, b) t = Mul(s, x) loss = ReduceSum<keepdims = 0>(t) }";
    let result = differentiate(&model(source), "loss", &names(&["a", "b"])).unwrap();
    let outputs: Vec<_> = result.gradients.values().cloned().collect();
    assert_eq!(outputs, ["a_gradient", "b_gradient"]);
    result.model.check().unwrap();
}

/// The gradient of each parameter, with all inputs drawn from a seed.
fn gradients(found: &Differentiated, inputs: &[(&str, &[usize])]) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut draw = |shape: &[usize]| {
        let values: Vec<_> = (0..shape.iter().product()).map(|_| rng.f32() - 0.5).collect();
        Tensor::from_slice(shape, &values).unwrap()
    };
    let feeds: Vec<_> = inputs.iter().map(|(name, shape)| (*name, draw(shape))).collect();
    let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let outputs = evaluator().load(&found.model, Setting::PLAIN).unwrap().run(&feeds).unwrap();
    let names = found.model.graph.outputs().iter().map(|&v| found.model.graph.value(v).name.clone());
    let named: HashMap<_, _> = names.zip(outputs).collect();
    let one = |(parameter, gradient): (&String, &String)| {
        let tensor = &named[gradient];
        (parameter.clone(), (tensor.shape().to_vec(), tensor.to_vec().unwrap()))
    };
    found.gradients.iter().map(one).collect()
}

#[test]
fn gradients_of_some_units_are_those_rows_or_columns() {
    let zeros = |count: usize| vec!["0"; count].join(",");
    let source = format!(
        "main (float[2,2,5,5] x) => (float loss) <float[4,2,3,3] w = {{{}}}, float[4] b = {{0,0,0,0}},
            float[36,3] m = {{{}}}, float[5,3] g = {{{}}}, float[2,2,3,3] d = {{{}}}, int64[2] to = {{2,-1}}> {{
            c = Conv(x, w, b) r = Tanh(c) f = Reshape(r, to) p = MatMul(f, m) q = Gemm<transB = 1>(p, g)
            e = Conv(x, d) t = Mul(q, q) u = Mul(e, e) v = ReduceSum<keepdims = 0>(t) k = ReduceSum<keepdims = 0>(u)
            loss = Add(v, k) }}",
        zeros(72),
        zeros(108),
        zeros(15),
        zeros(36)
    );
    let (model, all) = (model(&source), names(&["w", "b", "m", "g", "d"]));
    let inputs: [(&str, &[usize]); 6] = [
        ("x", &[2, 2, 5, 5]),
        ("w", &[4, 2, 3, 3]),
        ("b", &[4]),
        ("m", &[36, 3]),
        ("g", &[5, 3]),
        ("d", &[2, 2, 3, 3]),
    ];
    let full = gradients(&differentiate(&model, "loss", &all).unwrap(), &inputs);
    let units = [("w", vec![3, 0]), ("m", vec![1]), ("g", vec![2, 4]), ("d", vec![])];
    let units: Units = units.into_iter().map(|(name, units)| (name.to_owned(), units)).collect();
    let found = differentiate_units(&model, "loss", &all, &units).unwrap();
    found.model.check().unwrap();
    let some = gradients(&found, &inputs);
    assert!(!some.contains_key("d") && some["b"] == full["b"]);
    let rows = |name: &str, run: usize| {
        let values = &full[name].1;
        let row = |&unit: &usize| values[unit * run..(unit + 1) * run].to_vec();
        units[name].iter().flat_map(row).collect::<Vec<_>>()
    };
    let close =
        |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    assert_eq!((&some["w"].0[..], &some["g"].0[..]), (&[2, 2, 3, 3][..], &[2, 3][..]));
    assert!(close(&some["w"].1, &rows("w", 18)) && close(&some["g"].1, &rows("g", 3)));
    let column: Vec<_> = full["m"].1.iter().skip(1).step_by(3).copied().collect();
    assert!(close(&some["m"].1, &column) && column.iter().any(|v| *v != 0.0));
}

#[test]
fn a_weight_with_several_users_has_all_of_its_gradient() {
    let source = "main (float[2,2] x) => (float loss) <float[2,2] w = {1,2,3,4}> \
                  { y = MatMul(x, w) z = MatMul(y, w) loss = ReduceSum<keepdims = 0>(z) }";
    let units = Units::from([("w".to_owned(), vec![1])]);
    let found = differentiate_units(&model(source), "loss", &names(&["w"]), &units).unwrap();
    assert_eq!(values(&found.model, found.model.graph.outputs()), ["loss float[]", "w_gradient float[2,2]"]);
}
