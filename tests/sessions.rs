//! Runs the sessions of the command in the README, and those of errors in `cmd/*.trycmd`.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

#[path = "command/mod.rs"]
mod command;

use pare_graph::{Model, onnx, text::parse_graph};
use pare_runtime::EngineChoice;
use std::{fs, path::Path};

/// Runs all sessions in a temporary folder with the fixtures and some invalid models.
#[test]
fn sessions_print_the_expected_output() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace");
    let folder = tempfile::tempdir().unwrap();
    copy_files(&root.join("fixtures"), &folder.path().join("fixtures"));
    write_invalid_files(folder.path());
    std::env::set_current_dir(folder.path()).unwrap();

    let cases = trycmd::TestCases::new();
    cases.register_bin("pare", Path::new(env!("CARGO_BIN_EXE_pare")));
    // Messages depend neither on the locale and terminal nor on whether the engine is installed.
    cases.env("LC_ALL", "C").env("COLUMNS", "100");
    if pare_runtime::resolve(&EngineChoice::default(), &mut |_| {}).unwrap().fallback {
        cases.env("PARE_ENGINE", "tract");
    }
    cases.case(root.join("README.md")).case(root.join("tests/cmd/*.trycmd"));
    cases.run();

    assert!(!Path::new("out.onnx").exists(), "a command that could not run wrote its output");
}

/// Copies the files of a folder, without its subfolders.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Writes the invalid models and configurations of `cmd/*.trycmd`.
fn write_invalid_files(folder: &Path) {
    let model = fs::read(folder.join("fixtures/digits-cnn.onnx")).unwrap();
    fs::write(folder.join("empty.onnx"), "").unwrap();
    fs::write(folder.join("garbage.onnx"), "this is not a model\n").unwrap();
    fs::write(folder.join("truncated.onnx"), &model[..100_000]).unwrap();
    fs::write(folder.join("typo.toml"), "[[step]]\npass = \"fold-bm\"\n").unwrap();
    // A model without its file of weights.
    let external = folder.join("external.onnx");
    let fold = onnx::read(folder.join("fixtures/digits-fold.onnx"), &onnx::ReadOptions::default()).unwrap();
    let small = onnx::WriteOptions { limit: 10_000, ..onnx::WriteOptions::default() };
    let (data, _) = onnx::write(&fold, &external, &small).unwrap().data.remove(0);
    fs::remove_file(data).unwrap();
    // Models that the samples of digits do not match.
    for (name, input) in [("named.onnx", "float[N,1,8,8] picture"), ("colour.onnx", "float[N,3,8,8] image")] {
        let graph = format!("g ({input}) => (float[N,Channels,8,8] y) {{ y = Relu({}) }}", &input[15..]);
        fs::write(folder.join(name), onnx::to_bytes(&Model::of(parse_graph(&graph, 17).unwrap())).unwrap())
            .unwrap();
    }
    // A model whose first weight is rounded away from its gradient.
    let rounded = "g (float[N,3] x) => (float[N,2] y) <float[3,3] first = {1,2,3,4,5,6,7,8,9}, float[3,2] last = {1,2,3,4,5,6}> \
                   { h = MatMul(x, first) r = Round(h) y = MatMul(r, last) }";
    let rounded = Model::of(parse_graph(rounded, 18).unwrap());
    fs::write(folder.join("rounded.onnx"), onnx::to_bytes(&rounded).unwrap()).unwrap();
}
