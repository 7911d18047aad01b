//! Folders of ONNX test data: `test_data_set_*/input_*.pb`.

use super::error::SamplesError;
use crate::{Feed, Port, PortKind, Value};
use pare_graph::{
    DataType, Tensor, Type, TypeKind,
    onnx::{Item, tensor_name, value_from_bytes},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The data sets in `folder`, ordered by number; `folder` itself may be one.
pub(super) fn data_sets(folder: &Path) -> Result<Vec<PathBuf>, SamplesError> {
    if !numbered(folder, "input_", ".pb")?.is_empty() {
        return Ok(vec![folder.to_owned()]);
    }
    let sets = numbered(folder, "test_data_set_", "")?;
    let sets: Vec<_> = sets.into_iter().map(|(_, path)| path).filter(|path| path.is_dir()).collect();
    if sets.is_empty() {
        return Err(SamplesError::EmptyFolder(folder.to_owned()));
    }
    Ok(sets)
}

/// Entries of `folder` with a number between `prefix` and `suffix` as their name, ordered by number.
fn numbered(folder: &Path, prefix: &str, suffix: &str) -> Result<Vec<(usize, PathBuf)>, SamplesError> {
    let entries = fs::read_dir(folder).map_err(|error| SamplesError::read(folder, &error))?;
    let number = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let number = name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()?;
        Some((number, path))
    };
    let mut found: Vec<_> = entries.flatten().filter_map(|entry| number(entry.path())).collect();
    found.sort();
    Ok(found)
}

/// Reads the values in `folder` for `ports`: the files `input_*.pb` or `output_*.pb`, depending on `role`
/// (`"input"` or `"output"`). A file belongs to the port with its name, or else to the port at its number.
///
/// # Errors
/// A file that cannot be read, or a value that does not fit its port.
pub fn read_test_data(folder: &Path, role: &str, ports: &[Port]) -> Result<Feed, SamplesError> {
    let mut feed = Feed::new();
    for (number, path) in numbered(folder, &format!("{role}_"), ".pb")? {
        let bytes = fs::read(&path).map_err(|error| SamplesError::read(&path, &error))?;
        let named = tensor_name(&bytes).and_then(|name| ports.iter().find(|port| port.name == name));
        let broken = |reason| SamplesError::File { path: path.clone(), reason };
        let port = named.or_else(|| ports.get(number));
        let port = port.ok_or_else(|| broken(format!("the model has no {role} number {number}")))?;
        let item = value_from_bytes(&bytes, &declared(&port.kind)).map_err(|e| broken(e.to_string()))?;
        let value = value(item).map_err(broken)?;
        port.kind.accepts(&value).map_err(|reason| SamplesError::Port { name: port.name.clone(), reason })?;
        feed.push((port.name.clone(), value));
    }
    Ok(feed)
}

/// The declared type of a port: the files do not contain their type.
fn declared(kind: &PortKind) -> TypeKind {
    let inner = |kind: &PortKind| Some(Box::new(Type { kind: declared(kind), denotation: None }));
    match kind {
        PortKind::Tensor { dtype, .. } => TypeKind::Tensor { dtype: Some(*dtype), shape: None },
        PortKind::Sequence(item) => TypeKind::Sequence(inner(item)),
        PortKind::Optional(value) => TypeKind::Optional(inner(value)),
        PortKind::Map { key, value } => {
            TypeKind::Map { key: Some(*key), value: Some(Box::new(Type::tensor(*value, None))) }
        }
        PortKind::Other(_) => TypeKind::Unset,
    }
}

fn value(item: Item) -> Result<Value, String> {
    Ok(match item {
        Item::Tensor(tensor) => Value::Tensor(tensor),
        Item::SparseTensor(_) => return Err("sparse tensors are not supported".to_owned()),
        Item::Sequence(items) => Value::Sequence(items.into_iter().map(value).collect::<Result<_, _>>()?),
        Item::Map(keys, items) => Value::Map { keys, values: scalars(&items)? },
        Item::Optional(None) => Value::Optional(None),
        Item::Optional(Some(inner)) => Value::Optional(Some(Box::new(value(*inner)?))),
    })
}

/// The values of a map as one vector.
fn scalars(items: &[Item]) -> Result<Tensor, String> {
    let scalar = |item: &Item| match item {
        Item::Tensor(tensor) if tensor.len() == 1 => Some(tensor.clone()),
        _ => None,
    };
    let scalars = items.iter().map(scalar).collect::<Option<Vec<_>>>().unwrap_or_default();
    let dtype = scalars.first().map_or(DataType::Float, Tensor::dtype);
    if scalars.len() != items.len() || scalars.iter().any(|value| value.dtype() != dtype) {
        return Err("only maps to single numbers of one type are supported".to_owned());
    }
    let bytes: Vec<u8> = scalars.iter().flat_map(|value| value.bytes().iter().copied()).collect();
    Tensor::new(dtype, &[scalars.len()], bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::onnx::tensor_to_bytes;

    #[test]
    fn assigns_files_by_name_then_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, value: f32, name: &str| {
            fs::write(folder.path().join(file), tensor_to_bytes(&Tensor::vector(&[value]), name)).unwrap();
        };
        write("input_0.pb", 0.0, "b");
        write("input_2.pb", 2.0, "");
        let port = |name: &str| Port::tensor(name, DataType::Float, &[crate::PortDim::Fixed(1)]);
        let ports = ["a", "b", "c"].map(port);
        let vector = |x: f32| Value::Tensor(Tensor::vector(&[x]));
        let feed = read_test_data(folder.path(), "input", &ports).unwrap();
        assert_eq!(feed, [("b".into(), vector(0.0)), ("c".into(), vector(2.0))]);
        let error = read_test_data(folder.path(), "input", &ports[..1]).unwrap_err().to_string();
        assert!(error.ends_with("input_2.pb` cannot be read: the model has no input number 2"), "{error}");
        fs::write(folder.path().join("input_2.pb"), "").unwrap();
        let error = read_test_data(folder.path(), "input", &ports).unwrap_err().to_string();
        assert!(error.ends_with("cannot be read: the file is empty"), "{error}");
    }

    #[test]
    fn converts_nested_values() {
        let five = || Item::Tensor(Tensor::scalar(5_i64));
        let nested = Item::Optional(Some(Box::new(Item::Sequence(vec![five(), five()]))));
        let tensor = Value::Tensor(Tensor::scalar(5_i64));
        let expected = Value::Optional(Some(Box::new(Value::Sequence(vec![tensor.clone(), tensor]))));
        assert_eq!(value(nested), Ok(expected));
        let keys = Tensor::vector(&[1_i64, 2]);
        let map = |values: Vec<Item>| value(Item::Map(keys.clone(), values));
        let values = Tensor::vector(&[5_i64, 5]);
        assert_eq!(map(vec![five(), five()]), Ok(Value::Map { keys: keys.clone(), values }));
        assert!(map(vec![five(), Item::Tensor(Tensor::scalar(1.0_f32))]).is_err());
        assert!(map(vec![five(), Item::Sequence(vec![])]).is_err());
    }
}
