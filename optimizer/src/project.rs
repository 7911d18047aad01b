//! Projects: many models, each rebuilt only if something that it depends on changed.

use crate::{
    DataFiles, Environment, Error, ExternalData, Found, OptimizeOptions, OptimizeReport, Optimized, Prove,
    QualityLimits, QualityOptions, Rejected, Reproducer, SearchOptions, check_output,
    lock::{Lock, Origin, files_of},
    optimize::optimize,
    options::{MEMORY, PROVE_TIME, setters},
    output::folder_of,
};
use serde::{Serialize, Serializer};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::PathBuf,
    time::Duration,
};

/// Models with their pipelines and limits.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Project {
    /// The project file; the lock file `pare.lock` of `pare.toml` is beside it.
    pub path: PathBuf,
    /// The models.
    pub models: Vec<ProjectModel>,
}

/// A model of a project.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProjectModel {
    /// The model file.
    pub input: PathBuf,
    /// The output file.
    pub output: PathBuf,
    /// The pipeline in text form.
    pub pipeline: String,
    /// The search for the pipeline, in place of a given one. What it finds is recorded in the lock file, and
    /// used as long as nothing that it depends on changes.
    pub search: Option<SearchOptions>,
    /// Samples for calibration and comparison.
    pub samples: Option<PathBuf>,
    /// Samples for the comparison only.
    pub test: Option<PathBuf>,
    /// Limits on the loss of quality.
    pub limits: QualityLimits,
    /// The measures of the outputs, and the mask of padding.
    pub quality: QualityOptions,
    /// Treat initializers that are also inputs as constants.
    pub freeze_initializers: bool,
    /// The storage of the result's weights.
    pub external_data: ExternalData,
}

/// Options of [`Project::build`].
#[derive(Clone)]
#[non_exhaustive]
pub struct ProjectOptions {
    /// The comparisons of the proofs.
    pub prove: Prove,
    /// Time after which a comparison on samples that calibrate ends, if there are no limits.
    pub prove_time: Duration,
    /// Build nothing; outputs that are out of date are reported as stale.
    pub check: bool,
    /// True to measure the latency of originals and results.
    pub time: bool,
    /// Samples per run that is measured, where the model leaves it open.
    pub batch: usize,
    /// True to write reproducers beside outputs when a pass is at fault.
    pub reproduce: bool,
    /// Bytes that activations of samples may occupy.
    pub memory: u64,
    /// Engine, threads, seed, progress.
    pub environment: Environment,
}

setters!(ProjectOptions {
    /// Sets the comparisons of the proofs.
    prove: Prove,
    /// Sets the time after which a comparison on samples that calibrate ends.
    prove_time: Duration,
    /// Builds nothing.
    check: bool,
    /// Requests the measurement of latency.
    time: bool,
    /// Sets the number of samples per run that is measured.
    batch: usize,
    /// Requests reproducers.
    reproduce: bool,
    /// Sets the limit of memory for activations in bytes.
    memory: u64,
    /// Sets the environment.
    environment: Environment,
});

impl Default for ProjectOptions {
    fn default() -> Self {
        Self {
            prove: Prove::default(),
            prove_time: PROVE_TIME,
            check: false,
            time: true,
            batch: 1,
            reproduce: false,
            memory: MEMORY,
            environment: Environment::default(),
        }
    }
}

/// The report of [`Project::build`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ProjectReport {
    /// The project file.
    pub project: PathBuf,
    /// The models.
    pub models: Vec<ModelStatus>,
}

impl ProjectReport {
    /// Returns true if all outputs are up to date.
    pub fn is_up_to_date(&self) -> bool {
        self.models.iter().all(|m| matches!(m.state, ModelState::Fresh | ModelState::Built))
    }
}

/// The state of an output.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ModelStatus {
    /// The output relative to the project.
    #[serde(skip)]
    pub name: String,
    /// The output file.
    pub output: PathBuf,
    /// The state.
    pub state: ModelState,
    /// Why the output was out of date.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The report, if the output was built or rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Box<OptimizeReport>>,
    /// True if the result differs from the input.
    #[serde(skip)]
    pub changed: bool,
    /// The reproducer of a rejected result.
    #[serde(skip)]
    pub reproducer: Option<Reproducer>,
}

