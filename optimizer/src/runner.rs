//! Runs a pipeline, and compares models that it produces.

use crate::{
    Comparison, Environment, Error,
    comparison::{compare, compare_related},
    environment::LazyEngine,
    related::Related,
    samples::{fit_batches, open, open_or_generate},
};
use pare_graph::{
    Model,
    onnx::{self, WriteError},
};
use pare_passes::{
    InterfaceChange, Observer, Pipeline, Report, RunError, RunOptions, Tools, run, statistics::Statistics,
};
use pare_runtime::{Feed, ModelSource, ProofOptions, ProofReport, QualityMeasures, SampleSet, SharedSamples};
use std::{cell::RefCell, path::Path, time::Duration};

/// The data that passes and the proof use.
#[derive(Default)]
pub(crate) struct Data {
    /// Samples for calibration.
    pub samples: Option<SharedSamples>,
    /// The measures of the outputs; chosen by what each model shows without.
    pub quality: Option<QualityMeasures>,
    /// Statistics that were collected before.
    pub statistics: Option<Statistics>,
    /// The model that training aims at; the input of the pipeline without.
    pub teacher: Option<Model>,
    /// Samples for the comparison only.
    pub test: Option<SampleSet>,
}

impl Data {
    /// Reads samples for calibration.
    pub fn with_samples(path: Option<&Path>, model: &Model) -> Result<Self, Error> {
        let samples = path.map(|path| open(path, model)).transpose()?.map(SharedSamples::from);
        Ok(Self { samples, ..Self::default() })
    }

    pub fn tools<'t>(
        &'t self,
        engine: &'t LazyEngine<'_>,
        environment: &'t Environment,
        memory: u64,
    ) -> Tools<'t> {
        Tools {
            engine: cfg!(feature = "engine").then_some(engine),
            samples: self.samples.as_ref().map(|s| s as &dyn pare_graph::Samples),
            teacher: self.teacher.as_ref(),
            quality: self.quality.as_ref(),
            statistics: self.statistics.as_ref(),
            memo: environment.memo.as_deref(),
            progress: environment,
            seed: environment.seed,
            threads: environment.threads,
            memory,
        }
    }
}

/// A pipeline with everything that running it and comparing its results needs.
pub(crate) struct Runner<'r> {
    pub environment: &'r Environment,
    pub engine: &'r LazyEngine<'r>,
    pub pipeline: &'r Pipeline,
    pub tools: Tools<'r>,
    /// Patches to apply at most.
    pub stop_after: Option<u64>,
    /// Samples to compare on; generated without.
    pub samples: Option<&'r Path>,
    /// Samples to compare on instead, where they are given.
    pub test: Option<&'r Path>,
    /// Time after which a comparison on `samples` ends. One on `test` runs them all, and so does one for limits.
    pub prove_time: Option<Duration>,
    pub placement: Placement<'r>,
}

/// The form in which an engine takes a model: bytes, or a file if it is too large for one protobuf message.
pub(crate) struct Placement<'p> {
    original: &'p Model,
    source: &'p ModelSource,
    scratch: Option<&'p Path>,
    folders: RefCell<Vec<tempfile::TempDir>>,
}

impl<'p> Placement<'p> {
    /// `source` is the form of `original`; files of other models are written to `scratch`.
    pub fn new(original: &'p Model, source: &'p ModelSource, scratch: Option<&'p Path>) -> Self {
        Self { original, source, scratch, folders: RefCell::default() }
    }

    pub fn place(&self, model: &Model) -> Result<ModelSource, Error> {
        match (onnx::to_bytes(model), self.scratch) {
            (Ok(bytes), _) => Ok(ModelSource::bytes(bytes)),
            (Err(WriteError::TooLarge { .. }), _) if std::ptr::eq(model, self.original) => {
                Ok(self.source.clone())
            }
            (Err(WriteError::TooLarge { .. }), Some(scratch)) => self.write(model, scratch),
            (Err(error), _) => Err(error.into()),
        }
    }

    fn write(&self, model: &Model, scratch: &Path) -> Result<ModelSource, Error> {
        let failed = |error| Error::File { action: "write", path: scratch.to_owned(), error };
        let folder = tempfile::tempdir_in(scratch).map_err(failed)?;
        let path = folder.path().join("model.onnx");
        onnx::write(model, &path, &onnx::WriteOptions { sync: false, ..Default::default() })?;
        self.folders.borrow_mut().push(folder);
        Ok(ModelSource::File(path))
    }
}

