use crate::{CheckError, DataType, Fact, Graph, Node, Tensor, Value, text};
use std::sync::Arc;

/// A graph of operator set 17 with inputs `x` and `z` and output `y`.
fn graph(nodes: &str) -> Graph {
    text::parse_graph(&format!("g (float[N] x, float[N] z) => (y) {{ {nodes} }}"), 17).unwrap()
}

/// A model that imports the domain `f`; functions follow the nodes of the main graph.
fn model(nodes: &str, functions: &str) -> Result<(), CheckError> {
    let header = r#"<ir_version: 10, opset_import: ["" : 17, "f" : 1]>"#;
    text::parse_model(&format!("{header} g (float[N] x) => (y) {{ {nodes} }} {functions}")).unwrap().check()
}

fn message(result: Result<(), CheckError>) -> String {
    result.unwrap_err().to_string()
}

fn hint(nodes: &str) -> String {
    graph(nodes).check().unwrap_err().hint().unwrap()
}

#[test]
fn accepts_nodes_in_any_order() {
    assert_eq!(graph("y = Relu(t) t = Add(x, z)").check(), Ok(()));
}

#[test]
fn rejects_values_without_producer_and_cycles() {
    let q = "`q` is used by Add producing `y`, but has no producer";
    assert_eq!(message(graph("y = Add(x, q)").check()), q);
    assert_eq!(message(graph("t = Relu(x)").check()), "the output `y` has no producer");
    assert_eq!(
        message(graph("y = Add(x, c) a = Add(x, c) b = Relu(a) c = Neg(b)").check()),
        "the nodes form a cycle: Add producing `a`, Relu producing `b`, Neg producing `c`"
    );
}

#[test]
fn rejects_duplicate_producers_and_inputs() {
    let mut both = graph("y = Relu(x)");
    let y = both.find("y").unwrap();
    both.add_input(y);
    assert_eq!(message(both.check()), "`y` has two producers, the graph's inputs and Relu producing `y`");
    let mut twice = graph("y = Relu(x)");
    let x = twice.find("x").unwrap();
    twice.add_input(x);
    assert_eq!(message(twice.check()), "the input `x` is listed twice");
    // Node names need not be unique for ONNX Runtime.
    assert_eq!(graph("[same] y = Relu(t) [same] t = Relu(x)").check(), Ok(()));
}

#[test]
fn rejects_unknown_operators() {
    let unknown = "Rellu producing `y` is not an operator of ai.onnx in operator set 17";
    assert_eq!(message(graph("y = Rellu(x)").check()), unknown);
    assert_eq!(hint("y = Rellu(x)"), "did you mean `Relu`?");
    assert_eq!(hint("y = Gelu(x)"), "it was added in operator set 20: import that or a newer one");
    assert_eq!(graph("y = Nothing(x)").check().unwrap_err().hint(), None);
    let deprecated = "Scatter producing `y` is deprecated in operator set 17";
    assert_eq!(message(graph("y = Scatter(x, x, x)").check()), deprecated);
    let foreign = "Bar producing `y` is of the domain `foo`, which the model does not import";
    assert_eq!(message(graph("y = foo.Bar(x)").check()), foreign);
    assert_eq!(hint("y = foo.Bar(x)"), "add an opset_import for `foo`");
    assert_eq!(graph("y = com.microsoft.Gelu(x)").check(), Ok(()));
    assert_eq!(model("y = f.Bar(x)", ""), Ok(()));
}

#[test]
fn rejects_wrong_numbers_of_inputs_and_outputs() {
    assert_eq!(message(graph("y = Add(x)").check()), "Add producing `y` has 1 input, but must have 2");
    assert_eq!(message(graph("y, w = Relu(x)").check()), "Relu producing `y` has 2 outputs, but must have 1");
    let clip = "Clip producing `y` has 4 inputs, but must have 1 to 3";
    assert_eq!(message(graph("y = Clip(x, x, x, x)").check()), clip);
    assert_eq!(
        message(graph("y = Max()").check()),
        "Max producing `y` has 0 inputs, but must have at least 1"
    );
    assert_eq!(message(graph("y = Add(, x)").check()), "Add producing `y` lacks its input `A`");
    assert_eq!(graph("y = Clip(x, , x)").check(), Ok(()));
}

#[test]
fn rejects_unknown_attributes() {
    assert_eq!(message(graph("y = Concat(x, x)").check()), "Concat producing `y` lacks its attribute `axis`");
    assert_eq!(
        message(graph("y = Concat<axis = \"zero\">(x, x)").check()),
        "the attribute `axis` of Concat producing `y` is string, but must be int"
    );
    let unknown = "Softmax producing `y` has the unknown attribute `axes`";
    assert_eq!(message(graph("y = Softmax<axes = 1>(x)").check()), unknown);
    assert_eq!(hint("y = Softmax<axes = 1>(x)"), "did you mean `axis`?");
    assert_eq!(graph("y = Softmax<__axes = 1>(x)").check(), Ok(()));
    assert_eq!(
        message(graph("y = Constant()").check()),
        "Constant producing `y` must have exactly one value"
    );
    let both = graph("y = Constant<value_int = 1, value_float = 1.0>()").check();
    assert_eq!(message(both), "Constant producing `y` must have exactly one value");
}

