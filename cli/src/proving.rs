//! Proving what a pipeline made of a model, and finding what is at fault.

use crate::{
    args::{Common, Prove},
    failure::Failure,
    inputs::{self, Engines},
    optimize::Work,
    proof::{self, Limits},
    voice::Voice,
};
use pare_graph::{
    Model,
    onnx::{self, WriteError},
    text,
};
use pare_passes::{
    Effect, Observer, Pass, PassError, Report, RunError, RunOptions, Tools, reduce::reduce, run,
};
use pare_runtime::{ModelSource, Outcome, ProofOptions, ProofReport as Proof, SampleSet, declared_change};
use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

/// The metadata entry that holds the pipeline.
pub const PIPELINE_KEY: &str = "pare.pipeline";

/// The metadata entry of a reproducer that says what goes wrong.
pub const FAULT_KEY: &str = "pare.fault";

/// Models that are tried on the way to a reproducer.
pub const TRIALS: usize = 400;

/// Samples that show how values are rounded: by passes that promise equality, and by the engine's optimizations. Each has
/// thousands of values, all of which would differ; only shares of samples, such as accuracy, need all samples.
const ROUNDED: usize = 512;

/// What is needed to run a pipeline over a model and to compare.
pub struct Proving<'p> {
    pub work: &'p Work,
    pub common: &'p Common,
    pub voice: &'p Voice,
    pub engines: &'p Engines<'p>,
    pub tools: Tools<'p>,
    original: &'p Model,
    /// Where that lies.
    source: ModelSource,
    /// Models on their way to an engine that are too large for memory.
    scratch: RefCell<Vec<tempfile::TempDir>>,
}

/// What the proof said.
pub struct Proven {
    /// The result against the original.
    pub overall: Proof,
    /// Each pass by itself, if that was asked for.
    pub each: Vec<(String, Effect, Proof)>,
    /// Broken limits and stages that are not what they promise.
    pub failures: Vec<String>,
    /// The pass and patch at fault, if one was found.
    pub guilty: Option<String>,
    pub effect: Effect,
    pub engine: String,
}

/// What goes wrong in a run of a pipeline by the fault of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Faults of one kind are one defect to a reproducer.
    pub kind: Kind,
    /// One sentence.
    pub why: String,
}

