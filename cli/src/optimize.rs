//! `pare optimize`: read, run the pipeline, prove, write, report.

use crate::{
    args::{Common, OptimizeArgs},
    calibrate,
    failure::{Done, Failure},
    inputs::{self, Engines},
    proof::{self, Limits},
    stored::Stored,
    voice::{self, Voice},
};
use pare_graph::{
    Model,
    onnx::{self, WriteError},
    ops::Bindings,
    text,
};
use pare_passes::{Effect, Observer, Pass, Pipeline, Report, RunOptions, Tools, run as run_pipeline};
use pare_runtime::{ModelSource, Outcome, Report as Proof, SharedSamples};
use serde_json::json;
use std::{cell::RefCell, io::Write, path::Path, time::Instant};

/// The metadata entry that holds the pipeline.
const PIPELINE_KEY: &str = "pare.pipeline";

pub fn run(args: &OptimizeArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let start = Instant::now();
    let pipeline = pipeline(args)?;
    check_print_after(args, &pipeline)?;
    inputs::check_output(&args.output)?;
    let loaded = inputs::model(&args.model)?;
    let mut original = loaded.model.clone();
    if args.freeze_initializers {
        original.graph.freeze_initializers();
    }

    let engines = Engines::new(common, voice);
    engines.check_custom_ops()?;
    let samples = match &args.samples {
        Some(path) => Some(SharedSamples::from(inputs::samples(path, &original)?)),
        None => None,
    };
    let statistics = calibrate::all(&args.statistics)?;
    let test = args.test.as_ref().map(|path| inputs::samples(path, &original)).transpose()?;
    let tools = Tools {
        engine: Some(&engines),
        samples: samples.as_ref().map(|s| s as &dyn pare_graph::Samples),
        statistics: statistics.as_ref(),
        progress: voice,
        seed: common.seed,
        threads: common.threads,
        memory: args.memory,
    };
    let job = Job {
        args,
        common,
        voice,
        engines: &engines,
        pipeline: &pipeline,
        tools,
        original: &original,
        source: loaded.source,
        scratch: RefCell::default(),
    };

    let mut model = original.clone();
    let mut stages = Stages::new(&pipeline, args.print_after.as_deref(), voice, &original);
    let report = run_pipeline(&pipeline, &mut model, job.options(args.stop_after), &mut stages)?;
    let changed = report.patches() > 0 || args.freeze_initializers;
    if changed {
        model.set_metadata(PIPELINE_KEY, &pipeline.to_string());
    }

    // A pass may have been asked to change inputs and outputs.
    let narrowed = report.steps.iter().any(|s| !s.interface.is_empty());
    let proof = if args.no_prove {
        None
    } else {
        Some(job.prove(&original, &model, stages.finish(), test, narrowed)?)
    };
    if let Some(proof) = &proof
        && !proof.failures.is_empty()
    {
        voice.report(
            || job.json(&original, &model, &report, Some(proof), None, start),
            || proof.text(args.verbose),
        );
        for failure in &proof.failures {
            voice.failed_check(failure, None);
        }
        voice.failed_check("nothing was written", proof.guilty.as_deref());
        return Ok(Done::CheckFailed);
    }
    let written = write(&model, &args.output)?;
    let feeds = (args.samples.as_deref(), common.seed);
    let stored = Stored::of(&report, (&original, &model), feeds, &engines)?;
    let stored = stored.as_ref();
    let summary = || {
        let written = (loaded.bytes, &written, stored);
        job.text(&original, &model, &report, proof.as_ref(), written, start)
    };
    let sizes = Some((loaded.bytes, written.bytes));
    let machine = || {
        let mut json = job.json(&original, &model, &report, proof.as_ref(), sizes, start);
        json["weights"] = json!(stored.map(Stored::json));
        json
    };
    if args.output == Path::new("-") {
        // The model itself went to stdout.
        voice.note(summary().trim_end());
    } else {
        voice.report(machine, summary);
    }
    if !changed {
        voice.note("nothing was found to improve: the output equals the input");
    }
    Ok(Done::Well)
}

fn pipeline(args: &OptimizeArgs) -> Result<Pipeline, Failure> {
    let Some(path) = &args.config else {
        return args.passes.parse().map_err(|e| Failure::pipeline(&e, &args.passes));
    };
    let cannot = |e| Failure::new(format!("cannot read `{}`: {e}", path.display()));
    let source = std::fs::read_to_string(path).map_err(cannot)?;
    Pipeline::from_toml(&source)
        .map_err(|e| Failure::pipeline(&e, &source).of(format_args!("`{}`", path.display())))
}

