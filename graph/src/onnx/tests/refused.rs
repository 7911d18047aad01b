//! Errors for invalid models.

use super::*;

fn sentence(change: impl FnOnce(&mut GraphProto)) -> String {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])]);
    change(&mut g);
    error(&model(g))
}

fn with_tensor(change: impl FnOnce(&mut TensorProto)) -> String {
    sentence(|g| {
        g.initializer = vec![tensor("w", &[1.0, 2.0])];
        change(&mut g.initializer[0]);
    })
}

fn with_attribute(attributes: Vec<AttributeProto>) -> String {
    sentence(|g| g.node[0].attribute = attributes)
}

#[test]
fn graphs() {
    assert_eq!(error(&ModelProto { ir_version: Some(8), ..Default::default() }), "the model has no graph");
    assert_eq!(sentence(|g| g.input.push(info("x", &[1]))), "two values are named `x`");
    assert_eq!(
        sentence(|g| g.initializer = vec![tensor("w", &[]), tensor("w", &[])]),
        "two values are named `w`"
    );
    assert_eq!(
        sentence(|g| g.node.push(node("Abs", &["x"], &["y"]))),
        "`y` has two producers, Relu producing `y` and Abs producing `y`"
    );
    assert_eq!(
        sentence(|g| g.node[0].output = vec!["y".into(), "y".into()]),
        "`y` has two producers, Relu producing `y` and Relu producing `y`"
    );
    assert_eq!(
        sentence(|g| g.node[0].output[0] = "x".into()),
        "`x` has two producers, the graph's inputs and Relu producing `x`"
    );
    assert_eq!(
        sentence(|g| g.initializer = vec![tensor("y", &[])]),
        "`y` has two producers, an initializer and Relu producing `y`"
    );
    assert_eq!(
        sentence(|g| g.node[0].input[0] = "z".into()),
        "`z` is used by Relu producing `y`, but has no producer"
    );
    assert_eq!(sentence(|g| g.output.push(info("z", &[1]))), "`z` is used as an output, but has no producer");
    assert_eq!(
        sentence(|g| g.node[0].input[0] = "y".into()),
        "the nodes form a cycle through Relu producing `y`"
    );
    assert_eq!(sentence(|g| g.node[0].op_type = None), "the node producing `y` has no operator");
    assert_eq!(sentence(|g| g.input[0].name = None), "a graph input has no name");
    assert_eq!(sentence(|g| g.output[0].name = text("")), "a graph output has no name");
    assert_eq!(
        sentence(|g| g.input[0].r#type.as_mut().unwrap().value =
            Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(99), shape: None }))),
        "`x` has the unknown element type 99"
    );
    let inner = GraphProto { node: vec![node("Abs", &["z"], &["o"])], ..Default::default() };
    assert_eq!(
        sentence(|g| g.node[0].attribute = vec![AttributeProto { g: Some(inner), ..attribute("body", 5) }]),
        "`z` is used in a subgraph of Relu producing `y`, but has no producer"
    );
    let f = FunctionProto { name: text("F"), output: vec!["o".into()], ..Default::default() };
    let functions =
        |functions| error(&ModelProto { functions, ..model(graph(vec![node("Relu", &["x"], &["y"])])) });
    assert_eq!(functions(vec![f.clone()]), "`o` is used as an output, but has no producer");
    let f = FunctionProto { output: vec![], ..f };
    assert_eq!(functions(vec![f.clone(), f]), "the function `F` of domain `` is defined twice");
}

#[test]
fn attributes() {
    let of = "of Relu producing `y`";
    let (a, b) = (attribute("a", 2), attribute("a", 2));
    assert_eq!(with_attribute(vec![a, b]), "Relu producing `y` has the attribute `a` twice");
    assert_eq!(with_attribute(vec![attribute("", 2)]), "Relu producing `y` has an attribute without name");
    assert_eq!(
        with_attribute(vec![attribute("a", 99)]),
        format!("the attribute `a` {of} has the unknown attribute type 99")
    );
    assert_eq!(with_attribute(vec![attribute("a", 4)]), format!("the attribute `a` {of} has no value"));
    let both = AttributeProto { i: Some(1), f: Some(1.0), ..attribute("a", 0) };
    assert_eq!(with_attribute(vec![both]), format!("the attribute `a` {of} has no type and several values"));
}

#[test]
fn tensors() {
    assert_eq!(with_tensor(|t| t.data_type = Some(99)), "the tensor `w` has the unknown element type 99");
    assert_eq!(with_tensor(|t| t.data_type = None), "the tensor `w` has no element type");
    assert_eq!(with_tensor(|t| t.name = None), "an initializer has no name");
    assert_eq!(with_tensor(|t| t.dims = vec![-1]), "the tensor `w` has a dimension of size -1");
    assert_eq!(
        with_tensor(|t| t.dims = vec![3]),
        "the tensor `w` does not fill its shape: a float tensor of shape [3] takes 12 bytes, not 8"
    );
    assert_eq!(
        with_tensor(|t| t.dims = vec![1 << 40, 1 << 40]),
        "the tensor `w` does not fill its shape: a tensor of shape [1099511627776, 1099511627776] is too large"
    );
    assert_eq!(with_tensor(|t| t.float_data = vec![1.0]), "the tensor `w` has both raw_data and float_data");
    assert_eq!(
        with_tensor(|t| {
            t.raw_data = None;
            t.int64_data = vec![1];
        }),
        "the tensor `w` of float elements has int64_data"
    );
    assert_eq!(with_tensor(|t| t.data_type = Some(8)), "the tensor `w` has strings in raw_data");
    let typed = |data_type, list: &[i32], wide: &[u64]| {
        let (int32_data, uint64_data) = (list.to_vec(), wide.to_vec());
        with_tensor(|t| {
            *t = TensorProto {
                raw_data: None,
                data_type: Some(data_type),
                int32_data,
                uint64_data,
                ..t.clone()
            }
        })
    };
    assert_eq!(typed(12, &[], &[1, 1 << 32]), "the tensor `w` has a number too large");
    assert_eq!(typed(27, &[1], &[]), "the tensor `w` does not fill its shape: 1 elements for 2");
    assert_eq!(with_tensor(|t| t.data_location = Some(7)), "the tensor `w` has the unknown data location 7");
    let sparse = SparseTensorProto { values: Some(tensor("s", &[])), ..Default::default() };
    assert_eq!(sentence(|g| g.sparse_initializer = vec![sparse]), "`s` has a sparse tensor without indices");
}