/// The state of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelState {
    /// Up to date.
    Fresh,
    /// Built now.
    Built,
    /// Rejected; the output is unchanged.
    Failed,
    /// Out of date.
    Stale,
}

impl fmt::Display for ModelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fresh => "fresh",
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Stale => "stale",
        })
    }
}

impl Serialize for ModelState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The setting of an origin that holds the pipeline.
const PIPELINE: &str = "pipeline";

impl Project {
    /// Builds the outputs that are out of date, and calls `done` after each model. The lock file is written
    /// after each model, so that an interrupted build continues where it ended.
    ///
    /// ```no_run
    /// use onnx_pare::{Config, ProjectOptions};
    /// # fn main() -> Result<(), onnx_pare::Error> {
    /// if let Config::Project(project) = Config::read("pare.toml")? {
    ///     let report = project.build(&ProjectOptions::default(), |model| println!("{}", model.name))?;
    ///     assert!(report.is_up_to_date());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The first error of a model, other than [`Error::Rejected`].
    pub fn build(
        &self,
        options: &ProjectOptions,
        mut done: impl FnMut(&ModelStatus),
    ) -> Result<ProjectReport, Error> {
        let mut lock = Lock::read(&self.path);
        let mut models = vec![];
        for model in &self.models {
            let status = model.build(options, &mut lock)?;
            done(&status);
            models.push(status);
        }
        if !options.check {
            lock.retain(&self.models.iter().map(|m| lock.name(&m.output)).collect::<BTreeSet<_>>());
            lock.save()?;
        }
        Ok(ProjectReport { project: self.path.clone(), models })
    }
}

impl ProjectModel {
    fn build(&self, options: &ProjectOptions, lock: &mut Lock) -> Result<ModelStatus, Error> {
        let mut status = ModelStatus {
            name: lock.name(&self.output),
            output: self.output.clone(),
            state: ModelState::Fresh,
            reason: self.change(options, lock)?,
            report: None,
            changed: false,
            reproducer: None,
        };
        if status.reason.is_none() {
            return Ok(status);
        }
        if options.check {
            status.state = ModelState::Stale;
            return Ok(status);
        }
        let folder = folder_of(&self.output);
        fs::create_dir_all(folder).map_err(|error| Error::File {
            action: "create",
            path: folder.to_owned(),
            error,
        })?;
        match self.optimize(options, &status.name, lock) {
            Ok(optimized) => {
                let origin = self.origin(options, &optimized.report.pipeline, optimized.files, lock)?;
                lock.set(&status.name, Some(origin));
                status.state = ModelState::Built;
                status.changed = optimized.changed;
                status.report = Some(Box::new(optimized.report));
            }
            Err(Error::Rejected(rejected)) => {
                lock.set(&status.name, None);
                let Rejected { mut report, reproducer } = *rejected;
                report.output = Some(self.output.clone());
                status.state = ModelState::Failed;
                status.report = Some(Box::new(report));
                status.reproducer = reproducer;
            }
            Err(error) => return Err(error.about(format_args!("`{}`", self.input.display()))),
        }
        lock.save()?;
        Ok(status)
    }

    fn optimize(&self, options: &ProjectOptions, name: &str, lock: &mut Lock) -> Result<Optimized, Error> {
        check_output(&self.output)?;
        let mut optimized = match (&self.search, self.recorded_pipeline(options, name, lock)?) {
            (Some(search), None) => self.search(search, options)?.optimized,
            (Some(_), Some(pipeline)) => optimize(&self.input, self.run_options(options, &pipeline))?,
            (None, _) => optimize(&self.input, self.run_options(options, &self.pipeline))?,
        };
        optimized.write(&self.output)?;
        Ok(optimized)
    }