impl Runner<'_> {
    /// Runs the pipeline.
    pub fn run(
        &self,
        model: &mut Model,
        stop_after: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Report, RunError> {
        run(self.pipeline, model, RunOptions::new(self.tools).stop_after(stop_after), observer)
    }

    /// Compares two models on `test`, or on the samples, or on generated ones.
    pub fn compare(
        &self,
        a: &Model,
        b: &Model,
        test: Option<SampleSet>,
        options: ProofOptions,
    ) -> Result<Comparison, Error> {
        if let Some(samples) = test {
            return self.compare_on(samples, a, b, options);
        }
        let samples = open_or_generate(self.samples, a, self.environment.seed)?;
        let options = self.bounded(options, &samples);
        self.compare_on(samples, a, b, options)
    }

    /// The options of a comparison on samples that are not `test`: it ends when its time is over. Generated samples
    /// have a budget of their own, which covers all sizes.
    fn bounded(&self, options: ProofOptions, samples: &SampleSet) -> ProofOptions {
        ProofOptions { max_time: self.prove_time.filter(|_| !samples.is_generated()), ..options }
    }

    /// Compares models of which `b` has another interface, as these `changes` request.
    pub fn compare_changed(
        &self,
        a: &Model,
        b: &Model,
        changes: &[InterfaceChange],
        options: ProofOptions,
    ) -> Result<Comparison, Error> {
        if changes.is_empty() {
            return self.compare(a, b, None, options);
        }
        let related = match Related::of(a, b, changes) {
            Ok(related) => related,
            Err(why) => {
                let report = ProofReport::unproven(format!("the interface changed as requested: {why}"));
                return Ok(Comparison { report, engine: self.engine.description()? });
            }
        };
        let path = self.test.or(self.samples);
        let mut samples = open_or_generate(path, &related.sampled, self.environment.seed)?;
        for freed in related.freed.iter().filter(|f| f.stacked) {
            samples = samples.with_size(&freed.symbol, freed.size);
        }
        fit_batches(&mut samples, &related.sampled, self.tools.memory);
        self.environment.check_cancelled()?;
        let (reference, candidate) = (self.placement.place(&related.reference)?, self.placement.place(b)?);
        let between = related.between.as_ref().map(|part| self.placement.place(part)).transpose()?;
        let relation = related.relation(between);
        let options = if self.test.is_none() { self.bounded(options, &samples) } else { options };
        let options = self.measured(options);
        let mut comparison =
            compare_related(self.engine, &reference, &candidate, Some(relation), &mut samples, options)?;
        if comparison.report.is_equal() {
            related.check_other_sizes(self, b, &mut comparison.report)?;
        }
        Ok(comparison)
    }

    /// Compares two models on generated samples.
    pub fn compare_generated(&self, a: &Model, b: &Model) -> Result<Comparison, Error> {
        let samples = open_or_generate(None, a, self.environment.seed)?;
        self.compare_on(samples, a, b, ProofOptions::default())
    }

    fn compare_on(
        &self,
        mut samples: SampleSet,
        a: &Model,
        b: &Model,
        options: ProofOptions,
    ) -> Result<Comparison, Error> {
        self.environment.check_cancelled()?;
        fit_batches(&mut samples, a, self.tools.memory);
        let (a, b) = (self.placement.place(a)?, self.placement.place(b)?);
        compare(self.engine, &a, &b, &mut samples, self.measured(options))
    }

    /// The options with the measures of the outputs.
    fn measured(&self, options: ProofOptions) -> ProofOptions {
        ProofOptions { quality: self.tools.quality.cloned().unwrap_or_default(), ..options }
    }

    /// The reason why the engine does not run a model on generated inputs, if it does not.
    pub fn run_error(&self, model: &Model) -> Result<Option<String>, Error> {
        let mut samples = open_or_generate(None, model, self.environment.seed)?;
        let (source, options) = (self.placement.place(model)?, self.engine.load_options());
        let run = |feed: &Feed| self.engine.engine()?.load(&source, &options)?.run(feed).map_err(Error::from);
        Ok(run(&samples.batch(0..1)?).err().map(|e| e.to_string()))
    }

    /// The reason why the engine does not load a model, if it does not.
    pub fn load_error(&self, model: &Model) -> Option<String> {
        let (engine, source) = (self.engine.engine().ok()?, self.placement.place(model).ok()?);
        engine.load(&source, &self.engine.load_options()).err().map(|e| e.to_string())
    }
}