fn check_print_after(args: &OptimizeArgs, pipeline: &Pipeline) -> Result<(), Failure> {
    let Some(name) = &args.print_after else { return Ok(()) };
    if name == "all" || pipeline.passes().iter().any(|p| p.info().name == name) {
        return Ok(());
    }
    Err(Failure::new(format!("`--print-after {name}`: the pipeline has no such pass"))
        .hint("`all` prints after every pass"))
}

/// What was written.
struct Written {
    /// Bytes, external data included.
    bytes: u64,
    /// The files, for people.
    files: String,
}

fn write(model: &Model, path: &Path) -> Result<Written, Failure> {
    if path == Path::new("-") {
        let mut out = std::io::stdout().lock();
        let bytes = onnx::write_to(model, &mut out)?;
        out.flush().map_err(|e| Failure::new(format!("cannot write to stdout: {e}")))?;
        return Ok(Written { bytes, files: path.display().to_string() });
    }
    let written = onnx::write(model, path, &onnx::WriteOptions::default())?;
    let (data, more) =
        written.data.map_or((String::new(), 0), |(data, bytes)| (format!(" and {}", data.display()), bytes));
    Ok(Written { bytes: written.bytes + more, files: format!("{}{data}", path.display()) })
}

struct Job<'j> {
    args: &'j OptimizeArgs,
    common: &'j Common,
    voice: &'j Voice,
    engines: &'j Engines<'j>,
    pipeline: &'j Pipeline,
    tools: Tools<'j>,
    original: &'j Model,
    source: ModelSource,
    /// Models on their way to an engine that are too large for memory.
    scratch: RefCell<Vec<tempfile::TempDir>>,
}

/// What the proof said.
struct Proven {
    /// The result against the original.
    overall: Proof,
    /// Broken limits and stages that are not what they promise.
    failures: Vec<String>,
    /// The pass and patch at fault, if one was found.
    guilty: Option<String>,
    effect: Effect,
    engine: String,
}

