//! Interface, sums over uses, and reasons.

use crate::{
    analysis::gradient::{GradientError, differentiate},
    framework::testing::{model, model_at},
};
use pare_graph::Model;

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