#[test]
fn rejects_wrong_types() {
    let with = |nodes: &str, dtype: DataType| {
        let mut graph = graph(nodes);
        let x = graph.find("x").unwrap();
        graph.set_fact(x, Fact::tensor(dtype, vec![]));
        graph.check()
    };
    assert_eq!(
        message(with("y = Relu(x)", DataType::String)),
        "`x` at Relu producing `y` is string[], which is not one of float, int8, int16, int32, int64, float16, double, \
         bfloat16"
    );
    let mixed = with("y = Add(x, z)", DataType::Double);
    assert_eq!(mixed.clone().unwrap_err().hint().unwrap(), "insert a Cast node");
    assert_eq!(
        message(mixed),
        "`x` (double[]) and `z` (float[N]) at Add producing `y` must have the same type"
    );
    let sequence = message(with("s = SequenceConstruct(z) y = SequenceInsert(x, z)", DataType::Float));
    assert!(
        sequence.starts_with("`x` at SequenceInsert producing `y` is float[], which is not one of seq("),
        "{sequence}"
    );
}

/// Checks an `If` whose `then` branch computes `p`.
fn conditional(before: &str, then: &str) -> Result<(), CheckError> {
    let nodes = format!(
        "g (bool c, float[N] z) => (y) {{ {before} y = If (c) <
            then_branch = t () => (float[N] p) {{ {then} }},
            else_branch = e () => (float[N] p) {{ k = Relu(z) p = Abs(k) }}> }}"
    );
    text::parse_graph(&nodes, 17).unwrap().check()
}

#[test]
fn checks_subgraphs() {
    assert_eq!(conditional("", "k = Relu(z) p = Abs(k)"), Ok(()), "sibling graphs may use the same names");
    let fault = |before, then| message(conditional(before, then));
    assert_eq!(
        fault("", "p = Rellu(z)"),
        "Rellu producing `p` is not an operator of ai.onnx in operator set 17, in `then_branch` of If producing `y`"
    );
    assert_eq!(fault("", "p = Relu(nope)"), "`nope` is used by If producing `y`, but has no producer");
    assert_eq!(
        fault("p = Relu(z)", ""),
        "the output `p` is a value of an outer graph, in `then_branch` of If producing `y`"
    );
    assert_eq!(
        fault("k = Abs(z)", "k = Relu(z) p = Abs(k)"),
        "the output `k` of Relu producing `k` has the name of a value of an outer graph, \
         in `then_branch` of If producing `y`"
    );
    assert_eq!(fault("", "p = Relu(y)"), "the nodes form a cycle: If producing `y`");
}

#[test]
fn rejects_bodies_that_do_not_match_their_nodes() {
    let body = |node: &str, body: &str| {
        let text = format!("g (int64 n, bool c, float[N] v) => (y) {{ {node} <body = {body}> }}");
        text::parse_graph(&text, 17).unwrap().check()
    };
    let good = "b (int64 i, bool d, float[N] u) => (bool e, float[N] w) { e = Identity(d) w = Relu(u) }";
    assert_eq!(body("y = Loop (n, c, v)", good), Ok(()));
    assert_eq!(
        message(body("y, s = Loop (n, c, v)", good)),
        "`body` of Loop producing `y` has 2 outputs, but must have at least 3"
    );
    assert_eq!(
        message(body("y = Loop (n, c)", good)),
        "`body` of Loop producing `y` has 3 inputs, but must have 2"
    );
}

const RELU: &str = r#"<domain: "f", opset_import: ["" : 17]> relu (a) => (b) { b = Relu(a) }"#;

#[test]
fn checks_called_functions() {
    let bad = r#"<domain: "f", opset_import: ["" : 17]> bad (a) => (b) { b = Rellu(a) }"#;
    assert_eq!(model("y = Relu(x)", bad), Ok(()));
    assert_eq!(
        message(model("y = f.bad(x)", bad)),
        "Rellu producing `b` is not an operator of ai.onnx in operator set 17, in the function `bad`"
    );
    assert_eq!(model("y = f.relu(x)", RELU), Ok(()));
    assert_eq!(
        message(model("y = f.relu(x, x)", RELU)),
        "relu producing `y` has 2 inputs, but must have 0 to 1"
    );
    assert_eq!(
        message(model("y = Relu(x)", &format!("{RELU} {RELU}"))),
        "the function `relu` is defined twice"
    );
}

#[test]
fn rejects_recursion() {
    let calls = |name: &str, callee: &str| {
        format!(
            r#"<domain: "f", opset_import: ["" : 17, "f" : 1]> {name} (a) => (b) {{ b = f.{callee}(a) }}"#
        )
    };
    let functions = [("one", "two"), ("two", "three"), ("three", "two")].map(|(f, g)| calls(f, g)).concat();
    let cycle = "functions are recursive: two calls three calls two";
    assert_eq!(message(model("y = Relu(x)", &functions)), cycle);
    let itself = message(model("y = f.loop(x)", &calls("loop", "loop")));
    assert_eq!(itself, "functions are recursive: loop calls loop");
}

#[test]
fn checks_large_graphs() {
    let mut graph = Graph::new(Arc::new(vec![(String::new(), 17)]));
    let mut last = graph.add_value(Value::named("x")).unwrap();
    graph.add_input(last);
    for i in 0..20_000 {
        let weight = graph.add_value(Value::constant(&format!("w{i}"), Tensor::scalar(1.0_f32))).unwrap();
        let output = graph.add_value(Value::named(&format!("v{i}"))).unwrap();
        graph.set_fact(output, Fact::tensor(DataType::Float, vec![]));
        let node = Node { name: Some(format!("n{i}")), ..Node::new("Add") };
        graph.add_node(node, &[Some(last), Some(weight)], &[Some(output)]).unwrap();
        last = output;
    }
    graph.add_output(last);
    assert_eq!(graph.check(), Ok(()));
}

#[test]
fn rejects_unknown_operator_sets() {
    let model =
        crate::Model::of(text::parse_graph("g (float[2] x) => (float[2] y) { y = Relu(x) }", 99).unwrap());
    let error = model.check().unwrap_err();
    assert!(error.to_string().starts_with("operator set 99 of ai.onnx is unknown; the newest known one is "));
}
