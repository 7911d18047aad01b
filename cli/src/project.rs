//! `pare optimize --config pare.toml`: many models, each built anew only where something it depends on changed.
//!
//! What each output was made from stands in `pare.lock` beside the project: hashes of contents, so that a fresh
//! checkout needs no work. Where size and time of a file are as they were, its content is not read again.

use crate::{
    args::{Common, OptimizeArgs, Prove},
    config::{Entry, Project},
    failure::{Done, Failure},
    optimize::{Work, perform},
    voice::Voice,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// What is known of earlier runs.
#[derive(Default, Serialize, Deserialize)]
struct Lock {
    /// Of each output, what it was made from.
    outputs: BTreeMap<String, Made>,
    /// Of each file, size and time at which it had which hash.
    stamps: BTreeMap<String, Stamp>,
}

/// What decides about an output, and the output itself.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Made {
    /// Version of the command, pipeline, limits, options.
    settings: BTreeMap<String, String>,
    /// Hashes of files, by name as seen from the project.
    files: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Nanoseconds since 1970, as text: JSON has no integers of this size.
    time: String,
    hash: String,
}

pub fn run(project: &Project, args: &OptimizeArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let lock_path = project.path.with_extension("lock");
    // A lock that cannot be read is one that says nothing.
    let text = fs::read_to_string(&lock_path).unwrap_or_default();
    let mut lock: Lock = serde_json::from_str(&text).unwrap_or_default();
    let folder = project.path.parent().unwrap_or(Path::new("")).to_owned();
    let mut hashes =
        Hashes { folder: &folder, stamps: std::mem::take(&mut lock.stamps), used: BTreeSet::new() };
    let (mut done, mut reports, mut lines) = (Done::Well, vec![], vec![]);
    for entry in &project.models {
        let name = hashes.name(&entry.output);
        let reason = match lock.outputs.get(&name) {
            None => Some("it was never made".to_owned()),
            Some(known) => {
                let files = known.files.keys().map(|name| folder.join(name)).collect();
                changed(known, &made(entry, common, files, &mut hashes)?)
            }
        };
        let Some(reason) = reason else {
            reports.push(json!({ "output": entry.output, "state": "fresh" }));
            lines.push(vec![name, "fresh".into(), String::new()]);
            continue;
        };
        if args.check {
            done = Done::CheckFailed;
            voice.failed_check(&format!("`{name}` is stale: {reason}"), None);
            reports.push(json!({ "output": entry.output, "state": "stale", "reason": reason }));
            lines.push(vec![name, "stale".into(), reason]);
            continue;
        }
        if let Some(parent) = entry.output.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)
                .map_err(|e| Failure::new(format!("cannot make the folder `{}`: {e}", parent.display())))?;
        }
        let told = perform(&work(entry, args), common, voice)
            .map_err(|failure| failure.of(format_args!("`{}`", entry.input.display())))?;
        told.say(voice);
        let state = if told.done == Done::Well { "built" } else { "failed" };
        if told.done == Done::Well {
            lock.outputs.insert(name.clone(), made(entry, common, told.files.clone(), &mut hashes)?);
        } else {
            done = Done::CheckFailed;
            lock.outputs.remove(&name);
        }
        reports
            .push(json!({ "output": entry.output, "state": state, "reason": reason, "report": told.json }));
        lines.push(vec![name, state.into(), reason]);
        // After each model: what is done is done.
        save(&lock, &hashes, &lock_path)?;
    }
    if !args.check {
        let known: BTreeSet<_> = project.models.iter().map(|m| hashes.name(&m.output)).collect();
        lock.outputs.retain(|name, _| known.contains(name));
        save(&lock, &hashes, &lock_path)?;
    }
    voice.report(
        || json!({ "project": project.path, "models": reports }),
        || crate::voice::table(&["output", "", ""], lines),
    );
    Ok(done)
}

fn work(entry: &Entry, args: &OptimizeArgs) -> Work {
    Work {
        model: entry.input.clone(),
        output: entry.output.clone(),
        // It was parsed when the project was read.
        pipeline: entry.pipeline.parse().unwrap_or_default(),
        samples: entry.samples.clone(),
        statistics: vec![],
        test: entry.test.clone(),
        limits: entry.limits.clone(),
        prove: if args.no_prove { Prove::No } else { args.prove },
        freeze_initializers: entry.freeze_initializers,
        stop_after: None,
        print_after: None,
        verbose: args.verbose,
        memory: args.memory,
    }
}