impl Job<'_> {
    fn options(&self, stop_after: Option<u64>) -> RunOptions<'_> {
        RunOptions { tools: self.tools, stop_after }
    }

    fn prove(
        &self,
        original: &Model,
        model: &Model,
        stages: Vec<Stage>,
        test: Option<pare_runtime::Samples>,
        narrowed: bool,
    ) -> Result<Proven, Failure> {
        let effect = stages.iter().map(|s| s.effect).max().unwrap_or(Effect::Exact);
        let mut overall = if narrowed {
            self.compare_narrowed(original, model)?
        } else {
            self.compare(original, model, test)?
        };
        let mut failures = vec![];
        // What the user limits is limited whatever passes promise.
        let limits = self.limits();
        if let Outcome::Unproven { why } = &overall.outcome {
            if limits.any() {
                failures.push(format!("the limits could not be checked: {why}"));
            }
        } else {
            failures.extend(limits.broken(&overall));
        }
        if !narrowed {
            failures.extend(proof::interface_change(original, model));
        }
        let mut guilty = None;
        if effect == Effect::Lossy {
            // Interfaces must agree even where values may not.
            if let Outcome::Differs { output, why } = &overall.outcome
                && output.is_empty()
            {
                failures.push(why.clone());
            }
            for stage in stages.iter().filter(|s| s.effect < Effect::Lossy) {
                let proof = self.compare(&stage.before, &stage.after, None)?;
                if let Outcome::Differs { output, why } = proof.outcome {
                    failures.push(format!(
                        "`{output}`: {why}, though {} promise equality",
                        stage.passes.join(", ")
                    ));
                }
            }
        } else if let Outcome::Differs { output, why } = &overall.outcome {
            let of = if output.is_empty() { String::new() } else { format!("`{output}`: ") };
            failures.push(format!("{of}{why}"));
            guilty = self.bisect(original)?;
        }
        let engine = self.engines.get()?.note.clone();
        overall.notes.dedup();
        Ok(Proven { overall, failures, guilty, effect, engine })
    }

    fn limits(&self) -> Limits {
        Limits {
            drift: self.args.max_drift,
            agreement: self.args.min_agreement,
            accuracy_drop: self.args.max_accuracy_drop,
        }
    }

    fn compare(&self, a: &Model, b: &Model, test: Option<pare_runtime::Samples>) -> Result<Proof, Failure> {
        let mut samples = match test {
            Some(samples) => samples,
            None => inputs::samples_or_generated(self.args.samples.as_deref(), a, self.common.seed)?,
        };
        proof::compare(self.engines, &self.place(a)?, &self.place(b)?, &mut samples, false)
    }

    /// The same where `b` takes other sizes: samples are cut as it wants them.
    fn compare_narrowed(&self, a: &Model, b: &Model) -> Result<Proof, Failure> {
        let path = self.args.test.as_deref().or(self.args.samples.as_deref());
        let mut samples = match inputs::samples_or_generated(path, b, self.common.seed) {
            Ok(samples) => samples,
            // Other inputs than there are samples for: the comparison says so.
            Err(_) => inputs::samples_or_generated(path, a, self.common.seed)?,
        };
        proof::compare(self.engines, &self.place(a)?, &self.place(b)?, &mut samples, true)
    }

    /// Where an engine finds a model: in memory; one that is too large for that in the file it came from, or, if it
    /// was changed, in a file beside the output.
    fn place(&self, model: &Model) -> Result<ModelSource, Failure> {
        match onnx::to_bytes(model) {
            Ok(bytes) => Ok(ModelSource::bytes(bytes)),
            Err(WriteError::TooLarge { .. }) if std::ptr::eq(model, self.original) => Ok(self.source.clone()),
            Err(WriteError::TooLarge { .. }) if self.args.output != Path::new("-") => {
                let parent = self.args.output.parent().filter(|p| *p != Path::new(""));
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
            let report = run_pipeline(self.pipeline, &mut model, self.options(Some(n)), &mut ())?;
            Ok((model, report))
        };
        let (_, all) = run_to(u64::MAX)?;
        let (mut good, mut bad) = (0, all.patches());
        while bad > good + 1 {
            let middle = good + (bad - good) / 2;
            let differs =
                matches!(self.compare(original, &run_to(middle)?.0, None)?.outcome, Outcome::Differs { .. });
            if differs { bad = middle } else { good = middle }
        }
        let (before, after) = (run_to(bad - 1)?.1, run_to(bad)?.1);
        let applied = |report: &Report, pass: &str| {
            report.steps.iter().find(|s| s.pass == pass).map_or(0, |s| s.patches)
        };
        let pass = after.steps.iter().find(|s| s.patches > applied(&before, s.pass));
        Ok(pass.map(|p| format!("patch {bad}, by `{}`, is the first after which the models differ", p.pass)))
    }

    fn json(
        &self,
        original: &Model,
        model: &Model,
        report: &Report,
        proof: Option<&Proven>,
        sizes: Option<(u64, u64)>,
        start: Instant,
    ) -> serde_json::Value {
        let (before, after) = (Figures::of(original), Figures::of(model));
        json!({
            "model": self.args.model, "output": self.args.output, "written": sizes.is_some(),
            "pipeline": self.pipeline.to_string(),
            "before": before.json(sizes.map(|s| s.0)), "after": after.json(sizes.map(|s| s.1)),
            "steps": report.steps, "rounds": report.rounds, "unfinished": report.unfinished,
            "proof": proof.map(|p| {
                let mut json = proof::to_json(&p.overall, &p.engine);
                json["effect"] = json!(p.effect);
                json["failures"] = json!(p.failures);
                json["guilty"] = json!(p.guilty);
                json
            }),
            "seconds": start.elapsed().as_secs_f64(),
        })
    }

    fn text(
        &self,
        original: &Model,
        model: &Model,
        report: &Report,
        proof: Option<&Proven>,
        (bytes_before, written, stored): (u64, &Written, Option<&Stored>),
        start: Instant,
    ) -> String {
        let (before, after) = (Figures::of(original), Figures::of(model));
        let row = |name: &str, a: u64, b: u64, show: fn(u64) -> String| {
            [vec![name.to_owned()], voice::change(a, b, show)].concat()
        };
        let mut rows = vec![
            row("nodes", before.nodes, after.nodes, voice::count),
            row("parameters", before.params, after.params, voice::count),
        ];
        if before.macs > 0 {
            rows.push(row("multiply-accumulates", before.macs, after.macs, voice::count));
        }
        rows.push(row("file", bytes_before, written.bytes, voice::bytes));
        rows.extend(stored.into_iter().flat_map(Stored::rows));
        let mut text = voice::table(&["", "before", "after", ""], rows);
        text.push('\n');
        text += &steps(report, self.args.verbose);
        if let Some(proof) = proof {
            text.push('\n');
            text += &proof.text(self.args.verbose);
        } else {
            text += "\nnot proven: `--no-prove`\n";
        }
        text + &format!("\nwrote {} in {}\n", written.files, voice::seconds(start.elapsed().as_secs_f64()))
    }
}

