//! Folders of ONNX test data: `test_data_set_*/input_*.pb`.

use super::{SamplesError, pb};
use crate::{Feed, Port, PortKind, Value};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The sets in `folder`, in the order of their numbers; `folder` itself may be one.
pub(super) fn sets(folder: &Path) -> Result<Vec<PathBuf>, SamplesError> {
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

/// Entries of `folder` whose name is a number between `prefix` and `suffix`, by that number.
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

/// The values in `folder` for `ports`: files `input_*.pb` or `output_*.pb`, depending on `role`
/// (`"input"` or `"output"`). A file belongs to the port whose name it carries, else to the one whose
/// place is its number.
pub fn read_test_data(folder: &Path, role: &str, ports: &[Port]) -> Result<Feed, SamplesError> {
    let mut feed = Feed::new();
    for (number, path) in numbered(folder, &format!("{role}_"), ".pb")? {
        let bytes = fs::read(&path).map_err(|error| SamplesError::read(&path, &error))?.into();
        let named = pb::name(&bytes).and_then(|name| ports.iter().find(|port| port.name == name));
        let port = named.or_else(|| ports.get(number));
        let broken = |reason| SamplesError::File { path: path.clone(), reason };
        let port = port.ok_or_else(|| broken(format!("the model has no {role} number {number}")))?;
        let (_, value) = pb::decode(bytes, &port.kind).map_err(broken)?;
        if let (Value::Tensor(tensor), PortKind::Tensor { .. }) = (&value, &port.kind)
            && tensor.is_empty()
            && tensor.dtype() != port.dtype().unwrap_or(tensor.dtype())
        {
            // An empty file decodes as an empty message; the port's check would tell less.
            return Err(broken("it holds no tensor".to_owned()));
        }
        port.kind.accepts(&value).map_err(|reason| SamplesError::Port { name: port.name.clone(), reason })?;
        feed.push((port.name.clone(), value));
    }
    Ok(feed)
}
