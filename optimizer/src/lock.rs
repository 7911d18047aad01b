//! Lock files: the settings and the file contents that each output was built from.
//!
//! Contents are compared by hash, so that a fresh checkout needs no work. A file whose size and modification
//! time are unchanged is not read again.

use crate::{Error, hash, output::write_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// A lock file, and the hashes of files that were computed.
pub(crate) struct Lock {
    path: PathBuf,
    /// The folder of the project, which names are relative to.
    folder: PathBuf,
    content: Content,
    used: BTreeSet<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct Content {
    /// The origin of each output.
    outputs: BTreeMap<String, Origin>,
    /// Size, time and hash of each file.
    stamps: BTreeMap<String, Stamp>,
}

/// The settings and files that determine an output, and the output itself.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Version, pipeline, limits, options.
    pub settings: BTreeMap<String, String>,
    /// Hashes of files, by name relative to the project.
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Nanoseconds since 1970, as text: JSON has no integers of this size.
    time: String,
    hash: String,
}

impl Origin {
    /// The first difference to another origin, as a sentence.
    pub fn change(&self, now: &Self) -> Option<String> {
        let setting = self.settings.iter().find(|(name, value)| now.settings.get(*name) != Some(value));
        if let Some((name, _)) = setting {
            return Some(format!("the {name} changed"));
        }
        let mut files = self.files.keys().chain(now.files.keys());
        let first = files.find(|name| self.files.get(*name) != now.files.get(*name))?;
        Some(match (self.files.get(first), now.files.get(first)) {
            (Some(_), None) => format!("`{first}` is missing"),
            (None, Some(_)) => format!("`{first}` is new"),
            _ => format!("`{first}` changed"),
        })
    }
}

impl Lock {
    /// Reads the lock file of a project; an unreadable one counts as empty.
    pub fn read(project: &Path) -> Self {
        let path = project.with_extension("lock");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let content = serde_json::from_str(&text).unwrap_or_default();
        let folder = project.parent().unwrap_or(Path::new("")).to_owned();
        Self { path, folder, content, used: BTreeSet::new() }
    }

    /// The path relative to the project.
    pub fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.folder).unwrap_or(path).display().to_string()
    }

    /// The recorded origin of an output.
    pub fn origin(&self, output: &str) -> Option<&Origin> {
        self.content.outputs.get(output)
    }

    /// The files of a recorded origin.
    pub fn files(&self, origin: &Origin) -> Vec<PathBuf> {
        origin.files.keys().map(|name| self.folder.join(name)).collect()
    }

    /// Records the origin of an output, or removes it.
    pub fn set(&mut self, output: &str, origin: Option<Origin>) {
        match origin {
            Some(origin) => self.content.outputs.insert(output.to_owned(), origin),
            None => self.content.outputs.remove(output),
        };
    }

    /// Removes the origins of other outputs.
    pub fn retain(&mut self, outputs: &BTreeSet<String>) {
        self.content.outputs.retain(|name, _| outputs.contains(name));
    }

    /// Hashes those of the files that exist.
    pub fn hash_all(&mut self, files: &[PathBuf]) -> Result<BTreeMap<String, String>, Error> {
        let mut hashes = BTreeMap::new();
        for file in files.iter().filter(|file| file.is_file()) {
            let failed = |error| Error::File { action: "read", path: file.clone(), error };
            hashes.insert(self.name(file), self.hash(file).map_err(failed)?);
        }
        Ok(hashes)
    }

    fn hash(&mut self, path: &Path) -> io::Result<String> {
        let name = self.name(path);
        self.used.insert(name.clone());
        let meta = fs::metadata(path)?;
        let time = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let size = meta.len();
        if let Some(stamp) = self.content.stamps.get(&name).filter(|s| s.size == size && s.time == time) {
            return Ok(stamp.hash.clone());
        }
        let mut hasher = Sha256::new();
        hash::add_file(&mut hasher, path)?;
        let hash = hash::hex(hasher);
        self.content.stamps.insert(name, Stamp { size, time, hash: hash.clone() });
        Ok(hash)
    }

    /// Writes the lock file if it changed.
    pub fn save(&self) -> Result<(), Error> {
        let used = self.content.stamps.iter().filter(|(name, _)| self.used.contains(*name));
        let stamps = used.map(|(name, stamp)| (name.clone(), stamp.clone())).collect();
        let content = Content { outputs: self.content.outputs.clone(), stamps };
        let text = serde_json::to_string_pretty(&content).unwrap_or_default() + "\n";
        if fs::read_to_string(&self.path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        write_file(&self.path, text.as_bytes())
    }
}

/// The files behind a path: a file with its data files (`NAME.data`, `NAME.….data`), or all files of a
/// folder.
pub(crate) fn files_of(path: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| {
        let mut paths: Vec<_> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        paths.sort();
        paths
    };
    if path.is_dir() {
        return entries(path).iter().flat_map(|p| files_of(p)).collect();
    }
    let mut files: Vec<_> = path.is_file().then(|| path.to_owned()).into_iter().collect();
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return files };
    let is_data = |file: &PathBuf| {
        let rest = file.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(name));
        rest.is_some_and(|rest| rest.ends_with("data") && rest.len() > 4)
    };
    let siblings = entries(crate::output::folder_of(path)).into_iter().filter(is_data);
    files.extend(siblings.filter_map(|p| p.file_name().map(|n| path.with_file_name(n))));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_change() {
        let origin = |pipeline: &str, files: &[(&str, &str)]| Origin {
            settings: BTreeMap::from([("pipeline".to_owned(), pipeline.to_owned())]),
            files: files.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect(),
        };
        let before = origin("safe", &[("a.onnx", "1")]);
        assert_eq!(before.change(&before), None);
        let change =
            |pipeline: &str, files: &[(&str, &str)]| before.change(&origin(pipeline, files)).unwrap();
        assert_eq!(change("safe", &[("a.onnx", "2")]), "`a.onnx` changed");
        assert_eq!(change("safe", &[]), "`a.onnx` is missing");
        assert_eq!(change("x", &[("a.onnx", "1")]), "the pipeline changed");
        assert_eq!(change("safe", &[("a.onnx", "1"), ("a.onnx.data", "1")]), "`a.onnx.data` is new");
    }

    #[test]
    fn finds_the_data_files_of_a_model() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["m.onnx", "m.onnx.data", "m.onnx.0123456789abcdef.data", "m.onnx2", "other.data"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let names: Vec<_> = files_of(&folder.path().join("m.onnx"))
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["m.onnx", "m.onnx.0123456789abcdef.data", "m.onnx.data"]);
    }
}
