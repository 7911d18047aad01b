//! `pare optimize`: read, run the pipeline, prove, write, report.

use crate::{
    args::{Common, OptimizeArgs, Prove},
    calibrate,
    config::{self, Config},
    failure::{Done, Failure},
    inputs::{self, Engines},
    project,
    proof::{self, Limits},
    proving::{self, Fault, Kind, PIPELINE_KEY, Proven, Proving, Stages},
    stored::Stored,
    voice::{self, Voice, counted},
};
use pare_graph::{Model, Samples as _, onnx, ops::Bindings};
use pare_passes::{Effect, FigureUnit, Pipeline, Report, Tools};
use pare_runtime::{Outcome, SharedSamples};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

pub fn run(args: &OptimizeArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let pipeline = match args.config.as_deref().map(config::read).transpose()? {
        None => args.passes.parse().map_err(|e| Failure::pipeline(&e, &args.passes))?,
        Some(Config::Pipeline(pipeline)) => pipeline,
        Some(Config::Project(project)) => return project::run(&project, args, common, voice),
    };
    let told = perform(&Work::of(args, pipeline)?, common, voice)?;
    if args.output.as_deref() == Some(Path::new("-")) && told.done == Done::Well {
        // The model itself went to stdout.
        voice.note(told.text.trim_end());
    } else {
        voice.report(|| told.json.clone(), || told.text.clone());
    }
    told.say(voice);
    Ok(told.done)
}

/// One model's way through a pipeline.
pub struct Work {
    pub model: PathBuf,
    pub output: PathBuf,
    pub pipeline: Pipeline,
    pub samples: Option<PathBuf>,
    pub statistics: Vec<PathBuf>,
    pub test: Option<PathBuf>,
    pub limits: Limits,
    pub prove: Prove,
    pub freeze_initializers: bool,
    pub stop_after: Option<u64>,
    pub print_after: Option<String>,
    pub verbose: bool,
    pub memory: u64,
}

impl Work {
    fn of(args: &OptimizeArgs, pipeline: Pipeline) -> Result<Self, Failure> {
        let missing = |what: &str| Failure::new(format!("{what} is missing"));
        Ok(Self {
            model: args.model.clone().ok_or_else(|| missing("the model"))?,
            output: args.output.clone().ok_or_else(|| missing("`-o OUTPUT`"))?,
            pipeline,
            samples: args.samples.clone(),
            statistics: args.statistics.clone(),
            test: args.test.clone(),
            limits: args.limits.limits(),
            prove: if args.no_prove { Prove::No } else { args.prove },
            freeze_initializers: args.freeze_initializers,
            stop_after: args.stop_after,
            print_after: args.print_after.clone(),
            verbose: args.verbose,
            memory: args.memory,
        })
    }
}

/// What there is to say after the work.
pub struct Told {
    pub done: Done,
    pub json: Value,
    pub text: String,
    /// What the model was read from.
    pub files: Vec<PathBuf>,
    failures: Vec<String>,
    hints: Vec<String>,
    note: Option<&'static str>,
}

impl Told {
    /// Failed checks and remarks.
    pub fn say(&self, voice: &Voice) {
        for failure in &self.failures {
            voice.failed_check(failure, None);
        }
        if self.done == Done::CheckFailed {
            voice.failed_check("nothing was written", None);
        }
        self.hints.iter().for_each(|hint| voice.hint(hint));
        if let Some(note) = self.note {
            voice.note(note);
        }
    }
}

