//! Broken files: each is an error in one sentence, and none a panic.

use crate::support::root;
use pare_graph::{Model, onnx};
use pare_passes::{RunError, RunOptions, run};
use std::{
    fs,
    panic::catch_unwind,
    path::Path,
    time::{Duration, Instant},
};

/// A model in the protobuf format, by hand: what no writer of ours would write.
mod file {
    fn varint(mut n: u64) -> Vec<u8> {
        let mut bytes = vec![];
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    }

    pub fn int(field: u64, n: u64) -> Vec<u8> {
        [varint(field << 3), varint(n)].concat()
    }

    pub fn part(field: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        [&varint(field << 3 | 2)[..], &varint(content.len() as u64), content].concat()
    }

    pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> Vec<u8> {
        let inputs = inputs.iter().flat_map(|i| part(1, i));
        let node: Vec<u8> =
            inputs.chain(outputs.iter().flat_map(|o| part(2, o))).chain(part(4, op)).collect();
        part(1, node)
    }

    /// Two floats.
    fn port(field: u64, name: &str) -> Vec<u8> {
        let tensor = [int(1, 1), part(2, part(1, int(1, 2)))].concat();
        part(field, [part(1, name), part(2, part(1, tensor))].concat())
    }

    /// A weight `w` of two floats in another file.
    pub fn external(location: &str) -> Vec<u8> {
        let entry = part(13, [part(1, "location"), part(2, location)].concat());
        part(5, [int(1, 2), int(2, 1), part(8, "w"), entry, int(14, 1)].concat())
    }

    /// From `x` to `y`.
    pub fn model(opset: u64, parts: &[Vec<u8>]) -> Vec<u8> {
        let graph = [parts.concat(), part(2, "g"), port(11, "x"), port(12, "y")].concat();
        [int(1, 8), part(7, graph), part(8, int(2, opset))].concat()
    }
}

use file::{external, model, node};

/// The first error on the way from the file through `safe`; a panic fails the test.
fn complaint(bytes: Vec<u8>, folder: Option<&Path>) -> String {
    let through = || -> Result<(), String> {
        let mut model = onnx::read_bytes(bytes, folder).map_err(|e| e.to_string())?;
        model.check().map_err(|e| e.to_string())?;
        model.infer().map_err(|e| e.to_string())?;
        safe(&mut model)
    };
    through().err().unwrap_or_else(|| "none".into())
}

fn safe(model: &mut Model) -> Result<(), String> {
    match run(&"safe".parse().unwrap(), model, RunOptions::default(), &mut ()) {
        Err(e @ (RunError::Panicked { .. } | RunError::Broken { .. })) => panic!("{e}"),
        other => other.map(|_| ()).map_err(|e| e.to_string()),
    }
}

