//! Lossless round trips.

use super::*;
use crate::{Attribute, Constant, DataType};

#[test]
fn all_fields_of_model_graph_and_node() {
    let mut n = node("Relu", &["x", ""], &["y", "", ""]);
    n.name = text("");
    n.doc_string = text("what it does");
    n.domain = text("ai.onnx");
    n.overload = text("");
    n.metadata_props = vec![entry("a", "1"), StringStringEntryProto { key: None, value: text("b") }];
    let dims = vec![ShardedDimProto {
        axis: Some(0),
        simple_sharding: vec![SimpleShardedDimProto {
            num_shards: Some(2),
            dim: Some(simple_sharded_dim_proto::Dim::DimParam("N".into())),
        }],
    }];
    let spec = ShardingSpecProto {
        tensor_name: text("x"),
        device: vec![0, 1],
        index_to_device_group_map: vec![IntIntListEntryProto { key: Some(0), value: vec![1, 2] }],
        sharded_dim: dims,
    };
    n.device_configurations = vec![NodeDeviceConfigurationProto {
        configuration_id: text("c"),
        sharding_spec: vec![spec],
        pipeline_stage: Some(0),
    }];
    let mut g = graph(vec![n]);
    g.doc_string = text("doc");
    g.metadata_props = vec![entry("k", "v")];
    g.quantization_annotation = vec![
        TensorAnnotation {
            tensor_name: text("x"),
            quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "scale")],
        },
        TensorAnnotation { tensor_name: text("nowhere"), ..Default::default() },
    ];
    g.initializer = vec![tensor("scale", &[1.0])];
    let training = TrainingInfoProto {
        initialization: Some(graph(vec![node("Undefined", &["?"], &["y"])])),
        algorithm: None,
        initialization_binding: vec![entry("a", "b")],
        update_binding: vec![entry("c", "d")],
    };
    assert_round_trip(&ModelProto {
        producer_name: text("p"),
        producer_version: text(""),
        domain: text("d"),
        model_version: Some(0),
        doc_string: text(""),
        metadata_props: vec![entry("k", ""), entry("k", "twice")],
        training_info: vec![training],
        configuration: vec![DeviceConfigurationProto {
            name: text("c"),
            num_devices: Some(2),
            device: vec!["gpu".into(), "npu".into()],
        }],
        opset_import: vec![
            OperatorSetIdProto { domain: None, version: Some(17) },
            OperatorSetIdProto { domain: text("com.microsoft"), version: None },
        ],
        ..model(g)
    });
}

#[test]
fn distinguishes_absent_and_empty() {
    let mut m = model(GraphProto { name: None, ..graph(vec![node("Relu", &["x"], &["y"])]) });
    m.ir_version = None;
    m.opset_import.clear();
    assert_round_trip(&m);
    let g = m.graph.as_mut().unwrap();
    g.name = text("");
    g.doc_string = text("");
    g.input[0].r#type = None;
    g.output[0].r#type = Some(TypeProto::default());
    g.output[0].doc_string = text("");
    assert_round_trip(&m);
    // A model with an empty graph only.
    assert_round_trip(&ModelProto { graph: Some(GraphProto::default()), ..Default::default() });
}

