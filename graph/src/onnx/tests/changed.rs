//! Writing of models that passes have changed.

use super::*;
use crate::{Attribute, DataType, Dim, Fact, Node, Patch, Tensor, Value};

/// `y` = Add(x, new constant) instead of Relu(x).
fn add_constant(read: &mut Model) {
    let graph = &mut read.graph;
    let y = graph.find("y").unwrap();
    let mut patch = Patch::anchored(graph.producer(y).unwrap().0);
    let c = patch.constant("c", Tensor::vector(&[1.0_f32, 2.0]));
    let new = patch.node("n", Node::new("Add"), &[graph.find("x").unwrap().into(), c]);
    patch.replace(graph.value_ref(y), new);
    graph.apply(patch).unwrap();
}

#[test]
fn new_initializers_require_ir_version_4() {
    let mut m = model(graph(vec![node("Relu", &["x"], &["y"])]));
    m.ir_version = Some(3);
    assert_round_trip(&m);
    let mut read = load(&m);
    add_constant(&mut read);
    let written = saved(&read);
    assert_eq!(written.ir_version, Some(4));
    let g = written.graph.unwrap();
    assert_eq!(g.initializer[0].name(), "c");
    assert_eq!(g.initializer[0].raw_data(), [1.0_f32, 2.0].map(f32::to_le_bytes).concat());
    assert_eq!(g.node[0].input, ["x", "c"]);

    // Before IR version 3 there are no imports; the default is version 1.
    (m.ir_version, m.opset_import) = (Some(2), vec![]);
    let mut read = load(&m);
    add_constant(&mut read);
    assert_eq!(saved(&read).opset_import, [OperatorSetIdProto { domain: text(""), version: Some(1) }]);

    // A file that violates the rule already is not changed.
    m.graph.as_mut().unwrap().initializer = vec![tensor("w", &[1.0])];
    assert_round_trip(&m);
}

#[test]
fn new_initializers_are_inputs_beside_others() {
    // Some initializers of the model are inputs: in IR version 4 the caller could override them.
    let mut g = graph(vec![node("Relu", &["x"], &["y"]), node("Add", &["x", "w"], &["z"])]);
    g.initializer = vec![tensor("w", &[1.0, 1.0])];
    g.input.push(info("w", &[2]));
    g.output.push(info("z", &[2]));
    let mut m = model(g);
    m.ir_version = Some(3);
    assert_round_trip(&m);
    let mut read = load(&m);
    add_constant(&mut read);
    let written = saved(&read);
    assert_eq!(written.ir_version, Some(3));
    let names = |all: &[ValueInfoProto]| all.iter().map(|v| v.name().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&written.graph.as_ref().unwrap().input), ["x", "w", "c"]);
    assert_eq!(written.graph.unwrap().input[2], info("c", &[2]));

    // Frozen initializers are no inputs any more.
    let mut read = load(&m);
    add_constant(&mut read);
    read.graph.freeze_initializers();
    let written = saved(&read);
    assert_eq!(written.ir_version, Some(4));
    assert_eq!(names(&written.graph.unwrap().input), ["x"]);
}

#[test]
fn omits_declarations_that_became_wrong() {
    let mut g =
        graph(vec![node("Relu", &["x"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["b"], &["y"])]);
    g.value_info = vec![info("a", &[2]), info("b", &[2]), info("b", &[2])];
    let mut read = load(&model(g));
    for (name, size) in [("b", 3_i64), ("y", 3), ("x", 3)] {
        let id = read.graph.find(name).unwrap();
        read.graph.set_fact(id, Fact::tensor(DataType::Float, vec![Dim::from(size)]));
    }
    let written = saved(&read).graph.unwrap();
    assert_eq!(written.value_info, [info("a", &[2])]);
    assert_eq!((&written.input[..], &written.output[..]), (&[info("x", &[2])][..], &[info("y", &[2])][..]));
}

#[test]
fn new_values_are_not_declared() {
    let mut read = load(&model(graph(vec![node("Relu", &["x"], &["y"])])));
    let graph = &mut read.graph;
    let y = graph.find("y").unwrap();
    let mut patch = Patch::anchored(graph.producer(y).unwrap().0);
    let t = patch.node("t", Node::new("Abs"), &[graph.find("x").unwrap().into()]);
    let n = patch.node("n", Node::new("Neg"), &[t]);
    patch.replace(graph.value_ref(y), n);
    graph.apply(patch).unwrap();
    let written = saved(&read).graph.unwrap();
    assert!(written.value_info.is_empty());
    assert_eq!(written.node, [node("Abs", &["x"], &["t"]), node("Neg", &["t"], &["y"])]);
}

#[test]
fn annotations_are_removed_with_their_values() {
    let mut g = graph(vec![node("Relu", &["x"], &["a"]), node("Relu", &["a"], &["y"])]);
    let annotation = |name: &str| TensorAnnotation { tensor_name: text(name), ..Default::default() };
    g.quantization_annotation = vec![annotation("a"), annotation("x"), annotation("stray")];
    g.value_info = vec![info("a", &[2]), info("a", &[2]), info("stray", &[2])];
    let mut read = load(&model(g));
    add_constant(&mut read);
    let written = saved(&read).graph.unwrap();
    assert_eq!(written.quantization_annotation, [annotation("x"), annotation("stray")]);
    assert_eq!(written.value_info, [info("stray", &[2])]);
    assert_ne!(read.graph.fresh_name("stray"), "stray");
}

#[test]
fn writes_constants_of_functions_as_nodes() {
    let f = FunctionProto {
        name: text("F"),
        domain: text("local"),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: vec![node("Relu", &["x"], &["y"])],
        ..Default::default()
    };
    let mut m = model(graph(vec![node("F", &["x"], &["y"])]));
    m.functions = vec![f];
    let mut read = load(&m);
    let body = &mut read.functions[0].body;
    let c = body.add_value(Value::constant("c", Tensor::scalar(2.0_f32))).unwrap();
    let y = body.find("y").unwrap();
    let mut patch = Patch::anchored(body.producer(y).unwrap().0);
    let new = patch.node("n", Node::new("Mul"), &[body.find("x").unwrap().into(), c.into()]);
    patch.replace(body.value_ref(y), new);
    body.apply(patch).unwrap();
    let nodes = &saved(&read).functions[0].node;
    assert_eq!((nodes[0].op_type(), &nodes[0].output[..]), ("Constant", &["c".to_owned()][..]));
    assert_eq!(nodes[0].attribute[0].t.as_ref().unwrap().raw_data(), 2.0_f32.to_le_bytes());
    assert_eq!(nodes[1].input, ["x", "c"]);
}

#[test]
fn writes_types_of_models_built_in_memory() {
    let mut m = Model { ir_version: Some(8), ..Model::default() };
    let x = m
        .graph
        .add_value(Value { fact: Fact::tensor(DataType::Float, vec![Dim::from(2_i64)]), ..Value::named("x") })
        .unwrap();
    let y = m.graph.add_value(Value::named("y")).unwrap();
    m.graph.add_input(x);
    m.graph.add_output(y);
    m.graph.add_node(Node::new("Elu").with("alpha", Attribute::Float(0.0)), &[Some(x)], &[Some(y)]).unwrap();
    let written = saved(&m).graph.unwrap();
    assert_eq!(written.input, [info("x", &[2])]);
    assert_eq!(written.output, [ValueInfoProto { name: text("y"), ..Default::default() }]);
    assert_eq!(written.node[0].attribute, [AttributeProto { f: Some(0.0), ..attribute("alpha", 1) }]);
}