#[test]
fn every_broken_file_is_told_in_a_sentence() {
    let relu = || node("Relu", &["x"], &["y"]);
    let add = |location: &str| model(18, &[node("Add", &["x", "w"], &["y"]), external(location)]);
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), [0; 8]).unwrap();
    fs::write(folder.path().join("short.bin"), [0; 4]).unwrap();
    fs::write(folder.path().join("good.bin"), [0; 8]).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path(), folder.path().join("link.bin")).unwrap();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("nothing wrong", model(18, &[relu()]), "none"),
        ("empty", vec![], "the file is empty"),
        (
            "garbage",
            b"<html>not found</html>".to_vec(),
            "the file is damaged or no ONNX file: no field starts where one should in ModelProto",
        ),
        ("no graph", file::int(1, 8), "the model has no graph"),
        (
            "cycle",
            model(
                18,
                &[
                    node("Add", &["x", "b"], &["a"]),
                    node("Relu", &["a"], &["b"]),
                    node("Neg", &["b"], &["y"]),
                ],
            ),
            "the nodes form a cycle through Add making `a`",
        ),
        (
            "made twice",
            model(18, &[relu(), node("Neg", &["x"], &["y"])]),
            "`y` is made twice, by Relu making `y` and by Neg making `y`",
        ),
        (
            "undefined",
            model(18, &[node("Add", &["x", "nowhere"], &["y"])]),
            "`nowhere` is used by Add making `y`, but nothing makes it",
        ),
        (
            "output not made",
            model(18, &[node("Relu", &["x"], &["z"])]),
            "`y` is used as an output, but nothing makes it",
        ),
        (
            "unknown operator",
            model(18, &[node("Rellu", &["x"], &["y"])]),
            "Rellu making `y` is no operator of ai.onnx in operator set 18",
        ),
        (
            "too new an operator",
            model(11, &[node("Gelu", &["x"], &["y"])]),
            "Gelu making `y` is no operator of ai.onnx in operator set 11",
        ),
        (
            "too new an operator set",
            model(9999, &[relu()]),
            "operator set 9999 of ai.onnx is not known; the newest known one is 28",
        ),
        (
            "no operator set",
            model(0, &[relu()]),
            "operator set 0 of ai.onnx is not known; the newest known one is 28",
        ),
        (
            "too many inputs",
            model(18, &[node("Relu", &["x", "x"], &["y"])]),
            "Relu making `y` has 2 inputs, but must have 1",
        ),
        ("external", add("good.bin"), "none"),
        (
            "external missing",
            add("gone.bin"),
            "the tensor `w` has its data in `gone.bin`, which cannot be opened: No such file or directory (os error 2)",
        ),
        (
            "external short",
            add("short.bin"),
            "the tensor `w` has 8 bytes at 0 of `short.bin`, which holds 4 bytes",
        ),
        (
            "external absolute",
            add(outside.path().to_str().unwrap()),
            "the tensor `w` has its data at `/outside`, which is no path inside of the model's folder",
        ),
        (
            "external above",
            add("../good.bin"),
            "the tensor `w` has its data at `../good.bin`, which is no path inside of the model's folder",
        ),
        (
            "external link",
            add("link.bin"),
            "the tensor `w` has its data in `link.bin`, a link out of the model's folder",
        ),
        ("external folder", add("."), "the tensor `w` has its data in `.`, which is no regular file"),
    ];
    let mut wrong = vec![];
    for (case, bytes, wanted) in cases {
        let told = complaint(bytes.clone(), Some(folder.path()));
        let told = told.replace(outside.path().to_str().unwrap(), "/outside");
        if told != *wanted {
            wrong.push(format!("{case}: {told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_file_cut_short_is_an_error() {
    let whole = fs::read(root().join("fixtures/digits-fold.onnx")).unwrap();
    let mut rng = fastrand::Rng::with_seed(0);
    let places = (1..200).chain((0..200).map(|_| rng.usize(200..whole.len())));
    for at in places {
        let told = complaint(whole[..at].to_vec(), None);
        assert!(told != "none" && !told.ends_with('.') && !told.contains('\n'), "cut at {at}: {told}");
    }
}

/// Time for files with random bytes.
const MUTATING: Duration = Duration::from_secs(10);

#[test]
fn random_bytes_never_panic() {
    let nodes =
        fs::read_dir(root().join("fixtures/nodes")).unwrap().map(|e| e.unwrap().path().join("model.onnx"));
    let mut paths: Vec<_> = nodes.filter(|p| p.is_file()).collect();
    paths.sort();
    paths.push(root().join("fixtures/digits-fold.onnx"));
    let files: Vec<_> = paths.iter().map(|p| fs::read(p).unwrap()).collect();
    let (start, mut seed) = (Instant::now(), 0);
    while start.elapsed() < MUTATING {
        let mut rng = fastrand::Rng::with_seed(seed);
        let which = rng.usize(0..files.len());
        let mut bytes = files[which].clone();
        for _ in 0..rng.usize(1..8) {
            let at = rng.usize(0..bytes.len());
            match rng.u8(0..4) {
                0 => bytes[at] = rng.u8(..),
                1 => bytes[at] ^= 1 << rng.u8(0..8),
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, rng.u8(..)),
            }
        }
        let told = catch_unwind(|| complaint(bytes, None));
        assert!(told.is_ok(), "seed {seed} of `{}` panics", paths[which].display());
        seed += 1;
    }
    assert!(seed > 500, "only {seed} files in {MUTATING:?}");
}