    /// The pipeline that a search found, if nothing changed since but the output.
    fn recorded_pipeline(
        &self,
        options: &ProjectOptions,
        name: &str,
        lock: &mut Lock,
    ) -> Result<Option<String>, Error> {
        let Some(known) = lock.origin(name).cloned().filter(|_| self.search.is_some()) else {
            return Ok(None);
        };
        let pipeline = known.settings.get(PIPELINE).cloned().unwrap_or_default();
        let now = self.origin(options, &pipeline, lock.files(&known), lock)?;
        let output = lock.name(&self.output);
        let inputs = |origin: &Origin| {
            let mut files = origin.files.clone();
            files.retain(|file, _| !file.starts_with(&output));
            (origin.settings.clone(), files)
        };
        Ok((inputs(&known) == inputs(&now)).then_some(pipeline))
    }

    fn search(&self, search: &SearchOptions, options: &ProjectOptions) -> Result<Found, Error> {
        let (threads, provider) = (search.environment.threads, search.environment.provider.clone());
        let mut run = search
            .clone()
            .quality(self.quality.clone())
            .freeze_initializers(self.freeze_initializers)
            .external_data(self.external_data.clone())
            .memory(options.memory)
            .scratch(folder_of(&self.output))
            .environment(options.environment.clone().threads(threads).provider(provider));
        run.test.clone_from(&self.test);
        crate::search(&self.input, run)
    }

    fn run_options(&self, options: &ProjectOptions, pipeline: &str) -> OptimizeOptions {
        let mut run = OptimizeOptions::from(pipeline)
            .limits(self.limits.clone())
            .quality(self.quality.clone())
            .prove(options.prove)
            .prove_time(options.prove_time)
            .time(options.time)
            .batch(options.batch)
            .freeze_initializers(self.freeze_initializers)
            .external_data(self.external_data.clone())
            .reproduce(options.reproduce)
            .memory(options.memory)
            .scratch(folder_of(&self.output))
            .environment(options.environment.clone());
        run.samples.clone_from(&self.samples);
        run.test.clone_from(&self.test);
        run.hold_out = self.search.as_ref().filter(|_| self.test.is_none()).map(|search| search.hold_out);
        run
    }

    /// Why the output is out of date; `None` if it is up to date.
    fn change(&self, options: &ProjectOptions, lock: &mut Lock) -> Result<Option<String>, Error> {
        let Some(known) = lock.origin(&lock.name(&self.output)).cloned() else {
            return Ok(Some("it was never built".into()));
        };
        let files = lock.files(&known);
        let pipeline = match &self.search {
            Some(_) => known.settings.get(PIPELINE).cloned().unwrap_or_default(),
            None => self.pipeline.clone(),
        };
        Ok(known.change(&self.origin(options, &pipeline, files, lock)?))
    }

    /// The present origin of the output: the settings, `files`, and the files that the project names.
    fn origin(
        &self,
        options: &ProjectOptions,
        pipeline: &str,
        mut files: Vec<PathBuf>,
        lock: &mut Lock,
    ) -> Result<Origin, Error> {
        let seed = options.environment.seed;
        let mut settings = BTreeMap::from([
            ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            (PIPELINE.to_owned(), pipeline.to_owned()),
            ("limits".to_owned(), self.limits.to_string()),
            ("measures".to_owned(), self.quality.to_string()),
            ("options".to_owned(), format!("seed {seed} freeze {}", self.freeze_initializers)),
            ("external data".to_owned(), format!("{:?}", self.external_data)),
        ]);
        if let Some(search) = &self.search {
            settings.insert("search".to_owned(), search.to_string());
        }
        let named = [Some(&self.input), self.samples.as_ref(), self.test.as_ref(), Some(&self.output)];
        files.extend(named.into_iter().flatten().flat_map(|path| files_of(path)));
        if let ExternalData::One(DataFiles { name: Some(name), .. })
        | ExternalData::Each(DataFiles { name: Some(name), .. }) = &self.external_data
        {
            files.extend(files_of(&self.output.with_file_name(name)));
        }
        Ok(Origin { settings, files: lock.hash_all(&files)? })
    }
}
