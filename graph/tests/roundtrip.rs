//! Bytewise round trips of real models, whose writers also encode fields in ascending order.

use pare_graph::onnx::{ReadOptions, WriteOptions, read, read_bytes, to_bytes, write};
use std::{fs, path::Path};

#[test]
#[ignore = "needs the models in ../shared/models"]
fn real_models_round_trip() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models");
    let entries = fs::read_dir(&folder).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut count = 0;
    for path in entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "onnx")) {
        let file = fs::read(&path).unwrap();
        let model = read(&path, &ReadOptions::default()).unwrap();
        assert!(to_bytes(&model).unwrap() == file, "{} in memory", path.display());
        let to = out.path().join("out.onnx");
        let written = write(&model, &to, &WriteOptions { sync: false, ..WriteOptions::default() }).unwrap();
        assert!(fs::read(&to).unwrap() == file, "{}", path.display());
        assert_eq!((written.bytes, written.data), (file.len() as u64, vec![]));
        count += 1;
    }
    assert!(count > 0, "{} contains no model", folder.display());
}

/// A model whose nodes are not sorted, whose `Clip` omits an input and has an empty doc string, whose `If`
/// branches return the outer `x`, with an attribute without type, a declaration without element type, and a
/// declaration without value.
#[test]
fn frozen_bytes_round_trip() {
    let bytes: &[u8] =
        b"\x08\x08:\x9f\x01\x0a\x13\x0a\x01a\x0a\x00\x0a\x01w\x12\x01y\x22\x04Clip2\x00\x0aP\x0a\x01c\x12\
        \x01a\x22\x02If*\x17\x0a\x0bthen_branch2\x05b\x03\x0a\x01x\xa0\x01\x05*\x17\x0a\x0belse_branch2\
        \x05b\x03\x0a\x01x\xa0\x01\x05*\x12\x0a\x03old@\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01@\x02*\
        \x0d\x10\x01\x22\x04\x00\x00\x80?B\x01wb\x00Z\x03\x0a\x01xZ\x03\x0a\x01cb\x0e\x0a\x01y\x12\x09\
        \x0a\x07\x12\x05\x0a\x03\x12\x01Nj\x0d\x0a\x05stray\x12\x04\x0a\x02\x08\x00B\x04\x0a\x00\x10\x11";
    let model = read_bytes(bytes, None).unwrap();
    assert_eq!(
        model.graph.nodes().iter().map(|&n| model.graph.node(n).op.as_str()).collect::<Vec<_>>(),
        ["If", "Clip"]
    );
    assert_eq!(to_bytes(&model).unwrap(), bytes);
}