/// What an output is made from now: settings, and these `files` beside those that the project names.
fn made(
    entry: &Entry,
    common: &Common,
    mut files: Vec<PathBuf>,
    hashes: &mut Hashes<'_>,
) -> Result<Made, Failure> {
    let settings = BTreeMap::from([
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("pipeline".to_owned(), entry.pipeline.clone()),
        ("limits".to_owned(), entry.limits.to_string()),
        ("options".to_owned(), format!("seed {} freeze {}", common.seed, entry.freeze_initializers)),
    ]);
    let given = [Some(&entry.input), entry.samples.as_ref(), entry.test.as_ref()];
    files.extend(given.into_iter().flatten().chain([&entry.output]).flat_map(|path| files_of(path)));
    let mut all = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let cannot = |e| Failure::new(format!("cannot read `{}`: {e}", file.display()));
        all.insert(hashes.name(file), hashes.of(file).map_err(cannot)?);
    }
    Ok(Made { settings, files: all })
}

/// What differs first, in words.
fn changed(known: &Made, now: &Made) -> Option<String> {
    let setting = known.settings.iter().find(|(name, value)| now.settings.get(*name) != Some(value));
    if let Some((name, _)) = setting {
        return Some(format!("the {name} changed"));
    }
    let mut files = known.files.keys().chain(now.files.keys());
    let first = files.find(|name| known.files.get(*name) != now.files.get(*name))?;
    Some(match (known.files.get(first), now.files.get(first)) {
        (Some(_), None) => format!("`{first}` is gone"),
        (None, Some(_)) => format!("`{first}` is new"),
        _ => format!("`{first}` changed"),
    })
}

/// The files that a path stands for: itself and its data files (`NAME.data`, `NAME.….data`), or all in a folder.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    if path.is_dir() {
        let mut inside: Vec<_> =
            fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect();
        inside.sort();
        inside.iter().for_each(|p| all.extend(files_of(p)));
        return all;
    }
    if path.is_file() {
        all.push(path.to_owned());
    }
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return all };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = fs::read_dir(folder).into_iter().flatten().flatten();
    let data = beside.filter(|e| {
        e.file_name()
            .to_str()
            .is_some_and(|n| n.strip_prefix(name).is_some_and(|r| r.ends_with("data") && r.len() > 4))
    });
    let mut data: Vec<_> = data.map(|e| path.with_file_name(e.file_name())).collect();
    data.sort();
    all.extend(data);
    all
}

struct Hashes<'p> {
    folder: &'p Path,
    stamps: BTreeMap<String, Stamp>,
    used: BTreeSet<String>,
}

impl Hashes<'_> {
    /// The path as seen from the project.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(self.folder).unwrap_or(path).display().to_string()
    }

    fn of(&mut self, path: &Path) -> io::Result<String> {
        let name = self.name(path);
        self.used.insert(name.clone());
        let meta = fs::metadata(path)?;
        let time = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let size = meta.len();
        if let Some(stamp) = self.stamps.get(&name).filter(|s| s.size == size && s.time == time) {
            return Ok(stamp.hash.clone());
        }
        let mut hasher = Sha256::new();
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let hash: String = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
        self.stamps.insert(name, Stamp { size, time, hash: hash.clone() });
        Ok(hash)
    }
}

fn save(lock: &Lock, hashes: &Hashes<'_>, path: &Path) -> Result<(), Failure> {
    let used = hashes.stamps.iter().filter(|(name, _)| hashes.used.contains(*name));
    let stamps: BTreeMap<_, _> = used.map(|(name, stamp)| (name.clone(), stamp.clone())).collect();
    let all = Lock { outputs: lock.outputs.clone(), stamps };
    let text = serde_json::to_string_pretty(&all).unwrap_or_default() + "\n";
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = |e: io::Error| Failure::new(format!("cannot write `{}`: {e}", path.display()));
    let temporary =
        tempfile::Builder::new().prefix(".pare-").suffix(".tmp").tempfile_in(folder).map_err(cannot)?;
    fs::write(temporary.path(), text).map_err(cannot)?;
    temporary.persist(path).map(drop).map_err(|e| cannot(e.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_change_is_named() {
        let made = |pipeline: &str, files: &[(&str, &str)]| Made {
            settings: BTreeMap::from([("pipeline".to_owned(), pipeline.to_owned())]),
            files: files.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect(),
        };
        let before = made("safe", &[("a.onnx", "1")]);
        assert_eq!(changed(&before, &before), None);
        let why = |pipeline: &str, files: &[(&str, &str)]| changed(&before, &made(pipeline, files)).unwrap();
        assert_eq!(why("safe", &[("a.onnx", "2")]), "`a.onnx` changed");
        assert_eq!(why("safe", &[]), "`a.onnx` is gone");
        assert_eq!(why("x", &[("a.onnx", "1")]), "the pipeline changed");
        assert_eq!(why("safe", &[("a.onnx", "1"), ("a.onnx.data", "1")]), "`a.onnx.data` is new");
    }

    #[test]
    fn data_files_belong_to_their_model() {
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
