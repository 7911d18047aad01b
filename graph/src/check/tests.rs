#![allow(clippy::unwrap_used)]

use crate::{Attribute, CheckError, DataType, Dim, Fact, Function, Graph, Model, Node, Tensor, Value};
use std::sync::Arc;

fn imports(list: &[(&str, i64)]) -> Arc<Vec<(String, i64)>> {
    Arc::new(list.iter().map(|&(domain, version)| (domain.to_owned(), version)).collect())
}

/// A graph from lines such as `y, z = Split(x)`; `_` is an omitted value, names of graphs follow the parentheses.
fn build(mut graph: Graph, inputs: &str, outputs: &str, lines: &str, subgraphs: &[(&str, &Graph)]) -> Graph {
    let words = |text: &str| -> Vec<String> {
        text.split(',').map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
    };
    for name in words(inputs) {
        let id = graph.find_or_capture(&name);
        graph.value_mut(id).role.captured = false;
        graph.value_mut(id).fact = Fact::tensor(DataType::Float, vec![Dim::symbol("N")]);
        graph.add_input(id);
    }
    let made: Vec<_> = lines.lines().filter_map(|l| l.split_once('=')).flat_map(|l| words(l.0)).collect();
    for name in made.iter().filter(|&name| name != "_") {
        if graph.find(name).is_none() {
            graph.add_value(Value::named(name)).unwrap();
        }
    }
    for line in lines.lines().filter(|l| l.contains('=')) {
        let (outs, call) = line.split_once('=').unwrap();
        let (op, rest) = call.trim().split_once('(').unwrap();
        let (ins, bodies) = rest.split_once(')').unwrap();
        let mut ids = |text: &str| -> Vec<_> {
            words(text).iter().map(|w| (w != "_").then(|| graph.find_or_capture(w))).collect()
        };
        let (ins, outs) = (ids(ins), ids(outs));
        let (domain, op) = op.rsplit_once('.').map_or((None, op), |(d, op)| (Some(d.to_owned()), op));
        let mut node = Node { domain, ..Node::new(op) };
        for word in bodies.split_whitespace() {
            let (key, value) = word.split_once(':').unwrap_or((word, word));
            let body =
                subgraphs.iter().find(|s| s.0 == value).map(|s| Attribute::Graph(Box::new(s.1.clone())));
            let value = body.or_else(|| value.parse().ok().map(Attribute::Int));
            node.attributes.insert(key.into(), value.unwrap_or_else(|| Attribute::string(value_of(word))));
        }
        graph.add_node(node, &ins, &outs).unwrap();
    }
    for name in words(outputs) {
        let id = graph.find_or_capture(&name);
        graph.add_output(id);
    }
    graph
}

fn value_of(word: &str) -> &str {
    word.split_once(':').map_or("", |w| w.1)
}

fn graph(lines: &str) -> Graph {
    build(Graph::new(imports(&[("", 17)])), "x, z", "y", lines, &[])
}

fn says<T: std::fmt::Debug>(result: Result<T, CheckError>) -> String {
    result.unwrap_err().to_string()
}

fn hint(lines: &str) -> String {
    graph(lines).check().unwrap_err().hint().unwrap()
}

#[test]
fn a_sound_graph_in_any_order_passes() {
    assert_eq!(graph("y = Relu(t)\nt = Add(x, z)").check(), Ok(()));
}

#[test]
fn values_are_made_before_they_are_used() {
    assert_eq!(says(graph("y = Add(x, q)").check()), "`q` is used by Add making `y`, but nothing makes it");
    assert_eq!(says(graph("t = Relu(x)").check()), "the output `y` is made by nothing");
    assert_eq!(
        says(graph("y = Add(x, c)\na = Add(x, c)\nb = Relu(a)\nc = Neg(b)").check()),
        "the nodes form a cycle: Add making `a`, Relu making `b`, Neg making `c`"
    );
}

#[test]
fn values_are_made_once() {
    let mut both = graph("y = Relu(x)");
    let y = both.find("y").unwrap();
    both.add_input(y);
    assert_eq!(says(both.check()), "`y` is made twice, by the graph's inputs and by Relu making `y`");
    let mut twice = graph("y = Relu(x)");
    let x = twice.find("x").unwrap();
    twice.add_input(x);
    assert_eq!(says(twice.check()), "the input `x` is listed twice");
    let mut named = graph("y = Relu(t)\nt = Relu(x)");
    for &id in named.nodes().iter() {
        named.node_mut(id).name = Some("same".into());
    }
    assert_eq!(says(named.check()), "two nodes are named `same`");
}

