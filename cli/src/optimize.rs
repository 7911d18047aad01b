//! `pare optimize`.

use crate::{
    args::{OptimizeArgs, source},
    comparison,
    failure::{Failure, Status},
    format::{bytes, change, count, figure, on, seconds, share, table},
    hints::{self, Interface},
    interrupt, project,
    terminal::Terminal,
};
use onnx_pare::{
    Config, Effect, Environment, Error, Latency, OptimizeOptions, OptimizeReport, Optimized, Pipeline, Prove,
    Rejected, Reproducer, WeightStatistics, Written, check_output, optimize,
    passes::{Counter, FigureUnit, Report, StepReport},
};
use std::{
    io::{self, Write},
    path::Path,
};

/// Reasons for skipping that are shown of a lossy pass that changed nothing; `--verbose` shows all.
const REASONS: usize = 3;

pub fn run(args: &OptimizeArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let mut options = match args.config.as_deref().map(Config::read).transpose()? {
        Some(Config::Project(project)) => return project::run(&project, args, environment, terminal),
        Some(Config::Pipeline(pipeline)) => pipeline.into(),
        _ => OptimizeOptions::from(&*args.passes),
    };
    let pipeline = options.pipeline()?;
    check_print_after(args, pipeline)?;
    if pipeline.passes().iter().any(|pass| pass.info().trains) {
        interrupt::defer_training();
    }
    let missing = |what: &str| Failure::new(format!("{what} is missing"));
    let model = args.model.as_deref().ok_or_else(|| missing("the model"))?;
    let output = args.output.as_deref().ok_or_else(|| missing("`-o OUTPUT`"))?;
    let to_stdout = output == Path::new("-");
    if !to_stdout {
        check_output(output)?;
        options.scratch = Some(folder_of(output).to_owned());
    }
    args.fill(&mut options);
    options = options.reproduce(true).environment(environment);
    let mut optimized = match optimize(source(model)?, options) {
        Ok(optimized) => optimized,
        Err(Error::Rejected(rejected)) => return Ok(reject(*rejected, model, output, terminal)),
        Err(error) => return Err(with_reproducer(error, output)),
    };
    optimized.report.model = Some(model.to_owned());
    let text = |optimized: &Optimized, written: &str| report_text(&optimized.report, written, args.verbose);
    if to_stdout {
        let mut out = io::stdout().lock();
        optimized.write_to(&mut out)?;
        out.flush().map_err(|e| Failure::new(format!("cannot write to stdout: {e}")))?;
        terminal.note(text(&optimized, "-").trim_end());
    } else {
        let written = optimized.write(output)?;
        terminal.report_with_page(&optimized.report, args.report.as_deref(), || {
            text(&optimized, &files(&written))
        })?;
    }
    if !optimized.changed {
        note_unchanged(terminal);
    }
    warn_slower(&optimized.report, "the result", terminal);
    if let Some(hint) = optimized.hint() {
        terminal.hint(&hints::text(&hint, Interface::Command));
    }
    Ok(if optimized.report.is_unproven() { args.unproven(terminal) } else { Status::Success })
}

/// Prints that a result is slower than its original, why, and the remedy.
pub fn warn_slower(report: &OptimizeReport, name: &str, terminal: &Terminal) {
    let Some(latency) = report.latency.as_ref().filter(|latency| latency.slower) else { return };
    let reasons: Vec<_> = latency.reasons.iter().map(ToString::to_string).collect();
    let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    terminal.warning(&format!("{name} is slower, {} of the original's speed{why}", speed(latency)));
    if let Some(hint) = latency.hint() {
        terminal.hint(&hints::text(&hint, Interface::Command));
    }
}

/// Prints that the output equals the input.
pub fn note_unchanged(terminal: &Terminal) {
    terminal.note("nothing was found to improve: the output equals the input");
}

