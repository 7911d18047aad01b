use super::*;
use crate::{DataType, Fact};

#[test]
fn parses_every_line() {
    let lines = include_str!("schema.txt").lines().filter(|l| l.contains(" ->")).count();
    assert_eq!(table().schemas.len(), lines);
    assert_eq!(newest_opset("ai.onnx"), Some(28));
    assert_eq!(newest_opset("com.microsoft"), None);
    for schema in &table().schemas {
        assert!(schema.attributes.is_sorted_by_key(|a| a.name), "{}", schema.name);
        let defaults = schema.attributes.iter().filter_map(|a| a.default.map(|_| a));
        defaults.for_each(|a| assert_eq!(AttributeKind::of(&a.default().unwrap()), Some(a.kind)));
    }
}

#[test]
fn finds_version_of_operator_set() {
    let since = |opset| schema("", "Conv", opset).map(|s| s.since);
    assert_eq!(
        [since(0), since(1), since(10), since(11), since(21), since(22)],
        [None, Some(1), Some(1), Some(11), Some(11), Some(22)]
    );
    assert!(schema("ai.onnx", "Upsample", 10).unwrap().deprecated);
    assert!(schema("", "Conf", 20).is_none());
    assert!(operators("", 9).any(|op| op == "Upsample"));
    assert!(!operators("", 10).any(|op| op == "Upsample"));
}

#[test]
fn counts_inputs_and_outputs() {
    let counts = |op, opset| {
        let s = schema("", op, opset).unwrap();
        (s.min_inputs(), s.max_inputs(), s.min_outputs(), s.max_outputs())
    };
    assert_eq!(counts("Conv", 11), (2, Some(3), 1, Some(1)));
    assert_eq!(counts("Resize", 11), (3, Some(4), 1, Some(1)));
    assert_eq!(counts("Concat", 13), (1, None, 1, Some(1)));
    assert_eq!(counts("Loop", 1), (3, None, 1, None));
    assert_eq!(counts("Loop", 13), (2, None, 1, None));
    assert_eq!(counts("Constant", 13), (0, Some(0), 1, Some(1)));
}

#[test]
fn parses_kinds_and_defaults_of_attributes() {
    let of = |op, name| schema("", op, 14).unwrap().attribute(name).cloned().unwrap();
    assert_eq!(of("Gemm", "alpha").default(), Some(Attribute::Float(1.0)));
    assert_eq!(of("Conv", "auto_pad").default(), Some(Attribute::string("NOTSET")));
    assert_eq!(of("LSTM", "layout").kind, AttributeKind::Int);
    assert_eq!(of("Conv", "pads").default(), None);
    assert!(of("Concat", "axis").required && !of("Softmax", "axis").required);
    assert!(schema("", "Softmax", 13).unwrap().attribute("axes").is_none());
}

#[test]
fn parses_type_sets() {
    let identity = schema("", "Identity", 16).unwrap().inputs[0].types;
    let float = || Fact::tensor(DataType::Float, vec![]);
    assert!(identity.allows(&float()) && identity.allows(&Fact::Sequence(Box::new(float()))));
    assert!(!identity.allows(&Fact::tensor(DataType::Int4, vec![])));
    let conv = schema("", "Conv", 11).unwrap().inputs[0].types;
    assert_eq!(conv.to_string(), "float, float16, double");
    assert!(!conv.allows(&Fact::Sequence(Box::new(float()))) && conv.allows(&Fact::Unknown));
    let sequence = schema("", "SequenceAt", 11).unwrap().inputs[0].types;
    assert!(sequence.to_string().contains("seq(double)") && !sequence.allows(&float()));
}
