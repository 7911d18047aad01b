//! `pare search`.

use crate::{
    args::{SearchArgs, source},
    failure::{Failure, Status},
    format::{bytes, change, count, figure, on, percent, seconds, share, table},
    interrupt, optimize,
    terminal::Terminal,
};
use onnx_pare::{
    Environment, Error, Goal, Measured, Metric, SearchEnd, SearchOptions, SearchReport, Trial, TrialOutcome,
    Written, check_output, search,
};
use std::path::Path;

pub fn run(args: &SearchArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    check_output(&args.output)?;
    interrupt::defer();
    let shared = shared_options(&environment);
    let mut found = match search(source(&args.model)?, options(args, environment)?) {
        Ok(found) => found,
        Err(Error::Rejected(rejected)) => {
            let failures = rejected.report.proof.as_ref().map_or(&[][..], |proof| &proof.failures);
            failures.iter().for_each(|failure| terminal.failed_check(failure));
            return Ok(Status::CheckFailed);
        }
        Err(error) => return Err(error.into()),
    };
    let written = found.optimized.write(&args.output)?;
    found.report.result = found.optimized.report.clone();
    found.report.model = Some(args.model.clone());
    terminal.report_with_page(&found.report, args.report.as_deref(), || {
        text(&found.report, args, &shared, &written)
    })?;
    Ok(Status::Success)
}

fn options(args: &SearchArgs, environment: Environment) -> Result<SearchOptions, Failure> {
    let mut options = SearchOptions::new(&args.samples)
        .goal(Goal::from(args.goal))
        .hold_out(args.hold_out)
        .confidence(args.confidence)
        .budget(args.budget)
        .families(args.passes.clone())
        .batch(args.batch)
        .quality(args.quality.options())
        .freeze_initializers(args.freeze_initializers)
        .memory(args.memory)
        .resume(!args.restart)
        .details(args.report.is_some())
        .environment(environment);
    options.limits.accuracy_drop = args.max_accuracy_drop;
    options.limits.agreement = args.min_agreement;
    options.limits.drift = args.max_drift;
    options.limits.metric_drop = args.max_metric_drop;
    let metric = args.evaluate.as_ref().map(|line| Metric::command(line, args.evaluate_timeout));
    options.metric = metric.transpose()?;
    options.test.clone_from(&args.test);
    options.front.clone_from(&args.front);
    options.scratch = Some(optimize::folder_of(&args.output).to_owned());
    Ok(options)
}

/// One line about a trial.
pub fn progress(trial: &Trial, number: usize, best: Option<f64>) -> String {
    let outcome = match &trial.outcome {
        TrialOutcome::Measured(measured) => {
            let quality = quality(measured).into_iter().map(|(name, value)| format!("{name} {value}"));
            let quality: Vec<_> = quality.collect();
            format!("{:.2}×, {}", 1.0 / measured.cost, quality.join(", "))
        }
        TrialOutcome::Skipped(why) => format!("skipped: {why}"),
    };
    let best = best.map_or_else(|| "none".into(), |cost| format!("{:.2}×", 1.0 / cost));
    format!("{number:>3}  {}  {outcome}  (best {best})", trial.pipeline)
}

