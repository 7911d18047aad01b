//! What `--config` reads: a pipeline, or a project with many models.

use crate::{failure::Failure, proof::Limits};
use pare_passes::{Pipeline, framework::pipeline::read_toml};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A configuration file.
pub enum Config {
    /// A list `[[step]]`.
    Pipeline(Pipeline),
    /// A list `[[model]]`.
    Project(Project),
}

/// Models with their pipelines and limits.
#[derive(Debug)]
pub struct Project {
    /// The file itself.
    pub path: PathBuf,
    pub models: Vec<Entry>,
}

/// One model of a project. Paths are relative to the project's file.
#[derive(Debug)]
pub struct Entry {
    pub input: PathBuf,
    pub output: PathBuf,
    /// The pipeline as written.
    pub pipeline: String,
    pub samples: Option<PathBuf>,
    pub test: Option<PathBuf>,
    pub limits: Limits,
    pub freeze_initializers: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    pipelines: BTreeMap<String, String>,
    #[serde(default)]
    limits: LimitsTable,
    model: Vec<EntryTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryTable {
    input: PathBuf,
    output: PathBuf,
    pipeline: Option<String>,
    samples: Option<PathBuf>,
    test: Option<PathBuf>,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    freeze_initializers: bool,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    max_drift: Option<f64>,
    min_agreement: Option<f64>,
    max_accuracy_drop: Option<f64>,
    max_disagreement: Option<f64>,
}

/// Read a configuration file.
pub fn read(path: &Path) -> Result<Config, Failure> {
    let cannot = |e| Failure::new(format!("cannot read `{}`: {e}", path.display()));
    let source = std::fs::read_to_string(path).map_err(cannot)?;
    let table: Option<toml::Table> = read_toml(&source).ok();
    if table.is_some_and(|table| table.contains_key("model")) {
        return project(path, &source).map(Config::Project);
    }
    Pipeline::from_toml(&source)
        .map(Config::Pipeline)
        .map_err(|e| Failure::pipeline(&e, &source).of(format_args!("`{}`", path.display())))
}

fn project(path: &Path, source: &str) -> Result<Project, Failure> {
    let of = |failure: Failure| failure.of(format_args!("`{}`", path.display()));
    let file: File = read_toml(source).map_err(|e| {
        let line = 1 + source.bytes().take(e.at.start).filter(|&b| b == b'\n').count();
        of(Failure::new(format!("line {line}: {}", e.message.replace('\n', ", "))))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut models: Vec<Entry> = vec![];
    for entry in file.model {
        let named = entry.pipeline.unwrap_or_else(|| "safe".into());
        let pipeline = file.pipelines.get(&named).unwrap_or(&named).clone();
        // All are checked before any work begins.
        let _: Pipeline = pipeline.parse().map_err(|e| of(Failure::pipeline(&e, &pipeline)))?;
        let output = folder.join(&entry.output);
        if models.iter().any(|m| m.output == output) {
            return Err(of(Failure::new(format!("two models are written to `{}`", entry.output.display()))));
        }
        let (own, all) = (entry.limits, file.limits.clone());
        models.push(Entry {
            input: folder.join(entry.input),
            output,
            pipeline,
            samples: entry.samples.map(|p| folder.join(p)),
            test: entry.test.map(|p| folder.join(p)),
            limits: Limits {
                drift: own.max_drift.or(all.max_drift),
                agreement: own.min_agreement.or(all.min_agreement),
                accuracy_drop: own.max_accuracy_drop.or(all.max_accuracy_drop),
                disagreement: own.max_disagreement.or(all.max_disagreement),
                ..Limits::default()
            },
            freeze_initializers: entry.freeze_initializers,
        });
    }
    Ok(Project { path: path.to_owned(), models })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
        [pipelines]
        small = \"safe,prune-channels{macs=0.5}\"
        [limits]
        min_agreement = 0.9
        [[model]]
        input = \"a.onnx\"
        output = \"out/a.onnx\"
        pipeline = \"small\"
        limits = { min_agreement = 0.99, max_drift = 0.1 }
        [[model]]
        input = \"b.onnx\"
        output = \"out/b.onnx\"";

    #[test]
    fn models_take_what_they_do_not_say_from_the_project() {
        let project = project(Path::new("folder/pare.toml"), FILE).unwrap();
        let [a, b] = &project.models[..] else { panic!() };
        assert_eq!(
            (a.input.as_path(), a.pipeline.as_str()),
            (Path::new("folder/a.onnx"), "safe,prune-channels{macs=0.5}")
        );
        assert_eq!((a.limits.agreement, a.limits.drift), (Some(0.99), Some(0.1)));
        assert_eq!((b.pipeline.as_str(), b.limits.agreement, b.limits.drift), ("safe", Some(0.9), None));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let why = |text: &str| project(Path::new("p.toml"), text).unwrap_err().message;
        assert!(
            why("[[model]]\ninput = \"a\"\noutptu = \"b\"")
                .starts_with("`p.toml`: line 3: unknown field `outptu`")
        );
        let twice = FILE.replace("out/b.onnx", "out/a.onnx");
        assert_eq!(why(&twice), "`p.toml`: two models are written to `out/a.onnx`");
        assert_eq!(why(&FILE.replace("\"small\"\n", "\"smal\"\n")), "`p.toml`: there is no pass `smal`");
    }
}
