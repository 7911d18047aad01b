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

fn says(result: Result<(), CheckError>) -> String {
    result.unwrap_err().to_string()
}

fn hint(nodes: &str) -> String {
    graph(nodes).check().unwrap_err().hint().unwrap()
}

#[test]
fn a_sound_graph_in_any_order_passes() {
    assert_eq!(graph("y = Relu(t) t = Add(x, z)").check(), Ok(()));
}

#[test]
fn values_are_made_before_they_are_used() {
    let q = "`q` is used by Add producing `y`, but nothing makes it";
    assert_eq!(says(graph("y = Add(x, q)").check()), q);
    assert_eq!(says(graph("t = Relu(x)").check()), "the output `y` is made by nothing");
    assert_eq!(
        says(graph("y = Add(x, c) a = Add(x, c) b = Relu(a) c = Neg(b)").check()),
        "the nodes form a cycle: Add producing `a`, Relu producing `b`, Neg producing `c`"
    );
}

#[test]
fn values_are_made_once() {
    let mut both = graph("y = Relu(x)");
    let y = both.find("y").unwrap();
    both.add_input(y);
    assert_eq!(says(both.check()), "`y` has two producers, the graph's inputs and by Relu producing `y`");
    let mut twice = graph("y = Relu(x)");
    let x = twice.find("x").unwrap();
    twice.add_input(x);
    assert_eq!(says(twice.check()), "the input `x` is listed twice");
    // Names of nodes only serve the reader: files repeat them, and ONNX Runtime runs those.
    assert_eq!(graph("[same] y = Relu(t) [same] t = Relu(x)").check(), Ok(()));
}

#[test]
fn operators_exist_in_the_imported_set() {
    let unknown = "Rellu producing `y` is no operator of ai.onnx in operator set 17";
    assert_eq!(says(graph("y = Rellu(x)").check()), unknown);
    assert_eq!(hint("y = Rellu(x)"), "did you mean `Relu`?");
    assert_eq!(hint("y = Gelu(x)"), "it came with operator set 20: import that or a newer one");
    assert_eq!(graph("y = Nothing(x)").check().unwrap_err().hint(), None);
    let deprecated = "Scatter producing `y` is deprecated in operator set 17";
    assert_eq!(says(graph("y = Scatter(x, x, x)").check()), deprecated);
    let foreign = "Bar producing `y` is of the domain `foo`, which the model does not import";
    assert_eq!(says(graph("y = foo.Bar(x)").check()), foreign);
    assert_eq!(hint("y = foo.Bar(x)"), "add an opset_import for `foo`");
    assert_eq!(graph("y = com.microsoft.Gelu(x)").check(), Ok(()));
    assert_eq!(model("y = f.Bar(x)", ""), Ok(()));
}

#[test]
fn counts_are_those_of_the_schema() {
    assert_eq!(says(graph("y = Add(x)").check()), "Add producing `y` has 1 input, but must have 2");
    assert_eq!(says(graph("y, w = Relu(x)").check()), "Relu producing `y` has 2 outputs, but must have 1");
    let clip = "Clip producing `y` has 4 inputs, but must have 1 to 3";
    assert_eq!(says(graph("y = Clip(x, x, x, x)").check()), clip);
    assert_eq!(says(graph("y = Max()").check()), "Max producing `y` has 0 inputs, but must have at least 1");
    assert_eq!(says(graph("y = Add(, x)").check()), "Add producing `y` lacks its input `A`");
    assert_eq!(graph("y = Clip(x, , x)").check(), Ok(()));
}

#[test]
fn attributes_are_those_of_the_schema() {
    assert_eq!(says(graph("y = Concat(x, x)").check()), "Concat producing `y` lacks its attribute `axis`");
    assert_eq!(
        says(graph("y = Concat<axis = \"zero\">(x, x)").check()),
        "the attribute `axis` of Concat producing `y` is string, but must be int"
    );
    let unknown = "Softmax producing `y` has an attribute `axes`, which it does not know";
    assert_eq!(says(graph("y = Softmax<axes = 1>(x)").check()), unknown);
    assert_eq!(hint("y = Softmax<axes = 1>(x)"), "did you mean `axis`?");
    assert_eq!(graph("y = Softmax<__axes = 1>(x)").check(), Ok(()));
    assert_eq!(says(graph("y = Constant()").check()), "Constant producing `y` must hold one value");
    let both = graph("y = Constant<value_int = 1, value_float = 1.0>()").check();
    assert_eq!(says(both), "Constant producing `y` must hold one value");
}

#[test]
fn types_are_those_of_the_schema() {
    let with = |nodes: &str, dtype: DataType| {
        let mut graph = graph(nodes);
        let x = graph.find("x").unwrap();
        graph.set_fact(x, Fact::tensor(dtype, vec![]));
        graph.check()
    };
    assert_eq!(
        says(with("y = Relu(x)", DataType::String)),
        "`x` at Relu producing `y` is string[], which is none of float, int8, int16, int32, int64, float16, double, \
         bfloat16"
    );
    let mixed = with("y = Add(x, z)", DataType::Double);
    assert_eq!(mixed.clone().unwrap_err().hint().unwrap(), "a Cast node can join them");
    assert_eq!(says(mixed), "`x` (double[]) and `z` (float[N]) at Add producing `y` must be of one type");
    let sequence = says(with("s = SequenceConstruct(z) y = SequenceInsert(x, z)", DataType::Float));
    assert!(
        sequence.starts_with("`x` at SequenceInsert producing `y` is float[], which is none of seq("),
        "{sequence}"
    );
}