/// Do the work: the output is written if everything holds.
pub fn perform(work: &Work, common: &Common, voice: &Voice) -> Result<Told, Failure> {
    let start = Instant::now();
    check_print_after(work)?;
    inputs::check_output(&work.output)?;
    proving::check_limits(&work.limits, work.prove)?;
    let loaded = inputs::model(&work.model)?;
    let files: Vec<_> = loaded.model.files().map(Path::to_owned).collect();
    let mut original = loaded.model.clone();
    if work.freeze_initializers {
        original.graph.freeze_initializers();
    }

    let engines = Engines::new(common, voice);
    engines.check_custom_ops()?;
    let samples = match &work.samples {
        Some(path) => Some(SharedSamples::from(inputs::samples(path, &original)?)),
        None => None,
    };
    let statistics = calibrate::all(&work.statistics)?;
    let test = work.test.as_ref().map(|path| inputs::samples(path, &original)).transpose()?;
    let tools = Tools {
        engine: Some(&engines),
        samples: samples.as_ref().map(|s| s as &dyn pare_graph::Samples),
        statistics: statistics.as_ref(),
        progress: voice,
        seed: common.seed,
        threads: common.threads,
        memory: work.memory,
    };
    let proving = Proving::new(work, common, voice, &engines, tools, &original, loaded.source);
    if let Some(samples) = samples.as_ref().filter(|_| work.pipeline.effect() == Effect::Lossy) {
        voice.note(&calibration(&original, samples.len(), work.memory));
    }

    let mut model = original.clone();
    let mut stages = Stages::new(work, voice, &original);
    let report = match proving.run(&mut model, work.stop_after, &mut stages) {
        Ok(report) => report,
        Err(error) => {
            let fault = Fault::of(&error);
            return Err(with_reproducer(error.into(), fault, &proving, &original));
        }
    };
    let changed = report.patches() > 0 || work.freeze_initializers;
    if changed {
        model.set_metadata(PIPELINE_KEY, &work.pipeline.to_string());
    }

    let summary = Summary { work, original: &original, model: &model, report: &report, start };
    // A pass may have been asked to change inputs and outputs.
    let narrowed = report.steps.iter().any(|s| !s.interface.is_empty());
    let proof = match work.prove {
        Prove::No => None,
        _ => Some(proving.prove(&original, &model, &stages.finish(), test, narrowed)?),
    };
    if let Some(proof) = proof.as_ref().filter(|p| !p.failures.is_empty()) {
        let mut hints: Vec<_> = proof.guilty.iter().cloned().collect();
        if matches!(proof.overall.outcome, Outcome::Differs { .. }) && proof.effect < Effect::Lossy {
            hints.extend(proving.save_reproducer(&original, Kind::Differs));
        }
        return Ok(Told {
            done: Done::CheckFailed,
            json: summary.json(Some(proof), None),
            text: proof.text(),
            files,
            failures: proof.failures.clone(),
            hints,
            note: None,
        });
    }
    let written = write(&model, &work.output)?;
    let feeds = (work.samples.as_deref(), common.seed);
    let stored = Stored::of(&report, (&original, &model), feeds, &engines)?;
    let stored = stored.as_ref();
    let mut json = summary.json(proof.as_ref(), Some((loaded.bytes, written.bytes)));
    json["weights"] = json!(stored.map(Stored::json));
    Ok(Told {
        done: Done::Well,
        json,
        text: summary.text(proof.as_ref(), loaded.bytes, &written, stored),
        files,
        failures: vec![],
        hints: vec![],
        note: (!changed).then_some("nothing was found to improve: the output equals the input"),
    })
}

/// The failure, with a reproducer if a pass is to blame.
fn with_reproducer(
    failure: Failure,
    fault: Option<Fault>,
    proving: &Proving<'_>,
    original: &Model,
) -> Failure {
    let Some(fault) = fault else { return failure };
    // A pass may be the first to find out what contradicts itself in the model.
    let refused = matches!(fault.kind, Kind::Broken(_)).then(|| proving.refused(original)).flatten();
    let blame = match refused {
        Some(why) => {
            format!("this is a defect of the pass, or of the model, which does not load either: {why}")
        }
        None => "this is a defect of the pass".to_owned(),
    };
    match proving.save_reproducer(original, fault.kind) {
        Some(saved) => failure.hint(format!("{blame}; {saved}")),
        None => failure.hint(format!("{blame}; leave it out")),
    }
}

/// What calibration will take, said before it starts.
fn calibration(model: &Model, samples: usize, memory: u64) -> String {
    let mut model = model.clone();
    let _ = model.infer();
    let each = model.cost(&Bindings::default()).activation_peak;
    format!(
        "calibrating on {samples} samples of {} of activations each, in no more than {} (`--memory`)",
        voice::bytes(each),
        voice::bytes(memory)
    )
}

