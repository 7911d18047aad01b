//! Configuration files: a pipeline, or a project of models.

use crate::{
    DataFiles, Error, ExternalData, Goal, Metric, OutputMeasure, Project, ProjectModel, QualityLimits,
    QualityOptions, SearchOptions,
};
use pare_passes::{Pipeline, PipelineError, framework::pipeline::read_toml};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// A configuration file in TOML.
#[non_exhaustive]
pub enum Config {
    /// A pipeline: a list `[[step]]`.
    Pipeline(Pipeline),
    /// A project: a list `[[model]]`.
    Project(Project),
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] and [`Error::Pipeline`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let source = std::fs::read_to_string(path).map_err(|error| Error::File {
            action: "read",
            path: path.to_owned(),
            error,
        })?;
        let keys: Option<BTreeMap<String, serde_json::Value>> = read_toml(&source).ok();
        if keys.is_some_and(|keys| keys.contains_key("model")) {
            return parse_project(path, &source).map(Self::Project);
        }
        Pipeline::from_toml(&source)
            .map(Self::Pipeline)
            .map_err(|e| Error::pipeline(e, &source).about(format_args!("`{}`", path.display())))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectTable {
    #[serde(default)]
    pipelines: BTreeMap<String, String>,
    #[serde(default)]
    limits: LimitsTable,
    model: Vec<ModelTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelTable {
    input: PathBuf,
    output: PathBuf,
    pipeline: Option<String>,
    search: Option<SearchTable>,
    samples: Option<PathBuf>,
    test: Option<PathBuf>,
    #[serde(default)]
    limits: LimitsTable,
    /// Measures by output.
    #[serde(default)]
    quality: BTreeMap<String, String>,
    /// The input that masks padding.
    mask: Option<String>,
    #[serde(default)]
    freeze_initializers: bool,
    #[serde(default)]
    external_data: ExternalTable,
}

/// A search for the pipeline, within the limits of the model.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SearchTable {
    #[serde(default)]
    goal: Goal,
    #[serde(default)]
    passes: Vec<String>,
    max_drift: Option<f64>,
    evaluate: Option<String>,
    max_metric_drop: Option<f64>,
    hold_out: Option<f64>,
    confidence: Option<f64>,
    /// Seconds.
    budget: Option<u64>,
    batch: Option<usize>,
    threads: Option<usize>,
    provider: Option<String>,
}

/// Time after which the command of a metric is ended.
const EVALUATE_TIMEOUT: Duration = Duration::from_mins(10);

impl SearchTable {
    fn options(self, samples: Option<&Path>, limits: &QualityLimits) -> Result<SearchOptions, Error> {
        let samples = samples.ok_or_else(|| Error::invalid("a search needs `samples`"))?;
        if limits.deviation.is_some() || limits.disagreement.is_some() {
            let message = "a search is limited by `min_agreement`, `max_accuracy_drop`, `max_drift` and \
                           `max_metric_drop` only";
            return Err(Error::invalid(message));
        }
        let mut options = SearchOptions::new(samples).goal(self.goal).families(self.passes);
        options.limits.agreement = limits.agreement;
        options.limits.accuracy_drop = limits.accuracy_drop;
        options.limits.drift = self.max_drift;
        options.limits.metric_drop = self.max_metric_drop;
        let metric = self.evaluate.map(|line| Metric::command(&line, EVALUATE_TIMEOUT));
        options.metric = metric.transpose()?;
        options.hold_out = self.hold_out.unwrap_or(options.hold_out);
        options.confidence = self.confidence.unwrap_or(options.confidence);
        options.budget = self.budget.map_or(options.budget, Duration::from_secs);
        options.batch = self.batch.unwrap_or(options.batch);
        options.environment.threads = self.threads.unwrap_or(options.environment.threads);
        if let Some(provider) = self.provider {
            options.environment.provider = provider.parse().map_err(|why: String| Error::invalid(why))?;
        }
        options.check()?;
        Ok(options)
    }
}

/// `external_data = "one"`, or a table.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected `keep`, `embed`, `one`, `each` or a table with `files`")]
enum ExternalTable {
    Word(ExternalWord),
    Table { files: ExternalWord, name: Option<String>, threshold: Option<usize>, align: Option<u64> },
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExternalWord {
    #[default]
    Keep,
    Embed,
    One,
    Each,
}

impl Default for ExternalTable {
    fn default() -> Self {
        Self::Word(ExternalWord::Keep)
    }
}

impl From<ExternalTable> for ExternalData {
    fn from(table: ExternalTable) -> Self {
        let default = DataFiles::default();
        let (files, layout) = match table {
            ExternalTable::Word(files) => (files, default),
            ExternalTable::Table { files, name, threshold, align } => {
                let threshold = threshold.unwrap_or(default.threshold);
                (files, DataFiles { name, threshold, align: align.unwrap_or(default.align) })
            }
        };
        match files {
            ExternalWord::Keep => Self::Keep,
            ExternalWord::Embed => Self::Embed,
            ExternalWord::One => Self::One(layout),
            ExternalWord::Each => Self::Each(layout),
        }
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    max_deviation: Option<f64>,
    min_agreement: Option<f64>,
    max_accuracy_drop: Option<f64>,
    max_disagreement: Option<f64>,
}

impl LimitsTable {
    /// The limits of a model; those it does not set are those of the project.
    fn or(&self, project: &Self) -> QualityLimits {
        QualityLimits {
            deviation: self.max_deviation.or(project.max_deviation),
            agreement: self.min_agreement.or(project.min_agreement),
            accuracy_drop: self.max_accuracy_drop.or(project.max_accuracy_drop),
            disagreement: self.max_disagreement.or(project.max_disagreement),
            ..QualityLimits::default()
        }
    }
}

fn parse_project(path: &Path, source: &str) -> Result<Project, Error> {
    let about = |error: Error| error.about(format_args!("`{}`", path.display()));
    let file: ProjectTable = read_toml(source).map_err(|e: PipelineError| {
        let line = 1 + source.bytes().take(e.at.start).filter(|&b| b == b'\n').count();
        about(Error::invalid(format!("line {line}: {}", e.message.replace('\n', ", "))))
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut models: Vec<ProjectModel> = vec![];
    for model in file.model {
        let has_pipeline = model.pipeline.is_some();
        let name = model.pipeline.unwrap_or_else(|| "safe".into());
        let text = file.pipelines.get(&name).unwrap_or(&name).clone();
        // All pipelines are checked before the first model is built.
        let _: Pipeline = text.parse().map_err(|e| about(Error::pipeline(e, &text)))?;
        let output = folder.join(&model.output);
        if models.iter().any(|m| m.output == output) {
            let message = format!("two models have the output `{}`", model.output.display());
            return Err(about(Error::invalid(message)));
        }
        let measure = |(name, text): (String, String)| {
            let measure: OutputMeasure = text.parse().map_err(|why: String| about(Error::invalid(why)))?;
            Ok((name, measure))
        };
        let limits = model.limits.or(&file.limits);
        let samples = model.samples.map(|p| folder.join(p));
        let search = model
            .search
            .map(|table| table.options(samples.as_deref(), &limits).map_err(about))
            .transpose()?;
        if search.is_some() && has_pipeline {
            let message = format!("`{}` has both a pipeline and a search", model.output.display());
            return Err(about(Error::invalid(message)));
        }
        let measures = model.quality.into_iter().map(measure).collect::<Result<_, Error>>()?;
        models.push(ProjectModel {
            input: folder.join(model.input),
            output,
            pipeline: text,
            search,
            samples,
            test: model.test.map(|p| folder.join(p)),
            limits,
            quality: QualityOptions::new(measures, model.mask),
            freeze_initializers: model.freeze_initializers,
            external_data: model.external_data.into(),
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
        limits = { min_agreement = 0.99, max_deviation = 0.1 }
        [[model]]
        input = \"b.onnx\"
        output = \"out/b.onnx\"";

    #[test]
    fn models_inherit_the_limits_of_the_project() {
        let project = parse_project(Path::new("folder/pare.toml"), FILE).unwrap();
        let [a, b] = &project.models[..] else { panic!() };
        assert_eq!(
            (a.input.as_path(), a.pipeline.as_str()),
            (Path::new("folder/a.onnx"), "safe,prune-channels{macs=0.5}")
        );
        assert_eq!((a.limits.agreement, a.limits.deviation), (Some(0.99), Some(0.1)));
        assert_eq!((b.pipeline.as_str(), b.limits.agreement, b.limits.deviation), ("safe", Some(0.9), None));
    }

    #[test]
    fn a_search_has_the_limits_of_its_model() {
        let text = "[[model]]\ninput = \"a\"\noutput = \"b\"\nsamples = \"s.npz\"\n\
                    limits = { min_agreement = 0.9 }\nsearch = { goal = \"bytes\", budget = 60 }";
        let project = parse_project(Path::new("p.toml"), text).unwrap();
        let search = project.models[0].search.as_ref().unwrap();
        assert_eq!((search.goal, search.limits.agreement), (Goal::Bytes, Some(0.9)));
        assert_eq!(search.budget, Duration::from_mins(1));
        let why = |text: &str| parse_project(Path::new("p.toml"), text).map(drop).unwrap_err().to_string();
        let without = text.replace("limits = { min_agreement = 0.9 }\n", "");
        assert_eq!(why(&without), "`p.toml`: a search needs a limit on the loss of quality");
        let both = text.to_owned() + "\npipeline = \"safe\"";
        assert_eq!(why(&both), "`p.toml`: `b` has both a pipeline and a search");
    }

    #[test]
    fn reports_errors_with_their_position() {
        let why = |text: &str| parse_project(Path::new("p.toml"), text).map(drop).unwrap_err().to_string();
        assert!(
            why("[[model]]\ninput = \"a\"\noutptu = \"b\"")
                .starts_with("`p.toml`: line 3: unknown field `outptu`")
        );
        let twice = FILE.replace("out/b.onnx", "out/a.onnx");
        assert_eq!(why(&twice), "`p.toml`: two models have the output `out/a.onnx`");
        assert_eq!(why(&FILE.replace("\"small\"\n", "\"smal\"\n")), "`p.toml`: there is no pass `smal`");
    }
}