#[test]
fn attributes_of_every_kind() {
    use attribute_proto::AttributeType as T;
    let nan = f32::from_bits(0x7fc0_1234);
    let sparse = SparseTensorProto {
        values: Some(tensor("v", &[1.0])),
        indices: Some(TensorProto {
            dims: vec![1],
            data_type: Some(7),
            int64_data: vec![3],
            ..Default::default()
        }),
        dims: vec![5],
    };
    let of = |kind: T| attribute(&format!("{kind:?}"), kind as i32);
    let tp = info("", &[1]).r#type.unwrap();
    let inner = GraphProto { node: vec![node("Constant", &[], &["c"])], ..Default::default() };
    let mut n = node("Custom", &[], &["y"]);
    n.attribute = vec![
        AttributeProto { f: Some(nan), doc_string: text("doc"), ..of(T::Float) },
        AttributeProto { i: Some(-1), ..of(T::Int) },
        AttributeProto { s: Some(Bytes::from_static(b"\xff\0")), ..of(T::String) },
        AttributeProto { t: Some(tensor("", &[2.0])), ..of(T::Tensor) },
        AttributeProto { g: Some(inner.clone()), doc_string: text("body"), ..of(T::Graph) },
        AttributeProto { sparse_tensor: Some(sparse.clone()), ..of(T::SparseTensor) },
        AttributeProto { tp: Some(tp.clone()), ..of(T::TypeProto) },
        AttributeProto { floats: vec![nan, -0.0], ..of(T::Floats) },
        AttributeProto { ints: vec![], ..of(T::Ints) },
        AttributeProto { strings: vec![Bytes::new()], ..of(T::Strings) },
        AttributeProto { tensors: vec![tensor("a", &[]), tensor("b", &[1.0])], ..of(T::Tensors) },
        AttributeProto { graphs: vec![inner.clone(), inner], ..of(T::Graphs) },
        AttributeProto { sparse_tensors: vec![sparse], ..of(T::SparseTensors) },
        AttributeProto { type_protos: vec![TypeProto::default(), tp], ..of(T::TypeProtos) },
        AttributeProto { i: Some(3), ..of(T::Undefined) },
    ];
    let m = model(graph(vec![n]));
    assert_round_trip(&m);
    let read = load(&m);
    let attributes = &read.graph.node(read.graph.nodes()[0]).attributes;
    assert_eq!(attributes["Int"], Attribute::Int(-1));
    assert_eq!(attributes["Undefined"], Attribute::Int(3));
    assert_eq!(attributes["Floats"], Attribute::Floats(vec![nan, -0.0]));
}