#[test]
fn operators_exist_in_the_imported_set() {
    let unknown = "Rellu making `y` is no operator of ai.onnx in operator set 17";
    assert_eq!(says(graph("y = Rellu(x)").check()), unknown);
    assert_eq!(hint("y = Rellu(x)"), "did you mean `Relu`?");
    assert_eq!(hint("y = Gelu(x)"), "it came with operator set 20: import that or a newer one");
    assert_eq!(graph("y = Nothing(x)").check().unwrap_err().hint(), None);
    assert_eq!(
        says(graph("y = Scatter(x, x, x)").check()),
        "Scatter making `y` is deprecated in operator set 17"
    );
    assert_eq!(
        says(graph("y = foo.Bar(x)").check()),
        "Bar making `y` is of the domain `foo`, which the model does not import"
    );
    let lines = "t = foo.Bar(x)\ny = com.microsoft.Gelu(t)";
    let custom = build(Graph::new(imports(&[("ai.onnx", 17), ("foo", 3)])), "x", "y", lines, &[]);
    assert_eq!(custom.check(), Ok(()));
    let future = build(Graph::new(imports(&[("", 1000)])), "x", "y", "y = OfTheFuture(x)", &[]);
    assert_eq!(future.check(), Ok(()));
}

#[test]
fn counts_are_those_of_the_schema() {
    assert_eq!(says(graph("y = Add(x)").check()), "Add making `y` has 1 inputs, but must have 2");
    assert_eq!(says(graph("y, w = Relu(x)").check()), "Relu making `y` has 2 outputs, but must have 1");
    assert_eq!(
        says(graph("y = Clip(x, x, x, x)").check()),
        "Clip making `y` has 4 inputs, but must have 1 to 3"
    );
    assert_eq!(says(graph("y = Max()").check()), "Max making `y` has 0 inputs, but must have at least 1");
    assert_eq!(says(graph("y = Add(x, _)").check()), "Add making `y` lacks its input `B`");
    assert_eq!(graph("y = Clip(x, _, x)").check(), Ok(()));
}

#[test]
fn attributes_are_those_of_the_schema() {
    assert_eq!(says(graph("y = Concat(x, x)").check()), "Concat making `y` lacks its attribute `axis`");
    assert_eq!(
        says(graph("y = Concat(x, x) axis:zero").check()),
        "the attribute `axis` of Concat making `y` is string, but must be int"
    );
    let unknown = "Softmax making `y` has an attribute `axes`, which it does not know";
    assert_eq!(says(graph("y = Softmax(x) axes:1").check()), unknown);
    assert_eq!(hint("y = Softmax(x) axes:1"), "did you mean `axis`?");
    assert_eq!(graph("y = Softmax(x) __axes:1").check(), Ok(()));
}

#[test]
fn types_are_those_of_the_schema() {
    let with = |lines: &str, dtype: DataType| {
        let mut graph = graph(lines);
        let x = graph.find("x").unwrap();
        graph.set_fact(x, Fact::tensor(dtype, vec![]));
        says(graph.check())
    };
    assert_eq!(
        with("y = Relu(x)", DataType::String),
        "`x` at Relu making `y` is string[], which is none of float, int8, int16, int32, int64, float16, double, \
         bfloat16"
    );
    assert_eq!(
        with("y = Add(x, z)", DataType::Double),
        "`x` (double[]) and `z` (float[N]) at Add making `y` must be of one type"
    );
}

const IF: &str = "y = If(x) then_branch:a else_branch:b";

fn branch(outer: &Graph, output: &str, lines: &str) -> Graph {
    build(outer.nested(), "", output, lines, &[])
}

fn conditional(before: &str, then: &Graph, otherwise: &Graph) -> Result<(), CheckError> {
    let lines = format!("{before}\n{IF}");
    let mut graph =
        build(Graph::new(imports(&[("", 17)])), "x, z", "y", &lines, &[("a", then), ("b", otherwise)]);
    let x = graph.find("x").unwrap();
    graph.set_fact(x, Fact::tensor(DataType::Bool, vec![]));
    graph.check()
}