#[test]
fn rejects_files_that_are_not_models() {
    let why = |bytes: &[u8]| read_bytes(bytes.to_vec(), None).unwrap_err().to_string();
    assert_eq!(why(b""), "the file is empty");
    assert!(why(b"\x89PNG\r\n").starts_with("the file is damaged or not an ONNX file: "));
    let valid = model(graph(vec![node("Relu", &["x"], &["y"])])).encode_to_vec();
    // A truncated file is rejected, or has no graph.
    for cut in 1..valid.len() {
        if let Ok(read) = read_bytes(valid[..cut].to_vec(), None) {
            assert_eq!(saved(&read).encode_to_vec(), &valid[..cut]);
        }
    }
    // Invalid UTF-8.
    let mut bytes = valid.clone();
    let at = bytes.windows(4).position(|w| w == b"Relu").unwrap();
    bytes[at] = 0xff;
    assert!(why(&bytes).contains("UTF-8"), "{}", why(&bytes));
    // A field of a later version.
    let mut bytes = valid;
    bytes.extend([0xf8, 0x07, 1]);
    assert_eq!(why(&bytes), "ModelProto has the unknown field 127, which would be lost");
}

/// A graph in `depth` others.
fn nested(depth: usize) -> Vec<u8> {
    let mut bytes = GraphProto { name: text("innermost"), ..Default::default() }.encode_to_vec();
    let wrap = |prefix: &[u8], key: u8, bytes: &[u8]| {
        let mut outer = prefix.to_vec();
        outer.push(key);
        prost::encode_length_delimiter(bytes.len(), &mut outer).unwrap();
        outer.extend(bytes);
        outer
    };
    for _ in 0..depth {
        let attribute = wrap(&[0x0a, 1, b'a', 0xa0, 0x01, 5], 0x32, &bytes);
        let node = wrap(&[0x22, 2, b'I', b'f'], 0x2a, &attribute);
        bytes = wrap(&[], 0x0a, &node);
    }
    wrap(&[], 0x3a, &bytes)
}

#[test]
fn rejects_deep_nesting() {
    let deepest = (super::super::wire::MAX_DEPTH - 2) / 3;
    let read = read_bytes(nested(deepest), None).unwrap();
    assert_eq!(read_bytes(to_bytes(&read).unwrap(), None).unwrap().graph.node_count(), 1);
    for depth in [deepest + 1, 10_000] {
        let why = read_bytes(nested(depth), None).unwrap_err().to_string();
        assert_eq!(why, "messages are nested deeper than 100 levels");
    }
    // Deeper models in memory are not written, since they could not be read.
    let mut graph = crate::Graph::default();
    for _ in 0..=deepest {
        let mut outer = crate::Graph::default();
        let node = crate::Node {
            attributes: [("g".into(), crate::Attribute::Graph(Box::new(graph)))].into(),
            ..crate::Node::new("If")
        };
        outer.add_node(node, &[], &[]).unwrap();
        graph = outer;
    }
    let deep = Model { graph, ..Model::default() };
    assert_eq!(to_bytes(&deep).unwrap_err().to_string(), "subgraphs are nested too deep at ``");
}

/// Mutated models are read without panic, and round-trip if they are valid.
#[test]
fn mutated_models_do_not_panic() {
    let mut outer = node("If", &["c"], &["y"]);
    let body = GraphProto {
        node: vec![node("Relu", &["x"], &["o"])],
        output: vec![info("o", &[2])],
        ..Default::default()
    };
    outer.attribute = vec![
        AttributeProto { g: Some(body), ..attribute("then_branch", 5) },
        AttributeProto { ints: vec![1, 2], ..attribute("ints", 7) },
        AttributeProto { t: Some(tensor("t", &[1.0])), ..attribute("t", 4) },
    ];
    let mut g = graph(vec![outer]);
    g.input.push(info("c", &[]));
    g.value_info = vec![info("y", &[2]), info("q", &[1])];
    g.initializer = vec![
        TensorProto {
            int32_data: vec![1, 2, 3],
            data_type: Some(3),
            dims: vec![3],
            name: text("i"),
            ..Default::default()
        },
        TensorProto {
            data_location: Some(1),
            raw_data: None,
            external_data: vec![entry("location", "f")],
            ..tensor("e", &[1.0])
        },
    ];
    let valid = model(g).encode_to_vec();
    let mut random = fastrand::Rng::with_seed(1);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            match random.u8(..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes[at] ^= 1 << random.u8(..8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random.u8(..)),
            }
        }
        match read_bytes(bytes, None) {
            Ok(model) => {
                let once = to_bytes(&model).unwrap();
                assert_eq!(to_bytes(&read_bytes(once.clone(), None).unwrap()).unwrap(), once);
                read += 1;
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'));
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "{read} read, {refused} refused");
}