#[test]
fn attributes_of_old_and_invalid_writers() {
    let untyped = |name: &str| AttributeProto { r#type: None, ..attribute(name, 0) };
    let mut unset = info("", &[1]).r#type.unwrap();
    let Some(type_proto::Value::TensorType(t)) = &mut unset.value else { unreachable!() };
    t.elem_type = Some(0);
    let mut n = node("Custom", &[], &["y"]);
    n.attribute = vec![
        AttributeProto { ints: vec![1, 2], ..untyped("ints") },
        AttributeProto { s: Some(Bytes::new()), ..untyped("s") },
        untyped("nothing"),
        // Writers of proto3 omit zeros.
        attribute("zero", 2),
        attribute("none", 1),
        attribute("empty", 3),
        // A value in addition to that of its type.
        AttributeProto { f: Some(1.0), i: Some(2), ..attribute("both", 1) },
        AttributeProto { tp: Some(unset.clone()), ..attribute("type", 13) },
        AttributeProto { type_protos: vec![unset], ..attribute("types", 14) },
        AttributeProto { ref_attr_name: text(""), i: Some(1), ..attribute("unreferenced", 2) },
    ];
    let m = model(graph(vec![n]));
    assert_round_trip(&m);

    let mut read = load(&m);
    let id = read.graph.nodes()[0];
    let attributes = &mut read.graph.node_mut(id).attributes;
    assert_eq!(attributes["ints"], Attribute::Ints(vec![1, 2]));
    assert_eq!(attributes["zero"], Attribute::Int(0));
    assert_eq!(attributes["nothing"], Attribute::Undefined);
    attributes["zero"] = Attribute::Int(1);
    attributes["both"] = Attribute::Ints(vec![]);
    attributes["ints"] = Attribute::Ints(vec![]);
    let written = saved(&read).graph.unwrap().node.remove(0).attribute;
    assert_eq!((written[3].i, written[3].r#type), (Some(1), Some(2)));
    assert_eq!((written[6].f, written[6].r#type), (None, Some(7)));
    assert_eq!(written[0].r#type, Some(7), "an empty list does not determine its type");
}

#[test]
fn references_in_functions() {
    let reference = |name: &str, kind| AttributeProto {
        name: text(name),
        ref_attr_name: text("alpha"),
        r#type: kind,
        ..Default::default()
    };
    let mut n = node("LeakyRelu", &["x"], &["t"]);
    n.attribute = vec![
        reference("alpha", Some(1)),
        reference("old", None),
        AttributeProto { doc_string: text("d"), ..reference("doc", Some(1)) },
    ];
    let f = FunctionProto {
        name: text("F"),
        domain: text("local"),
        overload: text("o"),
        input: vec!["x".into(), "unused".into()],
        output: vec!["y".into(), "x".into()],
        attribute: vec!["alpha".into()],
        attribute_proto: vec![AttributeProto {
            f: Some(0.5),
            doc_string: text("default"),
            ..attribute("beta", 1)
        }],
        node: vec![n, node("Constant", &[], &["c"]), node("Add", &["t", "c"], &["y"])],
        doc_string: text("doc"),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        value_info: vec![info("t", &[2]), info("stray", &[1])],
        metadata_props: vec![entry("a", "b")],
    };
    let mut m = model(graph(vec![node("F", &["x", "x"], &["y"])]));
    m.functions = vec![f.clone(), FunctionProto { domain: None, overload: None, ..f }];
    assert_round_trip(&m);
    assert!(load(&m).functions[0].body.is_function);
}

#[test]
fn declarations_of_every_kind_of_value() {
    let mut twice = info("a", &[2]);
    twice.doc_string = text("second");
    let mut unset = info("b", &[]);
    unset.r#type.as_mut().unwrap().value =
        Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(0), shape: None }));
    let mut denoted = info("x", &[-1]);
    denoted.r#type.as_mut().unwrap().denotation = text("IMAGE");
    denoted.metadata_props = vec![entry("m", "n")];
    let mut symbolic = info("y", &[1, 1]);
    let Some(type_proto::Value::TensorType(t)) = &mut symbolic.r#type.as_mut().unwrap().value else {
        unreachable!()
    };
    let dims = &mut t.shape.as_mut().unwrap().dim;
    dims[0].value = Some(tensor_shape_proto::dimension::Value::DimParam(String::new()));
    dims[0].denotation = text("DATA_BATCH");
    dims[1].value = None;

    let mut g =
        graph(vec![node("Relu", &["x"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["b"], &["y"])]);
    g.input = vec![denoted, info("w2", &[1])];
    // Duplicate declarations that differ, and an input that is an output.
    g.output = vec![symbolic, info("y", &[2]), info("x", &[3]), unset.clone()];
    g.initializer = vec![tensor("w1", &[1.0]), tensor("w2", &[2.0])];
    let nameless = ValueInfoProto { doc_string: text("nameless"), ..Default::default() };
    g.value_info = vec![
        info("w1", &[1]),
        info("b", &[7]),
        info("stray", &[1]),
        info("a", &[2]),
        twice,
        unset,
        info("x", &[2]),
        info("stray", &[2]),
        info("y", &[2]),
        nameless,
    ];
    assert_round_trip(&model(g));
}

#[test]
fn types_of_every_kind() {
    use type_proto::Value as V;
    let ty = |value| Some(TypeProto { value: Some(value), denotation: None });
    let float = info("", &[2]).r#type.map(Box::new);
    let kinds = [
        V::SequenceType(Box::new(type_proto::Sequence { elem_type: float.clone() })),
        V::SequenceType(Box::default()),
        V::OptionalType(Box::new(type_proto::Optional { elem_type: float.clone() })),
        V::MapType(Box::new(type_proto::Map { key_type: Some(7), value_type: float })),
        V::MapType(Box::new(type_proto::Map { key_type: Some(0), value_type: None })),
        V::SparseTensorType(type_proto::SparseTensor {
            elem_type: Some(1),
            shape: Some(TensorShapeProto::default()),
        }),
        V::OpaqueType(type_proto::Opaque { domain: text(""), name: None }),
        V::TensorType(type_proto::Tensor { elem_type: None, shape: None }),
    ];
    let mut g = graph(vec![]);
    let input =
        |(i, kind)| ValueInfoProto { name: Some(format!("i{i}")), r#type: ty(kind), ..Default::default() };
    g.input = kinds.into_iter().enumerate().map(input).collect();
    g.output.clear();
    assert_round_trip(&model(g));
}

/// A value of every element type, in its typed list and packed.
#[test]
fn tensors_of_every_type_in_every_storage() {
    let ints = |data_type, dims: &[i64], data: &[i32]| TensorProto {
        dims: dims.to_vec(),
        data_type: Some(data_type),
        int32_data: data.to_vec(),
        ..Default::default()
    };
    let plain =
        |data_type, n| TensorProto { dims: vec![n], data_type: Some(data_type), ..Default::default() };
    let mut tensors = vec![
        TensorProto { float_data: vec![1.5, f32::NAN], ..plain(1, 2) },
        ints(2, &[2], &[0, 255]),
        ints(3, &[2], &[-128, 127]),
        ints(4, &[2], &[0, 65535]),
        ints(5, &[1], &[-1]),
        ints(6, &[], &[i32::MIN]),
        TensorProto { int64_data: vec![i64::MIN], ..plain(7, 1) },
        TensorProto { string_data: vec![Bytes::from_static(b"\xff"), Bytes::new()], ..plain(8, 2) },
        ints(9, &[2], &[0, 1]),
        ints(10, &[1], &[0x3c00]),
        TensorProto { double_data: vec![-0.0], ..plain(11, 1) },
        TensorProto { uint64_data: vec![u64::from(u32::MAX)], ..plain(12, 1) },
        TensorProto { uint64_data: vec![u64::MAX], ..plain(13, 1) },
        TensorProto { float_data: vec![1.0, 2.0], ..plain(14, 1) },
        TensorProto { double_data: vec![1.0, 2.0], ..plain(15, 1) },
        ints(16, &[1], &[0xbf80]),
        ints(17, &[1], &[0xff]),
        ints(21, &[3], &[0xf1, 0x0f]),
        ints(22, &[3], &[0x1f, 0x08]),
        ints(26, &[5], &[0xe4, 0x02]),
        ints(27, &[5], &[0x3f, 0, 0x21, 0x1e, 0x3f]),
        // Numbers that the elements do not determine: 255 for the int8 -1, 2 for true, a negative float16.
        ints(3, &[1], &[255]),
        ints(9, &[1], &[256]),
        ints(10, &[1], &[-1]),
        // No elements.
        plain(1, 0),
        TensorProto { raw_data: Some(Bytes::new()), ..plain(6, 0) },
        TensorProto { raw_data: Some(vec![7; 3].into()), ..plain(27, 4) },
        // All other fields of a tensor.
        TensorProto {
            segment: Some(tensor_proto::Segment { begin: Some(0), end: None }),
            doc_string: text("doc"),
            metadata_props: vec![entry("a", "b")],
            data_location: Some(0),
            external_data: vec![entry("location", "not used")],
            ..tensor("", &[1.0])
        },
    ];
    for (i, t) in tensors.iter_mut().enumerate() {
        t.name = Some(format!("t{i}"));
    }
    let mut g = graph(vec![node("Relu", &["x"], &["y"])]);
    g.initializer = tensors;
    let m = model(g);
    assert_round_trip(&m);
    let read = load(&m);
    let of = |name: &str| match &read.graph.value(read.graph.find(name).unwrap()).data {
        Some(Constant::Dense(tensor)) => tensor.clone(),
        _ => panic!("{name} is a dense tensor"),
    };
    assert_eq!(of("t2").to_i64().unwrap(), [-128, 127]);
    assert_eq!(of("t9").to_f64().unwrap(), [1.0]);
    assert_eq!(of("t11").to_i64().unwrap(), [i64::from(u32::MAX)]);
    assert_eq!(of("t18").to_i64().unwrap(), [-1, 1, -8]);
    assert_eq!(of("t19").to_i64().unwrap(), [0, 1, -2, -1, -2]);
    assert_eq!(of("t20").to_f64().unwrap(), [-7.5, 0.0, -0.125, 7.0, -7.5]);
    assert_eq!(of("t21").to_i64().unwrap(), [-1]);
    assert_eq!(of("t22").to_i64().unwrap(), [1]);
    assert_eq!(of("t7").dtype(), DataType::String);
}

#[test]
fn sparse_initializers() {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])]);
    let mut indices = tensor("", &[]);
    indices.name = None;
    indices.data_type = Some(7);
    indices.dims = vec![1, 2];
    indices.raw_data = Some(vec![0; 16].into());
    g.sparse_initializer = vec![SparseTensorProto {
        values: Some(tensor("s", &[4.0])),
        indices: Some(indices),
        dims: vec![3, 3],
    }];
    g.initializer = vec![tensor("later", &[0.0])];
    assert_round_trip(&model(g));
}

