//! Tests of the command: comparisons, builds, and interrupted writes.

mod build;
mod checks;
mod provider;
mod quality;
mod search;
mod writing;

use pare_graph::{Model, Tensor, onnx, text::parse_graph};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The command with `folder` as the working directory.
fn pare(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pare"));
    command.current_dir(folder).env("LC_ALL", "C").env_remove("PARE_ENGINE");
    command
}

fn run(folder: &Path, args: &[&str]) -> Output {
    pare(folder).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", stderr(output)))
}

fn fixture(folder: &Path, name: &str) -> PathBuf {
    let to = folder.join(name);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(root().join("fixtures").join(name), &to).unwrap();
    to
}

/// Writes a model in textual syntax to a file.
fn model(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    let bytes = onnx::to_bytes(&Model::of(parse_graph(text, 18).unwrap())).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// Writes a model of this many bytes that `safe` changes; its weights are in a second file if `external`.
fn large(folder: &Path, name: &str, bytes: usize, external: bool) -> PathBuf {
    let count = bytes / 4;
    let text = format!(
        "g (float[{count}] x) => (float[{count}] y) <float[1] w = {{1}}> {{ a = Identity(x) y = Add(a, w) }}"
    );
    let mut model = Model::of(parse_graph(&text, 18).unwrap());
    let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
    let place = model.graph.find("w").unwrap();
    let user = model.graph.users(place)[0].0;
    let mut patch = pare_graph::Patch::anchored(user);
    patch.set_constant(user, 1, "weights", Tensor::from_slice(&[count], &values).unwrap());
    model.graph.apply(patch).unwrap();
    let path = folder.join(name);
    let limit = if external { bytes / 2 } else { onnx::WriteOptions::default().limit };
    onnx::write(&model, &path, &onnx::WriteOptions { limit, sync: false, ..Default::default() }).unwrap();
    path
}

/// The sorted names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns true if a file holds a valid model.
fn is_valid(path: &Path) -> bool {
    onnx::read(path, &onnx::ReadOptions::default()).is_ok_and(|mut m| m.check().is_ok() && m.infer().is_ok())
}