fn check_print_after(work: &Work) -> Result<(), Failure> {
    let Some(name) = &work.print_after else { return Ok(()) };
    if name == "all" || work.pipeline.passes().iter().any(|p| p.info().name == name) {
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

/// What the report is made of.
struct Summary<'s> {
    work: &'s Work,
    original: &'s Model,
    model: &'s Model,
    report: &'s Report,
    start: Instant,
}

impl Summary<'_> {
    fn json(&self, proof: Option<&Proven>, sizes: Option<(u64, u64)>) -> Value {
        let (before, after) = (Figures::of(self.original), Figures::of(self.model));
        let Self { work, report, .. } = self;
        json!({
            "model": work.model, "output": work.output, "written": sizes.is_some(),
            "pipeline": work.pipeline.to_string(),
            "before": before.json(sizes.map(|s| s.0)), "after": after.json(sizes.map(|s| s.1)),
            "steps": report.steps, "rounds": report.rounds, "unfinished": report.unfinished,
            "proof": proof.map(Proven::json),
            "seconds": self.start.elapsed().as_secs_f64(),
        })
    }

    fn text(
        &self,
        proof: Option<&Proven>,
        bytes_before: u64,
        written: &Written,
        stored: Option<&Stored>,
    ) -> String {
        let (before, after) = (Figures::of(self.original), Figures::of(self.model));
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
        text += &steps(self.report, self.work.verbose);
        text.push('\n');
        text += &proof.map_or_else(|| "not proven: `--no-prove`\n".into(), Proven::text);
        let seconds = voice::seconds(self.start.elapsed().as_secs_f64());
        text + &format!("\nwrote {} in {seconds}\n", written.files)
    }
}

impl Proven {
    fn json(&self) -> Value {
        let mut json = proof::to_json(&self.overall, &self.engine);
        json["effect"] = json!(self.effect);
        json["failures"] = json!(self.failures);
        json["guilty"] = json!(self.guilty);
        let each = self.each.iter().map(|(passes, effect, proof)| {
            let mut json = proof::to_json(proof, &self.engine);
            json["passes"] = json!(passes);
            json["effect"] = json!(effect);
            json
        });
        json["each"] = each.collect();
        json
    }

    fn text(&self) -> String {
        let Self { overall, engine, .. } = self;
        let samples = overall.samples;
        let mut text = match (&overall.outcome, self.effect) {
            (Outcome::Unproven { why }, _) => return format!("not proven: {why}\n"),
            (Outcome::Equal, _) => format!("proven equal on {samples} samples in {engine}\n"),
            (Outcome::Differs { .. }, Effect::Lossy) => format!("drift on {samples} samples in {engine}\n"),
            (Outcome::Differs { .. }, _) => format!("compared on {samples} samples in {engine}\n"),
        };
        text += &proof::to_text(overall);
        if !self.each.is_empty() {
            let row = |(passes, effect, proof): &(String, Effect, pare_runtime::ProofReport)| {
                let worst = proof.deviation.outputs().iter().map(|(_, d)| d.max_rel).fold(0.0, f64::max);
                let verdict = match &proof.outcome {
                    Outcome::Equal => "equal",
                    Outcome::Differs { .. } if *effect == Effect::Lossy => "drifts",
                    Outcome::Differs { .. } => "differs",
                    Outcome::Unproven { .. } => "not proven",
                };
                vec![passes.clone(), effect.to_string(), format!("{worst:.1e}"), verdict.into()]
            };
            text.push('\n');
            text += &voice::table(
                &["pass by pass", "promises", "relative", ""],
                self.each.iter().map(row).collect(),
            );
        }
        text
    }
}

/// How many reasons for leaving something alone are shown of each pass.
const REASONS: usize = 3;

fn steps(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    for step in &report.steps {
        let asked = verbose || step.effect == Some(Effect::Lossy);
        if step.patches == 0 && (step.declined().next().is_none() || !asked) && step.notes.is_empty() {
            continue;
        }
        let mut did: Vec<_> = step.counted().collect();
        if did.is_empty() && step.figures().next().is_none() {
            did.push(counted(step.patches, "changes"));
        }
        let figures = step.figures().filter(|(_, figure)| verbose || !figure.detail);
        did.extend(figures.map(|(what, figure)| match figure.unit {
            FigureUnit::Percent => format!("{what} {:.1} %", 100.0 * figure.value),
            _ => format!("{what} {}", voice::figure(figure.value)),
        }));
        text += &format!("{}: {}\n", step.pass, did.join(", "));
        for note in step.notes.iter().chain(&step.interface) {
            text += &format!("  {note}\n");
        }
        let mut reasons: Vec<_> = step.declined().collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let shown = if verbose { reasons.len() } else { REASONS };
        for (why, n) in reasons.iter().take(shown) {
            text +=
                &format!("  left alone: {why}{}\n", if *n > 1 { format!(" (×{n})") } else { String::new() });
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

    fn json(&self, bytes: Option<u64>) -> Value {
        json!({ "nodes": self.nodes, "parameters": self.params, "macs": self.macs, "bytes": bytes })
    }
}
