//! External data and atomic writing.

use super::*;
use crate::onnx::{DataFiles, ExternalData, ReadOptions, WriteError, WriteOptions, read, write, write_to};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn external(name: &str, count: i64, entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        dims: vec![count],
        raw_data: None,
        data_location: Some(1),
        external_data: entries.iter().map(|(k, v)| entry(k, v)).collect(),
        ..tensor(name, &[])
    }
}

fn with(tensors: Vec<TensorProto>) -> ModelProto {
    let mut g = graph(vec![node("Relu", &["x"], &["y"])]);
    g.initializer = tensors;
    model(g)
}

/// A folder with `m.onnx` and a data file of the floats 0 to 9.
fn folder(tensors: Vec<TensorProto>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0_u8..10).flat_map(|v| f32::from(v).to_le_bytes()).collect();
    fs::write(folder.path().join("data"), data).unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, with(tensors).encode_to_vec()).unwrap();
    (folder, path)
}

fn names(folder: &Path) -> Vec<String> {
    let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

/// The data file of a model file.
fn data_of(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let folder = names(path.parent().unwrap());
    let mut own = folder.into_iter().filter(|n| n.strip_prefix(name).is_some_and(|rest| rest.len() == 22));
    let (data, None) = (own.next().unwrap(), own.next()) else { panic!("more than one data file") };
    data
}

fn floats(model: &Model, name: &str) -> Vec<f32> {
    let tensor = model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap();
    tensor.to_vec().unwrap()
}

fn decoded(path: &Path) -> ModelProto {
    ModelProto::decode(Bytes::from(fs::read(path).unwrap())).unwrap()
}

#[test]
fn external_data_round_trips() {
    let (folder, path) = folder(vec![
        external(
            "a",
            2,
            &[("location", "data"), ("offset", "4"), ("length", "8"), ("checksum", "?"), ("own", "1")],
        ),
        external("b", 3, &[("location", "./data")]),
        external("none", 0, &[("location", "data"), ("offset", "40")]),
        // The same bytes as `a`, which are stored once.
        external("c", 2, &[("location", "data"), ("offset", "4")]),
    ]);
    let model = read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(floats(&model, "a"), [1.0, 2.0]);
    assert_eq!(floats(&model, "b"), [0.0, 1.0, 2.0]);
    assert_eq!(floats(&model, "c"), [1.0, 2.0]);

    let out = folder.path().join("out.onnx");
    let written = write(&model, &out, &WriteOptions::default()).unwrap();
    let name = data_of(&out);
    assert_eq!(written.data, [(folder.path().join(&name), 76)]);
    assert_eq!(names(folder.path()), ["data", "m.onnx", "out.onnx", &name]);
    let data = fs::read(folder.path().join(&name)).unwrap();
    assert_eq!(data.len(), 76);
    assert_eq!(data[64..], [0.0_f32, 1.0, 2.0].map(f32::to_le_bytes).concat());
    let g = decoded(&out).graph.unwrap();
    let entries = [("location", &*name), ("offset", "0"), ("length", "8"), ("own", "1")];
    assert_eq!(g.initializer[0], external("a", 2, &entries));
    assert_eq!(g.initializer[3].external_data[1], entry("offset", "0"));
    let again = read(&out, &ReadOptions::default()).unwrap();
    assert_eq!(floats(&again, "a"), [1.0, 2.0]);
    assert_eq!(floats(&again, "b"), [0.0, 1.0, 2.0]);

    // A stream contains everything.
    let mut stream = vec![];
    write_to(&model, &mut stream).unwrap();
    assert_eq!(stream, to_bytes(&model).unwrap());
    let streamed = read_bytes(stream, None).unwrap();
    assert_eq!(floats(&streamed, "b"), [0.0, 1.0, 2.0]);
    assert_eq!(saved(&streamed).graph.unwrap().initializer[0], tensor("a", &[1.0, 2.0]));
}

#[test]
fn overwrites_its_input() {
    let (folder, path) = folder(vec![external("a", 2, &[("location", "data"), ("offset", "32")])]);
    let model = read(&path, &ReadOptions::default()).unwrap();
    for _ in 0..2 {
        write(&model, &path, &WriteOptions::default()).unwrap();
        // A data file that other models may use is kept.
        assert_eq!(names(folder.path()), ["data", "m.onnx", &data_of(&path)]);
        assert_eq!(floats(&read(&path, &ReadOptions::default()).unwrap(), "a"), [8.0, 9.0]);
        // The model still refers to the data of the replaced file.
        assert_eq!(floats(&model, "a"), [8.0, 9.0]);
    }
}

#[test]
fn rejects_locations_outside_of_the_folder() {
    let why = |location: &str| {
        let (_folder, path) = folder(vec![external("a", 2, &[("location", location)])]);
        read(&path, &ReadOptions::default()).unwrap_err().to_string()
    };
    for location in ["../data", "/etc/hostname", "a/../../data", "", "..\\data", "C:\\data", "a\0b"] {
        assert_eq!(
            why(location),
            format!("the tensor `a` has its data at `{location}`, which is not a path in the model's folder")
        );
    }
    assert!(why("absent").starts_with("the tensor `a` has its data in `absent`, which cannot be opened: "));
    assert_eq!(why("."), "the tensor `a` has its data in `.`, which is not a regular file");
}

#[cfg(unix)]
#[test]
fn rejects_links_and_pipes() {
    use std::os::unix::fs::symlink;
    let (folder, path) = folder(vec![external("a", 2, &[("location", "link")])]);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("data"), [0; 8]).unwrap();
    let link = folder.path().join("link");
    symlink(elsewhere.path().join("data"), &link).unwrap();
    let why = read(&path, &ReadOptions::default()).unwrap_err().to_string();
    assert_eq!(why, "the tensor `a` has its data in `link`, a link to a file outside of the model's folder");
    let trusting = read(&path, &ReadOptions { follow_links: true }).unwrap();
    assert_eq!(floats(&trusting, "a"), [0.0, 0.0]);

    fs::remove_file(&link).unwrap();
    symlink("data", &link).unwrap();
    assert_eq!(floats(&read(&path, &ReadOptions::default()).unwrap(), "a"), [0.0, 1.0]);

    // Devices are rejected, also through a link.
    fs::remove_file(&link).unwrap();
    symlink("/dev/zero", &link).unwrap();
    let why = read(&path, &ReadOptions { follow_links: true }).unwrap_err().to_string();
    assert_eq!(why, "the tensor `a` has its data in `link`, which is not a regular file");
    assert!(read(&link, &ReadOptions::default()).unwrap_err().to_string().ends_with("is not a regular file"));
    assert!(matches!(write(&trusting, &link, &WriteOptions::default()), Err(WriteError::NotAFile(_))));
    assert!(link.is_symlink());
}