#[test]
fn bodies_capture_and_return_outer_values() {
    let branch = |nodes: Vec<NodeProto>, output: &str| GraphProto {
        node: nodes,
        name: text("b"),
        output: vec![info(output, &[2])],
        value_info: vec![info("w", &[2])],
        ..Default::default()
    };
    // `x` and `w` are outer values; the inner If returns `later`, which is defined after it in the file.
    let mut inner = node("If", &["c"], &["i"]);
    inner.attribute = vec![
        AttributeProto { g: Some(branch(vec![], "later")), ..attribute("then_branch", 5) },
        AttributeProto { g: Some(branch(vec![], "w")), ..attribute("else_branch", 5) },
    ];
    let mut outer = node("If", &["c"], &["y"]);
    let then = branch(vec![inner, node("Add", &["i", "x"], &["o"])], "o");
    let mut own = branch(vec![node("Add", &["own", "w"], &["o"])], "o");
    own.initializer = vec![tensor("own", &[1.0, 2.0])];
    outer.attribute = vec![
        AttributeProto { g: Some(then), ..attribute("then_branch", 5) },
        AttributeProto { g: Some(own), ..attribute("else_branch", 5) },
    ];
    let mut g = graph(vec![outer, node("Relu", &["x"], &["later"])]);
    g.input.push(info("c", &[]));
    g.initializer = vec![tensor("w", &[3.0, 4.0])];
    let m = model(g);
    assert_round_trip(&m);
    let graph = load(&m).graph;
    let outer = graph.find("y").and_then(|y| graph.producer(y)).unwrap().0;
    let names =
        |ids: Vec<crate::ValueId>| ids.iter().map(|&v| graph.value(v).name.clone()).collect::<Vec<_>>();
    let mut captured = names(graph.captured_by(outer));
    captured.sort();
    assert_eq!(captured, ["c", "later", "w", "x"]);
    assert!(graph.captures().is_empty());
}