impl Proven {
    fn text(&self, _verbose: bool) -> String {
        let mut text = match (&self.overall.outcome, self.effect) {
            (Outcome::Unproven { why }, _) => return format!("not proven: {why}\n"),
            (Outcome::Equal, _) => {
                format!("proven equal on {} samples in {}\n", self.overall.samples, self.engine)
            }
            (Outcome::Differs { .. }, Effect::Lossy) => {
                format!("drift on {} samples in {}\n", self.overall.samples, self.engine)
            }
            (Outcome::Differs { .. }, _) => {
                format!("compared on {} samples in {}\n", self.overall.samples, self.engine)
            }
        };
        text += &proof::to_text(&self.overall);
        text
    }
}

/// How many reasons for leaving something alone are shown of each pass.
const REASONS: usize = 3;

fn steps(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for step in &report.steps {
        let asked = verbose || step.effect == Some(Effect::Lossy);
        if step.patches == 0 && (step.declined.is_empty() || !asked) && step.notes.is_empty() {
            continue;
        }
        let mut did: Vec<_> = step.counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
        if did.is_empty() && step.figures.is_empty() {
            did.push(format!("{} changes", step.patches));
        }
        did.extend(step.figures.iter().map(|(what, x)| format!("{what} {x:.4}")));
        text += &format!("{}: {}\n", step.pass, did.join(", "));
        for note in step.notes.iter().chain(&step.interface) {
            text += &format!("  {note}\n");
        }
        let mut reasons: Vec<_> = step.declined.iter().collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let shown = if verbose { reasons.len() } else { REASONS };
        for (why, n) in reasons.iter().take(shown) {
            text +=
                &format!("  left alone: {why}{}\n", if **n > 1 { format!(" (×{n})") } else { String::new() });
        }
        if reasons.len() > shown {
            text +=
                &format!("  left alone for {} more reasons; `--verbose` lists them\n", reasons.len() - shown);
        }
    }
    if report.unfinished {
        text += "the repetition was cut off while it still changed something\n";
    }
    text
}

struct Figures {
    nodes: u64,
    params: u64,
    macs: u64,
}

impl Figures {
    fn of(model: &Model) -> Self {
        let mut model = model.clone();
        // The model was inferred before; a failure leaves figures that need shapes at zero.
        let _ = model.infer();
        let cost = model.cost(&Bindings::default());
        Self { nodes: model.node_count() as u64, params: cost.params, macs: cost.macs }
    }

    fn json(&self, bytes: Option<u64>) -> serde_json::Value {
        json!({ "nodes": self.nodes, "parameters": self.params, "macs": self.macs, "bytes": bytes })
    }
}

/// A run of consecutive passes of one kind: those that promise equality, or a single lossy one.
struct Stage {
    effect: Effect,
    passes: Vec<&'static str>,
    before: Model,
    after: Model,
}

/// Cuts a pipeline into stages while it runs, and prints graphs.
struct Stages<'v> {
    /// Only a pipeline with lossy passes is proven in stages; copies are saved otherwise.
    lossy: bool,
    print_after: Option<&'v str>,
    voice: &'v Voice,
    last: Model,
    patches: u64,
    done: Vec<Stage>,
}

impl<'v> Stages<'v> {
    fn new(pipeline: &Pipeline, print_after: Option<&'v str>, voice: &'v Voice, model: &Model) -> Self {
        let lossy = pipeline.effect() == Effect::Lossy;
        Self { lossy, print_after, voice, last: model.clone(), patches: 0, done: vec![] }
    }

    fn finish(self) -> Vec<Stage> {
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
        let after = if self.lossy { model.clone() } else { Model::default() };
        match self.done.last_mut() {
            Some(stage) if (stage.effect == Effect::Lossy) == (info.effect == Effect::Lossy) => {
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
        if self.lossy {
            self.last = after;
        }
    }
}