/// A model cache: `snapshots/1/model.onnx` and its data are links to files in `blobs/`.
#[cfg(unix)]
#[test]
fn follows_links_into_the_folder_of_the_model_file() {
    use std::os::unix::fs::symlink;
    let (blobs, path) = folder(vec![external("a", 2, &[("location", "model.onnx_data")])]);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("snapshots/1");
    fs::create_dir_all(&snapshot).unwrap();
    let (model, data) = (snapshot.join("model.onnx"), snapshot.join("model.onnx_data"));
    symlink(&path, &model).unwrap();
    let opened = |model: &Path| read(model, &ReadOptions::default()).map(|m| floats(&m, "a"));
    let why = |model: &Path| opened(model).unwrap_err().to_string();
    assert!(why(&model).contains("`model.onnx_data`, which cannot be opened"), "{}", why(&model));

    // The data is beside the resolved file under its own name, then under another one.
    fs::rename(blobs.path().join("data"), blobs.path().join("model.onnx_data")).unwrap();
    assert_eq!(opened(&model).unwrap(), [0.0, 1.0]);
    fs::rename(blobs.path().join("model.onnx_data"), blobs.path().join("5feceb66")).unwrap();
    symlink(blobs.path().join("5feceb66"), &data).unwrap();
    assert_eq!(opened(&model).unwrap(), [0.0, 1.0]);

    // A model that is not a link has no business there.
    let copy = snapshot.join("copy.onnx");
    fs::copy(&path, &copy).unwrap();
    assert!(why(&copy).ends_with("a link to a file outside of the model's folder"));
    // Neither has a link to a third folder, though the model is a link itself.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("data"), [0; 8]).unwrap();
    fs::remove_file(&data).unwrap();
    symlink(elsewhere.path().join("data"), &data).unwrap();
    assert!(why(&model).ends_with("a link to a file outside of the model's folder"));
}