impl OptimizeArgs {
    /// Sets the options that arguments determine.
    fn fill(&self, options: &mut OptimizeOptions) {
        options.samples.clone_from(&self.samples);
        options.statistics.clone_from(&self.statistics);
        options.teacher.clone_from(&self.teacher);
        options.test.clone_from(&self.test);
        options.hold_out = self.hold_out;
        options.prove = self.prove();
        options.prove_time = self.prove_time;
        options.limits = self.limits.limits();
        options.quality = self.quality.options();
        options.time = !self.no_time;
        options.batch = self.batch;
        options.freeze_initializers = self.freeze_initializers;
        options.stop_after = self.stop_after;
        options.memory = self.memory;
        options.details = self.report.is_some();
        options.external_data = self.external.external_data();
    }

    /// The status of outputs that were written but not proven.
    pub fn unproven(&self, terminal: &Terminal) -> Status {
        if self.allow_unproven {
            return Status::Success;
        }
        terminal.hint(hints::UNPROVEN);
        Status::Unproven
    }

    /// The comparisons of the proof.
    pub fn prove(&self) -> Prove {
        if self.no_prove { Prove::Nothing } else { self.prove.into() }
    }
}

fn check_print_after(args: &OptimizeArgs, pipeline: &Pipeline) -> Result<(), Failure> {
    let Some(name) = &args.print_after else { return Ok(()) };
    if name == "all" || pipeline.passes().iter().any(|p| p.info().name == name) {
        return Ok(());
    }
    Err(Failure::new(format!("`--print-after {name}`: the pipeline has no such pass"))
        .hint("`all` prints after every pass"))
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Reports a result that is not written.
fn reject(mut rejected: Rejected, model: &Path, output: &Path, terminal: &Terminal) -> Status {
    rejected.report.model = Some(model.to_owned());
    rejected.report.output = Some(output.to_owned());
    let text = || rejected.report.proof.as_ref().map_or_else(String::new, comparison::proof);
    terminal.report(&rejected.report, text);
    print_failures(&rejected.report, rejected.reproducer.as_ref(), output, terminal);
    Status::CheckFailed
}

/// Prints the failed checks of a proof, the culprit, and the reproducer, which is saved beside the output.
pub fn print_failures(
    report: &OptimizeReport,
    reproducer: Option<&Reproducer>,
    output: &Path,
    terminal: &Terminal,
) {
    let Some(proof) = &report.proof else { return };
    proof.failures.iter().for_each(|failure| terminal.failed_check(failure));
    terminal.failed_check("nothing was written");
    if let Some(culprit) = &proof.culprit {
        terminal.hint(&culprit.to_string());
    }
    if let Some(saved) = reproducer.and_then(|reproducer| save(reproducer, output)) {
        terminal.hint(&saved);
    }
}

/// Saves a reproducer beside an output.
fn save(reproducer: &Reproducer, output: &Path) -> Option<String> {
    let path =
        if output == Path::new("-") { "reproducer.onnx".into() } else { Reproducer::path_beside(output) };
    let written = reproducer.write(path).ok()?;
    Some(hints::reproducer(reproducer, &written))
}

/// The failure, with the reproducer of a defect.
pub fn with_reproducer(error: Error, output: &Path) -> Failure {
    let saved = match error.root() {
        Error::Defect(defect) => defect.reproducer.as_ref().and_then(|r| save(r, output)),
        _ => None,
    };
    let hint = error.hint().zip(saved).map(|(hint, saved)| hints::defect_with(&hint, &saved));
    let failure = Failure::from(error);
    Failure { hint: hint.or(failure.hint), ..failure }
}

fn files(written: &Written) -> String {
    let data = match &written.data[..] {
        [] => String::new(),
        [data] => format!(" and {}", data.display()),
        many => format!(" and {} data files", many.len()),
    };
    format!("{}{data}", written.path.display())
}

fn report_text(report: &OptimizeReport, written: &str, verbose: bool) -> String {
    let (before, after) = (&report.before, &report.after);
    let row = |name: &str, a: u64, b: u64, show: fn(u64) -> String| {
        [vec![name.to_owned()], change(a, b, show)].concat()
    };
    let mut rows = vec![
        row("nodes", before.nodes, after.nodes, count),
        row("parameters", before.parameters, after.parameters, count),
    ];
    if before.macs > 0 {
        rows.push(row("multiply-accumulates", before.macs, after.macs, count));
    }
    if let (Some(a), Some(b)) = (before.bytes, after.bytes) {
        rows.push(row("file", a, b, bytes));
    }
    rows.extend(report.weights.iter().flat_map(weight_rows));
    let table = table(&["", "before", "after", ""], rows);
    let latency = report.latency.as_ref().map_or_else(String::new, latency_text);
    let steps = steps_text(&report.run, verbose);
    let proof = report.proof.as_ref().map_or_else(|| "not proven: `--no-prove`\n".into(), comparison::proof);
    format!("{table}{latency}\n{steps}\n{proof}\nwrote {written} in {}\n", seconds(report.seconds))
}

/// One line: no column of the table has the width of a time.
fn latency_text(latency: &Latency) -> String {
    let Latency { before, after, batch, threads, provider, .. } = latency;
    let threads = if *threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
    let [before, after] = [before, after].map(|time| seconds(time.median));
    format!(
        "latency {before} → {after}, speed {}, batch {batch}, {threads}{}\n",
        speed(latency),
        on(provider)
    )
}

/// The speed relative to the original, and the middle half of the rounds.
fn speed(latency: &Latency) -> String {
    let speed = &latency.speed;
    format!("{:.2}× ({:.2} – {:.2})", speed.median, speed.low, speed.high)
}

fn weight_rows(weights: &WeightStatistics) -> Vec<Vec<String>> {
    let row = |name: &str, rest: Vec<String>| [vec![name.to_owned()], rest].concat();
    let [dense, sparse] = weights.density.map(share);
    let [packed_before, packed_after] = weights.zstd_bytes;
    vec![
        row("weights not zero", vec![dense, sparse, String::new()]),
        row("file, compressed", change(packed_before, packed_after, bytes)),
    ]
}

fn steps_text(report: &Report, verbose: bool) -> String {
    let top = report.steps.iter().filter(|step| step.within.is_none());
    let mut text: String = top.map(|step| step_text(report, step, verbose, 0)).collect();
    if report.unfinished {
        text += "the repetition was cut off while it still changed something\n";
    }
    text
}

/// One line for the pass, its notes, and its nested steps, indented.
fn step_text(report: &Report, step: &StepReport, verbose: bool, depth: usize) -> String {
    /// Passes run each other to a small depth.
    const DEEPEST: usize = 4;
    let nested = report.steps.iter().filter(|s| s.within == Some(step.pass) && depth < DEEPEST);
    let nested: String = nested.map(|s| step_text(report, s, verbose, depth + 1)).collect();
    let unchanged = step.patches == 0;
    let explained =
        step.declined().next().is_some() && (verbose || (unchanged && step.effect == Some(Effect::Lossy)));
    if unchanged && nested.is_empty() && step.notes.is_empty() && !explained {
        return String::new();
    }
    let mut results: Vec<_> = step.counted().collect();
    let figures = step.figures().filter(|(_, figure)| verbose || !figure.detail);
    results.extend(figures.map(|(name, value)| match value.unit {
        FigureUnit::Percent => format!("{name} {}", share(value.value)),
        _ => format!("{name} {}", figure(value.value)),
    }));
    if results.is_empty() {
        results.push(Counter::new("change", "changes").of(step.patches));
    }
    let mut lines = vec![format!("{}: {}", step.pass, results.join(", "))];
    lines.extend(step.notes.iter().map(|note| format!("  {note}")));
    lines.extend(step.interface.iter().map(|change| format!("  {change}")));
    if explained {
        lines.extend(declined(step, verbose));
    }
    let indent = "  ".repeat(depth);
    let own: String = lines.iter().map(|line| format!("{indent}{line}\n")).collect();
    own + &nested
}

/// The reasons why the pass skipped something, the most frequent first.
fn declined(step: &StepReport, verbose: bool) -> Vec<String> {
    let mut reasons: Vec<_> = step.declined().collect();
    reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let shown = if verbose { reasons.len() } else { REASONS.min(reasons.len()) };
    let times = |n: u64| if n > 1 { format!(" (×{n})") } else { String::new() };
    let mut lines: Vec<_> =
        reasons[..shown].iter().map(|(why, n)| format!("  skipped: {why}{}", times(*n))).collect();
    if reasons.len() > shown {
        lines.push(format!("  skipped for {} more reasons; `--verbose` lists them", reasons.len() - shown));
    }
    lines
}
