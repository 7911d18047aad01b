//! Malformed files: each is rejected with one sentence, none causes a panic.

use crate::support::root;
use pare_graph::{Model, onnx};
use pare_passes::{RunError, RunOptions, run};
use std::{fs, path::Path};

/// Models in the protobuf format, written by hand, since the writer rejects them.
mod file {
    use pare_tests::fuzz::varint;

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

    /// A model from `x` to `y`.
    pub fn model(opset: u64, parts: &[Vec<u8>]) -> Vec<u8> {
        let graph = [parts.concat(), part(2, "g"), port(11, "x"), port(12, "y")].concat();
        [int(1, 8), part(7, graph), part(8, int(2, opset))].concat()
    }
}

use file::{external, model, node};

/// The first error between reading the file and the end of `safe`, or `none`; a panic fails the test.
fn first_error(bytes: Vec<u8>, folder: Option<&Path>) -> String {
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
fn rejects_malformed_files_with_one_sentence() {
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
            "the file is damaged or not an ONNX file: a field of ModelProto is invalid",
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
            "the nodes form a cycle through Add producing `a`",
        ),
        (
            "made twice",
            model(18, &[relu(), node("Neg", &["x"], &["y"])]),
            "`y` has two producers, Relu producing `y` and Neg producing `y`",
        ),
        (
            "undefined",
            model(18, &[node("Add", &["x", "nowhere"], &["y"])]),
            "`nowhere` is used by Add producing `y`, but has no producer",
        ),
        (
            "output not made",
            model(18, &[node("Relu", &["x"], &["z"])]),
            "`y` is used as an output, but has no producer",
        ),
        (
            "unknown operator",
            model(18, &[node("Rellu", &["x"], &["y"])]),
            "Rellu producing `y` is not an operator of ai.onnx in operator set 18",
        ),
        (
            "too new an operator",
            model(11, &[node("Gelu", &["x"], &["y"])]),
            "Gelu producing `y` is not an operator of ai.onnx in operator set 11",
        ),
        (
            "too new an operator set",
            model(9999, &[relu()]),
            "operator set 9999 of ai.onnx is unknown; the newest known one is 28",
        ),
        (
            "no operator set",
            model(0, &[relu()]),
            "operator set 0 of ai.onnx is unknown; the newest known one is 28",
        ),
        (
            "too many inputs",
            model(18, &[node("Relu", &["x", "x"], &["y"])]),
            "Relu producing `y` has 2 inputs, but must have 1",
        ),
        ("external", add("good.bin"), "none"),
        (
            "external missing",
            add("missing.bin"),
            "the tensor `w` has its data in `missing.bin`, which cannot be opened: No such file or directory (os error 2)",
        ),
        (
            "external short",
            add("short.bin"),
            "the tensor `w` has 8 bytes at 0 of `short.bin`, which holds 4 bytes",
        ),
        (
            "external absolute",
            add(outside.path().to_str().unwrap()),
            "the tensor `w` has its data at `/outside`, which is not a path in the model's folder",
        ),
        (
            "external above",
            add("../good.bin"),
            "the tensor `w` has its data at `../good.bin`, which is not a path in the model's folder",
        ),
        (
            "external link",
            add("link.bin"),
            "the tensor `w` has its data in `link.bin`, a link to a file outside of the model's folder",
        ),
        ("external folder", add("."), "the tensor `w` has its data in `.`, which is not a regular file"),
    ];
    let mut wrong = vec![];
    for (case, bytes, wanted) in cases {
        let error = first_error(bytes.clone(), Some(folder.path()));
        let error = error.replace(outside.path().to_str().unwrap(), "/outside");
        if error != *wanted {
            wrong.push(format!("{case}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rejects_truncated_files() {
    let whole = fs::read(root().join("fixtures/digits-fold.onnx")).unwrap();
    let mut rng = fastrand::Rng::with_seed(0);
    let places = (1..200).chain((0..200).map(|_| rng.usize(200..whole.len())));
    for at in places {
        let error = first_error(whole[..at].to_vec(), None);
        assert!(error != "none" && !error.ends_with('.') && !error.contains('\n'), "cut at {at}: {error}");
    }
}

/// Sizes in a file are claims. None of these allocates the claimed size.
#[test]
fn does_not_trust_sizes() {
    let relu = || node("Relu", &["x"], &["y"]);
    let add = || node("Add", &["x", "w"], &["y"]);
    let tensor = |dims: &[u64], data: &[u8]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&d| file::int(1, d)).collect();
        file::part(5, [dims, file::int(2, 1), file::part(8, "w"), file::part(9, data)].concat())
    };
    // A constant int64 vector, read as a shape.
    let shape = |name: &str, values: &[i64]| {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file::part(
            5,
            [file::int(1, values.len() as u64), file::int(2, 7), file::part(8, name), file::part(9, data)]
                .concat(),
        )
    };
    let far = |offset: &str, length: &str| {
        let entry = |k: &str, v: &str| file::part(13, [file::part(1, k), file::part(2, v)].concat());
        let entries =
            [entry("location", "good.bin"), entry("offset", offset), entry("length", length)].concat();
        file::part(
            5,
            [file::int(1, 2), file::int(2, 1), file::part(8, "w"), entries, file::int(14, 1)].concat(),
        )
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.bin"), [0; 8]).unwrap();
    let refused = [
        ("2^60 elements", model(18, &[add(), tensor(&[1 << 60], &[0; 4])])),
        ("overflowing elements", model(18, &[add(), tensor(&[1 << 40, 1 << 40], &[0; 4])])),
        ("offset past the end", model(18, &[add(), far("9223372036854775807", "8")])),
        ("length past the end", model(18, &[add(), far("0", "18446744073709551615")])),
        ("offset that is no number", model(18, &[add(), far("-1", "8")])),
    ];
    for (case, bytes) in refused {
        let error = first_error(bytes, Some(folder.path()));
        assert!(error != "none" && !error.contains('\n'), "{case}: {error}");
    }
    let mut claims = model(18, &[relu()]);
    // Field 5 of 4 GB, without content.
    claims.extend([0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_ne!(first_error(claims, None), "none");
    // Results may be large as well.
    let large = [
        [node("ConstantOfShape", &["s"], &["c"]), shape("s", &[1 << 40])].concat(),
        [node("ConstantOfShape", &["s"], &["c"]), shape("s", &[1 << 31, 1 << 31])].concat(),
        [node("Expand", &["o", "s"], &["c"]), shape("o", &[1]), shape("s", &[1 << 40])].concat(),
        [node("Tile", &["o", "s"], &["c"]), shape("o", &[1]), shape("s", &[1 << 40])].concat(),
        [node("Pad", &["o", "s"], &["c"]), shape("o", &[1]), shape("s", &[1 << 40, 1 << 40])].concat(),
    ];
    for part in large {
        let _ = first_error(model(18, &[part, relu()]), None);
    }
}

#[test]
fn rejects_mutually_recursive_functions() {
    let import = || file::part(9, file::int(2, 18));
    let own = || file::part(9, [file::part(1, "own"), file::int(2, 1)].concat());
    let function = |name: &str, calls: &str| {
        let call =
            [file::part(1, "a"), file::part(2, "b"), file::part(4, calls), file::part(7, "own")].concat();
        let ends = [file::part(4, "a"), file::part(5, "b")].concat();
        file::part(
            25,
            [file::part(1, name), ends, file::part(7, call), import(), own(), file::part(10, "own")].concat(),
        )
    };
    let call = file::part(
        1,
        [file::part(1, "x"), file::part(2, "y"), file::part(4, "f"), file::part(7, "own")].concat(),
    );
    let mut bytes = model(18, &[call]);
    bytes.extend(file::part(8, [file::part(1, "own"), file::int(2, 1)].concat()));
    bytes.extend(function("f", "g"));
    bytes.extend(function("g", "f"));
    let error = first_error(bytes, None);
    assert!(error.contains("functions are recursive"), "{error}");
}

#[test]
fn rejects_deep_nesting() {
    let depth = 10_000;
    let pipeline = format!("{}safe{}", "(".repeat(depth), ")*".repeat(depth));
    assert!(pipeline.parse::<pare_passes::Pipeline>().is_err());
    let toml = format!("[[step]]\nrepeat = {}{}", "[{repeat = ".repeat(depth), "}]".repeat(depth));
    assert!(pare_passes::Pipeline::from_toml(&toml).is_err());
    let open = "y = If(x) <then_branch = g () => (float y) { ".repeat(depth);
    let text = format!("g (bool x) => (float y) {{ {open} {} }}", "}>".repeat(depth));
    assert!(pare_graph::text::parse_graph(&text, 18).is_err());
    let list = format!(
        "g (float x) => (float y) {{ y = Relu(x) <a = {}{}> }}",
        "[".repeat(depth),
        "]".repeat(depth)
    );
    assert!(pare_graph::text::parse_graph(&list, 18).is_err());
}

#[cfg(unix)]
#[test]
fn rejects_data_in_a_pipe_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.bin");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let bytes = model(18, &[node("Add", &["x", "w"], &["y"]), external("pipe.bin")]);
    let error = first_error(bytes, Some(folder.path()));
    assert_eq!(error, "the tensor `w` has its data in `pipe.bin`, which is not a regular file");
    // Neither models nor samples are read from a pipe.
    let error = onnx::read(&pipe, &onnx::ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("pipe.bin"), "{error}");
    let samples = pare_runtime::SampleSet::open(&pipe, &[], pare_runtime::SampleLimits::default());
    assert!(samples.err().unwrap().to_string().contains("is not a file"));
}