#[test]
fn rejects_inconsistent_sizes() {
    let why = |count, entries: &[(&str, &str)]| {
        let mut all = vec![("location", "data")];
        all.extend(entries);
        let (_folder, path) = folder(vec![external("a", count, &all)]);
        read(&path, &ReadOptions::default()).unwrap_err().to_string()
    };
    let too_long = "the tensor `a` has 8 bytes at 33 of `data`, which holds 40 bytes";
    assert_eq!(why(2, &[("offset", "33")]), too_long);
    assert!(why(2, &[("offset", "18446744073709551615")]).contains("holds 40 bytes"));
    assert!(why(1 << 60, &[]).contains("holds 40 bytes"));
    assert!(why(2, &[("length", "12")]).ends_with("takes 8 bytes, not 12"));
    assert_eq!(
        why(2, &[("offset", "-1")]),
        "the tensor `a` has external data of offset `-1`, which is not a size"
    );
    assert_eq!(
        why(2, &[("location", "data")]),
        "the tensor `a` has two entries `location` for its external data"
    );
    let (folder, path) = folder(vec![external("a", 2, &[("location", "empty")])]);
    fs::write(folder.path().join("empty"), "").unwrap();
    let why = read(&path, &ReadOptions::default()).unwrap_err().to_string();
    assert_eq!(why, "the tensor `a` has 8 bytes at 0 of `empty`, which holds 0 bytes");
    let why = read_bytes(fs::read(&path).unwrap(), None).unwrap_err().to_string();
    assert_eq!(why, "the tensor `a` has its data in the file `empty`, but no folder is given");

    let both = TensorProto { raw_data: Some(vec![0; 8].into()), ..external("a", 2, &[("location", "data")]) };
    let why = error(&with(vec![both]));
    assert_eq!(why, "the tensor `a` has both raw_data and external data");
}

#[test]
fn moves_large_tensors_to_the_data_file() {
    let values: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
    let typed = TensorProto {
        raw_data: None,
        float_data: values[..1000].to_vec(),
        ..tensor("typed", &values[..1000])
    };
    let m = with(vec![tensor("small", &[1.0]), tensor("large", &values), typed]);
    let (folder, path) = folder(vec![]);
    let model = load(&m);
    let written =
        write(&model, &path, &WriteOptions { limit: 2000, sync: false, ..Default::default() }).unwrap();
    assert!(written.bytes < 2000);
    assert_eq!(written.data[0].1, 160_000 + 4000);
    let g = decoded(&path).graph.unwrap();
    assert_eq!(g.initializer[0], tensor("small", &[1.0]));
    let name = data_of(&path);
    let place = [("location", &*name), ("offset", "160000"), ("length", "4000")];
    assert_eq!(g.initializer[2], external("typed", 1000, &place));
    let again = read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(floats(&again, "large"), values);
    assert_eq!(floats(&again, "typed"), values[..1000]);
    assert_eq!(names(folder.path()), ["data", "m.onnx", &name]);

    let why = write(&model, &path, &WriteOptions { limit: 20, sync: false, ..Default::default() })
        .unwrap_err()
        .to_string();
    assert!(why.ends_with("protobuf allows 20"), "{why}");
    assert_eq!(floats(&read(&path, &ReadOptions::default()).unwrap(), "typed"), values[..1000]);
}