/// The kind of a fault, with the pass where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Panicked(&'static str),
    Broken(&'static str),
    NotConverging(&'static str),
    Differs,
}

impl Fault {
    /// The fault that an error speaks of; `None` if no pass is to blame.
    pub fn of(error: &RunError) -> Option<Self> {
        let kind = match error {
            RunError::Panicked { pass, .. } => Kind::Panicked(pass),
            RunError::Broken { pass, .. } => Kind::Broken(pass),
            RunError::Pass { pass, error: PassError::NotConverging(_) } => Kind::NotConverging(pass),
            RunError::Pass { .. } | RunError::Input { .. } => return None,
        };
        Some(Self { kind, why: error.to_string() })
    }
}

impl<'p> Proving<'p> {
    /// `source` is where `original` lies.
    pub fn new(
        work: &'p Work,
        common: &'p Common,
        voice: &'p Voice,
        engines: &'p Engines<'p>,
        tools: Tools<'p>,
        original: &'p Model,
        source: ModelSource,
    ) -> Self {
        Self { work, common, voice, engines, tools, original, source, scratch: RefCell::default() }
    }

    /// Run the pipeline.
    pub fn run(
        &self,
        model: &mut Model,
        stop_after: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Report, RunError> {
        run(&self.work.pipeline, model, RunOptions::new(self.tools).stop_after(stop_after), observer)
    }

    /// Compare the result with the original, and stages with each other.
    pub fn prove(
        &self,
        original: &Model,
        model: &Model,
        stages: &[Stage],
        test: Option<SampleSet>,
        narrowed: bool,
    ) -> Result<Proven, Failure> {
        let effect = stages.iter().map(|s| s.effect).max().unwrap_or(Effect::Exact);
        let max_deployed = (effect == Effect::Lossy).then_some(ROUNDED);
        let options = ProofOptions { narrowed, max_deployed, ..ProofOptions::default() };
        let mut overall = if narrowed {
            self.compare_narrowed(original, model, options)?
        } else {
            self.compare(original, model, test, options)?
        };
        let (mut failures, mut each) = (vec![], vec![]);
        // What the user limits is limited whatever passes promise.
        let limits = &self.work.limits;
        if let Outcome::Unproven { why } = &overall.outcome {
            if limits.any() {
                failures.push(format!("the limits could not be checked: {why}"));
            }
        } else {
            failures.extend(limits.broken(&overall));
        }
        if !narrowed {
            failures.extend(declared_change(original, model));
        }
        let by_stage = self.work.prove == Prove::Each;
        if effect == Effect::Lossy || by_stage {
            let max_samples = (!by_stage).then_some(ROUNDED);
            for stage in stages.iter().filter(|s| by_stage || s.effect < Effect::Lossy) {
                let proof = self.compare(
                    &stage.before,
                    &stage.after,
                    None,
                    ProofOptions { max_samples, ..ProofOptions::default() },
                )?;
                let passes = stage.passes.join(", ");
                match &proof.outcome {
                    Outcome::Differs { output, why } if stage.effect < Effect::Lossy => failures.push(
                        format!("`{output}`: {why}, though {passes} promise{} equality", plural(stage)),
                    ),
                    _ => {}
                }
                if by_stage {
                    each.push((passes, stage.effect, proof));
                }
            }
        }
        let mut guilty = None;
        if let Outcome::Differs { output, why } = &overall.outcome {
            if effect < Effect::Lossy {
                let of = if output.is_empty() { String::new() } else { format!("`{output}`: ") };
                failures.push(format!("{of}{why}"));
                guilty = self.bisect(original)?;
            } else if output.is_empty() {
                // Interfaces must agree even where values may not.
                failures.push(why.clone());
            }
        }
        let engine = self.engines.get()?.note.clone();
        overall.notes.dedup();
        Ok(Proven { overall, each, failures, guilty, effect, engine })
    }

    fn compare(
        &self,
        a: &Model,
        b: &Model,
        test: Option<SampleSet>,
        options: ProofOptions,
    ) -> Result<Proof, Failure> {
        let mut samples = match test {
            Some(samples) => samples,
            None => inputs::samples_or_generated(self.work.samples.as_deref(), a, self.common.seed)?,
        };
        proof::compare(self.engines, &self.place(a)?, &self.place(b)?, &mut samples, options)
    }

    /// The same where `b` takes other sizes: samples are cut as it wants them.
    fn compare_narrowed(&self, a: &Model, b: &Model, options: ProofOptions) -> Result<Proof, Failure> {
        let path = self.work.test.as_deref().or(self.work.samples.as_deref());
        let mut samples = match inputs::samples_or_generated(path, b, self.common.seed) {
            Ok(samples) => samples,
            // Other inputs than there are samples for: the comparison says so.
            Err(_) => inputs::samples_or_generated(path, a, self.common.seed)?,
        };
        proof::compare(self.engines, &self.place(a)?, &self.place(b)?, &mut samples, options)
    }

    /// Where an engine finds a model: in memory; one that is too large for that in the file it came from, or, if it
    /// was changed, in a file beside the output.
    fn place(&self, model: &Model) -> Result<ModelSource, Failure> {
        match onnx::to_bytes(model) {
            Ok(bytes) => Ok(ModelSource::bytes(bytes)),
            Err(WriteError::TooLarge { .. }) if std::ptr::eq(model, self.original) => Ok(self.source.clone()),
            Err(WriteError::TooLarge { .. }) if self.work.output != Path::new("-") => {
                let parent = self.work.output.parent().filter(|p| *p != Path::new(""));
                let cannot = |e| Failure::new(format!("cannot write beside the output: {e}"));
                let folder = tempfile::tempdir_in(parent.unwrap_or(Path::new("."))).map_err(cannot)?;
                let path = folder.path().join("model.onnx");
                onnx::write(model, &path, &onnx::WriteOptions { sync: false, ..Default::default() })?;
                self.scratch.borrow_mut().push(folder);
                Ok(ModelSource::File(path))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The first patch after which the result differs, by bisection.
    fn bisect(&self, original: &Model) -> Result<Option<String>, Failure> {
        self.voice.note("looking for the patch at fault");
        let run_to = |n: u64| -> Result<(Model, Report), Failure> {
            let mut model = original.clone();
            let report = self.run(&mut model, Some(n), &mut ())?;
            Ok((model, report))
        };
        let (_, all) = run_to(u64::MAX)?;
        let (mut good, mut bad) = (0, all.patches());
        while bad > good + 1 {
            let middle = good + (bad - good) / 2;
            let proof = self.compare(original, &run_to(middle)?.0, None, ProofOptions::default())?;
            let differs = matches!(proof.outcome, Outcome::Differs { .. });
            if differs { bad = middle } else { good = middle }
        }
        let (before, after) = (run_to(bad.saturating_sub(1))?.1, run_to(bad)?.1);
        let applied = |report: &Report, pass: &str| {
            report.steps.iter().find(|s| s.pass == pass).map_or(0, |s| s.patches)
        };
        let pass = after.steps.iter().find(|s| s.patches > applied(&before, s.pass));
        Ok(pass.map(|p| format!("patch {bad}, by `{}`, is the first after which the models differ", p.pass)))
    }

    /// What goes wrong with this model, on generated samples: a part of a model has other inputs than the whole.
    pub fn fault(&self, model: &Model) -> Option<Fault> {
        let mut changed = model.clone();
        match self.run(&mut changed, self.work.stop_after, &mut ()) {
            Err(error) => Fault::of(&error),
            Ok(_) if self.work.pipeline.effect() == Effect::Lossy => None,
            // Nothing was promised about an interface that was to change.
            Ok(report) if report.steps.iter().any(|s| !s.interface.is_empty()) => None,
            Ok(_) => {
                let mut samples = inputs::samples_or_generated(None, model, self.common.seed).ok()?;
                let (a, b) = (self.place(model).ok()?, self.place(&changed).ok()?);
                let proof =
                    proof::compare(self.engines, &a, &b, &mut samples, ProofOptions::default()).ok()?;
                let Outcome::Differs { output, why } = proof.outcome else { return None };
                let why = if output.is_empty() { why } else { format!("`{output}`: {why}") };
                Some(Fault { kind: Kind::Differs, why })
            }
        }
    }

    /// The smallest model found with a fault of the same kind, that and the pipeline in its metadata.
    pub fn reproducer(&self, model: &Model, kind: Kind) -> Option<(Model, Fault)> {
        let mut whole = model.clone();
        whole.infer().ok()?;
        let fault = self.fault(&whole).filter(|f| f.kind == kind)?;
        let mut tried = 0;
        let mut small = reduce(&whole, TRIALS, |part| {
            tried += 1;
            pare_passes::Progress::step(self.voice, "reducing", tried, TRIALS as u64);
            self.fault(part).is_some_and(|f| f.kind == kind)
        });
        small.infer().ok()?;
        let fault = self.fault(&small).unwrap_or(fault);
        small.set_metadata(PIPELINE_KEY, &self.work.pipeline.to_string());
        small.set_metadata(FAULT_KEY, &fault.why);
        Some((small, fault))
    }

    /// Why the engine does not load a model, if it does not.
    pub fn refused(&self, model: &Model) -> Option<String> {
        let (engine, source) = (self.engines.engine().ok()?, self.place(model).ok()?);
        engine.load(&source, &self.engines.load_options()).err().map(|e| e.to_string())
    }

    /// Save a reproducer beside the output; says where.
    pub fn save_reproducer(&self, model: &Model, kind: Kind) -> Option<String> {
        self.voice.note("looking for the smallest part that fails");
        let (small, _) = self.reproducer(model, kind)?;
        let path = reproducer_path(&self.work.output);
        let nodes = small.node_count();
        onnx::write(&small, &path, &onnx::WriteOptions::default()).ok()?;
        Some(format!("`{}` fails in the same way with {nodes} nodes", path.display()))
    }
}

fn plural(stage: &Stage) -> &'static str {
    if stage.passes.len() == 1 { "s" } else { "" }
}

/// `out.onnx` has its reproducer in `out.reproducer.onnx`.
fn reproducer_path(output: &Path) -> PathBuf {
    if output == Path::new("-") { "reproducer.onnx".into() } else { output.with_extension("reproducer.onnx") }
}

/// A run of consecutive passes of one kind: those that promise equality, or a single lossy one.
pub struct Stage {
    pub effect: Effect,
    pub passes: Vec<&'static str>,
    pub before: Model,
    pub after: Model,
}

/// Cuts a pipeline into stages while it runs, and prints graphs.
pub struct Stages<'v> {
    /// Only lossy pipelines, and those proven pass by pass, are proven in stages; copies are saved otherwise.
    keep: bool,
    each: bool,
    print_after: Option<&'v str>,
    voice: &'v Voice,
    last: Model,
    patches: u64,
    done: Vec<Stage>,
}

impl<'v> Stages<'v> {
    pub fn new(work: &'v Work, voice: &'v Voice, model: &Model) -> Self {
        let each = work.prove == Prove::Each;
        Self {
            keep: each || work.pipeline.effect() == Effect::Lossy,
            each,
            print_after: work.print_after.as_deref(),
            voice,
            last: model.clone(),
            patches: 0,
            done: vec![],
        }
    }

    pub fn finish(self) -> Vec<Stage> {
        self.done
    }
}

impl Observer for Stages<'_> {
    fn after(&mut self, pass: &dyn Pass, model: &Model, patches: u64) {
        let info = pass.info();
        if self.print_after.is_some_and(|p| p == "all" || p == info.name) {
            let options = text::PrintOptions { max_elements: Some(8) };
            self.voice.dump(&format!("after {}:\n{}", info.name, text::print_model_with(model, options)));
        }
        if std::mem::replace(&mut self.patches, patches) == patches {
            return;
        }
        let after = if self.keep { model.clone() } else { Model::default() };
        let lossy = |effect: Effect| effect == Effect::Lossy;
        match self.done.last_mut() {
            Some(stage) if !self.each && lossy(stage.effect) == lossy(info.effect) => {
                stage.effect = stage.effect.max(info.effect);
                stage.passes.push(info.name);
                stage.passes.dedup();
                stage.after = after.clone();
            }
            _ => self.done.push(Stage {
                effect: info.effect,
                passes: vec![info.name],
                before: self.last.clone(),
                after: after.clone(),
            }),
        }
        if self.keep {
            self.last = after;
        }
    }
}

/// What a drift is held to, checked before the work.
pub fn check_limits(limits: &Limits, prove: Prove) -> Result<(), Failure> {
    if limits.any() && prove == Prove::No {
        return Err(Failure::new("limits cannot be checked without a proof").hint("leave out `--no-prove`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{failure::Done, optimize::perform};
    use clap::Parser;
    use pare_graph::{Decline, Node, NodeRef, Patch, expect, text::parse_graph};
    use pare_passes::{Context, Pipeline, pass};

    pass! {
        /// Panics at a `Tanh`.
        #[pass("panic-at-tanh", Exact)]
        pub struct PanicAtTanh {}
    }

    impl Pass for PanicAtTanh {
        fn run(&self, model: &mut Model, _: &mut Context<'_>) -> Result<(), PassError> {
            let graph = &model.graph;
            assert!(graph.nodes().iter().all(|&n| graph.node(n).op != "Tanh"), "a Tanh!");
            Ok(())
        }
    }

    pass! {
        /// Takes `Abs` for `Neg`.
        #[pass("flip-abs", Rounding)]
        pub struct FlipAbs {}
    }

    impl Pass for FlipAbs {
        fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
            cx.rewrite(model, &["Abs"], |at: NodeRef<'_>| -> Result<Patch, Decline> {
                expect(at.is("Abs"))?;
                let mut patch = Patch::at(at);
                let new = patch.node("y", Node::new("Neg"), &[at.input(0)?.into()]);
                patch.replace(at.output()?, new);
                Ok(patch)
            })
        }
    }

    const MODEL: &str = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        a = Relu(x) b = Sigmoid(a) c = Tanh(b) d = Exp(c) e = Abs(d) y = Sqrt(e) z = Exp(b) }";

    fn work(folder: &Path, pass: impl Pass + 'static, prove: Prove) -> Work {
        let model = Model::of(parse_graph(MODEL, 18).unwrap());
        let path = folder.join("m.onnx");
        onnx::write(&model, &path, &onnx::WriteOptions::default()).unwrap();
        let mut pipeline = Pipeline::default();
        pipeline.push(pass);
        Work {
            model: path,
            output: folder.join("out.onnx"),
            pipeline,
            samples: None,
            statistics: vec![],
            test: None,
            limits: Limits::default(),
            prove,
            freeze_initializers: false,
            stop_after: None,
            print_after: None,
            verbose: false,
            memory: 1 << 30,
        }
    }

    fn common() -> Common {
        crate::args::Cli::parse_from(["pare", "passes"]).common
    }

    fn reproducer(folder: &Path) -> Model {
        onnx::read(folder.join("out.reproducer.onnx"), &onnx::ReadOptions::default()).unwrap()
    }

    #[test]
    fn a_panic_is_told_and_saved_as_the_smallest_model_that_panics() {
        let folder = tempfile::tempdir().unwrap();
        let voice = Voice::new(false, true);
        let work = work(folder.path(), PanicAtTanh {}, Prove::Whole);
        let Err(failure) = perform(&work, &common(), &voice) else { panic!("it went well") };
        assert_eq!(failure.message, "`panic-at-tanh` panicked: a Tanh!");
        assert!(failure.hint.unwrap().contains("out.reproducer.onnx` fails in the same way with 1 nodes"));
        assert!(!work.output.exists());
        let small = reproducer(folder.path());
        assert_eq!((small.node_count(), small.metadata(PIPELINE_KEY)), (1, Some("panic-at-tanh")));
        assert_eq!(small.metadata(FAULT_KEY), Some("`panic-at-tanh` panicked: a Tanh!"));
    }

    #[test]
    fn a_wrong_pass_is_found_by_patch_and_model() {
        let folder = tempfile::tempdir().unwrap();
        let voice = Voice::new(false, true);
        for prove in [Prove::Whole, Prove::Each] {
            let work = work(folder.path(), FlipAbs {}, prove);
            let told = perform(&work, &common(), &voice).unwrap();
            assert_eq!(told.done, Done::CheckFailed);
            assert!(!work.output.exists());
            let proof = &told.json["proof"];
            assert_eq!(proof["guilty"], "patch 1, by `flip-abs`, is the first after which the models differ");
            let each = proof["each"].as_array().unwrap();
            assert_eq!(each.len(), usize::from(prove == Prove::Each));
            assert!(each.iter().all(|e| e["passes"] == "flip-abs" && e["outcome"] == "differs"));
            assert_eq!(reproducer(folder.path()).node_count(), 1);
        }
    }

    #[test]
    fn limits_need_a_proof() {
        let limits = Limits { drift: Some(0.1), ..Limits::default() };
        assert!(check_limits(&limits, Prove::No).is_err() && check_limits(&limits, Prove::Whole).is_ok());
    }
}