#[test]
fn subgraphs_are_checked_too() {
    let outer = Graph::new(imports(&[("", 17)]));
    let relu = branch(&outer, "p", "k = Relu(z)\np = Abs(k)");
    assert_eq!(conditional("", &relu, &relu), Ok(()), "side by side names may repeat");
    let place = ", in `then_branch` of If making `y`";
    let fault = |before: &str, then: &Graph| {
        let text = says(conditional(before, then, &relu));
        text.strip_suffix(place).unwrap_or(&text).to_owned()
    };
    assert_eq!(
        fault("", &branch(&outer, "p", "p = Rellu(z)")),
        "Rellu making `p` is no operator of ai.onnx in operator set 17"
    );
    assert_eq!(
        fault("", &branch(&outer, "p", "p = Relu(nope)")),
        "`nope` is used by If making `y`, but nothing makes it"
    );
    assert_eq!(fault("", &branch(&outer, "z", "p = Relu(z)")), "the output `z` is a value of an outer graph");
    assert_eq!(
        fault("k = Abs(z)", &relu),
        "Relu making `k` makes `k`, which is also the name of a value of an outer graph"
    );
    assert_eq!(fault("", &branch(&outer, "p", "p = Relu(y)")), "the nodes form a cycle: If making `y`");
}

fn function(name: &str, lines: &str) -> Function {
    let body = build(Graph::new(imports(&[("", 17), ("f", 1)])), "a", "b", lines, &[]);
    Function { name: name.into(), domain: "f".into(), body, ..Function::default() }
}

fn model(lines: &str, functions: Vec<Function>) -> Model {
    let opsets = imports(&[("", 17), ("f", 1)]);
    let graph = build(Graph::new(opsets.clone()), "x", "y", lines, &[]);
    Model { opsets, graph, functions, ..Model::default() }
}

#[test]
fn functions_are_checked_where_they_are_called() {
    let bad = || function("bad", "b = Rellu(a)");
    assert_eq!(model("y = Relu(x)", vec![bad()]).check(), Ok(()));
    assert_eq!(
        says(model("y = f.bad(x)", vec![bad()]).check()),
        "Rellu making `b` is no operator of ai.onnx in operator set 17, in the function `bad`"
    );
    let good = || function("good", "b = Relu(a)");
    assert_eq!(model("y = f.good(x)", vec![good()]).check(), Ok(()));
    assert_eq!(
        says(model("y = f.good(x, x)", vec![good()]).check()),
        "good making `y` has 2 inputs, but must have 0 to 1"
    );
    assert_eq!(
        says(model("y = Relu(x)", vec![good(), good()]).check()),
        "the function `good` is there twice"
    );
}

#[test]
fn recursion_is_refused() {
    let functions = vec![function("one", "b = f.two(a)"), function("two", "b = f.three(a)"), {
        function("three", "b = f.two(a)")
    }];
    assert_eq!(
        says(model("y = Relu(x)", functions).check()),
        "functions call each other in a circle: two calls three calls two"
    );
}

#[test]
fn large_graphs_are_checked_in_no_time() {
    let mut graph = Graph::new(imports(&[("", 17)]));
    let mut last = graph.add_value(Value::named("x")).unwrap();
    graph.add_input(last);
    for i in 0..20_000 {
        let weight = Value::constant(&format!("w{i}"), Tensor::scalar(1.0_f32));
        let weight = graph.add_value(weight).unwrap();
        let output = graph.add_value(Value::named(&format!("v{i}"))).unwrap();
        graph.set_fact(output, Fact::tensor(DataType::Float, vec![]));
        let node = Node { name: Some(format!("n{i}")), ..Node::new("Add") };
        graph.add_node(node, &[Some(last), Some(weight)], &[Some(output)]).unwrap();
        last = output;
    }
    graph.add_output(last);
    graph.nodes();
    assert_eq!(graph.check(), Ok(()));
    let start = std::time::Instant::now();
    assert_eq!(graph.check(), Ok(()));
    let taken = start.elapsed();
    // 20 ms when optimised; ten times that for slow machines and unoptimised builds.
    assert!(taken.as_millis() < 200, "{taken:?}");
}