#[test]
fn stores_large_new_tensors_in_the_data_file() {
    let (folder, path) = folder(vec![external("a", 2, &[("location", "data")])]);
    let mut model = read(&path, &ReadOptions::default()).unwrap();
    let new = crate::Value::constant("new", crate::Tensor::vector(&vec![3.0_f32; 20_000]));
    model.graph.add_value(new).unwrap();
    let out = folder.path().join("out.onnx");
    let written = write(&model, &out, &WriteOptions::default()).unwrap();
    assert_eq!(written.data[0].1, 4096 + 80_000, "a large tensor starts at a page");
    assert_eq!(floats(&read(&out, &ReadOptions::default()).unwrap(), "new"), vec![3.0; 20_000]);
}

#[test]
fn failures_leave_no_files() {
    let (folder, path) = folder(vec![external("a", 2, &[("location", "data")])]);
    let model = read(&path, &ReadOptions::default()).unwrap();
    let before = fs::read(&path).unwrap();

    let elsewhere = folder.path().join("sub");
    fs::create_dir(&elsewhere).unwrap();
    let written = write(&model, elsewhere.join("m.onnx"), &WriteOptions::default()).unwrap();
    let data = folder.path().join(written.data[0].0.file_name().unwrap());
    fs::create_dir(&data).unwrap();
    assert!(matches!(write(&model, &path, &WriteOptions::default()), Err(WriteError::NotAFile(_))));
    assert_eq!(names(folder.path()), ["data", "m.onnx", data.file_name().unwrap().to_str().unwrap(), "sub"]);
    assert_eq!(fs::read(&path).unwrap(), before);

    let nowhere = folder.path().join("absent").join("m.onnx");
    assert!(matches!(write(&model, &nowhere, &WriteOptions::default()), Err(WriteError::Io { .. })));
    assert!(matches!(write(&model, folder.path(), &WriteOptions::default()), Err(WriteError::NotAFile(_))));
    assert!(matches!(write(&model, "..", &WriteOptions::default()), Err(WriteError::Name(_))));
}

#[test]
fn data_files_are_named_by_content() {
    let (folder, path) = folder(vec![external("a", 2, &[("location", "data")])]);
    let model = read(&path, &ReadOptions::default()).unwrap();
    write(&model, &path, &WriteOptions::default()).unwrap();
    let (old_model, old_data) = (fs::read(&path).unwrap(), data_of(&path));
    let (_elsewhere, source) =
        self::folder(vec![external("a", 2, &[("location", "data"), ("offset", "20")])]);
    let changed = read(&source, &ReadOptions::default()).unwrap();

    // At every point of the write, the old model refers to the old data and the new model to the new data.
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&changed, other.join("m.onnx"), &WriteOptions::default()).unwrap();
    let new_data = data_of(&other.join("m.onnx"));
    assert_ne!(old_data, new_data);
    fs::copy(other.join(&new_data), folder.path().join(&new_data)).unwrap();
    assert_eq!(floats(&read(&path, &ReadOptions::default()).unwrap(), "a"), [0.0, 1.0]);
    fs::copy(other.join("m.onnx"), &path).unwrap();
    assert_eq!(floats(&read(&path, &ReadOptions::default()).unwrap(), "a"), [5.0, 6.0]);

    // The next write removes unused data files; equal content has the same name.
    fs::write(&path, &old_model).unwrap();
    write(&changed, &path, &WriteOptions::default()).unwrap();
    assert_eq!(data_of(&path), new_data);
}

#[test]
fn removes_temporary_files_of_killed_processes() {
    let (folder, path) = folder(vec![]);
    let model = read(&path, &ReadOptions::default()).unwrap();
    let (stale, live) = (folder.path().join(".pare-1-0.tmp"), folder.path().join(".pare-1-1.tmp"));
    fs::write(&stale, "half a model").unwrap();
    let other = fs::File::create(&live).unwrap();
    other.lock().unwrap();
    write(&model, &path, &WriteOptions::default()).unwrap();
    assert_eq!(names(folder.path()), [".pare-1-1.tmp", "data", "m.onnx"]);
}