/// The measures of quality that are known.
fn quality(measured: &Measured) -> Vec<(&'static str, String)> {
    let points = |drop: f64| format!("{:+.2} points", -100.0 * drop);
    let known = [
        ("accuracy", measured.accuracy_drop.map(points)),
        ("agreement", measured.agreement.map(percent)),
        ("metric", measured.metric_drop.map(|drop| format!("{:+.4}", -drop))),
        ("drift", Some(figure(measured.drift))),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn text(report: &SearchReport, args: &SearchArgs, shared: &str, written: &Written) -> String {
    let mut text = summary(report);
    let (before, after) = (&report.result.before, &report.result.after);
    let size = |n: Option<u64>| n.unwrap_or_default();
    text += &format!(
        "\n{}",
        table(
            &["", "before", "after", "kept"],
            vec![
                [vec!["MACs".into()], change(before.macs, after.macs, count)].concat(),
                [vec!["bytes".into()], change(size(before.bytes), size(after.bytes), bytes)].concat(),
            ],
        )
    );
    text += &format!("\nbetter in cost or quality than all others\n{}", front(report));
    let skipped = report.families.iter().filter_map(|family| Some((family.name, family.skipped.as_ref()?)));
    for (name, why) in skipped {
        text += &format!("{name}: {why}\n");
    }
    text += &format!("\n{}\n", effort(report));
    text += &format!("to make the result again:\n  {}\n", command(report, args, shared));
    text + &format!("\nwrote {} ({})\n", written.path.display(), bytes(written.bytes))
}

/// The result in two sentences.
fn summary(report: &SearchReport) -> String {
    let Some(best) = report.best.as_ref().and_then(Trial::measured) else {
        return "nothing keeps the limits and is better than `safe`, which is the result\n".into();
    };
    let mut text = match (report.goal, report.latency) {
        (Goal::Latency, Some([low, median, high])) => format!(
            "{:.2} times as fast as the original (middle half {:.2} – {:.2}), batch {}, threads {}{}\n",
            1.0 / median,
            1.0 / high,
            1.0 / low,
            report.batch,
            report.threads,
            on(&report.provider)
        ),
        (Goal::Bytes, _) => format!("{} of the bytes of the original\n", share(best.cost)),
        _ => format!("{} of the MACs of the original\n", share(best.cost)),
    };
    let quality: Vec<_> = quality(best).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
    text += &format!("on {} samples that no pass saw: {}\n", report.samples, quality.join(", "));
    if let Some(confidence) = report.confidence {
        text +=
            &format!("the limits hold for other samples with a confidence of {:.0} %\n", 100.0 * confidence);
    }
    text
}

/// The trials of the front as a table.
fn front(report: &SearchReport) -> String {
    let trials: Vec<_> = report.front.iter().filter_map(|&at| report.trials.get(at)).collect();
    let names: Vec<&str> = trials
        .first()
        .and_then(|trial| trial.measured())
        .map(|m| quality(m).into_iter().map(|(name, _)| name).collect())
        .unwrap_or_default();
    let ratio = match report.goal {
        Goal::Latency => "speed",
        Goal::Bytes => "bytes",
        _ => "MACs",
    };
    let rows = trials.into_iter().filter_map(|trial| {
        let measured = trial.measured()?;
        let known = quality(measured);
        let value = |name: &&str| {
            known.iter().find(|(n, _)| n == name).map_or_else(|| "–".into(), |(_, v)| v.clone())
        };
        let cost = match report.goal {
            Goal::Latency => format!("{:.2}×", 1.0 / measured.cost),
            _ => share(measured.cost),
        };
        Some([vec![trial.pipeline.clone(), cost], names.iter().map(value).collect()].concat())
    });
    table(&[vec!["pipeline", ratio], names.clone()].concat(), rows.collect())
}

fn effort(report: &SearchReport) -> String {
    let end = match report.end {
        SearchEnd::Finished => "no improvement was expected any more",
        SearchEnd::Budget => "the time was up",
        SearchEnd::Cancelled => "interrupted",
    };
    let resumed = match report.resumed {
        0 => String::new(),
        n => format!(", {n} of them in an earlier search"),
    };
    format!("{} candidates{resumed} in {}: {end}", report.trials.len(), seconds(report.seconds))
}

/// The options of all commands that a result depends on: trained weights are sums over threads.
fn shared_options(environment: &Environment) -> String {
    let option = |name: &str, value: u64| match value {
        0 => String::new(),
        value => format!(" --{name} {value}"),
    };
    option("threads", environment.threads as u64) + &option("seed", environment.seed)
}

/// The command that makes the result again.
fn command(report: &SearchReport, args: &SearchArgs, shared: &str) -> String {
    let path = |path: &Path| quoted(&path.display().to_string());
    let mut command = format!(
        "pare optimize {} -o {} --samples {}",
        path(&args.model),
        path(&args.output),
        path(&args.samples)
    );
    match &args.test {
        Some(test) => command += &format!(" --test {}", path(test)),
        None => command += &format!(" --hold-out {}", args.hold_out),
    }
    for (output, measure) in &args.quality.quality {
        command += &format!(" --quality {}", quoted(&format!("{output}={measure}")));
    }
    if let Some(mask) = &args.quality.mask {
        command += &format!(" --mask {}", quoted(mask));
    }
    if args.freeze_initializers {
        command += " --freeze-initializers";
    }
    if report.provider != "cpu" {
        command += &format!(" --provider {}", quoted(&report.provider));
    }
    command + shared + &format!(" --passes '{}'", report.pipeline)
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./=,:".contains(c);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