#[test]
fn keeps_an_unsorted_order_until_the_graph_changes() {
    let m = model(graph(vec![
        node("Relu", &["b"], &["y"]),
        node("Relu", &["a"], &["b"]),
        node("Relu", &["x"], &["a"]),
    ]));
    assert_round_trip(&m);
    let mut read = load(&m);
    let graph = &mut read.graph;
    let y = graph.find("y").unwrap();
    let mut patch = crate::Patch::anchored(graph.producer(y).unwrap().0);
    let new = patch.node("n", crate::Node::new("Abs"), &[graph.find("b").unwrap().into()]);
    patch.replace(graph.value_ref(y), new);
    graph.apply(patch).unwrap();
    let ops: Vec<_> = saved(&read).graph.unwrap().node.into_iter().map(|n| n.output[0].clone()).collect();
    assert_eq!(ops, ["a", "b", "y"]);
}

#[test]
fn reads_packed_lists_and_long_varints() {
    // `ints` packed, as proto3 writes them, and ir_version in four bytes.
    let mut n = node("Custom", &[], &["y"]);
    n.attribute = vec![AttributeProto { ints: vec![1, 300], ..attribute("a", 7) }];
    let m = model(graph(vec![n]));
    let unpacked: &[u8] = &[0x40, 1, 0x40, 0xac, 0x02];
    let bytes = m.encode_to_vec();
    let at = bytes.windows(5).position(|w| w == unpacked).unwrap();
    let mut packed = bytes.clone();
    packed.splice(at..at + 5, [0x42, 3, 1, 0xac, 0x02]);
    assert_eq!(bytes[..2], [0x08, 8]);
    packed.splice(..2, [0x08, 0x88, 0x80, 0x00]);
    assert_eq!(to_bytes(&read_bytes(packed, None).unwrap()).unwrap(), bytes);
}

#[test]
fn weights_are_slices_of_the_input() {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])]);
    g.initializer = vec![tensor("w", &[1.0, 2.0])];
    let bytes = Bytes::from(model(g).encode_to_vec());
    let read = read_bytes(bytes.clone(), None).unwrap();
    let weights = read.graph.value(read.graph.find("w").unwrap()).tensor().unwrap().bytes().clone();
    assert!(bytes.as_ptr_range().contains(&weights.as_ptr()));
}

#[test]
fn overridable_initializers_are_not_constant() {
    let mut g = graph(vec![node("Add", &["x", "w"], &["y"])]);
    g.initializer =
        vec![TensorProto { data_type: Some(7), raw_data: Some(vec![1; 8].into()), ..tensor("w", &[0.0]) }];
    g.input.push(ValueInfoProto { name: text("w"), ..Default::default() });
    let m = model(g);
    assert_round_trip(&m);
    let graph = load(&m).graph;
    let w = graph.value(graph.find("w").unwrap());
    assert_eq!(w.tensor(), None);
    assert_eq!(w.fact.content(), None);
    assert_eq!(w.fact.dtype(), Some(DataType::Int64));
}