/// A writer that fails after `n` bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let n = bytes.len().min(self.0).min(1000);
        self.0 -= n;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn reports_write_errors() {
    let model = load(&with(vec![tensor("w", &[1.0; 100_000])]));
    let size = to_bytes(&model).unwrap().len();
    for room in [0, 10, 70_000, size - 1] {
        let error = write_to(&model, Full(room)).unwrap_err();
        assert!(
            matches!(&error, WriteError::Stream(e) if e.kind() == std::io::ErrorKind::StorageFull),
            "{error}"
        );
    }
    assert_eq!(write_to(&model, Full(size)).unwrap(), size as u64);
}

#[test]
fn streams_weights_from_their_file() {
    let values: Vec<f32> = (0..1 << 19).map(|i| i as f32).collect();
    let m = with(vec![tensor("w", &values), tensor("v", &values[..300_000])]);
    let (folder, path) = folder(vec![]);
    fs::write(&path, m.encode_to_vec()).unwrap();
    let out = folder.path().join("out.onnx");
    write(&read(&path, &ReadOptions::default()).unwrap(), &out, &WriteOptions::default()).unwrap();
    assert!(fs::read(&out).unwrap() == m.encode_to_vec());
}

#[test]
fn stores_weights_as_requested() {
    let ones = |name: &str, count: usize| tensor(name, &vec![1.0; count]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let proto = with(vec![ones("a/w", 600), ones("a_w", 500), ones("shape", 2)]);
    let model = read_bytes(proto.encode_to_vec(), None).unwrap();
    let store = |model: &Model, external: ExternalData| {
        let options = WriteOptions { external, sync: false, ..WriteOptions::default() };
        write(model, &path, &options).map(|w| {
            w.data
                .into_iter()
                .map(|(path, bytes)| (path.file_name().unwrap().to_str().unwrap().to_owned(), bytes))
                .collect::<Vec<_>>()
        })
    };
    let check = |expected: &[&str]| {
        let read = read(&path, &ReadOptions::default()).unwrap();
        for (name, count) in [("a/w", 600), ("a_w", 500), ("shape", 2)] {
            assert_eq!(floats(&read, name), vec![1.0; count]);
        }
        assert_eq!(names(folder.path()), expected);
        read
    };
    let layout = |name: &str| DataFiles { name: Some(name.into()), ..DataFiles::default() };

    let files = store(&model, ExternalData::One(layout("weights.bin"))).unwrap();
    assert_eq!(files, [("weights.bin".to_owned(), 4096 + 2000)]);
    let stored = check(&["m.onnx", "weights.bin"]);
    let g = decoded(&path).graph.unwrap();
    let entries = [("location", "weights.bin"), ("offset", "4096"), ("length", "2000")];
    assert_eq!(g.initializer[1].external_data, entries.map(|(k, v)| entry(k, v)));
    assert_eq!(g.initializer[2], ones("shape", 2));

    assert_eq!(store(&stored, ExternalData::Embed).unwrap(), []);
    fs::remove_file(folder.path().join("weights.bin")).unwrap();
    assert_eq!(decoded(&path), proto);
    check(&["m.onnx"]);

    let layout_of_each = DataFiles { threshold: 1, ..DataFiles::default() };
    let files = store(&model, ExternalData::Each(layout_of_each)).unwrap();
    let expected = ["m.onnx.a_w.data", "m.onnx.a_w.1.data", "m.onnx.shape.data"];
    assert_eq!(files.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), expected);
    check(&["m.onnx", "m.onnx.a_w.1.data", "m.onnx.a_w.data", "m.onnx.shape.data"]);

    for name in ["../w", "a/b", "", "m.onnx", ".."] {
        let why = store(&model, ExternalData::One(layout(name))).unwrap_err().to_string();
        assert_eq!(why, format!("`{name}` is not the name of a data file beside the model"));
    }
}