/// A conditional: the `then` branch makes `p`.
fn conditional(before: &str, then: &str) -> Result<(), CheckError> {
    let nodes = format!(
        "g (bool c, float[N] z) => (y) {{ {before} y = If (c) <
            then_branch = t () => (float[N] p) {{ {then} }},
            else_branch = e () => (float[N] p) {{ k = Relu(z) p = Abs(k) }}> }}"
    );
    text::parse_graph(&nodes, 17).unwrap().check()
}

#[test]
fn subgraphs_are_checked_too() {
    assert_eq!(conditional("", "k = Relu(z) p = Abs(k)"), Ok(()), "names side by side may repeat");
    let fault = |before, then| says(conditional(before, then));
    assert_eq!(
        fault("", "p = Rellu(z)"),
        "Rellu producing `p` is no operator of ai.onnx in operator set 17, in `then_branch` of If producing `y`"
    );
    assert_eq!(fault("", "p = Relu(nope)"), "`nope` is used by If producing `y`, but nothing makes it");
    assert_eq!(
        fault("p = Relu(z)", ""),
        "the output `p` is a value of an outer graph, in `then_branch` of If producing `y`"
    );
    assert_eq!(
        fault("k = Abs(z)", "k = Relu(z) p = Abs(k)"),
        "Relu producing `k` makes `k`, which is also the name of a value of an outer graph, \
         in `then_branch` of If producing `y`"
    );
    assert_eq!(fault("", "p = Relu(y)"), "the nodes form a cycle: If producing `y`");
}

#[test]
fn bodies_fit_their_nodes() {
    let body = |node: &str, body: &str| {
        let text = format!("g (int64 n, bool c, float[N] v) => (y) {{ {node} <body = {body}> }}");
        text::parse_graph(&text, 17).unwrap().check()
    };
    let good = "b (int64 i, bool d, float[N] u) => (bool e, float[N] w) { e = Identity(d) w = Relu(u) }";
    assert_eq!(body("y = Loop (n, c, v)", good), Ok(()));
    assert_eq!(
        says(body("y, s = Loop (n, c, v)", good)),
        "`body` of Loop producing `y` has 2 outputs, but must have at least 3"
    );
    assert_eq!(
        says(body("y = Loop (n, c)", good)),
        "`body` of Loop producing `y` has 3 inputs, but must have 2"
    );
}

const RELU: &str = r#"<domain: "f", opset_import: ["" : 17]> relu (a) => (b) { b = Relu(a) }"#;

#[test]
fn functions_are_checked_where_they_are_called() {
    let bad = r#"<domain: "f", opset_import: ["" : 17]> bad (a) => (b) { b = Rellu(a) }"#;
    assert_eq!(model("y = Relu(x)", bad), Ok(()));
    assert_eq!(
        says(model("y = f.bad(x)", bad)),
        "Rellu producing `b` is no operator of ai.onnx in operator set 17, in the function `bad`"
    );
    assert_eq!(model("y = f.relu(x)", RELU), Ok(()));
    assert_eq!(
        says(model("y = f.relu(x, x)", RELU)),
        "relu producing `y` has 2 inputs, but must have 0 to 1"
    );
    assert_eq!(says(model("y = Relu(x)", &format!("{RELU} {RELU}"))), "the function `relu` is there twice");
}

#[test]
fn recursion_is_refused() {
    let calls = |name: &str, callee: &str| {
        format!(
            r#"<domain: "f", opset_import: ["" : 17, "f" : 1]> {name} (a) => (b) {{ b = f.{callee}(a) }}"#
        )
    };
    let functions = [("one", "two"), ("two", "three"), ("three", "two")].map(|(f, g)| calls(f, g)).concat();
    let circle = "functions call each other in a circle: two calls three calls two";
    assert_eq!(says(model("y = Relu(x)", &functions)), circle);
    let itself = says(model("y = f.loop(x)", &calls("loop", "loop")));
    assert_eq!(itself, "functions call each other in a circle: loop calls loop");
}

#[test]
fn large_graphs_are_checked_in_no_time() {
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
    let start = std::time::Instant::now();
    assert_eq!(graph.check(), Ok(()));
    let taken = start.elapsed();
    // Some 20 ms when optimised; the rest is for builds that are not, on machines that are busy.
    assert!(taken.as_millis() < 500, "{taken:?}");
}

#[test]
fn operator_sets_nobody_knows_yet_are_refused() {
    let model =
        crate::Model::of(text::parse_graph("g (float[2] x) => (float[2] y) { y = Relu(x) }", 99).unwrap());
    let error = model.check().unwrap_err();
    assert!(
        error.to_string().starts_with("operator set 99 of ai.onnx is not known; the newest known one is ")
    );
}
